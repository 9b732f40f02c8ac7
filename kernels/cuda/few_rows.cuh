// Products of few rows: what is the same for every way to store a weight.
//
// Bound by reading the weight. A block, one for each multiprocessor, brings its rows of x to shared memory
// once and stays: its warps go over the weight by pairs of neighbouring rows (which a GLU joins) or by fours.
// Each warp has a ring in shared memory of steps that it copies well ahead, over the ends of its pairs. Every
// result is a sum over lanes of a sum over k in ascending steps: its order depends on K alone, never on the
// number of rows. Must never read x, or anything else that a kernel writes, before it has waited.
//
// Why a ring of 8 KiB: by Little's law 4.8 TB/s at 0.7 to 1.1 us, loaded or not, ask of each of 132
// multiprocessors for 25 to 40 KB under way. A slot is being used, all others are under way: 7 KiB of a
// ring of pairs, 6 of one of fours; of eight warps 56 or 48 KiB. Registers then only hold sums. Memory of
// 64 to 72 KiB and the rows of x leave place for a block of the next kernel, which waits in it.
#pragma once
#include "linear_epilogue.cuh"
#include "row_norm.cuh"

constexpr u32 FEW_WARPS = 8;
constexpr u32 FEW_THREADS = FEW_WARPS * WARP;
// Bytes that a lane takes of a weight row at a time, and its warp.
constexpr u32 PIECE = 16;
constexpr u32 STEP = WARP * PIECE;
// Weight rows whose steps a ring has.
constexpr u32 RING_ROWS = 16;

// Weight rows of a warp at a time. Pairs spread a small weight better. Where there is much to do with a piece,
// by elements and rows of x, fours share what is read of x and what each step costs: a multiprocessor starts
// 198 instructions while a kibibyte of weight comes at 4.8 TB/s, of which fp8 would take all for two rows, and
// its shared memory gives 6 bytes for one of weight, where q4_0 would read 5 and fp8 8 for four.
__device__ __forceinline__ constexpr u32 columns_of(bool is_much) { return is_much ? 4 : 2; }

// Where a row of x in shared memory has the part of 16 bytes, the `part`-th of PARTS, that meets a piece of
// weight: lanes of a warp read theirs side by side, without two in a bank.
template <u32 PARTS>
__device__ __forceinline__ u32 part_at(u32 piece, u32 part) {
    return (piece / WARP * PARTS + part) * WARP + piece % WARP;
}

// The first column of a warp, and how far it is to the next. Neighbours are with other blocks, so that a
// weight of few rows is read by all multiprocessors.
template <u32 COLUMNS>
__device__ __forceinline__ u32 first_column() {
    return (warp_index() * gridDim.y + blockIdx.y) * COLUMNS;
}
template <u32 COLUMNS>
__device__ __forceinline__ u32 next_column() {
    return gridDim.y * FEW_WARPS * COLUMNS;
}

// The weight's row for a column: behind the last, the last, whose copies are not stored.
__device__ __forceinline__ u64 weight_row(const Linear& p, u64 matrix, u32 column) {
    return matrix * p.n + min_of(column, p.n - 1);
}

// Steps of a warp's weight rows, in the order in which it uses them. `SCALE_BYTES` of scales belong to a
// step of a row.
template <u32 COLUMNS, u32 SCALE_BYTES>
struct WeightRing {
    static constexpr u32 SLOTS = RING_ROWS / COLUMNS;
    static constexpr u32 SLOT_BYTES = COLUMNS * (STEP + SCALE_BYTES);
    // Of all warps.
    static constexpr u32 BYTES = FEW_WARPS * SLOTS * SLOT_BYTES;

    // Of a lane's own piece of scales, 8 bytes: whose it is.
    static constexpr u32 SCALES = 8, LANES = max_of(SCALE_BYTES / SCALES, 1u);
    static_assert(COLUMNS * LANES <= WARP);

    const Linear& p;
    u64 matrix;
    u32 row_bytes;    // of codes or elements
    u32 scale_bytes;  // of a row of scales
    u8* slots;        // the warp's
    // What is brought next: columns, the lane's places in the first step of their rows, how many steps on, and
    // to which slot; which slot is used next.
    u32 column, step = 0, to = 0, from = 0;
    const u8 *rows[COLUMNS], *scales;

