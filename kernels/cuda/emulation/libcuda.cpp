// A driver for tests: NVIDIA's interface, as far as we call it, over the host's emulation.
//
// Stands in for libcuda.so.1 where there is no GPU, so that everything above it is the code that runs
// on one: opening it, loading code (here a library of libnvrtc.cpp), memory, launches, marks, graphs.
// A kernel that may begin while the one before it ends has to wait for it, or it fails.
// Work waits in the stream and runs as late as allowed. What a driver would refuse is refused here:
// a context that is not current, memory that is not allocated, a struct of another size, too much
// shared memory. A file `behaviour` beside the library says what card it is and what fails:
//     gpus 1 | version 13000 | capability 90 | memory 1073741824 | init 0
//     fail NAME CODE AFTER    the function fails with CODE from its call number AFTER on (from 0)
//     products HOW            what libcublasLt.cpp does, as it explains
//     log                     every call is a line of the file `calls` beside the library
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <deque>
#include <fstream>
#include <functional>
#include <map>
#include <mutex>
#include <sstream>
#include <string>

#include "emulate.h"
#include "hopper.h"

namespace {

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101 };
enum { INVALID_IMAGE = 200, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700 };
enum { OUT_OF_RESOURCES = 701, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901 };

constexpr size_t SHARED_WITHOUT_ASKING = 48 << 10;

struct Failure {
    int code;
    long after;
};

struct Behaviour {
    int gpus = 1, version = 13000, capability = 90, init = 0;
    size_t memory = 1 << 30;
    bool log = false;
    // Of libcublasLt.cpp.
    std::string products;
    std::map<std::string, Failure> failures;
    std::string folder;
};

struct Function {
    emulate::Kernel* kernel;
    size_t shared_max = SHARED_WITHOUT_ASKING;
    // A driver would load it late; here whoever did not ask for it before is refused.
    bool loaded = false;
};

struct Module {
    std::vector<Function*> functions;
};

struct Launch {
    Function* function;
    std::vector<unsigned char> parameters;
    emulate::Launch launch;
};

// What one GPU is doing. Work is counted, so that an event is a number.
struct State {
    Behaviour behaviour;
    std::mutex lock;
    std::map<std::string, long> calls;
    std::map<uint64_t, size_t> allocations, host;
    size_t used = 0;
    std::deque<std::function<int()>> work;
    uint64_t asked = 0, done = 0, seed = 1;
    int fault = SUCCESS;
    bool ready = false, capturing = false, invalidated = false;
    std::vector<std::function<int()>> captured;
    int context = 0, stream = 0;
    int retained = 0;
};

// The folder of this library.
std::string own_folder() {
    Dl_info info;
    if (!dladdr((void*)own_folder, &info)) return "";
    std::string file = info.dli_fname;
    return file.substr(0, file.rfind('/') + 1);
}

Behaviour read_behaviour(const std::string& folder) {
    Behaviour is;
    is.folder = folder;
    std::ifstream file(is.folder + "behaviour");
    for (std::string line; std::getline(file, line);) {
        std::istringstream words(line);
        std::string key, name;
        words >> key;
        if (key == "gpus") words >> is.gpus;
        if (key == "version") words >> is.version;
        if (key == "capability") words >> is.capability;
        if (key == "memory") words >> is.memory;
        if (key == "init") words >> is.init;
        if (key == "log") is.log = true;
        if (key == "products") words >> is.products;
        if (key == "fail") {
            Failure failure;
            words >> name >> failure.code >> failure.after;
            is.failures[name] = failure;
        }
    }
    return is;
}

State* machine = nullptr;

State& state() {
    if (!machine) {
        machine = new State;
        machine->behaviour = read_behaviour(own_folder());
    }
    return *machine;
}

// Whose context is current on this thread.
thread_local State* current = nullptr;

// A driver takes its state down when the process exits: nobody may be in a call then, or have work under way.
struct Exit {
    ~Exit() {
        if (!machine) return;
        std::unique_lock<std::mutex> held(machine->lock, std::try_to_lock);
        if (held && (machine->done == machine->asked || machine->fault)) return;
        fprintf(stderr, "the process exits while its GPU is at work\n");
        _exit(134);
    }
} at_exit;

// Begins a call: its lock, its line in the log, and whether it is to fail.
struct Call {
    State& s = state();
    std::unique_lock<std::mutex> held{s.lock};
    int code = SUCCESS;

