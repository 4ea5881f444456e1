"""A stand-in for CuPy where there is no GPU: its arrays are in host memory, but behave as if they were not.

They refuse what CuPy's refuse: NumPy arrays beside them in an expression, being turned into one, arguments that CuPy's functions
do not have; and NumPy arrays as an index, which CuPy would copy. What makes the host wait for the GPU is noted in `waits`: a
number or an array that is read, a truth value, a result whose size depends on values. `RawModule` runs kernels in the emulator.
This is the part of CuPy that minisl uses; a test compares its names and arguments with those of the real one.
"""

import ctypes
import operator
import time
from types import SimpleNamespace

import numpy as np

__version__ = "0 (stand-in)"
waits = []  # what made the host wait, in order

float16, float32, float64, int32, int64, bool_ = np.float16, np.float32, np.float64, np.int32, np.int64, np.bool_
inf, pi, newaxis = np.inf, np.pi, None

# method or function -> keywords it may be given
METHODS = {
    "all": "axis out keepdims", "any": "axis out keepdims", "argmax": "axis out dtype keepdims", "argsort": "axis kind",
    "astype": "dtype order casting subok copy", "copy": "order", "cumsum": "axis dtype out", "fill": "value", "flatten": "order",
    "max": "axis out keepdims", "mean": "axis dtype out keepdims", "min": "axis out keepdims", "prod": "axis dtype out keepdims",
    "ravel": "order", "repeat": "repeats axis", "reshape": "order copy", "round": "decimals out", "searchsorted": "v side sorter",
    "squeeze": "axis", "std": "axis dtype out ddof keepdims", "sum": "axis dtype out keepdims", "swapaxes": "axis1 axis2",
    "take": "indices axis out", "transpose": "axes", "var": "axis dtype out ddof keepdims", "view": "dtype type",
    "clip": "min max out",
}
FUNCTIONS = {
    "arange": "start stop step dtype", "array_split": "ary indices_or_sections axis", "ascontiguousarray": "a dtype",
    "broadcast_to": "array shape", "concatenate": "tup axis out dtype casting", "cumsum": "a axis dtype out",
    "einsum": "", "empty": "shape dtype order", "empty_like": "prototype dtype order subok shape", "expand_dims": "a axis",
    "full": "shape fill_value dtype order", "full_like": "a fill_value dtype order subok shape", "ones": "shape dtype order",
    "ones_like": "a dtype order subok shape", "roll": "a shift axis", "searchsorted": "a v side sorter",
    "split": "ary indices_or_sections axis", "stack": "tup axis out dtype casting", "take_along_axis": "a indices axis",
    "tensordot": "a b axes", "zeros": "shape dtype order", "zeros_like": "a dtype order subok shape",
}
UFUNCS = ("absolute", "add", "divide", "equal", "exp", "floor_divide", "greater", "greater_equal", "invert", "isfinite", "isnan",
          "less", "less_equal", "log", "logical_and", "matmul", "maximum", "minimum", "multiply", "negative", "not_equal",
          "power", "remainder", "sqrt", "square", "subtract", "tanh", "true_divide", "bitwise_and", "bitwise_or")
WAITING = {"bincount": "x weights minlength", "flatnonzero": "a",
           "unique": "ar return_index return_inverse return_counts axis equal_nan"}


