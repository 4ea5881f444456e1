"""The sparse-plus-low-rank product, array in and array out, behind one set of functions.

    W = s B A + S        B (out, r), A (r, in), S (out, in) sparse: S.flat[index] += values
    Y = X W^T            X (..., in), Y (..., out); rows are tokens

Backends compute the same thing: "reference" is loops that mirror the formulas (tiny sizes), "numpy" is NumPy and
SciPy sparse, CuPy for CuPy arrays. Algorithms differ in what they build: "materialised" rebuilds W (the paper's
Algorithm 1), "factored" never does.
"""

from importlib import import_module

from minisl.errors import InputError
from minisl.kernels.support import Support

BACKENDS = {"reference": "minisl.kernels.reference", "numpy": "minisl.kernels.numpy_backend"}
ALGORITHMS = ("auto", "materialised", "factored")

__all__ = ["ALGORITHMS", "BACKENDS", "Support", "scatter_add", "sddmm", "sl_linear", "sl_linear_backward", "spmm"]


def sl_linear(x, B, A, values, index, scale, *, algorithm="auto", backend="auto"):
    """Y = X (scale B A + S)^T (SLTrain, Algorithm 1, forward).

    x (..., in), B (out, r), A (r, in), values (nnz,), all of one floating dtype; scale a number;
    index (nnz,) flat row-major positions in (out, in), any order, repeats add up; or a `Support` built from them.
    Returns (..., out). Raises ValueError for shapes that do not fit, InputError for an unknown algorithm or backend.
    """
    support = check(x, B, A, values, index)
    rows = x.reshape(-1, x.shape[-1])
    name = resolve(algorithm, len(rows), support, A)
    y = getattr(load(backend), f"{name}_forward")(rows, B, A, values, support, scale)
    return y.reshape(*x.shape[:-1], support.shape[0])


def sl_linear_backward(dy, x, B, A, values, index, scale, *, algorithm="auto", backend="auto"):
    """(dx, dB, dA, dvalues) for dy = dL/dY (..., out) (SLTrain, Algorithm 1, backward).

    The other arguments, and what is raised, as in `sl_linear`. Gradients have the shapes of what they belong to.
    """
    support = check(x, B, A, values, index)
    if dy.shape != (*x.shape[:-1], support.shape[0]):
        raise ValueError(f"sl_linear_backward: dy has shape {dy.shape}, expected {(*x.shape[:-1], support.shape[0])}")
    rows, drows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    name = resolve(algorithm, len(rows), support, A)
    dx, dB, dA, dvalues = getattr(load(backend), f"{name}_backward")(drows, rows, B, A, values, support, scale)
    return dx.reshape(x.shape), dB, dA, dvalues


def scatter_add(W, values, support, *, backend="auto"):
    """W + S, as a new (out, in) array."""
    return load(backend).scatter_add(W, values, support)


def spmm(x, values, support, *, transpose=False, backend="auto"):
    """X S^T: (n, in) to (n, out); with transpose, G S: (n, out) to (n, in)."""
    return load(backend).spmm(x, values, support, transpose)


def sddmm(dy, x, support, *, backend="auto"):
    """dvalues[k] = sum_t dy[t, row_k] x[t, col_k]: the entries of dY^T X on the support, and no others."""
    return load(backend).sddmm(dy, x, support)


def load(backend):
    """The module of a backend; "auto" is the fastest one that works here."""
    name = "numpy" if backend == "auto" else backend
    if name not in BACKENDS:
        raise InputError(f"backend {backend!r} is unknown; allowed: auto, {', '.join(BACKENDS)}")
    return import_module(BACKENDS[name])


# A multiply-add on S takes about as long as this many of a dense BLAS product: 70 in SciPy's two SpMMs, 1,400 in the SDDMM
# by gathering, measured with 2,048 tokens, 512 x 512, 3 %, on two cores; the mean of the three.
SPARSE_COST = 500


def resolve(algorithm, tokens, support, A):
    """The algorithm to run. "auto" counts multiply-adds of a forward and backward pass and takes the cheaper:

    materialised  3 n in out + 4 r in out        factored  3 n r (in + out) + 3 n nnz SPARSE_COST
    """
    if algorithm not in ALGORITHMS:
        raise InputError(f"algorithm {algorithm!r} is unknown; allowed: {', '.join(ALGORITHMS)}")
    if algorithm != "auto":
        return algorithm
    (out, width), r = support.shape, len(A)
    materialised = 3 * tokens * width * out + 4 * r * width * out
    factored = 3 * tokens * r * (width + out) + 3 * tokens * len(support) * SPARSE_COST
    return "materialised" if materialised <= factored else "factored"


def check(x, B, A, values, index):
    """A Support for `index`, once all shapes agree."""
    if B.ndim != 2 or A.ndim != 2 or B.shape[1] != A.shape[0]:
        raise ValueError(f"sl_linear: B (out, r) and A (r, in) have shapes {B.shape} and {A.shape}")
    shape = (B.shape[0], A.shape[1])
    if x.shape[-1] != shape[1]:
        raise ValueError(f"sl_linear: x has {x.shape[-1]} features, A {shape[1]}")
    support = index if isinstance(index, Support) else Support(index, shape)
    if support.shape != shape:
        raise ValueError(f"sl_linear: the support is of a {support.shape} matrix, B A is {shape}")
    if values.shape != (len(support),):
        raise ValueError(f"sl_linear: values has shape {values.shape}, the support {len(support)} positions")
    return support
