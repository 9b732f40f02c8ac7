// Blocks of a KV cache become what others are: a prefix hit that ends within a block goes on in a copy.
//
// As fast as memory is: each thread has several pieces of 16 bytes under way. x of the grid is a part of
// a block, y a plane (keys or values of a layer), z the copy.
#include "prelude.cuh"

constexpr u32 COPY_THREADS = 256;
// Pieces that a thread reads before it writes the first.
constexpr u32 COPY_AHEAD = 4;

struct BlockCopy {
    u32 from;
    u32 to;
};

struct KvCopy {
    uint4* cache;             // [planes, blocks, pieces]
    const BlockCopy* copies;  // blocks; none is copied to twice, or from and to
    u32 blocks;
    u32 pieces;               // of 16 bytes: all KV heads of a block in a plane
};

__device__ void copy_blocks(const KvCopy& p) {
    BlockCopy copy = p.copies[blockIdx.z];
    u64 plane = (u64)blockIdx.y * p.blocks;
    const uint4* from = p.cache + (plane + copy.from) * p.pieces;
    uint4* to = p.cache + (plane + copy.to) * p.pieces;
    u32 first = blockIdx.x * (COPY_THREADS * COPY_AHEAD) + thread_index();
    uint4 held[COPY_AHEAD] = {};
    UNROLL
    for (u32 i = 0; i < COPY_AHEAD; i++) {
        u32 at = first + i * COPY_THREADS;
        if (at < p.pieces) held[i] = from[at];
    }
    UNROLL
    for (u32 i = 0; i < COPY_AHEAD; i++) {
        u32 at = first + i * COPY_THREADS;
        if (at < p.pieces) to[at] = held[i];
    }
}

KERNEL(kv_copy, COPY_THREADS, KvCopy, copy_blocks)
