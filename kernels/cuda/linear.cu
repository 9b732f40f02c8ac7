// Products of few rows with a weight: out = epilogue(x * weight^T + bias), bound by reading weights.
//
// x of the grid counts groups of ROWS rows of x, y groups of weight rows: blocks that read the same
// weight run side by side. A warp computes a pair of neighbouring weight rows (which a GLU joins) for up
// to ROWS rows of x. Its lanes read 16 bytes of weight each, side by side, and several such pieces before
// the first is used, so that enough of the weight is under way to fill the memory's time. Every result is a sum over lanes of a sum over k in ascending steps: its order depends on
// K alone, never on the number of rows. The first pieces are under way before rows are brought to shared
// memory, and normed if they are to be. With bf16 weights the rows are rounded to bf16 first.
#include "few_rows.cuh"

constexpr u32 LINEAR_WARPS = 4;
constexpr u32 LINEAR_THREADS = LINEAR_WARPS * WARP;
// Weight rows of a warp.
constexpr u32 PAIR = 2;

// Elements of 16 bytes.
template <class T>
constexpr u32 PIECE = 16 / sizeof(T);

template <class T>
__device__ __forceinline__ void widen_piece(uint4 piece, float (&to)[PIECE<T>]) {
    const u32 words[4] = {piece.x, piece.y, piece.z, piece.w};
    UNROLL
    for (u32 i = 0; i < PIECE<T>; i++) {
        if constexpr (sizeof(T) == 4) {
            to[i] = float_of_bits(words[i]);
        } else {
            to[i] = widen(T{(u16)(words[i / 2] >> (i % 2 * 16))});
        }
    }
}

// Rows of x in shared memory, rounded as the weight's type asks, zeros from k to stride. Behind them is
// what norms need.
template <class T, class X, u32 ROWS>
__device__ __forceinline__ void load_rows(const Linear& p, u32 first_row, X* rows) {
    float* scratch = (float*)(rows + ROWS * p.stride);
    ROLLED
    for (u32 row = 0; row < ROWS; row++) {
        RowOfX from = row_of_x<LINEAR_THREADS>(p, first_row + row, scratch + row * NORM_WARPS);
        for (u32 first = thread_index(); first < p.stride; first += AHEAD * LINEAR_THREADS) {
            float xs[AHEAD];
            UNROLL
            for (u32 i = 0; i < AHEAD; i++) xs[i] = from.at(first + i * LINEAR_THREADS);
            UNROLL
            for (u32 i = 0; i < AHEAD; i++) {
                u32 k = first + i * LINEAR_THREADS;
                if (k < p.stride) rows[row * p.stride + k] = narrow<X>(xs[i]);
            }
        }
    }
    sync_block();
}

// As many elements of a row of x as a piece of weight has: whole reads of 16 bytes, which the row's
// stride allows.
template <class T, class X>
__device__ __forceinline__ void load_x(const X* from, float (&to)[PIECE<T>]) {
    UNROLL
    for (u32 i = 0; i < PIECE<T> / PIECE<X>; i++) {
        float part[PIECE<X>];
        widen_piece<X>(((const uint4*)from)[i], part);
        UNROLL
        for (u32 j = 0; j < PIECE<X>; j++) to[i * PIECE<X> + j] = part[j];
    }
}

template <class T>
__device__ __forceinline__ void load_pair(const T* const (&weight)[PAIR], u32 k, uint4 (&pieces)[PAIR]) {
    UNROLL
    for (u32 i = 0; i < PAIR; i++) pieces[i] = load_once((const uint4*)(weight[i] + k));
}

// The weight rows of the warp; a last one without a neighbour twice, its copy is not stored.
template <class T>
__device__ __forceinline__ const T* weight_row(const Linear& p, u64 matrix, u32 n, u32 i) {
    return (const T*)p.weight + (matrix * p.n + (n + i < p.n ? n + i : n)) * p.stride;
}

__device__ __forceinline__ u32 first_column() { return (blockIdx.y * LINEAR_WARPS + warp_index()) * PAIR; }

constexpr u32 LINE = 128;

