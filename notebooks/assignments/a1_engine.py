# %% [markdown]
# # Assignment 1: the engine
#
# You write the parts of an autograd engine that are easy to get wrong: the order of the backward pass, what broadcasting does
# to a gradient, five backwards, and a gradient check that can fail.
#
# **How.** Replace each `raise NotImplementedError()` with your code. The cell below it checks your answer: it prints nothing
# and passes, or says what is wrong. Tasks are graded apart from each other: skip one and come back. To check them all, save the
# notebook, then run `python -m minisl.course check a1_engine.ipynb` (or `pytest`) in this folder: both read the saved file.
# Your tests are a part of the grader's; there are more cases there, none of them a trick. The grader has its own copy of the
# test cells: editing yours changes nothing. Use what Python, NumPy and SciPy have. Do not call `minisl` in your answers: its
# engine is what the tests compare you with. (A rule for people: no test looks.)
#
# About three hours. Read `notebooks/01_autograd.ipynb` first. It has code for some of these pieces: close it before you start,
# and write yours from the formulas here. Open it again only where the hint did not help.
#
# **Words.** $L$ is the number in the end (the loss). $\bar x$ is the gradient of $L$ with respect to $x$, an array with the
# shape of $x$: $\bar x_i = \partial L / \partial x_i$. A *backward* of $y = f(x)$ takes $\bar y$, which the code calls `grad`,
# and what else it needs from the forward; it returns $\bar x$.

# %%
import math
from collections import Counter

import numpy as np

from minisl.autograd import Tensor, ops
from minisl.course import Wrong, check, draw, raises, unchanged


def engine(f, grad, *arrays):
    """What minisl's engine says: the gradients of `arrays`, for y = f(*arrays) and the gradient `grad` of y. For the tests."""
    leaves = [Tensor(array, requires_grad=True) for array in arrays]
    f(*leaves).backward(np.asarray(grad))
    return tuple(leaf.grad for leaf in leaves)


def ask(where, function, *arguments):
    """function(*arguments); an error in it says where. For the tests."""
    try:
        return function(*arguments)
    except RecursionError:  # its traceback has a thousand lines
        raise Wrong(f"{where}: RecursionError: no recursion here, use a list as the stack") from None
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise Wrong(f"{where}: {type(error).__name__}: {error}") from error

# %% [markdown]
# ## Task 1. The order of the backward pass (4 points, 30 minutes)
#
# **Given** a graph of results. Each node has a name (a string or a number). `parents(name)` returns the tuple of names that
# this node was computed from, `()` for a leaf. For $y = x \cdot x$ it returns `("x", "x")`.
#
# **Write** `topological_order(root, parents)`: 8 to 15 lines. It returns a list with the name of every node that `root` was
# computed from, directly or through others, and `root` itself. A node may pass its gradient on only when that gradient is
# complete. So
#
# $$\text{place}(n) < \text{place}(p) \quad \text{for every node } n \text{ and each of its parents } p .$$
#
# Most graphs have several such orders. Any of them is right.
#
# | | |
# |---|---|
# | `root` | a name |
# | `parents` | a function: a name in, a tuple of names out |
# | returns | a list of names, `root` first, each name once |
#
# **Tested:** each node stands in the list once, before its parents; a root that is a leaf; a parent that is listed twice;
# graphs drawn at random. `parents` is asked at most twice about a node: 12 diamonds on top of each other have 37 nodes, but
# 4,096 paths. No recursion: a chain has 5,000 nodes, and Python's stack is shorter.
#
# <details><summary>Hint</summary>
#
# Two ways. Kahn's, in notebook `01_autograd`: count the uses of each node, and take a node when all are done. Or depth first: a
# node is *finished* when all its parents are finished, and in the order of finishing every node comes after its parents. To
# know when, put the node on your stack a second time, with a mark, below its parents.
#
# </details>

# %% task="topological_order"
def topological_order(root, parents):
    """The names of all nodes that `root` was computed from, itself included: each once, before its parents."""
    ### BEGIN SOLUTION
    finished, seen, stack = [], set(), [(root, False)]
    while stack:
        node, parents_done = stack.pop()
        if parents_done:
            finished.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(parent, False) for parent in parents(node)]
    return finished[::-1]
    ### END SOLUTION

