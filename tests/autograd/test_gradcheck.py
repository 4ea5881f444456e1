"""gradcheck itself: it must accept the right backward, and it must be able to fail."""

import numpy as np
import pytest

from minisl import Tensor, gradcheck
from minisl.autograd import Function, GradcheckError, ops


class Square(Function):
    slope, shift = 2.0, 0.0

    @staticmethod
    def forward(ctx, x):
        ctx.save(x)
        return x * x

    @classmethod
    def backward(cls, ctx, grad):
        (x,) = ctx.saved
        return grad * (cls.slope * x + cls.shift)


def variant(**attributes):
    return type("Square", (Square,), attributes).apply


SMALL, LARGE = (3, 4), (300, 70)


@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_accepts_a_right_backward(shape, rng):
    gradcheck(Square.apply, rng.standard_normal(shape))


@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.parametrize("wrong", [{"slope": 0.0}, {"slope": 1.0}, {"slope": -2.0}, {"slope": 2.0 * (1 + 3e-6)}, {"shift": 1e-3},
                                   {"slope": float("nan")}], ids=str)
def test_rejects_a_wrong_backward(shape, wrong, rng):
    with pytest.raises(GradcheckError, match=r"Square: argument 0"):
        gradcheck(variant(**wrong), rng.standard_normal(shape))


def test_rejects_one_wrong_entry_and_names_it(rng):
    class OneWrong(Square):
        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved
            d = 2 * grad * x
            d[1, 2] *= 1.5
            return d

    with pytest.raises(GradcheckError, match=r"OneWrong: argument 0, index \(1, 2\): derived \S+, measured \S+ .*3.3e-01"):
        gradcheck(OneWrong.apply, rng.standard_normal(SMALL))


def test_names_the_argument(rng):
    class SecondWrong(Function):
        @staticmethod
        def forward(ctx, a, b):
            ctx.save(a, b)
            return a * b

        @staticmethod
        def backward(ctx, grad):
            _, b = ctx.saved
            return grad * b, grad * b

    with pytest.raises(GradcheckError, match="SecondWrong: argument 1"):
        gradcheck(SecondWrong.apply, rng.standard_normal(3), rng.standard_normal(3))


def test_rejects_a_backward_that_writes_into_its_gradient(rng):
    class Writes(Square):
        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved
            grad *= 2 * x
            return grad

    with pytest.raises(GradcheckError, match="wrote into"):
        gradcheck(Writes.apply, rng.standard_normal(3))


def test_refuses_inputs_that_prove_nothing(rng):
    with pytest.raises(GradcheckError, match="constant"):
        gradcheck(Square.apply, np.ones(3))
    with pytest.raises(GradcheckError, match="zero everywhere"):
        gradcheck(lambda x: ops.maximum(x, 0.0), -np.abs(rng.standard_normal(3)) - 1)
    with pytest.raises(TypeError, match="float64"):
        gradcheck(Square.apply, np.zeros(3, np.float32))
    with pytest.raises(GradcheckError, match="not computed from the inputs"):
        gradcheck(lambda x: Tensor(x.data), rng.standard_normal(3))


def test_refuses_a_point_where_the_function_is_not_finite():
    with np.errstate(all="ignore"), pytest.raises(GradcheckError, match="not finite"):
        gradcheck(ops.log, np.array([1.0, -1.0]))
