// Names for what the hardware does. No CUDA header is read: the compiler alone suffices.
#pragma once

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#define DEV static __device__ __forceinline__
#define ALL_LANES 0xffffffffu

// The rows of a step, as the host laid them out.
struct Row {
    u32 position;
    u32 first_page;
};

// d = c + the four products of signed bytes.
DEV int dp4a(u32 a, u32 b, int c) {
    int d;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

DEV float f32_from_f16(u16 h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}

// Round to nearest even, subnormals kept.
DEV u16 f16_from_f32(float f) {
    u16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}

DEV float shuffle_xor(float v, int lanes) { return __shfl_xor_sync(ALL_LANES, v, lanes); }
DEV float shuffle(float v, int lane) { return __shfl_sync(ALL_LANES, v, lane); }
DEV u32 shuffle_xor(u32 v, int lanes) { return __shfl_xor_sync(ALL_LANES, v, lanes); }

// Copies 16 bytes to shared memory behind the thread's back; writes zeros unless `inside`.
DEV void copy_async(void* to, const void* from, bool inside) {
#if __CUDA_ARCH__ >= 800
    u32 address = (u32)__cvta_generic_to_shared(to);
    int bytes = inside ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
#else
    *(uint4*)to = inside ? *(const uint4*)from : make_uint4(0, 0, 0, 0);
#endif
}

DEV void copy_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `pending` of the thread's groups of copies are on their way.
template <int pending>
DEV void copy_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}
