// Attention of one piece for one group of heads, by one block: units of keys, merged or left in the
// workspace.
//
// The query heads of the group, of all rows of the tile, are its score rows. For each unit: scores
// of all its keys, their softmax, weighted values. A piece with all units of its tile merges them in
// registers and writes the output, others leave each unit in the workspace for the last of them. Both
// merge by the same arithmetic in ascending order, so how the host cuts tiles and pieces changes no
// bit.
//
// The scores of a (row, key) and the values of a (row, column) are sums whose order depends on the
// place of the key in its unit and on the head size; maximum and sum of a unit go over lanes by the
// place in the unit (see attention_tensor.cuh and attention_plain.cuh).
#pragma once
#include "attention_merge.cuh"
#include "attention_plain.cuh"
#include "attention_tensor.cuh"

// Shared memory, one part after another: slots of the ring, queries, scores:
// Ring::bytes + query_bytes + SCORE_ROWS * SCORE_ROW_BYTES bytes.
template <class Math>
struct Parts {
    u8* slots;
    u8* queries;
    u8* scores;

    __device__ __forceinline__ explicit Parts(u32 head_dim) {
        slots = shared_bytes();
        queries = slots + Ring<Math>::bytes(head_dim);
        scores = queries + Math::query_bytes(head_dim);
    }

    // A unit's maximum and sum of a row lie behind its scores, where rows are set apart.
    __device__ __forceinline__ float& max(u32 row) const {
        return *(float*)(scores + row * SCORE_ROW_BYTES + UNIT * 4);
    }
    __device__ __forceinline__ float& sum(u32 row) const { return *(&max(row) + 1); }
};

// Scores become weights, a warp a row. A lane has pairs of neighbouring tokens, 64 apart.
template <class Math>
__device__ __forceinline__ void softmax(const Attention& p, const Tile& tile, u32 unit, const Parts<Math>& parts) {
    constexpr u32 COUNT = UNIT / WARP;
    for (u32 row = warp_index(); row < tile.num_score_rows; row += Math::WARPS) {
        u8* place = parts.scores + row * SCORE_ROW_BYTES;
        const float* scores = (const float*)place + lane_index() * 2;
        Range seen = tile.columns(row, unit);
        float weights[COUNT];
        float max = minus_infinity(), sum = 0.0f;
        UNROLL
        for (u32 i = 0; i < COUNT; i++) {
            u32 at = i / 2 * (2 * WARP) + i % 2;
            float score = seen.has(lane_index() * 2 + at) ? scores[at] : minus_infinity();
            if (p.soft_cap > 0.0f) score = rounded_product(p.soft_cap, tanh_of(score / p.soft_cap));
            weights[i] = score;
            max = seen.has(lane_index() * 2 + at) ? max_of(max, score) : max;
        }
        max = warp_max(max);
        UNROLL
        for (u32 i = 0; i < COUNT; i++) {
            bool is_seen = seen.has(lane_index() * 2 + i / 2 * (2 * WARP) + i % 2);
            weights[i] = is_seen ? exp_of(weights[i] - max) : 0.0f;
            sum += weights[i];
        }
        sum = warp_sum(sum);
        // The weights lie over the scores, which other lanes must have read.
        sync_warp();
        UNROLL
        for (u32 i = 0; i < COUNT; i += 2) {
            Math::put_weights(place, lane_index() * 2 + i * WARP, weights[i], weights[i + 1]);
        }
        if (lane_index() == 0) {
            parts.max(row) = max;
            parts.sum(row) = sum;
        }
    }
}

// A lane's part of all units so far.
template <class Math>
struct State {
    float max[Math::ROWS];
    float sum[Math::ROWS];
    float values[Math::VALUES] = {};

    __device__ __forceinline__ State() {
        UNROLL
        for (u32 i = 0; i < Math::ROWS; i++) {
            max[i] = minus_infinity();
            sum[i] = 0.0f;
        }
    }

    // Adds a unit to the rows that see any of it.
    __device__ __forceinline__ void merge(const Tile& tile, u32 unit, const Parts<Math>& parts,
                                          const float (&gained)[Math::VALUES]) {
        Join join[Math::ROWS];
        UNROLL
        for (u32 i = 0; i < Math::ROWS; i++) {
            u32 row = Math::score_row(i);
            Range seen = tile.columns(row, unit);
            join[i] = {1.0f, 0.0f};
            if (row < tile.num_score_rows && seen.from < seen.to) {
                join[i] = join_unit(max[i], sum[i], parts.max(row), parts.sum(row));
            }
        }
        UNROLL
        for (u32 i = 0; i < Math::VALUES; i++) {
            Join of_row = join[Math::row_of_value(i)];
            values[i] = joined(of_row, values[i], gained[i]);
        }
    }

