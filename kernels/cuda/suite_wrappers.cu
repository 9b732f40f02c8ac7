// Every wrapper of ptx.cuh on data whose result is known: a card must give what the emulation gives.
//
// For the hardware suite. Blocks of two warps; a thread has four words of input, and its results lie
// side by side. Only data movement, exact arithmetic and integers, but for wrapper_approximations,
// wrapper_fast, wrapper_logarithms and wrapper_rounding, whose bounds the host knows.
#include "prelude.cuh"

constexpr u32 WRAPPER_THREADS = 64;
constexpr u32 WRAPPER_BLOCKS = 16;
// Words of input.
constexpr u32 WORDS = WRAPPER_BLOCKS * WRAPPER_THREADS * 4;

struct Wrapper {
    const u32* in;  // [WORDS]
    u32* out;       // [threads of the grid, words that the kernel gives]
};

__device__ __forceinline__ u32 thread_of_grid() { return blockIdx.x * WRAPPER_THREADS + thread_index(); }
__device__ __forceinline__ const u32* own_words(const Wrapper& p) { return p.in + thread_of_grid() * 4; }

__device__ __forceinline__ void put(const Wrapper& p, u32 a, u32 b, u32 c, u32 d) {
    u32* to = p.out + thread_of_grid() * 4;
    to[0] = a;
    to[1] = b;
    to[2] = c;
    to[3] = d;
}

__device__ __forceinline__ void put(const Wrapper& p, float a, float b, float c, float d) {
    put(p, bits_of_float(a), bits_of_float(b), bits_of_float(c), bits_of_float(d));
}

__device__ void indices(const Wrapper& p) { put(p, thread_index(), blockIdx.x, lane_index(), warp_index()); }

// Another thread's words through shared memory, behind a barrier of the block, then of the warp.
__device__ void barriers(const Wrapper& p) {
    u32* shared = (u32*)shared_bytes();
    u32 t = thread_index();
    shared[t] = own_words(p)[0];
    sync_block();
    u32 far = shared[(t + 33) % WRAPPER_THREADS];
    sync_block();
    shared[t] = own_words(p)[1];
    sync_warp();
    u32 near = shared[t / WARP * WARP + (t + 5) % WARP];
    sync_warp();
    shared[t] = far ^ near;
    sync_block();
    put(p, far, near, shared[t ^ 63], shared[t ^ 1]);
}

__device__ void shuffles(const Wrapper& p) {
    const u32* own = own_words(p);
    put(p, shuffle_xor(own[0], 1), shuffle_xor(own[1], 16), shuffle(own[2], (lane_index() * 7 + 3) % WARP),
        shuffle_up(own[3], 3));
}

__device__ void wide_shuffles(const Wrapper& p) {
    const u32* own = own_words(p);
    u64 word = own[0] | (u64)own[1] << 32;
    u64 turned = shuffle_xor(word, 9) ^ shuffle(word, 31) ^ shuffle_up(word, 1);
    float value = shuffle_xor(float_of_bits(own[2]), 4);
    put(p, (u32)turned, (u32)(turned >> 32), bits_of_float(value), bits_of_float(float_of_bits(own[3])));
}

// To 16 bits: bf16 low, f16 high.
__device__ __forceinline__ u32 both(u32 bits) {
    float value = float_of_bits(bits);
    return bf16_of_float(value) | (u32)f16_of_float(value) << 16;
}

__device__ void narrows(const Wrapper& p) {
    const u32* own = own_words(p);
    put(p, both(own[0]), both(own[1]), both(own[2]), both(own[3]));
}

__device__ void widens(const Wrapper& p) {
    const u32* own = own_words(p);
    put(p, float_of_f16((u16)own[0]), float_of_f16((u16)(own[0] >> 16)), float_of_f16((u16)own[1]),
        float_of_f16((u16)(own[1] >> 16)));
}

// All codes that are no NaN, in four masks that leave none.
__device__ void widened_codes(const Wrapper& p) {
    const u32* own = own_words(p);
    put(p, f16_pair_of_e4m3(own[0] & 0xfefefefe), f16_pair_of_e4m3(own[1] & 0xfbfbfbfb),
        f16_pair_of_e4m3(own[2] & 0xf7f7f7f7), f16_pair_of_e4m3(own[3] & 0xbfbfbfbf));
}

__device__ void loads(const Wrapper& p) {
    u32 pieces = WORDS / 4;
    uint4 v = load_once((const uint4*)p.in + (thread_of_grid() * 5 + 3) % pieces);
    put(p, v.x, v.y, v.z, v.w);
}

__device__ void byte_dots(const Wrapper& p) {
    const u32* own = own_words(p);
    put(p, (u32)dot_bytes(own[0], own[1], (i32)own[2]), (u32)dot_bytes(own[1], own[3], 0),
        (u32)dot_bytes(own[2], own[0], -1), (u32)dot_bytes(own[3], own[2], 7));
}

__device__ void arithmetic(const Wrapper& p) {
    const u32* own = own_words(p);
    float a = float_of_bits(own[0]), b = float_of_bits(own[1]), c = float_of_bits(own[2]);
    put(p, fused(a, b, c), rounded_product(a, b) + c, sqrt_of(a), a / b);
}

