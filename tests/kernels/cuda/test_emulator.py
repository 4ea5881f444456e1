"""The emulator: right kernels give what a GPU gives, and each kind of wrong kernel is refused where it is wrong."""

import re
import shutil
import signal
import subprocess
import threading
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from minisl.backend import to_numpy
from minisl.errors import InputError
from minisl.kernels.cuda import emulator, nvrtc
from minisl.kernels.cuda.emulator import build, faults
from minisl.kernels.cuda.signature import checked, kernels

needs_compiler = pytest.mark.usefixtures("compiler")
ORDERS = [0, 1, 2, 3]
RIGHT, WRONG_CODE = (Path(__file__).with_name(name).read_text() for name in ("right.cu", "wrong.cu"))  # each is compiled once


@cache
def module(code, *options):
    return emulator.RawModule(code=code, options=options, name="test.cu")


def run(code, kernel, grid, block, *args, order=0, **options):
    """Launch; arrays are changed in place."""
    with emulator.order(order):
        module(code).get_function(kernel)(grid, block, args, **options)


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def numbers(n, dtype=np.float32):
    return np.arange(1, n + 1).astype(dtype)


# What a kernel sees, here and on a GPU


@pytest.fixture
def launch(device):
    """launch(kernel, grid, block, *args): the arrays among the arguments as a kernel of right.cu leaves them, for each order of
    threads that can be asked for."""
    def launched(kernel, grid, block, *args, options=(), **memory):
        found = []
        for order in ORDERS if device is np else [0]:
            with emulator.order(order):
                given = [device.asarray(a.copy()) if isinstance(a, np.ndarray) else a for a in args]
                values = checked(kernel, kernels(RIGHT)[kernel], given, device.ndarray)
                compiled = module(RIGHT, *options) if device is np else device.RawModule(code=RIGHT, options=options)
                compiled.get_function(kernel)(grid, block, values, **memory)
                found.append([to_numpy(a) for a in given if isinstance(a, device.ndarray)])
        return found

    return launched


