"""Every op: value against an independent formula, gradient against differences, float32, fused against composed. Ops with kernels
with those of each backend."""

import warnings
from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
from op_cases import ALONG, CASES, WITH_KERNELS, check_composed, check_float32, check_gradient, check_value, ops_in

from minisl import gradcheck, kernels
from minisl.autograd import Function, Tensor, ops
from minisl.kernels import numpy_fused

RUNS = [(name, "numpy") for name in CASES] + [(name, "cpu") for name in WITH_KERNELS]


@pytest.mark.parametrize(("name", "backend"), RUNS, indirect=["backend"])
def test_value(name, backend):
    check_value(name)


@pytest.mark.parametrize(("name", "backend"), RUNS, indirect=["backend"])
def test_gradient(name, backend):
    check_gradient(name)


@pytest.mark.parametrize(("name", "backend"), RUNS, indirect=["backend"])
def test_float32_stays_float32(name, backend):
    check_float32(name)


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.composed])
def test_fused_equals_composed(name, backend):
    check_composed(name)


def test_every_op_has_a_case():
    """A new Function without a case fails here."""
    shipped = {f for f in Function.__subclasses__() if f.__module__.startswith("minisl.autograd.ops")}
    assert shipped - set().union(*map(ops_in, CASES)) == set()


def test_numbers_take_the_dtype_of_the_tensor():
    x = Tensor(np.ones(2, np.float32), requires_grad=True)
    for y in (x + 1, 1 - x, x * np.float64(2.0), 2.0 / x, np.ones(2) * x, x**2, x**-0.5):
        assert y.dtype == np.float32


INTEGERS = {
    "x * 0.5": (lambda x: x * 0.5, [0.5, 1, 1.5]), "x / 0.5": (lambda x: x / 0.5, [2, 4, 6]),
    "1 / x": (lambda x: 1 / x, [1, 1 / 2, 1 / 3]),
    "x ** 0.5": (lambda x: x**0.5, np.sqrt([1, 2, 3])), "x ** -0.5": (lambda x: x**-0.5, 1 / np.sqrt([1, 2, 3])),
    "x + array": (lambda x: x + np.array([0.5, 0, 0]), [1.5, 2, 3]), "0.5 - x": (lambda x: 0.5 - x, [-0.5, -1.5, -2.5]),
    "maximum": (lambda x: ops.maximum(x, 1.5), [1.5, 2, 3]),
    "where": (lambda x: ops.where([True, False, False], 0.5, x), [0.5, 2, 3]),
    "2.0 ** x": (lambda x: 2.5**x, [2.5, 6.25, 15.625]), "mean": (ops.mean, 2.0), "exp": (ops.exp, np.exp([1, 2, 3])),
    "log_softmax": (ops.log_softmax, np.log(np.exp([1, 2, 3]) / np.exp([1, 2, 3]).sum())), "var": (ops.var, 1.0),
    "sigmoid": (ops.sigmoid, 1 / (1 + np.exp([-1, -2, -3]))), "clip": (lambda x: x.clip(1.5, 2.5), [1.5, 2, 2.5]),
    "stack": (lambda x: ops.stack([x, Tensor(np.full(3, 0.5))]), [[1, 2, 3], [0.5] * 3]),
    "matmul": (lambda x: x @ np.full(3, 0.5), 3.0),
}


@pytest.mark.parametrize("dtype", ["int64", "uint8", "int8"])
@pytest.mark.parametrize("case", INTEGERS)
def test_fractions_lost_beside_integers(case, dtype):
    op, value = INTEGERS[case]
    y = op(Tensor(np.array([1, 2, 3], dtype)))
    assert y.dtype.kind == "f"
    np.testing.assert_allclose(y.data, value, rtol=1e-2 if y.dtype == np.float16 else 1e-6)


