"""Arrays that have a shape and no memory, and kernels for them: the real model runs on them, and its graph says what it keeps.

So `formula.activations` needs no formula for each method: LLaMA 7B is traced in a few milliseconds and a few kilobytes.
"""

import math
from contextlib import contextmanager

import numpy as np

from minisl import kernels
from minisl.kernels import cost

ZERO = bytes(16)


class Shape(np.ndarray):
    """A NumPy array that is one zero, repeated. What is computed from it is another one."""

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        if method == "at" or out:
            return out[0] if out else None
        kinds = [i.dtype if hasattr(i, "dtype") else type(i) for i in inputs]
        if method == "reduce":
            return fresh(folded(np.shape(inputs[0]), options.get("axis", 0), options.get("keepdims")), kinds[0])
        if method != "__call__":
            return NotImplemented
        dtype = ufunc.resolve_dtypes((*kinds, *[None] * ufunc.nout))[-1]
        if ufunc is np.matmul:
            (*a, m, _), (*b, _, n) = map(np.shape, inputs)
            return fresh((*np.broadcast_shapes(tuple(a), tuple(b)), m, n), dtype)
        return fresh(np.broadcast_shapes(*map(np.shape, inputs)), dtype)

    def __array_function__(self, function, types, args, kwargs):
        if function in (np.broadcast_to, np.expand_dims, np.swapaxes, np.moveaxis, np.transpose, np.reshape, np.split, np.shape):
            return super().__array_function__(function, types, args, kwargs)  # a view
        if function in (np.zeros_like, np.ones_like, np.empty_like, np.full_like):
            return fresh(kwargs.get("shape") or args[0].shape, kwargs.get("dtype") or args[0].dtype)
        return hollow(function(*real(args), **real(kwargs)))  # what is rare is computed, with zeros

    def __getitem__(self, key):
        if isinstance(key, np.ndarray) and key.dtype.kind in "iu":
            return fresh(key.shape + self.shape[1:], self.dtype)
        return super().__getitem__(key)

    def __setitem__(self, key, value):
        pass

    def copy(self, order="C"):
        return fresh(self.shape, self.dtype)

    def astype(self, dtype, **options):
        return fresh(self.shape, dtype)


def fresh(shape, dtype):
    shape = tuple(shape)
    return np.ndarray.__new__(Shape, shape, dtype, ZERO, strides=(0,) * len(shape))


def folded(shape, axis, keepdims):
    axes = range(len(shape)) if axis is None else [a % len(shape) for a in (axis if isinstance(axis, tuple) else (axis,))]
    return [1 if i in axes else n for i, n in enumerate(shape) if keepdims or i not in axes]


def real(value):
    if isinstance(value, Shape):
        return np.zeros(value.shape, value.dtype)
    if isinstance(value, dict):
        return {k: real(v) for k, v in value.items()}
    return type(value)(map(real, value)) if isinstance(value, list | tuple) else value


def hollow(value):
    if isinstance(value, list | tuple):
        return type(value)(map(hollow, value))
    return fresh(value.shape, value.dtype) if isinstance(value, np.ndarray) else value


# The kernels that a forward pass calls, as those for Numba and CUDA answer: attention keeps no scores, logits are never whole.

def linear(x, weight):
    return fresh((len(x), len(weight)), x.dtype)


def rms_norm(x, gain, eps):
    return x.copy(), fresh((len(x), 1), x.dtype)


def swiglu(a, b):
    return a.copy()


def rope(x, cos, sin):
    return x.copy()


def attention(q, k, v):
    return q.copy(), fresh(q.shape[:-1], q.dtype)


def linear_cross_entropy(x, weight, labels, scale):
    return x.dtype.type(0), x.copy(), weight.copy()


def materialised_forward(x, B, A, values, support, scale):
    built.append(math.prod(support.shape))
    return fresh((len(x), len(B)), x.dtype), None


def factored_forward(x, B, A, values, support, scale):
    return fresh((len(x), len(B)), x.dtype), fresh((len(x), len(A)), x.dtype)


def scatter_add(W, values, support):
    return W.copy()


def spmm(x, values, support, transpose=False):
    return fresh((len(x), support.shape[transpose]), x.dtype)


built = []  # sizes of the W that were made and dropped again


@contextmanager
def tracing():
    """Within this block "auto" kernels are these. Yields the list of the sizes of what was built for one layer only."""
    built.clear()
    kernels.BACKENDS["shapes"] = __name__
    cost.CONSTANTS["shapes"] = cost.constants("cpu")  # "--algorithm auto" decides as on the CPU
    try:
        with kernels.using("shapes"):
            yield built
    finally:
        del kernels.BACKENDS["shapes"], cost.CONSTANTS["shapes"]


def hollowed(model):
    """The model, built without a generator, with Shapes for arrays."""
    for _, module in model.named_modules():
        for value in vars(module).values():
            if hasattr(value, "requires_grad"):
                value.data = fresh(value.shape, value.dtype)
        for name in module.buffers:
            array = getattr(module, name)
            setattr(module, name, fresh(array.shape, array.dtype))
    return model
