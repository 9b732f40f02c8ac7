// Products of many rows with a 16-bit weight, on matrix units.
//
// 16 rows of the weight are the tall side of an m16n8k16 product, 8 rows of x the narrow one, so that
// few rows of x waste little. The weight comes through a ring of slots by asynchronous copies; x is
// loaded a step ahead, and rounded (bf16) or split in halves (f16) on its way into two slots.
// A chunk's sum starts afresh and runs over k in steps of 16; chunks join in ascending order, whether
// one block has all of them or each has a block of its own. So the bits of a result come of its row,
// the weight and the number of chunks: not of the tiling, nor of other rows.
#pragma once
#include "linear_tile.cuh"

template <class M>
struct Product {
    using T = typename M::T;
    static constexpr u32 QUADS = M::STEP / 4;
    // Of a thread, of a step.
    static constexpr u32 WEIGHT_COPIES = M::COLUMNS * M::PIECES / M::THREADS;
    static constexpr u32 X_LOADS = M::ROWS * QUADS / M::THREADS;
    static_assert(WEIGHT_COPIES * M::THREADS == M::COLUMNS * M::PIECES && X_LOADS * M::THREADS == M::ROWS * QUADS);

    const TensorLinear& p;
    const Tile<M>& tile;
    const T* weight;
    u8* shared;
    u32 end_step;
    float4 staged[X_LOADS];
    float sums[M::TALL][M::NARROW][4] = {};

    __device__ __forceinline__ Product(const TensorLinear& p, const Tile<M>& tile)
        : p(p), tile(tile), shared(shared_bytes()) {
        weight = (const T*)p.linear.weight + (u64)tile.expert * p.linear.n * p.linear.stride;
    }

    __device__ __forceinline__ u8* weight_slot(u32 step) const { return shared + step % M::SLOTS * M::WEIGHT_BYTES; }
    __device__ __forceinline__ u8* x_slot(u32 step) const {
        return shared + M::SLOTS * M::WEIGHT_BYTES + step % 2 * M::X_BYTES;
    }
    // Rows of x that the tile's rows take, then rows of the result.
    __device__ __forceinline__ u32* rows() const { return (u32*)(shared + M::RING_BYTES); }
    // This thread's sums of earlier chunks.
    __device__ __forceinline__ float* totals() const {
        return (float*)(shared + M::RING_BYTES + M::ROWS * 8) + thread_index();
    }

    __device__ __forceinline__ u32 first_column() const {
        return warp_index() % M::COLUMN_WARPS * M::WARP_COLUMNS;
    }
    __device__ __forceinline__ u32 first_row() const { return warp_index() / M::COLUMN_WARPS * M::WARP_ROWS; }

