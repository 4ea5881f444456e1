"""The tests of the ladder in Numba CUDA reject every rung listed here. Each is a mistake that people make."""

import inspect
from contextlib import contextmanager
from functools import partial
from importlib import import_module

import pytest
from mutation import load, patched, rejected

from minisl.kernels.cuda import in_numba

pytest.importorskip("greenlet")
pytest.importorskip("numba.cuda")
tests = load("kernels/cuda/test_in_numba.py")

# operation, rung, what is there, what is put in its place
BARRIER = "        cuda.syncthreads()\n"
MUTANTS = [
    ("scatter_add", 0, "range(nnz)", "range(1, nnz)"),
    ("scatter_add", 0, "W[index[k]] += values[k]", "W[index[k]] = values[k]"),
    ("scatter_add", 1, "cuda.atomic.add(W, index[k], values[k])", "W[index[k]] += values[k]"),
    ("scatter_add", 1, "if k < nnz", "if k <= nnz"),
    ("spmm", 0, "if i >= out or t >= n", "if i > out or t >= n"),
    ("spmm", 0, "if i >= out or t >= n", "if t >= n"),
    ("spmm", 0, "y[t, i] += sum", "y[t, i] = values[0] * sum"),
    ("spmm", 1, "starts[i] + lane", "starts[i]"),
    ("spmm", 1, ", 32):", ", 16):"),
    ("spmm", 1, "(16, 8, 4, 2, 1)", "(8, 4, 2, 1)"),
    ("spmm", 1, "0xFFFFFFFF", "0x0000FFFF"),
    ("spmm", 1, "if lane == 0", "if lane <= 1"),
    ("spmm", 1, "shfl_down_sync", "shfl_up_sync"),
    ("spmm", 2, BARRIER + "        for p in range(count)", "        for p in range(count)"),
    ("spmm", 2, "x[xt, column[p]]\n" + BARRIER, "x[xt, column[p]]\n"),
    ("spmm", 2, BARRIER + "        for p in range(count)", "        cuda.syncwarp()\n        for p in range(count)"),
    ("spmm", 2, "xt = min(t, n - 1)", "xt = t"),
    ("spmm", 2, "xt = min(t, n - 1)  #", "xt = t\n    if t >= n:\n        return  #"),
    ("spmm", 2, "if cuda.threadIdx.x < count:", "if True:"),
    ("spmm", 2, "range(starts[i], starts[i + 1], TOKENS)", "range(starts[i], starts[i] + 1, TOKENS)"),
    ("spmm", 3, "else np.float32(0)\n" + BARRIER, "else np.float32(0)\n"),
    ("spmm", 3, BARRIER + "        start += ROWS", "        start += ROWS"),
    ("spmm", 3, "first + c < width", "first + c <= width"),
    ("spmm", 3, "start += ROWS", "start += COLUMNS // 2"),
    ("spmm", 3, "(width + COLUMNS - 1) // COLUMNS", "width // COLUMNS"),
    ("spmm", 3, "if i < out and", "if i < out or"),
    ("spmm", 3, "columns[p] - first", "columns[p]"),
    ("spmm", 4, "sum[k]\n    cuda.syncthreads()", "sum[k]"),
    ("spmm", 4, "min(ROWS, out - row)", "ROWS"),
    ("spmm", 4, "y[token + t, row + i] += tile[i, t]", "y[token + t, row + i] += tile[t, i]"),
    ("sddmm", 0, "dvalues[order[k]]", "dvalues[k]"),
    ("sddmm", 0, "if k >= nnz", "if k > nnz"),
    ("sddmm", 1, "cuda.blockDim.y", "cuda.blockDim.x"),
    ("sddmm", 1, "range(lane, n, 32)", "range(lane, n - n % 32, 32)"),
    ("sddmm", 1, "if lane == 0", "if lane == 31"),
    ("sddmm", 2, "else np.float32(0)\n            cuda.syncthreads()", "else np.float32(0)"),
    ("sddmm", 2, "xs[t, j]\n            cuda.syncthreads()", "xs[t, j]"),
    ("sddmm", 2, "end - 1)", "end)"),
    ("sddmm", 2, "e // SIZE, e % SIZE", "e // TOKENS, e % TOKENS"),
    ("sddmm", 2, "to = min(n, share_from + share)", "to = n"),
    ("sddmm", 2, "parts[cuda.blockIdx.z,", "parts[0,"),
    ("sl_forward", 0, "scale * w", "w"),
    ("sl_forward", 0, "cuda.atomic.add(W, (rows[p] - row, columns[p] - column), values[p])",
     "W[rows[p] - row, columns[p] - column] += values[p]"),
    ("sl_forward", 0, "values[p])\n" + BARRIER, "values[p])\n"),
    ("sl_forward", 0, BARRIER + "        start += SIZE", "        start += SIZE"),
    ("sl_forward", 0, "W[tx, c]", "W[c, tx]"),
    ("sl_forward", 1, "rank + tx < r", "rank + tx <= r"),
    ("sl_forward", 1, "range(0, r, SIZE)", "range(0, SIZE, SIZE)"),
    ("sl_forward", 2, "range(ty, TOKENS, SIZE)", "range(ty, TOKENS - SIZE, SIZE)"),
    ("sl_forward", 3, "start += ROWS", "start += SIZE"),
    ("sl_forward", 3, "            w[l] = 0\n", "            w[l] = w[l] if column else np.float32(0)\n"),
]


@contextmanager
def changed(op, number, old, new):
    """The rung behaves as if its source had `new` instead of `old` (which occurs exactly once)."""
    module, name = import_module(f"{in_numba.__name__}.{op}"), f"rung_{number}"
    lines, first = inspect.getsourcelines(in_numba.kernel(op, number).py_func)
    source = "\n" * (first - 1) + "".join(lines)  # a fault names the line that the file has there
    assert source.count(old) == 1, f"{op} rung {number} holds {old!r} {source.count(old)} times"
    scope = dict(vars(module))
    exec(compile(source.replace(old, new).replace("@cuda.jit", ""), module.__file__, "exec"), scope)
    with patched(module, name, scope[name]):
        yield


def checks(op, number):
    """Those of the rung, the ones that find most first."""
    found = [partial(tests.check, op, number, support, 1 + k % 2) for k, support in enumerate(tests.SUPPORTS[::-1])]
    return [partial(tests.check_split, number)] * (op == "sddmm") + found


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant[0]} {mutant[1]}: {mutant[2]} -> {mutant[3]}")
def test_rungs(mutant, killed):
    name = "Numba CUDA: {} {}: {!r} -> {!r}".format(*mutant)
    with changed(*mutant):
        killed[name] = rejected(checks(*mutant[:2]))
    assert killed[name]
