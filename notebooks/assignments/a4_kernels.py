# %% [markdown]
# # Assignment 4: kernels
#
# You write the sparse products of SLTrain: first in Numba for the CPU, then in CUDA C++ for a GPU that need not be there. The
# emulator compiles your text, watches every access, and names out of bounds, races and missing barriers by line. In the end it
# counts how much memory your kernels move.
#
# **How.** Replace each `raise NotImplementedError()` with your code. The cell below it checks your answer: it prints nothing
# and passes, or says what is wrong. Save the notebook, then `python -m minisl.course check a4_kernels.ipynb` (or `pytest`) in
# this folder checks them all. Both read the saved file. Tasks are graded apart from each other: skip one and come back. The
# grader uses its own copy of the test cells; editing yours changes nothing. It has more cases, none of them a trick.
#
# Write every kernel yourself: do not call `minisl.kernels`. You may read its `.cu` files, not copy them: their launches differ.
#
# About 3.5 hours, and an hour of reading: sections 1, 3 and 6 to 8 of `notebooks/05_kernels.ipynb`.

# %%
import time

import numpy as np

from minisl.course import Wrong, check, cuda, draw, unchanged

# %% [markdown]
# ## What is given
#
# $S$ $(d_{out}, d_{in})$ is sparse and comes in CSR: three arrays. Row $i$ has the entries $p =$ `starts[i]` $..$
# `starts[i + 1]` (without the last); entry $p$ is the number `values[p]` in column `columns[p]`. `starts` has $d_{out} + 1$
# elements. A row may be empty. `N` is the number of entries, `n` that of tokens, `width` is $d_{in}$ and `out` is $d_{out}$.
#
# `sparse` makes such a matrix, and the dense $S$ beside it. `wrong_products` computes what known mistakes would give, so that
# the tests can name them. `fast_enough` is for the Numba tasks.

# %%
def sparse(rng, out, width, dtype=np.float32, density=0.2):
    """(S, values, columns, starts): a random matrix (out, width) with an empty row and a full one, dense and in CSR."""
    there = rng.random((out, width)) < density
    empty, full = rng.permutation(out)[:2]
    there[empty], there[full] = False, True
    S = (there * rng.uniform(0.5, 2, there.shape) * rng.choice([-1, 1], there.shape)).astype(dtype)
    rows, columns = np.nonzero(S)
    starts = np.searchsorted(rows, np.arange(out + 1))
    return S, S[rows, columns], columns.astype(np.int32), starts.astype(np.int32)


def wrong_products(S, x=None, g=None):
    """{a mistake: x S^T, or g S, with an S as that mistake makes it}"""
    there = S != 0
    number, packed = np.cumsum(there, 1), np.zeros_like(S)
    for row, old in zip(packed, S):
        row[:np.count_nonzero(old)] = old[old != 0]
    wrong = {"the last entry of each row is missing": S * (number < number[:, -1:]),
             "the first entry of each row is missing": S * (number > 1),
             "only the last entry of each row counts": S * (number == number[:, -1:]),
             "only the first entry of each row counts": S * (number == 1),
             "values[p] is not used": there.astype(S.dtype),
             "a sum goes on from one row to the next: start it at 0 for each": np.cumsum(S, 0),
             "columns[p] is not used": packed}
    if x is None:
        return {mistake: g @ matrix for mistake, matrix in wrong.items()}
    y = x @ S.T
    return {mistake: x @ matrix.T for mistake, matrix in wrong.items()} | {
        "a sum goes on from one token to the next: start it at 0 for each": np.cumsum(y, 0),
        "one sum goes on through all rows and tokens: start it at 0 for each": np.cumsum(y).reshape(y.shape)}


def nonsense(got):
    """{what may be the reason: got}, if some of its numbers are none that a sum of a few products can be"""
    got = np.asarray(got)
    if got.dtype.kind != "f" or (np.abs(got) < 1e6).all():
        return {}
    return {"it has numbers that nobody computed. Was the result started at 0? Is an index past an array's end: "
            "columns[p] for x, the row of p for g?": got}


def without_dense(what, call):
    """call(), which raises Wrong where it wants more memory than there is."""
    try:
        return call()
    except MemoryError:
        raise Wrong(f"{what} makes an array as large as the dense S, should use the entries alone") from None


def fast_enough(what, call, products):
    """Raise Wrong unless a call that adds up so many products takes a fifth of a Python loop's time, or less."""
    a, b, total = np.ones(1000), np.ones(1000), 0.0

    def seconds(call):
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    def loop():
        nonlocal total
        for k in range(50_000):
            total += a[k % 1000] * b[k % 1000]

    call()  # compiles
    python = min(seconds(loop) for _ in range(3)) * products / 50_000
    for _ in range(5):
        mine = seconds(call)
        if mine <= python / 5:
            return
    raise Wrong(f"{what} takes {mine:.2g} s for {products:,} products, a loop in Python {python:.2g} s: is it compiled (@njit)?")

