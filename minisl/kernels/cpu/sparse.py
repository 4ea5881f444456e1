"""Products with S on a tile of 64 tokens, turned so that the tokens of one feature are neighbours.

A tile of x as (in, 64) fits the L2 cache. One entry of S then is one multiply-add on four vectors of sixteen tokens, whatever
its row and column: no gather, no search. Arrays of tokens are turned on the way in and out, 16 x 16 at a time in registers.
"""

import numpy as np

from minisl.kernels.cpu.jit import compiled
from minisl.kernels.cpu.simd import LANES, fma, load, splat, store, total, transpose, transpose_add

TILE = 64
kernel = compiled(nogil=True, error_model="numpy")


@kernel
def turn_in(x, t, end, xt):
    """xt[j, :] = x[t:t+64, j], zero past the end."""
    width = x.shape[1]
    whole = width - width % LANES if t + TILE <= end else 0
    for lo in range(0, TILE, LANES):
        for j in range(0, whole, LANES):
            transpose(x, t + lo, j, xt, j, lo)
    for j in range(whole, width):
        for lo in range(TILE):
            xt[j, lo] = x[t + lo, j] if t + lo < end else x.dtype.type(0)


@kernel
def turn_out(yt, y, t, end):
    """y[t:t+64, i] += yt[i, :]"""
    width = y.shape[1]
    whole = width - width % LANES if t + TILE <= end else 0
    for lo in range(0, TILE, LANES):
        for i in range(0, whole, LANES):
            transpose_add(yt, i, lo, y, t + lo, i)
    for i in range(whole, width):
        for lo in range(min(TILE, end - t)):
            y[t + lo, i] += yt[i, lo]


@kernel
def spmm_tile(values, columns, starts, xt, yt):
    """yt[i] = sum of values[k] xt[columns[k]] over the entries k of row i"""
    zero = splat(xt.dtype.type(0))
    for i in range(len(starts) - 1):
        y0, y1, y2, y3 = zero, zero, zero, zero
        for k in range(starts[i], starts[i + 1]):
            v, j = splat(values[k]), columns[k]
            y0 = fma(v, load(xt, j, 0), y0)
            y1 = fma(v, load(xt, j, 16), y1)
            y2 = fma(v, load(xt, j, 32), y2)
            y3 = fma(v, load(xt, j, 48), y3)
        store(yt, i, 0, y0)
        store(yt, i, 16, y1)
        store(yt, i, 32, y2)
        store(yt, i, 48, y3)


@kernel
def sddmm_tile(dyt, xt, columns, starts, dvalues):
    """dvalues[k] += dyt[i] . xt[columns[k]] for the entries k of row i"""
    for i in range(len(starts) - 1):
        g0, g1, g2, g3 = load(dyt, i, 0), load(dyt, i, 16), load(dyt, i, 32), load(dyt, i, 48)
        for k in range(starts[i], starts[i + 1]):
            j = columns[k]
            a = fma(g1, load(xt, j, 16), g0 * load(xt, j, 0))
            b = fma(g3, load(xt, j, 48), g2 * load(xt, j, 32))
            dvalues[k] += total(a + b)


@kernel
def spmm_add(x, values, columns, starts, begin, end, xt, yt, y):
    """y += x S^T for tokens begin .. end"""
    for t in range(begin, end, TILE):
        turn_in(x, t, end, xt)
        spmm_tile(values, columns, starts, xt, yt)
        turn_out(yt, y, t, end)


@kernel
def spmm_few(x, values, columns, starts, y):
    """y += x S^T for so few tokens that a tile would be mostly zeros: S is read once, x stays in the cache."""
    for i in range(len(starts) - 1):
        for t in range(len(x)):
            dot = y[t, i]
            for k in range(starts[i], starts[i + 1]):
                dot += values[k] * x[t, columns[k]]
            y[t, i] = dot


@kernel
def sddmm_add(dy, x, columns, starts, begin, end, dyt, xt, dvalues):
    """dvalues += dy^T x on the support, for tokens begin .. end"""
    for t in range(begin, end, TILE):
        turn_in(dy, t, end, dyt)
        turn_in(x, t, end, xt)
        sddmm_tile(dyt, xt, columns, starts, dvalues)


@kernel
def backward_add(dy, x, columns, starts, t_values, t_rows, t_starts, begin, end, dyt, xt, dxt, dx, dvalues):
    """dx += dy S and dvalues += dy^T x on the support, for tokens begin .. end: a tile of dy is turned once for both.
    S by row (columns, starts) and by column (t_...)."""
    for t in range(begin, end, TILE):
        turn_in(dy, t, end, dyt)
        spmm_tile(t_values, t_rows, t_starts, dyt, dxt)
        turn_out(dxt, dx, t, end)
        turn_in(x, t, end, xt)
        sddmm_tile(dyt, xt, columns, starts, dvalues)


def scratch(rows, dtype):
    """(rows, 64) uninitialised, rows starting on a cache line: a vector that straddles two costs two loads."""
    raw = np.empty(rows * TILE * dtype.itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start:start + rows * TILE * dtype.itemsize].view(dtype).reshape(rows, TILE)
