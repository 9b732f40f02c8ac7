"""The binary on machines with and without a GPU: `pagoda doctor`, `kernels build`, `--device`.

The GPU is the host's emulation behind a driver and a compiler of our own (kernels/cuda/emulation), which
the binary opens as it would NVIDIA's.
"""

import hashlib
import os
import pathlib
import shutil
import subprocess

import httpx
import pytest

from server import BINARY, Server

EMULATION = pathlib.Path(__file__).parents[2] / "kernels/cuda/emulation"
LIBRARIES = {"libcuda.so.1": "libcuda.cpp", "libnvrtc.so.13": "libnvrtc.cpp",
             "libcublasLt.so.13": "libcublasLt.cpp"}


@pytest.fixture(scope="session")
def compiled():
    """The libraries, compiled once for their sources."""
    folder = BINARY.parent / "emulated-kernels"
    folder.mkdir(exist_ok=True)
    header = (EMULATION / "emulate.h").read_bytes()
    paths = {}
    for name, source in LIBRARIES.items():
        text = (EMULATION / source).read_bytes()
        path = folder / f"{hashlib.sha256(name.encode() + text + header).hexdigest()[:16]}-{name}"
        if not path.exists():
            subprocess.run(
                [os.environ.get("CXX", "c++"), "-std=c++17", "-O2", "-ffp-contract=off",
                 "-U_FORTIFY_SOURCE", "-shared", "-fPIC", f"-Wl,-soname,{name}",
                 f'-DEMULATION_FOLDER="{EMULATION.parent}"', "-o", f"{path}.new",
                 EMULATION / source],
                check=True,
            )
            pathlib.Path(f"{path}.new").rename(path)
        paths[name] = path
    return paths


@pytest.fixture
def machine(compiled, tmp_path):
    """Makes the environment of a machine whose driver behaves as libcuda.cpp explains."""

    def make(behaviour, kernels=""):
        for name, path in compiled.items():
            shutil.copy(path, tmp_path / name)
        (tmp_path / "behaviour").write_text(behaviour)
        return {"PAGODA_CUDA_LIB": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"),
                "PAGODA_KERNELS": str(kernels)}

    return make


@pytest.fixture(scope="session")
def built(compiled, tmp_path_factory):
    """A file of all kernels, made without a GPU."""
    folder = tmp_path_factory.mktemp("built")
    shutil.copy(compiled["libnvrtc.so.13"], folder / "libnvrtc.so.13")
    said = run("kernels", "build", "--arch", "sm_90a", "--output", folder / "kernels.bin",
               env={"PAGODA_CUDA_LIB": str(folder)})
    assert said.returncode == 0, said.stderr
    assert "sources for sm_90a" in said.stdout and "NVRTC 13.0" in said.stdout, said.stdout
    return folder / "kernels.bin"


def run(*flags, env):
    return subprocess.run(
        [str(BINARY), *map(str, flags)], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=300, env={**os.environ, **env},
    )


def ask(server, **options):
    body = {"messages": [{"role": "user", "content": "What is 17 + 25?"}], "temperature": 0,
            "max_tokens": 8, **options}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=300)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"]


def test_the_doctor_tells_what_there_is(machine):
    said = run("doctor", env=machine("gpus 2"))
    assert said.returncode == 0, said.stderr
    for part in ("driver       CUDA 13.0", "GPU 1        Emulated H201, compute capability 9.0",
                 "1.00 GiB free of 1.00 GiB", "NVRTC        13.0", "cuBLASLt     13.0.1, ",
                 "takes products of many rows where it is faster", "cubin cache", "CPU  ",
                 "`pagoda serve` takes Emulated H200 and compiles its kernels once."):
        assert part in said.stdout, said.stdout


def test_the_doctor_tells_what_is_missing_and_fails_only_if_asked_for_it(machine):
    env = machine("gpus 0")
    said = run("doctor", env=env)
    assert said.returncode == 0 and "the CPU here" in said.stdout and "sees no GPU" in said.stdout
    asked = run("doctor", "--device", "cuda", env=env)
    assert asked.returncode == 1 and "cuda:0 cannot be used" in asked.stderr, asked.stderr
    assert run("doctor", "--device", "cpu", env=env).returncode == 0
    assert run("doctor", "--device", "gpu", env=env).returncode == 2


