"""Matrix products."""

import numpy as np

from minisl.autograd.ops.shape import squeeze, unsqueeze
from minisl.autograd.tensor import Function, operands
from minisl.backend import array_module


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


class Einsum(Function):
    """y = sum, over all letters that the output lacks, of the product of the xs.    dx = the same of dy and the other xs

    Along a letter that x alone has, dx is repeated: there the others are 1.
    """

    broadcasts = True

    @staticmethod
    def forward(ctx, *xs, inputs, output):
        ctx.save(xs, inputs, output)
        return summed(list(zip(inputs, xs)), output)

    @staticmethod
    def backward(ctx, grad):
        xs, inputs, output = ctx.saved
        terms, ones = list(zip(inputs, xs)), array_module(grad).ones_like
        return tuple(summed([(output, grad), *terms[:i], (letters, ones(x)), *terms[i + 1:]], letters) if ctx.needs[i] else None
                     for i, (letters, x) in enumerate(terms))


def summed(terms, output):
    """The product of arrays with their letters, summed over those that the output lacks."""
    arrays = [x for _, x in terms]
    xp = array_module(arrays[0])
    order = {"optimize": True} if xp is np else {}  # pairs of them by BLAS; CuPy does so by itself
    return xp.einsum(f"{','.join(letters for letters, _ in terms)}->{output}", *arrays, **order)


def matmul(a, b):
    """(..., m, k) times (..., k, n). A vector is a row on the left, a column on the right, and the result lacks that axis."""
    a, b = operands("matmul", (a, b))
    if not getattr(a, "ndim", 0) or not getattr(b, "ndim", 0):
        raise ValueError("matmul: a number has no axis to multiply along; write *")
    row, column = a.ndim == 1, b.ndim == 1
    y = MatMul.apply(unsqueeze(a, 0) if row else a, unsqueeze(b, 1) if column else b)
    y = squeeze(y, -1) if column else y
    return squeeze(y, -1 if column else -2) if row else y


def einsum(letters, *xs):
    """Einstein's summation, `einsum("bij,bkj->bik", a, b)`, as in NumPy; "..." for broadcast axes stands first.

    Raises ValueError: a letter twice in one argument (a diagonal), or not as many terms as tensors.
    """
    inputs, arrow, output = letters.replace(" ", "").partition("->")
    if not arrow:
        output = "..." * ("..." in inputs) + "".join(k for k in sorted(set(inputs) - set(".,")) if inputs.count(k) == 1)
    inputs = inputs.split(",")
    if len(inputs) != len(xs):
        raise ValueError(f"einsum: {letters!r} names {len(inputs)} tensors, {len(xs)} are given")
    for term in (*inputs, output):
        own = term.removeprefix("...")
        if not (own.isalpha() or not own) or len(set(own)) < len(own):
            raise ValueError(f"einsum: {letters!r}: {term!r} must be different letters, after ... if need be")
    return Einsum.apply(*xs, inputs=inputs, output=output)
