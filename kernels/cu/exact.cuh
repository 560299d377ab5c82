// The numerics as device functions (docs/numerics.md, by section): what every kernel that rounds,
// quantises, norms or exponentiates calls, so that there is one place where bits are decided.
#pragma once

#include "common.cuh"

// Where a fault was seen: operation + 1 of kernels::backend::Operation.
enum FaultOperation : u32 { QUANTISE_FAULT = 1, FLOAT_LINEAR_FAULT, KV_ROUND_FAULT, LAYER_OUTPUT_FAULT, LOGITS_FAULT };

// Records a fault of `row` unless an earlier one stands there. Within one kernel whoever comes first wins: a
// kernel that sees faults of two operations has each block see the first of them first.
DEV void record_fault(u64 faults, u32 row, u32 layer, u32 operation) {
    atomicCAS((u32*)faults + row, 0u, (layer + 1) << 8 | operation);
}

// Loads past L1: what other blocks of the same kernel may have written.
DEV float load_fresh(const float* p) {
    float v;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory");
    return v;
}

DEV float4 load_fresh4(const float* p) {
    float4 v;
    asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(p) : "memory");
    return v;
}

// Counts one of `expected` blocks in at `counter`; true in every thread of the last one, which then sees what
// the others wrote before (with load_fresh). The counter is zero again afterwards. `shared`: one word.
DEV bool last_of(u32* counter, u32 expected, u32* shared) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        bool last = atomicAdd(counter, 1u) == expected - 1;
        if (last) *counter = 0;
        *shared = last;
        __threadfence();
    }
    __syncthreads();
    return *shared != 0;
}

// ---- Section 0: magnitudes, rounding

DEV u32 magnitude(float v) { return __float_as_uint(v) & 0x7fffffffu; }

DEV bool is_finite(float v) { return magnitude(v) < 0x7f800000u; }

// Nearest bf16, ties to even, as f32.
DEV float round_bf16(float v) {
    u32 u = __float_as_uint(v);
    return __uint_as_float((u + 0x7fffu + (u >> 16 & 1)) & 0xffff0000u);
}

// The output of a layer: rounded to bf16 if `rounded`; `faulty` is set if it is not finite, before or after.
DEV float layer_output(float v, bool rounded, bool& faulty) {
    float out = rounded ? round_bf16(v) : v;
    if (!is_finite(v) || !is_finite(out)) faulty = true;
    return out;
}

// ---- Section 2: the quantiser

// Largest of the lanes' words, in every lane.
DEV u32 warp_max(u32 v) {
#if __CUDA_ARCH__ >= 800
    return __reduce_max_sync(ALL_LANES, v);
#else
#pragma unroll
    for (int lanes = 16; lanes; lanes /= 2) v = max(v, shuffle_xor(v, lanes));
    return v;
#endif
}

// Largest of the words of `lanes` (a power of two) neighbouring lanes, in each of them.
template <int lanes>
DEV u32 lanes_max(u32 v) {
#pragma unroll
    for (int l = lanes / 2; l; l /= 2) v = max(v, shuffle_xor(v, l));
    return v;
}

// How a group is quantised, whatever its size.
struct Group {
    float scale, inverse;
    bool faulty;
};

// Of the group whose largest magnitude has the bits `amax`. A faulty group becomes zeros.
DEV Group group_of(u32 amax) {
    Group group;
    group.faulty = amax >= 0x7f800000u;
    bool zero = group.faulty || amax < (27u << 23);
    float scale = __uint_as_float(zero ? 0x3f800000u : amax) / 127.0f;
    group.inverse = zero ? 0.0f : 1.0f / scale;
    group.scale = zero ? 0.0f : scale;
    return group;
}

DEV int quantised(float v, const Group& group) {
    if (group.scale == 0.0f) return 0;
    return max(-127, min(127, __float2int_rn(v * group.inverse)));
}

DEV u32 pack4(int a, int b, int c, int d) { return (a & 255) | (b & 255) << 8 | (c & 255) << 16 | (u32)d << 24; }

