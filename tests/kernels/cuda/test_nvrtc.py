"""Every rung compiles for real GPUs, without a word from the compiler, and leaves room for enough warps to be at work."""

import math
import re
import sys
from functools import cache

import pytest

from minisl.command import run_command
from minisl.errors import InputError
from minisl.kernels.cuda import emulator, ladder, nvrtc, signature

needs_nvrtc = pytest.mark.skipif(nvrtc.library() is None, reason="NVRTC is not installed (pip install nvidia-cuda-nvrtc)")
RUNGS = [(op, number) for op, count in ladder.rungs().items() for number in range(count)]

# What a multiprocessor has, by the CUDA C++ Programming Guide: threads, bytes of shared memory; registers are 65,536 everywhere.
MULTIPROCESSOR = {"sm_75": (1024, 64 << 10), "sm_80": (2048, 164 << 10), "sm_90": (2048, 228 << 10), "sm_100": (2048, 228 << 10)}
SHARED_BYTES = 48 << 10  # of a block that asks for no more
# Of the threads that a multiprocessor can hold, the share that must find room: less where large tiles, from this rung on, make
# up for it.
TILES, LARGE_TILES, ALL_OTHERS = {"attention": 2, "attention_dq": 2, "attention_dkv": 2, "sddmm": 2, "spmm": 5}, 0.25, 0.5

# The text of the failing kernels, and what the compiler says of them.
SPILLS = """extern "C" __global__ void __launch_bounds__(1024) spills(float* x, const float* y, int n) {
    float a[128];
    for (int i = 0; i < 128; ++i) a[i] = y[i * n + threadIdx.x];
    for (int j = 0; j < n; ++j)
        for (int i = 0; i < 128; ++i) a[i] = a[i] * a[(i * 7 + 3) % 128] + y[j];
    for (int i = 0; i < 128; ++i) x[i * n + threadIdx.x] = a[i];
}"""
STACK = """extern "C" __global__ void stack(float* x, int n) {
    float a[64];
    for (int i = 0; i < n; ++i) a[i % 64] = x[i];
    x[0] = a[n % 64];
}"""
SHARED = """extern "C" __global__ void shared(float* x) {
    __shared__ float a[6144], b[6145];
    a[threadIdx.x] = b[threadIdx.x + 1] = x[0];
    __syncthreads();
    x[threadIdx.x] = a[0] + b[threadIdx.x];
}"""
EMPTY = 'extern "C" __global__ void f() {}'
COMPLAINTS = {
    "an error": ('extern "C" __global__ void f(float* x) { x[0] = y; }', 'identifier "y" is undefined'),
    "a header that is not there": (f"#include <nothing.h>\n{EMPTY}", 'could not open source file "nothing.h"'),
    "a header of the C library": (f"#include <stdint.h>\n{EMPTY}", 'could not open source file "stdint.h"'),
    "a warning": ('extern "C" __global__ void f(float* x) { int unused; x[0] = 1; }', '"unused" was declared but never'),
}


@cache
def compiled(op, number, arch):
    return nvrtc.compile(ladder.source(op, number), arch, f"{op}_{number}.cu")


