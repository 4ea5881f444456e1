"""A comparison as Markdown."""

import math

from minisl.memory.measure import KINDS

RESULT = ("method", "bits per byte", "range", "over the best loss", "learning rate (tried)", "parameters", "at rest (MB)",
          "peak (MB)", "tokens/s")
CLOSE = 1.02
REST = ("weights", "indices", "optimizer")


def report(rows):
    """Two tables: what came of it, the best method first, and where the bytes are. rows: of `grid.Comparison.rows`."""
    least = rows[0].get("val_loss")
    result = [[f"`{r['method']}`", *outcome(r, least), f"{r['parameters']:,}", f"{at_rest(r) / 1e6:.2f}",
               f"{r['measured']['peak'] / 1e6:.1f}", f"{r['tokens_per_second']:,.0f}"] for r in rows]
    where = [[f"`{r['method']}`", *(f"{r['measured'][k] / 1e6:.2f} ({r['estimated'][k] / 1e6:.2f})" for k in KINDS)]
             for r in rows]
    close = sorted((r for r in rows if r.get("val_loss", math.inf) <= CLOSE * least), key=at_rest) if least else []
    names = ", ".join(map(weight, close)) or "none"
    return (f"{table(RESULT, result)}\nWithin {CLOSE - 1:.0%} of the best loss, the lightest at rest first: {names}.\n\n"
            f"MB measured (and estimated), each kind when it is most:\n\n{table(['method', *KINDS], where)}")


def weight(row):
    """A method and its memory, in words."""
    return f"`{row['method']}` ({at_rest(row) / 1e6:.2f} MB at rest, {row['measured']['peak'] / 1e6:.1f} at the peak)"


def at_rest(row):
    """Bytes that are kept from step to step."""
    return sum(row["measured"][kind] for kind in REST)


def outcome(row, least):
    """A method's cells: bits per byte, their range, how far its loss is above the least, the rates that were tried."""
    tried = ", ".join(lr if found else f"{lr} diverged" for lr, found in row["tried"].items())
    if "lr" not in row:
        return "diverged", "", "", tried
    low, high = row["range"]
    return (f"{row['bits_per_byte']:.3f}", f"{low:.3f} to {high:.3f}" + f", {row['diverged']} diverged" * bool(row["diverged"]),
            f"{100 * (row['val_loss'] / least - 1):.1f} %", f"{row['lr']:g} ({tried})")


def table(names, rows):
    """A Markdown table."""
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (names, ["---"] * len(names), *rows))
