"""Ops that do several steps at once, on arrays: the value, and the gradients derived by hand. NumPy, or CuPy for CuPy arrays.

What they compute, gradient by gradient, is in the docstrings of `minisl.autograd.ops.fused`. N rows, D features, V vocabulary, B
sequences, H heads of width d, T positions.
"""

import math
from functools import cache

import numpy as np

from minisl.backend import IGNORE_LABEL, array_module, matmul, unread

LOGITS = 1 << 24  # how many logits linear_cross_entropy holds at a time
BLOCK = 256  # moments of adam8bit that share a scale


def linear(x, weight):
    """(N, in) and (out, in) to (N, out)"""
    return matmul(x, weight.T)


def linear_backward(dy, x, weight, need_dx):
    """(dx or None, dweight) of y = x W^T: dy (n, out), x (n, in), weight (out, in)."""
    return matmul(dy, weight) if need_dx else None, matmul(dy.T, x)


def cross_entropy(logits, labels):
    """(sum of the rows' losses, kept) of logits (N, V). kept (2, N): each row's highest logit, and the sum of exp of the
    distances to it. Their logsumexp would be one number, but rounded: near 1e4 by 5e-4.
    """
    xp = array_module(logits)
    highest = logits.max(axis=1)
    below = logits - highest[:, None]
    counts = labels != IGNORE_LABEL
    right = below[xp.arange(len(labels)), xp.where(counts, labels, 0)]
    total = xp.exp(below, out=below).sum(axis=1)
    return xp.where(counts, xp.log(total) - right, 0).sum(), xp.stack([highest, total])


def cross_entropy_backward(scale, logits, labels, kept):
    """scale (softmax - onehot), 0 in rows without a label"""
    xp, (highest, total) = array_module(logits), kept
    counts = labels != IGNORE_LABEL
    scale = xp.where(counts, scale, 0).astype(logits.dtype)
    dz = logits - highest[:, None]
    xp.exp(dz, out=dz)
    dz *= (scale / total)[:, None]
    dz[xp.arange(len(labels)), xp.where(counts, labels, 0)] -= scale
    return dz


