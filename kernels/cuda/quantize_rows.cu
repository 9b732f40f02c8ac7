// Rows of x as a weight in blocks meets them: signed bytes, 32 to a scale (quantized.cuh says how).
//
// Once for all blocks of a product. Eight lanes take a block, so a warp takes four that lie side by side.
#include "linear_epilogue.cuh"
#include "quantized.cuh"

constexpr u32 QUANTIZE_THREADS = 256;

struct QuantizeRows {
    const float* x;  // [rows, k]
    u32* codes;      // [rows, blocks of k, 8]: four codes a word, zeros from k on
    float* scales;   // [rows, scale_stride of blocks], zeros behind the last
    u32 rows;
    u32 k;
};

__device__ void quantize(const QuantizeRows& p) {
    u32 blocks = div_up(p.k, SCALED), padded = scale_stride(blocks);
    // Whole warps: of each row a multiple of four blocks.
    u32 all = p.rows * padded * SCALED_WORDS;
    for (u32 i = blockIdx.x * QUANTIZE_THREADS + thread_index(); i < all; i += gridDim.x * QUANTIZE_THREADS) {
        u32 word = i % SCALED_WORDS, block = i / SCALED_WORDS % padded, row = i / SCALED_WORDS / padded;
        u32 k = block * SCALED + word * 4;
        Columns<4> x = {};
        if (k < p.k) x = load_columns<4>(p.x + (u64)row * p.k, k, p.k);
        ByteBlock own = quantize_block(x.at);
        if (word == 0) p.scales[(u64)row * padded + block] = own.scale;
        if (block < blocks) p.codes[((u64)row * blocks + block) * SCALED_WORDS + word] = own.word;
    }
}

KERNEL(quantize_rows, QUANTIZE_THREADS, QuantizeRows, quantize)
