"""SwitchLoRA: switched low-rank adaptation can learn full-rank information (Zhou, Wang, Xu, 2024, arXiv 2406.06564).

    y = x (W + s B A)^T,  s = alpha/r,  alpha = 1            W (out, in) frozen, B (out, r) and A (r, in) trained
    switch row k of A for a candidate c:    W <- W + s B[:,k] (A[k] - c),   A[k] <-> c
    its counterpart, column k of B:         moments and count of updates <- 0, then held fast for 5 updates
    and with A and B changed over:          W <- W + s (B[:,k] - c) A[k],   B[:,k] <-> c,   row k of A reset and held
    switches of each kind at update t:      r rho/T on average,  rho = 0.3^((t - 1)/t*),  t* a tenth of the run,  T = --every

There are min(out, in) rows for A and as many columns for B, of which r are in use. A switch leaves the function as it is. But
A[k] says in which direction column B[:,k] moves W: what Adam remembers of that column now belongs to another direction.

Beside SLTrain: rank comes from trading the vectors of B and A, a few at each update, against a frozen dense W.
State: out in + (min(out, in) - r)(out + in) frozen weights, r (out + in) trained ones with as many of each moment, 2 r counts of
updates, and the number of switches. The candidates, more than W where r is small, could wait in slower memory; here they do not.
Pitfalls: it is the counterpart that is reset, not the vector that came in. A held vector's gradient must be zero before Adam sees
it, not after. With one count of updates for all, a reset vector's first step would be three times too long. s = 1/r is tiny,
hence the published rate of 0.02, which does not carry over to or from ReLoRA with its s = 0.25.
Our reading: candidates wait in line, and a vector switched out goes to its end; rows of A and columns of B take turns half a
round apart, and a turn waits that would take a vector still held. In the code those in use are part of one ring, which comes to
the same vectors at the same places. Its rho has t in the exponent, and its held vectors decay. A count begins after the hold. A
norm that is clipped has the held vectors' gradients in it. Moments are always those of the Adam below; --optimizer is for the
rest of the model. W starts from N(0, 0.02^2), and the first B A is not taken off.
"""

import math

import numpy as np

from minisl.autograd import ops
from minisl.backend import array_module, to_numpy
from minisl.errors import InputError
from minisl.methods import Flag, Held
from minisl.methods.relora import Adapted
from minisl.nn import init
from minisl.nn.module import Module, Parameter
from minisl.optim import Rule

OPTIONS = ("rank",
           Flag("switch_alpha", 1.0, "B A is scaled by this / rank"),
           Flag("every", 40, "at the start a vector is switched about once in so many updates", low=1),
           Flag("hold", 5, "updates for which a switched vector's counterpart is held fast"))
SHARDS = False  # who is held, and so not switched, is what the rules remember