def test_integers_beside_integers_and_floats():
    x = Tensor(np.array([1, 2, 3]))
    for y in (x + 1, 2 * x, x - 1, x**2, x * [3, 2, 1], ops.maximum(x, 2), x.clip(0, 2), x.sum(), ops.concatenate([x, x])):
        assert y.dtype == np.int64
    for dtype in ("float32", "float16"):  # an integer Tensor has no say, as in PyTorch
        w = Tensor(np.ones(3, dtype), requires_grad=True)
        for y in (x * w, w / x, ops.stack([w, x]), ops.where([True, False, True], x, w), x @ w):
            assert y.dtype == dtype
            y.sum().backward()
        assert w.grad.dtype == dtype


@pytest.mark.parametrize("other", [None, "2", 1j, np.array([1j, 2]), np.array([None, 2]), np.array(["a", "b"]), {1: 2}], ids=repr)
def test_what_is_no_number_taken_for_one(other):
    x = Tensor(np.ones(2, np.float32), requires_grad=True)
    for op in (ops.add, ops.sub, ops.mul, ops.div, ops.power, ops.maximum, ops.minimum, ops.matmul):
        for arguments in ((x, other), (other, x)):
            with pytest.raises(TypeError, match="real numbers are needed"):
                op(*arguments)
    with pytest.raises(TypeError, match="Where: real numbers"):
        ops.where([True, False], x, other)
    with pytest.raises(TypeError, match="Tensor: real numbers"):
        Tensor(other)


def test_dtypes_mixed():
    """In the forward pass, by the op's name, not in a backward that finds a gradient of the wrong dtype."""
    a, b = (Tensor(np.ones((2, 2), dtype), requires_grad=True) for dtype in ("float32", "float64"))
    for op in (ops.add, ops.mul, ops.div, ops.power, ops.maximum, ops.matmul, ops.linear, ops.swiglu):
        with pytest.raises(TypeError, match=r"^\w+: tensors of float32 and float64") as error:
            op(a, b)
        assert error.value.args[0].partition(":")[0].lower() in (op.__name__, "powerof")
    for join in (ops.concatenate, ops.stack):
        with pytest.raises(TypeError, match="Concatenate: tensors of float32 and float64"):
            join([a, b])


def test_gradient_given_in_another_dtype():
    for given in (np.ones(2), [1, 1], Tensor(np.ones(2)), np.ones(2, np.float16), np.array([True, True])):
        x = Tensor(np.ones(2, np.float32), requires_grad=True)
        (x * 3).backward(given)
        assert x.grad.dtype == np.float32
        assert x.grad.tolist() == [3, 3]


def slope(f, *values, dtype=np.float32):
    """Value and gradients of f at numbers, upstream 1."""
    leaves = [Tensor(np.array(v, dtype), requires_grad=True) for v in values]
    with np.errstate(all="ignore"):
        y = f(*leaves)
        y.sum().backward()
    return [y.data.tolist(), *(t.grad.tolist() for t in leaves)]


MASKED = {  # f, where, its value and gradients: an infinite gradient into a branch that was not taken
    "sqrt of maximum": (lambda x: ops.sqrt(ops.maximum(x, 0.0)), [-1], [0, 0]),
    "sqrt of minimum": (lambda x: ops.sqrt(-ops.minimum(x, 0.0)), [1], [0, 0]),
    "sqrt of relu": (lambda x: x.relu().sqrt(), [-1], [0, 0]),
    "sqrt of relu at 0": (lambda x: x.relu().sqrt(), [0], [0, 0]),
    "relu at 0": (ops.relu, [0], [0, 0]),
    "log of clip": (lambda x: x.clip(0.0).log(), [-1], [-np.inf, 0]),
    "clip at its bound": (lambda x: x.clip(0.0, 1.0), [[0, 1, 2]], [[0, 1, 1], [1, 1, 0]]),
    "sqrt of abs at 0": (lambda x: abs(x).sqrt(), [0], [0, 0]),
    "abs at 0": (abs, [0], [0, 0]),
    "sqrt where": (lambda x: ops.where(x > 0, x.sqrt(), 0.0), [0], [0, np.nan]),  # 0 into the sqrt, as in PyTorch
    "where of sqrt": (lambda a, b: ops.where([True], a, b).sqrt(), [[0], [5]], [[0], [np.inf], [0]]),
    "sqrt of max": (lambda x: x.max().sqrt(), [[0, -1]], [0, [np.inf, 0]]),
    "sqrt of min": (lambda x: x.min().sqrt(), [[0, 1]], [0, [np.inf, 0]]),
    "x ** 0 at 0": (lambda x: x**0, [0], [1, 0]),
    "x ** 0.0 at 0": (lambda x: x**0.0, [0], [1, 0]),
    "a ** b at 0, 0": (ops.power, [0, 0], [1, 0, 0]),
    "a ** b at 0, 2": (ops.power, [0, 2], [0, 0, 0]),
    "a ** b, b 0": (lambda a, b: (a**b - 1).sqrt(), [2, 0], [0, 0, np.inf]),
    "a ** b, a 0": (lambda a, b: (a**b).sqrt(), [0, 2], [0, np.nan, 0]),
    "std of equal numbers": (ops.std, [[3, 3]], [0, [0, 0]]),
}


