// Rows of x as products of few rows meet them: as they are, or normed by the block itself, which spares a
// kernel and gives the bits that it would give.
#pragma once
#include "linear_epilogue.cuh"
#include "row_norm.cuh"

// A row of x; zeros beyond its end, and if there is no such row.
struct RowOfX {
    const float* x;
    const float* norm;  // null: as it is
    u32 end;
    float inverse;

    __device__ __forceinline__ float at(u32 k) const {
        float value = k < end ? x[k] : 0.0f;
        return norm && k < end ? value * inverse * norm[k] : value;
    }
};

// The row that the `row`-th result takes, for all of THREADS threads. `scratch` holds NORM_WARPS floats
// that no other row uses.
template <u32 THREADS>
__device__ __forceinline__ RowOfX row_of_x(const Linear& p, u32 row, float* scratch) {
    bool is_row = row < p.rows;
    RowOfX own = {p.x + (is_row ? (u64)(row / p.rows_per_x) * p.k : 0), p.norm, is_row ? p.k : 0, 1.0f};
    if (p.norm) own.inverse = inverse_norm<THREADS>(own.x, p.k, p.eps, scratch);
    return own;
}