__device__ void products(const Wrapper& p) {
    const u32* own = own_words(p);
    put(p, high_product(own[0], own[1]), high_product(own[2], 0xffffffff), high_product(own[3], own[3]),
        high_product(own[0], 3));
}

__device__ void pairs(const Wrapper& p) {
    const u32* own = own_words(p);
    put(p, lanes_where(own[0] & 1), count_bits(own[1]),
        bf16_pair_of_floats(float_of_bits(own[2]), float_of_bits(own[3])), lanes_where(own[1] % 3 == 0));
}

// Numbers of 2^-63 to 2 with each other; subnormal ones with 2^120 and with 1; zeros: no product is both
// subnormal and rounded.
__device__ void pair_products(const Wrapper& p) {
    const u32* own = own_words(p);
    u32 a = (own[0] & 0xbfffbfff) | 0x20002000, b = (own[1] & 0xbfffbfff) | 0x20002000;
    put(p, bf16_pair_product(a, b), bf16_pair_product(own[2] & 0x807f807f, 0x7b807b80),
        bf16_pair_product(own[3] & 0x807f807f, 0x3f803f80), bf16_pair_product(own[2] & 0x80008000, b));
}

// Values of about -8 to 8; their sizes for the logarithm.
__device__ void approximations(const Wrapper& p) {
    const u32* own = own_words(p);
    float x = float_of_bits(own[0]), y = float_of_bits(own[1] & 0x7fffffff);
    put(p, exp_of(x), log_of(y), tanh_of(x), erf_of(x));
}

__device__ void fast(const Wrapper& p) {
    const u32* own = own_words(p);
    float x = float_of_bits(own[0]), y = float_of_bits(own[1]), none = -INFINITY_F;
    put(p, fast_exp2(x), fast_reciprocal(y), larger_of(x, y), fast_exp2(none) + fast_reciprocal(-none) + larger_of(none, x));
}

__device__ void logarithms(const Wrapper& p) {
    const u32* own = own_words(p);
    for (u32 i = 0; i < 2; i++) {
        double x = (double)float_of_bits(own[i] & 0x7fffffff) * (1.0 + own[i + 2] * 0x1p-40);
        ((double*)p.out)[thread_of_grid() * 2 + i] = log_of(x);
    }
}

// A count, a union, a sum, and a bit for each ticket with one word to spare: who got which depends on
// timing, the rest does not.
__device__ void atomics(const Wrapper& p) {
    u32 ticket = add_atomic(p.out, 1);
    or_atomic(p.out + 1, own_words(p)[0] & 0x55555555);
    add_atomic(p.out + 2, own_words(p)[1]);
    or_atomic(p.out + 3 + ticket / 32, 1u << ticket % 32);
}

// The last block to be done adds up what all blocks wrote: words, then how many blocks, then the sum.
__device__ void fences(const Wrapper& p) {
    fetch_line(own_words(p));
    wait_for_kernels();
    let_next_kernel_start();
    u32* shared = (u32*)shared_bytes();
    u32 *words = p.out, *done = p.out + WORDS / 4, *sum = done + 1;
    words[thread_of_grid()] = own_words(p)[0];
    fence_device();
    sync_block();
    if (thread_index() == 0) shared[0] = add_atomic(done, 1);
    sync_block();
    if (shared[0] != WRAPPER_BLOCKS - 1) return;
    fence_device();
    for (u32 i = thread_index(); i < WORDS / 4; i += WRAPPER_THREADS) add_atomic(sum, words[i]);
}

// Two groups of copies, the second with holes; the first is read while the second is under way.
__device__ void copies(const Wrapper& p) {
    u8* shared = shared_bytes();
    u32 t = thread_index();
    const uint4* in = (const uint4*)p.in + blockIdx.x * WRAPPER_THREADS;
    copy_async(shared + t * 16, in + t, 16);
    commit_copies();
    copy_async(shared + (WRAPPER_THREADS + t) * 16, in + (t ^ 5), t % 3 == 0 ? 0 : 16);
    commit_copies();
    wait_copies<1>();
    sync_block();
    uint4 first = *(const uint4*)(shared + (t + 1) % WRAPPER_THREADS * 16);
    wait_copies<0>();
    sync_block();
    uint4 second = *(const uint4*)(shared + (WRAPPER_THREADS + (t + 37) % WRAPPER_THREADS) * 16);
    put(p, first.x ^ second.w, first.y ^ second.z, first.z + second.y, first.w + second.x);
}

// Copies of 8 bytes, some of them zeros.
__device__ void half_copies(const Wrapper& p) {
    u8* shared = shared_bytes();
    u32 t = thread_index();
    const uint2* in = (const uint2*)p.in + blockIdx.x * WRAPPER_THREADS * 2;
    copy_half_async(shared + t * 8, in + (t ^ 3), t % 5 == 0 ? 0 : 8);
    commit_copies();
    wait_copies<0>();
    sync_block();
    uint2 got = *(const uint2*)(shared + (t + 1) % WRAPPER_THREADS * 8);
    put(p, got.x, got.y, got.x ^ t, got.y + t);
}

