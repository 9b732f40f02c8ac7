// Hopper's instructions by themselves: tiles as copies leave them in shared memory, and products of
// every kind. What the wrappers of ptx90.cuh do on the device must be what their emulation does.
#include "ptx90.cuh"

// Where the one tile, or both operands, and the barrier lie.
constexpr u32 TILE_MAX = 32768;
constexpr u32 K_AT_ONCE = 64;
constexpr u32 ROWS = 64;

__device__ __forceinline__ u64* the_barrier(u32 arrivals) {
    u64* barrier = (u64*)(shared_bytes() + 2 * TILE_MAX);
    if (thread_index() == 0) {
        init_barrier(barrier, arrivals);
        publish_barriers();
    }
    sync_block();
    return barrier;
}

struct CopiedTile {
    TensorMap map;
    u32* out;   // [words]
    u32 words;  // of the tile
    u32 dimensions;
    i32 at[3];
};

// One tile, word by word as it lies in shared memory.
__device__ void show_tile(const CopiedTile& p) {
    u64* barrier = the_barrier(1);
    u32* tile = (u32*)shared_bytes();
    if (thread_index() == 0) {
        fetch_map(&p.map);
        arrive_expecting(barrier, p.words * 4);
        if (p.dimensions == 2) {
            copy_tile(tile, &p.map, barrier, p.at[0], p.at[1]);
        } else {
            copy_tile(tile, &p.map, barrier, p.at[0], p.at[1], p.at[2]);
        }
    }
    wait_phase(barrier, 0);
    for (u32 i = thread_index(); i < p.words; i += WARPGROUP) p.out[i] = tile[i];
}

HOPPER_KERNEL(copied_tile, WARPGROUP, CopiedTile, show_tile)

// How a product's first operand comes: by a copy, by plain stores, or in registers.
enum From : u32 { COPIED, STORED, REGISTERS };

struct TileProduct {
    TensorMap a;      // [64, k]
    TensorMap b;      // [columns, k], or [k, columns] if transposed
    const u16* plain; // a once more
    float* out;       // [64, columns]
    u32 k;            // a multiple of 64
};

// Of this lane, in the four words that step `step` of a product takes.
__device__ __forceinline__ void load_fragment(const TileProduct& p, u32 step, u32 (&a)[4]) {
    UNROLL
    for (u32 i = 0; i < 4; i++) {
        u32 row = warp_index() * 16 + lane_index() / 4 + i % 2 * 8;
        const u16* from = p.plain + row * p.k + step * 16 + i / 2 * 8 + lane_index() % 4 * 2;
        a[i] = from[0] | (u32)from[1] << 16;
    }
}

__device__ __forceinline__ void store_lines(const TileProduct& p, u32 first_k, u8* to) {
    for (u32 i = thread_index(); i < ROWS * K_AT_ONCE / 8; i += WARPGROUP) {
        u32 row = i / 8, piece = i % 8;
        const u16* from = p.plain + row * p.k + first_k + piece * 8;
        *(uint4*)(to + row * LINE_BYTES + (piece ^ row % 8) * 16) = *(const uint4*)from;
    }
    publish_stores();
    sync_block();
}

template <class T, u32 COUNT, From FROM, bool TRANSPOSED>
__device__ void tile_product(const TileProduct& p) {
    constexpr u32 COLUMNS = COUNT * 2;
    u64* barrier = the_barrier(1);
    u8 *a = shared_bytes(), *b = a + TILE_MAX;
    float sums[COUNT];
    for (u32 k = 0; k < p.k; k += K_AT_ONCE) {
        if (thread_index() == 0) {
            arrive_expecting(barrier, (COLUMNS + (FROM == COPIED ? ROWS : 0)) * LINE_BYTES);
            if (FROM == COPIED) copy_tile(a, &p.a, barrier, k, 0);
            if (TRANSPOSED) {
                for (u32 i = 0; i < COLUMNS / 64; i++) copy_tile(b + i * 64 * LINE_BYTES, &p.b, barrier, i * 64, k);
            } else {
                copy_tile(b, &p.b, barrier, k, 0);
            }
        }
        if (FROM == STORED) store_lines(p, k, a);
        wait_phase(barrier, k / K_AT_ONCE % 2);
        u32 fragments[4][4];
        UNROLL
        for (u32 step = 0; step < 4; step++) {
            if (FROM == REGISTERS) load_fragment(p, k / 16 + step, fragments[step]);
        }
        hold_sums(sums);
        fence_products();
        UNROLL
        for (u32 step = 0; step < 4; step++) {
            u64 on_b = TRANSPOSED ? operand(b + step * 16 * LINE_BYTES, LINES_BYTES, 64 * LINE_BYTES)
                                  : moved(operand(b), step * STEP_BYTES);
            bool is_first = k + step == 0;
            if constexpr (FROM == REGISTERS) {
                multiply_tiles<TRANSPOSED>(T{}, sums, fragments[step], on_b, !is_first);
            } else {
                multiply_tiles<TRANSPOSED>(T{}, sums, moved(operand(a), step * STEP_BYTES), on_b, !is_first);
            }
        }
        commit_products();
        wait_products<0>();
        hold_sums(sums);
        // Operands are used again.
        sync_block();
    }
    UNROLL
    for (u32 i = 0; i < COUNT; i++) {
        u32 row = warp_index() * 16 + i % 4 / 2 * 8 + lane_index() / 4, column = i / 4 * 8 + lane_index() % 4 * 2 + i % 2;
        p.out[row * COLUMNS + column] = sums[i];
    }
}

#define PRODUCT(name, T, columns, from, transposed) \
    HOPPER_KERNEL(tile_product_##name, WARPGROUP, TileProduct, (tile_product<T, columns / 2, from, transposed>))

PRODUCT(bf16_64, Bf16, 64, COPIED, false)
PRODUCT(bf16_128, Bf16, 128, STORED, false)
PRODUCT(bf16_256, Bf16, 256, COPIED, false)
PRODUCT(bf16_64_transposed, Bf16, 64, STORED, true)
PRODUCT(bf16_128_transposed, Bf16, 128, REGISTERS, true)
PRODUCT(bf16_256_transposed, Bf16, 256, REGISTERS, true)
PRODUCT(f16_64, F16, 64, REGISTERS, false)
PRODUCT(f16_128, F16, 128, COPIED, false)
PRODUCT(f16_256, F16, 256, STORED, false)
PRODUCT(f16_64_transposed, F16, 64, REGISTERS, true)
PRODUCT(f16_128_transposed, F16, 128, COPIED, true)
PRODUCT(f16_256_transposed, F16, 256, STORED, true)
