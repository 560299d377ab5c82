// Drawing tokens (docs/numerics.md, section 10). Weights are integers, so sums need no order.
//
//     draw_largest  blocks of 4096 logits: faults, edits, the largest; a greedy row is done
//     draw_weigh    the same blocks: every token's weight, and for rows that truncate a histogram of the weights
//     draw_pick     one block a row: the truncations by radix over weights and then indices, then the draw
//
// A weight trunc(e * 2^40) has at most 24 significant bits, for e is an f32: it is held as the bits of that f32 (its
// *key*, 0 for no weight), which order as the weights do. Of the keys' range, 0x3f800000 to 0x53800000, a bucket
// is what the bits above 2^18 tell. What is kept is a prefix in (weight descending, index ascending) after each
// truncation, so it is told by its last element.
#include "exact.cuh"

#define CHUNK 4096
#define BUCKETS (40 * 32 + 1)
#define NO_TOKEN 0xffffffffu

struct Choice {
    u64 random, min_p, top_p;
    float temperature;
    u32 top_k, first_edit, edits, row, zero;
};

struct Edit {
    u32 token, repeats;
    float value;
};

struct DrawParams {
    u64 count, logits, choices, edits, faults, scratch, tokens;
    u32 vocabulary, rows, layer, zero;
};

DEV bool is_greedy(const Choice& choice) { return choice.temperature < 1.0f / 1024.0f; }

DEV bool truncates(const Choice& choice) { return choice.top_k || choice.min_p || choice.top_p < 1ull << 32; }

// The largest logit and the first index that has it; NO_TOKEN before any that is a number.
struct Best {
    float value;
    u32 index;

    __device__ __forceinline__ void take(float v, u32 i) {
        if (v > value || (v == value && i < index)) value = v, index = i;
    }
};

struct Element {
    u32 key, index;
};

// The scratch of one row.
struct Scratch {
    u64* sums;      // [BUCKETS] zero between launches
    u32* counts;    // [BUCKETS] zero between launches
    u32* ticket;    // zero between launches
    Best* best;
    u32* keys;      // [vocabulary]
    Element* list;  // [vocabulary]
    Best* chunks;

    __device__ __forceinline__ Scratch(const DrawParams& p, u32 row) {
        u32 chunks_count = (p.vocabulary + CHUNK - 1) / CHUNK, padded = (p.vocabulary + 3) & ~3u;
        u64 size = (BUCKETS * 12 + 4 + chunks_count * 8 + 16 + (u64)padded * 12 + 15) & ~15ull;
        u8* at = (u8*)p.scratch + row * size;
        sums = (u64*)at;
        counts = (u32*)(at + BUCKETS * 8);
        ticket = counts + BUCKETS;
        best = (Best*)(at + BUCKETS * 12 + 4);
        keys = (u32*)(best + 2);
        list = (Element*)(keys + padded);
        chunks = (Best*)(list + padded);
    }
};

// The best of a block's threads, in thread 0. `shared`: one for each warp.
DEV Best block_best(Best mine, Best* shared) {
#pragma unroll
    for (int lanes = 16; lanes; lanes /= 2) mine.take(shuffle_xor(mine.value, lanes), shuffle_xor(mine.index, lanes));
    if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = mine;
    __syncthreads();
    if (threadIdx.x == 0)
        for (u32 w = 1; w < blockDim.x >> 5; w++) mine.take(shared[w].value, shared[w].index);
    return mine;
}

// Applies the row's edits of tokens in from..to: a thread takes all edits of a token.
DEV void apply_edits(const DrawParams& p, const Choice& choice, float* logits, u32 from, u32 to) {
    const Edit* edits = (const Edit*)p.edits + choice.first_edit;
    for (u32 i = threadIdx.x; i < choice.edits; i += 256) {
        u32 token = edits[i].token;
        if (token < from || token >= to || (i > 0 && edits[i - 1].token == token)) continue;
        float l = logits[token];
        for (u32 j = i; j < choice.edits && edits[j].token == token; j++) {
            float value = edits[j].value;
            l = !edits[j].repeats ? l + value : l > 0.0f ? l / value : l * value;
        }
        logits[token] = l;
    }
}

