"""What the two parts of a learned W = L + S, with L = (alpha/r) B A, each do.

Along W's own directions (SLTrain's last figure), W = sum_i sigma_i u_i v_i^T:   sigma_i = u_i^T L v_i + u_i^T S v_i
Against each other: two parts of which one takes back what the other does cost parameters and give nothing.

    cosine = <L, S> / (|L| |S|)            in weights, Frobenius
    cosine = <X L^T, X S^T> / (|X L^T| |X S^T|)    in what the layer puts out for its inputs X
    kept   = |L + S| / (|L| + |S|)         1 if they point the same way, 0 if they cancel
"""

from contextlib import contextmanager

import numpy as np

from minisl.analysis.job import MATRICES, matrices
from minisl.autograd import no_grad
from minisl.kernels import scatter_add
from minisl.plot import PALETTE, finish, pyplot


def split(layer):
    """(L, S) of an SLTrain layer, (out, in) each, float64."""
    B, A, v = (p.data.astype(np.float64) for p in (layer.lora_B, layer.lora_A, layer.sparse_value))
    s = np.tanh(layer.scaling.data.astype(np.float64)) if hasattr(layer, "scaling") else layer.scale
    return s * B @ A, scatter_add(np.zeros(layer.shape), v, layer.support)


def by_direction(L, S):
    """(sigma, u_i^T L v_i, u_i^T S v_i), each (k,), for the singular vectors of L + S, sigma falling."""
    U, sigma, Vt = np.linalg.svd(L + S, full_matrices=False)
    along = [np.einsum("oi,on,in->i", U, part, Vt, optimize=True) for part in (L, S)]
    return sigma, *along


def direction_figure(path, found, rank, title):
    """The parts of each singular value. found: of `by_direction`."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    index = np.arange(1, len(found[0]) + 1)
    axes.axvline(rank + 0.5, color=PALETTE[-1], linestyle="--", linewidth=1, label=f"rank of B A, {rank}")
    for part, label, colour in zip(found, ("sigma of L + S", "u^T L v, low rank", "u^T S v, sparse"), (PALETTE[6], *PALETTE)):
        axes.plot(index, part, color=colour, label=label, linewidth=1.5)
    axes.set(xlabel="index of the singular value", ylabel="size along the direction", title=title)
    axes.legend(frameon=False)
    finish(plt, figure, path)


def cancellation(L, S, X=None):
    """(cosine, kept) of L and S themselves, or of X L^T and X S^T for inputs X (n, in)."""
    L, S = (part if X is None else X @ part.T for part in (L, S))
    norm = np.linalg.norm
    return float((L * S).sum() / (norm(L) * norm(S))), float(norm(L + S) / (norm(L) + norm(S)))


@contextmanager
def listening(model):
    """Within this block what goes into each matrix is noted: yields a dictionary, path -> X (n, in), of the last pass."""
    heard, layers = {}, matrices(model)

    def noting(path, forward):
        def noted(x):
            heard[path] = x.data.reshape(-1, x.shape[-1]).astype(np.float64)
            return forward(x)

        return noted

    for path, layer in layers:
        layer.forward = noting(path, layer.forward)
    try:
        yield heard
    finally:
        for _, layer in layers:
            del layer.forward


def cancellations(model, ids):
    """kind -> (layers, 2, 2): for each block's matrix of that kind, in weights and in outputs for ids (B, T), cosine and kept."""
    with listening(model) as inputs, no_grad():
        model(ids)
    found = {kind: [] for kind in MATRICES}
    for path, layer in matrices(model):
        L, S = split(layer)
        found[path.rpartition(".")[2]].append([cancellation(L, S), cancellation(L, S, inputs[path])])
    return {kind: np.array(rows) for kind, rows in found.items()}


def cancellation_figure(path, found, title):
    """Cosines and kept norms, a point a block. found: of `cancellations`."""
    plt = pyplot()
    figure, grid = plt.subplots(1, 2, figsize=(6.8, 3.6), layout="constrained", sharey=True)
    for column, (axes, label) in enumerate(zip(grid, ("cosine of L and S", "|L + S| / (|L| + |S|)"))):
        for place, (what, shift, marker) in enumerate((("weights", -0.12, "o"), ("outputs", 0.12, "s"))):
            x = np.concatenate([rows[:, place, column] for rows in found.values()])
            y = np.repeat(np.arange(len(found)), [len(rows) for rows in found.values()]) + shift
            axes.plot(x, y, marker, color=PALETTE[place], label=what, alpha=0.8)
        axes.set(xlabel=label)
    grid[0].axvline(0, color=PALETTE[-1], linewidth=1)
    grid[0].set(yticks=range(len(found)), yticklabels=[kind.removesuffix("_proj") for kind in found])
    grid[0].invert_yaxis()
    grid[1].axvline(0.5**0.5, color=PALETTE[-1], linewidth=1, linestyle="--", label="equal, at right angles")
    grid[1].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    finish(plt, figure, path)
