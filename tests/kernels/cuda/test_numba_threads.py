"""The stand-in for a GPU: right kernels give what a GPU gives, and each kind of wrong kernel is refused where it is wrong."""

import inspect
import sys

import numpy as np
import pytest

from minisl.errors import InputError
from minisl.kernels.cuda.emulator import faults
from minisl.kernels.cuda.emulator.numba_threads import run

pytest.importorskip("greenlet")
numba, cuda = pytest.importorskip("numba"), pytest.importorskip("numba.cuda")

FULL = 0xFFFFFFFF
ORDERS = [0, 1, 2, 3]


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


# What a kernel sees.

@cuda.jit
def places(out):
    x, y, z = cuda.grid(3)
    width, height, depth = cuda.gridsize(3)
    threads = width * height * depth
    out[z, y, x] = cuda.threadIdx.x + 10 * cuda.threadIdx.y + 100 * cuda.threadIdx.z + 1000 * cuda.blockIdx.x + 10000 * threads


@pytest.mark.parametrize("order", ORDERS)
def test_every_thread_runs_once_and_knows_its_place(order):
    out = zeros(4, 2, 9, dtype=np.int64)
    run(places, (3, 1, 2), (3, 2, 2), (out,), order)
    z, y, x = np.indices(out.shape)
    np.testing.assert_array_equal(out, x % 3 + 10 * (y % 2) + 100 * (z % 2) + 1000 * (x // 3) + 10000 * 9 * 2 * 4)


@cuda.jit
def lanes(out):
    i, size = cuda.grid(1), cuda.gridsize(1)
    x, _ = cuda.grid(2)
    out[i] = cuda.laneid + 100 * size + 1000000 * (x - i + cuda.warpsize)


def test_lanes_count_within_a_warp():
    out = zeros(96, dtype=np.int64)
    run(lanes, (2,), (48,), (out,))
    np.testing.assert_array_equal(out, np.tile(np.r_[:32, :16], 2) + 9600 + 32000000)


@cuda.jit(device=True)
def half_of(x):
    return x * np.float32(0.5)


@cuda.jit
def halved(x):
    x[cuda.grid(1)] = half_of(x[cuda.grid(1)])


def test_device_functions_and_plain_functions_run():
    x = np.arange(4, dtype=np.float32)
    run(halved, (1,), (4,), (x,))
    run(halved.py_func, (2,), (2,), (x,))
    np.testing.assert_array_equal(x, np.arange(4) / 4)


@cuda.jit
def numbers(x, i, scale, wide, out):
    out[0] = (x[0] + x[1] * scale) - x[0]  # 1 is lost in float32, and only there
    out[1] = (x[0] + x[1] * wide) - x[0]
    out[2] = i[0] * i[0] / (i[0] + 0)      # past int32
    out[3] = x[0] * x[0] * x[0]


def test_float32_stays_float32_and_whole_numbers_do_not_overflow():
    out = zeros(4, dtype=np.float64)
    x, i = np.array([2.0**30, 1], np.float32), np.array([2**30], np.int32)
    run(numbers, (1,), (1,), (x, i, np.float32(1), 1.0, out))
    np.testing.assert_array_equal(out, [0, 1, 2**30, 2.0**90])
    run(numbers, (1,), (1,), (np.array([1e30, 1], np.float32), i, np.float32(1), 1.0, out))
    assert np.isinf(out[3])  # and nobody is warned


@cuda.jit
def reversed_in_blocks(x):
    tile = cuda.shared.array(64, np.float32)
    i = cuda.threadIdx.x
    tile[i] = x[cuda.grid(1)]
    cuda.syncthreads()
    x[cuda.grid(1)] = tile[63 - i]


@cuda.jit
def two_arrays_in_a_line(x):
    a, b = cuda.shared.array((2, 3), np.float32), cuda.local.array(2, numba.float32)
    a[cuda.threadIdx.x, 2], b[1] = x[cuda.threadIdx.x], cuda.threadIdx.x
    cuda.syncthreads()
    x[cuda.threadIdx.x] = a[1 - cuda.threadIdx.x, 2] + 10 * b[1]


@pytest.mark.parametrize("order", ORDERS)
def test_shared_and_local_arrays(order):
    x = np.arange(128, dtype=np.float32)
    run(reversed_in_blocks, (2,), (64,), (x,), order)
    np.testing.assert_array_equal(x, np.r_[63:-1:-1, 127:63:-1])
    x = np.array([3, 4], np.float32)
    run(two_arrays_in_a_line, (1,), (2,), (x,), order)
    np.testing.assert_array_equal(x, [4, 13])


@cuda.jit
def warp_reverses(x):
    tile = cuda.shared.array(64, np.float32)
    i = cuda.threadIdx.x
    tile[i] = x[i]
    cuda.syncwarp()
    x[i] = tile[i ^ 31]
    cuda.syncwarp(FULL)
    tile[i ^ 31] = x[i]


@pytest.mark.parametrize("order", ORDERS)
def test_syncwarp_orders_the_lanes_of_a_warp(order):
    x = np.arange(64, dtype=np.float32)
    run(warp_reverses, (1,), (64,), (x,), order)
    np.testing.assert_array_equal(x, np.r_[31:-1:-1, 63:31:-1])


# Warps talk.

@cuda.jit
def shuffles(x, out):
    lane, i = cuda.threadIdx.x & 31, cuda.threadIdx.x
    out[0, i] = cuda.shfl_sync(FULL, x[i], 35)
    out[1, i] = cuda.shfl_up_sync(FULL, x[i], 3)
    out[2, i] = cuda.shfl_down_sync(FULL, x[i], 5)
    out[3, i] = cuda.shfl_xor_sync(-1, x[i], 9)
    out[4, i] = cuda.shfl_sync(FULL, x[i], (lane * 7) & 31)
    if lane < 8:
        out[5, i] = cuda.shfl_xor_sync(0xFF, x[i], 4)
    else:
        out[5, i] = cuda.shfl_sync(0xFFFFFF00, x[i], 8)


@pytest.mark.parametrize("order", ORDERS)
def test_shuffles(order):
    x, lane = np.random.default_rng(0).standard_normal(64).astype(np.float32), np.arange(64) % 32
    out = np.full((6, 64), np.nan, np.float32)
    run(shuffles, (1,), (64,), (x, out), order)
    sources = [0 * lane + 3, np.where(lane < 3, lane, lane - 3), np.where(lane > 26, lane, lane + 5), lane ^ 9, lane * 7 % 32,
               np.where(lane < 8, lane ^ 4, 8)]
    np.testing.assert_array_equal(out, [x[np.arange(64) // 32 * 32 + s] for s in sources])


# Orders.

@cuda.jit
def queue(count, who):
    who[cuda.atomic.add(count, 0, 1)] = cuda.grid(1)


def turns(order):
    who = zeros(64, dtype=np.int32)
    run(queue, (4,), (16,), (zeros(1, dtype=np.int32), who), order)
    return who.tolist()


def test_orders():
    assert turns(0) == list(range(64))
    assert turns(1) == list(range(64))[::-1]
    assert turns(2) != turns(3)
    assert sorted(turns(2)) == list(range(64))
    assert all(len({i // 16 for i in turns(2)[k:k + 16]}) == 1 for k in range(0, 64, 16))  # block by block
    assert turns(2)[:16] != sorted(turns(2)[:16])


@pytest.mark.parametrize("order", ORDERS)
def test_a_run_can_be_repeated(order):
    assert turns(order) == turns(order)


# Wrong kernels. The line that is named ends in "# here", in another order of threads perhaps in "# or here".

@cuda.jit
def beyond(x):
    x[cuda.grid(1)] = np.float32(1)  # here


@cuda.jit
def before(x):
    i = cuda.grid(1)
    if x[i - 1] > np.float32(0):  # here
        x[i] = np.float32(1)


@cuda.jit
def one_index_for_two(x):
    x[cuda.grid(1)] += np.float32(1)  # here


@cuda.jit
def column_beyond(x):
    x[0, cuda.grid(1)] = np.float32(1)  # here


@cuda.jit
def local_beyond(x):
    mine = cuda.local.array(4, np.float32)
    mine[cuda.threadIdx.x + 1] = x[0]  # here


@cuda.jit
def shared_unwritten(x):
    tile = cuda.shared.array(8, np.float32)
    if cuda.threadIdx.x != 5:
        tile[cuda.threadIdx.x] = x[0]
    cuda.syncthreads()
    x[cuda.threadIdx.x] = tile[cuda.threadIdx.x]  # here


@cuda.jit
def shared_unwritten_in_block_1(x):
    tile = cuda.shared.array(8, np.float32)
    if cuda.blockIdx.x == 0:
        tile[cuda.threadIdx.x] = x[cuda.threadIdx.x]
    x[cuda.grid(1)] = tile[cuda.threadIdx.x]  # here


@cuda.jit
def shared_sum_of_nothing(x):
    total = cuda.shared.array(1, np.float32)
    cuda.atomic.add(total, 0, x[0])  # here


@cuda.jit
def local_unwritten(x):
    mine = cuda.local.array(4, np.float32)
    x[cuda.threadIdx.x] = mine[1]  # here


@cuda.jit
def no_barrier(x):
    tile = cuda.shared.array(8, np.float32)
    i = cuda.threadIdx.x
    tile[i] = x[i]
    cuda.syncthreads()
    x[i] = tile[7 - i]  # here
    tile[i] = x[i]  # or here


@cuda.jit
def sum_without_atomic(x):
    x[0] += np.float32(1)  # here


@cuda.jit
def blocks_write_one_element(x):
    cuda.syncthreads()
    x[cuda.threadIdx.x] = np.float32(1)  # here


@cuda.jit
def atomic_and_plain(x):
    cuda.atomic.add(x, 0, np.float32(1))  # here
    x[1 + cuda.threadIdx.x] = x[0]  # or here


@cuda.jit
def shuffle_orders_nothing(x):
    x[cuda.threadIdx.x] = np.float32(1)  # or here
    cuda.shfl_xor_sync(FULL, 1, 1)
    x[cuda.threadIdx.x] = x[cuda.threadIdx.x ^ 1]  # here


@cuda.jit
def syncwarp_between_warps(x):
    x[cuda.threadIdx.x] = np.float32(1)  # or here
    cuda.syncwarp()
    x[cuda.threadIdx.x] = x[cuda.threadIdx.x ^ 32]  # here


@cuda.jit
def barrier_after_return(x):
    if cuda.threadIdx.x >= 6:
        return
    cuda.syncthreads()  # here
    x[cuda.threadIdx.x] = np.float32(1)


@cuda.jit
def two_barriers(x):
    if cuda.threadIdx.x == 3:
        cuda.syncthreads()  # here
    else:
        cuda.syncthreads()  # or here


@cuda.jit
def not_in_own_mask(x):
    cuda.shfl_sync(0x0000FFFF, x[0], 0)  # here


@cuda.jit
def mask_names_the_gone(x):
    if cuda.threadIdx.x < 16:
        cuda.shfl_down_sync(FULL, x[0], 1)  # here


@cuda.jit
def source_outside_mask(x):
    if cuda.threadIdx.x < 16:
        cuda.shfl_xor_sync(0x0000FFFF, x[0], 16)  # here


@cuda.jit
def two_collectives(x):
    if cuda.threadIdx.x < 16:
        cuda.shfl_sync(FULL, x[0], 0)  # here
    else:
        cuda.shfl_sync(FULL, x[1], 0)  # or here


@cuda.jit
def half_waits_for_the_block(x):
    if cuda.threadIdx.x < 16:
        cuda.syncwarp()  # here
    cuda.syncthreads()


@cuda.jit
def too_much_shared(x):
    tile = cuda.shared.array((128, 128), np.float32)  # here
    tile[0, 0] = x[0]


@cuda.jit(device=True)
def reads_beyond(x, i):
    return x[i + 8]  # here


@cuda.jit
def calls_what_reads_beyond(x):
    x[0] = reads_beyond(x, cuda.threadIdx.x)


ORIGIN = (0, 0, 0)
# kernel, exception, grid, block, shape of x; in forward order: block and thread at fault, part of the message
WRONG = [
    (beyond, faults.OutOfBounds, (2,), (8,), (13,), (1, 0, 0), (5, 0, 0), "writes x[13]; it has 13 elements"),
    (before, faults.OutOfBounds, (1,), (8,), (8,), ORIGIN, ORIGIN, "reads x[-1]"),
    (one_index_for_two, faults.OutOfBounds, (1,), (1,), (2, 2), ORIGIN, ORIGIN, "reads x[0]; its shape is (2, 2)"),
    (column_beyond, faults.OutOfBounds, (1,), (3,), (2, 2), ORIGIN, (2, 0, 0), "writes x[0, 2]"),
    (local_beyond, faults.OutOfBounds, (1,), (4, 2), (1,), ORIGIN, (3, 0, 0), "writes mine[4]"),
    (calls_what_reads_beyond, faults.OutOfBounds, (1,), (1,), (8,), ORIGIN, ORIGIN, "reads x[8]"),
    (shared_unwritten, faults.Uninitialised, (1,), (8,), (8,), ORIGIN, (5, 0, 0), "reads tile[5], which no thread"),
    (shared_unwritten_in_block_1, faults.Uninitialised, (2,), (4,), (8,), (1, 0, 0), ORIGIN, "reads tile[0]"),
    (shared_sum_of_nothing, faults.Uninitialised, (1,), (4,), (8,), ORIGIN, ORIGIN, "changes atomically total[0]"),
    (local_unwritten, faults.Uninitialised, (1,), (4,), (8,), ORIGIN, ORIGIN, "reads mine[1]"),
    (no_barrier, faults.Race, (1,), (8,), (8,), ORIGIN, (4, 0, 0), "reads tile[3], which thread (3, 0, 0) wrote in line"),
    (sum_without_atomic, faults.Race, (1,), (8,), (1,), ORIGIN, (1, 0, 0), "reads x[0], which thread (0, 0, 0) wrote"),
    (sum_without_atomic, faults.Race, (2,), (1,), (1,), (1, 0, 0), ORIGIN, "thread (0, 0, 0) of block (0, 0, 0) wrote"),
    (blocks_write_one_element, faults.Race, (2, 2), (4,), (8,), (1, 0, 0), ORIGIN, "blocks are ordered by nothing but atomics"),
    (atomic_and_plain, faults.Race, (1,), (4,), (8,), ORIGIN, (1, 0, 0), "changes atomically x[0], which thread (0, 0, 0) read"),
    (shuffle_orders_nothing, faults.Race, (1,), (32,), (32,), ORIGIN, ORIGIN, "reads x[1]"),
    (syncwarp_between_warps, faults.Race, (1,), (64,), (64,), ORIGIN, ORIGIN, "reads x[32]"),
    (barrier_after_return, faults.BarrierDivergence, (1,), (8,), (8,), ORIGIN, (6, 0, 0), "has returned; 6 other threads"),
    (two_barriers, faults.BarrierDivergence, (1,), (8,), (8,), ORIGIN, (3, 0, 0), "thread (0, 0, 0) at that in line"),
    (not_in_own_mask, faults.BadShuffle, (1,), (32,), (1,), ORIGIN, (16, 0, 0), "lane 16 is not in its own mask 0000ffff"),
    (mask_names_the_gone, faults.BadShuffle, (1,), (32,), (1,), ORIGIN, ORIGIN, "names lane 16, which has returned"),
    (mask_names_the_gone, faults.BadShuffle, (1,), (16,), (1,), ORIGIN, (15, 0, 0), "lane 16, which the block does not have"),
    (source_outside_mask, faults.BadShuffle, (1,), (32,), (1,), ORIGIN, ORIGIN, "reads lane 16, which is not in the mask"),
    (two_collectives, faults.BadShuffle, (1,), (32,), (2,), ORIGIN, ORIGIN, "which waits in another collective (line"),
    (half_waits_for_the_block, faults.Deadlock, (1,), (32,), (1,), ORIGIN, ORIGIN, "of mask ffffffff, which never come"),
    (too_much_shared, faults.BadLaunch, (1,), (1,), (1,), ORIGIN, ORIGIN, "65536 bytes of shared memory; allowed: 49152"),
]


def marked(kernel, mark):
    """The lines of a kernel, or of the device function in it, that end so."""
    lines, first = inspect.getsourcelines((reads_beyond if kernel is calls_what_reads_beyond else kernel).py_func)
    return {first + k for k, line in enumerate(lines) if line.rstrip().endswith(mark)}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", WRONG, ids=lambda case: f"{case[0].py_func.__name__} {case[2]} x {case[3]}")
def test_wrong_kernels(case, order):
    kernel, fault, grid, block, shape, at_block, at_thread, text = case
    said = set()
    for _ in range(2):
        with pytest.raises(fault) as caught:
            run(kernel, grid, block, (zeros(*shape),), order)
        said.add(str(caught.value))
    wrong = caught.value
    assert len(said) == 1  # it can be repeated
    assert wrong.kernel == f"test_numba_threads.{kernel.py_func.__name__}"
    assert wrong.line in marked(kernel, "# here") | (marked(kernel, "# or here") if order else set())
    assert f"line {wrong.line}, block {wrong.block}, thread {wrong.thread}" in str(wrong)
    assert str(wrong).endswith("here")  # the line itself is shown
    if order == 0:
        assert (wrong.block, wrong.thread) == (at_block, at_thread)
        assert text in str(wrong)


x = zeros(8)
BAD_LAUNCHES = {
    "more than 1024 threads": ((1,), (33, 32), (x,), "block (33, 32) has 1056 threads; allowed: 1024"),
    "a block too deep": ((1,), (1, 1, 65), (x,), "block is (1, 1, 65); allowed: 1 to (1024, 1024, 64)"),
    "no block": ((0,), (32,), (x,), "grid is (0,)"),
    "too many rows of blocks": ((1, 65536), (32,), (x,), "grid is (1, 65536)"),
    "four axes": ((1, 1, 1, 1), (32,), (x,), "grid is (1, 1, 1, 1)"),
    "an argument too many": ((1,), (8,), (x, x), "takes 1 arguments (x), got 2"),
    "a list": ((1,), (8,), ([1.0],), "x must be a NumPy array or a number, got list"),
    "complex": ((1,), (8,), (zeros(8, dtype=np.complex64),), "x is of complex64"),
    "the other byte order": ((1,), (8,), (zeros(8, dtype=">f4"),), "x is of >f4"),
    "a transposed view": ((1,), (8,), (zeros(8, 8).T,), "x must be contiguous, got strides (4, 32)"),
}


@pytest.mark.parametrize("case", BAD_LAUNCHES)
def test_bad_launches(case):
    grid, block, args, text = BAD_LAUNCHES[case]
    with pytest.raises(faults.BadLaunch) as caught:
        run(beyond, grid, block, args)
    assert str(caught.value).startswith("test_numba_threads.beyond: ")
    assert text in str(caught.value)


def test_without_greenlet_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "greenlet", None)
    with pytest.raises(InputError) as caught:
        run(beyond, (1,), (8,), (x,))
    assert str(caught.value) == "Numba kernels without a GPU need greenlet: pip install greenlet"
