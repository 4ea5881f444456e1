"""LOST: low-rank and sparse pretraining (Li et al. 2025, arXiv 2508.02668).

    y = g B f(A x) + (1 - g) S x[I]           B (out, r), A (r, in), S (out, c); I: c = max(1, floor(p in)) input columns

All of it comes from one draw W0 ~ N(0, 0.02^2) = U diag(s) V^T; I is chosen once and stays:

    B = U_r diag(sqrt(s_r)),   A = diag(sqrt(s_r)) V_r^T               the leading r triplets
    importance of column j = ||(W0 - B A)[:, j]||,   I = the c most important,   S = W0[:, I]

f is the identity, or silu as in `cola`. With h = A x, and dh = g f'(h) B^T dy:

    dB = g dy f(h)^T,   dA = dh x^T,   dS = (1 - g) dy x[I]^T,   dx = A^T dh,  dx[I] += (1 - g) S^T dy

Beside SLTrain: S is whole columns, picked by a norm, not single entries at random: a dense product of c gathered numbers of x,
fast with any BLAS, but beyond rank r, y sees c inputs only.
State: r (out + in) + c out weights, as many of each moment, and c column numbers.
Pitfalls: W0 is noise, its columns differ by chance alone; --choice random, the public default, is the comparison to make. g
multiplies: at 1/2 both branches start at half strength. With silu there is no W, and no `to_dense`.
Our reading: the official repository could not be read; this follows the abstract, a public review thread and later code of an
author. f is the identity, as in that code; the reviewers describe an activation there, which is --activation silu. Importance
is of the 256 triplets after the r-th in that code (here of all the rest), and A, B start as in `cola` unless told otherwise
(here by the SVD, as in the paper). g is 0.5 there; the thread has 0.9 for 130M.
"""

import numpy as np

from minisl.autograd import Function, ops
from minisl.backend import array_module
from minisl.errors import InputError
from minisl.methods import Flag, check_rank, trained
from minisl.nn import init
from minisl.nn.module import Module, Parameter

OPTIONS = (
    "rank",
    Flag("columns", 0.05, "fraction p of the input columns that are kept", high=1),
    Flag("gamma", 0.5, "weight g of the low-rank part; the columns have 1 - g", high=1),
    Flag("activation", "identity", "f between the factors", choices=("identity", "silu")),
    Flag("choice", "residual", "columns by norm beyond rank r, by norm, or at random", choices=("residual", "norm", "random")),
)


class Columns(Function):
    """y = x[..., I], no column twice.    dx = 0, then dx[..., I] = dy"""

    @staticmethod
    def forward(ctx, x, index):
        ctx.save(x.shape, index)
        return x.take(index, axis=-1)

    @staticmethod
    def backward(ctx, grad):
        shape, index = ctx.saved
        dx = array_module(grad).zeros(shape, grad.dtype)
        dx[..., index] = grad
        return dx


def split(W, rank, count, choice, rng):
    """B, A and I of a drawn W (out, in)."""
    U, s, Vt = np.linalg.svd(W, full_matrices=False)
    root = np.sqrt(s[:rank])
    B, A = U[:, :rank] * root, root[:, None] * Vt[:rank]
    if choice == "random":
        return B, A, np.sort(rng.choice(W.shape[1], count, replace=False))
    importance = np.linalg.norm(W - B @ A if choice == "residual" else W, axis=0)
    return B, A, np.sort(np.argsort(-importance, kind="stable")[:count])


def kept_columns(columns, in_features):
    """c. Raises InputError unless 0 < p <= 1."""
    if not 0 < columns <= 1:
        raise InputError(f"--columns {columns}: the fraction of kept columns must be above 0 and at most 1")
    return max(1, int(columns * in_features))


class LOSTLinear(Module):
    """y = g B f(A x) + (1 - g) S x[I].    S is `columns`, I the buffer `index`"""

    buffers = ("index",)

    def __init__(self, in_features, out_features, rng, dtype="float32", *, rank, columns, gamma, activation, choice):
        check_rank(rank, in_features, out_features)
        if not 0 <= gamma <= 1:
            raise InputError(f"--gamma {gamma}: must lie between 0 and 1")
        count, W = kept_columns(columns, in_features), init.normal(rng, (out_features, in_features), 0.02, dtype)
        if rng is None:
            B, A, index = W[:, :rank], W[:rank], np.broadcast_to(np.zeros((), np.int32), count)
            S = W[:, :count]
        else:
            B, A, index = split(W, rank, count, choice, rng)
            S = W.take(index, axis=1)  # not W[:, index], which lies in memory by columns
        self.B, self.A, self.columns, self.index = Parameter(B), Parameter(A), Parameter(S), index.astype(np.int32, copy=False)
        self.gamma, self.activation, self.shape = gamma, activation, (out_features, in_features)

    def check_buffer(self, name, array):
        columns = array.astype(float)
        if not (columns[0] >= 0 and columns[-1] < self.shape[1] and (np.diff(columns) > 0).all()):
            raise InputError(f"must be columns of 0 to {self.shape[1] - 1}, ascending, none twice")

    def forward(self, x):
        h = ops.linear(x, self.A)
        h = ops.silu(h) if self.activation == "silu" else h
        picked = Columns.apply(x, index=self.index)
        return ops.linear(h * self.gamma, self.B) + ops.linear(picked * (1 - self.gamma), self.columns)

    def to_dense(self):
        """W (out, in) as an array. Raises InputError where a silu stands between the factors: there is no W."""
        if self.activation != "identity":
            raise InputError(f"--activation {self.activation}: y is no linear function of x, so there is no dense W")
        W = self.gamma * self.B.data @ self.A.data
        W[:, self.index] += (1 - self.gamma) * self.columns.data
        return W


def linear(in_features, out_features, rng, dtype, **options):
    return LOSTLinear(in_features, out_features, rng, dtype, **options)


def held(out_features, in_features, rank, columns, gamma, activation, choice):
    count = kept_columns(columns, in_features)
    return trained(out_features * rank, rank * in_features, out_features * count, indices=count)