    explicit Call(const char* name, const std::string& arguments = "") {
        long number = s.calls[name]++;
        if (s.behaviour.log) {
            std::ofstream(s.behaviour.folder + "calls", std::ios::app) << name << " " << arguments << "\n";
        }
        auto failure = s.behaviour.failures.find(name);
        if (failure != s.behaviour.failures.end() && number >= failure->second.after) code = failure->second.code;
        // A fault stays.
        if (code == ILLEGAL_ADDRESS) s.fault = code;
    }
    // In a context, on a device that has no fault.
    Call& in_context() {
        if (code == SUCCESS && !s.ready) code = NOT_INITIALIZED;
        if (code == SUCCESS && current != &s) code = INVALID_CONTEXT;
        if (code == SUCCESS) code = s.fault;
        return *this;
    }
    // And what a stream that records must not meet.
    Call& not_capturing() {
        if (code == SUCCESS && s.capturing) code = CAPTURE_UNSUPPORTED;
        return *this;
    }
    int need(bool holds, int otherwise = INVALID_VALUE) {
        if (code == SUCCESS && !holds) code = otherwise;
        return code;
    }
};

int enqueue(State& s, std::function<int()> work) {
    s.work.push_back(std::move(work));
    s.asked++;
    return SUCCESS;
}

int launch_or_capture(State& s, std::function<int()> work) {
    if (!s.capturing) return enqueue(s, std::move(work));
    if (s.invalidated) return CAPTURE_INVALIDATED;
    s.captured.push_back(std::move(work));
    return SUCCESS;
}

// Runs the oldest work until `until` pieces of all that was ever asked for are done.
int run_until(State& s, uint64_t until) {
    while (s.done < until && s.fault == SUCCESS) {
        s.fault = s.work.front()();
        s.work.pop_front();
        s.done++;
    }
    return s.fault;
}

bool holds(const std::map<uint64_t, size_t>& memory, uint64_t at, size_t bytes) {
    auto next = memory.upper_bound(at);
    if (next == memory.begin()) return false;
    auto [start, size] = *--next;
    return at + bytes <= start + size;
}

int run(State& s, const Launch& launch) {
    emulate::Launch now = launch.launch;
    // As strictly aligned as any struct of parameters.
    alignas(128) unsigned char parameters[4096];
    memcpy(parameters, launch.parameters.data(), launch.parameters.size());
    now.parameters = parameters;
    now.seed = s.seed++;
    if (emulate::run(now) == 0) return SUCCESS;
    std::ofstream(s.behaviour.folder + "faults", std::ios::app) << launch.function->kernel->name << ": "
                                                                << emulate::block.message << "\n";
    return ILLEGAL_ADDRESS;
}

