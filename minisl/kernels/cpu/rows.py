"""Numba loops over rows, one core each: what NumPy would do in several passes over memory, in one."""

import math

import numpy as np
from numba import njit
from numba.extending import overload

from minisl.backend import IGNORE_LABEL
from minisl.kernels.cpu.jit import compiled
from minisl.kernels.cpu.simd import LANES, highest, larger, load, store
from minisl.kernels.numpy_fused import BLOCK

# fastmath: sums may be split over vector lanes, a b + c be one instruction. No -ffinite-math: a NaN must stay one.
kernel = compiled(nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz", "arcp"})
exact = compiled(nogil=True, error_model="numpy", fastmath=False)  # each operation rounded as NumPy rounds it
part = njit(inline="always", error_model="numpy")  # of an exact kernel


def exp(x):
    raise NotImplementedError("for kernels only")


@overload(exp, jit_options={"fastmath": {"contract"}})
def exp_for(x):
    """e^x: libm's for float64. For float32 one that the compiler can vectorise, right to 2 units in the last place:
    x = n ln 2 + r, |r| <= ln(2) / 2; a polynomial for e^r; n goes straight into the exponent's bits."""
    if x.bitwidth == 64:
        return lambda x: math.exp(x)
    log2e, ln2_high, ln2_low = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
    c2, c3, c4, c5, c6 = (np.float32(c) for c in (0.5, 1.6666665459e-1, 4.1665795894e-2, 8.3334519073e-3, 1.3981999507e-3))
    c7, zero, one, low, high = (np.float32(c) for c in (1.9875691500e-4, 0, 1, -87, 89))

    def exp32(x):
        clipped = min(max(x, low), high)
        n = np.floor(clipped * log2e + c2)
        r = clipped - n * ln2_high - n * ln2_low
        p = ((((c7 * r + c6) * r + c5) * r + c4) * r + c3) * r + c2
        power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
        y = (p * r * r + r + one) * power if x >= low else zero
        return y if x == x else x  # NaN stays NaN

    return exp32


@kernel
def largest(z):
    """The largest element of a row. A NaN may be passed over: the next pass over the row will meet it."""
    whole, top = len(z) - len(z) % LANES, z[0]
    if whole:
        lanes = load(z, 0, 0)
        for i in range(LANES, whole, LANES):
            lanes = larger(lanes, load(z, i, 0))
        top = highest(lanes)
    for i in range(whole, len(z)):
        top = z[i] if z[i] > top else top
    return top


@kernel
def cross_entropy(logits, labels, begin, end, losses, kept):
    """kept (2, N): the highest logit, and the sum of exp of the distances to it"""
    for n in range(begin, end):
        z, total = logits[n], logits.dtype.type(0)
        top = largest(z)
        for i in range(len(z)):
            total += exp(z[i] - top)
        kept[0, n], kept[1, n] = top, total
        losses[n] = difference(np.log(total), difference(z[labels[n]], top)) if labels[n] != IGNORE_LABEL else 0


@exact
def difference(a, b):
    """a - b, whatever is added to it: log(total) + top first would round off what log(total) is."""
    return a - b


@kernel
def cross_entropy_backward(scale, labels, kept, begin, end, z):
    """Logits become their gradient, in place"""
    for n in range(begin, end):
        if labels[n] == IGNORE_LABEL:
            z[n] = 0
            continue
        row, top, share = z[n], kept[0, n], scale / kept[1, n]
        for i in range(len(row)):
            row[i] = share * exp(row[i] - top)
        row[labels[n]] -= scale


@kernel
def rms_norm(x, gain, eps, low, begin, end, y, r):
    """low: a mean square below it has lost digits"""
    for n in range(begin, end):
        squares = x.dtype.type(0)
        for i in range(x.shape[1]):
            squares += x[n, i] * x[n, i]
        mean = squares / x.dtype.type(x.shape[1]) + eps
        if low < mean < np.inf:
            r[n] = x.dtype.type(1) / np.sqrt(mean)
            for i in range(x.shape[1]):
                y[n, i] = x[n, i] * r[n] * gain[i]
        else:
            r[n] = rms_norm_scaled(x[n], gain, eps, y[n])


@exact
def rms_norm_scaled(x, gain, eps, y):
    """One row over its largest magnitude, whose squares neither overflow nor vanish. Returns r"""
    one, top, squares = x.dtype.type(1), np.sqrt(eps), x.dtype.type(0)
    for i in range(len(x)):
        top = max(top, abs(x[i]))
    if not 0 < top < np.inf:
        top = one
    for i in range(len(x)):
        squares += x[i] / top * (x[i] / top)
    r = one / np.sqrt(squares / x.dtype.type(len(x)) + eps / top / top)
    for i in range(len(x)):
        y[i] = x[i] / top * r * gain[i]
    return r / top


@kernel
def rms_norm_backward(dy, x, gain, r, begin, end, dx, dgain):
    """dgain: this slice's share, added"""
    for n in range(begin, end):
        mean, scale = x.dtype.type(0), r[n]
        for i in range(x.shape[1]):
            mean += dy[n, i] * gain[i] * (x[n, i] * scale)
        mean /= x.dtype.type(x.shape[1])
        for i in range(x.shape[1]):
            normed = x[n, i] * scale
            dgain[i] += dy[n, i] * normed
            dx[n, i] = (dy[n, i] * gain[i] - normed * mean) * scale


@kernel
def swiglu(a, b, begin, end, y):
    a, b, y, one = a[begin:end], b[begin:end], y[begin:end], a.dtype.type(1)
    for i in range(len(a)):
        y[i] = a[i] / (one + exp(-a[i])) * b[i]


@kernel
def swiglu_backward(dy, a, b, begin, end, da, db):
    dy, a, b, da, db, one = dy[begin:end], a[begin:end], b[begin:end], da[begin:end], db[begin:end], a.dtype.type(1)
    for i in range(len(a)):
        s = one / (one + exp(-a[i]))
        db[i] = dy[i] * a[i] * s
        da[i] = dy[i] * b[i] * s * (one + a[i] * (one - s))


@kernel
def rope(x, cos, sin, heads, begin, end, y):
    """x (N heads, d): row n is a head at position n // heads % T"""
    positions, half = cos.shape
    whole = half - half % LANES
    for n in range(begin, end):
        t = n // heads % positions
        for i in range(0, whole, LANES):
            c, s, a, b = load(cos, t, i), load(sin, t, i), load(x, n, i), load(x, n, i + half)
            store(y, n, i, a * c - b * s)
            store(y, n, i + half, b * c + a * s)
        for i in range(whole, half):
            y[n, i] = x[n, i] * cos[t, i] - x[n, i + half] * sin[t, i]
            y[n, i + half] = x[n, i + half] * cos[t, i] + x[n, i] * sin[t, i]


@kernel
def softmax_block(scores, root, first, offset, logsumexp):
    """Scores (groups, heads, queries, keys) to probabilities in place. Row i is query first + i and sees keys 0 .. first + i
    + offset."""
    for g in range(scores.shape[0]):
        for h in range(scores.shape[1]):
            for i in range(scores.shape[2]):
                s, seen = scores[g, h, i], first + i + offset + 1
                row, total = s[:seen], s.dtype.type(0)
                top = largest(row)
                for j in range(len(row)):
                    row[j] = exp((row[j] - top) * root)
                    total += row[j]
                share = s.dtype.type(1) / total
                for j in range(len(row)):
                    row[j] *= share
                s[seen:] = 0
                logsumexp[g, h, first + i] = top * root + np.log(total)


@kernel
def softmax_block_backward(scores, dprobabilities, root, first, offset, logsumexp, delta):
    """scores: S to P.  dprobabilities: dP to dS = P (dP - delta) root."""
    for g in range(scores.shape[0]):
        for h in range(scores.shape[1]):
            for i in range(scores.shape[2]):
                s, ds, seen = scores[g, h, i], dprobabilities[g, h, i], first + i + offset + 1
                p, d, shift, mean = s[:seen], ds[:seen], logsumexp[g, h, first + i], delta[g, h, first + i]
                for j in range(len(p)):
                    p[j] = exp(p[j] * root - shift)
                    d[j] = p[j] * (d[j] - mean) * root
                s[seen:] = 0
                ds[seen:] = 0


@kernel
def embedding_backward(dy, ids, begin, end, dweight):
    """Columns begin .. end of dweight[ids[n]] += dy[n]"""
    for n in range(len(ids)):
        row, g = dweight[ids[n], begin:end], dy[n, begin:end]
        for i in range(len(g)):
            row[i] += g[i]


@kernel
def adamw(p, g, m, v, b1, b2, c1, c2, rate, root2, eps, decay, begin, end):
    """c = 1 - b; rate = lr / (1 - b1^t), root2 = 1 / sqrt(1 - b2^t), decay = 1 - lr wd"""
    p, g, m, v = p[begin:end], g[begin:end], m[begin:end], v[begin:end]
    for i in range(len(p)):
        m[i] = b1 * m[i] + c1 * g[i]
        v[i] = b2 * v[i] + c2 * g[i] * g[i]
        p[i] = decay * p[i] - rate * m[i] / (np.sqrt(v[i]) * root2 + eps)


@exact
def adam8bit(p, g, m, v, m_top, v_top, signed, unsigned, b1, b2, c1, c2, rate, root, eps, decay, begin, end, m_now,
             v_now, below):
    """Blocks begin .. end. b float32, which what is decoded is multiplied with; c = 1 - b; rate = lr / (1 - b1^t),
    root = sqrt(1 - b2^t), decay = 1 - lr wd. m_now, v_now and below: room for a block"""
    for k in range(begin, end):
        start, stop = k * BLOCK, min(k * BLOCK + BLOCK, len(p))
        pk, gk, mk, vk, m_was, v_was = p[start:stop], g[start:stop], m[start:stop], v[start:stop], m_top[k], v_top[k]
        for i in range(len(pk)):
            m_now[i] = b1 * (signed[mk[i]] * m_was) + c1 * gk[i]
            v_now[i] = b2 * (unsigned[vk[i]] * v_was) + c2 * (gk[i] * gk[i])
            pk[i] = pk[i] * decay - rate * m_now[i] / (np.sqrt(v_now[i]) / root + eps)
        m_top[k] = encode(m_now[: len(pk)], mk, signed, below)
        v_top[k] = encode(v_now[: len(pk)], vk, unsigned, below)


@part
def encode(x, codes, table, below):
    """The largest magnitude of a block x. `codes` become the places in `table` that are nearest to x / that, the lower of two as
    near, and of what is below 0 one that is too. x is divided in place."""
    top, one = magnitude(x), np.uint32(1)
    scale = x.dtype.type(top) if top > 0 else x.dtype.type(1)
    for i in range(len(x)):
        x[i] /= scale
        below[i] = 0
    for step in (128, 64, 32, 16, 8, 4, 2, 1):  # how many numbers of the table are below x, up to 255; all of x at once
        ahead = table[step - 1 :]
        for i in range(len(x)):
            below[i] += np.uint32(0) if ahead[below[i]] >= x[i] else np.uint32(step)
    for i in range(len(x)):
        high = max(below[i], one)
        low = np.uint32(high - one)
        lower = x[i] - table[low] <= table[high] - x[i] or (x[i] < 0 and table[high] == 0)
        codes[i] = low if lower else high
    return top


@part
def magnitude(x):
    """max |x| as float32, NaN if there is one: without their sign, floats are ordered as their bits are, NaN above all"""
    top = np.int32(0)
    for i in range(len(x)):
        bits = np.int32(np.float32(x[i]).view(np.int32) & np.int32(0x7FFFFFFF))
        top = bits if bits > top else top
    return np.int32(top).view(np.float32)


@kernel
def square_sum(a, begin, end):
    a, total = a[begin:end], 0.0
    for i in range(len(a)):
        total += np.float64(a[i]) * np.float64(a[i])
    return total
