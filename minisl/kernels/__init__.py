"""The sparse-plus-low-rank product and its neighbours, array in and array out, behind one set of functions.

    W = s B A + S        B (out, r), A (r, in), S (out, in) sparse: S.flat[index] += values
    Y = X W^T            X (..., in), Y (..., out); rows are tokens

Backends compute the same thing: "reference" is loops that mirror the formulas (tiny sizes), "numpy" is NumPy and SciPy sparse
(CuPy for CuPy arrays), "cpu" is Numba and BLAS on all cores, "cuda" is CUDA kernels and cuBLAS on a GPU, "emulator" is the same
kernels with NumPy arrays and no GPU, to learn from. Algorithms differ in what they build: "materialised" rebuilds W (the paper's
Algorithm 1), "factored" never does, "fused" builds it a tile at a time inside the product.
"""

import math
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module

import numpy as np

from minisl import parallel
from minisl.backend import array_module, cuda_status, precision
from minisl.errors import InputError
from minisl.kernels import cost
from minisl.kernels.contract import OF_OPS, Backend
from minisl.kernels.support import Support

BACKENDS = {"reference": "minisl.kernels.reference", "numpy": "minisl.kernels.numpy_backend", "cpu": "minisl.kernels.cpu",
            "cuda": "minisl.kernels.cuda", "emulator": "minisl.kernels.cuda"}
DTYPES = {"cpu": ("float32", "float64"), "cuda": ("float32",), "emulator": ("float32",)}  # that there are kernels for
BY_COST = ("materialised", "factored")  # "auto" is one of them
ALGORITHMS = ("auto", *BY_COST, "fused")

__all__ = ["ALGORITHMS", "BACKENDS", "Support", "scatter_add", "sddmm", "sl_linear", "sl_linear_backward", "sl_linear_forward",
           "spmm", "using"]

in_use = ContextVar("backend", default="auto")


def sl_linear(x, B, A, values, index, scale, *, algorithm="auto", backend="auto"):
    """Y = X (scale B A + S)^T (SLTrain, Algorithm 1, forward).

    x (..., in), B (out, r), A (r, in), values (nnz,), all of one floating dtype; scale a number;
    index (nnz,) flat row-major positions in (out, in), any order, repeats add up; or a `Support` built from them.
    Returns (..., out). Raises ValueError for shapes and TypeError for dtypes that do not fit, InputError for an unknown algorithm
    or backend.
    """
    return sl_linear_forward(x, B, A, values, index, scale, algorithm=algorithm, backend=backend)[0]


def sl_linear_forward(x, B, A, values, index, scale, *, algorithm="auto", backend="auto"):
    """(Y, X A^T), the second for `sl_linear_backward`: (n, r), or None where the algorithm has no use for it."""
    backend, x, *others = fitting("sl_linear", x, B, A, values, index, scale, backend=backend)
    rows, support = as_rows(x), others[3]
    name = resolve(algorithm, len(rows), support, A, backend)
    y, xA = getattr(backend.module, f"{name}_forward")(rows, *others)
    return y.reshape(*x.shape[:-1], support.shape[0]), xA


def sl_linear_backward(dy, x, B, A, values, index, scale, xA=None, *, algorithm="auto", backend="auto"):
    """(dx, dB, dA, dvalues) for dy = dL/dY (..., out) (SLTrain, Algorithm 1, backward).

    xA: what `sl_linear_forward` returned, computed again if left out. The other arguments, and what is raised, as in `sl_linear`.
    Gradients have the shapes of what they belong to.
    """
    backend, dy, x, *others = fitting("sl_linear_backward", dy, x, B, A, values, index, scale, xA, backend=backend)
    rows, support = as_rows(x), others[3]
    name = resolve(algorithm, len(rows), support, A, backend)
    dx, dB, dA, dvalues = getattr(backend.module, f"{name}_backward")(as_rows(dy), rows, *others)
    return dx.reshape(x.shape), dB, dA, dvalues


def scatter_add(W, values, support, *, backend="auto"):
    """W + S, as a new (out, in) array. Raises as `sl_linear`."""
    return load(backend, W).scatter_add(W, values, support)


def spmm(x, values, support, *, transpose=False, backend="auto"):
    """X S^T: (n, in) to (n, out); with transpose, G S: (n, out) to (n, in). Raises as `sl_linear`."""
    return load(backend, x).spmm(x, values, support, transpose)


def sddmm(dy, x, support, *, backend="auto"):
    """dvalues[k] = sum_t dy[t, row_k] x[t, col_k]: the entries of dY^T X on the support, and no others. Raises as `sl_linear`."""
    return load(backend, x).sddmm(dy, x, support)


def fitting(name, *args, backend="auto"):
    """(the Backend that computes, the arguments as its functions take them) for a function of `contract.SIGNATURES`, in which N
    may be any number of axes. Its arrays come first; the first of them says where to compute.

    Raises TypeError, ValueError or IndexError for what does not fit.
    """
    return load(backend, args[0]), *OF_OPS[name](*args)


def as_rows(x):
    """(..., D) as (N, D)"""
    return x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


