// Sampling: one token a logits row, its log-probability and rank, and the most likely tokens.
//
// `argmax`: a block finds the best token of one part of one raw row. `sample`: a block takes a chain,
// the rows of one sequence in ascending order, one after another, since each counts its token before
// the next is sampled; it joins the parts of `argmax` and does the rest of a row alone. A greedy row
// that nothing adjusts is then finished without looking at its logits again. `describe`: a block
// gives a row's log-probabilities, once its token is known.
// Steps of a row: penalties, bias, allowed and suppressed tokens; temperature, min-p, top-k, top-p;
// one Philox number and an inverse CDF over ascending tokens. `sample` also stores each slot's last
// token, so that there is no kernel for `advance`. `slot_take` brings parameters and lists to a slot,
// `slot_reset` and `slot_count` begin its counts.
// Sums in floating point go lane by lane over chunks at absolute multiples of CHUNK tokens, all others
// are of integers. So a token depends on its row, parameters and noise alone.
#include "sample_describe.cuh"
#include "sample_draw.cuh"

constexpr float TEMPERATURE_MIN = 1e-5f;

// ---- adjusted logits

__device__ __forceinline__ float penalized(const SlotParams& slot, float logit, u32 word) {
    if (word == 0) return logit;
    u32 generated = word & ~IN_PROMPT;
    logit = logit > 0.0f ? logit / slot.repetition_penalty : logit * slot.repetition_penalty;
    if (generated > 0) {
        // Each step is rounded, as on the CPU, so that equals stay equals.
        logit -= rounded_product(slot.frequency_penalty, (float)generated);
        logit -= slot.presence_penalty;
    }
    return clean(logit);
}

__device__ __forceinline__ const u32* counts_of(const Sample& p, const SlotParams& slot) {
    return slot.counts_row == NO_COUNTS ? nullptr : p.counts + (u64)slot.counts_row * p.padded;
}

// All tokens, penalised.
__device__ void penalize_all(const Row& raw, const SlotParams& slot, const u32* counts, float* out) {
    for_each_chunk(raw, [&](u32 chunk, float (&values)[PER_LANE]) {
        for (u32 piece = 0; piece < PER_LANE / PIECE; piece++) {
            u32 start = piece_start(chunk, piece);
            if (start >= raw.vocab) continue;
            uint4 words = counts ? *(const uint4*)(counts + start) : uint4{0, 0, 0, 0};
            const float* from = values + piece * PIECE;
            *(float4*)(out + start) = {penalized(slot, from[0], words.x), penalized(slot, from[1], words.y),
                                       penalized(slot, from[2], words.z), penalized(slot, from[3], words.w)};
        }
    });
}

// The allowed tokens, penalised; all others impossible.
__device__ void penalize_allowed(const Sample& p, const Row& raw, const SlotParams& slot, const u32* counts,
                                 float* out) {
    float none = minus_infinity();
    for (u32 i = thread_index() * PIECE; i < p.padded; i += SAMPLE_THREADS * PIECE) {
        *(float4*)(out + i) = {none, none, none, none};
    }
    sync_block();
    for (u32 i = thread_index(); i < slot.allowed_len; i += SAMPLE_THREADS) {
        u32 token = p.lists[slot.allowed_start + i];
        if (token < raw.vocab) out[token] = penalized(slot, clean(raw.logits[token]), counts ? counts[token] : 0);
    }
}

__device__ bool is_adjusted(const SlotParams& slot, u32 position) {
    return slot.counts_row != NO_COUNTS || slot.bias_len > 0 || slot.allowed_len > 0 ||
           (position < slot.min_tokens && slot.suppressed_len > 0);
}

// Adds the bias of each token. Entries of one token are neighbours: the thread of the first adds all.
__device__ void add_bias(const u32* entries, u32 len, u32 vocab, float* out) {
    for (u32 i = thread_index(); i < len; i += SAMPLE_THREADS) {
        u32 token = entries[2 * i];
        if (token >= vocab || (i > 0 && entries[2 * i - 2] == token)) continue;
        float logit = out[token];
        for (u32 j = i; j < len && entries[2 * j] == token; j++) logit += float_of_bits(entries[2 * j + 1]);
        out[token] = logit;
    }
}

