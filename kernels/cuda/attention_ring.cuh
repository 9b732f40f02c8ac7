// Chunks of K and V from the paged cache on their way into a ring of slots in shared memory.
//
// For each unit come the chunks of K that any row of the tile sees, then those of V. All threads
// copy, 16 bytes at a time, SLOTS - 1 chunks ahead of the one in use; tokens that no row sees become
// zeros and their blocks are not touched, since they may be somebody else's or nobody's.
#pragma once
#include "attention_tile.cuh"

template <class Math>
struct Ring {
    using T = typename Math::Element;
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

    // The next chunk, for all threads. Frees the one before it.
    __device__ __forceinline__ const u8* take() {
        wait_copies<Math::SLOTS - 2>();
        sync_block();
        fetch();
        const u8* slot = slots + read * Math::CHUNK * Math::row_bytes(head_dim);
        read = read + 1 == Math::SLOTS ? 0 : read + 1;
        return slot;
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
        u8* slot = slots + write * Math::CHUNK * Math::row_bytes(head_dim);
        u32 pieces = head_dim / PIECE, in_block = (1u << p.block_bits) - 1;
        // CHUNK is a multiple of the warp, so a warp's lanes all are in the loop or none.
        for (u32 i = thread_index(); i < Math::CHUNK * pieces; i += Math::THREADS) {
            u32 place = i / pieces, piece = i % pieces;
            u32 token = chunk * Math::CHUNK + place;
            u32 block = shuffle(blocks, (token >> p.block_bits) - (chunk * Math::CHUNK >> p.block_bits));
            bool is_seen = tile.keys.has(token);
            u64 row = (((u64)block * p.num_kv + tile.kv_head) << p.block_bits) + (token & in_block);
            const T* from = is_seen ? plane + row * head_dim + piece * PIECE : plane;
            copy_async(slot + place * Math::row_bytes(head_dim) + piece * 16, from, is_seen ? 16 : 0);
        }
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
