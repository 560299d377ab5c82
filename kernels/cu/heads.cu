// Heads after a product that left them in memory: prefill. One warp for each head of each row.
#include "heads.cuh"

struct PlaceParams {
    u64 step;      // u32: rows in use
    u64 products;  // f32 [rows][(heads + 2 * kv_heads) * head_dim]: q, k, v of each row
    Heads heads;
};

// Grid: (ceil(heads of a row / 8), rows). Dynamic shared memory: 8 * head_dim floats.
KERNEL(256, 1) place_heads(const PlaceParams p) {
    extern __shared__ float staging[];
    u32 all = p.heads.heads + 2 * p.heads.kv_heads, warp = threadIdx.x >> 5;
    u32 head = blockIdx.x * 8 + warp, row = blockIdx.y;
    if (row >= *(const u32*)p.step || head >= all) return;
    const float* products = (const float*)p.products + ((u64)row * all + head) * p.heads.head_dim;
    place_head(p.heads, row, head, [=](u32 d) { return products[d]; }, staging + warp * p.heads.head_dim);
}
