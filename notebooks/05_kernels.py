# %% [markdown]
# # From three loops to a tuned kernel
#
# Two products make SLTrain's sparse part: $X S^\top$ on the way forward, and on the way back the gradient of the values of $S$.
# As Python loops they are three lines each, and useless. This notebook turns the same three lines into kernels: first for a CPU,
# then in CUDA for a GPU that you need not have. At each step the result stays the same, and we say what has changed in *where the
# numbers come from*, since the arithmetic never changes.
#
# After this notebook you can
#
# - write SpMM and SDDMM as loops, in NumPy and in Numba, and name the two NumPy mistakes that give wrong sums without a word
# - count the bytes an algorithm moves, from which level of memory, and draw the roof that they put over its speed
# - say how threads must share out the work so that the result's bits do not depend on how many there are
# - count the sectors and bank cycles of a CUDA kernel by hand, see them in a picture, and find a race by name and line
# - put any of these kernels behind one function call, and check that they agree
#
# You need to know: what a matrix product is, NumPy's indexing, and the SLTrain layer ([03](03_sltrain.ipynb)). About an hour.

# %%
import inspect
import io
import itertools
import timeit

import numpy as np

from minisl import kernels, parallel
from minisl.kernels import Support
from minisl.plot import PALETTE, notebook_style, plain_log

plt = notebook_style()

# %% [markdown]
# ## 1. The two products
#
# A layer of SLTrain has $W = s B A + S$ with $s = \alpha / r$, and $Y = X W^\top$. Rows of $X$ $(n, d_{in})$ are tokens. $S$
# $(d_{out}, d_{in})$ has $N$ entries; entry $k$ is the number $v_k$ in row $i_k$, column $j_k$. Its part of $Y$ is
#
# $$Y_{t i} = \sum_{k:\, i_k = i} v_k\, X_{t j_k} \qquad \text{(SpMM: a sparse matrix times a dense one).}$$
#
# The entry $v_k$ occurs in $Y_{t i_k}$ for every token $t$, there with the factor $X_{t j_k}$. With $G = \partial L / \partial Y$
# $(n, d_{out})$ the chain rule sums over these places:
#
# $$\frac{\partial L}{\partial v_k} = \sum_{t=1}^{n} G_{t i_k} X_{t j_k}
# \qquad \text{(SDDMM: a dense product, sampled where } S \text{ has entries).}$$
#
# That is the matrix $G^\top X$ at $N$ of its $d_{out} d_{in}$ positions. The third product, $\partial L / \partial X = G S$, is
# SpMM again with rows and columns exchanged. Each of the three takes one multiplication and one addition per entry and token.

# %%
rng = np.random.default_rng(0)
n, d_in, d_out, density = 2048, 512, 512, 0.03
index = np.sort(rng.permutation(d_out * d_in)[:int(density * d_out * d_in)])
rows, cols = np.divmod(index, d_in)
N = len(index)
values = rng.standard_normal(N, np.float32)
x, dy = rng.standard_normal((n, d_in), np.float32), rng.standard_normal((n, d_out), np.float32)
support = Support(index, (d_out, d_in))
print(f"{N:,} entries; SpMM: {2 * n * N:,} operations, the dense product: {2 * n * d_in * d_out:,}")

# %% [markdown]
# A square matrix of width 512, density 0.03 as in the paper, and 2,048 tokens. The sparse product does 3 % of the dense one's
# operations. The definitions, as loops:

# %%
def spmm_loops(x):
    y = np.zeros((len(x), d_out), x.dtype)
    for t in range(len(x)):
        for k in range(N):
            y[t, rows[k]] += values[k] * x[t, cols[k]]
    return y


def sddmm_loops(dy, x):
    dvalues = np.zeros(N, x.dtype)
    for k in range(N):
        for t in range(len(x)):
            dvalues[k] += dy[t, rows[k]] * x[t, cols[k]]
    return dvalues


# %% [markdown]
# The judge for all that follows is the dense computation, which knows nothing of sparse formats. Two tokens are enough for the
# loops: Python takes its time.

# %%
S = np.zeros((d_out, d_in), np.float32)
S[rows, cols] = values
Y, dV = x @ S.T, (dy.T @ x)[rows, cols]

near = {"rtol": 1e-4, "atol": 1e-3}  # float32, sums of up to 2,048 products in another order
np.testing.assert_allclose(spmm_loops(x[:2]), Y[:2], **near)
np.testing.assert_allclose(sddmm_loops(dy[:2], x[:2]), (dy[:2].T @ x[:2])[rows, cols], **near)
print("both loops agree with the dense product")

# %% [markdown]
# Times differ between machines, and in a notebook even between runs. So we print them as nanoseconds per entry and token, which
# makes 2 tokens and 2,048 comparable, and beside it how many times faster a step is than the one before. Read the second column.

# %% tags=["timing"]
took = {}


def seconds(call, least=0.15):
    """The best of three calls or more: others use this machine too, and can only make a call slower."""
    times = timeit.repeat(call, number=1, repeat=3)
    while sum(times) < least:
        times += timeit.repeat(call, number=1, repeat=3)
    return min(times)


def timed(name, call, tokens, product="SpMM"):
    """Keep and print the time of a call per entry and token."""
    call()  # compiles what there is to compile
    ns = seconds(call) / tokens / N * 1e9
    before = [v for (p, _), v in took.items() if p == product][-1:]
    took[product, name] = ns
    print(f"{product:6}{name:44}{ns:10.3f} ns" + (f"{before[0] / ns:8.1f} times faster" if before else ""))


timed("Python loops", lambda: spmm_loops(x[:2]), 2)
timed("Python loops", lambda: sddmm_loops(dy[:2], x[:2]), 2, "SDDMM")

# %% [markdown]
# ## 2. NumPy: gather, then add up
#
# NumPy has no word for "sum where". It can *gather*, `x[:, cols]` $(n, N)$, multiply all at once, and then has to add those
# products that belong to one row. The obvious line is wrong:

# %%
few = x[:64]
products = values * few[:, cols]  # (64, N)
wrong = np.zeros((64, d_out), np.float32)
wrong[:, rows] += products
print(f"right: {np.isclose(wrong, Y[:64], atol=1e-4).mean():.0%} of the outputs")

# %% [markdown]
# `a[i] += b` reads all `a[i]`, adds, and writes all back. Where `i` repeats, each writes its own sum and the last one stays: the
# others are lost. They are lost as in a race, although only one thread runs. Two ways are right:
#
# 1. `np.add.at` adds one after the other, for indices in any order.
# 2. Entries sorted by row form segments; `np.add.reduceat` sums each. Row $i$ is `starts[i]` .. `starts[i + 1]`, which is the CSR
#    format (compressed sparse rows).
#
# The second has a trap of its own. Of an *empty* row `reduceat` returns not 0 but the element at that place, the first of the row
# that follows:

