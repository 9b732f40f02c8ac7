// Sampling: the shared memory of a row, what each token weighs, and which tokens may be drawn.
//
// Nothing is sorted over the vocabulary: a histogram finds the range of rank keys in which a limit
// falls, again and again until it holds few enough keys to list. Histograms add integers (weights in
// fixed point), whose order does not matter, so that a limit depends on the row alone.
#pragma once

#include "sample_row.cuh"

// Below this exponent a token weighs nothing: e to its power would be denormal.
constexpr float EXPONENT_MIN = -87.33654f;
// Limits are first looked for among tokens above e^-10 of the best: mostly few, and enough.
constexpr float LIKELY = -10.0f;
// top_p is an f32 and weights carry rounding, so a sum this close to it has reached it.
constexpr double TOP_P_SLACK = 1e-6;

// Exponents lie in -88..=0. Any power of two will do: bins only guide the search.
constexpr float BINS_PER_UNIT = 16.0f;
constexpr u32 COARSE_BINS = 88 * 16;
constexpr u32 FINE_BINS = 1024;
// Keys that are listed and ranked by comparing each with each.
constexpr u32 LIST_MAX = 256;
// Weights (at most 1) in fixed point: 2^20 of them fit a u64.
constexpr float FIXED_ONE = 8796093022208.0f;  // 2^43

constexpr u64 ALL_KEYS = ~0ull;

// Tokens and their weights in fixed point.
struct Tally {
    u32 count;
    u64 weight;

    __device__ Tally operator+(const Tally& other) const { return {count + other.count, weight + other.weight}; }
};

// Where a selection ends: at so many tokens, or at so much weight.
struct Goal {
    bool by_count;
    u32 count;
    u64 weight;

    __device__ bool is_reached(const Tally& sum) const {
        return by_count ? sum.count >= count : sum.weight >= weight;
    }
    // Whether the step from `before` to `after` reaches it. Of steps that are not empty, in one
    // order from the first on, exactly one does, or none.
    __device__ bool is_crossed(const Tally& before, const Tally& after) const {
        return after.count > before.count && is_reached(after) && !(before.count > 0 && is_reached(before));
    }
};

// ---- shared memory

template <u32 N>
struct Bins {
    u32 counts[N];
    u32 low[N];   // weight modulo 2^32
    u32 high[N];  // and the rest

    __device__ Tally operator[](u32 bin) const { return {counts[bin], (u64)high[bin] << 32 | low[bin]}; }
};

// The bin in which a goal is reached.
struct FoundBin {
    bool exists;
    u32 bin;
    u32 count;
    Tally before;
};

// The last token that is kept: its rank key, and the tally up to and with it.
struct Limit {
    bool exists;
    u64 key;
    Tally sum;
};

struct Shared {
    Bins<COARSE_BINS> coarse;
    Bins<FINE_BINS> fine;
    u64 keys[LIST_MAX];
    u64 weights[LIST_MAX];
    u64 scratch[SAMPLE_WARPS];
    Tally tallies[SAMPLE_WARPS];
    FoundBin found;
    Limit limit;
    u32 list_len;
    u32 token;
};

// The host asks for as many bytes, and for a word of 8 bytes for each chunk behind them.
static_assert(sizeof(Shared) == 34120, "the host knows another size");
__device__ __forceinline__ double* chunk_sums(Shared& s) { return (double*)(&s + 1); }

template <u32 N>
__device__ __forceinline__ void clear(Bins<N>& bins) {
    u32* words = (u32*)&bins;
    for (u32 i = thread_index(); i < 3 * N; i += SAMPLE_THREADS) words[i] = 0;
    sync_block();
}

template <u32 N>
__device__ __forceinline__ void add(Bins<N>& bins, u32 bin, u64 weight) {
    u32 low = (u32)weight, before = add_atomic(&bins.low[bin], low);
    u32 high = (u32)(weight >> 32) + (before + low < before);
    add_atomic(&bins.counts[bin], 1);
    if (high) add_atomic(&bins.high[bin], high);
}

// The tallies of all threads below.
__device__ __forceinline__ Tally tally_below(Shared& s, Tally own) {
    Tally sum = own;
    for (u32 distance = 1; distance < WARP; distance *= 2) {
        Tally below = {shuffle_up(sum.count, distance), shuffle_up(sum.weight, distance)};
        if (lane_index() >= distance) sum = sum + below;
    }
    if (lane_index() == WARP - 1) s.tallies[warp_index()] = sum;
    sync_block();
    Tally before = {sum.count - own.count, sum.weight - own.weight};
    for (u32 warp = 0; warp < warp_index(); warp++) before = before + s.tallies[warp];
    return before;
}

