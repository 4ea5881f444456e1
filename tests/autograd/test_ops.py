"""Every op: value against an independent formula, gradient against differences, float32, fused against composed. Ops with kernels
with those of each backend."""

import warnings
from unittest.mock import patch

import numpy as np
import pytest
from op_cases import CASES, WITH_KERNELS, check_composed, check_float32, check_gradient, check_value, ops_in

from minisl import kernels
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
