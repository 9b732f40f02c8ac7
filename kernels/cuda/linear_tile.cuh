// Which part of a product on matrix units a block computes, and how its warps share it.
//
// A block has a tile: COLUMNS columns of the result (rows of the weight) of up to ROWS rows of x.
#pragma once
#include "halves.cuh"
#include "linear_epilogue.cuh"
#include "quantized.cuh"

// k is cut into chunks at multiples of this.
constexpr u32 CHUNK_UNIT = 64;
// Blocks that run at the same time share weights over so many row tiles, and x over the columns.
constexpr u32 ROW_TILES_TOGETHER = 8;
constexpr u32 NO_ROW = 0xffffffff;

// Rows that meet the same expert.
struct alignas(16) RowTile {
    u32 expert;
    u32 first;     // in `order`
    u32 num_rows;  // 0: nothing to do
    u32 unused;
};

struct TensorLinear {
    Linear linear;         // its `experts` are not read
    const RowTile* tiles;  // [row_tiles]; null: tile i has rows from i * ROWS on
    const u32* order;      // with tiles: rows of the result in ascending order of expert
    float* partials;       // [chunks, tiles, ROWS, COLUMNS]: a block has one chunk; null: a block has all
    u32* arrivals;         // [tiles] zeros, before and after
    u32 chunks;            // parts of k whose sums join in ascending order, none of them empty
    u32 row_tiles;
    u32 column_tiles;
};

// The type in which rows of x meet a weight.
template <class T>
struct RowType {
    using X = T;
};
template <>
struct RowType<E4m3> {
    using X = F16;
};

// Parts of x that an element of a weight meets: bf16 rounds x, f16 splits it.
template <class T>
constexpr u32 PARTS_OF = 1;
template <>
constexpr u32 PARTS_OF<F16> = 2;
template <>
constexpr u32 PARTS_OF<E4m3> = 2;

// Where a piece of 16 bytes of a row, of PIECES, lies in a slot: in eight rows one below the other, in
// different banks.
template <u32 PIECES>
__device__ __forceinline__ u32 place(u32 row, u32 piece) {
    return (row * PIECES + (piece ^ row / (8 / PIECES) % PIECES)) * 16;
}

// COLUMN_WARPS by ROW_WARPS warps, each with TALL products of 16 columns by NARROW of 8 rows; a slot
// of the ring holds STEP elements of k.
template <class T_, u32 COLUMN_WARPS_, u32 ROW_WARPS, u32 TALL_, u32 NARROW_, u32 STEP_>
struct Tiling {
    using T = T_;
    using X = typename RowType<T>::X;
    static constexpr u32 COLUMN_WARPS = COLUMN_WARPS_;
    static constexpr u32 THREADS = COLUMN_WARPS * ROW_WARPS * WARP;
    static constexpr u32 TALL = TALL_;
    static constexpr u32 NARROW = NARROW_;
    static constexpr u32 WARP_COLUMNS = TALL * 16;
    static constexpr u32 WARP_ROWS = NARROW * 8;
    static constexpr u32 COLUMNS = COLUMN_WARPS * WARP_COLUMNS;
    static constexpr u32 ROWS = ROW_WARPS * WARP_ROWS;
    static constexpr u32 STEP = STEP_;
    // What chunks are multiples of.
    static constexpr u32 UNIT = CHUNK_UNIT;
    // Of 16 bytes, of a row in a slot.
    static constexpr u32 WEIGHT_PIECES = STEP * sizeof(T) / 16;
    static constexpr u32 X_PIECES = STEP / 8;
    static constexpr u32 PARTS = PARTS_OF<T>;
    // As many bytes of the weight under way, whatever its type.
    static constexpr u32 SLOTS = 8 / sizeof(T);
    static constexpr u32 WEIGHT_BYTES = COLUMNS * STEP * sizeof(T);
    static constexpr u32 PART_BYTES = ROWS * STEP * 2;
    static constexpr u32 X_BYTES = PARTS * PART_BYTES;
    // Slots of the weight, two of x.
    static constexpr u32 RING_BYTES = SLOTS * WEIGHT_BYTES + 2 * X_BYTES;
    static_assert(CHUNK_UNIT % STEP == 0 && STEP % 32 == 0 && NARROW % 2 == 0);
};

// Which of a grid of tiles.
struct TilePlace {
    u32 row_tile, column_tile;
};

// The `index`-th of them: neighbours share rows of x, or of the weight.
__device__ __forceinline__ TilePlace place_of(u32 index, u32 row_tiles, u32 column_tiles) {
    u32 together = ROW_TILES_TOGETHER * column_tiles;
    u32 first = index / together * ROW_TILES_TOGETHER, within = index % together;
    u32 size = min_of(row_tiles - first, ROW_TILES_TOGETHER);
    return {first + within % size, within / size};
}

// Of a tile's first result.
struct Corner {
    u32 row, column;
};

// Of the `tile`-th that has M::ROWS by M::COLUMNS results.
template <class M, class P>
__device__ __forceinline__ Corner corner_of(const P& p, u32 tile) {
    TilePlace place = place_of(tile, p.row_tiles, p.column_tiles);
    return {place.row_tile * M::ROWS, place.column_tile * M::COLUMNS};
}

// A block's tile.
template <class M>
struct Tile {
    u32 row_tile;
    u32 first_column;
    u32 expert;
    u32 first_row;  // in `order` if there is one
    u32 num_rows;

    __device__ __forceinline__ Tile(const TensorLinear& p) {
        TilePlace place = place_of(blockIdx.x, p.row_tiles, p.column_tiles);
        row_tile = place.row_tile;
        first_column = place.column_tile * M::COLUMNS;
        expert = 0;
        first_row = row_tile * M::ROWS;
        num_rows = min_of(p.linear.rows - first_row, M::ROWS);
        if (p.tiles) {
            RowTile tile = p.tiles[row_tile];
            expert = tile.expert;
            first_row = tile.first;
            num_rows = tile.num_rows;
        }
    }

    // Its index among all tiles.
    __device__ __forceinline__ u64 index(const TensorLinear& p) const {
        return (u64)row_tile * p.column_tiles + first_column / M::COLUMNS;
    }
};