// The logits that sampling sees, in this chain's scratch. The raw ones stay, for log-probabilities.
__device__ Row adjust(const Sample& p, const Row& raw, const SlotParams& slot, u32 position) {
    float* out = p.adjusted + (u64)blockIdx.x * p.padded;
    const u32* counts = counts_of(p, slot);
    if (slot.allowed_len > 0) {
        penalize_allowed(p, raw, slot, counts, out);
    } else {
        penalize_all(raw, slot, counts, out);
    }
    sync_block();
    add_bias(p.lists + slot.bias_start, slot.bias_len, raw.vocab, out);
    sync_block();
    u32 num_suppressed = position < slot.min_tokens ? slot.suppressed_len : 0;
    for (u32 i = thread_index(); i < num_suppressed; i += SAMPLE_THREADS) {
        u32 token = p.lists[slot.suppressed_start + i];
        if (token < raw.vocab) out[token] = minus_infinity();
    }
    sync_block();
    return {out, raw.vocab};
}

// The token to give when every token is impossible: the lowest that is allowed and not suppressed,
// else the lowest that is allowed. One thread's work: it ends after as many steps as the lists have.
__device__ u32 lowest_possible(const Sample& p, const SlotParams& slot, u32 position) {
    const u32* suppressed = p.lists + slot.suppressed_start;
    const u32* allowed = p.lists + slot.allowed_start;
    u32 num_suppressed = position < slot.min_tokens ? slot.suppressed_len : 0;
    u32 end = slot.allowed_len > 0 ? slot.allowed_len : p.vocab, lowest_allowed = 0;
    bool has_allowed = false;
    for (u32 i = 0; i < end; i++) {
        u32 token = slot.allowed_len > 0 ? allowed[i] : i;
        if (token >= p.vocab) continue;
        bool is_free = true;
        for (u32 j = 0; j < num_suppressed; j++) is_free &= suppressed[j] != token;
        if (is_free) return token;
        if (slot.allowed_len > 0 && !has_allowed) lowest_allowed = token;
        has_allowed = true;
    }
    return lowest_allowed;
}

// ---- rows

__device__ u64 best_of(const Row& row, Shared& s) {
    u64 best = 0;
    for_each_chunk(row, [&](u32 chunk, float (&values)[PER_LANE]) {
        for (u32 i = 0; i < PER_LANE; i++) {
            u32 token = token_of(chunk, i);
            if (token < row.vocab) best = max_of(best, best_key(values[i], token));
        }
    });
    return join_block<SAMPLE_WARPS>(best, Larger(), s.scratch);
}

// The token of a row, in all threads.
__device__ u32 sample_token(const Sample& p, Shared& s, const Row& raw, u64 raw_best, const SlotParams& slot,
                            u32 position) {
    Row row = raw;
    u64 best = raw_best;
    if (is_adjusted(slot, position)) {
        row = adjust(p, raw, slot, position);
        best = best_of(row, s);
    }
    float largest = logit_of_best(best);
    if (largest == minus_infinity()) {
        if (thread_index() == 0) s.token = lowest_possible(p, slot, position);
        sync_block();
        return s.token;
    }
    if (slot.temperature < TEMPERATURE_MIN) return token_of_best(best);
    return draw({row, largest, 1.0f / slot.temperature, slot.min_p}, s, slot, position);
}

