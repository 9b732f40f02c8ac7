// The KV cache in eight bits, as kernels/src/kv_format.rs defines it: codes e4m3, a scale 2^(s - 127) for
// each token and head. A (block, KV head) has the codes of its tokens, then their scales.
//
// All by integers and exact products, so that every card and the host have the same bits: conversions of
// their own, which cards from sm_89 on have, would save a few operations and need a second path.
#pragma once
#include "prelude.cuh"

struct Fp8 {
    u8 code;
};

// The scale of a head that is not finite.
constexpr u32 NOT_FINITE_SCALE = 255;

// The scale of a head whose largest magnitude has these bits: the least with magnitude <= 448 * scale.
__device__ __forceinline__ u32 scale_of(u32 magnitude) {
    if (magnitude >= 0x7f800000) return NOT_FINITE_SCALE;
    // 448 is 1.75 * 2^8: a larger fraction than .75 carries into the exponent.
    u32 exponent = (magnitude + 0x1fffff) >> 23;
    return min_of(max_of(exponent, 16u + 8u), 246u + 8u) - 8;
}

// What a head's elements are multiplied by before they become codes.
__device__ __forceinline__ float inverse_of(u32 scale) { return float_of_bits((254 - scale) << 23); }

// The nearest e4m3 (ties to even), at most 448 in magnitude.
__device__ __forceinline__ u32 e4m3_of_float(float value) {
    u32 bits = bits_of_float(value), sign = bits >> 24 & 0x80, magnitude = bits & 0x7fffffff;
    // Below the least normal number, 2^-6, codes are multiples of 2^-9: the last bit of 2^14 and a bit.
    if (magnitude < 0x3c800000) return sign | (bits_of_float(float_of_bits(magnitude) + 16384.0f) & 0xf);
    // Three bits of the fraction stay; a carry runs into the exponent by itself.
    u32 rounded = (magnitude + 0x7ffff + (magnitude >> 20 & 1)) >> 20;
    return sign | min_of(rounded - ((127 - 7) << 3), 0x7eu);
}

// A scale as a pair of bf16. 255 is infinity: with codes of 0 it makes NaN.
__device__ __forceinline__ u32 bf16_pair_of_scale(u32 scale) { return scale << 7 | scale << 23; }

// Two codes, each in the upper half of 16 bits, as bf16 times a scale: exactly. Where bf16 has their bits
// they count 2^-120, subnormal ones too.
__device__ __forceinline__ u32 bf16_pair_of_codes(u32 codes, u32 scale) {
    u32 placed = (codes & 0x80008000) | (codes & 0x7f007f00) >> 4;
    return bf16_pair_product(bf16_pair_product(placed, 0x7b807b80), scale);
}

// Eight codes as bf16 times a scale.
__device__ __forceinline__ uint4 bf16_of_codes(uint2 codes, u32 scale) {
    u32 words[4];
    UNROLL
    for (u32 i = 0; i < 4; i++) {
        u32 pair = (i < 2 ? codes.x : codes.y) >> i % 2 * 16;
        words[i] = bf16_pair_of_codes((pair & 0xff) << 8 | (pair & 0xff00) << 16, scale);
    }
    return {words[0], words[1], words[2], words[3]};
}
