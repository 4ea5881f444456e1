"""W.flat[index] += values, beside scatter_add_0.cu and scatter_add_1.cu. W is given flat.

Rung 2, four entries read with one load of 16 bytes, is not here: Numba loads an element at a time.
"""

from numba import cuda


@cuda.jit
def rung_0(W, index, values, nnz):
    """One thread walks over all entries."""
    for k in range(nnz):
        W[index[k]] += values[k]


@cuda.jit
def rung_1(W, index, values, nnz):
    """A thread per entry. Two may name the same position, so the addition is atomic."""
    k = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    if k < nnz:
        cuda.atomic.add(W, index[k], values[k])
