// Sampling: one uniform number, and the token at which the weights of those that may be drawn, in
// ascending order of tokens, exceed that share of their sum.
//
// Few tokens are summed as integers. Many are summed lane by lane over chunks, and warp 0 walks the
// sums of chunks, then the tokens of one: always in the same order.
#pragma once

#include "sample_select.cuh"

// The uniform number in [0, 1) of Philox4x32-10 (Salmon and others, SC 2011): 53 bits that depend on
// seed, choice and output position alone.
__device__ double uniform(u64 seed, u32 choice, u32 position) {
    u32 a = position, b = choice, c = 0, d = 0;
    u32 key_low = (u32)seed, key_high = (u32)(seed >> 32);
    for (u32 round = 0; round < 10; round++) {
        u32 even_high = high_product(0xd2511f53, a), even = 0xd2511f53 * a;
        u32 odd_high = high_product(0xcd9e8d57, c), odd = 0xcd9e8d57 * c;
        a = odd_high ^ b ^ key_low;
        b = odd;
        c = even_high ^ d ^ key_high;
        d = even;
        key_low += 0x9e3779b9;
        key_high += 0xbb67ae85;
    }
    return (double)(((u64)b << 32 | a) >> 11) * 0x1p-53;
}

// Among the listed tokens: the lowest at which the running sum over ascending tokens exceeds the
// target. Sums are integers, so exactly one thread finds it.
__device__ u32 draw_listed(Shared& s, const Limit& limit, double noise) {
    u64 total = limit.sum.weight;
    u64 target = min_of((u64)(noise * (double)total), total - 1);
    u32 i = thread_index();
    if (i < s.list_len && s.keys[i] <= limit.key) {
        u32 token = (u32)s.keys[i];
        u64 before = 0;
        for (u32 j = 0; j < s.list_len; j++) {
            if ((u32)s.keys[j] < token && s.keys[j] <= limit.key) before += s.weights[j];
        }
        if (before <= target && before + s.weights[i] > target) s.token = token;
    }
    sync_block();
    return s.token;
}

// A warp walks items 0..WARP * OWN: the first at which the running sum, from `before` on, exceeds
// `target`; rounding may leave it short, then the last with a value. `before` becomes the sum before.
// Lanes own neighbours. value(item) is 0 beyond the end; one item has more.
template <class Value>
__device__ __forceinline__ u32 walk(u32 own, double target, double& before, Value value) {
    u32 first = lane_index() * own;
    double sum = 0.0;
    for (u32 i = 0; i < own; i++) sum += value(first + i);
    double upto = sum;
    for (u32 distance = 1; distance < WARP; distance *= 2) {
        double below = shuffle_up(upto, distance);
        if (lane_index() >= distance) upto += below;
    }
    double below = shuffle_up(upto, 1);
    double running = lane_index() == 0 ? before : before + below;
    // Lanes that exceed come first, lowest first; then those with a value, highest first.
    u32 order = 2 * WARP;
    if (sum > 0.0) order = before + upto > target ? lane_index() : 2 * WARP - 1 - lane_index();
    order = join_warp(order, Smaller());
    u32 lane = order < WARP ? order : (2 * WARP - 1 - order) % WARP;
    u32 chosen = first;
    if (lane_index() == lane) {
        double next = running;
        for (u32 i = 0; i < own; i++) {
            double more = value(first + i);
            if (more <= 0.0) continue;
            chosen = first + i;
            running = next;
            next += more;
            if (next > target) break;
        }
    }
    before = shuffle(running, lane);
    return shuffle(chosen, lane);
}

// Among all tokens up to `last_key`, by the sums of chunks.
__device__ u32 draw_by_chunks(const Weights& w, Shared& s, u64 last_key, double noise) {
    double target = noise * sum_chunks(w, s, [&](u32 token, float exponent, float weight) {
        return rank_key(exponent, token) <= last_key ? weight : 0.0f;
    });
    if (warp_index() == 0) {
        u32 chunks = div_up(w.row.vocab, CHUNK);
        double before = 0.0;
        u32 chunk = walk(div_up(chunks, WARP), target, before,
                         [&](u32 i) { return i < chunks ? chunk_sums(s)[i] : 0.0; });
        u32 offset = walk(PER_LANE, target, before, [&](u32 i) {
            u32 token = chunk * CHUNK + i;
            if (token >= w.row.vocab) return 0.0;
            float exponent = w.exponent(clean(w.row.logits[token]));
            return rank_key(exponent, token) <= last_key ? (double)w.weight(exponent) : 0.0;
        });
        if (lane_index() == 0) s.token = chunk * CHUNK + offset;
    }
    sync_block();
    return s.token;
}

__device__ u32 draw(const Weights& w, Shared& s, const SlotParams& slot, u32 position) {
    u64 last_key = ALL_KEYS;
    if (slot.top_k > 0 || slot.top_p < 1.0f) {
        clear(s.coarse);
        double total = sum_chunks(w, s, [&](u32, float exponent, float weight) {
            if (exponent > LIKELY) add(s.coarse, coarse_bin(exponent), fixed_point(weight));
            return weight;
        });
        Search search = {};
        Limit limit = select(w, s, slot, total, search);
        if (limit.exists && search.list_before.count == 0) {
            return draw_listed(s, limit, uniform(slot.seed, slot.choice, position));
        }
        if (limit.exists) last_key = limit.key;
    }
    return draw_by_chunks(w, s, last_key, uniform(slot.seed, slot.choice, position));
}
