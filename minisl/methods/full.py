"""Full-rank training: y = x W^T, W (out, in) dense. What every other method is compared with.

Parameters of one matrix: out in.
"""

from minisl.nn.layers import Linear

OPTIONS = ("initializer_range",)


def linear(in_features, out_features, rng, dtype, *, initializer_range):
    return Linear(in_features, out_features, rng, dtype, std=initializer_range)
