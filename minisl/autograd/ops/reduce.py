"""Ops that fold an axis: sums, means, maxima, and the softmax family. axis: int, tuple of ints, or None for all."""

from minisl.autograd.tensor import Function
from minisl.backend import array_module


def expand(folded, shape, axis, keepdims):
    """A reduction's result (or its gradient), repeated along the axes that were folded away."""
    xp = array_module(folded)
    if axis is not None and not keepdims:
        axes = axis if isinstance(axis, tuple) else (axis,)
        folded = xp.expand_dims(folded, tuple(a % len(shape) for a in axes))
    return xp.broadcast_to(folded, shape)


class Sum(Function):
    """y = sum_i x_i.    dx_i = dy"""

    @staticmethod
    def forward(ctx, x, axis, keepdims):
        ctx.save(x.shape, axis, keepdims)
        return x.sum(axis=axis, keepdims=keepdims)

    @staticmethod
    def backward(ctx, grad):
        return expand(grad, *ctx.saved)


class Mean(Function):
    """y = (1/n) sum_i x_i.    dx_i = dy / n"""

    @staticmethod
    def forward(ctx, x, axis, keepdims):
        y = x.mean(axis=axis, keepdims=keepdims)
        ctx.save(x.shape, axis, keepdims, x.size // y.size)
        return y

    @staticmethod
    def backward(ctx, grad):
        shape, axis, keepdims, n = ctx.saved
        return expand(grad / n, shape, axis, keepdims)


class Max(Function):
    """y = max_i x_i.    dx_i = dy [x_i = y] / (number of i with x_i = y)"""

    @staticmethod
    def forward(ctx, x, axis, keepdims):
        y = x.max(axis=axis, keepdims=keepdims)
        ctx.save(x, y, axis, keepdims)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, y, axis, keepdims = ctx.saved
        hit = (x == expand(y, x.shape, axis, keepdims)).astype(x.dtype)
        return expand(grad, x.shape, axis, keepdims) * hit / hit.sum(axis=axis, keepdims=True)


class Softmax(Function):
    """p_i = e^(x_i) / sum_j e^(x_j).    dx = p (dp - sum_j dp_j p_j)"""

    @staticmethod
    def forward(ctx, x, axis):
        p = array_module(x).exp(x - x.max(axis=axis, keepdims=True))
        p /= p.sum(axis=axis, keepdims=True)
        ctx.save(p, axis)
        return p

    @staticmethod
    def backward(ctx, grad):
        p, axis = ctx.saved
        return p * (grad - (grad * p).sum(axis=axis, keepdims=True))


class LogSoftmax(Function):
    """y_i = x_i - ln sum_j e^(x_j).    dx_i = dy_i - e^(y_i) sum_j dy_j"""

    @staticmethod
    def forward(ctx, x, axis):
        xp = array_module(x)
        y = x - x.max(axis=axis, keepdims=True)
        y -= xp.log(xp.exp(y).sum(axis=axis, keepdims=True))
        ctx.save(y, axis)
        return y

    @staticmethod
    def backward(ctx, grad):
        y, axis = ctx.saved
        return grad - array_module(y).exp(y) * grad.sum(axis=axis, keepdims=True)


def sum(x, axis=None, keepdims=False):
    """The sum over an axis, a tuple of axes, or all."""
    return Sum.apply(x, axis=axis, keepdims=keepdims)


def mean(x, axis=None, keepdims=False):
    """The mean over an axis, a tuple of axes, or all."""
    return Mean.apply(x, axis=axis, keepdims=keepdims)


def max(x, axis=None, keepdims=False):
    """The maximum over an axis, a tuple of axes, or all. Equal maxima share the gradient."""
    return Max.apply(x, axis=axis, keepdims=keepdims)


def softmax(x, axis=-1):
    """e^x over its sum along the axis."""
    return Softmax.apply(x, axis=axis)


def log_softmax(x, axis=-1):
    """The logarithm of `softmax`, without overflow."""
    return LogSoftmax.apply(x, axis=axis)
