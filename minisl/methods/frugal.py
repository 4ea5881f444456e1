"""FRUGAL: full-rank updates with gradient splitting (Zmushko, Beznosikov, Takac, Horvath, ICML 2025, arXiv 2411.07837).

    G = G_full + G_free                            G = dL/dW (out, in)
    W <- W - lr Adam(G_full) - lr a sign(G_free)   a = --free-rate

Only G_full has moments; what it is changes every T updates, and then its moments start from 0:

    --split    G_full                                   G_free
    blocks     G of n whole layers, in turn             G of the other layers          n = ceil(rho L) of L layers
    svd        P^T P G, P: r singular vectors of G      G - P^T P G                    r = round(rho min(out, in))
    random     P^T P G, P: r random directions          G - P^T P G                    (G P^T P where out >= in)

With rho = 1 this is Adam, with rho = 0 signSGD, which needs no state at all: |sign| = 1 is about what Adam's step is too, so one
learning rate serves both. Layers take turns from the last to the first, n at a time, and around.

Beside SLTrain: W stays dense and every weight moves at every step; what is cut down is the moments, to a part of the weights at a
time.
State: out in weights and rho out in of each moment; with svd also P, r min(out, in).
Pitfalls: moments that are not dropped at a change belong to other weights, or to another subspace. The signs want about Adam's
rate. At r = min(out, in) what is left over, G - P^T P G, is rounding noise, and its sign is not: P must be I there. The published
curves are of 200,000 steps of a cyclic cosine with peak 1e-3 (period 10,000 at 60M), not of one run of 10,000.
Our reading: the code counts matrices, round(rho of them), from the last back; ours are whole layers, the same ones where rho L
is a whole number, as in all published sizes. Gains, embeddings and head have moments always, as there. The code's weight decay is
0.01 by default. A layer that stays state-full over a change keeps its moments, so that rho = 1 is Adam to the bit; the
code drops them.
"""

import math

from minisl.backend import array_module
from minisl.errors import InputError
from minisl.methods import Flag, Held
from minisl.optim import Rule
from minisl.optim.projectors import Projector

OPTIONS = (
    Flag("split", "blocks", "what is state-full: layers in turn, or a subspace of each gradient", ("blocks", "svd", "random")),
    Flag("density", 0.25, "rho: the part that is state-full, from 0 (signSGD) to 1 (Adam)", high=1),
    Flag("every", 200, "updates until another part is state-full", low=1),
    Flag("free_rate", 1.0, "rate of the signs over --lr"),
)


class Sign(Rule):
    """N_t = a sign(g), without memory."""

    def __init__(self, rate):
        self.rate = rate

    def direction(self, gradient):
        return self.rate * array_module(gradient).sign(gradient)


class InTurn(Rule):
    """The rule `base` makes while it is this matrix's turn, signs otherwise."""

    state = ("full",)

    def __init__(self, like, base, free_rate):
        self.start = lambda: base(like)
        self.full, self.free = None, Sign(free_rate)

    def turn(self, on):
        self.full = (self.full or self.start()) if on else None

    def update(self, weights, gradient, lr):
        now = self.full or self.free
        now.weight_decay = self.weight_decay
        now.update(weights, gradient, lr)

    def load_state_dict(self, state):
        self.turn(bool(state))
        super().load_state_dict(state)


class Split(Rule):
    """N_t = P^T Adam(P g) + a sign(g - P^T P g)"""

    state = "full", "chosen", "step"

    def __init__(self, like, base, rng_at, split, rank, every, free_rate):
        self.projector = Projector(split, like, rank, rng_at)
        self.start = lambda: base(self.projector.xp.zeros(self.projector.shape, self.projector.dtype))
        self.full, self.chosen, self.step = self.start(), self.projector.unchosen(), 0
        self.every, self.free = every, Sign(free_rate)

    def direction(self, gradient):
        if self.step % self.every == 0 and self.projector.kind != "identity":
            self.full, self.chosen = self.start(), self.projector.choose(gradient, self.step)
        self.step += 1
        P = self.projector.rows(self.chosen)
        seen = self.projector.down(gradient, P)
        left_over = gradient - self.projector.up(seen, P)
        return self.projector.up(self.full.direction(seen), P) + self.free.direction(left_over)


def subspace(split, density, shape):
    """(kind of P, r)"""
    rank = round(density * min(shape))
    return split if rank < min(shape) else "identity", rank


def rule(name, like, base, rng_at, split, density, every, free_rate):
    if density > 1:
        raise InputError(f"--density {density}: must lie between 0 and 1")
    kind, rank = subspace(split, density, like.shape)
    if split == "blocks":
        layer(name)  # or an InputError
        return InTurn(like, base, free_rate)
    return Split(like, base, rng_at, kind, rank, every, free_rate) if rank else Sign(free_rate)


def before_step(model, optimizer, step, steps, rng, split, density, every, free_rate):
    if split == "blocks":
        layers = {name: layer(name) for name in optimizer.parameters if name in optimizer.by_rule}
        L = 1 + max(layers.values())
        on = turns((step - 1) // every, L, density)
        for name, k in layers.items():
            optimizer.rule(name).turn(k in on)


def layer(name):
    """The number in "model.layers.3.mlp.up_proj.weight"."""
    for part in name.split("."):
        if part.isdigit():
            return int(part)
    raise InputError(f"--split blocks takes layers in turn, and {name} is in none that has a number; allowed: svd, random")


def full_layers(density, L):
    """How many of L layers are state-full."""
    return math.ceil(density * L - 1e-9)


def turns(period, L, density):
    """Which: n from the last back, then the n before them, and around."""
    n = full_layers(density, L)
    return {(L - 1 - n * period - i) % L for i in range(n)}


def held(out_features, in_features, split, density, every, free_rate):
    """With `blocks`, of a matrix whose turn it is."""
    size, (kind, rank) = out_features * in_features, subspace(split, density, (out_features, in_features))
    if split == "blocks":
        return Held((size,), (size,))
    return Held((size,), (rank * max(out_features, in_features),), **Projector.kept(kind, rank, min(out_features, in_features)))


def held_named(name, out_features, in_features, split, density, **others):
    """The turns are another layer's at another time; as many layers as have it are counted."""
    k = layer(name)
    if split == "blocks" and full_layers(density, k + 1) == full_layers(density, k):
        return Held((out_features * in_features,))
    return held(out_features, in_features, split, density, **others)
