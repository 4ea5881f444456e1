"""The paper's two memory results: the estimates in its table of perplexities (table 2), and its measured bars (figure 3).

Table 2 counts, in G = 1e9 bytes, weights and two moments in bfloat16 and S's positions in int64, and neither gradients nor
activations. Weights and moments are each rounded to two decimals, then added. With h hidden, f intermediate, L layers, V words:

    N_base = 2 V h + (2 L + 1) h      N_lin = L (4 h^2 + 3 h f)      N_lr = L r (11 h + 3 f)
    P = 7 L r h                       M = L r (4 h + 3 f)            N_sp = L (4 int(delta h h) + 3 int(delta h f))

                weights                                 optimizer
    full        2 (N_base + N_lin)                      4 (N_base + N_lin)
    low_rank    2 (N_base + N_lr)                       4 (N_base + N_lr)
    relora      2 (N_base + N_lin + N_base + N_lr)      4 (N_base + N_lr)
    galore      2 (N_base + N_lin)                      4 (N_base + M) + 2 P
    sltrain     2 (N_base + N_lr) + 10 N_sp             4 (N_base + N_lr + N_sp)

full, low_rank and sltrain come from the methods' own `held` here; relora and galore from the lines above, since the paper's
ReLoRA has embeddings, head and gains twice.
"""

from minisl.config import Settings, read_config
from minisl.memory.formula import estimate, kept
from minisl.methods import Method
from minisl.nn import LlamaConfig

RANKS = {"60m": 128, "130m": 256, "350m": 256, "1b": 512, "7b": 1024}
METHODS = ("full", "low_rank", "relora", "galore", "sltrain")
TABLE = {  # printed in the paper; it has no column for 7B
    "full": (0.35, 0.81, 2.21, 8.04), "low_rank": (0.24, 0.57, 1.11, 3.66), "relora": (0.36, 0.84, 1.85, 6.34),
    "galore": (0.28, 0.61, 1.59, 4.76), "sltrain": (0.26, 0.60, 1.24, 4.16)}
MILLIONS = (44, 97, 194, 646)  # parameters of sltrain there
OFF = {  # cells that the formulas do not give
    ("low_rank", "60m"): "6 bytes for each of 42.77 million parameters are 0.257 G; weights and moments cut one by one are "
                         "3 x 0.08, but 0.54 at 130M and 3.63 at 1B",
    ("relora", "60m"): "0.202 + 0.171 G; cut likewise 0.20 + 2 x 0.08, but 0.81 at 130M and 6.31 at 1B",
    ("galore", "350m"): "0.74 + 0.65 G; one digit differs, as in a slip of the pen"}

FIGURE = {  # GB on one A100: 350M, 1B, 7B
    "Adam": (4.5, 16.3, 67.4), "8-bit Adam": (3.5, 11.8, 29.4), "8-bit GaLore": (3.1, 10.3, 22.0),
    "8-bit SLTrain": (2.2, 6.8, 18.3)}
BARS = {  # its bars: method, optimizer, per-layer updates
    "Adam": ("full", "adamw", False), "8-bit Adam": ("full", "adam8bit", True), "8-bit GaLore": ("galore", "adam8bit", True),
    "8-bit SLTrain": ("sltrain", "adam8bit", True)}
BATCHES, LENGTH = (1, 16), 256  # the paper does not say how many sequences; 1 x 256 tokens fit its 7B bars


def model_of(size):
    """The LlamaConfig of a size of the paper, such as "60m"."""
    return LlamaConfig.from_dict(read_config(size))


def method_of(name, size):
    """A method as the paper ran it; SLTrain by Algorithm 1."""
    own = {"rank": RANKS[size], "delta": 0.05 if size == "7b" else 0.03, "algorithm": "materialised"}
    return Method(name, Settings().to_dict() | own)


def counted(name, size):
    """(weights with indices, optimizer) in bytes as this repository counts them."""
    found = kept(method_of(name, size), model_of(size), "bfloat16", index_bytes=8)
    return found["weights"] + found["indices"], found["optimizer"]


def closed(name, size):
    """The same by the paper's formula, for the two methods that are not counted."""
    c, r = model_of(size), RANKS[size]
    h, f, L, V = c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.vocab_size
    base, linears, low_rank = 2 * V * h + (2 * L + 1) * h, L * (4 * h * h + 3 * h * f), L * r * (11 * h + 3 * f)
    if name == "relora":
        return 2 * (base + linears + base + low_rank), 4 * (base + low_rank)
    projectors, moments = 7 * L * r * h, L * r * (4 * h + 3 * f)
    return 2 * (base + linears), 4 * (base + moments) + 2 * projectors


def cell(name, size):
    """G, as the paper rounds."""
    weights, optimizer = (closed if name in ("relora", "galore") else counted)(name, size)
    return round(weights / 1e9, 2) + round(optimizer / 1e9, 2)


