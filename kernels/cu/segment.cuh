// A warp's part of a decoding step: segments of one tile of outputs against 8 NT rows, weights streaming from memory
// through registers. A lane reloads a register of weights as soon as it was used, for the warp's next segment: as many
// bytes are on their way all the time as one segment has (4 KiB a warp at q8, 2 KiB at 4 bits).
#pragma once

#include "tile.cuh"

// Where a lane finds the activations of its columns. There may be fewer rows in use than columns: the others lie
// in the buffer, and nobody stores their sums.
struct Columns {
    const u8* q;
    const float* scales;
    u32 stride, groups;

    // Rows from `first`, `stride` bytes and `groups` scales each; lanes read runs of `run` bytes.
    __device__ __forceinline__ Columns(u64 x, u64 s, u32 first, u32 stride, u32 groups, u32 run) : stride(stride), groups(groups) {
        u32 lane = threadIdx.x & 31;
        q = (const u8*)x + (u64)(first + lane / 4) * stride + (lane & 3) * run;
        scales = (const float*)s + (u64)(first + (lane & 3) * 2) * groups;
    }

    __device__ __forceinline__ void skip(u32 rows) {
        q += (u64)rows * stride;
        scales += (u64)rows * groups;
    }

    // Of column lane / 4 of tile `t`, from k on.
    __device__ __forceinline__ const u8* at(int t, u32 k) const { return q + ((u64)(8 * t * stride) + k); }
    // Of column 2 (lane % 4) + c of tile `t`, from group g on.
    __device__ __forceinline__ const float* scale(int t, int c, u32 g) const { return scales + ((u64)((8 * t + c) * groups) + g); }
};

// The registers of a segment's weights: F::LOADS fragments' worth, then what scales them.
template <class F>
struct Weights {
    uint4 w[F::LOADS];
    uint4 scale[2];
    u16 d[2];

    __device__ __forceinline__ void load_scales(const u8* segment) {
        u32 gid = (threadIdx.x & 31) / 4;
        const u8* s = segment + F::LOADS * 512 + gid * 16;
        scale[0] = load_weights(s);
        scale[1] = load_weights(s + 128);
        if (F::LOADS == 6) {
            const u16* from = (const u16*)(segment + F::LOADS * 512 + 256);
            d[0] = from[gid];
            d[1] = from[gid + 8];
        }
    }

    __device__ __forceinline__ void load(const u8* segment, int i) {
        w[i] = load_weights(segment + i * 512 + (threadIdx.x & 31) * 16);
    }

    __device__ __forceinline__ void load_all(const u8* segment) {
#pragma unroll
        for (int i = 0; i < F::LOADS; i++) load(segment, i);
        load_scales(segment);
    }
};

DEV void load_floats(float (&v)[4], const float* p) {
    float4 f = *(const float4*)p;
    v[0] = f.x, v[1] = f.y, v[2] = f.z, v[3] = f.w;
}

DEV void load_floats(float (&v)[2], const float* p) {
    float2 f = *(const float2*)p;
    v[0] = f.x, v[1] = f.y;
}

// Keeps the compiler from moving loads of later groups up until registers run out.
template <int NT>
DEV void hold_back(int g) {
    if (NT >= 4 && g % 2) __syncwarp();
}

// Sums of segment `s`; the weights of `next`, if any, are asked for on the way.
template <class F, int NT>
struct Narrow {
    static const int AHEAD = NT == 1 ? 4 : 2;  // scales of activations loaded together

    static __device__ __forceinline__ void run(float (&sum)[NT][4], Weights<F>& weights, const Columns& x, u32 s, const u8* next) {
        uint4 scale0 = weights.scale[0], scale1 = weights.scale[1];
        if (next) weights.load_scales(next);
#pragma unroll
        for (int t = 0; t < NT; t++)
#pragma unroll
            for (int i = 0; i < 4; i++) sum[t][i] = 0.0f;
#pragma unroll
        for (int first = 0; first < 8; first += AHEAD) {
            float sx[NT][2][AHEAD];
#pragma unroll
            for (int t = 0; t < NT; t++)
#pragma unroll
                for (int c = 0; c < 2; c++) load_floats(sx[t][c], x.scale(t, c, s * 8) + first);
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                int g = first + i;
                u32 a[4];
                F::fragment(a, weights.w, g);
                if (next && F::last_use(g)) weights.load(next, F::load_of(g));
                float w0 = half_at(scale0, g), w1 = half_at(scale1, g);
#pragma unroll
                for (int t = 0; t < NT; t++) {
                    uint2 b = *(const uint2*)(x.at(t, s * SEGMENT) + g * 32);
                    int d[4];
                    mma(d, a, b.x, b.y, F::SEED);
                    add_group<F>(sum[t], d, w0, w1, sx[t][0][i], sx[t][1][i]);
                }
                hold_back<NT>(g);
            }
        }
    }
};

