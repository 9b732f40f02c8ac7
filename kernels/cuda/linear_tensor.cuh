// Products of many rows with a weight of 16 bits, or of fp8, on matrix units.
//
// 16 rows of the weight are the tall side of an m16n8k16 product, 8 rows of x the narrow one, so that
// few rows of x waste little. The weight comes through a ring of slots by asynchronous copies; x is
// loaded a step ahead, and rounded (bf16) or split in halves (f16) on its way into two slots. Codes of
// fp8 become f16 in registers, where a lane has four neighbours along k: x lies in that order, too.
// A chunk's sum starts afresh and runs over k in steps of 16; chunks join in ascending order, whether
// one block has all of them or each has a block of its own. So the bits of a result come of its row,
// the weight and the number of chunks: not of the tiling, nor of other rows.
#pragma once
#include "linear_sums.cuh"

template <class M>
struct Product {
    using T = typename M::T;
    using X = typename M::X;
    static constexpr bool IS_FP8 = sizeof(T) == 1;
    static constexpr u32 QUADS = M::STEP / 4;
    static constexpr u32 PIECES = M::WEIGHT_PIECES;
    // Of a thread, of a step.
    static constexpr u32 WEIGHT_COPIES = M::COLUMNS * PIECES / M::THREADS;
    static constexpr u32 X_LOADS = M::ROWS * QUADS / M::THREADS;
    static_assert(WEIGHT_COPIES * M::THREADS == M::COLUMNS * PIECES && X_LOADS * M::THREADS == M::ROWS * QUADS);

    const TensorLinear& p;
    const Tile<M>& tile;
    const T* weight;
    u8* shared;
    u32 end_step;
    float4 staged[X_LOADS];
    Sums<M> sums;

    __device__ __forceinline__ Product(const TensorLinear& p, const Tile<M>& tile)
        : p(p), tile(tile), shared(shared_bytes()), sums(p, tile) {
        weight = (const T*)p.linear.weight + (u64)tile.expert * p.linear.n * p.linear.stride;
    }

    __device__ __forceinline__ u8* weight_slot(u32 step) const { return shared + step % M::SLOTS * M::WEIGHT_BYTES; }
    __device__ __forceinline__ u8* x_slot(u32 step) const {
        return shared + M::SLOTS * M::WEIGHT_BYTES + step % 2 * M::X_BYTES;
    }

