# %% [markdown]
# # Assignment 3: SLTrain
#
# You write SLTrain from an empty page: the random support, the start, Algorithm 1 forward and backward, the same without ever
# building $W$, what it costs in parameters and bytes, and a training run that must reach a loss.
#
# **How.** Replace each `raise NotImplementedError()` with your code. The cell below it checks your answer: it prints nothing
# and passes, or says what is wrong. Tasks are graded apart from each other: skip one and come back. Save the notebook, then
# `python -m minisl.course check a3_sltrain.ipynb` (or `pytest`) in this folder checks them all. **Tested** lists what the grader
# tests, none of it a trick; your cells have a part of that. The grader uses its own copy of the test cells: editing yours changes
# nothing.
#
# About four hours. Read first, then close: `notebooks/03_sltrain.ipynb`, sections 1 to 6; for task 7 also
# `notebooks/06_memory.ipynb`, section 1. They contain code like that asked for here: write yours without them open.
#
# **Allowed:** NumPy and `scipy.sparse`, and your own functions from above. Do not call `minisl.kernels`, `minisl.methods`,
# `minisl.optim`, `minisl.memory` or an autograd engine in your answers: they are what you are writing, and what the tests compare
# with. No test enforces this rule: a person reads your code.
#
# **Symbols,** the same in all tasks:
#
# $$Y = X W^T, \qquad W = s\,B A + S, \qquad s = \frac{\alpha}{r}$$
#
# | | shape | |
# |---|---|---|
# | `X` | `(..., in)` | inputs; each vector along the last axis is a token. `in` is a word of Python, so code says `width` |
# | `Y` | `(..., out)` | outputs, with the same leading axes |
# | `B`, `A` | `(out, r)`, `(r, in)` | the low-rank factors, trained; `r` is the rank |
# | `I` | `(nnz,)` integers | the support: sorted, distinct places in $S$ flattened row by row. Drawn once, never trained |
# | `v` | `(nnz,)` | the values there, trained: entry $I_k$ of the flattened $S$ is $v_k$, all others are 0 |
# | `s` | number | $\alpha / r$, where $\alpha$ is a constant. It scales $BA$ only |

# %%
import numpy as np
from scipy.sparse import csr_array

from minisl import kernels
from minisl.course import check, draw, unchanged

# For the tests: draw("task") makes a random generator, another one for each student; check compares an answer with the right one
# and says what is wrong; unchanged compares an argument after a call with what it was before.


def kind_of(found):
    """What a function returned, in words."""
    if isinstance(found, (tuple, list)):
        return f"({', '.join(map(kind_of, found[:8]))})"
    if isinstance(found, (int, float, np.number)):
        return "a number"
    return "None" if found is None else "an array" if isinstance(found, np.ndarray) else f"a {type(found).__name__}"

# %% [markdown]
# ## Task 1. The support (4 points, 20 minutes)
#
# **Given** the shape of $S$, a density $\delta$ and a seed.
#
# **Write** `draw_support(out, width, delta, seed)`: 3 to 6 lines. It returns the places of $S$ that are trained: exactly
#
# $$\mathrm{nnz} = \lfloor \delta \cdot \mathrm{out} \cdot \mathrm{in} \rfloor$$
#
# of them, computed as `int(delta * out * width)`; all different, and every set of nnz places equally likely.
#
# | | |
# |---|---|
# | `out`, `width` | rows and columns of $S$ |
# | `delta` | between 0 and 1 |
# | `seed` | an integer. The same seed gives the same support, another seed another one |
# | returns | `(nnz,)` integers, sorted. The place in row $i$, column $j$ is the number $i \cdot \mathrm{in} + j$ |
#
# **Tested:** the number, the type, that they are sorted, distinct and in the matrix; seeds; and by many draws that every place
# is as likely as any other, and that places do not go together (no fixed number in each row or column, no blocks, no grid).
#
# <details><summary>Hint</summary>
#
# Do not draw rows and columns, draw places: there are `out * width` of them. `np.random.default_rng(seed)` has a method that
# draws from them, and a switch that says whether one place may be drawn twice.
#
# </details>

# %% task="draw_support"
def draw_support(out, width, delta, seed):
    """int(delta * out * width) random places of an (out, width) matrix, as sorted flat row-major integers (nnz,)."""
    ### BEGIN SOLUTION
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(out * width, int(delta * out * width), replace=False))
    ### END SOLUTION

# %% test="draw_support" points=4
rng = draw("draw_support")
out, width = int(rng.integers(6, 10)), int(rng.integers(11, 16))
size, nnz = out * width, int(rng.integers(16, 24))
delta = (nnz + 0.7) / size
seen = np.zeros((400, size))
for seed in range(400):
    I = draw_support(out, width, delta, seed)
    assert I is not None, "draw_support returns None"
    I = np.asarray(I)
    assert I.ndim == 1, f"the support has shape {I.shape}, should have (nnz,): one flat place i * width + j for each entry"
    assert I.dtype.kind in "iu", f"the support has type {I.dtype}, places are integers"
    twice = len(I) - len(np.unique(I))
    assert not twice, f"{twice} places are there more than once: drawn with replacement?"
    check(f"the number of places (out = {out}, width = {width}, delta = {delta:.4f}), which is int(delta * out * width),", len(I),
          nnz, wrong={"rounded, should be cut": nnz + 1})
    low, high = int(I.min()), int(I.max())
    assert 0 <= low <= high < size, f"places run from {low} to {high}, a {out} x {width} matrix has 0 to {size - 1}"
    assert (np.diff(I) > 0).all(), "the places are not sorted"
    seen[seed, I] = 1
    if seed == 1:
        again = draw_support(out, width, delta, 1)
        assert np.array_equal(again, I), "a second call with the same seed gives another support"
        assert (seen[0] != seen[1]).any(), "two seeds give the same support"

share, sd = seen.mean(0), (delta * (1 - delta) / 400) ** 0.5
never = np.flatnonzero(share == 0)
assert not len(never), f"{len(never)} of {size} places are never drawn by 400 seeds, the first is {never[0]}"
k = int(abs(share - nnz / size).argmax())
assert abs(share[k] - nnz / size) < 6 * sd, f"place {k} is in {share[k]:.0%} of 400 supports, should be in about {nnz / size:.0%}"
for line, length, axis in (("row", width, 2), ("column", out, 1)):
    found = seen.reshape(400, out, width).sum(axis).var(0).mean()
    want = nnz * length / size * (1 - length / size) * (size - nnz) / (size - 1)
    why = "are there as many in each, or is it a grid?" if found < want else "are places of one drawn together?"
    assert abs(found / want - 1) < 0.3, f"the number of places in a {line} varies by {found:.2f}, should by {want:.2f}: {why}"