class ndarray:
    """An array that is said to be on a GPU."""

    __array_priority__ = 100
    __hash__ = None

    def __init__(self, shape, dtype=float, order="C"):
        self.host = np.empty(shape, dtype, order)

    shape = property(lambda self: self.host.shape)
    dtype = property(lambda self: self.host.dtype)
    ndim = property(lambda self: self.host.ndim)
    size = property(lambda self: self.host.size)
    nbytes = property(lambda self: self.host.nbytes)
    itemsize = property(lambda self: self.host.itemsize)
    strides = property(lambda self: self.host.strides)
    flags = property(lambda self: self.host.flags)
    base = property(lambda self: self.host.base)
    T = property(lambda self: up(self.host.T))
    data = property(lambda self: SimpleNamespace(ptr=self.host.ctypes.data))

    def __len__(self):
        return len(self.host)

    def __iter__(self):
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key):
        return up(self.host[index(key)])

    def __setitem__(self, key, value):
        self.host[index(key)] = down(value)

    def __dlpack__(self, **options):
        return self.host.__dlpack__()

    def __dlpack_device__(self):
        return self.host.__dlpack_device__()

    def get(self, stream=None, order="C", out=None, blocking=True):
        return waited("get", self.host.copy(order))

    def item(self):
        return waited("item", self.host.item())

    def tolist(self):
        return waited("tolist", self.host.tolist())

    def nonzero(self):
        return waited("nonzero", up(self.host.nonzero()))

    def __float__(self):
        return waited("float", float(self.host))

    def __int__(self):
        return waited("int", int(self.host))

    def __bool__(self):
        return waited("bool", bool(self.host))

    def __repr__(self):
        return waited("repr", repr(self.host))

    def __format__(self, spec):
        return waited("format", format(self.host, spec))

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array "
                        "explicitly.")

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        if method != "__call__" or ufunc.__name__ not in UFUNCS:
            return NotImplemented
        return globals()[ufunc.__name__](*inputs, **options)

    def __array_function__(self, function, types, args, options):
        mine = globals().get(function.__name__)
        return mine(*args, **options) if callable(mine) and set(types) == {ndarray} else NotImplemented


def waited(what, result):
    waits.append(what)
    return result


def down(value):
    """What NumPy computes with: arrays of the GPU as those of the host, but none that are there already."""
    if isinstance(value, ndarray):
        return value.host
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, list | tuple):
        return type(value)(map(down, value))
    return value


def up(value):
    if isinstance(value, list | tuple):
        return type(value)(map(up, value))
    new = object.__new__(ndarray)
    new.host = np.asarray(value)
    return new


def index(key):
    """A key for the host's array. A mask picks as many elements as it has ones, so its ones are counted and waited for."""
    keys = key if isinstance(key, tuple) else (key,)
    if any(isinstance(k, ndarray) and k.dtype == bool for k in keys):
        waits.append("mask")
    return down(key)


def checked(name, allowed, options):
    if extra := set(options) - set(allowed.split()):
        raise TypeError(f"cupy: {name}() got an unexpected keyword argument {min(extra)!r}")


def method(name, allowed):
    def call(self, *args, **options):
        checked(name, allowed, options)
        return up(getattr(self.host, name)(*down(args), **{k: down(v) for k, v in options.items() if v is not None}))

    return call


def function(name, allowed):
    def call(*args, **options):
        checked(name, allowed, options)
        if name in WAITING:
            waits.append(name)
        return up(getattr(np, name)(*down(args), **{k: down(v) for k, v in options.items()}))

    return call


class Ufunc:
    def __init__(self, name):
        self.ufunc = getattr(np, name)
        self.__name__ = name

    def __call__(self, *args, out=None, dtype=None):
        into = out[0] if isinstance(out, tuple) else out
        result = self.ufunc(*down(args), out=down(into), dtype=dtype)
        return up(result) if into is None else into

    def at(self, a, indices, b=None):
        self.ufunc.at(a.host, index(indices), down(b))


def operation(ufunc, turned=False):
    def call(self, other):
        if getattr(other, "__array_ufunc__", 0) is None:
            return NotImplemented  # a Tensor knows what to do
        return ufunc(other, self) if turned else ufunc(self, other)

    return call


def in_place(ufunc):
    def call(self, other):
        ufunc.ufunc(self.host, down(other), out=self.host, casting="same_kind")
        return self

    return call


for _name in UFUNCS:
    globals()[_name] = Ufunc(_name)
for _name, _allowed in (FUNCTIONS | WAITING).items():
    globals()[_name] = function(_name, _allowed)
for _name, _allowed in METHODS.items():
    setattr(ndarray, _name, method(_name, _allowed))
