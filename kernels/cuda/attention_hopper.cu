// Paged attention of many rows on Hopper, for 16-bit caches and heads of known sizes.
//
// x is the group of heads, y the piece. One thread of a block brings tiles of K and V by the copy engine,
// as far ahead as slots are free; two warpgroups have 64 score rows each. While a warpgroup's matrix
// products are under way for one tile, it makes weights of the scores of the next, and the two take turns
// in asking for products. Weights never leave registers.
// Queries (scaled) and weights are rounded to the cache's type: results differ from those of
// attention_units.cuh, which splits both. Tiles of keys begin at absolute multiples of KEYS and a key that
// a row does not see changes nothing, so the bits of a (row, head) come of its position and the cache, and
// of the keys at which the host split its tile.
#include "attention_merge.cuh"
#include "halves.cuh"
#include "slot_ring.cuh"

struct HopperAttention {
    TensorMap keys;       // the plane as [tokens of all blocks, head_dim], boxes of 64 columns of BOX_MAX tokens
    TensorMap values;     // of a block, or of all that it has
    Attention attention;  // its keys and values are not read
};

// log2 of the tokens of the largest box.
constexpr u32 BOX_BITS_MAX = 6;
constexpr u32 BOX_COLUMNS = 64;
constexpr u32 ROWS_OF_GROUP = 64;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;
// In place of the maximum of a row that saw nothing, in the workspace: merges subtract maxima.
constexpr float LEAST = -1e30f;

// The shape of the work of a block. Heads lie in panels of 64 columns, lines of the last one may end in
// zeros. The last warpgroup brings what the others multiply.
template <class T_, u32 DIM_>
struct HopperHeads {
    using T = T_;
    static constexpr u32 DIM = DIM_;
    static constexpr u32 CONSUMERS = 2;
    static constexpr u32 THREADS = (CONSUMERS + 1) * WARPGROUP;
    static constexpr u32 PANELS = (DIM + BOX_COLUMNS - 1) / BOX_COLUMNS;
    // Tokens of a slot.
    static constexpr u32 KEYS = PANELS > 2 ? 64 : 128;
    static constexpr u32 QUERY_PANEL_BYTES = ROWS_OF_GROUP * LINE_BYTES;
    static constexpr u32 QUERY_BYTES = PANELS * QUERY_PANEL_BYTES;
    static constexpr u32 PANEL_BYTES = KEYS * LINE_BYTES;
    static constexpr u32 SLOT_BYTES = PANELS * PANEL_BYTES;
    static constexpr u32 BEFORE_BYTES = CONSUMERS * QUERY_BYTES;
    static constexpr u32 ROOM = RING_ROOM - BEFORE_BYTES;
    // Slots hold K and V of a tile, then of the next.
    static constexpr u32 SLOTS = ROOM / SLOT_BYTES < 8 ? ROOM / SLOT_BYTES : 8;
    static constexpr u32 RING_BYTES = SLOTS * SLOT_BYTES;
    static constexpr u32 PATCHES_BYTES = 0;
    // Of a thread: scores of a tile, words of weights of a step of 16 tokens, values.
    static constexpr u32 SCORES = KEYS / 2;
    static constexpr u32 STEPS = KEYS / 16;
    static constexpr u32 VALUES = PANELS * 32;
    static_assert(DIM % 16 == 0 && UNIT % KEYS == 0 && SLOTS >= 4 && SLOT_BYTES % LINES_BYTES == 0);
    static_assert(VALUES == 32 || VALUES == 64 || VALUES == 128);
};

// What a block has to do: a tile, and keys of it.
template <class M>
struct Span {
    Tile tile;
    Range keys;   // of the piece that any row sees
    Range steps;  // tiles of keys that hold any of them

    __device__ __forceinline__ explicit Span(const Attention& p) : tile(p, p.pieces[blockIdx.y], blockIdx.x) {
        tile.keep_rows(p);
        u32 first = tile.piece.first_unit * UNIT, end = first + tile.piece.num_units * UNIT;
        keys = {uniform(max_of(tile.keys.from, first)), uniform(min_of(tile.keys.to, end))};
        if (keys.to <= keys.from) keys.to = keys.from;
        u32 first_step = keys.from / M::KEYS;
        steps = {first_step, keys.to == keys.from ? first_step : div_up(keys.to, M::KEYS)};
    }

