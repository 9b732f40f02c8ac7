// RMS norm of rows: y = x / sqrt(mean(x^2) + eps) * weight. One block a row.
//
// A thread reads AHEAD columns before it uses one: of a few rows, time is what the reads wait for. Each thread sums the squares of its own columns in ascending order, then the block joins them in a
// fixed order, so a row's bits depend on its values and the number of columns alone.
#include "prelude.cuh"

constexpr u32 NORM_THREADS = 512;
constexpr u32 AHEAD = 8;

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

// This thread's next columns; zeros behind the last.
__device__ __forceinline__ void read(const float* from, u32 first, u32 cols, float (&to)[AHEAD]) {
    UNROLL
    for (u32 i = 0; i < AHEAD; i++) {
        u32 col = first + i * NORM_THREADS;
        to[i] = col < cols ? from[col] : 0.0f;
    }
}

template <class Put>
__device__ void norm(const Norm& p) {
    float* scratch = (float*)shared_bytes();
    const float* x = p.x + (u64)blockIdx.x * p.cols;
    float* out = p.out + (u64)blockIdx.x * p.cols;
    float squares = 0.0f;
    for (u32 first = thread_index(); first < p.cols; first += AHEAD * NORM_THREADS) {
        float xs[AHEAD];
        read(x, first, p.cols, xs);
        UNROLL
        for (u32 i = 0; i < AHEAD; i++) squares = fused(xs[i], xs[i], squares);
    }
    float mean = block_sum<NORM_THREADS / WARP>(squares, scratch) / (float)p.cols;
    float inverse = 1.0f / sqrt_of(mean + p.eps);
    for (u32 first = thread_index(); first < p.cols; first += AHEAD * NORM_THREADS) {
        float xs[AHEAD], weights[AHEAD];
        read(x, first, p.cols, xs);
        read(p.weight, first, p.cols, weights);
        UNROLL
        for (u32 i = 0; i < AHEAD; i++) {
            u32 col = first + i * NORM_THREADS;
            if (col < p.cols) Put::put(out + col, xs[i] * inverse * weights[i]);
        }
    }
}

KERNEL(norm_f32, NORM_THREADS, Norm, (norm<Store>))
KERNEL(norm_add, NORM_THREADS, Norm, (norm<Add>))
