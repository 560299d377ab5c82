// Linear layers over many rows (prefill): y = W x by tiles of 96 outputs x 128 rows on the integer tensor cores.
//
// Grid: (tiles of rows, tiles of outputs): blocks that share weights run together. A block has 12 warps, 3 x 4, each
// with 32 outputs x 32 rows: 32 sums a lane, held twice (the chain of the segment and the sum of segments) in 64 of
// the 168 registers that a third of the warps of a multiprocessor can have. K goes by steps of 64 through a ring
// of STAGES buffers that cp.async fills; the scales of a segment (4 steps) have a ring of two.
//
// Bound: issue. A group of 32 costs a warp 8 mma, 96 float operations (3 for each output), 16 loads from shared memory
// or conversions: four fifths of the instructions are the group epilogue's.
//
// Shared memory, dynamic: STAGES x (weights, TILES x F::BYTES_A; activations [128 rows][64], 16-byte chunks swizzled),
// 2 x (scales of weights, TILES x F::SCALES; scales of activations [8 groups or 1][128]), sums of activations (q4_k).
#include "linear.cuh"

#define STAGES 3
#define TILES 6
#define ROWS 128
#define STEP 64
#define THREADS 384
#define COLUMN_TILES 4  // of 8 rows, of a warp

// What a format has in a step and a segment of a tile.
struct GemmQ8 : Q8 {
    static const int BYTES_A = 1024, SCALES = 256;
    static const bool WIDE = false;
};
struct GemmQ4 : Q4 {
    static const int BYTES_A = 512, SCALES = 256;
    static const bool WIDE = false;
};
struct GemmQ4K : Q4K {
    static const int BYTES_A = 512, SCALES = 256;
    static const bool WIDE = true;
};
struct GemmQ6K : Q6K {
    static const int BYTES_A = 1024, SCALES = 288;
    static const bool WIDE = true;
};

// Copies 4 bytes as copy_async does 16.
DEV void copy_async4(void* to, const void* from, bool inside) {
#if __CUDA_ARCH__ >= 800
    u32 address = (u32)__cvta_generic_to_shared(to);
    int bytes = inside ? 4 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
#else
    *(u32*)to = inside ? *(const u32*)from : 0;
#endif
}

// Chunk `chunk` (of 4) of row `row`: lanes of 8 rows that read the same k meet different banks.
DEV u32 swizzled(u32 row, u32 chunk) { return row * STEP + ((chunk ^ (row & 2) ^ (row >> 2 & 1)) * 16); }

template <class F>
struct Gemm {
    static const int STAGE = TILES * F::BYTES_A + ROWS * STEP;
    static const int SCALE_X = F::WIDE ? ROWS * 4 : ROWS * 32;
    static const int SCALE = TILES * F::SCALES + SCALE_X;

    const Linear& p;
    u8* shared;
    u32 rows, first_row, first_tile;
    const u64* tiles;  // where their weights are: in shared memory, for registers are short
    u32 lane, warp_m, warp_n;

    __device__ __forceinline__ Gemm(const Linear& p, u8* shared, u64* tiles, u32 rows)
        : p(p), shared(shared), rows(rows), first_row(blockIdx.x * ROWS), first_tile(blockIdx.y * TILES), tiles(tiles) {
        lane = threadIdx.x & 31;
        warp_m = threadIdx.x / 32 % 3;
        warp_n = threadIdx.x / 96;
        if (threadIdx.x < TILES) tiles[threadIdx.x] = (u64)tile_weights<F>(p, first_tile + threadIdx.x);
        __syncthreads();
    }

    __device__ __forceinline__ u8* stage(u32 step) const { return shared + step % STAGES * STAGE; }
    __device__ __forceinline__ u8* scales(u32 segment) const { return shared + STAGES * STAGE + (segment & 1) * SCALE; }
    __device__ __forceinline__ u8* sums() const { return shared + STAGES * STAGE + 2 * SCALE; }

    // Where chunk `chunk` of the step lies in its segment.
    static __device__ __forceinline__ u32 offset(u32 quarter, u32 chunk) {
        if (F::LOADS == 8) return quarter * 1024 + chunk * 16;
        if (F::LOADS == 6 && chunk >= 32) return 2048 + quarter / 2 * 512 + (chunk - 32) * 16;
        return quarter * 512 + chunk * 16;
    }

