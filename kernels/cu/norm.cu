// Norms of rows, the rounding at the end of a layer, and rows on their way into a linear layer.
#include "exact.cuh"

struct NormParams {
    u64 step;   // u32: rows in use
    u64 x;      // f32 [rows][width]
    u64 faults; // u32 [rows]
    RmsNorm norm;
    Activation out;
    u32 layer, zero;
};

// y = (x * r) * w, quantised. One block a row.
KERNEL(256, 2) norm_rows(const NormParams p) {
    __shared__ float shared[256];
    u32 row = blockIdx.x;
    if (row >= *(const u32*)p.step) return;
    norm_row((const float*)p.x + (u64)row * p.out.width, p.norm, p.out, row, p.faults, p.layer, shared);
}

struct QuantiseParams {
    u64 step;
    u64 x;
    u64 faults;
    Activation out;
    u32 layer, zero;
};

// Rows as they are, quantised. One block a row.
KERNEL(256, 2) quantise_rows(const QuantiseParams p) {
    u32 row = blockIdx.x;
    if (row >= *(const u32*)p.step) return;
    quantise_row((const float*)p.x + (u64)row * p.out.width, p.out, row, p.faults, p.layer);
}

struct FinishParams {
    u64 step;
    u64 h;
    u64 faults;
    u32 width, layer;
    u32 rounded, zero;
};

// The end of a layer: h = bf16(h) if `rounded`. One block a row.
KERNEL(256, 2) finish_rows(const FinishParams p) {
    u32 row = blockIdx.x;
    if (row >= *(const u32*)p.step) return;
    float* h = (float*)p.h + (u64)row * p.width;
    bool faulty = false;
    for (u32 i = threadIdx.x; i < p.width; i += 256) h[i] = layer_output(h[i], p.rounded, faulty);
    if (faulty) record_fault(p.faults, row, p.layer, LAYER_OUTPUT_FAULT);
}
