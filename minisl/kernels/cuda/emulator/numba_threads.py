"""Numba CUDA kernels without a GPU: the Python of a kernel runs as it is written, its threads one after another.

    @cuda.jit
    def double(x):
        i = cuda.grid(1)
        if i < len(x):
            x[i] *= np.float32(2)

    numba_threads.run(double, (4,), (64,), (x,))    # what double[4, 64](x) does on a GPU

A thread is a greenlet: a function that can stop in its middle and go on later. It runs until it waits (cuda.syncthreads, a
shuffle) or returns, then the next one runs. So the order of the threads is ours to choose, and each run can be repeated.

What a kernel sees as `cuda` is a `Device` (the global of that name is replaced), and what it sees as an array is `Elements`:
they hold each index against the array's bounds and keep who touched which element when. Out of that come OutOfBounds,
Uninitialised and Race, whatever the order.

Where Python's numbers are not Numba's: an element of a float array is a NumPy scalar, so float32 stays float32; whole numbers
are Python's, which stand for Numba's 64 bits. A literal such as 0.5 is float64 to Numba and makes float64 of all it meets, which
is slow on a GPU and not seen here: write np.float32(0.5).
"""

import linecache
import math
import random
from contextvars import copy_context
from itertools import product
from sys import _getframe
from types import FunctionType, SimpleNamespace
from typing import NamedTuple

import numpy as np

from minisl.errors import InputError
from minisl.kernels.cuda.emulator import faults
from minisl.kernels.cuda.emulator.module import LIMITS, SHARED_BYTES

WARP = 32
CLASHES = {"reads": ("writes", "changes atomically"), "writes": ("writes", "changes atomically", "reads"),
           "changes atomically": ("writes", "reads")}
PAST = {"reads": "read", "writes": "wrote", "changes atomically": "changed atomically"}


def run(kernel, grid, block, args, order=0):
    """Launch `kernel` (what @cuda.jit made, or a plain function) as kernel[grid, block](*args), on NumPy arrays, in place.

    order: how blocks, and threads within a block, take turns: 0 forward, 1 backward, from 2 on at random with that seed. A right
    kernel gives the same in each, up to the rounding of atomic sums.
    Raises a KernelFault that names line, block and thread; InputError without greenlet.
    """
    try:
        from greenlet import getcurrent, greenlet
    except ImportError:
        raise InputError("Numba kernels without a GPU need greenlet: pip install greenlet") from None
    function, luck = getattr(kernel, "py_func", kernel), random.Random(order)
    device = Device(f"{function.__module__.rpartition('.')[2]}.{function.__name__}", getcurrent())
    device.check(function, grid, block, args)
    body = device.inside(function)
    views = [device.argument(name, value) for name, value in zip(function.__code__.co_varnames, args)]

    quiet = copy_context()
    quiet.run(np.seterr, all="ignore")  # a GPU overflows without a word

    def thread(number, index, block):
        fiber = greenlet(lambda: body(*views))
        fiber.gr_context = quiet
        return Thread(fiber, number, index, block)

    def turns(things):
        things = things[::-1] if order == 1 else things[:]
        if order > 1:
            luck.shuffle(things)
        return things

    device.gridDim, device.blockDim = Index(*grid), Index(*block)
    for block in turns(indices(device.gridDim)):
        device.run_block([thread(number, index, block) for number, index in enumerate(indices(device.blockDim))], turns)


class Index(NamedTuple):
    x: int = 1
    y: int = 1
    z: int = 1


def indices(size):
    """All (x, y, z) below size, x fastest: consecutive threads of a warp differ in x."""
    return [Index(x, y, z) for z, y, x in product(*map(range, reversed(size)))]


