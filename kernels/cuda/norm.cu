// RMS norm of rows: y = x / sqrt(mean(x^2) + eps) * weight. One block a row.
//
// Each thread sums the squares of its own columns in ascending order, then the block joins them in a
// fixed order, so a row's bits depend on its values and the number of columns alone.
#include "prelude.cuh"

constexpr u32 NORM_THREADS = 256;

struct Norm {
    const float* x;       // [rows, cols]
    const float* weight;  // [cols]
    float* out;           // [rows, cols], may be x
    u32 cols;
    float eps;
};

struct Store {
    static __device__ void put(float* to, float value) { *to = value; }
};

struct Add {
    static __device__ void put(float* to, float value) { *to += value; }
};

template <class Put>
__device__ void norm(const Norm& p) {
    float* scratch = (float*)shared_bytes();
    const float* x = p.x + (u64)blockIdx.x * p.cols;
    float* out = p.out + (u64)blockIdx.x * p.cols;
    float squares = 0.0f;
    for (u32 col = thread_index(); col < p.cols; col += NORM_THREADS) squares = fused(x[col], x[col], squares);
    float mean = block_sum<NORM_THREADS / WARP>(squares, scratch) / (float)p.cols;
    float inverse = 1.0f / sqrt_of(mean + p.eps);
    for (u32 col = thread_index(); col < p.cols; col += NORM_THREADS) {
        Put::put(out + col, x[col] * inverse * p.weight[col]);
    }
}

KERNEL(norm_f32, NORM_THREADS, Norm, (norm<Store>))
KERNEL(norm_add, NORM_THREADS, Norm, (norm<Add>))
