"""How dense must S be? SLTrain's proposition 1: with a density of order ln(n) / n, W = B A + S almost surely has full rank.

Values hardly matter: unless they are chosen against it, a sparse matrix has the rank of its best matching, the largest set of
entries no two of which share a row or a column. B A then makes up for r rows that have no partner:

    rank S = matching        rank(B A + S) = min(n, r + matching)

Alone, S needs a perfect matching, and what stands in the way is an empty row or column, of which there are about
2 n (1 - delta)^n. So for large n

    P(S has full rank) -> exp(-2 n (1 - delta)^n)            (Erdos and Renyi 1964)

With delta = c ln(n) / n that is exp(-2 n^(1 - c)): the edge is at c = 1.
"""

from dataclasses import dataclass

import numpy as np

from minisl.backend import generator
from minisl.methods.sltrain import sample_support
from minisl.parallel import one_blas_thread
from minisl.plot import PALETTE, finish, pyplot


@dataclass
class Ranks:
    """Of n x n matrices, (len(c), trials) each: matching of S's support, rank of S, rank of B A + S."""

    n: int
    r: int
    c: np.ndarray
    delta: np.ndarray
    matching: np.ndarray
    sparse: np.ndarray
    both: np.ndarray

    def shares(self):
        """(len(c),) each: how often S alone, and B A + S, have full rank."""
        return (self.sparse == self.n).mean(axis=1), (self.both == self.n).mean(axis=1)


def matching(index, n):
    """Size of the largest set of these flat positions in an n x n matrix with no two in a row or column."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    graph = csr_array((np.ones(len(index), np.int8), np.divmod(index, n)), (n, n))
    return int((maximum_bipartite_matching(graph) >= 0).sum())


def ranks(n=128, r=8, c=(0.5, 0.75, 1, 1.25, 1.5, 2, 3), trials=100, seed=0):
    """Ranks of random W = B A + S at densities delta = c ln(n) / n, all values normal."""
    c = np.asarray(c, float)
    found = Ranks(n, r, c, c * np.log(n) / n, *(np.zeros((len(c), trials), int) for _ in range(3)))
    with one_blas_thread():  # these matrices are too small for two
        for i, t in np.ndindex(len(c), trials):
            rng = generator(seed, "full rank", i, t)
            index, S = sample_support(n, n, found.delta[i], rng), np.zeros((n, n))
            S.flat[index] = rng.standard_normal(len(index))
            BA = rng.standard_normal((n, r)) @ rng.standard_normal((r, n))
            found.matching[i, t] = matching(index, n)
            found.sparse[i, t], found.both[i, t] = np.linalg.matrix_rank(S), np.linalg.matrix_rank(BA + S)
    return found


def expected(n, delta):
    """The limit of P(S alone has full rank)."""
    return np.exp(-2 * n * (1 - delta) ** n)


def rank_figure(path, found, title):
    """Shares of full rank, and the mean rank, against the density."""
    plt = pyplot()
    figure, (share, mean) = plt.subplots(1, 2, figsize=(7.2, 3.6), layout="constrained", sharex=True)
    alone, both = found.shares()
    c = np.linspace(found.c.min(), found.c.max(), 200)
    share.plot(c, 100 * expected(found.n, c * np.log(found.n) / found.n), color=PALETTE[-1], label="S alone, Erdos and Renyi")
    share.plot(found.c, 100 * alone, "o", color=PALETTE[1], label="S alone")
    share.plot(found.c, 100 * both, "s", color=PALETTE[0], label="B A + S")
    share.set(xlabel="c in delta = c ln(n) / n", ylabel="of full rank (%)", ylim=(-3, 103))
    mean.axhline(found.n, color=PALETTE[-1], linewidth=1)
    mean.plot(found.c, found.both.mean(axis=1), "s", color=PALETTE[0], label="rank of B A + S")
    mean.plot(found.c, found.sparse.mean(axis=1), "o", color=PALETTE[1], label="rank of S")
    mean.plot(found.c, found.matching.mean(axis=1), "x", color=PALETTE[6], label="matching of S")
    mean.set(xlabel="c in delta = c ln(n) / n", ylabel="mean rank")
    for axes in (share, mean):
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.suptitle(title, fontsize=10)
    finish(plt, figure, path)