### BEGIN HIDDEN TESTS
check("the number of places (out = 1, width = 50, delta = 0.998)", len(draw_support(1, 50, 0.998, 3)), 49,
      wrong={"rounded, should be cut": 50})
check("the number of places (out = 40, width = 3, delta = 0.02)", len(draw_support(40, 3, 0.02, 4)), 2)
### END HIDDEN TESTS

# %% [markdown]
# ## Task 2. The start (3 points, 15 minutes)
#
# **Given** the sizes of a layer and a seed.
#
# **Write** `init(out, width, r, nnz, alpha, seed)`: 4 to 8 lines. It returns what a layer starts with, `(B, A, v, s)`:
#
# $$B = 0, \qquad A_{qj},\ v_k \sim U\left(-\tfrac{1}{\sqrt{\mathrm{in}}},\ \tfrac{1}{\sqrt{\mathrm{in}}}\right), \qquad
# s = \frac{\alpha}{r}$$
#
# | | shape |
# |---|---|
# | `B` | `(out, r)` |
# | `A` | `(r, width)` |
# | `v` | `(nnz,)` |
# | `s` | number |
#
# So $W = S$ before the first update. (PyTorch reaches the same bound as `kaiming_uniform_(a=sqrt(5))`.)
#
# **Tested:** shapes; that $B$ is zero; that $A$ and $v$ are uniform, with this bound, and independent of each other; $s$; seeds
# as in task 1.
#
# <details><summary>Hint</summary>
#
# One generator for both draws: two made from the same seed give the same numbers twice. `in` is the number of *inputs*: which of
# the two sizes is it?
#
# </details>

# %% task="init"
def init(out, width, r, nnz, alpha, seed):
    """(B, A, v, s) of a layer at step 0, float64."""
    ### BEGIN SOLUTION
    rng = np.random.default_rng(seed)
    bound = width**-0.5
    A = rng.uniform(-bound, bound, (r, width))
    v = rng.uniform(-bound, bound, nnz)
    return np.zeros((out, r)), A, v, alpha / r
    ### END SOLUTION

# %% test="init" points=3
rng = draw("init")
for out, r in ((7, 24), (900, 31)):
    width, nnz, alpha = int(rng.integers(240, 400)), int(rng.integers(3000, 5000)), int(rng.integers(9, 20))
    start = init(out, width, r, nnz, alpha, 5)
    fine = isinstance(start, (tuple, list)) and len(start) == 4
    assert fine, f"init returns {kind_of(start)}, should return (B, A, v, s)"
    B, A, v, s = start
    exchanged = np.shape(B) == (r, width) and np.shape(A) == (out, r)
    assert not exchanged, "B and A are exchanged: the order is (B, A, v, s)"
    check("B", B, np.zeros((out, r)))
    check("s", s, alpha / r, wrong={"alpha, not alpha / r": alpha, "r / alpha": r / alpha, "alpha // r cuts": alpha // r,
                                    "alpha / in": alpha / width, "alpha / sqrt(r)": alpha / r**0.5})
    bound = 1 / width**0.5
    for name, x, shape in (("A", A, (r, width)), ("v", v, (nnz,))):
        x = np.asarray(x)
        assert x.shape == shape, f"{name} has shape {x.shape}, should have {shape}"
        assert x.any(), f"{name} is zero everywhere: with B = 0 there would be nothing to learn from"
        assert abs(x.mean()) < 0.1 * abs(x).max(), f"{name} has mean {x.mean():.3g}, should have 0: U(-bound, bound), both signs"
        top = abs(x).max() / x.std()
        assert abs(top - 3**0.5) < 0.1, f"{name} is not uniform: the largest entry is {top:.2f} standard deviations, not 1.73"
        check(f"the largest |{name}| (out = {out}, in = {width}, r = {r})", abs(x).max(), bound, rtol=0.02,
              wrong={"the bound is 1 / in, its root is missing": bound**2, "the bound is 1 / sqrt(out)": 1 / out**0.5,
                     "the bound is 1 / sqrt(r)": 1 / r**0.5, "the bound is sqrt(6 / in)": 6**0.5 * bound,
                     "the bound is sqrt(3 / in), which gives variance 1 / in": 3**0.5 * bound,
                     f"alpha / r scales B A only, not {name} itself": bound * alpha / r,
                     "the bound is 1 / sqrt(nnz)": 1 / nnz**0.5})
        assert abs(x).max() <= bound, f"the largest |{name}| is above 1 / sqrt(in)"
        quarters = np.histogram(x, 4, (-bound, bound))[0] / x.size
        assert abs(quarters - 0.25).max() < 0.05, f"{name} is not uniform: {quarters} of it in the four quarters of its range"
    for name, x, y in (("A and v", A.ravel(), v), ("A's rows", A[:-1].ravel(), A[1:].ravel())):
        n = min(len(x), len(y))
        alike = abs(np.corrcoef(x[:n], y[:n])[0, 1])
        assert alike < 0.15, f"{name} are the same random numbers (correlation {alike:.2f}): one generator, made once"
    for x, y, other in zip(start[1:3], init(out, width, r, nnz, alpha, 5)[1:3], init(out, width, r, nnz, alpha, 6)[1:3]):
        assert np.array_equal(x, y), "a second call with the same seed gives other numbers"
        assert not np.array_equal(x, other), "two seeds give the same numbers"

# %% [markdown]
# ### For the tests
#
# `layer` makes a random layer, `right` is the package's product, and `gradients` are difference quotients of the loss
# $L = \sum_{ti} G_{ti} Y_{ti}$. It is linear in every single number, so they are exact for any step; here it is 1.

# %%
def layer(rng, out, width, r, delta=0.3):
    """B, A, v, I, s of a layer that has been trained: no zeros. The number of places is random here."""
    I = np.flatnonzero(rng.random(out * width) < delta)
    B, A, v = (rng.standard_normal(shape) for shape in ((out, r), (r, width), len(I)))
    return B, A, v, I, float(rng.uniform(0.3, 0.8))