# %% test="topological_order" points=4
def check_order(what, root, graph):
    """graph: {name: names of its parents}, every node of it reached from the root."""
    asked = Counter()

    def parents(name):
        asked[name] += 1
        return graph[name]

    order = ask(what, topological_order, root, parents)
    assert isinstance(order, (list, tuple)), f"{what}: the result is of type {type(order).__name__}, should be a list"
    count = Counter(order)
    for name in order:
        assert name in graph, f"{what}: {name!r} is in the order, and no node of the graph"
        assert count[name] == 1, f"{what}: {name!r} stands {count[name]:,} times in the order, should stand there once"
    for name in graph:
        leaf = "" if graph[name] else ", a leaf,"
        assert name in count, f"{what}: {name!r}{leaf} is missing: {len(order)} of {len(graph)} nodes are in the order"
    assert order[0] == root, f"{what}: the order starts with {order[0]!r}, not with the root {root!r}: reversed?"
    place = {name: k for k, name in enumerate(order)}
    for name in graph:
        for parent in graph[name]:
            assert place[name] < place[parent], (f"{what}: {parent!r} comes before {name!r}, which was computed from it: "
                                                 "at its turn its gradient is not complete")
    for name, times in asked.most_common(1):
        assert times <= 2, (f"{what}: parents was asked {times:,} times about {name!r}, at most 2 are allowed: "
                            "visit each node once")


def draw_graph(rng, nodes):
    """Every node but the first is a parent of one before it, at least; names and parents in any order."""
    graph, names = {k: [] for k in range(nodes)}, rng.permutation(nodes)
    for k in range(1, nodes):
        for user in rng.integers(0, k, rng.integers(1, 4)):
            graph[int(user)].append(k)
    return f"n{names[0]}", {f"n{names[k]}": tuple(f"n{names[p]}" for p in rng.permutation(graph[k])) for k in graph}


check_order("one leaf", "x", {"x": ()})
check_order("y = x * x", "y", {"x": (), "y": ("x", "x")})
check_order("a short and a long way from y to c", "y", {"a": (), "c": ("a",), "u": ("c",), "v": ("u",), "y": ("c", "v")})
check_order("a long and a short way from y to c", "y", {"a": (), "c": ("a",), "u": ("c",), "v": ("u",), "y": ("v", "c")})
diamonds = {0: ()}
for k in range(0, 36, 3):
    diamonds |= {k + 1: (k,), k + 2: (k,), k + 3: (k + 1, k + 2)}
check_order("12 diamonds", 36, diamonds)
rng = draw("topological_order")
for n in rng.integers(5, 30, 10):
    check_order("a random graph", *draw_graph(rng, int(n)))
check_order("a chain of 5,000", 4999, {0: ()} | {k: (k - 1,) for k in range(1, 5000)})
### BEGIN HIDDEN TESTS
check_order("y = f(x, x, x), x = g(w, w)", "y", {"w": (), "x": ("w", "w"), "y": ("x", "x", "x")})
for n in rng.integers(30, 120, 10):
    check_order("a random graph", *draw_graph(rng, int(n)))
check_order("a chain of 1,500 with a skip over each node", 1499, {0: (), 1: (0,)} | {k: (k - 1, k - 2) for k in range(2, 1500)})
### END HIDDEN TESTS

# %% [markdown]
# ## Task 2. Un-broadcasting (4 points, 20 minutes)
#
# **Given** the gradient $G$ of a result that NumPy made by broadcasting an argument $x$ of shape `shape`. Broadcasting copies:
# entry $x_i$ was used at several places $j$ of the result, so by the chain rule
#
# $$\bar x_i = \sum_{j \text{ copies } i} G_j .$$
#
# **Write** `unbroadcast(grad, shape)`: 3 to 8 lines.
#
# | | shape |
# |---|---|
# | `grad` | any that `shape` broadcasts to, such as `(2, 3, 4)` |
# | returns | `shape`, such as `(3, 1)` |
#
# **Tested:** shapes with fewer axes, with axes of length 1, with both, and the scalar `()`; equal shapes; that `grad` is not
# changed.
#
# <details><summary>Hint</summary>
#
# Two things can have happened: axes were put in front, and axes of length 1 were stretched. Undo them in this order; for the
# second, `sum` has a `keepdims`.
#
# </details>

# %% task="unbroadcast"
def unbroadcast(grad, shape):
    """The gradient of an argument of `shape`, from the gradient of what it was broadcast to."""
    ### BEGIN SOLUTION
    grad = grad.sum(axis=tuple(range(grad.ndim - len(shape))))
    stretched = tuple(axis for axis, length in enumerate(shape) if length == 1 and grad.shape[axis] != 1)
    return grad.sum(axis=stretched, keepdims=True)
    ### END SOLUTION

# %% test="unbroadcast" points=4
rng = draw("unbroadcast")
grad = rng.standard_normal((2, 3, 4))
for shape, copies, want in (((2, 3, 4), 1, grad), ((3, 4), 2, grad.sum(0)), ((2, 3, 1), 4, grad.sum(2, keepdims=True)),
                            ((3, 1), 8, grad.sum((0, 2))[:, None]), ((), 24, grad.sum())):
    before, one = grad.copy(), grad[(0,) * (3 - len(shape))][tuple(slice(n) for n in shape)]
    check(f"gradient of shape {shape} from (2, 3, 4)", ask(f"shape {shape} from (2, 3, 4)", unbroadcast, grad, shape), want,
          wrong={"the mean over the copies, not their sum": want / copies, "only the first of the copies counts": one})
    unchanged("grad", grad, before)
