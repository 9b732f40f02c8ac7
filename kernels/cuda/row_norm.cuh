// What a row is divided by in an RMS norm, by all threads of a block, in one order of sums whoever asks:
// norm.cu, or a product of few rows that norms them itself.
#pragma once
#include "prelude.cuh"

// Threads that sum a row's squares; fewer stand for several each.
constexpr u32 NORM_THREADS = 512;
constexpr u32 NORM_WARPS = NORM_THREADS / WARP;
// Columns that a thread reads before it uses one: of a few rows, time is what the reads wait for.
constexpr u32 AHEAD = 8;

// The next columns of one of THREADS threads; zeros behind the last.
template <u32 THREADS>
__device__ __forceinline__ void read(const float* from, u32 first, u32 cols, float (&to)[AHEAD]) {
    UNROLL
    for (u32 i = 0; i < AHEAD; i++) {
        u32 col = first + i * THREADS;
        to[i] = col < cols ? from[col] : 0.0f;
    }
}

// 1 / sqrt(mean(x^2) + eps), in all of THREADS threads. Each of NORM_THREADS sums the squares of its own
// columns in ascending order, then its warp, then the warps. `scratch` holds NORM_WARPS floats, and may be
// used again after a barrier.
template <u32 THREADS>
__device__ __forceinline__ float inverse_norm(const float* x, u32 cols, float eps, float* scratch) {
    constexpr u32 OWN = NORM_THREADS / THREADS;
    static_assert(OWN * THREADS == NORM_THREADS && AHEAD % OWN == 0);
    float squares[OWN] = {};
    for (u32 first = thread_index(); first < cols; first += AHEAD * THREADS) {
        float xs[AHEAD];
        read<THREADS>(x, first, cols, xs);
        UNROLL
        for (u32 i = 0; i < AHEAD; i++) squares[i % OWN] = fused(xs[i], xs[i], squares[i % OWN]);
    }
    UNROLL
    for (u32 i = 0; i < OWN; i++) {
        float sum = warp_sum(squares[i]);
        if (lane_index() == 0) scratch[i * (THREADS / WARP) + warp_index()] = sum;
    }
    sync_block();
    float sum = 0.0f;
    for (u32 warp = 0; warp < NORM_WARPS; warp++) sum += scratch[warp];
    return 1.0f / sqrt_of(sum / (float)cols + eps);
}
