// What becomes of a tile that several blocks share: each leaves its parts in the workspace, and the one
// that comes last joins all of them and writes the output.
//
// A part is a unit or, on Hopper, what a piece has of the tile. Parts join in ascending order, by the
// arithmetic by which a block joins the units of a tile that it has alone: whoever comes last, the bits
// are the same. So a step needs no launch for it, which a graph would hold whether anything is split
// or not.
#pragma once
#include "attention_tile.cuh"

// Parts that are read at once: their reads do not wait for each other.
constexpr u32 MERGE_AHEAD = 8;

// What the parts before are worth beside a part, and it beside them, each lane's of its own part.
struct PartJoins {
    float keep, gain, sum;

    // Of up to WARP parts of a row from `first` on, behind parts whose largest score is `max`, which
    // becomes that of all of them.
    __device__ __forceinline__ PartJoins(const Attention& p, const Tile& tile, u32 row, Range parts, float& max) {
        u32 own = parts.from + lane_index();
        bool is_there = own < parts.to;
        Partial partial(p, tile, is_there ? own : parts.from);
        float own_max = is_there ? partial.max[row] : minus_infinity(), larger = max_of(max, own_max);
        sum = is_there ? partial.sum[row] : 0.0f;
        for (u32 distance = 1; distance < WARP; distance *= 2) larger = max_of(larger, shuffle_up(larger, distance));
        float before = shuffle_up(larger, 1);
        if (lane_index() == 0) before = max;
        keep = exp_of(before - larger);
        gain = exp_of(own_max - larger);
        max = shuffle(larger, WARP - 1);
    }
};

// Joins parts of a row of the tile, and writes the output's columns from `column` on, of which a lane has
// four.
__device__ __forceinline__ void merge_columns(const Attention& p, const Tile& tile, u32 row, Range parts, u32 column) {
    float max = minus_infinity(), sum = 0.0f, values[4] = {};
    // Lanes beyond the head do as the first one does.
    bool is_there = column < p.head_dim;
    u32 from = is_there ? column : 0;
    ROLLED
    for (u32 first = parts.from; first < parts.to; first += WARP) {
        Range some = {first, min_of(first + WARP, parts.to)};
        PartJoins joins(p, tile, row, some, max);
        ROLLED
        for (u32 ahead = some.from; ahead < some.to; ahead += MERGE_AHEAD) {
            float4 gained[MERGE_AHEAD];
            UNROLL
            for (u32 i = 0; i < MERGE_AHEAD; i++) {
                Partial partial(p, tile, min_of(ahead + i, some.to - 1));
                gained[i] = *(const float4*)(partial.values + row * p.head_dim + from);
            }
            UNROLL
            for (u32 i = 0; i < MERGE_AHEAD; i++) {
                if (ahead + i >= some.to) break;
                u32 lane = ahead + i - some.from;
                Join join = {shuffle(joins.keep, lane), shuffle(joins.gain, lane)};
                sum = joined(join, sum, shuffle(joins.sum, lane));
                values[0] = joined(join, values[0], gained[i].x);
                values[1] = joined(join, values[1], gained[i].y);
                values[2] = joined(join, values[2], gained[i].z);
                values[3] = joined(join, values[3], gained[i].w);
            }
        }
    }
    if (!is_there) return;
    float4 out = {};
    if (parts.from < parts.to) {
        float factor = final_factor(p, tile.query_head(row), max, sum);
        out = {final_value(values[0], factor), final_value(values[1], factor), final_value(values[2], factor),
               final_value(values[3], factor)};
    }
    *(float4*)(tile.output(p, row) + column) = out;
}

// A tile that pieces share, as each sees it that has left its parts.
struct SharedTile {
    Tile tile;

    // The piece is read anew: registers are short until here.
    __device__ __forceinline__ SharedTile(const Attention& p, const Tile& of_piece)
        : tile(p, p.pieces[blockIdx.y], blockIdx.x) {
        tile.num_score_rows = of_piece.num_score_rows;
    }

    // Whether all other pieces have left theirs, too: true in one block. For the threads that wrote the
    // block's; `meet()` is where they wait for each other, `flag` a word of shared memory that nobody
    // reads or writes in between.
    template <class Meet>
    __device__ __forceinline__ bool is_last(const Attention& p, u32* flag, Meet meet) const {
        fence_device();
        meet();
        if (thread_index() == 0) {
            u32* arrivals = p.arrivals + tile.piece.meeting * (p.num_q / p.group) + tile.index;
            bool last = add_atomic(arrivals, 1) + 1 == tile.piece.num_pieces;
            // Zeros, for the next launch.
            if (last) *arrivals = 0;
            *flag = last;
        }
        meet();
        bool last = *flag;
        // Parts are read behind it, past what the first cache level may hold of their places.
        fence_device();
        return last;
    }

    // Writes the output, zeros for padded rows. For warps 0.., so many; each has a row at a time.
    // `parts_of` says which parts of the tile a row joins.
    template <u32 WARPS, class Parts>
    __device__ __forceinline__ void merge(const Attention& p, Parts parts_of) {
        // Parts count from the tile's first.
        u32 rows = tile.piece.num_rows * tile.group;
        tile.piece.partial -= tile.piece.parts_before * rows;
        ROLLED
        for (u32 row = warp_index(); row < rows; row += WARPS) {
            Range parts = {0, 0};
            if (row < tile.num_score_rows) parts = parts_of(row);
            ROLLED
            for (u32 first = 0; first < p.head_dim; first += 4 * WARP) {
                merge_columns(p, tile, row, parts, first + lane_index() * 4);
            }
        }
    }
};