const char* name_of(int code) {
    switch (code) {
        case INVALID_VALUE: return "CUDA_ERROR_INVALID_VALUE";
        case OUT_OF_MEMORY: return "CUDA_ERROR_OUT_OF_MEMORY";
        case NO_DEVICE: return "CUDA_ERROR_NO_DEVICE";
        case INVALID_CONTEXT: return "CUDA_ERROR_INVALID_CONTEXT";
        case ILLEGAL_ADDRESS: return "CUDA_ERROR_ILLEGAL_ADDRESS";
        case OUT_OF_RESOURCES: return "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES";
        case 802: return "CUDA_ERROR_SYSTEM_NOT_READY";
        default: return "CUDA_ERROR_OF_A_TEST";
    }
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// For tests: another machine, whose behaviour and log are in `folder`. A process opens one driver, but its
// tests have many machines, one after another.
EXPORT void emulated_machine(const char* folder) {
    machine = new State;
    machine->behaviour = read_behaviour(std::string(folder) + "/");
}

// For tests: the same machine, whose file `behaviour` has changed.
EXPORT void emulated_change() { state().behaviour = read_behaviour(state().behaviour.folder); }

// For libcublasLt.cpp, a library of the same maker. Begins a call on the stream of the current context.
EXPORT int emulated_library_call(const char* name, const char* arguments, void* stream) {
    Call call(name, arguments);
    return call.in_context().need(stream == nullptr || stream == &call.s.stream, INVALID_HANDLE);
}
EXPORT int emulated_library_work(const std::function<int()>* work) {
    std::unique_lock<std::mutex> held(state().lock);
    return launch_or_capture(state(), *work);
}
EXPORT int emulated_library_holds(uint64_t at, size_t bytes) {
    std::unique_lock<std::mutex> held(state().lock);
    return holds(state().allocations, at, bytes);
}
EXPORT int emulated_library_records() {
    std::unique_lock<std::mutex> held(state().lock);
    return state().capturing;
}
EXPORT void emulated_library_ends_recording() {
    std::unique_lock<std::mutex> held(state().lock);
    state().invalidated = state().capturing;
}
EXPORT const void* emulated_library_machine() { return &state(); }
EXPORT const char* emulated_library_behaviour() { return state().behaviour.products.c_str(); }

EXPORT int cuInit(unsigned) {
    Call call("cuInit");
    if (call.need(call.s.behaviour.init == SUCCESS, call.s.behaviour.init)) return call.code;
    if (call.need(call.s.behaviour.gpus > 0, NO_DEVICE)) return call.code;
    call.s.ready = true;
    return SUCCESS;
}
EXPORT int cuDriverGetVersion(int* version) {
    Call call("cuDriverGetVersion");
    *version = call.s.behaviour.version;
    return call.code;
}
EXPORT int cuGetErrorName(int code, const char** name) {
    *name = name_of(code);
    return SUCCESS;
}
EXPORT int cuGetErrorString(int code, const char** text) {
    *text = code == ILLEGAL_ADDRESS ? "an illegal memory access was encountered" : "what a driver would say";
    return SUCCESS;
}

EXPORT int cuDeviceGetCount(int* count) {
    Call call("cuDeviceGetCount");
    *count = call.s.behaviour.gpus;
    return call.need(call.s.ready, NOT_INITIALIZED);
}
EXPORT int cuDeviceGet(int* device, int ordinal) {
    Call call("cuDeviceGet");
    *device = 40 + ordinal;
    return call.need(ordinal >= 0 && ordinal < call.s.behaviour.gpus, INVALID_DEVICE);
}
EXPORT int cuDeviceGetName(char* name, int length, int device) {
    Call call("cuDeviceGetName");
    snprintf(name, length, "Emulated H%d", 200 + device - 40);
    return call.need(device >= 40, INVALID_DEVICE);
}
EXPORT int cuDeviceGetAttribute(int* value, unsigned attribute, int device) {
    Call call("cuDeviceGetAttribute", std::to_string(attribute));
    int capability = call.s.behaviour.capability;
    switch (attribute) {
        case 16: *value = 4; break;
        case 75: *value = capability / 10; break;
        case 76: *value = capability % 10; break;
        case 97: *value = capability == 90 ? 232448 : 101376; break;
        default: return INVALID_VALUE;
    }
    return call.need(device >= 40, INVALID_DEVICE);
}
EXPORT int cuDeviceTotalMem_v2(size_t* bytes, int device) {
    Call call("cuDeviceTotalMem_v2");
    *bytes = call.s.behaviour.memory;
    return call.need(device >= 40, INVALID_DEVICE);
}

EXPORT int cuDevicePrimaryCtxRetain(void** context, int device) {
    Call call("cuDevicePrimaryCtxRetain");
    if (call.need(call.s.ready && device >= 40, INVALID_DEVICE)) return call.code;
    call.s.retained++;
    *context = &call.s.context;
    return SUCCESS;
}
EXPORT int cuDevicePrimaryCtxRelease_v2(int device) {
    Call call("cuDevicePrimaryCtxRelease_v2");
    call.s.retained--;
    return call.need(call.s.retained >= 0 && device >= 40, INVALID_CONTEXT);
}
EXPORT int cuCtxSetCurrent(void* context) {
    Call call("cuCtxSetCurrent");
    current = context == &call.s.context && call.s.retained > 0 ? &call.s : nullptr;
    return call.need(current != nullptr, INVALID_CONTEXT);
}

EXPORT int cuStreamCreate(void** stream, unsigned flags) {
    Call call("cuStreamCreate", std::to_string(flags));
    *stream = &call.s.stream;
    return call.in_context().code;
}
EXPORT int cuStreamDestroy_v2(void* stream) {
    Call call("cuStreamDestroy_v2");
    if (call.in_context().need(stream == &call.s.stream, INVALID_HANDLE)) return call.code;
    return run_until(call.s, call.s.asked);
}
EXPORT int cuStreamSynchronize(void* stream) {
    Call call("cuStreamSynchronize");
    if (call.in_context().not_capturing().need(stream == &call.s.stream, INVALID_HANDLE)) return call.code;
    return run_until(call.s, call.s.asked);
}

EXPORT int cuMemGetInfo_v2(size_t* free, size_t* total) {
    Call call("cuMemGetInfo_v2");
    *total = call.s.behaviour.memory;
    *free = *total - call.s.used;
    return call.in_context().code;
}
EXPORT int cuMemAlloc_v2(uint64_t* pointer, size_t bytes) {
    Call call("cuMemAlloc_v2", std::to_string(bytes));
    if (call.in_context().not_capturing().need(bytes > 0)) return call.code;
    if (call.need(bytes <= call.s.behaviour.memory - call.s.used, OUT_OF_MEMORY)) return call.code;
    void* memory = aligned_alloc(512, (bytes + 511) / 512 * 512);
    memset(memory, 0xa5, bytes);
    *pointer = (uint64_t)memory;
    call.s.allocations[*pointer] = bytes;
    call.s.used += bytes;
    return SUCCESS;
}
EXPORT int cuMemFree_v2(uint64_t pointer) {
    Call call("cuMemFree_v2");
    if (call.in_context().need(call.s.allocations.count(pointer))) return call.code;
    run_until(call.s, call.s.asked);
    call.s.used -= call.s.allocations[pointer];
    call.s.allocations.erase(pointer);
    free((void*)pointer);
    return call.s.fault;
}
EXPORT int cuMemHostAlloc(void** pointer, size_t bytes, unsigned flags) {
    Call call("cuMemHostAlloc", std::to_string(bytes) + " " + std::to_string(flags));
    if (call.in_context().not_capturing().need(bytes > 0)) return call.code;
    *pointer = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    memset(*pointer, 0xa5, bytes);
    call.s.host[(uint64_t)*pointer] = bytes;
    return SUCCESS;
}
EXPORT int cuMemFreeHost(void* pointer) {
    Call call("cuMemFreeHost");
    // Nobody waits here: whoever frees too early frees what a copy still uses.
    auto host = call.s.host.find((uint64_t)pointer);
    if (call.in_context().need(host != call.s.host.end())) return call.code;
    memset(pointer, 0xff, host->second);
    call.s.host.erase(host);
    free(pointer);
    return SUCCESS;
}
EXPORT int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void*) {
    Call call("cuMemsetD8Async", std::to_string(bytes));
    if (call.in_context().not_capturing().need(holds(call.s.allocations, to, bytes))) return call.code;
    return enqueue(call.s, [=] { return memset((void*)to, value, bytes), SUCCESS; });
}
EXPORT int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void*) {
    Call call("cuMemcpyHtoDAsync_v2", std::to_string(bytes));
    if (call.in_context().not_capturing().need(holds(call.s.allocations, to, bytes))) return call.code;
    return enqueue(call.s, [=] { return memcpy((void*)to, from, bytes), SUCCESS; });
}
EXPORT int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void*) {
    Call call("cuMemcpyDtoHAsync_v2", std::to_string(bytes));
    if (call.in_context().not_capturing().need(holds(call.s.allocations, from, bytes))) return call.code;
    return enqueue(call.s, [=] { return memcpy(to, (void*)from, bytes), SUCCESS; });
}

