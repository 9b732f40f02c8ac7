// Scores and weighted values of a unit by tensor cores, for 16-bit caches and those of codes, which come
// as bf16.
//
// A warp has 16 score rows. ROW_WARPS warps lie over the rows of a tile; the others share a row's
// work: tokens of a chunk for the scores, columns of a head for the values. So a score is one sum
// over the head's elements in ascending steps of 16, and a value one over tokens in steps of 16 from
// the unit's start, in whatever tile.
// Queries (scaled) and weights are split into a high and a low part of the cache's type, each of
// which meets K or V: 16 bits of an f32's 24 with bf16, 22 with f16. An f16 query is cut off at 65504.
#pragma once
#include "attention_ring.cuh"
#include "halves.cuh"

// DIM is the head size, or 0 for any multiple of 8 up to HEAD_DIM_MAX. Where registers are enough, a lane
// KEEPS_QUERIES: what it brings of them to products.
template <class T, u32 DIM, u32 WARPS_, u32 ROW_WARPS, u32 SLOTS_, bool KEEPS_QUERIES>
struct TensorMath {
    using Element = T;
    static constexpr bool HAS_SCALES = false;
    static constexpr u32 WARPS = WARPS_;
    static constexpr u32 THREADS = WARPS * WARP;
    static constexpr u32 SLOTS = SLOTS_;
    static constexpr u32 CHUNK = 64;
    static constexpr u32 SCORE_ROWS = ROW_WARPS * 16;
    // Warps that share the same 16 rows.
    static constexpr u32 PARTS = WARPS / ROW_WARPS;
    static constexpr u32 PART_TOKENS = CHUNK / PARTS;
    // Tiles of 8 columns of a warp.
    static constexpr u32 TILES = ((DIM ? DIM : HEAD_DIM_MAX) / 8 + PARTS - 1) / PARTS;
    // Of a lane: score rows, and values of them.
    static constexpr u32 ROWS = 2;
    static constexpr u32 VALUES = TILES * 4;

    static __device__ __forceinline__ u32 dim(const Attention& p) { return DIM ? DIM : p.head_dim; }
    // Steps of 16 over a head; the elements of a last half step are zeros.
    static __device__ __forceinline__ u32 steps(u32 head_dim) { return (head_dim + 15) / 16; }
    // An odd number of 16 bytes: eight rows one below the other lie in different banks.
    static __device__ __forceinline__ u32 row_bytes(u32 head_dim) { return steps(head_dim) * 32 + 16; }
    // In a slot of the ring.
    static __device__ __forceinline__ u32 slot_row_bytes(u32 head_dim) { return row_bytes(head_dim); }
    static __device__ __forceinline__ u32 query_bytes(u32 head_dim) {
        return KEEPS_QUERIES ? 0 : SCORE_ROWS * steps(head_dim) * 64;
    }

    static __device__ __forceinline__ u32 first_row() { return warp_index() % ROW_WARPS * 16; }
    static __device__ __forceinline__ u32 part() { return warp_index() / ROW_WARPS; }
    static __device__ __forceinline__ u32 score_row(u32 i) { return first_row() + lane_index() / 4 + i * 8; }
    static __device__ __forceinline__ u32 row_of_value(u32 i) { return i % 4 / 2; }
    static __device__ __forceinline__ u32 column_of_value(u32 i) {
        return (part() + i / 4 * PARTS) * 8 + lane_index() % 4 * 2 + i % 2;
    }

    // What a lane brings to a step of a product: four words of two elements, their high parts and their low.
    struct Fragment {
        uint4 high, low;
    };

    // Scaled queries of a step of 16 rows; zeros beyond rows and head.
    static __device__ __forceinline__ Fragment fragment_of(const Attention& p, const Tile& tile, u32 rows, u32 step,
                                                           u32 lane) {
        u32 high[4], low[4];
        UNROLL
        for (u32 word = 0; word < 4; word++) {
            u32 row = rows * 16 + lane / 4 + word % 2 * 8;
            u32 column = step * 16 + lane % 4 * 2 + word / 2 * 8;
            bool is_there = row < tile.num_score_rows && column < dim(p);
            const float* from = is_there ? tile.query(p, row) + column : nullptr;
            float first = is_there ? rounded_product(from[0], p.scale) : 0.0f;
            float second = is_there ? rounded_product(from[1], p.scale) : 0.0f;
            Halves halves = split<T>(first, second);
            high[word] = halves.high;
            low[word] = halves.low;
        }
        return {{high[0], high[1], high[2], high[3]}, {low[0], low[1], low[2], low[3]}};
    }

    // Queries in the order in which lanes bring them to a product: in registers, or in shared memory, there
    // after the next barrier.
    struct Queries {
        Fragment kept[KEEPS_QUERIES ? DIM / 16 : 1];
        uint4* shared;

        __device__ __forceinline__ Queries(const Attention& p, const Tile& tile, u8* place) : shared((uint4*)place) {
            u32 num_steps = steps(dim(p));
            if constexpr (KEEPS_QUERIES) {
                UNROLL
                for (u32 step = 0; step < DIM / 16; step++) {
                    kept[step] = fragment_of(p, tile, first_row() / 16, step, lane_index());
                }
            } else {
                for (u32 i = thread_index(); i < ROW_WARPS * num_steps * WARP; i += THREADS) {
                    u32 lane = i % WARP, step = i / WARP % num_steps, rows = i / WARP / num_steps;
                    Fragment fragment = fragment_of(p, tile, rows, step, lane);
                    uint4* to = shared + (rows * num_steps + step) * 2 * WARP + lane;
                    to[0] = fragment.high;
                    to[WARP] = fragment.low;
                }
            }
        }

