"""SPAM: spike-aware Adam with momentum reset (Huang, Zhu, Jin, Liu, Wang, Liu, ICLR 2025, arXiv 2501.06842).

    g <- sign(g) sqrt(theta v)                  where g^2 > theta v
    m <- b1 m + (1 - b1) g                      v <- b2 v + (1 - b2) g^2
    W <- W - lr w c m / (sqrt(v) + eps),        c = sqrt(1 - b2^t) / (1 - b1^t)
    before updates T, 2 T, ...:  m = v = 0

with theta = 5000: a gradient 70 times its usual size is a spike. It is cut, not dropped, and what got into m is gone after T
updates. Clipping waits for 20 updates from a reset on, until v is worth comparing with. The rate warms up again after each reset:

    w = 1 - 0.99 (1 + cos(pi k / (N + 1))) / 2  k updates after the reset's, k = 0 .. N - 1; 1 later, and before the first reset

Sparse momentum: of each matrix, int(d out in) weights drawn at random have moments and move, the others stand still until the
next reset, when they are drawn again.

Beside SLTrain: a random set of entries as well, but of entries that are trained for a while, in a W that is dense and stays.
State: out in weights and d out in of each moment. The entries are drawn again at every update rather than kept.
Pitfalls: the published code does not start bias correction again at a reset. So its first updates after one are too large, up to
3.2 times lr (0.1 / sqrt(0.001)), and the warm-up is there to hide it; --reset-count starts it again. N must not be larger than T:
the published launcher puts its 1,000 updates of ordinary warm-up there, and w goes from 0.01 to 0.5 and back. A weight whose
gradient was 0 since the reset has v = 0, and by the formula every later gradient is cut to 0: an embedding's rare rows would
stand still.
Our reading: for that reason embeddings, head and gains are moved by --optimizer, which does nothing to matrices. N is cut to T.
Exactly int(d out in) entries are drawn each time, in the code so many at the start and later each with chance d. Weight decay is
on all; in the code it comes after the step.
"""

import math

from minisl.backend import array_module
from minisl.errors import InputError
from minisl.methods import Flag, Held
from minisl.optim import Adam, Rule

OPTIONS = (
    Flag("every", 500, "T: updates from reset to reset of the moments", low=1),
    Flag("rewarm", 150, "N: updates of warm-up after a reset"),
    Flag("threshold", 5000.0, "theta: g^2 over v from which on a gradient is a spike; 0: none is"),
    Flag("density", 1.0, "d: the part of each matrix that has moments and moves, above 0, up to 1", high=1),
    Flag("reset_count", False, "start Adam's bias correction again at a reset, too"),
)
QUIET = 20  # updates since a reset, its own among them, before anything is clipped; after the start one less
EPS = 1e-6


class Spam(Rule):
    """N_t = w c m / (sqrt(v) + eps) on the chosen entries, of clipped gradients, 0 elsewhere."""

    state = "adam", "step"

    def __init__(self, like, rng_at, every, rewarm, threshold, density, reset_count):
        self.every, self.rewarm, self.threshold, self.reset_count = every, min(rewarm, every), threshold, reset_count
        self.shape, self.count, self.rng_at = like.shape, chosen_of(like.size, density), rng_at
        self.start = lambda: Adam(array_module(like).zeros(self.count, like.dtype))
        self.adam, self.step = self.start(), 0

    def direction(self, gradient):
        self.step += 1
        period, since = divmod(self.step, self.every)
        if period and not since:
            self.adam = self.start()
            self.adam.step = 0 if self.reset_count else self.step - 1
        chosen = self.chosen(gradient, period)
        g = gradient.reshape(-1)[chosen]
        if self.threshold and since >= QUIET:
            g = clipped(g, self.adam.exp_avg_sq, self.threshold)
        step = array_module(g).zeros(gradient.size, g.dtype)
        self.adam.eps = EPS / math.sqrt(1 - self.adam.betas[1] ** (self.adam.step + 1))  # Adam's is added after the correction
        step[chosen] = self.adam.direction(g)
        if period:
            step *= warmth(since, self.rewarm)
        return step.reshape(self.shape)

    def chosen(self, gradient, period):
        """Places of the entries that have moments."""
        if self.count == gradient.size:
            return slice(None)
        drawn = self.rng_at(period).choice(gradient.size, self.count, replace=False, shuffle=False)
        return array_module(gradient).asarray(drawn)


def chosen_of(size, density):
    """How many of so many weights have moments."""
    return max(1, int(density * size))


def clipped(g, v, threshold):
    """g, with sign(g) sqrt(theta v) where g^2 > theta v"""
    xp = array_module(g)
    bound = xp.sqrt(threshold * v)
    return xp.clip(g, -bound, bound)


def warmth(k, N):
    """What a step is multiplied by, k updates after the one whose moments were forgotten: from 0.01 up to 1 at N."""
    return 1 - 0.99 * (1 + math.cos(math.pi * k / (N + 1))) / 2 if k < N else 1.0


def rule(name, like, base, rng_at, density, **options):
    if not 0 < density <= 1:
        raise InputError(f"--density {density}: must be above 0 and at most 1")
    return Spam(like, rng_at, density=density, **options)


def held(out_features, in_features, every, rewarm, threshold, density, reset_count):
    size = out_features * in_features
    return Held((size,), state=2 * chosen_of(size, density))