### BEGIN HIDDEN TESTS
a, b, c = (int(n) for n in rng.integers(2, 6, 3))
grad = rng.standard_normal((a, b, 1, c))
check(f"gradient of shape (1, {b}, 1, 1) from {grad.shape}", unbroadcast(grad, (1, b, 1, 1)), grad.sum((0, 3), keepdims=True),
      wrong={"the mean over the copies, not their sum": grad.mean((0, 3), keepdims=True)})
check(f"gradient of shape (1,) from {grad.shape}", unbroadcast(grad, (1,)), grad.sum()[None])
check(f"gradient of shape (1, 1) from {(1, c)}", unbroadcast(grad[0, 0], (1, 1)), grad[0, 0].sum()[None, None])
check("gradient of shape () from ()", unbroadcast(np.asarray(grad.sum()), ()), grad.sum())
### END HIDDEN TESTS

# %% [markdown]
# ## Task 3. The backward of a product (3 points, 15 minutes)
#
# **Given** the forward, with NumPy's broadcasting. For equal shapes it reads
#
# $$y_i = a_i \, b_i .$$
#
# **Write** `multiply_backward(grad, a, b)`: 1 to 6 lines. Derive $\bar a$ and $\bar b$ with the chain rule, then think of the
# shapes. You may call `unbroadcast` of task 2. While yours does not pass, this task fails here too; the grader tries it again
# with one that works.
#
# | | shape |
# |---|---|
# | `a`, `b` | arrays, any two that can be broadcast to each other, such as `(2, 3, 4)` and `(3, 1)`; a scalar has shape `()` |
# | `grad` | that of `a * b`, such as `(2, 3, 4)` |
# | returns | the tuple $(\bar a, \bar b)$, with the shapes of `a` and `b` |
#
# **Tested:** equal shapes; `a` smaller, `b` smaller, both smaller than the result; scalars; that no argument is changed.
#
# <details><summary>Hint</summary>
#
# What is $\partial y_i / \partial a_i$? If `a` was stretched, compute the gradient in the shape of $y$ first.
#
# </details>

# %% task="multiply_backward"
def multiply_backward(grad, a, b):
    """The gradients of a and b, for y = a * b with the gradient `grad`."""
    ### BEGIN SOLUTION
    return unbroadcast(grad * b, a.shape), unbroadcast(grad * a, b.shape)
    ### END SOLUTION

# %% test="multiply_backward" points=3
def check_multiply(rng, shape_a, shape_b):
    a, b = np.asarray(rng.standard_normal(shape_a)), np.asarray(rng.standard_normal(shape_b))
    y = a * b
    arguments = {"grad": np.asarray(rng.standard_normal(y.shape)), "a": a, "b": b}
    before = {name: value.copy() for name, value in arguments.items()}
    want = engine(lambda a, b: a * b, arguments["grad"], a, b)
    plus, ones = engine(lambda a, b: a + b, arguments["grad"], a, b), engine(lambda a, b: a * b, np.ones(y.shape), a, b)
    wrong = [{"this is the gradient of a + b": p, "grad is not used": q, "grad was summed too early": p * q}
             for p, q in zip(plus, ones)]
    where = f"a {shape_a}, b {shape_b}"
    check(f"(gradient of a, gradient of b) for {where}", ask(where, multiply_backward, *arguments.values()), want,
          wrong=dict(enumerate(wrong)))
    for name, value in arguments.items():
        unchanged(name, value, before[name])


rng = draw("multiply_backward")
m, n = (int(n) for n in rng.permutation([3, 4, 5])[:2])
for shape_a, shape_b in (((m, n), (m, n)), ((2, m, n), (m, 1)), ((n,), (2, m, n)), ((m, 1), (1, n)), ((), (m, n))):
    check_multiply(rng, shape_a, shape_b)
### BEGIN HIDDEN TESTS
for shape_a, shape_b in (((1, n), (1, n)), ((1, m), (n, 1)), ((2, 1, n), (m, 1)), ((), ()), ((m, n), ()), ((1,), ())):
    check_multiply(rng, shape_a, shape_b)
### END HIDDEN TESTS