    __device__ __forceinline__ void load(u32 step) const {
        u8* to = stage(step);
        u32 segment = step / 4, quarter = step % 4;
#pragma unroll
        for (int i = 0; i < (TILES * F::BYTES_A / 16 + THREADS - 1) / THREADS; i++) {
            u32 c = threadIdx.x + i * THREADS, chunk = c % (F::BYTES_A / 16);
            if (c >= TILES * F::BYTES_A / 16) break;
            u64 tile = tiles[c / (F::BYTES_A / 16)];
            copy_async(to + c * 16, (const u8*)(tile ? tile + (u64)segment * F::BYTES + offset(quarter, chunk) : p.x), tile);
        }
        to += TILES * F::BYTES_A;
#pragma unroll
        for (int i = 0; i < (ROWS * STEP / 16 + THREADS - 1) / THREADS; i++) {
            u32 c = threadIdx.x + i * THREADS, row = c / 4, chunk = c % 4;
            if (c >= ROWS * STEP / 16) break;
            bool inside = first_row + row < rows;
            const u8* from = (const u8*)p.x + (inside ? (u64)(first_row + row) * p.stride + step * STEP + chunk * 16 : 0);
            copy_async(to + swizzled(row, chunk), from, inside);
        }
        if (quarter == 0) load_scales(segment);
        copy_commit();
    }

    __device__ __forceinline__ void load_scales(u32 segment) const {
        u8* to = scales(segment);
        u32 t = threadIdx.x;
        if (t < TILES * F::SCALES / 16) {
            u64 tile = tiles[t / (F::SCALES / 16)];
            u64 from = tile + (u64)segment * F::BYTES + F::LOADS * 512 + t % (F::SCALES / 16) * 16;
            copy_async(to + t * 16, (const u8*)(tile ? from : p.x), tile);
        }
        to += TILES * F::SCALES;
        u32 groups = F::WIDE ? p.stride / 256 : p.stride / 32;
        const int EACH = F::WIDE ? 1 : 8;
#pragma unroll
        for (int i = 0; i < (ROWS * EACH + THREADS - 1) / THREADS; i++) {
            u32 c = t + i * THREADS, row = c / EACH, g = c % EACH;
            if (c >= ROWS * EACH) break;
            bool inside = first_row + row < rows;
            const float* from = (const float*)p.scales + (inside ? (u64)(first_row + row) * groups + segment * EACH + g : 0);
            copy_async4(to + (g * ROWS + row) * 4, from, inside);
        }
    }

    // The step's weights of the warp's tile `m`, as F::fragment takes them for groups 0 and 1.
    __device__ __forceinline__ void weights(uint4 (&w)[F::LOADS], u32 step, int m) const {
        const u8* from = stage(step) + (warp_m * 2 + m) * F::BYTES_A + lane * 16;
        w[0] = *(const uint4*)from;
        if (F::LOADS == 8) w[1] = *(const uint4*)(from + 512);
        if (F::LOADS == 6) {
            uint4 high = *(const uint4*)(from + 512);
            int shift = step % 2 * 4;
            w[4 % F::LOADS] = make_uint4(high.x >> shift, high.y >> shift, high.z >> shift, high.w >> shift);
        }
    }

    // Activations of group `g` of the step, of column lane / 4 of tile `t`.
    __device__ __forceinline__ uint2 activations(u32 step, int g, int t) const {
        const u8* from = stage(step) + TILES * F::BYTES_A;
        u32 row = warp_n * 32 + t * 8 + lane / 4, tid = lane & 3;
        if (F::RUN == 8) return *(const uint2*)(from + swizzled(row, g * 2 + tid / 2) + tid % 2 * 8);
        return make_uint2(*(const u32*)(from + swizzled(row, g * 2) + tid * 4), *(const u32*)(from + swizzled(row, g * 2 + 1) + tid * 4));
    }

    // By halves: what scales output 2 gid + h of the warp's tile `m`, `size` bytes each.
    __device__ __forceinline__ const u8* weight_scale(u32 segment, int m, int h, u32 size) const {
        return scales(segment) + (warp_m * 2 + m) * F::SCALES + (h * 8 + lane / 4) * size;
    }

