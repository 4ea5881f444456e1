"""Matrix products."""

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
        return array_module(xs[0]).einsum(f"{','.join(inputs)}->{output}", *xs, optimize=True)

    @staticmethod
    def backward(ctx, grad):
        xs, inputs, output = ctx.saved
        xp = array_module(grad)

        def gradient(i):
            parts = [(output, grad), *((inputs[j], xs[j]) for j in range(len(xs)) if j != i), (inputs[i], xp.ones_like(xs[i]))]
            return xp.einsum(f"{','.join(letters for letters, _ in parts)}->{inputs[i]}", *(x for _, x in parts), optimize=True)

        return tuple(gradient(i) if need else None for i, need in enumerate(ctx.needs))


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