# %% [markdown]
# ## Task 4. The backward of a matrix product (4 points, 20 minutes)
#
# **Given** the forward of a linear layer, `y = x @ w`: $D$ numbers in, $O$ numbers out. A batch of $B$ texts of $T$ tokens uses
# one and the same $W$:
#
# $$Y_{bto} = \sum_d X_{btd} \, W_{do} .$$
#
# **Write** `matmul_backward(grad, x, w)`: 2 to 6 lines. Derive both gradients from the formula with indices.
#
# | | shape |
# |---|---|
# | `x` | `(B, T, D)`, or another number of axes before the last: `(N, D)`, `(A, B, T, D)` |
# | `w` | `(D, O)` |
# | `grad` | `(B, T, O)`: that of `x`, with `O` in the place of `D` |
# | returns | the tuple $(\bar X, \bar W)$, with the shapes of `x` and `w` |
#
# **Tested:** $X$ with two to four axes; lengths drawn, most of them different; that no argument is changed.
#
# <details><summary>Hint</summary>
#
# $W_{do}$ is used for every $b$ and $t$: which indices does the sum in $\bar W_{do}$ run over? If you think of $b, t$ as one
# long axis, both gradients are products of matrices.
#
# </details>

# %% task="matmul_backward"
def matmul_backward(grad, x, w):
    """The gradients of x and w, for y = x @ w with the gradient `grad`."""
    ### BEGIN SOLUTION
    rows, rows_of_grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    return grad @ w.T, rows.T @ rows_of_grad
    ### END SOLUTION

# %% test="matmul_backward" points=4
def check_matmul(rng, shape, columns):
    x, w = rng.standard_normal(shape), rng.standard_normal((shape[-1], columns))
    arguments = {"grad": rng.standard_normal((*shape[:-1], columns)), "x": x, "w": w}
    before = {name: value.copy() for name, value in arguments.items()}
    want = engine(lambda x, w: x @ w, arguments["grad"], x, w)
    mixed = x.reshape(shape[-1], -1).T.reshape(shape), w.reshape(columns, -1).T
    of_mixed = engine(lambda x, w: x @ w, arguments["grad"], *mixed)
    wrong = {0: {"a reshape of w is no transpose: it mixes rows and columns": of_mixed[0]},
             1: {"mean over the batch, not sum": want[1] / math.prod(shape[:-1]),
                 "mean over the first axis of the batch, not sum": want[1] / shape[0],
                 "the other texts of the batch are missing": engine(lambda x, w: x @ w, arguments["grad"][:1], x[:1], w)[1],
                 "a reshape of x is no transpose: it mixes tokens and columns": of_mixed[1]}}
    where = f"x {shape}, w {w.shape}"
    check(f"(gradient of x, gradient of w) for {where}", ask(where, matmul_backward, *arguments.values()), want, wrong=wrong)
    for name, value in arguments.items():
        unchanged(name, value, before[name])


rng = draw("matmul_backward")
A, B, T, D, O = (int(n) for n in rng.permutation([2, 3, 4, 5, 6]))
for shape in ((T, D), (B, T, D), (A, B, T, D)):
    check_matmul(rng, shape, O)
### BEGIN HIDDEN TESTS
for shape in ((1, T, D), (B, 1, D)):
    check_matmul(rng, shape, O)
check_matmul(rng, (B, T, D), 1)
check_matmul(rng, (B, T, D), D)
### END HIDDEN TESTS

# %% [markdown]
# ## Task 5. The backward of a sum (4 points, 20 minutes)
#
# **Given** the forward `y = x.sum(axis=axis, keepdims=keepdims)`: each entry of $y$ is the sum of a group of entries of $x$,
#
# $$y_j = \sum_{i \text{ in group } j} x_i .$$
#
# **Write** `sum_backward(grad, shape, axis, keepdims)`: 3 to 8 lines.
#
# | | |
# |---|---|
# | `grad` | an array with the shape of `y` |
# | `shape` | the shape of `x`, such as `(2, 3, 4)` |
# | `axis` | what NumPy's `sum` takes: `None` (all), a number, a tuple of numbers; a negative number counts from the end |
# | `keepdims` | `True` where the summed axes were kept, with length 1; else `False` |
# | returns | $\bar x$ of `shape` |
#
# **Tested:** `None`, single axes, tuples in any order, negative numbers, each with and without `keepdims`; axes of equal
# length, where NumPy would also broadcast the wrong way, in silence.
#
# <details><summary>Hint</summary>
#
# Forwards a sum, backwards a copy. First bring `grad` to the shape that `keepdims=True` would have given it. `np.expand_dims`
# takes a tuple of axes.
#
# </details>

# %% task="sum_backward"
def sum_backward(grad, shape, axis, keepdims):
    """The gradient of x of `shape`, for y = x.sum(axis=axis, keepdims=keepdims) with the gradient `grad`."""
    ### BEGIN SOLUTION
    if axis is None:
        axis = tuple(range(len(shape)))
    if not keepdims:
        grad = np.expand_dims(grad, axis)
    return np.broadcast_to(grad, shape).copy()
    ### END SOLUTION

