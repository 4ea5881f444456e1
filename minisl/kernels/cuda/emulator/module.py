"""`RawModule`: the interface of CuPy's, the kernels run on the CPU, and what is wrong with a launch is raised."""

import ctypes
import math
import re
import threading
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from minisl.kernels.cuda import signature
from minisl.kernels.cuda.emulator import faults
from minisl.kernels.cuda.emulator.build import CompileError, build, lines, symbols
from minisl.kernels.cuda.emulator.trace import RECORD, Array, Launch

SHARED_BYTES = 48 << 10  # what a block may have of shared memory, unless it asks for more
LIMITS = {"grid": (2**31 - 1, 65535, 65535), "block": (1024, 1024, 64)}
ARRAYS = 60  # that a kernel may take
USES = ("reads", "writes", "changes atomically")
USED = ("read", "wrote", "changed atomically")

thread_order = ContextVar("order", default=0)
launching = threading.Lock()  # a library has one set of fibers, and one memory of what was touched
recording = ContextVar("recording", default=None)


@contextmanager
def order(n):
    """Within this block threads and blocks run forward (0), backward (1), or in the random order of seed n."""
    token = thread_order.set(n)
    try:
        yield
    finally:
        thread_order.reset(token)


@contextmanager
def record(kernels=None, limit=1 << 20):
    """Yields a list to which each launch within the block is added, a `Launch` with up to `limit` accesses.

    kernels: the names of those to record (left out: all).
    """
    launches = []
    token = recording.set((launches, kernels, limit))
    try:
        yield launches
    finally:
        recording.reset(token)


class RawModule:
    """The kernels of a CUDA text, to be run on the CPU.

    code: the text; it includes nothing. name: what errors call it. options: "-DNAME=VALUE" are used, those for a GPU are not.
    Raises CompileError with the compiler's first error, InputError where there is no compiler.
    """

    def __init__(self, *, code, options=(), name="kernel.cu"):
        self.code, self.name, self.parameters = code, name, signature.kernels(code)
        if not self.parameters:
            raise ValueError(f"{name} has no __global__ function")
        defines = tuple(o for o in options if o.startswith("-D"))
        self.path = build(code, defines, name, tuple(self.parameters))
        try:
            self.library = ctypes.CDLL(str(self.path))
        except OSError:  # a damaged file, or a function that no library has
            self.path.unlink()
            try:
                self.library = ctypes.CDLL(str(build(code, defines, name, tuple(self.parameters))))
            except OSError as error:
                raise CompileError(f"{name}: {str(error).partition(': ')[2]}") from None
        self.library.cu_record_count.restype = ctypes.c_size_t
        first = f"cu_launch_{next(iter(self.parameters))}"
        self.base = ctypes.cast(getattr(self.library, first), ctypes.c_void_p).value - self.address_in_file(first)

    def get_function(self, name):
        if name not in self.parameters:
            raise ValueError(f"{self.name} has no kernel {name}; it has {', '.join(self.parameters)}")
        return Kernel(self, name)

    def address_in_file(self, symbol):
        return next(address for address, _, name in symbols(self.path) if name == symbol)

    @property
    def shared_arrays(self):
        """{(kernel, array): (address, bytes)} of all static __shared__ arrays."""
        found = {}
        for address, size, symbol in symbols(self.path):
            function, _, array = symbol.rpartition("::")
            if (kernel := function.partition("(")[0]) in self.parameters:
                found[kernel, array] = self.base + address, size
        return found

    def lines(self, code_addresses):
        """The lines of the text that the calls before these addresses came from."""
        return lines(self.path, tuple(int(address) - self.base - 1 for address in code_addresses))


class Place(ctypes.Structure):
    _fields_ = [("pc", ctypes.c_size_t), ("block", ctypes.c_uint), ("thread", ctypes.c_uint), ("line", ctypes.c_int),
                ("use", ctypes.c_int)]


class Fault(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int), ("at", Place), ("other", Place), ("address", ctypes.c_size_t), ("region", ctypes.c_int),
                ("a", ctypes.c_uint), ("b", ctypes.c_uint), ("text", ctypes.c_char * 128)]


