"""SST: sparse spectral training (Zhao et al., ICML 2025, arXiv 2405.15481).

    W = U diag(S) V = sum_i S_i u_i v_i^T            U (out, s), S (s,), V (s, in),  s = min(out, in);   G = dL/dW
    all S, at every update:        dS_i = u_i^T G v_i,   then S_i <- max(S_i, 0)
    r active u_i, v_i, likewise:   du_i = G v_i,  dv_i = G^T u_i,   then u_i <- u_i/|u_i|,  v_i <- v_i/|v_i|
    every T updates:               U, S, V <- SVD(W);   r indices without replacement, p_i = (1/s + S_i/sum S)/2

W itself is not held. The gradients of u_i and v_i are "enhanced": the derivatives have a factor S_i, which would leave the small
directions, those still to be learned, where they are. One half of p_i prefers the large ones, the other treats all alike. Active
vectors are arrays of their own, so that only they need moments.

Beside SLTrain: W may move in any direction, r of them at a time, while the strengths of all are trained.
State: s (out + in + 1) weights, more than W has; r (out + in) + s of them are trained at a time, with as many of each moment.
Pitfalls: after an update the active vectors have length 1 but are not orthogonal, until the next SVD. New moments at each choice
need a short second warm-up, as Adam's first updates are of size eta in every entry. An SVD costs about s^2 (out + in) products.
Our reading: only excerpts of the paper were at hand, and no code. They have the formulas above, T = 200, 20 updates of warm-up
after each choice (T at most, here), and moments of active vectors alone, dropped when the choice changes. Ours: an SVD at each
choice, where the paper has one in s/r choices; that S loses its moments too, as an SVD puts the values in another order; that the
warm-up is for all parameters; a start from N(0, 0.02^2). A norm that is clipped is of these gradients.

W is built, then multiplied by, and built again for backward, not kept. G is dense, for one matrix at a time.
"""

import numpy as np

from minisl.autograd import Function, ops
from minisl.backend import array_module, to_numpy
from minisl.methods import Flag, check_rank, trained
from minisl.nn import init
from minisl.nn.module import Module, Parameter
from minisl.optim import Rule

OPTIONS = ("rank",
           Flag("every", 200, "updates from one SVD, and choice of active vectors, to the next", low=1),
           Flag("rewarm", 20, "updates of warm-up after each choice"))


class Spectral(Function):
    """W = [U U_rest] diag(S) [V; V_rest].    dS = diag([U U_rest]^T G [V; V_rest]^T),  dU = G V^T,  dV = U^T G

    dU and dV are SST's, not the derivatives: those have a factor S_i.
    """

    @staticmethod
    def forward(ctx, U, S, V, U_rest, V_rest):
        ctx.save(U, S, V, U_rest, V_rest)
        return Spectral.rebuild(ctx)

    @staticmethod
    def rebuild(ctx):
        U, S, V, U_rest, V_rest = ctx.saved
        return (U * S[:len(V)]) @ V + (U_rest * S[len(V):]) @ V_rest

    @staticmethod
    def backward(ctx, grad):
        U, _, V, U_rest, V_rest = ctx.saved
        dU = grad @ V.T
        dS = array_module(grad).concatenate([(U * dU).sum(axis=0), (U_rest * (grad @ V_rest.T)).sum(axis=0)])
        return dU, dS, U.T @ grad


class SSTLinear(Module):
    """U (out, r) and V (r, in) are active, U_rest (out, s - r) and V_rest (s - r, in) are not; S (s,) with the active first."""

    buffers = ("U_rest", "V_rest")

    def __init__(self, in_features, out_features, rng, dtype="float32", *, rank):
        check_rank(rank, in_features, out_features)
        m, n, r, s = out_features, in_features, rank, min(out_features, in_features)
        self.U, self.S, self.V = (Parameter(init.constant(rng, shape, 0, dtype)) for shape in ((m, r), s, (r, n)))
        self.U_rest, self.V_rest = (init.constant(rng, shape, 0, dtype) for shape in ((m, s - r), (s - r, n)))
        if rng is not None:
            self.begin_round(init.normal(rng, (m, n), 0.02, dtype), rng)

    def product(self):
        """W as a Tensor."""
        return Spectral.apply(self.U, self.S, self.V, U_rest=self.U_rest, V_rest=self.V_rest)

    def forward(self, x):
        return ops.linear(x, self.product())

    def to_dense(self):
        """W (out, in) as an array."""
        return self.product().data

    def begin_round(self, W, rng):
        """Be the SVD of W, with other directions active."""
        xp, r = array_module(W), len(self.V)
        U, S, V = xp.linalg.svd(W, full_matrices=False)
        share = to_numpy(S).astype("float64")
        p = 1 / len(S) + share / (share.sum() or 1)
        active = rng.choice(len(S), r, replace=False, p=p / p.sum())
        order = xp.asarray(np.concatenate([active, np.setdiff1d(np.arange(len(S)), active)]))
        U, self.S.data, V = U[:, order], S[order], V[order]
        self.U.data, self.U_rest, self.V.data, self.V_rest = map(xp.ascontiguousarray, (U[:, :r], U[:, r:], V[:r], V[r:]))


class Mended(Rule):
    """Another rule, after which the weights are put right in place."""

    state = ("inner",)

    def __init__(self, inner, mend):
        self.inner, self.mend = inner, mend

    def update(self, weights, gradient, lr):
        self.inner.weight_decay = self.weight_decay
        self.inner.update(weights, gradient, lr)
        self.mend(weights)


def clip(S):
    """S_i <- max(S_i, 0)"""
    array_module(S).maximum(S, 0, out=S)


def unit_columns(U):
    """Bring each column of U to length 1, in place."""
    U /= array_module(U).sqrt((U * U).sum(axis=0))


def unit_rows(V):
    """Bring each row of V to length 1, in place."""
    unit_columns(V.T)


def linear(in_features, out_features, rng, dtype, *, rank, every, rewarm):
    return SSTLinear(in_features, out_features, rng, dtype, rank=rank)


def rule(name, like, base, rng_at, **options):
    return Mended(base(like), {"U": unit_columns, "S": clip, "V": unit_rows}[name.rpartition(".")[2]])


def before_step(model, optimizer, step, steps, rng, *, rank, every, rewarm):
    done = (step - 1) % every  # updates in this round
    for path, layer in model.named_modules():
        if isinstance(layer, SSTLinear) and done == 0 and step > 1:
            layer.begin_round(layer.to_dense(), rng)
            optimizer.reset(f"{path}.U", f"{path}.S", f"{path}.V")
    if rewarm:
        optimizer.lr *= min(1, (done + 1) / min(rewarm, every))


def held(out_features, in_features, rank, every, rewarm):
    s = min(out_features, in_features)
    return trained(out_features * rank, s, rank * in_features, frozen=(s - rank) * (out_features + in_features))