# %%
print(np.add.reduceat(np.array([1.0, 2.0, 4.0]), [0, 2, 2]), "but row 1, from 2 to 2, is empty and sums to 0")


# %%
def spmm_add_at(x):
    y = np.zeros((len(x), d_out), x.dtype)
    np.add.at(y, (slice(None), rows), values * x[:, cols])
    return y


starts = np.searchsorted(rows, np.arange(d_out + 1))
filled = starts[:-1] < starts[1:]


def spmm_segments(x):
    y = np.zeros((len(x), d_out), x.dtype)
    y[:, filled] = np.add.reduceat(values * x[:, cols], starts[:-1][filled], axis=1)
    return y


def sddmm_gather(dy, x):
    return np.einsum("tk,tk->k", dy[:, rows], x[:, cols])


for spmm in (spmm_add_at, spmm_segments):
    np.testing.assert_allclose(spmm(few), Y[:64], **near)
np.testing.assert_allclose(sddmm_gather(dy, x), dV, **near)
print(f"the products of all tokens at once: {4 * n * N / 1e6:.0f} MB, x itself: {x.nbytes / 1e6:.1f} MB")

# %% tags=["timing"]
timed("NumPy, add.at", lambda: spmm_add_at(x[:256]), 256)
timed("NumPy, segments", lambda: spmm_segments(x[:256]), 256)
timed("NumPy, gather and einsum", lambda: sddmm_gather(dy[:256], x[:256]), 256, "SDDMM")

# %% [markdown]
# A great deal faster, and still far from what the machine can do: each product is written to memory and read again, to be used
# for a single addition. The package's NumPy backend therefore gives SpMM to SciPy (loops in C, no products in memory), and does
# SDDMM in slices.
#
# ## 3. Numba, one thread: where do the numbers come from?
#
# Numba compiles Python loops to machine code. We have CSR, so each output is a sum that lives in a register:

# %%
from numba import njit

columns, starts = cols.astype(np.int32), starts.astype(np.int32)


@njit
def spmm_rows(x, values, columns, starts):
    y = np.empty((len(x), len(starts) - 1), x.dtype)
    for t in range(len(x)):
        for i in range(len(starts) - 1):
            total = x.dtype.type(0)
            for k in range(starts[i], starts[i + 1]):
                total += values[k] * x[t, columns[k]]
            y[t, i] = total
    return y


csr = values, columns, starts
np.testing.assert_allclose(spmm_rows(x, *csr), Y, **near)

# %% [markdown]
# A core multiplies a whole vector of neighbouring numbers in one instruction, if they *are* neighbours. `x[t, columns[k]]` jumps
# about, so the compiler takes them one at a time, and each addition waits for the one before.
#
# **Turn the tokens.** In $X^\top$ $(d_{in}, n)$ all tokens of a feature are neighbours, and an entry is one number times a row:
# $Y^\top_{i_k} \mathrel{+}= v_k X^\top_{j_k}$. No gather is left in the inner loop.

# %%
@njit
def spmm_turned(xt, values, columns, starts):
    yt = np.zeros((len(starts) - 1, xt.shape[1]), xt.dtype)
    for i in range(len(starts) - 1):
        for k in range(starts[i], starts[i + 1]):
            for t in range(xt.shape[1]):
                yt[i, t] += values[k] * xt[columns[k], t]
    return yt


xt = np.ascontiguousarray(x.T)
np.testing.assert_allclose(spmm_turned(xt, *csr).T, Y, **near)

# %% [markdown]
# But now each entry reads 8 KB of $X^\top$, reads and writes as much of $Y^\top$, and the next entry wants other rows. Together
# the arrays have 8 MB, which fit no core's own cache. What was won in the arithmetic units is lost on the way to them.
#
# **A tile at a time.** 64 tokens of $X$, turned, are a tile of $512 \times 64$ numbers. All entries use it before it is left. The
# 64 sums of a row are small enough to stay nearest to the core.

# %%
@njit
def spmm_tiles(x, values, columns, starts, tile=64):
    y = np.empty((len(x), len(starts) - 1), x.dtype)
    xt, total = np.empty((x.shape[1], tile), x.dtype), np.empty(tile, x.dtype)
    for first in range(0, len(x), tile):
        here = min(tile, len(x) - first)
        for t in range(here):
            for j in range(x.shape[1]):
                xt[j, t] = x[first + t, j]
        for i in range(len(starts) - 1):
            total[:] = 0
            for k in range(starts[i], starts[i + 1]):
                v, j = values[k], columns[k]
                for t in range(tile):
                    total[t] += v * xt[j, t]
            for t in range(here):
                y[first + t, i] = total[t]
    return y


for tile in (16, 64, 100):  # 100 does not divide 2,048
    np.testing.assert_allclose(spmm_tiles(x, *csr, tile), Y, **near)

# %% [markdown]
# **Keep the sums in registers.** The compiler does not know that `total` and `xt` do not overlap, so it stores each sum and loads
# it again. The package makes a vector register a value that a Numba kernel can hold (`minisl/kernels/cpu/simd.py`). With AVX-512
# a register holds 16 floats, and 64 sums are four of them. The tile is turned 16 x 16 numbers at a time, within registers.
# (`splat` fills a register with one number; `fma` multiplies and adds in one instruction.)

# %%
from minisl.kernels.cpu import sparse

print(inspect.getsource(sparse.spmm_tile.py_func))


# %%
def spmm_registers(x):
    y = np.zeros((len(x), d_out), x.dtype)
    scratch = sparse.scratch(d_in, x.dtype), sparse.scratch(d_out, x.dtype)  # the two tiles, turned
    sparse.spmm_add(x, *csr, 0, len(x), *scratch, y)
    return y


np.testing.assert_allclose(spmm_registers(x), Y, **near)

# %% [markdown]
# Before the clock, the count. What does an entry cost for one token, and how much memory do the loops come back to again and
# again?

# %%
tile_kb = 4 * 64 * d_in / 1024
counts = {  # per entry and token: bytes of x, of sums, of the entry (a value and a column); KB that are used over and over
    "gather, then segments": (4, 16, 0, 4 * n * N / 1024),  # gathered x is written and read, and so are the products
    "rows": (4, 0, 8, 8 * N / 1024),
    "turned": (4, 8, 8 / n, 4 * n * (d_in + d_out) / 1024),
    "tiles": (4, 8, 8 / 64, tile_kb),
    "registers": (4, 0, 8 / 64, tile_kb),
}
print(f"{'':24}{'x':>6}{'sums':>6}{'entry':>8}{'bytes':>8}{'KB in use':>12}")
for name, (of_x, of_sums, of_entry, kb) in counts.items():
    print(f"{name:24}{of_x:6}{of_sums:6}{of_entry:8.3f}{of_x + of_sums + of_entry:8.3f}{kb:12,.0f}")

