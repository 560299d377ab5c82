// Attention over paged K and V (docs/numerics.md, section 7).
//
//     decode   one block of threads: one row, one KV head with its query heads, a run of key blocks; each warp takes a
//              block of 64 keys for Q queries. Reads every K and V once for Q queries, 256 bytes a key and 8-head group
//              at head_dim 128; bound by memory.
//     prefill  one block of threads: a tile of rows, one KV head with its query heads; each warp takes 8 queries over
//              all key blocks. K and V pass through shared memory once for the tile; bound by FP32 units.
#include "attend.cuh"

// What is known of a head's key blocks: for each of `slots` blocks its weighted values [W], largest score and sum;
// the slot after them holds the running state while a block of threads goes through its keys in rounds.
struct Partials {
    float* values;
    float* scalars;
    u32 width;

    __device__ __forceinline__ Partials(const AttentionParams& p, u32 row, u32 head) {
        width = (p.head_dim + 7) & ~7u;
        u64 slots = p.slots + 1;
        values = (float*)p.partials + ((u64)row * p.heads + head) * slots * (width + 4);
        scalars = values + slots * width;
    }

    template <int PER>
    __device__ __forceinline__ void store(u32 slot, u32 d, const float (&o)[PER]) const {
        if (d >= width) return;
        float* to = values + (u64)slot * width + d;
        if constexpr (PER == 4)
            *(float4*)to = make_float4(o[0], o[1], o[2], o[3]);
        else
            *(float2*)to = make_float2(o[0], o[1]);
    }

    template <int PER>
    __device__ __forceinline__ void load(u32 slot, u32 d, float (&o)[PER]) const {
        const float* from = values + (u64)slot * width + min(d, width - PER);
        if constexpr (PER == 4) {
            float4 v = load_fresh4(from);
            o[0] = v.x, o[1] = v.y, o[2] = v.z, o[3] = v.w;
        } else {
            o[0] = load_fresh(from), o[1] = load_fresh(from + 1);
        }
    }

    __device__ __forceinline__ void store_scalars(u32 slot, float largest, float sum) const {
        scalars[4 * slot] = largest;
        scalars[4 * slot + 1] = sum;
    }
};

// One head over some of its key blocks: the fold of section 7, spread over a warp.
template <int Q, int N>
struct Fold {
    typedef Shape<Q, N> S;
    float o[S::PARTS][S::PER];
    float largest, sum;
    bool started;

    // Takes in `count` (1..32) blocks from slot `slot` on. The scalars of all are made at once, one block a lane.
    __device__ __forceinline__ void add(const Partials& from, u32 slot, u32 count) {
        u32 lane = threadIdx.x & 31;
        float infinity = __uint_as_float(0x7f800000u);
        float m = lane < count ? load_fresh(from.scalars + 4 * (slot + lane)) : -infinity;
        float l = lane < count ? load_fresh(from.scalars + 4 * (slot + lane) + 1) : 0.0f;
        float now = fmaxf(m, started ? largest : -infinity);
#pragma unroll
        for (int lanes = 1; lanes < 32; lanes *= 2) {
            float before = __shfl_up_sync(ALL_LANES, now, lanes);
            if (lane >= lanes) now = fmaxf(now, before);
        }
        float before = __shfl_up_sync(ALL_LANES, now, 1);
        if (lane == 0) before = largest;
        float a = exact_exp(before - now), c = exact_exp(m - now);
        for (u32 i = 0; i < count; i++) {
            float block = shuffle(l, i);
            sum = !started && i == 0 ? block : __fmaf_rn(block, shuffle(c, i), sum * shuffle(a, i));
        }
#pragma unroll
        for (int part = 0; part < S::PARTS; part++) add_part(from, slot, count, part, a, c);
        largest = shuffle(now, count - 1);
        started = true;
    }

    __device__ __forceinline__ void add_part(const Partials& from, u32 slot, u32 count, int part, float a, float c) {
        const int AHEAD = 4;
        for (u32 i = 0; i < count; i += AHEAD) {
            float v[AHEAD][S::PER];
#pragma unroll
            for (int j = 0; j < AHEAD; j++) from.load(slot + min(i + j, count - 1), S::first(part), v[j]);
#pragma unroll
            for (int j = 0; j < AHEAD; j++) {
                float aj = shuffle(a, i + j), cj = shuffle(c, i + j);
                if (i + j >= count) continue;
                bool first = !started && i + j == 0;
#pragma unroll
                for (int d = 0; d < S::PER; d++) o[part][d] = first ? v[j][d] : __fmaf_rn(v[j][d], cj, o[part][d] * aj);
            }
        }
    }

