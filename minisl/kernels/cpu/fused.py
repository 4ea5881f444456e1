"""The fused ops of `numpy_fused`, shared out among the cores."""

import math

import numpy as np

from minisl.kernels import numpy_fused
from minisl.kernels.cpu import rows
from minisl.kernels.numpy_fused import BLOCK, least_square
from minisl.parallel import each, even

LOGITS = 1 << 23  # how many logits linear_cross_entropy holds at a time
QUERIES = 128  # rows of scores that attention holds at a time
SMALL = 1 << 14  # fewer elements are not worth sharing out


def linear(x, weight):
    """Y = X W^T"""
    return matmul(x, weight.T)


def linear_backward(dy, x, weight, need_dx):
    """dX = dY W,  dW = dY^T X"""
    return matmul(dy, weight) if need_dx else None, matmul(dy.T, x)


def matmul(a, b):
    """The rows of a b shared out, 192 or more at a time: each core packs b anew for its rows, which pays only for many"""
    out = np.empty((len(a), b.shape[1]), a.dtype)
    each(lambda begin, end: np.matmul(a[begin:end], b, out=out[begin:end]), len(a), even(len(a), 192))
    return out


def cross_entropy(logits, labels):
    losses, kept = np.empty(len(logits), logits.dtype), np.empty((2, len(logits)), logits.dtype)
    share(rows.cross_entropy, len(logits), logits.size, plain(logits), plain(labels))(losses, kept)
    return losses.sum(), kept


def cross_entropy_backward(scale, logits, labels, kept):
    dz = np.array(logits, order="C")
    share(rows.cross_entropy_backward, len(dz), dz.size, dz.dtype.type(scale), plain(labels), plain(kept))(dz)
    return dz


