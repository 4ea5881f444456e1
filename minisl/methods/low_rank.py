"""Low-rank training: factors from the first step, the baseline of the GaLore and SLTrain papers.

    y = s B A x,   s = alpha/r             B (out, r), A (r, in);   G = dL/dW for W = s B A
    dB = s G A^T,   dA = s B^T G

Beside SLTrain: without S, so W never has a rank above r.
State: r (out + in) weights, and as many of each moment.
Pitfalls: both factors must start away from zero. With LoRA's B = 0 in every matrix each branch of the network outputs 0, and
every gradient of a factor has another zero factor in it: nothing but embeddings, head and the last norm's gain would ever move.
The usual table's 78.18 at 60M (142.53 at 1B) looks like a failure of start and rate more than of rank.
Our reading: A ~ U(-1/sqrt(in), 1/sqrt(in)) and B ~ U(-1/sqrt(r), 1/sqrt(r)), what LoRA's code would draw for both.
"""

from minisl.autograd import ops
from minisl.methods import check_rank, trained
from minisl.nn import init
from minisl.nn.module import Module, Parameter

OPTIONS = ("rank", "alpha")


class LowRankLinear(Module):
    """y = (alpha/r) (x A^T) B^T.    A ~ U(-1/sqrt(in), 1/sqrt(in)),  B ~ U(-1/sqrt(r), 1/sqrt(r))"""

    def __init__(self, in_features, out_features, rng, dtype="float32", *, rank, alpha):
        check_rank(rank, in_features, out_features)
        self.lora_A = Parameter(init.uniform(rng, (rank, in_features), in_features**-0.5, dtype))
        self.lora_B = Parameter(init.uniform(rng, (out_features, rank), rank**-0.5, dtype))
        self.scale = alpha / rank

    def forward(self, x):
        return ops.linear(ops.linear(x, self.lora_A) * self.scale, self.lora_B)

    def to_dense(self):
        """W (out, in) as an array."""
        return self.scale * self.lora_B.data @ self.lora_A.data


def linear(in_features, out_features, rng, dtype, **options):
    return LowRankLinear(in_features, out_features, rng, dtype, **options)


def held(out_features, in_features, rank, alpha):
    return trained(out_features * rank, rank * in_features)