// Grid: (chunks, rows).
KERNEL(256, 2) draw_largest(const DrawParams p) {
    __shared__ Best shared[8];
    __shared__ u32 word;
    u32 row = blockIdx.y, from = blockIdx.x * CHUNK, to = min(from + CHUNK, p.vocabulary);
    if (row >= *(const u32*)p.count) return;
    Choice choice = ((const Choice*)p.choices)[row];
    float* logits = (float*)p.logits + (u64)row * p.vocabulary;
    float none = __uint_as_float(0xff800000u);
    Best best = {none, NO_TOKEN};
    bool faulty = false;
    for (u32 i = from + threadIdx.x; i < to; i += 256) {
        float l = logits[i];
        faulty |= !is_finite(l);
        best.take(l, i);
    }
    if (faulty) record_fault(p.faults, choice.row, p.layer, LOGITS_FAULT);
    if (choice.edits) {
        __syncthreads();
        apply_edits(p, choice, logits, from, to);
        __syncthreads();
        best = {none, NO_TOKEN};
        for (u32 i = from + threadIdx.x; i < to; i += 256) best.take(logits[i], i);
    }
    Scratch scratch(p, row);
    best = block_best(best, shared);
    if (threadIdx.x == 0) scratch.chunks[blockIdx.x] = best;
    if (!last_of(scratch.ticket, gridDim.x, &word) || threadIdx.x != 0) return;
    best = {none, NO_TOKEN};
    for (u32 i = 0; i < gridDim.x; i++) {
        u32 index = __float_as_uint(load_fresh((const float*)&scratch.chunks[i].index));
        best.take(load_fresh(&scratch.chunks[i].value), index);
    }
    // The scan of section 10 starts at token 0 and takes only what is larger, which nothing is than a NaN.
    float first = load_fresh(logits);
    if (first != first) best.index = 0;
    *scratch.best = best;
    if (is_greedy(choice)) ((u32*)p.tokens)[row] = best.index;
}

DEV u32 bucket_of(u32 key) { return (key - 0x3f800000u) >> 18; }

DEV u64 weight_of(u32 key) { return key ? __float2ull_rz(__uint_as_float(key)) : 0; }

// The key of a logit, `largest` being the largest one divided by the temperature.
DEV u32 key_of(float l, float temperature, float largest) {
    float w = exact_exp(l / temperature - largest) * 1099511627776.0f;
    if (!(w >= 1.0f)) return 0;
    return __float_as_uint(w < 8388608.0f ? (float)(u32)w : w);
}

// Grid: (chunks, rows).
KERNEL(256, 2) draw_weigh(const DrawParams p) {
    __shared__ u64 sums[BUCKETS];
    __shared__ u32 counts[BUCKETS];
    u32 row = blockIdx.y, from = blockIdx.x * CHUNK, to = min(from + CHUNK, p.vocabulary);
    if (row >= *(const u32*)p.count) return;
    Choice choice = ((const Choice*)p.choices)[row];
    if (is_greedy(choice)) return;
    bool histogram = truncates(choice);
    if (histogram) {
        for (u32 b = threadIdx.x; b < BUCKETS; b += 256) sums[b] = 0, counts[b] = 0;
        __syncthreads();
    }
    Scratch scratch(p, row);
    const float* logits = (const float*)p.logits + (u64)row * p.vocabulary;
    float largest = scratch.best->value / choice.temperature;
    for (u32 i = from + threadIdx.x; i < to; i += 256) {
        u32 key = key_of(logits[i], choice.temperature, largest);
        scratch.keys[i] = key;
        if (!histogram || !key) continue;
        atomicAdd(&sums[bucket_of(key)], weight_of(key));
        atomicAdd(&counts[bucket_of(key)], 1u);
    }
    if (!histogram) return;
    __syncthreads();
    for (u32 b = threadIdx.x; b < BUCKETS; b += 256)
        if (counts[b]) {
            atomicAdd(&scratch.sums[b], sums[b]);
            atomicAdd(&scratch.counts[b], counts[b]);
        }
}

DEV u64 shuffle_up(u64 v, int lanes) { return __shfl_up_sync(ALL_LANES, v, lanes); }

DEV u64 warp_sum(u64 v) {
#pragma unroll
    for (int lanes = 16; lanes; lanes /= 2) v += __shfl_xor_sync(ALL_LANES, v, lanes);
    return v;
}

DEV u64 warp_scan(u64 v) {
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        u64 before = shuffle_up(v, lanes);
        if ((threadIdx.x & 31) >= lanes) v += before;
    }
    return v;
}

// Where a running sum first reaches a target.
struct Place {
    u32 at;
    u64 before;  // the sum of what comes before
};

// The first of `size` values at(0), at(1), .. whose running sum is `target` (1 or more) or above. By one warp.
template <class At>
DEV Place find(At at, u32 size, u64 target) {
    u32 lane = threadIdx.x & 31, each = (size + 31) / 32, from = min(lane * each, size), to = min(from + each, size);
    u64 mine = 0;
    for (u32 i = from; i < to; i++) mine += at(i);
    u64 through = warp_scan(mine);
    u32 reached = __ballot_sync(ALL_LANES, through >= target);
    u32 owner = reached ? __ffs(reached) - 1 : 31;
    Place place = {from, through - mine};
    if (lane == owner)
        while (place.at + 1 < to && place.before + at(place.at) < target) place.before += at(place.at++);
    return {__shfl_sync(ALL_LANES, place.at, owner), __shfl_sync(ALL_LANES, place.before, owner)};
}

