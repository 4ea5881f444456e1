"""A loss divided by one batch too many.

The public evaluation loop of GaLore, which SLTrain and others took over, starts its counter of batches at 1 and then adds the N
batches it sums over. So loss' = loss N / (N + 1), and perplexity' = perplexity^(N / (N + 1)): the fewer batches, the better.
"""

import numpy as np

from minisl.autograd import no_grad
from minisl.data.batches import validation_batches
from minisl.plot import PALETTE, finish, pyplot

EVALUATED, PER_SEQUENCE = 10_000_000, 215  # tokens the public loop asks for; tokens of a C4 sequence that are no padding, about
# perplexity as published, sequences in an evaluation batch of one process, processes: of the published scripts
PUBLISHED = {"full 60M": (34.06, 256, 1), "full 130M": (25.08, 256, 1), "full 350M": (18.80, 128, 4), "full 1B": (15.56, 16, 8)}


def as_published(batch_losses):
    """The mean of (N,) batches' losses, as the public loop takes it."""
    total, counted = 0.0, 1
    for loss in batch_losses:
        total, counted = total + loss, counted + 1
    return total / counted


def published(perplexity, batches):
    """What the public loop makes of a perplexity over so many batches."""
    return perplexity ** (batches / (batches + 1))


def corrected(perplexity, batches):
    """The perplexity behind one that the public loop printed."""
    return perplexity ** ((batches + 1) / batches)


def batches_of(sequences, processes, tokens=EVALUATED, per_sequence=PER_SEQUENCE):
    """N: batches of a process until all together have seen more than `tokens`."""
    return tokens // (sequences * processes * per_sequence) + 1


def corrections():
    """name -> (N, perplexity as published, corrected). An inference, not a re-run: the scripts were used as they were published,
    and a sequence has 215 tokens."""
    return {name: (n := batches_of(b, p), perplexity, corrected(perplexity, n)) for name, (perplexity, b, p) in PUBLISHED.items()}


def counted(model, tokens, sizes, length=64):
    """(N, mean loss, loss as published), (len(sizes),) each: one model, one text, evaluated in batches of so many sequences.
    Whole batches only: where the sizes divide the number of sequences, the mean is the same for all."""
    found = []
    for size in sizes:
        with no_grad():
            losses = [model.loss(x, y, 1 / y.size).item() for x, y in validation_batches(tokens, size, length)
                      if len(x) == size and (y >= 0).all()]
        found.append((len(losses), np.mean(losses), as_published(losses)))
    return tuple(np.array(column) for column in zip(*found))


def counting_figure(path, found, title):
    """Perplexity as published over perplexity, against the number of batches. found: of `counted`."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    n = np.logspace(0, 3, 200)
    batches, loss, printed = found
    for k, perplexity in enumerate((np.exp(loss[0]), 15, 30, 100)):
        axes.plot(n, published(perplexity, n) / perplexity, color=PALETTE[k], label=f"perplexity {perplexity:.3g}")
    axes.plot(batches, np.exp(printed - loss), "o", color=PALETTE[0], label="the model here")
    tables = np.array(list(corrections().values())).T
    axes.plot(tables[0], tables[1] / tables[2], "kx", zorder=3, label="published tables, inferred")
    axes.set(xscale="log", xlabel="batches N of the evaluation", ylabel="perplexity as published / perplexity", ylim=(None, 1.02),
             title=title)
    axes.legend(frameon=False, fontsize=8)
    finish(plt, figure, path)