# %% [markdown]
# ## Task 1. Two products with one matrix, in Numba (5 points, 25 minutes)
#
# **Given** $S$ in CSR, and rows of $X$ $(n, d_{in})$ or of $G$ $(n, d_{out})$, one for each token.
#
# **Write** `spmm`, 5 to 8 lines: the forward product $Y = X S^\top$; and `spmm_transposed`, 5 to 8 lines: what the backward
# pass needs for the gradient of $X$, $D = G S$, from the same three arrays (nobody sorts $S$ by columns for you):
#
# $$Y_{ti} = \sum_{p = \mathrm{starts}_i}^{\mathrm{starts}_{i+1} - 1} v_p\, X_{t,\, c_p}, \qquad
# D_{tj} = \sum_{p:\; c_p = j} v_p\, G_{t,\, i_p} .$$
#
# | | shape | | shape |
# |---|---|---|---|
# | `x` | `(n, width)` | `g` | `(n, out)` |
# | `values`, `columns` | `(N,)` | `starts` | `(out + 1,)`|
# | `spmm` returns | `(n, out)`, dtype of `x` | `spmm_transposed` returns | `(n, width)`, dtype of `g` |
#
# In formulas $v_p$ is `values[p]`, $c_p$ is `columns[p]`, $i_p$ the row of entry $p$, and all indices count from 0. A sum's
# upper limit belongs to it, the end of `range` does not.
#
# Results are new arrays: `np.zeros((n, out), x.dtype)`, with `out = len(starts) - 1`. The dense $S$ is not formed. Loops are
# fine: Numba compiles them. Do not use SciPy, `cache=True`, or `parallel=True` (threads that meet are task 4; not tested).
#
# Numba does not check indices: one past the end gives garbage or ends the kernel.
# `python -m minisl.course check a4_kernels.ipynb` compiles with bounds checked and names it; in the notebook write
# `@njit(boundscheck=True)` while you look for a mistake.
#
# **Tested:** a small case; random $S$ with empty and full rows, one token and many; float64 and float32; arguments not changed;
# both compiled, that is, at least 5 times as fast as a loop in Python; 300 entries in a huge $S$.
#
# <details><summary>Hint</summary>
#
# The same three loops serve both: tokens, rows, entries of the row. In each, entry $p$ joins row $i$ to column `columns[p]`.
# What is read and what is added to change places.
#
# </details>

# %% task="spmm"
from numba import njit


@njit
def spmm(x, values, columns, starts):
    """Y = X S^T, (n, out)"""
    ### BEGIN SOLUTION
    y = np.zeros((len(x), len(starts) - 1), x.dtype)
    for t in range(len(x)):
        for i in range(len(starts) - 1):
            for p in range(starts[i], starts[i + 1]):
                y[t, i] += values[p] * x[t, columns[p]]
    return y
    ### END SOLUTION


@njit
def spmm_transposed(g, values, columns, starts, width):
    """D = G S, (n, width)"""
    ### BEGIN SOLUTION
    d = np.zeros((len(g), width), g.dtype)
    for t in range(len(g)):
        for row in range(len(starts) - 1):
            for k in range(starts[row], starts[row + 1]):
                d[t, columns[k]] += values[k] * g[t, row]
    return d
    ### END SOLUTION

# %% test="spmm" points=5
rng = draw("spmm")
small = np.array([[0, 2, 0, 0, -1], [0, 0, 0, 0, 0], [3, 0, 0, 4, 5]], np.float64)
csr = np.array([2.0, -1, 3, 4, 5]), np.array([1, 4, 0, 3, 4], np.int32), np.array([0, 2, 2, 5], np.int32)
x, g = rng.standard_normal((2, 5)), rng.standard_normal((2, 3))
by_place = np.array([[2, -1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 3, 4, 5]])
y = spmm(x, *csr)
check("y (3 x 5, row 1 is empty)", y, x @ small.T,
      wrong=nonsense(y) | {"x[t, p] is read, should be x[t, columns[p]]": x @ by_place.T} | wrong_products(small, x))
d = spmm_transposed(g, *csr, 5)
check("d (3 x 5, row 1 is empty)", d, g @ small,
      wrong=nonsense(d) | {"added to d[t, p], should be d[t, columns[p]]": g @ by_place,
                           "added to d[t, row of p], should be d[t, columns[p]]": np.pad(g * small.sum(1), ((0, 0), (0, 2)))}
      | wrong_products(small, g=g))
for n, out, width in ((1, 9, 14), (6, 15, 8), (int(rng.integers(3, 9)), 21, int(rng.integers(24, 40)))):
    S, *csr = sparse(rng, out, width, np.float64)
    x, g = rng.standard_normal((n, width)), rng.standard_normal((n, out))
    before = [array.copy() for array in (x, g, *csr)]
    y = spmm(x, *csr)
    check(f"y (n = {n}, S {out} x {width})", y, x @ S.T, wrong=nonsense(y) | wrong_products(S, x))
    d = spmm_transposed(g, *csr, width)
    check(f"d (n = {n}, S {out} x {width})", d, g @ S, wrong=nonsense(d) | wrong_products(S, g=g))
    for name, array, old in zip(("x", "g", "values", "columns", "starts"), (x, g, *csr), before):
        unchanged(name, array, old)
S, *csr = sparse(rng, 120, 130, np.float64)
x, g = rng.standard_normal((300, 130)), rng.standard_normal((300, 120))
fast_enough("spmm", lambda: spmm(x, *csr), 300 * len(csr[0]))
fast_enough("spmm_transposed", lambda: spmm_transposed(g, *csr, 130), 300 * len(csr[0]))
S, *csr = sparse(rng, 17, 12)
x, g = rng.standard_normal((4, 12), np.float32), rng.standard_normal((4, 17), np.float32)
for name, got, want in (("y", spmm(x, *csr), x @ S.T), ("d", spmm_transposed(g, *csr, 12), g @ S)):
    check(f"{name} in float32", got, want, rtol=1e-5)
    check(f"the type of {name} in float32", str(got.dtype), "float32")