@pytest.mark.parametrize("case", MASKED)
def test_masks_multiply(case):
    f, values, want = MASKED[case]
    np.testing.assert_array_equal(np.hstack(slope(f, *values)), np.hstack(want))


SMALL = {
    "a / b": (lambda a, b: a / b, [1e-25, 1e-25], [1, 1e25, -1e25]),
    "1 / x": (lambda x: 1 / x, [1e-18], [1e18, -1e36]),
    "0 / b": (lambda a, b: a / b, [0, 1e-30], [0, 1e30, 0]),
    "sigmoid": (ops.sigmoid, [[-20, -80, 20]], [[2.0611537e-9, 1.8048514e-35, 1], [2.0611537e-9, 1.8048514e-35, 0]]),
    "log sigmoid": (lambda x: x.sigmoid().log(), [-20], [-20, 1]),
    "silu": (ops.silu, [[-20, -80]], [[-4.1223073e-8, -1.4438811e-33], [-3.9161919e-8, -1.4258326e-33]]),
}


@pytest.mark.parametrize("case", SMALL)
def test_small_numbers_lost(case):
    f, values, want = SMALL[case]
    np.testing.assert_allclose(np.hstack(slope(f, *values)), np.hstack(want), rtol=1e-6)


def check_masks():
    return [partial(test_masks_multiply, case) for case in MASKED]


def check_small():
    return [partial(test_small_numbers_lost, case) for case in SMALL]


X = Tensor(np.arange(6.0).reshape(2, 3))
NO_AXIS = {
    "permute": lambda: X.permute(0, 5), "permute back": lambda: X.permute(0, -3),
    "permute twice": lambda: X.permute(0, 0),
    "permute one": lambda: X.permute(0), "permute three": lambda: X.permute(0, 1, 2),
    "swapaxes": lambda: X.swapaxes(0, 2),
    "transpose": lambda: X.transpose(-3, 0), "sum": lambda: X.sum(2), "sum twice": lambda: X.sum((1, -1)),
    "mean": lambda: X.mean(-3),
    "max": lambda: X.max((0, 2)), "min": lambda: X.min(2), "var": lambda: X.var(2), "std": lambda: X.std(2),
    "cumsum": lambda: X.cumsum(2), "logsumexp": lambda: X.logsumexp(2), "softmax": lambda: ops.softmax(X, 2),
    "log_softmax": lambda: ops.log_softmax(X, -3), "concatenate": lambda: ops.concatenate([X, X], 2),
    "stack": lambda: ops.stack([X, X], 3),
    "gather": lambda: ops.gather(X, ALONG, 2), "squeeze": lambda: X.squeeze(2), "unsqueeze": lambda: X.unsqueeze(3),
    "flatten": lambda: X.flatten(0, 2), "split": lambda: X.split(1, 2), "sum of a number": lambda: Tensor(1.0).sum(1),
}