// The bin in which `goal` is reached, if `before` comes before the first.
template <u32 N>
__device__ __forceinline__ FoundBin find_bin(Shared& s, const Bins<N>& bins, const Goal& goal, Tally before) {
    constexpr u32 OWN = (N + SAMPLE_THREADS - 1) / SAMPLE_THREADS;
    u32 first = thread_index() * OWN, end = min_of(first + OWN, N);
    sync_block();
    if (thread_index() == 0) s.found.exists = false;
    Tally own = {};
    for (u32 bin = first; bin < end; bin++) own = own + bins[bin];
    Tally sum = before + tally_below(s, own);
    for (u32 bin = first; bin < end; bin++) {
        Tally next = sum + bins[bin];
        if (goal.is_crossed(sum, next)) s.found = {true, bin, bins.counts[bin], sum};
        sum = next;
    }
    sync_block();
    return s.found;
}

// ---- weights and rank keys

// e to a power in EXPONENT_MIN..=0, after Cephes (`expf`), relative error below 2.5e-7. The CPU's own
// sequence of operations, each rounded as written: the same bits as there, and in every pass here,
// since the search for a limit relies on passes that agree.
__device__ __forceinline__ float weight_of(float exponent) {
    // 1.5 * 2^23: adding it rounds to the nearest integer, held in the low mantissa bits.
    constexpr float SHIFT = 12582912.0f;
    float shifted = fused(exponent, 1.44269504f, SHIFT), n = shifted - SHIFT;
    // Less n * ln 2, with ln 2 in two parts: the first product is exact.
    float r = fused(n, 2.1219444e-4f, fused(n, -0.6933594f, exponent));
    float p = fused(1.9875691e-4f, r, 1.3982e-3f);
    p = fused(p, r, 8.333452e-3f);
    p = fused(p, r, 4.1665796e-2f);
    p = fused(p, r, 0.16666665f);
    p = fused(p, r, 0.5f);
    p = fused(p, rounded_product(r, r), r + 1.0f);
    return rounded_product(p, float_of_bits((bits_of_float(shifted) << 23) + 0x3f800000));
}

// What each token of a row weighs: e^((logit - largest) / temperature), nothing under min-p.
struct Weights {
    Row row;
    float largest;
    float scale;
    float min_p;

    __device__ __forceinline__ float exponent(float logit) const { return rounded_product(logit - largest, scale); }
    __device__ __forceinline__ float weight(float exponent) const {
        float weight = weight_of(max_of(exponent, EXPONENT_MIN));
        bool is_kept = exponent >= EXPONENT_MIN && !(weight < min_p && exponent < 0.0f);
        return is_kept ? weight : 0.0f;
    }
};

__device__ __forceinline__ u64 fixed_point(float weight) { return (u64)(weight * FIXED_ONE); }

// Ascending keys are descending exponents, then ascending tokens.
__device__ __forceinline__ u64 rank_key(float exponent, u32 token) {
    // `0 - x` and not `-x`: the best exponent is +0 and must not become -0, whose bits are large.
    return (u64)bits_of_float(0.0f - exponent) << 32 | token;
}

// Bin b holds exponents of (-(b + 1), -b] in units of a bin, exactly, so its keys are neighbours.
__device__ __forceinline__ u32 coarse_bin(float exponent) {
    return min_of((u32)(-exponent * BINS_PER_UNIT), COARSE_BINS - 1);
}
__device__ __forceinline__ u64 coarse_start(u32 bin) {
    return (u64)bits_of_float((float)bin / BINS_PER_UNIT) << 32;
}

// Calls visit(token, exponent, weight) for the tokens whose key is in low..high.
template <class Visit>
__device__ __forceinline__ void for_each_between(const Weights& w, u64 low, u64 high, Visit visit) {
    for_each_chunk(w.row, [&](u32 chunk, float (&values)[PER_LANE]) {
        for (u32 i = 0; i < PER_LANE; i++) {
            float exponent = w.exponent(values[i]);
            u64 key = rank_key(exponent, token_of(chunk, i));
            // An exponent of -inf has keys above all others that are looked for.
            if (key < low || key >= high) continue;
            float weight = w.weight(exponent);
            if (weight > 0.0f) visit(key, exponent, weight);
        }
    });
}

// The sum of each chunk's weights, of which keep(token, exponent, weight) says what stays; the sum
// of the sums in all threads.
template <class Keep>
__device__ __forceinline__ double sum_chunks(const Weights& w, Shared& s, Keep keep) {
    for_each_chunk(w.row, [&](u32 chunk, float (&values)[PER_LANE]) {
        float sum = 0.0f;
        for (u32 i = 0; i < PER_LANE; i++) {
            float exponent = w.exponent(values[i]), weight = w.weight(exponent);
            if (weight > 0.0f) sum += keep(token_of(chunk, i), exponent, weight);
        }
        double total = join_warp((double)sum, Plus());
        if (lane_index() == 0) chunk_sums(s)[chunk] = total;
    });
    sync_block();
    double total = 0.0;
    for (u32 chunk = lane_index(); chunk < div_up(w.row.vocab, CHUNK); chunk += WARP) total += chunk_sums(s)[chunk];
    return join_warp(total, Plus());
}

