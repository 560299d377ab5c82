// Where K and V stand on the device.
//
// A page of a layer holds 64 positions of every KV head; head by head K, then V, each of `W` = head_dim rounded up
// to 8 values a position (what is past head_dim is zero, as the store was allocated):
//
//     K   [W / C][64][C], C values being 16 bytes: lanes with consecutive keys read 16 consecutive bytes each
//     V   [64][W]: lanes with consecutive d
//
// Elements are f16, or f32 under profile `F32`.
#pragma once

#include "exact.cuh"

#define PAGE 64

// `T` is the element: u16 (the bits of an f16) or float.
template <class T>
struct KvHead {
    static const int CHUNK = 16 / sizeof(T);
    T* k;
    u32 width;

    // Head `head` of page `page` of the layer whose pages start at `layer`.
    __device__ __forceinline__ KvHead(u64 layer, u32 page, u32 kv_heads, u32 head, u32 head_dim) {
        width = (head_dim + 7) & ~7u;
        k = (T*)layer + ((u64)page * kv_heads + head) * (2 * PAGE) * width;
    }

    __device__ __forceinline__ T* v() const { return k + PAGE * width; }
    __device__ __forceinline__ T* key(u32 slot, u32 d) const { return k + ((d / CHUNK) * PAGE + slot) * CHUNK + d % CHUNK; }
    __device__ __forceinline__ T* value(u32 slot, u32 d) const { return v() + slot * width + d; }
};

// Stores one element; true if what is stored is not finite.
DEV bool store_kv(u16* to, float v) {
    u16 h = f16_from_f32(v);
    *to = h;
    return (h & 0x7fff) >= 0x7c00;
}

DEV bool store_kv(float* to, float v) {
    *to = v;
    return !is_finite(v);
}
