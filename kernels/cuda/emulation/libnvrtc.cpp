// A compiler for tests: NVRTC's interface over the host's C++ compiler. What it gives is a library for
// libcuda.cpp, and what it takes are the sources as a GPU's compiler gets them: one text, and headers in
// memory. EMULATION_FOLDER, set when this is compiled, is the folder that holds `emulation/emulate.h`.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <fstream>
#include <sstream>
#include <string>
#include <vector>

enum { SUCCESS = 0, INVALID_INPUT = 3, INVALID_OPTION = 5, COMPILATION = 6 };

struct Program {
    std::string name, text, log, code;
    std::vector<std::pair<std::string, std::string>> headers;
};

#define EXPORT extern "C" __attribute__((visibility("default")))

static std::string read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

EXPORT int nvrtcVersion(int* major, int* minor) {
    *major = 13;
    *minor = 0;
    return SUCCESS;
}
EXPORT const char* nvrtcGetErrorString(int result) {
    return result == COMPILATION ? "NVRTC_ERROR_COMPILATION" : "NVRTC_ERROR_OF_A_TEST";
}
EXPORT int nvrtcCreateProgram(Program** program, const char* text, const char* name, int headers,
                              const char* const* texts, const char* const* names) {
    *program = new Program{name, text, "", "", {}};
    for (int i = 0; i < headers; i++) (*program)->headers.push_back({names[i], texts[i]});
    return SUCCESS;
}
EXPORT int nvrtcDestroyProgram(Program** program) {
    delete *program;
    *program = nullptr;
    return SUCCESS;
}
EXPORT int nvrtcCompileProgram(Program* program, int count, const char* const* options) {
    bool has_arch = false, has_standard = false, joins = true;
    for (int i = 0; i < count; i++) {
        std::string option = options[i];
        has_arch |= option == "--gpu-architecture=sm_90a" || option == "--gpu-architecture=sm_80";
        has_standard |= option == "--std=c++17";
        joins &= option != "--fmad=false";
    }
    if (!has_arch || !has_standard || joins) return INVALID_OPTION;
    char folder[] = "/tmp/emulated-compiler-XXXXXX";
    if (!mkdtemp(folder)) return INVALID_INPUT;
    std::string inside = std::string(folder) + "/";
    std::ofstream(inside + program->name) << program->text;
    for (auto& [name, text] : program->headers) std::ofstream(inside + name) << text;
    const char* compiler = getenv("CXX") ? getenv("CXX") : "c++";
    std::ostringstream command;
    command << compiler << " -std=c++17 -O2 -fno-strict-aliasing -ffp-contract=off -U_FORTIFY_SOURCE -shared -fPIC -I"
            << inside << " -I" << EMULATION_FOLDER << " -o " << inside << "out.so -x c++ " << inside << program->name
            << " >" << inside << "log 2>&1";
    int failed = system(command.str().c_str());
    program->log = read(inside + "log");
    std::string library = read(inside + "out.so");
    uint64_t bytes = library.size();
    program->code = "EMULATED" + std::string((const char*)&bytes, 8) + library;
    if (system(("rm -r " + inside).c_str()) != 0) return INVALID_INPUT;
    return failed ? COMPILATION : SUCCESS;
}
EXPORT int nvrtcGetProgramLogSize(Program* program, size_t* bytes) {
    *bytes = program->log.size() + 1;
    return SUCCESS;
}
EXPORT int nvrtcGetProgramLog(Program* program, char* log) {
    memcpy(log, program->log.c_str(), program->log.size() + 1);
    return SUCCESS;
}
EXPORT int nvrtcGetCUBINSize(Program* program, size_t* bytes) {
    *bytes = program->code.size();
    return SUCCESS;
}
EXPORT int nvrtcGetCUBIN(Program* program, char* code) {
    memcpy(code, program->code.data(), program->code.size());
    return SUCCESS;
}
