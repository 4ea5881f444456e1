"""SCALE: normalised columns, and momentum in the last layer only (Glentis, Li, Han and Hong 2025, arXiv 2506.16659).

    u  = G / rms(G)                    every matrix; the mean square over its inputs, for each output
    M <- b M + (1 - b) G               output head only, b = 0.9, and there
    u  = M / rms(M)
    W <- W - lr u

A column is what feeds one output. In W (out, in) it lies in a row: so too in the head (V, D), where it belongs to a token. The
embedding table (V, D) takes tokens to features, so there it is a column indeed: a feature over the vocabulary.

Beside SLTrain: W is dense and whole, and the optimizer keeps next to nothing.
State: out x in weights, and nothing else. Over the whole model: one momentum for the head, none for the embeddings, and
--optimizer moves the gains alone.
Pitfalls: all numbers in a step are of size 1, also in the row of a token that the batch hardly knows. A tied table is not told
from an embedding: it is normalised per feature, and has no momentum.
Our reading: the public code's axes, and its floor of 1e-8 under rms. Its rate of their own for the gains (at 1B and 7B) is left
out, and their eps is added after Adam's bias correction, there before it.
"""

from minisl.backend import array_module
from minisl.methods import Flag, Held, is_matrix, trained
from minisl.optim import Rule

OPTIONS = (Flag("momentum", 0.9, "b of the output head's momentum", high=0.9999),)
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class Normalised(Rule):
    """N = u / max(rms(u), 1e-8) along an axis; u = G, or if `like` is given its momentum"""

    state = ("average",)

    def __init__(self, axis, like=None, momentum=0.0):
        self.average = None if like is None else array_module(like).zeros_like(like)
        self.axis, self.b = axis, momentum

    def direction(self, gradient):
        xp, u = array_module(gradient), gradient
        if self.average is not None:
            self.average += (1 - self.b) * (gradient - self.average)
            u = self.average
        return u / xp.maximum(xp.sqrt((u * u).mean(axis=self.axis, keepdims=True)), 1e-8)


def rule(name, like, base, rng_at, momentum):
    return Normalised(axis=1)


def rule_elsewhere(name, like, base, rng_at, momentum):
    if not is_matrix(like.shape):
        return base(like)
    if name == EMBEDDINGS:
        return Normalised(axis=0)
    return Normalised(1, like, momentum) if name == HEAD else base(like)


def held(out_features, in_features, momentum):
    return Held(weights=(out_features * in_features,))


def held_elsewhere(name, size, momentum):
    if name in (EMBEDDINGS, HEAD):
        return Held(weights=(size,), state=size if name == HEAD else 0)
    return trained(size)
