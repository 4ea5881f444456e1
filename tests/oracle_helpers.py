"""What the oracle tests share: when two results count as the same."""

import numpy as np


def assert_same(mine, theirs, tolerance, what="result"):
    """An array and PyTorch's tensor agree in shape and dtype, and no entry differs by more than tolerance * the largest."""
    theirs = theirs.detach().numpy()
    assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype), what
    largest = np.abs(theirs).max()
    assert largest > 0, f"{what}: PyTorch's is all zero, which compares nothing"
    error = np.abs(mine - theirs).max() / largest
    assert error <= tolerance, f"{what}: off by {error:.1e} of the largest entry, allowed {tolerance:.0e}"
