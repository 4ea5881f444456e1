"""GaLore: gradient low-rank projection (Zhao et al., ICML 2024, arXiv 2403.03507), algorithm 2.

    every T steps:  U, S, V^T = SVD(G)             G = dL/dW (out, in)
                    P = first r rows of V^T        (out >= in)               P = (first r columns of U)^T    (out < in)
    every step:     R = G P^T   (out, r)           what is seen of G         R = P G   (r, in)
                    N = Adam(R)                    moments of R's shape
                    W <- W - lr a N P              and back                  W <- W - lr a P^T N

Where SLTrain bounds the weights, GaLore bounds each step: its rank is at most r. A sum of steps has any rank, as P changes. Any
rule can be inside: with --optimizer adam8bit this is 8-bit GaLore.

The moments are coordinates in the old P when P changes. at_change says what becomes of them, with C = P_new P_old^T:
    keep    nothing, as published: they are read as coordinates in the new P
    reset   forgotten, and counted from step 1
    rotate  m <- m C^T,  v <- v (C * C)^T   (out < in: C m, (C * C) v), exact where C only permutes and changes signs

Beside SLTrain: W stays dense, and gradient and moments are what has low rank; weights are not saved.
State: out in weights, r max(out, in) of each moment, and P: r min(out, in) (svd), r indices (dct), nothing (random).
Pitfalls: the sign of a singular vector is arbitrary. Flip one when P is renewed, and with `keep` all later weights are others.
P is the SVD of one batch's gradient, and the loss can jump when it is renewed. a is for projected matrices only: embeddings and
head move at the full lr, 0.01 in the published runs. With `rotate`, a direction that is new to P starts from m = v = 0 at a late
step, where Adam's first stride is 0.1 / sqrt(0.001), three times the usual.
Our reading: the rule inside is what --optimizer says, so Adam's eps is 1e-8, added to the bias-corrected sqrt(v); the public
code adds 1e-6 to sqrt(v) before its correction, in the first update 3e-5 to |R|. There weight decay comes after the step. At
r = min(out, in) there is nothing to leave out: P is I, and a = 1 is Adam. (The code would turn the basis there too, and Adam in
another basis is another method.) `rotate` is LDAdam's idea; it corrects v by m, which is left out here. The cosine basis is
DCT-AdamW's, which chooses anew at every step: --every 1.
"""

from minisl.errors import InputError
from minisl.methods import Flag, Held, check_rank
from minisl.optim import Adam8bit, Rule
from minisl.optim.projectors import Projector

OPTIONS = (
    "rank",
    Flag("every", 200, "updates with the same projection", low=1),
    Flag("scale", 0.25, "a: projected updates are scaled by it"),
    Flag("projector", "svd", "the directions that are kept", ("svd", "random", "dct")),
    Flag("at_change", "keep", "the moments, when the directions change", ("keep", "reset", "rotate")),
)


class GaLore(Rule):
    """N_t = a N P, or a P^T N, with N from the rule inside, of R's shape."""

    state = "inner", "chosen", "step"

    def __init__(self, like, base, rng_at, rank, every, scale, projector, at_change="keep"):
        check_rank(rank, *like.shape[::-1])
        self.projector = Projector(projector, like, rank, rng_at)
        self.every, self.scale, self.at_change = every, scale, at_change
        self.start_inside = lambda: base(self.projector.xp.empty(self.projector.shape, self.projector.dtype))
        self.inner, self.chosen, self.step = self.start_inside(), self.projector.unchosen(), 0
        if at_change == "rotate" and isinstance(self.inner, Adam8bit):
            raise InputError("--at-change rotate with --optimizer adam8bit: bytes cannot be rotated; allowed: keep, reset")

    def direction(self, gradient):
        P = self.basis(gradient)
        N = self.inner.direction(self.projector.down(gradient, P))
        return self.scale * self.projector.up(N, P)

    def basis(self, gradient):
        """P of this step."""
        old, self.step = self.chosen, self.step + 1
        if (self.step - 1) % self.every == 0:
            self.chosen = self.projector.choose(gradient, self.step)
            if self.step > 1 and self.chosen is not None:
                self.change(self.projector.rows(old), self.projector.rows(self.chosen))
        return self.projector.rows(self.chosen)

    def change(self, old, new):
        """Do with the moments what `at_change` says. A rule that has none, as sgd, loses none."""
        if self.at_change == "reset":
            self.inner = self.start_inside()
        if self.at_change == "rotate" and self.inner.state:
            C = new @ old.T
            self.inner.exp_avg = self.projector.down(self.inner.exp_avg, C)
            self.inner.exp_avg_sq = self.projector.down(self.inner.exp_avg_sq, C * C)


def kind(projector, rank, shape):
    """The projector, or none where there is nothing to leave out."""
    return projector if rank < min(shape) else "identity"


def rule(name, like, base, rng_at, rank, projector, **options):
    return GaLore(like, base, rng_at, rank, projector=kind(projector, rank, like.shape), **options)


def held(out_features, in_features, rank, every, scale, projector, at_change):
    sides = out_features, in_features
    return Held((out_features * in_features,), (rank * max(sides),),
                **Projector.kept(kind(projector, rank, sides), rank, min(sides)))
