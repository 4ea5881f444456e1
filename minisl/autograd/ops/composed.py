"""The fused ops again, spelled out in primitive ops: slower, nothing hidden. Tests hold the two equal."""

import math

from minisl.autograd import ops
from minisl.backend import IGNORE_LABEL, array_module
from minisl.kernels.numpy_fused import causal_mask


def linear(x, weight):
    """x W^T: x (..., in), weight (out, in) to (..., out)."""
    return x @ weight.T


def cross_entropy(logits, labels):
    """Mean of -log softmax at the labels that count: logits (..., V), labels (...) to a number."""
    xp = array_module(logits.data)
    labels = labels.reshape(-1)
    rows = xp.flatnonzero(labels != IGNORE_LABEL)
    log_p = ops.log_softmax(logits.reshape(-1, logits.shape[-1]))
    return -log_p[rows, labels[rows]].mean()


def linear_cross_entropy(x, weight, labels, scale):
    """scale times the summed cross-entropy of x W^T: x (..., D), weight (V, D), labels (...)."""
    logits = linear(x.reshape(-1, x.shape[-1]), weight)
    return cross_entropy(logits, labels) * (scale * int((labels != IGNORE_LABEL).sum()))


def rms_norm(x, gain, eps):
    """Each row over its root mean square, times gain: x (..., D), gain (D,)."""
    return x * ((x * x).mean(axis=-1, keepdims=True) + eps).rsqrt() * gain


def swiglu(gate, up):
    """silu of gate, times up: both (..., F)."""
    return gate.silu() * up


def rope(x, cos, sin):
    """Each pair (x_i, x_{i + d/2}) turned by its position's angle: x (B, H, T, d), cos and sin (T, d/2)."""
    half = x.shape[-1] // 2
    x1, x2 = x[..., :half], x[..., half:]
    return ops.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)


def attention(q, k, v):
    """Causal softmax(q k^T / sqrt(d)) v: q (B, H, T, d), k and v (B, H_kv, S, d) to (B, H, T, d)."""
    group = q.shape[1] // k.shape[1]
    k, v = (ops.stack([t] * group, axis=2).reshape(t.shape[0], -1, *t.shape[2:]) for t in (k, v))
    scores = q @ k.swapaxes(-1, -2) * (1 / math.sqrt(q.shape[-1]))
    return ops.softmax(scores + causal_mask(k.shape[2], q.shape[2], q.data).T) @ v
