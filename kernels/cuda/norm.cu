// RMS norm of rows: y = x / sqrt(mean(x^2) + eps) * weight. One block a row.
//
// A row's bits depend on its values and the number of columns alone.
#include "row_norm.cuh"

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
    float inverse = inverse_norms<NORM_THREADS>({x}, p.cols, p.eps, scratch).at[0];
    for (u32 first = thread_index(); first < p.cols; first += AHEAD * NORM_THREADS) {
        float xs[AHEAD], weights[AHEAD];
        read<NORM_THREADS>(x, first, p.cols, xs);
        read<NORM_THREADS>(p.weight, first, p.cols, weights);
        UNROLL
        for (u32 i = 0; i < AHEAD; i++) {
            u32 col = first + i * NORM_THREADS;
            if (col < p.cols) Put::put(out + col, xs[i] * inverse * weights[i]);
        }
    }
}

KERNEL(norm_f32, NORM_THREADS, Norm, (norm<Store>))
KERNEL(norm_add, NORM_THREADS, Norm, (norm<Add>))