// What draw_pick's block of 512 shares.
struct Shared {
    u64 histogram[1024];
    u64 totals[16];
    Place place;
    u32 listed;
    u64 sum;
};

// What is kept: keys above `key`, and of those equal to it the indices up to `index`.
struct Cut {
    u32 key, index;
    __device__ __forceinline__ bool keeps(u32 k, u32 i) const { return k > key || (k == key && i <= index); }
};

// find over the first `size` values, in every thread.
template <class At>
DEV Place block_find(Shared& shared, At at, u32 size, u64 target) {
    __syncthreads();
    if (threadIdx.x < 32) {
        Place place = find(at, size, target);
        if (threadIdx.x == 0) shared.place = place;
    }
    __syncthreads();
    return shared.place;
}

// Lists the elements of a bucket.
DEV void list_bucket(const DrawParams& p, const Scratch& scratch, Shared& shared, u32 bucket) {
    __syncthreads();
    if (threadIdx.x == 0) shared.listed = 0;
    __syncthreads();
    for (u32 i = threadIdx.x; i < p.vocabulary; i += 512) {
        u32 key = scratch.keys[i];
        if (key && bucket_of(key) == bucket) scratch.list[atomicAdd(&shared.listed, 1u)] = {key, i};
    }
    __syncthreads();
}

// A histogram over the listed elements: digit(element) below 1024, or none from there on; measure(element).
template <class Digit, class Measure>
DEV void tally(const Scratch& scratch, Shared& shared, Digit digit, Measure measure) {
    __syncthreads();
    for (u32 d = threadIdx.x; d < 1024; d += 512) shared.histogram[d] = 0;
    __syncthreads();
    for (u32 i = threadIdx.x; i < shared.listed; i += 512) {
        Element e = scratch.list[i];
        u32 d = digit(e);
        if (d < 1024) atomicAdd(&shared.histogram[d], measure(e));
    }
}

// Of the listed elements, all of one bucket, the shortest prefix whose measure (its weight, or its count) reaches
// `target`.
template <bool weighted>
DEV Cut select(const Scratch& scratch, Shared& shared, u64 target) {
    auto measure = [](Element e) { return weighted ? weight_of(e.key) : (u64)1; };
    const u64* histogram = shared.histogram;
    auto descending = [=](u32 i) { return histogram[511 - i]; };
    auto ascending = [=](u32 i) { return histogram[i]; };
    tally(scratch, shared, [](Element e) { return e.key >> 9 & 511; }, measure);
    Place high = block_find(shared, descending, 512, target);
    target -= high.before;
    u32 upper = 511 - high.at;
    tally(scratch, shared, [=](Element e) { return (e.key >> 9 & 511) == upper ? e.key & 511 : 1024; }, measure);
    Place low = block_find(shared, descending, 512, target);
    target -= low.before;
    u32 key = (scratch.list[0].key & ~0x3ffffu) | upper << 9 | (511 - low.at);

    // Equal weights: the lowest indices, as many as it takes.
    if (weighted) target = (target + weight_of(key) - 1) / weight_of(key);
    auto one = [](Element) { return (u64)1; };
    tally(scratch, shared, [=](Element e) { return e.key == key ? e.index >> 10 : 1024; }, one);
    Place page = block_find(shared, ascending, 1024, target);
    target -= page.before;
    tally(scratch, shared, [=](Element e) { return e.key == key && e.index >> 10 == page.at ? e.index & 1023 : 1024; }, one);
    Place within = block_find(shared, ascending, 1024, target);
    return {key, page.at << 10 | within.at};
}

// The sum of every thread's value, in every thread.
DEV u64 block_sum(Shared& shared, u64 v) {
    __syncthreads();
    v = warp_sum(v);
    if ((threadIdx.x & 31) == 0) shared.totals[threadIdx.x >> 5] = v;
    __syncthreads();
    u64 sum = 0;
    for (u32 w = 0; w < 16; w++) sum += shared.totals[w];
    return sum;
}

// ceil(share * total / 2^32), at least 1.
DEV u64 share_of(u64 total, u64 share) {
    u64 high = __umul64hi(total, share), low = total * share;
    u64 need = (high << 32 | low >> 32) + ((low & 0xffffffffu) != 0);
    return need ? need : 1;
}