many = 6_000_000
rows, columns = np.sort(rng.integers(0, many, 300)), rng.permutation(many)[:300].astype(np.int32)
csr = rng.standard_normal(300, np.float32), columns, np.searchsorted(rows, np.arange(many + 1)).astype(np.int32)
x = rng.standard_normal((1, many), np.float32)
y = without_dense("spmm", lambda: spmm(x, *csr))
d = without_dense("spmm_transposed", lambda: spmm_transposed(x, *csr, many))
check("y (S 6,000,000 x 6,000,000)", y[0, rows], np.bincount(rows, csr[0] * x[0, columns])[rows].astype(np.float32), rtol=1e-5)
check("d (S 6,000,000 x 6,000,000)", d[0, columns], csr[0] * x[0, rows], rtol=1e-5)
### BEGIN HIDDEN TESTS
for n, out, width in ((2, 4, 33), (int(rng.integers(10, 20)), 31, 5)):
    S, *csr = sparse(rng, out, width, np.float64)
    x, g = rng.standard_normal((n, width)), rng.standard_normal((n, out))
    check(f"y (n = {n}, S {out} x {width})", spmm(x, *csr), x @ S.T, wrong=wrong_products(S, x))
    check(f"d (n = {n}, S {out} x {width})", spmm_transposed(g, *csr, width), g @ S, wrong=wrong_products(S, g=g))
### END HIDDEN TESTS

# %% [markdown]
# ## Task 2. The gradient of the values, in Numba (4 points, 15 minutes)
#
# **Given** $G = \partial L / \partial Y$ $(n, d_{out})$, $X$ $(n, d_{in})$, and where $S$ has entries: `columns` and `starts`.
#
# **Write** `sddmm(g, x, columns, starts)`, 5 to 9 lines: for each entry $p$, in row $i_p$ and column $c_p$,
#
# $$\frac{\partial L}{\partial v_p} = \sum_{t=0}^{n-1} G_{t,\, i_p} X_{t,\, c_p} .$$
#
# The matrix $G^\top X$ is not formed: $N$ sums, not $d_{out} d_{in}$. Which row an entry is in, `starts` knows.
#
# | | shape |
# |---|---|
# | `g`, `x` | `(n, out)`, `(n, width)` |
# | `columns`, `starts` | `(N,)`, `(out + 1,)` |
# | returns | `(N,)`, dtype of `x` |
#
# **Tested:** random supports with empty and full rows, one token and many, float64 and float32; arguments not changed;
# compiled, and 300 entries in a huge $S$, as in task 1.
#
# <details><summary>Hint</summary>
#
# Loop over rows, then over the entries of the row: so each entry meets its row.
#
# </details>

# %% task="sddmm"
from numba import njit


@njit
def sddmm(g, x, columns, starts):
    """dv[p] = sum over t of g[t, row of p] x[t, columns[p]], (N,)"""
    ### BEGIN SOLUTION
    dv = np.zeros(len(columns), x.dtype)
    for i in range(len(starts) - 1):
        for p in range(starts[i], starts[i + 1]):
            for t in range(len(x)):
                dv[p] += g[t, i] * x[t, columns[p]]
    return dv
    ### END SOLUTION

# %% test="sddmm" points=4
rng = draw("sddmm")
for n, out, width in ((7, 26, 13), (1, 12, 7), (int(rng.integers(30, 60)), 20, int(rng.integers(9, 19)))):
    S, _, columns, starts = sparse(rng, out, width, np.float64)
    rows, N = np.nonzero(S)[0], len(columns)
    g, x = rng.standard_normal((n, out)), rng.standard_normal((n, width))
    before, want = (g.copy(), x.copy()), (g.T @ x)[rows, columns]
    dv, late = sddmm(g, x, columns, starts), np.searchsorted(starts, np.arange(N)) - 1
    check(f"dv (n = {n}, S {out} x {width})", dv, want, wrong=nonsense(dv) | {
                 "g[t, columns[p]] is read, should be g[t, row of p]": (g.T @ x)[columns, columns],
                 "the row of p is too small at the first entry of each row (i has starts[i] <= p < starts[i + 1])":
                 (g.T @ x)[late, columns],
                 "the mean over the tokens, should be the sum": want / n,
                 "only the last token counts": g[-1, rows] * x[-1, columns],
                 "only the first token counts": g[0, rows] * x[0, columns],
                 "the first token is missing": want - g[0, rows] * x[0, columns],
                 "the last token is missing": want - g[-1, rows] * x[-1, columns],
                 "G is missing": x.sum(0)[columns], "X is missing": g.sum(0)[rows],
                 "a sum goes on from one entry to the next: start it at 0 for each": np.cumsum(want),
                 "only the first entry of each row is there": want * np.isin(np.arange(N), starts),
                 "the last entry of each row is missing": want * ~np.isin(np.arange(N), starts - 1)})
    unchanged("g", g, before[0])
    unchanged("x", x, before[1])
S, _, columns, starts = sparse(rng, 110, 140, np.float64)
g, x = rng.standard_normal((300, 110)), rng.standard_normal((300, 140))
fast_enough("sddmm", lambda: sddmm(g, x, columns, starts), 300 * len(columns))
S, _, columns, starts = sparse(rng, 14, 19)
g, x = rng.standard_normal((5, 14), np.float32), rng.standard_normal((5, 19), np.float32)
dv = sddmm(g, x, columns, starts)
check("dv in float32", dv, (g.T @ x)[np.nonzero(S)[0], columns], rtol=1e-5)
check("the type of dv in float32", str(dv.dtype), "float32")
many = 6_000_000
rows, columns = np.sort(rng.integers(0, many, 300)), rng.integers(0, many, 300).astype(np.int32)
starts = np.searchsorted(rows, np.arange(many + 1)).astype(np.int32)
g, x = rng.standard_normal((2, 1, many), np.float32)
dv = without_dense("sddmm", lambda: sddmm(g, x, columns, starts))
check("dv (S 6,000,000 x 6,000,000)", dv, g[0, rows] * x[0, columns], rtol=1e-5)
### BEGIN HIDDEN TESTS
for n, out, width in ((2, 33, 4), (int(rng.integers(10, 20)), 5, 31)):
    S, _, columns, starts = sparse(rng, out, width, np.float64)
    g, x = rng.standard_normal((n, out)), rng.standard_normal((n, width))
    check(f"dv (n = {n}, S {out} x {width})", sddmm(g, x, columns, starts), (g.T @ x)[np.nonzero(S)[0], columns])
