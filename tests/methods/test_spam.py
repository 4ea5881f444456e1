"""SPAM: spikes are cut once there is something to compare with, moments start again, and the rate warms up."""

import math

import numpy as np
import pytest
from mutation import mutant_tests

from minisl.backend import generator
from minisl.errors import InputError
from minisl.methods import spam
from minisl.optim import Adam

PUBLISHED = {"every": 500, "rewarm": 150, "threshold": 5000.0, "density": 1.0, "reset_count": False}


def moves(gradients, **options):
    """(what each update of lr 1 adds to the weights, the rule)"""
    rule = spam.rule("q_proj", np.zeros(gradients[0].shape), Adam, lambda t: generator(3, t), **PUBLISHED | options)
    found = []
    for g in gradients:
        W = np.zeros(g.shape)
        rule.update(W, g.copy(), 1.0)
        found.append(W)
    return np.array(found), rule


def by_hand(gradients, every, rewarm, threshold, reset_count):
    """The same for one number."""
    found, m, v, count = [], 0.0, 0.0, 0
    for t, g in enumerate(gradients, 1):
        since, w = t % every, 1.0
        if t >= every:
            if since == 0:
                m = v = 0.0
                count = 0 if reset_count else count
            if since < rewarm:
                w = 1 - 0.99 * (1 + math.cos(math.pi * since / (rewarm + 1))) / 2
        if since >= 20 and g * g > threshold * v:
            g = math.copysign(math.sqrt(threshold * v), g)
        count += 1
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        found.append(-w * math.sqrt(1 - 0.999**count) / (1 - 0.9**count) * m / (math.sqrt(v) + 1e-6))
    return found


def check_by_hand():
    """Seventy updates with spikes of either sign over two resets, with bias correction that starts again and that does not."""
    gradients = np.random.default_rng(0).standard_normal((70, 2, 3)) * np.where(np.arange(70) % 9 == 7, 40, 1)[:, None, None]
    for reset_count in (False, True):
        options = {"every": 30, "rewarm": 12, "threshold": 20.0, "reset_count": reset_count}
        found, _ = moves(gradients, **options)
        for i in np.ndindex(2, 3):
            np.testing.assert_allclose(found[(slice(None), *i)], by_hand(gradients[(slice(None), *i)], **options), rtol=1e-9)


def check_spikes():
    """A spike in update 19 passes and stays in m and v; one in update 20 counts as sqrt(theta v), and is gone in ten updates."""
    for when, threshold in ((18, 50.0), (19, 50.0)):
        calm, spiked = np.ones((40, 1, 1)), np.ones((40, 1, 1))
        spiked[when] = -1000.0
        _, rule = moves(spiked[: when + 1], threshold=threshold)
        v = 1 - 0.999**when
        g2 = threshold * v if when == 19 else 1e6
        np.testing.assert_allclose(rule.adam.exp_avg_sq, 0.999 * v + 0.001 * g2, rtol=1e-12)
        np.testing.assert_allclose(rule.adam.exp_avg, 0.9 * (1 - 0.9**when) - 0.1 * math.sqrt(g2), rtol=1e-12)
        lost = np.abs(moves(spiked, threshold=threshold)[0] - moves(calm, threshold=threshold)[0])[-1].item()
        assert (lost < 0.1) == (when == 19)
        np.testing.assert_array_equal(moves(spiked, threshold=0.0)[0], moves(spiked, threshold=1e9)[0])


def check_reset():
    """After a reset: moments of one gradient, a rate from 0.01 up, and without --reset-count one of nearly 0.1 / sqrt(0.001)."""
    g = np.random.default_rng(1).standard_normal((1000, 2, 2))
    for reset_count, stride in ((False, 0.1 / math.sqrt(0.001 / (1 - 0.999**1000))), (True, 1.0)):
        found, rule = moves(g, rewarm=150, reset_count=reset_count)
        np.testing.assert_allclose(rule.adam.exp_avg, 0.1 * g[999].reshape(-1), rtol=1e-12)
        np.testing.assert_allclose(rule.adam.exp_avg_sq, 0.001 * g[999].reshape(-1) ** 2, rtol=1e-12)
        np.testing.assert_allclose(abs(found[999]), 0.01 * stride, rtol=1e-3)
    assert abs(spam.warmth(0, 150) - 0.01) < 1e-15
    assert 0.999 < spam.warmth(149, 150) < 1 == spam.warmth(150, 150)


