// Linear layers at decoding: y = W x for up to 64 rows, every weight read once, and what follows it in the same launch.
//
// A block of 8 warps makes a few tiles of outputs. Its warps share the tiles and K: each takes every so manieth
// segment of 256 of its tile, the sums of segments meet in shared memory and are added there in ascending order.
// Where a matrix has too few outputs for the card the grid's z splits K as well: then sums of segments go through
// memory and the last block of a tile adds them.
//
// Bound: memory. A fragment of 512 bytes costs a warp, for every 8 rows of `q8`, 1 mma, 12 float operations and 22 to 31
// others (addresses, loads, unpacking; counted in PTX without moves). An H200 brings 21 bytes a clock to an SM that issues
// 4 instructions: a budget of 98 a fragment, so that 8 rows go at the speed of memory and 32 do not quite; an RTX 4090
// (3.1 bytes) has 660.
#include "linear.cuh"
#include "segment.cuh"

// Shared memory: f32 sums [span][columns][outputs + 4], then [columns][outputs + 4] if there is more than one span or
// the epilogue needs all sums at once.
extern __shared__ float sums[];

// Who a block is.
struct Block {
    u32 rows, first_row;  // rows in use; the first row of the block
    u32 first_tile, outputs;
    u32 pitch;  // floats between two columns of sums
};

// The last block of every group of blocks goes on with what needs all their sums.
DEV bool last_of_group(const Linear& p, u32 group) {
    __shared__ u32 shared;
    return p.expected == 1 ? (__syncthreads(), true) : last_of((u32*)p.counters + group, p.expected, &shared);
}

// The sums of a whole block, in `y`.
DEV void finish_gate_up(const Linear& p, const Block& b, const float* y, u32 columns) {
    for (u32 c = threadIdx.x / 32; c < columns; c += 8)
        for (u32 unit = 0; unit < b.outputs / 64; unit++) {
            const float* gate = y + c * b.pitch + unit * 64 + (threadIdx.x & 31);
            finish_gated(p, b.first_row + c, (blockIdx.x * (b.outputs / 64) + unit) * 32, gate, gate + 32);
        }
    if (!p.next.wide) return;
    u32 segment = blockIdx.x * (b.outputs / 2) / SEGMENT;
    if (!last_of_group(p, blockIdx.y * (p.next.width / SEGMENT) + segment)) return;
    Activation wide = p.next;
    wide.narrow = wide.values = 0;
    for (u32 c = threadIdx.x / 32; c < columns; c += 8) {
        float v[8];
        load_segment((const float*)p.out + (u64)(b.first_row + c) * p.width, p.next.width, segment, v);
        store_segment(wide, b.first_row + c, segment, v);
    }
}

template <int OUTPUTS>
DEV void finish_heads(const Linear& p, const Block& b, u32 columns) {
    Place place = place_of<OUTPUTS>(p, b.first_tile);
    u32 n = p.heads.head_dim, head = (place.column + place.tile * OUTPUTS) / n;
    if (!last_of_group(p, blockIdx.y * (p.width / n) + head)) return;
    float* x = sums + threadIdx.x / 32 * n;
    for (u32 c = threadIdx.x / 32; c < columns; c += 8) {
        const float* y = (const float*)p.out + (u64)(b.first_row + c) * p.width + head * n;
        place_head(p.heads, b.first_row + c, head, [=](u32 d) { return load_fresh(y + d); }, x);
    }
}

DEV void finish_norm(const Linear& p, const Block& b) {
    if (!p.norm.weight || !last_of_group(p, 0)) return;
    for (u32 row = 0; row < b.rows; row++) {
        norm_row((const float*)p.out + (u64)row * p.width, p.norm, p.next, row, p.faults, p.layer + p.checked, sums);
        __syncthreads();
    }
}

// Adds `count` sums of segments, `distance` floats apart, to y (which is +0 before the first: then it becomes the
// first of them). `fresh`: other blocks wrote them.
DEV float add_segments(float y, const float* from, u32 count, u32 distance, bool first, bool fresh) {
    for (u32 i = 0; i < count; i++) {
        float sum = fresh ? load_fresh(from + (u64)i * distance) : from[(u64)i * distance];
        y = first && i == 0 ? sum : y + sum;
    }
    return y;
}