    __device__ __forceinline__ bool is_whole(u32 step) const {
        return step * M::KEYS >= keys.from && (step + 1) * M::KEYS <= keys.to;
    }
};

// Begins to copy the blocks of a tile that hold a key of the span; nobody touches the others, which may
// be somebody else's or nobody's.
template <class M>
__device__ __forceinline__ void copy_keys(const Attention& p, const Span<M>& span, const TensorMap* map, u32 step,
                                          SlotRing<M>& ring) {
    u32 bits = min_of(p.block_bits, BOX_BITS_MAX), start = step * M::KEYS;
    Range boxes = {max_of(span.keys.from, start) >> bits,
                   (min_of(span.keys.to, start + M::KEYS) + (1u << bits) - 1) >> bits};
    u64* full = ring.full + ring.slot;
    u8* to = ring.bytes(ring.slot);
    wait_phase(ring.empty + ring.slot, ring.parity ^ 1);
    arrive_expecting(full, (boxes.to - boxes.from) * (M::PANELS * LINE_BYTES << bits));
    ROLLED
    for (u32 box = boxes.from; box < boxes.to; box++) {
        u32 token = box << bits;
        u32 block = p.block_table[(u64)span.tile.piece.table + (token >> p.block_bits)];
        u32 row = ((block * p.num_kv + span.tile.kv_head) << p.block_bits) + (token & ((1u << p.block_bits) - 1));
        UNROLL
        for (u32 panel = 0; panel < M::PANELS; panel++) {
            u8* lines = to + panel * M::PANEL_BYTES + (token - start) * LINE_BYTES;
            copy_tile(lines, map, full, panel * BOX_COLUMNS, row);
        }
    }
    ring.step();
}

// One thread's.
template <class M>
__device__ __forceinline__ void produce(const HopperAttention& p, const Span<M>& span, SlotRing<M> ring) {
    for (u32 step = span.steps.from; step < span.steps.to; step++) {
        copy_keys(p.attention, span, &p.keys, step, ring);
        copy_keys(p.attention, span, &p.values, step, ring);
    }
}

__device__ __forceinline__ u32 pair_of(Bf16, float first, float second) { return bf16_pair_of_floats(first, second); }
__device__ __forceinline__ u32 pair_of(F16, float first, float second) { return f16_pair_of_floats(first, second); }

// Meetings of warpgroups: of one by itself, for its turn, and of all that compute.
constexpr u32 OWN_PLACE = 1;
constexpr u32 TURN_PLACE = 3;
constexpr u32 CLEARED_PLACE = 6;
constexpr u32 END_PLACE = 5;

// A warpgroup with its 64 score rows, of which a lane has two, eight apart.
template <class M>
struct Consumer {
    using T = typename M::T;

    const Attention& p;
    const Span<M>& span;
    u32 index;
    u32 lane_row;
    Range seen[2];
    // Keys that all rows of the warpgroup see.
    Range common;
    // Of scores as powers of two; 0: none.
    float cap;
    float max[2];
    float sum[2];
    float values[M::VALUES] = {};
    u32 weights[M::STEPS][4];

    __device__ __forceinline__ Consumer(const Attention& p, const Span<M>& span, u32 index)
        : p(p), span(span), index(index) {
        lane_row = index * ROWS_OF_GROUP + warp_index() % 4 * 16 + lane_index() / 4;
        cap = p.soft_cap * LOG2_E;
        u32 first = index * ROWS_OF_GROUP, last = min_of(first + ROWS_OF_GROUP, span.tile.num_score_rows) - 1;
        common = {span.tile.seen_by(last).from, span.tile.seen_by(first).to};
        UNROLL
        for (u32 i = 0; i < 2; i++) {
            seen[i] = span.tile.seen_by(lane_row + i * 8);
            max[i] = minus_infinity();
            sum[i] = 0.0f;
        }
    }