// Code is a library of libnvrtc.cpp, behind eight bytes that say its length.
EXPORT int cuModuleLoadData(Module** module, const void* image) {
    Call call("cuModuleLoadData");
    if (call.in_context().not_capturing().need(memcmp(image, "EMULATED", 8) == 0, INVALID_IMAGE)) return call.code;
    uint64_t bytes;
    memcpy(&bytes, (const char*)image + 8, 8);
    // Stays open: a second library by the same name would be the first.
    int file = memfd_create("kernels", 0);
    if (file < 0 || write(file, (const char*)image + 16, bytes) != (ssize_t)bytes) return OUT_OF_MEMORY;
    // Kernels register themselves in a list that all libraries of the process share.
    emulate::Kernel* before = emulate::Kernel::first;
    std::string path = "/proc/self/fd/" + std::to_string(file);
    if (!dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) return INVALID_IMAGE;
    *module = new Module;
    for (emulate::Kernel* kernel = emulate::Kernel::first; kernel != before; kernel = kernel->next) {
        (*module)->functions.push_back(new Function{kernel});
    }
    return SUCCESS;
}
// The library of a module stays open, for kernels that a test still looks at.
EXPORT int cuModuleUnload(Module* module) {
    Call call("cuModuleUnload");
    if (call.in_context().not_capturing().code) return call.code;
    for (Function* function : module->functions) delete function;
    delete module;
    return SUCCESS;
}
EXPORT int cuModuleGetFunctionCount(unsigned* count, Module* module) {
    Call call("cuModuleGetFunctionCount");
    *count = (unsigned)module->functions.size();
    return call.in_context().code;
}
EXPORT int cuModuleEnumerateFunctions(Function** functions, unsigned count, Module* module) {
    Call call("cuModuleEnumerateFunctions");
    if (call.in_context().need(count <= module->functions.size())) return call.code;
    for (unsigned i = 0; i < count; i++) functions[i] = module->functions[i];
    return SUCCESS;
}
EXPORT int cuFuncGetName(const char** name, Function* function) {
    Call call("cuFuncGetName");
    *name = function->kernel->name;
    return call.in_context().code;
}
EXPORT int cuFuncLoad(Function* function) {
    Call call("cuFuncLoad");
    function->loaded = true;
    return call.in_context().code;
}
EXPORT int cuFuncGetParamInfo(Function* function, size_t index, size_t* offset, size_t* bytes) {
    Call call("cuFuncGetParamInfo");
    *offset = 0;
    *bytes = function->kernel->parameter_bytes;
    return call.in_context().need(index == 0 && function->loaded);
}
EXPORT int cuFuncGetAttribute(int* value, unsigned attribute, Function* function) {
    Call call("cuFuncGetAttribute", std::to_string(attribute));
    // As if every kernel had a KiB of its own.
    *value = 1024;
    return call.in_context().need(attribute == 1 && function->loaded);
}
EXPORT int cuFuncSetAttribute(Function* function, unsigned attribute, int value) {
    Call call("cuFuncSetAttribute", std::to_string(attribute) + " " + std::to_string(value));
    size_t most = (call.s.behaviour.capability == 90 ? 232448 : 101376) - 1024;
    if (call.in_context().need(attribute == 8 && value >= 0 && (size_t)value <= most)) return call.code;
    function->shared_max = value;
    return SUCCESS;
}

