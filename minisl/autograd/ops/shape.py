"""Ops that move elements without changing them."""

import math
from itertools import accumulate

import numpy as np

from minisl.autograd.tensor import Function, operands
from minisl.backend import array_module


class Reshape(Function):
    """y holds x's elements in row-major order under another shape.    dx = dy reshaped back"""

    @staticmethod
    def forward(ctx, x, shape):
        ctx.save(x.shape)
        return x.reshape(shape)

    @staticmethod
    def backward(ctx, grad):
        (shape,) = ctx.saved
        return grad.reshape(shape)


class Permute(Function):
    """Axis k of y is axis axes[k] of x.    dx = dy under the inverse permutation"""

    @staticmethod
    def forward(ctx, x, axes):
        ctx.save(axes)
        return x.transpose(axes)

    @staticmethod
    def backward(ctx, grad):
        (axes,) = ctx.saved
        inverse = [0] * len(axes)
        for k, axis in enumerate(axes):
            inverse[axis] = k
        return grad.transpose(inverse)


class Concatenate(Function):
    """y = inputs joined along an existing axis.    Each input's gradient is its slice of dy"""

    @staticmethod
    def forward(ctx, *xs, axis):
        ctx.save([x.shape[axis] for x in xs], axis)
        return array_module(xs[0]).concatenate(xs, axis=axis)

    @staticmethod
    def backward(ctx, grad):
        sizes, axis = ctx.saved
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        return tuple(array_module(grad).split(grad, ends[:-1], axis=axis))


def axes_of(op, axis, ndim):
    """One or several axes as a tuple of numbers from 0. Raises ValueError for one that is not there (AxisError), or twice."""
    return np.lib.array_utils.normalize_axis_tuple(axis, ndim, op)


def reshape(x, shape):
    """The same elements in another shape; one length may be -1."""
    return Reshape.apply(x, shape=shape)


def squeeze(x, axis=None):
    """Without the axes of length 1: all, or those of `axis` that have it (as in PyTorch)."""
    axes = range(x.ndim) if axis is None else axes_of("squeeze", axis, x.ndim)
    return reshape(x, tuple(n for k, n in enumerate(x.shape) if n != 1 or k not in axes))


def unsqueeze(x, axis):
    """With one more axis, of length 1."""
    (axis,) = axes_of("unsqueeze", axis, x.ndim + 1)
    return reshape(x, (*x.shape[:axis], 1, *x.shape[axis:]))


def flatten(x, start=0, end=-1):
    """The axes from `start` to `end` as one; of a number, one element."""
    ((start,), (end,)) = (axes_of("flatten", k, max(x.ndim, 1)) for k in (start, end))
    if start > end:
        raise ValueError(f"flatten: axis {start} comes after axis {end}")
    return reshape(x, (*x.shape[:start], math.prod(x.shape[start:end + 1]), *x.shape[end + 1:]))


def permute(x, axes):
    """The axes in another order. Raises ValueError unless `axes` names each once."""
    order = axes_of("permute", axes, x.ndim)
    if len(order) != x.ndim:
        raise ValueError(f"permute: axes {tuple(axes)} for a tensor of shape {x.shape}; each must be named once")
    return Permute.apply(x, axes=order)


def swapaxes(x, a, b):
    """Axes a and b exchanged."""
    order = list(range(x.ndim))
    ((a,), (b,)) = (axes_of("swapaxes", k, x.ndim) for k in (a, b))
    order[a], order[b] = b, a
    return permute(x, order)


def concatenate(xs, axis=0):
    """Tensors one after the other along an axis. Raises ValueError: none are given, or their shapes differ elsewhere."""
    xs = operands("concatenate", xs)
    if not xs:
        raise ValueError("concatenate: no tensors are given")
    return Concatenate.apply(*xs, axis=axes_of("concatenate", axis, getattr(xs[0], "ndim", 0))[0])


def stack(xs, axis=0):
    """Join along a new axis: a concatenation of inputs that each got an axis of length one."""
    if len({x.shape for x in xs}) != 1:
        raise ValueError(f"stack: shapes {[x.shape for x in xs]}; there must be some, all alike")
    return concatenate([unsqueeze(x, axis) for x in xs], axis)


def split(x, size, axis=0):
    """Pieces of length `size` along an axis (the last may be shorter), or of the lengths in a list: a tuple, as in PyTorch.
    Raises ValueError unless the lengths add up to the axis."""
    (axis,) = axes_of("split", axis, x.ndim)
    n = x.shape[axis]
    if isinstance(size, int) and size > 0:
        size = [min(size, n - k) for k in range(0, max(n, 1), size)]
    if isinstance(size, int) or sum(size) != n or min(size) < 0:
        raise ValueError(f"split: lengths {size} of an axis of {n}")
    ends = list(accumulate(size))
    return tuple(x[(*[slice(None)] * axis, slice(end - k, end))] for k, end in zip(size, ends))