    // Puts the rows' queries into lines, times what makes scores powers of two: with a cap, twice what
    // its tangent is of.
    __device__ __forceinline__ void load_queries(u8* queries) const {
        float scale = p.soft_cap > 0.0f ? 2.0f * p.scale / p.soft_cap * LOG2_E : p.scale * LOG2_E;
        constexpr u32 PIECES = M::DIM / 8;
        for (u32 i = thread_index() % WARPGROUP; i < ROWS_OF_GROUP * PIECES; i += WARPGROUP) {
            u32 row = i / PIECES, piece = i % PIECES, score_row = index * ROWS_OF_GROUP + row;
            float4 from[2] = {};
            if (score_row < span.tile.num_score_rows) {
                const float4* query = (const float4*)(span.tile.query(p, score_row) + piece * 8);
                from[0] = query[0];
                from[1] = query[1];
            }
            auto pair = [scale](float first, float second) {
                return pair_of(T{}, within_range(first * scale, T{}), within_range(second * scale, T{}));
            };
            uint4 to = {pair(from[0].x, from[0].y), pair(from[0].z, from[0].w), pair(from[1].x, from[1].y),
                        pair(from[1].z, from[1].w)};
            u8* line = queries + piece / 8 * M::QUERY_PANEL_BYTES + row * LINE_BYTES;
            *(uint4*)(line + (piece % 8 ^ row % 8) * 16) = to;
        }
        publish_stores();
        meet_at(OWN_PLACE + index, WARPGROUP);
    }

    // Asks for the scores of a tile.
    __device__ __forceinline__ void score(u64 queries, const u8* slot, float (&scores)[M::SCORES]) const {
        u64 keys = operand(slot);
        UNROLL
        for (u32 i = 0; i < M::DIM / 16; i++) {
            u32 panel = i / 4, at = i % 4 * STEP_BYTES;
            u64 a = moved(queries, panel * M::QUERY_PANEL_BYTES + at), b = moved(keys, panel * M::PANEL_BYTES + at);
            multiply_tiles(T{}, scores, a, b, i > 0);
        }
        commit_products();
    }

    // Asks for the weighted values of a tile.
    __device__ __forceinline__ void add_values(const u8* slot) {
        u64 of_tile = operand(slot, LINES_BYTES, M::PANEL_BYTES);
        UNROLL
        for (u32 i = 0; i < M::STEPS; i++) {
            multiply_tiles<true>(T{}, values, weights[i], moved(of_tile, i * 16 * LINE_BYTES), true);
        }
        commit_products();
    }

    // Values of keys that no row sees become zeros: nobody knows what lies there, and 0 times it may be
    // NaN. Each warpgroup clears its share, and both are done before either multiplies: whether a step is
    // whole, all of a block agree, and whose turn it is was said before.
    __device__ __forceinline__ void clear_unseen(u32 step, u8* slot) const {
        if (span.is_whole(step)) return;
        for (u32 i = thread_index(); i < M::KEYS * M::PANELS * 8; i += M::CONSUMERS * WARPGROUP) {
            if (!span.keys.has(step * M::KEYS + i / 8 % M::KEYS)) *(uint4*)(slot + i * 16) = {0, 0, 0, 0};
        }
        publish_stores();
        meet_at(CLEARED_PLACE, M::CONSUMERS * WARPGROUP);
    }

