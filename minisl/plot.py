"""Figures of runs and benchmarks."""

import itertools
import os
import sys


def loss_figure(path, records, title):
    """Training loss (each step faint, the mean of its neighbours bold) and validation loss against tokens, saved to `path`.

    records: of metrics.jsonl. Raises ImportError where matplotlib is missing.
    """
    plt = pyplot()
    tokens = [r["tokens"] / 1e6 for r in records]
    losses = [r["loss"] for r in records]
    smooth = mean_of_neighbours(losses, max(1, len(losses) // 50))
    checks = [r for r in records if "val_loss" in r]

    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    axes.plot(tokens, losses, color="#0072B2", alpha=0.25, linewidth=0.8)
    axes.plot(tokens, smooth, color="#0072B2", label="training")
    axes.plot([r["tokens"] / 1e6 for r in checks], [r["val_loss"] for r in checks], "o-", color="#D55E00", label="validation")
    if checks:
        last = checks[-1]
        axes.annotate(f"{last['val_loss']:.2f} nats\n{last['bits_per_byte']:.2f} bits per byte",
                      (last["tokens"] / 1e6, last["val_loss"]), xytext=(0, 14), textcoords="offset points", ha="right")
    axes.set(xlabel="training tokens (millions)", ylabel="loss (nats per token)", title=title)
    axes.legend(frameon=False)
    finish(plt, figure, path)


def mean_of_neighbours(values, reach):
    """Of each value, the mean of itself and `reach` neighbours on both sides, as far as there are any."""
    sums, n = [0.0, *itertools.accumulate(values)], len(values)
    ends = [(max(0, i - reach), min(n, i + reach + 1)) for i in range(n)]
    return [(sums[b] - sums[a]) / (b - a) for a, b in ends]


def soak_figure(path, notes, title):
    """Resident memory and tokens a second of processor time over hours. notes: of `tests/soak`."""
    plt = pyplot()
    hours = [n["seconds"] / 3600 for n in notes]
    speed = [(b["tokens"] - a["tokens"]) / (b["cpu_seconds"] - a["cpu_seconds"]) for a, b in itertools.pairwise(notes)]
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(6.4, 4.4), sharex=True, layout="constrained")
    top.plot(hours, [n["resident_mb"] for n in notes], color="#0072B2")
    bottom.plot(hours[1:], [s / 1e3 for s in speed], color="#D55E00", linewidth=0.8)
    top.set(ylabel="resident memory (MB)", ylim=(0, 1.2 * max(n["resident_mb"] for n in notes)), title=title)
    bottom.set(xlabel="hours", ylabel="thousand tokens per\nsecond of processor time", ylim=(0, None))
    finish(plt, figure, path)


def layer_figure(path, rows, title):
    """Milliseconds of one layer, forward and backward, by shape and implementation. rows: of `minisl.bench.layer`."""
    plt = pyplot()
    shapes = list(dict.fromkeys((r["in"], r["out"], r["r"]) for r in rows))
    colours = {"minisl": "#0072B2", "NumPy dense": "#999999", "PyTorch, public algorithm": "#D55E00", "PyTorch dense": "#E69F00"}
    shown = [name for name in colours if any(r["what"] == name for r in rows)]
    figure, axes = plt.subplots(figsize=(7.2, 4), layout="constrained")
    for k, name in enumerate(shown):
        times = [next(r["ms"] for r in rows if r["what"] == name and (r["in"], r["out"], r["r"]) == s) for s in shapes]
        bars = axes.bar([i + 0.8 * (k - (len(shown) - 1) / 2) / len(shown) for i in range(len(shapes))], times,
                        0.75 / len(shown), color=colours[name], label="minisl SLTrain" if name == "minisl" else name)
        axes.bar_label(bars, fmt="%.0f", fontsize=7, color="#555555")
    axes.set(xticks=range(len(shapes)), xticklabels=[f"{o} x {i}, r {r}" for i, o, r in shapes], yscale="log",
             ylabel="forward + backward (ms)", title=title)
    plain_log(axes.yaxis)
    axes.legend(frameon=False, fontsize=8)
    finish(plt, figure, path)


def scaling_figure(path, rows, title):
    """Time and memory of a step against tokens, width, rank and density, measured and expected. rows: of
    `minisl.bench.scaling`."""
    plt = pyplot()
    names = list(dict.fromkeys(r["varied"] for r in rows))
    figure, grid = plt.subplots(2, len(names), figsize=(10, 5), layout="constrained", sharey="row", squeeze=False)
    for column, name in zip(grid.T, names):
        mine = [r for r in rows if r["varied"] == name]
        x = [r["value"] for r in mine]
        for axes, measured, expected, unit, label in ((column[0], "ms", "expected_ms", 1, "step (ms)"),
                                                      (column[1], "bytes", "expected_bytes", 1e6, "arrays at the peak (MB)")):
            axes.plot(x, [r[expected] / unit for r in mine], "-", color="#999999", label="expected")
            axes.plot(x, [r[measured] / unit for r in mine], "o", color="#0072B2", label="measured")
            axes.set(xscale="log", yscale="log", xticks=x, xticklabels=x)
            axes.tick_params(axis="x", labelsize=8)
            axes.xaxis.minorticks_off()
            plain_log(axes.yaxis)
            if axes in grid[:, 0]:
                axes.set_ylabel(label)
        column[1].set_xlabel({"delta": "density of S"}.get(name, name))
    grid[0, 0].legend(frameon=False)
    figure.suptitle(title, fontsize=10)
    finish(plt, figure, path)


PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")


def circles_figure(path, rows):
    """Perplexity against what is kept in memory, a circle a method, its area the number of parameters (SLTrain, figure 1).

    rows: of `minisl.compare`, the best first; a circle's number is its place.
    """
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    largest = max(r["parameters"] for r in rows)
    for k, r in enumerate(rows):
        x, y = sum(r["measured"][kind] for kind in ("weights", "indices", "optimizer")) / 1e6, r["perplexity"]
        axes.scatter(x, y, s=700 * r["parameters"] / largest, color=PALETTE[k % len(PALETTE)], alpha=0.45, linewidth=0)
        axes.annotate(str(k + 1), (x, y), ha="center", va="center", fontsize=7)
    names = "\n".join(f"{k}  {r['method']}" for k, r in enumerate(rows, 1))
    axes.text(1.02, 1, names, transform=axes.transAxes, va="top", fontsize=7, linespacing=1.4)
    axes.set(xlabel="weights, indices and optimizer state (MB)", ylabel="validation perplexity", yscale="log",
             title="Circle area: number of parameters")
    plain_log(axes.yaxis)
    axes.margins(0.08)
    finish(plt, figure, path)


def curves_figure(path, rows):
    """Validation bits per byte against tokens: the mean over seeds and the band from the least to the largest.

    rows: of `minisl.compare`, the best first: seven are coloured, the others grey.
    """
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7.2, 5), layout="constrained")
    for k, r in enumerate(rows):
        colour = PALETTE[min(k, len(PALETTE) - 1)]
        points = list(zip(*r["curves"].values()))  # per evaluation, one point a seed
        tokens = [p[0][0] / 1e6 for p in points]
        bits = [[q[2] for q in p] for p in points]
        axes.plot(tokens, [sum(b) / len(b) for b in bits], color=colour, linewidth=1.6 if k < 7 else 0.8, zorder=3 - (k >= 7),
                  label=r["method"] if k < 7 else "others" if k == 7 else None)
        if k < 7:
            axes.fill_between(tokens, [min(b) for b in bits], [max(b) for b in bits], color=colour, alpha=0.2, linewidth=0)
    axes.set(xlabel="training tokens (millions)", ylabel="bits per byte, held-out text", title="Mean and range over seeds")
    axes.legend(frameon=False)
    finish(plt, figure, path)