@pytest.mark.parametrize("case", NO_AXIS)
def test_axis_that_is_not_there(case):
    """Also one that is there twice, and too few. NumPy's AxisError is a ValueError."""
    with pytest.raises(ValueError, match=r"axis|axes"):
        NO_AXIS[case]()


REFUSED = {
    "max of nothing": (lambda: Tensor(np.zeros((0, 3))).max(), "zero-size"),
    "no tensors": (lambda: ops.concatenate([]), "no tensors"),
    "stack of nothing": (lambda: ops.stack([]), "there must be some"),
    "stack": (lambda: ops.stack([X, X.T]), "all alike"),
    "gather": (lambda: ops.gather(X, np.zeros((1, 2), int)), "must have the shape of x"),
    "matmul": (lambda: X @ 2.0, r"write \*"),
    "split": (lambda: X.split([1, 1], 1), "lengths"), "split 0": (lambda: X.split(0), "lengths"),
    "einsum": (lambda: ops.einsum("ij,jk", X), "names 2 tensors"),
    "diagonal": (lambda: ops.einsum("ii", X), "different letters"),
    "flatten": (lambda: X.flatten(1, 0), "comes after"), "reshape": (lambda: X.reshape(4, 2), "reshape"),
    "negative power": (lambda: Tensor(np.array([2])) ** -1, "negative integer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_words(case):
    op, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        op()


NOTHING = {
    "sum": (ops.sum, (0, 3)), "mean": (ops.mean, (0, 3)), "mean 0": (lambda x: x.mean(0), (0, 3)),
    "mean 1": (lambda x: x.mean(1), (0, 3)),
    "max": (lambda x: x.max(1), (0, 3)), "softmax": (ops.softmax, (3, 0)), "log_softmax": (ops.log_softmax, (3, 0)),
    "softmax 0": (ops.softmax, (0, 3)), "cumsum": (lambda x: x.cumsum(1), (3, 0)),
    "matmul": (lambda x: x @ x.T, (3, 0)),
    "dot": (lambda x: x @ x, (0,)), "concatenate": (lambda x: ops.concatenate([x, x], 1), (3, 0)),
    "getitem": (lambda x: x[[]], (2, 3)),
    "split": (lambda x: x.split(2, 1)[0], (3, 0)), "flatten": (lambda x: x.flatten(), (3, 0)),
    "squeeze": (ops.squeeze, (1, 0)),
    "einsum": (lambda x: ops.einsum("ij,kj->ik", x, x), (3, 0)), "var": (lambda x: x.var(1), (0, 3)),
    "permute": (lambda x: x.T, (3, 0)),
    "sum of a number": (lambda x: x.sum(0), ()), "max of a number": (lambda x: x.max(-1), ()),
    "mean of a number": (lambda x: x.mean(0), ()),
    "softmax of a number": (ops.softmax, ()), "cumsum of a number": (lambda x: x.cumsum(0), ()),
    "flatten a number": (ops.flatten, ()),
    "logsumexp": (lambda x: x.logsumexp(1), (0, 3)), "stack": (lambda x: ops.stack([x, x]), (0, 3)),
}


@pytest.mark.parametrize("case", NOTHING)
def test_zero_lengths_and_numbers(case):
    """They work, with a gradient of the input's shape; the mean of nothing is NaN, as in NumPy and PyTorch."""
    f, shape = NOTHING[case]
    x = Tensor(np.full(shape, 2.0), requires_grad=True)
    y = f(x)
    y.sum().backward()
    assert x.grad.shape == shape
    assert np.isnan(y.data).all() == (case in ("mean", "mean 0") or not y.size)


def test_names_in_einsum():
    """Implicit output, spaces, one operand, three, a letter that one of them alone has."""
    a, b, c = (np.random.default_rng(k).standard_normal((3, 3)) for k in range(3))
    for letters, arrays in (("ij,jk", (a, b)), ("ab , bc -> ca", (a, b)), ("ij->j", (a,)), ("ij,jk,kl->il", (a, b, c)),
                            ("ij,kj->k", (a, b)), ("...i,ij->...j", (a, b)), ("i,i", (a[0], b[0]))):
        leaves = [Tensor(x, requires_grad=True) for x in arrays]
        np.testing.assert_allclose(ops.einsum(letters, *leaves).data, np.einsum(letters, *arrays), rtol=1e-12)
        gradcheck(lambda *xs, letters=letters: ops.einsum(letters, *xs), *arrays)


def test_maximum_splits_a_tie():
    a, b = Tensor([1.0, 2.0], requires_grad=True), Tensor([1.0, 3.0], requires_grad=True)
    ops.maximum(a, b).sum().backward()
    assert a.grad.tolist() == [0.5, 0.0]
    assert b.grad.tolist() == [0.5, 1.0]


def test_max_splits_a_tie():
    x = Tensor([[1.0, 4.0, 4.0]], requires_grad=True)
    x.max(axis=1).sum().backward()
    assert x.grad.tolist() == [[0.0, 0.5, 0.5]]


@pytest.mark.parametrize("op", [ops.softmax, ops.log_softmax, ops.sigmoid, ops.silu])
def test_large_inputs_do_not_overflow(op):
    x = Tensor(np.array([[-1e4, 0.0, 1e4]], np.float32), requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = op(x)
        y.backward(np.ones_like(y.data))
    assert np.isfinite(y.data).all()
    assert np.isfinite(x.grad).all()


def test_cross_entropy_survives_large_logits(backend):
    z = Tensor(np.array([[2e4, 0.0, -2e4]], np.float32), requires_grad=True)
    loss = ops.cross_entropy(z, np.array([1]))
    loss.backward()
    assert loss.item() == 2e4
    np.testing.assert_allclose(z.grad, [[1, -1, 0]], atol=1e-6)


@pytest.mark.parametrize(("labels", "error"), [([[3, 0]], IndexError), ([[-1, 0]], IndexError), ([[-100, -100]], ValueError),
                                               ([[0]], ValueError)])
def test_cross_entropy_refuses_labels_it_cannot_use(labels, error):
    with pytest.raises(error, match="label"):
        ops.cross_entropy(Tensor(np.zeros((1, 2, 3))), np.array(labels))


@pytest.mark.parametrize(("labels", "error"), [([[3, 0]], IndexError), ([[-1, 0]], IndexError), ([[0]], ValueError)])
def test_linear_cross_entropy_refuses_labels_it_cannot_use(labels, error):
    with pytest.raises(error, match="label"):
        ops.linear_cross_entropy(Tensor(np.zeros((1, 2, 4))), Tensor(np.zeros((3, 4))), np.array(labels))


def test_linear_cross_entropy_over_several_slices():
    """NumPy's, a row at a time; those of the cpu backend are in kernels/test_cpu.py."""
    with kernels.using("numpy"), patch.object(numpy_fused, "LOGITS", 1):
        check_value("linear_cross_entropy")
        check_composed("linear_cross_entropy")


def test_embedding_refuses_an_id_outside_the_table():
    with pytest.raises(IndexError, match=r"0\.\.4"):
        ops.embedding(Tensor(np.zeros((5, 2))), np.array([5]))


def test_attention_does_not_look_ahead(rng, backend):
    """Changing a later key and value leaves earlier outputs as they were."""
    q, k, v = (rng.standard_normal((1, 1, 4, 2)) for _ in range(3))
    before = ops.attention(Tensor(q), Tensor(k), Tensor(v)).data
    k[:, :, 2:] += 1
    v[:, :, 2:] -= 1
    after = ops.attention(Tensor(q), Tensor(k), Tensor(v)).data
    np.testing.assert_array_equal(before[:, :, :2], after[:, :, :2])
    assert not np.allclose(before[:, :, 2:], after[:, :, 2:])


def test_attention_survives_large_scores(backend):
    q = Tensor(np.array([[[[1e3, 0.0], [0.0, 1e3]]]], np.float32), requires_grad=True)
    y = ops.attention(q, q, q)
    y.backward(np.ones_like(y.data))
    np.testing.assert_array_equal(y.data, q.data)
    assert np.isfinite(q.grad).all()
