// Scores and weighted values of a unit in f32 arithmetic, for f32 caches of any head size.
//
// A score is one lane's sum over the head in ascending order, a value one lane's sum over tokens in
// ascending order. Lanes lie over tokens and rows for scores, over columns for values.
#pragma once
#include "attention_ring.cuh"

struct PlainMath {
    using Element = float;
    static constexpr bool HAS_SCALES = false;
    static constexpr u32 WARPS = 8;
    static constexpr u32 THREADS = WARPS * WARP;
    static constexpr u32 SLOTS = 2;
    static constexpr u32 CHUNK = 32;
    static constexpr u32 SCORE_ROWS = 16;
    static constexpr u32 PART_TOKENS = CHUNK / WARPS;
    // Of a lane: pieces of 4 columns, score rows, and values of them.
    static constexpr u32 PIECES = HEAD_DIM_MAX / 4 / WARP;
    static constexpr u32 ROWS = SCORE_ROWS / WARPS;
    static constexpr u32 VALUES = ROWS * PIECES * 4;

    static __device__ __forceinline__ u32 dim(const Attention& p) { return p.head_dim; }
    // An odd number of 16 bytes: eight rows one below the other lie in different banks.
    static __device__ __forceinline__ u32 row_bytes(u32 head_dim) { return head_dim * 4 + 16; }
    static __device__ __forceinline__ u32 slot_row_bytes(u32 head_dim) { return row_bytes(head_dim); }
    static __device__ __forceinline__ u32 query_bytes(u32 head_dim) { return SCORE_ROWS * head_dim * 4; }

    static __device__ __forceinline__ u32 score_row(u32 i) { return warp_index() + i * WARPS; }
    static __device__ __forceinline__ u32 row_of_value(u32 i) { return i / (PIECES * 4); }
    static __device__ __forceinline__ u32 column_of_value(u32 i) {
        return (lane_index() + i / 4 % PIECES * WARP) * 4 + i % 4;
    }

    // Scaled queries, in shared memory after the next barrier; zeros beyond rows.
    struct Queries {
        const float4* shared;

        __device__ __forceinline__ Queries(const Attention& p, const Tile& tile, u8* place) : shared((float4*)place) {
            for (u32 row = warp_index(); row < SCORE_ROWS; row += WARPS) {
                float* to = (float*)place + row * p.head_dim;
                for (u32 i = lane_index(); i < p.head_dim; i += WARP) {
                    to[i] = row < tile.num_score_rows ? rounded_product(tile.query(p, row)[i], p.scale) : 0.0f;
                }
            }
        }
    };

    static __device__ __forceinline__ void clear_slots(const Attention&, u8*) {}

    // Scores of this warp's tokens of a chunk of K, which starts at `column` of the unit.
    static __device__ __forceinline__ void score(const Attention& p, const Tile&, const u8* keys,
                                                 const Queries& queries, u8* scores, u32 column) {
        // Lanes over the tokens, and over every ROW_STEP-th row.
        constexpr u32 ROW_STEP = WARP / PART_TOKENS, LANE_ROWS = SCORE_ROWS / ROW_STEP;
        u32 token = warp_index() * PART_TOKENS + lane_index() % PART_TOKENS, row = lane_index() / PART_TOKENS;
        const float4* key = (const float4*)(keys + token * row_bytes(p.head_dim));
        const float4* query = queries.shared + row * (p.head_dim / 4);
        float sums[LANE_ROWS] = {};
        for (u32 i = 0; i < p.head_dim / 4; i++) {
            float4 k = key[i];
            UNROLL
            for (u32 j = 0; j < LANE_ROWS; j++) {
                float4 q = query[j * ROW_STEP * (p.head_dim / 4) + i];
                sums[j] = fused(q.w, k.w, fused(q.z, k.z, fused(q.y, k.y, fused(q.x, k.x, sums[j]))));
            }
        }
        UNROLL
        for (u32 j = 0; j < LANE_ROWS; j++) {
            *((float*)(scores + (row + j * ROW_STEP) * SCORE_ROW_BYTES) + column + token) = sums[j];
        }
    }

    // Weights of two neighbouring tokens take the place of their scores.
    static __device__ __forceinline__ void put_weights(u8* row, u32 token, float first, float second) {
        ((float*)row)[token] = first;
        ((float*)row)[token + 1] = second;
    }

    // Adds weighted values of a chunk of V, which starts at `column` of the unit.
    static __device__ __forceinline__ void add_values(const Attention& p, const Tile& tile, const u8* chunk,
                                                      const u8* weights, u32 column, float (&values)[VALUES]) {
        if (warp_index() >= tile.num_score_rows) return;
        UNROLL
        for (u32 i = 0; i < PIECES; i++) {
            if (column_of_value(i * 4) >= p.head_dim) break;
            const u8* from = chunk + column_of_value(i * 4) * 4;
            for (u32 token = 0; token < CHUNK; token++) {
                float4 v = *(const float4*)(from + token * row_bytes(p.head_dim));
                UNROLL
                for (u32 row = 0; row < ROWS; row++) {
                    float weight = *((const float*)(weights + score_row(row) * SCORE_ROW_BYTES) + column + token);
                    float* to = values + (row * PIECES + i) * 4;
                    to[0] = fused(weight, v.x, to[0]);
                    to[1] = fused(weight, v.y, to[1]);
                    to[2] = fused(weight, v.z, to[2]);
                    to[3] = fused(weight, v.w, to[3]);
                }
            }
        }
    }
};