# %% [markdown]
# The operations are 2 in every line. What changes is the bytes, from 20 down to 4.125, and where they come from: the last column
# must fit a cache. A core of a laptop has 32 to 48 KB of L1 and often 512 KB to 2 MB of L2 (`lscpu` knows); 128 KB fit the
# second.

# %% tags=["timing"]
timed("Numba, rows", lambda: spmm_rows(x, *csr), n)
timed("Numba, turned (x given as its transpose)", lambda: spmm_turned(xt, *csr), n)
timed("Numba, tiles", lambda: spmm_tiles(x, *csr), n)
timed("vectors in registers", lambda: spmm_registers(x), n)
with parallel.using_threads(1):
    timed("kernels.spmm, one thread", lambda: kernels.spmm(x, values, support), n)

# %% [markdown]
# Look at three things. The turned layout alone wins little over rows, or nothing: its memory is too far away. The tile makes it
# pay. And the last step, which changes not one operation, is a large one. (`kernels.spmm` does the same as the line above it.)
#
# ### SDDMM on the same tiles
#
# $\partial L/\partial v_k$ is a dot product of two rows of the turned tiles. It needs no new idea but one permission. A sum of
# floats in another order is another float, so a compiler may not use 16 partial sums unless it is told that it may: `reassoc`.
# (`contract` allows it to fuse a product and an addition.)

# %%
def sddmm_tiles(dy, x, columns, starts, tile=64):
    dvalues = np.zeros(len(columns), x.dtype)
    xt, dyt = np.zeros((x.shape[1], tile), x.dtype), np.zeros((dy.shape[1], tile), x.dtype)
    for first in range(0, len(x), tile):
        here = min(tile, len(x) - first)
        xt[:, :here], dyt[:, :here] = x[first:first + here].T, dy[first:first + here].T
        xt[:, here:] = 0  # the last tile, if it is not full
        for i in range(len(starts) - 1):
            for k in range(starts[i], starts[i + 1]):
                total, j = x.dtype.type(0), columns[k]
                for t in range(tile):
                    total += dyt[i, t] * xt[j, t]
                dvalues[k] += total
    return dvalues


in_order, any_order = njit(sddmm_tiles), njit(fastmath={"reassoc", "contract"})(sddmm_tiles)
for sddmm in (in_order, any_order):
    np.testing.assert_allclose(sddmm(dy, x, columns, starts), dV, **near)
    np.testing.assert_allclose(sddmm(dy[:100], x[:100], columns, starts), (dy[:100].T @ x[:100])[rows, cols], **near)

# %% tags=["timing"]
timed("Numba, tiles, sums in order", lambda: in_order(dy, x, columns, starts), n, "SDDMM")
timed("Numba, tiles, any order", lambda: any_order(dy, x, columns, starts), n, "SDDMM")
with parallel.using_threads(1):
    timed("kernels.sddmm, one thread", lambda: kernels.sddmm(dy, x, support), n, "SDDMM")

# %% tags=["timing"]
figure, axes = plt.subplots(figsize=(7, 3.8))
steps = [step for product in ("SDDMM", "SpMM") for step in reversed(took.items()) if step[0][0] == product]  # from below
for place, ((product, _), ns) in enumerate(steps):
    axes.barh(place, ns, color=PALETTE[product == "SDDMM"], hatch="//" * (product == "SDDMM"), edgecolor="white")
    axes.annotate(f"{ns:,.0f}" if ns >= 10 else f"{ns:.2g}", (ns, place), xytext=(3, 0), textcoords="offset points", va="center",
                  fontsize=8)
axes.set(yticks=range(len(steps)), yticklabels=[f"{product}: {name}" for (product, name), _ in steps], xscale="log",
         xlim=(0.02, 20000), xlabel="nanoseconds per entry and token, one core", title="The same two operations, step by step")
axes.tick_params(axis="y", labelsize=8)
plt.show()

# %% [markdown]
# ## 4. Threads: pieces by size only
#
# SpMM is easy to share out: every output belongs to one token, so whoever computes it computes the same. SDDMM sums *over*
# tokens. Let each of $c$ threads sum its share, then add the shares. The obvious cut is into $c$ parts. Then the order of the
# additions depends on $c$, and floats notice:

# %%
def shared_out(cuts):
    """SDDMM as the sum of pieces, added in their order."""
    pieces = [any_order(dy[a:b], x[a:b], columns, starts) for a, b in itertools.pairwise(cuts)]
    total = pieces[0].copy()
    for piece in pieces[1:]:
        total += piece
    return total


def by_threads(c):
    return [n * k // c for k in range(c + 1)]


one, two, three = (shared_out(by_threads(c)) for c in (1, 2, 3))
print("a piece a thread: 1 and 2 threads give the same bits:", (one == two).all(), " 2 and 3:", (two == three).all())
np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-3)
assert not (one == two).all()
assert not (two == three).all()

# %% [markdown]
# All are right to rounding. But a training run of a thousand steps that cannot be repeated with another number of cores cannot be
# debugged there, and a test may not ask for equality. So `minisl/parallel.py` cuts by *size*, never by the number of cores:
# whoever is free takes the next piece, the pieces are what they are, and they are added in the order of their tokens, not of who
# finished first.

# %%
from minisl.parallel import each


def sddmm_threads(dy, x):
    found = {}
    each(lambda a, b: found.update({a: any_order(dy[a:b], x[a:b], columns, starts)}), len(x), 512)  # pieces of 512 tokens
    return sum(found[a] for a in sorted(found))  # in order


bits = []
for threads in (1, 2, 3, 5):
    with parallel.using_threads(threads):
        bits.append((sddmm_threads(dy, x), kernels.sddmm(dy, x, support), kernels.spmm(x, values, support)))
for name, same in zip(("ours", "kernels.sddmm", "kernels.spmm"), zip(*bits)):
    assert all((a == same[0]).all() for a in same)
    print(f"{name}: the same bits with 1, 2, 3 and 5 threads")