DEV u32 quantised4(float a, float b, float c, float d, const Group& group) {
    return pack4(quantised(a, group), quantised(b, group), quantised(c, group), quantised(d, group));
}

// A group of 32, one value a lane. Every lane of the warp takes part.
DEV int quantise32(float v, Group& group) {
    group = group_of(warp_max(magnitude(v)));
    return quantised(v, group);
}

// Rows as the input of linear layers (docs/kernels.md): where each form stands, 0 where it is not wanted.
struct Activation {
    u64 narrow, narrow_scales;  // i8 [rows][K256], f32 [rows][K256 / 32]
    u64 wide, wide_scales;      // i8 [rows][K256], f32 [rows][K256 / 256]
    u64 values;                 // f32 [rows][K256]
    u32 width;                  // K, values of a row
    u32 quantised;              // profile `Quantised`: a value that is not finite is a fault
};

// Stores 256 values of row `row`, the `segment`th, in every form that is wanted. A warp calls it; its lane has
// v[4 j + c] = value 128 j + 4 lane + c of the segment, zero past the row's width. True if there is a fault.
DEV bool store_segment(const Activation& out, u32 row, u32 segment, const float (&v)[8]) {
    u32 lane = threadIdx.x & 31, segments = (out.width + 255) / 256;
    u64 at = ((u64)row * segments + segment) * 256;
    u32 part[2];
#pragma unroll
    for (int j = 0; j < 2; j++) {
        const float* x = v + 4 * j;
        part[j] = max(max(magnitude(x[0]), magnitude(x[1])), max(magnitude(x[2]), magnitude(x[3])));
        if (out.values) *(float4*)((float*)out.values + at + 128 * j + 4 * lane) = make_float4(x[0], x[1], x[2], x[3]);
    }
    if (!out.quantised) return false;
    u32 amax = warp_max(max(part[0], part[1]));
    if (out.narrow) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const float* x = v + 4 * j;
            Group group = group_of(lanes_max<8>(part[j]));
            ((u32*)(out.narrow + at))[32 * j + lane] = quantised4(x[0], x[1], x[2], x[3], group);
            if ((lane & 7) == 0) ((float*)out.narrow_scales)[at / 32 + 4 * j + lane / 8] = group.scale;
        }
    }
    if (out.wide) {
        Group group = group_of(amax);
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const float* x = v + 4 * j;
            ((u32*)(out.wide + at))[32 * j + lane] = quantised4(x[0], x[1], x[2], x[3], group);
        }
        if (lane == 0) ((float*)out.wide_scales)[at / 256] = group.scale;
    }
    return amax >= 0x7f800000u;
}

// What a lane holds of segment `segment` of the row `x` of `width` values, as store_segment takes it.
DEV void load_segment(const float* x, u32 width, u32 segment, float (&v)[8]) {
    u32 lane = threadIdx.x & 31;
#pragma unroll
    for (int j = 0; j < 2; j++) {
        u32 at = segment * 256 + 128 * j + 4 * lane;
        if (width % 4 == 0) {
            float4 x4 = at < width ? load_fresh4(x + at) : make_float4(0, 0, 0, 0);
            v[4 * j] = x4.x, v[4 * j + 1] = x4.y, v[4 * j + 2] = x4.z, v[4 * j + 3] = x4.w;
        } else {
#pragma unroll
            for (int c = 0; c < 4; c++) v[4 * j + c] = at + c < width ? load_fresh(x + at + c) : 0.0f;
        }
    }
}

// ---- Section 4: norms

// The halving tree over 256 lanes' sums, lane l + 32 j being part[j] of lane l of a warp; in every lane.
DEV float tree256(float (&part)[8]) {
#pragma unroll
    for (int w = 4; w; w /= 2)
#pragma unroll
        for (int j = 0; j < w; j++) part[j] += part[j + w];
    float sum = part[0];
#pragma unroll
    for (int lanes = 16; lanes; lanes /= 2) sum += shuffle_xor(sum, lanes);
    return sum;
}

