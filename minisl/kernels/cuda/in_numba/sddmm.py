"""dvalues[k] = sum_t dY[t, row_k] X[t, col_k], beside sddmm_0.cu to sddmm_2.cu.

Rungs 3 and 4, four tokens read with one load of 16 bytes, are not here: Numba loads an element at a time.
"""

import numpy as np
from numba import cuda


@cuda.jit
def rung_0(dy, x, rows, columns, order, dvalues, n, width, out, nnz):
    """A thread per entry."""
    k = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if k >= nnz:
        return
    sum = np.float32(0)
    for t in range(n):
        sum += dy[t, rows[k]] * x[t, columns[k]]
    dvalues[order[k]] = sum


@cuda.jit
def rung_1(dy, x, rows, columns, order, dvalues, n, width, out, nnz):
    """A warp per entry."""
    k = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y  # a warp's threads have one k, and leave together
    lane = cuda.threadIdx.x
    if k >= nnz:
        return
    sum = np.float32(0)
    for t in range(lane, n, 32):
        sum += dy[t, rows[k]] * x[t, columns[k]]
    for distance in (16, 8, 4, 2, 1):
        sum += cuda.shfl_down_sync(0xFFFFFFFF, sum, distance)
    if lane == 0:
        dvalues[order[k]] = sum


@cuda.jit
def rung_2(dy, x, rows, columns, order, starts, parts, n, width, out, nnz):
    """Tiles of dY and x in shared memory."""
    SIZE, TOKENS, THREADS = 64, 32, 256  # rows and columns of a tile of S
    dys = cuda.shared.array((TOKENS, 65), np.float32)  # SIZE + 1
    xs = cuda.shared.array((TOKENS, 65), np.float32)
    row, column = cuda.blockIdx.x * SIZE, cuda.blockIdx.y * SIZE
    start = (cuda.blockIdx.x * cuda.gridDim.y + cuda.blockIdx.y) * SIZE
    begin, end = starts[start], starts[start + SIZE]
    share = (n + cuda.gridDim.z - 1) // cuda.gridDim.z
    share_from = cuda.blockIdx.z * share
    to = min(n, share_from + share)
    for p in range(begin, end, THREADS):
        k = min(p + cuda.threadIdx.x, end - 1)  # a thread without an entry helps to copy
        i, j = rows[k] - row, columns[k] - column
        sum = np.float32(0)
        for token in range(share_from, to, TOKENS):
            for e in range(cuda.threadIdx.x, TOKENS * SIZE, THREADS):
                t, c = e // SIZE, e % SIZE
                dys[t, c] = dy[token + t, row + c] if token + t < to and row + c < out else np.float32(0)
                xs[t, c] = x[token + t, column + c] if token + t < to and column + c < width else np.float32(0)
            cuda.syncthreads()
            for t in range(TOKENS):
                sum += dys[t, i] * xs[t, j]
            cuda.syncthreads()
        if p + cuda.threadIdx.x < end:
            parts[cuda.blockIdx.z, order[k]] = sum
