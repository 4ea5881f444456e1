"""SWAN's step against row sums and singular values."""

import math

import numpy as np
import pytest
from method_checks import SETTINGS
from mutation import mutant_tests

from minisl.errors import InputError
from minisl.methods import Method, swan
from minisl.methods.swan import Swan, held
from minisl.optim.orthogonal import whiten


def standardised(G, centre):
    """Rows of mean 0 (if centred) and mean square 1, number by number."""
    rows = []
    for row in G.tolist():
        mean = sum(row) / len(row) if centre else 0.0
        size = math.sqrt(sum((x - mean) ** 2 for x in row) / len(row))
        rows.append([(x - mean) / size for x in row])
    return np.array(rows)


def swan_of(s, iterations):
    """What the iteration makes of a singular value, 1 in all being their norm: three numbers instead of matrices, beta 0.8."""
    y, z = s * s, 1.0
    for _ in range(iterations):
        t = 0.8 * (3 - z * y)
        y, z = y * t, t * z
    return z * s


def check_steps():
    """Two steps with weight decay, wide and tall: g, then a rough 1 for each singular value that is not 0, then its size."""
    rng = np.random.default_rng(0)
    for shape in ((5, 16), (18, 5)):
        for centre in (True, False):
            W, scales = rng.standard_normal(shape), np.logspace(-3, 2, shape[0])[:, None]
            rule, found = Swan(centre, iterations=10), W.copy()
            rule.weight_decay = 0.3
            for lr in (0.1, 0.05):
                G = scales * (rng.standard_normal(shape) + 0.3)
                g = standardised(G, centre)
                U, s, Vt = np.linalg.svd(g, full_matrices=False)
                rank = (s > 1e-9).sum()
                assert rank == min(shape) - (centre and shape[0] > shape[1])  # a tall g times a row of ones is 0
                f = np.array([swan_of(x, 10) for x in s / math.sqrt(sum(s * s))])
                assert 0.5 < min(f[:rank]) < max(f) < 1.61
                W = W - lr * 0.3 * W - lr * math.sqrt(g.size / sum(f * f)) * (U * f) @ Vt
                rule.update(found, G, lr)
            np.testing.assert_allclose(found, W, rtol=0, atol=1e-5)


def check_size_of_a_step():
    """The numbers of a step are of size 1 whatever the gradient's, and the size of a row of the gradient does not matter."""
    rng = np.random.default_rng(0)
    for shape in ((20, 54), (54, 20), (16, 16)):
        G, rows = rng.standard_normal(shape), 10.0 ** rng.uniform(-3, 3, (shape[0], 1))
        for rule in (Swan(True, 10), Swan(False, 10)):
            step = rule.direction(G)
            assert abs((step**2).mean() - 1) < 1e-6
            np.testing.assert_allclose(rule.direction(rows * G), step, rtol=0, atol=1e-5)
        shifted = Swan(True, 10).direction(G + 7 * rows)
        np.testing.assert_allclose(shifted, Swan(True, 10).direction(G), rtol=0, atol=1e-4)


def check_state():
    """None. The gradient is left as it was, float32 stays, and rows without a gradient do not move."""
    G = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    G[2] = 0
    rule, before = Swan(True, 10), G.copy()
    step = rule.direction(G)
    np.testing.assert_array_equal(G, before)
    assert step.dtype == np.float32
    assert np.isfinite(step).all()
    assert abs(step[2]).max() < 1e-6
    assert not rule.state_dict()
    kept = held(8, 6, True, 10)
    assert (kept.weights, kept.moments, kept.state) == ((48,), (), 0)


def test_steps():
    check_steps()


def test_size_of_a_step():
    check_size_of_a_step()


def test_state():
    check_state()


def test_no_iterations_are_refused():
    with pytest.raises(InputError, match="--iterations 0: must lie between 1 and 20"):
        Method("swan", SETTINGS | {"method_options": {"iterations": 0}})


def check_nearer_where_the_spectrum_decays():
    """At the shape of a 60M MLP, three decades: cosine to the whitened g after ten steps with beta 0.8, and with 1/2."""
    rng = np.random.default_rng(0)
    U, V = (np.linalg.qr(rng.standard_normal((n, 128)))[0] for n in (128, 344))
    g = (U * np.logspace(0, -3, 128)) @ V.T
    cosines = [np.vdot(O, U @ V.T) / np.linalg.norm(O) / math.sqrt(128) for O in (whiten(g), whiten(g, beta=0.5))]
    assert cosines[0] > 0.95 > 0.85 > cosines[1]


def test_nearer_where_the_spectrum_decays():
    check_nearer_where_the_spectrum_decays()


test_mutants = mutant_tests([
    (Swan.direction, "if self.centre", "if not self.centre"),
    (Swan.direction, "g.mean(axis=1", "g.mean(axis=0"),
    (Swan.direction, "(g * g).mean(axis=1", "(g * g).mean(axis=0"),
    (Swan.direction, "(g * g).mean(", "(g * g).sum("),
    (Swan.direction, "(norm(g) / ", "(norm(gradient) / "),
    (Swan.direction, "whiten(g, self.iterations)", "whiten(gradient, self.iterations)"),
    (Swan.direction, "whiten(g, self.iterations)", "whiten(g, self.iterations - 1)"),
    (Swan.direction, "whiten(g, self.iterations)", "whiten(g, self.iterations, 0.5)"),
    (whiten, "beta * (3", "0.5 * (3"),
    (Swan.direction, "g = g - g.mean", "g -= g.mean"),
    (swan.held, "(out_features * in_features,)", "(out_features * in_features,), state=out_features * in_features"),
], check_steps, check_size_of_a_step, check_nearer_where_the_spectrum_decays, check_state)
