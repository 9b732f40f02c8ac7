// Mixture of experts around the products: the choice of experts, and their weighted sum.
//
// One warp chooses for a row: the largest scores, ties by lower expert, kept in ascending order of
// expert. Outputs are added in that order, so nothing depends on which expert ended first.
#include "prelude.cuh"

constexpr u32 ROUTE_THREADS = WARP;

enum RoutingKind : u32 { SOFTMAX = 0, SIGMOID = 1 };

struct Route {
    const float* scores;  // [T, num_experts] router logits
    u32* experts;         // [T, num_chosen]
    float* weights;       // [T, num_chosen]
    u32 num_experts;
    u32 num_chosen;
    u32 routing;
    u32 renormalize;
};

// The best score that is not taken, and its expert, in all lanes.
__device__ void best_expert(const float* scores, const u8* taken, u32 num_experts, float& best, u32& expert) {
    best = -1.0f;
    expert = num_experts;
    for (u32 e = lane_index(); e < num_experts; e += WARP) {
        if (!taken[e] && scores[e] > best) {
            best = scores[e];
            expert = e;
        }
    }
    for (u32 distance = WARP / 2; distance > 0; distance /= 2) {
        float other = shuffle_xor(best, distance);
        u32 other_expert = shuffle_xor(expert, distance);
        if (other > best || (other == best && other_expert < expert)) {
            best = other;
            expert = other_expert;
        }
    }
}

// Scores as probabilities, in shared memory; 0 for NaN, so that there always is a best one.
__device__ void probabilities(const Route& p, const float* scores, float* to) {
    float largest = -INFINITY_F;
    for (u32 e = lane_index(); e < p.num_experts; e += WARP) largest = max_of(largest, scores[e]);
    largest = warp_max(largest);
    float sum = 0.0f;
    for (u32 e = lane_index(); e < p.num_experts; e += WARP) {
        float value = p.routing == SOFTMAX ? exp_of(scores[e] - largest) : 1.0f / (1.0f + exp_of(-scores[e]));
        to[e] = value == value ? value : 0.0f;
        sum += to[e];
    }
    sum = warp_sum(sum);
    if (p.routing == SOFTMAX) {
        for (u32 e = lane_index(); e < p.num_experts; e += WARP) to[e] = sum > 0.0f ? to[e] / sum : 0.0f;
    }
    sync_warp();
}

__device__ void route(const Route& p) {
    u32* chosen = (u32*)shared_bytes();
    u32* ascending = chosen + p.num_chosen;
    float* scores = (float*)(ascending + p.num_chosen);
    u8* taken = (u8*)(scores + p.num_experts);
    probabilities(p, p.scores + (u64)blockIdx.x * p.num_experts, scores);
    for (u32 e = lane_index(); e < p.num_experts; e += WARP) taken[e] = 0;
    sync_warp();
    for (u32 i = 0; i < p.num_chosen; i++) {
        float best;
        u32 expert;
        best_expert(scores, taken, p.num_experts, best, expert);
        if (lane_index() == 0) {
            taken[expert] = 1;
            chosen[i] = expert;
        }
        sync_warp();
    }
    for (u32 i = lane_index(); i < p.num_chosen; i += WARP) {
        u32 place = 0;
        for (u32 j = 0; j < p.num_chosen; j++) place += chosen[j] < chosen[i];
        ascending[place] = chosen[i];
    }
    sync_warp();
    float sum = 0.0f;
    for (u32 i = 0; i < p.num_chosen; i++) sum += scores[ascending[i]];
    u64 first = (u64)blockIdx.x * p.num_chosen;
    for (u32 i = lane_index(); i < p.num_chosen; i += WARP) {
        float score = scores[ascending[i]];
        p.experts[first + i] = ascending[i];
        p.weights[first + i] = p.renormalize ? score / sum : score;
    }
}

KERNEL(moe_route, ROUTE_THREADS, Route, route)

constexpr u32 COMBINE_THREADS = 128;

struct Combine {
    const float* outer;    // [T, num_chosen, cols] outputs of the chosen experts
    const float* weights;  // [T, num_chosen]
    float* x;              // [T, cols], added to
    u32 cols;
    u32 num_chosen;
};

// x of the grid is the row, y a part of its columns.
__device__ void combine(const Combine& p) {
    u64 row = blockIdx.x;
    const float* weights = p.weights + row * p.num_chosen;
    const float* outer = p.outer + row * p.num_chosen * p.cols;
    u32 col = blockIdx.y * COMBINE_THREADS + thread_index();
    if (col >= p.cols) return;
    float sum = 0.0f;
    for (u32 i = 0; i < p.num_chosen; i++) sum = fused(weights[i], outer[(u64)i * p.cols + col], sum);
    p.x[row * p.cols + col] += sum;
}

KERNEL(moe_combine, COMBINE_THREADS, Combine, combine)
