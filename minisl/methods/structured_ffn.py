"""Structured FFN with self-guided training (Wei, Moalla, Pascanu, Gulcehre, NeurIPS 2024, arXiv 2406.16450).

The matrices of the MLP alone (gate, up, down) become a product of two structured ones; attention stays dense:

    low_rank        y = U (V x)           V (r, in), U (out, r): the r leading triplets of a drawn N(0, 0.02^2)
    block_dense     y = U diag(V_i) x     V_i (k/b, in/b), U (out, k): orthogonal, i = 1 .. b
    block_shuffle   y = diag(U_j) P diag(V_i) x          V_i (r, in/b), U_j (out/b, r): orthogonal (Monarch)

P sends hidden unit u to block u mod b, so that where b <= r every U_j sees every V_i. The parameters are those of rank r: about,
by k = r (in + out) / (in/b + out) to a multiple of b; exactly, and with full rank, by b = min(in, out) / r in block_shuffle.

Self-guided: a dense W_g, which starts as the product (so nothing changes at the start), trains first and hands over:

    o = a W_g x + (1 - a) U (V x)         a = (1 + cos(pi t / T)) / 2 after t updates, T = guided x steps; 0 from T on

From then on W_g is neither computed nor trained, and its moments are dropped; frozen, it waits for the run's end.

Beside SLTrain: what low rank lacks is lent for the first half of the run instead of being kept as S, and only in the MLP.
State: r (out + in) weights, as many of each moment; in the first half out in more of all three, then out in frozen weights.
Pitfalls: in the first half peak memory is above that of full-rank training: this buys a better small model, not a cheaper run. At
a = 1 U and V have no gradient, so the first update leaves them. Orthogonal factors give W singular values of 1 at every size;
those of N(0, 0.02^2) grow with it, to 0.6 at 128 x 344 and 1.2 at 512 x 1376.
Our reading: published for GPT-2 (rate 6e-4, weight decay 0.1, clipping at 1), where the first MLP may stay dense; not here. The
public code cuts T to an integer. It starts block_shuffle's W_g without P, so there the start does change, and it shuffles the
outputs too, which only renames them. A guide once dropped stays so, also where a resumed run is given more steps; resumed with
more before that, a goes back up to what it is in the longer run, and the function changes.
"""

import math

import numpy as np

from minisl.autograd import Tensor, no_grad, ops
from minisl.backend import array_module
from minisl.errors import InputError
from minisl.methods import Flag, check_rank, trained
from minisl.nn import init
from minisl.nn.module import Module, Parameter

ONLY = ("gate_proj", "up_proj", "down_proj")
OPTIONS = (
    "rank",
    Flag("kind", "low_rank", "the structure", choices=("low_rank", "block_dense", "block_shuffle")),
    Flag("blocks", 4, "blocks b of block_dense", low=1),
    Flag("guided", 0.5, "share of the run in which a dense guide helps; 0: none", high=1),
)


