// Moving rows about.
#include "common.cuh"

struct GatherParams {
    u64 from, rows, out;
    u32 width, count;
};

// Row `rows[i]` of `from` becomes row `i` of `out`: f32 [.][width]. One block per row.
KERNEL(256, 1) gather(const GatherParams p) {
    const float* from = (const float*)p.from + (u64)((const u32*)p.rows)[blockIdx.x] * p.width;
    float* out = (float*)p.out + (u64)blockIdx.x * p.width;
    for (u32 i = threadIdx.x; i < p.width; i += 256) out[i] = from[i];
}
