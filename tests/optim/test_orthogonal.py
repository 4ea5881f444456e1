"""Orthogonalisations against the singular value decomposition."""

import numpy as np
import pytest
import scipy.linalg
from mutation import mutant_tests

from minisl.optim import orthogonal
from minisl.optim.orthogonal import newton_schulz, polar, whiten

SHAPES = (20, 54), (54, 20), (16, 24), (5, 7), (1, 9), (9, 1)


def gaussian(shape, seed=0, dtype="float64"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def with_values(values, shape, seed=1):
    """A matrix of this shape with these singular values."""
    k = len(values)
    U, V = (np.linalg.qr(gaussian((n, k), seed + n))[0] for n in shape)
    return (U * values) @ V.T


def values_of(G):
    return np.linalg.svd(G, compute_uv=False)


def check_newton_schulz():
    """U f(s) V^T, with f from the scalar recursion, written out; within .68 and 1.14 for random matrices, wide and tall."""
    for shape in SHAPES:
        G = gaussian(shape)
        U, s, Vt = np.linalg.svd(G, full_matrices=False)
        f = []
        for x in s / np.sqrt((G**2).sum()):
            for _ in range(5):
                x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
            f.append(x)
        assert 0.68 < min(f) <= max(f) < 1.14
        np.testing.assert_allclose(newton_schulz(G), (U * f) @ Vt, rtol=0, atol=1e-5)  # 1e-7 in the divisor


def check_newton_schulz_of_a_steep_spectrum():
    """What holds more than .0016 of the norm arrives; weaker directions grow some 480-fold; none exceeds 1.21."""
    s = np.logspace(0, -6, 30)
    G = with_values(s, (30, 50))
    found, s = values_of(newton_schulz(G)), s / np.linalg.norm(s)
    assert found.max() < 1.21
    assert found[: (s > 0.0016).sum()].min() > 0.68
    weak = s < 1e-5
    np.testing.assert_allclose(np.sort(found)[::-1][weak], 3.4445**5 * s[weak], rtol=0.01)


def check_whiten():
    """(G G^T)^(-1/2) G by eigenvalues if beta is 1/2; with 0.8, as by two ports of SWAN, roughly, from three numbers for each."""
    for shape in ((20, 54), (54, 20), (5, 9)):
        G = 1e3 * gaussian(shape)
        wide = G if shape[0] < shape[1] else G.T
        w, Q = np.linalg.eigh(wide @ wide.T)
        right = (Q * w**-0.5) @ Q.T @ wide
        np.testing.assert_allclose(whiten(G, 25, 0.5), right if wide is G else right.T, rtol=0, atol=1e-9)
        U, s, Vt = np.linalg.svd(G, full_matrices=False)
        f = []
        for x in s / np.sqrt((G**2).sum()):
            y, z = x * x, 1
            for _ in range(10):
                t = 0.8 * (3 - z * y)
                y, z = y * t, t * z
            f.append(z * x)
        assert 0.56 < min(f) <= max(f) < 1.61
        np.testing.assert_allclose(whiten(G), (U * f) @ Vt, rtol=0, atol=1e-5)  # 1e-7 in the divisor
    six, ten = (values_of(whiten(gaussian((64, 176), 1), n, 0.5)) for n in (6, 10))
    assert 0.53 < six.min() < 0.56
    assert 0.99 < six.max() <= 1
    np.testing.assert_allclose(ten, 1, rtol=0, atol=1e-3)


def check_polar():
    """As SciPy's, from an SVD, for wide, tall and square; directions of 1e-5 of the norm count as much as the rest."""
    cases = [gaussian(shape) for shape in SHAPES] + [with_values(np.logspace(0, -5, 20), shape) for shape in ((20, 30), (20, 20))]
    for G in cases:
        np.testing.assert_allclose(polar(G), scipy.linalg.polar(G)[0], rtol=0, atol=1e-9)


def test_newton_schulz():
    check_newton_schulz()


def test_newton_schulz_of_a_steep_spectrum():
    check_newton_schulz_of_a_steep_spectrum()


def test_whiten():
    check_whiten()


def test_polar():
    check_polar()


@pytest.mark.parametrize("method", [newton_schulz, whiten, polar])
def test_keeps_dtype_and_shape_and_maps_zero_to_zero(method):
    """Of singular matrices nothing turns to NaN: directions that are not there stay out."""
    for shape in SHAPES:
        G = gaussian(shape, dtype="float32")
        before = G.copy()
        assert method(G).dtype == np.float32
        assert method(G).shape == shape
        assert not method(np.zeros_like(G)).any()
        np.testing.assert_array_equal(G, before)
    low_rank = gaussian((20, 3), dtype="float32") @ gaussian((3, 30), dtype="float32")
    found = values_of(method(low_rank))
    assert found[2] > 0.5
    assert found[3] < (0.01 if method is not polar else 0.5)  # rounding of 1e-8 of the norm, which ten steps lift 240,000-fold


@pytest.mark.parametrize("method", [newton_schulz, whiten, polar])
def test_of_a_product_with_rotations(method):
    """f(Q G R) = Q f(G) R for orthogonal Q and R, and the size of G does not matter."""
    G, Q, R = gaussian((12, 20)), *(np.linalg.qr(gaussian((n, n), 5))[0] for n in (12, 20))
    np.testing.assert_allclose(method(1e4 * Q @ G @ R), Q @ method(G) @ R, rtol=0, atol=1e-6)


def test_whitening_without_the_division_runs_off(monkeypatch):
    """Why G is divided by its norm: eigenvalues of G G^T above 5 never come back."""
    monkeypatch.setattr(orthogonal, "unit", lambda G: G)
    with np.errstate(all="ignore"):
        assert np.isnan(whiten(gaussian((64, 176)), 15)).any()


test_mutants = mutant_tests([
    (newton_schulz, "unit(wide(G))", "wide(G) / abs(G).sum()"),
    (newton_schulz, "-4.7750", "4.7750"),
    (newton_schulz, "range(steps)", "range(steps - 1)"),
    (newton_schulz, "turned_as(G, X)", "X"),
    (whiten, "3 * I - Z @ Y", "3 * I - Y"),
    (whiten, "beta * (3", "0.5 * (3"),
    (whiten, "range(steps)", "range(steps - 1)"),
    (whiten, "return turned_as(G, Z @ X)", "return turned_as(G, Y @ X)"),
    (whiten, "Y, Z = Y @ T, T @ Z", "Y = Y @ T; Z = beta * (3 * I - Z @ Y) @ Z"),  # a port's slip
    (polar, "range(6)", "range(2)"),
    (polar, "newton_schulz(G, 10)", "newton_schulz(G)"),
], check_newton_schulz, check_newton_schulz_of_a_steep_spectrum, check_whiten, check_polar)