    // First step of a chunk.
    __device__ __forceinline__ u32 step_of(u32 chunk) const {
        return chunk * div_up(p.linear.stride, CHUNK_UNIT) / p.chunks * (CHUNK_UNIT / M::STEP);
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

    // Begins to copy a step of the weight, if there is one. A group of copies in any case: waits count them.
    __device__ __forceinline__ void fetch_weight(u32 step) {
        if (step < end_step) {
            u32 k = step * M::STEP + thread_index() % M::PIECES * 8;
            UNROLL
            for (u32 i = 0; i < WEIGHT_COPIES; i++) {
                u32 column = (thread_index() + i * M::THREADS) / M::PIECES;
                bool is_there = tile.first_column + column < p.linear.n && k < p.linear.stride;
                const T* from = is_there ? weight + (u64)(tile.first_column + column) * p.linear.stride + k : weight;
                copy_async(weight_slot(step) + M::place(column, thread_index() % M::PIECES), from, is_there ? 16 : 0);
            }
        }
        commit_copies();
    }

    // Loads this thread's part of a step of x; zeros beyond rows and k.
    __device__ __forceinline__ void load_x(u32 step) {
        u32 k = step * M::STEP + thread_index() % QUADS * 4;
        UNROLL
        for (u32 i = 0; i < X_LOADS; i++) {
            staged[i] = {};
            u32 row = rows()[(thread_index() + i * M::THREADS) / QUADS];
            if (step >= end_step || row == NO_ROW || k >= p.linear.k) continue;
            Columns<4> quad = load_columns<4>(p.linear.x + (u64)row * p.linear.k, k, p.linear.k);
            staged[i] = {quad.at[0], quad.at[1], quad.at[2], quad.at[3]};
        }
    }

    __device__ __forceinline__ void store_x(u32 step) {
        u32 quad = thread_index() % QUADS;
        UNROLL
        for (u32 i = 0; i < X_LOADS; i++) {
            u8* to = x_slot(step) + M::place((thread_index() + i * M::THREADS) / QUADS, quad / 2) + quad % 2 * 8;
            float4 x = staged[i];
            if constexpr (M::PARTS == 1) {
                *(uint2*)to = {bf16_pair_of_floats(x.x, x.y), bf16_pair_of_floats(x.z, x.w)};
            } else {
                Halves first = split<T>(x.x, x.y), second = split<T>(x.z, x.w);
                *(uint2*)to = {first.high, second.high};
                *(uint2*)(to + M::PART_BYTES) = {first.low, second.low};
            }
        }
    }

    __device__ __forceinline__ void multiply_step(u32 step) {
        u32 lane = lane_index();
        UNROLL
        for (u32 i = 0; i < M::STEP / 16; i++) {
            u32 a[M::TALL][4];
            UNROLL
            for (u32 tall = 0; tall < M::TALL; tall++) {
                u32 column = first_column() + tall * 16 + lane % 16;
                load_matrices(a[tall], weight_slot(step) + M::place(column, i * 2 + lane / 16));
            }
            UNROLL
            for (u32 j = 0; j < M::NARROW / 2 * M::PARTS; j++) {
                u32 narrow = j / M::PARTS * 2, row = first_row() + narrow * 8 + lane / 16 * 8 + lane % 8;
                const u8* part = x_slot(step) + j % M::PARTS * M::PART_BYTES;
                u32 b[4];
                load_matrices(b, part + M::place(row, i * 2 + lane / 8 % 2));
                UNROLL
                for (u32 tall = 0; tall < M::TALL; tall++) {
                    multiply(T{}, sums[tall][narrow], a[tall], b[0], b[1]);
                    multiply(T{}, sums[tall][narrow + 1], a[tall], b[2], b[3]);
                }
            }
        }
    }

    // Adds a chunk's sums to those of the chunks before it.
    __device__ __forceinline__ void join_chunk(u32 chunk) {
        UNROLL
        for (u32 i = 0; i < M::TALL * M::NARROW * 4; i++) {
            float& sum = sums[i / 4 / M::NARROW][i / 4 % M::NARROW][i % 4];
            float* total = totals() + i * M::THREADS;
            if (chunk > 0) sum = *total + sum;
            if (chunk + 1 == p.chunks) continue;
            *total = sum;
            sum = 0.0f;
        }
    }

    // Sums over the chunks that this block has.
    __device__ __forceinline__ void run() {
        u32 chunk = p.partials ? blockIdx.y : 0;
        u32 step = step_of(chunk), end_chunk = step_of(chunk + 1);
        end_step = p.partials ? end_chunk : step_of(p.chunks);
        find_rows();
        for (u32 i = 0; i + 1 < M::SLOTS; i++) fetch_weight(step + i);
        load_x(step);
        store_x(step);
        load_x(step + 1);
        for (; step < end_step; step++) {
            wait_copies<M::SLOTS - 2>();
            sync_block();
            fetch_weight(step + M::SLOTS - 1);
            store_x(step + 1);
            load_x(step + 2);
            multiply_step(step);
            if (p.partials || p.chunks == 1 || step + 1 < end_chunk) continue;
            join_chunk(chunk++);
            end_chunk = step_of(chunk + 1);
        }
    }
};