def test_every_thread_runs_once_and_knows_its_place(launch):
    z, y, x = np.indices((4, 2, 9))
    for out, in launch("places", (3, 1, 2), (3, 2, 2), zeros(4, 2, 9, dtype=np.int64)):
        np.testing.assert_array_equal(out, x % 3 + 10 * (y % 2) + 100 * (z % 2) + 1000 * (x // 3) + 20000)


def test_device_functions_and_templates(launch):
    for x, y in launch("doubled", (2,), (16,), numbers(20), zeros(20), 20):
        np.testing.assert_array_equal(y, 2 * x)


def test_macros_given_as_options(launch):
    for options, factor in (((), 2), (("-DSCALE=5",), 5), (("-std=c++17", "-DSCALE=7", "--use_fast_math"), 7)):
        for x, in launch("scaled", (1,), (8,), numbers(8), options=options):
            np.testing.assert_array_equal(x, factor * numbers(8))


def test_numbers_arrive_as_the_types_of_the_kernel(launch):
    tenth = float(np.float32(0.1))
    for _, out in launch("types", (1,), (1,), np.float32(0.1), -(1 << 40), 4_000_000_000, np.int64(-5), 0.1, 200,
                         np.array([-3], np.int8), zeros(7, dtype=np.float64)):
        assert out.tolist() == [tenth, -(1 << 40), 4e9, -5, tenth, 200, -3]


@pytest.mark.parametrize(("kernel", "block", "expected"), [
    ("turned", 64, numbers(64)[::-1]), ("turned_in_warps", 64, numbers(64).reshape(2, 32)[:, ::-1]),
    ("turned_in_half_warps", 32, numbers(32).reshape(2, 16)[:, ::-1])])
def test_shared_memory(kernel, block, expected, launch):
    for _, y in launch(kernel, (1,), (block,), numbers(block), zeros(block)):
        np.testing.assert_array_equal(y, expected.reshape(-1))


def test_dynamic_shared_memory(launch):
    for _, y in launch("turned_dynamic", (1,), (50,), numbers(50), zeros(50), 50, shared_mem=200):
        np.testing.assert_array_equal(y, numbers(50)[::-1])


def test_no_false_alarms(launch):
    """What barriers, atomics or separate bytes keep apart; and what is only read."""
    for _, y in launch("sums", (1,), (32,), numbers(128), zeros(32)):
        np.testing.assert_array_equal(y, np.full(32, 128 * 129 / 2))
    values = np.random.default_rng(0).integers(0, 4, 200, np.uint8)
    for count, x in launch("counted", (4,), (50,), zeros(4, dtype=np.int32), values):
        np.testing.assert_array_equal(count, np.bincount(x))
    for x, in launch("bytes", (5,), (14,), np.arange(70, dtype=np.uint8)):
        np.testing.assert_array_equal(x, np.arange(3, 73))
    for _, y in launch("all_read_one", (3,), (32,), numbers(2), zeros(96)):
        np.testing.assert_array_equal(y, np.full(96, 3))
    for x, in launch("own_word_twice", (1,), (40,), zeros(40)):
        assert x.tolist() == [2] * 5 + [3] + [2] * 34


def test_wide_loads_and_stores(launch):
    for x, y in launch("wide", (1,), (8,), numbers(32), zeros(32)):
        np.testing.assert_array_equal(y.reshape(8, 4), x.reshape(8, 4)[:, ::-1])


def test_atomics(launch):
    for x, old in launch("atomics", (1,), (64,), np.array([0, -5, 5, 0, 6, 0, 3, 0], np.int32), zeros(64, dtype=np.uint32)):
        assert x.tolist() == [128, 63, -7, 6, 8, 3, 4, 4]
        assert sorted(old.tolist()) == list(range(0, 128, 2))


def test_functions(launch):
    for _, y in launch("functions", (1,), (1,), numbers(4), zeros(11)):
        assert y.tolist() == [5, 4, 31, 32, 2, 2.5, 0.5, 2, 3, 0.25, 32]


def test_shuffles(launch):
    """A lane that would be read outside of its part of the warp is the reader itself."""
    t = np.arange(32)
    lanes = [np.where(t + 3 < 32, t + 3, t), np.where(t >= 3, t - 3, t), t ^ 5, np.full(32, 7),
             np.where(t % 8 + 3 < 8, t + 3, t), np.where(t % 8 >= 3, t - 3, t), t ^ 5, t // 8 * 8 + 1, (t + 1) % 32,
             np.where(t < 31, t + 1, t)]
    for x, y in launch("shuffles", (1,), (32,), numbers(32), zeros(336)):
        for k, lane in enumerate(lanes):
            np.testing.assert_array_equal(y[32 * k:32 * k + 32], x[lane], err_msg=str(k))
        np.testing.assert_array_equal(y[320:], x[t[:16] ^ 1])


def test_votes(launch):
    for _, y in launch("votes", (1,), (64,), np.arange(64, dtype=np.int32), zeros(256, dtype=np.uint32)):
        ballots, anybody, everybody, half = y.reshape(4, 64)
        assert set(ballots[:32]) == {(1 << 32) - (1 << 21)}
        assert set(ballots[32:]) == {0xFFFFFFFF}
        assert (anybody.reshape(2, 32) == [[0], [1]]).all()
        assert (everybody.reshape(2, 32) == [[0], [1]]).all()
        assert set(half.reshape(2, 2, 16)[:, 1].ravel()) == {0xAAAA0000 + 1}
        assert not half.reshape(2, 2, 16)[:, 0].any()


def test_a_short_warp(launch):
    for _, y in launch("warp_sums", (1,), (40,), numbers(40), zeros(40)):
        assert y.tolist() == [32 * 33 / 2] * 32 + [sum(range(33, 41))] * 8


def test_a_kernel_may_be_called_as_a_function_of_the_c_library(launch):
    for x, in launch("stat", (1,), (8,), zeros(8)):
        assert x.tolist() == [7] * 8


@pytest.mark.skipif(nvrtc.library() is None, reason="NVRTC is not installed (pip install nvidia-cuda-nvrtc)")
@pytest.mark.parametrize("text", [RIGHT, WRONG_CODE], ids=["right.cu", "wrong.cu"])
def test_what_is_run_here_is_cuda(text):
    nvrtc.compiler_log(text, "sm_80", "test.cu")


# Wrong kernels: each is refused in a line marked "here", or where that depends on the order "or here"

ORIGIN = (0, 0, 0)
BIG = np.array([0, 2**31 - 1, 0], np.int32)
# kernel, exception, grid, block, arguments; in forward order: block and thread at fault, what is said of it; launch options
WRONG = [
    ("beyond", faults.OutOfBounds, (2,), (8,), (zeros(13), 13), (1, 0, 0), (5, 0, 0), "writes x[13]; it has 13 elements"),
    ("before", faults.OutOfBounds, (1,), (8,), (zeros(8), zeros(8)), ORIGIN, ORIGIN, "reads x[-1]; it has 8 elements"),
    ("wide_beyond", faults.OutOfBounds, (1,), (4,), (zeros(12), zeros(16)), ORIGIN, (3, 0, 0), "reads x[12]"),
    ("wide_beyond_in_part", faults.OutOfBounds, (1,), (3,), (zeros(10), zeros(12)), ORIGIN, (2, 0, 0), "x[8]"),
    ("atomic_beyond", faults.OutOfBounds, (1,), (4, 3), (zeros(10, dtype=np.int32),), ORIGIN, (2, 2, 0),
     "changes atomically x[10]; it has 10 elements"),
    ("calls_what_reads_beyond", faults.OutOfBounds, (1,), (1,), (zeros(8),), ORIGIN, ORIGIN, "reads x[8]; it has 8 elements"),
    ("far_away", faults.OutOfBounds, (1,), (1,), (zeros(8),), ORIGIN, ORIGIN, ", far from every array"),
    ("dynamic_beyond", faults.OutOfBounds, (1,), (8,), (zeros(8),), ORIGIN, (6, 0, 0),
     "writes dynamic shared memory[6]; it has 6 elements", {"shared_mem": 24}),
    ("dynamic_beyond", faults.OutOfBounds, (1,), (8,), (zeros(8),), ORIGIN, ORIGIN, "writes address"),
    ("static_beyond", faults.OutOfBounds, (1,), (8,), (zeros(8), 1), ORIGIN, (7, 0, 0), "reads tile[8]; it has 8 elements"),
    ("unwritten", faults.Uninitialised, (1,), (8,), (zeros(8),), ORIGIN, (5, 0, 0),
     "reads tile[5], which no thread of the block has written"),
    ("unwritten_in_block_1", faults.Uninitialised, (2,), (4,), (zeros(8),), (1, 0, 0), ORIGIN, "reads tile[0]"),
    ("sum_of_nothing", faults.Uninitialised, (1,), (4,), (zeros(8),), ORIGIN, ORIGIN, "changes atomically total[0]"),
    ("unwritten_byte", faults.Uninitialised, (1,), (8,), (zeros(8, dtype=np.uint8),), ORIGIN, (6, 0, 0), "reads tile["),
    ("unwritten_dynamic", faults.Uninitialised, (1,), (8,), (zeros(8),), ORIGIN, ORIGIN, "reads dynamic shared memory[0]",
     {"shared_mem": 32}),
    ("race_in_a_warp", faults.Race, (1,), (32,), (zeros(32),), ORIGIN, (1, 0, 0),
     "writes tile[1], which thread (0, 0, 0) read in line {or here}; no barrier or atomic is between them"),
    ("race_between_warps", faults.Race, (1,), (64,), (zeros(64),), ORIGIN, (63, 0, 0),
     "writes tile[63], which thread (31, 0, 0) read"),
    ("tile_overwritten", faults.Race, (1,), (32,), (zeros(64), zeros(32)), ORIGIN, (16, 0, 0),
     "reads tile[15], which thread (15, 0, 0) wrote in line {or here}"),
    ("shuffle_orders_nothing", faults.Race, (1,), (32,), (zeros(32),), ORIGIN, (31, 0, 0),
     "reads tile[30], which thread (30, 0, 0) wrote"),
    ("all_write_one", faults.Race, (1,), (8,), (zeros(8),), ORIGIN, (1, 0, 0),
     "writes x[0], which thread (0, 0, 0) wrote in line {here}"),
    ("sum_without_atomic", faults.Race, (1,), (8,), (zeros(1),), ORIGIN, (1, 0, 0), "reads x[0], which thread (0, 0, 0) wrote"),
    ("sum_without_atomic", faults.Race, (1, 2), (1,), (zeros(1),), (0, 1, 0), ORIGIN,
     "thread (0, 0, 0) of block (0, 0, 0) wrote in line {here}; blocks are ordered by nothing but atomics"),
    ("blocks_write_and_read", faults.Race, (2,), (8,), (zeros(8), zeros(8)), (1, 0, 0), ORIGIN,
     "reads x[0], which thread (0, 0, 0) of block (0, 0, 0) wrote"),
    ("blocks_read_and_write", faults.Race, (2,), (1,), (zeros(1), zeros(2)), (1, 0, 0), ORIGIN,
     "writes x[0], which thread (0, 0, 0) of block (0, 0, 0) read"),
    ("all_read_then_one_writes", faults.Race, (2,), (40,), (zeros(1), zeros(80)), (1, 0, 0), ORIGIN,
     "writes x[0], which thread (39, 0, 0) of block (0, 0, 0) read"),
    ("atomic_after_plain", faults.Race, (1,), (8,), (zeros(1),), ORIGIN, (1, 0, 0),
     "changes atomically x[0], which thread (0, 0, 0) wrote in line {or here}"),
    ("first_block_clears", faults.Race, (2,), (40,), (zeros(1),), (1, 0, 0), ORIGIN,
     "changes atomically x[0], which thread (0, 0, 0) of block (0, 0, 0) wrote"),
    ("plain_read_of_atomics", faults.Race, (1,), (8,), (zeros(1), zeros(8)), ORIGIN, (1, 0, 0),
     "changes atomically x[0], which thread (0, 0, 0) read"),
    ("same_bytes", faults.Race, (1,), (8,), (zeros(8, dtype=np.uint8),), ORIGIN, (1, 0, 0),
     "writes x[0], which thread (0, 0, 0) wrote"),
    ("word_over_byte", faults.Race, (1,), (2,), (zeros(4, dtype=np.uint8),), ORIGIN, (1, 0, 0),
     "writes x[0], which thread (0, 0, 0) wrote"),
    ("barrier_after_return", faults.BarrierDivergence, (1,), (8,), (zeros(8), 6), ORIGIN, (6, 0, 0),
     "has returned; 6 other threads of its block wait at this __syncthreads()"),
    ("reads_a_sum_too_soon", faults.Race, (1,), (2,), (zeros(2),), ORIGIN, (1, 0, 0),
     "reads x[0], which thread (0, 0, 0) changed atomically in line {or here}"),
    ("two_barriers", faults.BarrierDivergence, (1,), (8,), (zeros(8),), ORIGIN, (3, 0, 0),
     "waits at this __syncthreads(), thread (0, 0, 0) at that in line {or here}"),
    ("not_in_own_mask", faults.BadShuffle, (1,), (32,), (zeros(32),), ORIGIN, (16, 0, 0),
     "lane 16 is not in its own mask 0000ffff"),
    ("mask_names_the_gone", faults.BadShuffle, (1,), (32,), (zeros(32),), ORIGIN, ORIGIN,
     "mask ffffffff names lane 16, which has returned"),
    ("mask_names_the_gone", faults.BadShuffle, (1,), (16,), (zeros(16),), ORIGIN, (15, 0, 0),
     "reads lane 16, which the block does not have"),
    ("source_outside_mask", faults.BadShuffle, (1,), (32,), (zeros(32),), ORIGIN, ORIGIN,
     "reads lane 16, which is not in the mask 0000ffff"),
    ("two_collectives", faults.BadShuffle, (1,), (32,), (zeros(32),), ORIGIN, (16, 0, 0),
     "lane 0 waits in another collective (line {or here})"),
    ("two_masks", faults.BadShuffle, (1,), (32,), (zeros(32),), ORIGIN, ORIGIN,
     "mask ffffffff names lane 16, which has returned"),
    ("half_waits_for_the_block", faults.Deadlock, (1,), (32,), (zeros(32),), ORIGIN, ORIGIN,
     "waits for the lanes of mask ffffffff, which never come"),
    ("local_beyond", faults.UndefinedBehaviour, (1,), (4,), (zeros(8),), ORIGIN, ORIGIN,
     "an index past the end of a fixed array"),
    ("row_of_tile_beyond", faults.UndefinedBehaviour, (1,), (8,), (zeros(8),), ORIGIN, (4, 0, 0), "an index past the end"),
    ("misaligned", faults.UndefinedBehaviour, (1,), (1,), (zeros(8), zeros(4)), ORIGIN, ORIGIN,
     "an address that is no multiple of 16 bytes"),
    ("null_pointer", faults.UndefinedBehaviour, (1,), (1,), (zeros(8), 0), ORIGIN, ORIGIN, "a null pointer"),
    ("shift", faults.UndefinedBehaviour, (1,), (1,), (np.array([0, 32], np.int32),), ORIGIN, ORIGIN, "a shift by more bits"),
    ("division", faults.UndefinedBehaviour, (1,), (1,), (BIG,), ORIGIN, ORIGIN, "a division by zero"),
    ("sum_overflows", faults.UndefinedBehaviour, (1,), (1,), (BIG, 1), ORIGIN, ORIGIN, "an integer sum that overflows"),
    ("difference_overflows", faults.UndefinedBehaviour, (1,), (1,), (BIG,), ORIGIN, ORIGIN,
     "an integer difference that overflows"),
    ("product_overflows", faults.UndefinedBehaviour, (1,), (1,), (BIG, 50_000), ORIGIN, ORIGIN,
     "an integer product that overflows"),
    ("negation_overflows", faults.UndefinedBehaviour, (1,), (1,), (~BIG,), ORIGIN, ORIGIN,
     "an integer that overflows when negated"),
    ("cast_overflows", faults.UndefinedBehaviour, (1,), (1,), (BIG, 3e9), ORIGIN, ORIGIN, "a float that does not fit"),
]


def marked(kernel, mark):
    """The lines of the kernel, or of the function it calls, that end so."""
    text = WRONG_CODE.splitlines()
    start = "__device__ float read_beyond(" if kernel == "calls_what_reads_beyond" else f'extern "C" __global__ void {kernel}('
    first = next(i for i, line in enumerate(text) if line.startswith(start))
    last = next(i for i in range(first, len(text)) if text[i] == "}")
    return [i + 1 for i in range(first, last) if text[i].endswith(f"// {mark}")]


# Where the memory of a block lies, beside the arrays, is the process's affair: so is how far away an access is.
FAR = re.compile(r"address 0x\w+, far from every array|\w+\[-?\d{5,}\]; it has \d+ elements")


@needs_compiler
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", WRONG, ids=lambda case: f"{case[0]} {case[2]} x {case[3]}")
def test_wrong_kernels(case, order):
    kernel, fault, grid, block, args, at_block, at_thread, text, *options = case
    said = set()
    for _ in range(2):
        given = [a.copy() if isinstance(a, np.ndarray) else a for a in args]
        with pytest.raises(fault) as caught:
            run(WRONG_CODE, kernel, grid, block, *given, order=order, **dict(*options))
        said.add(FAR.sub("far away", str(caught.value)))
    wrong = caught.value
    assert len(said) == 1  # it can be repeated
    assert type(wrong) is fault
    assert wrong.kernel == kernel
    here, otherwise = marked(kernel, "here"), marked(kernel, "or here")
    assert wrong.line in here + (otherwise if order else [])
    assert str(wrong).startswith(f"{kernel}, line {wrong.line}, block {wrong.block}, thread {wrong.thread}: {wrong.what}\n    ")
    assert str(wrong).endswith("here")  # the line itself is shown
    if order == 0:
        assert (wrong.block, wrong.thread) == (at_block, at_thread)
        for mark, lines in (("{here}", here), ("{or here}", otherwise)):
            text = text.replace(mark, str(*lines)) if mark in text else text
        assert text in wrong.what


def test_every_wrong_kernel_is_run():
    assert {case[0] for case in WRONG} == kernels(WRONG_CODE).keys()
    shown = {case[1] for case in WRONG} | {faults.BadLaunch}
    assert shown == set(faults.KernelFault.__subclasses__())


# What no GPU would take

LIMITED = """
#define THREADS 8
extern "C" __global__ void __launch_bounds__(2 * THREADS) narrow(float* x, int n) { if (threadIdx.x < n) x[threadIdx.x] = n; }
extern "C" __global__ void much_shared(float* x) {
    __shared__ float tile[128][97];
    extern __shared__ float more[];
    tile[threadIdx.x][0] = x[0];
    x[threadIdx.x] = tile[threadIdx.x][0];
}
"""
BAD_LAUNCHES = {
    "more than 1024 threads": ("much_shared", (1,), (33, 32), {}, "block (33, 32, 1) has 1056 threads; allowed: 1024"),
    "a block too deep": ("much_shared", (1,), (1, 1, 65), {}, "block is (1, 1, 65); allowed: 1 to (1024, 1024, 64)"),
    "no block": ("much_shared", (0,), (32,), {}, "grid is (0,); allowed: 1 to (2147483647, 65535, 65535)"),
    "no thread": ("much_shared", (1,), (32, 0), {}, "block is (32, 0)"),
    "less than no block": ("much_shared", (1, -1), (32,), {}, "grid is (1, -1)"),
    "too many rows of blocks": ("much_shared", (1, 65536), (32,), {}, "grid is (1, 65536)"),
    "four axes": ("much_shared", (1, 1, 1, 1), (32,), {}, "grid is (1, 1, 1, 1)"),
    "part of a block": ("much_shared", (1.5,), (32,), {}, "grid is (1.5,)"),
    "more threads than promised": ("narrow", (1,), (17,), {},
                                   "block (17, 1, 1) has 17 threads, its __launch_bounds__(2 * THREADS) allow fewer"),
    "too much shared memory": ("much_shared", (1,), (1,), {"shared_mem": 4}, "49668 bytes of shared memory; allowed: 49152"),
}


@needs_compiler
@pytest.mark.parametrize("case", BAD_LAUNCHES)
def test_bad_launches(case):
    kernel, grid, block, options, text = BAD_LAUNCHES[case]
    with pytest.raises(faults.BadLaunch) as caught:
        run(LIMITED, kernel, grid, block, zeros(8), *([8] if kernel == "narrow" else []), **options)
    assert str(caught.value).startswith(f"{kernel}: {text}")


x = zeros(8)
BAD_ARGUMENTS = {
    "float64": ((x.astype(float), 8), "narrow: x must be an array of float32, got float64"),
    "the other byte order": ((x.astype(">f4"), 8), "narrow: x must be an array of float32, got >f4"),
    "a transposed view": ((zeros(8, 8).T, 8), "narrow: x must be contiguous, got strides (4, 32) of shape (8, 8)"),
    "every other element": ((zeros(16)[::2], 8), "narrow: x must be contiguous, got strides (8,)"),
    "a list": (([1.0], 8), "narrow: x must be an array of float32, got list"),
    "a number for an array": ((1.0, 8), "narrow: x must be an array of float32, got float"),
    "an array for a number": ((x, x), "narrow: n must be a number (int), got ndarray"),
    "a float for an int": ((x, 8.0), "narrow: n must be a whole number (int), got 8.0"),
    "a truth value": ((x, True), "narrow: n must be a number (int), got bool"),
    "a string": ((x, "8"), "narrow: n must be a number (int), got str"),
    "an int that does not fit": ((x, 1 << 31), "narrow: n is 2147483648, which does not fit int"),
    "too few": ((x,), "narrow takes 2 arguments (x, n), got 1"),
    "too many": ((x, 8, 8), "narrow takes 2 arguments (x, n), got 3"),
}


@needs_compiler
@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments(case):
    args, text = BAD_ARGUMENTS[case]
    with pytest.raises(TypeError) as caught:
        run(LIMITED, "narrow", (1,), (8,), *args)
    assert str(caught.value).startswith(text)


@needs_compiler
def test_an_empty_array_has_no_elements():
    with pytest.raises(faults.OutOfBounds, match=r"writes x\[0\]; it has 0 elements"):
        run(LIMITED, "narrow", (1,), (1,), zeros(0), 1)
    run(LIMITED, "narrow", (1,), (1,), zeros(0), 0)


@needs_compiler
def test_unknown_kernel():
    with pytest.raises(ValueError, match=r"test\.cu has no kernel wide; it has narrow, much_shared"):
        module(LIMITED).get_function("wide")
    with pytest.raises(ValueError, match=r"kernel\.cu has no __global__ function"):
        emulator.RawModule(code="void f() {}")


def test_parameters_are_read_from_the_text():
    """Comments, qualifiers and lines do not matter; a type without a meaning here is refused."""
    found = kernels("""
        // extern "C" __global__ void gone(float* x) {}
        /* __global__ void gone_too(int n) {} */
        extern "C" __global__ void __launch_bounds__(8 * 32, 2) k(const float* __restrict__ x, // the input
            unsigned int n, const long long count, float4 *y) {}
        __global__ void none() {}""")
    assert {name: [(p.name, p.dtype, p.pointer) for p in parameters] for name, parameters in found.items()} == {
        "k": [("x", np.float32, True), ("n", np.uint32, False), ("count", np.int64, False), ("y", np.float32, True)], "none": []}
    with pytest.raises(ValueError, match="k: parameter x has type 'half'; known: float, double"):
        kernels("__global__ void k(half* x) {}")


# Compiling


@needs_compiler
@pytest.mark.parametrize(("code", "line", "text"), [
    ('\n\nextern "C" __global__ void k(float* x) {\n    x[0] = threadIdx.x +;\n}', 4, "expected"),
    ('extern "C" __global__ void k(float* x) { x[0] = blockidx.x; }', 1, "blockidx"),
    ('extern "C" __global__ void k(float4* x) { x[0] = __shfl_sync(1, x[0], 2); }', 0, "a shuffle moves at most 8 bytes")])
def test_errors_of_the_compiler_name_file_and_line(code, line, text):
    with pytest.raises(emulator.CompileError, match=text) as caught:
        emulator.RawModule(code=code, name="mine.cu")
    assert "\n" not in str(caught.value)
    if line:
        assert str(caught.value).startswith(f"mine.cu:{line}:")


TINY = 'extern "C" __global__ void k(float* x) { x[threadIdx.x] = SIZE; }'


@needs_compiler
def test_compiled_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first, again, other = (emulator.RawModule(code=TINY, options=(f"-DSIZE={n}",)) for n in (3, 3, 4))
    assert first.path == again.path != other.path
    assert {first.path, other.path} == set(Path(tmp_path, "minisl", "emulator").iterdir())
    before = first.path.stat().st_mtime_ns
    monkeypatch.setattr(subprocess, "run", None)
    assert emulator.RawModule(code=TINY, options=("-DSIZE=3",)).path.stat().st_mtime_ns == before


@pytest.fixture
def found_again():
    """What was found out about the compiler is forgotten, before and after."""
    build.compiler.cache_clear()
    yield
    build.compiler.cache_clear()


def test_without_a_compiler_one_line_says_what_to_install(found_again, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no such compiler")
    with pytest.raises(InputError) as caught:
        emulator.RawModule(code=TINY, options=("-DSIZE=1",))
    assert str(caught.value) == ("the CUDA emulator needs no such compiler (named by CXX), not found here; fix: apt install g++, "
                                 "or your system's package of it")
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(build.shutil, "which", lambda tool: None)
    with pytest.raises(InputError, match="needs g\\+\\+ and nm and addr2line, not found here"):
        emulator.compiler()


@needs_compiler
def test_another_compiler_by_its_name(found_again, monkeypatch, tmp_path):
    (tmp_path / "my-g++").symlink_to(shutil.which("g++") or pytest.skip("there is no g++"))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("CXX", "my-g++")
    assert emulator.compiler() == str(tmp_path / "my-g++")


def test_not_on_windows(found_again, monkeypatch):
    monkeypatch.setattr(build.platform, "system", lambda: "Windows")
    with pytest.raises(InputError) as caught:
        emulator.compiler()
    assert str(caught.value) == "the CUDA emulator runs on Linux (on Windows: inside WSL)"


# The order of threads and blocks

LISTED = """
extern "C" __global__ void listed(int* places, int* next) {
    places[atomicAdd(next, 1)] = blockIdx.x * blockDim.x + threadIdx.x;
}
"""


def listed(order):
    places = zeros(120, dtype=np.int32)
    run(LISTED, "listed", (3,), (40,), places, zeros(1, dtype=np.int32), order=order)
    return places.tolist()


@needs_compiler
def test_orders():
    """Forward, backward, or at random; the same each time."""
    assert listed(0) == list(range(120))
    assert listed(1) == list(range(120))[::-1]
    seen = [listed(order) for order in (2, 3, 4)]
    assert seen == [listed(order) for order in (2, 3, 4)]
    assert all(sorted(places) == list(range(120)) for places in seen)
    assert len(set(map(tuple, [*seen, listed(0), listed(1)]))) == 5
    assert [[place // 40 for place in places[::40]] for places in seen] != [[0, 1, 2]] * 3
    assert emulator.thread_order.get() == 0


# Recording

RECORDED = """
__device__ float doubled(const float* x) {
    return 2 * x[0];
}
extern "C" __global__ void recorded(const float* x, float4* y, int* count) {
    __shared__ float tile[2];
    tile[threadIdx.x] = doubled(x + threadIdx.x);
    __syncthreads();
    if (threadIdx.x == 1) y[1 + blockIdx.x] = make_float4(1, 2, 3, tile[0]);
    atomicAdd(&count[blockIdx.x], 1);
}
"""


@needs_compiler
def test_recording():
    """Every access of a thread to global and shared memory, in order; none to its own variables."""
    with emulator.record() as launches:
        run(RECORDED, "recorded", (2,), (2,), numbers(2), zeros(12), zeros(2, dtype=np.int32), order=0)
        run(RIGHT, "stat", (1,), (3,), zeros(3))
    run(RIGHT, "stat", (1,), (3,), zeros(3))
    first, second = launches
    assert (first.kernel, first.grid, first.block, first.source) == ("recorded", (2, 1, 1), (2, 1, 1), RECORDED)
    assert [(a.name, a.shared, a.shape) for a in first.arrays] == [
        ("x", False, (2,)), ("y", False, (12,)), ("count", False, (2,)), ("tile", True, (2,))]

    def of(block):
        read, write, atomic = range(3)
        return [(block, 0, 3, read, 4, "x", 0), (block, 0, 7, write, 4, "tile", 0), (block, 1, 3, read, 4, "x", 1),
                (block, 1, 7, write, 4, "tile", 1), (block, 0, 10, atomic, 4, "count", block), (block, 1, 9, read, 4, "tile", 0),
                (block, 1, 9, write, 16, "y", 4 + 4 * block), (block, 1, 10, atomic, 4, "count", block)]

    found = [(a["block"], a["thread"], a["line"], a["use"], a["size"], first.arrays[a["array"]].name, a["element"])
             for a in first.accesses]
    assert found == of(0) + of(1)
    assert len(second.accesses) == 3


@needs_compiler
def test_recording_of_some_kernels_and_not_of_wrong_ones():
    with emulator.record(["stat"], limit=2) as launches:
        run(RIGHT, "scaled", (1,), (3,), zeros(3))
        run(RIGHT, "stat", (1,), (3,), zeros(3))
        with pytest.raises(faults.OutOfBounds):
            run(RIGHT, "stat", (1,), (3,), zeros(2))
    assert [(launch.kernel, len(launch.accesses)) for launch in launches] == [("stat", 2)]


# After something went wrong


@needs_compiler
def test_the_next_launch_after_a_fault_is_as_any_other():
    """Threads that stood at a barrier, in a collective or in the middle of it are forgotten."""
    for kernel, block, args in (("barrier_after_return", 64, (zeros(64), 40)), ("two_collectives", 32, (zeros(32),)),
                                ("race_between_warps", 64, (zeros(64),))):
        for order in (0, 2):
            with pytest.raises(faults.KernelFault):
                run(WRONG_CODE, kernel, (2,), (block,), *args, order=order)
            with pytest.raises(faults.OutOfBounds):
                run(WRONG_CODE, "beyond", (2,), (64,), zeros(100), 100, order=order)
            x = zeros(128)
            run(WRONG_CODE, "beyond", (2,), (64,), x, 127, order=order)
            np.testing.assert_array_equal(x, np.arange(128))


@needs_compiler
def test_the_next_launch_after_ctrl_c(monkeypatch):
    """Which Python answers when the launch is over."""
    kernel = module(RIGHT).get_function("turned")
    launch = kernel.launch
    monkeypatch.setattr(kernel, "launch", lambda *args: (launch(*args), signal.raise_signal(signal.SIGINT))[0])
    y = zeros(64)
    with pytest.raises(KeyboardInterrupt):
        kernel((1,), (64,), (numbers(64), y))
    run(RIGHT, "turned", (1,), (64,), numbers(64), y)
    np.testing.assert_array_equal(y, numbers(64)[::-1])


@needs_compiler
def test_launches_from_several_threads():
    """One after the other: a library has the fibers of one launch."""
    results = zeros(4, 64)

    def launches(k):
        for _ in range(20):
            run(RIGHT, "turned", (1,), (64,), numbers(64) + k, results[k])

    threads = [threading.Thread(target=launches, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(results, numbers(64)[::-1] + np.arange(4)[:, None])


def test_array_that_must_not_be_written_to():
    fixed = zeros(3)
    fixed.flags.writeable = False
    with pytest.raises(TypeError, match="stat: x is written to, the array given is read-only"):
        run(RIGHT, "stat", (1,), (3,), fixed)
    assert fixed.tolist() == [0, 0, 0]
    code = 'extern "C" __global__ void copy(const float* x, float* y) { y[0] = x[0]; }'
    run(code, "copy", (1,), (1,), fixed, zeros(1))


def test_damaged_library_is_compiled_again(compiler, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.build(TINY, ("-DSIZE=4",), "kernel.cu", ("k",)).write_bytes(b"no library")
    assert emulator.RawModule(code=TINY, options=("-DSIZE=4",)).path.stat().st_size > 1000


def test_function_of_no_library_is_a_compile_error(compiler):
    with pytest.raises(emulator.CompileError, match=r"kernel\.cu: undefined symbol: elsewhere"):
        emulator.RawModule(code='extern "C" void elsewhere(); extern "C" __global__ void f() { elsewhere(); }')


def test_folder_for_caches_that_cannot_be_written(compiler, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    module = emulator.RawModule(code=TINY, options=("-DSIZE=5",))
    assert module.path == emulator.RawModule(code=TINY, options=("-DSIZE=5",)).path  # this process keeps it
    assert not module.path.is_relative_to(tmp_path)


def test_more_arrays_than_are_watched(compiler):
    names = ", ".join(f"float* a{k}" for k in range(61))
    with pytest.raises(faults.BadLaunch, match="more than 60 arrays"):
        run(f'extern "C" __global__ void f({names}) {{ }}', "f", (1,), (1,), *[zeros(1)] * 61)
