"""ReLoRA: high-rank training through low-rank updates (Lialin et al., ICLR 2024, arXiv 2307.05695).

    y = x (W + s B A)^T,  s = alpha/r                W (out, in) frozen, B (out, r) and A (r, in) trained
    after T + 1, 2 T + 1, ... updates:  W <- W + s B A,   A ~ U(-1/sqrt(in), 1/sqrt(in)),   B <- 0,   moments of A and B <- 0
    learning rate:  eta min(1, k/K),  k = 0 .. T - 1 the updates since the last multiple of T        K = --rewarm, T at most

A merge, which follows the update at rate 0, leaves the function as it is. One cycle moves W by a matrix of rank r; k cycles, each
with an A of its own, by one of rank up to k r. The first part of the run, --warm-start of its updates, trains W itself and leaves
B A out: it is zero then.

Beside SLTrain: a high rank comes from low-rank pieces added one after another to a dense W, not from a sparse term beside B A.
State: out in frozen weights, r (out + in) trained ones, and as many of each moment. During the warm start out in weights are
trained instead, with as many of each moment: the peak of the run is that of full-rank training.
Pitfalls: A must be random where B is zero; with both zero, as one mode of the code has it, neither gets a gradient before the
first merge. A run of no more than --every updates after its warm start never merges. Without the warm start it lags (37.04 at
60M, full rank 34.06, in the usual table). Without the second warm-up the loss jumps after each merge: Adam's count of steps goes
on, as in the code, so its first update is up to 3.2 eta (0.1 / sqrt(0.001)), however small the gradient. It wants about twice
the rate of full rank.
Our reading: moments are dropped whole, where the code prunes 99.9% of them at random, or the small ones; no dropout, where the
code has 0.1. As there, the second warm-up is for all parameters; there it aims at the schedule's rate at its end. There another
run follows the warm start, with twice the rate, a schedule and 500 updates of warm-up of its own; here one schedule goes on,
warmed up again by K. Resuming with other --steps moves the end of the warm start; a run back in it merges first.

W + s B A is built, then multiplied by: for n tokens 3 n out in + O(r out in) products a step. Apart they take 2 n out in +
3 n r (out + in), less only where r is below a sixth of a square W's side. It is built again for backward, not kept.
"""

from minisl.autograd import Function, ops
from minisl.backend import array_module
from minisl.methods import Flag, check_rank, trained
from minisl.nn import init
from minisl.nn.module import Module, Parameter

OPTIONS = ("rank", "alpha",
           Flag("every", 5000, "updates from merge to merge", low=2),
           Flag("warm_start", 0.25, "part of the run, 0 to 1, that trains in full rank first", high=1),
           Flag("rewarm", 100, "updates of warm-up after the warm start and after each merge"))


class Adapted(Function):
    """W + s B A, of a frozen W.    dB = s G A^T,  dA = s B^T G"""

    @staticmethod
    def forward(ctx, B, A, W, s):
        ctx.save(B, A, W, s)
        return Adapted.rebuild(ctx)

    @staticmethod
    def rebuild(ctx):
        B, A, W, s = ctx.saved
        return W + (s * B) @ A

    @staticmethod
    def backward(ctx, grad):
        B, A, _, s = ctx.saved
        return grad @ (s * A.T), (s * B.T) @ grad


class ReLoRALinear(Module):
    """weight W ~ N(0, 0.02^2), lora_B = 0, lora_A ~ U(-1/sqrt(in), 1/sqrt(in)).

    warm: W alone is trained, and B is 0. `before_step` says when.
    """

    warm = False

    def __init__(self, in_features, out_features, rng, dtype="float32", *, rank, alpha):
        check_rank(rank, in_features, out_features)
        self.weight = Parameter(init.normal(rng, (out_features, in_features), 0.02, dtype))
        self.lora_B = Parameter(init.constant(rng, (out_features, rank), 0, dtype))
        self.lora_A = Parameter(init.uniform(rng, (rank, in_features), in_features**-0.5, dtype))
        self.scale = alpha / rank

    def forward(self, x):
        if self.warm:
            return ops.linear(x, self.weight)
        return ops.linear(x, Adapted.apply(self.lora_B, self.lora_A, W=self.weight.data, s=self.scale))

    def train(self, warm):
        """Train W, or else B and A."""
        self.warm = self.weight.requires_grad = warm
        self.lora_B.requires_grad = self.lora_A.requires_grad = not warm

    def merge(self):
        """W + s B A and B = 0: the same function."""
        self.weight.data = self.to_dense()
        self.lora_B.data[...] = 0

    def redraw(self, rng):
        A = self.lora_A.data
        A[...] = array_module(A).asarray(init.uniform(rng, A.shape, A.shape[1]**-0.5, A.dtype))

    def to_dense(self):
        """W + s B A (out, in) as an array."""
        return self.weight.data + (self.scale * self.lora_B.data) @ self.lora_A.data


def linear(in_features, out_features, rng, dtype, *, rank, alpha, every, warm_start, rewarm):
    return ReLoRALinear(in_features, out_features, rng, dtype, rank=rank, alpha=alpha)


def before_step(model, optimizer, step, steps, rng, *, rank, alpha, every, warm_start, rewarm):
    first = int(warm_start * steps)  # updates of the warm start
    done = step - 1 - first
    warm, merging = done < 0, done > every and done % every == 1
    for path, layer in model.named_modules():
        if isinstance(layer, ReLoRALinear):
            if merging or (warm and not layer.warm):
                layer.merge()
                optimizer.reset(f"{path}.lora_B", f"{path}.lora_A", keep_step=merging)
            if merging:
                layer.redraw(rng)
            if not warm:
                optimizer.reset(f"{path}.weight")
            layer.train(warm)
    if rewarm and not warm and (first or done >= every):  # a run's own warm-up is that of its first cycle
        optimizer.lr *= min(1, done % every / min(rewarm, every))


def held(out_features, in_features, rank, alpha, every, warm_start, rewarm):
    return trained(out_features * rank, rank * in_features, frozen=out_features * in_features)


def held_first(out_features, in_features, rank, alpha, every, warm_start, rewarm):
    """In the full-rank start; None where there is none."""
    adapters = out_features * rank + rank * in_features
    return trained(out_features * in_features, frozen=adapters) if warm_start else None


def put_first(layer):
    """As it computes then."""
    layer.train(True)