# %% test="sum_backward" points=4
def check_sum(rng, shape, axis, keepdims):
    x = rng.standard_normal(shape)
    y = np.asarray(x.sum(axis=axis, keepdims=keepdims))
    grad = np.asarray(rng.standard_normal(y.shape))
    before, (want,) = grad.copy(), engine(lambda x: x.sum(axis, keepdims), grad, x)
    wrong = {"divided by the number of entries that were summed: this is the mean's gradient": want * (y.size / x.size),
             "ones: grad is not used": np.ones(shape)}
    if shape == (3, 3):
        wrong |= {f"grad is copied along axis {k}, not along the axis that was summed": np.stack([grad] * 3, k) for k in (0, 1)}
    where = f"x {shape}, axis={axis}, keepdims={keepdims}"
    check(f"{where}: gradient of x", ask(where, sum_backward, grad, shape, axis, keepdims), want, wrong=wrong)
    unchanged("grad", grad, before)


rng = draw("sum_backward")
check_sum(rng, (3, 3), 0, False)
check_sum(rng, (3, 3), 1, False)
k, m, n = shape = tuple(int(n) for n in rng.permutation([2, 3, 4]))
for axis in (None, 0, 1, -1, (0, 2), (2, 0), (-1, 1)):
    for keepdims in (True, False):
        check_sum(rng, shape, axis, keepdims)
### BEGIN HIDDEN TESTS
for axis in (2, -2, -3, (1,), (-2, -3), (0, -1), (2, 0, 1)):
    for keepdims in (True, False):
        check_sum(rng, shape, axis, keepdims)
for axis in (0, 1, 2, (0, 1), (2, 0), (-1, -2)):
    check_sum(rng, (3, 3, 3), axis, False)
check_sum(rng, (n, 1, m), 1, False)
check_sum(rng, (m,), -1, False)
check_sum(rng, (k, m, 2, n), (-1, 0), False)
check_sum(rng, (k, m, 2, n), (1, -2), False)
### END HIDDEN TESTS

# %% [markdown]
# ## Task 6. The backward of a lookup (3 points, 15 minutes)
#
# **Given** the forward `y = w[index]`, an embedding: the row of $W$ for each token,
#
# $$Y_{btd} = W_{\text{index}_{bt},\, d} .$$
#
# **Write** `gather_backward(grad, index, rows)`: 3 to 6 lines. Note that $W$ itself is not needed.
#
# | | shape |
# |---|---|
# | `index` | any number of axes, also none: `(B, T)`, `()`; integers from 0 to `rows` - 1, some of them more than once |
# | `grad` | that of `index`, and `D` behind: `(B, T, D)` |
# | `rows` | the number of rows of $W$ |
# | returns | $\bar W$ of shape `(rows, D)` |
#
# **Tested:** `index` with no, one, two and three axes; repeated tokens; rows that no token uses; that no argument is changed.
#
# <details><summary>Hint</summary>
#
# Row $v$ was copied to every place where `index` is $v$. NumPy's `w[index] += g` reads, adds and writes once for each
# *different* row. A loop over tokens does not have this problem; `np.add.at` neither.
#
# </details>

# %% task="gather_backward"
def gather_backward(grad, index, rows):
    """The gradient of w with `rows` rows, for y = w[index] with the gradient `grad`."""
    ### BEGIN SOLUTION
    dw = np.zeros((rows, grad.shape[-1]))
    np.add.at(dw, index, grad)
    return dw
    ### END SOLUTION

# %% test="gather_backward" points=3
def check_gather(rng, index, rows, columns):
    index = np.asarray(index)
    grad = rng.standard_normal((*index.shape, columns))
    before, (want,) = (grad.copy(), index.copy()), engine(lambda w: w[index], grad, rng.standard_normal((rows, columns)))

    def last(index, grad):
        w = np.zeros((rows, columns))
        w[index] = grad
        return w

    count = np.bincount(index.reshape(-1), minlength=rows)[:, None]
    wrong = {"where a token comes again, only its last place counts; they should add up": last(index, grad),
             "the mean over a token's places, not the sum": want / np.maximum(count, 1),
             "grad is not used": count * np.ones(columns)}
    if index.ndim > 1:
        wrong["only index's first axis was looped over: a token that comes again along another axis counts once"] = sum(
            map(last, index, grad))
    where = f"w ({rows}, {columns}), index {index.tolist() if index.size < 9 else f'of shape {index.shape}'}"
    check(f"{where}: gradient of w", ask(where, gather_backward, grad, index, rows), want, wrong=wrong)
    unchanged("grad", grad, before[0])
    unchanged("index", index, before[1])


rng = draw("gather_backward")
check_gather(rng, [2, 0, 3], rows=5, columns=3)
check_gather(rng, [1, 1, 4, 1], rows=5, columns=3)
B, T, D = (int(n) for n in rng.permutation([3, 4, 5]))
index = rng.integers(1, 5, (B, T))
index[:, 1] = index[:, 0]
check_gather(rng, index, rows=7, columns=D)
### BEGIN HIDDEN TESTS
check_gather(rng, 1, rows=3, columns=D)
check_gather(rng, [0, 0], rows=1, columns=1)
check_gather(rng, rng.integers(0, 4, (B, 2, T)), rows=6, columns=D)
check_gather(rng, rng.integers(0, 5, (T, B)).T, rows=9, columns=D)
### END HIDDEN TESTS

