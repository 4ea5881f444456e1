"""The ladder in Numba CUDA: every rung against NumPy in float64, without a GPU, and every rung compiled."""

import inspect
import subprocess
import sys
import warnings
from functools import cache
from importlib.util import find_spec
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest

from minisl import kernels
from minisl.errors import InputError
from minisl.kernels import Support
from minisl.kernels.cuda import emulator, in_numba, ladder, signature, sparse

pytest.importorskip("numba.cuda")
runs = pytest.mark.skipif(not find_spec("greenlet"), reason="greenlet is not installed")

RUNGS = [(op, number) for op in in_numba.OPS for number in range(in_numba.last(op) + 1)]
IDS = [f"{op} {number}" for op, number in RUNGS]
SUPPORTS = ("sorted", "unsorted", "repeated", "nothing", "one long row", "empty rows", "several tiles")
SCALE = 0.37
# out, width, tokens, rank: no tile divides them. Small: within one tile of every rung. Long: more entries in a row than a warp,
# or a block, takes at a time. Several: more than one tile of each kind the rung has.
SMALL = 6, 9, 5, 3
LONG = {"spmm 1": (3, 40, 5, 3), "sl_forward": (3, 20, 5, 18), "all others": (3, 150, 5, 3)}
SEVERAL = {"spmm 0": (67, 70, 9, 3), "spmm 1": (19, 20, 9, 3), "spmm 2": (5, 9, 130, 3), "all others": (67, 70, 35, 3),
           "sddmm 1": (19, 20, 35, 3), "sl_forward": (18, 35, 19, 18),
           "sl_forward 2": (18, 9, 130, 3), "sl_forward 3": (67, 17, 5, 3)}