    // Writes the output, zeros for padded rows.
    __device__ __forceinline__ void finish(const Attention& p, const Tile& tile) {
        float factor[Math::ROWS];
        UNROLL
        for (u32 i = 0; i < Math::ROWS; i++) {
            u32 row = Math::score_row(i);
            factor[i] = row < tile.num_score_rows ? final_factor(p, tile.query_head(row), max[i], sum[i]) : 0.0f;
        }
        UNROLL
        for (u32 i = 0; i < Math::VALUES; i++) {
            u32 row = Math::score_row(Math::row_of_value(i)), column = Math::column_of_value(i);
            if (row >= tile.piece.num_rows * tile.group || column >= Math::dim(p)) continue;
            bool is_padded = row >= tile.num_score_rows;
            tile.output(p, row)[column] = is_padded ? 0.0f : final_value(values[i], factor[Math::row_of_value(i)]);
        }
    }
};

// Leaves a unit in the workspace.
template <class Math>
__device__ __forceinline__ void put_partial(const Attention& p, const Tile& tile, u32 unit, const Parts<Math>& parts,
                                            const float (&values)[Math::VALUES]) {
    Partial partial(p, tile, unit - tile.piece.first_unit);
    UNROLL
    for (u32 i = 0; i < Math::VALUES; i++) {
        u32 row = Math::score_row(Math::row_of_value(i)), column = Math::column_of_value(i);
        if (row >= tile.num_score_rows || column >= Math::dim(p)) continue;
        partial.values[row * Math::dim(p) + column] = values[i];
    }
    u32 row = thread_index();
    if (row >= tile.num_score_rows) return;
    partial.max[row] = parts.max(row);
    partial.sum[row] = parts.sum(row);
}

template <class Math>
__device__ __forceinline__ void attention_units(const Attention& p) {
    AttentionPiece piece = p.pieces[blockIdx.y];
    if (piece.num_rows == 0) return;
    Tile tile(p, piece, blockIdx.x);
    Parts<Math> parts(Math::dim(p));
    Ring<Math> ring(p, tile, parts.slots);
    tile.keep_rows(p);
    Range units = ring.start();
    Math::clear_slots(p, parts.slots);
    typename Math::Queries queries(p, tile, parts.queries);
    State<Math> state;
    for (u32 unit = units.from; unit < units.to; unit++) {
        Range chunks = ring.chunks(unit);
        for (u32 chunk = chunks.from; chunk < chunks.to; chunk++) {
            const u8* keys = ring.take(chunk);
            Math::score(p, tile, keys, queries, parts.scores, chunk * Math::CHUNK % UNIT);
        }
        sync_block();
        softmax<Math>(p, tile, unit, parts);
        // The weights are there for all threads when the first values are.
        float values[Math::VALUES] = {};
        for (u32 chunk = chunks.from; chunk < chunks.to; chunk++) {
            const u8* slot = ring.take(chunk);
            Math::add_values(p, tile, slot, parts.scores, chunk * Math::CHUNK % UNIT, values);
        }
        if (piece.partial == WHOLE) {
            state.merge(tile, unit, parts, values);
        } else {
            put_partial<Math>(p, tile, unit, parts, values);
        }
    }
    if (piece.partial == WHOLE) return state.finish(p, tile);
    SharedTile shared(p, tile);
    if (!shared.is_last(p, (u32*)parts.scores, sync_block)) return;
    // A tile's first part is its first unit.
    u32 first = shared.tile.piece.first_unit - shared.tile.piece.parts_before;
    shared.merge<Math::WARPS>(p, [&](u32 row) {
        Range seen = tile.seen_by(row);
        return Range{seen.from / UNIT - first, div_up(seen.to, UNIT) - first};
    });
}

// Tiles of up to 16 score rows, four warps; slots so that shared memory of 99 KiB is enough.
template <class T, u32 DIM, u32 SLOTS>
using Narrow = TensorMath<T, DIM, 4, 1, SLOTS, false>;
// Tiles of up to 64 score rows, eight warps: for long queries, K and V are read a fourth as often.
template <class T, u32 DIM, u32 SLOTS>
using Wide = TensorMath<T, DIM, 8, 4, SLOTS, (DIM && DIM <= 128)>;