# %% [markdown]
# ## Task 7. The backward of log-softmax (3 points, 20 minutes)
#
# **Given** the forward. For the entries $x_1, x_2, \dots$ along one axis it reads
#
# $$y_k = x_k - \log \sum_j e^{x_j} .$$
#
# **Write** `log_softmax_backward(grad, y, axis)`: 1 to 4 lines. Note what is given: the output $y$, and not $x$. Derive
# $\bar x_k = \sum_i \bar y_i \, \partial y_i / \partial x_k$, and write it with $y$.
#
# | | shape |
# |---|---|
# | `y`, `grad` | any, such as `(B, T, V)` |
# | `axis` | a number, which may be negative |
# | returns | $\bar x$, the same shape |
#
# **Tested:** small numbers written out; every axis of arrays with one to three axes; negative numbers; $x$ with entries of
# 1,000; that no argument is changed.
#
# <details><summary>Hint</summary>
#
# $x_k$ occurs twice in $y_i$: in front if $i = k$, and always in the sum. What is $e^{y_k}$? Then `keepdims`.
#
# </details>

# %% task="log_softmax_backward"
def log_softmax_backward(grad, y, axis):
    """The gradient of x, for y = log_softmax(x) along `axis` with the gradient `grad`."""
    ### BEGIN SOLUTION
    return grad - np.exp(y) * grad.sum(axis, keepdims=True)
    ### END SOLUTION

# %% test="log_softmax_backward" points=3
def check_log_softmax(rng, shape, axis, scale=1):
    x = scale * rng.standard_normal(shape)
    grad = rng.uniform(0.5, 1.5, shape)
    y = ops.log_softmax(Tensor(x), axis).data
    before, (want,) = (grad.copy(), y.copy()), engine(lambda x: ops.log_softmax(x, axis), grad, x)
    where = f"x {shape}, axis={axis}" + f", entries of about {scale:,}" * (scale != 1)
    check(f"{where}: gradient of x", ask(where, log_softmax_backward, grad, y, axis), want)
    unchanged("grad", grad, before[0])
    unchanged("y", y, before[1])


# grad and e^y for axis 0, and what people answer; for axis 1 all of it transposed
grad, p = np.array([[1, 2, 3], [5, 6, 9.0]]), np.array([[2, 1, 4], [6, 7, 4]]) / 8
KNOWN = {"the part that comes from the sum is missing": grad,
         "the part that comes from x_k in front is missing": [[-1.5, -1, -6], [-4.5, -7, -6]],
         "the part that comes from the sum has the wrong sign": [[2.5, 3, 9], [9.5, 13, 15]],
         "the mean along the axis, not the sum": [[0.25, 1.5, 0], [2.75, 2.5, 6]],
         "this is the gradient of softmax, not of log-softmax": [[-0.75, -0.4375, -1.5], [0.75, 0.4375, 1.5]],
         "the sum runs over the other axis": [[-0.5, 1.25, 0], [-10, -11.5, -1]],
         "the sum runs over every axis": [[-5.5, -1.25, -10], [-14.5, -16.75, -4]],
         "grad is not summed": [[0.75, 1.75, 1.5], [1.25, 0.75, 4.5]],
         "the sum of grad is missing": [[0.75, 1.875, 2.5], [4.25, 5.125, 8.5]],
         "the sum of grad * exp y was taken, should be the sum of grad": [[0, 1.3125, 0], [2, 1.1875, 6]],
         "exp y is missing": [[-5, -6, -9], [-1, -2, -3]],
         "y stands where exp y should": [[9.31776617, 18.63553233, 11.31776617], [6.72609243, 7.06825114, 17.31776617]]}
for axis in (0, 1):
    turned = np.transpose if axis else np.array
    where = f"grad {turned(grad).tolist()}, exp y {turned(p).tolist()}, axis={axis}"
    check(f"{where}: gradient of x", ask(where, log_softmax_backward, turned(grad), np.log(turned(p)), axis),
          turned([[-0.5, 1, -3], [0.5, -1, 3]]), wrong={mistake: turned(values) for mistake, values in KNOWN.items()})
rng = draw("log_softmax_backward")
k, m, n = (int(n) for n in rng.permutation([3, 4, 5]))
for shape, axis in (((n,), 0), ((m, n), -1), ((m, n), 0), ((k, m, n), 1)):
    check_log_softmax(rng, shape, axis)
check_log_softmax(rng, (m, n), -1, scale=1000)
### BEGIN HIDDEN TESTS
for shape, axis in (((n,), -1), ((m, n), 1), ((m, n), -2), ((k, m, n), 0), ((k, m, n), -2), ((k, m, n), 2), ((m, m), 0),
                    ((m, 1), 0)):
    check_log_softmax(rng, shape, axis)
