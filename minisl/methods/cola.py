"""CoLA: low-rank activations (Liu et al., EMNLP 2025, arXiv 2502.10940).

    y = B silu(A x)                 B (out, r), A (r, in), in place of each of the seven matrices

An auto-encoder where a matrix was. Without the silu it is `low_rank`; with it, y is no linear function of x, the r numbers
between the factors are an activation, and there is no W to speak of. The block's own SwiGLU stays.

    h = A x                         dB = dy silu(h)^T
    y = B silu(h)                   dh = silu'(h) B^T dy,   dA = dh x^T,   dx = A^T dh

Start: A, B ~ N(0, s^2), s = r^(-1/4) (in + out)^(-1/4): an entry of B A then has deviation (in + out)^(-1/2), whatever r is.

Beside SLTrain: a nonlinearity between the factors takes the place of S, and of the scale alpha/r.
State: r (out + in) weights, and as many of each moment. Activations shrink too where only h is kept and the rest computed again
(the paper's CoLA-M); here all are kept, or with --activation-checkpointing none.
Pitfalls: nothing can be merged into a dense W afterwards, so there is no `to_dense`. Near 0 silu halves what passes, so branches
start at about half of what s suggests. The published runs have weight decay 0.01, clipping at 0.5, 2,000 updates of warm-up and
a rate of 6e-3 at 60M, 3e-3 at 130M: flags of the trainer, whose defaults are other ones.
Our reading: silu after A in all seven matrices, and SwiGLU as well; the public code has a switch that drops SwiGLU's.
"""

from minisl.autograd import ops
from minisl.methods import check_rank, trained
from minisl.nn import init
from minisl.nn.module import Module, Parameter

OPTIONS = ("rank",)


class CoLALinear(Module):
    """y = B silu(A x)"""

    def __init__(self, in_features, out_features, rng, dtype="float32", *, rank):
        check_rank(rank, in_features, out_features)
        std = (rank * (in_features + out_features)) ** -0.25
        self.A = Parameter(init.normal(rng, (rank, in_features), std, dtype))
        self.B = Parameter(init.normal(rng, (out_features, rank), std, dtype))

    def forward(self, x):
        return ops.linear(ops.silu(ops.linear(x, self.A)), self.B)


def linear(in_features, out_features, rng, dtype, rank):
    return CoLALinear(in_features, out_features, rng, dtype, rank=rank)


def held(out_features, in_features, rank):
    return trained(out_features * rank, rank * in_features)
