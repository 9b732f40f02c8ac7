// Rows of x as a product on Hopper wants them: rounded to bf16, or split into halves of f16, and padded
// with zeros to whole pieces of 16 bytes. The same rounding as that of the other products.
#include "linear_tile.cuh"

constexpr u32 NARROW_THREADS = 256;
// Elements of a piece.
constexpr u32 NARROW_PIECE = 8;

struct NarrowRows {
    const float* x;  // [rows, k]
    void* out;       // [parts, rows, stride]: with f16 the high halves, then the low ones
    u32 rows;
    u32 k;
    u32 stride;      // a multiple of 8
};

template <class T>
__device__ void narrow_rows(const NarrowRows& p) {
    u32 pieces = p.stride / NARROW_PIECE, all = p.rows * pieces;
    uint4* out = (uint4*)p.out;
    for (u32 i = blockIdx.x * NARROW_THREADS + thread_index(); i < all; i += gridDim.x * NARROW_THREADS) {
        const float* row = p.x + (u64)(i / pieces) * p.k;
        Columns<NARROW_PIECE> values = load_columns<NARROW_PIECE>(row, i % pieces * NARROW_PIECE, p.k);
        u32 high[4], low[4];
        UNROLL
        for (u32 j = 0; j < 4; j++) {
            float first = values.at[2 * j], second = values.at[2 * j + 1];
            if constexpr (PARTS_OF<T> == 1) {
                high[j] = bf16_pair_of_floats(first, second);
            } else {
                Halves halves = split<T>(first, second);
                high[j] = halves.high;
                low[j] = halves.low;
            }
        }
        out[i] = {high[0], high[1], high[2], high[3]};
        if constexpr (PARTS_OF<T> > 1) out[all + i] = {low[0], low[1], low[2], low[3]};
    }
}

KERNEL(narrow_rows_bf16, NARROW_THREADS, NarrowRows, (narrow_rows<Bf16>))
KERNEL(narrow_rows_f16, NARROW_THREADS, NarrowRows, (narrow_rows<F16>))
