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
        if constexpr (FROM == REGISTERS) hold_operands(fragments);
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

// Tiles one after another through a ring, as kernels bring their operands.
struct TileRing {
    TensorMap map;  // [64 * tiles, 64] of 2 bytes
    u32* out;       // [tiles, RING_WORDS]: each tile as it lies in shared memory
    u32 tiles;
};

constexpr u32 RING_SLOTS = 3;
constexpr u32 RING_BYTES = 64 * LINE_BYTES;
constexpr u32 RING_WORDS = RING_BYTES / 4;
constexpr u32 RING_READERS = 2 * WARPGROUP;
// Where warpgroups meet.
constexpr u32 AFTER_FIRST = 1, AFTER_SECOND = 2;

__device__ void bring_tiles(const TileRing& p, u64* full, u64* empty) {
    wait_for_kernels();
    for (u32 i = 0; i < p.tiles; i++) {
        u32 slot = i % RING_SLOTS;
        wait_phase(empty + slot, (i / RING_SLOTS + 1) % 2);
        arrive_expecting(full + slot, RING_BYTES);
        copy_tile(shared_bytes() + slot * RING_BYTES, &p.map, full + slot, 0, i * 64);
    }
    let_next_kernel_start();
}

// Two warpgroups in turns: the second reads a tile after the first has, the first goes on after the second.
__device__ void read_tiles(const TileRing& p, u64* full, u64* empty) {
    bool is_second = thread_index() >= 2 * WARPGROUP;
    for (u32 i = 0; i < p.tiles; i++) {
        u32 slot = i % RING_SLOTS;
        if (is_second || i > 0) meet_at(is_second ? AFTER_FIRST : AFTER_SECOND, RING_READERS);
        wait_phase(full + slot, i / RING_SLOTS % 2);
        const u32* tile = (const u32*)(shared_bytes() + slot * RING_BYTES);
        for (u32 word = thread_index() - WARPGROUP; word < RING_WORDS; word += RING_READERS) {
            p.out[i * RING_WORDS + word] = tile[word];
        }
        arrive(empty + slot);
        if (!is_second || i + 1 < p.tiles) pass_by(is_second ? AFTER_SECOND : AFTER_FIRST, RING_READERS);
    }
}

__device__ void turn_ring(const TileRing& p) {
    u64 *full = (u64*)(shared_bytes() + 2 * TILE_MAX), *empty = full + RING_SLOTS;
    if (thread_index() == 0) {
        for (u32 i = 0; i < RING_SLOTS; i++) {
            init_barrier(full + i, 1);
            init_barrier(empty + i, RING_READERS);
        }
        publish_barriers();
    }
    sync_block();
    if (thread_index() < WARPGROUP) {
        give_registers<40>();
        if (thread_index() == 0) bring_tiles(p, full, empty);
    } else {
        take_registers<232>();
        read_tiles(p, full, empty);
    }
}

HOPPER_KERNEL(tile_ring, 3 * WARPGROUP, TileRing, turn_ring)

// Products after products of the same tiles in shared memory: what the units do at most.
struct ProductRate {
    float* out;  // [threads of the grid]
    u32 turns;
};

constexpr u32 RATE_COLUMNS = 256;
// Products of each turn, of 2 * 64 * RATE_COLUMNS * 16 operations for a warpgroup.
constexpr u32 RATE_PRODUCTS = 32;

__device__ void products_at_rate(const ProductRate& p) {
    u8 *a = shared_bytes(), *b = a + TILE_MAX;
    // Numbers of either sign below a half, that no short pattern repeats.
    for (u32 i = thread_index(); i < 2 * TILE_MAX / 4; i += 2 * WARPGROUP) {
        u32 bits = i * 2654435761u;
        ((u32*)a)[i] = (bits & 0x807f807f) | 0x3e803e80;
    }
    publish_stores();
    sync_block();
    u64 on_a = operand(a + thread_index() / WARPGROUP * ROWS * LINE_BYTES), on_b = operand(b);
    float sums[RATE_COLUMNS / 2];
    UNROLL
    for (u32 i = 0; i < RATE_COLUMNS / 2; i++) sums[i] = 0.0f;
    for (u32 turn = 0; turn < p.turns; turn++) {
        hold_sums(sums);
        fence_products();
        UNROLL
        for (u32 i = 0; i < RATE_PRODUCTS; i++) {
            u32 step = i % 4 * STEP_BYTES;
            multiply_tiles(Bf16{}, sums, moved(on_a, step), moved(on_b, step), true);
        }
        commit_products();
        wait_products<0>();
        hold_sums(sums);
    }
    float sum = 0.0f;
    UNROLL
    for (u32 i = 0; i < RATE_COLUMNS / 2; i++) sum += sums[i];
    p.out[blockIdx.x * 2 * WARPGROUP + thread_index()] = sum;
}

HOPPER_KERNEL(product_rate, 2 * WARPGROUP, ProductRate, products_at_rate)
