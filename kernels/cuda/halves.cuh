// What products by matrix units share: values in halves of a 16-bit type, and the product by type.
//
// A split value keeps 16 bits of an f32's 24 with bf16, 22 with f16, where either half ends at 65504.
#pragma once
#include "prelude.cuh"

// High and low part of a value.
struct Halves {
    u32 high, low;
};

__device__ __forceinline__ float within_range(float value, Bf16) { return value; }
// NaN stays NaN.
__device__ __forceinline__ float within_range(float value, F16) {
    return value > 65504.0f ? 65504.0f : value < -65504.0f ? -65504.0f : value;
}

template <class T>
__device__ __forceinline__ Halves split(float value) {
    T high = narrow<T>(within_range(value, T{}));
    T low = narrow<T>(within_range(value - widen(high), T{}));
    return {high.bits, low.bits};
}

// Two neighbours, the first in the lower bits.
template <class T>
__device__ __forceinline__ Halves split(float first, float second) {
    Halves a = split<T>(first), b = split<T>(second);
    return {a.high | b.high << 16, a.low | b.low << 16};
}

__device__ __forceinline__ void multiply(Bf16, float* c, const u32 (&a)[4], u32 b0, u32 b1) {
    multiply_bf16(c[0], c[1], c[2], c[3], a, b0, b1);
}
__device__ __forceinline__ void multiply(F16, float* c, const u32 (&a)[4], u32 b0, u32 b1) {
    multiply_f16(c[0], c[1], c[2], c[3], a, b0, b1);
}
