"""Small problems for each ladder, and whether the rung in use solves them: what `python -m minisl.ladder` runs.

The first sizes fit no tile: 37 tokens, a 75 x 70 matrix, rank 20; the second fit all of them. S has an empty row, a row of 140
entries or more, more than a block takes at a time, since each of its positions occurs twice; its entries are in no order.
"""

from typing import NamedTuple

import numpy as np

from minisl.backend import IGNORE_LABEL
from minisl.kernels import Support, cuda, numpy_backend
from minisl.kernels.cuda import emulator, ladder, signature
from minisl.kernels.cuda.sparse import add_spmm

TOLERANCE = 1e-5  # of the largest entry: float32, and sums in another order


class Size(NamedTuple):
    tokens: int
    out: int
    width: int
    rank: int


SIZES = Size(37, 75, 70, 20), Size(128, 64, 128, 32)


def support(rng, s):
    """230 entries anywhere but in two rows, one of which is empty; each position of the other, twice."""
    row = 7 * s.width + np.arange(s.width)
    others = [k for k in rng.permutation(s.out * s.width) if k // s.width not in (3, 7)][:230]
    return Support(rng.permutation(np.concatenate([others, row, row])).astype(np.int32), (s.out, s.width))


def product(algorithm):
    def both(k, draw, rng, s):
        S, x, dy = support(rng, s), draw(s.tokens, s.width), draw(s.tokens, s.out)
        B, A = draw(s.out, s.rank), draw(s.rank, s.width)
        values, name = draw(len(S)), algorithm if k is cuda else "factored"
        y, _ = getattr(k, f"{name}_forward")(x, B, A, values, S, 0.5)
        return y, *getattr(k, f"{name}_backward")(dy, x, B, A, values, S, 0.5)

    return both


def scatter_add(k, draw, rng, s):
    S = support(rng, s)
    return k.scatter_add(draw(s.out, s.width), draw(len(S)), S),


def spmm(k, draw, rng, s):
    S = support(rng, s)
    values = draw(len(S))
    found = []
    for transpose, to, of in ((False, s.out, s.width), (True, s.width, s.out)):
        x, y = draw(s.tokens, of), draw(s.tokens, to)
        if k is cuda:
            add_spmm(y, x, values, S, transpose)
        else:
            y += k.spmm(x, values, S, transpose)
        found.append(y)
    return found


def sddmm(k, draw, rng, s):
    return k.sddmm(draw(s.tokens, s.out), draw(s.tokens, s.width), support(rng, s)),


def cross_entropy(k, draw, rng, s):
    logits, labels = draw(s.tokens, 301), rng.integers(0, 301, s.tokens)
    labels[5] = IGNORE_LABEL
    loss, kept = k.cross_entropy(logits, labels)
    return loss, kept, k.cross_entropy_backward(np.float32(0.5), logits, labels, kept)


def rms_norm(k, draw, rng, s):
    x, gain, dy = draw(s.tokens, s.width), draw(s.width), draw(s.tokens, s.width)
    y, r = k.rms_norm(x, gain, 1e-5)
    return y, *k.rms_norm_backward(dy, x, gain, r)


def swiglu(k, draw, rng, s):
    dy, a, b = (draw(s.tokens, s.width + 1) for _ in range(3))
    return k.swiglu(a, b), *k.swiglu_backward(dy, a, b)


def rope(k, draw, rng, s):
    angle = draw(s.tokens, 4)
    return k.rope(draw(2, s.tokens, 3, 8).swapaxes(1, 2), np.cos(angle), np.sin(angle)),


def attention(k, draw, rng, s):
    q, key, v, dout = (draw(2, s.tokens, heads, 6).swapaxes(1, 2) for heads in (4, 2, 2, 4))
    out, kept = k.attention(q, key, v)
    return out, *k.attention_backward(dout, q, key, v, out, kept)


def adamw(k, draw, rng, s):
    p, m, v = draw(15, s.width), draw(15, s.width), draw(15, s.width) ** 2
    for t in (1, 2):
        k.adamw(p, draw(15, s.width), m, v, 0.01, (0.9, 0.99), 1e-6, 0.1, t)
    return p, m, v


def adam8bit(k, draw, rng, s):
    p, blocks = draw(15, s.width), -(-15 * s.width // 256)
    tables = numpy_backend.dynamic_map(True), numpy_backend.dynamic_map(False)
    m, v = (rng.integers(0, 256, p.shape, np.uint8) for _ in range(2))
    m_top, v_top = (np.abs(draw(blocks)) for _ in range(2))
    k.adam8bit(p, draw(15, s.width), m, v, m_top, v_top, tables, 0.01, (0.9, 0.99), 1e-3, 0.1, 2)
    return p, tables[0][m], tables[1][v], m_top, v_top


TRIALS = {"scatter_add": scatter_add, "spmm": spmm, "sddmm": sddmm, "sl_forward": product("fused"),
          "sl_backward_dx": product("fused"), "sl_backward_dw": product("fused"), "cross_entropy": cross_entropy,
          "rms_norm": rms_norm, "swiglu": swiglu, "rope": rope, "attention": attention, "attention_dq": attention,
          "attention_dkv": attention, "adamw": adamw, "adam8bit": adam8bit}


def run(op, backend=cuda, size=SIZES[0]):
    """The arrays that the op's problem gives with a backend module."""
    rng = np.random.default_rng(0)
    return [np.asarray(a) for a in TRIALS[op](backend, lambda *shape: rng.standard_normal(shape).astype(np.float32), rng, size)]


def error(op):
    """(how far the rung in use is from NumPy, as a part of the largest entry; where, and with which two numbers): the worst of
    the first sizes in three orders of threads and the second in one.

    Raises a KernelFault.
    """
    worst = 0.0, ""
    for size in SIZES:
        right = run(op, numpy_backend, size)
        for order in (0, 1, 2) if size == SIZES[0] else (1,):
            with emulator.order(order):
                mine = run(op, size=size)
            for number, (a, b) in enumerate(zip(mine, right, strict=True)):
                off = np.nan_to_num(np.abs(a.astype(np.float64) - b) / np.abs(b).max(), nan=np.inf)
                if off.max() > worst[0]:
                    at = np.unravel_index(off.argmax(), off.shape)
                    worst = float(off.max()), (f"result {number} of shape {a.shape} has {a[at]:.7g} at {tuple(map(int, at))}, "
                                               f"NumPy {b[at]:.7g} ({size.tokens} tokens, {size.out} x {size.width})")
    return worst


def counts(op):
    """(counts, launches): what the kernels of the rung in use touch in its problem, without those of other ladders.

    counts: "accesses" to global memory, the "sectors" of 32 bytes they move and the "sectors_ideal" that would do; the "cycles"
    of shared memory's banks and the "cycles_ideal" without conflicts.
    """
    with emulator.record(signature.kernels(ladder.source(op, ladder.rung(op)))) as launches:
        run(op)
    found = dict.fromkeys(("accesses", "sectors", "sectors_ideal", "cycles", "cycles_ideal"), 0)
    for launch in launches:
        for array in dict.fromkeys(a.name for a in launch.arrays):
            seen = launch.summary(array)
            if "moved" in seen:
                found["accesses"] += seen["reads"] + seen["writes"] + seen["atomics"]
                found["sectors"] += seen["moved"]
                found["sectors_ideal"] += seen["ideal"]
            else:
                found["cycles"] += seen["cycles"]
                found["cycles_ideal"] += seen["ideal"]
    return found, launches
