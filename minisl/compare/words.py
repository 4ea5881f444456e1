"""A comparison as Markdown."""

RESULT = ("method", "bits per byte", "range", "over the best loss", "learning rate (tried)", "parameters", "kept, by formula",
          "peak, measured", "tokens/s")


def report(rows):
    """Two tables: what came of it, the best method first, and where the bytes are. rows: of `grid.Comparison.rows`."""
    least = rows[0].get("val_loss")
    result = [[f"`{r['method']}`", *outcome(r, least), f"{r['parameters']:,}", f"{sum(r['kept'].values()) / 1e6:.2f} MB",
               f"{r['measured']['peak'] / 1e6:.1f} MB", f"{r['tokens_per_second']:,.0f}"] for r in rows]
    kept, measured = rows[0]["kept"], [k for k in rows[0]["measured"] if k != "peak"]
    bytes_ = [[*(r["kept"][k] for k in kept), *(r["measured"][k] for k in measured)] for r in rows]
    between = "\nIn MB: what is kept from step to step, by formula; all arrays at a step's peak, measured.\n\n"
    return (table(RESULT, result) + between + table(["method", *kept, *(f"{k}, measured" for k in measured)],
                                                    [[f"`{r['method']}`", *(f"{n / 1e6:.2f}" for n in line)] for r, line in zip(rows, bytes_)]))


def outcome(row, least):
    tried = ", ".join(lr if found else f"{lr} diverged" for lr, found in row["tried"].items())
    if "lr" not in row:
        return "diverged", "", "", tried
    low, high = row["range"]
    return (f"{row['bits_per_byte']:.3f}", f"{low:.3f} to {high:.3f}" + f", {row['diverged']} diverged" * bool(row["diverged"]),
            f"{100 * (row['val_loss'] / least - 1):.1f} %", f"{row['lr']:g} ({tried})")


def table(names, rows):
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (names, ["---"] * len(names), *rows))