class Thread:
    """One thread: where it is, what it waits for (frame: the kernel's, while it stands still), how often it was made to wait."""

    def __init__(self, fiber, number, index, block):
        self.fiber, self.index, self.block = fiber, index, block
        self.warp, self.lane = divmod(number, WARP)
        self.frame = self.mask = self.value = self.values = None
        self.barriers = self.syncs = 0

    @property
    def site(self):
        return self.frame and (self.frame.f_code, self.frame.f_lasti)

    def follows(self, other, barriers, syncs):
        """Is what this thread does now certain to come after what `other` did when it had so many barriers behind it?"""
        return self is other or (self.block == other.block and (
            self.barriers != barriers or (self.warp == other.warp and self.syncs != syncs)))


class Device:
    """`cuda` within a kernel, and the scheduler: a block runs until all its threads have returned."""

    warpsize = WARP
    threadIdx = property(lambda self: self.thread.index)
    blockIdx = property(lambda self: self.thread.block)
    laneid = property(lambda self: self.thread.lane)

    def __init__(self, kernel, scheduler):
        self.kernel, self.scheduler, self.thread = kernel, scheduler, None
        self.shared, self.local = SimpleNamespace(array=self.shared_array), SimpleNamespace(array=self.local_array)
        self.atomic = SimpleNamespace(add=Elements.add)

    # What a kernel calls.

    def grid(self, axes):
        found = [b * n + t for b, n, t in zip(self.blockIdx, self.blockDim, self.threadIdx)]
        return found[0] if axes == 1 else found[:axes]

    def gridsize(self, axes):
        found = [b * n for b, n in zip(self.gridDim, self.blockDim)]
        return found[0] if axes == 1 else found[:axes]

    def shared_array(self, shape, dtype):
        """One array for the block: each thread that comes to this place in the source gets the same one."""
        frame = _getframe(1)
        site = frame.f_code, frame.f_lasti
        if site not in self.arrays:
            self.arrays[site] = self.empty(frame, shape, dtype)
            if (size := sum(array.data.nbytes for array in self.arrays.values())) > SHARED_BYTES:
                raise self.fault(faults.BadLaunch, f"{size} bytes of shared memory; allowed: {SHARED_BYTES}")
        return self.arrays[site]

    def local_array(self, shape, dtype):
        return self.empty(_getframe(1), shape, dtype, private=True)

    def syncthreads(self):
        self.wait(_getframe(1))
        self.thread.barriers += 1

    def syncwarp(self, mask=0xFFFFFFFF):
        self.wait(_getframe(1), mask)
        self.thread.syncs += 1

    def shfl_sync(self, mask, value, lane):
        return self.shuffle(_getframe(1), mask, value, lane % WARP)

    def shfl_up_sync(self, mask, value, delta):
        return self.shuffle(_getframe(1), mask, value, self.laneid - delta)

    def shfl_down_sync(self, mask, value, delta):
        return self.shuffle(_getframe(1), mask, value, self.laneid + delta)

    def shfl_xor_sync(self, mask, value, bits):
        return self.shuffle(_getframe(1), mask, value, self.laneid ^ bits)

    # How threads wait for each other.

    def wait(self, frame, mask=None):
        """Stop here. Without a mask: until the whole block waits. With one: until the lanes wait that have their bit in it."""
        self.thread.frame, self.thread.mask = frame, mask if mask is None else mask & 0xFFFFFFFF
        self.scheduler.switch()

    def shuffle(self, frame, mask, value, source):
        """The value that lane `source` brought; a lane beyond the warp's ends means one's own. Orders no memory."""
        self.thread.value = value
        self.wait(frame, mask)
        source = source if 0 <= source < WARP else self.laneid
        if source not in self.thread.values:
            lacks = "the block does not have" if mask >> source & 1 else f"is not in the mask {mask & 0xFFFFFFFF:08x}"
            raise self.fault(faults.BadShuffle, f"reads lane {source}, which {lacks}")
        return self.thread.values[source]

    def run_block(self, threads, turns):
        self.arrays = {}
        while alive := [t for t in threads if not t.fiber.dead]:
            for self.thread in turns([t for t in alive if not t.frame]):
                self.thread.fiber.switch()
            moved = [self.meet(t, threads[t.warp * WARP:][:WARP]) for t in alive if t.mask is not None]
            if not any(moved):
                self.barrier(threads)

    def meet(self, thread, warp):
        """Let the lanes of this thread's mask go on if all of them have come to the same place. Has anybody moved?"""
        if thread.mask is None:  # it went on with a lane before it
            return False
        mask, lanes = f"mask {thread.mask:08x}", [lane for lane in range(len(warp)) if thread.mask >> lane & 1]  # those there are
        if thread.lane not in lanes:
            raise self.fault(faults.BadShuffle, f"lane {thread.lane} is not in its own {mask}", thread)
        for lane in lanes:
            why = ""
            if warp[lane].fiber.dead:
                why = "has returned"
            elif warp[lane].mask is not None and (warp[lane].site, warp[lane].mask) != (thread.site, thread.mask):
                why = f"waits in another collective (line {warp[lane].frame.f_lineno}, mask {warp[lane].mask:08x})"
            if why:
                raise self.fault(faults.BadShuffle, f"{mask} names lane {lane}, which {why}", thread)
        if any(warp[lane].mask is None for lane in lanes):
            return False
        values = {lane: warp[lane].value for lane in lanes}
        for lane in lanes:
            warp[lane].frame, warp[lane].mask, warp[lane].values = None, None, values
        return True

    def barrier(self, threads):
        """All stand still, or have returned: let them go on if the whole block has come to the same barrier."""
        alive = [t for t in threads if not t.fiber.dead]
        for t in alive:
            if t.mask is not None:
                raise self.fault(faults.Deadlock, f"waits for the lanes of mask {t.mask:08x}, which never come", t)
            if t.site != alive[0].site:
                other = f"thread {tuple(alive[0].index)} at that in line {alive[0].frame.f_lineno}"
                raise self.fault(faults.BarrierDivergence, f"waits at this syncthreads(), {other}", t)
        if 0 < len(alive) < len(threads):
            what = f"has returned; {len(alive)} other threads of its block wait at this syncthreads()"
            raise self.fault(faults.BarrierDivergence, what, next(t for t in threads if t.fiber.dead), alive[0].frame)
        for t in alive:
            t.frame = None

    # What a launch is made of.

    def check(self, function, grid, block, args):
        def refuse(what):
            raise faults.BadLaunch(what, self.kernel)

        for what, given in (("grid", grid), ("block", block)):
            if not (1 <= len(given) <= 3 and all(1 <= n <= most for n, most in zip(given, LIMITS[what]))):
                refuse(f"{what} is {given}; allowed: 1 to {LIMITS[what]}")
        if math.prod(block) > 1024:
            refuse(f"block {block} has {math.prod(block)} threads; allowed: 1024")
        names = function.__code__.co_varnames[:function.__code__.co_argcount]
        if len(args) != len(names):
            refuse(f"takes {len(names)} arguments ({', '.join(names)}), got {len(args)}")
        for name, given in zip(names, args):
            if isinstance(given, int | float):
                continue
            if not isinstance(given, np.ndarray | np.generic):
                refuse(f"{name} must be a NumPy array or a number, got {type(given).__name__}")
            if given.dtype.kind not in "fiub" or given.dtype.itemsize > 8 or not given.dtype.isnative:
                refuse(f"{name} is of {given.dtype}, which no GPU computes with")
            if not given.flags.c_contiguous:
                refuse(f"{name} must be contiguous, got strides {given.strides} of shape {given.shape}")

    def argument(self, name, value):
        """What the kernel sees of an argument."""
        if isinstance(value, np.ndarray):
            return Elements(self, name, value, True)
        if isinstance(value, float) and not isinstance(value, np.generic):
            return np.float64(value)
        return value if isinstance(value, np.floating) else int(value)

    def inside(self, function):
        """The function with this device as its `cuda`, and the device functions that it calls with it."""
        names = function.__globals__ | {"cuda": self}
        for name in function.__code__.co_names:
            if hasattr(names.get(name), "py_func"):
                names[name] = self.inside(names[name].py_func)
        return FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)

    def empty(self, frame, shape, dtype, private=False):
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        dtype = np.dtype(dtype if isinstance(dtype, type) else str(dtype))  # np.float32, or Numba's own float32
        return Elements(self, line.partition("=")[0].strip() or "array", np.zeros(shape, dtype), False, private)

    def fault(self, kind, what, thread=None, frame=None):
        """The exception that says so of this thread: where it waits, or where it is now."""
        thread = thread or self.thread
        frame = frame or thread.frame or kernel_frame()
        source = "".join(linecache.getlines(frame.f_code.co_filename, frame.f_globals))
        return kind(what, self.kernel, frame.f_lineno, tuple(thread.block), tuple(thread.index), source)