    // Scores become weights; `keep` is what all before are worth beside them.
    __device__ __forceinline__ void weigh(u32 step, float (&scores)[M::SCORES], float (&keep)[2]) {
        if (cap > 0.0f) {
            // The hyperbolic tangent of x is 1 - 2 / (1 + e^2x).
            UNROLL
            for (u32 i = 0; i < M::SCORES; i++) {
                scores[i] = fused(-2.0f * cap, fast_reciprocal(1.0f + fast_exp2(scores[i])), cap);
            }
        }
        if (step * M::KEYS < common.from || (step + 1) * M::KEYS > common.to) {
            UNROLL
            for (u32 i = 0; i < M::SCORES; i++) {
                u32 key = step * M::KEYS + i / 4 * 8 + lane_index() % 4 * 2 + i % 2;
                if (!seen[i % 4 / 2].has(key)) scores[i] = minus_infinity();
            }
        }
        float largest[4] = {max[0], max[0], max[1], max[1]}, base[2];
        UNROLL
        for (u32 i = 0; i < M::SCORES; i++) largest[i % 4] = larger_of(largest[i % 4], scores[i]);
        UNROLL
        for (u32 i = 0; i < 2; i++) {
            float larger = larger_of(largest[i * 2], largest[i * 2 + 1]);
            larger = larger_of(larger, shuffle_xor(larger, 1));
            larger = larger_of(larger, shuffle_xor(larger, 2));
            // A row that has seen nothing yet.
            base[i] = larger == minus_infinity() ? 0.0f : larger;
            keep[i] = fast_exp2(max[i] - base[i]);
            max[i] = larger;
        }
        float added[4] = {};
        UNROLL
        for (u32 i = 0; i < M::SCORES; i++) {
            scores[i] = fast_exp2(scores[i] - base[i % 4 / 2]);
            added[i % 4] += scores[i];
        }
        UNROLL
        for (u32 i = 0; i < 2; i++) sum[i] = fused(sum[i], keep[i], added[i * 2] + added[i * 2 + 1]);
    }

    // Weights as a product takes them: a lane has of a step's first eight tokens and of the others what
    // it had of their scores.
    __device__ __forceinline__ void put_weights(const float (&scores)[M::SCORES]) {
        UNROLL
        for (u32 i = 0; i < M::STEPS * 4; i++) {
            weights[i / 4][i % 4] = pair_of(T{}, scores[i * 2], scores[i * 2 + 1]);
        }
    }

    __device__ __forceinline__ void attend(SlotRing<M> ring) {
        u8* lines = shared_bytes() + index * M::QUERY_BYTES;
        load_queries(lines);
        if (span.steps.from == span.steps.to) return;
        u64 queries = operand(lines);
        float scores[M::SCORES], keep[2];
        u32 of_keys = ring.take();
        hold_sums(scores);
        fence_products();
        score(queries, ring.bytes(of_keys), scores);
        wait_products<0>();
        hold_sums(scores);
        ring.free(of_keys);
        weigh(span.steps.from, scores, keep);
        put_weights(scores);
        // The first warpgroup begins.
        u32 own_turn = TURN_PLACE + index, next_turn = TURN_PLACE + (index + 1) % M::CONSUMERS;
        if (index + 1 == M::CONSUMERS && span.steps.from + 1 < span.steps.to) pass_by(next_turn, 2 * WARPGROUP);
        u32 of_values = ring.take();
        clear_unseen(span.steps.from, ring.bytes(of_values));
        for (u32 step = span.steps.from + 1; step < span.steps.to; step++) {
            of_keys = ring.take();
            meet_at(own_turn, 2 * WARPGROUP);
            hold_sums(scores);
            hold_sums(values);
            hold_operands(weights);
            fence_products();
            score(queries, ring.bytes(of_keys), scores);
            add_values(ring.bytes(of_values));
            // After the last tile nobody waits for the first warpgroup's turn.
            if (index + 1 < M::CONSUMERS || step + 1 < span.steps.to) pass_by(next_turn, 2 * WARPGROUP);
            wait_products<1>();
            hold_sums(scores);
            ring.free(of_keys);
            weigh(step, scores, keep);
            // Taken here, so that weights are made before the wait for products: across a loop the
            // assembler moves neither.
            hold_sums(scores);
            u32 of_next = ring.take();
            clear_unseen(step, ring.bytes(of_next));
            wait_products<0>();
            hold_sums(values);
            ring.free(of_values);
            of_values = of_next;
            UNROLL
            for (u32 i = 0; i < M::VALUES; i++) values[i] *= keep[i % 4 / 2];
            put_weights(scores);
        }
        hold_sums(values);
        hold_operands(weights);
        fence_products();
        add_values(ring.bytes(of_values));
        wait_products<0>();
        hold_sums(values);
        ring.free(of_values);
    }

