// Paged attention of decode, prefill and mixed steps: for heads of any size, and the merge of split rows.
//
// attention_units_*: x is the group of heads, y the piece, see attention_units.cuh. Kernels for heads of
// known sizes are in attention_sized.cu.
// attention_merge: x is the query head, y the tile whose units several pieces left in the workspace. A
// thread has columns of each of its rows and adds the units in ascending order.
// attention_merge_pieces: the same where each piece left one part for all of its units. The tile's
// units are then the pieces' numbers.
#include "attention_units.cuh"

// Units that attention_merge reads ahead: their reads do not wait for each other.
constexpr u32 MERGE_AHEAD = 12;
constexpr u32 MERGE_THREADS = 128;

template <bool BY_PIECE>
__device__ void merge_split(const Attention& p) {
    AttentionPiece piece = p.pieces[blockIdx.y];
    if (piece.num_rows == 0) return;
    Tile tile(p, piece, blockIdx.x / p.group);
    tile.keep_rows(p);
    for (u32 row = 0; row < piece.num_rows; row++) {
        u32 score_row = row * p.group + blockIdx.x % p.group;
        bool is_padded = score_row >= tile.num_score_rows;
        Range seen = tile.seen_by(score_row);
        Range units = {seen.from / UNIT, div_up(seen.to, UNIT)};
        if (BY_PIECE) units = {piece.first_unit, piece.first_unit + piece.num_units};
        if (is_padded) units.to = units.from;
        for (u32 column = thread_index(); column < p.head_dim; column += MERGE_THREADS) {
            float max = minus_infinity(), sum = 0.0f, value = 0.0f;
            for (u32 first = units.from; first < units.to; first += MERGE_AHEAD) {
                float unit_max[MERGE_AHEAD], unit_sum[MERGE_AHEAD], unit_value[MERGE_AHEAD];
                UNROLL
                for (u32 i = 0; i < MERGE_AHEAD; i++) {
                    Partial partial(p, tile, min_of(first + i, units.to - 1));
                    unit_max[i] = partial.max[score_row];
                    unit_sum[i] = partial.sum[score_row];
                    unit_value[i] = partial.values[score_row * p.head_dim + column];
                }
                UNROLL
                for (u32 i = 0; i < MERGE_AHEAD; i++) {
                    if (first + i >= units.to) continue;
                    Join join = join_unit(max, sum, unit_max[i], unit_sum[i]);
                    value = joined(join, value, unit_value[i]);
                }
            }
            float factor = is_padded ? 0.0f : final_factor(p, tile.query_head(score_row), max, sum);
            tile.output(p, score_row)[column] = is_padded ? 0.0f : final_value(value, factor);
        }
    }
}

KERNEL(attention_units_bf16, 4 * WARP, Attention, (attention_units<Narrow<Bf16, 0, 2>>))
KERNEL(attention_units_f16, 4 * WARP, Attention, (attention_units<Narrow<F16, 0, 2>>))
KERNEL(attention_units_f32, PlainMath::THREADS, Attention, (attention_units<PlainMath>))
KERNEL(attention_merge, MERGE_THREADS, Attention, (merge_split<false>))
KERNEL(attention_merge_pieces, MERGE_THREADS, Attention, (merge_split<true>))
