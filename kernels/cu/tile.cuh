// Products of packed weights (ops/pack.rs has the layout) with up to 8 NT rows of activations, a segment of 256 k at
// a time and a warp for each tile of outputs. Weights are the 16-row operand of the tensor cores; activations are the
// 8 columns. The tensor cores are far from busy at decoding, so that a single row takes the same road.
//
// In a fragment lane l = 4 gid + tid. It holds weights of outputs 2 gid and 2 gid + 1, and of the products
// d[0], d[1]: output 2 gid with columns 2 tid, 2 tid + 1; d[2], d[3]: output 2 gid + 1.
#pragma once

#include "exact.cuh"

#define SEGMENT 256

// 16 bytes of weights: read once, and asked for where this is written.
DEV uint4 load_weights(const u8* p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}

DEV u32 word(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// Bytes of `a` and `b` (0..3 and 4..7) by the nibbles of `selector`.
DEV u32 permute(u32 a, u32 b, u32 selector) { return __byte_perm(a, b, selector); }

// Half `i` of 8.
DEV float half_at(const uint4& v, int i) { return f32_from_f16((u16)(word(v, i / 2) >> (16 * (i % 2)))); }

#define MMA_M8N8K16(types, x, y, a, b, c0, c1)                                             \
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32." types ".s32 {%0, %1}, {%2}, {%3}, {%4, %5};" \
                 : "=r"(x), "=r"(y)                                                        \
                 : "r"(a), "r"(b), "r"(c0), "r"(c1))

#if __CUDA_ARCH__ >= 800
#define MMA_K32(types)                                                                                            \
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32." types                                                   \
                 ".s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};"                         \
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])                                                 \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(seed))
#else
#define MMA_K32(types)                                       \
    MMA_M8N8K16(types, d[0], d[1], a[0], b0, seed, seed);    \
    MMA_M8N8K16(types, d[0], d[1], a[2], b1, d[0], d[1]);    \
    MMA_M8N8K16(types, d[2], d[3], a[1], b0, seed, seed);    \
    MMA_M8N8K16(types, d[2], d[3], a[3], b1, d[2], d[3])
#endif

// d = seed + the product over 32 k.
DEV void mma(int (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, int seed) { MMA_K32("s8.s8"); }

// The same with unsigned columns.
DEV void mma_unsigned(int (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, int seed) { MMA_K32("s8.u8"); }

// d = the product over 16 k.
DEV void mma_half(int (&d)[4], u32 a0, u32 a1, u32 b) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %7, %7, %7};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a0), "r"(a1), "r"(b), "r"(0));
#else
    MMA_M8N8K16("s8.s8", d[0], d[1], a0, b, 0, 0);
    MMA_M8N8K16("s8.s8", d[2], d[3], a1, b, 0, 0);
#endif
}

// ---- Formats: what a segment of a tile looks like, and how its fragments are unpacked.

// MOST: tiles of 8 rows of a pass; more would not fit the registers.

struct Q8 {
    static const int OUTPUTS = 16, LOADS = 8, BYTES = 4352, RUN = 8, MOST = 4;
    // A product's int32 seeded with these bits is, read as f32, MAGIC + the product: no conversion is needed.
    static const int SEED = 0x4b400000;
    static __device__ __forceinline__ float magic() { return 12582912.0f; }
    static __device__ __forceinline__ bool last_use(int) { return true; }
    static __device__ __forceinline__ int load_of(int g) { return g; }
    static __device__ __forceinline__ void fragment(u32 (&a)[4], const uint4 (&w)[LOADS], int g) {
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = word(w[g], i);
    }
};

// Nibbles are signed. They stay in the high half of a byte, which makes products 16 times too large: the unit of the
// seed is 1/16.
struct Q4 {
    static const int OUTPUTS = 16, LOADS = 4, BYTES = 2304, RUN = 8, MOST = 4;
    static const int SEED = 0x49400000;
    static __device__ __forceinline__ float magic() { return 786432.0f; }
    static __device__ __forceinline__ bool last_use(int g) { return g % 2; }
    static __device__ __forceinline__ int load_of(int g) { return g / 2; }
    static __device__ __forceinline__ void fragment(u32 (&a)[4], const uint4 (&w)[LOADS], int g) {
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = (g % 2 ? word(w[g / 2], i) : word(w[g / 2], i) << 4) & 0xf0f0f0f0u;
    }
};

struct Q4K {
    static const int OUTPUTS = 16, LOADS = 4, BYTES = 2304, RUN = 8, MOST = 4;
    static __device__ __forceinline__ bool last_use(int g) { return g % 2; }
    static __device__ __forceinline__ int load_of(int g) { return g / 2; }
    static __device__ __forceinline__ void fragment(u32 (&a)[4], const uint4 (&w)[LOADS], int g) {
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = (g % 2 ? word(w[g / 2], i) >> 4 : word(w[g / 2], i)) & 0x0f0f0f0fu;
    }
    // The 6-bit scales and minima of a super-block, a byte each.
    static __device__ __forceinline__ void scales(u32 (&sc)[2], u32 (&m)[2], const uint4& head) {
        sc[0] = head.y & 0x3f3f3f3fu;
        m[0] = head.z & 0x3f3f3f3fu;
        sc[1] = (head.w & 0x0f0f0f0fu) | (head.y >> 2 & 0x30303030u);
        m[1] = (head.w >> 4 & 0x0f0f0f0fu) | (head.z >> 2 & 0x30303030u);
    }
};

// Values are made 4 times too large, so that their sign is the byte's.
struct Q6K {
    static const int OUTPUTS = 16, LOADS = 6, BYTES = 3360, RUN = 4, MOST = 2;
    static __device__ __forceinline__ bool last_use(int g) { return g % 2; }
    static __device__ __forceinline__ int load_of(int g) { return g / 2; }
    static __device__ __forceinline__ void fragment(u32 (&a)[4], const uint4 (&w)[LOADS], int g) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            u32 low = word(w[g / 2], i), high = word(w[4 + g / 4], i);
            low = (g % 2 ? low >> 2 : low << 2) & 0x3c3c3c3cu;
            a[i] = low | (high << (6 - 2 * (g % 4)) & 0xc0c0c0c0u);
        }
    }
};

// Adds a group's products to the chains of a segment: 3 operations each.
template <class F>
DEV void add_group(float (&sum)[4], const int (&d)[4], float w0, float w1, float s0, float s1) {
    sum[0] = __fmaf_rn(w0 * s0, __int_as_float(d[0]) - F::magic(), sum[0]);
    sum[1] = __fmaf_rn(w0 * s1, __int_as_float(d[1]) - F::magic(), sum[1]);
    sum[2] = __fmaf_rn(w1 * s0, __int_as_float(d[2]) - F::magic(), sum[2]);
    sum[3] = __fmaf_rn(w1 * s1, __int_as_float(d[3]) - F::magic(), sum[3]);
}

// bf16 and f32: a lane owns an output, the warp's tile has 32, and a sum is a chain of fma.
template <int SIZE>
struct Float {
    static const int OUTPUTS = 32, BYTES = 32 * SEGMENT * SIZE, CHUNK = 16 / SIZE;
};
typedef Float<2> Bf16;
typedef Float<4> F32;