check_log_softmax(rng, (k, m, n), 1, scale=1000)
### END HIDDEN TESTS

# %% [markdown]
# ## Task 8. A gradient check that can fail (5 points, 40 minutes)
#
# **Given** a function $f$ from an array to a number, and somebody's code for its gradient.
#
# **Write** `gradient_check(f, gradient, x)`: 10 to 25 lines. It returns the largest relative error of `gradient(x)`, as a
# number. With the derived entries $d_i$ and the measured ones $m_i$,
#
# $$m_i = \frac{f(x + h e_i) - f(x - h e_i)}{2h}, \qquad h = \varepsilon^{1/3} \max_j |x_j|, \qquad
# \text{error} = \max_i \frac{|d_i - m_i|}{\max(|d_i|,\ |m_i|,\ 10^{-3} \max_j |m_j|)} .$$
#
# $e_i$ is 1 at entry $i$ and 0 elsewhere. $\varepsilon = 2.2 \cdot 10^{-16}$ is `np.finfo(np.float64).eps`. The step follows
# the size of $x$: one step for all would be too large for $x$ of a thousandth, or drown in rounding for $x$ of thousands.
# Call both `f` and `gradient` with float64 copies of `x`.
#
# | | |
# |---|---|
# | `f` | a function: an array with the shape of `x` in, a number out |
# | `gradient` | a function: an array with the shape of `x` in, an array out |
# | `x` | an array of any shape: float64, float32 or integers. Some entries may be 0, not all |
# | returns | the error, a number; NaN or infinity if the gradient has a NaN |
# | raises | `ValueError` if `gradient(x)` has another shape than `x`; also if all $m_i$ are 0, where the check cannot fail |
#
# **Tested:** right gradients have an error below 1e-6, for $x$ of size 1, 1000 and 0.001, for float32 and integers, for 1 to 3
# axes, also where one derivative is 0. Wrong ones have an error above 1e-5: zeros, the wrong sign, all entries or one (not far
# below the largest) wrong by a factor as near to 1 as $1 + 2 \cdot 10^{-5}$, transposed, NaN. The error follows the formula: for
# zeros it is 1. And `x` is the same after the call as before, to the last bit.
#
# <details><summary>Hint</summary>
#
# `np.array(x, np.float64)` is a copy in float64, which may be written into. `np.ndindex(x.shape)` goes through the indices
# of an array with any number of axes. Python's `max` does not see every NaN; NumPy's does.
#
# </details>

# %% task="gradient_check"
def gradient_check(f, gradient, x):
    """The largest relative error of gradient(x), by central differences of f. ValueError where there is nothing to compare."""
    ### BEGIN SOLUTION
    x = np.array(x, np.float64)
    derived = np.asarray(gradient(x.copy()))
    if derived.shape != x.shape:
        raise ValueError(f"the gradient has shape {derived.shape}, x has {x.shape}")
    h = np.finfo(np.float64).eps ** (1 / 3) * abs(x).max()
    measured = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[i] = h
        measured[i] = (f(x + step) - f(x - step)) / (2 * h)
    if not measured.any():
        raise ValueError("the function does not change with x: this check cannot fail")
    scale = np.maximum(np.maximum(abs(derived), abs(measured)), 1e-3 * abs(measured).max())
    return float((abs(derived - measured) / scale).max())
    ### END SOLUTION

# %% test="gradient_check" points=5
def error_of(what, f, gradient, x):
    before = x.copy()
    error = ask(what, gradient_check, f, gradient, x)
    unchanged("x", x, before)
    assert error is not None, "the error is None: does the function return it?"
    assert not isinstance(error, (bool, np.bool)), f"the result is {error}, should be the largest relative error, a number"
    assert np.ndim(error) == 0, f"the error is an array of shape {np.shape(error)}, should be one number: the largest"
    assert not error < 0, f"the error is {error:.2g}, less than 0: is an absolute value missing?"
    return error


def check_checker(what, f, gradient, x, mistakes):
    """`gradient` is accepted, and rejected with each of the mistakes: {name: function of the right gradient}."""
    error = error_of(what, f, gradient, x)
    assert error <= 1e-6, f"{what}: the right gradient is rejected: error {error:.2g}, should be below 1e-6"
    for name, mistake in mistakes.items():
        error = error_of(what, f, lambda x, mistake=mistake: mistake(gradient(x)), x)
        assert not error < 1e-5, f"{what}: a wrong gradient is accepted ({name}): error {error:.2g}, should be above 1e-5"


def entry(place, factor):
    """A mistake: one entry, counted from the start or from the end, is multiplied by `factor`."""
    def mistake(gradient):
        flat = gradient.flatten()
        flat[place] *= factor
        return flat.reshape(gradient.shape)
    return mistake


