"""One operation at one size: its rungs and its peers, and what it must move and compute."""

from dataclasses import dataclass
from functools import partial

from minisl.bench.cuda.table import Table, ms, ratio
from minisl.kernels.cuda import ladder

CUSPARSE, CUBLAS, TORCH = "cuSPARSE", "cuBLAS", "PyTorch"


@dataclass
class Question:
    """calls: candidate -> call(n) of n tokens, "rung 0" and on among them; it returns what it computed. bytes, operations: what
    `tokens` of them must move and compute at least. least: tokens that a slow candidate is measured with, or None where their
    number cannot be changed."""

    op: str
    sizes: dict
    tokens: int
    calls: dict
    bytes: int
    operations: int
    least: int | None


def rungs(call, *ladders):
    """"rung k" -> call on rung k of these ladders, or on the last of one that is shorter."""
    counts = {op: ladder.rungs()[op] for op in ladders}

    def on(k, n):
        with ladder.at(**{op: min(k, count - 1) for op, count in counts.items()}):
            return call(n)

    return {f"rung {k}": partial(on, k) for k in range(max(counts.values()))}


def lazily(make, *operands):
    """call(n) by the function that make(*operands) returns. It is made in the first call, where what fails is noted."""
    made = []

    def call(n):
        if not made:
            made.append(make(*operands))
        return made[0](n)

    return call


def ask(gpu, machine, question):
    """{candidate: Found}, and rows for bench.json. Its arrays are let go."""
    found, rows = gpu.measure(question.calls, question.tokens, question.least), []
    question.calls = {}
    for name, one in found.items():
        rows.append({"op": question.op, **question.sizes, "what": name, **one.row()})
        if one.timing and name.startswith("rung"):
            bandwidth, rate = question.bytes / one.seconds, question.operations / one.seconds
            rows[-1] |= {"bytes": question.bytes, "operations": question.operations, "bandwidth": bandwidth, "rate": rate,
                         "of_copy": bandwidth / machine["copy"], "of_gemm": rate / machine["float32"]}
    return found, rows


def tell(say, asked, note):
    """The table of one operation. asked: (question, found, rows) for each size."""
    first, last = asked[0][0], [name for name in asked[0][1] if name.startswith("rung")][-1]
    names = [name for name in asked[0][1] if name.startswith("rung")]
    peers = [name for name in (CUSPARSE, CUBLAS, TORCH) if any(name in found for _, found, _ in asked)]
    sizes = [name for name in first.sizes if name != "model"]
    table = Table(say, f"{first.op}, milliseconds", "model", ", ".join(sizes), *(["tokens"] if first.least else []), *names,
                  *peers, "GB/s", "of copy", "TFLOP/s", "of GEMM", *(f"of {peer}" for peer in peers))
    for question, found, rows in asked:
        best, row = found[last], next(r for r in rows if r["what"] == last)
        shares = (f"{row['bandwidth'] / 1e9:,.0f}", f"{row['of_copy']:.0%}", f"{row['rate'] / 1e12:.2f}",
                  f"{row['of_gemm']:.0%}") if best.timing else [""] * 4
        table.row(question.sizes["model"], ", ".join(f"{question.sizes[s]:,}" for s in sizes),
                  *([f"{question.tokens:,}"] if first.least else []), *(ms(found.get(name)) for name in (*names, *peers)),
                  *shares, *(ratio(best, found.get(peer)) for peer in peers))
    if note:
        say()
        say(note)