    __device__ __forceinline__ void load(const Partials& from, u32 slot) {
#pragma unroll
        for (int part = 0; part < S::PARTS; part++) from.load(slot, S::first(part), o[part]);
        largest = load_fresh(from.scalars + 4 * slot);
        sum = load_fresh(from.scalars + 4 * slot + 1);
        started = true;
    }

    __device__ __forceinline__ void store(const Partials& to, u32 slot) const {
#pragma unroll
        for (int part = 0; part < S::PARTS; part++) to.store(slot, S::first(part), o[part]);
        if ((threadIdx.x & 31) == 0) to.store_scalars(slot, largest, sum);
    }
};

// One key block for queries `first_query ..` of the group: a warp stores their partials in slot `slot`.
template <class T, int Q, int N>
DEV void decode_unit(const AttentionParams& p, u32 row, u32 kv_head, u32 first_query, u32 page, Visible keys, u32 slot,
                     const float* q, float* weights) {
    typedef Shape<Q, N> S;
    KvHead<T> kv(p.kv, page, p.kv_heads, kv_head, p.head_dim);
    u32 group = p.heads / p.kv_heads;
    float s[Q][2];
    score<Q, T>(kv.k, kv.width, q + first_query * kv.width, s);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < Q; i++) {
        float largest, sum;
        weigh(s[i], keys, largest, sum);
        if (first_query + i < group && (threadIdx.x & 31) == 0)
            Partials(p, row, kv_head * group + first_query + i).store_scalars(slot, largest, sum);
    }
    store_weights<Q, S::STRIDE>(s, weights);
    __syncwarp();
#pragma unroll
    for (int part = 0; part < S::PARTS; part++) {
        float o[Q][S::PER];
        u32 d = S::first(part);
        weighted_values<Q, S::PER, S::STRIDE, false, T>(kv.v() + min(d, kv.width - S::PER), kv.width, weights, keys, o);
#pragma unroll
        for (int i = 0; i < Q; i++)
            if (first_query + i < group) Partials(p, row, kv_head * group + first_query + i).store(slot, d, o[i]);
    }
}

// Folds `count` slots of each head of the group, one warp a head; the state stays in the last slot unless `done`.
template <int Q, int N>
DEV void fold_heads(const AttentionParams& p, u32 row, u32 kv_head, u32 count, bool begun, bool done) {
    typedef Shape<Q, N> S;
    u32 group = p.heads / p.kv_heads;
    for (u32 i = threadIdx.x >> 5; i < group; i += blockDim.x >> 5) {
        u32 head = kv_head * group + i;
        Partials partials(p, row, head);
        Fold<Q, N> fold;
        fold.started = false, fold.largest = 0.0f, fold.sum = 0.0f;
        if (begun) fold.load(partials, p.slots);
        for (u32 slot = 0; slot < count; slot += 32) fold.add(partials, slot, min(32u, count - slot));
        if (!done) {
            fold.store(partials, p.slots);
            continue;
        }
#pragma unroll
        for (int part = 0; part < S::PARTS; part++)
#pragma unroll
            for (int d = 0; d < S::PER; d++) fold.o[part][d] = fold.o[part][d] / fold.sum;
        store_output<Q, N>(p, row, head, fold.o);
    }
}

