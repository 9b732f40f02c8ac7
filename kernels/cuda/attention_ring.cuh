// Chunks of K and V from the paged cache on their way into a ring of slots in shared memory.
//
// For each unit come the chunks of K that any row of the tile sees, then those of V. All threads
// copy, 16 bytes at a time, SLOTS - 1 chunks ahead of the one in use; tokens that no row sees become
// zeros and their blocks are not touched, since they may be somebody else's or nobody's.
//
// From an fp8 cache come codes, and the scales of a chunk's tokens behind them. When a chunk is taken,
// all threads widen it into a place of its own, as a chunk of a bf16 cache lies in a slot.
#pragma once
#include "attention_tile.cuh"
#include "kv_fp8.cuh"

template <class Math>
struct Ring {
    using T = typename Math::Element;
    static constexpr bool HAS_SCALES = Math::HAS_SCALES;
    // Elements of 16 bytes.
    static constexpr u32 PIECE = 16 / sizeof(T);

    const Attention& p;
    const Tile& tile;
    u8* slots;
    u32 head_dim;
    u32 end_unit;
    u32 read = 0;
    // The chunk to be fetched next, and its slot.
    u32 unit;
    u32 chunk;
    bool is_value = false;
    u32 write = 0;
    // Lane i's is the i-th block of that chunk.
    u32 blocks;

    static __device__ __forceinline__ u32 slot_bytes(u32 head_dim) {
        return Math::CHUNK * (Math::slot_row_bytes(head_dim) + HAS_SCALES);
    }

    // Of all slots, and of a widened chunk.
    static __device__ __forceinline__ u32 bytes(u32 head_dim) {
        return Math::SLOTS * slot_bytes(head_dim) + (HAS_SCALES ? Math::CHUNK * Math::row_bytes(head_dim) : 0);
    }

    // Asks for the first blocks, for which the tile need not know its rows.
    __device__ __forceinline__ Ring(const Attention& p, const Tile& tile, u8* slots)
        : p(p), tile(tile), slots(slots), head_dim(Math::dim(p)) {
        unit = max_of(tile.piece.first_unit, tile.keys.from / UNIT);
        end_unit = tile.piece.first_unit + tile.piece.num_units;
        chunk = chunks(unit).from;
        look_up();
    }

    // Begins to copy. The units that any row sees, of the piece's.
    __device__ __forceinline__ Range start() {
        end_unit = min_of(end_unit, div_up(tile.keys.to, UNIT));
        Range units = {unit, end_unit};
        for (u32 i = 0; i + 1 < Math::SLOTS; i++) fetch();
        return units;
    }

    // Chunks of a unit that hold a key that any row sees.
    __device__ __forceinline__ Range chunks(u32 unit) const {
        return {max_of(tile.keys.from, unit * UNIT) / Math::CHUNK,
                div_up(min_of(tile.keys.to, (unit + 1) * UNIT), Math::CHUNK)};
    }

    // The next chunk, which is number `chunk`, for all threads. Frees the one before it.
    __device__ __forceinline__ const u8* take(u32 chunk) {
        wait_copies<Math::SLOTS - 2>();
        sync_block();
        fetch();
        const u8* slot = slots + read * slot_bytes(head_dim);
        read = read + 1 == Math::SLOTS ? 0 : read + 1;
        if constexpr (HAS_SCALES) {
            u8* widened = slots + Math::SLOTS * slot_bytes(head_dim);
            widen(slot, chunk, widened);
            sync_block();
            return widened;
        } else {
            return slot;
        }
    }

    // Codes times their token's scale. Of a token that no row sees anything may be the scale.
    __device__ __forceinline__ void widen(const u8* slot, u32 chunk, u8* widened) const {
        u32 pieces = head_dim / 8;
        for (u32 i = thread_index(); i < Math::CHUNK * pieces; i += Math::THREADS) {
            u32 place = i / pieces, piece = i % pieces;
            u32 scale = slot[Math::CHUNK * head_dim + place];
            u32 pair = tile.keys.has(chunk * Math::CHUNK + place) ? bf16_pair_of_scale(scale) : 0;
            uint4 values = bf16_of_codes(*(const uint2*)(slot + i * 8), pair);
            *(uint4*)(widened + place * Math::row_bytes(head_dim) + piece * 16) = values;
        }
    }

    // Begins to copy the next chunk, if there is one. A group of copies in any case: waits count them.
    __device__ __forceinline__ void fetch() {
        if (unit < end_unit) {
            copy_chunk();
            step();
            look_up();
        }
        commit_copies();
    }

    __device__ __forceinline__ void copy_chunk() {
        const T* plane = (const T*)(is_value ? p.values : p.keys);
        u8* slot = slots + write * slot_bytes(head_dim);
        u32 pieces = head_dim / PIECE, in_block = (1u << p.block_bits) - 1;
        // CHUNK is a multiple of the warp, so a warp's lanes all are in the loop or none.
        for (u32 i = thread_index(); i < Math::CHUNK * pieces; i += Math::THREADS) {
            u32 place = i / pieces, piece = i % pieces;
            u32 token = chunk * Math::CHUNK + place;
            u64 head = head_of(token);
            bool is_seen = tile.keys.has(token);
            // Each token before those of this block and head has a scale, too.
            u64 at = HAS_SCALES ? head * (head_dim + 1) + (token & in_block) * head_dim + piece * PIECE
                                : (head + (token & in_block)) * head_dim + piece * PIECE;
            const T* from = is_seen ? plane + at : plane;
            copy_async(slot + place * Math::slot_row_bytes(head_dim) + piece * 16, from, is_seen ? 16 : 0);
        }
        if constexpr (HAS_SCALES) {
            if (warp_index() == 0) copy_scales((const u8*)plane, slot);
        }
    }

    // Tokens of the plane before those of a token's block and this KV head. For all lanes of a warp.
    __device__ __forceinline__ u64 head_of(u32 token) const {
        u32 block = shuffle(blocks, (token >> p.block_bits) - (chunk * Math::CHUNK >> p.block_bits));
        return ((u64)block * p.num_kv + tile.kv_head) << p.block_bits;
    }

    // A lane copies the scales of 16 tokens, which are of one block: a warp does all of a chunk.
    __device__ __forceinline__ void copy_scales(const u8* plane, u8* slot) {
        u32 first = lane_index() * 16, token = chunk * Math::CHUNK + first;
        u64 head = head_of(token);
        if (first >= Math::CHUNK) return;
        bool is_seen = token < tile.keys.to && token + 16 > tile.keys.from;
        u64 at = (u64)(head_dim << p.block_bits) + head * (head_dim + 1) + (token & ((1u << p.block_bits) - 1));
        copy_async(slot + Math::CHUNK * head_dim + first, is_seen ? plane + at : plane, is_seen ? 16 : 0);
    }

    __device__ __forceinline__ void step() {
        write = write + 1 == Math::SLOTS ? 0 : write + 1;
        if (++chunk < chunks(unit).to) return;
        if (is_value) unit++;
        is_value = !is_value;
        chunk = chunks(unit).from;
    }

    // Asks for the blocks of the chunk a step before they are needed.
    __device__ __forceinline__ void look_up() {
        u32 block = (chunk * Math::CHUNK >> p.block_bits) + lane_index();
        // A chunk has at most this many blocks, as a block has 16 tokens or more.
        bool is_there = unit < end_unit && lane_index() < Math::CHUNK / 16 && block < tile.piece.num_blocks;
        blocks = is_there ? p.block_table[(u64)tile.piece.table + block] : NO_SLOT;
    }
};
