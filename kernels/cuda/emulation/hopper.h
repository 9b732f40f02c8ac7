// What a Hopper does beside the threads of a block: barriers that count bytes, copies of tiles and
// products of warpgroups.
//
// Included by ptx90.cuh. All of it happens as late as it may, or, under some seeds, at moments of
// its own: a copy lands when nobody can go on without it, its place is NaN until then, and a product
// reads shared memory when somebody waits for it. Copies and products see a view of shared memory
// into which plain stores come by a fence alone. What the device leaves undefined ends the launch.
#pragma once

#include <map>

namespace emulate {

// Where the block's shared memory begins in the addresses that instructions take: not at zero.
constexpr uint32_t SHARED_START = 1024;
constexpr unsigned WARPGROUP = 128;
constexpr unsigned REGISTERS = 65536;

// Counts arrivals and bytes. A phase ends when both are complete, and the next one has the other parity.
struct Barrier {
    uint32_t arrivals;
    uint32_t pending;
    int64_t bytes;
    unsigned parity;
    // Whether copies may be told of it.
    bool is_published;
};

// A warp's 16 rows of a product that was asked for. Sums lie in threads' registers, wherever the host
// keeps those, as does an operand in registers.
struct Product {
    float* sums[WARP];
    const uint32_t* a[WARP];
    uint64_t a_descriptor, b_descriptor;
    unsigned warp;  // of the warpgroup
    unsigned columns;
    bool a_is_shared, accumulates, b_is_transposed;
    float (*widen)(uint16_t bits);
    // The sums when it was asked for, unless an earlier product still had them.
    std::vector<float> before;
};

// What a warp has asked for. Warps wait each for its own rows.
struct Products {
    bool is_fenced = false;
    std::vector<Product> asked;
    // Ends of the groups in `asked`.
    std::vector<size_t> groups;
};

// What all threads of a warpgroup must agree on.
struct Call {
    const char* name;
    uint64_t a, b;
};

struct Warpgroup {
    Meeting meeting;
    Call call;
    unsigned registers = 0;
    Product next[WARPGROUP / WARP];
};

// Where some threads of a block meet, and who has come this time.
struct Place {
    Meeting meeting;
    unsigned threads = 0;
    bool is_here[THREADS_MAX] = {};
};
constexpr unsigned PLACES = 16;

struct Hopper {
    uint64_t serial = 0;
    Place places[PLACES];
    std::map<uint32_t, Barrier> barriers;
    Warpgroup warpgroups[THREADS_MAX / WARPGROUP];
    Products products[THREADS_MAX / WARP];
    // Shared memory as copies and products see it.
    unsigned char view[SHARED_MAX];
};

inline Hopper hopper_state;

// This block's.
inline Hopper& hopper() {
    if (hopper_state.serial == block.serial) return hopper_state;
    hopper_state.serial = block.serial;
    hopper_state.barriers.clear();
    for (Warpgroup& warpgroup : hopper_state.warpgroups) warpgroup = {};
    for (Place& place : hopper_state.places) place = {};
    for (Products& products : hopper_state.products) products = {};
    memset(hopper_state.view, 0xff, SHARED_MAX);
    return hopper_state;
}

// Whether things happen before they must, now.
inline bool happens_early(unsigned one_in) { return block.launch.seed % 2 == 1 && next_random(block.random) % one_in == 0; }

inline uint32_t address_of(const void* place) {
    size_t at = (const unsigned char*)place - shared_memory;
    if (at >= block.launch.shared_bytes) fail("%p is not in shared memory", place);
    return SHARED_START + (uint32_t)at;
}

// Barriers.

// Lies in a barrier's place, so that other stores there show.
inline uint64_t mark_of(uint32_t address) { return 0x5ba441e45ba441e4ull + address; }

inline void init_barrier(void* place, uint32_t arrivals) {
    uint32_t address = address_of(place);
    if (address % 8 != 0 || arrivals == 0) fail("a barrier of %u arrivals at %u", arrivals, address);
    uint64_t mark = mark_of(address);
    memcpy(place, &mark, sizeof mark);
    hopper().barriers[address] = {arrivals, arrivals, 0, 0, false};
}

inline Barrier& barrier_at(uint32_t address) {
    auto found = hopper().barriers.find(address);
    if (found == hopper().barriers.end()) fail("thread %u: no barrier at %u", block.current, address);
    uint64_t mark;
    memcpy(&mark, shared_memory + (address - SHARED_START), sizeof mark);
    if (mark != mark_of(address)) fail("the barrier at %u was overwritten", address);
    return found->second;
}

inline void publish_barriers() {
    for (auto& [_, barrier] : hopper().barriers) barrier.is_published = true;
}

inline void end_phase_if_complete(Barrier& barrier) {
    block.progress++;
    if (barrier.pending > 0 || barrier.bytes != 0) return;
    barrier.pending = barrier.arrivals;
    barrier.parity ^= 1;
}

inline void arrive(const void* place, uint32_t bytes) {
    Barrier& barrier = barrier_at(address_of(place));
    if (barrier.pending == 0) fail("thread %u arrives at a barrier where all are", block.current);
    barrier.pending--;
    barrier.bytes += bytes;
    end_phase_if_complete(barrier);
}

// Whether the phase of this parity is over; lets others run if not.
inline bool is_phase_over(const void* place, unsigned parity) {
    if (parity > 1) fail("a parity of %u", parity);
    Barrier& barrier = barrier_at(address_of(place));
    if (barrier.parity != parity) return true;
    if (happens_early(256)) land_one();
    if (barrier.parity == parity) yield();
    return barrier.parity != parity;
}

// Meetings of some threads. Place 0 is that of all.
inline void come_to(unsigned number, unsigned threads, bool waits) {
    if (number == 0 || number >= PLACES || threads % WARP != 0) fail("%u threads meet at %u", threads, number);
    Place& place = hopper().places[number];
    if (place.meeting.arrived == 0) place.threads = threads;
    if (place.threads != threads) fail("%u and %u threads meet at %u", place.threads, threads, number);
    if (place.is_here[block.current]) fail("thread %u comes twice to %u", block.current, number);
    place.is_here[block.current] = true;
    auto all_here = [&place] { memset(place.is_here, 0, sizeof place.is_here); };
    if (waits) return meet(place.meeting, threads, all_here);
    block.progress++;
    if (++place.meeting.arrived < threads) return;
    all_here();
    place.meeting.arrived = 0;
    place.meeting.generation++;
}

// Copies of tiles.

// What the emulated driver writes into the 128 bytes of a tensor map.
struct TileMap {
    uint64_t kind;
    uint64_t address;
    uint64_t sizes[3];    // elements
    uint64_t strides[3];  // bytes; the first is an element's
    uint32_t box[3];
    uint32_t rank;
    uint32_t is_swizzled;
};
constexpr uint64_t TILE_MAP = 0x70616d656c6974;

// Where the byte at an address is if its tile is swizzled: 16-byte pieces of eight lines of 128
// bytes change places.
inline uint32_t swizzled(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

inline void put_shared(uint32_t address, const void* bytes, size_t count) {
    memcpy(shared_memory + (address - SHARED_START), bytes, count);
    memcpy(hopper().view + (address - SHARED_START), bytes, count);
}

inline size_t tile_bytes(const TileMap& map) {
    return (size_t)map.box[0] * map.box[1] * map.box[2] * map.strides[0];
}

// Elements outside the tensor are zeros.
inline void land_tile(const TileMap& map, uint32_t to, const int (&at)[3]) {
    size_t line = map.box[0] * map.strides[0];
    for (uint32_t z = 0; z < map.box[2]; z++) {
        for (uint32_t y = 0; y < map.box[1]; y++) {
            for (uint32_t x = 0; x < map.box[0]; x++) {
                int64_t place[3] = {at[0] + (int64_t)x, at[1] + (int64_t)y, at[2] + (int64_t)z};
                unsigned char element[8] = {};
                bool is_there = true;
                uint64_t from = map.address;
                for (int i = 0; i < 3; i++) {
                    is_there = is_there && place[i] >= 0 && place[i] < (int64_t)map.sizes[i];
                    from += place[i] * map.strides[i];
                }
                if (is_there) memcpy(element, (const void*)from, map.strides[0]);
                uint32_t byte = to + (uint32_t)((z * map.box[1] + y) * line + x * map.strides[0]);
                put_shared(map.is_swizzled ? swizzled(byte) : byte, element, map.strides[0]);
            }
        }
    }
}

inline void copy_tile(void* place, const void* opaque_map, const void* barrier_place, unsigned rank, const int (&at)[3]) {
    TileMap map;
    memcpy(&map, opaque_map, sizeof map);
    if (map.kind != TILE_MAP || (uintptr_t)opaque_map % 64 != 0) fail("no tensor map at %p", opaque_map);
    if (map.rank != rank) fail("a copy of %u dimensions by a map of %u", rank, map.rank);
    uint32_t to = address_of(place), barrier = address_of(barrier_place);
    if (to % (map.is_swizzled ? 1024 : 128) != 0) fail("a tile at %u", to);
    size_t bytes = tile_bytes(map);
    if (to - SHARED_START + bytes > block.launch.shared_bytes) fail("a tile ends beyond shared memory");
    if (!barrier_at(barrier).is_published) fail("a copy is told of a barrier without a fence");
    std::vector<unsigned char> nothing(bytes, 0xff);
    put_shared(to, nothing.data(), bytes);
    TileMap copied = map;
    int from[3] = {at[0], at[1], at[2]};
    under_way.push_back([copied, to, from, barrier, bytes] {
        int where[3] = {from[0], from[1], from[2]};
        land_tile(copied, to, where);
        Barrier& told = barrier_at(barrier);
        told.bytes -= (int64_t)bytes;
        end_phase_if_complete(told);
    });
    if (happens_early(8)) land_one();
}

// Products of warpgroups.

// All threads of a warpgroup, which ask for the same. `last` runs once while all wait.
template <class Last>
inline void meet_warpgroup(Call call, Last last) {
    if (block.launch.threads % WARPGROUP != 0) fail("a block of %u threads has no warpgroups", block.launch.threads);
    Warpgroup& own = hopper().warpgroups[block.current / WARPGROUP];
    if (own.meeting.arrived == 0) own.call = call;
    if (strcmp(own.call.name, call.name) != 0 || own.call.a != call.a || own.call.b != call.b) {
        fail("a warpgroup parts: %s and %s", own.call.name, call.name);
    }
    meet(own.meeting, WARPGROUP, [&] { last(own); });
}

// An element of an operand in shared memory, whose lines have 128 bytes, swizzled. Lines of k: eight
// rows a stride. Lines of rows, 64 each: eight k a stride, the next 64 rows a lead.
inline uint16_t operand(uint64_t descriptor, unsigned row, unsigned k, bool is_transposed) {
    uint32_t start = (descriptor & 0x3fff) << 4, lead = (descriptor >> 16 & 0x3fff) << 4;
    uint32_t stride = (descriptor >> 32 & 0x3fff) << 4;
    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0 || (start & 0x380) != 0) {
        fail("a descriptor %llx", (unsigned long long)descriptor);
    }
    uint32_t at = start;
    if (is_transposed) {
        at += row / 64 * lead + row % 64 * 2 + k / 8 * stride + k % 8 * 128;
    } else {
        at += row / 8 * stride + row % 8 * 128 + k * 2;
    }
    at = swizzled(at) - SHARED_START;
    if (at + 2 > block.launch.shared_bytes) fail("an operand beyond shared memory");
    uint16_t bits;
    memcpy(&bits, hopper().view + at, 2);
    return bits;
}

constexpr unsigned PRODUCT_ROWS = 16, PRODUCT_K = 16, PRODUCT_COLUMNS_MAX = 256;

// Products are exact, and a sum is rounded once: the device may round in between.
inline void multiply_now(const Product& product) {
    static double a[PRODUCT_ROWS][PRODUCT_K], b[PRODUCT_COLUMNS_MAX][PRODUCT_K];
    for (unsigned row = 0; row < PRODUCT_ROWS; row++) {
        for (unsigned k = 0; k < PRODUCT_K; k++) {
            // As mma.m16n8k16 has it.
            unsigned lane = row % 8 * 4 + k % 8 / 2, word = k / 8 * 2 + row / 8;
            uint16_t bits = product.a_is_shared
                                ? operand(product.a_descriptor, product.warp * PRODUCT_ROWS + row, k, false)
                                : (uint16_t)(product.a[lane][word] >> k % 2 * 16);
            a[row][k] = product.widen(bits);
        }
    }
    for (unsigned column = 0; column < product.columns; column++) {
        for (unsigned k = 0; k < PRODUCT_K; k++) {
            b[column][k] = product.widen(operand(product.b_descriptor, column, k, product.b_is_transposed));
        }
    }
    unsigned own = product.columns / 2;
    for (unsigned lane = 0; lane < WARP && !product.before.empty(); lane++) {
        if (memcmp(product.sums[lane], &product.before[lane * own], own * sizeof(float)) != 0) {
            fail("lane %u changes sums of a product under way", lane);
        }
    }
    for (unsigned row = 0; row < PRODUCT_ROWS; row++) {
        for (unsigned column = 0; column < product.columns; column++) {
            float* to = product.sums[row % 8 * 4 + column % 8 / 2] + column / 8 * 4 + row / 8 * 2 + column % 2;
            double sum = product.accumulates ? *to : 0.0;
            for (unsigned k = 0; k < PRODUCT_K; k++) sum += a[row][k] * b[column][k];
            *to = (float)sum;
        }
    }
}

inline Products& own_products() { return hopper().products[block.current / WARP]; }

inline void multiply_first(Products& own, size_t count) {
    for (size_t i = 0; i < count; i++) multiply_now(own.asked[i]);
    own.asked.erase(own.asked.begin(), own.asked.begin() + count);
    for (size_t& end : own.groups) end = end > count ? end - count : 0;
}

inline void ask_for_rows(Products& own, Product& asked) {
    if (!own.is_fenced) fail("a product without a fence before it");
    bool is_held = false;
    for (const Product& other : own.asked) is_held = is_held || other.sums[0] == asked.sums[0];
    asked.before.clear();
    for (unsigned lane = 0; lane < WARP && !is_held; lane++) {
        asked.before.insert(asked.before.end(), asked.sums[lane], asked.sums[lane] + asked.columns / 2);
    }
    own.asked.push_back(asked);
    if (happens_early(4)) multiply_first(own, own.asked.size());
}

// Adds a product to what the warpgroup has asked for. `call` says what, this thread's part apart.
inline void ask_for_product(const Product& call, float* sums, const uint32_t* a) {
    unsigned warp = block.current / WARP % (WARPGROUP / WARP), lane = block.current % WARP;
    Product& next = hopper().warpgroups[block.current / WARPGROUP].next[warp];
    if (lane == 0) {
        Product gathered = call;
        memcpy(gathered.sums, next.sums, sizeof next.sums);
        memcpy(gathered.a, next.a, sizeof next.a);
        gathered.warp = warp;
        next = gathered;
    }
    next.sums[lane] = sums;
    next.a[lane] = a;
    const char* name = call.accumulates ? "a product to be added" : "a product";
    meet_warpgroup({name, call.a_descriptor, call.b_descriptor}, [](Warpgroup& all) {
        Products* first = &hopper().products[block.current / WARPGROUP * (WARPGROUP / WARP)];
        for (unsigned i = 0; i < WARPGROUP / WARP; i++) ask_for_rows(first[i], all.next[i]);
    });
}

inline void fence_products() {
    meet_warp([] { own_products().is_fenced = true; });
}

inline void commit_products() {
    meet_warp([] { own_products().groups.push_back(own_products().asked.size()); });
}

// Until at most `left` of the warp's latest groups are under way.
inline void wait_products(size_t left) {
    meet_warp([left] {
        Products& own = own_products();
        own.is_fenced = false;
        if (own.groups.size() <= left) return;
        size_t done = own.groups.size() - left;
        multiply_first(own, own.groups[done - 1]);
        own.groups.erase(own.groups.begin(), own.groups.begin() + done);
    });
}

inline void set_registers(unsigned count, bool is_more) {
    unsigned each = REGISTERS / block.launch.threads / 8 * 8;
    if (count % 8 != 0 || count < 24 || count > 256) fail("%u registers", count);
    auto used = [each] {
        unsigned sum = 0;
        for (unsigned i = 0; i < block.launch.threads / WARPGROUP; i++) {
            unsigned own = hopper().warpgroups[i].registers;
            sum += (own ? own : each) * WARPGROUP;
        }
        return sum;
    };
    Warpgroup& own = hopper().warpgroups[block.current / WARPGROUP];
    unsigned before = own.registers ? own.registers : each;
    if (is_more ? count < before : count > before) fail("%u registers after %u", count, before);
    // Waits until others have given back enough.
    while (own.registers != count && is_more && used() + (count - before) * WARPGROUP > REGISTERS) yield();
    meet_warpgroup({"registers", count, 0}, [count](Warpgroup& all) { all.registers = count; });
}

}  // namespace emulate
