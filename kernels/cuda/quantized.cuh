// How quantized weights lie, as kernels/src/cuda/quantized.rs places them: a plane of codes, each row
// padded to whole pieces of 16 bytes, and a plane of scales, whose rows are padded with zeros to four.
//
//   q8_0   signed bytes                                             scales f16, one for 32 of K
//   q4_0   byte i of 16: element i below, i + 16 above, 8 added     scales f16, one for 32 of K
//   fp8    e4m3, never NaN                                          scales f32, one a row, times 2^8
//
// And how rows of x become bytes where they meet q8_0 and q4_0.
#pragma once
#include "prelude.cuh"

// Elements that share a scale, and their words of four bytes.
constexpr u32 SCALED = 32;
constexpr u32 SCALED_WORDS = SCALED / 4;

// From a row of scales to the next, of rows of so many blocks: what one copy brings are four.
__device__ __forceinline__ u32 scale_stride(u32 blocks) { return div_up(blocks, 4) * 4; }

struct E4m3 {
    u8 bits;
};

// An e4m3 times 2^-8: its bits where f16 has them.
__device__ __forceinline__ float widen_fp8(u32 code) {
    return float_of_f16((u16)((code & 0x80) << 8 | (code & 0x7f) << 7));
}

// The same of four: pairs of f16, the first two codes and the last two.
__device__ __forceinline__ void widen_quads(u32 codes, u32& first, u32& last) {
    // Each code in the upper byte of 16 bits.
    u32 apart = pick_bytes(codes, 0, 0x1404), others = pick_bytes(codes, 0, 0x3424);
    first = (apart & 0x80008000) | (apart >> 1 & 0x3f803f80);
    last = (others & 0x80008000) | (others >> 1 & 0x3f803f80);
}

// The nearest number of steps, ties to even, as a signed byte: 1.5 * 2^23 leaves it in the lower bits.
__device__ __forceinline__ u32 byte_of(float value, float scale) {
    // A subnormal scale may be too small by half of itself.
    float steps = max_of(-127.0f, min_of(value / scale, 127.0f));
    return bits_of_float(steps + 12582912.0f) & 0xff;
}

// What a lane has of a block of a row that became bytes.
struct ByteBlock {
    u32 word;     // its own four
    float scale;  // the block's
};

// scale = max|x| / 127, q = round(x / scale); what is not finite makes the scale NaN. Eight neighbouring
// lanes take a block, four elements each; the whole warp takes part.
__device__ __forceinline__ ByteBlock quantize_block(const float (&x)[4]) {
    constexpr u32 LANES = SCALED_WORDS;
    // As integers, magnitudes are ordered as their numbers are, and NaN is above all.
    u32 most = 0;
    UNROLL
    for (u32 i = 0; i < 4; i++) most = max_of(most, bits_of_float(x[i]) & 0x7fffffff);
    UNROLL
    for (u32 distance = LANES / 2; distance > 0; distance /= 2) most = max_of(most, shuffle_xor(most, distance));
    bool is_number = most < 0x7f800000;
    float scale = is_number ? float_of_bits(most) / 127.0f : float_of_bits(0x7fc00000);
    u32 word = 0;
    if (is_number && scale > 0.0f) {
        UNROLL
        for (u32 i = 0; i < 4; i++) word |= byte_of(x[i], scale) << (8 * i);
    }
    return {word, scale};
}
