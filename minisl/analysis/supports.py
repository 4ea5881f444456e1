"""Does it matter where S is? SLTrain's motivation: the entries that matter most after the low-rank part are no better a support
than random ones, once S is trained."""

import numpy as np

from minisl.analysis.job import matrices, train, validation_loss
from minisl.analysis.spectrum import best_low_rank
from minisl.backend import generator
from minisl.plot import PALETTE, finish, pyplot

LABELS = {"full": "full rank, as trained", "alone": "its best of rank r, L", "largest": "L + largest entries of the rest",
          "random": "L + random entries of the rest", "trained largest": "L + S trained on the largest",
          "trained random": "L + S trained on random ones"}


def at_random(seed):
    """choose(path, shape, nnz) -> sorted flat positions, each set of them equally likely."""
    def choose(path, shape, nnz):
        return np.sort(generator(seed, "support", path).choice(shape[0] * shape[1], nnz, replace=False)).astype(np.int32)

    return choose


def largest_of(dense, rank):
    """choose(path, shape, nnz) -> sorted flat positions: where |W - best of this rank| is largest in a trained dense model."""
    weights = dict(dense.named_parameters())

    def choose(path, shape, nnz):
        W = weights[f"{path}.weight"].data
        B, A = best_low_rank(W, rank)
        return np.sort(np.argsort(-np.abs(W - B @ A), axis=None, kind="stable")[:nnz]).astype(np.int32)

    return choose


def with_support(choose):
    """A `start` that gives an SLTrain model another support, and leaves all its values as they are."""
    def start(model):
        for path, layer in matrices(model):
            layer.sparse_index = choose(path, layer.shape, len(layer.sparse_index))

    return start


def from_dense(dense, choose, keep):
    """A `start` for an SLTrain model: B A the best approximation of each matrix of a trained dense model, S on the support that
    `choose` finds, everything else as in the dense model; and only S will be trained.

    keep: S starts with what is left over there; otherwise from zero.
    """
    def start(model):
        weights = dict(dense.named_parameters())
        for name, p in model.named_parameters():
            p.requires_grad = name.endswith("sparse_value")
            if name in weights:
                p.data = weights[name].data.copy()
        with_support(choose)(model)
        for path, layer in matrices(model):
            W = weights[f"{path}.weight"].data
            B, A = best_low_rank(W, len(layer.lora_A.data))
            layer.lora_B.data, layer.lora_A.data = B / W.dtype.type(layer.scale), A
            layer.sparse_value.data = (W - B @ A).flat[layer.sparse_index] * W.dtype.type(keep)

    return start


def support_table(dense, text, *, rank=16, delta=0.05, steps=300, seed=42, **job):
    """name -> validation loss, nats per byte: of a trained dense model ("full"); of the best approximations of rank r of its
    matrices ("alone"), with the largest or random entries of what is left over ("largest", "random"), and with S on either
    support trained from zero ("trained largest", "trained random").

    job: of `train`, for the two jobs and for the model's shape.
    """
    def loss(choose, keep, steps):
        start = from_dense(dense, choose, keep)
        model = train(text, "sltrain", steps=steps, start=start, rank=rank, delta=delta, seed=seed, checks=1, **job).model
        return validation_loss(model, text)

    top, random = largest_of(dense, rank), at_random(seed)
    return {"full": validation_loss(dense, text), "alone": loss(top, False, 0), "largest": loss(top, True, 0),
            "random": loss(random, True, 0), "trained largest": loss(top, False, steps),
            "trained random": loss(random, False, steps)}


def support_figure(path, losses, title):
    """The table, a dot a model."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    colours = [PALETTE[i] for i in (-1, -1, 1, 0, 1, 0)]
    for k, (loss, colour) in enumerate(zip(losses.values(), colours)):
        axes.plot([losses["full"], loss], [k, k], color=colour, linewidth=1.5)
        axes.plot(loss, k, "o", color=colour, markersize=7)
        axes.annotate(f"{loss:.3f}", (loss, k), xytext=(8, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set(yticks=range(len(losses)), yticklabels=[LABELS[name] for name in losses], xlabel="validation loss (nats per byte)",
             title=title)
    axes.margins(x=0.2)
    axes.invert_yaxis()
    finish(plt, figure, path)