__device__ void picks(const Wrapper& p) {
    const u32* own = own_words(p);
    put(p, pick_bytes(own[0], own[1], 0x1404), pick_bytes(own[1], own[2], 0x7440 | (own[3] & 3)),
        pick_bytes(own[2], own[3], 0x3424), pick_bytes(own[3], own[0], 0x5261));
}

__device__ void byte_products(const Wrapper& p) {
    const u32* own = own_words(p);
    const u32 a[4] = {own[0], own[1], own[2], own[3]};
    i32 c[4] = {(i32)(own[3] >> 8), -1, 0, 7};
    multiply_bytes(c, a, own[2], own[0]);
    put(p, (u32)c[0], (u32)c[1], (u32)c[2], (u32)c[3]);
}

// Four matrices of a warp, rows 16 bytes each, as they lie and turned.
__device__ void matrices(const Wrapper& p) {
    u32* shared = (u32*)shared_bytes();
    u32 t = thread_index();
    for (u32 i = 0; i < 4; i++) shared[t * 4 + i] = own_words(p)[i];
    sync_warp();
    const u32* rows = shared + warp_index() * WARP * 4;
    u32 straight[4], turned[4];
    load_matrices(straight, rows + lane_index() * 4);
    load_matrices_transposed(turned, rows + (lane_index() ^ 9) * 4);
    u32* to = p.out + thread_of_grid() * 8;
    for (u32 i = 0; i < 4; i++) {
        to[i] = straight[i];
        to[4 + i] = turned[i];
    }
}

struct OfBf16 {
    static __device__ __forceinline__ void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
        multiply_bf16(c[0], c[1], c[2], c[3], a, b0, b1);
    }
};

struct OfF16 {
    static __device__ __forceinline__ void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
        multiply_f16(c[0], c[1], c[2], c[3], a, b0, b1);
    }
};

// Two products in a row; the input's words are pairs of 16-bit numbers.
template <class Of>
__device__ void multiplies(const Wrapper& p) {
    u32 a[4], b[4], at = thread_of_grid();
    for (u32 i = 0; i < 4; i++) {
        a[i] = p.in[at * 4 + i];
        b[i] = p.in[(at * 4 + i + 1371) % WORDS];
    }
    float c[4] = {1.0f, 2.0f, -3.0f, (float)lane_index()};
    Of::multiply(c, a, b[0], b[1]);
    Of::multiply(c, a, b[2], b[3]);
    put(p, c[0], c[1], c[2], c[3]);
}

KERNEL(wrapper_indices, WRAPPER_THREADS, Wrapper, indices)
KERNEL(wrapper_barriers, WRAPPER_THREADS, Wrapper, barriers)
KERNEL(wrapper_shuffles, WRAPPER_THREADS, Wrapper, shuffles)
KERNEL(wrapper_wide_shuffles, WRAPPER_THREADS, Wrapper, wide_shuffles)
KERNEL(wrapper_narrows, WRAPPER_THREADS, Wrapper, narrows)
KERNEL(wrapper_widens, WRAPPER_THREADS, Wrapper, widens)
KERNEL(wrapper_loads, WRAPPER_THREADS, Wrapper, loads)
KERNEL(wrapper_arithmetic, WRAPPER_THREADS, Wrapper, arithmetic)
KERNEL(wrapper_products, WRAPPER_THREADS, Wrapper, products)
KERNEL(wrapper_pairs, WRAPPER_THREADS, Wrapper, pairs)
KERNEL(wrapper_pair_products, WRAPPER_THREADS, Wrapper, pair_products)
KERNEL(wrapper_approximations, WRAPPER_THREADS, Wrapper, approximations)
KERNEL(wrapper_logarithms, WRAPPER_THREADS, Wrapper, logarithms)
KERNEL(wrapper_atomics, WRAPPER_THREADS, Wrapper, atomics)
KERNEL(wrapper_fences, WRAPPER_THREADS, Wrapper, fences)
KERNEL(wrapper_copies, WRAPPER_THREADS, Wrapper, copies)
KERNEL(wrapper_matrices, WRAPPER_THREADS, Wrapper, matrices)
KERNEL(wrapper_bf16, WRAPPER_THREADS, Wrapper, multiplies<OfBf16>)
KERNEL(wrapper_f16, WRAPPER_THREADS, Wrapper, multiplies<OfF16>)
KERNEL(wrapper_byte_dots, WRAPPER_THREADS, Wrapper, byte_dots)
KERNEL(wrapper_half_copies, WRAPPER_THREADS, Wrapper, half_copies)
KERNEL(wrapper_picks, WRAPPER_THREADS, Wrapper, picks)
KERNEL(wrapper_byte_products, WRAPPER_THREADS, Wrapper, byte_products)
KERNEL(wrapper_fast, WRAPPER_THREADS, Wrapper, fast)
KERNEL(wrapper_widened_codes, WRAPPER_THREADS, Wrapper, widened_codes)
KERNEL(wrapper_rounding, WRAPPER_THREADS, Wrapper, multiplies<OfBf16>)
