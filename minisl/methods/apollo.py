"""APOLLO and APOLLO-Mini: SGD-like memory, AdamW-level performance (Zhu et al., MLSys 2025, arXiv 2412.05270).

    every T steps:  P ~ N(0, 1/r)  (r, s)          s the short side; from a seed, never stored
    every step:     R = G P^T  or  P G             as GaLore
                    N = Adam(R)                    only to see how much Adam would scale
                    phi_j = |N_j| / |R_j|          j along the long side: rows where out >= in, columns else
                    W <- W - lr limited(sqrt(a) phi G)

Nothing is projected back: G itself moves W, with one factor a row (or column) in place of Adam's one a number. `limited` is
Fira's: the norm, before Adam's bias correction, grows by at most 1% a step. |N_j| is about sqrt(r) where Adam's own would be
sqrt(s), and |R_j| is about |G_j|: phi_j is sqrt(r/s) of what Adam does to row j, which sqrt(a) can make up for.

APOLLO-Mini: r = 1, one factor for the whole matrix, a = 128 at every size. With --mini, a is 128 times --scale.

Beside SLTrain: W stays dense, and neither weights nor steps are bounded in rank; what is saved is moments.
State: out in weights, r max(out, in) of each moment, and 1, the limiter's norm; with --mini, r = 1. P's seed is a function of the
step. (With the svd projector, P as well.)
Pitfalls: sqrt(r/s) does not hold for r = 1, one random number being no measure of a row; Mini averages over the whole matrix. As
in GaLore the moments stay when P is drawn anew, though nothing of the old P is in the new.
Our reading: the published `scale` enters as its square root, as in the code. The code has the limiter before the scale or after
it; as both only multiply, that is the same. Mini's script for 130M alone has a quarter of the width, 192: --scale 1.5. The code
keeps P for its T updates; drawn again from its seed at each, it is the same P. There eps is 1e-6 and added before the correction,
and decay comes after the step. --projector svd is the paper's "APOLLO with SVD".
"""

import math

from minisl.methods import Flag, Held
from minisl.methods.fira import growth, limited
from minisl.methods.galore import GaLore
from minisl.optim.projectors import Projector

OPTIONS = (
    "rank",
    Flag("every", 200, "updates with the same projection", low=1),
    Flag("scale", 1.0, "a: updates are scaled by its square root"),
    Flag("granularity", "channel", "a factor for each row (or column), or one for the matrix", ("channel", "tensor")),
    Flag("mini", False, "APOLLO-Mini: rank 1, granularity tensor, scale times 128"),
    Flag("projector", "gaussian", "how the gradient is looked at", ("gaussian", "svd")),
)


class Apollo(GaLore):
    """N_t = limited(sqrt(a) phi G)"""

    state = *GaLore.state, "norm"

    def __init__(self, like, base, rng_at, granularity, **options):
        super().__init__(like, base, rng_at, **options)
        self.axis = {"channel": self.projector.short, "tensor": None}[granularity]
        self.norm = self.projector.xp.zeros(1, like.dtype)

    def direction(self, gradient):
        R = self.projector.down(gradient, self.basis(gradient))
        N = self.inner.direction(R)
        step = math.sqrt(self.scale) * growth(N, R, self.axis) * gradient
        return limited(step, self.norm, self.inner.correction())


def rule(name, like, base, rng_at, granularity, mini, rank, scale, **options):
    if mini:
        granularity, rank, scale = "tensor", 1, 128 * scale
    return Apollo(like, base, rng_at, granularity, rank=rank, scale=scale, **options)


def held(out_features, in_features, rank, every, scale, granularity, mini, projector):
    rank, sides = 1 if mini else rank, (out_features, in_features)
    P = Projector.kept(projector, rank, min(sides))
    return Held((out_features * in_features,), (rank * max(sides),), state=P["state"] + 1)
