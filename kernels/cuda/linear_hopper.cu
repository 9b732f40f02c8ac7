// Products of many rows with a 16-bit weight on Hopper: out = epilogue(x * weight^T + bias).
//
// Blocks stay and take one tile after another. In each, one thread brings tiles of x and of the weight
// into a ring of slots, as far ahead as there is room, also across tiles; two warpgroups have 64 rows
// each, multiply what is there and give the slots back. Whatever lies outside x and the weight comes
// as zeros, so that only results have bounds.
// x comes from narrow_rows.cu. A sum runs over k in steps of 16: its bits come of its row and the weight.
#include "linear_result.cuh"
#include "slot_ring.cuh"

struct HopperLinear {
    TensorMap x;       // [parts, rows, k], boxes of 64 k of 128 rows of a part
    TensorMap weight;  // [n, k], boxes of 64 k of a tile's columns
    Linear linear;     // its x and weight are not read
    u32 row_tiles;
    u32 column_tiles;
};

// The shape of the work of a block. The last warpgroup brings what the others multiply.
template <class T_, u32 COLUMNS_>
struct HopperTiling {
    using T = T_;
    static constexpr u32 COLUMNS = COLUMNS_;
    static constexpr u32 CONSUMERS = 2;
    static constexpr u32 ROWS = CONSUMERS * 64;
    static constexpr u32 THREADS = (CONSUMERS + 1) * WARPGROUP;
    // Of k, in a slot: a line.
    static constexpr u32 STEP = 64;
    static constexpr u32 PARTS = PARTS_OF<T>;
    static constexpr u32 PART_BYTES = ROWS * LINE_BYTES;
    static constexpr u32 X_BYTES = PARTS * PART_BYTES;
    static constexpr u32 SLOT_BYTES = X_BYTES + COLUMNS * LINE_BYTES;
    // Of a thread.
    static constexpr u32 SUMS = COLUMNS / 2;
    // A warp's results on their way out: 16 rows of so many columns at a time.
    static constexpr u32 PATCH_COLUMNS = 32;
    static constexpr u32 PATCH_STRIDE = PATCH_COLUMNS + 8;
    static constexpr u32 PATCH_FLOATS = 16 * PATCH_STRIDE;
    static constexpr u32 PATCHES_BYTES = CONSUMERS * 4 * PATCH_FLOATS * 4;
    static constexpr u32 SLOTS = (RING_ROOM - PATCHES_BYTES) / SLOT_BYTES;
    static constexpr u32 BEFORE_BYTES = 0;
    static constexpr u32 RING_BYTES = SLOTS * SLOT_BYTES;
    static_assert(SLOTS >= 3 && SLOT_BYTES % LINES_BYTES == 0);
};

// One thread's.
template <class M>
__device__ __forceinline__ void produce(const HopperLinear& p, SlotRing<M> ring) {
    for (u32 tile = blockIdx.x; tile < p.row_tiles * p.column_tiles; tile += gridDim.x) {
        Corner corner = corner_of<M>(p, tile);
        for (u32 k = 0; k < p.linear.k; k += M::STEP) {
            u64* full = ring.full + ring.slot;
            wait_phase(ring.empty + ring.slot, ring.parity ^ 1);
            arrive_expecting(full, M::SLOT_BYTES);
            UNROLL
            for (u32 part = 0; part < M::PARTS; part++) {
                copy_tile(ring.bytes() + part * M::PART_BYTES, &p.x, full, k, corner.row, part);
            }
            copy_tile(ring.bytes() + M::X_BYTES, &p.weight, full, k, corner.column);
            ring.step();
        }
    }
}

