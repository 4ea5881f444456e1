"""Ops that do several steps at once, each with one derived backward. `composed.py` has them from primitive ops.

The arithmetic is in `minisl.kernels`, once per backend: `numpy_fused.py` to read, `cpu/` to run.
Shapes: B sequences, T tokens, D features, H heads of width d, V vocabulary, N = B T rows.
"""

import numpy as np

from minisl.autograd.ops import composed
from minisl.autograd.tensor import Function
from minisl.backend import IGNORE_LABEL, array_module
from minisl.kernels import as_rows, fitting


class Linear(Function):
    """Y = X W^T with X (..., in), W (out, in).    dX = dY W,  dW = dY^T X"""

    @staticmethod
    def forward(ctx, x, weight):
        on, x, weight = fitting("linear", x, weight)
        ctx.save(on, x, weight)
        return on.module.linear(as_rows(x), weight).reshape(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx, grad):
        on, x, weight = ctx.saved
        dx, dweight = on.linear_backward(as_rows(grad), as_rows(x), weight, ctx.needs[0])
        return None if dx is None else dx.reshape(x.shape), dweight


class CrossEntropy(Function):
    """l = sum_n (logsumexp(z_n) - z_n[label_n]) over rows with a label;  mean: divided by their number.

    dz_n = softmax(z_n) - onehot(label_n), times dl (over their number), and 0 where the label is ignored.
    """

    @staticmethod
    def forward(ctx, logits, labels, mean):
        on, logits, labels = fitting("cross_entropy", logits, labels)
        labels = labels.reshape(-1)
        count = (labels != IGNORE_LABEL).sum().astype(logits.dtype) if mean else logits.dtype.type(1)
        loss, kept = on.module.cross_entropy(as_rows(logits), labels)
        ctx.save(on, logits, labels, kept, count)
        return loss / count

    @staticmethod
    def backward(ctx, grad):
        on, logits, labels, kept, count = ctx.saved
        return on.cross_entropy_backward(grad / count, as_rows(logits), labels, kept).reshape(logits.shape)


class LinearCrossEntropy(Function):
    """l = s sum_n (logsumexp(z_n) - z_n[label_n]),  z = X W^T.    dz as in CrossEntropy, dX = dz W, dW = dz^T X

    The gradients are computed in the forward pass, from a slice of z at a time: z as a whole never exists.
    """

    @staticmethod
    def forward(ctx, x, weight, labels, scale):
        on, x, weight, labels, scale = fitting("linear_cross_entropy", x, weight, labels, scale)
        loss, dx, dweight = on.module.linear_cross_entropy(as_rows(x), weight, labels.reshape(-1), scale)
        ctx.save(dx.reshape(x.shape), dweight)
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
        on, x, gain, eps = fitting("rms_norm", x, gain, eps)
        y, r = on.module.rms_norm(as_rows(x), gain, eps)
        ctx.save(on, x, gain, r, eps)
        return y.reshape(x.shape)

    @staticmethod
    def rebuild(ctx):
        on, x, gain, _, eps = ctx.saved
        return on.module.rms_norm(as_rows(x), gain, eps)[0].reshape(x.shape)

    @staticmethod
    def backward(ctx, grad):
        on, x, gain, r, _ = ctx.saved
        dx, dgain = on.rms_norm_backward(as_rows(grad), as_rows(x), gain, r)
        return dx.reshape(x.shape), dgain


class SwiGLU(Function):
    """y = silu(a) b.    db = dy silu(a),  da = dy b s (1 + a (1 - s)),  s = sigmoid(a)"""

    @staticmethod
    def forward(ctx, a, b):
        on, a, b = fitting("swiglu", a, b)
        ctx.save(on, a, b)
        return on.module.swiglu(a, b)

    @staticmethod
    def rebuild(ctx):
        on, a, b = ctx.saved
        return on.module.swiglu(a, b)

    @staticmethod
    def backward(ctx, grad):
        on, a, b = ctx.saved
        return on.swiglu_backward(grad, a, b)


