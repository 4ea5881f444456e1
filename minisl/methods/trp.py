"""TRP, Trained Rank Pruning (Xu et al. 2020, arXiv 2004.14566; before it arXiv 1812.02402).

    W <- W - lr N                        N: what the optimizer says; dense training. And after every K updates:
    W = U diag(s) V^T,   k = the least with s_1^2 + ... + s_k^2 >= e (s_1^2 + s_2^2 + ...)
    W <- U_k diag(max(s_k - lr l, 0)) V_k^T

A truncation takes at most 1 - e of ||W||_F^2, and the K updates until the next may bring rank back. l weighs the nuclear norm
||W||_* = s_1 + s_2 + ..., whose sub-gradient U_k V_k^T makes all kept singular values smaller by the same.

Beside SLTrain: nothing is factored while it trains; low rank is an outcome, for each matrix its own, and serves inference only.
State: out in weights, and as many of each moment. No training memory is saved.
Pitfalls: the moments know nothing of a truncation. A random start has no tail to cut: of a square Gaussian matrix e = 0.9 keeps
half of the singular values, at once. AdamW's N has a full spectrum, so one update later W has full rank again: let --steps be a
multiple of K. lr l is about 1e-6, far below any s; l matters over many truncations or not at all.
Our reading: the public code truncates before updates 1, K + 1, ... and adds l U_k V_k^T to that update's gradient; here both
come after updates K, 2K, ..., so that what is saved there has low rank. With AdamW ours is decoupled, like weight decay. There
l is off by default. Its default K = 1 is an SVD of every matrix at every update, 40% more time in the tiny job; ours is K = 20,
for 2%. An earlier version of it has e = 0.99. It was made for convolutions folded into matrices, and SGD with momentum.
"""

from minisl.backend import array_module
from minisl.errors import InputError
from minisl.methods import Flag, trained
from minisl.optim import Rule

OPTIONS = (
    Flag("every", 20, "updates between truncations", low=1),
    Flag("energy", 0.9, "share e of the sum of squared singular values that a truncation keeps", high=1),
    Flag("nuclear", 3e-4, "weight of the nuclear norm; 0 leaves it out"),
)


def truncated(W, energy, shrink):
    """U_k diag(max(s_k - shrink, 0)) V_k^T with the least k that keeps this share of ||W||_F^2."""
    xp = array_module(W)
    U, s, Vt = xp.linalg.svd(xp.nan_to_num(W, nan=0, posinf=0, neginf=0), full_matrices=False)  # LAPACK raises
    kept = xp.cumsum(s * s)
    k = int((kept < energy * kept[-1]).sum()) + 1
    cut = U[:, :k] * xp.maximum(s[:k] - shrink, 0) @ Vt[:k]
    return xp.where(xp.isfinite(W).all(), cut, W)  # what is no number stays so, for the trainer to see


class Truncating(Rule):
    """A rule, and a truncation of the weights after every K of its updates."""

    state = "inner", "step"

    def __init__(self, inner, every, energy, nuclear):
        if not 0 < energy <= 1:
            raise InputError(f"--energy {energy}: the share that is kept must be above 0 and at most 1")
        self.inner, self.every, self.energy, self.nuclear, self.step = inner, every, energy, nuclear, 0

    def update(self, weights, gradient, lr):
        self.step += 1
        self.inner.weight_decay = self.weight_decay
        self.inner.update(weights, gradient, lr)
        if self.step % self.every == 0:
            weights[...] = truncated(weights, self.energy, lr * self.nuclear)


def rule(name, like, base, rng_at, **options):
    return Truncating(base(like), **options)


def held(out_features, in_features, every, energy, nuclear):
    return trained(out_features * in_features)
