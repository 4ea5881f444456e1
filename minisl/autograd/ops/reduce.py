"""Ops along axes: sums, means, maxima, and the softmax family. axis: int, tuple of ints, or None for all."""

import builtins
import math

import numpy as np

from minisl.autograd.ops.elementwise import sqrt, unless, where
from minisl.autograd.ops.shape import axes_of
from minisl.autograd.tensor import Function
from minisl.backend import array_module


def expand(folded, shape, axis, keepdims):
    """A reduction's result (or its gradient), repeated along the axes that were folded away."""
    xp = array_module(folded)
    if axis is not None and not keepdims:
        folded = xp.expand_dims(folded, axis)
    return xp.broadcast_to(folded, shape)


def largest(x, axis):
    """The maximum along the axes, which are kept, as a float: what is subtracted before an exponential. Of nothing, 0."""
    return 1.0 * (x.max(axis=axis, keepdims=True) if x.size else x.sum(axis=axis, keepdims=True))


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
    """y = (1/n) sum_i x_i, NaN of nothing.    dx_i = dy / n"""

    @staticmethod
    def forward(ctx, x, axis, keepdims):
        n = x.size if axis is None else math.prod(x.shape[k] for k in axis)
        ctx.save(x.shape, axis, keepdims, n)
        return x.mean(axis=axis, keepdims=keepdims) if n else x.sum(axis=axis, keepdims=keepdims) * math.nan

    @staticmethod
    def backward(ctx, grad):
        shape, axis, keepdims, n = ctx.saved
        return expand(grad / builtins.max(n, 1), shape, axis, keepdims)


class Extremum(Function):
    """y = max_i x_i, or the minimum.    dx_i = dy / (number of i with x_i = y) where x_i = y, else 0"""

    @staticmethod
    def forward(ctx, x, axis, keepdims, of):
        y = getattr(x, of)(axis=axis, keepdims=keepdims)
        ctx.save(x, y, axis, keepdims)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, y, axis, keepdims = ctx.saved
        hit = (x == expand(y, x.shape, axis, keepdims)) | (x != x)  # where there is a NaN, y is NaN
        share = expand(grad, x.shape, axis, keepdims) / hit.sum(axis=axis, keepdims=True, dtype=grad.dtype)
        return unless(~hit, share)


class CumSum(Function):
    """y_i = x_1 + ... + x_i along an axis.    dx_i = dy_i + ... + dy_n"""

    @staticmethod
    def forward(ctx, x, axis):
        ctx.save(axis)
        return x.cumsum(axis=axis)

    @staticmethod
    def backward(ctx, grad):
        (axis,) = ctx.saved
        back = (*[slice(None)] * axis, slice(None, None, -1))
        return grad[back].cumsum(axis=axis)[back]


class LogSumExp(Function):
    """y = ln sum_i e^(x_i).    dx_i = dy e^(x_i - y)"""

    @staticmethod
    def forward(ctx, x, axis, keepdims):
        xp, top = array_module(x), largest(x, axis)
        top = xp.where(xp.isfinite(top), top, 0)
        with np.errstate(divide="ignore"):  # of nothing it is -inf
            y = xp.log(xp.exp(x - top).sum(axis=axis, keepdims=True)) + top
        ctx.save(x, y, axis, keepdims)
        return y if keepdims else y.squeeze(axis)

    @staticmethod
    def backward(ctx, grad):
        x, y, axis, keepdims = ctx.saved
        return expand(grad, x.shape, axis, keepdims) * array_module(x).exp(x - y)


class Softmax(Function):
    """p_i = e^(x_i) / sum_j e^(x_j).    dx = p (dp - sum_j dp_j p_j)"""

    @staticmethod
    def forward(ctx, x, axis):
        p = array_module(x).exp(x - largest(x, axis))
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
        y = x - largest(x, axis)
        with np.errstate(divide="ignore"):  # of nothing
            y = y - xp.log(xp.exp(y).sum(axis=axis, keepdims=True))
        ctx.save(y, axis)
        return y

    @staticmethod
    def backward(ctx, grad):
        y, axis = ctx.saved
        return grad - array_module(y).exp(y) * grad.sum(axis=axis, keepdims=True)


def folded(op, x, axis):
    """The axes to fold: None, or numbers 0.. in a tuple. A number (0-d) has an axis 0, as in NumPy and PyTorch."""
    return axis if axis is None else axes_of(op, axis, x.ndim) if x.ndim or axis not in (0, -1) else ()


def sum(x, axis=None, keepdims=False):
    """The sum over an axis, a tuple of axes, or all."""
    return Sum.apply(x, axis=folded("sum", x, axis), keepdims=keepdims)


def mean(x, axis=None, keepdims=False):
    """The mean over an axis, a tuple of axes, or all."""
    return Mean.apply(x, axis=folded("mean", x, axis), keepdims=keepdims)


def max(x, axis=None, keepdims=False):
    """The maximum over an axis, a tuple of axes, or all. Equal maxima share the gradient. Raises ValueError: of nothing."""
    return Extremum.apply(x, axis=folded("max", x, axis), keepdims=keepdims, of="max")


def min(x, axis=None, keepdims=False):
    """The minimum, as `max`."""
    return Extremum.apply(x, axis=folded("min", x, axis), keepdims=keepdims, of="min")


def var(x, axis=None, keepdims=False, correction=1):
    """The variance: the sum of squared distances from the mean over n - correction (1 as in PyTorch; NumPy's default is 0)."""
    m = mean(x, axis, True)
    n = x.size // builtins.max(m.size, 1)
    return sum((x - m) ** 2, axis, keepdims) / builtins.max(n - correction, 0)


def std(x, axis=None, keepdims=False, correction=1):
    """The square root of `var`. Where all are equal the gradient is 0, as in PyTorch."""
    v = var(x, axis, keepdims, correction)
    return where(v == 0, 0.0, sqrt(where(v == 0, 1.0, v)))


def cumsum(x, axis):
    """The running sum along an axis."""
    return CumSum.apply(x, axis=axes_of("cumsum", axis, x.ndim)[0]) if x.ndim else sum(x, axis)


def logsumexp(x, axis=None, keepdims=False):
    """The logarithm of the sum of e^x, without overflow."""
    return LogSumExp.apply(x, axis=folded("logsumexp", x, axis), keepdims=keepdims)


def softmax(x, axis=-1):
    """e^x over its sum along the axis."""
    return Softmax.apply(x, axis=folded("softmax", x, axis))


def log_softmax(x, axis=-1):
    """The logarithm of `softmax`, without overflow."""
    return LogSoftmax.apply(x, axis=folded("log_softmax", x, axis))