def check_sparse():
    """int(d size) entries move and have moments, others do not; drawn again at a reset; each entry as if it were alone."""
    g = np.random.default_rng(1).standard_normal((8, 5, 7))
    found, rule = moves(g, every=4, rewarm=2, density=0.3)
    dense, _ = moves(g, every=4, rewarm=2)
    assert rule.adam.exp_avg.shape == rule.adam.exp_avg_sq.shape == (10,)
    sets = [{tuple(i) for i in np.argwhere(step)} for step in found]
    assert all(len(s) == 10 for s in sets)
    assert sets[0] == sets[1] == sets[2] != sets[3] == sets[6] != sets[7]
    np.testing.assert_allclose(found[found != 0], dense[found != 0], rtol=1e-12)


def check_without_spikes_and_resets_it_is_adam():
    g = np.random.default_rng(1).standard_normal((40, 3, 4))
    found, _ = moves(g)
    adam, right = Adam(g[0], eps=1e-30), []
    for one in g:
        W = np.zeros((3, 4))
        adam.update(W, one, 1.0)
        right.append(W)
    np.testing.assert_allclose(found, right, rtol=1e-2)  # eps


def test_by_hand(backend):
    check_by_hand()


def test_spikes():
    check_spikes()


def test_reset():
    check_reset()


def test_sparse(backend):
    check_sparse()


def test_without_spikes_and_resets_it_is_adam(backend):
    check_without_spikes_and_resets_it_is_adam()


def test_a_weight_without_a_gradient_since_the_reset_stands_still():
    """By the formula; this is why embeddings are not moved by it."""
    g = np.zeros((30, 1, 1))
    g[25:] = 1.0
    assert not moves(g)[0].any()
    g[5] = 1e-3
    assert moves(g)[0][25:].all()


def test_a_warm_up_longer_than_the_period_is_cut():
    g = np.ones((12, 1, 1))
    np.testing.assert_array_equal(moves(g, every=4, rewarm=1000)[0], moves(g, every=4, rewarm=4)[0])


@pytest.mark.parametrize("density", [0.0, 1.5])
def test_density_that_cannot_be(density):
    with pytest.raises(InputError, match=r"--density .* must be above 0 and at most 1"):
        moves(np.ones((1, 2, 2)), density=density)


test_mutants = mutant_tests(
    [(spam.clipped, "xp.clip(g, -bound, bound)", "xp.clip(g, 0, bound)"),  # the sign lost
     (spam.clipped, "xp.clip(g, -bound, bound)", "xp.where(g * g > threshold * v, 0, g)"),  # spikes dropped
     (spam.clipped, "xp.sqrt(threshold * v)", "threshold * xp.sqrt(v)"),
     (spam.clipped, "xp.clip(g, -bound, bound)", "xp.clip(g[:], -bound, bound) * 0 + g"),  # a clip that reaches a copy only
     (spam.Spam.direction, "since >= QUIET", "since > QUIET"),
     (spam.Spam.direction, "since >= QUIET", "True"),  # v = 0 cuts the first gradient to 0
     (spam.Spam.direction, "since >= QUIET", "self.step >= QUIET"),
     (spam.Spam.direction, "self.threshold and", ""),
     (spam.Spam.direction, "0 if self.reset_count else self.step - 1", "0"),
     (spam.Spam.direction, "else self.step - 1", "else self.step"),
     (spam.Spam.direction, "divmod(self.step, self.every)", "divmod(self.step - 1, self.every)"),  # resets at T + 1
     (spam.Spam.direction, "EPS / math.sqrt(1 - self.adam.betas[1] ** (self.adam.step + 1))", "EPS"),  # after the correction
     (spam.Spam.direction, "(self.adam.step + 1)", "self.adam.step"),
     (spam.Spam.direction, "if period and not since", "if False"),
     (spam.Spam.direction, "if period:", "if True:"),  # a warm-up at the start, on top of the schedule's
     (spam.Spam.direction, "warmth(since, ", "warmth(since + 1, "),
     (spam.warmth, "if k < N", "if k <= N"),
     (spam.Spam.chosen, "self.rng_at(period)", "self.rng_at(0)"),
     (spam.Spam.chosen, "self.rng_at(period)", "self.rng_at(self.step)"),  # moments of other entries
     (spam.warmth, "(N + 1)", "N"),
     (spam.warmth, "0.99 * ", "")],
    check_by_hand, check_spikes, check_reset, check_sparse, check_without_spikes_and_resets_it_is_adam)
