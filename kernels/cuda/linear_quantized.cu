// Products of few rows with a quantized weight: out = epilogue(x * weight^T + bias), bound by reading
// weights, which are a half or a quarter of bf16's bytes.
//
// As in linear.cu, a warp computes a pair of neighbouring weight rows for up to ROWS rows of x, its
// lanes read 16 bytes of codes each, side by side, and every result is a sum over lanes of a sum over k
// in ascending steps, whatever the number of rows. A block goes over many pairs, so that rows of x are
// brought to shared memory once for all of them. With q8_0 and q4_0 these rows are quantized to signed
// bytes, 32 to a scale, and multiplied by dots of four bytes; with fp8 they stay f32.
#include "few_rows.cuh"
#include "quantized.cuh"

constexpr u32 QUANTIZED_WARPS = 4;
constexpr u32 QUANTIZED_THREADS = QUANTIZED_WARPS * WARP;
// Weight rows of a warp.
constexpr u32 PAIR = 2;

// Rows of x as q8_0 and q4_0 meet them, in shared memory.
struct ByteRows {
    u32 blocks;     // of a row
    u32* words;     // [ROWS][blocks][8]
    float* scales;  // [ROWS][blocks]
    i32* starts;    // [ROWS][blocks] what integer sums begin with
};

template <u32 ROWS>
__device__ __forceinline__ ByteRows byte_rows(const Linear& p) {
    u32 blocks = div_up(p.k, SCALED);
    u32* words = (u32*)shared_bytes();
    float* scales = (float*)(words + ROWS * blocks * SCALED_WORDS);
    return {blocks, words, scales, (i32*)(scales + ROWS * blocks)};
}

// Rows of x as bytes, and behind them what norms need. `offset`: how far codes of the weight lie above their values.
template <u32 ROWS>
__device__ __forceinline__ void quantize_rows(const Linear& p, u32 first_row, i32 offset, const ByteRows& to) {
    constexpr u32 LANES = SCALED_WORDS, BLOCKS = QUANTIZED_THREADS / LANES;
    u32 part = thread_index() % LANES;
    float* scratch = (float*)(to.starts + ROWS * to.blocks);
    ROLLED
    for (u32 row = 0; row < ROWS; row++) {
        RowOfX from = row_of_x<QUANTIZED_THREADS>(p, first_row + row, scratch + row * NORM_WARPS);
        for (u32 first = 0; first < to.blocks; first += BLOCKS) {
            u32 block = first + thread_index() / LANES;
            float x[4];
            UNROLL
            for (u32 i = 0; i < 4; i++) x[i] = from.at(block * SCALED + part * 4 + i);
            ByteBlock own = quantize_block(x);
            i32 sum = dot_bytes(own.word, 0x01010101, 0);
            UNROLL
            for (u32 distance = LANES / 2; distance > 0; distance /= 2) sum += shuffle_xor(sum, distance);
            if (block >= to.blocks) continue;
            to.words[(row * to.blocks + block) * SCALED_WORDS + part] = own.word;
            if (part == 0) {
                to.scales[row * to.blocks + block] = own.scale;
                to.starts[row * to.blocks + block] = -offset * sum;
            }
        }
    }
    sync_block();
}

// 16 bytes are half a block.
struct Q8 {
    static constexpr i32 OFFSET = 0;
    static constexpr u32 PIECES = 2;
    static __device__ __forceinline__ i32 dot(const u32 (&w)[4], const u32* block, u32 half, i32) {
        i32 sum = 0;
        UNROLL
        for (u32 i = 0; i < 4; i++) sum = dot_bytes(w[i], block[half * 4 + i], sum);
        return sum;
    }
};

// 16 bytes are a block.
struct Q4 {
    static constexpr i32 OFFSET = 8;
    static constexpr u32 PIECES = 1;
    static __device__ __forceinline__ i32 dot(const u32 (&w)[4], const u32* block, u32, i32 start) {
        i32 sum = start;
        UNROLL
        for (u32 i = 0; i < 4; i++) {
            sum = dot_bytes(w[i] & 0x0f0f0f0f, block[i], sum);
            sum = dot_bytes(w[i] >> 4 & 0x0f0f0f0f, block[4 + i], sum);
        }
        return sum;
    }
};

// The pair's second row; a last one without a neighbour is computed twice, and its copy is not stored.
__device__ __forceinline__ u64 pair_row(const Linear& p, u64 matrix, u32 n, u32 i) {
    return matrix * p.n + (n + i < p.n ? n + i : n);
}

