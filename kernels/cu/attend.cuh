// What one warp does with one block of 64 keys for a few queries of one KV head (section 7).
//
// For the scores lane l has keys l and l + 32: K is read 16 bytes a lane, queries are read from shared memory by all
// lanes at once. For the values a lane has 2 or 4 neighbouring d (a *part* is what a warp covers at once); weights come
// from shared memory, all lanes the same word. Chains run in registers.
#pragma once

#include "kv.cuh"

// Queries of a warp, values of a lane: a head has at most 32 * N.
template <int Q, int N>
struct Shape {
    static const int PER = N < 4 ? N : 4;                       // values of a lane in one part
    static const int PARTS = N / PER;
    static const int STRIDE = Q == 8 ? 12 : Q;                  // of the weights of one key: no bank twice in a store
    static __device__ __forceinline__ u32 first(int part) {     // first d of the lane
        return (part * 32 + (threadIdx.x & 31)) * PER;
    }
};

// Values 4 `half` .. of 16 bytes of K as f32.
DEV void unpack(const uint4& w, int half, float (&v)[4], u16) {
    u32 low = half ? w.z : w.x, high = half ? w.w : w.y;
    v[0] = f32_from_f16((u16)low), v[1] = f32_from_f16((u16)(low >> 16));
    v[2] = f32_from_f16((u16)high), v[3] = f32_from_f16((u16)(high >> 16));
}

DEV void unpack(const uint4& w, int, float (&v)[4], float) {
    v[0] = __uint_as_float(w.x), v[1] = __uint_as_float(w.y), v[2] = __uint_as_float(w.z), v[3] = __uint_as_float(w.w);
}

// Neighbouring values of V as f32.
DEV void unpack(const u16* p, float (&v)[4]) {
    uint2 w = *(const uint2*)p;
    v[0] = f32_from_f16((u16)w.x), v[1] = f32_from_f16((u16)(w.x >> 16));
    v[2] = f32_from_f16((u16)w.y), v[3] = f32_from_f16((u16)(w.y >> 16));
}

DEV void unpack(const float* p, float (&v)[4]) {
    float4 w = *(const float4*)p;
    v[0] = w.x, v[1] = w.y, v[2] = w.z, v[3] = w.w;
}

DEV void unpack(const u16* p, float (&v)[2]) {
    u32 w = *(const u32*)p;
    v[0] = f32_from_f16((u16)w), v[1] = f32_from_f16((u16)(w >> 16));
}

DEV void unpack(const float* p, float (&v)[2]) {
    float2 w = *(const float2*)p;
    v[0] = w.x, v[1] = w.y;
}

// Q consecutive floats of shared memory. Written out, because the compiler splits such a load now one way and now
// another: its output must be the same in every run.
template <int Q>
DEV void read_floats(const float* p, float (&v)[Q]) {
    if constexpr (Q % 4 == 0) {
#pragma unroll
        for (int i = 0; i < Q; i += 4) {
            u32 at = (u32)__cvta_generic_to_shared(p + i);
            asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                         : "=f"(v[i]), "=f"(v[i + 1]), "=f"(v[i + 2]), "=f"(v[i + 3])
                         : "r"(at)
                         : "memory");
        }
    } else {
#pragma unroll
        for (int i = 0; i < Q; i++) v[i] = p[i];
    }
}

template <int Q>
DEV void write_floats(float* p, const float (&v)[Q]) {
    if constexpr (Q % 4 == 0) {
#pragma unroll
        for (int i = 0; i < Q; i += 4) *(float4*)(p + i) = make_float4(v[i], v[i + 1], v[i + 2], v[i + 3]);
    } else {
#pragma unroll
        for (int i = 0; i < Q; i++) p[i] = v[i];
    }
}

// s[i][0], s[i][1]: query i with keys `lane` and `lane + 32`. `q`: [Q][width], scaled.
template <int Q, class T>
DEV void score(const T* k, u32 width, const float* q, float (&s)[Q][2]) {
    const int C = 16 / sizeof(T);
    const T* mine = k + (threadIdx.x & 31) * C;
#pragma unroll
    for (int i = 0; i < Q; i++) s[i][0] = s[i][1] = 0.0f;
#pragma unroll(Q <= 2 ? 4 : Q <= 4 ? 2 : 1)
    for (u32 chunk = 0; chunk < width / C; chunk++) {
        uint4 first = *(const uint4*)(mine + chunk * (PAGE * C)), second = *(const uint4*)(mine + chunk * (PAGE * C) + 32 * C);
#pragma unroll
        for (int half = 0; half < C / 4; half++) {
            float a[4], b[4];
            unpack(first, half, a, T());
            unpack(second, half, b, T());
#pragma unroll
            for (int i = 0; i < Q; i++) {
                float x[4];
                read_floats(q + i * width + chunk * C + 4 * half, x);
#pragma unroll
                for (int d = 0; d < 4; d++) {
                    s[i][0] = __fmaf_rn(x[d], a[d], s[i][0]);
                    s[i][1] = __fmaf_rn(x[d], b[d], s[i][1]);
                }
            }
        }
    }
}

// What a query sees of the block: keys from..to, none if from > to.
struct Visible {
    u32 from, to;
    __device__ __forceinline__ bool sees(u32 key) const { return from <= key && key <= to; }
};

// A weight that is not there: no weight is negative.
#define HIDDEN -1.0f