for _name, _ufunc in {"add": "add", "sub": "subtract", "mul": "multiply", "truediv": "true_divide", "floordiv": "floor_divide",
                      "mod": "remainder", "pow": "power", "matmul": "matmul", "and": "bitwise_and", "or": "bitwise_or"}.items():
    setattr(ndarray, f"__{_name}__", operation(globals()[_ufunc]))
    setattr(ndarray, f"__r{_name}__", operation(globals()[_ufunc], turned=True))
    if _name != "matmul":
        setattr(ndarray, f"__i{_name}__", in_place(globals()[_ufunc]))
for _name, _ufunc in {"lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal",
                      "ne": "not_equal"}.items():
    setattr(ndarray, f"__{_name}__", operation(globals()[_ufunc]))
ndarray.__neg__ = lambda self: negative(self)  # noqa: F821  the ufuncs above
ndarray.__invert__ = lambda self: invert(self)  # noqa: F821
ndarray.__abs__ = lambda self: absolute(self)  # noqa: F821


def _argsort(self, axis=-1, kind=None):
    if kind not in (None, "stable"):
        raise ValueError(f"kind {kind!r}: CuPy knows 'stable' only")
    return up(self.host.argsort(axis, kind="stable"))


ndarray.argsort = _argsort


def array(obj, dtype=None, copy=True, order="K", subok=False, ndmin=0, *, blocking=False):
    return up(np.array(obj.host if isinstance(obj, ndarray) else obj, dtype, copy=copy, order=order, ndmin=ndmin))


def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    if isinstance(a, ndarray) and dtype in (None, a.dtype):
        return a
    return up(np.array(a.host if isinstance(a, ndarray) else a, dtype))


def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    return waited("asnumpy", a.host.copy(order))


def where(condition, x=None, y=None):
    if x is None:
        return condition.nonzero()
    return up(np.where(down(condition), down(x), down(y)))


def vdot(a, b):
    return up(np.vdot(down(a), down(b)))


def lexsort(keys):
    if not isinstance(keys, ndarray):
        raise AttributeError("lexsort: CuPy wants one array of keys")
    return up(np.lexsort(keys.host))


class _Grid:
    def __getitem__(self, key):
        return up(np.ogrid[key])


ogrid = _Grid()


class RawModule:
    """Kernels that run in the emulator."""

    def __init__(self, *, code, options=(), name_expressions=None, backend="nvrtc"):
        from minisl.kernels.cuda import emulator

        self.module = emulator.RawModule(code=code, options=options)

    def get_function(self, name):
        kernel = self.module.get_function(name)

        def launch(grid, block, args, *, shared_mem=0):
            return kernel(grid, block, down(tuple(args)), shared_mem=shared_mem)

        return launch


def get_default_memory_pool():
    return SimpleNamespace(total_bytes=lambda: 123_456_789, used_bytes=lambda: 12_345_678, free_all_blocks=lambda: None)


# cuBLAS

_compute_type = [1]


def _gemm_ex(handle, turn_a, turn_b, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc, compute_type, algo):
    """c = a b of float32 matrices that lie column by column, their elements rounded to bfloat16 first."""
    assert (compute_type, a_type, b_type, c_type) == (75, 0, 0, 0)
    a = bfloat16(_columns(a, (k, m) if turn_a else (m, k), lda))
    b = bfloat16(_columns(b, (n, k) if turn_b else (k, n), ldb))
    _columns(c, (m, n), ldc)[...] = (a.T if turn_a else a) @ (b.T if turn_b else b)


def _columns(pointer, shape, step):
    """The (rows, columns) matrix at a pointer, as cuBLAS sees it: `step` elements from one column to the next."""
    assert step >= shape[0], "a column is longer than the step to the next"
    memory = np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (step * (shape[1] - 1) + shape[0],))
    return np.lib.stride_tricks.as_strided(memory, shape, (4, 4 * step))


def bfloat16(a):
    """float32 rounded to the nearest number whose last 16 bits are 0."""
    bits = np.ascontiguousarray(a).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


_core = SimpleNamespace(
    set_compute_type=lambda dtype, compute_type: operator.setitem(_compute_type, 0, compute_type),
    get_compute_type=lambda dtype: _compute_type[0],
    _routines_linalg=SimpleNamespace(COMPUTE_TYPE_DEFAULT=1, COMPUTE_TYPE_TF32=7))