def test_built_kernels_are_enough_without_a_compiler(machine, built, tmp_path):
    env = machine("")
    (tmp_path / "libnvrtc.so.13").unlink()
    bare = run("doctor", "--device", "cuda", env=env)
    assert bare.returncode == 1 and "NVRTC" in bare.stderr, bare.stderr
    ready = run("doctor", "--device", "cuda:0", "--kernels", built, env=env)
    assert ready.returncode == 0, ready.stderr
    assert "can be used: kernels" in ready.stdout and "built before for sm_90a" in ready.stdout
    damaged = tmp_path / "damaged.bin"
    damaged.write_bytes(built.read_bytes()[:-1])
    said = run("doctor", "--device", "cuda:0", "--kernels", damaged, env=env)
    assert said.returncode == 1 and "is damaged" in said.stderr, said.stderr


def test_a_gpu_answers_as_the_cpu(machine, built):
    flags = ("--max-num-seqs", 4, "--max-num-batched-tokens", 64, "--max-model-len", 256)
    with Server("--device", "cpu", *flags) as server:
        said, on_cpu = server.output(), ask(server)
    assert "no GPU" not in said
    with Server(*flags, env=machine("", built)) as server:
        said, on_gpu = server.output(), ask(server)
        assert server.stop() == 0
    assert "device      Emulated H200 (cuda:0, compute capability 9.0" in said, said
    assert "kernels     " in said and "blocks of 64 tokens" in said, said
    assert on_gpu == on_cpu


def test_products_of_many_rows_go_to_a_library_that_is_faster(machine, built, tmp_path):
    flags = ("--max-num-seqs", 4, "--max-num-batched-tokens", 96, "--max-model-len", 256)
    numbers = " ".join(str(i * 37 % 101) for i in range(40))
    long = {"messages": [{"role": "user", "content": f"Sort these numbers: {numbers}"}]}

    def products():
        calls = (tmp_path / "calls").read_text().splitlines()
        return [call for call in calls if call.startswith("cublasLtMatmul ")]

    with Server("--device", "cpu", *flags) as server:
        on_cpu = ask(server, **long)
    with Server(*flags, env=machine("log", built)) as server:
        at_start = len(products())
        on_gpu = ask(server, **long)
    # Plain loops are faster than emulated kernels, so steps of 96 rows go there, and no others.
    asked = products()[at_start:]
    assert at_start > 0 and asked and all(call.split()[1] == "96" for call in asked), asked
    assert on_gpu == on_cpu
    (tmp_path / "calls").unlink()
    with Server("--cublaslt=false", *flags, env=machine("log", built)) as server:
        assert ask(server, **long) == on_cpu
    assert not products()


def test_without_a_gpu_the_cpu_serves_and_says_why_in_a_line(machine):
    with Server(env=machine("gpus 0")) as server:
        said = server.output()
    lines = [line for line in said.splitlines() if line.startswith("no GPU")]
    assert len(lines) == 1 and "check nvidia-smi" in lines[0], said


def test_a_gpu_that_was_asked_for_and_is_not_there_ends_the_start(machine):
    said = run("--device", "cuda:3", "--port", "0", env=machine(""))
    assert said.returncode == 1
    assert "device: cuda:3 cannot be used: there is no GPU 3" in said.stderr, said.stderr


def test_a_gpu_with_too_little_memory_says_what_is_needed(machine, built):
    said = run("--device", "cuda", "--port", "0", env=machine("memory 2000000", built))
    assert said.returncode == 1
    for part in ("no room for weights", "free of the device's 1.9 MiB", "use a smaller model"):
        assert part in said.stderr, said.stderr


def test_memory_that_ends_while_loading_says_what_it_was_for(machine, built):
    said = run("--device", "cuda", "--port", "0", env=machine("fail cuMemAlloc_v2 2 20", built))
    assert said.returncode == 1
    for part in ("no room for a weight", "free of the device's 1.00 GiB", "end what else uses"):
        assert part in said.stderr, said.stderr


def test_a_device_that_fails_while_serving_ends_the_process_with_its_own_code(machine, built):
    env = machine("fail cuGraphLaunch 700 2", built)
    server = Server("--device", "cuda", "--max-num-seqs", 4, "--max-num-batched-tokens", 64,
                    "--max-model-len", 256, env=env)
    with server:
        with pytest.raises((httpx.HTTPError, AssertionError)):
            ask(server)
        assert server.process.wait(timeout=60) == 71
    assert "CUDA_ERROR_ILLEGAL_ADDRESS (700)" in server.output(), server.output()
