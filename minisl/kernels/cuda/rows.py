"""The ops that do several steps at once, on the ladder's kernels. What they compute is said in `numpy_fused.py`."""

import math

import numpy as np

from minisl.backend import array_module, matmul, unread
from minisl.kernels import numpy_fused
from minisl.kernels.cuda import ladder
from minisl.kernels.cuda.launch import launch, pieces
from minisl.kernels.cuda.sparse import dense_copy, is_dense

LOGITS = 1 << 28  # how many logits linear_cross_entropy holds at a time, 1 GiB
SLICES = 64  # of rows, whose sums for a gain are made side by side


def by_row(op, n, per_warp=False):
    """(grid, block) for a thread per row on rung 0, and for a block or a warp per row on rung 1."""
    if ladder.rung(op) == 0:
        return (pieces(n, 128),), (128,)
    return ((pieces(n, 8),), (32, 8)) if per_warp else ((n,), (256,))


def by_element(op, count):
    """(grid, block) for one element a thread on rung 0, four on rung 1."""
    return (pieces(count, 256 * (1 if ladder.rung(op) == 0 else 4)),), (256,)


def cross_entropy(logits, labels):
    xp, (n, vocab) = array_module(logits), logits.shape
    losses, kept = xp.empty(n, logits.dtype), xp.empty((2, n), logits.dtype)
    launch("cross_entropy", *by_row("cross_entropy", n), logits=dense_copy(logits), labels=labels.astype("int32"), losses=losses,
           kept=kept, n=n, vocab=vocab)
    return losses.sum(), kept


def cross_entropy_backward(scale, logits, labels, kept, out=None):
    """out: where dz goes, may be logits itself"""
    xp, (n, vocab) = array_module(logits), logits.shape
    logits = dense_copy(logits)
    dz = xp.empty_like(logits) if out is None else out
    launch("cross_entropy", *by_row("cross_entropy", n), kernel="cross_entropy_backward",
           scale=xp.asarray(scale, logits.dtype).reshape(1), logits=logits, labels=labels.astype("int32"), kept=dense_copy(kept),
           dz=dz, n=n, vocab=vocab)
    return dz


