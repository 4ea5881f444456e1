"""Ops that treat every element alike. Two-argument ops broadcast; the engine sums their gradients back down."""

import numpy as np

from minisl.autograd.tensor import Function, Tensor
from minisl.backend import array_module


class Add(Function):
    """y = a + b.    da = dy,  db = dy"""

    broadcasts = True

    @staticmethod
    def forward(ctx, a, b):
        return a + b

    @staticmethod
    def backward(ctx, grad):
        return grad, grad


class Sub(Function):
    """y = a - b.    da = dy,  db = -dy"""

    broadcasts = True

    @staticmethod
    def forward(ctx, a, b):
        return a - b

    @staticmethod
    def backward(ctx, grad):
        return grad, -grad


class Mul(Function):
    """y = a b.    da = dy b,  db = dy a"""

    broadcasts = True

    @staticmethod
    def forward(ctx, a, b):
        ctx.save(a, b)
        return a * b

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved
        return grad * b, grad * a


class Div(Function):
    """y = a / b.    da = dy / b,  db = -dy a / b^2"""

    broadcasts = True

    @staticmethod
    def forward(ctx, a, b):
        ctx.save(a, b)
        return a / b

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved
        return grad / b, -grad * a / (b * b)


class Maximum(Function):
    """y = max(a, b).    da = dy [a > b],  db = dy [a < b],  and half each where a = b"""

    broadcasts = True

    @staticmethod
    def forward(ctx, a, b):
        ctx.save(a, b)
        return array_module(a).maximum(a, b)

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved
        tie = 0.5 * (a == b)
        return (grad * ((a > b) + tie)).astype(grad.dtype), (grad * ((a < b) + tie)).astype(grad.dtype)


class Where(Function):
    """y = a where the mask is true, b elsewhere.    da = dy mask,  db = dy (1 - mask)"""

    broadcasts = True

    @staticmethod
    def forward(ctx, a, b, mask):
        ctx.save(mask)
        return array_module(mask).where(mask, a, b)

    @staticmethod
    def backward(ctx, grad):
        (mask,) = ctx.saved
        return grad * mask, grad * ~mask


class Neg(Function):
    """y = -x.    dx = -dy"""

    @staticmethod
    def forward(ctx, x):
        return -x

    @staticmethod
    def backward(ctx, grad):
        return -grad


class Power(Function):
    """y = x^p, p a constant.    dx = dy p x^(p-1)"""

    @staticmethod
    def forward(ctx, x, p):
        ctx.save(x, p)
        return x**p

    @staticmethod
    def backward(ctx, grad):
        x, p = ctx.saved
        return grad * p * x ** (p - 1)


class Exp(Function):
    """y = e^x.    dx = dy y"""

    @staticmethod
    def forward(ctx, x):
        y = array_module(x).exp(x)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved
        return grad * y


class Log(Function):
    """y = ln x.    dx = dy / x"""

    @staticmethod
    def forward(ctx, x):
        ctx.save(x)
        return array_module(x).log(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved
        return grad / x


class Sqrt(Function):
    """y = x^(1/2).    dx = dy / (2 y)"""

    @staticmethod
    def forward(ctx, x):
        y = array_module(x).sqrt(x)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved
        return 0.5 * grad / y


class Rsqrt(Function):
    """y = x^(-1/2).    dx = -dy y^3 / 2"""

    @staticmethod
    def forward(ctx, x):
        y = 1 / array_module(x).sqrt(x)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved
        return -0.5 * grad * y * y * y


class Tanh(Function):
    """y = tanh x.    dx = dy (1 - y^2)"""

    @staticmethod
    def forward(ctx, x):
        y = array_module(x).tanh(x)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved
        return grad * (1 - y * y)


class Sigmoid(Function):
    """y = 1 / (1 + e^-x).    dx = dy y (1 - y)"""

    @staticmethod
    def forward(ctx, x):
        y = logistic(x)
        ctx.save(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved
        return grad * y * (1 - y)


class SiLU(Function):
    """y = x sigmoid(x).    dx = dy s (1 + x (1 - s)),  s = sigmoid(x)"""

    @staticmethod
    def forward(ctx, x):
        ctx.save(x)
        return x * logistic(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved
        s = logistic(x)
        return grad * s * (1 + x * (1 - s))


def logistic(x):
    """1 / (1 + e^-x), as (1 + tanh(x/2)) / 2, which cannot overflow."""
    y = array_module(x).tanh(0.5 * x)
    y += 1
    y *= 0.5
    return y


def pair(a, b):
    """Two arguments of one op: a number or array beside a Tensor becomes an array of that Tensor's dtype."""
    like = a.data if isinstance(a, Tensor) else b.data
    xp = array_module(like)
    return tuple(t if isinstance(t, Tensor) else xp.asarray(t, dtype=like.dtype) for t in (a, b))


def add(a, b):
    """a plus b. Both broadcast."""
    return Add.apply(*pair(a, b))


def sub(a, b):
    """a minus b. Both broadcast."""
    return Sub.apply(*pair(a, b))


def mul(a, b):
    """a times b, element by element. Both broadcast."""
    return Mul.apply(*pair(a, b))


def div(a, b):
    """a over b, element by element. Both broadcast."""
    return Div.apply(*pair(a, b))


def maximum(a, b):
    """The larger of a and b, element by element. Both broadcast."""
    return Maximum.apply(*pair(a, b))


def where(mask, a, b):
    """a where the boolean array `mask` is true, b elsewhere; all three broadcast."""
    a, b = pair(a, b)
    return Where.apply(a, b, mask=array_module(a.data if isinstance(a, Tensor) else a).asarray(mask, dtype=bool))


def neg(x):
    """Minus x."""
    return Neg.apply(x)


def power(x, exponent):
    """x to a constant power. Raises TypeError for a Tensor exponent: write exp(exponent * log(x))."""
    if not np.isscalar(exponent):
        raise TypeError(f"power: the exponent must be a number, got {type(exponent).__name__}")
    return Power.apply(x, p=float(exponent) if not isinstance(exponent, int) else exponent)


def exp(x):
    """e to the power of each element."""
    return Exp.apply(x)


def log(x):
    """The natural logarithm of each element."""
    return Log.apply(x)


def sqrt(x):
    """The square root of each element."""
    return Sqrt.apply(x)


def rsqrt(x):
    """One over the square root of each element."""
    return Rsqrt.apply(x)


def tanh(x):
    """The hyperbolic tangent of each element."""
    return Tanh.apply(x)


def sigmoid(x):
    """1 / (1 + e^-x) of each element."""
    return Sigmoid.apply(x)


def silu(x):
    """Each element times its sigmoid."""
    return SiLU.apply(x)
