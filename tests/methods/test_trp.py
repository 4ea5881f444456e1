"""TRP: the truncation, when it comes, and what it leaves of the optimizer's step."""

import numpy as np
import pytest
from mutation import mutant_tests

from minisl.errors import InputError
from minisl.methods import trp
from minisl.optim.adamw import Adam
from minisl.optim.sgd import SGD

RNG = np.random.default_rng(8)
W, G = RNG.standard_normal((5, 7)), RNG.standard_normal((20, 5, 7))


def by_eigenvectors(W, energy, shrink):
    """The truncation without an SVD: eigenpairs of W W^T, added one at a time until there is enough."""
    values, U = np.linalg.eigh(W @ W.T)
    out, kept = np.zeros_like(W), 0.0
    for value, u in reversed(list(zip(values, U.T))):
        out += np.outer(u, u @ W) * max(1 - shrink / np.sqrt(value), 0)
        kept += value
        if kept >= energy * values.sum():
            return out
    return out


def check_truncation():
    for energy in (0.3, 0.7, 0.9, 0.99):
        for shrink in (0.0, 0.2):
            np.testing.assert_allclose(trp.truncated(W, energy, shrink), by_eigenvectors(W, energy, shrink), atol=1e-10)
    diagonal = np.diag([3.0, 2.0, 1.0, 0.5])  # squares 9, 4, 1, 0.25 of 14.25
    for energy, rank in ((0.6, 1), (0.64, 2), (0.9, 2), (0.92, 3), (1.0, 4)):
        assert np.linalg.matrix_rank(trp.truncated(diagonal, energy, 0.0)) == rank
    assert not trp.truncated(np.zeros((3, 4)), 0.9, 0.0).any()


def check_steps():
    """Every third update of plain SGD, and no other, is followed by a truncation whose shrinking is lr times lambda."""
    mine, expected, rule = W.copy(), W.copy(), trp.rule("w", W, SGD, None, every=3, energy=0.9, nuclear=0.5)
    for t in range(1, 8):
        rule.update(mine, G[t], 0.1)
        expected -= 0.1 * G[t]
        if t % 3 == 0:
            expected = by_eigenvectors(expected, 0.9, 0.05)
        np.testing.assert_allclose(mine, expected, atol=1e-9)


def check_energy_law():
    """What is lost is at most 1 - e of the squared norm, and one singular value less would lose more."""
    for seed in range(20):
        W = np.random.default_rng(seed).standard_normal((6, 9))
        T = trp.truncated(W, 0.9, 0.0)
        assert np.sum((W - T) ** 2) <= 0.1 * np.sum(W * W)
        s = np.linalg.svd(T, compute_uv=False)
        least = s[s > 1e-9][-1]
        assert np.sum((W - T) ** 2) + least**2 > 0.1 * np.sum(W * W)


def check_base_and_decay():
    """Between truncations it is the base rule, weight decay included."""
    mine, plain = W.copy(), W.copy()
    rule, adam = trp.rule("w", W, Adam, None, every=100, energy=0.9, nuclear=0.0), Adam(W)
    rule.weight_decay = adam.weight_decay = 0.3
    for t in range(5):
        rule.update(mine, G[t], 0.1)
        adam.update(plain, G[t], 0.1)
    np.testing.assert_array_equal(mine, plain)


def test_truncation():
    check_truncation()


def test_steps(backend):
    check_steps()


def test_energy_law():
    check_energy_law()


def test_base_and_decay(backend):
    check_base_and_decay()


def test_float32_stays():
    rule, weights = trp.rule("w", W, SGD, None, every=1, energy=0.9, nuclear=3e-4), W.astype(np.float32)
    rule.update(weights, G[0].astype(np.float32), 0.1)
    assert weights.dtype == trp.truncated(weights, 0.9, 1e-6).dtype == np.float32


@pytest.mark.parametrize("energy", [0.0, 1.5])
def test_energy_that_cannot_be(energy):
    with pytest.raises(InputError, match="above 0 and at most 1"):
        trp.rule("w", W, SGD, None, every=1, energy=energy, nuclear=0.0)


def check_diverged():
    """A gradient that is no number raises nothing: the weights are no number either, which the trainer sees."""
    rule, weights = trp.Truncating(SGD(np.zeros((3, 4))), 1, 0.9, 0.0), np.ones((3, 4))
    rule.update(weights, np.full((3, 4), np.nan), 0.1)
    assert np.isnan(weights).all()


def test_diverged():
    check_diverged()


test_mutants = mutant_tests([
    (trp.truncated, "xp.cumsum(s * s)", "xp.cumsum(s)"),
    (trp.truncated, ".sum()) + 1", ".sum())"),
    (trp.truncated, "energy * kept[-1]", "energy"),
    (trp.truncated, "xp.maximum(s[:k] - shrink, 0)", "s[:k]"),
    (trp.truncated, "xp.maximum(s[:k] - shrink, 0)", "xp.maximum(s[:k], shrink)"),
    (trp.truncated, "xp.where(xp.isfinite(W).all(), cut, W)", "cut"),
    (trp.Truncating.update, "lr * self.nuclear", "self.nuclear"),
    (trp.Truncating.update, "self.step % self.every == 0", "self.step % self.every == 1"),
    (trp.Truncating.update, "self.inner.weight_decay = self.weight_decay", "pass"),
], check_truncation, check_steps, check_energy_law, check_base_and_decay, check_diverged)
