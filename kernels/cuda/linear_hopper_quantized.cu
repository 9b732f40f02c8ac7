// Products of many rows with a quantized weight on Hopper: out = epilogue(x * weight^T + bias).
//
// As linear_hopper.cu, but the weight is the tall side of a product: each of two warpgroups has 64 rows
// of it, brings their codes from shared memory to registers and makes bf16 of their values there, while
// the other one's products are under way. x, which narrow_rows.cu rounds to bf16, is the other
// side, in shared memory. So many rows meet a quantized weight as they would meet one of bf16: each value
// of q8_0 and q4_0 is rounded once, those of fp8 are exact, and their row's scale comes last.
//
// Of 64 k of a row of codes, lane t of four has those that lie side by side in memory; x lies in the
// order that this gives products.
#include "linear_result.cuh"
#include "slot_ring.cuh"

struct HopperQuantized {
    TensorMap x;      // [rows, k], boxes of 64 k of a tile's rows
    TensorMap codes;  // [n, bytes of a row], boxes of 64 k of 128 rows
    Linear linear;    // its x and weight are not read
    u32 row_tiles;
    u32 column_tiles;
};

// Bytes, as floats that are larger by 2^23.
template <u32 ZERO>
__device__ __forceinline__ float value_of(u32 bytes, u32 i, float scale) {
    float shifted = float_of_bits(pick_bytes(bytes, 0x4b000000, 0x7440 | i));
    return rounded_product(shifted - (float)(0x800000 + ZERO), scale);
}

// How lanes have codes. `quad`: four neighbours along k, of the four that a lane has of 64; `value`: one
// of them.
struct Codes8 {
    static constexpr u32 BITS = 8;
    static constexpr bool HAS_ROW_SCALES = false;
    static __device__ __forceinline__ u32 quad(const u32 (&words)[4], u32 i) { return words[i] ^ 0x80808080; }
    static __device__ __forceinline__ float value(u32 quad, u32 i, float scale) { return value_of<128>(quad, i, scale); }
};

struct Codes4 {
    static constexpr u32 BITS = 4;
    static constexpr bool HAS_ROW_SCALES = false;
    static __device__ __forceinline__ u32 quad(const u32 (&words)[2], u32 i) {
        return words[i % 2] >> (i / 2 * 4) & 0x0f0f0f0f;
    }
    static __device__ __forceinline__ float value(u32 quad, u32 i, float scale) { return value_of<8>(quad, i, scale); }
};

struct CodesFp8 {
    static constexpr u32 BITS = 8;
    static constexpr bool HAS_ROW_SCALES = true;
    static __device__ __forceinline__ u32 quad(const u32 (&words)[4], u32 i) { return words[i]; }
    // Its bits where f32 has them, which makes 2^-120 of it; times 2^-8 in the end, as everywhere.
    static __device__ __forceinline__ float value(u32 quad, u32 i, float) {
        u32 code = pick_bytes(quad, 0, i << 12 | 0x444);
        return rounded_product(float_of_bits((code & 0x80000000) | (code >> 4 & 0x07f00000)), float_of_bits(0x77800000));
    }
};

template <class F_, u32 ROWS_>
struct QuantizedTiling {
    using F = F_;
    static constexpr u32 ROWS = ROWS_;
    static constexpr u32 CONSUMERS = 2;
    static constexpr u32 COLUMNS = CONSUMERS * 64;
    static constexpr u32 THREADS = (CONSUMERS + 1) * WARPGROUP;
    // Of k, in a slot.
    static constexpr u32 STEP = 64;
    static constexpr u32 X_BYTES = ROWS * LINE_BYTES;
    static constexpr u32 CODE_BYTES = STEP * F::BITS / 8;
    // Of a lane, of a row.
    static constexpr u32 WORDS = CODE_BYTES / 16;
    static constexpr u32 SLOT_BYTES = X_BYTES + COLUMNS * CODE_BYTES;
    // Of a thread.
    static constexpr u32 SUMS = ROWS / 2;
    // A warp's results on their way out: 16 columns of so many rows at a time.
    static constexpr u32 PATCH_ROWS = 32;
    static constexpr u32 PATCH_STRIDE = 16 + 4;
    static constexpr u32 PATCH_FLOATS = PATCH_ROWS * PATCH_STRIDE;
    static constexpr u32 PATCHES_BYTES = CONSUMERS * 4 * PATCH_FLOATS * 4;
    static constexpr u32 SLOTS = (RING_ROOM - PATCHES_BYTES) / SLOT_BYTES;
    static constexpr u32 BEFORE_BYTES = 0;
    static constexpr u32 RING_BYTES = SLOTS * SLOT_BYTES;
    static_assert(SLOTS >= 3 && SLOT_BYTES % LINES_BYTES == 0);
};

