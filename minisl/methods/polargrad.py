"""PolarGrad: the polar factor times the nuclear norm (Lau, Long and Su 2025, arXiv 2505.21799).

    momentum-first                     polar-first                         G = dL/dW, b = 0.95
    M <- b M + (1 - b) G               U  = polar(G)
    U  = polar(M)                      M <- b M + (1 - b) U
    W <- W - lr <M, U> U               W <- W - lr <G, U> M

The polar factor of G = P diag(s) Q^T is U = P Q^T, and <G, U> = s_1 + ... + s_k = |G|_*, the nuclear norm. It is Muon with the
size put back: steepest descent in the spectral norm, without which a step does not shrink as the gradient does and a minimum is
circled, not reached.

Beside SLTrain: W is dense and whole, and what is saved is one of Adam's two moments.
State: out x in weights and as much momentum.
Pitfalls: for the matrices --lr is gradient descent's rate, which must grow as gradients shrink, from a small model to a large
one. For embeddings, head and gains it is Adam's, which need not.
Our reading: so the matrices have --matrix-lr times --lr. Its default of 1 is measured on the tiny model alone: there, at --lr
3e-3 and 0.01, it comes within 0.03 of the loss of the best ratio (0.1 to 30 tried) after 60 to 120 updates, and 10 is too much.
The public code stops its QDWH iteration after 2 steps; here `polar` goes on to the polar factor, by products alone, and a step
is 6 to 35 times as large: published rates do not carry over. There weight decay goes by the matrices' rate, here by --lr alone.
"""

from minisl.backend import array_module
from minisl.methods import Flag, Held
from minisl.optim import Rule
from minisl.optim.orthogonal import polar

OPTIONS = (Flag("momentum", 0.95, "b of the momentum", high=0.9999),
           Flag("order", "momentum-first", "polar factor of the momentum, or momentum of polar factors",
                ("momentum-first", "polar-first")),
           Flag("matrix_lr", 1.0, "rate of the blocks' matrices, in --lr"))


class PolarGrad(Rule):
    """N = |M|_* polar(M), or |G|_* M with M the momentum of polar(G); times matrix_lr"""

    state = ("average",)

    def __init__(self, like, momentum, order, matrix_lr):
        self.average = array_module(like).zeros_like(like)
        self.b, self.order, self.rate = momentum, order, matrix_lr

    def direction(self, gradient):
        M = self.average
        if self.order == "polar-first":
            U = polar(gradient)
            M += (1 - self.b) * (U - M)
            return self.rate * (gradient * U).sum() * M
        M += (1 - self.b) * (gradient - M)
        U = polar(M)
        return self.rate * (M * U).sum() * U


def rule(name, like, base, rng_at, **options):
    return PolarGrad(like, **options)


def held(out_features, in_features, momentum, order, matrix_lr):
    return Held(weights=(out_features * in_features,), state=out_features * in_features)
