"""The products with S, and with W = s B A + S, on the ladder's kernels.

Every function launches the rung in use (`ladder.at`); what differs between rungs is the shape of the grid, and the order in which
they want S's entries: by row (CSR), or by tile, a block of rows and columns at a time.
"""

import numpy as np

from minisl.backend import array_module, matmul
from minisl.kernels.cuda import ladder
from minisl.kernels.cuda.launch import launch, pieces

SPLIT = 2048  # tokens that a block of sddmm sums up, where there are too few tiles to fill a GPU
BLOCKS = 4096  # enough to fill one several times


def scatter_add(W, values, support):
    """W.flat[index] += values, on a copy"""
    W = W.copy()
    add_sparse(W, values, support)
    return W


def add_sparse(W, values, support):
    per_block = {0: None, 1: 256, 2: 4 * 256}[ladder.rung("scatter_add")]
    grid, block = ((pieces(len(values), per_block),), (256,)) if per_block else ((1,), (1,))
    launch("scatter_add", grid, block, W=W, index=dense_copy(support.index32), values=dense_copy(values), nnz=len(values))


def spmm(x, values, support, transpose):
    """X S^T;  transposed: G S"""
    xp = array_module(x)
    y = xp.zeros((len(x), support.shape[1 if transpose else 0]), x.dtype)
    add_spmm(y, x, values, support, transpose)
    return y


def add_spmm(y, x, values, support, transpose):
    """Y += X S^T;  transposed: Y += G S"""
    n, out = y.shape
    if not len(values):
        return
    support = support.transposed if transpose else support
    rung = ladder.rung("spmm")
    order, columns, starts = support.csr if rung < 3 else by_tile(support)
    small, wide = (pieces(out, 64), pieces(n, 32)), (pieces(out, 64), pieces(n, 128))
    grid = ((pieces(out, 32), pieces(n, 8)), (out, pieces(n, 8)), (out, pieces(n, 128)), small, small, wide, wide)[rung]
    launch("spmm", grid, (128,) if rung == 2 else (32, 8), x=dense_copy(x), values=dense_copy(values[order]), columns=columns,
           starts=starts, y=y, n=n, width=x.shape[1], out=out)


def by_tile(support):
    order, _, columns, starts = support.tiled(64, 64)
    return order, columns, starts


def sddmm(dy, x, support):
    """dvalues[k] = sum_t dY[t, row_k] X[t, col_k]"""
    xp, rung, nnz = array_module(x), ladder.rung("sddmm"), len(support)
    (n, out), width = dy.shape, x.shape[1]
    tiles = pieces(out, 64), pieces(width, 64)
    splits = 1 if rung < 2 or tiles[0] * tiles[1] >= BLOCKS else max(1, pieces(n, SPLIT))
    grid, block = {0: ((pieces(nnz, 128),), (128,)), 1: ((pieces(nnz, 8),), (32, 8))}.get(rung, ((*tiles, splits), (256,)))
    order, rows, columns, starts = support.tiled(64, 64)
    parts = xp.empty((splits, nnz), x.dtype)
    if nnz:
        launch("sddmm", grid, block, dy=dense_copy(dy), x=dense_copy(x), rows=rows, columns=columns, order=order, starts=starts,
               dvalues=parts[0], parts=parts, n=n, width=width, out=out, nnz=nnz)
    return parts[0] if splits == 1 else parts.sum(axis=0)


# Algorithm 1: W is built by one product and one scatter-add; all other products are cuBLAS's.

def dense(B, A, values, support, scale):
    W = matmul(scale * B, A)
    add_sparse(W, values, support)
    return W


def materialised_forward(x, B, A, values, support, scale):
    """Y = X W^T"""
    return matmul(x, dense(B, A, values, support, scale).T), None


def materialised_backward(dy, x, B, A, values, support, scale, xA=None):
    """dX = dY W;  dW = dY^T X;  dB = s dW A^T;  dA = s B^T dW;  dvalues = dW.flat[index]"""
    dx = matmul(dy, dense(B, A, values, support, scale))
    dW = matmul(dy.T, x)
    return dx, scale * matmul(dW, A.T), scale * matmul(B.T, dW), dW.reshape(-1)[support.index]


# The factored form: low-rank products by cuBLAS, S's by the ladders.

def factored_forward(x, B, A, values, support, scale):
    """Y = s (X A^T) B^T + X S^T; also X A^T"""
    xA = matmul(x, A.T)
    y = matmul(xA, (scale * B).T)
    add_spmm(y, x, values, support, False)
    return y, xA


def factored_backward(dy, x, B, A, values, support, scale, xA=None):
    """dX = s (dY B) A + dY S;  dB = s dY^T (X A^T);  dA = s (dY B)^T X;  dvalues by SDDMM"""
    dyB = matmul(dy, scale * B)
    dx = matmul(dyB, A)
    add_spmm(dx, dy, values, support, True)
    dB = matmul(dy.T, matmul(x, A.T) if xA is None else xA)
    dB *= scale
    return dx, dB, matmul(dyB.T, x), sddmm(dy, x, support)


# Fused: W and dW are built tile by tile in shared memory, used there, and dropped.

def fused_forward(x, B, A, values, support, scale):
    """Y = X W^T"""
    xp, (n, width), out = array_module(x), x.shape, len(B)
    high, tokens = {0: (16, 16), 1: (16, 16), 2: (16, 128), 3: (64, 64)}[ladder.rung("sl_forward")]
    order, rows, columns, starts = support.tiled(high, 16)
    y = xp.empty((n, out), x.dtype)
    launch("sl_forward", (pieces(out, high), pieces(n, tokens)), (16, 16), x=dense_copy(x), B=dense_copy(B), A=dense_copy(A),
           values=dense_copy(values[order]), rows=rows, columns=columns, starts=starts, y=y, n=n, width=width, out=out, r=len(A),
           scale=float(scale))
    return y, None


def fused_backward(dy, x, B, A, values, support, scale, xA=None):
    """dX = dY W;  dB, dA and dvalues from dW = dY^T X. Sums over tiles end in dB and dA by atomics, in no fixed order."""
    xp, (n, width), out = array_module(x), x.shape, len(B)
    order, rows, columns, starts = support.tiled(16, 16)
    dx, dvalues = xp.empty(x.shape, x.dtype), xp.empty(values.shape, x.dtype)
    dB, dA = xp.zeros(B.shape, x.dtype), xp.zeros(A.shape, x.dtype)
    same = {"B": dense_copy(B), "A": dense_copy(A), "rows": rows, "columns": columns, "starts": starts, "n": n, "width": width,
            "out": out, "r": len(A), "scale": float(scale), "dy": dense_copy(dy)}
    tokens, high = (16, 128)[ladder.rung("sl_backward_dx")], (16, 64)[ladder.rung("sl_backward_dw")]
    launch("sl_backward_dx", (pieces(width, 16), pieces(n, tokens)), (16, 16), values=dense_copy(values[order]), dx=dx, **same)
    launch("sl_backward_dw", (pieces(out, high), pieces(width, 16)), (16, 16), x=dense_copy(x), order=order, dB=dB, dA=dA,
           dvalues=dvalues, **same)
    return dx, dB, dA, dvalues


def dense_copy(a):
    """The array itself if it is dense, else a copy that is."""
    return a if is_dense(a) else a.copy(order="C")


def is_dense(a):
    """Do its elements lie side by side, row by row, from a multiple of 16 bytes on, as loads of 16 bytes want them?"""
    address = a.ctypes.data if isinstance(a, np.ndarray) else a.data.ptr
    return a.flags.c_contiguous and address % 16 == 0