### END HIDDEN TESTS

# %% [markdown]
# ## CUDA C++ on the emulator
#
# From here on your function returns a kernel's **text**, as a string:
#
# ```python
# def twice_cuda():
#     return r"""
# extern "C" __global__ void twice(float* x, int n) {
#     const int k = blockIdx.x * blockDim.x + threadIdx.x;   // which thread am I?
#     if (k < n) x[k] = 2 * x[k];                            // the last block may be larger than what is left
# }
# """
# ```
#
# The name, the parameters and their order are given in each task, and so is the launch: how many threads in a block, how many
# blocks. Each task has a function `run_...` that launches a text on arrays; call it in cells of your own to try things out.
# What it raises names line, block and thread: `OutOfBounds`, `Race`, `BarrierDivergence`, `Uninitialised`,
# `UndefinedBehaviour` (an index past the end of a `__shared__` array), or what the compiler says. Lines count from the opening
# quotes, whose own is line 1. A kernel that has not ended after 3 seconds is stopped (here; not in `minisl.ladder`). Each launch
# runs three times: threads forward, backward and in random order.
#
# Threads are numbered `threadIdx.y * blockDim.x + threadIdx.x`; 32 in a row are a *warp*, and a thread's place in it its *lane*.
# With a block `(32, 4)`, the lane is `threadIdx.x` and the warp `threadIdx.y`.
#
# Arrays are float32 and int32, row-major: element `[t, j]` of an array `(n, width)` is `x[t * width + j]`. No `#include`, no
# `printf`, no C library but mathematics.
#
# The emulator needs Linux and g++. If they are not there, this cell says so:

# %%
cuda.ready()

# %% [markdown]
# ## Task 3. A thread per output (6 points, 30 minutes)
#
# **Given** the product of task 1, $Y = X S^\top$, and this kernel to fill:
#
# ```c
# extern "C" __global__ void spmm(const float* x, const float* values, const int* columns, const int* starts,
#                                 float* y, int n, int width, int out)
# ```
#
# | | |
# |---|---|
# | `x`, `y` | `(n, width)`, `(n, out)`; `y` holds anything before, and $Y$ after |
# | block | `(16, 8)`: `threadIdx.x` 0 .. 15, `threadIdx.y` 0 .. 7 |
# | grid | `(out / 16, n / 8)`, both rounded up: a thread for each output, and some more at the edges |
#
# **Write** `spmm_cuda()`, which returns the text: 6 to 12 lines of CUDA. Usually `x` counts rows $i$ and `y` tokens $t$.
# Another assignment is allowed if each output is written by exactly one thread:
#
# $$Y_{ti} = \sum_{p = \mathrm{starts}_i}^{\mathrm{starts}_{i+1} - 1} v_p\, X_{t,\, c_p} .$$
#
# **Tested:** sizes that fit the blocks and sizes that do not; empty rows and full ones; `y` filled with numbers before; three
# orders of threads, no fault.
#
# <details><summary>Hint</summary>
#
# Two of the three loops of task 1 have become the thread's place: row `blockIdx.x * blockDim.x + threadIdx.x`, token likewise
# with `y`. A thread with no output must not touch memory.
#
# </details>

