"""Ops that do several steps at once, each with one derived backward. `composed.py` has them from primitive ops.

The arithmetic is in `minisl.kernels`, once per backend: `numpy_fused.py` to read, `cpu/` to run.
Shapes: B sequences, T tokens, D features, H heads of width d, V vocabulary, N = B T rows.
"""

import numpy as np

from minisl import kernels
from minisl.autograd.ops import composed
from minisl.autograd.tensor import Function
from minisl.backend import IGNORE_LABEL, array_module


class Linear(Function):
    """Y = X W^T with X (..., in), W (out, in).    dX = dY W,  dW = dY^T X"""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save(x, weight)
        return kernels.of(x).linear(rows(x), weight).reshape(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved
        dx, dweight = kernels.of(x).linear_backward(rows(grad), rows(x), weight, ctx.needs[0])
        return None if dx is None else dx.reshape(x.shape), dweight


class CrossEntropy(Function):
    """l = sum_n (logsumexp(z_n) - z_n[label_n]) over rows with a label;  mean: divided by their number.

    dz_n = softmax(z_n) - onehot(label_n), times dl (over their number), and 0 where the label is ignored.
    """

    @staticmethod
    def forward(ctx, logits, labels, mean):
        count = (labels != IGNORE_LABEL).sum().astype(logits.dtype) if mean else logits.dtype.type(1)
        loss, logsumexp = kernels.of(logits).cross_entropy(logits, labels)
        ctx.save(logits, labels, logsumexp, count)
        return loss / count

    @staticmethod
    def backward(ctx, grad):
        logits, labels, logsumexp, count = ctx.saved
        return kernels.of(logits).cross_entropy_backward(grad / count, logits, labels, logsumexp)


class LinearCrossEntropy(Function):
    """l = s sum_n (logsumexp(z_n) - z_n[label_n]),  z = X W^T.    dz as in CrossEntropy, dX = dz W, dW = dz^T X

    The gradients are computed in the forward pass, from a slice of z at a time: z as a whole never exists.
    """

    @staticmethod
    def forward(ctx, x, weight, labels, scale):
        loss, dx, dweight = kernels.of(x).linear_cross_entropy(x, weight, labels, scale)
        ctx.save(dx, dweight)
        return loss

    @staticmethod
    def backward(ctx, grad):
        dx, dweight = ctx.saved
        if array_module(grad) is not np or grad != 1:  # on a GPU, to ask would be to wait
            dx, dweight = dx * grad, dweight * grad
        return dx, dweight


class RMSNorm(Function):
    """y = g x r,  r = (mean_i x_i^2 + eps)^(-1/2) over the last axis (D).

    dg = sum_n dy x r        dx = r (g dy) - x r^3 mean_i(g dy x)
    """

    @staticmethod
    def forward(ctx, x, gain, eps):
        y, r = kernels.of(x).rms_norm(rows(x), gain, eps)
        ctx.save(x, gain, r, eps)
        return y.reshape(x.shape)

    @staticmethod
    def rebuild(ctx):
        x, gain, _, eps = ctx.saved
        return kernels.of(x).rms_norm(rows(x), gain, eps)[0].reshape(x.shape)

    @staticmethod
    def backward(ctx, grad):
        x, gain, r, _ = ctx.saved
        dx, dgain = kernels.of(x).rms_norm_backward(rows(grad), rows(x), gain, r)
        return dx.reshape(x.shape), dgain


class SwiGLU(Function):
    """y = silu(a) b.    db = dy silu(a),  da = dy b s (1 + a (1 - s)),  s = sigmoid(a)"""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save(a, b)
        return kernels.of(a).swiglu(a, b)

    @staticmethod
    def rebuild(ctx):
        return kernels.of(ctx.saved[0]).swiglu(*ctx.saved)

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved
        return kernels.of(a).swiglu_backward(grad, a, b)


class Rope(Function):
    """Pairs (x_i, x_{i+d/2}) of a head turn by the angle t theta_i (half-rotation layout; RoFormer, eq. 34).

    y1 = x1 cos - x2 sin,  y2 = x2 cos + x1 sin.    The gradient turns back: the same with -sin
    """

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save(cos, sin)
        return kernels.of(x).rope(x, cos, sin)

    @staticmethod
    def backward(ctx, grad):
        cos, sin = ctx.saved
        return kernels.of(grad).rope(grad, cos, -sin)


class Attention(Function):
    """P = softmax(Q K^T / sqrt(d) + mask),  O = P V;  query i sees keys 0 .. i + (Tk - Tq).

    Q (B, H, Tq, d), K and V (B, H_kv, Tk, d); query head h uses key/value head h // (H / H_kv).
    dV = P^T dO,  dP = dO V^T,  dS = P (dP - sum_j dP_j P_j),  dQ = dS K / sqrt(d),  dK = dS^T Q / sqrt(d)
    and sum_j dP_j P_j = dO . O.
    """

    @staticmethod
    def forward(ctx, q, k, v):
        out, kept = kernels.of(q).attention(q, k, v)
        ctx.save(q, k, v, out, kept)
        return out

    @staticmethod
    def backward(ctx, grad):
        return kernels.of(grad).attention_backward(grad, *ctx.saved)


class Embedding(Function):
    """y[n] = W[id_n].    dW[v] = sum over n with id_n = v of dy[n]"""

    @staticmethod
    def forward(ctx, weight, ids):
        ctx.save(len(weight), ids)
        return weight[ids]

    @staticmethod
    def backward(ctx, grad):
        vocab, ids = ctx.saved
        return kernels.of(grad).embedding_backward(rows(grad), ids.reshape(-1), vocab)


def rows(x):
    """(..., D) as (N, D)"""
    return x.reshape(-1, x.shape[-1])


def linear(x, weight):
    """x W^T: x (..., in), weight (out, in) to (..., out). Raises ValueError for widths that differ."""
    return Linear.apply(x, weight)


def cross_entropy(logits, labels, reduction="mean", label_smoothing=0.0):
    """Negative log-likelihood in nats of integer `labels` (...) under `logits` (..., V); label -100 is ignored.

    reduction "mean": over the labels that count (the token-weighted mean); "sum": their total; "none": of each, 0 where ignored.
    label_smoothing: this share of the loss is the mean over the vocabulary (as in PyTorch). It and "none" are a composition.
    Labels on the host go to where the logits are; those on a GPU are taken as they are, since to look at them is to wait.
    Raises ValueError: the mean of no labels, or shapes differ; IndexError: a label outside 0..V-1.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"cross_entropy: reduction {reduction!r}; allowed: mean, sum, none")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing {label_smoothing}; must be from 0 to 1")
    check_labels("cross_entropy", "logits", logits.shape, labels, logits.shape[-1])
    if reduction == "mean" and array_module(labels) is np and (labels == IGNORE_LABEL).all():
        raise ValueError("cross_entropy: every label is ignored, the mean over none is undefined")
    if reduction == "none" or label_smoothing:
        return composed.cross_entropy(logits, array_module(logits.data).asarray(labels), reduction, label_smoothing)
    labels = array_module(logits.data).asarray(labels.reshape(-1))
    return CrossEntropy.apply(logits.reshape(-1, logits.shape[-1]), labels=labels, mean=reduction == "mean")


def linear_cross_entropy(x, weight, labels, scale=1.0):
    """scale times the summed cross-entropy of `labels` (...) under the logits x W^T, x (..., D), W (V, D), without the logits.

    Takes labels, and raises, as `cross_entropy`.
    """
    check_labels("linear_cross_entropy", "x", x.shape, labels, len(weight))
    labels = array_module(x.data).asarray(labels.reshape(-1))
    return LinearCrossEntropy.apply(x.reshape(-1, x.shape[-1]), weight, labels=labels, scale=scale)


def check_labels(op, name, shape, labels, vocab):
    """Raise ValueError for labels of another shape, not integers, or outside of the vocabulary."""
    if shape[:-1] != labels.shape:
        raise ValueError(f"{op}: {name} {shape} needs labels {shape[:-1]}, got {labels.shape}")
    if array_module(labels) is not np:
        return
    bad = (labels != IGNORE_LABEL) & ((labels < 0) | (labels >= vocab))
    if bad.any():
        raise IndexError(f"{op}: label {int(labels[bad][0])} is outside 0..{vocab - 1} (and not {IGNORE_LABEL})")


def rms_norm(x, gain, eps):
    """x (..., D), gain (D,): x over its root mean square, times gain (Zhang and Sennrich 2019)."""
    return RMSNorm.apply(x, gain, eps=eps)


def swiglu(gate, up):
    """silu(gate) * up (Shazeer 2020)."""
    return SwiGLU.apply(gate, up)


def rope(x, cos, sin):
    """Rotary position embedding of x (B, H, T, d) with cos and sin (T, d/2) of the angles."""
    return Rope.apply(x, cos=cos, sin=sin)


def attention(q, k, v):
    """Causal attention: q (B, H, Tq, d), k and v (B, H_kv, Tk, d), the last query aligned with the last key."""
    return Attention.apply(q, k, v)


def embedding(weight, ids):
    """weight (V, D), ids any shape of integers in 0..V-1: (..., D).

    Ids on the host go to where the weight is; raises IndexError for one outside. Those on a GPU are taken as they are.
    """
    if array_module(ids) is np and ids.size and not (0 <= int(ids.min()) and int(ids.max()) < weight.shape[0]):
        raise IndexError(f"embedding: ids run from {int(ids.min())} to {int(ids.max())}; "
                         f"the table has rows 0..{weight.shape[0] - 1}")
    return Embedding.apply(weight, ids=array_module(weight.data).asarray(ids))