// Two-byte elements, no interleaving, boxes without gaps: what we ask for.
EXPORT int cuTensorMapEncodeTiled(void* map, unsigned type, unsigned rank, uint64_t address, const uint64_t* sizes,
                                  const uint64_t* strides, const unsigned* box, const unsigned* apart,
                                  unsigned interleave, unsigned swizzle, unsigned promotion, unsigned fill) {
    Call call("cuTensorMapEncodeTiled", std::to_string(type) + " " + std::to_string(rank));
    bool is_known = (type == 6 || type == 9) && (rank == 2 || rank == 3) && !interleave && promotion <= 3 && !fill;
    if (call.in_context().need(is_known && (swizzle == 0 || swizzle == 3) && address % 16 == 0 && (uintptr_t)map % 64 == 0)) {
        return call.code;
    }
    emulate::TileMap tile = {emulate::TILE_MAP, address, {1, 1, 1}, {2, 0, 0}, {1, 1, 1}, rank, swizzle == 3};
    for (unsigned i = 0; i < rank; i++) {
        tile.sizes[i] = sizes[i];
        tile.box[i] = box[i];
        if (i > 0) tile.strides[i] = strides[i - 1];
        bool is_box = box[i] > 0 && box[i] <= 256 && apart[i] == 1 && sizes[i] > 0;
        if (call.need(is_box && tile.strides[i] % (i > 0 ? 16 : 2) == 0)) return call.code;
    }
    if (call.need(swizzle == 0 || box[0] * 2 <= 128)) return call.code;
    memset(map, 0, 128);
    memcpy(map, &tile, sizeof tile);
    return SUCCESS;
}

struct LaunchAttribute {
    unsigned id;
    char pad[4];
    union {
        char all[64];
        int may_begin_early;
    };
};

struct LaunchConfig {
    unsigned x, y, z, threads, threads_y, threads_z, shared_bytes;
    void* stream;
    LaunchAttribute* attributes;
    unsigned num_attributes;
};

