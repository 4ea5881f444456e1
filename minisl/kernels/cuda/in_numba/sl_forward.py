"""Y = X (s B A + S)^T, beside sl_forward_0.cu to sl_forward_3.cu: tiles of W, built in shared memory and used at once."""

import numpy as np
from numba import cuda


@cuda.jit
def rung_0(x, B, A, values, rows, columns, starts, y, n, width, out, r, scale):
    """A tile of W, built and used at once."""
    SIZE = 16
    W = cuda.shared.array((SIZE, 17), np.float32)  # SIZE + 1
    xs = cuda.shared.array((SIZE, 17), np.float32)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    row, token = cuda.blockIdx.x * SIZE, cuda.blockIdx.y * SIZE
    start = cuda.blockIdx.x * ((width + SIZE - 1) // SIZE) * SIZE
    sum = np.float32(0)
    for column in range(0, width, SIZE):
        w = np.float32(0)
        if row + ty < out and column + tx < width:
            for q in range(r):
                w += B[row + ty, q] * A[q, column + tx]
        W[ty, tx] = scale * w
        xs[ty, tx] = x[token + ty, column + tx] if token + ty < n and column + tx < width else np.float32(0)
        cuda.syncthreads()
        for p in range(starts[start] + ty * SIZE + tx, starts[start + SIZE], SIZE * SIZE):
            cuda.atomic.add(W, (rows[p] - row, columns[p] - column), values[p])
        cuda.syncthreads()
        for c in range(SIZE):
            sum += xs[ty, c] * W[tx, c]
        cuda.syncthreads()
        start += SIZE
    if token + ty < n and row + tx < out:
        y[token + ty, row + tx] = sum


@cuda.jit
def rung_1(x, B, A, values, rows, columns, starts, y, n, width, out, r, scale):
    """The factors in shared memory too."""
    SIZE = 16
    W = cuda.shared.array((SIZE, 17), np.float32)  # SIZE + 1
    xs = cuda.shared.array((SIZE, 17), np.float32)
    Bs = cuda.shared.array((SIZE, 17), np.float32)
    As = cuda.shared.array((SIZE, 17), np.float32)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    row, token = cuda.blockIdx.x * SIZE, cuda.blockIdx.y * SIZE
    start = cuda.blockIdx.x * ((width + SIZE - 1) // SIZE) * SIZE
    sum = np.float32(0)
    for column in range(0, width, SIZE):
        w = np.float32(0)
        for rank in range(0, r, SIZE):
            Bs[ty, tx] = B[row + ty, rank + tx] if row + ty < out and rank + tx < r else np.float32(0)
            As[ty, tx] = A[rank + ty, column + tx] if rank + ty < r and column + tx < width else np.float32(0)
            cuda.syncthreads()
            for q in range(SIZE):
                w += Bs[ty, q] * As[q, tx]
            cuda.syncthreads()
        W[ty, tx] = scale * w
        xs[ty, tx] = x[token + ty, column + tx] if token + ty < n and column + tx < width else np.float32(0)
        cuda.syncthreads()
        for p in range(starts[start] + ty * SIZE + tx, starts[start + SIZE], SIZE * SIZE):
            cuda.atomic.add(W, (rows[p] - row, columns[p] - column), values[p])
        cuda.syncthreads()
        for c in range(SIZE):
            sum += xs[ty, c] * W[tx, c]
        cuda.syncthreads()
        start += SIZE
    if token + ty < n and row + tx < out:
        y[token + ty, row + tx] = sum


@cuda.jit
def rung_2(x, B, A, values, rows, columns, starts, y, n, width, out, r, scale):
    """A tile of W for 128 tokens."""
    SIZE, EACH, TOKENS = 16, 8, 128  # EACH: tokens of a thread
    W = cuda.shared.array((SIZE, 17), np.float32)  # SIZE + 1
    xs = cuda.shared.array((TOKENS, 17), np.float32)
    Bs = cuda.shared.array((SIZE, 17), np.float32)
    As = cuda.shared.array((SIZE, 17), np.float32)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    row, token = cuda.blockIdx.x * SIZE, cuda.blockIdx.y * TOKENS
    start = cuda.blockIdx.x * ((width + SIZE - 1) // SIZE) * SIZE
    sum = cuda.local.array(EACH, np.float32)
    for k in range(EACH):
        sum[k] = 0
    for column in range(0, width, SIZE):
        w = np.float32(0)
        for rank in range(0, r, SIZE):
            Bs[ty, tx] = B[row + ty, rank + tx] if row + ty < out and rank + tx < r else np.float32(0)
            As[ty, tx] = A[rank + ty, column + tx] if rank + ty < r and column + tx < width else np.float32(0)
            cuda.syncthreads()
            for q in range(SIZE):
                w += Bs[ty, q] * As[q, tx]
            cuda.syncthreads()
        W[ty, tx] = scale * w
        for t in range(ty, TOKENS, SIZE):
            xs[t, tx] = x[token + t, column + tx] if token + t < n and column + tx < width else np.float32(0)
        cuda.syncthreads()
        for p in range(starts[start] + ty * SIZE + tx, starts[start + SIZE], SIZE * SIZE):
            cuda.atomic.add(W, (rows[p] - row, columns[p] - column), values[p])
        cuda.syncthreads()
        for c in range(SIZE):
            for k in range(EACH):
                sum[k] += xs[ty + k * SIZE, c] * W[tx, c]
        cuda.syncthreads()
        start += SIZE
    for k in range(EACH):
        if token + ty + k * SIZE < n and row + tx < out:
            y[token + ty + k * SIZE, row + tx] = sum[k]


@cuda.jit
def rung_3(x, B, A, values, rows, columns, starts, y, n, width, out, r, scale):
    """64 x 64 outputs a block, 4 x 4 a thread."""
    SIZE, EACH, ROWS, TOKENS = 16, 4, 64, 64  # EACH: rows, and tokens, of a thread; ROWS of a tile of S, which has SIZE columns
    W = cuda.shared.array((ROWS, 17), np.float32)  # SIZE + 1
    xs = cuda.shared.array((TOKENS, 17), np.float32)
    Bs = cuda.shared.array((ROWS, 17), np.float32)
    As = cuda.shared.array((SIZE, 17), np.float32)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    row, token = cuda.blockIdx.x * ROWS, cuda.blockIdx.y * TOKENS
    start = cuda.blockIdx.x * ((width + SIZE - 1) // SIZE) * ROWS
    sum = cuda.local.array((EACH, EACH), np.float32)
    for k in range(EACH):
        for l in range(EACH):
            sum[k, l] = 0
    w = cuda.local.array(EACH, np.float32)
    for column in range(0, width, SIZE):
        for l in range(EACH):
            w[l] = 0
        for rank in range(0, r, SIZE):
            for i in range(ty, ROWS, SIZE):
                Bs[i, tx] = B[row + i, rank + tx] if row + i < out and rank + tx < r else np.float32(0)
            As[ty, tx] = A[rank + ty, column + tx] if rank + ty < r and column + tx < width else np.float32(0)
            cuda.syncthreads()
            for q in range(SIZE):
                for l in range(EACH):
                    w[l] += Bs[ty + l * SIZE, q] * As[q, tx]
            cuda.syncthreads()
        for l in range(EACH):
            W[ty + l * SIZE, tx] = scale * w[l]
        for t in range(ty, TOKENS, SIZE):
            xs[t, tx] = x[token + t, column + tx] if token + t < n and column + tx < width else np.float32(0)
        cuda.syncthreads()
        for p in range(starts[start] + ty * SIZE + tx, starts[start + ROWS], SIZE * SIZE):
            cuda.atomic.add(W, (rows[p] - row, columns[p] - column), values[p])
        cuda.syncthreads()
        for c in range(SIZE):
            for k in range(EACH):
                for l in range(EACH):
                    sum[k, l] += xs[ty + k * SIZE, c] * W[tx + l * SIZE, c]
        cuda.syncthreads()
        start += ROWS
    for k in range(EACH):
        for l in range(EACH):
            t, i = token + ty + k * SIZE, row + tx + l * SIZE
            if t < n and i < out:
                y[t, i] = sum[k, l]
