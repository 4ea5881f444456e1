"""Figures of a run."""


def loss_figure(path, records, title):
    """Training loss (each step faint, the mean of its neighbours bold) and validation loss against tokens, saved to `path`.

    records: of metrics.jsonl. Raises ImportError where matplotlib is missing.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tokens = [r["tokens"] / 1e6 for r in records]
    losses = [r["loss"] for r in records]
    window = max(1, len(losses) // 50)  # a step's neighbours on both sides
    smooth = [sum(part) / len(part) for i in range(len(losses)) if (part := losses[max(0, i - window) : i + window + 1])]
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
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150, format="png")
    plt.close(figure)
