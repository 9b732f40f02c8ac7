// What becomes of a tile's sums: through shared memory into the order of the result, and there either
// finished or left for the block that has the tile's last chunk.
#pragma once
#include "linear_sums.cuh"

// Four columns of a row, whose sums lie in shared memory.
struct Spot {
    u32 row;  // NO_ROW: nothing to do
    u32 n;
    const float* sums;
};

// Finishes COUNT spots of the thread. What an ADD adds to is loaded for all of them first. STORES_AT_ONCE:
// so are sums that are stored as they are, where registers are enough.
template <u32 COUNT, bool STORES_AT_ONCE = false, class At>
__device__ __forceinline__ void finish_spots(const Linear& p, At at) {
    bool is_add = p.epilogue == ADD;
    if (!is_add && !(STORES_AT_ONCE && p.epilogue == STORE)) {
        ROLLED
        for (u32 i = 0; i < COUNT; i++) {
            Spot spot = at(i);
            if (spot.row == NO_ROW || spot.n >= p.n) continue;
            Columns<4> sums = sum_of(*(const Columns<4>*)spot.sums, bias_of<4>(p, spot.n));
            finish(p, spot.row, spot.n, sums, {});
        }
        return;
    }
    Columns<4> befores[COUNT];
    if (is_add) {
        UNROLL
        for (u32 i = 0; i < COUNT; i++) {
            Spot spot = at(i);
            if (spot.row != NO_ROW && spot.n < p.n) befores[i] = before<4>(p, spot.row, spot.n);
        }
    }
    UNROLL
    for (u32 i = 0; i < COUNT; i++) {
        Spot spot = at(i);
        if (spot.row == NO_ROW || spot.n >= p.n) continue;
        Columns<4> sums = sum_of(*(const Columns<4>*)spot.sums, bias_of<4>(p, spot.n));
        if (is_add) sums = sum_of(befores[i], sums);
        store_columns(p.out + (u64)spot.row * p.n, spot.n, p.n, sums);
    }
}

template <class M>
struct Result {
    const TensorLinear& p;
    const Tile<M>& tile;
    const u32* rows;  // of the result
    float* partials;  // the tile's, of the first chunk

    // A chunk's tiles of all blocks.
    __device__ __forceinline__ u64 chunk_size() const {
        return (u64)p.row_tiles * p.column_tiles * M::ROWS * M::COLUMNS;
    }

    __device__ __forceinline__ Result(const TensorLinear& p, const Tile<M>& tile)
        : p(p), tile(tile), rows((const u32*)(shared_bytes() + M::RING_BYTES) + M::ROWS) {
        partials = p.partials + tile.index(p) * (M::ROWS * M::COLUMNS);
    }

    // Products along the rows that a warp puts down at a time, and the place that they take. Rows lie
    // so far apart that the lanes of a store meet different banks.
    static constexpr u32 PASS = M::NARROW < 4 ? M::NARROW : 4;
    static constexpr u32 PATCH_STRIDE = M::WARP_COLUMNS + 4;
    static constexpr u32 PATCH_ROWS = PASS * 8;
    static constexpr u32 LANES = M::WARP_COLUMNS / 4;
    static constexpr u32 SPOTS = PATCH_ROWS * LANES / WARP;
    static constexpr u32 SPOTS_AT_ONCE = SPOTS < 8 ? SPOTS : 8;
    static_assert(M::THREADS / WARP * PATCH_ROWS * PATCH_STRIDE * 4 <= M::RING_BYTES);

    // Finishes the warp's sums, or leaves them as its chunk's.
    __device__ __forceinline__ void put(const Sums<M>& sums) {
        float* patch = (float*)shared_bytes() + warp_index() * PATCH_ROWS * PATCH_STRIDE;
        // Others may still read the ring.
        sync_block();
        UNROLL
        for (u32 pass = 0; pass < M::NARROW; pass += PASS) {
            UNROLL
            for (u32 i = 0; i < M::TALL * PASS * 4; i++) {
                u32 tall = i / 4 / PASS, narrow = i / 4 % PASS;
                u32 row = narrow * 8 + lane_index() % 4 * 2 + i % 2;
                u32 column = tall * 16 + i % 4 / 2 * 8 + lane_index() / 4;
                patch[row * PATCH_STRIDE + column] = sums.at[tall][pass + narrow][i % 4];
            }
            sync_warp();
            ROLLED
            for (u32 i = 0; i < SPOTS; i += SPOTS_AT_ONCE) {
                put_spots(patch, sums.first_row() + pass * 8, sums.first_column(), i);
            }
            sync_warp();
        }
    }