// Grid: (splits, kv_heads, rows). Dynamic shared memory: the queries of the group, scaled, [group up to Q][W] f32;
// each warp's weights [64][STRIDE].
template <class T, int Q, int N>
DEV void decode(const AttentionParams& p) {
    extern __shared__ float shared[];
    __shared__ u32 word;
    u32 row = blockIdx.z, kv_head = blockIdx.y, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    if (row >= *(const u32*)p.step) return;
    Row at = ((const Row*)p.rows)[row];
    u32 last = at.position, first = p.window && last + 1 > p.window ? last + 1 - p.window : 0;
    u32 from = first / PAGE, blocks = last / PAGE + 1 - from;
    u32 run = (blocks + p.splits - 1) / p.splits, runs = (blocks + run - 1) / run;
    if (blockIdx.x >= runs) return;
    u32 group = p.heads / p.kv_heads, groups = (group + Q - 1) / Q, width = (p.head_dim + 7) & ~7u;

    const float* q = (const float*)p.q + ((u64)row * p.heads + kv_head * group) * p.head_dim;
    for (u32 i = threadIdx.x; i < groups * Q * width; i += blockDim.x) {
        u32 head = i / width, d = i % width;
        shared[i] = head < group && d < p.head_dim ? q[head * p.head_dim + d] * p.scale : 0.0f;
    }
    __syncthreads();
    float* weights = shared + groups * Q * width + warp * PAGE * Shape<Q, N>::STRIDE;
    const u32* pages = (const u32*)p.pages + at.first_page + from;

    // A block of threads that has the whole row folds as it goes, in rounds; otherwise the last one folds all.
    bool alone = runs == 1;
    u32 begin = blockIdx.x * run, end = min(begin + run, blocks), round = alone ? p.slots : run;
    for (u32 start = begin; start < end; start += round) {
        u32 stop = min(start + round, end);
        for (u32 unit = warp; unit < (stop - start) * groups; unit += warps) {
            u32 block = start + unit / groups, base = (from + block) * PAGE;
            Visible keys = {max(first, base) - base, min(last, base + PAGE - 1) - base};
            decode_unit<T, Q, N>(p, row, kv_head, unit % groups * Q, pages[block], keys, alone ? block - start : block,
                                 shared, weights);
        }
        if (alone) {
            __syncthreads();
            fold_heads<Q, N>(p, row, kv_head, stop - start, start > begin, stop == end);
            __syncthreads();
        }
    }
    if (!alone) {
        if (!last_of((u32*)p.counters + (u64)row * (p.kv_heads + 1) + kv_head, runs, &word)) return;
        fold_heads<Q, N>(p, row, kv_head, blocks, false, true);
    }
    if (!heads_apart(p)) finish_row(p, row, &word);
}

// The queries of one warp in prefill: query i is head i % group of row i / group of the tile. Lane i knows query i.
template <int Q, int N>
struct Queries {
    typedef Shape<Q, N> S;
    float o[Q][S::PARTS][S::PER];
    float largest, sum;   // of the lane's query
    u32 started;          // a bit for each query
    u32 first, last;      // positions that the lane's query sees; first > last where there is none

    // What the lane's query sees of the block of keys from `base` on.
    __device__ __forceinline__ Visible visible(u32 base) const {
        if (first > last || last < base || first >= base + PAGE) return {1, 0};
        return {max(first, base) - base, min(last, base + PAGE - 1) - base};
    }

    // Folds the scalars of one block in. `seen`: the queries that see some of it. Gives the factors of the lane's query.
    __device__ __forceinline__ void add(float block_largest, float block_sum, u32 seen, float& a, float& c) {
        u32 bit = 1u << (threadIdx.x & 31);
        a = c = 1.0f;
        if (!(seen & bit)) return;
        if (!(started & bit)) {
            largest = block_largest, sum = block_sum;
            return;
        }
        float m = fmaxf(largest, block_largest);
        a = exact_exp(largest - m);
        c = exact_exp(block_largest - m);
        sum = __fmaf_rn(block_sum, c, sum * a);
        largest = m;
    }

    __device__ __forceinline__ void add_part(int part, const float (&block)[Q][S::PER], u32 seen, float a, float c) {
#pragma unroll
        for (int i = 0; i < Q; i++) {
            float ai = shuffle(a, i), ci = shuffle(c, i);
            bool fresh = !(started >> i & 1);
            if (!(seen >> i & 1)) continue;
#pragma unroll
            for (int d = 0; d < S::PER; d++)
                o[i][part][d] = fresh ? block[i][d] : __fmaf_rn(block[i][d], ci, o[i][part][d] * ai);
        }
    }
};

// Scores and weights of one key block for a warp's queries: leaves the weights in shared memory and gives the factors
// of the lane's query. False if none sees the block.
template <class T, int Q, int N>
DEV void tile_weights(Queries<Q, N>& queries, float (&s)[Q][2], Visible mine, u32 seen, float* weights, float& a, float& c) {
    float block_largest = 0.0f, block_sum = 0.0f;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < Q; i++) {
        float largest, sum;
        Visible visible = {__shfl_sync(ALL_LANES, mine.from, i), __shfl_sync(ALL_LANES, mine.to, i)};
        weigh(s[i], visible, largest, sum);
        if ((threadIdx.x & 31) == i) block_largest = largest, block_sum = sum;
        float* to = weights + (threadIdx.x & 31) * Shape<Q, N>::STRIDE + i;
        to[0] = s[i][0], to[32 * Shape<Q, N>::STRIDE] = s[i][1];
    }
    __syncwarp();
    queries.add(block_largest, block_sum, seen, a, c);
}