EXPORT int cuLaunchKernelEx(const LaunchConfig* config, Function* function, void** parameters, void** extra) {
    auto [x, y, z, threads, threads_y, threads_z, shared_bytes, stream, attributes, num_attributes] = *config;
    bool begins_early = num_attributes == 1 && attributes->id == 6 && attributes->may_begin_early == 1;
    std::ostringstream words;
    words << function->kernel->name << " " << x << " " << y << " " << z << " " << threads << " " << shared_bytes
          << (begins_early ? " early" : "");
    Call call("cuLaunchKernelEx", words.str());
    call.in_context().need(stream == &call.s.stream, INVALID_HANDLE);
    call.need(function->loaded && parameters && !extra && x && y && z && y < 65536 && z < 65536 && threads_y == 1 && threads_z == 1);
    call.need(num_attributes == (begins_early ? 1 : 0) && (!begins_early || call.s.behaviour.capability >= 90));
    if (call.need(shared_bytes <= function->shared_max)) return call.code;
    if (call.need(threads == function->kernel->threads, OUT_OF_RESOURCES)) return call.code;
    const unsigned char* first = (const unsigned char*)parameters[0];
    Launch launch = {function, {first, first + function->kernel->parameter_bytes}, {}};
    launch.launch = {function->kernel->body, nullptr, {x, y, z}, threads, shared_bytes, 0, begins_early};
    State& s = call.s;
    return launch_or_capture(s, [&s, launch] { return run(s, launch); });
}

EXPORT int cuEventCreate(uint64_t** event, unsigned flags) {
    Call call("cuEventCreate", std::to_string(flags));
    *event = new uint64_t(0);
    return call.in_context().code;
}
EXPORT int cuEventRecord(uint64_t* event, void* stream) {
    Call call("cuEventRecord");
    if (call.in_context().not_capturing().need(stream == &call.s.stream, INVALID_HANDLE)) return call.code;
    *event = call.s.asked;
    return SUCCESS;
}
EXPORT int cuEventSynchronize(uint64_t* event) {
    Call call("cuEventSynchronize");
    if (call.in_context().not_capturing().code) return call.code;
    return run_until(call.s, *event);
}
EXPORT int cuEventDestroy_v2(uint64_t* event) {
    Call call("cuEventDestroy_v2");
    delete event;
    return call.code;
}

using Graph = std::vector<std::function<int()>>;

EXPORT int cuStreamBeginCapture_v2(void* stream, unsigned mode) {
    Call call("cuStreamBeginCapture_v2", std::to_string(mode));
    if (call.in_context().not_capturing().need(stream == &call.s.stream, INVALID_HANDLE)) return call.code;
    call.s.capturing = true;
    call.s.captured.clear();
    return SUCCESS;
}
EXPORT int cuStreamEndCapture(void* stream, Graph** graph) {
    Call call("cuStreamEndCapture");
    if (call.in_context().need(call.s.capturing && stream == &call.s.stream, CAPTURE_INVALIDATED)) return call.code;
    bool was_invalidated = call.s.invalidated;
    call.s.capturing = call.s.invalidated = false;
    if (call.need(!was_invalidated, CAPTURE_INVALIDATED)) return call.code;
    *graph = new Graph(call.s.captured);
    return SUCCESS;
}
EXPORT int cuGraphInstantiateWithFlags(Graph** executable, Graph* graph, unsigned long long flags) {
    Call call("cuGraphInstantiateWithFlags");
    if (call.in_context().not_capturing().need(flags == 0)) return call.code;
    *executable = new Graph(*graph);
    return SUCCESS;
}
EXPORT int cuGraphUpload(Graph*, void*) { return Call("cuGraphUpload").in_context().not_capturing().code; }
EXPORT int cuGraphLaunch(Graph* executable, void* stream) {
    Call call("cuGraphLaunch", std::to_string(executable->size()));
    if (call.in_context().not_capturing().need(stream == &call.s.stream, INVALID_HANDLE)) return call.code;
    State& s = call.s;
    for (const std::function<int()>& launch : *executable) enqueue(s, launch);
    return SUCCESS;
}
EXPORT int cuGraphExecDestroy(Graph* executable) {
    Call call("cuGraphExecDestroy");
    delete executable;
    return call.code;
}
EXPORT int cuGraphDestroy(Graph* graph) {
    Call call("cuGraphDestroy");
    delete graph;
    return call.code;
}