// Top-k, then min-p, then top-p.
DEV Cut truncated(const DrawParams& p, const Choice& choice, const Scratch& scratch, Shared& shared) {
    auto counts = [=](u32 i) { return (u64)scratch.counts[BUCKETS - 1 - i]; };
    auto sums = [=](u32 i) { return scratch.sums[BUCKETS - 1 - i]; };
    Cut cut = {1, NO_TOKEN};
    u64 candidates = 0;
    for (u32 b = threadIdx.x; b < BUCKETS; b += 512) candidates += scratch.counts[b];
    candidates = block_sum(shared, candidates);
    if (candidates == 0) return cut;
    if (choice.top_k && choice.top_k < candidates) {
        Place place = block_find(shared, counts, BUCKETS, choice.top_k);
        list_bucket(p, scratch, shared, BUCKETS - 1 - place.at);
        cut = select<false>(scratch, shared, choice.top_k - place.before);
    }
    // The largest weight is exp(0) = 2^40.
    u32 least = __float_as_uint(__ull2float_ru(choice.min_p << 8));
    if (least > cut.key) cut = {least, NO_TOKEN};
    if (choice.top_p >= 1ull << 32) return cut;
    u64 mine = 0;
    u32 edge = cut.key < 0x3f800000u ? NO_TOKEN : bucket_of(cut.key);
    for (u32 b = threadIdx.x; b < BUCKETS; b += 512)
        if (edge == NO_TOKEN || b > edge) mine += scratch.sums[b];
    if (edge != NO_TOKEN) {
        list_bucket(p, scratch, shared, edge);
        for (u32 i = threadIdx.x; i < shared.listed; i += 512) {
            Element e = scratch.list[i];
            if (cut.keeps(e.key, e.index)) mine += weight_of(e.key);
        }
    }
    u64 need = share_of(block_sum(shared, mine), choice.top_p);
    Place place = block_find(shared, sums, BUCKETS, need);
    list_bucket(p, scratch, shared, BUCKETS - 1 - place.at);
    return select<true>(scratch, shared, need - place.before);
}

// Draws among what is kept, in vocabulary order; NO_TOKEN in every thread but one, or in all if nothing has weight.
DEV u32 pick(const DrawParams& p, u64 random, const Scratch& scratch, Shared& shared, Cut cut) {
    u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    auto weight = [=](u32 i) {
        u32 key = scratch.keys[i];
        return cut.keeps(key, i) ? weight_of(key) : 0;
    };
    // A warp for each sixteenth of the vocabulary, then every thread for a part of one.
    u32 each = (p.vocabulary + 15) / 16, from = min(warp * each, p.vocabulary), to = min(from + each, p.vocabulary);
    u64 mine = 0;
#pragma unroll 4
    for (u32 i = from + lane; i < to; i += 32) mine += weight(i);
    u64 total = block_sum(shared, mine);
    if (total == 0) return NO_TOKEN;
    u64 threshold = __umul64hi(random, total);
    u32 part = 0;
    while (part < 15 && threshold >= shared.totals[part]) threshold -= shared.totals[part++];
    from = min(part * each, p.vocabulary), to = min(from + each, p.vocabulary);
    u32 few = (to - from + 511) / 512;
    from = min(from + threadIdx.x * few, to), to = min(from + few, to);
    mine = 0;
    for (u32 i = from; i < to; i++) mine += weight(i);
    u64 through = warp_scan(mine);
    __syncthreads();
    if (lane == 31) shared.totals[warp] = through;
    __syncthreads();
    for (u32 w = 0; w < warp; w++) through += shared.totals[w];
    u64 sum = through - mine;
    if (threshold < sum || threshold >= through) return NO_TOKEN;
    for (u32 i = from; i < to; i++) {
        sum += weight(i);
        if (sum > threshold) return i;
    }
    return NO_TOKEN;
}

// Grid: (rows).
KERNEL(512, 1) draw_pick(const DrawParams p) {
    __shared__ Shared shared;
    u32 row = blockIdx.x;
    if (row >= *(const u32*)p.count) return;
    Choice choice = ((const Choice*)p.choices)[row];
    if (is_greedy(choice)) return;
    Scratch scratch(p, row);
    if (threadIdx.x == 0) ((u32*)p.tokens)[row] = scratch.best->index;
    Cut cut = {1, NO_TOKEN};
    if (truncates(choice)) {
        cut = truncated(p, choice, scratch, shared);
        __syncthreads();
        for (u32 b = threadIdx.x; b < BUCKETS; b += 512) scratch.sums[b] = 0, scratch.counts[b] = 0;
    }
    u32 token = pick(p, choice.random, scratch, shared, cut);
    if (token != NO_TOKEN) ((u32*)p.tokens)[row] = token;
}
