"""Ops that pick elements. Where an element is picked twice, its gradient is the sum of both."""

from minisl.autograd.ops.shape import axes_of
from minisl.autograd.tensor import Function, raw
from minisl.backend import array_module


class GetItem(Function):
    """y = x[key], NumPy's basic and integer-array indexing.    dx = 0, then dx[key] += dy"""

    @staticmethod
    def forward(ctx, x, key):
        ctx.save(x.shape, key)
        return x[key]

    @staticmethod
    def backward(ctx, grad):
        shape, key = ctx.saved
        xp = array_module(grad)
        dx = xp.zeros(shape, grad.dtype)
        if all(isinstance(k, (slice, int, type(None), type(...))) for k in (key if isinstance(key, tuple) else (key,))):
            dx[key] = grad
        else:
            xp.add.at(dx, key, grad)
        return dx


class Gather(Function):
    """y = x taken along an axis: y[i, k] = x[i, index[i, k]].    dx[i, index[i, k]] += dy[i, k]"""

    @staticmethod
    def forward(ctx, x, index, axis):
        ctx.save(x.shape, index, axis)
        return array_module(x).take_along_axis(x, index, axis)

    @staticmethod
    def backward(ctx, grad):
        shape, index, axis = ctx.saved
        xp = array_module(grad)
        where = list(xp.ogrid[tuple(map(slice, index.shape))])
        where[axis] = index
        dx = xp.zeros(shape, grad.dtype)
        xp.add.at(dx, tuple(where), grad)
        return dx


def getitem(x, key):
    """x[key], for what NumPy takes as a key; a Tensor in it is an array. An element that is taken twice gets both gradients."""
    return GetItem.apply(x, key=tuple(map(raw, key)) if isinstance(key, tuple) else raw(key))


def gather(x, index, axis=-1):
    """index: integer array with x's shape except along `axis`. Raises ValueError for another, IndexError for one not there."""
    (axis,), index = axes_of("gather", axis, x.ndim), raw(index)
    if index.ndim != x.ndim or any(n != m for k, (n, m) in enumerate(zip(x.shape, index.shape)) if k != axis):
        raise ValueError(f"gather: index {index.shape} must have the shape of x {x.shape} except along axis {axis}")
    return Gather.apply(x, index=index, axis=axis)
