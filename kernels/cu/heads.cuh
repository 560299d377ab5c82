// What becomes of the q, k and v of a row after their products: bias, norm of the head, RoPE; then q to its buffer,
// k and v to their page (sections 4, 6, 7).
#pragma once

#include "kv.cuh"

// Part of the parameter block of every kernel that makes q, k and v.
struct Heads {
    u64 rows;                    // Row [rows], see common.cuh
    u64 pages;                   // u32: the page lists
    u64 faults;                  // u32 [rows]
    u64 q_bias, k_bias, v_bias;  // f32 [heads * head_dim], [kv_heads * head_dim], or 0
    u64 q_norm, k_norm;          // f32 [head_dim] or 0
    u64 cos, sin;                // f32 [positions][pairs]
    u64 q;                       // f32 [rows][heads * head_dim]
    u64 kv;                      // pages of this layer, see kv.cuh
    u32 heads, kv_heads, head_dim;
    u32 pairs;                   // rotated dimensions / 2
    u32 adjacent;                // 0: pairs (i, i + pairs); 1: pairs (2 i, 2 i + 1)
    u32 wide;                    // 0: f16 elements; 1: f32
    u32 layer;                   // for faults
    float q_eps, k_eps;
    u32 zero;
};

// Norms a head in place: `x` in shared memory, by one warp.
DEV void norm_head(float* x, const float* weight, u32 n, float eps) {
    u32 lane = threadIdx.x & 31;
    float part[8];
#pragma unroll
    for (int j = 0; j < 8; j++) {
        part[j] = 0.0f;
        for (u32 d = lane + 32 * j; d < n; d += 256) part[j] = __fmaf_rn(x[d], x[d], part[j]);
    }
    float r = rms_factor(tree256(part), n, eps);
    for (u32 d = lane; d < n; d += 32) x[d] = (x[d] * r) * weight[d];
    __syncwarp();
}

// Rotates a head in place: `x` in shared memory, by one warp.
DEV void rotate_head(float* x, const Heads& p, u32 position) {
    const float* cos = (const float*)p.cos + (u64)position * p.pairs;
    const float* sin = (const float*)p.sin + (u64)position * p.pairs;
    for (u32 i = threadIdx.x & 31; i < p.pairs; i += 32) {
        float* a = x + (p.adjacent ? 2 * i : i);
        float* b = x + (p.adjacent ? 2 * i + 1 : i + p.pairs);
        float c = cos[i], s = sin[i], u = *a, v = *b;
        *a = u * c - v * s;
        *b = v * c + u * s;
    }
    __syncwarp();
}

template <class T>
DEV void store_head(const float* x, const Heads& p, u32 row, u32 kv_head, bool is_key) {
    Row at = ((const Row*)p.rows)[row];
    u32 page = ((const u32*)p.pages)[at.first_page + at.position / PAGE], slot = at.position % PAGE;
    KvHead<T> head(p.kv, page, p.kv_heads, kv_head, p.head_dim);
    bool faulty = false;
    for (u32 d = threadIdx.x & 31; d < p.head_dim; d += 32)
        faulty |= store_kv(is_key ? head.key(slot, d) : head.value(slot, d), x[d]);
    if (faulty) record_fault(p.faults, row, p.layer, KV_ROUND_FAULT);
}

// Head `head` of row `row`, in the order of all q heads, k heads, v heads. One warp calls it, every lane; `product(d)`
// gives W x of output d of the head, without bias, and is called once for each d. `x`: head_dim floats of shared memory
// that are the warp's own.
template <class Product>
DEV void place_head(const Heads& p, u32 row, u32 head, Product product, float* x) {
    u32 lane = threadIdx.x & 31, n = p.head_dim;
    bool is_q = head < p.heads, is_k = !is_q && head < p.heads + p.kv_heads;
    u32 index = is_q ? head : is_k ? head - p.heads : head - p.heads - p.kv_heads;
    const float* bias = (const float*)(is_q ? p.q_bias : is_k ? p.k_bias : p.v_bias);
    __syncwarp();
    for (u32 d = lane; d < n; d += 32) {
        float y = product(d);
        x[d] = bias ? y + bias[index * n + d] : y;
    }
    __syncwarp();
    if (is_q || is_k) {
        const float* weight = (const float*)(is_q ? p.q_norm : p.k_norm);
        if (weight) norm_head(x, weight, n, is_q ? p.q_eps : p.k_eps);
        rotate_head(x, p, ((const Row*)p.rows)[row].position);
    }
    if (is_q) {
        float* q = (float*)p.q + ((u64)row * p.heads + index) * n;
        for (u32 d = lane; d < n; d += 32) q[d] = x[d];
    } else if (p.wide) {
        store_head<float>(x, p, row, index, is_k);
    } else {
        store_head<u16>(x, p, row, index, is_k);
    }
}
