// One function for each instruction or intrinsic that has no word in C++: assembly on the device,
// the same effect in plain code under emulation. Kernels use nothing else.
#pragma once

#if ON_DEVICE

__device__ __forceinline__ u32 thread_index() { return threadIdx.x; }
__device__ __forceinline__ void sync_block() { __syncthreads(); }
__device__ __forceinline__ void sync_warp() { __syncwarp(); }

// Waits until all that the kernels before wrote is there, if this one was started before they ended.
__device__ __forceinline__ void wait_for_kernels() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Lets the next kernel start, as far as there is room, once all blocks of this one have come so far.
__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

template <class T>
__device__ __forceinline__ T shuffle_xor(T value, u32 mask) { return __shfl_xor_sync(ALL_LANES, value, mask); }
template <class T>
__device__ __forceinline__ T shuffle(T value, u32 lane) { return __shfl_sync(ALL_LANES, value, lane); }
// The value of the lane `distance` below; lanes without one keep their own.
template <class T>
__device__ __forceinline__ T shuffle_up(T value, u32 distance) { return __shfl_up_sync(ALL_LANES, value, distance); }

// A bit for each lane of the warp.
__device__ __forceinline__ u32 lanes_where(bool value) { return __ballot_sync(ALL_LANES, value); }
__device__ __forceinline__ u32 count_bits(u32 bits) { return __popc(bits); }

extern __shared__ __align__(1024) u8 dynamic_shared[];
__device__ __forceinline__ u8* shared_bytes() { return dynamic_shared; }

__device__ __forceinline__ float float_of_bits(u32 bits) { return __uint_as_float(bits); }
__device__ __forceinline__ u32 bits_of_float(float value) { return __float_as_uint(value); }

__device__ __forceinline__ u16 bf16_of_float(float value) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
__device__ __forceinline__ u16 f16_of_float(float value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
// Two neighbours, the first in the lower bits.
__device__ __forceinline__ u32 bf16_pair_of_floats(float first, float second) {
    u32 bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
    return bits;
}
__device__ __forceinline__ u32 f16_pair_of_floats(float first, float second) {
    u32 bits;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
    return bits;
}
__device__ __forceinline__ float float_of_f16(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

// The lower two bytes of `codes`, e4m3 and no NaN, as a pair of f16: exactly.
__device__ __forceinline__ u32 f16_pair_of_e4m3(u32 codes) {
    u32 pair;
#if __CUDA_ARCH__ >= 890
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pair) : "h"((u16)codes));
#else
    // Their bits where f16 has them count 2^-8, subnormal ones too.
    u32 apart = __byte_perm(codes, 0, 0x1404);
    u32 placed = (apart & 0x80008000) | (apart >> 1 & 0x3f803f80);
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(placed), "r"(0x5c005c00));
#endif
    return pair;
}

// Products of two neighbours each, rounded by themselves; subnormal numbers count in full. A sum with -0
// leaves a product as it is.
__device__ __forceinline__ u32 bf16_pair_product(u32 a, u32 b) {
    u32 bits;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(bits) : "r"(a), "r"(b), "r"(0x80008000));
    return bits;
}

// Weights are read once: past the first cache level, as constants.
__device__ __forceinline__ uint4 load_once(const uint4* from) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
}

// Brings a line of memory nearer, to the second cache level, whoever wants it later.
__device__ __forceinline__ void fetch_line(const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }

__device__ __forceinline__ float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
// Rounded by itself: never joined with a sum into one operation.
__device__ __forceinline__ float rounded_product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float sqrt_of(float value) { return __fsqrt_rn(value); }
__device__ __forceinline__ float exp_of(float value) { return expf(value); }
// 2^value and 1 / value to within two units of the last place or so; 2^-infinity is 0, 1 / infinity too.
__device__ __forceinline__ float fast_exp2(float value) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(value));
    return power;
}
__device__ __forceinline__ float fast_reciprocal(float value) {
    float reciprocal;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(value));
    return reciprocal;
}
// In one instruction; the one that is a number if the other is not.
__device__ __forceinline__ float larger_of(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ float log_of(float value) { return logf(value); }
__device__ __forceinline__ double log_of(double value) { return log(value); }
__device__ __forceinline__ float tanh_of(float value) { return tanhf(value); }
__device__ __forceinline__ float erf_of(float value) { return erff(value); }
__device__ __forceinline__ u32 high_product(u32 a, u32 b) { return __umulhi(a, b); }
// Four bytes, by four bits of `which` each, the lowest first: 0 to 3 are those of `low`, 4 to 7 of `high`.
__device__ __forceinline__ u32 pick_bytes(u32 low, u32 high, u32 which) { return __byte_perm(low, high, which); }
// sum + the products of four signed bytes with four others.
__device__ __forceinline__ i32 dot_bytes(u32 a, u32 b, i32 sum) {
    i32 result;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(sum));
    return result;
}

__device__ __forceinline__ u32 add_atomic(u32* to, u32 value) { return atomicAdd(to, value); }
__device__ __forceinline__ void or_atomic(u32* to, u32 value) { atomicOr(to, value); }
// What the thread wrote before it, whoever sees a later write of the thread sees too, in any block.
__device__ __forceinline__ void fence_device() { __threadfence(); }

// Copies 16 bytes to shared memory while the thread goes on; `bytes` 0 writes zeros and reads nothing.
__device__ __forceinline__ void copy_async(void* shared, const void* global, u32 bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((u32)__cvta_generic_to_shared(shared)),
                 "l"(global), "r"(bytes)
                 : "memory");
}
// The same of 8 bytes.
__device__ __forceinline__ void copy_half_async(void* shared, const void* global, u32 bytes) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"((u32)__cvta_generic_to_shared(shared)),
                 "l"(global), "r"(bytes)
                 : "memory");
}
// What the thread has begun to copy since the last call is a group.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most the N latest groups of the thread are under way. Others' copies need a barrier.
template <u32 N>
__device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// Four 8x8 matrices of 16-bit elements from shared memory. Lane l names row l % 8 of matrix l / 8 and
// gets of each matrix elements 2 * (l % 4) and the next, of row l / 4.
__device__ __forceinline__ void load_matrices(u32 (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"((u32)__cvta_generic_to_shared(row))
                 : "memory");
}
// The same, and gets rows 2 * (l % 4) and the next, of column l / 4.
__device__ __forceinline__ void load_matrices_transposed(u32 (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"((u32)__cvta_generic_to_shared(row))
                 : "memory");
}