class SwitchLoRALinear(Module):
    """lora_B (out, r) and lora_A (r, in) are trained; weight (out, in), spare_B (out, s - r), spare_A (s - r, in) are not.

    spare_B and spare_A are the candidates, s = min(out, in). switches (1,): how many there have been of each kind.
    """

    buffers = ("weight", "spare_B", "spare_A", "switches")

    def __init__(self, in_features, out_features, rng, dtype="float32", *, rank, alpha):
        m, n, r, s = out_features, in_features, rank, min(out_features, in_features)
        if not 2 <= r < s:
            raise InputError(f"rank is {r}; to take turns, and have candidates left, a {m} x {n} matrix allows 2 to {s - 1}")
        gain = 3**-0.5  # of a leaky ReLU of slope sqrt(5)
        bound_B = (3 * gain)**0.5 * (r / (m * n)**0.5)**0.25  # sqrt(3) standard deviations
        bound_A = (3 * gain)**0.5 * (m**0.5 * r / n**1.5)**0.25
        self.weight = init.normal(rng, (m, n), 0.02, dtype)
        self.lora_B = Parameter(init.uniform(rng, (m, r), bound_B, dtype))
        self.lora_A = Parameter(init.uniform(rng, (r, n), bound_A, dtype))
        self.spare_B = init.uniform(rng, (m, s - r), bound_B, dtype)
        self.spare_A = init.uniform(rng, (s - r, n), bound_A, dtype)
        self.switches = init.constant(rng, 1, 0, "int32")
        self.scale = alpha / r

    def forward(self, x):
        return ops.linear(x, Adapted.apply(self.lora_B, self.lora_A, W=self.weight, s=self.scale))

    def switch(self, count, held_A=False, held_B=False):
        """Switch so many rows of A, then columns of B, or as many as come before one that is held: held_A, held_B (r,).

        Returns (rows of A, columns of B) that were switched.
        """
        A, B, xp = self.lora_A.data, self.lora_B.data, array_module(self.weight)
        r, spare = len(A), len(self.spare_A)
        turn = int(self.switches[0]) + np.arange(min(count, spare, r // 2))
        rows, columns, line = turn % r, (turn + r // 2) % r, turn % spare
        held = np.broadcast_to(held_A, r)[rows] | np.broadcast_to(held_B, r)[columns]
        free = int(held.argmax()) if held.any() else len(turn)
        self.switches += free
        rows, columns, line = (xp.asarray(i[:free]) for i in (rows, columns, line))

        old, new = A[rows], self.spare_A[line]
        self.weight += (self.scale * B[:, rows]) @ (old - new)
        A[rows], self.spare_A[line] = new, old

        old, new = B[:, columns], self.spare_B[:, line]
        self.weight += (self.scale * (old - new)) @ A[columns]
        B[:, columns], self.spare_B[:, line] = new, old
        return rows, columns

    def to_dense(self):
        """W + s B A (out, in) as an array."""
        return self.weight + (self.scale * self.lora_B.data) @ self.lora_A.data


class VectorAdam(Rule):
    """Adam of a matrix whose vectors (rows for axis 0, columns for axis 1) count their updates, t, each for itself.

    State: exp_avg and exp_avg_sq as Adam's; age of each vector: t, or 0 and below while it is held.
    """

    state = "exp_avg", "exp_avg_sq", "age"

    def __init__(self, like, axis, betas=(0.9, 0.999), eps=1e-8):
        self.axis, self.betas, self.eps = axis, betas, eps
        xp = array_module(like)
        self.exp_avg, self.exp_avg_sq = xp.zeros_like(like), xp.zeros_like(like)
        self.age = xp.zeros((len(like), 1) if axis == 0 else (1, like.shape[1]), like.dtype)

    def restart(self, vectors, hold):
        """Forget what is known of these vectors, and leave them alone for so many updates."""
        where = (vectors,) if self.axis == 0 else (slice(None), vectors)
        self.exp_avg[where] = self.exp_avg_sq[where] = 0
        self.age[where] = -hold

    def update(self, weights, gradient, lr):
        step = self.direction(gradient)
        if self.weight_decay:
            weights *= 1 - lr * self.weight_decay * (self.age > 0)  # what is held does not decay
        weights -= lr * step

    def direction(self, gradient):
        xp, (b1, b2), m, v = array_module(gradient), self.betas, self.exp_avg, self.exp_avg_sq
        self.age += 1
        g, t = gradient * (self.age > 0), xp.maximum(self.age, 1)
        m *= b1
        m += (1 - b1) * g
        v *= b2
        v += (1 - b2) * g * g
        mhat, vhat = (x / -xp.expm1(t * math.log(b)) for x, b in ((m, b1), (v, b2)))  # over 1 - b^t
        return mhat / (xp.sqrt(vhat) + self.eps)


def linear(in_features, out_features, rng, dtype, *, rank, switch_alpha, every, hold):
    return SwitchLoRALinear(in_features, out_features, rng, dtype, rank=rank, alpha=switch_alpha)


def rule(name, like, base, rng_at, **options):
    return VectorAdam(like, axis=0 if name.endswith("lora_A") else 1)


def before_step(model, optimizer, step, steps, rng, *, rank, switch_alpha, every, hold):
    rho = 0.3 ** ((step - 1) / (0.1 * steps))
    for path, layer in model.named_modules():
        if isinstance(layer, SwitchLoRALinear):
            count = int(rank * rho / every + rng.random())  # the fraction by chance
            if count:
                rule_A, rule_B = (optimizer.rule(f"{path}.{name}") for name in ("lora_A", "lora_B"))
                rows, columns = layer.switch(count, *(to_numpy(rule.age).ravel() < 0 for rule in (rule_A, rule_B)))
                rule_B.restart(rows, hold)
                rule_A.restart(columns, hold)


def held(out_features, in_features, rank, switch_alpha, every, hold):
    trained = rank * out_features, rank * in_features
    spare = (min(out_features, in_features) - rank) * (out_features + in_features)
    return Held(trained, frozen=out_features * in_features + spare, state=2 * sum(trained) + 2 * rank, indices=1)
