// Products of few rows with a weight in blocks, q8_0 or q4_0: out = epilogue(x * weight^T + bias).
//
// few_rows.cuh says how the weight is read. Rows of x become signed bytes, 32 to a scale, and meet codes by
// dots of four bytes, whose sums over a block are exact.
#include "few_rows.cuh"
#include "quantized.cuh"

// A piece is half a block.
struct Q8 {
    static constexpr i32 OFFSET = 0;
    static constexpr u32 PIECES = 2, PARTS = 1;
    static __device__ __forceinline__ void widen(const uint4& piece, u32 (&codes)[4]) {
        codes[0] = piece.x, codes[1] = piece.y, codes[2] = piece.z, codes[3] = piece.w;
    }
};

// A piece is a block: its first half in the lower four bits, 8 above what they mean.
struct Q4 {
    static constexpr i32 OFFSET = 8;
    static constexpr u32 PIECES = 1, PARTS = 2;
    static __device__ __forceinline__ void widen(const uint4& piece, u32 (&codes)[8]) {
        const u32 words[4] = {piece.x, piece.y, piece.z, piece.w};
        UNROLL
        for (u32 i = 0; i < 8; i++) codes[i] = words[i % 4] >> i / 4 * 4 & 0x0f0f0f0f;
    }
};

// A block of a row of x.
struct alignas(8) BlockScale {
    float scale;
    i32 start;  // what its integer sum begins with
};

template <class F, u32 OF_X>
struct ByteRows {
    // Parts of x that a piece of weight meets, their words, and elements.
    static constexpr u32 PARTS = F::PARTS, WORDS = PARTS * 4, ELEMENTS = WORDS * 4;
    static constexpr u32 ROWS = OF_X, COLUMNS = columns_of(ROWS * ELEMENTS >= 64);
    static constexpr u32 SCALE_BYTES = WARP / F::PIECES * (u32)sizeof(F16);

    uint4* kept;         // [ROWS][parts]
    u32 parts;           // of a row: of whole steps
    BlockScale* scales;  // [ROWS][blocks]
    u32 blocks;
    float* scratch;

    static __device__ __forceinline__ u32 row_bytes(const Linear& p) { return p.stride; }
    static __device__ __forceinline__ u32 scale_bytes(const Linear& p) {
        return scale_stride(div_up(p.k, SCALED)) * (u32)sizeof(F16);
    }

    __device__ __forceinline__ ByteRows(const Linear& p, u8* shared) {
        kept = (uint4*)shared;
        parts = div_up(p.stride, STEP) * WARP * PARTS;
        blocks = div_up(p.k, SCALED);
        scales = (BlockScale*)(kept + ROWS * parts);
        scratch = (float*)(scales + ROWS * blocks);
    }

    __device__ __forceinline__ void bring(const Linear& p, u32 first_row) {
        bring_rows<ROWS>(p, first_row, blocks * SCALED, scratch, [&](u32 row, u32 k, const Columns<4>& x) {
            ByteBlock own = quantize_block(x.at);
            i32 sum = dot_bytes(own.word, 0x01010101, 0);
            UNROLL
            for (u32 distance = SCALED_WORDS / 2; distance > 0; distance /= 2) sum += shuffle_xor(sum, distance);
            u32 block = k / SCALED;
            if (block >= blocks) return;
            u32 at = row * parts + part_at<PARTS>(k / ELEMENTS, k % ELEMENTS / PIECE);
            ((u32*)(kept + at))[k % PIECE / 4] = own.word;
            if (k % SCALED == 0) scales[row * blocks + block] = {own.scale, -F::OFFSET * sum};
        });
    }

    __device__ __forceinline__ void add(const uint4 (&weight)[COLUMNS], const u8* weight_scales, u32 piece,
                                        float (&sums)[ROWS][COLUMNS]) const {
        u32 codes[COLUMNS][WORDS];
        float scale[COLUMNS];
        UNROLL
        for (u32 i = 0; i < COLUMNS; i++) {
            F::widen(weight[i], codes[i]);
            scale[i] = widen(((const F16*)(weight_scales + i * SCALE_BYTES))[lane_index() / F::PIECES]);
        }
        UNROLL
        for (u32 row = 0; row < ROWS; row++) {
            BlockScale own = scales[row * blocks + piece / F::PIECES];
            i32 dots[COLUMNS];
            UNROLL
            for (u32 i = 0; i < COLUMNS; i++) dots[i] = own.start;
            UNROLL
            for (u32 part = 0; part < PARTS; part++) {
                uint4 x = kept[row * parts + part_at<PARTS>(piece, part)];
                const u32 words[4] = {x.x, x.y, x.z, x.w};
                UNROLL
                for (u32 i = 0; i < COLUMNS * 4; i++) {
                    dots[i / 4] = dot_bytes(codes[i / 4][part * 4 + i % 4], words[i % 4], dots[i / 4]);
                }
            }
            UNROLL
            for (u32 i = 0; i < COLUMNS; i++) {
                sums[row][i] = fused((float)dots[i], rounded_product(scale[i], own.scale), sums[row][i]);
            }
        }
    }

    static __device__ __forceinline__ float scaled(const Linear&, u64, float sum) { return sum; }
};

#define QUANTIZED_KERNELS(rows)                                 \
    FEW_ROWS_KERNEL(linear_q8_0_##rows, ByteRows<Q8, rows>)     \
    FEW_ROWS_KERNEL(linear_q4_0_##rows, ByteRows<Q4, rows>)

QUANTIZED_KERNELS(1)
QUANTIZED_KERNELS(2)
QUANTIZED_KERNELS(4)
