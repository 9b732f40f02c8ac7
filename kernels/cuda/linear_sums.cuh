// What products on matrix units share, whatever the weight: the rows that a tile takes, and its sums,
// which the threads of the block hold.
//
// A lane has of each m16n8 product four sums: columns g and g + 8 (rows of the weight), rows 2t and
// 2t + 1 of x, where g = lane / 4 and t = lane % 4.
#pragma once
#include "linear_tile.cuh"

template <class M>
struct Sums {
    const TensorLinear& p;
    const Tile<M>& tile;
    float at[M::TALL][M::NARROW][4] = {};

    __device__ __forceinline__ Sums(const TensorLinear& p, const Tile<M>& tile) : p(p), tile(tile) {}

    // Rows of x that the tile's rows take, then rows of the result.
    __device__ __forceinline__ u32* rows() const { return (u32*)(shared_bytes() + M::RING_BYTES); }
    // This thread's sums of earlier chunks.
    __device__ __forceinline__ float* totals() const {
        return (float*)(shared_bytes() + M::RING_BYTES + M::ROWS * 8) + thread_index();
    }

    __device__ __forceinline__ u32 first_column() const {
        return warp_index() % M::COLUMN_WARPS * M::WARP_COLUMNS;
    }
    __device__ __forceinline__ u32 first_row() const { return warp_index() / M::COLUMN_WARPS * M::WARP_ROWS; }

    // First step of a chunk.
    __device__ __forceinline__ u32 step_of(u32 chunk) const {
        return chunk * div_up(p.linear.k, M::UNIT) / p.chunks * (M::UNIT / M::STEP);
    }

    __device__ __forceinline__ void find_rows() {
        for (u32 i = thread_index(); i < M::ROWS; i += M::THREADS) {
            u32 row = NO_ROW;
            if (i < tile.num_rows) row = p.order ? p.order[tile.first_row + i] : tile.first_row + i;
            rows()[i] = row == NO_ROW ? NO_ROW : row / p.linear.rows_per_x;
            rows()[M::ROWS + i] = row;
        }
        sync_block();
    }

    // Multiplies by scales [E, n] of the weight's rows.
    __device__ __forceinline__ void scale(const float* scales) {
        UNROLL
        for (u32 i = 0; i < M::TALL * 2; i++) {
            u32 n = tile.first_column + first_column() + i * 8 + lane_index() / 4;
            float scale = n < p.linear.n ? scales[(u64)tile.expert * p.linear.n + n] : 0.0f;
            UNROLL
            for (u32 j = 0; j < M::NARROW * 2; j++) {
                float& sum = at[i / 2][j / 2][i % 2 * 2 + j % 2];
                sum = rounded_product(sum, scale);
            }
        }
    }

    // Adds a chunk's sums to those of the chunks before it.
    __device__ __forceinline__ void join_chunk(u32 chunk) {
        UNROLL
        for (u32 i = 0; i < M::TALL * M::NARROW * 4; i++) {
            float& sum = at[i / 4 / M::NARROW][i / 4 % M::NARROW][i % 4];
            float* total = totals() + i * M::THREADS;
            if (chunk > 0) sum = *total + sum;
            if (chunk + 1 == p.chunks) continue;
            *total = sum;
            sum = 0.0f;
        }
    }
};
