"""Fira: its step against loops, what the rest is, the limiter, and where it is SGD, GaLore or Adam."""

import math

import numpy as np
import pytest
from mutation import mutant_tests

from minisl.backend import generator
from minisl.methods import fira, galore
from minisl.methods.fira import Fira, growth, limited
from minisl.optim import SGD, Adam

OPTIONS = {"rank": 3, "every": 2, "scale": 0.25, "projector": "svd", "at_change": "keep", "residual": "paper"}
SHAPES = (7, 5), (5, 7)


def make(shape, base=Adam, dtype="float64", **changes):
    return fira.rule("w", np.zeros(shape, dtype), base, lambda t: generator(3, t), **OPTIONS | changes)


def inside(shape):
    """GaLore of the same options."""
    options = {name: value for name, value in OPTIONS.items() if name != "residual"}
    return galore.rule("w", np.zeros(shape), Adam, lambda t: generator(3, t), **options)


def gradients(shape, n=6):
    return np.random.default_rng(0).standard_normal((n, *shape)) * np.linspace(1, 3, n)[:, None, None]


def check_steps():
    """GaLore's step, and the rest, row by row of the long side, after the limiter."""
    for shape in SHAPES:
        for residual, part in (("paper", 1), ("code", 0.25)):
            one, beside, last = make(shape, residual=residual), inside(shape), None
            for t, g in enumerate(gradients(shape), 1):
                found, seen, P = one.direction(g), beside.direction(g), beside.chosen
                if shape[0] < shape[1]:
                    found, g, seen = found.T, g.T, seen.T
                R, N = g @ P.T, seen @ P.T / 0.25
                rest = g - part * R @ P
                for j in range(7):
                    rest[j] *= math.sqrt(sum(N[j] ** 2)) / (math.sqrt(sum(R[j] ** 2)) + 1e-8)
                size = math.sqrt((rest**2).sum()) * (1 - 0.9**t) / math.sqrt(1 - 0.999**t)  # of m / sqrt(v)
                if last is not None and size > 1.01 * last:
                    rest, size = rest * 1.01 * last / size, 1.01 * last
                last = size
                np.testing.assert_allclose(found, seen + rest, atol=1e-12)


def check_residuals():
    """One where a = 1. Else the paper's has nothing in the r directions, the code's 1 - a of the gradient."""
    G = gradients((7, 5))
    for scale, same in ((1.0, True), (0.25, False)):
        paper, code = (make((7, 5), residual=r, scale=scale) for r in ("paper", "code"))
        assert all(np.allclose(paper.direction(g), code.direction(g), atol=1e-12) for g in G) == same
    paper, code = (make((7, 5), SGD, residual=r, every=1) for r in ("paper", "code"))
    for one, there in ((paper, 0.25), (code, 0.25 + 0.75)):
        g = G[0]
        step, P = one.direction(g), one.chosen
        np.testing.assert_allclose(step @ P.T, there * g @ P.T, atol=1e-6)
        np.testing.assert_allclose(step - step @ P.T @ P, g - g @ P.T @ P, atol=1e-6)


def check_limiter():
    """Grows by 1% at most, falls freely; the first step is free, and so is the first after a zero. Corrected or not."""
    for size, right, correction in (("float64", 1e-12, 1.0), ("float32", 1e-6, 1.0), ("float64", 1e-12, 0.3)):
        norm = np.zeros(1, size)
        for asked, got in ((2, 2), (4, 2.02), (2.03, 2.03), (0.5, 0.5), (9, 0.505), (0, 0), (3, 3), (3.01, 3.01)):
            step = limited(np.full((3, 3), asked / 3 * correction, size), norm, correction)
            assert abs(np.linalg.norm(step) / correction - got) < 9 * right
            assert abs(norm[0] - got) < 9 * right
            assert step.dtype == norm.dtype == size
            assert np.ptp(step) == 0


def check_growth():
    N, R = np.array([[3.0, 4], [0, 2]]), np.array([[1.0, 0], [0, 4]])
    for axis, right in ((1, [[5], [0.5]]), (0, [[3, math.sqrt(20) / 4]]), (None, [[math.sqrt(29 / 17)]])):
        np.testing.assert_allclose(growth(N, R, axis), right, rtol=1e-7)
    assert not growth(np.zeros((2, 3)), np.zeros((2, 3)), 1).any()


def check_sgd_and_adam():
    """SGD scales nothing: with it inside and a = 1, G comes back whole. At full rank there is no rest, and this is Adam."""
    for shape in SHAPES:
        one, full, adam = make(shape, SGD, scale=1.0, every=1), make(shape, rank=5, scale=1.0), Adam(np.zeros(shape))
        for g in gradients(shape) / 3.0 ** np.arange(6)[:, None, None]:  # the rest must not grow
            np.testing.assert_allclose(one.direction(g), g, rtol=1e-4, atol=1e-6)
            np.testing.assert_array_equal(full.direction(g), adam.direction(g))
            assert not full.norm.any()


def check_rank_of_a_step():
    for shape in SHAPES:
        assert np.linalg.matrix_rank(make(shape).direction(gradients(shape)[0])) == 5


def check_held():
    """GaLore's and one number, which a resumed job needs."""
    for shape in SHAPES:
        for projector in ("svd", "random", "dct"):
            one, G = make(shape, dtype="float32", projector=projector), gradients(shape).astype("float32")
            for g in G[:3]:
                one.direction(g)
            held = fira.held(*shape, **OPTIONS | {"projector": projector})
            assert sum(a.nbytes for a in one.arrays()) == 4 * (2 * sum(held.moments) + held.state + held.indices)
            two = make(shape, dtype="float32", projector=projector)
            two.load_state_dict({k: a.copy() for k, a in one.state_dict().items()})
            for g in G[3:]:
                np.testing.assert_array_equal(one.direction(g), two.direction(g))


CHECKS = (check_steps, check_residuals, check_limiter, check_growth, check_sgd_and_adam, check_rank_of_a_step, check_held)


@pytest.mark.parametrize("check", CHECKS)
def test(check):
    check()


test_mutants = mutant_tests([
    (fira.rule, '"code": scale', '"code": 1 - scale'),
    (Fira.direction, "growth(N, R, self.projector.short)", "growth(N, R, 1 - self.projector.short)"),
    (Fira.direction, "growth(N, R, self.projector.short)", "growth(R, N, self.projector.short)"),
    (Fira.direction, "self.scale * up(N, P) + limited", "self.scale * up(N, P) + self.scale * limited"),
    (Fira.direction, "self.inner.correction()", "1.0"),
    (Fira.direction, "gradient - self.part", "self.part"),
    (limited, "norm[...] = factor * now", "norm[...] = now"),
    (limited, "xp.where(norm > 0, most * norm, now)", "most * norm"),
    (limited, "step *= factor", "step *= xp.maximum(factor, 1 / most)"),
    (fira.held, "found.state + 1", "found.state"),
], *CHECKS)
