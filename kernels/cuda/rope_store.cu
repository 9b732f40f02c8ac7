// QK norm and rope of q (in place) and k, then K and V into the paged cache. One warp a (row, head).
//
// Heads of a row come in the order of its columns: queries, keys, values. The cache of a layer is
// two planes (K, then V) of [block][kv_head][token][head_dim]; in fp8, scales are behind a head's codes.
#include "kv_fp8.cuh"

constexpr u32 ROPE_WARPS = 4;
constexpr u32 ROPE_THREADS = ROPE_WARPS * WARP;
constexpr u32 HEAD_DIM_MAX = 256;
constexpr u32 NO_SLOT = 0xffffffff;

enum RopeStyle : u32 { HALVES = 0, INTERLEAVED = 1 };

struct RopeStore {
    float* qkv;            // [T, (num_q + 2 * num_kv) * head_dim]
    const float* q_norm;   // [head_dim] or null
    const float* k_norm;   // [head_dim] or null
    const float* q_table;  // [positions, rotary_dim]: cosines, then sines; or null
    const float* k_table;  // the same, or equal to it
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

// Writes a head of one token, whose values the warp has in shared memory: `head` counts over blocks.
template <class T>
struct PutHead {
    static __device__ __forceinline__ void put(const RopeStore& p, void* plane, u64 head, u32 token,
                                               const float* values) {
        T* to = (T*)plane + (head * p.block_size + token) * p.head_dim;
        for (u32 i = lane_index(); i < p.head_dim; i += WARP) to[i] = narrow<T>(values[i]);
    }
};

template <>
struct PutHead<Fp8> {
    static __device__ __forceinline__ void put(const RopeStore& p, void* plane, u64 head, u32 token,
                                               const float* values) {
        u32 magnitude = 0;
        for (u32 i = lane_index(); i < p.head_dim; i += WARP) {
            magnitude = max_of(magnitude, bits_of_float(values[i]) & 0x7fffffff);
        }
        for (u32 distance = WARP / 2; distance > 0; distance /= 2) {
            magnitude = max_of(magnitude, shuffle_xor(magnitude, distance));
        }
        u32 scale = scale_of(magnitude);
        u8* codes = (u8*)plane + head * p.block_size * (p.head_dim + 1);
        if (lane_index() == 0) codes[p.block_size * p.head_dim + token] = (u8)scale;
        u32* to = (u32*)(codes + token * p.head_dim);
        for (u32 i = lane_index(); i < p.head_dim / 4; i += WARP) {
            u32 word = 0;
            for (u32 j = 0; j < 4; j++) {
                u32 code = e4m3_of_float(values[i * 4 + j] * inverse_of(scale));
                word |= (scale == NOT_FINITE_SCALE ? 0 : code) << 8 * j;
            }
            to[i] = word;
        }
    }
};

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
        const float* table = is_query ? p.q_table : p.k_table;
        if (table) turn(values, table + (u64)p.positions[row] * p.rotary_dim, p.rotary_dim, p.style);
    }
    if (is_query) {
        for (u32 i = lane_index(); i < p.head_dim; i += WARP) source[i] = values[i];
        return;
    }
    u32 slot = p.slots[row];
    if (slot == NO_SLOT) return;
    u32 kv_head = head - p.num_q - (is_value ? p.num_kv : 0);
    u64 head_of_blocks = (u64)(slot / p.block_size) * p.num_kv + kv_head;
    PutHead<T>::put(p, is_value ? p.values : p.keys, head_of_blocks, slot % p.block_size, values);
}

KERNEL(rope_store_f32, ROPE_THREADS, RopeStore, rope_store<float>)
KERNEL(rope_store_bf16, ROPE_THREADS, RopeStore, rope_store<Bf16>)
KERNEL(rope_store_f16, ROPE_THREADS, RopeStore, rope_store<F16>)
KERNEL(rope_store_fp8, ROPE_THREADS, RopeStore, rope_store<Fp8>)
