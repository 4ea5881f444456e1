"""Full-rank training, what every other method is compared with.

    y = W x             W (out, in) dense;   dW = dy x^T

Start: W ~ N(0, 0.02^2), as LLaMA and the paper's baseline, whatever the embeddings start from.

Beside SLTrain: twice to three times the weights, gradients and moments, and no bound on what W can become.
State: out in weights, and as many of each moment.
Pitfalls: the baseline must be tuned like the rest. At 60M the usual table has it at perplexity 34.06; others, with a learning
rate of its own, report about 30.
Our reading: none, this is the usual thing.
"""

from minisl.methods import trained
from minisl.nn import Linear


def linear(in_features, out_features, rng, dtype):
    return Linear(in_features, out_features, rng, dtype, std=0.02)


def held(out_features, in_features):
    return trained(out_features * in_features)
