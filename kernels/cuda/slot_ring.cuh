// A ring of slots in shared memory that one thread of a block fills by the copy engine, several ahead of
// the warpgroups that empty it; and how blocks of Hopper's kernels are made of both.
#pragma once
#include "ptx90.cuh"

// A value that all lanes of a warp have, so that the compiler knows it: what is computed of it stays in
// registers that a warp shares, where products and copies take their operands from. What comes of the
// thread's index or of memory it would move there again before each of them.
__device__ __forceinline__ u32 uniform(u32 value) { return shuffle(value, 0); }

__device__ __forceinline__ u32 warpgroup_index() { return uniform(thread_index() / WARPGROUP); }

// What a block may have of shared memory, less a kibibyte for barriers.
constexpr u32 RING_ROOM = 226 << 10;

// A block's slots, in the order in which both sides walk over them. Two barriers each: bytes are
// there, and all consumers are done with them. M says what else lies in shared memory: BEFORE_BYTES before
// the slots, PATCHES_BYTES between them and the barriers.
template <class M>
struct SlotRing {
    u8* slots = shared_bytes() + M::BEFORE_BYTES;
    u64* full = (u64*)(slots + M::RING_BYTES + M::PATCHES_BYTES);
    u64* empty = full + M::SLOTS;
    u32 slot = 0;
    u32 parity = 0;

    __device__ __forceinline__ void make_barriers() const {
        if (thread_index() == 0) {
            for (u32 i = 0; i < M::SLOTS; i++) {
                init_barrier(full + i, 1);
                init_barrier(empty + i, M::CONSUMERS * (WARPGROUP / WARP));
            }
            publish_barriers();
        }
        sync_block();
    }

    __device__ __forceinline__ u8* bytes(u32 slot) const { return slots + slot * M::SLOT_BYTES; }
    __device__ __forceinline__ u8* bytes() const { return bytes(slot); }

    // The next slot, once it is full, and steps over it.
    __device__ __forceinline__ u32 take() {
        wait_phase(full + slot, parity);
        u32 taken = slot;
        step();
        return taken;
    }

    // A warp is done with a slot.
    __device__ __forceinline__ void free(u32 slot) const {
        if (lane_index() == 0) arrive(empty + slot);
    }

    __device__ __forceinline__ void step() {
        if (++slot < M::SLOTS) return;
        slot = 0;
        parity ^= 1;
    }
};

// Gives `put` the PART sums that begin at `first`, a multiple of PART. Sums are registers, which have no
// addresses: each part has code of its own.
template <u32 PART, u32 AT = 0, u32 COUNT, class Put>
__device__ __forceinline__ void with_part(const float (&sums)[COUNT], u32 first, Put put) {
    if (AT + PART == COUNT || first == AT) return put(sums + AT);
    if constexpr (AT + PART < COUNT) with_part<PART, AT + PART>(sums, first, put);
}

// A block's work: one thread of its last warpgroup fills a ring, each of the others, which is told its
// index, empties it. Registers that the one warpgroup does not need are the others'.
template <class M, class Fill, class Empty>
__device__ __forceinline__ void run_ring(Fill fill, Empty empty) {
    SlotRing<M> ring;
    ring.make_barriers();
    u32 warpgroup = warpgroup_index();
    if (warpgroup == M::CONSUMERS) {
        give_registers<40>();
        if (thread_index() % WARPGROUP == 0) fill(ring);
    } else {
        take_registers<232>();
        empty(ring, warpgroup);
    }
}

// Brings near the two tensor maps that parameters begin with. No kernel writes parameters, so this is
// done ahead of all else.
template <class Parameters>
__device__ __forceinline__ void fetch_maps(const Parameters& p) {
    if (thread_index() != 0) return;
    const TensorMap* maps = (const TensorMap*)&p;
    fetch_map(maps);
    fetch_map(maps + 1);
}
