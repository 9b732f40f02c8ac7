// Sampling: a row of logits, and values that a warp or a block joins.
//
// A row is cut into chunks at absolute multiples of CHUNK tokens. A warp takes a chunk, its lanes
// pieces of it: which, depends on the token alone.
#pragma once

#include "sample_parameters.cuh"

// Tokens of one load of 16 bytes.
constexpr u32 PIECE = 4;
// Tokens that a warp loads and sums together: PER_LANE a lane.
constexpr u32 CHUNK = 256;
constexpr u32 PER_LANE = CHUNK / WARP;

constexpr float FLOAT_MAX = 3.402823466e38f;

__device__ __forceinline__ float minus_infinity() { return float_of_bits(0xff800000); }

// Without NaN (impossible instead) and +inf (the largest number instead), so that differences are
// defined.
__device__ __forceinline__ float clean(float logit) {
    return logit != logit ? minus_infinity() : min_of(logit, FLOAT_MAX);
}

// Larger keys are larger logits, then lower tokens; every key is above 0. `logit` is clean.
__device__ __forceinline__ u64 best_key(float logit, u32 token) {
    u32 bits = bits_of_float(logit + 0.0f);  // -0 becomes +0, its equal
    bits = bits & 0x80000000 ? ~bits : bits | 0x80000000;
    return (u64)bits << 32 | ~token;
}
__device__ __forceinline__ u32 token_of_best(u64 key) { return ~(u32)key; }
__device__ __forceinline__ float logit_of_best(u64 key) {
    u32 bits = (u32)(key >> 32);
    return float_of_bits(bits & 0x80000000 ? bits ^ 0x80000000 : ~bits);
}

// One row of logits, raw or adjusted.
struct Row {
    const float* logits;
    u32 vocab;

    // Whether whole pieces can be loaded at once.
    __device__ __forceinline__ bool is_aligned() const { return (u64)logits % 16 == 0; }
};

__device__ __forceinline__ Row raw_row(const float* logits, u32 index, u32 vocab, u32 stride) {
    return {logits + (u64)index * stride, vocab};
}

// Clean logits of tokens start..start + PIECE; impossible ones beyond the vocabulary.
__device__ __forceinline__ void load_piece(const Row& row, u32 start, float* to) {
    if (row.is_aligned() && start + PIECE <= row.vocab) {
        float4 piece = *(const float4*)(row.logits + start);
        to[0] = piece.x, to[1] = piece.y, to[2] = piece.z, to[3] = piece.w;
    } else {
        for (u32 i = 0; i < PIECE; i++) {
            to[i] = start + i < row.vocab ? row.logits[start + i] : minus_infinity();
        }
    }
}

// The first token of this lane's piece number `piece` of a chunk.
__device__ __forceinline__ u32 piece_start(u32 chunk, u32 piece) {
    return chunk * CHUNK + (piece * WARP + lane_index()) * PIECE;
}
// The token of this lane's value number `i` of a chunk.
__device__ __forceinline__ u32 token_of(u32 chunk, u32 i) { return piece_start(chunk, i / PIECE) + i % PIECE; }

// Calls visit(chunk, clean logits of the lane) for this warp's chunks. Loads come first, together.
template <class Visit>
__device__ __forceinline__ void for_each_chunk(const Row& row, Visit visit) {
    u32 chunks = div_up(row.vocab, CHUNK);
    for (u32 chunk = warp_index(); chunk < chunks; chunk += SAMPLE_WARPS) {
        float values[PER_LANE];
        for (u32 i = 0; i < PER_LANE / PIECE; i++) load_piece(row, piece_start(chunk, i), values + i * PIECE);
        for (u32 i = 0; i < PER_LANE; i++) values[i] = clean(values[i]);
        visit(chunk, values);
    }
}

// ---- joining values of a warp or block

struct Larger {
    template <class T>
    __device__ T operator()(T a, T b) const { return max_of(a, b); }
};
struct Smaller {
    template <class T>
    __device__ T operator()(T a, T b) const { return min_of(a, b); }
};
struct Plus {
    template <class T>
    __device__ T operator()(T a, T b) const { return a + b; }
};

template <class T, class Join>
__device__ __forceinline__ T join_warp(T value, Join join) {
    for (u32 distance = WARP / 2; distance > 0; distance /= 2) value = join(value, shuffle_xor(value, distance));
    return value;
}

// In all threads. `scratch` holds a value a warp, and may be that of the join before.
template <u32 WARPS, class T, class Join>
__device__ __forceinline__ T join_block(T value, Join join, u64* scratch) {
    T* of_warps = (T*)scratch;
    value = join_warp(value, join);
    sync_block();
    if (lane_index() == 0) of_warps[warp_index()] = value;
    sync_block();
    value = of_warps[0];
    for (u32 warp = 1; warp < WARPS; warp++) value = join(value, of_warps[warp]);
    return value;
}

// The best key of a raw row, in all lanes, from the parts of `argmax`.
__device__ __forceinline__ u64 best_of_parts(const Sample& p, u32 index) {
    u64 best = 0;
    for (u32 part = lane_index(); part < p.parts; part += WARP) {
        best = max_of(best, p.bests[(u64)index * p.parts + part]);
    }
    return join_warp(best, Larger());
}
