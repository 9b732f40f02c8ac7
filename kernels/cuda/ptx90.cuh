// One function for each instruction that only Hopper has: assembly on the device, the same effect in
// plain code under emulation. For kernels of sm_90a alone.
//
// Shared memory that instructions of copies and products touch is laid out in lines of 128 bytes,
// swizzled: of each eight lines, which begin at a multiple of 1024 bytes, line l has its 16-byte piece
// i at place i ^ l.
#pragma once
#include "prelude.cuh"

constexpr u32 WARPGROUP = 4 * WARP;
// Bytes of a line, of the 16 elements of a step of a product, and of eight lines.
constexpr u32 LINE_BYTES = 128;
constexpr u32 STEP_BYTES = 32;
constexpr u32 LINES_BYTES = 8 * LINE_BYTES;

// What the driver makes of a tensor for copies of tiles. In a kernel's parameters.
struct alignas(128) TensorMap {
    u8 opaque[128];
};

// A kernel whose blocks have a multiprocessor each to themselves, so that warpgroups may trade
// registers. For other architectures there is none. It waits before it does anything, as all kernels do,
// or before anything but what is done ahead.
#define HOPPER_KERNEL(name, threads, Parameters, ...) \
    HOPPER_KERNEL_READING_AHEAD(name, threads, Parameters, read_nothing, __VA_ARGS__)
#if !ON_DEVICE
#define HOPPER_KERNEL_READING_AHEAD KERNEL_READING_AHEAD
#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HOPPER_KERNEL_READING_AHEAD(name, threads, Parameters, ahead, ...) \
    BOUND_KERNEL(name, (threads, 1), Parameters, ahead, __VA_ARGS__)
#else
#define HOPPER_KERNEL_READING_AHEAD(name, threads, Parameters, ahead, ...)
#endif

#if ON_DEVICE

__device__ __forceinline__ u32 shared_address(const void* place) { return (u32)__cvta_generic_to_shared(place); }

// A barrier in shared memory whose phases take so many arrivals, each of which may announce bytes.
__device__ __forceinline__ void init_barrier(u64* barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// After it (and a barrier of the block) copies and other threads know the barriers that the thread made.
__device__ __forceinline__ void publish_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void arrive(u64* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Arrives, and lets the phase wait for so many bytes of copies.
__device__ __forceinline__ void arrive_expecting(u64* barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}
// Waits until the phase of this parity is over. Phases count from 0; the one before the first is over.
__device__ __forceinline__ void wait_phase(u64* barrier, u32 parity) {
    u32 is_over;
    do {
        asm volatile(
            "{\n"
            ".reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n"
            "}"
            : "=r"(is_over)
            : "r"(shared_address(barrier)), "r"(parity)
            : "memory");
    } while (!is_over);
}

// What the thread stored to shared memory, copies and products that begin later see.
__device__ __forceinline__ void publish_stores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Begins to copy a tile, zeros where it leaves the tensor; its bytes are told to the barrier.
__device__ __forceinline__ void copy_tile(void* to, const TensorMap* map, u64* barrier, i32 x, i32 y) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
            shared_address(to)),
        "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y)
        : "memory");
}
__device__ __forceinline__ void copy_tile(void* to, const TensorMap* map, u64* barrier, i32 x, i32 y, i32 z) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::
            "r"(shared_address(to)),
        "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z)
        : "memory");
}
// Meetings of so many threads, whole warps, at a place from 1 to 15: some wait there until all have
// come, others only let it be known.
__device__ __forceinline__ void meet_at(u32 place, u32 threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(place), "r"(threads) : "memory");
}
__device__ __forceinline__ void pass_by(u32 place, u32 threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(place), "r"(threads) : "memory");
}

// Brings a map near to the copy engine.
__device__ __forceinline__ void fetch_map(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Registers of each thread of a warpgroup, a multiple of 8: waits for them, or gives some back.
template <u32 COUNT>
__device__ __forceinline__ void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT)); }
template <u32 COUNT>
__device__ __forceinline__ void give_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT)); }

// Before products that use registers which the thread has touched since the last wait.
__device__ __forceinline__ void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// What the warpgroup asked for since the last call is a group.
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most the LEFT latest groups are under way.
template <u32 LEFT>
__device__ __forceinline__ void wait_products() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory"); }
// The compiler moves no use of these sums past it.
template <u32 COUNT>
__device__ __forceinline__ void hold_sums(float (&sums)[COUNT]) {
    UNROLL
    for (u32 i = 0; i < COUNT; i++) asm volatile("" : "+f"(sums[i])::"memory");
}