class Kernel:
    """One kernel. Calling it launches: kernel(grid, block, arguments, shared_mem=0), arrays as NumPy arrays.

    Raises a KernelFault; TypeError for arguments that do not fit the kernel's parameters.
    """

    def __init__(self, module, name):
        self.module, self.name, self.parameters = module, name, module.parameters[name]
        self.launch = getattr(module.library, f"cu_launch_{name}")
        self.launch.restype = ctypes.POINTER(Fault)
        self.shared = [Array(array, address, size, (size // 4,), 4, True)
                       for (kernel, array), (address, size) in module.shared_arrays.items() if kernel == name]

    def __call__(self, grid, block, args, *, shared_mem=0):
        grid, block = self.sizes("grid", grid), self.sizes("block", block)
        self.check_launch(block, shared_mem)
        values = signature.checked(self.name, self.parameters, args, np.ndarray)
        given = [Array(p.name, a.ctypes.data, a.nbytes, a.shape, a.itemsize, False)
                 for p, a in zip(self.parameters, values) if p.pointer]
        passed = [np.array([v.ctypes.data], np.uint64) if isinstance(v, np.ndarray) else v.reshape(1) for v in values]
        pointers = (ctypes.c_void_p * len(passed))(*(p.ctypes.data for p in passed))
        regions = np.array([(a.address, a.address + a.bytes, 0 if a.item == 1 else 2) for a in given], np.uint64)
        launches, wanted, limit = recording.get() or (None, (), 0)
        recorded = launches is not None and (wanted is None or self.name in wanted)
        room = np.zeros(limit if recorded else 0, RECORD)
        arrays = given + self.shared
        if shared_mem:
            address = self.module.base + self.module.address_in_file("cu::dynamic_shared")
            arrays.append(Array("dynamic shared memory", address, shared_mem, (shared_mem // 4,), 4, True))
        with launching:
            fault = self.launch((ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block), ctypes.c_uint(shared_mem),
                                ctypes.c_int(thread_order.get()), pointers, regions.ctypes.data_as(ctypes.c_void_p), len(given),
                                room.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(len(room))).contents
            if fault.kind:
                raise self.explain(fault, grid, block, arrays)
            used = room[:self.module.library.cu_record_count()]
        if recorded:
            launches.append(Launch.of(self.name, self.module.code, grid, block, arrays, used, self.module.lines))

    def sizes(self, name, given):
        """(x, y, z) of a grid or a block. Raises BadLaunch for what a GPU would refuse."""
        if len(given) > 3 or not all(isinstance(n, int | np.integer) and 1 <= n <= most for n, most in zip(given, LIMITS[name])):
            raise faults.BadLaunch(f"{name} is {given}; allowed: 1 to {LIMITS[name]}", self.name)
        return (*map(int, given), 1, 1)[:3]

    def check_launch(self, block, shared_mem):
        """Raise BadLaunch for what a GPU would refuse."""
        threads = math.prod(block)
        if sum(p.pointer for p in self.parameters) > ARRAYS:
            raise faults.BadLaunch(f"takes more than {ARRAYS} arrays, which the emulator cannot watch", self.name)
        if threads > 1024:
            raise faults.BadLaunch(f"block {block} has {threads} threads; allowed: 1024", self.name)
        macros = dict(re.findall(r"^#define\s+(\w+)\s+(\d+)", self.module.code, re.M))
        bound = next(k["bound"] for k in signature.KERNEL.finditer(self.module.code) if k["name"] == self.name) or ""
        factors = [macros.get(word.strip(), word.strip()) for word in bound.split(",")[0].split("*")]
        if all(f.isdigit() for f in factors) and threads > math.prod(map(int, factors)):
            raise faults.BadLaunch(f"block {block} has {threads} threads, its __launch_bounds__({bound}) allow fewer", self.name)
        if (shared := sum(a.bytes for a in self.shared) + shared_mem) > SHARED_BYTES:
            raise faults.BadLaunch(f"{shared} bytes of shared memory; allowed: {SHARED_BYTES}", self.name)

    def explain(self, fault, grid, block, arrays):
        """The exception for what the emulator saw."""
        at, other = fault.at, fault.other
        touched = f"{USES[at.use]} {element(fault.address, fault.a, arrays)}"
        thread = position(other.thread, block)
        if fault.kind == 1:
            kind, what = faults.OutOfBounds, touched
        elif fault.kind == 2:
            kind, what = faults.Uninitialised, f"{touched}, which no thread of the block has written"
        elif fault.kind == 3:
            elsewhere = other.block != at.block
            who = f"thread {thread}" + f" of block {position(other.block, grid)}" * elsewhere
            lacking = "blocks are ordered by nothing but atomics" if elsewhere else "no barrier or atomic is between them"
            kind, what = faults.Race, f"{touched}, which {who} {USED[other.use]} in line {self.line(other)}; {lacking}"
        elif fault.kind == 4 and fault.a:
            kind = faults.BarrierDivergence
            what = f"waits at this __syncthreads(), thread {position(fault.b, block)} at that in line {fault.a}"
        elif fault.kind == 4:
            kind = faults.BarrierDivergence
            what = f"has returned; {math.prod(block) - fault.b} other threads of its block wait at this __syncthreads()"
        elif fault.kind == 5:
            kind, what = faults.BadShuffle, fault.text.decode()
        elif fault.kind == 6:
            kind, what = faults.Deadlock, f"waits for the lanes of mask {fault.a:08x}, which never come"
        else:
            kind, what = faults.UndefinedBehaviour, fault.text.decode()
        return kind(what, self.name, self.line(at), position(at.block, grid), position(at.thread, block), self.module.code)

    def line(self, place):
        return place.line or (self.module.lines([place.pc])[0] if place.pc else None)


def element(address, size, arrays):
    """An address in words: the element of the array that holds it, or else of the nearest array."""
    wide = f" ({size} bytes at once)" if size > 4 else ""
    for a in arrays:
        if a.address <= address < a.address + a.bytes:
            past = f", past the end: it has {a.bytes // a.item} elements" if address + size > a.address + a.bytes else ""
            return f"{a.name}[{(address - a.address) // a.item}]{wide}{past}"
    near = min(arrays, key=lambda a: max(a.address - address, address - a.address - a.bytes), default=None)
    if near is None or abs(address - near.address) > 1 << 26:
        return f"address {address:#x}, far from every array"
    return f"{near.name}[{(address - near.address) // near.item}]{wide}; it has {near.bytes // near.item} elements"


def position(number, shape):
    """(x, y, z) of a thread in its block, or of a block in its grid."""
    x, y, _ = shape
    return number % x, number // x % y, number // x // y
