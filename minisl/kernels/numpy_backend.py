"""The same as `reference`, in whole-array NumPy (CuPy for CuPy arrays) and SciPy sparse products."""

import numpy as np

from minisl.backend import array_module
from minisl.kernels.numpy_fused import *  # noqa: F403  a backend has the fused ops too

CHUNK = 1 << 22  # elements of the largest temporary in sddmm


# Algorithm 1: W is built, used and dropped, in forward and again in backward.

def dense(B, A, values, support, scale):
    """W = s B A;  W.flat[index] += values"""
    W = (scale * B) @ A
    add_sparse(W, values, support)
    return W


def materialised_forward(x, B, A, values, support, scale):
    """Y = X W^T"""
    return x @ dense(B, A, values, support, scale).T, None


def materialised_backward(dy, x, B, A, values, support, scale, xA=None):
    """dX = dY W;  dW = dY^T X;  dB = s dW A^T;  dA = s B^T dW;  dvalues = dW.flat[index]"""
    dx = dy @ dense(B, A, values, support, scale)
    dW = dy.T @ x
    dB = dW @ A.T
    dA = B.T @ dW
    dB *= scale
    dA *= scale
    return dx, dB, dA, dW.reshape(-1)[support.index]


# The factored form: nothing of size (out, in) exists.

def factored_forward(x, B, A, values, support, scale):
    """Y = s (X A^T) B^T + X S^T; also X A^T, which the backward pass needs again"""
    xA = x @ A.T
    y = xA @ (scale * B).T
    y += spmm(x, values, support, False)
    return y, xA


def factored_backward(dy, x, B, A, values, support, scale, xA=None):
    """dX = s (dY B) A + dY S;  dB = s dY^T (X A^T);  dA = s (dY B)^T X;  dvalues by SDDMM"""
    dyB = dy @ B
    dyB *= scale
    dx = dyB @ A
    dx += spmm(dy, values, support, True)
    dA = dyB.T @ x
    dB = dy.T @ (x @ A.T if xA is None else xA)
    dB *= scale
    return dx, dB, dA, sddmm(dy, x, support)


def scatter_add(W, values, support):
    """W.flat[index] += values, on a copy"""
    W = W.copy()
    add_sparse(W, values, support)
    return W


def add_sparse(W, values, support):
    """Add S to W (out, in) in place."""
    flat = W.reshape(-1)
    if array_module(W) is np and support.unique:  # on a GPU the answer would have to be waited for
        flat[support.index] += values
    else:
        array_module(W).add.at(flat, support.index, values)


def spmm(x, values, support, transpose):
    """X S^T = (S X^T)^T;  transposed: G S = (S^T G^T)^T"""
    if array_module(x).__name__ == "cupy":
        from cupyx.scipy.sparse import csr_matrix
    else:
        from scipy.sparse import csr_matrix
    order, columns, starts = support.csc if transpose else support.csr
    out, width = support.shape[::-1] if transpose else support.shape
    return (csr_matrix((values[order], columns, starts), shape=(out, width)) @ x.T).T


def sddmm(dy, x, support):
    """dvalues[k] = sum_t dY[t, row_k] X[t, col_k], a slice of the support at a time"""
    xp, rows, cols = array_module(x), support.rows, support.cols
    dvalues = xp.empty(len(support), x.dtype)
    step = max(1, CHUNK // max(1, len(x)))
    for k in range(0, len(support), step):
        dvalues[k:k + step] = xp.einsum("tk,tk->k", dy[:, rows[k:k + step]], x[:, cols[k:k + step]])
    return dvalues