class _Device:
    compute_capability = "90"
    mem_info = 1 << 30, 1 << 30

    def __init__(self, device=0):
        self.id = device

    def use(self):
        return self

    def synchronize(self):
        waits.append("synchronize")


class _Event:
    """A moment of the host's clock, and what a stream has to do before it."""

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self.at = self.stream = None

    def record(self, stream=None):
        self.at, self.stream = time.perf_counter(), stream

    def synchronize(self):
        waits.append("synchronize")

    @property
    def done(self):
        if self.stream:
            self.stream.run()
        return True


class _Stream:
    """Calls that are made when somebody waits for them. The default stream's are made at once, so what another does before it
    has waited for that one may come too early: its calls then find NaN."""

    def __init__(self, null=False, non_blocking=False, ptds=False):
        self.queue, self.waited = [], False
        self.ptr = 0 if null else len(_streams)
        _streams.append(self)

    def wait_event(self, event):
        self.waited = True
        assert event.done

    def run(self):
        while self.queue:
            self.queue.pop(0)()

    def then(self, call, array):
        if not self.waited:
            array.fill(np.nan)
        self.waited = False
        self.queue.append(call)


_streams = []
_default = _Stream(null=True)


class _Communicator:
    """NCCL's sums and broadcasts, through MPI."""

    def __init__(self, ndev, commId, rank):
        from mpi4py import MPI

        self.MPI, self.comm = MPI, MPI.COMM_WORLD.Dup()
        assert (ndev, rank, len(commId)) == (self.comm.size, self.comm.rank, 128)
        assert commId == self.comm.bcast(commId), "another's unique id"

    def _call(self, pointer, count, datatype, stream, call):
        kind = {7: ctypes.c_float, 8: ctypes.c_double}[datatype]
        array = np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(kind)), (count,))
        _streams[stream].then(lambda: call(array), array)

    def allReduce(self, sendbuf, recvbuf, count, datatype, op, stream):
        assert (sendbuf, op) == (recvbuf, 0)
        self._call(recvbuf, count, datatype, stream, lambda a: self.comm.Allreduce(self.MPI.IN_PLACE, a))

    def reduce(self, sendbuf, recvbuf, count, datatype, op, root, stream):
        assert (sendbuf, op) == (recvbuf, 0)
        here = self.MPI.IN_PLACE
        self._call(recvbuf, count, datatype, stream,
                   lambda a: self.comm.Reduce(*((here, a) if self.comm.rank == root else (a, None)), root=root))

    def broadcast(self, sendbuff, recvbuff, count, datatype, root, stream):
        assert sendbuff == recvbuff
        self._call(recvbuff, count, datatype, stream, lambda a: self.comm.Bcast(a, root=root))


class _OutOfMemoryError(MemoryError):
    pass


cuda = SimpleNamespace(
    Event=_Event, Stream=_Stream, get_current_stream=lambda: _default,
    nccl=SimpleNamespace(available=True, NCCL_SUM=0, NCCL_FLOAT32=7, NCCL_FLOAT64=8, NcclCommunicator=_Communicator,
                         get_unique_id=lambda: (time.perf_counter_ns() % 128,) * 128),
    get_elapsed_time=lambda start_event, end_event: 1e3 * (end_event.at - start_event.at),
    memory=SimpleNamespace(OutOfMemoryError=_OutOfMemoryError), set_allocator=lambda allocator=None: None,
    Device=_Device, device=SimpleNamespace(get_cublas_handle=lambda: 1), nvrtc=SimpleNamespace(getVersion=lambda: (13, 0)),
    cublas=SimpleNamespace(gemmEx=_gemm_ex, CUBLAS_COMPUTE_32F_FAST_16BF=75, CUBLAS_GEMM_DEFAULT=-1),
    runtime=SimpleNamespace(getDeviceCount=lambda: 1, runtimeGetVersion=lambda: 13000, driverGetVersion=lambda: 13000,
                            CUDA_R_32F=0, getDeviceProperties=lambda device: {"name": b"no GPU"},
                            deviceGetPCIBusId=lambda device: f"0000:{device:02}:00.0"))
