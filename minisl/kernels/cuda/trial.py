"""A small problem for each ladder, and whether the rung in use solves it: what `python -m minisl.ladder` runs.

The sizes fit nothing: 37 tokens, a 75 x 70 matrix, rank 5. S has an empty row, a row of 140 entries, more than a block takes at a
time, since each of its positions occurs twice; and its entries are in no order.
"""

import numpy as np

from minisl.backend import IGNORE_LABEL
from minisl.kernels import Support, cuda, numpy_backend
from minisl.kernels.cuda import emulator, ladder, signature

TOLERANCE = 1e-5  # of the largest entry: float32, and sums in another order
TOKENS, OUT, IN, RANK = 37, 75, 70, 5


def support(rng):
    """370 entries at 300 of 5250 positions."""
    row = 7 * IN + np.arange(IN)
    others = [k for k in rng.permutation(OUT * IN) if k // IN not in (3, 7)][:230]
    return Support(rng.permutation(np.concatenate([others, row, row])).astype(np.int32), (OUT, IN))


def product(algorithm):
    def both(k, draw, rng):
        S, x, dy, B, A = support(rng), draw(TOKENS, IN), draw(TOKENS, OUT), draw(OUT, RANK), draw(RANK, IN)
        values, name = draw(len(S)), algorithm if k is cuda else "factored"
        y, _ = getattr(k, f"{name}_forward")(x, B, A, values, S, 0.5)
        return y, *getattr(k, f"{name}_backward")(dy, x, B, A, values, S, 0.5)

    return both


def scatter_add(k, draw, rng):
    S = support(rng)
    return k.scatter_add(draw(OUT, IN), draw(len(S)), S),


def spmm(k, draw, rng):
    S = support(rng)
    values = draw(len(S))
    return k.spmm(draw(TOKENS, IN), values, S, False), k.spmm(draw(TOKENS, OUT), values, S, True)


def sddmm(k, draw, rng):
    return k.sddmm(draw(TOKENS, OUT), draw(TOKENS, IN), support(rng)),


def cross_entropy(k, draw, rng):
    logits, labels = draw(TOKENS, 301), rng.integers(0, 301, TOKENS)
    labels[5] = IGNORE_LABEL
    loss, logsumexp = k.cross_entropy(logits, labels)
    return loss, logsumexp, k.cross_entropy_backward(np.float32(0.5), logits, labels, logsumexp)


def rms_norm(k, draw, rng):
    x, gain, dy = draw(TOKENS, IN), draw(IN), draw(TOKENS, IN)
    y, r = k.rms_norm(x, gain, 1e-5)
    return y, *k.rms_norm_backward(dy, x, gain, r)


def swiglu(k, draw, rng):
    dy, a, b = (draw(TOKENS, IN + 1) for _ in range(3))
    return k.swiglu(a, b), *k.swiglu_backward(dy, a, b)


def rope(k, draw, rng):
    angle = draw(TOKENS, 4)
    return k.rope(draw(2, TOKENS, 3, 8).swapaxes(1, 2), np.cos(angle), np.sin(angle)),


def attention(k, draw, rng):
    q, key, v, dout = (draw(2, TOKENS, heads, 6).swapaxes(1, 2) for heads in (4, 2, 2, 4))
    out, kept = k.attention(q, key, v)
    return out, *k.attention_backward(dout, q, key, v, out, kept)


def adamw(k, draw, rng):
    p, m, v = draw(15, IN), draw(15, IN), draw(15, IN) ** 2
    for t in (1, 2):
        k.adamw(p, draw(15, IN), m, v, 0.01, (0.9, 0.99), 1e-6, 0.1, t)
    return p, m, v


def adam8bit(k, draw, rng):
    p, blocks, tables = draw(15, IN), -(-15 * IN // 256), (numpy_backend.dynamic_map(True), numpy_backend.dynamic_map(False))
    m, v = (rng.integers(0, 256, p.shape, np.uint8) for _ in range(2))
    m_top, v_top = (np.abs(draw(blocks)) for _ in range(2))
    k.adam8bit(p, draw(15, IN), m, v, m_top, v_top, tables, 0.01, (0.9, 0.99), 1e-3, 0.1, 2)
    return p, tables[0][m], tables[1][v], m_top, v_top


TRIALS = {"scatter_add": scatter_add, "spmm": spmm, "sddmm": sddmm, "sl_forward": product("fused"),
          "sl_backward_dx": product("fused"), "sl_backward_dw": product("fused"), "cross_entropy": cross_entropy,
          "rms_norm": rms_norm, "swiglu": swiglu, "rope": rope, "attention": attention, "attention_dq": attention,
          "attention_dkv": attention, "adamw": adamw, "adam8bit": adam8bit}


def run(op, backend=cuda, seed=0):
    """The arrays that the op's problem gives with a backend module."""
    rng = np.random.default_rng(seed)
    return [np.asarray(a) for a in TRIALS[op](backend, lambda *shape: rng.standard_normal(shape).astype(np.float32), rng)]


def error(op):
    """How far the rung in use is from NumPy, as a part of the largest entry; the worst of three orders of threads.

    Raises a KernelFault.
    """
    right, worst = run(op, numpy_backend), 0.0
    for order in range(3):
        with emulator.order(order):
            mine = run(op)
        for a, b in zip(mine, right, strict=True):
            off = np.abs(a.astype(np.float64) - b).max() / np.abs(b).max()
            worst = max(worst, float(off) if np.isfinite(off) else np.inf)
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
