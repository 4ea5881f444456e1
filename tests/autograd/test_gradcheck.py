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
    for constant in (lambda x: x**0, lambda x: ops.softmax(x).sum()):  # zero but for rounding
        with pytest.raises(GradcheckError, match="zero everywhere"):
            gradcheck(constant, rng.standard_normal(3))
    with pytest.raises(TypeError, match="float64"):
        gradcheck(Square.apply, np.zeros(3, np.float32))
    with pytest.raises(GradcheckError, match="not computed from the inputs"):
        gradcheck(lambda x: Tensor(x.data), rng.standard_normal(3))


def test_refuses_a_point_where_the_function_is_not_finite():
    with np.errstate(all="ignore"), pytest.raises(GradcheckError, match="not finite"):
        gradcheck(ops.log, np.array([1.0, -1.0]))


def test_gradients_and_hooks_of_others_touched(rng):
    w, x, fired = Tensor(rng.standard_normal(3), requires_grad=True), rng.standard_normal(3), []
    w.register_post_accumulate_grad_hook(fired.append)
    w.grad = np.ones(3)
    before, given = np.random.get_state()[1].copy(), x.copy()  # noqa: NPY002
    gradcheck(lambda x: x * w + 0 * np.random.random(), x)  # noqa: NPY002
    assert w.grad.tolist() == [1, 1, 1]
    assert not fired
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert np.array_equal(x, given)


RIGHT = {
    "1 / x": (lambda x: 1 / x, [1e-3, 2e-5, -3e-4, 1.5]), "log": (ops.log, [1e-6, 2e-9, 1.5]),
    "sqrt": (ops.sqrt, [1e-8, 3e-4, 2]),
    "rsqrt": (ops.rsqrt, [1e-4, 1]), "softmax": (ops.softmax, [0, -20]), "log_softmax": (ops.log_softmax, [0, -20, 3]),
    "sigmoid": (ops.sigmoid, [-30, -20, 0.1]), "x ** 3": (lambda x: x**3, [1e-5, 2e-3, 1]),
    "a / b": (lambda x: x / (x * x), [1e-4, 3]),
    "large": (lambda x: x * x, [1e9, 1]), "projections of 1 / x": (lambda x: 1 / x, np.linspace(1e-3, 2, 300)),
    "zero": (ops.tanh, [0, 1e-9]),
}


@pytest.mark.parametrize("case", RIGHT)
def test_rejects_a_right_backward_at_small_entries(case):
    f, x = RIGHT[case]
    gradcheck(f, np.array(x, np.float64))


@pytest.mark.parametrize("factor", [0.0, 1 + 1e-4, 2.0, -1.0, float("nan")])
@pytest.mark.parametrize("case", [case for case in RIGHT if case != "softmax"])
def test_accepts_a_wrong_backward_at_small_entries(case, factor):
    """The steps that small entries need are not so small that rounding hides the mistake."""
    f, x = RIGHT[case]

    class Wrong(Function):
        @staticmethod
        def forward(ctx, y):
            return y + 0

        @staticmethod
        def backward(ctx, grad):
            return factor * grad

    with pytest.raises(GradcheckError):
        gradcheck(lambda x: f(Wrong.apply(x)), np.array(x, np.float64))


def test_zero_softmax_gradient_hidden_by_rounding():
    """At a probability of 2e-9 the quotient has a twentieth of noise; nothing, and the wrong sign, are still found."""
    for factor in (0.0, -1.0, 1.2):
        def wrong(x, factor=factor):
            p = ops.softmax(x)
            return p * factor + (p * (1 - factor)).detach()

        with pytest.raises(GradcheckError):
            gradcheck(wrong, np.array([0.0, -20]))


def in_place(change):
    def f(x):
        h = x * 2.0
        y = h * h
        change(x, h)
        return y

    return f


@pytest.mark.parametrize(("change", "words"), [
    (lambda x, h: x.data.__iadd__(1), "argument 0 was changed in place"),
    (lambda x, h: h.data.__iadd__(1), "derived .*, measured"),
    (lambda x, h: h.data.fill(0), "derived .*, measured"),
    (lambda x, h: x.data.sort(), "argument 0 was changed in place")])
def test_array_changed_between_forward_and_backward(change, words, rng):
    with pytest.raises(GradcheckError, match=words):
        gradcheck(in_place(change), -np.sort(rng.uniform(1, 2, 3)))


def test_op_that_writes_into_its_input(rng):
    class Doubles(Square):
        @staticmethod
        def forward(ctx, x):
            ctx.save(x)
            x *= 1 + 1e-15
            return x * x

    with pytest.raises(GradcheckError, match="argument 0 was changed in place"):
        gradcheck(Doubles.apply, rng.standard_normal(3))
