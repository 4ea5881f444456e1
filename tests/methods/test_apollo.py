"""APOLLO and APOLLO-Mini: their step against loops, the size of the factors, and what is kept."""

import math

import numpy as np
import pytest
from mutation import mutant_tests

from minisl.backend import generator
from minisl.methods import apollo
from minisl.methods.apollo import Apollo
from minisl.optim import SGD, Adam

OPTIONS = {"rank": 3, "every": 2, "scale": 4.0, "granularity": "channel", "mini": False, "projector": "gaussian"}
SHAPES = (7, 5), (5, 7)
MINI = {"mini": True, "scale": 1.0}


def make(shape, base=Adam, dtype="float64", **changes):
    return apollo.rule("w", np.zeros(shape, dtype), base, lambda t: generator(3, t), **OPTIONS | changes)


def gradients(shape, n=6):
    return np.random.default_rng(0).standard_normal((n, *shape)) * np.linspace(1, 3, n)[:, None, None]


def check_steps():
    """Six steps with two changes of P: Adam in R, a factor for each row of the long side, and the limiter."""
    for shape in SHAPES:
        one, m, v, last = make(shape), np.zeros((7, 3)), np.zeros((7, 3)), None
        for t, g in enumerate(gradients(shape), 1):
            P = generator(3, (t - 1) // 2 * 2 + 1).standard_normal((3, 5)) / math.sqrt(3)
            found = one.direction(g)
            if shape[0] < shape[1]:
                found, g = found.T, g.T
            R = g @ P.T
            m, v = 0.9 * m + 0.1 * R, 0.999 * v + 0.001 * R**2
            N = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            right = np.array([2 * g[j] * math.sqrt(sum(N[j] ** 2) / sum(R[j] ** 2)) for j in range(7)])  # 2 = sqrt(scale)
            size = math.sqrt((right**2).sum()) * (1 - 0.9**t) / math.sqrt(1 - 0.999**t)  # of m / sqrt(v), not of N
            if last is not None and size > 1.01 * last:
                right, size = right * 1.01 * last / size, 1.01 * last
            last = size
            np.testing.assert_allclose(found, right, rtol=1e-6)


def check_mini():
    """--mini is rank 1, one factor, and scale 128, whatever the rank, granularity and shape."""
    for shape in SHAPES:
        one, two = make(shape, mini=True, scale=1.5), make(shape, rank=1, granularity="tensor", scale=192.0)
        for g in gradients(shape):
            step = one.direction(g)
            np.testing.assert_array_equal(step, two.direction(g))
            np.testing.assert_allclose(step / g, (step / g)[0, 0])
        assert one.inner.exp_avg.size == 7
    first = make(shape, **MINI).direction(gradients(shape)[0])
    R = generator(3, 1).standard_normal((1, 5)) @ gradients(shape)[0]
    assert abs(np.linalg.norm(first) / np.linalg.norm(gradients(shape)[0]) - math.sqrt(128 * 7 / (R**2).sum())) < 1e-6


def check_factors():
    """phi_j is about sqrt(r/s) of what Adam does to row j; orthonormal rows, as of the SVD, would leave more than that."""
    g = np.random.default_rng(0).standard_normal((344, 128))
    adam = np.linalg.norm(Adam(g).direction(g), axis=1) / np.linalg.norm(g, axis=1)
    for rank in (8, 32, 64):
        step = make(g.shape, rank=rank, scale=1.0).direction(g)
        phi = np.linalg.norm(step, axis=1) / np.linalg.norm(g, axis=1)
        assert abs((phi / adam).mean() / math.sqrt(rank / 128) - 1) < 0.1


def check_sgd():
    """SGD scales and corrects nothing: with it inside, phi = 1, and the step is G, by sqrt(scale)."""
    for shape in SHAPES:
        for changes in ({}, {"granularity": "tensor"}, {"projector": "svd"}):
            one = make(shape, SGD, **changes)
            for g in gradients(shape) / 3.0 ** np.arange(6)[:, None, None]:  # must not grow
                np.testing.assert_allclose(one.direction(g), 2 * g, rtol=1e-4)


def check_rank_of_a_step():
    """Each row stays in its direction, and so the rank is that of G."""
    for shape in SHAPES:
        g = gradients(shape)[0]
        step = make(shape).direction(g)
        ratio = step / g if shape[0] > shape[1] else (step / g).T
        np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape))
        assert len(np.unique(ratio.round(6))) == 7
        assert np.linalg.matrix_rank(step) == 5


def check_held():
    """Moments of r x long and one number; P is stored only where an SVD made it. A resumed job goes on the same."""
    for shape in SHAPES:
        for changes in ({}, MINI, {"projector": "svd"}, MINI | {"projector": "svd"}):
            one, G = make(shape, dtype="float32", **changes), gradients(shape).astype("float32")
            for g in G[:3]:
                one.direction(g)
            options = OPTIONS | changes
            held = apollo.held(*shape, **options)
            assert sum(a.nbytes for a in one.arrays()) == 4 * (2 * sum(held.moments) + held.state)
            assert held.moments == ((7,) if options["mini"] else (21,))
            two = make(shape, dtype="float32", **changes)
            two.load_state_dict({k: a.copy() for k, a in one.state_dict().items()})
            for g in G[3:]:
                step = one.direction(g)
                assert step.dtype == np.float32
                np.testing.assert_array_equal(step, two.direction(g))


CHECKS = check_steps, check_mini, check_factors, check_sgd, check_rank_of_a_step, check_held


@pytest.mark.parametrize("check", CHECKS)
def test(check):
    check()


test_mutants = mutant_tests([
    (Apollo.direction, "math.sqrt(self.scale)", "self.scale"),
    (Apollo.direction, "growth(N, R, self.axis)", "growth(N, R, 1 - self.projector.short)"),
    (Apollo.direction, "growth(N, R, self.axis)", "growth(N, gradient, self.axis)"),
    (Apollo.direction, "return limited(", "return (lambda step, *_: step)("),
    (Apollo.direction, "self.inner.correction()", "1.0"),  # the corrected step limited, as Adam has it
    (Apollo.direction, "self.inner.correction()", "1 / self.inner.correction()"),
    (Adam.correction, "1 - b1**self.step", "1 - b1"),
    (apollo.rule, '"tensor", 1, 128', '"tensor", rank, 128'),
    (apollo.rule, '"tensor", 1, 128', '"channel", 1, 128'),
    (apollo.rule, "128 * scale", "scale * min(like.shape) / 4"),  # the script for 130M alone
    (apollo.held, "1 if mini else rank", "rank"),
    (apollo.held, '["state"] + 1', '["state"]'),
], *CHECKS)
