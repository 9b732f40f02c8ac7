// What every kernel starts from: number types, conversions, reductions, and how a kernel is declared.
//
// Compiles for the device (NVRTC, without headers) and for the host's emulation from one source.
// A kernel is a function of one struct of parameters, so that both launch it alike. Whatever needs
// an instruction of its own is in ptx.cuh.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define ON_DEVICE 1
#else
#define ON_DEVICE 0
#include "emulation/emulate.h"
#endif

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i32 = int;

constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffff;

// UNROLL: before a loop whose index must be known to the compiler, so that an array stays in registers.
// ROLLED: before one whose body is large and runs seldom.
#if ON_DEVICE
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")
#else
#define UNROLL
#define ROLLED
#endif

// Larger than every float.
#if ON_DEVICE
#define INFINITY_F __int_as_float(0x7f800000)
#else
#define INFINITY_F INFINITY
#endif

// A kernel `name` of blocks of `threads` threads, whose body is `function(parameters)`. On Hopper it may
// have been started while the kernel before it was ending. So it waits before it does anything, all of
// its threads: then whoever waits for it has waited for all that came before, too.
#define KERNEL(name, threads, Parameters, ...) \
    KERNEL_READING_AHEAD(name, threads, Parameters, read_nothing, __VA_ARGS__)
// A kernel that does `ahead(parameters)` before it waits: it may touch nothing that a kernel writes.
// A KERNEL of which so many blocks shall fit a multiprocessor: a thread may have the registers that this
// leaves. Of the others the assembler guesses how many shall, and may spill for it.
#if ON_DEVICE
#define BOUND_KERNEL(name, bounds, Parameters, ahead, ...)                                                       \
    extern "C" __global__ void __launch_bounds__ bounds name(const __grid_constant__ Parameters parameters) {    \
        ahead(parameters);                                                                                       \
        wait_for_kernels();                                                                                      \
        let_next_kernel_start();                                                                                 \
        (__VA_ARGS__)(parameters);                                                                               \
    }
#define KERNEL_READING_AHEAD(name, threads, Parameters, ahead, ...) \
    BOUND_KERNEL(name, (threads), Parameters, ahead, __VA_ARGS__)
#define KERNEL_OF_BLOCKS(name, threads, blocks, Parameters, ...) \
    BOUND_KERNEL(name, (threads, blocks), Parameters, read_nothing, __VA_ARGS__)
#else
#define KERNEL_OF_BLOCKS(name, threads, blocks, Parameters, ...) KERNEL(name, threads, Parameters, __VA_ARGS__)
#define KERNEL_READING_AHEAD(name, threads, Parameters, ahead, ...)                    \
    static emulate::Kernel name##_kernel(#name, threads, sizeof(Parameters),           \
                                         emulate::body_of<emulate::is_wanted(#name)>([](auto p) { \
        ahead(*(const Parameters*)p);                                                  \
        wait_for_kernels();                                                            \
        let_next_kernel_start();                                                       \
        (__VA_ARGS__)(*(const Parameters*)p);                                          \
    }));
#endif

#include "ptx.cuh"

template <class Parameters>
__device__ __forceinline__ void read_nothing(const Parameters&) {}

struct Bf16 {
    u16 bits;
};

struct F16 {
    u16 bits;
};

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(Bf16 value) { return float_of_bits((u32)value.bits << 16); }
__device__ __forceinline__ float widen(F16 value) { return float_of_f16(value.bits); }

// Rounds to nearest, ties to even. NaN stays NaN.
template <class T>
__device__ __forceinline__ T narrow(float value);
template <>
__device__ __forceinline__ float narrow<float>(float value) { return value; }
template <>
__device__ __forceinline__ Bf16 narrow<Bf16>(float value) { return {bf16_of_float(value)}; }
template <>
__device__ __forceinline__ F16 narrow<F16>(float value) { return {f16_of_float(value)}; }

__device__ __forceinline__ u32 lane_index() { return thread_index() % WARP; }
__device__ __forceinline__ u32 warp_index() { return thread_index() / WARP; }

template <class T>
__device__ __forceinline__ constexpr T min_of(T a, T b) { return a < b ? a : b; }
template <class T>
__device__ __forceinline__ constexpr T max_of(T a, T b) { return a < b ? b : a; }
__device__ __forceinline__ u32 div_up(u32 a, u32 b) { return (a + b - 1) / b; }

// The sum over a warp, in all lanes: halves join, again and again, so the order is always the same.
__device__ __forceinline__ float warp_sum(float value) {
    for (u32 distance = WARP / 2; distance > 0; distance /= 2) value += shuffle_xor(value, distance);
    return value;
}

// The largest of a warp, in all lanes.
__device__ __forceinline__ float warp_max(float value) {
    for (u32 distance = WARP / 2; distance > 0; distance /= 2) {
        value = max_of(value, shuffle_xor(value, distance));
    }
    return value;
}

// Activation functions of a gate, by the numbers that the host gives them.
enum ActivationKind : u32 { SILU = 0, GELU_TANH = 1, GELU = 2 };

__device__ __forceinline__ float activate(u32 kind, float x) {
    switch (kind) {
        case SILU:
            return x / (1.0f + exp_of(-x));
        case GELU_TANH:
            return 0.5f * x * (1.0f + tanh_of(0.7978845608028654f * (x + 0.044715f * x * x * x)));
        default:
            return 0.5f * x * (1.0f + erf_of(x * 0.7071067811865476f));
    }
}

__device__ __forceinline__ float soft_capped(float value, float cap) {
    return cap > 0.0f ? cap * tanh_of(value / cap) : value;
}