def check(found, arch, threads, least_share):
    """No spills, no stack, static shared memory that a block may have, and room for so large a share of the warps."""
    most, shared = MULTIPROCESSOR[arch]
    assert found.spill_bytes == 0, "registers spill"
    assert found.stack_bytes == 0, "an array is indexed by what only the running kernel knows, so it lies in memory"
    assert found.shared_bytes <= SHARED_BYTES, "too much shared memory"
    registers = -(-found.registers // 8) * 8  # given out by eight
    system = 1024 if arch != "sm_75" else 0  # of each block's shared memory the system takes 1 KiB
    blocks = min(most // threads, 65536 // (registers * threads), shared // max(1, found.shared_bytes + system))
    assert blocks * threads >= least_share * most, f"room for {blocks} blocks of {threads} threads, of {most} threads"


def block_size(op, number, kernel):
    """The threads of a block: what the text allows at most, 256 where it says nothing."""
    text = ladder.source(op, number)
    bound = next(k["bound"] for k in signature.KERNEL.finditer(text) if k["name"] == kernel)
    macros = dict(re.findall(r"^#define\s+(\w+)\s+(\d+)", text, re.M))
    return math.prod(int(macros.get(word.strip(), word)) for word in bound.split("*")) if bound else 256


@needs_nvrtc
@pytest.mark.parametrize("arch", nvrtc.ARCHITECTURES)
@pytest.mark.parametrize(("op", "number"), RUNGS)
def test_a_rung_compiles_and_fits(op, number, arch):
    found = compiled(op, number, arch)
    assert [k.kernel for k in found] == sorted(signature.kernels(ladder.source(op, number)))
    for kernel in found:
        share = LARGE_TILES if number >= TILES.get(op, math.inf) else ALL_OTHERS
        check(kernel, arch, block_size(op, number, kernel.kernel), share)


@needs_nvrtc
@pytest.mark.parametrize(("op", "number"), RUNGS)
def test_shared_memory_is_what_the_emulator_finds(op, number):
    try:
        module = emulator.RawModule(code=ladder.source(op, number), name=f"{op}_{number}.cu")
    except InputError as error:
        pytest.skip(str(error))
    arrays = module.shared_arrays
    for kernel in compiled(op, number, "sm_90"):
        assert kernel.shared_bytes == sum(size for (name, _), (_, size) in arrays.items() if name == kernel.kernel)


# What the checks reject

@needs_nvrtc
@pytest.mark.parametrize("what", COMPLAINTS)
def test_complaints_are_errors(what):
    text, message = COMPLAINTS[what]
    with pytest.raises(nvrtc.CompileError) as caught:
        nvrtc.compile(text, "sm_90", "wrong.cu")
    assert message in str(caught.value)
    assert "wrong.cu" in str(caught.value)  # and the line
    assert "ptxas info" not in str(caught.value)


@needs_nvrtc
@pytest.mark.parametrize("arch", nvrtc.ARCHITECTURES)
@pytest.mark.parametrize(("text", "message"), [(SPILLS, "registers spill"), (STACK, "lies in memory")])
def test_greedy_kernels_are_rejected(text, message, arch):
    [found] = nvrtc.compile(text, arch)
    with pytest.raises(AssertionError, match=message):
        check(found, arch, 128, 0)


@needs_nvrtc
def test_too_much_shared_memory_is_rejected():
    with pytest.raises(nvrtc.CompileError, match="49156 bytes smem"):
        nvrtc.compile(SHARED, "sm_90")
    with pytest.raises(AssertionError, match="too much shared"):
        check(nvrtc.Resources("f", 32, 49156, 0, 0), "sm_90", 128, 0)


@pytest.mark.parametrize(("registers", "shared", "threads", "share", "fits"), [
    (64, 0, 256, 0.5, True), (65, 0, 256, 0.5, False),  # 1,024 threads of 64 registers; of 72 only three blocks of 256
    (32, 24 << 10, 256, 1.0, True), (32, 28 << 10, 256, 1.0, False),  # nine blocks of 24 KiB and the system's 1; seven of 28
    (32, 0, 32, 1.0, True), (255, 0, 256, 0.125, True), (255, 0, 512, 0.125, False)])
def test_room_for_warps(registers, shared, threads, share, fits):
    found = nvrtc.Resources("f", registers, shared, 0, 0)
    if fits:
        check(found, "sm_90", threads, share)
    else:
        with pytest.raises(AssertionError, match="room for"):
            check(found, "sm_90", threads, share)


def test_threads_of_a_block_are_read_from_the_text():
    assert block_size("spmm", 2, "spmm") == 128
    assert block_size("spmm", 3, "spmm") == 256
    assert block_size("scatter_add", 1, "scatter_add") == 256


# The command

@needs_nvrtc
def test_the_table(monkeypatch, capsys):
    monkeypatch.setattr(ladder, "rungs", lambda: {"spmm": 3})
    assert run_command(nvrtc.main, ["--arch", "sm_75", "sm_90"]) == 0
    lines = capsys.readouterr().out.splitlines()
    registers = [compiled("spmm", 2, arch)[0].registers for arch in ("sm_75", "sm_90")]
    assert lines[2] == "| kernel | rung | sm_75 | sm_90 | shared |"
    assert lines[-1] == f"| spmm | 2 | {registers[0]} | {registers[1]} | 1024 |"


@needs_nvrtc
def test_an_unknown_gpu_is_one_line(capsys):
    assert run_command(nvrtc.main, ["--arch", "sm_13"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "sm_13" in line


def test_without_nvrtc_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(nvrtc, "library", lambda: None)
    assert run_command(nvrtc.main, []) == 2
    assert capsys.readouterr() == ("", "error: NVRTC is not installed; fix: pip install nvidia-cuda-nvrtc\n")


def test_where_nvrtc_is_looked_for(monkeypatch, tmp_path):
    """Both wheels' folders; the newest first, never the alternative build."""
    names = ("cu13/lib/libnvrtc.so.13", "cu13/lib/libnvrtc.alt.so.13", "cu13/lib/libnvrtc-builtins.so.13.4",
             "cuda_nvrtc/lib/libnvrtc.so.12")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"no library")
    spec = type(sys)("spec")
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(nvrtc, "find_spec", lambda name: spec)
    monkeypatch.setattr(nvrtc, "find_library", lambda name: None)
    found = [path for path in nvrtc.candidates() if tmp_path in path.parents]
    assert found == [tmp_path / names[0], tmp_path / names[3]]
    assert nvrtc.library.__wrapped__() is None or len(nvrtc.candidates()) > 2  # what does not load is passed over
