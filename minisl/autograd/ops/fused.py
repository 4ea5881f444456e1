"""Ops that do several steps at once, each with one derived backward. `composed.py` has them from primitive ops.

Shapes: B sequences, T tokens, D features, H heads of width d, V vocabulary, N = B T rows.
"""

import math

import numpy as np

from minisl.autograd.ops.elementwise import logistic
from minisl.autograd.tensor import Function
from minisl.backend import IGNORE_LABEL, array_module


class Linear(Function):
    """Y = X W^T with X (..., in), W (out, in).    dX = dY W,  dW = dY^T X"""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save(x, weight)
        return (x.reshape(-1, x.shape[-1]) @ weight.T).reshape(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved
        dy = grad.reshape(-1, len(weight))
        dx = (dy @ weight).reshape(x.shape) if ctx.needs[0] else None
        return dx, dy.T @ x.reshape(-1, x.shape[-1])


class CrossEntropy(Function):
    """l = sum_n (logsumexp(z_n) - z_n[label_n]) over rows with a label;  mean: divided by their number.

    dz_n = softmax(z_n) - onehot(label_n), times dl (over their number), and 0 where the label is ignored.
    """

    @staticmethod
    def forward(ctx, logits, labels, mean):
        xp = array_module(logits)
        rows = xp.flatnonzero(labels != IGNORE_LABEL)
        highest = logits.max(axis=1)
        e = logits - highest[:, None]
        logsumexp = highest + xp.log(xp.exp(e, out=e).sum(axis=1))
        count = len(rows) if mean else 1
        ctx.save(logits, logsumexp, rows, labels[rows], count)
        return (logsumexp[rows] - logits[rows, labels[rows]]).sum() / logits.dtype.type(count)

    @staticmethod
    def backward(ctx, grad):
        logits, logsumexp, rows, labels, count = ctx.saved
        dz = logits - logsumexp[:, None]
        array_module(dz).exp(dz, out=dz)
        dz[rows, labels] -= 1
        if len(rows) < len(dz):
            kept = array_module(dz).zeros((len(dz), 1), dz.dtype)
            kept[rows] = 1
            dz *= kept
        dz *= grad / count
        return dz


class RMSNorm(Function):
    """y = g x r,  r = (mean_i x_i^2 + eps)^(-1/2) over the last axis (D).

    dg = sum_n dy x r        dx = r (g dy) - x r^3 mean_i(g dy x)
    """

    @staticmethod
    def forward(ctx, x, gain, eps):
        r = (mean_product(x, x) + x.dtype.type(eps)) ** -0.5
        ctx.save(x, gain, r)
        y = x * r
        y *= gain
        return y

    @staticmethod
    def backward(ctx, grad):
        x, gain, r = ctx.saved
        normed = x * r
        dgain = (grad * normed).reshape(-1, len(gain)).sum(axis=0)
        dx = grad * gain
        normed *= mean_product(dx, normed)
        dx -= normed
        dx *= r
        return dx, dgain


class SwiGLU(Function):
    """y = silu(a) b.    db = dy silu(a),  da = dy b s (1 + a (1 - s)),  s = sigmoid(a)"""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save(a, b)
        half = 0.5 * a
        y = array_module(a).tanh(half)  # silu(a) = a/2 (1 + tanh(a/2))
        y += 1
        y *= half
        y *= b
        return y

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved
        s = logistic(a)
        silu = s * a
        db = grad * silu
        da = 1 - s
        da *= silu
        da += s
        da *= grad
        da *= b
        return da, db


class Rope(Function):
    """Pairs (x_i, x_{i+d/2}) of a head turn by the angle t theta_i (half-rotation layout; RoFormer, eq. 34).

    y1 = x1 cos - x2 sin,  y2 = x2 cos + x1 sin.    The gradient turns back: the same with -sin
    """

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save(cos, sin)
        return rotate(x, cos, sin)

    @staticmethod
    def backward(ctx, grad):
        cos, sin = ctx.saved
        return rotate(grad, cos, -sin)


class Attention(Function):
    """P = softmax(Q K^T / sqrt(d) + mask),  O = P V;  query i sees keys 0 .. i + (Tk - Tq).

    Q (B, H, Tq, d), K and V (B, H_kv, Tk, d); query head h uses key/value head h // (H / H_kv).
    dV = P^T dO,  dP = dO V^T,  dS = P (dP - sum_j dP_j P_j),  dQ = dS K / sqrt(d),  dK = dS^T Q / sqrt(d)

    Kept is E = exp(S - max), keys down and queries across, where NumPy folds keys fastest. P = E / sum is never formed:
    the division moves to O, and with g = dO / sum also dS = E (g V^T - sum g O).
    """

    @staticmethod
    def forward(ctx, q, k, v):
        xp, root = array_module(q), 1 / math.sqrt(q.shape[-1])
        q = grouped(q * root, k.shape[1])  # (B, H_kv, H / H_kv, Tq, d)
        k, v = k[:, :, None], v[:, :, None]
        e = k @ q.swapaxes(-1, -2)  # (..., Tk, Tq)
        e += causal_mask(*e.shape[-2:], e)
        e -= e.max(axis=-2, keepdims=True)
        xp.exp(e, out=e)
        total = e.sum(axis=-2)[..., None]  # (..., Tq, 1)
        out = e.swapaxes(-1, -2) @ v
        out /= total
        ctx.save(q, k, v, e, total, out, root)
        return out.reshape(out.shape[0], -1, *out.shape[3:])

    @staticmethod
    def backward(ctx, grad):
        q, k, v, e, total, out, root = ctx.saved
        g = grouped(grad, k.shape[1]) / total
        dv = (e @ g).sum(axis=2)
        ds = v @ g.swapaxes(-1, -2)
        ds -= array_module(g).einsum("...td,...td->...t", g, out)[..., None, :]
        ds *= e
        dq = ds.swapaxes(-1, -2) @ k
        dq *= root
        dk = (ds @ q).sum(axis=2)
        return dq.reshape(dq.shape[0], -1, *dq.shape[3:]), dk, dv


def rotate(x, cos, sin):
    """x (..., T, d), cos and sin (T, d/2): (x1, x2) (cos, cos) + (x2, x1) (-sin, sin)"""
    xp = array_module(x)
    y = x * xp.concatenate([cos, cos], axis=-1)
    y += xp.roll(x, x.shape[-1] // 2, axis=-1) * xp.concatenate([-sin, sin], axis=-1)
    return y


def mean_product(a, b):
    """mean_i a_i b_i over the last axis, which is kept with length one."""
    return array_module(a).einsum("...d,...d->...", a, b)[..., None] / a.dtype.type(a.shape[-1])


def grouped(x, kv_heads):
    """(B, H, T, d) seen as (B, H_kv, H / H_kv, T, d)."""
    return x.reshape(x.shape[0], kv_heads, -1, *x.shape[2:])


def causal_mask(keys, queries, like):
    """(Tk, Tq): 0 where query i may see key j, -inf where j > i + Tk - Tq."""
    xp = array_module(like)
    future = xp.arange(keys)[:, None] > xp.arange(queries) + (keys - queries)
    return xp.where(future, like.dtype.type(-np.inf), like.dtype.type(0))


def linear(x, weight):
    return Linear.apply(x, weight)


def cross_entropy(logits, labels, reduction="mean"):
    """Negative log-likelihood in nats of integer `labels` (...) under `logits` (..., V); label -100 is ignored.

    reduction "mean": over the labels that count (the token-weighted mean); "sum": their total.
    Raises ValueError: the mean of no labels, or shapes differ; IndexError: a label outside 0..V-1.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"cross_entropy: logits {logits.shape} need labels {logits.shape[:-1]}, got {labels.shape}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"cross_entropy: reduction {reduction!r}; allowed: mean, sum")
    labels, vocab = labels.reshape(-1), logits.shape[-1]
    bad = (labels != IGNORE_LABEL) & ((labels < 0) | (labels >= vocab))
    if bad.any():
        raise IndexError(f"cross_entropy: label {int(labels[bad][0])} is outside 0..{vocab - 1} (and not {IGNORE_LABEL})")
    if reduction == "mean" and (labels == IGNORE_LABEL).all():
        raise ValueError("cross_entropy: every label is ignored, the mean over none is undefined")
    return CrossEntropy.apply(logits.reshape(-1, vocab), labels=labels, mean=reduction == "mean")


def rms_norm(x, gain, eps):
    """x (..., D), gain (D,): x over its root mean square, times gain (Zhang and Sennrich 2019)."""
    return RMSNorm.apply(x, gain, eps=eps)


def swiglu(gate, up):
    """silu(gate) * up (Shazeer 2020)."""
    return SwiGLU.apply(gate, up)


def rope(x, cos, sin):
    """Rotary position embedding of x (..., T, d) with cos and sin (T, d/2) of the angles."""
    return Rope.apply(x, cos=cos, sin=sin)


def attention(q, k, v):
    """Causal attention: q (B, H, Tq, d), k and v (B, H_kv, Tk, d), the last query aligned with the last key."""
    return Attention.apply(q, k, v)
