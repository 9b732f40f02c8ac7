// Products of few rows with a weight: out = epilogue(x * weight^T + bias), bound by reading weights.
//
// A warp computes a pair of neighbouring weight rows (which a GLU joins) for up to ROWS rows of x.
// Its lanes read 16 bytes of weight each, side by side, so that a weight is read once, in whole
// lines. Every result is a sum over lanes of a sum over k in ascending steps: its order depends on
// K alone, never on the number of rows. With bf16 weights the rows are rounded to bf16 first.
#include "linear_epilogue.cuh"

constexpr u32 LINEAR_WARPS = 4;
constexpr u32 LINEAR_THREADS = LINEAR_WARPS * WARP;
// Weight rows of a warp.
constexpr u32 PAIR = 2;

// Elements of 16 bytes.
template <class T>
constexpr u32 PIECE = 16 / sizeof(T);

template <class T>
__device__ __forceinline__ void widen_piece(uint4 piece, float (&to)[PIECE<T>]) {
    const u32 words[4] = {piece.x, piece.y, piece.z, piece.w};
    for (u32 i = 0; i < PIECE<T>; i++) {
        if constexpr (sizeof(T) == 4) {
            to[i] = float_of_bits(words[i]);
        } else {
            to[i] = widen(T{(u16)(words[i / 2] >> (i % 2 * 16))});
        }
    }
}

// Rows of x in shared memory, rounded as the weight's type asks, zeros from k to stride.
template <class T, class X, u32 ROWS>
__device__ __forceinline__ void load_rows(const Linear& p, u32 first_row, X* rows) {
    for (u32 row = 0; row < ROWS; row++) {
        bool is_row = first_row + row < p.rows;
        const float* from = p.x + (u64)((first_row + row) / p.rows_per_x) * p.k;
        for (u32 i = thread_index(); i < p.stride; i += LINEAR_THREADS) {
            rows[row * p.stride + i] = narrow<X>(is_row && i < p.k ? from[i] : 0.0f);
        }
    }
    sync_block();
}

template <class T, class X, u32 ROWS>
__device__ void linear(const Linear& p) {
    X* rows = (X*)shared_bytes();
    u32 first_row = blockIdx.y * ROWS;
    load_rows<T, X, ROWS>(p, first_row, rows);

    u32 n = (blockIdx.x * LINEAR_WARPS + warp_index()) * PAIR;
    if (n >= p.n) return;
    // Rows of one block share a weight, so with experts a block has one row.
    u64 matrix = p.experts ? p.experts[first_row] : 0;
    // A last weight row without a neighbour is read twice; its copy is not stored.
    const T* weight[PAIR] = {(const T*)p.weight + (matrix * p.n + n) * p.stride,
                             (const T*)p.weight + (matrix * p.n + (n + 1 < p.n ? n + 1 : n)) * p.stride};
    float sums[ROWS][PAIR] = {};
    for (u32 k = lane_index() * PIECE<T>; k < p.stride; k += WARP * PIECE<T>) {
        float w[PAIR][PIECE<T>];
        for (u32 i = 0; i < PAIR; i++) widen_piece<T>(load_once((const uint4*)(weight[i] + k)), w[i]);
        for (u32 row = 0; row < ROWS; row++) {
            const X* x = rows + row * p.stride + k;
            for (u32 j = 0; j < PIECE<T>; j++) {
                for (u32 i = 0; i < PAIR; i++) sums[row][i] = fused(w[i][j], widen(x[j]), sums[row][i]);
            }
        }
    }
    for (u32 row = 0; row < ROWS; row++) {
        Columns<PAIR> results;
        for (u32 i = 0; i < PAIR; i++) results.at[i] = warp_sum(sums[row][i]);
        if (lane_index() != 0 || first_row + row >= p.rows) continue;
        finish(p, first_row + row, n, sum_of(results, bias_of<PAIR>(p, n)), before<PAIR>(p, first_row + row, n));
    }
}

#define LINEAR_KERNELS(rows)                                                              \
    KERNEL(linear_f32_##rows, LINEAR_THREADS, Linear, (linear<float, float, rows>))       \
    KERNEL(linear_bf16_##rows, LINEAR_THREADS, Linear, (linear<Bf16, Bf16, rows>))        \
    KERNEL(linear_f16_##rows, LINEAR_THREADS, Linear, (linear<F16, float, rows>))

LINEAR_KERNELS(1)
LINEAR_KERNELS(2)
LINEAR_KERNELS(4)
LINEAR_KERNELS(8)
