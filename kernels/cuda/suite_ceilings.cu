// What a card can do at most: reads, copies, products of matrices, multiply-adds, an empty launch.
//
// For the hardware suite, whose other figures are shares of these. Each thread has several independent
// accesses or chains under way; sums go to `out`, so that nothing is left out as unused.
#include "prelude.cuh"

constexpr u32 CEILING_THREADS = 256;
// Accesses of 16 bytes that a thread begins before it uses the first.
constexpr u32 AHEAD = 8;
// Independent chains of arithmetic of a thread.
constexpr u32 CHAINS = 8;

struct Ceiling {
    const uint4* from;
    uint4* to;
    float* out;   // [threads of the grid]
    u64 pieces;   // of 16 bytes; whole turns of the grid, AHEAD pieces a thread
    u32 turns;    // of arithmetic
};

__device__ __forceinline__ u64 thread_of_grid() { return (u64)blockIdx.x * CEILING_THREADS + thread_index(); }

template <class Use>
__device__ __forceinline__ void for_each_piece(const Ceiling& p, Use use) {
    u64 step = (u64)gridDim.x * CEILING_THREADS;
    for (u64 first = thread_of_grid(); first < p.pieces; first += step * AHEAD) {
        uint4 held[AHEAD];
        UNROLL
        for (u32 i = 0; i < AHEAD; i++) held[i] = load_once(p.from + first + i * step);
        UNROLL
        for (u32 i = 0; i < AHEAD; i++) use(first + i * step, held[i]);
    }
}

__device__ void read(const Ceiling& p) {
    u32 sum = 0;
    for_each_piece(p, [&](u64, uint4 v) { sum ^= v.x ^ v.y ^ v.z ^ v.w; });
    // As good as never; the compiler cannot know.
    if (sum == 0x5eed5eed) p.out[thread_of_grid()] = 1.0f;
}

__device__ void copy(const Ceiling& p) {
    for_each_piece(p, [&](u64 at, uint4 v) { p.to[at] = v; });
}

// 2 * 16 * 8 * 16 operations a product and warp.
__device__ void products(const Ceiling& p) {
    float c[CHAINS][4] = {};
    u32 lane = lane_index(), one = 0x3f803f80;
    u32 a[4] = {one, one + (lane << 16), one, one + lane};
    for (u32 turn = 0; turn < p.turns; turn++) {
        UNROLL
        for (u32 i = 0; i < CHAINS; i++) multiply_bf16(c[i][0], c[i][1], c[i][2], c[i][3], a, one + i, one + lane);
    }
    float sum = 0.0f;
    UNROLL
    for (u32 i = 0; i < CHAINS; i++) sum += c[i][0] + c[i][1] + c[i][2] + c[i][3];
    p.out[thread_of_grid()] = sum;
}

// Two operations a multiply-add and thread.
__device__ void multiply_adds(const Ceiling& p) {
    float c[CHAINS], x = (float)lane_index() * 0x1p-10f;
    UNROLL
    for (u32 i = 0; i < CHAINS; i++) c[i] = (float)i;
    for (u32 turn = 0; turn < p.turns; turn++) {
        UNROLL
        for (u32 i = 0; i < CHAINS; i++) c[i] = fused(c[i], x, 1.0f);
    }
    float sum = 0.0f;
    UNROLL
    for (u32 i = 0; i < CHAINS; i++) sum += c[i];
    p.out[thread_of_grid()] = sum;
}

__device__ void nothing(const Ceiling&) {}

KERNEL(ceiling_read, CEILING_THREADS, Ceiling, read)
KERNEL(ceiling_copy, CEILING_THREADS, Ceiling, copy)
KERNEL(ceiling_products, CEILING_THREADS, Ceiling, products)
KERNEL(ceiling_multiply_adds, CEILING_THREADS, Ceiling, multiply_adds)
KERNEL(ceiling_nothing, CEILING_THREADS, Ceiling, nothing)
