"""The fused ops again, spelled out in primitive ops: slower, nothing hidden. Tests hold the two equal."""

import math

from minisl.autograd import ops
from minisl.backend import IGNORE_LABEL
from minisl.kernels.numpy_fused import causal_mask


def linear(x, weight):
    """x W^T: x (..., in), weight (out, in) to (..., out)."""
    return x @ weight.T


def cross_entropy(logits, labels, reduction="mean", label_smoothing=0.0):
    """l_n = -(1 - s) log p_n[label_n] - s mean_v log p_n[v], 0 where ignored: logits (..., V), labels (...)."""
    kept = labels != IGNORE_LABEL
    log_p = ops.log_softmax(logits)
    losses = -ops.gather(log_p, (labels * kept)[..., None]).squeeze(-1)
    if label_smoothing:
        losses = losses * (1 - label_smoothing) - log_p.mean(-1) * label_smoothing
    losses = ops.where(kept, losses, 0.0)
    return losses if reduction == "none" else losses.sum() / (kept.sum() if reduction == "mean" else 1)


def linear_cross_entropy(x, weight, labels, scale):
    """scale times the summed cross-entropy of x W^T: x (..., D), weight (V, D), labels (...)."""
    return cross_entropy(linear(x, weight), labels, "sum") * scale


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
