"""Matrix products."""

from minisl.autograd.ops.elementwise import pair
from minisl.autograd.tensor import Function


class MatMul(Function):
    """Y = A B over the last two axes, leading axes broadcast.    dA = dY B^T,  dB = A^T dY"""

    broadcasts = True

    @staticmethod
    def forward(ctx, a, b):
        ctx.save(a, b)
        return a @ b

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved
        return grad @ b.swapaxes(-1, -2), a.swapaxes(-1, -2) @ grad


def matmul(a, b):
    """(..., m, k) times (..., k, n). Raises ValueError for one-dimensional arguments: reshape them first."""
    a, b = pair(a, b)
    if a.ndim < 2 or b.ndim < 2:
        raise ValueError(f"matmul: needs two or more axes on both sides, got shapes {a.shape} and {b.shape}")
    return MatMul.apply(a, b)