// ---- selection: which tokens may be drawn

// Rank keys low..high, of which `count` are there, behind those of `before`.
struct Range {
    u64 low;
    u64 high;
    u32 count;
    Tally before;
};

// How far the search for limits has come; the same in all threads.
struct Search {
    bool has_unlikely;  // the coarse bins hold all tokens, not only the likely ones
    bool has_list;      // keys and weights of a range are listed, behind those of `list_before`
    Tally list_before;
};

// One of FINE_BINS parts of `range`, in which the goal is reached.
__device__ Range narrowed(const Weights& w, Shared& s, const Goal& goal, const Range& range) {
    // Keys of the highest exponent end with the vocabulary.
    u64 high = min_of(range.high, ((range.high - 1) >> 32 << 32) + w.row.vocab);
    u32 shift = 0;
    while ((high - 1 - range.low) >> shift >= FINE_BINS) shift++;
    clear(s.fine);
    for_each_between(w, range.low, high, [&](u64 key, float, float weight) {
        add(s.fine, (u32)((key - range.low) >> shift), fixed_point(weight));
    });
    FoundBin found = find_bin(s, s.fine, goal, range.before);
    if (!found.exists) return {};
    u64 low = range.low + ((u64)found.bin << shift);
    return {low, min_of(high, low + (1ull << shift)), found.count, found.before};
}

// Lists the keys of `range`, and all before them if there is room.
__device__ Tally list_keys(const Weights& w, Shared& s, const Range& range) {
    bool is_first = range.before.count + range.count <= LIST_MAX;
    sync_block();
    if (thread_index() == 0) s.list_len = 0;
    sync_block();
    for_each_between(w, is_first ? 0 : range.low, range.high, [&](u64 key, float, float weight) {
        u32 place = add_atomic(&s.list_len, 1);
        s.keys[place] = key;
        s.weights[place] = fixed_point(weight);
    });
    sync_block();
    return is_first ? Tally{0, 0} : range.before;
}

// The listed key that reaches the goal. The list is in no order: each key is compared with each.
__device__ Limit listed_limit(Shared& s, const Goal& goal, const Tally& list_before) {
    u32 i = thread_index();
    if (i < s.list_len) {
        Tally before = list_before;
        u64 key = s.keys[i];
        for (u32 j = 0; j < s.list_len; j++) {
            if (s.keys[j] < key) before = before + Tally{1, s.weights[j]};
        }
        Tally sum = before + Tally{1, s.weights[i]};
        if (goal.is_crossed(before, sum)) s.limit = {true, key, sum};
    }
    sync_block();
    Limit limit = s.limit;
    sync_block();
    return limit;
}

__device__ FoundBin find_coarse(const Weights& w, Shared& s, const Goal& goal, Search& search) {
    FoundBin found = find_bin(s, s.coarse, goal, Tally{0, 0});
    if (found.exists || search.has_unlikely) return found;
    search.has_unlikely = true;
    u64 likely_end = rank_key(LIKELY, 0);
    for_each_between(w, likely_end, ALL_KEYS, [&](u64, float exponent, float weight) {
        add(s.coarse, coarse_bin(exponent), fixed_point(weight));
    });
    return find_bin(s, s.coarse, goal, Tally{0, 0});
}

// The token that reaches `goal`, if all weights do.
__device__ Limit find_limit(const Weights& w, Shared& s, const Goal& goal, Search& search) {
    bool is_listed = search.has_list && (search.list_before.count == 0 || !goal.is_reached(search.list_before));
    if (!is_listed) {
        FoundBin found = find_coarse(w, s, goal, search);
        if (!found.exists) return {};
        Range range = {coarse_start(found.bin), coarse_start(found.bin + 1), found.count, found.before};
        // A part in which the goal is not reached would be narrowed for ever.
        while (range.count > LIST_MAX) range = narrowed(w, s, goal, range);
        if (range.count == 0) return {};
        search.list_before = list_keys(w, s, range);
        search.has_list = true;
    }
    return listed_limit(s, goal, search.list_before);
}

// The last token that top-k, then top-p keep. The coarse bins hold the likely tokens.
__device__ Limit select(const Weights& w, Shared& s, const SlotParams& slot, double total, Search& search) {
    Limit limit = {};
    double kept = total * (double)FIXED_ONE;
    if (slot.top_k > 0) {
        limit = find_limit(w, s, {true, slot.top_k, 0}, search);
        if (limit.exists) kept = (double)limit.sum.weight;
    }
    if (slot.top_p < 1.0f) {
        double target = kept * (double)slot.top_p * (1.0 - TOP_P_SLACK);
        u64 whole = (u64)target;
        Limit by_weight = find_limit(w, s, {false, 0, whole + ((double)whole < target)}, search);
        if (by_weight.exists) limit = by_weight;
    }
    return limit;
}