// `q4_k`. The sums of activations that the minima multiply are a product too: a lane's own partial sum over 8 k of
// each of the 8 sub-blocks is a column of 32 "k" (4 lanes, 8 sub-blocks), taken in two bytes.
template <int NT>
struct WideQ4 {
    static __device__ __forceinline__ void run(float (&sum)[NT][4], Weights<Q4K>& weights, const Columns& x, u32 s, const u8* next) {
        uint4 head[2] = {weights.scale[0], weights.scale[1]};
        if (next) weights.load_scales(next);
        u32 sc[2][2], m[2][2], parts[NT][4];
        int acc[NT][4];
#pragma unroll
        for (int r = 0; r < 2; r++) Q4K::scales(sc[r], m[r], head[r]);
#pragma unroll
        for (int t = 0; t < NT; t++)
#pragma unroll
            for (int i = 0; i < 4; i++) acc[t][i] = 0;
#pragma unroll
        for (int g = 0; g < 8; g++) {
            u32 a[4];
            Q4K::fragment(a, weights.w, g);
            if (next && Q4K::last_use(g)) weights.load(next, Q4K::load_of(g));
            int sc0 = sc[0][g / 4] >> (8 * (g % 4)) & 63, sc1 = sc[1][g / 4] >> (8 * (g % 4)) & 63;
#pragma unroll
            for (int t = 0; t < NT; t++) {
                uint2 b = *(const uint2*)(x.at(t, s * SEGMENT) + g * 32);
                int part = dp4a(b.x, 0x01010101u, dp4a(b.y, 0x01010101u, 0));
                parts[t][g / 2] = g % 2 ? permute(parts[t][g / 2], (u32)part, 0x5410) : (u32)part;
                int d[4];
                mma(d, a, b.x, b.y, 0);
                acc[t][0] += sc0 * d[0];
                acc[t][1] += sc0 * d[1];
                acc[t][2] += sc1 * d[2];
                acc[t][3] += sc1 * d[3];
            }
            hold_back<NT>(g);
        }
        u32 minima[4] = {m[0][0], m[1][0], m[0][1], m[1][1]};
#pragma unroll
        for (int t = 0; t < NT; t++) finish(sum[t], acc[t], minima, parts[t], head, x, t, s);
    }

    static __device__ __forceinline__ void finish(float (&sum)[4], const int (&acc)[4], const u32 (&minima)[4], const u32 (&parts)[4],
                                                  const uint4 (&head)[2], const Columns& x, int t, u32 s) {
        int low[4], high[4];
        mma_unsigned(low, minima, permute(parts[0], parts[1], 0x6420), permute(parts[2], parts[3], 0x6420), 0);
        mma(high, minima, permute(parts[0], parts[1], 0x7531), permute(parts[2], parts[3], 0x7531), 0);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float sx = *x.scale(t, i % 2, s);
            float scale = f32_from_f16((u16)head[i / 2].x) * sx, min_scale = f32_from_f16((u16)(head[i / 2].x >> 16)) * sx;
            sum[i] = __fmaf_rn(scale, (float)acc[i], -(min_scale * (float)(low[i] + 256 * high[i])));
        }
    }
};

// `q6_k`, sub-blocks of 16 values.
template <int NT>
struct WideQ6 {
    static __device__ __forceinline__ void run(float (&sum)[NT][4], Weights<Q6K>& weights, const Columns& x, u32 s, const u8* next) {
        uint4 sc[2] = {weights.scale[0], weights.scale[1]};
        float unit[2] = {f32_from_f16(weights.d[0]), f32_from_f16(weights.d[1])};
        if (next) weights.load_scales(next);
        int acc[NT][4];
#pragma unroll
        for (int t = 0; t < NT; t++)
#pragma unroll
            for (int i = 0; i < 4; i++) acc[t][i] = 0;
#pragma unroll
        for (int g = 0; g < 8; g++) {
            u32 a[4];
            Q6K::fragment(a, weights.w, g);
            if (next && Q6K::last_use(g)) weights.load(next, Q6K::load_of(g));
            if (next && g % 4 == 3) weights.load(next, 4 + g / 4);
            int scale[2][2];
#pragma unroll
            for (int r = 0; r < 2; r++)
#pragma unroll
                for (int h = 0; h < 2; h++) scale[r][h] = (i8)(word(sc[r], g / 2) >> (16 * (g % 2) + 8 * h));
#pragma unroll
            for (int t = 0; t < NT; t++) {
                const u8* from = x.at(t, s * SEGMENT) + g * 32;
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    int d[4];
                    mma_half(d, a[2 * h], a[2 * h + 1], *(const u32*)(from + 16 * h));
#pragma unroll
                    for (int i = 0; i < 4; i++) acc[t][i] += scale[i / 2][h] * d[i];
                }
                if (NT > 2) __syncwarp();
            }
            if (NT > 1) __syncwarp();
        }
#pragma unroll
        for (int t = 0; t < NT; t++)
#pragma unroll
            for (int i = 0; i < 4; i++) sum[t][i] = unit[i / 2] * *x.scale(t, i % 2, s) * (float)(acc[t][i] >> 2);
    }
};

template <class F, int NT>
struct SegmentOf : Narrow<F, NT> {
    static const bool WIDE = false;
};
template <int NT>
struct SegmentOf<Q4K, NT> : WideQ4<NT> {
    static const bool WIDE = true;
};
template <int NT>
struct SegmentOf<Q6K, NT> : WideQ6<NT> {
    static const bool WIDE = true;
};
