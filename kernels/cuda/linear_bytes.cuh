// Products of many rows with a weight in blocks (q8_0, q4_0), on matrix units for signed bytes.
//
// As in linear_tensor.cuh, 16 rows of the weight are the tall side of an m16n8k32 product. A block of 32
// is one such product, whose sum is exact; it is scaled and added in f32, block after block, as
// everywhere else. Rows of x come as bytes from quantize_rows.cu, so both sides and their scales come
// through one ring of slots by asynchronous copies. The bits of a result come of its row, the weight and
// the number of chunks alone.
#pragma once
#include "linear_sums.cuh"

struct ByteLinear {
    TensorLinear tensor;    // its linear's x is not read
    const u8* codes;        // [rows of x, blocks of k, 32]
    const float* x_scales;  // [rows of x, scale_stride of blocks]
};

// An integer that is a float 2^23 * 1.5 larger than a small number, once its bits are taken for one.
constexpr i32 SUM_START = 0x4b400000;
constexpr float SUM_OFFSET = 12582912.0f;

// Codes as they are.
struct Bytes8 {
    static constexpr u32 BITS = 8;
    // What a product of codes is larger by than that of their values.
    static constexpr float FACTOR = 1.0f;

    // Of 16 rows, the sides of two blocks from `first` on. `at` gives the place of a row's piece of 16 bytes.
    template <class At>
    static __device__ __forceinline__ void load(u32 (&a)[2][4], u32 first, At at) {
        UNROLL
        for (u32 i = 0; i < 2; i++) load_matrices(a[i], at(lane_index() % 16, (first + i) * 2 + lane_index() / 16));
    }
};

// Codes in the upper half of a byte, where they are sixteen times what they stand for.
struct Bytes4 {
    static constexpr u32 BITS = 4;
    static constexpr float FACTOR = 16.0f;

    // 8 above or below is the sign.
    static __device__ __forceinline__ u32 upper(u32 codes) { return (codes & 0xf0f0f0f0) ^ 0x80808080; }

    template <class At>
    static __device__ __forceinline__ void load(u32 (&a)[2][4], u32 first, At at) {
        u32 codes[4];
        load_matrices(codes, at(lane_index() % 16, first + lane_index() / 16));
        UNROLL
        for (u32 i = 0; i < 4; i++) {
            u32 block = i / 2, row = i % 2;
            a[block][row] = upper(codes[i] << 4);
            a[block][row + 2] = upper(codes[i]);
        }
    }
};

// COLUMN_WARPS by ROW_WARPS warps, each with TALL products of 16 columns by NARROW of 8 rows.
template <class F_, u32 COLUMN_WARPS_, u32 ROW_WARPS, u32 TALL_, u32 NARROW_>
struct ByteTiling {
    using F = F_;
    static constexpr u32 COLUMN_WARPS = COLUMN_WARPS_;
    static constexpr u32 THREADS = COLUMN_WARPS * ROW_WARPS * WARP;
    static constexpr u32 TALL = TALL_;
    static constexpr u32 NARROW = NARROW_;
    static constexpr u32 WARP_COLUMNS = TALL * 16;
    static constexpr u32 WARP_ROWS = NARROW * 8;
    static constexpr u32 COLUMNS = COLUMN_WARPS * WARP_COLUMNS;
    static constexpr u32 ROWS = ROW_WARPS * WARP_ROWS;
    // Blocks of a slot, elements of k, and what chunks are multiples of.
    static constexpr u32 BLOCKS = 4;
    static constexpr u32 STEP = BLOCKS * SCALED;
    static constexpr u32 UNIT = STEP;
    // Of 16 bytes, of a row in a slot.
    static constexpr u32 WEIGHT_PIECES = STEP * F::BITS / 8 / 16;
    static constexpr u32 X_PIECES = STEP / 16;
    // A slot: codes of the weight and of x, scales of the weight (f16) and of x (f32).
    static constexpr u32 X_AT = COLUMNS * WEIGHT_PIECES * 16;
    static constexpr u32 SCALES_AT = X_AT + ROWS * STEP;
    static constexpr u32 X_SCALES_AT = SCALES_AT + COLUMNS * BLOCKS * 2;
    static constexpr u32 SLOT_BYTES = X_SCALES_AT + ROWS * BLOCKS * 4;
    // As much under way as reading takes; fewer where products are what takes time.
    static constexpr u32 SLOTS = ROWS > 64 ? 3 : F::BITS == 8 ? 4 : 6;
    static constexpr u32 RING_BYTES = SLOTS * SLOT_BYTES;
    static_assert(COLUMNS <= THREADS && ROWS <= THREADS && COLUMNS * WEIGHT_PIECES % THREADS == 0);
};