template <class F, u32 ROWS>
__device__ __forceinline__ void sum_blocks(const Linear& p, const ByteRows& rows, u64 matrix, u32 n,
                                           float (&sums)[ROWS][PAIR]) {
    for (u32 piece = lane_index(); piece < p.stride / 16; piece += WARP) {
        u32 block = piece / F::PIECES, part = piece % F::PIECES;
        u32 w[PAIR][4];
        float scales[PAIR];
        UNROLL
        for (u32 i = 0; i < PAIR; i++) {
            u64 row = pair_row(p, matrix, n, i);
            uint4 bytes = load_once((const uint4*)((const u8*)p.weight + row * p.stride) + piece);
            w[i][0] = bytes.x, w[i][1] = bytes.y, w[i][2] = bytes.z, w[i][3] = bytes.w;
            scales[i] = widen(((const F16*)p.scales)[row * scale_stride(rows.blocks) + block]);
        }
        UNROLL
        for (u32 row = 0; row < ROWS; row++) {
            u32 at = row * rows.blocks + block;
            UNROLL
            for (u32 i = 0; i < PAIR; i++) {
                i32 sum = F::dot(w[i], rows.words + at * SCALED_WORDS, part, rows.starts[at]);
                sums[row][i] = fused((float)sum, rounded_product(scales[i], rows.scales[at]), sums[row][i]);
            }
        }
    }
}

// Results of one pair of weight rows.
template <u32 ROWS>
__device__ __forceinline__ void finish_pair(const Linear& p, u32 first_row, u32 n, const float (&sums)[ROWS][PAIR],
                                            const float (&scales)[PAIR]) {
    UNROLL
    for (u32 row = 0; row < ROWS; row++) {
        Columns<PAIR> results;
        UNROLL
        for (u32 i = 0; i < PAIR; i++) results.at[i] = rounded_product(warp_sum(sums[row][i]), scales[i]);
        if (lane_index() != 0 || first_row + row >= p.rows) continue;
        finish(p, first_row + row, n, sum_of(results, bias_of<PAIR>(p, n)), before<PAIR>(p, first_row + row, n));
    }
}

// The pairs of a warp, one after another.
template <class Each>
__device__ __forceinline__ void for_pairs(const Linear& p, Each each) {
    u32 stride = gridDim.x * QUANTIZED_WARPS * PAIR;
    for (u32 n = (blockIdx.x * QUANTIZED_WARPS + warp_index()) * PAIR; n < p.n; n += stride) each(n);
}

template <class F, u32 ROWS>
__device__ void linear_blocks(const Linear& p) {
    u32 first_row = blockIdx.y * ROWS;
    ByteRows rows = byte_rows<ROWS>(p);
    quantize_rows<ROWS>(p, first_row, F::OFFSET, rows);
    // With experts a block has one row, so that its rows share a weight.
    u64 matrix = p.experts ? p.experts[first_row] : 0;
    for_pairs(p, [&](u32 n) {
        float sums[ROWS][PAIR] = {};
        sum_blocks<F, ROWS>(p, rows, matrix, n, sums);
        finish_pair<ROWS>(p, first_row, n, sums, {1.0f, 1.0f});
    });
}

template <u32 ROWS>
__device__ void linear_fp8(const Linear& p) {
    u32 first_row = blockIdx.y * ROWS;
    float* rows = (float*)shared_bytes();
    float* scratch = rows + ROWS * p.stride;
    ROLLED
    for (u32 row = 0; row < ROWS; row++) {
        RowOfX from = row_of_x<QUANTIZED_THREADS>(p, first_row + row, scratch + row * NORM_WARPS);
        for (u32 k = thread_index(); k < p.stride; k += QUANTIZED_THREADS) rows[row * p.stride + k] = from.at(k);
    }
    sync_block();
    u64 matrix = p.experts ? p.experts[first_row] : 0;
    for_pairs(p, [&](u32 n) {
        float sums[ROWS][PAIR] = {}, scales[PAIR];
        const u8* weight[PAIR];
        UNROLL
        for (u32 i = 0; i < PAIR; i++) {
            u64 row = pair_row(p, matrix, n, i);
            weight[i] = (const u8*)p.weight + row * p.stride;
            scales[i] = ((const float*)p.scales)[row];
        }
        for (u32 k = lane_index() * 16; k < p.stride; k += WARP * 16) {
            u32 w[PAIR][4];
            UNROLL
            for (u32 i = 0; i < PAIR; i++) {
                uint4 bytes = load_once((const uint4*)(weight[i] + k));
                w[i][0] = bytes.x, w[i][1] = bytes.y, w[i][2] = bytes.z, w[i][3] = bytes.w;
            }
            UNROLL
            for (u32 j = 0; j < 16; j++) {
                UNROLL
                for (u32 i = 0; i < PAIR; i++) {
                    float code = widen_fp8(w[i][j / 4] >> (j % 4 * 8));
                    UNROLL
                    for (u32 row = 0; row < ROWS; row++) {
                        sums[row][i] = fused(code, rows[row * p.stride + k + j], sums[row][i]);
                    }
                }
            }
        }
        finish_pair<ROWS>(p, first_row, n, sums, scales);
    });
}

#define QUANTIZED_KERNELS(rows)                                                              \
    KERNEL(linear_q8_0_##rows, QUANTIZED_THREADS, Linear, (linear_blocks<Q8, rows>))         \
    KERNEL(linear_q4_0_##rows, QUANTIZED_THREADS, Linear, (linear_blocks<Q4, rows>))         \
    KERNEL(linear_fp8_##rows, QUANTIZED_THREADS, Linear, (linear_fp8<rows>))

QUANTIZED_KERNELS(1)
QUANTIZED_KERNELS(2)
QUANTIZED_KERNELS(4)
