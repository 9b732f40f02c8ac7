// Log-probabilities of a row, always of the raw logits: of one token, its rank, and the most likely
// tokens. A block takes the row; its sum of exponentials goes lane by lane over chunks, then over
// lanes and warps.
#pragma once

#include "sample_row.cuh"

// Shared memory of `describe`; a word of 8 bytes for each chunk lies behind it.
struct DescribeShared {
    u64 scratch[SAMPLE_WARPS];
};
__device__ __forceinline__ u64* chunk_bests(DescribeShared& s) { return (u64*)(&s + 1); }

// The best key of this warp's `chunk` that is below `bound`.
__device__ u64 best_of_chunk(const Row& row, u32 chunk, u64 bound) {
    u64 best = 0;
    for (u32 piece = 0; piece < PER_LANE / PIECE; piece++) {
        u32 start = piece_start(chunk, piece);
        float values[PIECE];
        load_piece(row, start, values);
        for (u32 i = 0; i < PIECE; i++) {
            u64 key = best_key(clean(values[i]), start + i);
            if (start + i < row.vocab && key < bound) best = max_of(best, key);
        }
    }
    return join_warp(best, Larger());
}

// The most likely tokens, best first, from the best of each chunk. One warp: the chunk of the best
// gives its next best, and so on.
__device__ void list_top(const Row& row, DescribeShared& s, double log_sum, TopToken* top, u32 num_top) {
    u64* bests = chunk_bests(s);
    u32 chunks = div_up(row.vocab, CHUNK);
    for (u32 place = 0; place < num_top; place++) {
        u64 best = 0;
        for (u32 chunk = lane_index(); chunk < chunks; chunk += WARP) best = max_of(best, bests[chunk]);
        best = join_warp(best, Larger());
        u32 token = token_of_best(best), chunk = token / CHUNK;
        u64 next = best_of_chunk(row, chunk, best);
        if (lane_index() == 0) {
            bests[chunk] = next;
            top[place] = {token, (float)((double)logit_of_best(best) - log_sum)};
        }
        sync_warp();
    }
}

// The log-probability and rank of `token` by the raw logits, and the most likely tokens.
__device__ void describe_token(const Sample& p, DescribeShared& s, u32 index, u32 token, u32 num_top) {
    Row row = raw_row(p.logits, index, p.vocab, p.stride);
    num_top = min_of(num_top, min_of(p.max_top, p.vocab));
    float largest = logit_of_best(best_of_parts(p, index)), logit = clean(row.logits[token]);
    double sum = 0.0;
    u32 before = 0;
    for_each_chunk(row, [&](u32 chunk, float (&values)[PER_LANE]) {
        float chunk_sum = 0.0f;
        u64 chunk_best = 0;
        for (u32 i = 0; i < PER_LANE; i++) {
            u32 other = token_of(chunk, i);
            chunk_sum += exp_of(values[i] - largest);
            before += other < token ? values[i] >= logit : values[i] > logit;
            if (num_top > 0 && other < row.vocab) chunk_best = max_of(chunk_best, best_key(values[i], other));
        }
        sum += (double)chunk_sum;
        if (num_top > 0) {
            chunk_best = join_warp(chunk_best, Larger());
            if (lane_index() == 0) chunk_bests(s)[chunk] = chunk_best;
        }
    });
    sum = join_block<SAMPLE_WARPS>(sum, Plus(), s.scratch);
    before = join_block<SAMPLE_WARPS>(before, Plus(), s.scratch);
    // If every token is impossible, so is each.
    double log_sum = largest == minus_infinity() ? 0.0 : (double)largest + log_of(sum);
    if (thread_index() == 0) p.out[index] = {token, (float)((double)logit - log_sum), before + 1, num_top};
    if (warp_index() == 0) list_top(row, s, log_sum, p.top + (u64)index * p.max_top, num_top);
}

__device__ void describe(const Sample& p) {
    DescribeShared& s = *(DescribeShared*)shared_bytes();
    LogitsRow row = p.rows[blockIdx.x];
    if (row.kind == NO_ROW) return;
    if (row.kind == PROMPT_LOGPROB) {
        describe_token(p, s, blockIdx.x, row.position_or_target, row.draft_or_top);
    } else if (p.slots[row.slot].num_logprobs != NO_LOGPROBS) {
        describe_token(p, s, blockIdx.x, p.out[blockIdx.x].token, p.slots[row.slot].num_logprobs);
    }
}
