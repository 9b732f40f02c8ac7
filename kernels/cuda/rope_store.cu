// QK norm and rope of q (in place) and k, then K and V into the paged cache. One warp a (row, head).
//
// Heads of a row come in the order of its columns: queries, keys, values. The cache of a layer is
// two planes (K, then V) of [block][kv_head][token][head_dim].
#include "prelude.cuh"

constexpr u32 ROPE_WARPS = 4;
constexpr u32 ROPE_THREADS = ROPE_WARPS * WARP;
constexpr u32 HEAD_DIM_MAX = 256;
constexpr u32 NO_SLOT = 0xffffffff;

enum RopeStyle : u32 { HALVES = 0, INTERLEAVED = 1 };

struct RopeStore {
    float* qkv;            // [T, (num_q + 2 * num_kv) * head_dim]
    const float* q_norm;   // [head_dim] or null
    const float* k_norm;   // [head_dim] or null
    const float* table;    // [positions, rotary_dim]: cosines, then sines; or null
    const u32* positions;  // [T]
    const u32* slots;      // [T] block * block_size + offset, or NO_SLOT
    void* keys;            // this layer's plane
    void* values;          // this layer's plane
    u32 num_q;
    u32 num_kv;
    u32 head_dim;
    u32 block_size;
    u32 rotary_dim;
    u32 style;
    float q_eps;
    float k_eps;
};

__device__ void head_norm(float* head, const float* weight, u32 head_dim, float eps) {
    float squares = 0.0f;
    for (u32 i = lane_index(); i < head_dim; i += WARP) squares = fused(head[i], head[i], squares);
    float inverse = 1.0f / sqrt_of(warp_sum(squares) / (float)head_dim + eps);
    for (u32 i = lane_index(); i < head_dim; i += WARP) head[i] = head[i] * inverse * weight[i];
    sync_warp();
}

__device__ void turn(float* head, const float* table, u32 rotary_dim, u32 style) {
    u32 half = rotary_dim / 2;
    for (u32 i = lane_index(); i < half; i += WARP) {
        u32 a = style == HALVES ? i : 2 * i;
        u32 b = style == HALVES ? i + half : 2 * i + 1;
        float cosine = table[i], sine = table[half + i], x = head[a], y = head[b];
        head[a] = x * cosine - y * sine;
        head[b] = y * cosine + x * sine;
    }
    sync_warp();
}

template <class T>
__device__ void rope_store(const RopeStore& p) {
    u32 heads = p.num_q + 2 * p.num_kv;
    u32 head = blockIdx.y * ROPE_WARPS + warp_index(), row = blockIdx.x;
    if (head >= heads) return;
    float* source = p.qkv + ((u64)row * heads + head) * p.head_dim;
    float* values = (float*)shared_bytes() + warp_index() * HEAD_DIM_MAX;
    for (u32 i = lane_index(); i < p.head_dim; i += WARP) values[i] = source[i];
    sync_warp();

    bool is_query = head < p.num_q, is_value = head >= p.num_q + p.num_kv;
    if (!is_value) {
        const float* norm = is_query ? p.q_norm : p.k_norm;
        if (norm) head_norm(values, norm, p.head_dim, is_query ? p.q_eps : p.k_eps);
        if (p.table) turn(values, p.table + (u64)p.positions[row] * p.rotary_dim, p.rotary_dim, p.style);
    }
    if (is_query) {
        for (u32 i = lane_index(); i < p.head_dim; i += WARP) source[i] = values[i];
        return;
    }
    u32 slot = p.slots[row];
    if (slot == NO_SLOT) return;
    u32 kv_head = head - p.num_q - (is_value ? p.num_kv : 0);
    u64 token = ((u64)(slot / p.block_size) * p.num_kv + kv_head) * p.block_size + slot % p.block_size;
    T* to = (T*)(is_value ? p.values : p.keys) + token * p.head_dim;
    for (u32 i = lane_index(); i < p.head_dim; i += WARP) to[i] = narrow<T>(values[i]);
}

KERNEL(rope_store_f32, ROPE_THREADS, RopeStore, rope_store<float>)
KERNEL(rope_store_bf16, ROPE_THREADS, RopeStore, rope_store<Bf16>)
KERNEL(rope_store_f16, ROPE_THREADS, RopeStore, rope_store<F16>)
