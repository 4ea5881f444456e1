"""Every rung of the CUDA ladders against NumPy, which computes in float64. Used by tests and mutants.

A ladder's problems are functions of a backend's module and a Draw, as in `backend_checks`; sizes fit nothing, or fit exactly.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
from backend_checks import CASES, Draw, a_support, attention, computed

from minisl import parallel
from minisl.errors import InputError
from minisl.kernels import cuda, numpy_backend
from minisl.kernels.cuda import emulator, ladder

TOLERANCE = 3e-6  # of the largest entry
MAGNIFIED = {"rms_norm 1 1": 1e-5, "attention 1 2 1 20 20 4 10000.0": 1e-3}  # what float32 rounds off is not small here
NEIGHBOURS = 1e-3  # how many of the codes of 8 bits may be the next one: what lies between two is rounded either way


def scatter_add(out, width, kind="some", first=0):
    """first: where in memory the values begin, in elements"""
    def run(k, draw):
        support = a_support(draw, kind, out, width)
        return k.scatter_add(draw(out, width), draw(first + len(support))[first:], support),

    return run


def spmm(n, width, out, kind="some"):
    def run(k, draw):
        support = a_support(draw, kind, out, width)
        values = draw(len(support))
        return k.spmm(draw.rows(n, width), values, support, False), k.spmm(draw.rows(n, out), values, support, True)

    return run


def sddmm(n, width, out, kind="some", split=2048):
    """split: tokens that a block may sum up"""
    def run(k, draw):
        with patch.dict(k.sddmm.__globals__, {"SPLIT": split}):
            return k.sddmm(draw.rows(n, out), draw.rows(n, width), a_support(draw, kind, out, width)),

    return run


def fused(n, width, out, rank, kind="some"):
    """By NumPy in the factored form: it has no other."""
    def run(k, draw):
        algorithm = "fused" if hasattr(k, "fused_forward") else "factored"
        x, dy, B, A = draw.rows(n, width), draw.rows(n, out), draw(rank, out).T, draw(rank, width)
        support = a_support(draw, kind, out, width)
        values = draw(len(support))
        y, _ = getattr(k, f"{algorithm}_forward")(x, B, A, values, support, 0.37)
        return y, *getattr(k, f"{algorithm}_backward")(dy, x, B, A, values, support, 0.37)

    return run


def mixed_attention(B, H, G, queries, keys, d):
    """Arrays that lie in memory in each way a head may, and in one that it may not."""
    def run(k, draw):
        q, key = draw.heads(B, H, queries, d), draw(B, G, keys, d)
        v, dout = draw.heads(B, G, keys, 2 * d)[..., ::2], draw(B, H, queries, d)
        out, kept = k.attention(q, key, v)
        return out, *k.attention_backward(dout, q, key, v, out, kept)

    return run


def shifted_swiglu(count):
    """Arrays that no load of 16 bytes may begin at."""
    def run(k, draw):
        a, b, dy = (draw(count + 1)[1:] for _ in range(3))
        return k.swiglu(a, b), *k.swiglu_backward(dy, a, b)

    return run


def shifted_adamw(count):
    def run(k, draw):
        p, m, v = (draw(count + 1).copy()[1:] for _ in range(3))
        v *= v
        k.adamw(p, draw(count + 1)[1:], m, v, 0.03, (0.8, 0.95), 0.01, 0.1, 2)
        return p, m, v

    return run


def adam8bit(*shape, start="any", order="C"):
    """One step from any codes; or from "zeros", as the first is, with a gradient whose first block is zero."""
    def run(k, draw):
        p, g, size = draw(*shape).copy(order=order), draw(*shape), int(np.prod(shape))
        tables = tuple(draw.xp.asarray(numpy_backend.dynamic_map(signed)) for signed in (True, False))
        codes = draw.rng.integers(0, 256, (2, *shape)).astype(np.uint8)
        g = g.copy()
        codes[0].reshape(-1)[::5], g.reshape(-1)[::5] = 127, g.reshape(-1)[::5] * 1e-9  # an m near 0, of both signs
        tops = abs(draw(2, -(-size // 256)))
        if start == "zeros":
            codes[0], codes[1], tops = 127, 0, 0 * tops
            g.reshape(-1)[:256] = 0
        m, v = (draw.xp.asarray(c).copy(order=order) for c in codes)
        m_top, v_top = tops[0].copy(), tops[1].copy()
        k.adam8bit(p, g, m, v, m_top, v_top, tables, 0.03, (0.8, 0.95), 1e-3, 0.1, 1 if start == "zeros" else 5)
        return p, m, v, m_top, v_top

    return run


def problems(function, *sizes, **options):
    return {" ".join(map(str, [function.__name__, *size, *options.values()])): function(*size, **options) for size in sizes}


def cases(*functions):
    """Those of `backend_checks`, but the ones that are large to be shared out among cores."""
    return {name: case for name, case in CASES.items() if name.split()[0] in functions and name not in LARGE}


LARGE = ("attention 1 2 2 300 300 8", "attention 1 2 1 140 200 4", "attention 5 2 1 130 131 4", "cross_entropy 1100 17")
KINDS = ("none", "sorted", "one row", "one column", "repeated", "crowded")
PROBLEMS = {
    "scatter_add": problems(scatter_add, (15, 17), (1, 1), (3, 7), (5, 7), (5, 11), (60, 200), (15, 17, "some", 1),
                            *((40, 40, kind) for kind in KINDS)),
    "spmm": problems(spmm, (5, 63, 65), (0, 5, 7), (1, 1, 1), (130, 70, 64), (33, 200, 5, "one row"),
                     *((35, 40, 41, kind) for kind in KINDS))
    | {"product 65 40 15 factored": CASES["product 65 40 15 factored"]},  # where S's part is added to another
    "sddmm": problems(sddmm, (5, 63, 65), (0, 5, 7), (1, 1, 1), (70, 70, 64), (70, 130, 10, "sorted", 20),
                      (33, 200, 5, "one row"), *((35, 40, 41, kind) for kind in KINDS)),
    "cross_entropy": cases("cross_entropy", "linear_cross_entropy"),
    "rms_norm": cases("rms_norm"),
    "swiglu": cases("swiglu") | problems(shifted_swiglu, (21,), (23,)),
    "rope": cases("rope"),
    "adamw": cases("adamw") | problems(shifted_adamw, (21,), (23,)),
    "adam8bit": problems(adam8bit, (257,), (0,), (1,), (255,), (256,), (70, 33)) | problems(adam8bit, (300,), start="zeros")
    | problems(adam8bit, (20, 30), start="any", order="F"),
}
FUSED = problems(fused, (5, 63, 65, 17), (0, 5, 7, 3), (1, 1, 1, 1), (130, 40, 33, 5), (17, 16, 64, 16),
                 (33, 70, 5, 70, "one row"), *((20, 30, 31, 4, kind) for kind in KINDS))
PROBLEMS |= dict.fromkeys(("sl_forward", "sl_backward_dx", "sl_backward_dw"), FUSED)
HEADS = problems(mixed_attention, (2, 4, 2, 9, 11, 6)) | problems(attention, (1, 1, 1, 9, 9, 128), (1, 1, 1, 9, 9, 136))
HEADS |= problems(attention, (1, 2, 1, 33, 70, 34)) | cases("attention")
PROBLEMS |= dict.fromkeys(("attention", "attention_dq", "attention_dkv"), HEADS)
WITHOUT_LADDER = cases("linear", "embedding", "product", "sparse")  # cuBLAS's and CuPy's own, and several ladders at once
RAGGED = {"scatter_add": "scatter_add 60 200", "spmm": "spmm 5 63 65", "sddmm": "sddmm 70 130 10 sorted 20",
          "cross_entropy": "cross_entropy 40 1000", "rms_norm": "rms_norm 600 40", "swiglu": "swiglu 130 200",
          "rope": "rope 2 4 70 34", "adamw": "adamw 150 120", "adam8bit": "adam8bit 70 33",
          **dict.fromkeys(("sl_forward", "sl_backward_dx", "sl_backward_dw"), "fused 5 63 65 17"),
          **dict.fromkeys(("attention", "attention_dq", "attention_dkv"), "attention 1 2 1 33 70 34")}  # more than one block
RUNGS = [(op, rung) for op, count in ladder.rungs().items() for rung in range(count)]


def check(case, xp=np, order=0, tolerance=TOLERANCE, **rungs):
    """A problem by these rungs, the last of other ladders; on the GPU (xp: CuPy) or in the emulator, threads in this order."""
    with ladder.at(**rungs), emulator.order(order):
        mine = computed(case, cuda, Draw(np.float32, xp=xp))
    right = exact(case)
    assert [(a.shape, a.dtype) for a in mine] == [(b.shape, np.uint8 if b.dtype == np.uint8 else np.float32) for b in right]
    for i, (a, b) in enumerate(zip(mine, right)):
        if b.dtype == np.uint8:
            apart = np.abs(a.astype(int) - b)
            assert apart.max(initial=0) <= 1, f"result {i}"
            assert np.count_nonzero(apart) <= NEIGHBOURS * b.size, f"result {i}"
        else:
            off = np.abs(a - b).max(initial=0) / np.abs(b).max(initial=1e-3)
            assert off <= tolerance, f"result {i} is {off:.1e} off"


def check_all(cases, **options):
    """All of them, in the order they are given."""
    for name, case in cases.items():
        try:
            check(case, tolerance=MAGNIFIED.get(name, TOLERANCE), **options)
        except Exception as error:
            error.add_note(f"in {name}")
            raise


def compile_all(texts):
    """(operation, rung, text) for the emulator, on all cores; most of the time goes there. What does not compile, its test will
    tell."""
    def compile(op, rung, text):
        with suppress(InputError, emulator.CompileError):
            emulator.RawModule(code=text, name=f"{op}_{rung}.cu")

    with ThreadPoolExecutor(parallel.cores()) as pool:
        list(pool.map(compile, *zip(*texts)))


@cache
def exact(case):
    """What NumPy gives for the same numbers in float64."""
    draw = Draw()
    rng = draw.rng
    draw.rng = SimpleNamespace(standard_normal=lambda shape: rng.standard_normal(shape).astype(np.float32), integers=rng.integers)
    return computed(case, numpy_backend, draw)