def linear_cross_entropy(x, weight, labels, scale):
    """scale times the summed cross-entropy of the logits x W^T, dx and dW; a slice of rows at a time"""
    xp, step = array_module(x), max(1, LOGITS // len(weight))
    loss, dx, dweight = x.dtype.type(0), xp.empty_like(x), xp.zeros_like(weight)
    for n in range(0, len(x), step):
        rows = slice(n, n + step)
        logits = x[rows] @ weight.T
        part, kept = cross_entropy(logits, labels[rows])
        dz = cross_entropy_backward(scale, logits, labels[rows], kept)
        dx[rows] = dz @ weight
        dweight += dz.T @ x[rows]
        loss = loss + part
    return loss * x.dtype.type(scale), dx, dweight


def rms_norm(x, gain, eps):
    """(y, r) of x (N, D), r (N, 1)"""
    xp = array_module(x)
    with np.errstate(over="ignore"):
        mean = mean_product(x, x) + x.dtype.type(eps)
    if xp is np and ((least_square(x.dtype) < mean) & (mean < np.inf)).all():
        r = mean ** -0.5
        y = x * r
    else:  # squares overflow, or vanish (on a GPU, to ask would be to wait): rows over their largest magnitude first
        top = xp.maximum(abs(x).max(axis=1, keepdims=True), math.sqrt(eps))
        top = xp.where(xp.isfinite(top) & (top > 0), top, x.dtype.type(1))
        y = x / top
        r = (mean_product(y, y) + x.dtype.type(eps) / top / top) ** -0.5
        y *= r
        r /= top
    y *= gain
    return y, r


def rms_norm_backward(dy, x, gain, r):
    """(dx, dgain) for dy (n, D); r (n, 1) is one over the rows' root mean square, as `rms_norm` gives it."""
    normed = x * r
    dgain = (dy * normed).sum(axis=0)
    dx = dy * gain
    normed *= mean_product(dx, normed)
    dx -= normed
    dx *= r
    return dx, dgain


def swiglu(a, b):
    """silu(a) times b, both (n, F)."""
    with np.errstate(over="ignore"):
        y = array_module(a).exp(-a)  # infinite for a far below 0, and a over that is 0
    y += 1
    array_module(a).divide(a, y, out=y)
    y *= b
    return y


def swiglu_backward(dy, a, b):
    """(da, db) for dy (n, F)."""
    with np.errstate(over="ignore"):
        s = array_module(a).exp(-a)
    s += 1
    array_module(a).divide(1, s, out=s)  # sigmoid(a)
    silu = s * a
    db = dy * silu
    da = 1 - s
    da *= silu
    da += s
    da *= dy
    da *= b
    return da, db


def rope(x, cos, sin):
    """x (B, H, T, d), cos and sin (T, d/2): (x1, x2) (cos, cos) + (x2, x1) (-sin, sin)"""
    xp = array_module(x)
    y = x * xp.concatenate([cos, cos], axis=-1)
    y += xp.roll(x, x.shape[-1] // 2, axis=-1) * xp.concatenate([-sin, sin], axis=-1)
    return y


def attention(q, k, v):
    """(out, what the backward pass needs of the forward): here E = exp(S - max) itself, keys down and queries across, where NumPy
    folds keys fastest. P = E / sum is never formed: the division moves to O."""
    xp = array_module(q)
    q = grouped(q * (1 / math.sqrt(q.shape[-1])), k.shape[1])  # (B, H_kv, H / H_kv, Tq, d)
    k, v = k[:, :, None], v[:, :, None]
    e = k @ q.swapaxes(-1, -2)  # (..., Tk, Tq)
    e += causal_mask(*e.shape[-2:], e)
    if e.size:
        e -= e.max(axis=-2, keepdims=True)
    xp.exp(e, out=e)
    total = e.sum(axis=-2)[..., None]  # (..., Tq, 1)
    out = e.swapaxes(-1, -2) @ v
    out /= total
    return joined(out), (e, total)


def attention_backward(dout, q, k, v, out, kept):
    """With g = dO / sum: dS = E (g V^T - sum g O)"""
    (e, total), root = kept, 1 / math.sqrt(q.shape[-1])
    q, out, g = (grouped(a, k.shape[1]) for a in (q, out, dout))
    k, v, g = k[:, :, None], v[:, :, None], g / total
    dv = (e @ g).sum(axis=2)
    ds = v @ g.swapaxes(-1, -2)
    ds -= array_module(g).einsum("...td,...td->...t", g, out)[..., None, :]
    ds *= e
    ds *= root
    dq = ds.swapaxes(-1, -2) @ k
    dk = (ds @ q).sum(axis=2)
    return joined(dq), dk, dv


def embedding_backward(dy, ids, vocab):
    """dW (V, D) from dy (N, D) and ids (N,)"""
    xp = array_module(dy)
    dweight = xp.zeros((vocab, dy.shape[1]), dy.dtype)
    xp.add.at(dweight, ids, dy)
    return dweight


def adamw(p, g, m, v, lr, betas, eps, weight_decay, t):
    """One AdamW update of p, m and v in place; t counts from 1"""
    (b1, b2), xp = betas, array_module(p)
    m *= b1
    m += (1 - b1) * g
    v *= b2
    v += (1 - b2) * (g * g)
    denominator = xp.sqrt(v)
    denominator /= math.sqrt(1 - b2**t)
    denominator += eps
    xp.divide(m, denominator, out=denominator)
    denominator *= lr / (1 - b1**t)
    if weight_decay:
        p *= 1 - lr * weight_decay
    p -= denominator


def dynamic_map(signed):
    """The 256 numbers that a code of 8 bits stands for, sorted: 0, 1, and in each of the seven decades below 1 twice as many as
    in the one before, evenly apart; of both signs if `signed` (the dynamic tree map of Dettmers et al. 2022, arXiv 2110.02861)"""
    numbers = [np.array([0.0, 1.0])]
    for i in range(7):
        edges = np.linspace(0.1, 1, 2 ** (i + (not signed)) + 1)
        means = 10.0 ** (i - 6) * (edges[:-1] + edges[1:]) / 2
        numbers += [means, -means] if signed else [means]
    return np.sort(np.concatenate(numbers)).astype(np.float32)


def adam8bit(p, g, m, v, m_top, v_top, tables, lr, betas, eps, weight_decay, t):
    """`adamw` with moments of 8 bits: m and v are places in `tables` (signed, unsigned); the numbers there are multiplied with
    m_top and v_top (blocks,), the largest magnitude in each block of 256 elements"""
    (b1, b2), xp = betas, array_module(p)
    m_now = b1 * decoded(m, m_top, tables[0]) + (1 - b1) * g
    v_now = b2 * decoded(v, v_top, tables[1]) + (1 - b2) * (g * g)
    p *= 1 - lr * weight_decay
    p -= lr / (1 - b1**t) * m_now / (xp.sqrt(v_now) / math.sqrt(1 - b2**t) + eps)
    encode(m_now, m, m_top, tables[0])
    encode(v_now, v, v_top, tables[1])


def decoded(codes, tops, table):
    """Numbers from their codes: an entry of the table times the largest magnitude of its block."""
    return table[codes] * tops.repeat(BLOCK)[: codes.size].reshape(codes.shape)


def encode(x, codes, tops, table):
    """Into `tops` goes the largest magnitude of each block of x, into `codes` the place in `table` that is nearest to x / top:
    the lower of two that are as near, and of what is below 0 one that is too, as in bitsandbytes"""
    xp = array_module(x)
    blocks = xp.zeros((len(tops), BLOCK), x.dtype)
    blocks.reshape(-1)[: x.size] = x.reshape(-1)
    tops[...] = abs(blocks).max(axis=1)
    blocks /= xp.where(tops > 0, tops, 1)[:, None]
    high = table.searchsorted(blocks).clip(1, len(table) - 1)
    lower = (blocks - table[high - 1] <= table[high] - blocks) | ((blocks < 0) & (table[high] == 0))
    nearest = high - lower
    codes[...] = nearest.reshape(-1)[: x.size].reshape(x.shape)


def square_sum(arrays):
    """Sum of all squares, as a float (on a GPU: an array of one number, there)"""
    return unread(sum((array_module(a).vdot(a, a) for a in arrays), np.float64(0)))


def mean_product(a, b):
    """mean_i a_i b_i over the last axis, which is kept with length one."""
    return array_module(a).einsum("...d,...d->...", a, b)[..., None] / a.dtype.type(a.shape[-1])


@cache
def least_square(dtype):
    """A mean square below it has lost digits."""
    return np.finfo(dtype).tiny / np.finfo(dtype).eps


def grouped(x, kv_heads):
    """(B, H, T, d) seen as (B, H_kv, H / H_kv, T, d)."""
    return x.reshape(x.shape[0], kv_heads, x.shape[1] // kv_heads, *x.shape[2:])


def joined(x):
    """(B, H_kv, H / H_kv, T, d) seen as (B, H, T, d)."""
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])


def causal_mask(keys, queries, like):
    """(Tk, Tq): 0 where query i may see key j, -inf where j > i + Tk - Tq."""
    xp = array_module(like)
    future = xp.arange(keys)[:, None] > xp.arange(queries) + (keys - queries)
    return xp.where(future, like.dtype.type(-np.inf), like.dtype.type(0))
