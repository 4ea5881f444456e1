"""A trained dense matrix: its singular values, and what the best approximation of rank r leaves over. SLTrain's section 3 starts
from this picture: the low-rank part is not enough, and the rest is small everywhere and large nowhere."""

from dataclasses import dataclass

import numpy as np

from minisl.plot import PALETTE, finish, pyplot


@dataclass
class Spectrum:
    """sigma (k,): singular values of W (out, in), falling; residual (out, in): W without the first `rank` of them;
    magnitude and share (out in,): the share of the residual's entries that are no larger than this, rising to 1."""

    W: np.ndarray
    rank: int
    sigma: np.ndarray
    residual: np.ndarray
    magnitude: np.ndarray
    share: np.ndarray

    def within(self, share):
        """The magnitude that this share of the residual's entries do not exceed."""
        return float(self.magnitude[np.searchsorted(self.share, share)])


def best_low_rank(W, rank):
    """(B, A) with B A the nearest matrix of this rank (Eckart and Young 1936), the singular values shared evenly."""
    U, sigma, Vt = np.linalg.svd(W, full_matrices=False)
    root = np.sqrt(sigma[:rank])
    return U[:, :rank] * root, root[:, None] * Vt[:rank]


def spectrum(W, rank):
    """The Spectrum of a matrix."""
    W = np.asarray(W, np.float64)
    B, A = best_low_rank(W, rank)
    residual = W - B @ A
    magnitude = np.sort(np.abs(residual), axis=None)
    return Spectrum(W, rank, np.linalg.svd(W, compute_uv=False), residual, magnitude, np.arange(1, W.size + 1) / W.size)


def spectrum_figure(path, found, title, start=None):
    """Singular values, beside those of the matrix `start` that training started from; |W| and |residual| on one scale; the
    cumulative distribution of the residual's magnitude."""
    plt = pyplot()
    figure, ((values, distribution), (whole, rest)) = plt.subplots(2, 2, figsize=(6.4, 5.2), layout="constrained")
    index = np.arange(1, len(found.sigma) + 1)
    values.plot(index, found.sigma, color=PALETTE[0], label="trained")
    if start is not None:
        values.plot(index, np.linalg.svd(start, compute_uv=False), color=PALETTE[4], label="at the start")
    values.axvline(found.rank + 0.5, color=PALETTE[-1], linestyle="--", label=f"rank {found.rank}")
    values.set(xlabel="index", ylabel="singular value", ylim=(0, None))
    values.legend(frameon=False)
    distribution.plot(found.magnitude, found.share, color=PALETTE[0])
    limit = found.within(0.97)
    distribution.plot([limit, limit, 0], [0, 0.97, 0.97], color=PALETTE[-1], linestyle="--", label=f"97 % below {limit:.3f}")
    distribution.set(xlabel="|entry of the residual|", ylabel="share of entries", xlim=(0, None), ylim=(0, 1.02))
    distribution.legend(frameon=False, loc="lower right")
    top = float(np.quantile(np.abs(found.W), 0.99))
    for axes, matrix, name in ((whole, found.W, "|W|"), (rest, found.residual, f"|W - best of rank {found.rank}|")):
        image = axes.imshow(np.abs(matrix), cmap="viridis", vmin=0, vmax=top, interpolation="nearest", zorder=2)
        axes.set(xlabel="input", ylabel="output", title=name)
    figure.colorbar(image, ax=[whole, rest], label="magnitude", shrink=0.9)
    figure.suptitle(title, fontsize=10)
    finish(plt, figure, path)