__device__ void argmax(const Argmax& p) {
    u64* scratch = (u64*)shared_bytes();
    u32 index = blockIdx.x, part = blockIdx.y;
    if (p.rows[index].kind == NO_ROW) return;
    Row row = raw_row(p.logits, index, p.vocab, p.stride);
    u32 span = div_up(div_up(p.vocab, PIECE), p.parts) * PIECE;
    u32 end = min_of((part + 1) * span, p.vocab);
    u64 best = 0;
    for (u32 start = part * span + thread_index() * PIECE; start < end; start += ARGMAX_THREADS * PIECE) {
        float values[PIECE];
        load_piece(row, start, values);
        for (u32 i = 0; i < PIECE; i++) {
            if (start + i < end) best = max_of(best, best_key(clean(values[i]), start + i));
        }
    }
    best = join_block<ARGMAX_THREADS / WARP>(best, Larger(), scratch);
    if (thread_index() == 0) p.bests[(u64)index * p.parts + part] = best;
}

// Samples row `index` and stores its token; `is_counted` if that is part of the sequence.
__device__ u32 sample_row(const Sample& p, Shared& s, u32 index, const LogitsRow& row, bool is_counted) {
    const SlotParams& slot = p.slots[row.slot];
    Row raw = raw_row(p.logits, index, p.vocab, p.stride);
    u32 token = sample_token(p, s, raw, best_of_parts(p, index), slot, row.position_or_target);
    if (thread_index() == 0) {
        p.out[index] = {token, float_of_bits(0x7fc00000), 0, 0};
        if (row.kind == SAMPLE) p.last_tokens[row.slot] = token;
        if (slot.counts_row != NO_COUNTS && is_counted) p.counts[(u64)slot.counts_row * p.padded + token] += 1;
    }
    return token;
}

__device__ void sample(const Sample& p) {
    Shared& s = *(Shared*)shared_bytes();
    // A token behind a refused draft is no part of the sequence: it is sampled, but not counted.
    bool is_refused = false;
    u32 end = p.chain_start[blockIdx.x + 1];
    for (u32 index = p.chain_start[blockIdx.x]; index < end; index++) {
        LogitsRow row = p.rows[index];
        if (row.kind != SAMPLE && row.kind != VERIFY) continue;
        u32 token = sample_row(p, s, index, row, !is_refused);
        is_refused |= row.kind == VERIFY && row.draft_or_top != token;
        // The next row reads the counts and writes shared memory.
        sync_block();
    }
}

// ---- a sequence takes a slot

__device__ void slot_take(const SlotTakes& p) {
    SlotTake take = p.takes[blockIdx.x];
    const SlotParams& params = p.params[blockIdx.x];
    if (thread_index() == 0) p.slots[take.slot] = params;
    // The lists of a slot lie one behind another, these first.
    u32* lists = p.lists + params.suppressed_start;
    for (u32 i = thread_index(); i < take.len; i += SLOT_THREADS) lists[i] = p.words[take.start + i];
}

__device__ void slot_reset(const SlotReset& p) {
    uint4* row = (uint4*)(p.counts + (u64)p.rows[blockIdx.x] * p.padded);
    for (u32 i = blockIdx.y * SLOT_THREADS + thread_index(); i < p.padded / 4; i += gridDim.y * SLOT_THREADS) {
        row[i] = {0, 0, 0, 0};
    }
}

__device__ void slot_count(const SlotCount& p) {
    SlotTokens slot = p.slots[blockIdx.x];
    u32* row = p.counts + (u64)slot.counts_row * p.padded;
    for (u32 i = thread_index(); i < slot.prompt_len + slot.output_len; i += SLOT_THREADS) {
        u32 token = p.tokens[(u64)slot.start + i];
        if (token >= p.vocab) continue;
        if (i < slot.prompt_len) {
            or_atomic(row + token, IN_PROMPT);
        } else {
            add_atomic(row + token, 1);
        }
    }
}

KERNEL(sample_argmax, ARGMAX_THREADS, Argmax, argmax)
KERNEL(sample_rows, SAMPLE_THREADS, Sample, sample)
KERNEL(sample_describe, SAMPLE_THREADS, Sample, describe)
KERNEL(sample_slot_take, SLOT_THREADS, SlotTakes, slot_take)
KERNEL(sample_slot_reset, SLOT_THREADS, SlotReset, slot_reset)
KERNEL(sample_slot_count, SLOT_THREADS, SlotCount, slot_count)
