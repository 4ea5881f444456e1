"""The dense layers of a LLaMA."""

from minisl.autograd import ops
from minisl.nn import init
from minisl.nn.module import Module, Parameter


class Linear(Module):
    """y = x W^T, W (out, in), no bias. Starts from N(0, std^2)."""

    def __init__(self, in_features, out_features, rng, dtype="float32", std=0.02):
        self.weight = Parameter(init.normal(rng, (out_features, in_features), std, dtype))

    def forward(self, x):
        return ops.linear(x, self.weight)


class Embedding(Module):
    """ids (...) to rows (..., D) of a (V, D) table. Starts from N(0, std^2)."""

    def __init__(self, num_embeddings, dim, rng, dtype="float32", std=0.02):
        self.weight = Parameter(init.normal(rng, (num_embeddings, dim), std, dtype))

    def forward(self, ids):
        return ops.embedding(self.weight, ids)


class RMSNorm(Module):
    """y = g x / sqrt(mean(x^2) + eps) over the last axis; the gain g starts at 1."""

    def __init__(self, dim, rng, dtype="float32", eps=1e-6):
        self.weight = Parameter(init.constant(rng, dim, 1, dtype))
        self.eps = eps

    def forward(self, x):
        return ops.rms_norm(x, self.weight, self.eps)
