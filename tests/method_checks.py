"""Checks of the methods' layers that tests and mutants share."""

import numpy as np

from minisl import Tensor, gradcheck
from minisl.methods import full, low_rank
from minisl.methods.sltrain import SLLinear, sample_support
from minisl.nn import Linear

SETTINGS = {"rank": 3, "delta": 0.3, "alpha": 6.0, "learned_scale": False, "algorithm": "auto"}


def layer(seed=1, **changes):
    """A 5 x 6 SLTrain layer in float64."""
    return SLLinear(6, 5, np.random.default_rng(seed), "float64", **SETTINGS | changes)


def check_support():
    """int(delta out in) sorted, distinct positions inside the matrix, drawn by the seed."""
    for out, width, delta in ((5, 7, 0.3), (20, 30, 0.03), (11, 13, 0.5), (1, 9, 0.99)):
        index = sample_support(out, width, delta, np.random.default_rng(4))
        assert len(index) == int(delta * out * width)
        assert (np.diff(index) > 0).all()
        assert index.min() >= 0
        assert index.max() < out * width
        assert index.dtype == np.int32
        np.testing.assert_array_equal(index, sample_support(out, width, delta, np.random.default_rng(4)))
        assert len(index) < 5 or not np.array_equal(index, sample_support(out, width, delta, np.random.default_rng(5)))


def check_start():
    """B = 0, A and v uniform within 1/sqrt(in), so W = S, and the first gradient of A is 0 while the others are not."""
    one = SLLinear(100, 80, np.random.default_rng(0), "float64", **SETTINGS | {"rank": 20})
    assert not one.lora_B.data.any()
    for values in (one.lora_A.data, one.sparse_value.data):
        assert 0.09 < np.abs(values).max() <= 0.1
        assert abs(values.std() - 0.1 / np.sqrt(3)) < 0.003
        assert abs(values.mean()) < 0.005
    W = np.zeros(8000)
    W[one.sparse_index] = one.sparse_value.data
    np.testing.assert_array_equal(one.to_dense(), W.reshape(80, 100))
    small = layer()
    y = small(_input())
    y.backward(np.random.default_rng(2).standard_normal(y.shape))
    assert not small.lora_A.grad.any()
    assert small.lora_B.grad.any()
    assert small.sparse_value.grad.any()


def check_layer_gradient(**changes):
    """The layer as a function of its input and all its parameters, against differences and against to_dense."""
    one = layer(**changes)
    rng = np.random.default_rng(9)
    names = list(dict(one.named_parameters()))

    def run(x, *parameters):
        for name, p in zip(names, parameters):
            setattr(one, name, p)
        return one(x)

    values = [rng.standard_normal(getattr(one, n).shape) for n in names]
    x = rng.standard_normal((4, 6))
    gradcheck(run, x, *values)
    np.testing.assert_allclose(run(*map(Tensor, (x, *values))).data, x @ one.to_dense().T, rtol=1e-12, atol=1e-12)
    B, A, v = (getattr(one, n).data for n in ("lora_B", "lora_A", "sparse_value"))
    scale = np.tanh(one.scaling.data) if changes.get("learned_scale") else 2.0  # alpha / r
    W = scale * B @ A
    for position, value in zip(one.sparse_index, v):
        W[divmod(int(position), 6)] += value
    np.testing.assert_allclose(one.to_dense(), W, rtol=1e-12, atol=1e-12)


def check_low_rank():
    """y = (alpha/r) x A^T B^T with both factors away from zero, of rank r and no more."""
    one = low_rank.linear(6, 5, np.random.default_rng(1), "float64", rank=3, alpha=6.0)
    x = _input()
    np.testing.assert_allclose(one(x).data, x.data @ one.to_dense().T, rtol=1e-12)
    np.testing.assert_allclose(one.to_dense(), 2.0 * one.lora_B.data @ one.lora_A.data, rtol=1e-12)
    assert np.linalg.matrix_rank(one.to_dense()) == 3
    big = low_rank.linear(100, 80, np.random.default_rng(0), "float64", rank=25, alpha=6.0)
    assert 0.09 < np.abs(big.lora_A.data).max() <= 0.1
    assert 0.18 < np.abs(big.lora_B.data).max() <= 0.2


def check_full():
    """y = x W^T, W normal with deviation 0.02; the model's own dense layers have the one they are given."""
    one = full.linear(100, 80, np.random.default_rng(0), "float64")
    assert one.weight.shape == (80, 100)
    assert abs(one.weight.data.std() - 0.02) < 0.001
    assert abs(Linear(100, 80, np.random.default_rng(0), std=0.03).weight.data.std() - 0.03) < 0.001
    x = Tensor(np.random.default_rng(2).standard_normal((3, 100)))
    np.testing.assert_allclose(one(x).data, x.data @ one.weight.data.T, rtol=1e-12, atol=1e-12)


def _input():
    return Tensor(np.random.default_rng(2).standard_normal((3, 6)))