# %%
def run_spmm(text, x, values, columns, starts):
    """(Y, counts): the kernel `spmm` of a text, launched on the emulator."""
    (n, width), out = x.shape, len(starts) - 1
    y = np.full((n, out), 7, np.float32)  # anything
    grid = -(-out // 16), -(-n // 8)
    counts = cuda.run(text, "spmm", grid, (16, 8), (x, values, columns, starts, y, n, width, out), y)
    return y, counts


def left_over(got, want):
    """{that elements were not written, and which: what they then are}. For the tests."""
    places = np.argwhere(got == 7).tolist()
    return {f"{len(places)} of {got.size} elements, such as {places[0]}, still hold the 7 from before: no thread wrote them":
            np.where(got == 7, got, want)} if places else {}

# %% task="spmm_cuda"
def spmm_cuda():
    """The text of the kernel `spmm`."""
    ### BEGIN SOLUTION
    return r"""
extern "C" __global__ void spmm(const float* x, const float* values, const int* columns, const int* starts,
                                float* y, int n, int width, int out) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const int t = blockIdx.y * blockDim.y + threadIdx.y;
    if (i >= out || t >= n) return;
    float sum = 0;
    for (int p = starts[i]; p < starts[i + 1]; ++p)
        sum += values[p] * x[t * width + columns[p]];
    y[t * out + i] = sum;
}
"""
    ### END SOLUTION

# %% test="spmm_cuda" points=6
rng, text = draw("spmm_cuda"), spmm_cuda()
for n, out, width in ((16, 32, 24), (13, int(rng.integers(18, 31)), 11)):
    S, *csr = sparse(rng, out, width)
    x = rng.standard_normal((n, width), np.float32)
    y, _ = run_spmm(text, x, *csr)
    want, exchanged = x @ S.T, np.arange(out) < -(-n // 8) * 8
    check(f"Y (n = {n}, S {out} x {width})", y, want, rtol=1e-5, wrong=wrong_products(S, x) | {
        "x counts tokens and y rows, but the launch has x for rows, y for tokens": np.where(exchanged, want, 7),
        "added to what y held before, should replace it": want + 7,
        "nothing was written to y": np.full((n, out), 7),
        "Y is written transposed: [t, i] is y[t * out + i]": want.T.reshape(n, out),
        "X is read transposed: [t, j] is x[t * width + j]": x.reshape(width, n).T @ S.T} | left_over(y, want))
### BEGIN HIDDEN TESTS
for n, out, width in ((1, 3, 40), (int(rng.integers(25, 40)), 7, 5)):
    S, *csr = sparse(rng, out, width)
    x = rng.standard_normal((n, width), np.float32)
    check(f"Y (n = {n}, S {out} x {width})", run_spmm(text, x, *csr)[0], x @ S.T, rtol=1e-5)
### END HIDDEN TESTS

# %% [markdown]
# ## Task 4. Threads that meet (4 points, 15 minutes)
#
# **Given** the other product of task 1, added to what is there: $D \leftarrow D + G S$, and the kernel
#
# ```c
# extern "C" __global__ void scatter(const float* g, const float* values, const int* columns, const int* starts,
#                                    float* d, int n, int width, int out)
# ```
#
# | | |
# |---|---|
# | `g`, `d` | `(n, out)`, `(n, width)`; `d` holds numbers that stay, and $G S$ is added |
# | block, grid | `(16, 8)`, `(out / 16, n / 8)` rounded up: a thread for each $G_{ti}$ |
#
# **Write** `scatter_cuda()`, 6 to 12 lines of CUDA. The thread of row $i$ and token $t$ goes through the entries of its row:
#
# $$D_{t,\, c_p} \mathrel{+}= v_p\, G_{ti}, \qquad p = \mathrm{starts}_i, \dots, \mathrm{starts}_{i+1} - 1 .$$
#
# Rows share columns, so threads share elements of $D$. A plain `+=` reads, adds and writes: between the read and the write
# another thread may have written, and its sum is lost. The emulator calls that a `Race`, whether or not it happens this time.
#
# **Tested:** as task 3, with numbers in `d` before.
#
# <details><summary>Hint</summary>
#
# CUDA has one function that adds to memory without letting anybody in between: `atomicAdd(address, value)`. The address of
# `d[k]` is `&d[k]`.
#
# </details>

# %%
def run_scatter(text, g, d, values, columns, starts):
    """(D + G S, counts): the kernel `scatter` of a text, launched on the emulator. d itself stays as it is."""
    (n, out), d = g.shape, d.copy()
    grid = -(-out // 16), -(-n // 8)
    counts = cuda.run(text, "scatter", grid, (16, 8), (g, values, columns, starts, d, n, d.shape[1], out), d)
    return d, counts

# %% task="scatter_cuda"
def scatter_cuda():
    """The text of the kernel `scatter`."""
    ### BEGIN SOLUTION
    return r"""
extern "C" __global__ void scatter(const float* g, const float* values, const int* columns, const int* starts,
                                   float* d, int n, int width, int out) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const int t = blockIdx.y * blockDim.y + threadIdx.y;
    if (i >= out || t >= n) return;
    for (int p = starts[i]; p < starts[i + 1]; ++p)
        atomicAdd(&d[t * width + columns[p]], values[p] * g[t * out + i]);
}
"""
    ### END SOLUTION

# %% test="scatter_cuda" points=4
rng, text = draw("scatter_cuda"), scatter_cuda()
for n, out, width in ((16, 32, 20), (int(rng.integers(9, 16)), 27, 37)):
    S, *csr = sparse(rng, out, width)
    g, d = rng.standard_normal((n, out), np.float32), rng.standard_normal((n, width), np.float32)
    after, _ = run_scatter(text, g, d, *csr)
    eight = np.where(np.arange(n)[:, None] < 8, -(-n // 8), 0)
    check(f"D (n = {n}, S {out} x {width})", after, d + g @ S, rtol=1e-5,
          wrong={mistake: d + product for mistake, product in wrong_products(S, g=g).items()} | {
              "nothing was added to d": d, "d is replaced, should be added to": g @ S,
              "subtracted, should be added": d - g @ S,
              "blockIdx.x is not used: each block has the first 16 rows": d + -(-out // 16) * (g[:, :16] @ S[:16]),
              "blockIdx.y is not used: each block has the first 8 tokens": d + eight * (g @ S),
              "G is read transposed: [t, i] is g[t * out + i]": d + g.reshape(out, n).T @ S,
              "G is missing": d + S.sum(0)})
### BEGIN HIDDEN TESTS
for n, out, width in ((1, 40, 3), (int(rng.integers(17, 24)), 5, 9)):
    S, *csr = sparse(rng, out, width)
    g, d = rng.standard_normal((n, out), np.float32), rng.standard_normal((n, width), np.float32)
    check(f"D (n = {n}, S {out} x {width})", run_scatter(text, g, d, *csr)[0], d + g @ S, rtol=1e-5)
### END HIDDEN TESTS

# %% [markdown]
# ## Task 5. A sum that a block shares (6 points, 35 minutes)
#
# **Given** the sums of task 2, for few entries and many tokens. Each entry has a *block* of 64 threads, which share out the
# tokens. Here every entry comes with its row:
#
# ```c
# extern "C" __global__ void sddmm(const float* g, const float* x, const int* rows, const int* columns,
#                                  float* dv, int n, int width, int out, int entries)
# ```
#
# | | |
# |---|---|
# | `g`, `x` | `(n, out)`, `(n, width)` |
# | `rows`, `columns`, `dv` | `(entries,)`; `dv` holds anything before |
# | block, grid | `64`, `entries`: block $k$ computes `dv[k]` |
#
# **Write** `sddmm_cuda()`, 12 to 20 lines of CUDA. Thread $s$ adds up the tokens $s$, $s + 64$, $s + 128$, ... Then the 64 sums
# become one, in shared memory (`__shared__ float part[64];`), for example in pairs:
#
# $$\mathrm{part}_s \mathrel{+}= \mathrm{part}_{s + h}, \quad s < h, \qquad h = 32, 16, 8, 4, 2, 1, \qquad
# \frac{\partial L}{\partial v_k} = \mathrm{part}_0 .$$
#
# What a thread wrote to shared memory, another may read only after a barrier, `__syncthreads()`. **All** threads of the block
# must come to each barrier, those without a token too.
#
# **Tested:** fewer tokens than threads, just as many, more, and (grader) one; that no thread reads more than its share of the
# tokens (a thread makes at most $6 \lceil n / 64 \rceil + 8$ accesses to global memory); three orders of threads, no
# fault.
#
# <details><summary>Hint</summary>
#
# Put the barrier after the `if`, not into it: `if (s < h) ...; __syncthreads();`. A thread without a token has the sum 0, which
# it must write. You need a barrier before the first pair, too.
#
# </details>

# %%
def run_sddmm(text, g, x, rows, columns, grid=None, block=(64,)):
    """(dv, counts): the kernel `sddmm` of a text, launched on the emulator."""
    (n, out), width, entries = g.shape, x.shape[1], len(rows)
    dv = np.full(entries, 7, np.float32)  # anything
    counts = cuda.run(text, "sddmm", grid or (entries,), block, (g, x, rows, columns, dv, n, width, out, entries), dv)
    return dv, counts


def support(rng, out, width, entries):
    """(rows, columns) of so many random places, row by row."""
    rows, columns = np.divmod(np.sort(rng.permutation(out * width)[:entries]), width)
    return rows.astype(np.int32), columns.astype(np.int32)

# %% task="sddmm_cuda"
def sddmm_cuda():
    """The text of the kernel `sddmm`, for a block of 64 threads per entry."""
    ### BEGIN SOLUTION
    return r"""
extern "C" __global__ void sddmm(const float* g, const float* x, const int* rows, const int* columns,
                                 float* dv, int n, int width, int out, int entries) {
    __shared__ float part[64];
    const int k = blockIdx.x, s = threadIdx.x;
    float sum = 0;
    for (int t = s; t < n; t += 64)
        sum += g[t * out + rows[k]] * x[t * width + columns[k]];
    part[s] = sum;
    __syncthreads();  // all sums are there
    for (int h = 32; h > 0; h /= 2) {
        if (s < h) part[s] += part[s + h];
        __syncthreads();  // all pairs are done
    }
    if (s == 0) dv[k] = part[0];
}
"""
    ### END SOLUTION

# %% test="sddmm_cuda" points=6
rng, text = draw("sddmm_cuda"), sddmm_cuda()
for n in (64, 23, int(rng.integers(130, 190))):
    rows, columns = support(rng, 12, 9, 10)
    g, x = rng.standard_normal((n, 12), np.float32), rng.standard_normal((n, 9), np.float32)
    dv, counts = run_sddmm(text, g, x, rows, columns)
    each = g[:, rows] * x[:, columns]  # (n, entries)
    padded = np.zeros((-(-n // 64) * 64, len(rows)), np.float32)
    padded[:n] = each
    sums = padded.reshape(-1, 64, len(rows)).sum(0)  # of each thread
    check(f"dv (n = {n})", dv, each.sum(0), rtol=1e-5,
          wrong={"nothing was written to dv": np.full(len(rows), 7), "only thread 0's sum is there": sums[0],
                 "only the first 64 tokens count": each[:64].sum(0), "the mean over the tokens, should be the sum": each.mean(0),
                 "added to what dv held before, should replace it": each.sum(0) + 7,
                 "the last step of the pairs (h = 1) is missing": sums[::2].sum(0),
                 "the first step of the pairs (h = 32) is missing": sums[:32].sum(0),
                 "only the sums of the first warp are there": sums[:32].sum(0),
                 "the sum of thread 0 is missing": sums[1:].sum(0), "the sum of the last thread is missing": sums[:-1].sum(0)}
          | left_over(dv, each.sum(0)))
    share = 6 * -(-n // 64) + 8
    if counts.busiest > share:
        raise Wrong(f"dv (n = {n}): a thread makes {counts.busiest} accesses to global memory, should make at most {share}: "
                    "share out the tokens among the 64 threads")
### BEGIN HIDDEN TESTS
for n in (1, 65):
    rows, columns = support(rng, 5, 14, 7)
    g, x = rng.standard_normal((n, 5), np.float32), rng.standard_normal((n, 14), np.float32)
    check(f"dv (n = {n})", run_sddmm(text, g, x, rows, columns)[0], (g.T @ x)[rows, columns], rtol=1e-5)
### END HIDDEN TESTS

# %% [markdown]
# ## Task 6. Neighbours read neighbours (5 points, 30 minutes)
#
# Memory answers in **sectors** of 32 bytes, 8 floats. When a warp executes a load, its 32 lanes make one request; each sector
# that any lane touches moves whole, once. In task 5 the lanes of a warp are tokens. Their words of `g` lie `out`
# floats apart: 32 sectors for 32 words, and as many of `x`. Per entry and token that makes
#
# $$2 \text{ sectors} = 64 \text{ bytes, of which 8 are used.}$$
#
# **Given** the same kernel, with another launch. The lanes of a warp (`threadIdx.x`) are now 32 entries that lie side by side
# in `rows` and `columns`, sorted by row, then by column:
#
# | | |
# |---|---|
# | block | `(32, 4)`: 4 warps |
# | grid | `entries / 32`, rounded up: a block computes 32 entries of `dv` |
#
# **Write** `sddmm_coalesced_cuda()`, 12 to 20 lines of CUDA, the same sums:
#
# $$\frac{\partial L}{\partial v_k} = \sum_{t=0}^{n-1} G_{t,\, i_k} X_{t,\, c_k} .$$
#
# The 4 warps share out the tokens (any way you like), and their 4 sums per entry become one.
#
# **Tested:** numbers of entries and tokens that fit and that do not; three orders of threads, no fault. And for `out` and
# `width` of about 50, 375 entries and $n = 32$ tokens: no thread makes more than 48 accesses to global memory, and the launch
# moves at most a third of task 5's sectors:
#
# $$\text{sectors moved, of all arrays} \;\le\; 0.67 \cdot \text{entries} \cdot n .$$
#
# <details><summary>Hint</summary>
#
# Which entry a thread has depends on `threadIdx.x`, which tokens on `threadIdx.y`. So `rows[k]` and `columns[k]` do not change
# in the loop over tokens: read them before it. Four sums of an entry are in four warps; shared memory and one barrier bring
# them together. A thread past the last entry stays for the barrier.
#
# </details>

# %%
def run_sddmm_coalesced(text, g, x, rows, columns):
    """(dv, counts): the kernel `sddmm` of a text, launched with a block of 4 warps for 32 entries."""
    return run_sddmm(text, g, x, rows, columns, (-(-len(rows) // 32),), (32, 4))

# %% task="sddmm_coalesced_cuda"
def sddmm_coalesced_cuda():
    """The text of the kernel `sddmm`, for a block of 4 warps per 32 entries."""
    ### BEGIN SOLUTION
    return r"""
extern "C" __global__ void sddmm(const float* g, const float* x, const int* rows, const int* columns,
                                 float* dv, int n, int width, int out, int entries) {
    __shared__ float part[4][32];
    const int k = blockIdx.x * 32 + threadIdx.x, w = threadIdx.y;
    float sum = 0;
    if (k < entries) {
        const int i = rows[k], j = columns[k];
        for (int t = w; t < n; t += 4)
            sum += g[t * out + i] * x[t * width + j];
    }
    part[w][threadIdx.x] = sum;
    __syncthreads();
    if (w == 0 && k < entries)
        dv[k] = part[0][threadIdx.x] + part[1][threadIdx.x] + part[2][threadIdx.x] + part[3][threadIdx.x];
}
"""
    ### END SOLUTION

# %% test="sddmm_coalesced_cuda" points=5
rng, text = draw("sddmm_coalesced_cuda"), sddmm_coalesced_cuda()
for n, out, width, entries in ((16, 14, 10, 64), (int(rng.integers(5, 8)), 9, 17, int(rng.integers(33, 60))),
                               (32, *(int(side) for side in rng.integers(46, 54, 2)), 375)):
    rows, columns = support(rng, out, width, entries)
    g, x = rng.standard_normal((n, out), np.float32), rng.standard_normal((n, width), np.float32)
    what = f"dv (n = {n}, {entries} entries)"
    dv, counts = run_sddmm_coalesced(text, g, x, rows, columns)
    each = g[:, rows] * x[:, columns]
    warps, block = [each[w::4].sum(0) for w in range(4)], np.arange(entries) // 32
    check(what, dv, each.sum(0), rtol=1e-5,
          wrong={"nothing was written to dv": np.full(entries, 7), "only the first warp's tokens are there": warps[0],
                 "the tokens of the first warp are missing": each.sum(0) - warps[0],
                 "the tokens of the last warp are missing": each.sum(0) - warps[3],
                 "only the first 4 tokens count": each[:4].sum(0), "4 times too much: each warp sums all tokens": 4 * each.sum(0),
                 "the mean over the tokens, should be the sum": each.mean(0),
                 "added to what dv held before, should replace it": each.sum(0) + 7,
                 "only the first block's 32 entries are there": np.where(block == 0, each.sum(0), 7)}
          | left_over(dv, each.sum(0)))
cuda.at_most(0.67, counts, entries * n, "per entry and token")
if counts.busiest > 48:
    raise Wrong(f"{what}: a thread makes {counts.busiest} accesses to global memory, should make at most 48: share out the "
                "tokens among the 4 warps")
### BEGIN HIDDEN TESTS
for n, entries in ((1, 5), (3, 97)):
    rows, columns = support(rng, 13, 21, entries)
    g, x = rng.standard_normal((n, 13), np.float32), rng.standard_normal((n, 21), np.float32)
    dv, _ = run_sddmm_coalesced(text, g, x, rows, columns)
    check(f"dv (n = {n}, {entries} entries)", dv, (g.T @ x)[rows, columns], rtol=1e-5)
### END HIDDEN TESTS

# %% [markdown]
# ## Task 7. Read once, use often (6 points, 50 minutes)
#
# In task 3 a warp's lanes have different rows (and two tokens), whose entries lie far apart; each lane fetches a sector for
# `values[p]` and one for `columns[p]`, and `x` is read again by every row. For the sizes tested below that is about 1.7 sectors
# per entry and token, 55 bytes. How few would do?
#
# **Given** the kernel of task 3, $Y = X S^\top$, with another launch: a block computes *all* rows for 32 tokens. `width` is at
# most 128, so their part of $X$ fits into shared memory.
#
# ```c
# extern "C" __global__ void spmm(const float* x, const float* values, const int* columns, const int* starts,
#                                 float* y, int n, int width, int out)
# ```
#
# | | |
# |---|---|
# | block | `(32, 4)`: 4 warps |
# | grid | `n / 32`, rounded up: block $b$ has the tokens $32 b, \dots, 32 b + 31$, as far as there are any |
# | shared memory | at most 48 KB a block; `__shared__ float tile[32][129];` is 16.5 KB |
#
# **Write** `spmm_coalesced_cuda()`, 15 to 25 lines of CUDA. First the 128 threads copy the 32 rows of $X$ into shared memory,
# lanes side by side; those rows lie one after the other, so it is one piece of memory. Then, with a lane per token, every lane
# of a warp wants the *same* entry at the same time: one sector for all. A warp takes every fourth row of $S$. For
# lane $l = 0, \dots, 31$ of block $b$:
#
# $$Y_{32 b + l,\, i} = \sum_{p = \mathrm{starts}_i}^{\mathrm{starts}_{i+1} - 1} v_p\, \mathrm{tile}_{l,\, c_p} .$$
#
# **Tested:** numbers of tokens that fit and that do not; (grader) `width` from 1 to 128; `y` filled before; three orders of
# threads, no fault; and for 64 tokens, `out` about 24, `width` about 120 and a density of 0.1
#
# $$\text{sectors moved, of all arrays} \;\le\; 0.3 \cdot N n .$$
#
# <details><summary>Hint</summary>
#
# Number the threads: `const int s = threadIdx.y * 32 + threadIdx.x;`. Word `q` of the piece, `q = s, s + 128, ...`, is column
# `q % width` of token `q / width`. The last block has fewer tokens: do not copy what is not there, and do not leave before the
# barrier.
#
# </details>

# %%
def run_spmm_coalesced(text, x, values, columns, starts):
    """(Y, counts): the kernel `spmm` of a text, launched with a block of 4 warps for 32 tokens."""
    (n, width), out = x.shape, len(starts) - 1
    y = np.full((n, out), 7, np.float32)  # anything
    counts = cuda.run(text, "spmm", (-(-n // 32),), (32, 4), (x, values, columns, starts, y, n, width, out), y)
    return y, counts

# %% task="spmm_coalesced_cuda"
def spmm_coalesced_cuda():
    """The text of the kernel `spmm`, for a block of 4 warps per 32 tokens."""
    ### BEGIN SOLUTION
    return r"""
extern "C" __global__ void spmm(const float* x, const float* values, const int* columns, const int* starts,
                                float* y, int n, int width, int out) {
    __shared__ float tile[32][129];
    const int first = blockIdx.x * 32, lane = threadIdx.x, s = threadIdx.y * 32 + lane;
    const int tokens = min(32, n - first);
    for (int q = s; q < tokens * width; q += 128)
        tile[q / width][q % width] = x[first * width + q];
    __syncthreads();
    if (lane >= tokens) return;
    for (int i = threadIdx.y; i < out; i += 4) {
        const int end = starts[i + 1];
        float sum = 0;
        for (int p = starts[i]; p < end; ++p)
            sum += values[p] * tile[lane][columns[p]];
        y[(first + lane) * out + i] = sum;
    }
}
"""
    ### END SOLUTION

# %% test="spmm_coalesced_cuda" points=6
rng, text = draw("spmm_coalesced_cuda"), spmm_coalesced_cuda()
for n, out, width in ((32, 12, 16), (int(rng.integers(35, 60)), 9, 13),
                      (64, int(rng.integers(22, 27)), int(rng.integers(114, 126)))):
    S, *csr = sparse(rng, out, width, density=0.1 if width > 100 else 0.2)
    x = rng.standard_normal((n, width), np.float32)
    y, counts = run_spmm_coalesced(text, x, *csr)
    want, row, token = x @ S.T, np.arange(out), np.arange(n)[:, None]
    check(f"Y (n = {n}, S {out} x {width})", y, want, rtol=1e-5, wrong=wrong_products(S, x) | {
        "added to what y held before, should replace it": want + 7, "nothing was written to y": np.full((n, out), 7),
        "only the rows 0, 4, 8, ... are written": np.where(row % 4 == 0, want, 7),
        "only the rows 0, 1, 2 and 3 are written": np.where(row < 4, want, 7),
        "only the first block's 32 tokens are written": np.where(token < 32, want, 7),
        "all blocks read the first 32 tokens": want[token[:, 0] % 32],
        "a sum goes on from one of a warp's rows to the next: start it at 0 for each":
        np.stack([want[:, i % 4:i + 1:4].sum(1) for i in range(out)], 1),
        "Y is written transposed: [t, i] is y[t * out + i]": want.T.reshape(n, out)} | left_over(y, want))
cuda.at_most(0.3, counts, n * len(csr[0]), "per entry and token")
### BEGIN HIDDEN TESTS
for n, out, width in ((1, 6, 128), (33, 5, 1)):
    S, *csr = sparse(rng, out, width)
    x = rng.standard_normal((n, width), np.float32)
    check(f"Y (n = {n}, S {out} x {width})", run_spmm_coalesced(text, x, *csr)[0], x @ S.T, rtol=1e-5)
### END HIDDEN TESTS

# %% [markdown]
# ## On a GPU (optional, no points)
#
# The emulator counts and does not know time. If you have an NVIDIA GPU and the extra `gpu`, let it say what the sectors were
# worth. In a cell of your own, after tasks 3 and 7, call `compare(spmm_cuda(), spmm_coalesced_cuda())`. It runs both kernels
# with 64 thousand tokens and prints microseconds, and how many bytes a second the entries, `x` and `y` would be if each moved
# once. Without a GPU it prints one line.
#
# Is the second faster by as much as its sectors are fewer? What else could count: how many blocks there are, the L2 cache, the
# banks of shared memory?

# %%
def compare(first, second, n=65536, out=128, width=128):
    """Time the kernels of tasks 3 and 7 on a GPU."""
    S, *csr = sparse(np.random.default_rng(0), out, width)
    x = np.random.default_rng(1).standard_normal((n, width), np.float32)
    for name, text, grid, block in (("task 3", first, (-(-out // 16), -(-n // 8)), (16, 8)),
                                    ("task 7", second, (-(-n // 32),), (32, 4))):
        y = np.zeros((n, out), np.float32)
        took = cuda.on_gpu(text, "spmm", grid, block, (x, *csr, y, n, width, out))
        if took is None:
            return
        check(f"Y of {name}", y, x @ S.T, rtol=1e-4)
        print(f"{name}: {took:8.1f} microseconds, {(x.nbytes + y.nbytes + 8 * len(csr[0])) / took / 1000:7.1f} GB/s")
