"""A byte for a moment: 256 numbers, times the largest magnitude of the block. Which 256?

linear    evenly apart: the error is the same for all, so what is 500 times smaller than the block's largest is gone.
dynamic   seven decades, in each the more numbers the larger it is (Dettmers et al. 2022): the error is in proportion.

It matters for v. A v that is rounded to 0 leaves m / (sqrt(v) + eps) without its denominator, but for (1 - b2) g^2 of the next
gradient: a step of |m| / (0.032 |g| + eps), 32 times Adam's where |m| = |g|, and m / eps in the row of a word that is not in the
batch.
"""

import numpy as np

from minisl.kernels.numpy_fused import BLOCK, dynamic_map
from minisl.optim import Adam8bit
from minisl.plot import PALETTE, finish, pyplot


def linear_map(signed):
    """256 numbers evenly apart, from 0 to 1 or from -128/127 to 1."""
    return (np.arange(-128, 128) / 127 if signed else np.arange(256) / 255).astype(np.float32)


MAPS = {"linear": linear_map, "dynamic": dynamic_map}


def rounded(x, table):
    """x with each number replaced by the nearest one of a sorted table."""
    high = np.searchsorted(table, x).clip(1, len(table) - 1)
    return np.where(x - table[high - 1] <= table[high] - x, table[high - 1], table[high])


def rounding_error(table, magnitudes):
    """|rounded - x| / x of magnitudes x in (0, 1], as shares of the block's largest."""
    return np.abs(rounded(magnitudes, table) - magnitudes) / magnitudes


def underflow(v, table, block=BLOCK):
    """Share of the positive entries of v that a table rounds to 0, each block of the flat v divided by its largest first."""
    v = np.ravel(v).astype(np.float64)
    top = np.repeat([v[i : i + block].max() for i in range(0, v.size, block)], block)[: v.size]
    return float((rounded(v[v > 0] / top[v > 0], table) == 0).mean())


class MappedAdam(Adam8bit):
    """Adam8bit with other maps. tables: (signed for m, unsigned for v)."""

    def __init__(self, like, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(like, betas, eps)
        self.tables = tuple(MAPS[name](signed) for name, signed in zip(self.maps, (True, False)))
        for codes, table in zip((self.exp_avg, self.exp_avg_sq), self.tables):
            codes[...] = np.flatnonzero(table == 0)[0]


def adam_with(m, v):
    """The class of rules with these maps, "linear" or "dynamic", for m and v."""
    return type(f"Adam{m}{v}", (MappedAdam,), {"maps": (m, v)})


def map_figure(path, title):
    """The relative error of both maps over eight decades, of signs and without."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    x = np.logspace(-8, 0, 80 * 400)  # 80 means of 400 neighbours
    for name, colour in (("linear", PALETTE[1]), ("dynamic", PALETTE[0])):
        for signed, style in ((False, "-"), (True, ":")):
            error = rounding_error(MAPS[name](signed), x).reshape(80, -1)
            axes.plot(x.reshape(80, -1)[:, 200], 100 * error.mean(axis=1), style, color=colour,
                      label=f"{name}, for {'m' if signed else 'v'}")
    axes.set(xscale="log", yscale="log", xlabel="magnitude, as a share of the block's largest", ylabel="error of rounding (%)",
             title=title)
    axes.legend(frameon=False)
    finish(plt, figure, path)