// One thread's.
template <class M>
__device__ __forceinline__ void produce(const HopperQuantized& p, SlotRing<M> ring) {
    for (u32 tile = blockIdx.x; tile < p.row_tiles * p.column_tiles; tile += gridDim.x) {
        Corner corner = corner_of<M>(p, tile);
        for (u32 k = 0; k < p.linear.k; k += M::STEP) {
            u64* full = ring.full + ring.slot;
            wait_phase(ring.empty + ring.slot, ring.parity ^ 1);
            arrive_expecting(full, M::SLOT_BYTES);
            copy_tile(ring.bytes(), &p.x, full, k, corner.row);
            // Two bytes are an element of this map.
            copy_tile(ring.bytes() + M::X_BYTES, &p.codes, full, k * M::F::BITS / 16, corner.column);
            ring.step();
        }
    }
}

// The warp's 16 rows of the weight in a tile; the lane has of two of them what products ask of it.
template <class M>
struct WeightRows {
    using F = typename M::F;
    const Linear& p;
    u32 rows[2];
    u32 blocks;
    F16 next[2];  // scales of the next slot

    __device__ __forceinline__ WeightRows(const Linear& p, Corner corner) : p(p), blocks(div_up(p.k, SCALED)) {
        UNROLL
        for (u32 i = 0; i < 2; i++) {
            // Results of columns beyond the last are dropped.
            rows[i] = min_of(corner.column + warp_index() * 16 + i * 8 + lane_index() / 4, p.n - 1);
        }
        fetch_scales(0);
    }

    // Of the blocks that the lane has of the slot of k.
    __device__ __forceinline__ void fetch_scales(u32 k) {
        if constexpr (!F::HAS_ROW_SCALES) {
            u32 block = min_of(k / SCALED + lane_index() % 4 / 2, blocks - 1);
            UNROLL
            for (u32 i = 0; i < 2; i++) next[i] = ((const F16*)p.scales)[(u64)rows[i] * scale_stride(blocks) + block];
        }
    }

    __device__ __forceinline__ float row_scale(u32 i) const { return ((const float*)p.scales)[rows[i]]; }

    // Brings the codes of a slot, that of k.
    __device__ __forceinline__ void load(u32 (&a)[4][4], const u8* codes, u32 k) {
        float scales[2] = {1.0f, 1.0f};
        if constexpr (!F::HAS_ROW_SCALES) {
            scales[0] = widen(next[0]), scales[1] = widen(next[1]);
            fetch_scales(k + M::STEP);
        }
        UNROLL
        for (u32 i = 0; i < 2; i++) {
            u32 row = warp_index() * 16 + i * 8 + lane_index() / 4;
            Words from = *(const Words*)(codes + row * M::CODE_BYTES + lane_index() % 4 * sizeof(Words));
            UNROLL
            for (u32 j = 0; j < 4; j++) {
                u32 quad = F::quad(from.at, j);
                float values[4];
                UNROLL
                for (u32 l = 0; l < 4; l++) values[l] = F::value(quad, l, scales[i]);
                a[j][i] = bf16_pair_of_floats(values[0], values[1]);
                a[j][i + 2] = bf16_pair_of_floats(values[2], values[3]);
            }
        }
    }

    struct alignas(M::WORDS * 4) Words {
        u32 at[M::WORDS];
    };
};