template <int OUTPUTS>
DEV void add_block(const Linear& p, const Block& b, const float* from, float* y, u32 columns, u32 distance, u32 count, bool first, bool last, bool fresh) {
    for (u32 o = threadIdx.x; o < b.outputs * columns; o += 256) {
        u32 r = o & (b.outputs - 1), c = o / b.outputs, at = c * b.pitch + r;
        u32 tile = b.first_tile + r / OUTPUTS;
        if (tile >= p.tiles) continue;
        Place place = place_of<OUTPUTS>(p, tile);
        u32 output = place.tile * OUTPUTS + r % OUTPUTS;
        if (output >= place.outputs) continue;
        float sum = add_segments(first ? 0.0f : y[at], from + at, count, distance, first, fresh);
        if (!last || p.epilogue == GATE_UP) {
            y[at] = sum;
        } else {
            finish_sum(p, place, b.first_row + c, output, sum);
        }
    }
}

// `Warp` makes sums of segments: of its tile, where it has one.
template <class Warp, int OUTPUTS, int COLUMNS>
DEV void linear(const Linear& p) {
    Block b;
    b.rows = *(const u32*)p.step;
    u32 rows = COLUMNS * p.passes;
    b.first_row = blockIdx.y * rows;
    if (b.first_row >= b.rows) return;
    u32 tiles = 1u << p.warps, warp = threadIdx.x / 32, strands = 8u >> p.warps;
    b.outputs = OUTPUTS * tiles;
    b.pitch = b.outputs + 4;
    b.first_tile = blockIdx.x * tiles;
    u32 columns = min(rows, b.rows - b.first_row), distance = rows * b.pitch;
    u32 first = blockIdx.z * p.share, last = min(p.segments, first + p.share), s = first + (warp >> p.warps);
    u32 slot = (warp & (tiles - 1)) * OUTPUTS;
    Warp worker(p, b, b.first_tile + (warp & (tiles - 1)), s, last);
    bool split = gridDim.z > 1;
    u32 block = blockIdx.y * gridDim.x + blockIdx.x, span = split ? p.segments : p.span;
    float* held = split ? (float*)p.sums + (u64)block * p.segments * distance : sums;
    float* y = split ? sums : sums + span * distance;
    for (u32 from = split ? 0 : first; from < last; from += span) {
        u32 to = min(last, from + span);
        for (; s < to; s += strands) worker.run(held + (s - from) * distance + slot, b.pitch, s, s + strands < last ? s + strands : 0);
        if (split) {
            __shared__ u32 shared;
            if (!last_of((u32*)p.counters + p.groups + block, gridDim.z, &shared)) return;
            to = last = p.segments;
        } else {
            __syncthreads();
        }
        add_block<OUTPUTS>(p, b, held, y, columns, distance, to - from, from == 0, to == last, split);
        if (to < last) __syncthreads();
    }
    if (p.epilogue == GATE_UP) {
        __syncthreads();
        finish_gate_up(p, b, y, columns);
    } else if (COLUMNS <= 8 && p.epilogue == HEADS) {
        finish_heads<OUTPUTS>(p, b, columns);
    } else if (COLUMNS <= 8 && p.epilogue == RESIDUAL) {
        finish_norm(p, b);
    }
}

// A tile of 16 outputs on the tensor cores.
template <class F, int NT>
struct Fragments {
    Weights<F> weights;
    Columns x;
    const u8* tile;
    u32 passes;

    __device__ __forceinline__ Fragments(const Linear& p, const Block& b, u32 index, u32 s, u32 last)
        : x(p.x, p.scales, b.first_row, p.stride, SegmentOf<F, NT>::WIDE ? p.stride / 256 : p.stride / 32, F::RUN), passes(NT == F::MOST ? p.passes : 1) {
        tile = s < last ? tile_weights<F>(p, index) : 0;
        if (tile) weights.load_all(tile + s * F::BYTES);
    }

    // Segment `s` into `to` [columns][pitch]; `next` is the warp's next one, or 0. What more rows than 8 NT there are take
    // their turn with the same registers of weights; the last of them sends for the next ones.
    __device__ __forceinline__ void run(float* to, u32 pitch, u32 s, u32 next) {
        if (!tile) return;
        u32 lane = threadIdx.x & 31;
        to += (lane & 3) * 2 * pitch + lane / 4 * 2;
        Columns columns = x;
#pragma unroll 1
        for (u32 pass = 1;; pass++) {
            float sum[NT][4];
            SegmentOf<F, NT>::run(sum, weights, columns, s, next && pass == passes ? tile + next * F::BYTES : 0);
#pragma unroll
            for (int t = 0; t < NT; t++)
#pragma unroll
                for (int c = 0; c < 2; c++) *(float2*)(to + (8 * t + c) * pitch) = make_float2(sum[t][c], sum[t][2 + c]);
            if (pass == passes) break;
            to += 8 * NT * pitch;
            columns.skip(8 * NT);
        }
    }
};

// A tile of 32 outputs, one a lane.
template <int SIZE, int COLUMNS>
struct Chains {
    typedef Float<SIZE> F;
    const Linear& p;
    const u8* tile;
    u32 first, rows;

