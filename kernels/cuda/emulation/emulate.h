// Runs kernels on the host: a fiber for each thread of a block, one block after another.
//
// For tests without a GPU. Included by prelude.cuh in place of the device compiler's own words.
// Threads and blocks run in an order drawn from a seed, and shared memory starts as NaN, so that a
// missing barrier or an unwritten element shows. It finds errors of indices, masks, barriers and
// phases; it says nothing of speed, of the memory model, or of what an instruction really does.
#pragma once

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <cmath>
#include <functional>
#include <vector>

namespace emulate {

constexpr unsigned WARP = 32;
constexpr unsigned THREADS_MAX = 1024;
constexpr size_t STACK_BYTES = 128 << 10;
constexpr size_t SHARED_MAX = 232448;

struct Index {
    unsigned x, y, z;
};

// What one launch gives to every block.
struct Launch {
    void (*body)(const void* parameters);
    const void* parameters;
    Index grid;
    unsigned threads;
    size_t shared_bytes;
    uint64_t seed;
    // Whether it may be started while the kernel before it ends.
    bool begins_early = false;
};

// Threads that wait for each other.
struct Meeting {
    unsigned arrived = 0;
    unsigned generation = 0;
};

// A fiber outlives its block: it is the thread of the same number of the next one.
struct Fiber {
    jmp_buf at;
    char* stack = nullptr;
    bool started = false;
    bool done = false;
    // For the kernels before.
    bool waited = false;
    // What it waits for, and since when.
    const Meeting* meeting = nullptr;
    unsigned generation = 0;