@cache
def problem(support, sizes):
    """dy, x, B, A, values, W and the support."""
    rng = np.random.default_rng(len(support))
    out, width, tokens, rank = sizes
    places = rng.permutation(out * width)
    index = {"sorted": np.sort(places[:20]), "unsorted": places[:20], "repeated": places[rng.integers(0, 7, 30)],
             "nothing": places[:0], "one long row": width + rng.permutation(width),
             "empty rows": places[places // width % 3 == 1][:9], "several tiles": places[:out * width // 10]}[support]
    shapes = [(tokens, out), (tokens, width), (out, rank), (rank, width), (len(index),), (out, width)]
    return *(rng.standard_normal(s) for s in shapes), Support(index, (out, width))


def results(op, backend, dtype, support, sizes):
    dy, x, B, A, values, W, where = problem(support, sizes)
    dy, x, B, A, values, W = (a.astype(dtype) for a in (dy, x, B, A, values, W))
    if op == "scatter_add":
        return [kernels.scatter_add(W, values, where, backend=backend)]
    if op == "spmm":
        turned = [kernels.spmm(dy, values, where, transpose=True, backend=backend)] if sizes == SMALL else []
        return [kernels.spmm(x, values, where, backend=backend), *turned]
    if op == "sddmm":
        return [kernels.sddmm(dy, x, where, backend=backend)]
    algorithm = "fused" if backend == "emulator" else "factored"
    return [kernels.sl_linear(x, B, A, values, where, SCALE, algorithm=algorithm, backend=backend)]


def not_written(shape, dtype=float, order="C"):
    """np.empty, where whatever a kernel leaves out is seen."""
    return np.full(shape, np.nan if np.dtype(dtype).kind == "f" else -1, dtype, order)


def check(op, number, support, order):
    known = {"one long row": LONG, "several tiles": SEVERAL}.get(support, {"all others": SMALL})
    sizes = known.get(f"{op} {number}", known.get(op, known["all others"]))
    right = results(op, "numpy", np.float64, support, sizes)
    with ladder.at(language="numba", **{op: number}), emulator.order(order), patch.object(np, "empty", not_written):
        mine = results(op, "emulator", np.float32, support, sizes)
    for m, r in zip(mine, right):
        assert m.dtype == np.float32
        np.testing.assert_allclose(m, r, rtol=1e-5, atol=2e-5)


def check_split(number):
    """Tokens dealt out to several blocks, the last of which has fewer."""
    with patch.object(sparse, "SPLIT", 13):
        check("sddmm", number, "several tiles", 1)


@runs
@pytest.mark.parametrize("order", [1, 2])  # backward and at random
@pytest.mark.parametrize(("op", "number"), RUNGS, ids=IDS)
def test_every_rung(op, number, order):
    for support in (*SUPPORTS[order - 1:-1:2], SUPPORTS[-1]):
        check(op, number, support, order)


@runs
def test_sums_over_several_blocks():
    check_split(2)


@runs
@pytest.mark.parametrize(("op", "number"), RUNGS, ids=IDS)
def test_no_tokens(op, number):
    sizes = 6, 9, 0, 3
    with ladder.at(language="numba", **{op: number}):
        mine = results(op, "emulator", np.float32, "sorted", sizes)
    for m, r in zip(mine, results(op, "numpy", np.float64, "sorted", sizes)):
        np.testing.assert_allclose(m, r, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("op", "number"), RUNGS, ids=IDS)
def test_same_arguments_as_in_cuda(op, number):
    parameters = signature.kernels(ladder.source(op, number))[op]
    assert list(inspect.signature(in_numba.kernel(op, number).py_func).parameters) == [p.name for p in parameters]


@pytest.mark.skipif(not find_spec("numba_cuda"), reason="numba-cuda is not installed")
@pytest.mark.parametrize(("op", "number"), RUNGS, ids=IDS)
def test_every_rung_compiles(op, number):
    """To PTX for a Hopper GPU: no float64 in it, which a literal 0.0 would bring, and local arrays are in registers."""
    from numba import cuda, types

    def typed(p):
        kind = types.float32 if p.type == "float" else types.int32
        return types.Array(kind, 2 if p.name in ("x", "y", "dy", "B", "A", "parts") else 1, "C") if p.pointer else kind

    parameters = signature.kernels(ladder.source(op, number))[op]
    ptx, returned = cuda.compile_ptx(in_numba.kernel(op, number).py_func, types.void(*map(typed, parameters)), cc=(9, 0))
    assert returned == types.void
    assert ".entry" in ptx
    assert ".target sm_90" in ptx
    assert ".f64" not in ptx
    assert ".local" not in ptx


@pytest.mark.parametrize(("op", "number", "what"), [
    ("scatter_add", 2, "scatter_add has no rung 2 in Numba CUDA; its last is 1: Numba cannot load 16 bytes at a time"),
    ("spmm", 5, "spmm has no rung 5 in Numba CUDA; its last is 4: "),
    ("spmm", 6, "spmm has no rung 6 in Numba CUDA; its last is 4: "),
    ("sddmm", 3, "sddmm has no rung 3 in Numba CUDA; its last is 2: "),
    ("rms_norm", 0, "rms_norm is not written in Numba CUDA; these are: scatter_add, sddmm, sl_forward, spmm")])
def test_what_numba_has_not(op, number, what):
    with pytest.raises(InputError) as caught:
        in_numba.kernel(op, number)
    assert str(caught.value).startswith(what)


def test_numba_that_does_not_import(monkeypatch):
    monkeypatch.delitem(sys.modules, "minisl.kernels.cuda.in_numba.spmm")
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(InputError) as caught:
        in_numba.kernel("spmm", 0)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("pip install numba-cuda")


@runs
def test_an_array_that_does_not_fit():
    x, y, one = np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32), np.zeros(1, np.float32)
    whole = np.zeros(5, np.int32)
    values = {"x": x, "values": one, "columns": whole, "starts": whole, "y": y, "n": 2, "width": 3, "out": 4}
    wide = np.zeros((2, 8), np.float32)
    for name, wrong, what in [("x", x.astype(np.float64), "float64"), ("columns", whole.astype(np.int64), "int64"),
                              ("y", wide[:, ::2], "contiguous"), ("n", 2.5, "whole number")]:
        with pytest.raises(TypeError, match=f"spmm rung 0: {name} .*{what}"):
            in_numba.launch("spmm", 0, "spmm", (1,), (4, 2), values | {name: wrong}, np)
    in_numba.launch("spmm", 0, "spmm", (1,), (4, 2), values, np)


def test_arrays_of_a_gpu_go_to_numba(monkeypatch):
    class Rung(dict):
        def __missing__(self, shape):
            def start(*arguments):
                warnings.warn("Grid size 1 will likely result in ...", stacklevel=1)
                launches.append((shape, arguments))

            return start

    launches, W, whole, one = [], np.zeros((2, 3), np.float32), np.zeros(1, np.int32), np.zeros(1, np.float32)
    monkeypatch.setattr(in_numba, "kernel", lambda op, number: Rung())
    values = {"W": W, "index": whole, "values": one, "nnz": 1}
    in_numba.launch("scatter_add", 1, "scatter_add", (1,), (32,), values, SimpleNamespace(ndarray=np.ndarray))
    [(shape, (flat, *rest))] = launches
    assert shape == ((1,), (32,))
    assert flat.shape == (6,)
    assert flat.base is W
    assert [type(r) for r in rest] == [np.ndarray, np.ndarray, np.int32]


def test_nothing_of_it_is_imported_unasked():
    names = "{'numba', 'greenlet', 'minisl.kernels.cuda.in_numba', 'minisl.kernels.cuda.emulator.numba_threads'}"
    code = f"import sys, minisl.kernels.cuda; print({names} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True).stdout == "set()\n"
