// Token embeddings: x[t] = table[ids[t]] * scale. x of the grid is the row, y a part of its columns.
#include "quantized.cuh"

constexpr u32 EMBED_THREADS = 128;

// Stands for "the token that the slot sampled last".
constexpr u32 PENDING_TOKEN = 0xffffffff;

struct Embed {
    const void* table;       // [vocab, stride], in the kernel's type
    const void* scales;      // of a quantized table; its stride is in bytes
    const u32* ids;          // [T]
    const u32* row_seq;      // [T] sequence of each row
    const u32* seq_slot;     // [S]
    const u32* last_tokens;  // by slot
    float* x;                // [T, cols]
    u32 cols;
    u32 stride;
    float scale;
};

// Element `col` of row `id` of a table.
template <class T>
struct Plain {
    static __device__ __forceinline__ float value(const Embed& p, u64 id, u32 col) {
        return widen(((const T*)p.table + id * p.stride)[col]);
    }
};

struct Q8 {
    static __device__ __forceinline__ float value(const Embed& p, u64 id, u32 col) {
        float code = (float)((const signed char*)p.table + id * p.stride)[col];
        return code * widen(((const F16*)p.scales)[id * scale_stride(div_up(p.cols, SCALED)) + col / SCALED]);
    }
};

struct Q4 {
    static __device__ __forceinline__ float value(const Embed& p, u64 id, u32 col) {
        u32 block = col / SCALED, element = col % SCALED;
        u32 byte = ((const u8*)p.table + id * p.stride)[block * (SCALED / 2) + element % 16];
        float code = (float)((i32)(byte >> (element / 16 * 4) & 15) - 8);
        return code * widen(((const F16*)p.scales)[id * scale_stride(div_up(p.cols, SCALED)) + block]);
    }
};

struct Fp8 {
    static __device__ __forceinline__ float value(const Embed& p, u64 id, u32 col) {
        return widen_fp8(((const u8*)p.table + id * p.stride)[col]) * ((const float*)p.scales)[id];
    }
};

template <class Table>
__device__ void embed(const Embed& p) {
    u32 row = blockIdx.x;
    u32 id = p.ids[row];
    if (id == PENDING_TOKEN) id = p.last_tokens[p.seq_slot[p.row_seq[row]]];
    float* to = p.x + (u64)row * p.cols;
    u32 col = blockIdx.y * EMBED_THREADS + thread_index();
    if (col < p.cols) to[col] = Table::value(p, (u64)id, col) * p.scale;
}

KERNEL(embed_f32, EMBED_THREADS, Embed, embed<Plain<float>>)
KERNEL(embed_bf16, EMBED_THREADS, Embed, embed<Plain<Bf16>>)
KERNEL(embed_f16, EMBED_THREADS, Embed, embed<Plain<F16>>)
KERNEL(embed_q8_0, EMBED_THREADS, Embed, embed<Q8>)
KERNEL(embed_q4_0, EMBED_THREADS, Embed, embed<Q4>)
KERNEL(embed_fp8, EMBED_THREADS, Embed, embed<Fp8>)
