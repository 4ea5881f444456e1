"""Fira: full-rank training under a low-rank constraint (Chen et al. 2024, arXiv 2410.01623).

    R, N, P       as in GaLore: the gradient in r directions, Adam's step for it
    S             = G - R P                        what GaLore drops (out < in: G - P^T R)
    phi_j         = |N_j| / |R_j|                  j along the long side: rows where out >= in, columns else
    W             <- W - lr (a N P + limited(phi S))

Adam divides each number by its own size; phi is by how much it did so, on average, in the r directions of row (or column) j.
The same is then done to the rest, which no moments are kept for. The limiter bounds how fast that part grows:

    limited(X)_t  = X min(1, 1.01 |limited(X)_{t-1}| / |X|)        |X| before Adam's bias correction; the first step is free

Beside SLTrain: W stays dense and every step has full rank; both keep r directions well and the rest cheaply, one of the gradient,
the other of W.
State: as GaLore, and 1: out in weights, r max(out, in) of each moment, r min(out, in) + 1.
Pitfalls: the limiter bounds growth only. A norm that fell to almost nothing climbs back at 1% a step.
Our reading: in the public code, going back multiplies by a also where the rest is formed, so its S is G - a R P, and with
a = 0.25 three quarters of R are in the rest as well. `residual` has both, and a = 1 makes them one. a does not scale the rest,
and the limiter looks before the bias correction, both as in the code. There eps is 1e-6 and added before the correction, and
decay comes after the step.
"""

from dataclasses import replace

import numpy as np

from minisl.backend import array_module
from minisl.methods import Flag, galore
from minisl.methods.galore import GaLore

OPTIONS = (
    *galore.OPTIONS,
    Flag("residual", "paper", "what is dropped and brought back: G - R P, or the public code's G - scale R P", ("paper", "code")),
)


class Fira(GaLore):
    """N_t = a N P + limited(phi S)"""

    state = *GaLore.state, "norm"

    def __init__(self, like, base, rng_at, part, **options):
        super().__init__(like, base, rng_at, **options)
        self.part, self.norm = part, self.projector.xp.zeros(1, like.dtype)

    def direction(self, gradient):
        P, up = self.basis(gradient), self.projector.up
        R = self.projector.down(gradient, P)
        N = self.inner.direction(R)
        S = gradient - self.part * up(R, P)
        rest = growth(N, R, self.projector.short) * S
        return self.scale * up(N, P) + limited(rest, self.norm, self.inner.correction())


def growth(N, R, axis):
    """phi = |N| / |R|, with norms along this axis; axis None: one number for the matrix."""
    size = array_module(R).linalg.norm
    return size(N, axis=axis, keepdims=True) / (size(R, axis=axis, keepdims=True) + 1e-8)


def limited(step, norm, correction=1.0, most=1.01):
    """`step`, scaled in place so that its norm before bias correction is at most `most` times the last one's.

    norm (1,): the last one's, 0 if there is none; this one's is put there. correction: what `step` has been multiplied by.
    """
    xp = array_module(step)
    now = xp.linalg.norm(step) / correction
    bound = xp.where(norm > 0, most * norm, now)
    factor = bound / xp.maximum(xp.maximum(bound, now), np.finfo(step.dtype).tiny)
    step *= factor
    norm[...] = factor * now
    return step


def rule(name, like, base, rng_at, residual, rank, scale, projector, **options):
    part = {"paper": 1.0, "code": scale}[residual]
    return Fira(like, base, rng_at, part, rank=rank, scale=scale, projector=galore.kind(projector, rank, like.shape), **options)


def held(out_features, in_features, residual, **options):
    found = galore.held(out_features, in_features, **options)
    return replace(found, state=found.state + 1)
