// Token embeddings: x[t] = table[ids[t]] * scale. x of the grid is the row, y a part of its columns.
#include "prelude.cuh"

constexpr u32 EMBED_THREADS = 128;

// Stands for "the token that the slot sampled last".
constexpr u32 PENDING_TOKEN = 0xffffffff;

struct Embed {
    const void* table;       // [vocab, stride], in the kernel's type
    const u32* ids;          // [T]
    const u32* row_seq;      // [T] sequence of each row
    const u32* seq_slot;     // [S]
    const u32* last_tokens;  // by slot
    float* x;                // [T, cols]
    u32 cols;
    u32 stride;
    float scale;
};

template <class T>
__device__ void embed(const Embed& p) {
    u32 row = blockIdx.x;
    u32 id = p.ids[row];
    if (id == PENDING_TOKEN) id = p.last_tokens[p.seq_slot[p.row_seq[row]]];
    const T* from = (const T*)p.table + (u64)id * p.stride;
    float* to = p.x + (u64)row * p.cols;
    u32 col = blockIdx.y * EMBED_THREADS + thread_index();
    if (col < p.cols) to[col] = widen(from[col]) * p.scale;
}

KERNEL(embed_f32, EMBED_THREADS, Embed, embed<float>)
KERNEL(embed_bf16, EMBED_THREADS, Embed, embed<Bf16>)
KERNEL(embed_f16, EMBED_THREADS, Embed, embed<F16>)