template <class M>
struct ByteProduct {
    using F = typename M::F;
    // Of a thread, of a step, and how many rows lie between them.
    static constexpr u32 COPIES = M::COLUMNS * M::WEIGHT_PIECES / M::THREADS;
    static constexpr u32 COLUMNS_APART = M::THREADS / M::WEIGHT_PIECES;
    static constexpr u32 ROWS_APART = M::THREADS / M::X_PIECES;
    static constexpr u32 X_COPIES = (M::ROWS + ROWS_APART - 1) / ROWS_APART;

    const ByteLinear& q;
    const TensorLinear& p;
    const Tile<M>& tile;
    u8* shared;
    u32 blocks;  // of a row
    u32 end_step;
    Sums<M> sums;

    __device__ __forceinline__ ByteProduct(const ByteLinear& q, const Tile<M>& tile)
        : q(q), p(q.tensor), tile(tile), shared(shared_bytes()), blocks(div_up(p.linear.k, SCALED)), sums(p, tile) {}

    __device__ __forceinline__ u8* slot(u32 step) const { return shared + step % M::SLOTS * M::SLOT_BYTES; }

    // The row of the weight that the tile's column is; any for columns beyond the last.
    __device__ __forceinline__ u64 weight_row(u32 column) const {
        return (u64)tile.expert * p.linear.n + min_of(tile.first_column + column, p.linear.n - 1);
    }

    __device__ __forceinline__ void fetch_weight(u32 step) {
        u32 piece = thread_index() % M::WEIGHT_PIECES, byte = (step * M::WEIGHT_PIECES + piece) * 16;
        bool is_there = byte < p.linear.stride;
        const u8* from = (const u8*)p.linear.weight + (is_there ? byte : 0);
        UNROLL
        for (u32 i = 0; i < COPIES; i++) {
            u32 column = thread_index() / M::WEIGHT_PIECES + i * COLUMNS_APART;
            u8* to = slot(step) + place<M::WEIGHT_PIECES>(column, piece);
            copy_async(to, from + weight_row(column) * p.linear.stride, is_there ? 16 : 0);
        }
        u32 column = thread_index();
        if (column >= M::COLUMNS) return;
        const F16* scales = (const F16*)p.linear.scales + weight_row(column) * scale_stride(blocks);
        copy_half_async(slot(step) + M::SCALES_AT + column * 8, scales + step * M::BLOCKS, 8);
    }

    // Zeros for rows that are nobody's.
    __device__ __forceinline__ void fetch_x(u32 step) {
        u32 piece = thread_index() % M::X_PIECES, byte = (step * M::X_PIECES + piece) * 16;
        UNROLL
        for (u32 i = 0; i < X_COPIES; i++) {
            u32 at = thread_index() / M::X_PIECES + i * ROWS_APART;
            if (at >= M::ROWS) continue;
            u32 row = sums.rows()[at];
            bool is_there = row != NO_ROW && byte < blocks * SCALED;
            const u8* from = is_there ? q.codes + (u64)row * blocks * SCALED + byte : q.codes;
            copy_async(slot(step) + M::X_AT + place<M::X_PIECES>(at, piece), from, is_there ? 16 : 0);
        }
        // By threads that the weight's scales leave free.
        u32 at = M::THREADS - 1 - thread_index();
        if (at >= M::ROWS) return;
        u32 row = sums.rows()[at];
        const float* from = q.x_scales + (row == NO_ROW ? 0 : (u64)row * scale_stride(blocks) + step * M::BLOCKS);
        copy_async(slot(step) + M::X_SCALES_AT + at * 16, from, row == NO_ROW ? 0 : 16);
    }

