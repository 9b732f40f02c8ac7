"""cuBLASLt at the products that the suite measures: the best of sixteen algorithms that it proposes.

bf16 in and out (ours read and write f32 activations), sums in f32, 32 MiB of workspace; a plain product
where ours also joins neighbouring rows. Weights come from different places in 6 GiB, so none is cached.
"""

import ctypes

import peer

R_32F, R_16BF, COMPUTE_32F, OP_N, OP_T = 0, 14, 68, 0, 1
DESC_TRANSA, DESC_TRANSB, PREFERENCE_WORKSPACE = 3, 4, 1
WORKSPACE_BYTES, CANDIDATES = 32 << 20, 16
POOL_BYTES = 6 << 30


class Heuristic(ctypes.Structure):
    _fields_ = [
        ("algo", ctypes.c_uint64 * 8), ("workspace", ctypes.c_size_t), ("state", ctypes.c_int),
        ("waves", ctypes.c_float), ("reserved", ctypes.c_int * 4),
    ]


class Lt:
    """The library that PyTorch has loaded."""

    def __init__(self, torch):
        torch.mm(torch.ones(64, 64, device="cuda").bfloat16(), torch.ones(64, 64, device="cuda").bfloat16())
        with open("/proc/self/maps", encoding="utf-8") as maps:
            files = {line.split()[-1] for line in maps if "libcublasLt.so" in line}
        self.library = ctypes.CDLL(files.pop() if files else "libcublasLt.so.13")
        self.library.cublasLtGetVersion.restype = ctypes.c_size_t
        self.handle = self.make("cublasLtCreate")
        self.workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda")
        self.preference = self.make("cublasLtMatmulPreferenceCreate")
        self.set("cublasLtMatmulPreferenceSetAttribute", self.preference, PREFERENCE_WORKSPACE,
                 ctypes.c_uint64(WORKSPACE_BYTES))

    def call(self, name, *arguments):
        status = getattr(self.library, name)(*arguments)
        if status != 0:
            raise RuntimeError(f"{name} gave {status}")

    def make(self, name, *arguments):
        made = ctypes.c_void_p()
        self.call(name, ctypes.byref(made), *arguments)
        return made

    def set(self, name, on, attribute, value):
        self.call(name, on, ctypes.c_int(attribute), ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value)))


class Product:
    """y [rows, n] = x [rows, k] times a weight [n, k] turned over. The library counts by columns, so
    it is asked for y turned over: the weight comes first."""

    def __init__(self, lt, rows, n, k):
        self.lt = lt
        layout = lambda height, width, stride: lt.make(
            "cublasLtMatrixLayoutCreate", ctypes.c_int(R_16BF), ctypes.c_uint64(height),
            ctypes.c_uint64(width), ctypes.c_int64(stride))
        self.weight, self.x, self.y = layout(k, n, k), layout(k, rows, k), layout(n, rows, n)
        self.operation = lt.make("cublasLtMatmulDescCreate", ctypes.c_int(COMPUTE_32F), ctypes.c_int(R_32F))
        for attribute, value in ((DESC_TRANSA, OP_T), (DESC_TRANSB, OP_N)):
            lt.set("cublasLtMatmulDescSetAttribute", self.operation, attribute, ctypes.c_int32(value))
        found, self.proposals = ctypes.c_int(), (Heuristic * CANDIDATES)()
        lt.call("cublasLtMatmulAlgoGetHeuristic", lt.handle, self.operation, self.weight, self.x, self.y,
                self.y, lt.preference, ctypes.c_int(CANDIDATES), self.proposals, ctypes.byref(found))
        self.count = found.value

    def multiply(self, index, weight, x, y, stream):
        one, zero = ctypes.c_float(1.0), ctypes.c_float(0.0)
        pointer = ctypes.c_void_p
        self.lt.call(
            "cublasLtMatmul", self.lt.handle, self.operation, ctypes.byref(one), pointer(weight), self.weight,
            pointer(x), self.x, ctypes.byref(zero), pointer(y), self.y, pointer(y), self.y,
            ctypes.byref(self.proposals[index].algo), pointer(self.lt.workspace.data_ptr()),
            ctypes.c_size_t(WORKSPACE_BYTES), pointer(stream))


def checked(torch, product, pool, x, y, task):
    """Whether the first proposal multiplies as PyTorch does: the layouts are what they should be."""
    rows, n, k = task["rows"], task["n"], task["k"]
    product.multiply(0, pool.data_ptr(), x.data_ptr(), y.data_ptr(), torch.cuda.current_stream().cuda_stream)
    want = x[: rows * k].view(rows, k).float() @ pool[: n * k].view(n, k).float().T
    got = y[: rows * n].view(rows, n).float()
    return bool((got - want).norm() / want.norm() < 0.02)


def work(asked):
    import torch
    lt = Lt(torch)
    peer.note("cuBLASLt: version", lt.library.cublasLtGetVersion())
    tasks = asked.of("product")
    pool = torch.empty(POOL_BYTES // 2, dtype=torch.bfloat16, device="cuda")
    for part in pool.split(1 << 28):
        part.uniform_(-1, 1)
    x = torch.rand(max(task["rows"] * task["k"] for task in tasks), device="cuda").bfloat16()
    y = torch.empty(max(task["rows"] * task["n"] for task in tasks), dtype=torch.bfloat16, device="cuda")
    for task in tasks:
        if not asked.keeps_going():
            return False
        rows, n, k = task["rows"], task["n"], task["k"]
        product = Product(lt, rows, n, k)
        if product.count == 0 or not checked(torch, product, pool, x, y, task):
            peer.note(task["what"], f"not measured: {product.count} algorithms, or a wrong product")
            continue
        windows = pool.numel() // (n * k)

        def seconds(index, rounds, batch_s):
            def call(number):
                weight = pool.data_ptr() + number % windows * n * k * 2
                stream = torch.cuda.current_stream().cuda_stream
                product.multiply(index, weight, x.data_ptr(), y.data_ptr(), stream)
            return peer.seconds_of(call, rounds, batch_s)

        quick = [sorted(seconds(index, 3, 0.004))[1] for index in range(product.count)]
        best = min(range(product.count), key=quick.__getitem__)
        peer.figure(task["what"], "us", [1e6 * s for s in seconds(best, peer.ROUNDS, peer.BATCH_S)])
        peer.figure(f"{task['what']}, its first choice", "us", [1e6 * quick[0]])
    return True


if __name__ == "__main__":
    peer.Peer().run("cuBLASLt", ["torch"], work)