        __device__ __forceinline__ Fragment at(u32 num_steps, u32 step) const {
            if constexpr (KEEPS_QUERIES) {
                return kept[step];
            } else {
                const uint4* from = shared + (first_row() / 16 * num_steps + step) * 2 * WARP + lane_index();
                return {from[0], from[WARP]};
            }
        }
    };

    // What lies behind a head in the slots: the last half step reads it, and copies leave it.
    static __device__ __forceinline__ void clear_slots(const Attention& p, u8* slots) {
        u32 head_dim = dim(p);
        if (head_dim % 16 == 0) return;
        for (u32 row = thread_index(); row < SLOTS * CHUNK; row += THREADS) {
            *(uint4*)(slots + row * row_bytes(head_dim) + head_dim * 2) = {0, 0, 0, 0};
        }
    }

    // Scores of this warp's rows and tokens of a chunk of K, which starts at `column` of the unit.
    static __device__ __forceinline__ void score(const Attention& p, const Tile& tile, const u8* keys,
                                                 const Queries& queries, u8* scores, u32 column) {
        if (first_row() >= tile.num_score_rows) return;
        constexpr u32 GROUPS = PART_TOKENS / 16;
        u32 head_dim = dim(p), lane = lane_index();
        // Of 16 tokens each: high and low part of the first eight, then of the others.
        float sums[GROUPS][4][4] = {};
        u32 token_of_lane = part() * PART_TOKENS + lane / 16 * 8 + lane % 8;
        const u8* from = keys + token_of_lane * row_bytes(head_dim) + lane / 8 % 2 * 16;
        UNROLL
        for (u32 step = 0; step < steps(head_dim); step++) {
            auto [high, low] = queries.at(steps(head_dim), step);
            u32 a[2][4] = {{high.x, high.y, high.z, high.w}, {low.x, low.y, low.z, low.w}};
            UNROLL
            for (u32 i = 0; i < GROUPS; i++) {
                u32 b[4];
                load_matrices(b, from + i * 16 * row_bytes(head_dim) + step * 32);
                UNROLL
                for (u32 j = 0; j < 4; j++) multiply(T{}, sums[i][j], a[j % 2], b[j / 2 * 2], b[j / 2 * 2 + 1]);
            }
        }
        UNROLL
        for (u32 i = 0; i < GROUPS * 4; i++) {
            // Two neighbouring tokens: of eight tokens (i / 2), of one of two rows (i % 2).
            const float* high = sums[i / 4][i % 4 / 2 * 2] + i % 2 * 2;
            const float* low = sums[i / 4][i % 4 / 2 * 2 + 1] + i % 2 * 2;
            u32 token = column + part() * PART_TOKENS + i / 2 * 8 + lane % 4 * 2;
            float* to = (float*)(scores + score_row(i % 2) * SCORE_ROW_BYTES) + token;
            to[0] = high[0] + low[0];
            to[1] = high[1] + low[1];
        }
    }

    // Weights of two neighbouring tokens take the place of their row's scores: high parts of all, then low.
    static __device__ __forceinline__ void put_weights(u8* row, u32 token, float first, float second) {
        Halves halves = split<T>(first, second);
        *(u32*)(row + token * 2) = halves.high;
        *(u32*)(row + UNIT * 2 + token * 2) = halves.low;
    }

    // Adds weighted values of a chunk of V, which starts at `column` of the unit.
    static __device__ __forceinline__ void add_values(const Attention& p, const Tile& tile, const u8* chunk,
                                                      const u8* weights, u32 column, float (&values)[VALUES]) {
        if (first_row() >= tile.num_score_rows) return;
        u32 head_dim = dim(p), lane = lane_index();
        const u8* from = weights + (first_row() + lane % 16) * SCORE_ROW_BYTES + (column + lane / 16 * 8) * 2;
        UNROLL
        for (u32 token = 0; token < CHUNK; token += 32) {
            u32 a[4][4];
            UNROLL
            for (u32 i = 0; i < 4; i++) load_matrices(a[i], from + (token + i / 2 * 16) * 2 + i % 2 * UNIT * 2);
            UNROLL
            for (u32 i = 0; i < TILES; i++) {
                u32 first = (part() + i * PARTS) * 8;
                // A check keeps products from each other's company; wide kernels have no registers to go
                // without.
                bool is_known = ROW_WARPS == 1 && DIM && i < DIM / 8 / PARTS;
                if (!is_known && first >= head_dim) break;
                u32 b[4];
                load_matrices_transposed(b, chunk + (token + lane) * row_bytes(head_dim) + first * 2);
                UNROLL
                for (u32 j = 0; j < 4; j++) multiply(T{}, values + i * 4, a[j], b[j / 2 * 2], b[j / 2 * 2 + 1]);
            }
        }
    }
};

// The same for fp8 caches: slots hold codes, one row after another without a gap. Heads are multiples of
// 16, so that rows of codes are whole pieces.
template <class Math>
struct Coded : Math {
    using Element = Fp8;
    static constexpr bool HAS_SCALES = true;
    static __device__ __forceinline__ u32 slot_row_bytes(u32 head_dim) { return head_dim; }
};