    __device__ __forceinline__ void put_spots(const float* patch, u32 first_row, u32 first_column, u32 first_spot) {
        u32 column = lane_index() % LANES * 4;
        auto row_of = [&](u32 i) { return lane_index() / LANES + (first_spot + i) * (WARP / LANES); };
        if (p.partials) {
            float* to = partials + blockIdx.y * chunk_size();
            for (u32 i = 0; i < SPOTS_AT_ONCE; i++) {
                const float* from = patch + row_of(i) * PATCH_STRIDE + column;
                u32 at = (first_row + row_of(i)) * M::COLUMNS + first_column + column;
                *(Columns<4>*)(to + at) = *(const Columns<4>*)from;
            }
            return;
        }
        finish_spots<SPOTS_AT_ONCE>(p.linear, [&](u32 i) {
            const float* sums = patch + row_of(i) * PATCH_STRIDE + column;
            return Spot{rows[first_row + row_of(i)], tile.first_column + first_column + column, sums};
        });
    }

    // Whether all chunks of the tile are there: true in one block.
    __device__ __forceinline__ bool is_last() const {
        u32* flag = (u32*)shared_bytes();
        fence_device();
        // All have written, and none still reads its patch.
        sync_block();
        if (thread_index() == 0) {
            u32* arrivals = p.arrivals + tile.index(p);
            bool last = add_atomic(arrivals, 1) + 1 == p.chunks;
            if (last) *arrivals = 0;
            *flag = last;
        }
        sync_block();
        bool last = *flag;
        fence_device();
        // The flag's place is used again.
        sync_block();
        return last;
    }

    // Joins the chunks' sums in ascending order, and finishes them.
    __device__ __forceinline__ void join() {
        constexpr u32 QUADS = M::COLUMNS / 4;
        constexpr u32 OWN = M::ROWS * QUADS / M::THREADS, AT_ONCE = OWN < 4 ? OWN : 4;
        static_assert(M::ROWS * QUADS % (M::THREADS * AT_ONCE) == 0);
        Columns<4>* sums = (Columns<4>*)shared_bytes() + thread_index();
        for (u32 first = thread_index(); first < M::ROWS * QUADS; first += M::THREADS * AT_ONCE) {
            // A tile's last rows may be nobody's.
            if (first / QUADS >= tile.num_rows) return;
            Columns<4> joined[AT_ONCE];
            add_chunks(joined, first);
            UNROLL
            for (u32 i = 0; i < AT_ONCE; i++) sums[i * M::THREADS] = joined[i];
            finish_spots<AT_ONCE>(p.linear, [&](u32 i) {
                u32 at = first + i * M::THREADS;
                return Spot{rows[at / QUADS], tile.first_column + at % QUADS * 4, sums[i * M::THREADS].at};
            });
        }
    }

    // Four columns of several rows, THREADS of four apart.
    template <u32 COUNT>
    __device__ __forceinline__ void add_chunks(Columns<4> (&joined)[COUNT], u32 first) {
        // Chunks whose reads do not wait for each other.
        constexpr u32 AHEAD = 4;
        for (u32 chunk = 0; chunk < p.chunks; chunk += AHEAD) {
            Columns<4> read[AHEAD][COUNT];
            UNROLL
            for (u32 i = 0; i < AHEAD * COUNT; i++) {
                const float* from = partials + min_of(chunk + i / COUNT, p.chunks - 1) * chunk_size();
                read[i / COUNT][i % COUNT] = ((const Columns<4>*)from)[first + i % COUNT * M::THREADS];
            }
            UNROLL
            for (u32 i = 0; i < AHEAD * COUNT; i++) {
                Columns<4>& sum = joined[i % COUNT];
                const Columns<4>& next = read[i / COUNT][i % COUNT];
                if (chunk + i / COUNT < p.chunks) sum = chunk + i / COUNT == 0 ? next : sum_of(sum, next);
            }
        }
    }
};

// A block's whole work, by a way to multiply.
template <class M, class Product>
__device__ __forceinline__ void compute_tile(const TensorLinear& p, const Tile<M>& tile, Product& product) {
    product.run();
    Result<M> result(p, tile);
    result.put(product.sums);
    if (p.partials && result.is_last()) result.join();
}