MISTAKES = {"zeros": np.zeros_like, "the wrong sign": np.negative, "all times 1 + 1e-4": lambda g: g * (1 + 1e-4),
            "all times 1 - 1e-4": lambda g: g * (1 - 1e-4), "the first entry times 1 + 2e-5": entry(0, 1 + 2e-5),
            "the last entry has the wrong sign": entry(-1, -1), "the first entry is NaN": entry(0, np.nan),
            "the last entry is NaN": entry(-1, np.nan)}
rng = draw("gradient_check")
c, x = rng.uniform(1, 2, (3, 3)), rng.uniform(0.2, 1, (3, 3))
error = error_of("f(x) = sum c sin x", lambda x: (c * np.sin(x)).sum(), lambda x: c * np.cos(x), x)
rejected = f"f(x) = sum c sin x: the right gradient is rejected: error {error:.2g}"
assert not 0.499 < error < 0.501, f"{rejected} (is the 2 of 2h missing?)"
assert not 1e-6 < error < 1e-4, f"{rejected} (one-sided? f(x + h e_i) - f(x - h e_i) is the numerator)"
check_checker("f(x) = sum c sin x", lambda x: (c * np.sin(x)).sum(), lambda x: c * np.cos(x), x,
              MISTAKES | {"transposed": np.transpose})
for size, step in ((1, ""), (1000, " (is the step too small?)"), (0.001, " (is the step too large?)")):
    check_checker(f"f(x) = sum c log x, x of about {size}{step}", lambda x: (c * np.log(x)).sum(), lambda x: c / x,
                  size * (1 + x), MISTAKES)
check_checker("f(x) = sum c x^3, x in float32 (measured in float32?)", lambda x: (c * x**3).sum(), lambda x: 3 * c * x**2,
              x.astype(np.float32), MISTAKES)
check_checker("f(x) = sum c x^3, x of integers (steps cut to integers?)", lambda x: (c * x**3).sum(), lambda x: 3 * c * x**2,
              rng.integers(1, 5, (3, 3)), MISTAKES)
check_checker("f(x) = sum c exp x, x with zeros (is h 0 where x is? It follows the largest entry)",
              lambda x: (c * np.exp(x)).sum(), lambda x: c * np.exp(x), x * (1 - np.eye(3)), MISTAKES)
for factor, want in ((0, 1.0), (-1, 2.0), (1.25, 0.2)):
    error = error_of("f(x) = sum c x", lambda x: (c * x).sum(), lambda x, factor=factor: factor * c, x)
    check(f"error of {factor} times the right gradient", error, want, rtol=1e-5)
flat = x.copy()
flat[1, 1] = np.pi / 2
check_checker("f(x) = sum c sin x, one derivative is 0 (is 1e-3 max |m_j| missing?)", lambda x: (c * np.sin(x)).sum(),
              lambda x: c * np.cos(x), flat, MISTAKES)
raises(ValueError, gradient_check, lambda x: 3.0, np.zeros_like, x, when="a function that does not change with x")
raises(ValueError, gradient_check, np.sum, lambda x: np.ones(1), x, when="a gradient of shape (1,), for x of shape (3, 3)")
raises(ValueError, gradient_check, np.sum, lambda x: np.ones(3), x[:, :1], when="a gradient of shape (3,), for x of shape (3, 1)")
### BEGIN HIDDEN TESTS
k, m, n = (int(n) for n in rng.permutation([2, 3, 4]))
c = rng.uniform(1, 2, (k, m, n))


def f(x):
    return (c[(0,) * (3 - x.ndim)][..., :x.shape[-1]] * np.exp(x)).sum()


def gradient(x):
    return c[(0,) * (3 - x.ndim)][..., :x.shape[-1]] * np.exp(x)


check_checker(f"f(x) = sum c x^3, x {(k, m, n)} of integers", lambda x: (c * x**3).sum(), lambda x: 3 * c * x**2,
              rng.integers(1, 5, (k, m, n)), MISTAKES)
check_checker("f(x) = sum c log -x, x negative", lambda x: (c * np.log(-x)).sum(), lambda x: c / x,
              -rng.uniform(1, 2, (k, m, n)), MISTAKES)
check_checker(f"f(x) = sum c exp x, x {(k, m, n)}", f, gradient, rng.uniform(-1, 1, (k, m, n)), MISTAKES)
check_checker(f"f(x) = sum c exp x, x {(m, n)}, a transposed view", f, gradient, rng.uniform(0.5, 1, (n, m)).T, MISTAKES)
check_checker("f(x) = c exp x, x of one entry", f, gradient, np.array([0.7]), MISTAKES)
raises(ValueError, gradient_check, np.sum, lambda x: np.ones((n, 1)), x[0, :1].repeat(n), when=f"a gradient of shape ({n}, 1)")
### END HIDDEN TESTS
