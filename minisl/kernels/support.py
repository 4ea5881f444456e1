"""The fixed support of S and the views of it that products need, built once."""

from functools import cached_property

from minisl.backend import array_module


class Support:
    """Positions of S's entries in an (out, in) matrix.

    index: (nnz,) flat row-major positions, any order; kept as given. Repeats are allowed: their values add up.
    CSR lists the entries row by row, CSC column by column; each is a permutation of the values plus where
    rows (columns) start, so a change of values costs one gather.
    Raises ValueError: a position outside the matrix, or index not one-dimensional integers.
    """

    def __init__(self, index, shape):
        if index.ndim != 1 or index.dtype.kind not in "iu":
            raise ValueError(f"support: index must be one-dimensional integers, got {index.dtype} of shape {index.shape}")
        size = shape[0] * shape[1]
        if len(index) and not (0 <= int(index.min()) and int(index.max()) < size):
            raise ValueError(f"support: positions run from {int(index.min())} to {int(index.max())}, "
                             f"a {shape[0]} x {shape[1]} matrix has 0..{size - 1}")
        self.index, self.shape = index, tuple(shape)

    def __len__(self):
        return len(self.index)

    @property
    def rows(self):
        return (self.index // self.shape[1]).astype("int32")

    @property
    def cols(self):
        return (self.index % self.shape[1]).astype("int32")

    @cached_property
    def unique(self):
        """No position occurs twice, so `W.flat[index] += values` is a scatter-add."""
        return len(array_module(self.index).unique(self.index)) == len(self.index)

    @cached_property
    def csr(self):
        """(order, cols, starts): entries by row; values[order] are theirs, row i is starts[i] .. starts[i+1].

        Where the index is sorted already, order is a slice: values[order] then is no copy.
        """
        order = self.index.argsort(kind="stable").astype("int32")
        if bool((self.index[1:] >= self.index[:-1]).all()):
            order = slice(None)
        return order, self.cols[order], self._starts(self.rows, self.shape[0])

    @cached_property
    def csc(self):
        """(order, rows, starts): entries by column, and by row within a column."""
        xp = array_module(self.index)
        order = xp.lexsort(xp.stack([self.rows, self.cols])).astype("int32")
        return order, self.rows[order], self._starts(self.cols, self.shape[1])

    def _starts(self, which, n):
        xp = array_module(which)
        starts = xp.zeros(n + 1, "int32")
        xp.cumsum(xp.bincount(which, minlength=n), out=starts[1:])
        return starts