def right(X, B, A, v, I, s):
    """Y, by the package."""
    return kernels.sl_linear(X, B, A, v, I, s, algorithm="materialised", backend="numpy")


def gradients(G, X, B, A, v, I, s):
    """[dX, dB, dA, dv], by differences."""
    arrays = [np.array(array) for array in (X, B, A, v)]
    found = [np.empty(array.shape) for array in arrays]
    for array, gradient in zip(arrays, found):
        for k in range(array.size):
            kept = array.flat[k]
            array.flat[k] = kept + 1
            up = (G * right(*arrays, I, s)).sum()
            array.flat[k] = kept - 1
            gradient.flat[k] = (up - (G * right(*arrays, I, s)).sum()) / 2
            array.flat[k] = kept
    return found


def columns_first(I, out, width):
    """The places that one gets who counts down the columns."""
    return (I % out) * width + I // out


def wrong_outputs(X, B, A, v, I, s):
    """What known mistakes give for Y."""
    hit = right(np.eye(A.shape[1]), B, A, 0 * v, I, s).T.flat[I]
    return {"alpha / r is missing": right(X, B, A, v, I, 1), "S is scaled by alpha / r too": right(X, B, A, s * v, I, s),
            "S is missing": right(X, B, A, 0 * v, I, s), "B A is missing": right(X, 0 * B, A, v, I, s),
            "v overwrites s B A at its places, it should be added": right(X, B, A, v - hit, I, s),
            "s multiplies twice": right(X, B, A, v, I, s * s), "v is subtracted": right(X, B, A, -v, I, s),
            "places are counted column by column, should be row by row":
                right(X, B, A, v, columns_first(I, len(B), A.shape[1]), s)}


def wrong_gradients(G, X, B, A, v, I, s):
    """What known mistakes give for dX, dB, dA, dv (0 to 3)."""
    dX, dB, dA, dv = gradients(G, X, B, A, v, I, s)
    hit = right(np.eye(A.shape[1]), B, A, 0 * v, I, s).T.flat[I]
    down = columns_first(I, len(B), A.shape[1])
    of_x = {"alpha / r is missing": gradients(G, X, B, A, v, I, 1), "S is missing": gradients(G, X, B, A, 0 * v, I, s),
            "B A is missing": gradients(G, X, 0 * B, A, v, I, s),
            "S is scaled by alpha / r too": gradients(G, X, B, A, s * v, I, s),
            "v overwrites s B A at its places, it should be added": gradients(G, X, B, A, v - hit, I, s),
            "places are counted column by column, should be row by row": gradients(G, X, B, A, v, down, s)}
    of_x["of several places in one column only the last one counts: add, do not overwrite"] = gradients(
        G, X, B, A, np.isin(np.arange(len(I)), list({j: k for k, j in enumerate(I % A.shape[1])}.values())) * v, I, s)
    of_v = {"alpha / r belongs to B and A, not to v": s * dv, "divided by the number of tokens": dv * dX.shape[-1] / dX.size,
            "places are counted column by column, should be row by row": gradients(G, X, B, A, v, down, s)[3]}
    of_b, of_a = ({"alpha / r is missing": d / s, "alpha / r stands there twice": d * s, "divided by the number of tokens":
                  d * dX.shape[-1] / dX.size} for d in (dB, dA))
    return {0: {name: found[0] for name, found in of_x.items()}, 1: of_b, 2: of_a, 3: of_v}


def check_gradients(backward, G, X, *weights):
    """Raise unless backward(G, X, B, A, v, I, s) is (dX, dB, dA, dv), and its arguments stay as they are."""
    B, A = weights[:2]
    before = [array.copy() for array in (G, X, *weights[:4])]
    wanted, wrong = gradients(G, X, *weights), wrong_gradients(G, X, *weights)
    found = backward(G, X, *weights)
    for name, now, array in zip("GXBAvI", (G, X, *weights), before):
        unchanged(name, now, array)
    fine = isinstance(found, (tuple, list)) and len(found) == 4
    assert fine, f"{backward.__name__} returns {kind_of(found)}, should return (dX, dB, dA, dv)"
    exchanged = np.shape(found[1]) == A.shape and np.shape(found[2]) == B.shape
    assert not exchanged, "dB and dA are exchanged: the order is (dX, dB, dA, dv)"
    for k, (name, want) in enumerate(zip(("dX", "dB", "dA", "dv"), wanted)):
        check(f"{name} (X {X.shape}, W {len(B)} x {A.shape[1]}, r = {len(A)})", found[k], want, rtol=1e-8, wrong=wrong[k])

# %% [markdown]
# ## Task 3. Algorithm 1, forward (4 points, 20 minutes)
#
# **Given** `X` and a layer.
#
# **Write** `forward(X, B, A, v, I, s)`: 3 to 6 lines. It builds $W$ and returns $Y$:
#
# $$W \leftarrow s\,B A, \qquad W_{i_k j_k} \leftarrow W_{i_k j_k} + v_k \ \text{ for every } k, \qquad Y = X W^T,$$
#
# where $i_k = \lfloor I_k / \mathrm{in} \rfloor$ and $j_k = I_k \bmod \mathrm{in}$ are row and column of place $I_k$.
#
# | | shape |
# |---|---|
# | `X` | `(..., in)`: `(in,)`, `(n, in)`, `(batch, n, in)`, ... |
# | returns | `(..., out)` |
#
# **Tested:** `X` with one to four axes; more inputs than outputs, fewer, and as many; rank 1; an empty support; that no argument
# is changed.
#
# <details><summary>Hint</summary>
#
# An array's `.flat` takes an array of flat places. It may be read and written, and `+=` is both. You need no reshape of `X`: `@`
# treats all axes but the last two as a batch.
#
# </details>

# %% task="forward"
def forward(X, B, A, v, I, s):
    """Y = X (s B A + S)^T, with W built: (..., in) to (..., out)."""
    ### BEGIN SOLUTION
    W = s * B @ A
    W.flat[I] += v
    return X @ W.T
    ### END SOLUTION

