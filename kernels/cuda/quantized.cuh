// How quantized weights lie, as kernels/src/cuda/quantized.rs places them: a plane of codes, each row
// padded to whole pieces of 16 bytes, and a plane of scales.
//
//   q8_0   signed bytes                                             scales f16, one for 32 of K
//   q4_0   byte i of 16: element i below, i + 16 above, 8 added     scales f16, one for 32 of K
//   fp8    e4m3, never NaN                                          scales f32, one a row, times 2^8
#pragma once
#include "prelude.cuh"

// Elements that share a scale, and their words of four bytes.
constexpr u32 SCALED = 32;
constexpr u32 SCALED_WORDS = SCALED / 4;

// An e4m3 times 2^-8: its bits where f16 has them.
__device__ __forceinline__ float widen_fp8(u32 code) {
    return float_of_f16((u16)((code & 0x80) << 8 | (code & 0x7f) << 7));
}