def linear_cross_entropy(x, weight, labels, scale):
    """Logits of a slice of tokens at a time, turned into their gradient where they stand"""
    x, labels, step = plain(x), plain(labels), max(64, LOGITS // len(weight) // 64 * 64)
    buffer, scale = np.empty((min(step, len(x)), len(weight)), x.dtype), x.dtype.type(scale)
    losses, kept = np.empty(len(x), x.dtype), np.empty((2, len(x)), x.dtype)
    dx, dweight = np.empty(x.shape, x.dtype), np.empty(weight.shape, x.dtype)
    for n in range(0, max(len(x), 1), step):  # once where there is no token: dweight is 0 then
        m = min(step, len(x) - n)
        here, z, shares = slice(n, n + m), buffer[:m], []

        def logits(begin, end, x=x[here], z=z):
            np.matmul(x, weight[begin:end].T, out=z[:, begin:end])

        def gradient(begin, end, labels=labels[here], z=z, losses=losses[here], kept=kept[:, here]):
            rows.cross_entropy(z, labels, begin, end, losses, kept)
            rows.cross_entropy_backward(scale, labels, kept, begin, end, z)

        def products(begin, end, x=x[here], z=z, first=n == 0, shares=shares):
            shares.append((begin, z[:, begin:end] @ weight[begin:end]))
            if first:
                np.matmul(z[:, begin:end].T, x, out=dweight[begin:end])
            else:
                dweight[begin:end] += z[:, begin:end].T @ x

        each(logits, len(weight))
        each(gradient, m)
        each(products, len(weight))
        dx[here] = in_order(shares, 1)
    return losses.sum() * scale, dx, dweight


def rms_norm(x, gain, eps):
    y, r = np.empty(x.shape, x.dtype), np.empty((len(x), 1), x.dtype)
    share(rows.rms_norm, len(x), x.size, plain(x), plain(gain), x.dtype.type(eps), least_square(x.dtype))(y, r[:, 0])
    return y, r


def rms_norm_backward(dy, x, gain, r):
    dy, x, gain, r, dx = plain(dy), plain(x), plain(gain), plain(r), np.empty(x.shape, x.dtype)
    shares = [(-1, np.zeros(len(gain), x.dtype))]  # there may be no token

    def tokens(begin, end):
        dgain = np.zeros(len(gain), x.dtype)
        rows.rms_norm_backward(dy, x, gain, r[:, 0], begin, end, dx, dgain)
        shares.append((begin, dgain))

    whole(tokens, len(x), x.size)
    return dx, in_order(shares, 1)


def swiglu(a, b):
    a, b, y = plain(a), plain(b), np.empty(a.shape, a.dtype)
    share(rows.swiglu, a.size, a.size, a.reshape(-1), b.reshape(-1))(y.reshape(-1))
    return y


def swiglu_backward(dy, a, b):
    dy, a, b = plain(dy), plain(a), plain(b)
    da, db = np.empty(a.shape, a.dtype), np.empty(a.shape, a.dtype)
    share(rows.swiglu_backward, a.size, a.size, dy.reshape(-1), a.reshape(-1), b.reshape(-1))(da.reshape(-1), db.reshape(-1))
    return da, db


def rope(x, cos, sin):
    """x (..., T, d), best as a view of (B, T, H, d): that is how a projection leaves it"""
    if x.ndim == 4:
        by_position = plain(x.swapaxes(1, 2))
        return turned(by_position, cos, sin).swapaxes(1, 2)
    return turned(plain(x), cos, sin)


def turned(x, cos, sin):
    y, heads = np.empty(x.shape, x.dtype), x.shape[2] if x.ndim == 4 else 1
    flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    share(rows.rope, len(flat), x.size, flat, plain(cos), plain(sin), heads)(y.reshape(flat.shape))
    return y


def attention(q, k, v):
    """(out, logsumexp of every row of scores). Some heads and some queries at a time: their scores fit the cache."""
    (B, H, Tq, d), (_, G, Tk, _) = q.shape, k.shape
    root, offset = q.dtype.type(1 / math.sqrt(d)), Tk - Tq
    out, logsumexp = np.empty((B, Tq, H, d), q.dtype).swapaxes(1, 2), np.empty((B, H, Tq), q.dtype)

    def heads(begin, end):
        for b, g in groups(begin, end, G):
            h = slice(g.start * H // G, g.stop * H // G)
            Q, O, L = (by_group(a[b, h], g) for a in (q, out, logsumexp))
            for i, j in blocks(Tq):
                keys = j + offset  # the last query of these sees so many
                s = Q[..., i:j, :] @ k[b, g, None, :keys].swapaxes(-1, -2)  # (groups, heads of a group, queries, keys)
                rows.softmax_block(s, root, i, offset, L)
                np.matmul(s, v[b, g, None, :keys], out=O[..., i:j, :])

    whole(heads, B * G, B * H * Tq * Tk, G if B > 4 else 1)
    return out, logsumexp


def attention_backward(dout, q, k, v, out, kept):
    """The scores are computed again. A core takes all query heads of a key/value head, so that it alone adds to dK and dV."""
    if isinstance(kept, tuple):  # what numpy_fused keeps
        return numpy_fused.attention_backward(dout, q, k, v, out, kept)
    (B, H, Tq, d), (_, G, Tk, _) = q.shape, k.shape
    root, offset = q.dtype.type(1 / math.sqrt(d)), Tk - Tq
    dq = np.empty((B, Tq, H, d), q.dtype).swapaxes(1, 2)
    dk, dv = (np.zeros((B, Tk, G, d), q.dtype).swapaxes(1, 2) for _ in range(2))

    def heads(begin, end):
        for b, g in groups(begin, end, G):
            h = slice(g.start * H // G, g.stop * H // G)
            Q, O, L, dO, dQ = (by_group(a[b, h], g) for a in (q, out, kept, dout, dq))
            delta = plain(np.einsum("ghtd,ghtd->ght", dO, O))
            for i, j in blocks(Tq):
                keys, here = j + offset, (..., slice(i, j), slice(None))
                K, V = k[b, g, None, :keys], v[b, g, None, :keys]
                s, ds = Q[here] @ K.swapaxes(-1, -2), dO[here] @ V.swapaxes(-1, -2)
                rows.softmax_block_backward(s, ds, root, i, offset, L, delta)
                np.matmul(ds, K, out=dQ[here])
                dk[b, g, :keys] += (ds.swapaxes(-1, -2) @ Q[here]).sum(axis=1)
                dv[b, g, :keys] += (s.swapaxes(-1, -2) @ dO[here]).sum(axis=1)

    whole(heads, B * G, B * H * Tq * Tk, G if B > 4 else 1)
    return dq, dk, dv


def groups(begin, end, G):
    """(sequence, slice of its key/value heads) for numbers begin .. end of B G, a sequence at a time"""
    while begin < end:
        b, g = divmod(begin, G)
        stop = min(G, g + end - begin)
        yield b, slice(g, stop)
        begin += stop - g


def by_group(a, g):
    """Some query heads (heads, ...) as (groups, heads of a group, ...)"""
    return a.reshape(g.stop - g.start, len(a) // (g.stop - g.start), *a.shape[1:])


def blocks(queries):
    return [(i, min(i + QUERIES, queries)) for i in range(0, queries, QUERIES)]


def embedding_backward(dy, ids, vocab):
    """By columns, so that one core alone adds to an element"""
    dy, ids, dweight = plain(dy), plain(ids), np.zeros((vocab, dy.shape[1]), dy.dtype)
    whole(lambda begin, end: rows.embedding_backward(dy, ids, begin, end, dweight), dy.shape[1], dy.size, 16)
    return dweight


def adamw(p, g, m, v, lr, betas, eps, weight_decay, t):
    """One pass: p, g, m and v are read once, p, m and v written once"""
    if not all(a.flags.carray for a in (p, m, v)):  # reshape would copy them, and the update be lost
        return numpy_fused.adamw(p, g, m, v, lr, betas, eps, weight_decay, t)
    (b1, b2), T = betas, p.dtype.type
    numbers = [T(c) for c in (b1, b2, 1 - b1, 1 - b2, lr / (1 - b1**t), 1 / math.sqrt(1 - b2**t), eps, 1 - lr * weight_decay)]
    flat = [a.reshape(-1) for a in (p, plain(g), m, v)]
    whole(lambda begin, end: rows.adamw(*flat, *numbers, begin, end), p.size, p.size)


def adam8bit(p, g, m, v, m_top, v_top, tables, lr, betas, eps, weight_decay, t):
    """One pass over blocks of 256; NumPy's result to the bit"""
    if not all(a.flags.carray for a in (p, m, v, m_top, v_top)):
        return numpy_fused.adam8bit(p, g, m, v, m_top, v_top, tables, lr, betas, eps, weight_decay, t)
    (b1, b2), T = betas, p.dtype.type
    numbers = [T(c) for c in (1 - b1, 1 - b2, lr / (1 - b1**t), math.sqrt(1 - b2**t), eps, 1 - lr * weight_decay)]
    numbers = np.float32(b1), np.float32(b2), *numbers
    flat, tables = [a.reshape(-1) for a in (p, plain(g), m, v)], [plain(table) for table in tables]

    def blocks(begin, end):
        rows.adam8bit(*flat, m_top, v_top, *tables, *numbers, begin, end, *np.empty((2, BLOCK), T), np.empty(BLOCK, np.uint32))

    whole(blocks, len(m_top), p.size)


def square_sum(arrays):
    """In float64, by blocks of a fixed size, so that the sum is the same for any number of cores"""
    block = 1 << 16
    flat = [plain(a if a.dtype in (np.float32, np.float64) else a.astype(np.float64)).reshape(-1) for a in arrays]
    jobs = [(a, i) for a in flat for i in range(0, len(a), block)]
    sums = np.zeros(len(jobs))

    def blocks(begin, end):
        for k in range(begin, end):
            a, i = jobs[k]
            sums[k] = rows.square_sum(a, i, min(len(a), i + block))

    whole(blocks, len(jobs), sum(map(len, flat)), 8)
    return float(sums.sum())


def plain(a):
    """As Numba's kernels are compiled for: C-contiguous, aligned and not read-only. The array itself if it is, else a copy."""
    return a if a.flags.carray else np.array(a, order="C")


def whole(work, n, size, grain=None):
    """each(work, n), but on this core alone where it is about few elements."""
    if size < SMALL:
        work(0, n)
    else:
        each(work, n, grain)


def share(kernel, n, size, *inputs):
    """A function of the outputs that runs kernel(*inputs, begin, end, *outputs) over 0 .. n."""
    return lambda *outputs: whole(lambda begin, end: kernel(*inputs, begin, end, *outputs), n, size)


def in_order(shares, k):
    """The sum of what the pieces found, (begin, ..., array k, ...) each, by begin: not by who finished first"""
    first, *others = (share[k] for share in sorted(shares, key=lambda share: share[0]))

    def rows(begin, end):
        for other in others:
            first[begin:end] += other[begin:end]

    whole(rows, len(first), first.size * len(others))
    return first