    // Scales of columns 2 tid, 2 tid + 1 of tile `t`.
    __device__ __forceinline__ float2 scale_pair(u32 segment, u32 g, int t) const {
        return *(const float2*)(scales(segment) + TILES * F::SCALES + (g * ROWS + warp_n * 32 + t * 8 + (lane & 3) * 2) * 4);
    }
};

typedef int Products[2][COLUMN_TILES][4];
typedef float Sums[2][COLUMN_TILES][4];

// Keeps the compiler from moving loads of later columns up until registers run out.
template <int EVERY>
DEV void hold_back(int t) {
    if (t % EVERY == EVERY - 1) __syncwarp();
}

// A step of `q8` and `q4`.
template <class F>
DEV void step_narrow(const Gemm<F>& gemm, u32 step, Sums& sum) {
    uint4 w[2][F::LOADS];
    u32 pair[2][2];
#pragma unroll
    for (int m = 0; m < 2; m++) {
        gemm.weights(w[m], step, m);
#pragma unroll
        for (int h = 0; h < 2; h++) pair[m][h] = *(const u32*)(gemm.weight_scale(step / 4, m, h, 16) + step % 4 * 4);
    }
#pragma unroll
    for (int g = 0; g < 2; g++) {
        u32 a[2][4];
        float scale[2][2];
#pragma unroll
        for (int m = 0; m < 2; m++) {
            F::fragment(a[m], w[m], g);
#pragma unroll
            for (int h = 0; h < 2; h++) scale[m][h] = f32_from_f16((u16)(pair[m][h] >> (16 * g)));
        }
#pragma unroll
        for (int t = 0; t < COLUMN_TILES; t++) {
            uint2 b = gemm.activations(step, g, t);
            float2 sx = gemm.scale_pair(step / 4, step % 4 * 2 + g, t);
#pragma unroll
            for (int m = 0; m < 2; m++) {
                int d[4];
                mma(d, a[m], b.x, b.y, F::SEED);
                add_group<F>(sum[m][t], d, scale[m][0], scale[m][1], sx.x, sx.y);
            }
            hold_back<2>(t);
        }
    }
}

// One tile of weights after the other: both at once do not fit the registers.
DEV void step_wide(const Gemm<GemmQ4K>& gemm, u32 step, Products& acc) {
#pragma unroll
    for (int m = 0; m < 2; m++) {
        uint4 w[Q4K::LOADS];
        u32 pair[2];  // scales of the step's two sub-blocks
        gemm.weights(w, step, m);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            u32 sc[2], minima[2];
            Q4K::scales(sc, minima, *(const uint4*)gemm.weight_scale(step / 4, m, h, 16));
            pair[h] = (step % 4 < 2 ? sc[0] : sc[1]) >> (step % 2 * 16);
        }
#pragma unroll
        for (int g = 0; g < 2; g++) {
            u32 a[4];
            Q4K::fragment(a, w, g);
#pragma unroll
            for (int t = 0; t < COLUMN_TILES; t++) {
                uint2 b = gemm.activations(step, g, t);
                int d[4];
                mma(d, a, b.x, b.y, 0);
#pragma unroll
                for (int i = 0; i < 4; i++) acc[m][t][i] += (int)(pair[i / 2] >> (8 * g) & 63) * d[i];
                hold_back<1>(t);
            }
        }
    }
    // A thread sums one group of one row, low byte and high byte apart.
    if (threadIdx.x >= 2 * ROWS) return;
    u32 row = threadIdx.x / 2, g = threadIdx.x % 2;
    const u8* x = gemm.stage(step) + TILES * GemmQ4K::BYTES_A;
    int sum = 0;
#pragma unroll
    for (int c = 0; c < 2; c++) {
        uint4 v = *(const uint4*)(x + swizzled(row, g * 2 + c));
#pragma unroll
        for (int i = 0; i < 4; i++) sum = dp4a(word(v, i), 0x01010101u, sum);
    }
    u8* to = gemm.sums() + row * 16 + step % 4 * 2 + g;
    to[0] = (u8)sum;
    to[8] = (u8)(sum >> 8);
}