def table():
    """The lines of `--paper`, table 2."""
    yield "Table 2, estimated G (1e9 bytes): bf16 weights and two bf16 moments, int64 indices; no gradients, no activations."
    yield "In brackets what the paper prints, where the formula gives something else. It has no 7B column."
    yield f"  {'':18}" + "".join(f"{size.upper():>14}" for size in RANKS)
    for name in METHODS:
        cells = [f"{cell(name, size):.2f}" for size in RANKS]
        for k, printed in enumerate(TABLE[name]):
            if cells[k] != f"{printed:.2f}":
                cells[k] = f"({printed:.2f}) {cells[k]}"
        yield f"  {name:18}" + "".join(f"{c:>14}" for c in cells)
    agree = sum(f"{cell(n, s):.2f}" == f"{p:.2f}" for n in METHODS for s, p in zip(RANKS, TABLE[n]))
    yield f"{agree} of {len(METHODS) * len(MILLIONS)} cells agree. The others (printed values recalled, not read again):"
    for (name, size), why in OFF.items():
        yield f"  {name} {size.upper()}: {why}"
    yield "Counted to the byte, from each method's `held`, and not rounded in between:"
    for label, name, bytes_ in (("relora", "relora", 8), ("galore", "galore", 8), ("sltrain", "sltrain", 8),
                                ("sltrain, int32", "sltrain", 4)):
        totals = [sum(kept(method_of(name, s), model_of(s), "bfloat16", index_bytes=bytes_).values()) / 1e9 for s in RANKS]
        yield f"  {label:18}" + "".join(f"{g:14.3f}" for g in totals)
    yield "Parameters in millions (SLTrain's in the paper: " + ", ".join(f"{n}M" for n in MILLIONS) + "):"
    for name in ("full", "low_rank", "sltrain"):
        counts = [method_of(name, s).build(model_of(s)).num_parameters() / 1e6 for s in RANKS]
        yield f"  {name:18}" + "".join(f"{n:14,.2f}" for n in counts)


def bars():
    """{"label", "size", "published" (GB), "found" (an `estimate`)} for each bar of figure 3."""
    for k, size in enumerate(("350m", "1b", "7b")):
        for label, (name, optimizer, per_layer) in BARS.items():
            yield {"label": label, "size": size.upper(), "published": FIGURE[label][k],
                   "found": estimated(name, size, optimizer, per_layer),
                   "larger": estimated(name, size, optimizer, per_layer, BATCHES[1])["peak"]}


def estimated(name, size, optimizer, per_layer, batch=BATCHES[0], index_bytes=8):
    """`estimate` with the paper's dtype, length and settings."""
    return estimate(method_of(name, size), model_of(size), batch, LENGTH, "bfloat16", optimizer, index_bytes, per_layer)


def figure(rows):
    """The lines of `--paper`, figure 3."""
    one, many = (f"{b} x {LENGTH}" for b in BATCHES)
    yield f"Figure 3, GB: measured in the paper on one A100, and estimated here for {one} and {many} tokens, bf16, int64 indices."
    yield "All but Adam update per layer. At rest: weights, indices, optimizer. The next two are of the first estimate."
    yield f"  {'':22}{'paper':>8}{one:>10}{'off':>7}{many:>10}{'off':>7}{'at rest':>9}{'gradients':>11}{'activations':>13}"
    for r in rows:
        gb = {kind: n / 1e9 for kind, n in r["found"].items()} | {"larger": r["larger"] / 1e9}
        rest = gb["weights"] + gb["indices"] + gb["optimizer"]
        estimates = "".join(f"{gb[k]:10.1f}{gb[k] / r['published'] - 1:+7.0%}" for k in ("peak", "larger"))
        yield (f"  {r['size']:6}{r['label']:16}{r['published']:8.1f}{estimates}{rest:9.2f}{gb['gradients']:11.2f}"
               f"{gb['activations']:13.2f}")


STEPS = (("Adam", "full", "adamw", False, 8, 67.4), ("moments of 8 bits", "full", "adam8bit", False, 8, None),
         ("per-layer updates", "full", "adam8bit", True, 8, 29.4), ("W = sBA + S", "sltrain", "adam8bit", True, 8, 18.3),
         ("int32 indices", "sltrain", "adam8bit", True, 4, None))


def ladder():
    """The lines of `--paper` that take the 7B bar down one step at a time."""
    yield "From 67.4 to 18.3 GB at 7B, one change at a time:"
    yield f"  {'':20}{'estimate':>10}{'change':>9}{'of Adam':>9}{'paper':>8}{'change':>9}{'of Adam':>9}"
    before = published = first = None
    for label, name, optimizer, per_layer, index_bytes, printed in STEPS:
        peak = estimated(name, "7b", optimizer, per_layer, index_bytes=index_bytes)["peak"] / 1e9
        first = first or peak
        line = f"  {label:20}{peak:10.1f}" + (f"{peak - before:+9.1f}{peak / first - 1:+9.0%}" if before else " " * 18)
        if printed:
            line += f"{printed:8.1f}" + (f"{printed - published:+9.1f}{printed / 67.4 - 1:+9.0%}" if published else "")
            published = printed
        before = peak
        yield line.rstrip()