// Nor any making of these operands past it: they must be whole when a fence says so.
template <u32 COUNT>
__device__ __forceinline__ void hold_operands(u32 (&operands)[COUNT][4]) {
    UNROLL
    for (u32 i = 0; i < COUNT * 4; i++) asm volatile("" : "+r"(operands[i / 4][i % 4])::"memory");
}

// Lists of registers for the products below: %0..%31, %32..%63, %64..%127.
#define TEXT_32                                                                                                     \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
    "%24, %25, %26, %27, %28, %29, %30, %31"
#define TEXT_64                                                                                                       \
    TEXT_32                                                                                                           \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, " \
    "%54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define TEXT_128                                                                                                      \
    TEXT_64                                                                                                           \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, " \
    "%86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, " \
    "%107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, "     \
    "%125, %126, %127"
#define SUMS_8(i)                                                                                               \
    "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3]), "+f"(sums[i + 4]), "+f"(sums[i + 5]), \
        "+f"(sums[i + 6]), "+f"(sums[i + 7])
#define SUMS_32(i) SUMS_8(i), SUMS_8(i + 8), SUMS_8(i + 16), SUMS_8(i + 24)
#define SUMS_64(i) SUMS_32(i), SUMS_32(i + 32)
#define SUMS_128(i) SUMS_64(i), SUMS_64(i + 64)

// `n` columns, whose `count` sums are %0..; then the numbers of the other operands.
#define PRODUCT_OF_SHARED(type, n, count, a, b, accumulates, transposed)                                           \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" accumulates ", 0;\n"                                         \
                 "wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " {" TEXT_##count "}, %" a ", %" b \
                 ", p, 1, 1, 0, %" transposed ";\n}"                                                               \
                 : SUMS_##count(0)                                                                                 \
                 : "l"(a_descriptor), "l"(b_descriptor), "r"((u32)accumulate), "n"(TRANSPOSED))
#define PRODUCT_OF_REGISTERS(type, n, count, a0, a1, a2, a3, b, accumulates, transposed)                             \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" accumulates ", 0;\n"                                           \
                 "wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " {" TEXT_##count "}, {%" a0 ", %" a1 \
                 ", %" a2 ", %" a3 "}, %" b ", p, 1, 1, %" transposed ";\n}"                                         \
                 : SUMS_##count(0)                                                                                   \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_descriptor), "r"((u32)accumulate),              \
                   "n"(TRANSPOSED))