class Elements:
    """An array as a kernel sees it: element by element, each access checked against the ones before it.

    private: of one thread, so nobody else can touch it. filled: it holds something to begin with.
    """

    def __init__(self, device, name, data, filled, private=False):
        self.device, self.name, self.filled, self.private = device, name, filled, private
        self.shape, self.ndim, self.size, self.dtype = data.shape, data.ndim, data.size, data.dtype
        self.data, self.whole = data.reshape(-1), data.dtype.kind != "f"
        self.past = {use: {} for use in CLASHES}  # use -> element -> thread -> when and where
        self.written = self.past["writes"]

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        at = self.touch("reads", index)
        return self.data.item(at) if self.whole else self.data[at]

    def __setitem__(self, index, value):
        self.data[self.touch("writes", index)] = value

    def add(self, index, value):
        """atomic.add: the value before."""
        at = self.touch("changes atomically", index)
        before = self.data.item(at) if self.whole else self.data[at]
        self.data[at] = before + value
        return before

    def touch(self, use, index):
        """Where the element is; raises what is wrong with touching it now."""
        axes, shape, at = index if index.__class__ is tuple else (index,), self.shape, 0
        inside = len(axes) == len(shape)
        for i, n in zip(axes, shape):
            if not 0 <= i < n:
                inside = False
            at = at * n + i
        if not inside:
            has = f"it has {self.size} elements" if self.ndim == 1 else f"its shape is {shape}"
            raise self.fault(faults.OutOfBounds, use, axes, f"; {has}")
        if use != "writes" and not self.filled and at not in self.written:
            raise self.fault(faults.Uninitialised, use, axes, ", which no thread of the block has written")
        if self.private:
            self.written[at] = {}
            return at
        me, frame = self.device.thread, _getframe(2)
        for other in CLASHES[use]:
            past = self.past[other]
            if at in past:
                for them, barriers, syncs, code, place in past[at].values():
                    if not me.follows(them, barriers, syncs):
                        raise self.race(use, axes, other, them, code, place)
                if use == "writes":  # what comes after this write comes after those uses too
                    del past[at]
        self.past[use].setdefault(at, {})[me] = me, me.barriers, me.syncs, frame.f_code, frame.f_lasti
        return at

    def race(self, use, axes, other, them, code, place):
        line = next((n for first, end, n in code.co_lines() if first <= place < end), "?")
        there, lacking = f"thread {tuple(them.index)}", "no barrier or atomic is between them"
        if them.block != self.device.thread.block:
            there, lacking = f"{there} of block {tuple(them.block)}", "blocks are ordered by nothing but atomics"
        return self.fault(faults.Race, use, axes, f", which {there} {PAST[other]} in line {line}; {lacking}")

    def fault(self, kind, use, axes, why):
        return self.device.fault(kind, f"{use} {self.name}[{', '.join(map(str, axes))}]{why}")


def kernel_frame():
    """The innermost frame that is not of this file."""
    frame = _getframe(1)
    while frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return frame