class Rope(Function):
    """Pairs (x_i, x_{i+d/2}) of a head turn by the angle t theta_i (half-rotation layout; RoFormer, eq. 34).

    y1 = x1 cos - x2 sin,  y2 = x2 cos + x1 sin.    The gradient turns back: the same with -sin
    """

    @staticmethod
    def forward(ctx, x, cos, sin):
        on, x, cos, sin = fitting("rope", x, cos, sin)
        ctx.save(on, cos, sin)
        return on.module.rope(x, cos, sin)

    @staticmethod
    def backward(ctx, grad):
        on, cos, sin = ctx.saved
        return on.rope(grad, cos, -sin)


class Attention(Function):
    """P = softmax(Q K^T / sqrt(d) + mask),  O = P V;  query i sees keys 0 .. i + (Tk - Tq).

    Q (B, H, Tq, d), K and V (B, H_kv, Tk, d); query head h uses key/value head h // (H / H_kv).
    dV = P^T dO,  dP = dO V^T,  dS = P (dP - sum_j dP_j P_j),  dQ = dS K / sqrt(d),  dK = dS^T Q / sqrt(d)
    and sum_j dP_j P_j = dO . O.
    """

    @staticmethod
    def forward(ctx, q, k, v):
        on, q, k, v = fitting("attention", q, k, v)
        out, kept = on.module.attention(q, k, v)
        ctx.save(on, q, k, v, out, kept)
        return out

    @staticmethod
    def backward(ctx, grad):
        on, *saved = ctx.saved
        return on.attention_backward(grad, *saved)


class Embedding(Function):
    """y[n] = W[id_n].    dW[v] = sum over n with id_n = v of dy[n]"""

    @staticmethod
    def forward(ctx, weight, ids):
        on, weight, ids = fitting("embedding", weight, ids)
        ctx.save(on, len(weight), ids)
        return weight[ids]

    @staticmethod
    def backward(ctx, grad):
        on, vocab, ids = ctx.saved
        return on.embedding_backward(as_rows(grad), ids.reshape(-1), vocab)


def linear(x, weight):
    """x W^T: x (..., in), weight (out, in) to (..., out). Raises, as all ops here, ValueError for shapes and TypeError for dtypes
    that do not fit (`minisl.kernels.contract`)."""
    return Linear.apply(x, weight)


def cross_entropy(logits, labels, reduction="mean", label_smoothing=0.0):
    """Negative log-likelihood in nats of integer `labels` (...) under `logits` (..., V); label -100 is ignored.

    reduction "mean": over the labels that count (the token-weighted mean); "sum": their total; "none": each,
    0 where ignored.
    label_smoothing: this share of the loss is the mean over the vocabulary (as in PyTorch). It and "none" are a composition.
    Labels on the host go to where the logits are; those on a GPU are taken as they are, since to look at them is to wait.
    Raises ValueError: the mean of no labels, or shapes differ; TypeError: labels are no integers; IndexError: one is outside
    0..V-1.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"cross_entropy: reduction {reduction!r}; allowed: mean, sum, none")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing {label_smoothing}; must be from 0 to 1")
    if reduction == "mean" and isinstance(labels, np.ndarray) and (labels == IGNORE_LABEL).all():
        raise ValueError("cross_entropy: every label is ignored, the mean over none is undefined")
    if reduction == "none" or label_smoothing:
        _, _, labels = fitting("cross_entropy", logits.data, labels)
        return composed.cross_entropy(logits, labels, reduction, label_smoothing)
    return CrossEntropy.apply(logits, labels=labels, mean=reduction == "mean")


def linear_cross_entropy(x, weight, labels, scale=1.0):
    """scale times the summed cross-entropy of `labels` (...) under the logits x W^T, x (..., D), W (V, D), without the logits.

    Takes labels, and raises, as `cross_entropy`.
    """
    return LinearCrossEntropy.apply(x, weight, labels=labels, scale=scale)


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
    return Embedding.apply(weight, ids=ids)