    __device__ __forceinline__ WeightRing(const Linear& p, u64 matrix, u32 row_bytes, u32 scale_bytes)
        : p(p), matrix(matrix), row_bytes(row_bytes), scale_bytes(scale_bytes) {
        slots = shared_bytes() + warp_index() * SLOTS * SLOT_BYTES;
        turn_to(first_column<COLUMNS>());
        ROLLED
        for (u32 i = 0; i + 1 < SLOTS; i++) bring();
    }

    static __device__ __forceinline__ u32 after(u32 slot) { return slot + 1 == SLOTS ? 0 : slot + 1; }

    __device__ __forceinline__ void turn_to(u32 next) {
        column = next;
        UNROLL
        for (u32 i = 0; i < COLUMNS; i++) {
            rows[i] = (const u8*)p.weight + weight_row(p, matrix, next + i) * row_bytes + lane_index() * PIECE;
        }
        scales = (const u8*)p.scales + weight_row(p, matrix, next + lane_index() / LANES) * scale_bytes;
    }

    // Begins to copy a step, which may be none.
    __device__ __forceinline__ void bring() {
        if (column < p.n) {
            u8* slot = slots + to * SLOT_BYTES;
            bool has_piece = step * STEP + lane_index() * PIECE < row_bytes;
            UNROLL
            for (u32 i = 0; i < COLUMNS && has_piece; i++) {
                copy_async(slot + i * STEP + lane_index() * PIECE, rows[i] + step * STEP, PIECE);
            }
            u32 own = step * SCALE_BYTES + lane_index() % LANES * SCALES;
            if (SCALE_BYTES > 0 && lane_index() < COLUMNS * LANES && own < scale_bytes) {
                copy_half_async(slot + COLUMNS * STEP + lane_index() * SCALES, scales + own, SCALES);
            }
            to = after(to);
            step++;
            if (step * STEP >= row_bytes) {
                step = 0;
                turn_to(column + next_column<COLUMNS>());
            }
        }
        commit_copies();
    }

    // The next step, which stays until the one after it is asked for.
    __device__ __forceinline__ const u8* next() {
        wait_copies<SLOTS - 2>();
        // Scales come by other lanes; and all lanes are done with the slot that is filled next.
        sync_warp();
        bring();
        const u8* slot = slots + from * SLOT_BYTES;
        from = after(from);
        return slot;
    }
};

// Four neighbours in a row of `cols`, which others read at the same time; zeros behind the row's end.
__device__ __forceinline__ Columns<4> read_four(const float* row, u32 k, u32 cols, bool is_whole) {
    Columns<4> four = {};
    if (is_whole) return k < cols ? *(const Columns<4>*)(row + k) : four;
    UNROLL
    for (u32 i = 0; i < 4; i++) four.at[i] = k + i < cols ? row[k + i] : 0.0f;
    return four;
}

// Gives `place(row, k, four elements)` all of ROWS rows of x, as they are or normed, zeros from k to `end`,
// and waits until all is there. Whole warps call it, also for a k behind the end. `scratch` holds NORM_WARPS
// floats a row. A group that is not full has the last row again, whose results are not stored.
template <u32 ROWS, class Place>
__device__ __forceinline__ void bring_rows(const Linear& p, u32 first_row, u32 end, float* scratch, Place place) {
    // Reads of a thread that wait together.
    constexpr u32 COUNT = 4;
    const float* x[ROWS];
    UNROLL
    for (u32 row = 0; row < ROWS; row++) {
        x[row] = p.x + (u64)(min_of(first_row + row, p.rows - 1) / p.rows_per_x) * p.k;
    }
    Inverses<ROWS> inverses = {};
    if (p.norm) inverses = inverse_norms<FEW_THREADS>(x, p.k, p.eps, scratch);
    bool is_whole = p.k % 4 == 0;
    ROLLED
    for (u32 first = 0; first < ROWS * end; first += COUNT * FEW_THREADS * 4) {
        // Which row it is without a division.
        auto find = [&](u32 i, u32& row, u32& k, const float*& from, float& inverse) {
            k = first + (i * FEW_THREADS + thread_index()) * 4;
            row = 0, from = x[0], inverse = inverses.at[0];
            UNROLL
            for (u32 next = 1; next < ROWS; next++) {
                if (k >= end) row = next, k -= end, from = x[next], inverse = inverses.at[next];
            }
        };
        Columns<4> values[COUNT], weights[COUNT];
        u32 row, k;
        const float* from;
        float inverse;
        UNROLL
        for (u32 i = 0; i < COUNT; i++) {
            find(i, row, k, from, inverse);
            values[i] = read_four(from, k, p.k, is_whole);
            if (p.norm) weights[i] = read_four(p.norm, k, p.k, is_whole);
        }
        UNROLL
        for (u32 i = 0; i < COUNT; i++) {
            find(i, row, k, from, inverse);
            UNROLL
            for (u32 j = 0; j < 4 && p.norm; j++) values[i].at[j] = values[i].at[j] * inverse * weights[i].at[j];
            place(row, k, values[i]);
        }
    }
    sync_block();
}

