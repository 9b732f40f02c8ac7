// What all products with a weight share: their parameters, and what becomes of a result.
//
// Results come as neighbouring columns of a row, an even number of them, since a GLU joins pairs.
#pragma once
#include "prelude.cuh"

enum EpilogueKind : u32 { STORE = 0, ADD = 1, GLU = 2, SCALE = 3 };

struct Linear {
    const float* x;      // [rows / rows_per_x, k]
    const void* weight;  // [n, stride], in the kernel's type, zeros from k to stride; of a quantized one codes,
                         // a stride in bytes
    const void* scales;  // of a quantized weight, see quantized.cuh; else null
    const u32* experts;  // [rows] which of the matrices [E, n, stride] a row meets; null: there is one
    const float* norm;   // [k] weights of a norm that rows of x pass first, of products of few rows; null: none
    const float* bias;   // [n] or null
    float* out;          // [rows, n], or [rows, n / 2] with GLU
    u32 rows;
    u32 rows_per_x;      // neighbouring results that one row of x gives, with experts; else 1
    u32 n;
    u32 k;
    u32 stride;
    u32 epilogue;
    u32 activation;
    float scale;
    float soft_cap;      // 0: none
    float eps;           // of the norm
};

template <u32 COUNT>
struct alignas(COUNT * 4) Columns {
    float at[COUNT];
};

// Columns of an array of `num_columns`, of which the first is `column`, a multiple of COUNT; zeros
// beyond the end. `row` is the row's first element, and the row before it ends there.
template <u32 COUNT>
__device__ __forceinline__ Columns<COUNT> load_columns(const float* row, u32 column, u32 num_columns) {
    if (num_columns % COUNT == 0) return *(const Columns<COUNT>*)(row + column);
    Columns<COUNT> columns;
    UNROLL
    for (u32 i = 0; i < COUNT; i++) columns.at[i] = column + i < num_columns ? row[column + i] : 0.0f;
    return columns;
}

// The way back: what lies beyond the end is dropped.
template <u32 COUNT>
__device__ __forceinline__ void store_columns(float* row, u32 column, u32 num_columns, const Columns<COUNT>& columns) {
    if (num_columns % COUNT == 0) {
        *(Columns<COUNT>*)(row + column) = columns;
        return;
    }
    UNROLL
    for (u32 i = 0; i < COUNT; i++) {
        if (column + i < num_columns) row[column + i] = columns.at[i];
    }
}

// The bias of columns n..; zeros without one.
template <u32 COUNT>
__device__ __forceinline__ Columns<COUNT> bias_of(const Linear& p, u32 n) {
    if (!p.bias) return {};
    return load_columns<COUNT>(p.bias, n, p.n);
}

template <u32 COUNT>
__device__ __forceinline__ Columns<COUNT> sum_of(Columns<COUNT> a, const Columns<COUNT>& b) {
    UNROLL
    for (u32 i = 0; i < COUNT; i++) a.at[i] += b.at[i];
    return a;
}

// What an ADD adds to. Others need nothing.
template <u32 COUNT>
__device__ __forceinline__ Columns<COUNT> before(const Linear& p, u32 row, u32 n) {
    if (p.epilogue != ADD) return {};
    return load_columns<COUNT>(p.out + (u64)row * p.n, n, p.n);
}

// Finishes columns n.. of a row (n a multiple of COUNT and below p.n), whose sums with the bias these are.
template <u32 COUNT>
__device__ __forceinline__ void finish(const Linear& p, u32 row, u32 n, Columns<COUNT> sums,
                                       const Columns<COUNT>& before) {
    float* out = p.out + (u64)row * p.n;
    switch (p.epilogue) {
        case ADD:
            store_columns(out, n, p.n, sum_of(before, sums));
            break;
        case GLU: {
            Columns<COUNT / 2> joined;
            UNROLL
            for (u32 i = 0; i < COUNT / 2; i++) {
                joined.at[i] = activate(p.activation, sums.at[2 * i]) * sums.at[2 * i + 1];
            }
            store_columns(p.out + (u64)row * (p.n / 2), n / 2, p.n / 2, joined);
            break;
        }
        case SCALE:
            UNROLL
            for (u32 i = 0; i < COUNT; i++) sums.at[i] = soft_capped(sums.at[i] * p.scale, p.soft_cap);
            store_columns(out, n, p.n, sums);
            break;
        default:
            store_columns(out, n, p.n, sums);
    }
}
