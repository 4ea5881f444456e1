"""Checks of optimizer and clipping that tests and mutants share."""

import math

import numpy as np

from minisl.nn import Parameter
from minisl.optim import AdamW, clip_grad_norm, grad_norm


def check_adamw():
    """Eight steps against the algorithm written out for one number at a time, with a changing rate and a late gradient."""
    rng = np.random.default_rng(0)
    start, gradients = rng.standard_normal(3), rng.standard_normal((8, 3))
    b1, b2, eps, wd = 0.8, 0.95, 0.1, 0.3
    p, unused = Parameter(start.copy()), Parameter(np.ones(2))
    optimizer = AdamW([("p", p), ("unused", unused)], 1.0, (b1, b2), eps, wd)
    for t, g in enumerate(gradients, 1):
        optimizer.lr, p.grad = 0.1 / t, g.copy()
        optimizer.step()
    for i in range(3):
        x, m, v = start[i], 0.0, 0.0
        for t in range(1, 9):
            g, lr = gradients[t - 1, i], 0.1 / t
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            x = x - lr * wd * x - lr * (m / (1 - b1**t)) / (math.sqrt(v / (1 - b2**t)) + eps)
        state = optimizer.state_dict()
        for found, right in ((p.data, x), (state["exp_avg.p"], m), (state["exp_avg_sq.p"], v)):
            assert abs(found[i] - right) < 1e-12
    assert unused.data.tolist() == [1, 1]


def check_adamw_state():
    """Four steps, saved and loaded into a new optimizer, four more: as eight in one go."""
    rng = np.random.default_rng(0)
    start, gradients = rng.standard_normal(3), rng.standard_normal((8, 3))
    ends = []
    for stop in (8, 4):
        p = Parameter(start.copy())
        optimizer = AdamW([("p", p)], 0.1)
        for t, g in enumerate(gradients):
            if t == stop:
                state = {k: v.copy() for k, v in optimizer.state_dict().items()}
                optimizer = AdamW([("p", p)], 0.1)
                optimizer.load_state_dict(state)
            p.grad = g.copy()
            optimizer.step()
        ends.append(p.data)
    np.testing.assert_array_equal(*ends)


def check_clip():
    """All gradients shrink by one factor to the given norm; a smaller norm is left alone; the norm before is returned."""
    parameters = [Parameter(np.zeros(s)) for s in ((2, 2), (3,), (1,))]
    first = [np.array([[1.0, -2], [0, 4]]), np.array([2.0, 0, 0])]
    for bound, factor in ((2.5, 0.5), (5.0, 1.0), (9.0, 1.0)):
        for p, g in zip(parameters, first):
            p.grad = g.copy()
        assert grad_norm(parameters) == 5.0
        assert clip_grad_norm(parameters, bound) == 5.0
        for p, g in zip(parameters, first):
            np.testing.assert_allclose(p.grad, g * factor)