    __device__ __forceinline__ Chains(const Linear& p, const Block& b, u32 index, u32 s, u32 last) : p(p), first(b.first_row), rows(b.rows) {
        tile = tile_weights<F>(p, index);
    }

    // Every block looks at all it reads, so that this fault is the first that it sees.
    __device__ __forceinline__ void check(u32 row, u32 s) {
        const float* x = (const float*)p.x + (u64)row * p.stride + s * SEGMENT;
        bool faulty = false;
        for (u32 k = threadIdx.x & 31; k < min(SEGMENT, p.inputs - s * SEGMENT); k += 32) faulty |= !is_finite(x[k]);
        if (faulty) record_fault(p.faults, row, p.layer, FLOAT_LINEAR_FAULT);
    }

    __device__ __forceinline__ void chain(float (&sum)[COLUMNS], const float* (&x)[COLUMNS], const uint4& w, u32 k) {
#pragma unroll
        for (int quartet = 0; quartet < F::CHUNK / 4; quartet++) {
            float v[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                u32 bits = SIZE == 4 ? word(w, i) : i % 2 ? word(w, 2 * quartet + i / 2) & 0xffff0000u : word(w, 2 * quartet + i / 2) << 16;
                v[i] = __uint_as_float(bits);
            }
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) {
                float4 xs = *(const float4*)(x[c] + k + 4 * quartet);
                sum[c] = __fmaf_rn(v[0], xs.x, sum[c]);
                sum[c] = __fmaf_rn(v[1], xs.y, sum[c]);
                sum[c] = __fmaf_rn(v[2], xs.z, sum[c]);
                sum[c] = __fmaf_rn(v[3], xs.w, sum[c]);
            }
        }
    }

    __device__ __forceinline__ void run(float* to, u32 pitch, u32 s, u32) {
        u32 lane = threadIdx.x & 31, chunks = (min(SEGMENT, p.inputs - s * SEGMENT) + F::CHUNK - 1) / F::CHUNK;
        float sum[COLUMNS];
        const float* x[COLUMNS];
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            u32 row = min(first + c, rows - 1);
            if (first + c < rows) check(row, s);
            x[c] = (const float*)p.x + (u64)row * p.stride + s * SEGMENT;
            sum[c] = 0.0f;
        }
        if (!tile) return;
        const u8* w = tile + (u64)s * F::BYTES + lane * 16;
#pragma unroll 4
        for (u32 i = 0; i < chunks; i++) chain(sum, x, load_weights(w + i * 512), i * F::CHUNK);
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) to[c * pitch + lane] = sum[c];
    }
};

// Names: linear_FORMAT_COLUMNS.
#define LINEAR(format, F, columns, blocks) \
    KERNEL(256, blocks) linear_##format##_##columns(const __grid_constant__ Linear p) { linear<Fragments<F, columns / 8>, 16, columns>(p); }
#define LINEARS(format, F)     \
    LINEAR(format, F, 8, 2)    \
    LINEAR(format, F, 16, 2)

LINEARS(q8, Q8)
LINEAR(q8, Q8, 32, 1)
LINEARS(q4, Q4)
LINEAR(q4, Q4, 32, 1)
LINEARS(q4k, Q4K)
LINEAR(q4k, Q4K, 32, 1)
LINEAR(q6k, Q6K, 8, 2)
LINEAR(q6k, Q6K, 16, 1)

#define CHAINS(format, F, columns) \
    KERNEL(256, 1) linear_##format##_##columns(const __grid_constant__ Linear p) { linear<Chains<F, columns>, 32, columns>(p); }

CHAINS(bf16, 2, 1)
CHAINS(bf16, 2, 8)
CHAINS(f32, 4, 1)
CHAINS(f32, 4, 8)

struct Gated {
    u64 step;
    u64 products;  // f32 [rows][2 * next.width]: gate, up
    u64 faults;
    Activation next;
    u32 layer, zero;
};

// next = silu(gate) * up where the products came from several launches. Grid: (segments / 8, rows).
KERNEL(256, 1) gated_rows(const Gated p) {
    u32 row = blockIdx.y, segment = blockIdx.x * 8 + threadIdx.x / 32, width = p.next.width;
    if (row >= *(const u32*)p.step || segment * SEGMENT >= width) return;
    const float* gate = (const float*)p.products + (u64)row * 2 * width;
    float g[8], u[8];
    load_segment(gate, width, segment, g);
    load_segment(gate + width, width, segment, u);
#pragma unroll
    for (int i = 0; i < 8; i++) g[i] = silu(g[i]) * u[i];
    if (store_segment(p.next, row, segment, g) && (threadIdx.x & 31) == 0)
        record_fault(p.faults, row, p.layer, QUANTISE_FAULT);
}
