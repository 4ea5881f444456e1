"""Muon's step against singular values and scalar recursions."""

import numpy as np
import pytest
from method_checks import SETTINGS
from mutation import mutant_tests

from minisl.errors import InputError
from minisl.methods import Method, muon
from minisl.methods.muon import Muon, held
from minisl.nn import LlamaConfig
from minisl.optim import Adam


def ns5(u):
    """U f(s) V^T with f on numbers."""
    U, s, Vt = np.linalg.svd(u, full_matrices=False)
    s = s / (np.sqrt((s**2).sum()) + 1e-7)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (U * s) @ Vt


def check_steps():
    """Three steps with weight decay and a changing rate, wide, tall and square, each number of M and u by itself."""
    rng = np.random.default_rng(0)
    for shape, by_liu, first in (((4, 7), 0.2 * 7**0.5, 1.0), ((9, 4), 0.2 * 3, 1.5), ((5, 5), 0.2 * 5**0.5, 1.0)):
        for scale, c in (("moonlight", by_liu), ("original", first)):
            W = rng.standard_normal(shape)
            rule, found, M = Muon(W, momentum=0.9, update_scale=scale), W.copy(), np.zeros(shape)
            rule.weight_decay = 0.3
            for t in (1, 2, 3):
                G, u, lr = rng.standard_normal(shape), np.zeros(shape), 0.1 / t
                for i, j in np.ndindex(shape):
                    M[i, j] = 0.9 * M[i, j] + 0.1 * G[i, j]
                    u[i, j] = 0.9 * M[i, j] + 0.1 * G[i, j]
                W = W - lr * 0.3 * W - lr * c * ns5(u)
                rule.update(found, G, lr)
            np.testing.assert_allclose(found, W, rtol=0, atol=1e-9)
            np.testing.assert_allclose(rule.average, M, rtol=0, atol=1e-12)


def check_size_of_a_step():
    """By default the numbers in a step are of size 0.2, whatever the shape and the gradient's size."""
    for shape in ((20, 54), (54, 20), (12, 90)):
        for size in (1e-3, 1e3):
            G = size * np.random.default_rng(0).standard_normal(shape)
            step = Method("muon", SETTINGS).rule_in_block("model.layers.0.mlp.up_proj.weight", G, Adam, None).direction(G)
            assert 0.68 * 0.2 < np.sqrt((step**2).mean()) < 1.14 * 0.2


def check_state():
    """One momentum of the matrix's size and nothing else; the gradient is left as it was."""
    G = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    rule, before = Muon(G, 0.95, "moonlight"), G.copy()
    assert rule.direction(G).dtype == np.float32
    np.testing.assert_array_equal(G, before)
    assert [a.shape for a in rule.arrays()] == [(6, 8)]
    assert rule.average.dtype == np.float32
    assert held(8, 6, 0.95, "moonlight").state == 48
    assert held(8, 6, 0.95, "moonlight").moments == ()


def test_steps():
    check_steps()


def test_size_of_a_step():
    check_size_of_a_step()


def test_state():
    check_state()


def test_what_is_no_matrix_of_a_block_moves_by_the_base():
    method = Method("muon", SETTINGS)
    model = method.build(LlamaConfig(8, 12, 1, 2, vocab_size=16), np.random.default_rng(0))
    optimizer = method.optimizer(model, 0.1)
    kinds = {name: type(optimizer.rule(name)) for name in optimizer.parameters}
    assert all(kind is (Muon if "_proj" in name else Adam) for name, kind in kinds.items())
    assert list(kinds.values()).count(Muon) == 7


def test_all_directions_move_alike():
    """A gradient whose second direction is a hundred times weaker: gradient descent barely sees it, Muon's step holds both."""
    G = np.diag([1.0, 0.01])
    s = np.linalg.svd(Muon(G, 0.95, "original").direction(G), compute_uv=False)
    assert s.min() > 0.6 * s.max()


def test_unknown_scale():
    with pytest.raises(InputError, match="--update-scale keller: unknown; allowed: moonlight, original"):
        Method("muon", SETTINGS | {"method_options": {"update_scale": "keller"}})


test_mutants = mutant_tests([
    (Muon.direction, "self.b * self.average + (1 - self.b) * gradient", "self.average"),
    (Muon.direction, "(1 - self.b) * (gradient - self.average)", "gradient - self.b * self.average"),
    (Muon.direction, "self.average += ", "self.average = "),
    (Muon.direction, "self.c * newton_schulz", "newton_schulz"),
    (Muon.__init__, "(*like.shape)", "(*like.shape[::-1])"),
    (Muon.__init__, "zeros_like(like)", "array(like)"),
    (muon.held, "state=out_features * in_features", "moments=(out_features * in_features,)"),
], check_steps, check_size_of_a_step, check_state)