def memory_figure(path, rows, title):
    """Stacked bars of bytes by kind, grouped by size, with a line where a published value is. rows: {"label", "size",
    "published" (GB or None), "found" {kind: bytes}}."""
    plt = pyplot()
    colours = {"weights": "#0072B2", "indices": "#56B4E9", "optimizer": "#E69F00", "gradients": "#D55E00",
               "activations": "#009E73", "temporaries": "#999999"}
    sizes = list(dict.fromkeys(r["size"] for r in rows))
    figure, grid = plt.subplots(1, len(sizes), figsize=(max(4.8, 2.8 * len(sizes)), 3.6), layout="constrained", squeeze=False)
    for axes, size in zip(grid[0], sizes):
        mine = [r for r in rows if r["size"] == size]
        places, bottom = range(len(mine)), [0.0] * len(mine)
        for kind, colour in colours.items():
            heights = [r["found"][kind] / 1e9 for r in mine]
            axes.bar(places, heights, 0.7, bottom, color=colour, label=kind)
            bottom = [a + b for a, b in zip(bottom, heights)]
        for place, top, r in zip(places, bottom, mine):
            above = max(top, r["published"] or 0)
            axes.annotate(f"{r['published'] or top:.3g}", (place, above), xytext=(0, 3), textcoords="offset points", ha="center",
                          fontsize=8)
            if r["published"]:
                axes.plot([place - 0.42, place + 0.42], [r["published"]] * 2, color="black", linewidth=1.5)
        axes.set(xticks=places, title=size, ylabel="GB" if axes is grid[0, 0] else None)
        axes.set_xticklabels([r["label"] for r in mine], rotation=30, ha="right", fontsize=8)
    grid[0, -1].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    finish(plt, figure, path)


