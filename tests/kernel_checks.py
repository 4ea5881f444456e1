"""The sparse-plus-low-rank product of the backend in use against a dense computation written here. Used by tests and mutants."""

import numpy as np

from minisl import kernels
from minisl.kernels import Support

SCALE = 0.37
OUT, WIDTH, RANK, TOKENS = 5, 7, 3, 4
SUPPORTS = {
    "sorted": [0, 3, 8, 9, 15, 20, 33],
    "unsorted": [33, 0, 20, 3, 9, 15, 8],
    "repeated": [8, 3, 8, 20, 8, 33, 3],
    "one full row, others empty": [14, 15, 16, 17, 18, 19, 20],
    "one full column": [2, 9, 16, 23, 30],
    "everything": list(range(OUT * WIDTH)),
    "nothing": [],
}
ALGORITHMS = ("materialised", "factored")
BACKENDS = ("reference", "numpy", "cpu")  # those with kernels for float64


def problem(support, dtype=np.float64):
    rng = np.random.default_rng(11)
    index = np.array(SUPPORTS[support], np.int32)
    shapes = [(TOKENS, OUT), (TOKENS, WIDTH), (OUT, RANK), (RANK, WIDTH), (len(index),)]
    return *(rng.standard_normal(s).astype(dtype) for s in shapes), index


def dense(B, A, v, index, scale=SCALE):
    """W entry by entry, with no array operation in common with the kernels."""
    W = np.array([[scale * sum(B[i, q] * A[q, j] for q in range(RANK)) for j in range(WIDTH)] for i in range(OUT)])
    for position, value in zip(index, v):
        W[divmod(int(position), WIDTH)] += value
    return W


def expected(dy, x, B, A, v, index, scale=SCALE):
    """y, dx, dB, dA, dv by einsum over the dense matrices."""
    W, dW = dense(B, A, v, index, scale), np.einsum("to,ti->oi", dy, x)
    return (np.einsum("ti,oi->to", x, W), np.einsum("to,oi->ti", dy, W), scale * np.einsum("oi,ri->or", dW, A),
            scale * np.einsum("or,oi->ri", B, dW), np.array([dW[divmod(int(p), WIDTH)] for p in index]))


def check_product(support, algorithm, dtype=np.float64, tolerance=1e-12):
    """Also where the backward pass is given what the forward pass kept."""
    dy, x, B, A, v, index = problem(support, dtype)
    y, xA = kernels.sl_linear_forward(x, B, A, v, index, SCALE, algorithm=algorithm)
    got = [y, *kernels.sl_linear_backward(dy, x, B, A, v, index, SCALE, algorithm=algorithm)]
    for mine, again in zip(got[1:], kernels.sl_linear_backward(dy, x, B, A, v, index, SCALE, xA, algorithm=algorithm)):
        np.testing.assert_allclose(again, mine, rtol=tolerance, atol=tolerance * 10)
    for name, mine, right in zip(("y", "dx", "dB", "dA", "dvalues"), got, expected(dy, x, B, A, v, index)):
        assert mine.dtype == dtype
        np.testing.assert_allclose(mine, right, rtol=tolerance, atol=tolerance * 10, err_msg=name)


def check_sparse(support):
    """scatter_add, spmm both ways and sddmm; inputs are left as they were."""
    dy, x, B, A, v, index = problem(support)
    S = dense(0 * B, A, v, index)
    where = Support(index, (OUT, WIDTH))
    W = np.random.default_rng(1).standard_normal((OUT, WIDTH))
    before = W.copy()
    np.testing.assert_allclose(kernels.scatter_add(W, v, where), before + S, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(W, before)
    np.testing.assert_allclose(kernels.spmm(x, v, where), x @ S.T, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(kernels.spmm(dy, v, where, transpose=True), dy @ S, rtol=1e-12, atol=1e-12)
    dW = dy.T @ x
    np.testing.assert_allclose(kernels.sddmm(dy, x, where), dW.ravel()[index], rtol=1e-12, atol=1e-12)


def check_views(support):
    """CSR and CSC rebuild the matrix, rows and columns in order."""
    *_, v, index = problem(support)
    where = Support(index, (OUT, WIDTH))
    S = dense(np.zeros((OUT, RANK)), np.zeros((RANK, WIDTH)), v, index)
    for (order, inner, starts), matrix in ((where.csr, S), (where.csc, S.T)):
        rebuilt = np.zeros(matrix.shape)
        for i in range(len(matrix)):
            entries = slice(starts[i], starts[i + 1])
            assert (np.diff(inner[entries]) >= 0).all()
            np.add.at(rebuilt[i], inner[entries], v[order][entries])
        np.testing.assert_allclose(rebuilt, matrix)