// No kernel writes weights: the first lines of a warp's rows come while the kernel before ends. More of
// all blocks that wait would not fit the second cache level. Which expert's rows, only that kernel says.
template <class T>
__device__ __forceinline__ void fetch_weight(const Linear& p) {
#if !ON_DEVICE || __CUDA_ARCH__ >= 900  // Elsewhere none begins early.
    u32 n = first_column();
    if (p.experts || n >= p.n || blockIdx.x > 0) return;
    u32 at = lane_index() * LINE;
    if (at >= p.stride * (u32)sizeof(T)) return;
    for (u32 i = 0; i < PAIR; i++) fetch_line((const u8*)weight_row<T>(p, 0, n, i) + at);
#endif
}

template <class T, class X, u32 ROWS>
__device__ void linear(const Linear& p) {
    X* rows = (X*)shared_bytes();
    u32 first_row = blockIdx.x * ROWS;
    u32 n = first_column();
    bool has_columns = n < p.n;
    n = has_columns ? n : 0;
    // Rows of one block share a weight, so with experts a block has one row.
    u64 matrix = p.experts ? p.experts[first_row] : 0;
    const T* weight[PAIR] = {weight_row<T>(p, matrix, n, 0), weight_row<T>(p, matrix, n, 1)};
    float sums[ROWS][PAIR] = {};
    auto add = [&](const uint4 (&pieces)[PAIR], u32 k) {
        float w[PAIR][PIECE<T>];
        UNROLL
        for (u32 i = 0; i < PAIR; i++) widen_piece<T>(pieces[i], w[i]);
        UNROLL
        for (u32 row = 0; row < ROWS; row++) {
            float x[PIECE<T>];
            load_x<T, X>(rows + row * p.stride + k, x);
            UNROLL
            for (u32 j = 0; j < PIECE<T>; j++) {
                UNROLL
                for (u32 i = 0; i < PAIR; i++) sums[row][i] = fused(w[i][j], x[j], sums[row][i]);
            }
        }
    };
    // More would take the registers of too many sums.
    constexpr u32 STEP = WARP * PIECE<T>, PIECES = ROWS > 2 ? 2 : 4;
    u32 k = lane_index() * PIECE<T>;
    auto are_there = [&] { return k + (PIECES - 1) * STEP < p.stride; };
    uint4 pieces[PIECES][PAIR];
    auto load = [&] {
        UNROLL
        for (u32 a = 0; a < PIECES; a++) load_pair<T>(weight, k + a * STEP, pieces[a]);
    };
    if (are_there()) load();
    load_rows<T, X, ROWS>(p, first_row, rows);
    if (!has_columns) return;
    for (bool is_first = true; are_there(); k += PIECES * STEP, is_first = false) {
        if (!is_first) load();
        UNROLL
        for (u32 a = 0; a < PIECES; a++) add(pieces[a], k + a * STEP);
    }
    for (; k < p.stride; k += STEP) {
        load_pair<T>(weight, k, pieces[0]);
        add(pieces[0], k);
    }
    UNROLL
    for (u32 row = 0; row < ROWS; row++) {
        Columns<PAIR> results;
        UNROLL
        for (u32 i = 0; i < PAIR; i++) results.at[i] = warp_sum(sums[row][i]);
        if (lane_index() != 0 || first_row + row >= p.rows) continue;
        finish(p, first_row + row, n, sum_of(results, bias_of<PAIR>(p, n)), before<PAIR>(p, first_row + row, n));
    }
}

#define LINEAR_KERNEL(name, T, X, rows) \
    KERNEL_READING_AHEAD(name##_##rows, LINEAR_THREADS, Linear, fetch_weight<T>, (linear<T, X, rows>))
#define LINEAR_KERNELS(rows)                       \
    LINEAR_KERNEL(linear_f32, float, float, rows)  \
    LINEAR_KERNEL(linear_bf16, Bf16, Bf16, rows)   \
    LINEAR_KERNEL(linear_f16, F16, float, rows)

LINEAR_KERNELS(1)
LINEAR_KERNELS(2)
LINEAR_KERNELS(4)
LINEAR_KERNELS(8)
