// A library of products for tests: cuBLASLt's interface, as far as we call it, over plain loops.
//
// Works on the stream of libcuda.cpp, which it finds by its name as the real one finds the driver.
// Matrices are by columns. What the library would refuse is refused: other types than we ask for, memory
// that is not allocated or not aligned, another workspace than an algorithm takes. A product that a stream
// records ends the recording, unless as many rows were computed in the same way before: the library would
// load its code then. The file `behaviour` beside libcuda.so.1 may say `products` and how they are:
//     slow        they take their time
//     refuse      ways are offered and none is taken
//     break       the first two of the ways fail as no product should
//     unrecorded  the first two of the ways cannot be recorded
//     wrong       the second of the ways gives a wrong last element
#include <dlfcn.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <functional>
#include <set>
#include <sstream>
#include <string>

enum { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, EXECUTION_FAILED = 13, INTERNAL_ERROR = 14, NOT_SUPPORTED = 15 };
enum { R_32F = 0, R_16BF = 14, COMPUTE_32F = 68, OP_T = 1, EPILOGUE_BIAS = 4 };

// Algorithms offered: the second needs a workspace, the third computes 100 rows at least.
constexpr int WAYS = 4;
constexpr size_t WORKSPACE = 1 << 20;

struct Product {
    int transposed_a = 0, epilogue = 1, bias_type = -1;
    const float* bias = nullptr;
};

struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t stride;
};

struct Preference {
    uint64_t workspace = 0;
};

struct Algorithm {
    uint64_t data[8];
};

