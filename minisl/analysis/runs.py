"""Short runs side by side, alike in everything but one choice: the support of S, rank and density, GaLore's moments."""

import numpy as np

from minisl.analysis.job import train
from minisl.analysis.supports import with_support
from minisl.plot import PALETTE, finish, pyplot


def support_runs(text, supports, **job):
    """name -> Job of SLTrain models that differ in their supports only. supports: name -> choose, as in `supports.py`."""
    return {name: train(text, "sltrain", start=with_support(choose), **job) for name, choose in supports.items()}


def spread(jobs):
    """(k,): at each evaluation the largest validation loss of the jobs minus the smallest."""
    return np.ptp([job.val_losses for job in jobs.values()], axis=0)


def ablation(text, ranks=(8, 16, 32), deltas=(0.02, 0.05, 0.1), scale=1.0, **job):
    """(losses, parameters), (len(ranks), 1 + len(deltas)) each: validation loss and number of parameters of short runs. The
    first column is without S. scale: alpha / r, the same for all, so that one learning rate fits all.
    """
    losses, parameters = (np.zeros((len(ranks), 1 + len(deltas)), kind) for kind in (float, int))
    for i, rank in enumerate(ranks):
        for k, delta in enumerate((None, *deltas)):
            method, more = ("sltrain", {"delta": delta}) if delta else ("low_rank", {})
            done = train(text, method, rank=rank, alpha=scale * rank, checks=1, **more, **job)
            losses[i, k], parameters[i, k] = done.val_loss, done.model.num_parameters()
    return losses, parameters


def basis_changes(text, every=(10, 50), choices=("keep", "reset", "rotate"), **job):
    """(choice, every) -> Job of GaLore with what it does to its moments when it takes a new basis."""
    return {(choice, n): train(text, "galore", at_change=choice, every=n, **job) for n in every for choice in choices}


def curves_figure(path, curves, title, styles=None, scale="linear"):
    """Validation loss against updates. curves: name -> Job; styles: name -> keywords of matplotlib's plot."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for k, (name, job) in enumerate(curves.items()):
        look = {"color": PALETTE[k % len(PALETTE)], "label": name, "marker": "o", "markersize": 3} | (styles or {}).get(name, {})
        axes.plot(job.checked, job.val_losses, **look)
    axes.set(xlabel="updates", ylabel="validation loss (nats per byte)", yscale=scale, title=title)
    axes.legend(frameon=False)
    finish(plt, figure, path)


def ablation_figure(path, losses, parameters, ranks, deltas, title):
    """Loss against parameters, a line a rank, its points the densities."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for k, rank in enumerate(ranks):
        axes.plot(parameters[k] / 1e3, losses[k], "o-", color=PALETTE[k], label=f"rank {rank}")
        for x, y, delta in zip(parameters[k] / 1e3, losses[k], (0, *deltas)):
            axes.annotate(f"{delta:g}", (x, y), xytext=(4, 5), textcoords="offset points", fontsize=7)
    axes.set(xlabel="parameters (thousands)", ylabel="validation loss (nats per byte)", title=title)
    axes.legend(frameon=False, title="at the points: delta", title_fontsize=8)
    finish(plt, figure, path)