// Sums of 64 rows of a tile. The warp frees each slot when the next one's products are under way.
template <class M>
__device__ __forceinline__ void multiply_tile(const HopperLinear& p, SlotRing<M>& ring, u32 first_row,
                                              float (&sums)[M::SUMS]) {
    // The slot before: none yet.
    u32 before = M::SLOTS;
    for (u32 k = 0; k < p.linear.k; k += M::STEP) {
        wait_phase(ring.full + ring.slot, ring.parity);
        u64 x = operand(ring.bytes() + first_row * LINE_BYTES), weight = operand(ring.bytes() + M::X_BYTES);
        hold_sums(sums);
        fence_products();
        UNROLL
        for (u32 i = 0; i < M::STEP / 16 * M::PARTS; i++) {
            u32 at = i / M::PARTS * STEP_BYTES, part = i % M::PARTS;
            multiply_tiles(typename M::T{}, sums, moved(x, part * M::PART_BYTES + at), moved(weight, at), k + i > 0);
        }
        commit_products();
        wait_products<1>();
        hold_sums(sums);
        if (before < M::SLOTS && lane_index() == 0) arrive(ring.empty + before);
        before = ring.slot;
        ring.step();
    }
    wait_products<0>();
    hold_sums(sums);
    if (lane_index() == 0) arrive(ring.empty + before);
}

// Puts a warp's sums, 16 rows, into the order of the result, some columns after others. Rows of its
// patch of shared memory lie so far apart that the lanes of a store meet different banks. Sums are
// registers, so that each pass has code of its own to put them down; one that all passes share finishes
// them, since what every epilogue takes, eight times over, is more than a multiprocessor keeps of code.
template <class M>
__device__ __forceinline__ void put_tile(const Linear& p, Corner corner, u32 first_row, const float (&sums)[M::SUMS]) {
    float* patch = (float*)(shared_bytes() + M::RING_BYTES) + warp_index() * M::PATCH_FLOATS;
    u32 lane = lane_index();
    ROLLED
    for (u32 first = 0; first < M::COLUMNS; first += M::PATCH_COLUMNS) {
        with_part<M::PATCH_COLUMNS / 2>(sums, first / 2, [&](const float* part) {
            UNROLL
            for (u32 i = 0; i < M::PATCH_COLUMNS / 4; i++) {
                u32 row = i % 2 * 8 + lane / 4, column = i / 2 * 8 + lane % 4 * 2;
                *(Columns<2>*)(patch + row * M::PATCH_STRIDE + column) = {part[i * 2], part[i * 2 + 1]};
            }
        });
        sync_warp();
        finish_spots<16 * M::PATCH_COLUMNS / 4 / WARP, true>(p, [&](u32 i) {
            u32 row = i * 4 + lane / 8, column = lane % 8 * 4;
            u32 of_result = corner.row + first_row + warp_index() % 4 * 16 + row;
            const float* from = patch + row * M::PATCH_STRIDE + column;
            return Spot{of_result < p.rows ? of_result : NO_ROW, corner.column + first + column, from};
        });
        sync_warp();
    }
}

// A warpgroup's.
template <class M>
__device__ __forceinline__ void consume(const HopperLinear& p, SlotRing<M> ring, u32 warpgroup) {
    u32 first_row = warpgroup * 64;
    for (u32 tile = blockIdx.x; tile < p.row_tiles * p.column_tiles; tile += gridDim.x) {
        float sums[M::SUMS];
        multiply_tile(p, ring, first_row, sums);
        put_tile<M>(p.linear, corner_of<M>(p, tile), first_row, sums);
    }
}

template <class M>
__device__ void linear_hopper(const HopperLinear& p) {
    run_ring<M>([&p](SlotRing<M> ring) { produce(p, ring); },
                [&p](SlotRing<M> ring, u32 warpgroup) { consume(p, ring, warpgroup); });
}

#define LINEAR_HOPPER(name, T, columns)                                               \
    HOPPER_KERNEL_READING_AHEAD(linear_hopper_##name, (HopperTiling<T, columns>::THREADS), HopperLinear, fetch_maps, \
                                (linear_hopper<HopperTiling<T, columns>>))

LINEAR_HOPPER(bf16_128, Bf16, 128)
LINEAR_HOPPER(bf16_256, Bf16, 256)
LINEAR_HOPPER(f16_128, F16, 128)
LINEAR_HOPPER(f16_256, F16, 256)