# %% test="forward" points=4
rng = draw("forward")
n, small, large = 3, int(rng.integers(4, 7)), int(rng.integers(8, 11))
for out, width, r in ((small, large, 2), (large, small, 3), (small, small, 2), (small, large, 1)):
    weights = layer(rng, out, width, r)
    for shape in ((n, width), (width,), (2, n, width)):
        X = rng.standard_normal(shape)
        before = [array.copy() for array in (X, *weights[:4])]
        want, wrong = right(X, *weights), wrong_outputs(X, *weights)
        Y = forward(X, *weights)
        for name, now, array in zip("XBAvI", (X, *weights), before):
            unchanged(name, now, array)
        check(f"Y (X {shape}, W {out} x {width}, r = {r})", Y, want, wrong=wrong)
### BEGIN HIDDEN TESTS
weights = layer(rng, 9, 5, 2)
X = rng.standard_normal((2, 1, 4, 5))
check("Y (X (2, 1, 4, 5), W 9 x 5)", forward(X, *weights), right(X, *weights), wrong=wrong_outputs(X, *weights))
B, A, v, I, s = weights
check("Y (nothing in the support)", forward(X, B, A, v[:0], I[:0], s), right(X, B, A, v[:0], I[:0], s))
### END HIDDEN TESTS

# %% [markdown]
# ## Task 4. Algorithm 1, backward (6 points, 30 minutes)
#
# **Given** `G` $= \partial L / \partial Y$ for some loss $L$, and what the forward pass had. $W$ was not kept: build it again.
#
# **Write** `backward(G, X, B, A, v, I, s)`: 5 to 10 lines. With the rows of $X$ and $G$ as tokens,
#
# $$dX = G\,W, \qquad dW = G^T X, \qquad dB = s\, dW A^T, \qquad dA = s\, B^T dW, \qquad dv_k = dW_{i_k j_k},$$
#
# where $dX$ is short for $\partial L / \partial X$, and so on. $dW$ exists only until the last three are there.
# A weight is used by every token: its gradient is the sum over all of them, along all leading axes.
#
# | | shape |
# |---|---|
# | `G` | `(..., out)` |
# | `X` | `(..., in)`, the leading axes of `G` |
# | returns | `(dX, dB, dA, dv)`, with the shapes of `X`, `B`, `A`, `v` |
#
# **Tested:** each gradient against difference quotients, for shapes as in task 3, also where $B = 0$; that no argument is
# changed.
#
# <details><summary>Hint</summary>
#
# `X.reshape(-1, X.shape[-1])` makes rows of the tokens, whatever the leading axes, and `dX` gets its axes back at the end.
#
# </details>

# %% task="backward"
def backward(G, X, B, A, v, I, s):
    """(dX, dB, dA, dv) of Y = X (s B A + S)^T, with W built again."""
    ### BEGIN SOLUTION
    W = s * B @ A
    W.flat[I] += v
    dW = G.reshape(-1, len(B)).T @ X.reshape(-1, A.shape[1])
    return G @ W, s * dW @ A.T, s * B.T @ dW, dW.flat[I]
    ### END SOLUTION

# %% test="backward" points=6
rng = draw("backward")
n, small, large = 3, int(rng.integers(4, 6)), int(rng.integers(7, 9))
for out, width, r, lead in ((small, large, 2, (n,)), (large, small, 3, (2, n)), (small, small, 2, (n,)), (small, large, 1, ())):
    weights = layer(rng, out, width, r)
    check_gradients(backward, rng.standard_normal((*lead, out)), rng.standard_normal((*lead, width)), *weights)
### BEGIN HIDDEN TESTS
B, A, v, I, s = layer(rng, 5, 3, 2)
X, G = rng.standard_normal((2, 1, 4, 3)), rng.standard_normal((2, 1, 4, 5))
for name, mine, want in zip(("dX", "dB", "dA", "dv"), backward(G, X, B, A, v, I, s), gradients(G, X, B, A, v, I, s)):
    check(f"{name} (X (2, 1, 4, 3), W 5 x 3)", mine, want, rtol=1e-8)
# At the start of training B = 0
for name, mine, want in zip(("dX", "dB", "dA", "dv"), backward(G, X, 0 * B, A, v, I, s), gradients(G, X, 0 * B, A, v, I, s)):
    check(f"{name} (B = 0)", mine, want, rtol=1e-8)
### END HIDDEN TESTS

# %% [markdown]
# ## Task 5. Factored, forward (5 points, 25 minutes)
#
# **Given** the same as in task 3.
#
# **Write** `factored_forward(X, B, A, v, I, s)`: 3 to 8 lines. The same $Y$, but $W$ is never formed, nor any other array of
# `out * in` numbers:
#
# $$Y = s\,(X A^T)\,B^T + X S^T, \qquad (X S^T)_{ti} = \sum_{k:\ i_k = i} X_{t j_k}\, v_k ,$$
#
# where $t$ is a token.
#
# | | shape |
# |---|---|
# | `X` | `(..., in)` |
# | $X A^T$ | `(..., r)` |
# | returns | `(..., out)` |
#
# **Tested:** equal to task 3's results, on the same shapes; and on a layer of 4,000,000 x 4,800,000 with 20 places, whose $W$
# would be 154 TB. A row of $W$ at a time is no way out: it must take seconds, and the grader stops a task after 30. (The large
# tests of tasks 5 and 6 need up to 1 GB of memory.)
#
# <details><summary>Hint</summary>
#
# `rows, cols = np.divmod(I, width)`. Two ways: a `csr_array((v, (rows, cols)), shape)`, with tokens in rows (reshape first); or
# one sparse product by hand, where `np.add.at(Y, (..., rows), terms)` adds each term, also where a row comes several times.
#
# </details>

# %% task="factored_forward"
def factored_forward(X, B, A, v, I, s):
    """Y = X (s B A + S)^T with nothing of W's size: (..., in) to (..., out)."""
    ### BEGIN SOLUTION
    out, width = len(B), A.shape[1]
    S = csr_array((v, np.divmod(I, width)), (out, width))
    rows = X.reshape(-1, width)
    Y = s * (rows @ A.T) @ B.T + (S @ rows.T).T
    return Y.reshape(*X.shape[:-1], out)
    ### END SOLUTION