def timeline_figure(path, rows, title):
    """One update by several processes: forward, backward, and each bucket of gradients being filled and being summed; a panel for
    each method. rows: of `minisl.bench.distributed`."""
    plt = pyplot()
    rows = [r for r in rows if r["what"] == "timeline"]
    figure, grid = plt.subplots(1, len(rows), figsize=(10, 4), layout="constrained", squeeze=False)
    for axes, row in zip(grid[0], rows):
        start, height, ticks = min(rank["moments"][0] for rank in row["ranks"]), 0, []

        def bar(begin, end, y, colour, label, thick=0.8, axes=axes, start=start):
            label = None if label in axes.get_legend_handles_labels()[1] else label
            axes.barh(y, 1e3 * (end - begin), thick, 1e3 * (begin - start), color=colour, label=label)

        for rank in row["ranks"]:
            began, first, last, there = rank["moments"]
            for begin, end, colour, label in ((began, first, "#999999", "forward"), (first, last, "#0072B2", "backward"),
                                              (last, there, "#E5E5E5", "waiting")):
                bar(begin, end, height, colour, label, 1.6)
            ticks.append(height)
            height += 1.8
            for opened, started, done, _ in rank["buckets"]:
                bar(opened, started, height, "#F5DFA5", "a bucket is filled")
                bar(started, done, height, "#D55E00", "its sum is on the way")
                height += 1
            axes.axvline(1e3 * (last - start), color="#0072B2", linewidth=0.6, linestyle=":")
            height += 1.5
        axes.set(yticks=ticks, yticklabels=[f"process {k}" for k in range(len(ticks))], xlabel="ms", title=row["method"])
        axes.invert_yaxis()
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    finish(plt, figure, path)


def plain_log(axis):
    """1, 2, 5, 10, 20, ... on a logarithmic axis, written out."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def pyplot():
    """matplotlib.pyplot; needing no screen, unless the caller already shows figures, as a notebook does."""
    if "matplotlib.pyplot" not in sys.modules and "inline" not in os.environ.get("MPLBACKEND", ""):
        import matplotlib

        matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def notebook_style():
    """matplotlib.pyplot as the notebooks use it: colours that the colour-blind can tell apart, each with dashes of its own for
    black and white print, a faint grid, no frame."""
    import matplotlib.pyplot as plt
    from cycler import cycler

    dashes = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
    plt.rcParams.update({
        "axes.prop_cycle": cycler(color=PALETTE, linestyle=dashes), "axes.grid": True, "grid.alpha": 0.2, "axes.axisbelow": True,
        "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "image.cmap": "cividis",
        "figure.figsize": (6.4, 3.6), "figure.dpi": 110, "figure.constrained_layout.use": True, "font.size": 10,
    })
    return plt


def finish(plt, figure, path):
    """The look that all figures share; save as PNG and close."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
        axes.set_axisbelow(True)
    figure.savefig(path, dpi=150, format="png")
    plt.close(figure)
