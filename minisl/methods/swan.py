"""SWAN: normalised, whitened gradients and no state (Ma, Gong, Scetbon and Meeds, ICML 2025, arXiv 2412.13148).

    g  = (G - mean(G)) / std(G)        row by row of G = dL/dW (out, in), over the inputs
    O  = (g g^T)^(-1/2) g              by ten steps of a coupled Newton-Schulz iteration
    W <- W - lr |g|_F / |O|_F O        |g|_F = sqrt(out in), so the numbers in a step are of size 1

This is Muon without momentum, its rows made alike first: what Adam knows of each number, this takes of each row from one
gradient.

Beside SLTrain: W is dense and whole, but it is all there is: no moments.
State: out x in weights, and nothing else; embeddings, head and gains keep what --optimizer keeps.
Pitfalls: a step is as noisy as its batch, for nothing averages. Ten iterations bring singular values above 0.05 |g|_F to 1; in
random wide matrices that is all of them, in square ones some are weaker and stay below. An iteration that starts from g g^T
undivided ends in NaN.
Our reading: there is no public code of the authors. A tall matrix is whitened as its transpose, for g g^T of more rows than
columns has no inverse. Centred rows have no component along the ones, so a tall or square g lacks one direction, which then does
not move; --no-centre leaves the means in, as a port does.
"""

from minisl.backend import array_module
from minisl.methods import Flag, Held
from minisl.optim import Rule
from minisl.optim.orthogonal import norm, whiten

OPTIONS = (Flag("centre", True, "subtract each row's mean"),
           Flag("iterations", 10, "steps of the whitening iteration", low=1, high=100))


class Swan(Rule):
    """N = (|g| / |O|) O,  O = whiten(g),  g = G with rows of mean 0 and mean square 1"""

    def __init__(self, centre, iterations):
        self.centre, self.iterations = centre, iterations

    def direction(self, gradient):
        xp, g = array_module(gradient), gradient
        if self.centre:
            g = g - g.mean(axis=1, keepdims=True)
        g = g / xp.maximum(xp.sqrt((g * g).mean(axis=1, keepdims=True)), 1e-8)
        O = whiten(g, self.iterations)
        return O * (norm(g) / (norm(O) + 1e-7))


def rule(name, like, base, rng_at, **options):
    return Swan(**options)


def held(out_features, in_features, centre, iterations):
    return Held(weights=(out_features * in_features,))
