"""NVIDIA's run-time compiler by ctypes: a source in, a cubin and the assembler's report out.

The libraries come from pinned wheels; nothing else of CUDA is needed, and no GPU. Calls from several
threads run side by side, since ctypes releases Python's lock.
"""

import ctypes
import pathlib

import nvidia


class CompileError(Exception):
    """What the compiler says of a source that it refuses."""


def library_file(pattern):
    """The one file of the installed wheels that matches."""
    for root in nvidia.__path__:
        found = sorted(pathlib.Path(root).glob(pattern))
        if found:
            return found[0]
    raise FileNotFoundError(f"no {pattern} in {list(nvidia.__path__)}: see requirements.txt")


class Nvrtc:
    def __init__(self):
        # The compiler opens its builtins by name; what is loaded already is found.
        ctypes.CDLL(str(library_file("*/lib/libnvrtc-builtins.so.*")), mode=ctypes.RTLD_GLOBAL)
        self.library = ctypes.CDLL(str(library_file("*/lib/libnvrtc.so.*[0-9]")))
        self.library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def compile(self, name, text, headers, options):
        """The cubin and the log. `headers` are texts by the names in their includes."""
        program = ctypes.c_void_p()
        count = len(headers)
        self._call(
            "nvrtcCreateProgram", ctypes.byref(program), text.encode(), name.encode(), count,
            (ctypes.c_char_p * count)(*(header.encode() for header in headers.values())),
            (ctypes.c_char_p * count)(*(header.encode() for header in headers)),
        )
        try:
            words = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            status = self.library.nvrtcCompileProgram(program, len(options), words)
            log = self._bytes("nvrtcGetProgramLog", program).rstrip(b"\0").decode(errors="replace")
            if status != 0:
                raise CompileError(f"{name} {' '.join(options)}:\n{log}")
            # The assembler's word for products of a warpgroup of which each waits for the one before.
            if "are serialized" in log:
                raise CompileError(f"{name}: products one after another:\n{log}")
            return self._bytes("nvrtcGetCUBIN", program), log
        finally:
            self.library.nvrtcDestroyProgram(ctypes.byref(program))

    def _bytes(self, call, program):
        size = ctypes.c_size_t()
        self._call(f"{call}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(call, program, buffer)
        return buffer.raw

    def _call(self, name, *arguments):
        status = getattr(self.library, name)(*arguments)
        if status != 0:
            raise CompileError(f"{name}: {self.library.nvrtcGetErrorString(status).decode()}")
