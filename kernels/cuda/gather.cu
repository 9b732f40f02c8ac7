// out[r] = x[rows[r]]: the rows that need logits. x of the grid is the row, y a part of its columns.
#include "prelude.cuh"

constexpr u32 GATHER_THREADS = 128;

struct Gather {
    const float* x;   // [T, cols]
    const u32* rows;  // [R] rows of x
    float* out;       // [R, cols]
    u32 cols;
};

__device__ void gather(const Gather& p) {
    const float* from = p.x + (u64)p.rows[blockIdx.x] * p.cols;
    float* to = p.out + (u64)blockIdx.x * p.cols;
    u32 col = blockIdx.y * GATHER_THREADS + thread_index();
    if (col < p.cols) to[col] = from[col];
}

KERNEL(gather_rows, GATHER_THREADS, Gather, gather)
