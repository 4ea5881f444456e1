"""The definition, in loops: every other backend must give these numbers. For tiny sizes."""

import numpy as np

from minisl.kernels.numpy_fused import *  # noqa: F403  whole-array NumPy is as plain as these get


def dense(B, A, values, support, scale):
    """W[i, j] = scale sum_q B[i, q] A[q, j] + (values whose position is i, j)"""
    (out, width), r = support.shape, len(A)
    W = np.zeros((out, width), B.dtype)
    for i in range(out):
        for j in range(width):
            for q in range(r):
                W[i, j] += scale * B[i, q] * A[q, j]
    return scatter_add(W, values, support)


def materialised_forward(x, B, A, values, support, scale):
    """Y[t, i] = sum_j X[t, j] W[i, j]"""
    W = dense(B, A, values, support, scale)
    y = np.zeros((len(x), len(W)), x.dtype)
    for t in range(len(x)):
        for i in range(W.shape[0]):
            for j in range(W.shape[1]):
                y[t, i] += x[t, j] * W[i, j]
    return y, None


def materialised_backward(dy, x, B, A, values, support, scale, xA=None):
    """dX = dY W;  dW = dY^T X;  dB = s dW A^T;  dA = s B^T dW;  dvalues[k] = dW[row_k, col_k]"""
    W = dense(B, A, values, support, scale)
    dx, dW, dB, dA = np.zeros_like(x), np.zeros_like(W), np.zeros_like(B), np.zeros_like(A)
    for t in range(len(x)):
        for i in range(W.shape[0]):
            for j in range(W.shape[1]):
                dx[t, j] += dy[t, i] * W[i, j]
                dW[i, j] += dy[t, i] * x[t, j]
    for i in range(W.shape[0]):
        for j in range(W.shape[1]):
            for q in range(len(A)):
                dB[i, q] += scale * dW[i, j] * A[q, j]
                dA[q, j] += scale * B[i, q] * dW[i, j]
    dvalues = np.array([dW[i, j] for i, j in zip(support.rows, support.cols)], x.dtype)
    return dx, dB, dA, dvalues


def factored_forward(x, B, A, values, support, scale):
    """Y = s (X A^T) B^T + X S^T"""
    return scale * product(product(x, A.T), B.T) + spmm(x, values, support, False), None


def factored_backward(dy, x, B, A, values, support, scale, xA=None):
    """dX = s (dY B) A + dY S;  dB = s dY^T (X A^T);  dA = s (dY B)^T X;  dvalues by SDDMM"""
    dy_B = product(dy, B)
    dx = scale * product(dy_B, A) + spmm(dy, values, support, True)
    dB = scale * product(dy.T, product(x, A.T))
    dA = scale * product(dy_B.T, x)
    return dx, dB, dA, sddmm(dy, x, support)


def scatter_add(W, values, support):
    """W[row_k, col_k] += values[k], one after the other"""
    W = W.copy()
    for i, j, value in zip(support.rows, support.cols, values):
        W[i, j] += value
    return W


def spmm(x, values, support, transpose):
    """Y[t, row_k] += values[k] X[t, col_k];  transposed: DX[t, col_k] += values[k] G[t, row_k]"""
    to, of = (support.cols, support.rows) if transpose else (support.rows, support.cols)
    y = np.zeros((len(x), support.shape[1 if transpose else 0]), x.dtype)
    for t in range(len(x)):
        for k in range(len(values)):
            y[t, to[k]] += values[k] * x[t, of[k]]
    return y


def sddmm(dy, x, support):
    """dvalues[k] = sum_t dY[t, row_k] X[t, col_k]"""
    dvalues = np.zeros(len(support), x.dtype)
    for k, (i, j) in enumerate(zip(support.rows, support.cols)):
        for t in range(len(x)):
            dvalues[k] += dy[t, i] * x[t, j]
    return dvalues


def product(a, b):
    """C[i, j] = sum_k a[i, k] b[k, j]"""
    c = np.zeros((a.shape[0], b.shape[1]), a.dtype)
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            for k in range(a.shape[1]):
                c[i, j] += a[i, k] * b[k, j]
    return c