    bool is_waiting() const { return meeting && meeting->generation == generation; }
};

// The one block that runs, and why it failed.
struct Block {
    Launch launch;
    Index index;
    // Of all blocks so far.
    uint64_t serial = 0;
    uint64_t random = 0;
    unsigned current = 0;
    // Counts whatever brings a waiting thread nearer to its end; a pass without is a deadlock.
    uint64_t progress = 0;
    Meeting all;
    Meeting warps[THREADS_MAX / WARP];
    uint64_t exchange[THREADS_MAX];
    Fiber fibers[THREADS_MAX];
    jmp_buf scheduler;
    sigjmp_buf failed;
    char message[512];
};

inline Block block;
alignas(1024) inline unsigned char shared_memory[SHARED_MAX];

// Splitmix64: small, seeded, good enough to shuffle.
inline uint64_t next_random(uint64_t& state) {
    uint64_t z = (state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

// What the device does beside the block's threads, and has not done yet.
inline std::vector<std::function<void()>> under_way;

// Ends the launch with a message.
[[noreturn]] inline void fail(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(block.message, sizeof block.message, format, arguments);
    va_end(arguments);
    siglongjmp(block.failed, 1);
}

// An access to memory that nobody has ends the launch and not the process.
inline void report_access(int, siginfo_t* info, void*) {
    fail("thread %u of block %u, %u, %u touches memory that nobody has, at %p", block.current, block.index.x,
         block.index.y, block.index.z, info->si_addr);
}

// While it lives, such accesses are reported.
struct AccessGuard {
    struct sigaction before[2];

    AccessGuard() {
        struct sigaction action = {};
        action.sa_sigaction = report_access;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigaction(SIGSEGV, &action, &before[0]);
        sigaction(SIGBUS, &action, &before[1]);
    }
    ~AccessGuard() {
        sigaction(SIGSEGV, &before[0], nullptr);
        sigaction(SIGBUS, &before[1], nullptr);
    }
};

// Lets other threads run.
inline void yield() {
    if (_setjmp(block.fibers[block.current].at) == 0) _longjmp(block.scheduler, 1);
}

// Waits until `expected` threads are here. The last one runs `last` before anyone goes on.
template <class Last>
inline void meet(Meeting& meeting, unsigned expected, Last last) {
    unsigned generation = meeting.generation;
    if (++meeting.arrived == expected) {
        last();
        meeting.arrived = 0;
        meeting.generation++;
        block.progress++;
        return;
    }
    Fiber& fiber = block.fibers[block.current];
    fiber.generation = generation;
    fiber.meeting = &meeting;
    while (meeting.generation == generation) yield();
    fiber.meeting = nullptr;
}

// Does one of the things under way, if there is any.
inline bool land_one() {
    if (under_way.empty()) return false;
    size_t i = next_random(block.random) % under_way.size();
    std::function<void()> landing = std::move(under_way[i]);
    under_way.erase(under_way.begin() + i);
    block.progress++;
    landing();
    return true;
}

inline unsigned warp_size_of(unsigned warp) {
    unsigned left = block.launch.threads - warp * WARP;
    return left < WARP ? left : WARP;
}

// All lanes of the warp; `last` runs once while all wait.
template <class Last>
inline void meet_warp(Last last) {
    unsigned warp = block.current / WARP;
    meet(block.warps[warp], warp_size_of(warp), last);
}

// Lane `from(lane)`'s value. All lanes of a whole warp take part, as with a full mask.
template <class T, class From>
inline T exchange(T value, From from) {
    static_assert(sizeof(T) <= 8);
    unsigned lane = block.current % WARP, first = block.current - lane;
    if (warp_size_of(block.current / WARP) != WARP) fail("a shuffle in a warp of fewer lanes");
    memcpy(&block.exchange[block.current], &value, sizeof value);
    meet_warp([] {});
    unsigned source = from(lane);
    T result = value;
    if (source < WARP) memcpy(&result, &block.exchange[first + source], sizeof result);
    meet_warp([] {});
    return result;
}

inline void enter() {
    for (;;) {
        block.launch.body(block.launch.parameters);
        block.fibers[block.current].done = true;
        block.progress++;
        yield();
    }
}

inline void resume(unsigned thread) {
    Fiber& fiber = block.fibers[thread];
    block.current = thread;
    if (_setjmp(block.scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.at, 1);
    fiber.started = true;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = fiber.stack;
    context.uc_stack.ss_size = STACK_BYTES;
    context.uc_link = nullptr;
    makecontext(&context, enter, 0);
    setcontext(&context);
}

inline void shuffle(std::vector<unsigned>& order, uint64_t& random) {
    for (size_t i = order.size(); i > 1; i--) {
        unsigned j = next_random(random) % i, held = order[i - 1];
        order[i - 1] = order[j];
        order[j] = held;
    }
}

inline void run_block(uint64_t& random) {
    unsigned threads = block.launch.threads;
    memset(shared_memory, 0xff, block.launch.shared_bytes);
    block.serial++;
    block.random = next_random(random);
    under_way.clear();
    block.all = {};
    for (Meeting& warp : block.warps) warp = {};
    for (unsigned i = 0; i < threads; i++) {
        Fiber& fiber = block.fibers[i];
        if (!fiber.stack) fiber.stack = (char*)malloc(STACK_BYTES);
        fiber.done = false;
        fiber.waited = false;
    }
    std::vector<unsigned> order(threads);
    for (unsigned i = 0; i < threads; i++) order[i] = i;
    for (unsigned live = threads; live > 0;) {
        shuffle(order, random);
        uint64_t before = block.progress;
        for (unsigned thread : order) {
            if (block.fibers[thread].done || block.fibers[thread].is_waiting()) continue;
            resume(thread);
            if (block.fibers[thread].done) live--;
        }
        // What lies beside the threads happens when they cannot go on without.
        if (block.progress == before && !land_one()) {
            fail("deadlock: %u of %u threads wait in block %u, %u, %u", live, threads,
                 block.index.x, block.index.y, block.index.z);
        }
    }
    for (unsigned i = 0; block.launch.begins_early && i < threads; i++) {
        if (!block.fibers[i].waited) fail("thread %u never waits for the kernels before", i);
    }
    if (!under_way.empty()) fail("%zu copies are under way when the block ends", under_way.size());
}

// The bytes of shared memory that the launch did not ask for belong to nobody: each is like the one
// before it.
inline void check_unasked() {
    const unsigned char* unasked = shared_memory + block.launch.shared_bytes;
    size_t left = SHARED_MAX - block.launch.shared_bytes;
    if (left > 0 && (unasked[0] != 0xff || memcmp(unasked, unasked + 1, left - 1) != 0)) {
        fail("shared memory written beyond %zu bytes", block.launch.shared_bytes);
    }
}

// Runs all blocks in a random order. 0, or 1 with the reason in block.message.
inline int run(const Launch& launch) {
    block.launch = launch;
    AccessGuard guard;
    // With the mask of signals: a report comes from within a handler.
    if (sigsetjmp(block.failed, 1) != 0) {
        // Threads that were left in the midst of their block begin anew.
        for (Fiber& fiber : block.fibers) {
            fiber.started = false;
            fiber.meeting = nullptr;
        }
        return 1;
    }
    if (launch.threads == 0 || launch.threads > THREADS_MAX || launch.shared_bytes > SHARED_MAX) {
        fail("%u threads with %zu bytes of shared memory", launch.threads, launch.shared_bytes);
    }
    // What a device takes.
    if (launch.grid.x > 0x7fffffff || launch.grid.y > 65535 || launch.grid.z > 65535) {
        fail("a grid of %u, %u, %u blocks", launch.grid.x, launch.grid.y, launch.grid.z);
    }
    // 0xff bytes are NaN in every floating type and absurd as an index.
    memset(shared_memory, 0xff, SHARED_MAX);
    uint64_t random = launch.seed;
    size_t blocks = (size_t)launch.grid.x * launch.grid.y * launch.grid.z;
    std::vector<unsigned> order(blocks);
    for (size_t i = 0; i < blocks; i++) order[i] = (unsigned)i;
    shuffle(order, random);
    for (unsigned i : order) {
        unsigned plane = launch.grid.x * launch.grid.y;
        block.index = {i % launch.grid.x, i % plane / launch.grid.x, i / plane};
        run_block(random);
    }
    check_unasked();
    return 0;
}

// Whether a kernel shall be compiled: of a source with a planted fault, perhaps a single one of many.
constexpr bool is_wanted(const char* name) {
#ifdef EMULATE_ONLY
    const char* wanted = EMULATE_ONLY;
    for (; *name != 0 && *name == *wanted; name++) wanted++;
    return *name == *wanted;
#else
    return name != nullptr;
#endif
}

// A kernel's body, or null. What is generic is not compiled where nobody asks for it.
template <bool WANTED, class Generic>
auto body_of(Generic generic) -> void (*)(const void*) {
    if constexpr (WANTED) {
        return generic;
    } else {
        return nullptr;
    }
}

// Every kernel of this library, by name.
struct Kernel {
    const char* name;
    unsigned threads;
    size_t parameter_bytes;
    void (*body)(const void* parameters);
    Kernel* next;

    static inline Kernel* first = nullptr;

    Kernel(const char* name, unsigned threads, size_t parameter_bytes, void (*body)(const void*))
        : name(name), threads(threads), parameter_bytes(parameter_bytes), body(body), next(first) {
        if (body) first = this;
    }
};

}  // namespace emulate

// What the tests call. The message of a failed launch is copied to `message`.
extern "C" __attribute__((visibility("default"))) int emulate_launch(
    const char* name, const void* parameters, size_t parameter_bytes, const unsigned* grid,
    unsigned threads, size_t shared_bytes, uint64_t seed, char* message, size_t message_bytes) {
    using namespace emulate;
    for (Kernel* kernel = Kernel::first; kernel; kernel = kernel->next) {
        if (strcmp(kernel->name, name) != 0) continue;
        if (kernel->parameter_bytes != parameter_bytes || kernel->threads != threads) {
            snprintf(message, message_bytes, "%s takes %zu bytes and %u threads, not %zu and %u", name,
                     kernel->parameter_bytes, kernel->threads, parameter_bytes, threads);
            return 1;
        }
        Launch launch = {kernel->body, parameters, {grid[0], grid[1], grid[2]}, threads, shared_bytes, seed};
        if (run(launch) == 0) return 0;
        snprintf(message, message_bytes, "%s: %s", name, block.message);
        return 1;
    }
    snprintf(message, message_bytes, "no kernel %s", name);
    return 1;
}

// Words of the device compiler.
#define __device__
#define __forceinline__ inline
#define __restrict__
#define blockIdx (emulate::block.index)
#define gridDim (emulate::block.launch.grid)

struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