# %% [markdown]
# A pitfall here: Numba keeps Python's lock while it computes unless a kernel says `nogil=True`. Ours does not, so the threads
# above took turns; the package's kernels do say so. Another: BLAS brings threads of its own, which wait by spinning on the very
# cores that yours need. `each` keeps BLAS on the calling thread.
#
# ## 5. Roofs
#
# How fast could it be? A core multiplies and adds at most $P$ operations a second, and memory hands it at most $\beta$ bytes a
# second. A program that does $I$ operations for each byte it moves, its *arithmetic intensity*, cannot be faster than
#
# $$\text{operations per second} \le \min(P,\; I \beta).$$
#
# Drawn on logarithmic axes this is a slope and a flat roof that meet at $I = P / \beta$. Left of that, only fewer bytes help.
#
# First the intensities, from sizes alone. Each array moves at least once, 4 bytes a number:

# %%
r = 128
sizes = {  # operations, numbers that must move
    "dense": (2 * n * d_in * d_out, n * d_in + n * d_out + d_in * d_out),
    "low-rank": (2 * n * r * (d_in + d_out), n * d_in + n * d_out + r * (d_in + d_out) + 2 * n * r),
    "SpMM": (2 * n * N, n * d_in + n * d_out + 2 * N),
    "SDDMM": (2 * n * N, n * d_in + n * d_out + 2 * N),
}
intensity = {name: operations / (4 * numbers) for name, (operations, numbers) in sizes.items()}
for name, (operations, numbers) in sizes.items():
    print(f"{name:10}{operations / 1e6:7,.0f} million operations {4 * numbers / 1e6:6.1f} MB {intensity[name]:8.1f} a byte")
assert intensity["dense"] > 20 * intensity["SpMM"]
from_cache = 2 / 4  # within a tile: two operations for the 4 bytes of x that they read
print(f"SpMM, seen from inside a tile: {from_cache} operations a byte")

# %% [markdown]
# Here is why a sparse product disappoints. It does 3 % of the dense product's operations, but it reads the same $X$ and writes
# the same $Y$: 3.8 operations a byte instead of 113.8. And that counts only what must come from far away. Within a tile every
# multiplication and addition reads 4 bytes of $X^\top$ from the core's own cache, 0.5 operations a byte, however well the tile is
# chosen.
#
# So there is a roof for each level of memory. We measure them on one core: how fast vectors can be read from arrays of growing
# size, and a dense product for $P$.

# %% tags=["timing"]
from minisl.kernels.cpu.simd import load, splat, total


@njit
def read(a, times):
    s = t = u = v = splat(np.float32(0))  # four sums, so that none waits for the other
    for _ in range(times):
        for k in range(0, len(a), 64):
            s, t, u, v = s + load(a, k, 0), t + load(a, k + 16, 0), u + load(a, k + 32, 0), v + load(a, k + 48, 0)
    return total(s + t) + total(u + v)


speeds = {}
for kb in (8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384, 65536, 131072):
    a, times = sparse.scratch(4 * kb, np.dtype(np.float32)).reshape(-1), max(1, 32768 // kb)
    a[:] = 0
    read(a, 1)
    speeds[kb] = times * a.nbytes / seconds(lambda a=a, times=times: read(a, times))
figure, axes = plt.subplots()
axes.plot(list(speeds), [b / 1e9 for b in speeds.values()], "o-")
axes.axvline(tile_kb, color=PALETTE[7], linestyle=":")
axes.annotate("a tile", (tile_kb, 0), xytext=(4, 4), textcoords="offset points", fontsize=8)
axes.set(xscale="log", xticks=list(speeds)[::2], xticklabels=[f"{kb:,}" for kb in list(speeds)[::2]], ylim=(0, None),
         xlabel="size of the array that is read over and over (KB)", ylabel="read by one core (GB/s)",
         title="Memory is a staircase: the larger the array, the farther away")
axes.xaxis.minorticks_off()
plt.show()

# %% tags=["timing"]
B, A = (rng.standard_normal(shape, np.float32) for shape in ((d_out, r), (r, d_in)))
W = B @ A + S
tiles = sparse.scratch(d_in, x.dtype), sparse.scratch(d_out, x.dtype)
tiles[0][:] = xt[:, :64]


def rate(call, operations):
    call()
    return operations / seconds(call, 0.3)


with parallel.using_threads(1), parallel.one_blas_thread():
    reached = {
        "dense": rate(lambda: x @ W.T, sizes["dense"][0]),
        "low-rank": rate(lambda: (x @ A.T) @ B.T, sizes["low-rank"][0]),
        "SpMM": rate(lambda: spmm_registers(x), sizes["SpMM"][0]),
        "SDDMM": rate(lambda: kernels.sddmm(dy, x, support), sizes["SDDMM"][0]),
    }
    inside = rate(lambda: [sparse.spmm_tile(*csr, *tiles) for _ in range(20)], 20 * 2 * 64 * N)
    peak = max(rate(lambda: W @ W, 2 * d_in**3), *reached.values(), inside)

# %% tags=["timing"]
figure, axes = plt.subplots(figsize=(7, 4.4))
I = np.geomspace(0.1, 400, 200)
for name, kb, style in (("16 MB, for X and Y", 16384, "-"), ("128 KB, for a tile", 128, "--")):
    axes.plot(I, np.minimum(peak, I * speeds[kb]) / 1e9, color="black", linestyle=style,
              label=f"roof: memory of {name} ({speeds[kb] / 1e9:.0f} GB/s)")
points = [(intensity[name], reached[name], name, mark) for name, mark in zip(sizes, "os^v")]
for k, (at, speed, name, mark) in enumerate([*points, (from_cache, inside, "SpMM inside a tile", "D")]):
    axes.plot(at, speed / 1e9, mark, color=PALETTE[k], markersize=8, label=f"{name}: {speed / 1e9:.0f}")
axes.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="operations per second (billions)",
         title="Roofline of one core of this machine", ylim=(2, 2.5 * peak / 1e9))
plain_log(axes.yaxis)
axes.legend(fontsize=8, loc="lower right")
plt.show()

# %% [markdown]
# Dense and low-rank product sit far right, under the flat roof: no memory is in their way. SpMM and SDDMM sit under the slope of
# the memory that holds $X$ and $Y$; often well below it, so that they look as if they could go much faster. They cannot. The
# diamond is SpMM without the turning in and out of the tile, at the intensity that counts there. Above it, and not far, is the
# dashed roof, the speed of the cache. The way from the triangle up to the diamond is what fetching and turning cost, which do no
# operation at all. (On a machine with other work all points are too low, each by its own luck. Run the cells again.)
#
# A roofline thus has as many slopes as there are memories, and a program a point under each. To ask "is it memory-bound?" means
# to ask: by which?
#
# For the layer this means: its sparse part is cheap not because it is fast but because there is little of it. The low-rank
# product has many times the operations. [The page on the CPU kernels](../docs/cpu.md) has the measurements.
#
# ## 6. A GPU, without one
#
# A GPU runs thousands of **threads**, each the same program (a *kernel*) with its own number. The words you need:
#
# | | |
# |---|---|
# | warp | 32 threads, its *lanes*, that mostly execute together; what they read at one place of the program is *one request* |
# | sector | 32 bytes of global memory, 8 floats; a request moves every sector that it touches, whole |
# | block | some warps on one processor of the GPU; they have a little **shared memory** in common |
# | bank | shared memory is 32 banks; word $w$ is in bank $w \bmod 32$, and a bank gives one word a cycle |
# | `__syncthreads()` | a *barrier*: no thread of the block goes on before all have come here |
#
# Without a barrier nothing says which of two warps is first, and on newer GPUs (Volta and after) not even which of two lanes.
#
# The cost of a request is a matter of counting, so let us count. `words` are the places, in 4-byte words, that the lanes of a
# warp ask for:

# %%
def sectors(words):
    """How many sectors of 8 words does a warp touch?"""
    return len(np.unique(np.asarray(words) // 8))


def bank_cycles(words):
    """How many different words must the busiest bank deliver? The same word goes to all who ask for it, at once."""
    return int(np.bincount(np.unique(words) % 32).max())


lane = np.arange(32)
print("words apart   sectors   bank cycles")
for stride in (0, 1, 2, 3, 4, 8, 32, 33):
    print(f"{stride:11}{sectors(stride * lane):10}{bank_cycles(stride * lane):14}")

# %% [markdown]
# Two different rules. Global memory wants neighbours: a stride of 1 costs 4 sectors, from 8 on each lane has one of its own and
# seven eighths of what moves are thrown away. Reads side by side are called **coalesced**. Shared memory wants different banks:
# an odd stride is free, 32 is the worst there is, and 33 is free again.

# %%
from minisl.sliders import Sliders


def request(stride, first):
    words = first + stride * lane
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(6.4, 2.8), height_ratios=[2, 1])
    asked = np.isin(np.arange(33 * 8), words).astype(float)
    moved = np.repeat(asked.reshape(-1, 8).max(axis=1), 8)
    top.imshow((moved / 3 + asked * 2 / 3).reshape(-1, 8 * 11), cmap="Blues", vmax=1, aspect="auto")
    top.set(xticks=np.arange(0, 88, 8) - 0.5, xticklabels=[], yticks=[],
            title=f"global memory: {sectors(words)} sectors of 8 words moved")
    top.grid(axis="x", color="black", alpha=0.6)
    bottom.bar(range(32), np.bincount(np.unique(words) % 32, minlength=32), color=PALETTE[1])
    bottom.set(xlim=(-0.6, 31.6), ylim=(0, 8.5), xlabel="bank", ylabel="words",
               title=f"shared memory: the busiest bank gives {bank_cycles(words)}")
    return figure


Sliders(request, start={"stride": 2, "first": 0}, stride=[1, 2, 3, 4, 5, 8], first=[0, 1, 4])

# %% [markdown]
# Above: the words a warp asks for (dark) and what moves with them (light), in rows of 11 sectors. Move *first*: an array that
# does not begin with a sector costs one more.
#
# The package has an **emulator**: it compiles CUDA text with g++, runs it on the CPU and watches every access. It needs Linux and
# g++; without them the cells below say in a line what is missing, and the text goes on.

# %%
from minisl.errors import InputError
from minisl.kernels.cuda import emulator


def emulated():
    """Is there what the emulator needs? If not, say how to get it."""
    try:
        return emulator.compiler()
    except InputError as error:
        print(error)


code = r"""
extern "C" __global__ void strided(const float* x, float* y, int stride, int n) {
    const int k = blockIdx.x * blockDim.x + threadIdx.x;
    y[k] = x[k * stride];
}
"""
if emulated():
    strided = emulator.RawModule(code=code).get_function("strided")
    for stride in (1, 2, 8):
        with emulator.record() as launches:
            strided((1,), (32,), (np.ones(256, np.float32), np.zeros(32, np.float32), stride, 32))
        seen = launches[0].summary("x")
        print(f"stride {stride}: {seen['reads']} reads in {seen['requests']} request, {seen['moved']} sectors")
        assert seen["moved"] == sectors(stride * lane)

# %% [markdown]
# It counts what we counted. A kernel is launched on a *grid* of blocks, here one block of 32 threads, and computes from
# `blockIdx` and `threadIdx` which element is its own. With a few elements more than 32 we need a second block, and most of its
# threads have nothing to do. We forgot to tell them. A GPU would read and write past the end, into some other array, and say
# nothing:

# %%
def fault(call):
    """What the emulator has to say of a launch."""
    try:
        call()
        return "nothing wrong"
    except emulator.KernelFault as found:
        return f"{type(found).__name__}: {found}"


if emulated():
    arrays = np.ones(40, np.float32), np.zeros(40, np.float32)
    print(fault(lambda: strided((2,), (32,), (*arrays, 1, 40))))
    mended = emulator.RawModule(code=code.replace("y[k] =", "if (k < n) y[k] =")).get_function("strided")
    print(fault(lambda: mended((2,), (32,), (*arrays, 1, 40))))

# %% [markdown]
# ## 7. The ladder of SpMM
#
# `minisl/kernels/cuda/` holds each operation as a ladder of files: `spmm_0.cu` is the obvious kernel, `spmm_6.cu` the one that
# runs. Each rung is one idea. (`python -m minisl.ladder spmm 3` shows one, with what is different from the rung below.)

# %%
from minisl.kernels.cuda import ladder

print(ladder.source("spmm", 0))
for number in range(1, ladder.rungs()["spmm"]):
    print(ladder.header("spmm", number)[0])

# %% [markdown]
# Read rung 0 as loops: the two outer ones have become the thread's number, $(t, i)$, and the one over entries is left.
# Neighbouring threads have neighbouring *rows*, whose entries lie apart in `values` and `columns`: uncoalesced.
#
# - **1** gives a row to a warp: its lanes read 32 entries side by side, and add their sums by shuffles, from register to
#   register.
# - **2** reads the entries into shared memory, once for 128 tokens; a thread is a token.
# - **3** does for $X$ what our tiles did on the CPU: 32 tokens by 64 columns in shared memory, for 64 rows of $S$.
# - **4** sends the sums out through the tile, so that $Y$ too is written side by side.
# - **5** gives a thread four tokens, read as 16 bytes at once.
# - **6** copies in another order. Why, the counts will tell.
#
# Now run all of them. A smaller problem, since every access is watched:

# %%
small = np.random.default_rng(1)
tokens, width, high = 128, 128, 64
S2 = Support(np.sort(small.permutation(high * width)[:409]), (high, width))
v2, x2 = small.standard_normal(len(S2), np.float32), small.standard_normal((tokens, width), np.float32)
right = kernels.spmm(x2, v2, S2, backend="numpy")


def watched(rung, x=x2, v=v2, S=S2):
    """(Y, the launch with all its accesses) of a rung."""
    with ladder.at(spmm=rung), emulator.record() as launches:
        y = kernels.spmm(x, v, S, backend="emulator")
    return y, launches[0]


runs = {}
if emulated():
    for rung in range(7):
        y, runs[rung] = watched(rung)
        np.testing.assert_allclose(y, right, rtol=1e-5, atol=1e-5)
    print("seven rungs, one result")

# %%
def sums(launch):
    """Sectors for x, for the entries and for y; cycles of the banks, and how many would do."""
    seen = {a.name: launch.summary(a.name) for a in launch.arrays}
    shared = [s for s in seen.values() if "cycles" in s]
    return (seen["x"]["moved"], seen["values"]["moved"] + seen["columns"]["moved"], seen["y"]["moved"],
            sum(s["cycles"] for s in shared), sum(s["ideal"] for s in shared))


if emulated():
    table = {rung: sums(launch) for rung, launch in runs.items()}
    print(f"{'rung':>4}{'x':>10}{'entries':>10}{'y':>10}{'bytes':>8}{'cycles':>10}{'needed':>9}")
    for rung, (of_x, entries, of_y, cycles, needed) in table.items():
        moved = 32 * (of_x + entries + of_y) / (tokens * len(S2))  # bytes per entry and token
        print(f"{rung:4}{of_x:10,}{entries:10,}{of_y:10,}{moved:8.1f}{cycles:10,}{needed:9,}")
    assert sum(table[6][:3]) < sum(table[0][:3]) / 20

# %% [markdown]
# Sectors moved for each array, the bytes that this makes per entry and token, and the cycles of shared memory. (Not listed:
# `starts`, which a compiler may keep in registers. And no times: the emulator knows none.) Read down a column:
#
# - **entries**: 88,576 sectors in rung 0, 27,648 when a warp reads them side by side, 216 when 128 tokens share them. Rung 3 pays
#   again, 3,272: each warp reads an entry for 32 tokens only, one sector a request, since all lanes ask for the same word. Rung 5
#   has 128 tokens again: 818.
# - **x**: rung 2 is the *worst*, 52,352. Its lanes are tokens, and tokens lie a whole row apart: a sector for each number. The
#   tile of rung 3 brings it to 2,048, each number once. (Rung 0 looks better than it is. Its lanes share a token, whose row has
#   only 128 numbers here, 16 sectors. In a wide layer they would not meet.)
# - **y**: 2,048 in rung 0, whose lanes are neighbouring rows of one token. 16,384, a sector for each number, where one lane
#   writes alone (rung 1) or the lanes write to different tokens (rungs 2 and 3). 2,048 again when sums go through the tile.
# - **cycles**: rung 5 needs 2,660 and takes 4,964. We come to that.
#
# From 69.4 bytes per entry and token in rung 0 to 3.0 in the last. Less than the 4 bytes of a number of $X$: the number is read
# from global memory once and used by several entries of the tile.

# %%
if emulated():
    figure, axes = plt.subplots()
    bottom = np.zeros(7)
    for k, (name, hatch) in enumerate((("x", ""), ("entries", "//"), ("y", ".."))):
        heights = np.array([32 * table[rung][k] / (tokens * len(S2)) for rung in range(7)])
        axes.bar(range(7), heights, bottom=bottom, color=PALETTE[k], hatch=hatch, edgecolor="white", label=name)
        bottom += heights
    for rung in range(7):
        axes.annotate(f"{bottom[rung]:.1f}", (rung, bottom[rung]), ha="center", xytext=(0, 3), textcoords="offset points")
    axes.set(xlabel="rung of spmm", ylabel="bytes moved per entry and token", title="What each rung moves through global memory")
    axes.legend()
    plt.show()

# %% [markdown]
# ### Who touches what
#
# Colour is the thread that touches an element first; white dots are written to. At the right the most expensive request of a
# warp: which sector each of its 32 lanes asks for. The strip below counts each thread's accesses. Rung 2 first, only `x` and
# `y`:

# %%
from dataclasses import replace

from IPython.display import Image, display
from PIL import Image as Picture

from minisl.kernels.cuda.emulator.draw import draw


def show(launch, *names):
    """The emulator's picture of these arrays, made small."""
    wanted = [k for k, a in enumerate(launch.arrays) if a.name in names]
    draw(replace(launch, accesses=launch.accesses[np.isin(launch.accesses["array"], wanted)]), "touched.png")
    picture, file = Picture.open("touched.png").convert("RGB"), io.BytesIO()
    picture.thumbnail((1100, 1100))
    picture.quantize(256).save(file, "png", optimize=True)
    display(Image(data=file.getvalue()))


if emulated():
    show(runs[2], "x", "y")

# %% [markdown]
# The first block of rung 2 has one row of $S$, so it needs a few columns of `x`, and down each of them thread after thread. The
# dots at the right climb: 32 lanes, 32 sectors, and all of the grey between was not asked for. (Only the first 32 rows of an
# array are drawn, so only the first 32 threads show.)

# %%
if emulated():
    show(runs[4], "x", "y")

# %% [markdown]
# Rung 4 reads every element of its 32 tokens, each line of the picture by one warp, in stretches of 32: 4 sectors for 32 lanes.
# That it reads more than it needs does not matter, since neighbouring columns are needed by *some* of its 64 rows.
#
# ## 8. A race
#
# Rung 2 has two barriers. Between filling `value` and `column` and using them: nobody may read what is not there yet. And after
# the use: nobody may fill them anew while a slow thread still reads. Take out the first. `instead` runs a text in place of a
# rung; `order` runs the threads forward, backward, or shuffled:

# %%
from minisl.kernels.cuda.launch import instead

barrier = "        __syncthreads();\n"
before, middle, after = ladder.source("spmm", 2).split(barrier)
for number, line in enumerate(ladder.source("spmm", 2).splitlines()[16:28], 17):
    print(number, line)


def tried(text, x, v, S):
    for order in (0, 1, 2):
        with ladder.at(spmm=2), instead("spmm", text, "mine.cu"), emulator.order(order):
            print(f"order {order}:", fault(lambda: kernels.spmm(x, v, S, backend="emulator")))


if emulated():
    tried(before + middle + barrier + after, x2, v2, S2)

# %% [markdown]
# Not even a race: in every order some thread reads what nobody has written. The message names line, block and thread, and says
# which element of which array. Now take out the second barrier instead, the one in line 26:

# %%
one_barrier = before + barrier + middle + after
if emulated():
    tried(one_barrier, x2, v2, S2)

# %% [markdown]
# Nothing wrong, in three orders. Is the barrier for nothing, then? A row of our $S$ has few entries, and the loop over them goes
# round once. Only a row with more than 128 fills `value` a second time. The emulator watches what happens, not what could: *a
# test must contain the case.* So give row 7 all its columns, and 20 of them a second time:

# %%
print(f"entries in the longest row: {np.diff(S2.csr[2]).max()}, a block takes 128 at a time")
long = np.sort(np.concatenate([S2.index, 7 * width + np.arange(width), 7 * width + np.arange(20)]))
S3 = Support(long, (high, width))
v3 = small.standard_normal(len(S3), np.float32)
print(f"and now: {np.diff(S3.csr[2]).max()}")
if emulated():
    tried(one_barrier, x2, v3, S3)

# %% [markdown]
# Lines 20 and 25, in block 7: what one thread fills for the next round, another still reads in this one. Note what the emulator
# did *not* need: a wrong result. It keeps for each word who touched it, and after how many barriers; two touches with none
# between them, one of them a write, are a race even where the outcome happens to be right, as on a real GPU it mostly is. The
# mended text is the file as it stands:

# %%
if emulated():
    tried(before + barrier + middle + barrier + after, x2, v3, S3)

# %% [markdown]
# ## 9. Bank conflicts
#
# The tile of rung 3 is declared `tile[COLUMNS][TOKENS + 1]`, 33 words a row where 32 are used. Why? The lanes of a warp copy 32
# columns of one token, and store to `tile[lane][t]`: word `33 * lane + t`. Count, with one word less, and with the row of rung 5:

# %%
for pitch in (32, 33, 132):
    print(f"rows of {pitch:3} words: {bank_cycles(pitch * lane):2} cycles for a column of 32")
print(f"rung 6, 8 columns of 4 tokens: {bank_cycles(132 * (lane % 8) + lane // 8)} cycle")

# %%
figure, grid = plt.subplots(1, 3, figsize=(7.4, 3))
cases = (("32 words a row", 32, lane, 0 * lane), ("33 words a row", 33, lane, 0 * lane),
         ("132 a row, rung 6", 132, lane % 8, lane // 8))
for axes, (name, pitch, c, t) in zip(grid, cases):
    bank = (pitch * lane[:, None] + lane[None, :]) % 32  # of tile[c][t]
    image = axes.imshow(bank, cmap="cividis")
    axes.plot(t, c, "o", color="white", markeredgecolor="black", markersize=3.5)
    axes.set(xlabel="token", ylabel="column" if pitch == 32 else None, title=f"{name}:\ncycles: {bank_cycles(pitch * c + t)}")
    axes.title.set_fontsize(9)
    axes.grid(False)
figure.colorbar(image, ax=grid, label="bank", shrink=0.7)
plt.show()

# %% [markdown]
# Dots are the words that a warp stores at once; colour is their bank. Left: one colour, one bank, 32 cycles. Middle: one word
# more a row, and each dot has a colour of its own. Rung 5 could not take 33, since loads of 16 bytes must begin at multiples of
# 16: it took 132, and a column then meets 8 banks, 4 times each. Rung 6 (right) copies other elements together, and is done in
# one. What one word less would cost rung 3 we can predict: each store of the copy takes 31 cycles more.

# %%
if emulated():
    with instead("spmm", ladder.source("spmm", 3).replace("TOKENS + 1", "TOKENS"), "narrow.cu"):
        y, narrow = watched(3)
    np.testing.assert_allclose(y, right, rtol=1e-5, atol=1e-5)
    stores = tokens * width // 32  # requests of the copy
    found, padded = narrow.summary("tile")["cycles"], runs[3].summary("tile")["cycles"]
    print(f"with the padding {padded:,}; without {found:,}; predicted {padded:,} + 31 * {stores} = {padded + 31 * stores:,}")
    assert found == padded + 31 * stores

# %% [markdown]
# Nothing was wrong with its results. A missing barrier is a bug, a bank conflict is a bill.
#
# ## 10. The same rung in Numba CUDA
#
# CUDA can also be written in Python: `@cuda.jit` of Numba compiles a function for the GPU. `minisl/kernels/cuda/in_numba/` holds
# the rungs of four ladders in it, line beside line with the `.cu` files.

# %%
def numba_source(op, rung):
    from minisl.kernels.cuda import in_numba

    return inspect.getsource(in_numba.kernel(op, rung).py_func)


try:
    print(numba_source("spmm", 0))
except InputError as error:
    print(error)

# %% [markdown]
# Without a GPU the function runs as Python. Each thread is a coroutine (package greenlet): it runs until it waits at a barrier or
# a shuffle, then the next one goes on. Arrays check each index and remember who touched what, so the same faults have the same
# names. It is slow, and this problem tiny:

# %%
from minisl.kernels.cuda.emulator import numba_threads

S4 = Support(np.sort(small.permutation(12 * 20)[:40]), (12, 20))
v4, x4 = small.standard_normal(len(S4), np.float32), small.standard_normal((3, 20), np.float32)
try:
    for rung in (0, 2):
        with ladder.at("numba", spmm=rung):
            y = kernels.spmm(x4, v4, S4, backend="emulator")
        np.testing.assert_allclose(y, kernels.spmm(x4, v4, S4, backend="numpy"), rtol=1e-5, atol=1e-5)
        print(f"rung {rung} in Numba CUDA: the same product")
except InputError as error:
    print(error)

# %% [markdown]
# And a kernel of our own, with the mistake of section 8. It turns around each 8 neighbours of an array by way of shared memory:

# %%
from numba import cuda


@cuda.jit
def turn_around(x, y):
    s = cuda.shared.array(8, np.float32)
    t = cuda.threadIdx.x
    first = cuda.blockIdx.x * 8
    s[t] = x[first + t]
    y[first + t] = s[7 - t]


def with_barrier():
    """The same with the line that is missing."""
    text = inspect.getsource(turn_around.py_func).replace("    y[", "    cuda.syncthreads()\n    y[")
    names = {}
    exec(text.partition("\n")[2], {"cuda": cuda, "np": np, "__name__": "mended"}, names)
    return names["turn_around"]


x5, y5 = np.arange(16, dtype=np.float32), np.zeros(16, np.float32)
try:
    print(fault(lambda: numba_threads.run(turn_around, (2,), (8,), (x5, y5))))
    print(fault(lambda: numba_threads.run(with_barrier(), (2,), (8,), (x5, y5))), y5.astype(int))
except InputError as error:
    print(error)

# %% [markdown]
# On a GPU both languages run on the same hardware. What Numba's rungs lack is the load of 16 bytes, and so there is no 5 and 6.
#
# ## 11. One function in front of it all
#
# Whoever trains a model wants none of this. `kernels.sl_linear_forward` takes arrays and gives arrays; the *backend* is a module
# of functions with the same names, and all of them must give the same numbers:

# %%
tiny = np.random.default_rng(2)
B, A, X = (tiny.standard_normal(shape, np.float32) for shape in ((12, 4), (4, 20), (10, 20)))
G = tiny.standard_normal((10, 12), np.float32)
W = 0.5 * B @ A
np.add.at(W.reshape(-1), S4.index, v4)
dW = G.T @ X
by_hand = X @ W.T, G @ W, 0.5 * dW @ A.T, 0.5 * B.T @ dW, dW.reshape(-1)[S4.index]

for backend in kernels.BACKENDS:
    if backend == "cuda" or (backend == "emulator" and not emulated()):
        continue  # "cuda" takes arrays on a GPU
    for algorithm in ("materialised", "factored", *["fused"] * (backend == "emulator")):
        how = {"backend": backend, "algorithm": algorithm}
        y, kept = kernels.sl_linear_forward(X, B, A, v4, S4, 0.5, **how)
        gradients = kernels.sl_linear_backward(G, X, B, A, v4, S4, 0.5, kept, **how)
        for mine, expected in zip((y, *gradients), by_hand):
            np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-4)
        print(f"{backend:10} {algorithm:13} Y, dX, dB, dA and dv agree")

# %% [markdown]
# Left out, the backend is the fastest that works with these arrays, and the algorithm is chosen by [a model of the
# cost](../docs/cost-model.md). `kernels.using` sets the backend for all that happens inside, a training step of a whole model,
# say. Here a small SLTrain layer, forward and backward, with plain NumPy and with CUDA kernels:

# %%
from minisl.autograd import Tensor
from minisl.methods import sltrain

found = {}
for backend in ("numpy", "emulator"):
    if backend == "emulator" and not emulated():
        continue
    layer = sltrain.linear(20, 12, np.random.default_rng(3), np.float32, rank=4, delta=0.2, alpha=8.0, learned_scale=False,
                           algorithm="auto")
    with kernels.using(backend):
        print(f"{backend}: computed by {kernels.of(X).module.__name__}")
        (layer(Tensor(X)) * Tensor(G)).sum().backward()
    found[backend] = {name: p.grad for name, p in layer.named_parameters()}
for name, gradient in found["numpy"].items():
    for other in found.values():
        np.testing.assert_allclose(other[name], gradient, rtol=1e-4, atol=1e-4)
print("the same gradients of", ", ".join(found["numpy"]))

# %% [markdown]
# A kernel that is wrong does not get far: each backend goes through the same tests, each rung of each ladder through three orders
# of threads, and a list of mistakes like those above is made on purpose, to see that the tests notice every one. [The page on
# CUDA](../docs/cuda.md) has the other ladders.
#
# ## Exercises
#
# **Exercise 1.** `spmm_tiles(x, *csr, tile)` takes any number of tokens as a tile. Before you time 4, 64 and 1,024: how large is
# each tile, which of your caches does it fit, and how many bytes of entries does each token pay? Which should be slow, and for
# which of two reasons?
#
# <details><summary>Answer</summary>
#
# A tile of 4 lies in the nearest cache, but each entry (8 bytes) serves 4 tokens only, and a vector instruction has 4 numbers to
# work on. One of 1,024 shares an entry among many, but 2 MB are as large as many an L2 cache, and each entry reads 4 KB from
# there. Both lose to 64.
#
# ```python
# for tile in (4, 64, 1024):
#     np.testing.assert_allclose(spmm_tiles(x, *csr, tile), Y, **near)
#     ns = seconds(lambda: spmm_tiles(x, *csr, tile)) * 1e9 / n / N
#     print(f"tile of {tile:5}: {4 * tile * d_in / 1024:6,.0f} KB, {8 / tile:6.3f} bytes of the entry for each token,"
#           f" {ns:.2f} ns per entry and token")
# ```
#
# </details>
#
# **Exercise 2.** Rung 6 of `spmm` lets a warp copy 8 columns of 4 tokens. Its header says that this is as good as 32 columns of
# one token "if rows of x begin with a sector: width a multiple of 8". How many sectors does such a request move for a width of
# 128, and how many for 70, first at column 0? What does a row of 72 words, 2 of them unused, cost, and what does it save?
#
# <details><summary>Answer</summary>
#
# With 128 each of the four tokens begins a sector: 4. With 70 they begin at words 0, 70, 140 and 210, of which only the first is
# a multiple of 8, so the other three lie in two sectors each: 7. A row of 72 costs 3 % more memory and saves 3 of 7 sectors.
#
# ```python
# for w in (128, 70, 72):
#     print(f"rows of {w} begin at {[t * w for t in range(4)]}: {sectors(lane // 8 * w + lane % 8)} sectors")
# assert [sectors(lane // 8 * w + lane % 8) for w in (128, 70, 72)] == [4, 7, 4]
# print(f"{72 / 70 - 1:.2f} more memory")
# ```
#
# </details>
#
# **Exercise 3.** Rung 1 of `scatter_add` adds each value to $W$ with `atomicAdd`. Replace it by `+=`. What will the emulator say
# for a support whose positions all differ, and what for one in which a position occurs twice? Must the two threads be in one
# warp?
#
# <details><summary>Answer</summary>
#
# If all positions differ no two threads touch one word, and there is nothing to say. A position that occurs twice is a race: both
# threads read $W$, both add, and the second write loses the first's. It is one wherever the threads are: two lanes of a warp read
# before either has written, and nothing orders two warps, or two blocks. It is the mistake of section 2, `wrong[:, rows] +=
# products`, in CUDA. The package's supports have no repeats, but its functions allow them.
#
# ```python
# plain = ladder.source("scatter_add", 1).replace("atomicAdd(&W[index[k]], values[k])", "W[index[k]] += values[k]")
#
#
# def added(*positions):
#     where = Support(np.array(positions), (20, 20))
#     with ladder.at(scatter_add=1), instead("scatter_add", plain, "plain.cu"):
#         W, v = np.zeros((20, 20), np.float32), np.ones(len(where), np.float32)
#         return fault(lambda: kernels.scatter_add(W, v, where, backend="emulator"))
#
#
# if emulated():
#     print(added(*range(300)))
#     print(added(5, *range(300)))  # both in the first warp
#     print(added(*range(300), 5))  # 5 and 300 are in different blocks
#     assert added(*range(300)) == "nothing wrong"
#     assert added(5, *range(300)).startswith("Race")
#     assert added(*range(300), 5).startswith("Race")
# ```
#
# </details>