struct Heuristic {
    Algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

namespace {

template <class F>
F driver(const char* name) {
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    return library ? (F)dlsym(library, name) : nullptr;
}

// Statuses of this library are below those of the driver.
int begin(const char* name, const std::string& arguments = "", void* stream = nullptr) {
    auto call = driver<int (*)(const char*, const char*, void*)>("emulated_library_call");
    int code = call ? call(name, arguments.c_str(), stream) : NOT_INITIALIZED;
    return code < 100 ? code : EXECUTION_FAILED;
}

// Code that was loaded on this machine, by way and rows.
bool is_loaded(const std::string& words) {
    static std::set<std::pair<const void*, std::string>> loaded;
    auto of = driver<const void* (*)()>("emulated_library_machine");
    auto records = driver<int (*)()>("emulated_library_records");
    if (!of || !records) return false;
    if (records()) return loaded.count({of(), words}) > 0;
    loaded.insert({of(), words});
    return true;
}

int end_recording(int status) {
    if (auto end = driver<void (*)()>("emulated_library_ends_recording")) end();
    return status;
}

std::string behaviour() {
    auto of = driver<const char* (*)()>("emulated_library_behaviour");
    return of ? of() : "";
}

float widen(uint16_t bits) {
    uint32_t word = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}

size_t bytes_of(const Layout& layout) {
    return layout.columns * layout.stride * (layout.type == R_32F ? 4 : 2);
}

bool is_there(const void* at, size_t bytes) {
    auto holds = driver<int (*)(uint64_t, size_t)>("emulated_library_holds");
    return (uint64_t)at % 256 == 0 && holds && holds((uint64_t)at, bytes);
}

bool fits(const Product& product, const Layout& a, const Layout& b, const Layout& c, const Layout& d) {
    bool is_biased = product.epilogue == EPILOGUE_BIAS;
    return product.transposed_a == OP_T && a.type == R_16BF && b.type == R_16BF && c.type == R_32F && d.type == R_32F &&
           a.rows == b.rows && a.columns == c.rows && b.columns == c.columns && c.rows == d.rows &&
           c.columns == d.columns && a.stride % 8 == 0 && b.stride % 8 == 0 && (!is_biased || product.bias_type == R_32F);
}

// 0: this algorithm does not compute so many columns.
bool computes(uint64_t way, const Layout& d) { return way != 2 || d.columns >= 100; }
size_t workspace_of(uint64_t way) { return way == 1 ? WORKSPACE : 0; }

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT size_t cublasLtGetVersion() { return 130001; }
EXPORT const char* cublasLtGetStatusString(int) { return "CUBLAS_STATUS_OF_A_TEST"; }
EXPORT int cublasLtCreate(int** handle) {
    *handle = new int(1);
    return begin("cublasLtCreate");
}
EXPORT int cublasLtDestroy(int* handle) {
    delete handle;
    return begin("cublasLtDestroy");
}
EXPORT int cublasLtMatmulDescCreate(Product** product, int compute, int scale) {
    *product = new Product;
    return compute == COMPUTE_32F && scale == R_32F ? SUCCESS : NOT_SUPPORTED;
}
EXPORT int cublasLtMatmulDescDestroy(Product* product) {
    delete product;
    return SUCCESS;
}
EXPORT int cublasLtMatmulDescSetAttribute(Product* product, int attribute, const void* value, size_t bytes) {
    switch (attribute) {
        case 3: return bytes == 4 ? memcpy(&product->transposed_a, value, 4), SUCCESS : INVALID_VALUE;
        case 7: return bytes == 4 ? memcpy(&product->epilogue, value, 4), SUCCESS : INVALID_VALUE;
        case 8: return bytes == 8 ? memcpy(&product->bias, value, 8), SUCCESS : INVALID_VALUE;
        case 26: return bytes == 4 ? memcpy(&product->bias_type, value, 4), SUCCESS : INVALID_VALUE;
        default: return INVALID_VALUE;
    }
}
EXPORT int cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    *layout = new Layout{type, rows, columns, stride};
    return rows > 0 && columns > 0 && stride >= (int64_t)rows ? SUCCESS : INVALID_VALUE;
}
EXPORT int cublasLtMatrixLayoutDestroy(Layout* layout) {
    delete layout;
    return SUCCESS;
}
EXPORT int cublasLtMatrixLayoutSetAttribute(Layout* layout, int attribute, const void* value, size_t bytes) {
    if (attribute != 3 || bytes != 8) return INVALID_VALUE;
    memcpy(&layout->columns, value, 8);
    return SUCCESS;
}
EXPORT int cublasLtMatmulPreferenceCreate(Preference** preference) {
    *preference = new Preference;
    return SUCCESS;
}
EXPORT int cublasLtMatmulPreferenceDestroy(Preference* preference) {
    delete preference;
    return SUCCESS;
}
EXPORT int cublasLtMatmulPreferenceSetAttribute(Preference* preference, int attribute, const void* value, size_t bytes) {
    if (attribute != 1 || bytes != 8) return INVALID_VALUE;
    memcpy(&preference->workspace, value, 8);
    return SUCCESS;
}
EXPORT int cublasLtMatmulAlgoGetHeuristic(void*, const Product* product, const Layout* a, const Layout* b, const Layout* c,
                                          const Layout* d, const Preference* preference, int asked, Heuristic* found,
                                          int* count) {
    if (int status = begin("cublasLtMatmulAlgoGetHeuristic", std::to_string(d->columns))) return status;
    *count = 0;
    if (!fits(*product, *a, *b, *c, *d)) return NOT_SUPPORTED;
    for (int way = 0; way < WAYS && *count < asked; way++) {
        if (workspace_of(way) > preference->workspace || !computes(way, *d)) continue;
        found[(*count)++] = {{{(uint64_t)way, 0xc0b1a5}}, workspace_of(way), SUCCESS, 1.0f, {}};
    }
    return *count ? SUCCESS : NOT_SUPPORTED;
}
EXPORT int cublasLtMatmulAlgoCheck(void*, const Product* product, const Layout* a, const Layout* b, const Layout* c,
                                   const Layout* d, const Algorithm* algorithm, Heuristic* result) {
    uint64_t way = algorithm->data[0];
    if (algorithm->data[1] != 0xc0b1a5 || !fits(*product, *a, *b, *c, *d) || !computes(way, *d)) return NOT_SUPPORTED;
    *result = {*algorithm, workspace_of(way), SUCCESS, 1.0f, {}};
    return SUCCESS;
}
EXPORT int cublasLtMatmul(void*, const Product* product, const float* alpha, const uint16_t* a, const Layout* a_layout,
                          const uint16_t* b, const Layout* b_layout, const float* beta, const float* c,
                          const Layout* c_layout, float* d, const Layout* d_layout, const Algorithm* algorithm,
                          void* workspace, size_t workspace_bytes, void* stream) {
    std::ostringstream words;
    words << d_layout->columns << " " << d_layout->rows << " " << a_layout->rows << " " << algorithm->data[0];
    if (int status = begin("cublasLtMatmul", words.str(), stream)) return status;
    if (!fits(*product, *a_layout, *b_layout, *c_layout, *d_layout)) return NOT_SUPPORTED;
    if (behaviour() == "refuse" || algorithm->data[1] != 0xc0b1a5 || !computes(algorithm->data[0], *d_layout)) {
        return NOT_SUPPORTED;
    }
    uint64_t way = algorithm->data[0];
    if (behaviour() == "break" && way < 2) return way == 0 ? EXECUTION_FAILED : INTERNAL_ERROR;
    auto records = driver<int (*)()>("emulated_library_records");
    if (behaviour() == "unrecorded" && way < 2 && records && records()) return end_recording(EXECUTION_FAILED);
    if (!is_loaded(words.str())) return end_recording(INTERNAL_ERROR);
    size_t needed = workspace_of(way);
    bool is_biased = product->epilogue == EPILOGUE_BIAS;
    if (c != d || needed > workspace_bytes || (needed && !is_there(workspace, needed)) ||
        !is_there(a, bytes_of(*a_layout)) || !is_there(b, bytes_of(*b_layout)) || !is_there(d, bytes_of(*d_layout)) ||
        (is_biased && !is_there(product->bias, d_layout->rows * 4))) {
        return INVALID_VALUE;
    }
    const float* bias = is_biased ? product->bias : nullptr;
    Layout al = *a_layout, bl = *b_layout, dl = *d_layout;
    float by = *alpha, keep = *beta;
    bool is_slow = behaviour() == "slow", is_wrong = behaviour() == "wrong" && way == 1;
    std::function<int()> work = [=] {
        if (is_slow) usleep(1000000);
        if (needed) memset(workspace, 0xff, needed);
        for (uint64_t column = 0; column < dl.columns; column++) {
            for (uint64_t row = 0; row < dl.rows; row++) {
                float sum = 0.0f;
                for (uint64_t k = 0; k < al.rows; k++) sum += widen(a[row * al.stride + k]) * widen(b[column * bl.stride + k]);
                float* to = d + column * dl.stride + row;
                *to = by * sum + (keep != 0.0f ? keep * *to : 0.0f) + (bias ? bias[row] : 0.0f);
            }
        }
        if (is_wrong) d[(dl.columns - 1) * dl.stride + dl.rows - 1] += 1.0f;
        return SUCCESS;
    };
    auto give = driver<int (*)(const std::function<int()>*)>("emulated_library_work");
    return give ? give(&work) : NOT_INITIALIZED;
}
