"""Full-rank training: y = x W^T, W (out, in) dense. What every other method is compared with.

Start: W ~ N(0, 0.02^2), as LLaMA and the paper's baseline, whatever the embeddings start from.
Parameters of one matrix: out in.
"""

from minisl.nn import Linear

OPTIONS = ()


def linear(in_features, out_features, rng, dtype):
    return Linear(in_features, out_features, rng, dtype, std=0.02)
