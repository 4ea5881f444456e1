"""The r directions in which a low-rank optimizer looks at a gradient G (out, in)."""

import math
from functools import cache

import numpy as np

from minisl.backend import array_module


class Projector:
    """P (r, s) takes the short side of G, of length s, to r numbers and back. The long side is left as it is.

    out >= in:  R = G P^T (out, r),  back R P          out < in:  R = P G (r, in),  back P^T R          so s = min(out, in)

    kind      rows of P                                                                 P P^T    kept from step to step
    svd       the r leading singular vectors of G on its short side                     = I      P itself
    dct       those r rows of the cosine basis Q in whose direction G is largest:       = I      their r places in Q
              by the sum of |G Q^T|, or of |Q G|, over the long side
    random    r rows of Q drawn at random, each column with a random sign               = I      the step of the draw
    gaussian  N(0, 1/r): |P x|^2 is |x|^2 on average                                    not I    the step of the draw
    identity  r = s, and G as it is                                                     = I      nothing

    `random` is for GaLore: orthonormal, as singular vectors are, so that what comes back is no larger than what went in. Gaussian
    rows would make it sqrt(s/r) times as large; they are for APOLLO, which never goes back and compares sizes. Neither is stored:
    both are drawn again at every step, `random` from no more than r + s random numbers.
    """

    def __init__(self, kind, like, rank, rng_at):
        self.kind, self.rank, self.rng_at = kind, rank, rng_at
        self.xp, self.dtype = array_module(like), like.dtype
        self.tall = like.shape[0] >= like.shape[1]
        self.side = min(like.shape)
        self.short = 1 if self.tall else 0  # the axis of R that has r numbers
        self.shape = (like.shape[0], rank) if self.tall else (rank, like.shape[1])  # of R

    def choose(self, gradient, t):
        """What to keep of the P for this gradient, at step t: an array, a number or None."""
        if self.kind == "svd":
            finite = self.xp.nan_to_num(gradient, nan=0, posinf=0, neginf=0)  # LAPACK raises; R will show what is no number
            U, _, V = self.xp.linalg.svd(finite, full_matrices=False)
            return (V[: self.rank] if self.tall else U[:, : self.rank].T).copy(order="C")
        if self.kind == "dct":
            weight = abs(self.down(gradient, self.cosines())).sum(axis=1 - self.short)
            return self.xp.sort(self.xp.argsort(weight)[-self.rank:]).astype(np.int32)
        return None if self.kind == "identity" else t

    def unchosen(self):
        """What `choose` gives, of the same shape and empty."""
        if self.kind == "svd":
            return self.xp.zeros((self.rank, self.side), self.dtype)
        if self.kind == "dct":
            return self.xp.zeros(self.rank, np.int32)
        return None if self.kind == "identity" else 0

    def rows(self, chosen):
        """P (r, s)"""
        if self.kind == "svd":
            return chosen
        if self.kind == "dct":
            return self.cosines()[chosen]
        if self.kind == "identity":
            return self.xp.eye(self.side, dtype=self.dtype)
        rng = self.rng_at(chosen)
        if self.kind == "gaussian":
            return self.xp.asarray(rng.standard_normal((self.rank, self.side)) / math.sqrt(self.rank), self.dtype)
        places, signs = rng.choice(self.side, self.rank, replace=False), rng.choice([-1, 1], self.side)
        return self.cosines()[self.xp.asarray(places)] * self.xp.asarray(signs, self.dtype)

    def down(self, G, P):
        """R"""
        return G @ P.T if self.tall else P @ G

    def up(self, R, P):
        """R back in the shape of G"""
        return R @ P if self.tall else P.T @ R

    def cosines(self):
        return cosines(self.xp, self.side, self.dtype)

    @staticmethod
    def kept(kind, rank, side):
        """What is kept of a P, as `Held` counts it."""
        return {"state": rank * side if kind == "svd" else 0, "indices": rank if kind == "dct" else 0}


@cache
def cosines(xp, size, dtype):
    """Q (size, size) orthogonal, Q_kj = sqrt(2/size) cos(pi k (2j + 1) / (2 size)), and row 0 over sqrt 2: the DCT-II.

    Made once and shared by all matrices with a side of this length.
    """
    k = np.arange(size)
    Q = math.sqrt(2 / size) * np.cos(math.pi / (2 * size) * k[:, None] * (2 * k + 1))
    Q[0] /= math.sqrt(2)
    return xp.asarray(Q, dtype)
