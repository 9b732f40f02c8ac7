// Products of many rows with an f32 weight: out = epilogue(x * weight^T + bias), by tiles.
//
// A block computes 64 rows by 64 columns, so that an element of the weight is read once for 64 rows.
// A result is one sum over k in ascending order. x counts tiles of rows, y of columns.
#include "linear_epilogue.cuh"

constexpr u32 TILED_THREADS = 256;
constexpr u32 SIDE = 64;
// Elements of k in shared memory.
constexpr u32 DEPTH = 16;
// Rows and columns of a thread.
constexpr u32 OWN = 4;
// Of a row of the tiles in shared memory; the rest sets them apart in the banks.
constexpr u32 TILED_STRIDE = SIDE + OWN;
static_assert(SIDE * DEPTH == TILED_THREADS * 4 && SIDE * SIDE == TILED_THREADS * OWN * OWN);

// Puts 64 rows of a matrix [num_rows, k] side by side in shared memory, k by k; zeros beyond its end.
__device__ __forceinline__ void load_tile(float* to, const float* matrix, u32 stride, u32 num_rows, u32 first_row,
                                          u32 first_k, u32 num_k) {
    u32 row = thread_index() / (DEPTH / 4), k = thread_index() % (DEPTH / 4) * 4;
    Columns<4> values = {};
    if (first_row + row < num_rows && first_k + k < num_k) {
        values = load_columns<4>(matrix + (u64)(first_row + row) * stride, first_k + k, num_k);
    }
    UNROLL
    for (u32 i = 0; i < 4; i++) to[(k + i) * TILED_STRIDE + row] = values.at[i];
}

__device__ void linear_tiled(const Linear& p) {
    float* x = (float*)shared_bytes();
    float* weight = x + DEPTH * TILED_STRIDE;
    u32 first_row = blockIdx.x * SIDE, first_column = blockIdx.y * SIDE;
    u32 row = thread_index() / (SIDE / OWN) * OWN, column = thread_index() % (SIDE / OWN) * OWN;
    float sums[OWN][OWN] = {};
    for (u32 k = 0; k < p.k; k += DEPTH) {
        sync_block();
        load_tile(x, p.x, p.k, p.rows, first_row, k, p.k);
        load_tile(weight, (const float*)p.weight, p.stride, p.n, first_column, k, p.stride);
        sync_block();
        UNROLL
        for (u32 i = 0; i < DEPTH; i++) {
            Columns<OWN> a = *(const Columns<OWN>*)(x + i * TILED_STRIDE + row);
            Columns<OWN> b = *(const Columns<OWN>*)(weight + i * TILED_STRIDE + column);
            UNROLL
            for (u32 j = 0; j < OWN * OWN; j++) {
                sums[j / OWN][j % OWN] = fused(a.at[j / OWN], b.at[j % OWN], sums[j / OWN][j % OWN]);
            }
        }
    }
    u32 n = first_column + column;
    if (n >= p.n) return;
    Columns<OWN> bias = bias_of<OWN>(p, n);
    UNROLL
    for (u32 i = 0; i < OWN; i++) {
        u32 to = first_row + row + i;
        if (to >= p.rows) return;
        Columns<OWN> results = {sums[i][0], sums[i][1], sums[i][2], sums[i][3]};
        finish(p, to, n, sum_of(results, bias), before<OWN>(p, to, n));
    }
}

KERNEL(linear_tiled_f32, TILED_THREADS, Linear, linear_tiled)
