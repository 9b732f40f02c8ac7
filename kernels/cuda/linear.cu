// Products of few rows with a weight whose elements become f32: out = epilogue(x * weight^T + bias).
//
// bf16, f16, f32 and e4m3 with a scale a row; few_rows.cuh says how the weight is read. With bf16 weights
// the rows of x are rounded to bf16 first, with all others they stay f32.
#include "few_rows.cuh"
#include "quantized.cuh"

// What rows of x are kept as.
template <class T>
struct KeptAs {
    using Type = float;
};
template <>
struct KeptAs<Bf16> {
    using Type = Bf16;
};

// The part-th COUNT elements of a piece.
template <class T, u32 COUNT>
__device__ __forceinline__ void widen_part(const uint4& piece, u32 part, float (&to)[COUNT]) {
    const u32 words[4] = {piece.x, piece.y, piece.z, piece.w};
    UNROLL
    for (u32 i = 0; i < COUNT; i += 2) {
        u32 at = (part * COUNT + i) * (u32)sizeof(T), word = words[at / 4];
        if constexpr (sizeof(T) == 4) {
            to[i] = float_of_bits(word);
            to[i + 1] = float_of_bits(words[at / 4 + 1]);
        } else if constexpr (sizeof(T) == 2) {
            to[i] = widen(T{(u16)word});
            to[i + 1] = widen(T{(u16)(word >> 16)});
        } else {
            u32 pair = f16_pair_of_e4m3(word >> at % 4 * 8);
            to[i] = widen(F16{(u16)pair});
            to[i + 1] = widen(F16{(u16)(pair >> 16)});
        }
    }
}

template <class T, u32 OF_X>
struct FloatRows {
    using X = typename KeptAs<T>::Type;
    // Elements of a piece, and of a part of x.
    static constexpr u32 ELEMENTS = PIECE / sizeof(T), PART = PIECE / sizeof(X), PARTS = ELEMENTS / PART;
    static constexpr u32 ROWS = OF_X, COLUMNS = columns_of(ROWS * ELEMENTS >= 32), SCALE_BYTES = 0;

    uint4* kept;    // [ROWS][parts]
    u32 parts;      // of a row: of whole steps
    float* scratch;

    static __device__ __forceinline__ u32 row_bytes(const Linear& p) { return p.stride * (u32)sizeof(T); }
    static __device__ __forceinline__ u32 scale_bytes(const Linear&) { return 0; }

    __device__ __forceinline__ FloatRows(const Linear& p, u8* shared) {
        kept = (uint4*)shared;
        parts = div_up(row_bytes(p), STEP) * WARP * PARTS;
        scratch = (float*)(kept + ROWS * parts);
    }

    __device__ __forceinline__ void bring(const Linear& p, u32 first_row) {
        bring_rows<ROWS>(p, first_row, p.stride, scratch, [&](u32 row, u32 k, const Columns<4>& x) {
            if (k >= p.stride) return;
            uint4* to = kept + row * parts + part_at<PARTS>(k / ELEMENTS, k % ELEMENTS / PART);
            if constexpr (PART == 4) {
                *(Columns<4>*)to = x;
            } else {
                u32 first = bf16_pair_of_floats(x.at[0], x.at[1]);
                ((uint2*)to)[k % PART / 4] = {first, bf16_pair_of_floats(x.at[2], x.at[3])};
            }
        });
    }

    __device__ __forceinline__ void add(const uint4 (&weight)[COLUMNS], const u8*, u32 piece,
                                        float (&sums)[ROWS][COLUMNS]) const {
        UNROLL
        for (u32 part = 0; part < PARTS; part++) {
            float w[COLUMNS][PART];
            UNROLL
            for (u32 i = 0; i < COLUMNS; i++) widen_part<T>(weight[i], part, w[i]);
            UNROLL
            for (u32 row = 0; row < ROWS; row++) {
                float x[PART];
                widen_part<X>(kept[row * parts + part_at<PARTS>(piece, part)], 0, x);
                UNROLL
                for (u32 j = 0; j < PART; j++) {
                    UNROLL
                    for (u32 i = 0; i < COLUMNS; i++) sums[row][i] = fused(w[i][j], x[j], sums[row][i]);
                }
            }
        }
    }

    // Only codes have a scale, which is kept 2^8 times as large as it is.
    static __device__ __forceinline__ float scaled(const Linear& p, u64 weight_row, float sum) {
        if constexpr (sizeof(T) > 1) return sum;
        return rounded_product(sum, ((const float*)p.scales)[weight_row] * 0x1p-8f);
    }
};

#define LINEAR_KERNELS(rows)                                        \
    FEW_ROWS_KERNEL(linear_f32_##rows, FloatRows<float, rows>)      \
    FEW_ROWS_KERNEL(linear_bf16_##rows, FloatRows<Bf16, rows>)      \
    FEW_ROWS_KERNEL(linear_f16_##rows, FloatRows<F16, rows>)        \
    FEW_ROWS_KERNEL(linear_fp8_##rows, FloatRows<E4m3, rows>)

LINEAR_KERNELS(1)
LINEAR_KERNELS(2)
LINEAR_KERNELS(4)
// Where no matrix unit takes more of them.
FEW_ROWS_KERNEL(linear_f32_8, FloatRows<float, 8>)