@contextmanager
def using(backend, xp=None):
    """Within this block "auto" means this backend. xp: NumPy or CuPy, whose arrays it will be given (left out: CuPy for "cuda").

    Raises InputError for an unknown one, or one that does not work here.
    """
    xp = xp or (cuda_status()[0] if backend == "cuda" else None) or np
    load(backend, xp.zeros(0, np.float32))
    if backend == "emulator":
        import_module("minisl.kernels.cuda.emulator").compiler()
    token = in_use.set(backend)
    try:
        yield
    finally:
        in_use.reset(token)


def of(array):
    """The `Backend` whose functions compute with this array."""
    return load("auto", array)


def load(backend, array):
    """The `Backend` of a name; "auto" is the one in use, and if none is, the fastest one that works with this array. Arrays of a
    dtype that a backend has no kernels for are NumPy's (CuPy's). A Backend is returned as it is.

    Raises InputError: an unknown backend, one that does not work here, or one that cannot compute where the array is.
    """
    if isinstance(backend, Backend):
        return backend
    name = in_use.get() if backend == "auto" else backend
    if name != "auto" and name not in BACKENDS:
        raise InputError(f"backend {backend!r} is unknown; allowed: auto, {', '.join(BACKENDS)}")
    on_host = isinstance(array, np.ndarray)
    if not on_host and array_module(array) is not np:
        return load_on_gpu(name, array)
    cpu, why = numba_status() if name in ("auto", "cpu") else (None, "")
    if name == "cpu" and not cpu:
        raise InputError(f"backend cpu: {why}; use --backend numpy")
    if name == "cuda":
        raise InputError("backend cuda: --device cuda is needed; --backend emulator runs the same kernels on the CPU")
    if not on_host or array.dtype not in (np.float32, np.float64) or (name == "emulator" and array.dtype != np.float32):
        cpu, name = None, "numpy"
    return cpu or loaded("numpy" if name == "auto" else name)


def load_on_gpu(name, array):
    """As `load`, for a CuPy array."""
    if name not in ("auto", "numpy", "cuda"):
        raise InputError(f"backend {name}: computes with NumPy arrays, these are on a GPU; allowed there: auto, numpy, cuda")
    kernels = array.dtype == np.float32 and (name == "cuda" or (name == "auto" and cuda_status()[0]))
    return loaded("cuda" if kernels else "numpy")


@cache
def loaded(name):
    """The Backend of a name, made once."""
    return Backend(name, import_module(BACKENDS[name]), DTYPES.get(name))


@contextmanager
def running(backend, threads=None, say=lambda line: None, xp=np, dtype="float32"):
    """What a command computes within: `using(backend, xp)` on so many cores, BLAS on one thread for each of them. Yields a
    description of what computes with arrays of this dtype.

    say: is told, in a line, that kernels are compiled first, or why there are none.
    """
    with using(backend, xp), parallel.using_threads(threads):
        chosen = of(xp.zeros(0, dtype))
        if chosen.name in ("cuda", "emulator"):
            yield "CUDA kernels in the emulator" if xp is np else f"CUDA kernels, {cuda_status()[1]}"
        elif xp is not np:
            yield cuda_status()[1]
        elif chosen is not numba_status()[0]:
            if backend == "auto":
                say(f"no Numba kernels, NumPy is slower: {numba_status()[1]}")
            yield "NumPy"
        else:
            cost.calibration()  # one that cannot be used is said now, not in the first product
            with parallel.one_blas_thread(), chosen.module.announced(say):
                count = threads or parallel.cores()
                yield f"{numba_status()[1]} on {count} core{'s' * (count > 1)}"


@cache
def numba_status():
    """(the Numba backend or None, one sentence saying why)."""
    try:
        import numba
    except ImportError:
        return None, "Numba is not installed (pip install numba)"
    except Exception as error:  # a Numba that does not load must not take NumPy down with it
        why = " ".join(f"{type(error).__name__}: {error}".split())
        return None, f"Numba is installed but does not import ({why})"
    if numba.config.DISABLE_JIT:
        return None, "NUMBA_DISABLE_JIT is set; fix: unset it"
    try:
        loaded("cpu").square_sum([np.ones(1, np.float32)])  # does it compile?
        return loaded("cpu"), f"Numba {numba.__version__}"
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        return None, f"Numba {numba.__version__} does not run the kernels ({why})"


def resolve(algorithm, tokens, support, A, backend):
    """The algorithm to run: the one asked for, or for "auto" the one that `cost` expects to be faster with this Backend."""
    check_algorithm(algorithm, backend)
    if algorithm != "auto":
        return algorithm
    name = {"numpy": "numpy_backend", "cuda": f"cuda {precision.get()}".removesuffix(" float32")}.get(backend.name, backend.name)
    return min(BY_COST, key=lambda a: cost.seconds(a, tokens, *support.shape[::-1], len(A), len(support), name))


def check_algorithm(algorithm, backend):
    """Raises InputError for an algorithm that is unknown, or that this Backend does not have."""
    if algorithm not in ALGORITHMS:
        raise InputError(f"algorithm {algorithm!r} is unknown; allowed: {', '.join(ALGORITHMS)}")
    if algorithm == "fused" and backend.name not in ("cuda", "emulator"):
        raise InputError("algorithm fused: only the backends cuda and emulator have it, for float32; "
                         f"allowed here: {', '.join(ALGORITHMS[:-1])}")
