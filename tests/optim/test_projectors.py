"""Projectors: the directions they keep, the way there and back, and what they store."""

import numpy as np
import pytest
from mutation import mutant_tests
from scipy.fft import dct

from minisl.backend import generator
from minisl.optim.projectors import Projector, cosines

SHAPES = (7, 5), (5, 7), (6, 6)


def make(kind, shape, rank=3, dtype="float64"):
    return Projector(kind, np.zeros(shape, dtype), rank, lambda t: generator(3, t))


def gradient(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def check_there_and_back():
    """The long side is left as it is; R and R back, number by number."""
    for out, width in SHAPES:
        G, one = gradient((out, width)), make("random", (out, width))
        P = one.rows(one.choose(G, 1))
        R = one.down(G, P)
        assert R.shape == one.shape == ((out, 3) if out >= width else (3, width))
        back = one.up(R, P)
        for i in range(out):
            for j in range(width):
                if out >= width:
                    right = sum(G[i, a] * P[k, a] * P[k, j] for a in range(width) for k in range(3))
                else:
                    right = sum(P[k, i] * P[k, a] * G[a, j] for a in range(out) for k in range(3))
                assert abs(back[i, j] - right) < 1e-12


def check_orthonormal():
    """P P^T = I: nothing that went there and back changes by going again."""
    for shape in SHAPES:
        for kind in ("svd", "dct", "random"):
            one = make(kind, shape)
            for t in range(1, 6):
                P = one.rows(one.choose(gradient(shape, t), t))
                np.testing.assert_allclose(P @ P.T, np.eye(3), atol=1e-12)
    np.testing.assert_array_equal(make("identity", (7, 5), 5).rows(None), np.eye(5))


def check_svd_is_the_best():
    """What is lost is the sum of the squares of the other singular values, and no P loses less (Eckart and Young)."""
    for shape in SHAPES:
        G, one = gradient(shape), make("svd", shape)
        P = one.choose(G, 1)
        lost = np.square(G - one.up(one.down(G, P), P)).sum()
        values = np.sqrt(np.linalg.eigvalsh(G @ G.T)[::-1][:min(shape)])
        assert abs(lost - np.square(values[3:]).sum()) < 1e-10
        for kind in ("dct", "random"):
            other = make(kind, shape)
            P = other.rows(other.choose(G, 1))
            assert np.square(G - other.up(other.down(G, P), P)).sum() > lost


def check_cosines():
    for size in (1, 2, 5, 8):
        Q = cosines.__wrapped__(np, size, np.dtype("float64"))
        np.testing.assert_allclose(Q, dct(np.eye(size), axis=0, norm="ortho"), atol=1e-14)


def check_dct_takes_the_largest():
    """By the sum of absolute values; a gradient made of a few rows of Q is found in them, and nothing is lost."""
    for shape in SHAPES:
        side, long = min(shape), max(shape)
        Q = dct(np.eye(side), axis=0, norm="ortho")
        parts = gradient((long, 3)) @ Q[[1, 3, 4]]
        G, one = parts if shape[0] >= shape[1] else parts.T, make("dct", shape)
        chosen = one.choose(G, 1)
        assert chosen.tolist() == [1, 3, 4]
        P = one.rows(chosen)
        np.testing.assert_allclose(one.up(one.down(G, P), P), G, atol=1e-12)
        S = np.zeros((long, side))
        S[0, 0], S[:, 1], S[0, 2], S[:2, 3] = 2, 1, 1, 0.9  # row 1 has the largest sum, row 0 the largest number
        G = S @ Q
        assert make("dct", shape, 1).choose(G if shape[0] >= shape[1] else G.T, 1).tolist() == [1]


def check_random_is_a_function_of_its_step():
    for kind in ("random", "gaussian"):
        one, two = make(kind, (7, 5)), make(kind, (7, 5))
        assert one.choose(None, 4) == 4
        np.testing.assert_array_equal(one.rows(4), two.rows(4))
        assert not np.allclose(one.rows(4), one.rows(5))


def check_on_average():
    """Gaussian: |P x|^2 is |x|^2, and each number of its own has variance 1/r. Random: (r/s) |x|^2, in every direction."""
    x = np.array([2.0, -1, 0.5, 0, 3])
    for kind, share in (("gaussian", 1), ("random", 3 / 5)):
        one = make(kind, (7, 5))
        found = [np.square(one.rows(t) @ x).sum() for t in range(400)]
        assert abs(np.mean(found) / (x @ x) - share) < 4 * np.std(found) / (x @ x) / 20


def check_no_numbers():
    """A gradient that overflowed gives a P, and an R that tells."""
    for kind in ("svd", "dct"):
        for bad in (np.nan, np.inf):
            G, one = gradient((7, 5)), make(kind, (7, 5))
            G[2, 3] = bad
            with np.errstate(invalid="ignore"):
                P = one.rows(one.choose(G, 1))
                assert np.isfinite(P).all()
                assert not np.isfinite(one.down(G, P)).all()


def check_kept():
    """As many bytes as `kept` says, in a place of the same shape from the start."""
    for shape in SHAPES:
        for kind in ("svd", "dct", "random", "gaussian", "identity"):
            one = make(kind, shape, dtype="float32")
            chosen, count = one.choose(gradient(shape).astype("float32"), 1), Projector.kept(kind, 3, min(shape))
            assert getattr(chosen, "nbytes", 0) == 4 * (count["state"] + count["indices"])
            assert np.shape(chosen) == np.shape(one.unchosen())
            assert type(chosen) is type(one.unchosen())
            if hasattr(chosen, "base"):
                assert chosen.base is None  # no view that keeps all singular vectors alive
                assert chosen.flags.c_contiguous
            assert one.rows(chosen).dtype == np.float32


CHECKS = (check_there_and_back, check_orthonormal, check_svd_is_the_best, check_cosines, check_dct_takes_the_largest,
          check_random_is_a_function_of_its_step, check_on_average, check_no_numbers, check_kept)


@pytest.mark.parametrize("check", CHECKS)
def test(check):
    check()


test_mutants = mutant_tests([
    (Projector.choose, "svd(finite", "svd(gradient"),
    (Projector.choose, "V[: self.rank]", "V[-self.rank:]"),
    (Projector.choose, "U[:, : self.rank].T", "V[: self.rank, : self.side]"),
    (Projector.choose, '.copy(order="C")', ""),
    (Projector.choose, "[-self.rank:]", "[: self.rank]"),
    (Projector.choose, ".sum(axis=1 - self.short)", ".max(axis=1 - self.short)"),
    (Projector.rows, "math.sqrt(self.rank)", "self.rank"),
    (Projector.rows, "replace=False", "replace=True"),
    (Projector.rows, "self.rng_at(chosen)", "self.rng_at(0)"),
    (Projector.down, "P @ G", "P @ G.T"),
    (cosines.__wrapped__, "Q[0] /= math.sqrt(2)", "pass"),
    (cosines.__wrapped__, "2 * k + 1", "2 * k"),
], *CHECKS)
