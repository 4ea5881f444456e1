"""Ops that treat every element alike. Two-argument ops broadcast; the engine sums their gradients back down."""

import numpy as np

from minisl.autograd.tensor import Function, Tensor, raw
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
    """y = a / b.    da = dy / b,  db = -dy (a / b) / b"""

    broadcasts = True

    @staticmethod
    def forward(ctx, a, b):
        ctx.save(a, b)
        return a / b

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved
        return grad / b, -grad * (a / b / b)


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
        return halved(grad, a == b, a < b), halved(grad, a == b, b < a)


class Minimum(Function):
    """y = min(a, b).    da = dy [a < b],  db = dy [a > b],  and half each where a = b"""

    broadcasts = True

    @staticmethod
    def forward(ctx, a, b):
        ctx.save(a, b)
        return array_module(a).minimum(a, b)

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved
        return halved(grad, a == b, a > b), halved(grad, a == b, b > a)


def halved(grad, tie, lost):
    """Half of dy at a tie, none of it where this side lost, else all (where either is NaN, both get it)."""
    return array_module(grad).where(tie, grad / 2, unless(lost, grad))


def unless(mask, grad):
    """dy, and 0 where the mask is true. A product with the mask would make NaN of an infinite dy."""
    return array_module(grad).where(mask, grad.dtype.type(0), grad)


class Where(Function):
    """y = a where the mask is true, b elsewhere.    da = dy where it is true, db = dy elsewhere, else 0"""

    broadcasts = True

    @staticmethod
    def forward(ctx, a, b, mask):
        ctx.save(mask)
        return array_module(mask).where(mask, a, b)

    @staticmethod
    def backward(ctx, grad):
        (mask,) = ctx.saved
        return unless(~mask, grad), unless(mask, grad)


class Abs(Function):
    """y = |x|.    dx = dy sign(x)"""

    @staticmethod
    def forward(ctx, x):
        ctx.save(x)
        return array_module(x).absolute(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved
        return unless(x == 0, array_module(x).where(x < 0, -grad, grad))


class Neg(Function):
    """y = -x.    dx = -dy"""

    @staticmethod
    def forward(ctx, x):
        return -x

    @staticmethod
    def backward(ctx, grad):
        return -grad


class Power(Function):
    """y = x^p, p a constant.    dx = dy p x^(p-1),  and 0 for p = 0"""

    @staticmethod
    def forward(ctx, x, p):
        ctx.save(x, p)
        return x**p

    @staticmethod
    def backward(ctx, grad):
        x, p = ctx.saved
        return grad * (p * x ** (p - 1)) if p else array_module(x).zeros_like(x)


class PowerOf(Function):
    """y = a^b.    da = dy b a^(b-1),  0 where b = 0;   db = dy y ln a,  0 where a = 0 and b >= 0"""

    broadcasts = True

    @staticmethod
    def forward(ctx, a, b):
        y = a**b
        ctx.save(a, b, y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (a, b, y), (first, second) = ctx.saved, ctx.needs
        xp = array_module(y)
        zero = (a == 0) & (b >= 0)
        da = unless(b == 0, grad * (b * a ** xp.where(b == 0, 1, b - 1))) if first else None
        db = unless(zero, grad * (y * xp.log(xp.where(zero, 1, a)))) if second else None
        return da, db


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
    """1 / (1 + e^-x), for negative x as e^x / (1 + e^x): no overflow, and no small value lost beside 1."""
    xp = array_module(x)
    e = xp.exp(-1.0 * xp.absolute(x))
    return xp.where(x < 0, e, e.dtype.type(1)) / (1 + e)


def add(a, b):
    """a plus b. Both broadcast."""
    return Add.apply(a, b)


def sub(a, b):
    """a minus b. Both broadcast."""
    return Sub.apply(a, b)


def mul(a, b):
    """a times b, element by element. Both broadcast."""
    return Mul.apply(a, b)


def div(a, b):
    """a over b, element by element. Both broadcast."""
    return Div.apply(a, b)


def maximum(a, b):
    """The larger of a and b, element by element. Both broadcast."""
    return Maximum.apply(a, b)


def minimum(a, b):
    """The smaller of a and b, element by element. Both broadcast."""
    return Minimum.apply(a, b)


def where(mask, a, b):
    """a where the boolean array `mask` is true, b elsewhere; all three broadcast."""
    near = next((t.data for t in (a, b) if isinstance(t, Tensor)), mask)
    return Where.apply(a, b, mask=array_module(near).asarray(raw(mask), dtype=bool))


def relu(x):
    """x where it is positive, else 0. The gradient at 0 is 0, as in PyTorch."""
    return where(x <= 0, 0.0, x)


def clip(x, low=None, high=None):
    """x, but low where it is below and high where it is above; None is no bound. At a bound the gradient is x's."""
    x = x if low is None else where(x < low, low, x)
    return x if high is None else where(x > high, high, x)


def abs(x):
    """The absolute value of each element; the gradient at 0 is 0."""
    return Abs.apply(x)


def neg(x):
    """Minus x."""
    return Neg.apply(x)


def power(x, exponent):
    """x to the power of a number, or of a Tensor or array; then both broadcast, and x may be the number."""
    if isinstance(x, Tensor) and isinstance(exponent, (int, float, np.integer, np.floating)):
        return Power.apply(x, p=exponent.item() if isinstance(exponent, np.generic) else exponent)
    return PowerOf.apply(x, exponent)


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
