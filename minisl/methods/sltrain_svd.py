"""SLTrain with weight refactorization and momentum reset (Glentis, Li, Shang, Han et al. 2025, arXiv 2505.22922).

    B A = U diag(s) V^T,   B <- U diag(sqrt(s)),   A <- diag(sqrt(s)) V^T        after updates K, 2K, ...
    moments and count of steps of all parameters <- 0,   learning rate <- eta (0.001 + 0.999 min(1, k/9))

with k the updates since, of which ten bring the rate back. W does not change, as B A does not and alpha/r stays outside; nothing
of S is touched. What changes is how the next gradients look: dB = (alpha/r) dW A^T has the size of A, and dA = (alpha/r) B^T dW
that of B, which starts at 0 and is the smaller for long. After a split B^T B = A A^T = diag(s).

B A itself is never formed; with B = Qb Rb and A^T = Qa Ra, work of r^2 (out + in) does it:

    B A = Qb (Rb Ra^T) Qa^T,   Rb Ra^T = u diag(s) v^T (r x r),   U = Qb u,   V = Qa v

Beside SLTrain: the same W, start and memory; only the coordinates of B A, and so Adam's view of them, are others.
State: r (out + in) + nnz weights, as many of each moment, and nnz indices, as `sltrain`.
Pitfalls: of B = 0 all s are 0: A would be set to 0 as well, and two zero factors have no gradient ever after; so a matrix whose B
is still 0 is left alone. After a reset Adam's next step is lr in every entry (bias correction), hence the low rates. With
--no-reset the moments are those of the old coordinates, and the rate stays: for comparison.
Our reading: as in the code, whose new schedule is one update ahead: the first update after a split has k = 1, and the last one of
each later cycle k = 0, a thousandth of the rate. There the ten are parts of the schedule's rate after them; here each is of its
own. K is an argument there without a value that we know; 200 is ours.
"""

import math

from minisl.backend import array_module
from minisl.methods import Flag, sltrain
from minisl.methods.sltrain import SLLinear

OPTIONS = (
    *sltrain.OPTIONS,
    Flag("every", 200, "updates between the splits", low=2),
    Flag("reset", True, "forget all moments at each, and let the rate recover over ten updates"),
)
RECOVERY = 10


def balanced(B, A):
    """Factors of the same B A with B^T B = A A^T diagonal, largest first."""
    xp = array_module(B)
    (Qb, Rb), (Qa, Ra) = xp.linalg.qr(B), xp.linalg.qr(A.T)
    u, s, vt = xp.linalg.svd(Rb @ Ra.T)
    root = xp.sqrt(s)
    return Qb @ (u * root), (root[:, None] * vt) @ Qa.T


def linear(in_features, out_features, rng, dtype, every, reset, **options):
    return sltrain.linear(in_features, out_features, rng, dtype, **options)


def before_step(model, optimizer, step, steps, rng, every, reset, **options):
    if step <= every:
        return
    if step % every == 1:
        for _, layer in model.named_modules():
            if isinstance(layer, SLLinear):
                B, A = layer.lora_B.data, layer.lora_A.data
                if 0 < float(abs(B).sum() * abs(A).sum()) < math.inf:  # neither 0 nor diverged
                    layer.lora_B.data, layer.lora_A.data = balanced(B, A)
        if reset:
            optimizer.reset(*optimizer.parameters)
    if reset:
        optimizer.lr *= 0.001 + 0.999 * min(1, step % every / (min(RECOVERY, every) - 1))


def held(out_features, in_features, every, reset, **options):
    return sltrain.held(out_features, in_features, **options)
