"""PolarGrad's step against singular value decompositions."""

import numpy as np
import pytest
import scipy.linalg
from method_checks import SETTINGS
from mutation import mutant_tests

from minisl.errors import InputError
from minisl.methods import Method, polargrad
from minisl.methods.polargrad import PolarGrad, held
from minisl.optim import Adam
from minisl.optim.orthogonal import polar

ORDERS = "momentum-first", "polar-first"


def check_steps():
    """Three steps in either order, with weight decay, wide, tall and square; nuclear norm and polar factor from an SVD."""
    rng = np.random.default_rng(0)
    for shape in ((4, 7), (9, 4), (5, 5)):
        for order in ORDERS:
            W = rng.standard_normal(shape)
            rule, found, M = PolarGrad(W, momentum=0.9, order=order, matrix_lr=2.0), W.copy(), np.zeros(shape)
            rule.weight_decay = 0.3
            for t in (1, 2, 3):
                G, lr = rng.standard_normal(shape), 0.1 / t
                X = G if order == "polar-first" else 0.9 * M + 0.1 * G
                P, s, Qt = np.linalg.svd(X, full_matrices=False)
                M = 0.9 * M + 0.1 * P @ Qt if order == "polar-first" else X
                W = W - lr * 0.3 * W - 2 * lr * s.sum() * (M if order == "polar-first" else P @ Qt)
                rule.update(found, G, lr)
            np.testing.assert_allclose(found, W, rtol=0, atol=1e-9)
            np.testing.assert_allclose(rule.average, M, rtol=0, atol=1e-9)


def check_size_of_a_step():
    """As large as the gradient: that of c G is c times that of G. Muon's would be the same."""
    G = np.random.default_rng(0).standard_normal((6, 9))
    for order in ORDERS:
        one, other = (PolarGrad(G, 0.95, order, 1.0).direction(c * G) for c in (1, 1e-2))
        np.testing.assert_allclose(other, 1e-2 * one, rtol=1e-4)


def check_state():
    """One momentum of the matrix's size and nothing else; the gradient is left as it was."""
    G = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    for order in ORDERS:
        rule, before = PolarGrad(G, 0.95, order, 1.0), G.copy()
        assert rule.direction(G).dtype == np.float32
        np.testing.assert_array_equal(G, before)
        assert [(a.shape, a.dtype) for a in rule.arrays()] == [((6, 8), np.float32)]
    assert held(8, 6, 0.95, order, 1.0).state == 48


def test_steps():
    check_steps()


def test_size_of_a_step():
    check_size_of_a_step()


def test_state():
    check_state()


def test_nuclear_norm_is_a_product():
    """<G, polar(G)> = s_1 + ... + s_k = tr (G^T G)^(1/2)"""
    for shape in ((20, 54), (54, 20), (7, 7)):
        G = np.random.default_rng(0).standard_normal(shape)
        found = (G * polar(G)).sum()
        assert abs(found - np.linalg.norm(G, "nuc")) < 1e-9 * found
        assert abs(found - np.trace(scipy.linalg.polar(G)[1])) < 1e-9 * found


def test_reaches_a_minimum_that_muon_circles():
    """Of |W - target|^2 / 2, at a fixed rate, without momentum: the distance falls to nothing, Muon's stays at its step."""
    target = np.random.default_rng(0).standard_normal((4, 6))
    ends = {}
    for name, options in (("polargrad", {"matrix_lr": 1.0}), ("muon", {"update_scale": "original"})):
        W = np.zeros((4, 6))
        rule = Method(name, SETTINGS | {"method_options": {"momentum": 0.0, **options}}).rule_in_block("q_proj", W, Adam, None)
        for _ in range(200):
            rule.update(W, W - target, 0.1)
        ends[name] = np.linalg.norm(W - target)
    assert ends["polargrad"] < 1e-4
    assert ends["muon"] > 1e-2


def test_unknown_order():
    with pytest.raises(InputError, match="--order polar: unknown; allowed: momentum-first, polar-first"):
        Method("polargrad", SETTINGS | {"method_options": {"order": "polar"}})


test_mutants = mutant_tests([
    (PolarGrad.direction, "(gradient * U).sum()", "(M * U).sum()"),
    (PolarGrad.direction, "(M * U).sum() * U", "U"),
    (PolarGrad.direction, "(M * U).sum()", "(M * M).sum() ** 0.5"),
    (PolarGrad.direction, "return self.rate * (gradient * U)", "return (gradient * U)"),
    (PolarGrad.direction, "(1 - self.b) * (U - M)", "U - self.b * M"),
    (PolarGrad.direction, "U = polar(M)", "U = polar(gradient)"),
    (PolarGrad.direction, "M = self.average", "M = self.average.copy()"),
    (polargrad.held, "state=out_features * in_features", "state=0"),
], check_steps, check_size_of_a_step, check_state)