    // Begins to copy a step of the weight, if there is one. A group of copies in any case: waits count them.
    __device__ __forceinline__ void fetch_weight(u32 step) {
        if (step < end_step) {
            u32 k = step * M::STEP + thread_index() % PIECES * (16 / sizeof(T));
            UNROLL
            for (u32 i = 0; i < WEIGHT_COPIES; i++) {
                u32 column = (thread_index() + i * M::THREADS) / PIECES;
                bool is_there = tile.first_column + column < p.linear.n && k < p.linear.stride;
                const T* from = is_there ? weight + (u64)(tile.first_column + column) * p.linear.stride + k : weight;
                copy_async(weight_slot(step) + place<PIECES>(column, thread_index() % PIECES), from, is_there ? 16 : 0);
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
            u32 row = sums.rows()[(thread_index() + i * M::THREADS) / QUADS];
            if (step >= end_step || row == NO_ROW || k >= p.linear.k) continue;
            Columns<4> quad = load_columns<4>(p.linear.x + (u64)row * p.linear.k, k, p.linear.k);
            staged[i] = {quad.at[0], quad.at[1], quad.at[2], quad.at[3]};
        }
    }

    __device__ __forceinline__ void store_x(u32 step) {
        u32 quad = thread_index() % QUADS;
        UNROLL
        for (u32 i = 0; i < X_LOADS; i++) {
            u32 row = (thread_index() + i * M::THREADS) / QUADS;
            float4 x = staged[i];
            if constexpr (M::PARTS == 1) {
                put_quad(step, row, quad, 0, {bf16_pair_of_floats(x.x, x.y), bf16_pair_of_floats(x.z, x.w)});
            } else {
                Halves first = split<X>(x.x, x.y), second = split<X>(x.z, x.w);
                put_quad(step, row, quad, 0, {first.high, second.high});
                put_quad(step, row, quad, 1, {first.low, second.low});
            }
        }
    }

    // Four neighbours of a part of a row: side by side, or as lanes have those of an fp8 weight.
    __device__ __forceinline__ void put_quad(u32 step, u32 row, u32 quad, u32 part, uint2 pairs) {
        u8* to = x_slot(step) + part * M::PART_BYTES;
        if constexpr (IS_FP8) {
            *(u32*)(to + place<M::X_PIECES>(row, quad / 4 * 2) + quad % 4 * 4) = pairs.x;
            *(u32*)(to + place<M::X_PIECES>(row, quad / 4 * 2 + 1) + quad % 4 * 4) = pairs.y;
        } else {
            *(uint2*)(to + place<M::X_PIECES>(row, quad / 2) + quad % 2 * 8) = pairs;
        }
    }

    // The weight's side of the step's i-th 16 of k. Codes of 32 come at once.
    __device__ __forceinline__ void load_weight(u32 step, u32 i, u32 (&codes)[M::TALL][4], u32 (&a)[M::TALL][4]) {
        u32 lane = lane_index();
        UNROLL
        for (u32 tall = 0; tall < M::TALL; tall++) {
            u32 column = sums.first_column() + tall * 16 + lane % 16;
            if constexpr (IS_FP8) {
                if (i % 2 == 0) load_matrices(codes[tall], weight_slot(step) + place<PIECES>(column, i + lane / 16));
                widen_quads(codes[tall][i % 2 * 2], a[tall][0], a[tall][2]);
                widen_quads(codes[tall][i % 2 * 2 + 1], a[tall][1], a[tall][3]);
            } else {
                load_matrices(a[tall], weight_slot(step) + place<PIECES>(column, i * 2 + lane / 16));
            }
        }
    }

    __device__ __forceinline__ void multiply_step(u32 step) {
        u32 lane = lane_index();
        u32 codes[M::TALL][4];
        UNROLL
        for (u32 i = 0; i < M::STEP / 16; i++) {
            u32 a[M::TALL][4];
            load_weight(step, i, codes, a);
            UNROLL
            for (u32 j = 0; j < M::NARROW / 2 * M::PARTS; j++) {
                u32 narrow = j / M::PARTS * 2, row = sums.first_row() + narrow * 8 + lane / 16 * 8 + lane % 8;
                const u8* part = x_slot(step) + j % M::PARTS * M::PART_BYTES;
                u32 b[4];
                load_matrices(b, part + place<M::X_PIECES>(row, i * 2 + lane / 8 % 2));
                UNROLL
                for (u32 tall = 0; tall < M::TALL; tall++) {
                    multiply(X{}, sums.at[tall][narrow], a[tall], b[0], b[1]);
                    multiply(X{}, sums.at[tall][narrow + 1], a[tall], b[2], b[3]);
                }
            }
        }
    }

    // Behind the last step of a chunk.
    __device__ __forceinline__ void end_chunk() {
        if constexpr (IS_FP8) sums.scale((const float*)p.linear.scales);
    }

    // Sums over the chunks that this block has.
    __device__ __forceinline__ void run() {
        u32 chunk = p.partials ? blockIdx.y : 0;
        u32 step = sums.step_of(chunk), end_of_chunk = sums.step_of(chunk + 1);
        end_step = p.partials ? end_of_chunk : sums.step_of(p.chunks);
        sums.find_rows();
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
            if (step + 1 < end_of_chunk) continue;
            end_chunk();
            if (p.partials || p.chunks == 1) continue;
            sums.join_chunk(chunk++);
            end_of_chunk = sums.step_of(chunk + 1);
        }
    }
};
