// Rows by expert: puts pairs of a row and a chosen expert in ascending order of expert, and cuts each
// expert's into tiles.
//
// A block for each expert. It counts all pairs, which tells where its own begin, then gathers its own
// in ascending order; so the order is one, whoever comes first. How many tiles there are is known on
// the device alone: the last block marks the rest of the list as empty. Every block reads all pairs twice, so
// a thread reads four at a time: 8192 rows of eight experts take 16 turns.
#include "linear_tile.cuh"

constexpr u32 GROUP_THREADS = 1024;
constexpr u32 GROUP_WARPS = GROUP_THREADS / WARP;
// Neighbouring pairs of a thread.
constexpr u32 PAIRS = 4;
constexpr u32 NO_EXPERT = ~0u;

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

// Experts of a thread's pairs, `first` the first of them.
__device__ __forceinline__ void read_pairs(const Group& p, u32 first, u32 (&experts)[PAIRS]) {
    if (first + PAIRS <= p.num_pairs) {
        uint4 all = *(const uint4*)(p.experts + first);
        experts[0] = all.x, experts[1] = all.y, experts[2] = all.z, experts[3] = all.w;
        return;
    }
    UNROLL
    for (u32 i = 0; i < PAIRS; i++) experts[i] = first + i < p.num_pairs ? p.experts[first + i] : NO_EXPERT;
}

__device__ __forceinline__ Share share_of(const Group& p, u32 expert, u32* counts, u32* sums) {
    for (u32 i = thread_index(); i < p.num_experts; i += GROUP_THREADS) counts[i] = 0;
    if (thread_index() < 2) sums[thread_index()] = 0;
    sync_block();
    for (u32 first = thread_index() * PAIRS; first < p.num_pairs; first += GROUP_THREADS * PAIRS) {
        u32 experts[PAIRS];
        read_pairs(p, first, experts);
        UNROLL
        for (u32 i = 0; i < PAIRS; i++) {
            if (experts[i] != NO_EXPERT) add_atomic(counts + experts[i], 1);
        }
    }
    sync_block();
    for (u32 i = thread_index(); i < expert; i += GROUP_THREADS) {
        add_atomic(sums, counts[i]);
        add_atomic(sums + 1, div_up(counts[i], p.tile_rows));
    }
    sync_block();
    return {sums[0], sums[1], counts[expert]};
}

// The expert's pairs, in their order.
__device__ __forceinline__ void gather(const Group& p, u32 expert, u32 next, u32* found) {
    for (u32 first = 0; first < p.num_pairs; first += GROUP_THREADS * PAIRS) {
        u32 pair = first + thread_index() * PAIRS;
        u32 experts[PAIRS], before = 0, in_warp = 0;
        read_pairs(p, pair, experts);
        UNROLL
        for (u32 i = 0; i < PAIRS; i++) {
            u32 own = lanes_where(experts[i] == expert);
            before += count_bits(own & ((1u << lane_index()) - 1));
            in_warp += count_bits(own);
        }
        if (lane_index() == 0) found[warp_index()] = in_warp;
        sync_block();
        // Each lane has a warp's: what is before the thread's own warp in the upper half of a sum, all in the
        // lower one. They are 4096 at most.
        u32 sum = found[lane_index()] * (lane_index() < warp_index() ? 0x10001 : 1);
        for (u32 distance = WARP / 2; distance > 0; distance /= 2) sum += shuffle_xor(sum, distance);
        u32 to = next + (sum >> 16) + before;
        UNROLL
        for (u32 i = 0; i < PAIRS; i++) {
            if (experts[i] == expert) p.order[to++] = pair + i;
        }
        next += sum & 0xffff;
        sync_block();
    }
}

__device__ void group(const Group& p) {
    u32* counts = (u32*)shared_bytes();
    u32* sums = counts + p.num_experts;
    u32 expert = blockIdx.x;
    Share share = share_of(p, expert, counts, sums);
    u32 end_tile = share.first_tile + div_up(share.count, p.tile_rows);
    u32 last = expert + 1 == p.num_experts ? p.num_tiles : end_tile;
    for (u32 i = share.first_tile + thread_index(); i < last; i += GROUP_THREADS) {
        u32 row = (i - share.first_tile) * p.tile_rows;
        u32 rows = i < end_tile ? min_of(share.count - row, p.tile_rows) : 0;
        p.tiles[i] = {expert, share.first + row, rows, 0};
    }
    gather(p, expert, share.first, sums + 2);
}

static_assert(GROUP_WARPS == WARP && GROUP_THREADS * PAIRS < 1 << 16);

KERNEL(moe_group, GROUP_THREADS, Group, group)
