// Embedding rows: decoded from canonical bytes (section 1), times the family's factor, rounded to bf16 (section 8).
// Four values a thread. Reads a row of the table, writes a row of f32.
#include "exact.cuh"

struct EmbedParams {
    u64 step;      // u32: rows in use
    u64 tokens;    // u32 [rows]
    u64 table;     // canonical bytes
    u64 out;       // f32 [rows][columns]
    u32 row_bytes, columns;
    float scale;   // if `scaled`
    u32 scaled, rounded, zero;
};

DEV float f16_at(const u8* p) { return f32_from_f16((u16)(p[0] | p[1] << 8)); }

struct Q8 {
    static __device__ __forceinline__ float value(const u8* row, u32 i) {
        const u8* group = row + i / 32 * 34;
        return (float)(i8)group[2 + i % 32] * f16_at(group);
    }
};

struct Q4 {
    static __device__ __forceinline__ float value(const u8* row, u32 i) {
        const u8* group = row + i / 32 * 18;
        u32 byte = group[2 + i % 16];
        int q = (int)(i % 32 < 16 ? byte & 15 : byte >> 4) - 8;
        return (float)q * f16_at(group);
    }
};

struct Bf16 {
    static __device__ __forceinline__ float value(const u8* row, u32 i) {
        return __uint_as_float((u32)((const u16*)row)[i] << 16);
    }
};

struct F32 {
    static __device__ __forceinline__ float value(const u8* row, u32 i) { return ((const float*)row)[i]; }
};

struct Q4K {
    static __device__ __forceinline__ float value(const u8* row, u32 i) {
        const u8* block = row + i / 256 * 144;
        const u8* packed = block + 4;  // 12 bytes: eight 6-bit scales and minima
        u32 k = i % 256, part = k / 32;
        u32 scale, minimum;
        if (part < 4) {
            scale = packed[part] & 63;
            minimum = packed[part + 4] & 63;
        } else {
            scale = (packed[part + 4] & 15) | packed[part - 4] >> 6 << 4;
            minimum = packed[part + 4] >> 4 | packed[part] >> 6 << 4;
        }
        u32 byte = block[16 + k / 64 * 32 + k % 32];
        u32 q = part % 2 ? byte >> 4 : byte & 15;
        return (f16_at(block) * (float)scale) * (float)q - f16_at(block + 2) * (float)minimum;
    }
};

struct Q6K {
    static __device__ __forceinline__ float value(const u8* row, u32 i) {
        const u8* block = row + i / 256 * 210;
        u32 k = i % 256, half = k / 128, quarter = k % 128 / 32, l = k % 32;
        u32 low = block[half * 64 + quarter % 2 * 32 + l];
        u32 high = block[128 + half * 32 + l] >> 2 * quarter & 3;
        int q = (int)((quarter < 2 ? low & 15 : low >> 4) | high << 4) - 32;
        return (f16_at(block + 208) * (float)(i8)block[192 + k / 16]) * (float)q;
    }
};

// Grid: (ceil(columns / 1024), rows).
template <class Format>
DEV void embed(const EmbedParams& p) {
    u32 row = blockIdx.y;
    if (row >= *(const u32*)p.step) return;
    const u8* from = (const u8*)p.table + (u64)((const u32*)p.tokens)[row] * p.row_bytes;
    float* out = (float*)p.out + (u64)row * p.columns;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        u32 i = blockIdx.x * 1024 + j * 256 + threadIdx.x;
        if (i >= p.columns) break;
        float v = Format::value(from, i);
        if (p.scaled) v *= p.scale;
        out[i] = p.rounded ? round_bf16(v) : v;
    }
}

KERNEL(256, 2) embed_q8(const EmbedParams p) { embed<Q8>(p); }
KERNEL(256, 2) embed_q4(const EmbedParams p) { embed<Q4>(p); }
KERNEL(256, 2) embed_bf16(const EmbedParams p) { embed<Bf16>(p); }
KERNEL(256, 2) embed_f32(const EmbedParams p) { embed<F32>(p); }
KERNEL(256, 2) embed_q4_k(const EmbedParams p) { embed<Q4K>(p); }
KERNEL(256, 2) embed_q6_k(const EmbedParams p) { embed<Q6K>(p); }
