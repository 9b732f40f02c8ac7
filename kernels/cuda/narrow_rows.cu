// Rows of x as a product on Hopper wants them: rounded to bf16, or split into halves of f16, and padded
// with zeros to whole pieces of 16 bytes. The same rounding as that of the other products. For quantized
// weights they change places within 64, see there.
#include "linear_tile.cuh"

constexpr u32 NARROW_THREADS = 256;
// Elements of a piece.
constexpr u32 NARROW_PIECE = 8;

struct NarrowRows {
    const float* x;  // [rows, k]
    void* out;       // [parts, rows, stride]: with f16 the high halves, then the low ones
    u32 rows;
    u32 k;
    u32 stride;      // a multiple of 8, of 64 where elements change places
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

// As lanes have codes of a quantized weight (linear_hopper_quantized.cu): of each 64, what lane t of four
// has for the j-th product are four neighbours, of which a product takes two and, 8 further on, two.
// Of bytes a lane has 16 neighbours. Of halves of bytes it has 8, and those 16 further on.
template <bool IS_HALVES>
__device__ void place_rows(const NarrowRows& p) {
    u32 quads = p.stride / 4, all = p.rows * quads;
    for (u32 i = blockIdx.x * NARROW_THREADS + thread_index(); i < all; i += gridDim.x * NARROW_THREADS) {
        u32 row = i / quads, first = i % quads / 16 * 64, j = i / 4 % 4, t = i % 4;
        u32 k = first + (IS_HALVES ? t / 2 * 32 + j / 2 * 16 + t % 2 * 8 + j % 2 * 4 : t * 16 + j * 4);
        Columns<4> x = {};
        if (k < p.k) x = load_columns<4>(p.x + (u64)row * p.k, k, p.k);
        u32* to = (u32*)p.out + ((u64)row * p.stride + first) / 2 + j * 8 + t;
        to[0] = bf16_pair_of_floats(x.at[0], x.at[1]);
        to[4] = bf16_pair_of_floats(x.at[2], x.at[3]);
    }
}

KERNEL(narrow_rows_bytes, NARROW_THREADS, NarrowRows, (place_rows<false>))
KERNEL(narrow_rows_halves, NARROW_THREADS, NarrowRows, (place_rows<true>))
KERNEL(narrow_rows_bf16, NARROW_THREADS, NarrowRows, (narrow_rows<Bf16>))
KERNEL(narrow_rows_f16, NARROW_THREADS, NarrowRows, (narrow_rows<F16>))
