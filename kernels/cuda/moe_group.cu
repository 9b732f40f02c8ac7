// Rows by expert: puts pairs of a row and a chosen expert in ascending order of expert, and cuts each
// expert's into tiles.
//
// A block for each expert. It counts all pairs, which tells where its own begin, then gathers its own
// in ascending order; so the order is one, whoever comes first. How many tiles there are is known on
// the device alone: the last block marks the rest of the list as empty.
#include "linear_tile.cuh"

constexpr u32 GROUP_THREADS = 256;
constexpr u32 GROUP_WARPS = GROUP_THREADS / WARP;

struct Group {
    const u32* experts;  // [num_pairs]
    u32* order;          // [num_pairs]
    RowTile* tiles;      // [num_tiles]
    u32 num_pairs;
    u32 num_experts;
    u32 num_tiles;
    u32 tile_rows;
};

// Pairs of earlier experts, and tiles of them; pairs of this one.
struct Share {
    u32 first, first_tile, count;
};

__device__ __forceinline__ Share share_of(const Group& p, u32 expert, u32* counts, u32* sums) {
    for (u32 i = thread_index(); i < p.num_experts; i += GROUP_THREADS) counts[i] = 0;
    if (thread_index() < 2) sums[thread_index()] = 0;
    sync_block();
    for (u32 i = thread_index(); i < p.num_pairs; i += GROUP_THREADS) add_atomic(counts + p.experts[i], 1);
    sync_block();
    for (u32 i = thread_index(); i < expert; i += GROUP_THREADS) {
        add_atomic(sums, counts[i]);
        add_atomic(sums + 1, div_up(counts[i], p.tile_rows));
    }
    sync_block();
    return {sums[0], sums[1], counts[expert]};
}

__device__ void group(const Group& p) {
    u32* counts = (u32*)shared_bytes();
    u32* sums = counts + p.num_experts;
    u32* found = sums + 2;
    u32 expert = blockIdx.x;
    Share share = share_of(p, expert, counts, sums);
    u32 end_tile = share.first_tile + div_up(share.count, p.tile_rows);
    u32 last = expert + 1 == p.num_experts ? p.num_tiles : end_tile;
    for (u32 i = share.first_tile + thread_index(); i < last; i += GROUP_THREADS) {
        u32 row = (i - share.first_tile) * p.tile_rows;
        u32 rows = i < end_tile ? min_of(share.count - row, p.tile_rows) : 0;
        p.tiles[i] = {expert, share.first + row, rows, 0};
    }
    u32 next = share.first;
    for (u32 first = 0; first < p.num_pairs; first += GROUP_THREADS) {
        u32 pair = first + thread_index();
        bool is_own = pair < p.num_pairs && p.experts[pair] == expert;
        u32 own = lanes_where(is_own);
        if (lane_index() == 0) found[warp_index()] = count_bits(own);
        sync_block();
        u32 to = next + count_bits(own & ((1u << lane_index()) - 1));
        for (u32 warp = 0; warp < GROUP_WARPS; warp++) {
            if (warp < warp_index()) to += found[warp];
            next += found[warp];
        }
        if (is_own) p.order[to] = pair;
        sync_block();
    }
}

KERNEL(moe_group, GROUP_THREADS, Group, group)