// Sums of a warpgroup's 64 rows of the weight. Registers that products take may not change while any is
// under way, so a warpgroup waits for its own, and the other one's fill the time.
template <class M>
__device__ __forceinline__ void multiply_tile(const HopperQuantized& p, SlotRing<M>& ring, WeightRows<M>& weight,
                                              float (&sums)[M::SUMS]) {
    for (u32 k = 0; k < p.linear.k; k += M::STEP) {
        u32 a[M::STEP / 16][4];
        wait_phase(ring.full + ring.slot, ring.parity);
        weight.load(a, ring.bytes() + M::X_BYTES, k);
        u64 x = operand(ring.bytes());
        hold_operands(a);
        hold_sums(sums);
        fence_products();
        UNROLL
        for (u32 i = 0; i < M::STEP / 16; i++) multiply_tiles(Bf16{}, sums, a[i], moved(x, i * STEP_BYTES), k + i > 0);
        commit_products();
        wait_products<0>();
        hold_sums(sums);
        if (lane_index() == 0) arrive(ring.empty + ring.slot);
        ring.step();
    }
}

// Puts a warp's sums, 16 columns, into the order of the result, some rows after others. Rows of its
// patch of shared memory lie so far apart that the lanes of a store meet different banks. Passes share
// the code that finishes sums, as in linear_hopper.cu.
template <class M>
__device__ __forceinline__ void put_tile(const Linear& p, Corner corner, const WeightRows<M>& weight,
                                         const float (&sums)[M::SUMS]) {
    float* patch = (float*)(shared_bytes() + M::RING_BYTES) + warp_index() * M::PATCH_FLOATS;
    u32 lane = lane_index();
    float scales[2] = {1.0f, 1.0f};
    if constexpr (M::F::HAS_ROW_SCALES) scales[0] = weight.row_scale(0), scales[1] = weight.row_scale(1);
    ROLLED
    for (u32 first = 0; first < M::ROWS; first += M::PATCH_ROWS) {
        with_part<M::PATCH_ROWS / 2>(sums, first / 2, [&](const float* part) {
            UNROLL
            for (u32 i = 0; i < M::PATCH_ROWS / 2; i++) {
                u32 row = i / 4 * 8 + lane % 4 * 2 + i % 2, column = i % 4 / 2 * 8 + lane / 4;
                patch[row * M::PATCH_STRIDE + column] = rounded_product(part[i], scales[i % 4 / 2]);
            }
        });
        sync_warp();
        finish_spots<M::PATCH_ROWS / 8, true>(p, [&](u32 i) {
            u32 row = i * 8 + lane / 4, column = lane % 4 * 4, of_result = corner.row + first + row;
            u32 n = corner.column + warp_index() * 16 + column;
            return Spot{of_result < p.rows ? of_result : NO_ROW, n, patch + row * M::PATCH_STRIDE + column};
        });
        sync_warp();
    }
}

// A warpgroup's.
template <class M>
__device__ __forceinline__ void consume(const HopperQuantized& p, SlotRing<M> ring) {
    for (u32 tile = blockIdx.x; tile < p.row_tiles * p.column_tiles; tile += gridDim.x) {
        Corner corner = corner_of<M>(p, tile);
        WeightRows<M> weight(p.linear, corner);
        float sums[M::SUMS];
        multiply_tile(p, ring, weight, sums);
        put_tile<M>(p.linear, corner, weight, sums);
    }
}

template <class M>
__device__ void linear_quantized_hopper(const HopperQuantized& p) {
    run_ring<M>([&p](SlotRing<M> ring) { produce(p, ring); }, [&p](SlotRing<M> ring, u32) { consume(p, ring); });
}

#define LINEAR_HOPPER(name, F, rows)                                                                    \
    HOPPER_KERNEL_READING_AHEAD(linear_hopper_##name, (QuantizedTiling<F, rows>::THREADS), HopperQuantized, \
                                fetch_maps, (linear_quantized_hopper<QuantizedTiling<F, rows>>))

LINEAR_HOPPER(q8_0_128, Codes8, 128)
LINEAR_HOPPER(q8_0_256, Codes8, 256)
LINEAR_HOPPER(q4_0_128, Codes4, 128)
LINEAR_HOPPER(q4_0_256, Codes4, 256)
LINEAR_HOPPER(fp8_128, CodesFp8, 128)
LINEAR_HOPPER(fp8_256, CodesFp8, 256)