// Weights of one query, in place of its scores; hidden keys get HIDDEN. The largest score and the sum of the weights
// come to every lane.
DEV void weigh(float (&s)[2], Visible visible, float& largest, float& sum) {
    u32 lane = threadIdx.x & 31;
    bool first = visible.sees(lane), second = visible.sees(lane + 32);
    float infinity = __uint_as_float(0x7f800000u);
    float m = fmaxf(first ? s[0] : -infinity, second ? s[1] : -infinity);
#pragma unroll
    for (int lanes = 16; lanes; lanes /= 2) m = fmaxf(m, shuffle_xor(m, lanes));
    float p0 = exact_exp(s[0] - m), p1 = exact_exp(s[1] - m);
    float l = (first ? p0 : 0.0f) + (second ? p1 : 0.0f);
#pragma unroll
    for (int lanes = 16; lanes; lanes /= 2) l += shuffle_xor(l, lanes);
    s[0] = first ? p0 : HIDDEN;
    s[1] = second ? p1 : HIDDEN;
    largest = m;
    sum = l;
}

// The weights of all queries to shared memory: [64][Shape::STRIDE].
template <int Q, int STRIDE>
DEV void store_weights(const float (&s)[Q][2], float* weights) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float v[Q];
#pragma unroll
        for (int i = 0; i < Q; i++) v[i] = s[i][half];
        write_floats(weights + ((threadIdx.x & 31) + 32 * half) * STRIDE, v);
    }
}

// o[i]: query i's weighted values of the lane's part. `v`: V at the lane's first d. Keys from..to are visible to every
// query, or, if `ragged`, to some.
template <int Q, int PER, int STRIDE, bool ragged, class T>
DEV void weighted_values(const T* v, u32 width, const float* weights, Visible keys, float (&o)[Q][PER]) {
#pragma unroll
    for (int i = 0; i < Q; i++)
#pragma unroll
        for (int d = 0; d < PER; d++) o[i][d] = 0.0f;
#pragma unroll(Q * PER <= 16 ? 8 : Q * PER <= 24 ? 4 : 2)
    for (u32 key = keys.from; key <= keys.to; key++) {
        float x[PER], p[Q];
        unpack(v + key * width, x);
        read_floats(weights + key * STRIDE, p);
#pragma unroll
        for (int i = 0; i < Q; i++)
#pragma unroll
            for (int d = 0; d < PER; d++)
                if (!ragged || !(p[i] < 0.0f)) o[i][d] = __fmaf_rn(p[i], x[d], o[i][d]);
    }
}

// Parameters of every kernel of attention.
struct AttentionParams {
    u64 step;      // u32: rows in use
    u64 rows;      // Row [rows]
    u64 pages;     // u32: the page lists
    u64 faults;    // u32 [rows]
    u64 q;         // f32 [rows][heads * head_dim]
    u64 kv;        // pages of the layer, see kv.cuh
    u64 partials;  // see Partials in attention.cu
    u64 counters;  // u32 [rows][kv_heads + 1], the last of a row for the row; zero between launches
    u64 raw;       // f32 [rows][heads * head_dim]
    Activation out;
    u32 heads, kv_heads, head_dim;
    u32 window;    // 0: none
    float scale;
    u32 layer;     // for faults
    u32 splits;    // blocks that share the keys of a row
    u32 slots;     // key blocks of a head that `partials` holds
};

// Whether heads can be quantised one by one: no group reaches over two of them.
DEV bool heads_apart(const AttentionParams& p) { return !p.out.quantised || (!p.out.wide && p.head_dim % 32 == 0); }

// The output of one head of one row, spread over a warp: o[part][i] is d = Shape::first(part) + i.
template <int Q, int N>
DEV void store_output(const AttentionParams& p, u32 row, u32 head, const float (&o)[N / Shape<Q, N>::PER][Shape<Q, N>::PER]) {
    typedef Shape<Q, N> S;
    const int LANES = 32 / S::PER;  // of a group of 32
    bool apart = heads_apart(p), faulty = false;
    u64 padded = (p.out.width + 255) & ~255u;
    u64 at = (u64)row * (apart ? padded : p.out.width) + head * p.head_dim;
    float* values = (float*)(apart ? p.out.values : p.raw) + at;
#pragma unroll
    for (int part = 0; part < S::PARTS; part++) {
        u32 d = S::first(part), amax = 0;
#pragma unroll
        for (int i = 0; i < S::PER; i++) {
            bool inside = d + i < p.head_dim;
            if (inside) amax = max(amax, magnitude(o[part][i]));
            if (inside && (!apart || p.out.values)) values[d + i] = o[part][i];
        }
        if (!apart || !p.out.quantised) continue;
        faulty |= amax >= 0x7f800000u;
        amax = lanes_max<LANES>(amax);
        if (!p.out.narrow || d >= p.head_dim) continue;
        Group group = group_of(amax);
        i8* quants = (i8*)p.out.narrow + at + d;
        if constexpr (S::PER == 4)
            *(u32*)quants = quantised4(o[part][0], o[part][1], o[part][2], o[part][3], group);
        else
            *(u16*)quants = (u16)pack4(quantised(o[part][0], group), quantised(o[part][1], group), 0, 0);
        if ((threadIdx.x & (LANES - 1)) == 0) ((float*)p.out.narrow_scales)[(at + d) / 32] = group.scale;
    }
    if (faulty) record_fault(p.faults, row, p.layer, QUANTISE_FAULT);
}

// Quantises a row whose heads lie in `raw` once all KV heads have come by. Every thread of the block calls it.
DEV void finish_row(const AttentionParams& p, u32 row, u32* shared) {
    if (last_of((u32*)p.counters + (u64)row * (p.kv_heads + 1) + p.kv_heads, p.kv_heads, shared))
        quantise_row((const float*)p.raw + (u64)row * p.out.width, p.out, row, p.faults, p.layer);
}
