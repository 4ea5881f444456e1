"""Ops that move elements without changing them."""

from minisl.autograd.tensor import Function
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


def reshape(x, shape):
    """The same elements in another shape; one length may be -1."""
    return Reshape.apply(x, shape=shape)


def permute(x, axes):
    """The axes in another order."""
    return Permute.apply(x, axes=tuple(a % x.ndim for a in axes))


def swapaxes(x, a, b):
    """Axes a and b exchanged."""
    axes = list(range(x.ndim))
    axes[a], axes[b] = axes[b], axes[a]
    return permute(x, axes)


def concatenate(xs, axis=0):
    """Tensors one after the other along an axis."""
    return Concatenate.apply(*xs, axis=axis)


def stack(xs, axis=0):
    """Join along a new axis: a concatenation of inputs that each got an axis of length one."""
    axis = axis % (xs[0].ndim + 1)
    return concatenate([reshape(x, (*x.shape[:axis], 1, *x.shape[axis:])) for x in xs], axis)