#define PRODUCTS(type)                                                                                                \
    template <u32 TRANSPOSED>                                                                                         \
    __device__ __forceinline__ void multiply_##type(float(&sums)[32], u64 a_descriptor, u64 b_descriptor,             \
                                                    bool accumulate) {                                                \
        PRODUCT_OF_SHARED(#type, "64", 32, "32", "33", "34", "35");                                                   \
    }                                                                                                                 \
    template <u32 TRANSPOSED>                                                                                         \
    __device__ __forceinline__ void multiply_##type(float(&sums)[64], u64 a_descriptor, u64 b_descriptor,             \
                                                    bool accumulate) {                                                \
        PRODUCT_OF_SHARED(#type, "128", 64, "64", "65", "66", "67");                                                  \
    }                                                                                                                 \
    template <u32 TRANSPOSED>                                                                                         \
    __device__ __forceinline__ void multiply_##type(float(&sums)[128], u64 a_descriptor, u64 b_descriptor,            \
                                                    bool accumulate) {                                                \
        PRODUCT_OF_SHARED(#type, "256", 128, "128", "129", "130", "131");                                             \
    }                                                                                                                 \
    template <u32 TRANSPOSED>                                                                                         \
    __device__ __forceinline__ void multiply_##type(float(&sums)[32], const u32(&a)[4], u64 b_descriptor,             \
                                                    bool accumulate) {                                                \
        PRODUCT_OF_REGISTERS(#type, "64", 32, "32", "33", "34", "35", "36", "37", "38");                              \
    }                                                                                                                 \
    template <u32 TRANSPOSED>                                                                                         \
    __device__ __forceinline__ void multiply_##type(float(&sums)[64], const u32(&a)[4], u64 b_descriptor,             \
                                                    bool accumulate) {                                                \
        PRODUCT_OF_REGISTERS(#type, "128", 64, "64", "65", "66", "67", "68", "69", "70");                             \
    }                                                                                                                 \
    template <u32 TRANSPOSED>                                                                                         \
    __device__ __forceinline__ void multiply_##type(float(&sums)[128], const u32(&a)[4], u64 b_descriptor,            \
                                                    bool accumulate) {                                                \
        PRODUCT_OF_REGISTERS(#type, "256", 128, "128", "129", "130", "131", "132", "133", "134");                     \
    }

PRODUCTS(bf16)
PRODUCTS(f16)

// sums[64, 2 * COUNT] = a * b (+ sums), of 16 k: the warpgroup's warps have 16 rows each, as
// m16n8k16 lays them out for eight columns after eight. a [64, 16] lies in shared memory or, as there,
// in registers; b [2 * COUNT, 16] in shared memory: in lines of k or, TRANSPOSED, of columns. What is
// read must stay as it is until a wait.
template <bool TRANSPOSED = false, u32 COUNT, class A>
__device__ __forceinline__ void multiply_tiles(Bf16, float (&sums)[COUNT], const A& a, u64 b, bool accumulate) {
    multiply_bf16<TRANSPOSED>(sums, a, b, accumulate);
}
template <bool TRANSPOSED = false, u32 COUNT, class A>
__device__ __forceinline__ void multiply_tiles(F16, float (&sums)[COUNT], const A& a, u64 b, bool accumulate) {
    multiply_f16<TRANSPOSED>(sums, a, b, accumulate);
}

#else  // emulation

#include "emulation/hopper.h"

inline u32 shared_address(const void* place) { return emulate::address_of(place); }

inline void init_barrier(u64* barrier, u32 arrivals) { emulate::init_barrier(barrier, arrivals); }
inline void publish_barriers() { emulate::publish_barriers(); }
inline void arrive(u64* barrier) { emulate::arrive(barrier, 0); }
inline void arrive_expecting(u64* barrier, u32 bytes) { emulate::arrive(barrier, bytes); }
inline void wait_phase(u64* barrier, u32 parity) {
    while (!emulate::is_phase_over(barrier, parity)) {
    }
}

inline void publish_stores() {
    memcpy(emulate::hopper().view, emulate::shared_memory, emulate::block.launch.shared_bytes);
}

inline void copy_tile(void* to, const TensorMap* map, u64* barrier, i32 x, i32 y) {
    emulate::copy_tile(to, map, barrier, 2, {x, y, 0});
}
inline void copy_tile(void* to, const TensorMap* map, u64* barrier, i32 x, i32 y, i32 z) {
    emulate::copy_tile(to, map, barrier, 3, {x, y, z});
}
inline void fetch_map(const TensorMap*) {}

inline void meet_at(u32 place, u32 threads) { emulate::come_to(place, threads, true); }
inline void pass_by(u32 place, u32 threads) { emulate::come_to(place, threads, false); }

template <u32 COUNT>
inline void take_registers() { emulate::set_registers(COUNT, true); }
template <u32 COUNT>
inline void give_registers() { emulate::set_registers(COUNT, false); }

inline void fence_products() { emulate::fence_products(); }
inline void commit_products() { emulate::commit_products(); }
template <u32 LEFT>
inline void wait_products() { emulate::wait_products(LEFT); }
template <u32 COUNT>
inline void hold_sums(float (&)[COUNT]) {}
template <u32 COUNT>
inline void hold_operands(u32 (&)[COUNT][4]) {}

namespace emulate {

template <class T>
inline float widen_bits(uint16_t bits) { return widen(T{bits}); }

inline void multiply(Product call, float* sums, u64 a_descriptor) {
    call.a_is_shared = true;
    call.a_descriptor = a_descriptor;
    ask_for_product(call, sums, nullptr);
}
inline void multiply(Product call, float* sums, const u32 (&a)[4]) { ask_for_product(call, sums, a); }

}  // namespace emulate

template <bool TRANSPOSED = false, class T, u32 COUNT, class A>
inline void multiply_tiles(T, float (&sums)[COUNT], const A& a, u64 b, bool accumulate) {
    static_assert(COUNT == 32 || COUNT == 64 || COUNT == 128);
    emulate::Product call = {};
    call.b_descriptor = b;
    call.columns = COUNT * 2;
    call.accumulates = accumulate;
    call.b_is_transposed = TRANSPOSED;
    call.widen = emulate::widen_bits<T>;
    emulate::multiply(call, sums, a);
}

#endif

// Names an operand in shared memory. In lines of k, `stride` is from eight rows to the next eight; in
// lines of 64 rows, `stride` is from eight k to the next, and `lead` from 64 rows to the next.
__device__ __forceinline__ u64 operand(const void* first, u32 stride = LINES_BYTES, u32 lead = 16) {
    constexpr u64 SWIZZLED = 1ull << 62;
    return SWIZZLED | (u64)(stride / 16) << 32 | (u64)(lead / 16) << 16 | (shared_address(first) & 0x3ffff) / 16;
}

// The operand `bytes` further on.
__device__ __forceinline__ u64 moved(u64 operand, u32 bytes) { return operand + bytes / 16; }
