"""SWAN: normalised, whitened gradients and no state (Ma, Gong, Scetbon and Meeds, ICML 2025, arXiv 2412.13148).

    g  = (G - mean(G)) / std(G)        row by row of G = dL/dW (out, in), over the inputs
    O  ~ (g g^T)^(-1/2) g              by ten steps of a coupled Newton-Schulz iteration with beta = 0.8
    W <- W - lr |g|_F / |O|_F O        |g|_F = sqrt(out in), so the numbers in a step are of size 1

This is Muon without momentum, its rows made alike first: what Adam knows of each number, this takes of each row from one
gradient.

Beside SLTrain: W is dense and whole, but it is all there is: no moments.
State: out x in weights, and nothing else; embeddings, head and gains keep what --optimizer keeps. While a matrix moves, three of
s x s are held, s its short side, and its ten iterations take 60 s^3 operations: the forward pass of 30 s tokens, if square.
Pitfalls: a step is as noisy as its batch, for nothing averages. The iteration does not converge: singular values above 1e-4 |g|_F
come to 0.56 .. 1.6 and jump about there, for a cosine of 0.96 to the whitened g. With beta = 1/2 they would go to 1, but the
weak ones slowly: 0.79 is the least in a random g of 512 x 1376, and where the spectrum decays the cosine is lower after ten. In
float32 rounding takes over after some twenty. An iteration that starts from g g^T undivided ends in NaN.
Our reading: there is no public code of the authors; beta and the ten are from two ports, which agree on them for this scheme (one
has the diagonals of Y and Z alone as well, with others). A tall matrix is whitened as its transpose, for g g^T of more rows than
columns has no inverse. Centred rows have no component along the ones, so a tall or square g lacks one direction, which then does
not move; --no-centre leaves the means in, as a port does.
"""

from minisl.backend import array_module
from minisl.methods import Flag, Held
from minisl.optim import Rule
from minisl.optim.orthogonal import norm, whiten

OPTIONS = (Flag("centre", True, "subtract each row's mean"),
           Flag("iterations", 10, "steps of the whitening iteration", low=1, high=20))


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