def shapes(out_features, in_features, rank, kind, blocks):
    """Shapes of V and U. Raises InputError where the blocks do not fit."""
    check_rank(rank, in_features, out_features)
    short, matrix = min(in_features, out_features), f"a {out_features} x {in_features} matrix"
    if kind == "low_rank":
        return (rank, in_features), (out_features, rank)
    if kind == "block_shuffle":
        b = short // rank
        if short % rank or in_features % b or out_features % b:
            raise InputError(f"--kind block_shuffle --rank {rank}: {matrix} has {short} / {rank} blocks, "
                             "which must be a whole number that divides both sides")
        return (b, rank, in_features // b), (b, out_features // b, rank)
    b = blocks
    if in_features % b:
        raise InputError(f"--blocks {b}: does not divide the {in_features} columns of {matrix}")
    k = b * max(1, round(rank * (in_features + out_features) / (in_features / b + out_features) / b))
    if k > short:
        raise InputError(f"--kind block_dense --rank {rank}: so many parameters make {k} hidden units of {matrix}; "
                         f"allowed: {short}")
    return (b, k // b, in_features // b), (out_features, k)


def orthogonal(rng, shape, dtype):
    """Rows or columns orthonormal, whichever are fewer, in each of the stacked matrices."""
    drawn = init.normal(rng, shape, 1, dtype)
    if rng is None:
        return drawn
    U, _, Vt = np.linalg.svd(drawn, full_matrices=False)
    return U @ Vt


def product(x, M, shuffle=False):
    """M x, or diag(M_1, ..., M_b) x of a stack of blocks. shuffle: unit u of x goes to block u mod b."""
    if M.ndim == 2:
        return ops.linear(x, M)
    b, q, p = M.shape
    x = x.reshape(-1, p, b).permute(2, 0, 1) if shuffle else x.reshape(-1, b, p).permute(1, 0, 2)  # (b, N, p)
    return (x @ M.swapaxes(1, 2)).permute(1, 0, 2).reshape(-1, b * q)


class StructuredLinear(Module):
    """y = U (V x)"""

    def __init__(self, in_features, out_features, rng, dtype="float32", *, rank, kind, blocks):
        V_shape, U_shape = shapes(out_features, in_features, rank, kind, blocks)
        self.shape, self.shuffle = (out_features, in_features), kind == "block_shuffle"
        if kind == "low_rank" and rng is not None:
            U, s, Vt = np.linalg.svd(init.normal(rng, self.shape, 0.02, dtype), full_matrices=False)
            root = np.sqrt(s[:rank])
            V, U = root[:, None] * Vt[:rank], U[:, :rank] * root
        else:
            V, U = orthogonal(rng, V_shape, dtype), orthogonal(rng, U_shape, dtype)
        self.V, self.U = Parameter(V), Parameter(U)

    def forward(self, x):
        y = product(product(x.reshape(-1, x.shape[-1]), self.V), self.U, self.shuffle)
        return y.reshape(*x.shape[:-1], self.shape[0])

    def to_dense(self):
        """W (out, in) as an array: what the unit vectors become."""
        with no_grad():
            return self(Tensor(array_module(self.V.data).eye(self.shape[1], dtype=self.V.dtype))).data.T.copy()


class Guided(Module):
    """o = a W_g x + (1 - a) student(x).    A checkpoint keeps a, as the buffer `share`"""

    buffers = ("share",)

    def __init__(self, student, rng):
        start = init.constant(None, student.shape, 0, student.V.dtype) if rng is None else student.to_dense()
        self.student, self.guide, self.a = student, Parameter(start), 1.0

    @property
    def share(self):
        return np.asarray(self.a, self.guide.dtype)

    @share.setter
    def share(self, array):
        self.a = float(array)

    def forward(self, x):
        if self.a == 0:
            return self.student(x)
        return ops.linear(x, self.guide) * self.a + self.student(x) * (1 - self.a)

    def to_dense(self):
        """W (out, in) as an array."""
        return self.a * self.guide.data + (1 - self.a) * self.student.to_dense()


def linear(in_features, out_features, rng, dtype, guided, **options):
    student = StructuredLinear(in_features, out_features, rng, dtype, **options)
    return Guided(student, rng) if guided else student


def before_step(model, optimizer, step, steps, rng, guided, **options):
    for path, layer in model.named_modules():
        if isinstance(layer, Guided):
            t, T = step - 1, guided * steps
            layer.a = (1 + math.cos(math.pi * t / T)) / 2 if t < T and layer.a else 0.0
            if not layer.a:
                layer.guide.requires_grad = False
                optimizer.reset(f"{path}.guide")


def held(out_features, in_features, rank, kind, blocks, guided):
    """Once the guide is dropped."""
    sizes = map(math.prod, shapes(out_features, in_features, rank, kind, blocks))
    return trained(*sizes, frozen=out_features * in_features + 1 if guided else 0)


def held_first(out_features, in_features, rank, kind, blocks, guided):
    """While the guide is there; None where there is none."""
    sizes = map(math.prod, shapes(out_features, in_features, rank, kind, blocks))
    return trained(*sizes, out_features * in_features, frozen=1) if guided else None


def put_first(layer):
    """As it computes then."""
    layer.a = 0.5
