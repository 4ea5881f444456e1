"""CoLA: the layer against loops written out, its start, its gradient."""

import math

import numpy as np
import pytest
from mutation import mutant_tests

from minisl import Tensor, gradcheck
from minisl.errors import InputError
from minisl.methods import cola

RNG = np.random.default_rng(1)


def layer():
    return cola.linear(6, 5, np.random.default_rng(0), "float64", rank=3)


def check_output():
    """y_i = sum_k B_ik silu(sum_j A_kj x_j), one number at a time."""
    one, x = layer(), np.random.default_rng(2).standard_normal((4, 6))
    expected = np.zeros((4, 5))
    for t in range(4):
        for k in range(3):
            h = sum(one.A.data[k, j] * x[t, j] for j in range(6))
            for i in range(5):
                expected[t, i] += one.B.data[i, k] * h / (1 + math.exp(-h))
    np.testing.assert_allclose(one(Tensor(x)).data, expected, rtol=1e-12)


def check_gradient():
    one, rng = layer(), np.random.default_rng(3)

    def run(x, A, B):
        one.A, one.B = A, B
        return one(x)

    gradcheck(run, rng.standard_normal((2, 4, 6)), rng.standard_normal((3, 6)), rng.standard_normal((5, 3)))


def check_start():
    """Both factors of one deviation; the product's is (in + out)^(-1/2) for any rank."""
    for rank in (20, 80):
        one = cola.linear(200, 120, np.random.default_rng(0), "float64", rank=rank)
        assert abs(one.A.data.std() / one.B.data.std() - 1) < 0.03
        assert abs((one.B.data @ one.A.data).std() * math.sqrt(320) - 1) < 0.03


def test_output(backend):
    check_output()


def test_gradient(backend):
    check_gradient()


def test_start():
    check_start()


def test_is_not_linear():
    one, x = layer(), Tensor(RNG.standard_normal((2, 6)))
    assert abs(one(x * 2).data - 2 * one(x).data).max() > 1e-3
    assert not hasattr(one, "to_dense")


def test_rank_that_cannot_be():
    with pytest.raises(InputError, match="1 to 5"):
        cola.linear(6, 5, RNG, "float64", rank=6)


test_mutants = mutant_tests([
    (cola.CoLALinear.forward, "ops.silu(ops.linear(x, self.A))", "ops.linear(x, self.A)"),
    (cola.CoLALinear.forward, "ops.silu(", "ops.sigmoid("),
    (cola.CoLALinear.forward, "ops.linear(ops.silu(ops.linear(x, self.A)), self.B)",
     "ops.silu(ops.linear(ops.linear(x, self.A), self.B))"),
    (cola.CoLALinear.__init__, "** -0.25", "** -0.5"),
    (cola.CoLALinear.__init__, "rank * (in_features + out_features)", "rank + in_features + out_features"),
    (cola.CoLALinear.__init__, "(in_features + out_features)", "in_features"),
], check_output, check_gradient, check_start)