def linear_cross_entropy(x, weight, labels, scale):
    xp, step = array_module(x), max(1, LOGITS // len(weight))
    loss, dx, dweight = xp.zeros((), x.dtype), xp.empty(x.shape, x.dtype), xp.zeros(weight.shape, x.dtype)
    for n in range(0, len(x), step):
        rows = slice(n, n + step)
        logits = matmul(x[rows], weight.T)
        part, kept = cross_entropy(logits, labels[rows])
        dz = cross_entropy_backward(scale, logits, labels[rows], kept, out=logits)
        dx[rows] = matmul(dz, weight)
        dweight += matmul(dz.T, x[rows])
        loss = loss + part
    return loss * x.dtype.type(scale), dx, dweight


def rms_norm(x, gain, eps):
    xp, (n, width) = array_module(x), x.shape
    y, r = xp.empty((n, width), x.dtype), xp.empty((n, 1), x.dtype)
    launch("rms_norm", *by_row("rms_norm", n, per_warp=True), x=dense_copy(x), gain=dense_copy(gain), y=y, r=r, n=n, width=width,
           eps=float(eps))
    return y, r


def rms_norm_backward(dy, x, gain, r):
    xp, (n, width) = array_module(x), x.shape
    slices = min(SLICES, pieces(n, 128))
    dx, parts = xp.empty((n, width), x.dtype), xp.empty((slices, width), x.dtype)
    same = {"dy": dense_copy(dy), "x": dense_copy(x), "r": dense_copy(r), "n": n, "width": width}
    launch("rms_norm", *by_row("rms_norm", n, per_warp=True), kernel="rms_norm_backward", gain=dense_copy(gain), dx=dx, **same)
    launch("rms_norm", (pieces(width, 128), slices), (128,), kernel="rms_norm_gain", parts=parts, **same)
    return dx, parts.sum(axis=0)


def swiglu(a, b):
    y = array_module(a).empty(a.shape, a.dtype)
    launch("swiglu", *by_element("swiglu", y.size), a=dense_copy(a), b=dense_copy(b), y=y, count=y.size)
    return y


def swiglu_backward(dy, a, b):
    xp = array_module(a)
    da, db = xp.empty(a.shape, a.dtype), xp.empty(a.shape, a.dtype)
    launch("swiglu", *by_element("swiglu", da.size), kernel="swiglu_backward", dy=dense_copy(dy), a=dense_copy(a),
           b=dense_copy(b), da=da, db=db, count=da.size)
    return da, db


def rope(x, cos, sin):
    if x.ndim != 4:
        return rope(x.reshape(1, math.prod(x.shape[:-2]), *x.shape[-2:]), cos, sin).reshape(x.shape)
    x = heads(x)
    y = heads_like(x)
    (B, H, T, d), (batch, head, position) = x.shape, strides(x)
    each = B * H if ladder.rung("rope") == 0 else B
    launch("rope", (pieces(d // 2, 32), pieces(T, 8), each) if x.size else (0,), (32, 8), x=flat(x), cosine=dense_copy(cos),
           sine=dense_copy(sin), y=flat(y), heads=H, positions=T, half=d // 2, batch_stride=batch, head_stride=head,
           position_stride=position)
    return y


def attention(q, k, v):
    if too_wide(q):
        return numpy_fused.attention(q, k, v)
    q, k, v = heads(q), *alike(k, v)
    o, logsumexp = heads_like(q), array_module(q).empty(q.shape[:3], q.dtype)
    launch("attention", *over("attention", q), q=flat(q), k=flat(k), v=flat(v), o=flat(o), logsumexp=logsumexp, **sizes(q, k))
    return o, logsumexp


def attention_backward(dout, q, k, v, out, kept):
    if isinstance(kept, tuple):  # what numpy_fused keeps
        return numpy_fused.attention_backward(dout, q, k, v, out, kept)
    q, dout, out = alike(q, dout, out)
    k, v = alike(k, v)
    dq, dk, dv = heads_like(q), heads_like(k), heads_like(k)
    delta = array_module(q).empty(q.shape[:3], q.dtype)
    same = {"dout": flat(dout), "q": flat(q), "k": flat(k), "v": flat(v), "logsumexp": dense_copy(kept), **sizes(q, k)}
    launch("attention_dq", *over("attention_dq", q), o=flat(out), dq=flat(dq), delta=delta, **same)
    launch("attention_dkv", *over("attention_dkv", k), delta=delta, dk=flat(dk), dv=flat(dv), **same)
    return dq, dk, dv


def too_wide(q):
    """From rung 1 on a head lies in registers and shared memory, up to 128 components; beyond, whole-array code runs."""
    return q.shape[-1] > 128 and max(map(ladder.rung, ("attention", "attention_dq", "attention_dkv"))) > 0


def over(op, x):
    """(grid, block) for the positions of all heads of x: a thread each on rung 0, a warp each from rung 1 on."""
    B, H, T, _ = x.shape
    first, block = (pieces(T, 64), (64,)) if ladder.rung(op) == 0 else (pieces(T, 8), (32, 8))
    return ((first, H, B) if x.size else (0,)), block


def sizes(q, k):
    (_, H, Tq, d), (_, G, Tk, _) = q.shape, k.shape
    names = ("qb", "qh", "qt", "kb", "kh", "kt")
    return {"heads": H, "kv_heads": G, "queries": Tq, "keys": Tk, "d": d, "root": 1 / math.sqrt(d),
            **dict(zip(names, (*strides(q), *strides(k))))}


# A (B, H, T, d) array lies in memory as it is, or as (B, T, H, d), the way a projection leaves it. Both are taken as they are.

def heads(x):
    """x itself if it lies in one of the two ways, else a copy that does."""
    return x if is_dense(x) or is_dense(x.swapaxes(1, 2)) else x.copy(order="C")


def alike(first, *others):
    """Arrays of one shape, laid out like the first of them."""
    first = heads(first)
    return first, *(x if strides(x) == strides(first) and heads(x) is x else copied(x, first) for x in others)


def copied(x, like):
    y = heads_like(like)
    y[...] = x
    return y


def heads_like(x):
    """A new array of x's shape, each head's rows apart: (B, T, H, d) in memory unless x is (B, H, T, d)."""
    B, H, T, d = x.shape
    xp = array_module(x)
    return xp.empty(x.shape, x.dtype) if x.flags.c_contiguous else xp.empty((B, T, H, d), x.dtype).swapaxes(1, 2)


def strides(x):
    """In elements, of batch, head and position."""
    return tuple(s // x.itemsize for s in x.strides[:3])


def flat(x):
    """What a kernel is given: the array in the order it has in memory."""
    return x if x.flags.c_contiguous else x.swapaxes(1, 2)


def adamw(p, g, m, v, lr, betas, eps, weight_decay, t):
    if not all(map(is_dense, (p, m, v))):
        return numpy_fused.adamw(p, g, m, v, lr, betas, eps, weight_decay, t)
    launch("adamw", *by_element("adamw", p.size), p=p, g=dense_copy(g), m=m, v=v, count=p.size,
           **adam(lr, betas, eps, weight_decay, t))


def adam8bit(p, g, m, v, m_top, v_top, tables, lr, betas, eps, weight_decay, t):
    if not all(map(is_dense, (p, m, v, m_top, v_top))):
        return numpy_fused.adam8bit(p, g, m, v, m_top, v_top, tables, lr, betas, eps, weight_decay, t)
    blocks = pieces(p.size, 256)
    grid, block = ((pieces(blocks, 128),), (128,)) if ladder.rung("adam8bit") == 0 else ((blocks,), (256,))
    launch("adam8bit", grid, block, p=p, g=dense_copy(g), m=m, v=v, m_top=m_top, v_top=v_top, signed_table=dense_copy(tables[0]),
           unsigned_table=dense_copy(tables[1]), count=p.size, **adam(lr, betas, eps, weight_decay, t))


def square_sum(arrays):
    """Sum of all squares, as a float (on a GPU: an array of one number, there). Not by vdot, which CuPy gives to one block."""
    return unread(sum((array_module(a).square(a).sum() for a in arrays), np.float64(0)))


def adam(lr, betas, eps, weight_decay, t):
    """The numbers both optimizers need, from those of AdamW's equations."""
    b1, b2 = betas
    return {"b1": b1, "b2": b2, "c1": 1 - b1, "c2": 1 - b2, "eps": eps, "decay": 1 - lr * weight_decay, "step": lr / (1 - b1**t),
            "root": math.sqrt(1 - b2**t)}