// The halving tree over one sum a thread of a block of 256, in every thread. `shared`: 256 floats.
DEV float block_tree256(float sum, float* shared) {
    __syncthreads();
    shared[threadIdx.x] = sum;
    __syncthreads();
    float part[8];
#pragma unroll
    for (int j = 0; j < 8; j++) part[j] = shared[(threadIdx.x & 31) + 32 * j];
    return tree256(part);
}

DEV float rms_factor(float sum_of_squares, u32 n, float eps) { return 1.0f / __fsqrt_rn(sum_of_squares / (float)n + eps); }

// Sum of squares of a row of `n` values, by a block of 256. `shared`: 256 floats.
DEV float row_sum_of_squares(const float* x, u32 n, float* shared) {
    float sum = 0.0f;
    u32 i = threadIdx.x;
    for (; i + 7 * 256 < n; i += 8 * 256) {
        float v[8];
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = load_fresh(x + i + 256 * j);
#pragma unroll
        for (int j = 0; j < 8; j++) sum = __fmaf_rn(v[j], v[j], sum);
    }
    for (; i < n; i += 256) {
        float v = load_fresh(x + i);
        sum = __fmaf_rn(v, v, sum);
    }
    return block_tree256(sum, shared);
}

struct RmsNorm {
    u64 weight;  // f32 [n]
    float eps;
    u32 zero;
};

// Norms the row `x` of `out.width` values into row `row` of an activation. A block of 256 threads calls it, be it
// the last of a kernel that wrote `x`. `shared`: 256 floats.
DEV void norm_row(const float* x, const RmsNorm& norm, const Activation& out, u32 row, u64 faults, u32 layer, float* shared) {
    u32 n = out.width, warp = threadIdx.x >> 5;
    float r = rms_factor(row_sum_of_squares(x, n, shared), n, norm.eps);
    bool faulty = false;
    for (u32 segment = warp; segment < (n + 255) / 256; segment += 8) {
        float v[8], w[8];
        load_segment(x, n, segment, v);
        load_segment((const float*)norm.weight, n, segment, w);
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = (v[j] * r) * w[j];
        faulty |= store_segment(out, row, segment, v);
    }
    if (faulty && (threadIdx.x & 31) == 0) record_fault(faults, row, layer, QUANTISE_FAULT);
}

// Stores the row `x` of `out.width` values as row `row` of an activation; by a block of any whole number of warps.
DEV void quantise_row(const float* x, const Activation& out, u32 row, u64 faults, u32 layer) {
    bool faulty = false;
    for (u32 segment = threadIdx.x >> 5; segment < (out.width + 255) / 256; segment += blockDim.x >> 5) {
        float v[8];
        load_segment(x, out.width, segment, v);
        faulty |= store_segment(out, row, segment, v);
    }
    if (faulty && (threadIdx.x & 31) == 0) record_fault(faults, row, layer, QUANTISE_FAULT);
}

// ---- Section 5: exp and its family

// e^x for x <= 88; below -87 +0; a NaN stays one.
DEV float exact_exp(float x) {
    float t = __fmaf_rn(x, __uint_as_float(0x3fb8aa3b), 12582912.0f);
    float n = t - 12582912.0f;
    float r = __fmaf_rn(n, __uint_as_float(0xbf317200), x);
    r = __fmaf_rn(n, __uint_as_float(0xb5bfbe8e), r);
    float p = __uint_as_float(0x3ab511e8);
    p = __fmaf_rn(p, r, __uint_as_float(0x3c091d10));
    p = __fmaf_rn(p, r, __uint_as_float(0x3d2aac79));
    p = __fmaf_rn(p, r, __uint_as_float(0x3e2aaa49));
    p = __fmaf_rn(p, r, __uint_as_float(0x3efffffe));
    p = __fmaf_rn(p, r, 1.0f);
    p = __fmaf_rn(p, r, 1.0f);
    float e = __uint_as_float(__float_as_uint(p) + (__float_as_uint(t) << 23));
    return x < -87.0f ? 0.0f : x != x ? x : e;
}

DEV float sigmoid(float x) {
    float e = exact_exp(-fabsf(x));
    return x >= 0.0f ? 1.0f / (1.0f + e) : e / (1.0f + e);
}

DEV float silu(float x) { return x * sigmoid(x); }