# %% test="factored_forward" points=5
rng = draw("factored_forward")
n, small, large = 3, int(rng.integers(4, 7)), int(rng.integers(8, 11))
for out, width, r in ((small, large, 2), (large, small, 3), (small, small, 2), (small, large, 1)):
    weights = layer(rng, out, width, r)
    for shape in ((n, width), (width,), (2, n, width)):
        X = rng.standard_normal(shape)
        before = [array.copy() for array in (X, *weights[:4])]
        last = {i: k for k, i in enumerate(weights[3] // width)}  # of several places in a row, the last one
        lost = np.isin(np.arange(len(weights[3])), list(last.values())) * weights[2]
        want, wrong = right(X, *weights), wrong_outputs(X, *weights)
        wrong["of several places in one row only the last one counts: add, do not overwrite"] = right(
            X, *weights[:2], lost, *weights[3:])
        Y = factored_forward(X, *weights)
        for name, now, array in zip("XBAvI", (X, *weights), before):
            unchanged(name, now, array)
        check(f"Y (X {shape}, W {out} x {width}, r = {r})", Y, want, wrong=wrong)

out, width = 4_000_000, 4_800_000
I = np.unique(rng.integers(0, out * width, 20))
X, B, A, v = (rng.standard_normal(shape) for shape in ((1, width), (out, 1), (1, width), len(I)))
try:
    Y = factored_forward(X, B, A, v, I, 0.5)
except MemoryError:
    raise AssertionError("an array of out x in numbers was made (W, S or B A): 154 TB for a layer of this size") from None
check(f"Y (W {out} x {width})", Y, kernels.sl_linear(X, B, A, v, I, 0.5, algorithm="factored", backend="numpy"))
### BEGIN HIDDEN TESTS
weights = layer(rng, 9, 5, 2)
X = rng.standard_normal((2, 1, 4, 5))
check("Y (X (2, 1, 4, 5), W 9 x 5)", factored_forward(X, *weights), right(X, *weights), wrong=wrong_outputs(X, *weights))
### END HIDDEN TESTS

# %% [markdown]
# ## Task 6. Factored, backward (5 points, 35 minutes)
#
# **Given** the same as in task 4.
#
# **Write** `factored_backward(G, X, B, A, v, I, s)`: 6 to 12 lines. The same four gradients, with neither $W$ nor $dW$:
#
# $$dX = s\,(G B)\,A + G S, \qquad dB = s\, G^T (X A^T), \qquad dA = s\,(G B)^T X, \qquad dv_k = \sum_t G_{t i_k} X_{t j_k} .$$
#
# | | shape, with $n$ tokens (the product of all leading axes, 1 if there are none) |
# |---|---|
# | $X A^T$, $G B$ | `(n, r)` |
# | $G S$ | `(n, in)` |
# | $G_{t i_k} X_{t j_k}$ | `(n, nnz)`: one column for each $k$ |
# | returns | `(dX, dB, dA, dv)`, with the shapes of `X`, `B`, `A`, `v` |
#
# **Tested:** as task 4, and on a layer of 4,000,000 x 4,800,000 as in task 5.
#
# <details><summary>Hint</summary>
#
# $GS$ is task 5's sparse product with $S$ instead of $S^T$: rows and columns change places. `G[:, rows]` picks, for each $k$, the
# column $i_k$ of $G$. And mind the brackets: `G.T @ X @ A.T` makes $dW$ first.
#
# </details>

# %% task="factored_backward"
def factored_backward(G, X, B, A, v, I, s):
    """(dX, dB, dA, dv) of Y = X (s B A + S)^T with nothing of W's size."""
    ### BEGIN SOLUTION
    out, width = len(B), A.shape[1]
    rows, cols = np.divmod(I, width)
    S = csr_array((v, (rows, cols)), (out, width))
    x, g = X.reshape(-1, width), G.reshape(-1, out)
    gB = s * g @ B
    dX = gB @ A + (S.T @ g.T).T
    dv = (g[:, rows] * x[:, cols]).sum(0)
    return dX.reshape(X.shape), s * g.T @ (x @ A.T), gB.T @ x, dv
    ### END SOLUTION

# %% test="factored_backward" points=5
rng = draw("factored_backward")
n, small, large = 3, int(rng.integers(4, 6)), int(rng.integers(7, 9))
for out, width, r, lead in ((small, large, 2, (n,)), (large, small, 3, (2, n)), (small, small, 2, (n,)), (small, large, 1, ())):
    weights = layer(rng, out, width, r)
    check_gradients(factored_backward, rng.standard_normal((*lead, out)), rng.standard_normal((*lead, width)), *weights)

out, width = 4_000_000, 4_800_000
I = np.unique(rng.integers(0, out * width, 20))
G, X, B, A, v = (rng.standard_normal(shape) for shape in ((1, out), (1, width), (out, 1), (1, width), len(I)))
try:
    found = factored_backward(G, X, B, A, v, I, 0.5)
except MemoryError:
    raise AssertionError("an array of out x in numbers was made (W, S or dW): 154 TB for a layer of this size") from None
wanted = kernels.sl_linear_backward(G, X, B, A, v, I, 0.5, algorithm="factored", backend="numpy")
for name, mine, want in zip(("dX", "dB", "dA", "dv"), found, wanted):
    check(f"{name} (W {out} x {width})", mine, want)
### BEGIN HIDDEN TESTS
B, A, v, I, s = layer(rng, 5, 3, 2)
X, G = rng.standard_normal((2, 1, 4, 3)), rng.standard_normal((2, 1, 4, 5))
for name, mine, want in zip(("dX", "dB", "dA", "dv"), factored_backward(G, X, B, A, v, I, s), gradients(G, X, B, A, v, I, s)):
    check(f"{name} (X (2, 1, 4, 3), W 5 x 3)", mine, want, rtol=1e-8)
### END HIDDEN TESTS

# %% [markdown]
# ## Task 7. What it costs (4 points, 25 minutes)
#
# **Given** the matrices of a model that a method replaces, and how many parameters it has besides (embedding, head, gains of
# norms), which stay as they are.
#
# **Write** `counts(matrices, rank, delta, rest)`: 6 to 14 lines. For each of three methods the number of trained parameters
# $N$, and the bytes of weights, Adam's two moments and indices, as the paper's table 2 counts them. A weight takes 2 bytes
# (bfloat16), and so does each of its two moments; a place of $S$ takes 8 more (int64), is not trained and has no moments. For
# one matrix (there are `how_many` of it):
#
# | | parameters | indices |
# |---|---|---|
# | `"full"` | $\mathrm{out} \cdot \mathrm{in}$ | |
# | `"low_rank"` | $r\,(\mathrm{out} + \mathrm{in})$ | |
# | `"sltrain"` | as `"low_rank"`, and nnz more | $\mathrm{nnz}$, computed as `int(delta * out * width)` |
#
# $$\text{bytes} = (2 + 2 + 2)\, N + 8\, N_{\text{indices}}$$
#
# with `rest` in $N$; $N_{\text{indices}}$ is the nnz of all matrices together, and 0 but for `"sltrain"`.
#
# | | |
# |---|---|
# | `matrices` | a list of `(out, in, how_many)`, such as `[(512, 512, 32), (1376, 512, 16), (512, 1376, 8)]` |
# | `rank`, `delta` | $r$ and $\delta$, the same for all matrices |
# | `rest` | the parameters outside of these matrices. They are trained too, by every method, and have moments |
# | returns | `{"full": {"parameters": N, "bytes": bytes}, "low_rank": {...}, "sltrain": {...}}`, all of them `int` |
#
# **Tested:** small models by numbers that are written out; four LLaMAs of the paper against the package, and against the paper's
# 44, 97, 194 and 646 million parameters.
#
# <details><summary>Hint</summary>
#
# nnz is cut for each matrix on its own, before it is multiplied by how many there are. Add up parameters and indices first, bytes
# follow from these two.
#
# </details>

# %% task="counts"
def counts(matrices, rank, delta, rest):
    """{"full": {"parameters": N, "bytes": n}, "low_rank": {...}, "sltrain": {...}}"""
    ### BEGIN SOLUTION
    full = rest + sum(out * width * many for out, width, many in matrices)
    low_rank = rest + sum(rank * (out + width) * many for out, width, many in matrices)
    nnz = sum(int(delta * out * width) * many for out, width, many in matrices)
    found = {"full": (full, 0), "low_rank": (low_rank, 0), "sltrain": (low_rank + nnz, nnz)}
    return {name: {"parameters": n, "bytes": 6 * n + 8 * places} for name, (n, places) in found.items()}
    ### END SOLUTION

# %% test="counts" points=4
from minisl.memory import paper

# 120 + 60 + 10 parameters; rank 2; nnz is 12 (0.21 * 60 = 12.6) in each of three matrices
check("counts([(6, 10, 2), (4, 15, 1)], 2, 0.21, 10)", counts([(6, 10, 2), (4, 15, 1)], 2, 0.21, 10),
      {"full": {"parameters": 190, "bytes": 1140}, "low_rank": {"parameters": 112, "bytes": 672},
       "sltrain": {"parameters": 148, "bytes": 1176}},
      wrong={"full": {"parameters": {"rest is missing": 180, "how many there are of a matrix is forgotten": 130,
                                     "rest is subtracted": 170},
                      "bytes": {"Adam's two moments are missing": 380, "only one moment is counted": 760,
                                "4 bytes for a number, bfloat16 has 2": 2280, "gradients are counted too": 1520,
                                "rest is counted without moments, it has them too": 1100}},
             "low_rank": {"parameters": {"rest is missing": 102, "how many there are of a matrix is forgotten": 80,
                                         "the full matrices are counted too": 292, "r is missing": 61}},
             "sltrain": {"parameters": {"rest is missing": 138, "nnz is rounded, it should be cut": 151,
                                        "nnz is cut once for several matrices, it should be cut for each": 149,
                                        "indices are counted as parameters, they are not trained": 184, "nnz is missing": 112,
                                        "how many there are of a matrix is forgotten": 104},
                         "bytes": {"indices are missing": 888, "4 bytes for an index, int64 has 8": 1032,
                                   "2 bytes for an index, int64 has 8": 960,
                                   "indices are counted with moments, they have none": 1752}}})
PAPER = {"60m": 44, "130m": 97, "350m": 194, "1b": 646}  # million parameters of SLTrain
for size, millions in PAPER.items():
    model, r = paper.model_of(size), paper.RANKS[size]
    h, f, L, V = model.hidden_size, model.intermediate_size, model.num_hidden_layers, model.vocab_size
    found = counts([(h, h, 4 * L), (f, h, 2 * L), (h, f, L)], r, 0.03, 2 * V * h + (2 * L + 1) * h)
    for method, of in found.items():
        check(f"parameters of {method}, {size}", of["parameters"], paper.method_of(method, size).build(model).num_parameters())
        check(f"bytes of {method}, {size}", of["bytes"], sum(paper.counted(method, size)))
    check(f"million parameters of sltrain, {size}", round(found["sltrain"]["parameters"] / 1e6), millions)
### BEGIN HIDDEN TESTS
rng = draw("counts")
out, width, many, r, rest = (int(n) for n in rng.integers(11, 40, 5))
nnz = int(0.137 * out * width)
low = rest + many * r * (out + width)
full = rest + many * out * width
check(f"counts([({out}, {width}, {many})], {r}, 0.137, {rest})", counts([(out, width, many)], r, 0.137, rest),
      {"full": {"parameters": full, "bytes": 6 * full}, "low_rank": {"parameters": low, "bytes": 6 * low},
       "sltrain": {"parameters": low + many * nnz, "bytes": 6 * low + 14 * many * nnz}})
### END HIDDEN TESTS

# %% [markdown]
# ## Task 8. Adam (3 points, 20 minutes)
#
# **Given** an array $p$ of weights, its gradient $g$, and Adam's two moments before update number $t$ (the first update has
# $t = 1$). The second moment is called $u$ here, as $v$ are the values of $S$.
#
# **Write** `adam(p, g, m, u, t, lr, b1=0.9, b2=0.999, eps=1e-8)`: 3 to 6 lines, entry by entry:
#
# $$m' = \beta_1 m + (1 - \beta_1)\, g, \qquad u' = \beta_2 u + (1 - \beta_2)\, g^2, \qquad
# p' = p - \eta\, \frac{m' / (1 - \beta_1^t)}{\sqrt{u' / (1 - \beta_2^t)} + \varepsilon}$$
#
# | | shape |
# |---|---|
# | `p`, `g`, `m`, `u` | any, the same for all |
# | `t`, `lr` ($\eta$), `b1`, `b2`, `eps` | numbers |
# | returns | $(p', m', u')$, new arrays; the arguments keep their values |
#
# **Tested:** updates 1 to 5, against the moments as sums over all gradients so far; other betas and a larger `eps`; gradients of
# zero; that no argument is changed.
#
# <details><summary>Hint</summary>
#
# The moments that are returned are $m'$ and $u'$ as they are; what is divided by $1 - \beta^t$ is used for this update only.
#
# </details>

# %% task="adam"
def adam(p, g, m, u, t, lr, b1=0.9, b2=0.999, eps=1e-8):
    """(p, m, u) after Adam's update number t = 1, 2, ..."""
    ### BEGIN SOLUTION
    m = b1 * m + (1 - b1) * g
    u = b2 * u + (1 - b2) * g**2
    return p - lr * (m / (1 - b1**t)) / (np.sqrt(u / (1 - b2**t)) + eps), m, u
    ### END SOLUTION

# %% test="adam" points=3
rng = draw("adam")
for shape, options in (((5,), {"b1": 0.7, "b2": 0.95, "eps": 0.02}), ((3, 4), {})):
    b1, b2, eps = (options.get(name, usual) for name, usual in (("b1", 0.9), ("b2", 0.999), ("eps", 1e-8)))
    lr, all_g = float(rng.uniform(0.01, 0.1)), rng.standard_normal((5, *shape))

    def moment(b, x):
        """After len(x) updates: a gradient counts b^age as much as the newest."""
        return sum(((1 - b) * b**age * one for age, one in enumerate(x[::-1])), np.zeros(x.shape[1:]))

    for t in (4, 1, 2, 3, 5):
        p, g = rng.standard_normal(shape), all_g[t - 1].copy()
        m, u = moment(b1, all_g[:t - 1]), moment(b2, all_g[:t - 1] ** 2)
        before = [array.copy() for array in (p, g, m, u)]
        m1, u1 = moment(b1, all_g[:t]), moment(b2, all_g[:t] ** 2)
        one, two = 1 - b1**t, 1 - b2**t  # bias corrections
        found = adam(p, g, m, u, t, lr, **options)
        for name, now, array in zip("pgmu", (p, g, m, u), before):
            unchanged(name, now, array)
        fine = isinstance(found, (tuple, list)) and len(found) == 3
        assert fine, f"adam returns {kind_of(found)}, should return (p, m, u)"
        check(f"m (t = {t})", found[1], m1, rtol=1e-8,
              wrong={"m / (1 - b1^t) is returned, should be m itself": m1 / one,
                     "b1 and 1 - b1 are swapped": b1 * g + (1 - b1) * m, "m is as before": m,
                     "b2 stands there for b1": b2 * m + (1 - b2) * g, "1 - b1 is missing": b1 * m + g,
                     "u is returned in its place: the order is (p, m, u)": u1})
        check(f"u (t = {t})", found[2], u1, rtol=1e-8,
              wrong={"u / (1 - b2^t) is returned, should be u itself": u1 / two, "g is not squared": b2 * u + (1 - b2) * g,
                     "b1 stands there for b2": b1 * u + (1 - b1) * g**2, "1 - b2 is missing": b2 * u + g**2,
                     "b2 and 1 - b2 are swapped": b2 * g**2 + (1 - b2) * u, "u is as before": u,
                     "b2 is 0.999, not the argument": 0.999 * u + 0.001 * g**2,
                     "m is squared, should be g": b2 * u + (1 - b2) * m1**2})
        mean, root = m1 / one, np.sqrt(u1 / two)
        new = p - lr * mean / (root + eps)
        wrong = {"bias correction is missing": p - lr * m1 / (np.sqrt(u1) + eps),
                 "bias correction of u is missing": p - lr * mean / (np.sqrt(u1) + eps),
                 "bias correction of m is missing": p - lr * m1 / (root + eps),
                 "eps is inside of the root, should be beside it": p - lr * mean / np.sqrt(u1 / two + eps),
                 "the step goes uphill: p minus, not plus": 2 * p - new, "lr is missing": p + (new - p) / lr,
                 "the root of u is missing": p - lr * mean / (u1 / two + eps),
                 "eps is missing, or not the argument": p - lr * mean / root,
                 "the step is returned, not p minus the step": p - new,
                 "g takes the place of m": p - lr * g / (root + eps),
                 "m and u of before the update are used": p - lr * m / one / (np.sqrt(u / two) + eps)}
        for what, other in (("t is one too large", t + 1), ("t is one too small", t - 1), ("t is 1 in every update", 1)):
            if t > 1:
                wrong[what] = p - lr * m1 / (1 - b1**other) / (np.sqrt(u1 / (1 - b2**other)) + eps)
        check(f"p (t = {t})", found[0], new, rtol=1e-8, wrong=wrong)
### BEGIN HIDDEN TESTS
p, g = rng.standard_normal((2, 3, 2))
p1, m1, u1 = adam(p, g, 0 * p, 0 * p, 1, 0.1)
check("p (t = 1): every entry moves by lr", abs(p1 - p), np.full(p.shape, 0.1), rtol=1e-5)
check("p (t = 1, g = 0)", adam(p, 0 * p, 0 * p, 0 * p, 1, 0.1)[0], p)
### END HIDDEN TESTS

# %% [markdown]
# ## Task 9. Does it train? (6 points, 45 minutes)
#
# Now all of it together. A network of two layers,
#
# $$H = \tanh(X W_1^T), \qquad P = H W_2^T, \qquad L = \text{mean of } (P - Y)^2 \text{ over all entries},$$
#
# is to imitate another one whose matrices have full rank: $Y$ has variance 1, so a network that has learned nothing has a loss of
# about 1. Neither $BA$ nor $S$ alone can do it.
#
# **Given** the training data, and both layers at their start as `init` makes them.
#
# **Write** `train(X, Y, layers, s)`: 15 to 25 lines. Train $B$, $A$ and $v$ of both layers, and return them. 600 updates of
# Adam with learning rate 0.01, each with the gradient of all of `X`, are enough and take a second; you are free to do it
# otherwise.
#
# The gradients, last layer first, where $N$ is the number of entries of $Y$ and $*$ goes entry by entry:
#
# $$G_2 = \frac{2}{N}(P - Y), \qquad dH = \text{dX of layer 2}, \qquad G_1 = dH * (1 - H * H)$$
#
# $G_2 = \partial L / \partial P$ and $G_1 = \partial L / \partial (X W_1^T)$ are what `backward` takes as `G` for layer 2 and
# layer 1. For layer 2, `X` is $H$ and `dX` is $dH$.
#
# | | |
# |---|---|
# | `X`, `Y` | `(n, in)`, `(n, out)` |
# | `layers` | `[(B, A, v, I), (B, A, v, I)]`: layer 1 from `in` to `hidden`, layer 2 from `hidden` to `out` |
# | `s` | $\alpha / r$ of both |
# | returns | `[(B, A, v), (B, A, v)]` after training |
#
# You may change the arrays in `layers`, or copy them. Use `forward`, `backward` and `adam` of above, or the factored forms. If
# one of them is not done yet, the checks below fail; the grader puts the right one in its place.
#
# **Tested:** the shapes, and the loss of *what you return* on data that you have not seen, which must be **below 0.06**.
#
# <details><summary>Hint</summary>
#
# Copy the weights into a flat list of six arrays `[B1, A1, v1, B2, A2, v2]`, and keep two more lists of six for Adam's moments,
# zero at first. One update: forward through both layers, back through both, then a loop over six.
#
# </details>

# %%
def network_loss(layers, X, Y, s, squash=np.tanh):
    """L of a network; layers: [(B, A, v, I), (B, A, v, I)]"""
    H = squash(right(X, *layers[0], s))
    return float(((right(H, *layers[1], s) - Y) ** 2).mean())


def training_problem(rng, r=2, alpha=8, sizes=(12, 16, 24)):
    """X, Y for training, X, Y for the test, layers at their start, s. The network to imitate is the same for everyone."""
    fixed, teacher, layers = np.random.default_rng(5), [], []
    for width, out in ((sizes[0], sizes[1]), (sizes[1], sizes[2])):
        I = np.flatnonzero(fixed.random(out * width) < 0.15)
        shapes = (out, r), (r, width), len(I)
        scales = 1, (2 * r * width) ** -0.5, (0.3 * width) ** -0.5
        teacher.append([scale * fixed.standard_normal(shape) for shape, scale in zip(shapes, scales)])
        bound = width**-0.5
        layers.append((np.zeros((out, r)), rng.uniform(-bound, bound, (r, width)), rng.uniform(-bound, bound, len(I)), I))
    X = rng.standard_normal((1024, sizes[0]))
    H = np.tanh(right(X, *teacher[0], layers[0][3], 1.0))
    Y = right(H, *teacher[1], layers[1][3], 1.0)
    Y = Y / Y.std()
    return X[:512], Y[:512], X[512:], Y[512:], layers, alpha / r

# %% task="train"
def train(X, Y, layers, s):
    """[(B, A, v), (B, A, v)] of a network H = tanh(X W1^T), P = H W2^T, trained to a small mean of (P - Y)^2."""
    ### BEGIN SOLUTION
    I1, I2 = layers[0][3], layers[1][3]
    p = [array.copy() for layer in layers for array in layer[:3]]
    m, u = [0 * array for array in p], [0 * array for array in p]
    for t in range(1, 601):
        H = np.tanh(forward(X, *p[:3], I1, s))
        P = forward(H, *p[3:], I2, s)
        G = 2 * (P - Y) / Y.size
        dH, *second = backward(G, H, *p[3:], I2, s)
        _, *first = backward(dH * (1 - H * H), X, *p[:3], I1, s)
        for k, g in enumerate(first + second):
            p[k], m[k], u[k] = adam(p[k], g, m[k], u[k], t, 0.01)
    return [tuple(p[:3]), tuple(p[3:])]
    ### END SOLUTION

# %% test="train" points=6
X, Y, X_test, Y_test, layers, s = training_problem(draw("train"))
start = [tuple(array.copy() for array in layer) for layer in layers]
trained = train(X, Y, layers, s)
fine = isinstance(trained, (tuple, list)) and [isinstance(layer, (tuple, list)) and len(layer) for layer in trained] == [3, 3]
assert fine, f"train returns {kind_of(trained)}, should return [(B, A, v), (B, A, v)]"
for number, (old, new) in enumerate(zip(start, trained), 1):
    for name, before, now in zip("BAv", old, new):
        now = np.asarray(now)
        assert now.shape == before.shape, (f"{name} of layer {number} has shape {now.shape}, should have {before.shape}; "
                                           "the order is (B, A, v)")
        assert np.isfinite(now).all(), (f"{name} of layer {number} is NaN or infinite: is the first t 0 (should be 1)? "
                                        "Or did the training diverge (learning rate too large)?")

trained = [(*map(np.asarray, layer), I) for layer, (*_, I) in zip(trained, start)]
loss, loss_at_start = network_loss(trained, X_test, Y_test, s), network_loss(start, X_test, Y_test, s)
if not loss < 0.06:
    names = [f"{name} of layer {k + 1}" for k in (0, 1) for j, name in enumerate("BAv")
             if np.array_equal(trained[k][j], start[k][j])]
    others = {"as if alpha / r were missing": (trained, 1.0, np.tanh), "as if tanh were missing": (trained, s, lambda z: z),
              "as if S were missing": ([(B, A, 0 * v, I) for B, A, v, I in trained], s, np.tanh),
              "as if S were scaled by alpha / r too": ([(B, A, s * v, I) for B, A, v, I in trained], s, np.tanh)}
    found = {what: network_loss(net, X_test, Y_test, scale, squash) for what, (net, scale, squash) in others.items()}
    best = min(found, key=found.get)
    why = f"; still as at the start: {', '.join(names)}" if names else ""
    if not names and found[best] < min(0.5 * loss, 0.5):
        why = f"; your network was trained {best}: then its loss is {found[best]:.3f}"
    elif not names and loss > loss_at_start:
        why = "; it got worse: does the update go uphill?"
    elif not names:
        why = (f"; on the training data it is {network_loss(trained, X, Y, s):.3f}. Updates too few, too small, too large? Plain "
               "descent, not Adam? Moments that start anew? A factor of a gradient left out, such as 1 - H * H? The two layers "
               "mixed up?")
    raise AssertionError(f"the loss on unseen data is {loss:.3f} (at the start {loss_at_start:.3f}), should be below 0.06{why}")