    // What values are multiplied by in the end. A sink is a key without value.
    __device__ __forceinline__ float factor_of(const Tile& tile, u32 row, float max, float sum) const {
        if (!p.sinks) return 1.0f / sum;
        float sink = p.sinks[tile.query_head(row)] * LOG2_E;
        float larger = larger_of(max, sink), keep = fast_exp2(max - larger);
        return keep / fused(sum, keep, fast_exp2(sink - larger));
    }

    // Writes the output, zeros for padded rows; or leaves the piece in the workspace, for the last of them.
    __device__ __forceinline__ void finish() {
        // Made anew: registers are short until here.
        Tile tile(p, p.pieces[blockIdx.y], blockIdx.x);
        tile.num_score_rows = span.tile.num_score_rows;
        bool is_partial = tile.piece.partial != WHOLE;
        Partial partial(p, tile, 0);
        UNROLL
        for (u32 i = 0; i < 2; i++) {
            sum[i] += shuffle_xor(sum[i], 1);
            sum[i] += shuffle_xor(sum[i], 2);
            u32 row = lane_row + i * 8;
            if (row >= tile.piece.num_rows * tile.group) continue;
            bool is_padded = row >= tile.num_score_rows;
            float factor = is_padded ? 0.0f : is_partial ? 1.0f : factor_of(tile, row, max[i], sum[i]);
            float* to = is_partial ? partial.values + row * M::DIM : tile.output(p, row);
            UNROLL
            for (u32 j = 0; j < M::DIM / 8; j++) {
                const float* two = values + j * 4 + i * 2;
                float2 out = {final_value(two[0], factor), final_value(two[1], factor)};
                if (is_padded) out = {0.0f, 0.0f};
                *(float2*)(to + j * 8 + lane_index() % 4 * 2) = out;
            }
            if (is_partial && lane_index() % 4 == 0) {
                partial.max[row] = larger_of(max[i] * LN_2, LEAST);
                partial.sum[row] = sum[i];
            }
        }
        if (!is_partial) return;
        // Where queries were, which nobody reads any more.
        auto meet = [] { meet_at(END_PLACE, M::CONSUMERS * WARPGROUP); };
        SharedTile shared(p, tile);
        if (!shared.is_last(p, (u32*)shared_bytes(), meet)) return;
        Range parts = {0, tile.piece.num_pieces};
        shared.merge<M::CONSUMERS * (WARPGROUP / WARP)>(p, [parts](u32) { return parts; });
    }
};

template <class M>
__device__ void attention_hopper(const HopperAttention& p) {
    Span<M> span(p.attention);
    run_ring<M>([&](SlotRing<M> ring) { produce(p, span, ring); },
                [&](SlotRing<M> ring, u32 warpgroup) {
                    Consumer<M> consumer(p.attention, span, warpgroup);
                    consumer.attend(ring);
                    consumer.finish();
                });
}

#define ATTENTION_HOPPER(name, T, dim)                                                                           \
    HOPPER_KERNEL_READING_AHEAD(attention_hopper_##name, (HopperHeads<T, dim>::THREADS), HopperAttention, fetch_maps, \
                                (attention_hopper<HopperHeads<T, dim>>))

ATTENTION_HOPPER(bf16_64, Bf16, 64)
ATTENTION_HOPPER(bf16_80, Bf16, 80)
ATTENTION_HOPPER(bf16_96, Bf16, 96)
ATTENTION_HOPPER(bf16_128, Bf16, 128)
ATTENTION_HOPPER(bf16_256, Bf16, 256)
ATTENTION_HOPPER(f16_64, F16, 64)
ATTENTION_HOPPER(f16_80, F16, 80)
ATTENTION_HOPPER(f16_96, F16, 96)
ATTENTION_HOPPER(f16_128, F16, 128)
ATTENTION_HOPPER(f16_256, F16, 256)