DEV void end_segment(const Gemm<GemmQ4K>& gemm, u32 segment, Products& acc, Sums& total) {
    __syncthreads();
    u32 minima[2][4];
    float scale[2][2], min_scale[2][2];
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint4 head = *(const uint4*)gemm.weight_scale(segment, m, h, 16);
            u32 sc[2], mins[2];
            Q4K::scales(sc, mins, head);
            minima[m][h] = mins[0];
            minima[m][2 + h] = mins[1];
            scale[m][h] = f32_from_f16((u16)head.x);
            min_scale[m][h] = f32_from_f16((u16)(head.x >> 16));
        }
#pragma unroll
    for (int t = 0; t < COLUMN_TILES; t++) {
        // The sums of the 8 sub-blocks are 8 of 32 "k": those of the first lane of four.
        uint4 s = make_uint4(0, 0, 0, 0);
        if ((gemm.lane & 3) == 0) s = *(const uint4*)(gemm.sums() + (gemm.warp_n * 32 + t * 8 + gemm.lane / 4) * 16);
        float2 sx = gemm.scale_pair(segment, 0, t);
#pragma unroll
        for (int m = 0; m < 2; m++) {
            int low[4], high[4];
            mma_unsigned(low, minima[m], s.x, s.y, 0);
            mma(high, minima[m], s.z, s.w, 0);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float x = i % 2 ? sx.y : sx.x;
                float offset = (min_scale[m][i / 2] * x) * (float)(low[i] + 256 * high[i]);
                float y = __fmaf_rn(scale[m][i / 2] * x, (float)acc[m][t][i], -offset);
                total[m][t][i] += y;
                acc[m][t][i] = 0;
            }
        }
        hold_back<1>(t);
    }
}

DEV void step_wide(const Gemm<GemmQ6K>& gemm, u32 step, Products& acc) {
#pragma unroll
    for (int m = 0; m < 2; m++) {
        uint4 w[Q6K::LOADS];
        u32 quad[2];  // scales of the step's four sub-blocks
        gemm.weights(w, step, m);
#pragma unroll
        for (int h = 0; h < 2; h++) quad[h] = *(const u32*)(gemm.weight_scale(step / 4, m, h, 16) + step % 4 * 4);
#pragma unroll
        for (int g = 0; g < 2; g++) {
            u32 a[4];
            Q6K::fragment(a, w, g);
#pragma unroll
            for (int t = 0; t < COLUMN_TILES; t++) {
                uint2 b = gemm.activations(step, g, t);
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    int d[4];
                    mma_half(d, a[2 * half], a[2 * half + 1], half ? b.y : b.x);
#pragma unroll
                    for (int i = 0; i < 4; i++) acc[m][t][i] += (int)(i8)(quad[i / 2] >> (16 * g + 8 * half)) * d[i];
                }
                hold_back<2>(t);
            }
        }
    }
}

DEV void end_segment(const Gemm<GemmQ6K>& gemm, u32 segment, Products& acc, Sums& total) {
    float unit[2][2];
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int h = 0; h < 2; h++)
            unit[m][h] = f32_from_f16(*(const u16*)(gemm.scales(segment) + (gemm.warp_m * 2 + m) * GemmQ6K::SCALES + 256 + (h * 8 + gemm.lane / 4) * 2));
#pragma unroll
    for (int t = 0; t < COLUMN_TILES; t++) {
        float2 sx = gemm.scale_pair(segment, 0, t);
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float y = unit[m][i / 2] * (i % 2 ? sx.y : sx.x) * (float)(acc[m][t][i] >> 2);
                total[m][t][i] += y;
                acc[m][t][i] = 0;
            }
        hold_back<1>(t);
    }
}

template <class F>
struct Segments;

template <class F>
struct NarrowSegments {
    Sums sum;

    __device__ __forceinline__ NarrowSegments() { clear(); }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < 8 * COLUMN_TILES; i++) sum[i / 4 / COLUMN_TILES][i / 4 % COLUMN_TILES][i % 4] = 0.0f;
    }

    __device__ __forceinline__ void step(const Gemm<F>& gemm, u32 step) { step_narrow(gemm, step, sum); }

    __device__ __forceinline__ void end(const Gemm<F>&, u32, Sums& total) {
#pragma unroll
        for (int i = 0; i < 8 * COLUMN_TILES; i++) total[i / 4 / COLUMN_TILES][i / 4 % COLUMN_TILES][i % 4] += sum[i / 4 / COLUMN_TILES][i / 4 % COLUMN_TILES][i % 4];
        clear();
    }
};

