"""Muon: momentum, orthogonalised (Jordan et al. 2024, a blog post and its code; at scale: Liu et al. 2025, arXiv 2502.16982).

    M <- b M + (1 - b) G               G = dL/dW, b = 0.95
    u  = b M + (1 - b) G               Nesterov: one step ahead
    O  = NS5(u)                        u = U diag(s) V^T, O about U V^T
    W <- W - lr c O                    c = 0.2 sqrt(max(out, in))

The step of steepest descent where a step's size is its largest singular value: all directions of u, strong or weak, move alike.
NS5 is five steps of a quintic iteration (minisl/optim/orthogonal.py): singular values above 0.0016 |u|_F come to 0.68 .. 1.21,
in random matrices that are not square to 0.68 .. 1.14; weaker ones stay below.

Beside SLTrain: W is dense and whole, and what is saved is one of Adam's two moments.
State: out x in weights and as much momentum.
Pitfalls: embeddings, head and gains are not for Muon, --optimizer moves them. The public code gives them a rate of their own
(3e-4, and 0.02 the matrices) and Adam's betas as 0.9 and 0.95; here --lr is for all. A step does not shrink with the gradient,
so only the schedule ends the noise, and --weight-decay keeps weights from growing (Liu et al.).
Our reading: c is that of Liu et al.: the numbers in a step are then of size 0.2, about Adam's, and Adam's rates fit. With
--update-scale original it is the first code's, sqrt(max(1, out/in)), which wants some ten times the rate. The public code
multiplies in bfloat16, this in the weights' dtype.
"""

from minisl.backend import array_module
from minisl.methods import Flag, Held
from minisl.optim import Rule
from minisl.optim.orthogonal import newton_schulz

SCALES = {"moonlight": lambda m, n: 0.2 * max(m, n) ** 0.5, "original": lambda m, n: max(1, m / n) ** 0.5}
OPTIONS = (Flag("momentum", 0.95, "b of the momentum", high=0.9999),
           Flag("update_scale", "moonlight", "size of a step: 0.2 sqrt(max(out, in)), or sqrt(max(1, out/in))", tuple(SCALES)))


class Muon(Rule):
    """N = c NS5(b M + (1 - b) G)"""

    state = ("average",)

    def __init__(self, like, momentum, update_scale):
        self.average = array_module(like).zeros_like(like)
        self.b, self.c = momentum, SCALES[update_scale](*like.shape)

    def direction(self, gradient):
        self.average += (1 - self.b) * (gradient - self.average)
        return self.c * newton_schulz(self.b * self.average + (1 - self.b) * gradient)


def rule(name, like, base, rng_at, **options):
    return Muon(like, **options)


def held(out_features, in_features, momentum, update_scale):
    return Held(weights=(out_features * in_features,), state=out_features * in_features)
