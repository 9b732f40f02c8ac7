// Sampling: what the kernels are given, and what they write. The host mirrors these structs.
#pragma once

#include "prelude.cuh"

constexpr u32 ARGMAX_THREADS = 256;
constexpr u32 SAMPLE_WARPS = 32;
constexpr u32 SAMPLE_THREADS = SAMPLE_WARPS * WARP;
constexpr u32 SLOT_THREADS = 256;

constexpr u32 NO_LOGPROBS = 0xffffffff;
constexpr u32 NO_COUNTS = 0xffffffff;
// A word of counts: how often the token was generated, and this bit if the prompt has it.
constexpr u32 IN_PROMPT = 0x80000000;

enum RowKind : u32 { SAMPLE = 0, PROMPT_LOGPROB = 1, VERIFY = 2, NO_ROW = 3 };

// A row whose logits are needed; NO_ROW pads.
struct LogitsRow {
    u32 kind;
    u32 slot;                // not read of a PROMPT_LOGPROB
    u32 position_or_target;  // SAMPLE, VERIFY: tokens generated before this one; PROMPT_LOGPROB: target
    u32 draft_or_top;        // VERIFY: drafted token; PROMPT_LOGPROB: length of the top list
};

// How the sequence of a slot samples. Lists lie in `Sample::lists`, from word `start`.
struct SlotParams {
    u64 seed;
    u32 choice;
    float temperature;         // below 1e-5: greedy
    u32 top_k;                 // 0: all
    float top_p;               // 1: all
    float min_p;               // 0: all
    float frequency_penalty;
    float presence_penalty;
    float repetition_penalty;  // 1: off
    u32 min_tokens;            // `suppressed` are impossible before this output position
    u32 num_logprobs;          // or NO_LOGPROBS
    u32 counts_row;            // row of `counts`, or NO_COUNTS if no penalty is on
    u32 suppressed_start;      // tokens
    u32 suppressed_len;
    u32 bias_start;            // pairs of words: token (ascending), bits of a float
    u32 bias_len;              // pairs
    u32 allowed_start;         // tokens
    u32 allowed_len;           // 0: all are allowed
    u32 unused;
};

struct SampledRow {
    u32 token;
    float logprob;  // NaN unless asked for
    u32 rank;       // 0 unless asked for
    u32 top_len;
};

struct TopToken {
    u32 token;
    float logprob;
};

struct Argmax {
    const float* logits;    // [R, stride]
    const LogitsRow* rows;  // [R]
    u64* bests;             // [R, parts], written
    u32 vocab;
    u32 stride;
    u32 parts;
};

// Of `sample` and of `describe` behind it.
struct Sample {
    const float* logits;      // [R, stride]
    const u64* bests;         // [R, parts] of `argmax`
    const LogitsRow* rows;    // [R]
    const u32* chain_start;   // [chains + 1] first row of each chain; an empty chain pads
    const SlotParams* slots;  // by slot
    const u32* lists;         // of all slots
    u32* counts;              // [count rows, padded]
    float* adjusted;          // [chains, padded] scratch
    u32* last_tokens;         // by slot, written for SAMPLE rows
    SampledRow* out;          // [R]
    TopToken* top;            // [R, max_top]
    u32 vocab;
    u32 stride;
    u32 padded;               // vocab, up to a multiple of 4
    u32 parts;
    u32 max_top;
};

// A sequence takes a slot; its parameters are at the same place of another array.
struct SlotTake {
    u32 slot;
    u32 start;  // its lists, into `words`
    u32 len;
    u32 unused;
};

struct SlotTakes {
    const SlotTake* takes;     // [gridDim.x]
    const SlotParams* params;  // [gridDim.x]
    const u32* words;
    SlotParams* slots;         // by slot, written
    u32* lists;                // of all slots, written
};

struct SlotReset {
    u32* counts;      // [count rows, padded]
    const u32* rows;  // [gridDim.x] rows to clear
    u32 padded;
};

struct SlotTokens {
    u32 counts_row;
    u32 start;  // into `tokens`: prompt, then output
    u32 prompt_len;
    u32 output_len;
};

struct SlotCount {
    u32* counts;              // [count rows, padded]
    const u32* tokens;
    const SlotTokens* slots;  // [gridDim.x]
    u32 vocab;
    u32 padded;
};