template <class F>
struct WideSegments {
    Products acc;

    __device__ __forceinline__ WideSegments() {
#pragma unroll
        for (int i = 0; i < 8 * COLUMN_TILES; i++) acc[i / 4 / COLUMN_TILES][i / 4 % COLUMN_TILES][i % 4] = 0;
    }

    __device__ __forceinline__ void step(const Gemm<F>& gemm, u32 step) { step_wide(gemm, step, acc); }
    __device__ __forceinline__ void end(const Gemm<F>& gemm, u32 segment, Sums& total) { end_segment(gemm, segment, acc, total); }
};

template <> struct Segments<GemmQ8> : NarrowSegments<GemmQ8> {};
template <> struct Segments<GemmQ4> : NarrowSegments<GemmQ4> {};
template <> struct Segments<GemmQ4K> : WideSegments<GemmQ4K> {};
template <> struct Segments<GemmQ6K> : WideSegments<GemmQ6K> {};

// Through shared memory, a tile of a warp at a time, so that neighbouring lanes store neighbouring outputs.
template <class F>
DEV void store_sums(const Gemm<F>& gemm, const Sums& total) {
    const Linear& p = gemm.p;
    const u32 pitch = 20;
    float* own = (float*)gemm.shared + threadIdx.x / 32 * 32 * pitch;
    __syncthreads();
#pragma unroll
    for (int m = 0; m < 2; m++) {
        float* to = own + (gemm.lane & 3) * 2 * pitch + gemm.lane / 4 * 2;
#pragma unroll
        for (int t = 0; t < COLUMN_TILES; t++)
#pragma unroll
            for (int c = 0; c < 2; c++) *(float2*)(to + (8 * t + c) * pitch) = make_float2(total[m][t][c], total[m][t][2 + c]);
        __syncwarp();
        u32 tile = gemm.first_tile + gemm.warp_m * 2 + m;
        if (tile >= p.tiles) return;
        Place place = place_of<16>(p, tile);
        u32 output = place.tile * 16 + gemm.lane % 16, row = gemm.first_row + gemm.warp_n * 32;
        if (output < place.outputs)
            for (u32 c = gemm.lane / 16; c < 32 && row + c < gemm.rows; c += 2) finish_sum(p, place, row + c, output, own[c * pitch + gemm.lane % 16]);
        __syncwarp();
    }
}

template <class F>
DEV void gemm(const Linear& p) {
    extern __shared__ uint4 buffers[];
    __shared__ u64 tiles[TILES];
    u32 rows = *(const u32*)p.step;
    if (blockIdx.x * ROWS >= rows) return;
    Gemm<F> gemm(p, (u8*)buffers, tiles, rows);
    u32 steps = p.segments * 4;
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) gemm.load(i);
    // -0 is what leaves the first segment's sum as it is, whatever its sign.
    Sums total;
#pragma unroll
    for (int i = 0; i < 8 * COLUMN_TILES; i++) total[i / 4 / COLUMN_TILES][i / 4 % COLUMN_TILES][i % 4] = -0.0f;
    Segments<F> segments;
    for (u32 step = 0; step < steps; step++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        if (step + STAGES - 1 < steps) {
            gemm.load(step + STAGES - 1);
        } else {
            copy_commit();
        }
        __syncwarp();
        segments.step(gemm, step);
        __syncwarp();
        if (step % 4 == 3) segments.end(gemm, step / 4, total);
    }
    store_sums(gemm, total);
}

KERNEL(THREADS, 1) gemm_q8(const __grid_constant__ Linear p) { gemm<GemmQ8>(p); }
KERNEL(THREADS, 1) gemm_q4(const __grid_constant__ Linear p) { gemm<GemmQ4>(p); }
KERNEL(THREADS, 1) gemm_q4k(const __grid_constant__ Linear p) { gemm<GemmQ4K>(p); }
KERNEL(THREADS, 1) gemm_q6k(const __grid_constant__ Linear p) { gemm<GemmQ6K>(p); }