    // Begins to copy a step, if there is one. A group of copies in any case: waits count them.
    __device__ __forceinline__ void fetch(u32 step) {
        if (step < end_step) {
            fetch_weight(step);
            fetch_x(step);
        }
        commit_copies();
    }

    // Scales of two blocks of a column, from `first` on.
    __device__ __forceinline__ void load_scales(u32 step, u32 column, u32 first, float (&to)[2]) const {
        u32 both = *(const u32*)(slot(step) + M::SCALES_AT + column * 8 + first * 2);
        to[0] = float_of_f16((u16)both) * (1.0f / F::FACTOR);
        to[1] = float_of_f16((u16)(both >> 16)) * (1.0f / F::FACTOR);
    }

    // Two of the step's blocks, from `first` on.
    __device__ __forceinline__ void multiply_blocks(u32 step, u32 first) {
        u32 lane = lane_index();
        u32 a[M::TALL][2][4];
        float scales[M::TALL * 2][2];
        UNROLL
        for (u32 tall = 0; tall < M::TALL; tall++) {
            u32 column = sums.first_column() + tall * 16;
            auto at = [&](u32 row, u32 piece) { return slot(step) + place<M::WEIGHT_PIECES>(column + row, piece); };
            F::load(a[tall], first, at);
            load_scales(step, column + lane / 4, first, scales[tall * 2]);
            load_scales(step, column + lane / 4 + 8, first, scales[tall * 2 + 1]);
        }
        UNROLL
        for (u32 narrow = 0; narrow < M::NARROW; narrow++) {
            u32 row = sums.first_row() + narrow * 8;
            u32 b[4];
            load_matrices(b, slot(step) + M::X_AT + place<M::X_PIECES>(row + lane % 8, first * 2 + lane / 8));
            const u8* x_scales = slot(step) + M::X_SCALES_AT + (row + lane % 4 * 2) * 16 + first * 4;
            Columns<2> of_rows[2] = {*(const Columns<2>*)x_scales, *(const Columns<2>*)(x_scales + 16)};
            UNROLL
            for (u32 i = 0; i < 2 * M::TALL; i++) {
                u32 block = i / M::TALL, tall = i % M::TALL;
                i32 exact[4] = {SUM_START, SUM_START, SUM_START, SUM_START};
                multiply_bytes(exact, a[tall][block], b[block * 2], b[block * 2 + 1]);
                UNROLL
                for (u32 j = 0; j < 4; j++) {
                    float scale = rounded_product(scales[tall * 2 + j / 2][block], of_rows[j % 2].at[block]);
                    float sum = float_of_bits((u32)exact[j]) - SUM_OFFSET;
                    sums.at[tall][narrow][j] = fused(sum, scale, sums.at[tall][narrow][j]);
                }
            }
        }
    }

    __device__ __forceinline__ void multiply_step(u32 step) {
        if constexpr (M::ROWS > 64) {
            // Registers for the sums of all products would not do for two pairs of blocks at once.
            ROLLED
            for (u32 first = 0; first < M::BLOCKS; first += 2) multiply_blocks(step, first);
        } else {
            UNROLL
            for (u32 first = 0; first < M::BLOCKS; first += 2) multiply_blocks(step, first);
        }
    }

    // Sums over the chunks that this block has.
    __device__ __forceinline__ void run() {
        u32 chunk = p.partials ? blockIdx.y : 0;
        u32 step = sums.step_of(chunk), end_of_chunk = sums.step_of(chunk + 1);
        end_step = p.partials ? end_of_chunk : sums.step_of(p.chunks);
        sums.find_rows();
        for (u32 i = 0; i + 1 < M::SLOTS; i++) fetch(step + i);
        for (; step < end_step; step++) {
            wait_copies<M::SLOTS - 2>();
            sync_block();
            fetch(step + M::SLOTS - 1);
            multiply_step(step);
            if (p.partials || p.chunks == 1 || step + 1 < end_of_chunk) continue;
            sums.join_chunk(chunk++);
            end_of_chunk = sums.step_of(chunk + 1);
        }
    }
};
