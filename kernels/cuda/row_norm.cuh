// What rows are divided by in an RMS norm, by all threads of a block, in one order of sums whoever asks:
// norm.cu, or a product of few rows that norms them itself.
#pragma once
#include "prelude.cuh"

// Threads that sum a row's squares; fewer stand for several each.
constexpr u32 NORM_THREADS = 512;
constexpr u32 NORM_WARPS = NORM_THREADS / WARP;
// Columns that each of them reads before it uses one: of a few rows, time is what the reads wait for.
constexpr u32 AHEAD = 8;

// The next columns of one of THREADS threads; zeros behind the last.
template <u32 THREADS, u32 COUNT>
__device__ __forceinline__ void read(const float* from, u32 first, u32 cols, float (&to)[COUNT]) {
    UNROLL
    for (u32 i = 0; i < COUNT; i++) {
        u32 col = first + i * THREADS;
        to[i] = col < cols ? from[col] : 0.0f;
    }
}

template <u32 ROWS>
struct Inverses {
    float at[ROWS];
};

// 1 / sqrt(mean(x^2) + eps) of each row, in all of THREADS threads. Each of NORM_THREADS sums the squares
// of its own columns in ascending order, then its warp, then the warps. `scratch` holds NORM_WARPS floats a
// row, and may be used again after a barrier. Rows are read beside each other, not one after another.
template <u32 THREADS, u32 ROWS>
__device__ __forceinline__ Inverses<ROWS> inverse_norms(const float* const (&x)[ROWS], u32 cols, float eps,
                                                        float* scratch) {
    constexpr u32 OWN = NORM_THREADS / THREADS, COUNT = AHEAD * OWN * min_of(ROWS, 2u) / ROWS;
    static_assert(OWN * THREADS == NORM_THREADS && COUNT % OWN == 0);
    float squares[ROWS][OWN] = {};
    for (u32 first = thread_index(); first < cols; first += COUNT * THREADS) {
        float xs[ROWS][COUNT];
        UNROLL
        for (u32 row = 0; row < ROWS; row++) read<THREADS>(x[row], first, cols, xs[row]);
        UNROLL
        for (u32 i = 0; i < ROWS * COUNT; i++) {
            float value = xs[i / COUNT][i % COUNT], &sum = squares[i / COUNT][i % OWN];
            sum = fused(value, value, sum);
        }
    }
    UNROLL
    for (u32 i = 0; i < ROWS * OWN; i++) {
        float sum = warp_sum(squares[i / OWN][i % OWN]);
        u32 warp = i % OWN * (THREADS / WARP) + warp_index();
        if (lane_index() == 0) scratch[i / OWN * NORM_WARPS + warp] = sum;
    }
    sync_block();
    Inverses<ROWS> inverses;
    UNROLL
    for (u32 row = 0; row < ROWS; row++) {
        float sum = 0.0f;
        for (u32 warp = 0; warp < NORM_WARPS; warp++) sum += scratch[row * NORM_WARPS + warp];
        inverses.at[row] = 1.0f / sqrt_of(sum / (float)cols + eps);
    }
    return inverses;
}
