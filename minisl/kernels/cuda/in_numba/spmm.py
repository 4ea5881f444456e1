"""Y += X S^T, beside spmm_0.cu to spmm_4.cu.

Rungs 5 and 6, four tokens side by side read with one load of 16 bytes, are not here: Numba loads an element at a time.
"""

import numpy as np
from numba import cuda


@cuda.jit
def rung_0(x, values, columns, starts, y, n, width, out):
    """A thread per output."""
    i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x  # row of S
    t = cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y  # token
    if i >= out or t >= n:
        return
    sum = np.float32(0)
    for p in range(starts[i], starts[i + 1]):
        sum += values[p] * x[t, columns[p]]
    y[t, i] += sum


@cuda.jit
def rung_1(x, values, columns, starts, y, n, width, out):
    """A row per warp."""
    i = cuda.blockIdx.x
    t = cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y  # a warp's threads have one t
    lane = cuda.threadIdx.x
    if t >= n:
        return
    sum = np.float32(0)
    for p in range(starts[i] + lane, starts[i + 1], 32):
        sum += values[p] * x[t, columns[p]]
    for distance in (16, 8, 4, 2, 1):
        sum += cuda.shfl_down_sync(0xFFFFFFFF, sum, distance)
    if lane == 0:
        y[t, i] += sum


@cuda.jit
def rung_2(x, values, columns, starts, y, n, width, out):
    """A row's entries in shared memory, a token per thread."""
    TOKENS = 128
    value = cuda.shared.array(TOKENS, np.float32)
    column = cuda.shared.array(TOKENS, np.int32)
    i = cuda.blockIdx.x
    t = cuda.blockIdx.y * TOKENS + cuda.threadIdx.x
    xt = min(t, n - 1)  # a thread past the last token stays, for the barriers
    sum = np.float32(0)
    for first in range(starts[i], starts[i + 1], TOKENS):
        count = min(TOKENS, starts[i + 1] - first)
        if cuda.threadIdx.x < count:
            value[cuda.threadIdx.x] = values[first + cuda.threadIdx.x]
            column[cuda.threadIdx.x] = columns[first + cuda.threadIdx.x]
        cuda.syncthreads()
        for p in range(count):
            sum += value[p] * x[xt, column[p]]
        cuda.syncthreads()
    if t < n:
        y[t, i] += sum


@cuda.jit
def rung_3(x, values, columns, starts, y, n, width, out):
    """Tiles of tokens in shared memory."""
    ROWS, COLUMNS, TOKENS, WARPS = 64, 64, 32, 8  # rows and columns of a tile of S
    tile = cuda.shared.array((COLUMNS, 33), np.float32)  # TOKENS + 1, so that a column of it falls into different banks too
    lane, warp = cuda.threadIdx.x, cuda.threadIdx.y
    row, token = cuda.blockIdx.x * ROWS, cuda.blockIdx.y * TOKENS
    start = cuda.blockIdx.x * ((width + COLUMNS - 1) // COLUMNS) * ROWS
    sum = cuda.local.array(8, np.float32)  # ROWS // WARPS
    for k in range(ROWS // WARPS):
        sum[k] = 0
    for first in range(0, width, COLUMNS):
        for t in range(warp, TOKENS, WARPS):
            for c in range(lane, COLUMNS, 32):
                tile[c, t] = x[token + t, first + c] if token + t < n and first + c < width else np.float32(0)
        cuda.syncthreads()
        for k in range(ROWS // WARPS):
            for p in range(starts[start + warp + k * WARPS], starts[start + warp + k * WARPS + 1]):
                sum[k] += values[p] * tile[columns[p] - first, lane]
        cuda.syncthreads()
        start += ROWS
    for k in range(ROWS // WARPS):
        i = row + warp + k * WARPS
        if i < out and token + lane < n:
            y[token + lane, i] += sum[k]


@cuda.jit
def rung_4(x, values, columns, starts, y, n, width, out):
    """The sums leave through shared memory."""
    ROWS, COLUMNS, TOKENS, WARPS = 64, 64, 32, 8  # rows and columns of a tile of S
    tile = cuda.shared.array((COLUMNS, 33), np.float32)  # TOKENS + 1, so that a column of it falls into different banks too
    lane, warp = cuda.threadIdx.x, cuda.threadIdx.y
    row, token = cuda.blockIdx.x * ROWS, cuda.blockIdx.y * TOKENS
    start = cuda.blockIdx.x * ((width + COLUMNS - 1) // COLUMNS) * ROWS
    sum = cuda.local.array(8, np.float32)  # ROWS // WARPS
    for k in range(ROWS // WARPS):
        sum[k] = 0
    for first in range(0, width, COLUMNS):
        for t in range(warp, TOKENS, WARPS):
            for c in range(lane, COLUMNS, 32):
                tile[c, t] = x[token + t, first + c] if token + t < n and first + c < width else np.float32(0)
        cuda.syncthreads()
        for k in range(ROWS // WARPS):
            for p in range(starts[start + warp + k * WARPS], starts[start + warp + k * WARPS + 1]):
                sum[k] += values[p] * tile[columns[p] - first, lane]
        cuda.syncthreads()
        start += ROWS
    for k in range(ROWS // WARPS):
        tile[warp + k * WARPS, lane] = sum[k]
    cuda.syncthreads()
    for t in range(warp, min(TOKENS, n - token), WARPS):
        for i in range(lane, min(ROWS, out - row), 32):
            y[token + t, row + i] += tile[i, t]
