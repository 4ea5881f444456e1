"""LOST: which columns, what they start from, the layer and its gradient."""

import math

import numpy as np
import pytest
from mutation import mutant_tests

from minisl import Tensor, gradcheck
from minisl.autograd import ops
from minisl.errors import InputError
from minisl.methods import build_model, lost
from minisl.nn import LlamaConfig, init

OPTIONS = {"rank": 3, "columns": 0.5, "gamma": 0.3, "activation": "identity", "choice": "residual"}


def layer(shape=(7, 8), **changes):
    return lost.linear(shape[1], shape[0], np.random.default_rng(4), "float64", **OPTIONS | changes)


def drawn(shape=(7, 8)):
    """W0 of the layer of that seed."""
    return init.normal(np.random.default_rng(4), shape, 0.02, "float64")


def check_start():
    """Leading triplets in B A, by the eigenvectors of W0^T W0; original columns in S; the most important ones, sorted."""
    W, one = drawn(), layer()
    values, vectors = np.linalg.eigh(W.T @ W)
    leading = W @ vectors[:, -3:] @ vectors[:, -3:].T
    np.testing.assert_allclose(one.B.data @ one.A.data, leading, atol=1e-12)
    balance = np.diag(np.sqrt(values[::-1][:3]))
    np.testing.assert_allclose(one.B.data.T @ one.B.data, balance, atol=1e-12)
    np.testing.assert_allclose(one.A.data @ one.A.data.T, balance, atol=1e-12)
    norms = [math.sqrt(sum((W[i, j] - leading[i, j]) ** 2 for i in range(7))) for j in range(8)]
    assert list(one.index) == sorted(sorted(range(8), key=lambda j: -norms[j])[:4])
    np.testing.assert_array_equal(one.columns.data, W[:, one.index])
    assert all(p.data.flags.c_contiguous for p in one.parameters())
    assert list(layer(choice="norm").index) == sorted(np.argsort(np.linalg.norm(W, axis=0))[-4:])


def check_output():
    for activation, f in (("identity", lambda h: h), ("silu", lambda h: h / (1 + np.exp(-h)))):
        one, x = layer(activation=activation), np.random.default_rng(5).standard_normal((2, 3, 8))
        x *= 30  # where silu is no straight line
        expected = 0.3 * f(x @ one.A.data.T) @ one.B.data.T
        for place, j in enumerate(one.index):
            expected += 0.7 * x[..., j, None] * one.columns.data[:, place]
        np.testing.assert_allclose(one(Tensor(x)).data, expected, rtol=1e-12)
        if activation == "identity":
            np.testing.assert_allclose(x @ one.to_dense().T, expected, rtol=1e-12)


def check_gradient():
    for activation in ("identity", "silu"):
        one, rng = layer(activation=activation), np.random.default_rng(6)

        def run(x, B, A, S, one=one):
            one.B, one.A, one.columns = B, A, S
            return one(x)

        gradcheck(run, *(rng.standard_normal(s) for s in ((2, 2, 8), (7, 3), (3, 8), (7, 4))))


def test_start():
    check_start()


def test_output(backend):
    check_output()


def test_gradient(backend):
    check_gradient()


def test_random_columns_are_distinct_and_uniform():
    counts = np.zeros(8)
    for seed in range(400):
        index = lost.linear(8, 7, np.random.default_rng(seed), "float64", **OPTIONS | {"choice": "random"}).index
        assert (np.diff(index) > 0).all()
        assert len(index) == 4
        counts[index] += 1
    assert abs(counts / 400 - 0.5).max() < 0.11


def test_at_least_one_column():
    assert len(layer(columns=0.01).index) == 1
    assert len(layer(columns=1).index) == 8


def test_no_dense_matrix_with_silu():
    with pytest.raises(InputError, match="no dense W"):
        layer(activation="silu").to_dense()


@pytest.mark.parametrize(("wrong", "match"), [({"columns": 0.0}, "above 0"), ({"columns": 1.1}, "at most 1"),
                                              ({"gamma": 1.5}, "between 0 and 1"), ({"rank": 8}, "1 to 7")])
def test_values_that_cannot_be(wrong, match):
    with pytest.raises(InputError, match=match):
        layer(**wrong)


def test_activation_checkpointing_changes_nothing(backend):
    ids, found = np.random.default_rng(0).integers(0, 16, (2, 6)), []
    for on in (False, True):
        model = build_model(LlamaConfig(8, 12, 2, 2, vocab_size=16), "lost", OPTIONS, np.random.default_rng(5), "float64")
        model.model.activation_checkpointing = on
        ops.cross_entropy(model(ids[:, :-1]), ids[:, 1:]).backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in found[0].items():
        np.testing.assert_array_equal(gradient, found[1][name], err_msg=name)


test_mutants = mutant_tests([
    (lost.split, "W - B @ A if", "B @ A if"),
    (lost.split, "W - B @ A if", "W if"),
    (lost.split, "argsort(-importance", "argsort(importance"),
    (lost.split, "axis=0", "axis=1"),
    (lost.split, "root = np.sqrt(s[:rank])", "root = s[:rank]"),
    (lost.LOSTLinear.__init__, "W.take(index, axis=1)", "(W - B @ A).take(index, axis=1)"),
    (lost.LOSTLinear.__init__, "W.take(index, axis=1)", "W[:, index]"),
    (lost.LOSTLinear.forward, "picked * (1 - self.gamma)", "picked * self.gamma"),
    (lost.LOSTLinear.forward, "ops.linear(h * self.gamma, self.B)", "ops.linear(h, self.B)"),
    (lost.Columns.backward, "dx[..., index] = grad", "dx[..., : len(index)] = grad"),
], check_start, check_output, check_gradient)
