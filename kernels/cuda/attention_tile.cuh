// What attention computes with: its parameters, a tile of rows and what they see, the merge of units.
//
// Keys are cut at absolute multiples of UNIT tokens. A unit starts its softmax afresh, units merge in
// ascending order, and a key that a row does not see weighs exactly 0; so the bits of a (row, head)
// come of its position and the cache alone.
#pragma once
#include "prelude.cuh"

constexpr u32 UNIT = 256;
// A score row in shared memory: a unit's scores, and 16 bytes that set rows apart in the banks, of which
// the unit's maximum and sum take eight.
constexpr u32 SCORE_ROW_BYTES = UNIT * 4 + 16;
constexpr u32 HEAD_DIM_MAX = 256;
constexpr u32 NO_SLOT = 0xffffffff;
// As a piece's `partial`: the piece has all units of its rows.
constexpr u32 WHOLE = 0xffffffff;
__device__ __forceinline__ float minus_infinity() { return float_of_bits(0xff800000); }

// A tile (neighbouring rows of one sequence) and the units of it that one block computes.
struct alignas(16) AttentionPiece {
    u32 table;       // first entry of the sequence's blocks in block_table
    u32 num_blocks;  // entries of it
    u32 row;         // first row of the step
    u32 num_rows;    // 0: nothing to do
    u32 position;    // of the first row
    u32 first_unit;
    u32 num_units;   // 0 only if all rows are padding
    u32 partial;     // first row of the workspace for what this piece leaves there, or WHOLE; with it:
    u32 parts_before;  // that the tile's earlier pieces leave
    u32 num_pieces;  // that share the tile
    u32 meeting;     // the tile's
    u32 unused;
};

struct Attention {
    const float* qkv;              // [T, (num_q + 2 * num_kv) * head_dim]: only q is read
    float* out;                    // [T, num_q * head_dim]
    const void* keys;              // this layer's plane
    const void* values;            // this layer's plane
    const u32* block_table;        // the sequences' blocks, by position / block size
    const u32* slots;              // [T] NO_SLOT for padded rows, which end a sequence
    const AttentionPiece* pieces;  // a block's
    const float* sinks;            // [num_q] or null
    float* partials;               // [rows of the workspace, num_q / group] of head_dim + 4, see Partial
    u32* arrivals;                 // [meetings, num_q / group] zeros, before and after
    u32 num_q;
    u32 num_kv;
    u32 group;                     // query heads of a block: those of a KV head, or an equal part of them
    u32 head_dim;
    u32 block_bits;                // log2 of the tokens of a block
    u32 window;                    // keys that a row sees; 0xffffffff: all
    float scale;
    float soft_cap;                // 0: none
};

// Tokens or columns from..to.
struct Range {
    u32 from, to;

    __device__ __forceinline__ bool has(u32 i) const { return from <= i && i < to; }
};

// Rows before the first padded one. All lanes get it.
__device__ __forceinline__ u32 rows_before_padding(const Attention& p, const AttentionPiece& piece) {
    u32 rows = piece.num_rows;
    for (u32 row = lane_index(); row < piece.num_rows; row += WARP) {
        if (p.slots[piece.row + row] == NO_SLOT) rows = min_of(rows, row);
    }
    for (u32 distance = WARP / 2; distance > 0; distance /= 2) rows = min_of(rows, shuffle_xor(rows, distance));
    return rows;
}

// The rows of a piece for a group of query heads that share a KV head. Score row r is head r % group of
// row r / group.
struct Tile {
    AttentionPiece piece;
    u32 index;  // of the group
    u32 group;
    u32 kv_head;
    u32 window;
    u32 num_score_rows = 0;
    Range keys;  // seen by any row

    // Still without rows: `keep_rows` gives them, and keys.to.
    __device__ __forceinline__ Tile(const Attention& p, const AttentionPiece& piece, u32 index)
        : piece(piece), index(index), group(p.group), kv_head(index * p.group / (p.num_q / p.num_kv)), window(p.window) {
        keys = {seen_by(0).from, 0};
    }

    // Keeps the rows before the first padded one.
    __device__ __forceinline__ void keep_rows(const Attention& p) {
        u32 rows = rows_before_padding(p, piece);
        num_score_rows = rows * group;
        if (rows) keys.to = seen_by((rows - 1) * group).to;
    }

    // Keys that a score row sees.
    __device__ __forceinline__ Range seen_by(u32 score_row) const {
        u32 to = piece.position + score_row / group + 1;
        return {to > window ? to - window : 0, to};
    }

    // Columns of a unit that a score row sees; empty, but never beyond the unit, if none.
    __device__ __forceinline__ Range columns(u32 score_row, u32 unit) const {
        Range seen = seen_by(score_row);
        u32 start = unit * UNIT;
        return {min_of(max_of(seen.from, start) - start, UNIT), min_of(max_of(seen.to, start) - start, UNIT)};
    }

    __device__ __forceinline__ u64 query_head(u32 score_row) const { return index * group + score_row % group; }

    __device__ __forceinline__ const float* query(const Attention& p, u32 score_row) const {
        u64 row = piece.row + score_row / group;
        return p.qkv + (row * (p.num_q + 2 * p.num_kv) + query_head(score_row)) * p.head_dim;
    }

    __device__ __forceinline__ float* output(const Attention& p, u32 score_row) const {
        u64 row = piece.row + score_row / group;
        return p.out + (row * p.num_q + query_head(score_row)) * p.head_dim;
    }
};

// What earlier units and the next one are worth in a row's sums: values join as
// fused(gained, gain, kept * keep).
struct Join {
    float keep, gain;
};

__device__ __forceinline__ float joined(Join join, float kept, float gained) {
    return fused(gained, join.gain, kept * join.keep);
}

// Adds a unit to the largest score and the sum of all units before; -infinity and 0 are none.
__device__ __forceinline__ Join join_unit(float& max, float& sum, float unit_max, float unit_sum) {
    float larger = max_of(max, unit_max);
    Join join = {exp_of(max - larger), exp_of(unit_max - larger)};
    max = larger;
    sum = joined(join, sum, unit_sum);
    return join;
}

// What a row's values are multiplied by in the end. A sink is a key without value.
__device__ __forceinline__ float final_factor(const Attention& p, u64 query_head, float max, float sum) {
    if (!p.sinks) return 1.0f / sum;
    float sink = p.sinks[query_head];
    float larger = max_of(max, sink);
    float keep = exp_of(max - larger);
    return keep / fused(sum, keep, exp_of(sink - larger));
}

// The sum with +0 makes -0 to +0: keys of weight 0, which only some tiles add, may have turned it.
__device__ __forceinline__ float final_value(float value, float factor) { return fused(value, factor, 0.0f); }

// The place in the workspace of a part, counted from the piece's first: as many rows as the tile has score rows (padded ones too) for each
// group of heads: values [rows, head_dim], then maxima, then sums. Two more floats of each row are
// nobody's: places begin at multiples of 16 bytes.
struct Partial {
    float* values;
    float* max;
    float* sum;

    __device__ __forceinline__ Partial(const Attention& p, const Tile& tile, u32 part) {
        u32 rows = tile.piece.num_rows * tile.group;
        u64 first = tile.piece.partial + (u64)part * rows;
        values = p.partials + (first * (p.num_q / tile.group) + tile.index * rows) * (p.head_dim + 4);
        max = values + rows * p.head_dim;
        sum = max + rows;
    }
};
