"""The fixed support of S and the views of it that products need, built once."""

from functools import cached_property

from minisl.backend import array_module


class Support:
    """Positions of S's entries in an (out, in) matrix.

    index: (nnz,) flat row-major positions, any order; int32 and int64 are kept as given, other integers become int64. Repeats are
    allowed: their values add up.
    CSR lists the entries row by row, CSC column by column; each is a permutation of the values plus where
    rows (columns) start, so a change of values costs one gather.
    check: look at the positions, for which a GPU is waited for; without it they are taken to be right, and unsorted.
    Raises TypeError: index is no array of integers; ValueError: not one-dimensional, or a position outside the matrix.
    """

    def __init__(self, index, shape, check=True):
        if not hasattr(index, "dtype") or index.dtype.kind not in "iu":
            raise TypeError(f"support: index must be an array of integers, got {getattr(index, 'dtype', type(index).__name__)}")
        if index.ndim != 1 or len(shape) != 2:
            raise ValueError(f"support: index must be (nnz,) in a matrix (out, in), got shapes {index.shape} and {tuple(shape)}")
        size = shape[0] * shape[1]
        if check and len(index) and not (0 <= int(index.min()) and int(index.max()) < size):
            raise ValueError(f"support: positions run from {int(index.min())} to {int(index.max())}, "
                             f"a {shape[0]} x {shape[1]} matrix has 0..{size - 1}")
        if index.dtype not in ("int32", "int64"):  # positions are multiplied with, which in 8 bits overflows
            index = index.astype("int64")
        self.index, self.shape, self.tilings = index, tuple(map(int, shape)), {}
        self.sorted = check and bool((index[1:] >= index[:-1]).all())

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
        order = slice(None) if self.sorted else self.index.argsort(kind="stable").astype("int32")
        return order, self.cols[order], starts(self.rows[order], self.shape[0])

    @cached_property
    def csc(self):
        """(order, rows, starts): entries by column, and by row within a column."""
        xp = array_module(self.index)
        order = xp.lexsort(xp.stack([self.rows, self.cols])).astype("int32")
        return order, self.rows[order], starts(self.cols[order], self.shape[1])

    @cached_property
    def index32(self):
        """The positions as the GPU's kernels take them. Raises ValueError where the matrix has 2^31 elements or more."""
        if self.shape[0] * self.shape[1] >= 2**31:
            raise ValueError(f"support: a {self.shape[0]} x {self.shape[1]} matrix has too many positions for 32 bits")
        return self.index.astype("int32", copy=False)

    @cached_property
    def transposed(self):
        """The support of S^T, for the same values in the same order."""
        wide = self.index.dtype if self.shape[0] * self.shape[1] < 2**31 else "int64"
        return Support(self.cols.astype(wide) * self.shape[0] + self.rows, self.shape[::-1], check=False)

    def tiled(self, height, width):
        """(order, rows, cols, starts): entries by tiles of height x width positions, tiles row by row, within a tile by row.

        Row i of tile k is starts[height k + i] .. starts[height k + i + 1]. Tiles at the right and lower edge may be cut off;
        the rows they lack are empty.
        """
        if (height, width) not in self.tilings:
            xp, rows, cols = array_module(self.index), self.rows, self.cols
            across, down = -(-self.shape[1] // width), -(-self.shape[0] // height)
            line = ((rows // height) * across + cols // width) * height + rows % height
            order = line.argsort(kind="stable").astype("int32")
            self.tilings[height, width] = (order, *(xp.ascontiguousarray(a[order]) for a in (rows, cols)),
                                           starts(line[order], across * down * height))
        return self.tilings[height, width]


def starts(lines, n):
    """Where each of 0 .. n begins in the sorted `lines`: i's are at starts[i] .. starts[i+1]."""
    return lines.searchsorted(array_module(lines).arange(n + 1, dtype="int32")).astype("int32")
