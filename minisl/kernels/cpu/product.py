"""Y = X (s B A + S)^T and its gradients: what `sparse` does on a tile, BLAS on a chunk of tokens, and the cores on a batch."""

import numpy as np

from minisl.kernels import numpy_backend
from minisl.kernels.cpu import sparse
from minisl.kernels.cpu.fused import in_order, linear, linear_backward, matmul, plain
from minisl.kernels.cpu.sparse import scratch
from minisl.parallel import each, even

FEW = 8  # fewer tokens, as in generation, are not turned, nor A and B for them
CHUNK = 512  # tokens between a dense product and the sparse one that finds its result in the cache

scatter_add = numpy_backend.scatter_add  # a few percent of one pass over W


def dense(B, A, values, support, scale):
    """W = s B A;  W.flat[index] += values"""
    W = matmul(scaled(B, scale), A)
    numpy_backend.add_sparse(W, values, support)
    return W


def materialised_forward(x, B, A, values, support, scale):
    """Y = X W^T"""
    return linear(x, dense(B, A, values, support, scale)), None


def materialised_backward(dy, x, B, A, values, support, scale, xA=None):
    """dX = dY W;  dW = dY^T X;  dB = s dW A^T;  dA = s B^T dW;  dvalues = dW.flat[index]"""
    dx, dW = linear_backward(dy, x, dense(B, A, values, support, scale), True)
    return dx, matmul(dW, scaled(A.T, scale)), matmul(scaled(B.T, scale), dW), dW.reshape(-1)[support.index]


def factored_forward(x, B, A, values, support, scale):
    """Y = s (X A^T) B^T + X S^T; also X A^T, which the backward pass needs again"""
    if len(x) < FEW:
        return factored_few(x, B, A, values, support, scale)
    x, (out, width) = plain(x), support.shape
    At, sBt, entries = np.ascontiguousarray(A.T), scaled(B.T, scale), by_row(support, values)
    xA, y = np.empty((len(x), len(A)), x.dtype), np.empty((len(x), out), x.dtype)

    def tokens(begin, end):
        xt, yt = scratch(width, x.dtype), scratch(out, x.dtype)
        for t in range(begin, end, CHUNK):
            here = slice(t, min(t + CHUNK, end))
            np.matmul(x[here], At, out=xA[here])
            np.matmul(xA[here], sBt, out=y[here])
            sparse.spmm_add(x, *entries, t, here.stop, xt, yt, y)

    each(tokens, len(x), even(len(x), CHUNK))
    return y, xA


def factored_few(x, B, A, values, support, scale):
    x = plain(x)
    xA = np.matmul(x, A.T)
    y = np.matmul(scaled(xA, scale), B.T)
    sparse.spmm_few(x, *by_row(support, values), y)
    return y, xA


def factored_backward(dy, x, B, A, values, support, scale, xA=None):
    """dX = s (dY B) A + dY S;  dB = s dY^T (X A^T);  dA = s (dY B)^T X;  dvalues by SDDMM"""
    dy, x, (out, width) = plain(dy), plain(x), support.shape
    xA, n, r = linear(x, A) if xA is None else xA, len(x), len(A)
    sB, (order, columns, starts), transposed = scaled(B, scale), support.csr, by_column(support, values)
    dx, shares = np.empty((n, width), x.dtype), []

    def tokens(begin, end):
        dyt, xt, dxt = (scratch(size, x.dtype) for size in (out, width, width))
        dA, dB, dyB = (np.zeros(shape, x.dtype) for shape in (A.shape, B.shape, (CHUNK, r)))
        dvalues = np.zeros(len(values), x.dtype)
        for t in range(begin, end, CHUNK):
            here = slice(t, min(t + CHUNK, end))
            g = np.matmul(dy[here], sB, out=dyB[: here.stop - t])
            np.matmul(g, A, out=dx[here])
            sparse.backward_add(dy, x, columns, starts, *transposed, t, here.stop, dyt, xt, dxt, dx, dvalues)
            if t == begin:
                np.matmul(g.T, x[here], out=dA)
                np.matmul(dy[here].T, xA[here], out=dB)
            else:
                dA += g.T @ x[here]
                dB += dy[here].T @ xA[here]
        shares.append((begin, dA, dB, dvalues))

    each(tokens, n, even(n, CHUNK))
    dA, dB, by_rows = (in_order(shares, k) for k in (1, 2, 3))
    dB *= dB.dtype.type(scale)
    dvalues = np.empty_like(by_rows)
    dvalues[order] = by_rows
    return dx, dB, dA, dvalues


def spmm(x, values, support, transpose):
    """X S^T, or X S with transpose"""
    x, (out, width) = plain(x), support.shape[::-1] if transpose else support.shape
    entries, y = (by_column if transpose else by_row)(support, values), np.zeros((len(x), out), x.dtype)
    each(lambda begin, end: sparse.spmm_add(x, *entries, begin, end, scratch(width, x.dtype), scratch(out, x.dtype), y), len(x))
    return y


def sddmm(dy, x, support):
    """dvalues[k] = sum_t dY[t, row_k] X[t, col_k]"""
    dy, x, (order, columns, starts) = plain(dy), plain(x), support.csr
    shares = []

    def tokens(begin, end):
        share = np.zeros(len(support), x.dtype)
        sparse.sddmm_add(dy, x, columns, starts, begin, end, *(scratch(n, x.dtype) for n in support.shape), share)
        shares.append((begin, share))

    each(tokens, len(x), even(len(x), CHUNK))
    dvalues, by_rows = np.empty(len(support), x.dtype), in_order(shares, 1)
    dvalues[order] = by_rows
    return dvalues


def scaled(B, scale):
    return np.ascontiguousarray(B) * B.dtype.type(scale)


def by_row(support, values):
    """(values, columns, starts) of S row by row"""
    order, columns, starts = support.csr
    return plain(values[order]), columns, starts


def by_column(support, values):
    order, rows, starts = support.csc
    return plain(values[order]), rows, starts