// Finishes the warp's columns: each row by a lane of its own.
template <class M>
__device__ __forceinline__ void finish_columns(const Linear& p, u32 first_row, u64 matrix, u32 column,
                                               const float (&sums)[M::ROWS][M::COLUMNS]) {
    Columns<M::COLUMNS> results = {};
    UNROLL
    for (u32 i = 0; i < M::ROWS * M::COLUMNS; i++) {
        u32 row = i / M::COLUMNS;
        float sum = warp_sum(sums[row][i % M::COLUMNS]);
        if (lane_index() == row) results.at[i % M::COLUMNS] = sum;
    }
    u32 row = first_row + lane_index();
    if (lane_index() >= M::ROWS || row >= p.rows) return;
    UNROLL
    for (u32 i = 0; i < M::COLUMNS; i++) {
        results.at[i] = M::scaled(p, weight_row(p, matrix, column + i), results.at[i]);
    }
    finish(p, row, column, sum_of(results, bias_of<M::COLUMNS>(p, column)), before<M::COLUMNS>(p, row, column));
}

// M is how rows of x meet the weight: ROWS and COLUMNS at a time; bytes of a row of weight and of scales; how
// rows are kept (`bring`), what a piece adds (`add`), what sums are multiplied by (`scaled`).
template <class M>
__device__ void few_rows(const Linear& p) {
    using Ring = WeightRing<M::COLUMNS, M::SCALE_BYTES>;
    u32 first_row = blockIdx.x * M::ROWS;
    // Rows of one block share a weight, so with experts a block has one row.
    u64 matrix = p.experts ? p.experts[first_row] : 0;
    u32 row_bytes = M::row_bytes(p), pieces = row_bytes / PIECE;
    Ring ring(p, matrix, row_bytes, M::scale_bytes(p));
    M rows(p, shared_bytes() + Ring::BYTES);
    rows.bring(p, first_row);
    for (u32 column = first_column<M::COLUMNS>(); column < p.n; column += next_column<M::COLUMNS>()) {
        float sums[M::ROWS][M::COLUMNS] = {};
        for (u32 first = 0; first < pieces; first += WARP) {
            const u8* step = ring.next();
            u32 piece = first + lane_index();
            if (piece >= pieces) continue;
            uint4 weight[M::COLUMNS];
            UNROLL
            for (u32 i = 0; i < M::COLUMNS; i++) weight[i] = ((const uint4*)(step + i * STEP))[lane_index()];
            rows.add(weight, step + M::COLUMNS * STEP, piece, sums);
        }
        finish_columns<M>(p, first_row, matrix, column, sums);
    }
}

constexpr u32 LINE = 128;
// Lines of a warp: 16 KiB, which makes 17 MB of all warps of an H200, a third of its second cache level.
constexpr u32 LINES = 128;

// No kernel writes weights: the first lines of a warp's rows come while the kernel before ends and while rows
// of x are brought, of short rows those of its next turns, too. Which expert's, only the kernel before says.
template <class M>
__device__ __forceinline__ void fetch_weight(const Linear& p) {
    if (p.experts || blockIdx.x > 0) return;
    u32 row_bytes = M::row_bytes(p), of_turn = div_up(row_bytes, LINE) * M::COLUMNS;
    ROLLED
    for (u32 line = lane_index(); line < LINES; line += WARP) {
        u32 column = first_column<M::COLUMNS>() + line / of_turn * next_column<M::COLUMNS>(), at = line % of_turn;
        const u8* row = (const u8*)p.weight + weight_row(p, 0, column + at % M::COLUMNS) * row_bytes;
        if (column < p.n) fetch_line(row + at / M::COLUMNS * LINE);
    }
}

#define FEW_ROWS_KERNEL(name, ...) \
    KERNEL_READING_AHEAD(name, FEW_THREADS, Linear, (fetch_weight<__VA_ARGS__>), (few_rows<__VA_ARGS__>))