template <class T, int Q, int N>
DEV void tile_values(Queries<Q, N>& queries, const T* v, u32 width, const float* weights, Visible mine, u32 seen, float a, float c) {
    typedef Shape<Q, N> S;
    bool whole = __all_sync(ALL_LANES, (threadIdx.x & 31) >= Q || (mine.from == 0 && mine.to == PAGE - 1));
    Visible keys = {0, PAGE - 1};
    if (!whole) {
        bool sees = mine.from <= mine.to && (threadIdx.x & 31) < Q;
        keys.from = PAGE - 1 - warp_max(sees ? PAGE - 1 - mine.from : 0);
        keys.to = warp_max(sees ? mine.to : 0);
    }
#pragma unroll
    for (int part = 0; part < S::PARTS; part++) {
        float block[Q][S::PER];
        const T* at = v + min(S::first(part), width - S::PER);
        if (whole)
            weighted_values<Q, S::PER, S::STRIDE, false, T>(at, width, weights, keys, block);
        else
            weighted_values<Q, S::PER, S::STRIDE, true, T>(at, width, weights, keys, block);
        queries.add_part(part, block, seen, a, c);
    }
    queries.started |= seen;
}

// Copies `bytes` (a multiple of 16) to shared memory behind the threads' backs.
DEV void stage(void* to, const void* from, u32 bytes) {
    for (u32 i = threadIdx.x * 16; i < bytes; i += blockDim.x * 16) copy_async((u8*)to + i, (const u8*)from + i, true);
    copy_commit();
}

// The rows `begin .. end` of a tile, all of one session, over all key blocks that one of them sees.
template <class T, int Q, int N, bool staged>
DEV void prefill_session(const AttentionParams& p, Queries<Q, N>& queries, u32 kv_head, Row any, u32 from, u32 to, const float* q,
                         float* weights, T* store) {
    const u32* pages = (const u32*)p.pages + any.first_page;
    u32 width = (p.head_dim + 7) & ~7u, bytes = PAGE * width * sizeof(T);
    T* stored_v = store + PAGE * width;
    if (staged) stage(store, KvHead<T>(p.kv, pages[from], p.kv_heads, kv_head, p.head_dim).k, bytes);
    for (u32 block = from; block <= to; block++) {
        KvHead<T> kv(p.kv, pages[block], p.kv_heads, kv_head, p.head_dim);
        if (staged) {
            stage(stored_v, kv.v(), bytes);
            copy_wait<1>();
            __syncthreads();
        }
        Visible mine = queries.visible(block * PAGE);
        u32 seen = __ballot_sync(ALL_LANES, (threadIdx.x & 31) < Q && mine.from <= mine.to);
        float s[Q][2], a, c;
        if (seen) score<Q, T>(staged ? store : kv.k, width, q, s);
        if (staged) {
            __syncthreads();
            if (block < to)
                stage(store, KvHead<T>(p.kv, pages[block + 1], p.kv_heads, kv_head, p.head_dim).k, bytes);
            else
                copy_commit();
        }
        if (seen) tile_weights<T, Q, N>(queries, s, mine, seen, weights, a, c);
        if (staged) {
            copy_wait<1>();
            __syncthreads();
        }
        if (seen) tile_values<T, Q, N>(queries, staged ? stored_v : kv.v(), width, weights, mine, seen, a, c);
        if (staged) __syncthreads();
    }
}