// c[16, 8] += a[16, 16] * b[16, 8]; g = lane / 4, t = lane % 4, elements of a word one after another:
// a rows g, g + 8, g, g + 8 at k = 2t (first two) and 2t + 8; b column g at k = 2t and 2t + 8;
// c row g columns 2t, 2t + 1, then row g + 8.
__device__ __forceinline__ void multiply_bf16(float& c0, float& c1, float& c2, float& c3, const u32 (&a)[4], u32 b0,
                                              u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void multiply_f16(float& c0, float& c1, float& c2, float& c3, const u32 (&a)[4], u32 b0,
                                             u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c[16, 8] += a[16, 32] * b[32, 8] of signed bytes, exact; g = lane / 4, t = lane % 4, bytes of a word one
// after another: a rows g, g + 8, g, g + 8 at k = 4t (first two) and 4t + 16; b column g at k = 4t and
// 4t + 16; c as above.
__device__ __forceinline__ void multiply_bytes(i32 (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#else  // emulation

inline u32 thread_index() { return emulate::block.current; }
inline void sync_block() { emulate::meet(emulate::block.all, emulate::block.launch.threads, [] {}); }
inline void sync_warp() { emulate::meet_warp([] {}); }

// Kernels run one after another; it is counted who waits.
inline void wait_for_kernels() { emulate::block.fibers[emulate::block.current].waited = true; }
inline void let_next_kernel_start() {}

template <class T>
inline T shuffle_xor(T value, u32 mask) {
    return emulate::exchange(value, [mask](unsigned lane) { return lane ^ mask; });
}
template <class T>
inline T shuffle(T value, u32 source) {
    return emulate::exchange(value, [source](unsigned) { return source % WARP; });
}
template <class T>
inline T shuffle_up(T value, u32 distance) {
    return emulate::exchange(value, [distance](unsigned lane) { return lane < distance ? lane : lane - distance; });
}

inline u32 lanes_where(bool value) {
    u32 lanes = 0;
    const uint64_t* values = &emulate::block.exchange[thread_index() / WARP * WARP];
    emulate::block.exchange[thread_index()] = value;
    emulate::meet_warp([] {});
    for (u32 lane = 0; lane < WARP; lane++) lanes |= (u32)values[lane] << lane;
    emulate::meet_warp([] {});
    return lanes;
}
inline u32 count_bits(u32 bits) { return (u32)__builtin_popcount(bits); }

inline u8* shared_bytes() { return emulate::shared_memory; }

inline float float_of_bits(u32 bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
inline u32 bits_of_float(float value) {
    u32 bits;
    memcpy(&bits, &value, 4);
    return bits;
}

inline u16 bf16_of_float(float value) {
    u32 bits = bits_of_float(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return (u16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline u32 bf16_pair_of_floats(float first, float second) {
    return bf16_of_float(first) | (u32)bf16_of_float(second) << 16;
}
// Of products below the normal numbers of f32 the last bit may be another one.
inline u32 bf16_pair_product(u32 a, u32 b) {
    float first = float_of_bits(a << 16) * float_of_bits(b << 16);
    float second = float_of_bits(a & 0xffff0000) * float_of_bits(b & 0xffff0000);
    return bf16_pair_of_floats(first, second);
}
inline float float_of_f16(u16 bits) {
    float sign = bits & 0x8000 ? -1.0f : 1.0f;
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 31) return fraction ? NAN : sign * INFINITY;
    if (exponent == 0) return sign * ldexpf((float)fraction, -24);
    return sign * ldexpf((float)(1024 + fraction), exponent - 25);
}
inline u16 f16_of_float(float value) {
    u16 sign = bits_of_float(value) >> 16 & 0x8000;
    if (std::isnan(value)) return 0x7fff;
    double magnitude = std::fabs((double)value);
    if (magnitude >= 65520.0) return sign | 0x7c00;
    // The step between neighbours of this size; nearbyint rounds ties to even.
    int exponent;
    frexp(magnitude, &exponent);
    int step = magnitude == 0.0 || exponent - 11 < -24 ? -24 : exponent - 11;
    double units = nearbyint(ldexp(magnitude, -step));
    // Units of a normal number are 1024..2048: a carry runs into the exponent by itself.
    return sign | (u16)(step == -24 ? units : units + (step + 24) * 1024.0);
}

inline u32 f16_pair_of_floats(float first, float second) {
    return f16_of_float(first) | (u32)f16_of_float(second) << 16;
}

inline u32 f16_pair_of_e4m3(u32 codes) {
    u32 pair = 0;
    for (u32 i = 0; i < 2; i++) {
        u32 code = codes >> (8 * i), exponent = code >> 3 & 15, fraction = code & 7;
        float magnitude = exponent ? ldexpf((float)(8 + fraction), (int)exponent - 10) : ldexpf((float)fraction, -9);
        pair |= (u32)(f16_of_float(magnitude) | (code & 0x80) << 8) << (16 * i);
    }
    return pair;
}

inline uint4 load_once(const uint4* from) {
    if ((uintptr_t)from % 16 != 0) emulate::fail("a load of 16 bytes from %p", (const void*)from);
    return *from;
}

inline void fetch_line(const void* from) {
    // Memory that nobody has is an error, as it is not on a device.
    (void)*(const volatile char*)from;
}

inline float fused(float a, float b, float c) { return fmaf(a, b, c); }
inline float rounded_product(float a, float b) { return a * b; }
inline float sqrt_of(float value) { return sqrtf(value); }
inline float exp_of(float value) { return expf(value); }
inline float fast_exp2(float value) { return exp2f(value); }
inline float fast_reciprocal(float value) { return 1.0f / value; }
inline float larger_of(float a, float b) { return fmaxf(a, b); }
inline float log_of(float value) { return logf(value); }
inline double log_of(double value) { return log(value); }
inline float tanh_of(float value) { return tanhf(value); }
inline float erf_of(float value) { return erff(value); }
inline u32 high_product(u32 a, u32 b) { return (u32)((u64)a * b >> 32); }
inline u32 pick_bytes(u32 low, u32 high, u32 which) {
    u64 bytes = (u64)high << 32 | low;
    u32 picked = 0;
    for (u32 i = 0; i < 4; i++) {
        u32 from = which >> (4 * i) & 15;
        if (from > 7) emulate::fail("byte %u of eight", from);
        picked |= (u32)(bytes >> (8 * from) & 0xff) << (8 * i);
    }
    return picked;
}
inline i32 dot_bytes(u32 a, u32 b, i32 sum) {
    for (u32 i = 0; i < 4; i++) sum += (i32)(signed char)(a >> (8 * i)) * (signed char)(b >> (8 * i));
    return sum;
}

inline void or_atomic(u32* to, u32 value) { *to |= value; }
inline void fence_device() {}
inline u32 add_atomic(u32* to, u32 value) {
    u32 before = *to;
    *to += value;
    return before;
}

namespace emulate {

// A thread's copies under way. They land at the wait and not before; until then their place is NaN.
struct Copies {
    struct Copy {
        void* to;
        const void* from;
        unsigned bytes;
        unsigned size;
    };
    std::vector<Copy> begun;
    // Ends of the groups in `begun`.
    std::vector<size_t> groups;
    // The block they belong to: a failed launch leaves some behind.
    uint64_t owner = 0;
};

inline Copies copies_of_thread[THREADS_MAX];

inline Copies& own_copies() {
    Copies& own = copies_of_thread[block.current];
    uint64_t owner = (block.index.x * 31ull + block.index.y) * 31 + block.index.z + block.launch.seed * 1000003;
    if (own.owner != owner) own = {};
    own.owner = owner;
    return own;
}

// Reads from the rows of four matrices that the lanes of a warp named, all lanes at once:
// `row(8 * i + r)` is row r of matrix i.
template <class Read>
inline void read_matrices(const void* address, Read read) {
    const uint64_t* rows = &block.exchange[block.current - block.current % WARP];
    if ((uintptr_t)address % 16 != 0) fail("a row of a matrix at %p", address);
    block.exchange[block.current] = (uintptr_t)address;
    meet_warp([] {});
    read([rows](unsigned row) { return (const uint16_t*)rows[row]; });
    meet_warp([] {});
}

// What each lane brings to a product of matrices.
struct Fragments {
    uint32_t a[4], b[2];
};

inline Fragments fragments[THREADS_MAX];

// Products are exact, and a sum is rounded once: the device may round in between.
template <class Widen>
inline void multiply(float* (&c)[4], const Fragments& own, Widen widen) {
    unsigned lane = block.current % WARP;
    const Fragments* warp = &fragments[block.current - lane];
    fragments[block.current] = own;
    meet_warp([] {});
    for (unsigned i = 0; i < 4; i++) {
        unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        double sum = *c[i];
        for (unsigned k = 0; k < 16; k++) {
            uint32_t a = warp[row % 8 * 4 + k % 8 / 2].a[k / 8 * 2 + row / 8];
            uint32_t b = warp[column * 4 + k % 8 / 2].b[k / 8];
            sum += (double)widen((u16)(a >> k % 2 * 16)) * widen((u16)(b >> k % 2 * 16));
        }
        *c[i] = (float)sum;
    }
    meet_warp([] {});
}

}  // namespace emulate

inline void begin_copy(void* shared, const void* global, u32 bytes, u32 size) {
    if ((uintptr_t)shared % size != 0 || (uintptr_t)global % size != 0 || (bytes != 0 && bytes != size)) {
        emulate::fail("a copy of %u bytes from %p to %p", bytes, global, shared);
    }
    memset(shared, 0xff, size);
    emulate::own_copies().begun.push_back({shared, global, bytes, size});
}
inline void copy_async(void* shared, const void* global, u32 bytes) { begin_copy(shared, global, bytes, 16); }
inline void copy_half_async(void* shared, const void* global, u32 bytes) { begin_copy(shared, global, bytes, 8); }
inline void commit_copies() {
    emulate::Copies& own = emulate::own_copies();
    own.groups.push_back(own.begun.size());
}
template <u32 N>
inline void wait_copies() {
    emulate::Copies& own = emulate::own_copies();
    if (own.groups.size() <= N) return;
    size_t done = own.groups.size() - N, landed = own.groups[done - 1];
    for (size_t i = 0; i < landed; i++) {
        const emulate::Copies::Copy& copy = own.begun[i];
        memset(copy.to, 0, copy.size);
        memcpy(copy.to, copy.from, copy.bytes);
    }
    own.begun.erase(own.begun.begin(), own.begun.begin() + landed);
    own.groups.erase(own.groups.begin(), own.groups.begin() + done);
    for (size_t& end : own.groups) end -= landed;
}

inline void load_matrices(u32 (&to)[4], const void* row) {
    unsigned lane = thread_index() % WARP;
    emulate::read_matrices(row, [&](auto row) {
        for (unsigned i = 0; i < 4; i++) {
            const u16* from = row(8 * i + lane / 4) + 2 * (lane % 4);
            to[i] = from[0] | (u32)from[1] << 16;
        }
    });
}
inline void load_matrices_transposed(u32 (&to)[4], const void* row) {
    unsigned lane = thread_index() % WARP;
    emulate::read_matrices(row, [&](auto row) {
        for (unsigned i = 0; i < 4; i++) {
            const u16* first = row(8 * i + 2 * (lane % 4));
            const u16* second = row(8 * i + 2 * (lane % 4) + 1);
            to[i] = first[lane / 4] | (u32)second[lane / 4] << 16;
        }
    });
}

inline void multiply_bf16(float& c0, float& c1, float& c2, float& c3, const u32 (&a)[4], u32 b0, u32 b1) {
    float* c[4] = {&c0, &c1, &c2, &c3};
    emulate::multiply(c, {{a[0], a[1], a[2], a[3]}, {b0, b1}}, [](u16 bits) { return float_of_bits((u32)bits << 16); });
}
inline void multiply_f16(float& c0, float& c1, float& c2, float& c3, const u32 (&a)[4], u32 b0, u32 b1) {
    float* c[4] = {&c0, &c1, &c2, &c3};
    emulate::multiply(c, {{a[0], a[1], a[2], a[3]}, {b0, b1}}, [](u16 bits) { return float_of_f16(bits); });
}

inline void multiply_bytes(i32 (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    unsigned lane = thread_index() % WARP;
    const emulate::Fragments* warp = &emulate::fragments[thread_index() - lane];
    emulate::fragments[thread_index()] = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
    emulate::meet_warp([] {});
    auto byte = [](u32 word, u32 index) { return (i32)(signed char)(word >> (8 * index)); };
    for (u32 i = 0; i < 4; i++) {
        u32 row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (u32 k = 0; k < 32; k++) {
            u32 left = warp[row % 8 * 4 + k % 16 / 4].a[k / 16 * 2 + row / 8];
            u32 right = warp[column * 4 + k % 16 / 4].b[k / 16];
            c[i] += byte(left, k % 4) * byte(right, k % 4);
        }
    }
    emulate::meet_warp([] {});
}

#endif