// Grid: (tiles of rows, kv_heads). Dynamic shared memory: K and V of one key block of one head if `staged`; each warp's
// queries [Q][W] f32, scaled, and weights [64][STRIDE].
template <class T, int Q, int N, bool staged>
DEV void prefill(const AttentionParams& p) {
    typedef Shape<Q, N> S;
    extern __shared__ float shared[];
    __shared__ u32 word;
    u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5, kv_head = blockIdx.y;
    u32 group = p.heads / p.kv_heads, width = (p.head_dim + 7) & ~7u, tile = warps * Q / group;
    u32 rows = *(const u32*)p.step, begin = blockIdx.x * tile, end = min(begin + tile, rows);
    if (begin >= rows) return;
    float* store = shared;
    float* q = shared + (staged ? PAGE * width * 2 * sizeof(T) / 4 : 0) + warp * (Q * width + PAGE * S::STRIDE);
    float* weights = q + Q * width;

    Queries<Q, N> queries;
    queries.started = 0, queries.largest = 0.0f, queries.sum = 0.0f;
    for (u32 i = 0; i < Q; i++) {
        u32 index = warp * Q + i, row = begin + index / group, head = kv_head * group + index % group;
        bool inside = index < tile * group && row < end;
        const float* from = (const float*)p.q + ((u64)row * p.heads + head) * p.head_dim;
        for (u32 d = lane; d < width; d += 32) q[i * width + d] = inside && d < p.head_dim ? from[d] * p.scale : 0.0f;
    }
    __syncwarp();
    u32 index = warp * Q + lane, my_row = begin + index / group;
    bool inside = lane < Q && index < tile * group && my_row < end;

    // The sessions of the tile one after another.
    for (u32 session = begin; session < end;) {
        Row any = ((const Row*)p.rows)[session];
        u32 next = session, from = 0xffffffffu, to = 0;
        for (; next < end; next++) {
            Row at = ((const Row*)p.rows)[next];
            if (at.first_page != any.first_page) break;
            u32 least = p.window && at.position + 1 > p.window ? at.position + 1 - p.window : 0;
            from = min(from, least / PAGE), to = max(to, at.position / PAGE);
        }
        bool member = inside && my_row >= session && my_row < next;
        u32 position = member ? ((const Row*)p.rows)[my_row].position : 0;
        queries.last = position;
        queries.first = !member ? 1 : p.window && position + 1 > p.window ? position + 1 - p.window : 0;
        prefill_session<T, Q, N, staged>(p, queries, kv_head, any, from, to, q, weights, (T*)store);
        session = next;
    }

    // By way of shared memory, where the queries are no longer needed: registers cannot be counted off in a loop.
    __syncwarp();
#pragma unroll
    for (int i = 0; i < Q; i++) {
        float sum = shuffle(queries.sum, i);
#pragma unroll
        for (int part = 0; part < S::PARTS; part++)
#pragma unroll
            for (int d = 0; d < S::PER; d++)
                if (S::first(part) + d < width) q[i * width + S::first(part) + d] = queries.o[i][part][d] / sum;
    }
    __syncwarp();
#pragma unroll 1
    for (u32 i = 0; i < Q; i++) {
        if (!(queries.started >> i & 1)) continue;
        float o[S::PARTS][S::PER];
#pragma unroll
        for (int part = 0; part < S::PARTS; part++)
#pragma unroll
            for (int d = 0; d < S::PER; d++) o[part][d] = S::first(part) + d < width ? q[i * width + S::first(part) + d] : 0.0f;
        u32 index = warp * Q + i;
        store_output<Q, N>(p, begin + index / group, kv_head * group + index % group, o);
    }
    if (!heads_apart(p))
        for (u32 row = begin; row < end; row++) finish_row(p, row, &word);
}

// A kernel serves narrower heads too, at some waste. What is rare has the widest alone: f32, whose speed matters to nobody,
// and f16 without staging, which cards need for heads of more than 128 only.
// Registers bound how many blocks a multiprocessor holds: two, or one where the values of 8 queries take too many.
#define DECODE(name, T, Q, N) \
    KERNEL(256, N == 16 ? 1 : 2) name(const AttentionParams p) { decode<T, Q, N>(p); }
#define PREFILL(name, T, Q, N, staged) \
    KERNEL(256, 1) name(const AttentionParams p) { prefill<T, Q, N, staged>(p); }

DECODE(decode_f16_1_2, u16, 1, 2)
DECODE(decode_f16_1_4, u16, 1, 4)
DECODE(decode_f16_1_8, u16, 1, 8)
DECODE(decode_f16_1_16, u16, 1, 16)
DECODE(decode_f16_2_2, u16, 2, 2)
DECODE(decode_f16_2_4, u16, 2, 4)
DECODE(decode_f16_2_8, u16, 2, 8)
DECODE(decode_f16_4_2, u16, 4, 2)
DECODE(decode_f16_4_4, u16, 4, 4)
DECODE(decode_f16_4_8, u16, 4, 8)
DECODE(decode_f32_1_4, float, 1, 4)
DECODE(decode_f32_1_16, float, 1, 16)

PREFILL(prefill_staged_f16_2, u16, 8, 2, true)
PREFILL(prefill_staged_f16_4, u16, 8, 4, true)
PREFILL(prefill_staged_f16_8, u16, 8, 8, true)
PREFILL(prefill_f16_8, u16, 8, 8, false)
PREFILL(prefill_f16_16, u16, 4, 16, false)
PREFILL(prefill_f32_4, float, 8, 4, false)
PREFILL(prefill_f32_16, float, 4, 16, false)
