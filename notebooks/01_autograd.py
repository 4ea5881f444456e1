# %% [markdown]
# # Autograd: from a scalar to `Tensor`
#
# Training asks one question again and again: by how much would the loss change if I changed this weight a little? A model has
# millions of weights, and one walk back through the computation answers the question for all of them. This notebook builds that
# walk three times: for numbers, for arrays, and as minisl has it (`minisl/autograd/tensor.py`). Each version exists because the
# one before breaks on something.
#
# After this notebook you can
#
# - write reverse-mode differentiation on one page, and say what each line is for;
# - explain why nodes must be visited in topological order, once, and without recursion;
# - derive the gradient of a broadcast, and of a matrix product, without forming a Jacobian;
# - choose the step of a difference quotient, and know how many digits it is worth;
# - recognise a gradient check that cannot fail, and repair it.
#
# You need the chain rule and NumPy. About three quarters of an hour.

# %%
import math
import operator
from collections import Counter, deque

import numpy as np

from minisl.autograd import Function, GradcheckError, Tensor, gradcheck, ops
from minisl.autograd.tensor import unbroadcast as minisl_unbroadcast
from minisl.plot import PALETTE, notebook_style

plt = notebook_style()
rng = np.random.default_rng(1)

# %% [markdown]
# ## 1. Numbers
#
# Let $L$ be the number we care about (the loss), and write $\bar x = \frac{\partial L}{\partial x}$ for any number $x$ on the
# way to it. If $x$ is used by $y_1, \dots, y_k$, and reaches $L$ only through them, the chain rule says
#
# $$\bar x = \sum_{j=1}^{k} \bar y_j \, \frac{\partial y_j}{\partial x}.$$
#
# Two facts are in this line. Every use of $x$ adds a term. And $\bar x$ can be finished only when **all** the $\bar y_j$ are.
# The rest of this notebook follows from these two.
#
# What has to be remembered while computing forwards? For every result, the numbers it came from, and the slope
# $\partial y / \partial x$ along each of these edges, a plain number.

# %%
class Scalar:
    """A number, the numbers it was computed from, and the slope towards each of them."""

    def __init__(self, value, parents=(), slopes=()):
        self.value, self.parents, self.slopes, self.grad = value, parents, slopes, 0.0

    def __add__(self, other):
        if not isinstance(other, Scalar):
            return Scalar(self.value + other, (self,), (1.0,))
        return Scalar(self.value + other.value, (self, other), (1.0, 1.0))

    def __mul__(self, other):
        if not isinstance(other, Scalar):
            return Scalar(self.value * other, (self,), (other,))
        return Scalar(self.value * other.value, (self, other), (other.value, self.value))

    def tanh(self):
        t = math.tanh(self.value)
        return Scalar(t, (self,), (1 - t * t,))

    __radd__, __rmul__ = __add__, __mul__


def along_paths(node, gradient=1.0):
    """Carry the gradient to the parents, and from there on; returns how many nodes were entered."""
    node.grad += gradient
    return 1 + sum(along_paths(parent, gradient * slope) for parent, slope in zip(node.parents, node.slopes))

# %% [markdown]
# `along_paths` is the chain rule multiplied out: $\bar x$ is the sum over all paths from $L$ to $x$ of the product of the
# slopes along the path. A neuron with one input, $L = \tanh(w x + b)$, has the derivative $\bar w = (1 - \tanh^2(wx + b))\, x$.

# %%
w, x, b = Scalar(0.5), Scalar(2.0), Scalar(-0.3)
L = (w * x + b).tanh()
along_paths(L)
print(f"L = {L.value:.4f}, dL/dw = {w.grad:.4f}, dL/dx = {x.grad:.4f}, dL/db = {b.grad:.4f}")
assert math.isclose(w.grad, (1 - L.value**2) * x.value)

# %% [markdown]
# The code above is right for every graph. It is also unusable, and the smallest graph that shows why is a diamond.
#
# ## 2. The diamond
#
# Let $u = 0.6\,x$, $v = 0.4\,x$ and $y = u + v$. There are two paths from $y$ to $x$. Now put diamonds on top of each other:
# $k$ of them have $3k + 1$ nodes but $2^k$ paths. A residual network is such a chain: every block is $x + f(x)$.

# %%
def diamonds(x, k):
    for _ in range(k):
        x = 0.6 * x + 0.4 * x
    return x


paths = {k: along_paths(diamonds(Scalar(1.0), k)) for k in (1, 2, 4, 8, 12, 16)}
for k, entered in paths.items():
    print(f"{k:2d} diamonds: {3 * k + 1:2d} nodes, {2**k:6,d} paths, {entered:7,d} nodes entered")

# %% [markdown]
# With 16 diamonds, 49 nodes are entered 262,141 times. So: visit each node once, and push its gradient on only once. But when?
# "As soon as we meet it" looks natural: breadth first, with a list of what was seen. Here is a diamond with one long side,
# $c = 5a$, $y = c + 2\,(3c)$, so $y = 35\,a$:

# %%
def once_each(root):
    """Every node once, the nearest to the root first."""
    queue, seen = deque([root]), {root}
    while queue:
        node = queue.popleft()
        yield node
        for parent in node.parents:
            if parent not in seen:
                seen.add(parent)
                queue.append(parent)


def push(root, order):
    root.grad = 1.0
    visits = 0
    for node in order(root):
        visits += 1
        for parent, slope in zip(node.parents, node.slopes):
            parent.grad += node.grad * slope
    return visits


a = Scalar(1.0)
c = 5 * a
y = c + 2 * (3 * c)
push(y, once_each)
print(f"y = {y.value:.0f} a, but breadth first says dy/da = {a.grad:.0f}")

# %% [markdown]
# Wrong, and nothing complained. $y$ has the edges $y \to c$ (short side) and $y \to 2(\cdot) \to 3(\cdot) \to c$ (long side).
# Breadth first reaches $c$ by the short side, pushes $\bar c = 1$ on to $a$, and what arrives later by the long side is never
# pushed on.
#
# The cure is the second fact of section 1: a node's turn comes when the gradients of **all its users** have arrived. That is a
# topological order of the graph. Kahn's way to find one: count each node's users; take a node whose count is zero; lower the
# counts of its parents; repeat.

# %%
def in_order(root):
    """Every node below root once, each after all its users."""
    waiting, seen, stack = Counter(), {root}, [root]
    while stack:
        for parent in stack.pop().parents:
            waiting[parent] += 1
            if parent not in seen:
                seen.add(parent)
                stack.append(parent)
    ready = [root]
    while ready:
        node = ready.pop()
        yield node
        for parent in node.parents:
            waiting[parent] -= 1
            if waiting[parent] == 0:
                ready.append(parent)


a, k = Scalar(1.0), 16
c = 5 * a
push(c + 2 * (3 * c), in_order)
x = Scalar(1.0)
visits = push(diamonds(x, k), in_order)
print(f"long side: dy/da = {a.grad:.0f};  {k} diamonds: {visits} visits, dy/dx = {x.grad:.3f}")

# %%
places = {"y": (0, 3), "2(.)": (1.2, 2.2), "3(.)": (1.2, 1.2), "c": (0, 0.4), "a": (0, -0.6)}
edges = [("y", "c"), ("y", "2(.)"), ("2(.)", "3(.)"), ("3(.)", "c"), ("c", "a")]
orders = {"breadth first: c too early": ["y", "c", "2(.)", "3(.)", "a"],
          "topological: c after both": ["y", "2(.)", "3(.)", "c", "a"]}
figure, panels = plt.subplots(1, 3, figsize=(9, 3.4), width_ratios=(1, 1, 1.6))
for axes, (title, order) in zip(panels, orders.items()):
    for start, end in edges:
        arrow = {"arrowstyle": "->", "shrinkA": 12, "shrinkB": 12, "color": "0.4"}
        axes.annotate("", places[end], places[start], arrowprops=arrow)
    for turn, name in enumerate(order, 1):
        axes.text(*places[name], name, ha="center", va="center", bbox={"boxstyle": "circle", "fc": "white", "ec": PALETTE[0]})
        axes.text(places[name][0] - 0.55, places[name][1], turn, color=PALETTE[1], weight="bold", ha="center", va="center")
    axes.set(xlim=(-1, 1.8), ylim=(-1, 3.5), title=title)
    axes.axis("off")
axes = panels[2]
axes.plot(paths.keys(), paths.values(), "o--", color=PALETTE[1], label="along paths")
axes.plot(paths.keys(), [3 * k + 1 for k in paths], "s-", color=PALETTE[0], label="topological, once each")
axes.set(yscale="log", xticks=list(paths), xlabel="diamonds on top of each other", ylabel="nodes visited",
         title="What an order is worth")
axes.legend()
plt.show()

# %% [markdown]
# The bold numbers are the turns. On the right, visits grow like $2^k$ or like $3k$.
#
# ### No recursion
#
# The usual textbook version finds the order by a depth-first search that calls itself. Python's stack is short, and graphs are
# deep: a loop over a thousand time steps is a chain of several thousand ops.

# %%
def recursive_order(node, seen, order):
    if node not in seen:
        seen.add(node)
        for parent in node.parents:
            recursive_order(parent, seen, order)
        order.append(node)
    return order


length = 20_000
x = y = Scalar(1.0)
for _ in range(length):
    y = y + 0.5
try:
    recursive_order(y, set(), [])
except RecursionError:
    print("recursive: RecursionError")
print(f"with a list as the stack: {push(y, in_order):,} visits, dy/dx = {x.grad:.0f}")

# %% [markdown]
# Raising Python's recursion limit only moves the wall. A list of nodes that are ready has no wall, and is not longer to write.
#
# minisl walks the same way (`walk_back` and `count_uses`). Here is an op of our own that counts how often its backward is
# called. An op is a class with two static methods on raw arrays; `ctx` carries what backward will need.

# %%
calls = []


class Half(Function):
    """y = x / 2.    dx = dy / 2"""

    @staticmethod
    def forward(ctx, x):
        return x / 2

    @staticmethod
    def backward(ctx, grad):
        calls.append(1)
        return grad / 2


x = y = Tensor(np.ones(3), requires_grad=True)
for _ in range(16):
    y = Half.apply(y) + Half.apply(y)
for _ in range(length):
    y = y + 0.5
y.sum().backward()
print(f"minisl: {len(calls)} calls for 16 diamonds, then a chain of {length:,}; dy/dx = {x.grad}")
assert len(calls) == 2 * 16

# %% [markdown]
# ## 3. Arrays
#
# With arrays the slope of an edge becomes a Jacobian. For $y = f(x)$ with $n$ numbers in $x$ and $m$ in $y$,
# $J = \partial y / \partial x$ has shape $(m, n)$, and the chain rule reads $\bar x = J^\top \bar y$. For $Y = X W$ with
# $X\,(N, K)$ and $W\,(K, M)$ the Jacobian with respect to $X$ would have $NM \times NK$ entries, almost all zero:

# %%
N, K, M = 4096, 512, 512  # tokens of one batch, width in, width out
print(f"X has {N * K:,} numbers, the Jacobian {N * M * N * K:.1e}; in float32 {N * M * N * K * 4 / 1e12:.0f} terabytes")

# %% [markdown]
# Nobody builds it. Each op brings a function that applies $J^\top$ to a given $\bar y$ instead, called a vector-Jacobian
# product. For the matrix product, with indices:
#
# $$Y_{nm} = \sum_k X_{nk} W_{km} \quad\Rightarrow\quad
# \bar X_{nk} = \sum_{m} \bar Y_{nm} \frac{\partial Y_{nm}}{\partial X_{nk}} = \sum_m \bar Y_{nm} W_{km}
# \quad\Rightarrow\quad \bar X = \bar Y W^\top ,$$
#
# $$\bar W_{km} = \sum_n \bar Y_{nm} X_{nk} \quad\Rightarrow\quad \bar W = X^\top \bar Y .$$
#
# The shapes alone nearly give it away: $(N, M)$ and $(K, M)$ can be combined into $(N, K)$ in one way only. Two products
# backwards for one forwards: this is why a backward pass costs about twice a forward pass.
#
# Our class keeps its shape. In the place of slopes there is one function, `pull`, from $\bar y$ to the gradients of the
# parents.

# %%
class Array:
    """An array, the arrays it was computed from, and a function from its gradient to theirs."""

    def __init__(self, data, parents=(), pull=None):
        self.data, self.parents, self.pull, self.grad = np.asarray(data, float), parents, pull, None

    def __add__(self, other):
        return Array(self.data + other.data, (self, other), lambda g: (g, g))

    def __mul__(self, other):
        return Array(self.data * other.data, (self, other), lambda g: (g * other.data, g * self.data))

    def __matmul__(self, other):
        return Array(self.data @ other.data, (self, other), lambda g: (g @ other.data.T, self.data.T @ g))

    def tanh(self):
        t = np.tanh(self.data)
        return Array(t, (self,), lambda g: (g * (1 - t * t),))

    def sum(self):
        return Array(self.data.sum(), (self,), lambda g: (np.broadcast_to(g, self.data.shape),))


def backward(root, gradient, add):
    root.grad = gradient
    for node in in_order(root):
        for parent, g in zip(node.parents, node.pull(node.grad) if node.pull else ()):
            parent.grad = g if parent.grad is None else add(parent.grad, g)

# %% [markdown]
# `add` is left open on purpose: where gradients meet, they may be added in place (`+=`, no new memory) or out of place. Take
# $y = a + (a + b)$. Plainly $\bar a = 2$ and $\bar b = 1$.

# %%
for name, add in (("in place", operator.iadd), ("out of place", operator.add)):
    a, b = Array([3.0, 4.0]), Array([5.0, 6.0])
    backward(a + (a + b), np.ones(2), add)
    print(f"{name:12}: a.grad = {a.grad}, b.grad = {b.grad}")

# %% [markdown]
# In place, $\bar b$ is 2. Follow the array: `__add__` returns the *same* array `g` for both arguments, which is right, and
# free. So after the outer sum, `a.grad`, the inner sum's gradient and the array we passed in are one object. The inner sum
# hands it on to `a` and `b`; `a` has a gradient already, and `+=` writes 2 into the one array that is also to become `b.grad`.
#
# The rule: **a gradient may be shared, so nobody writes into it**. Adding out of place costs one new array where two gradients
# meet. There is a second half to it:

# %%
a, b = Array([3.0, 4.0]), Array([5.0, 6.0])
backward(a + b, np.ones(2), operator.add)
a.grad *= 0.1  # say, to clip it
print("ours:  ", b.grad)

a, b = (Tensor(np.array(v), requires_grad=True) for v in ([3.0, 4.0], [5.0, 6.0]))
(a + b).backward(np.ones(2))
a.grad *= 0.1
print("minisl:", b.grad)

# %% [markdown]
# We scaled `a.grad` and got a smaller `b.grad`. minisl therefore copies what it hands to a *leaf* (an array that was not computed
# from others: a weight, an input), if anybody else could know that array. And $a + (a + b)$:

# %%
a, b = (Tensor(np.array(v), requires_grad=True) for v in ([3.0, 4.0], [5.0, 6.0]))
(a + (a + b)).backward(np.ones(2))
print("minisl:", a.grad, b.grad)
assert (a.grad == 2).all()
assert (b.grad == 1).all()

# %% [markdown]
# ## 4. Un-broadcasting, once and for all
#
# A bias $b\,(D)$ is added to $X\,(N, D)$, and NumPy repeats it for every row: $y_{nd} = x_{nd} + b_d$. One $b_d$ is used $N$
# times. Every use adds a term (section 1), hence
#
# $$\bar b_d = \sum_{n=1}^{N} \bar y_{nd}\,\frac{\partial y_{nd}}{\partial b_d} = \sum_{n=1}^{N} \bar y_{nd} .$$
#
# **Forwards a copy is made, so backwards a sum is taken.** In general: repeating is a linear map $y = R\,b$, where $R$ holds
# one 1 per row; its transpose $R^\top$ adds up what came from the same place.

# %%
b, dy = np.array([[1.0, 2.0, 3.0]]), rng.integers(-3, 4, (4, 3)).astype(float)
figure, panels = plt.subplots(1, 2, figsize=(8, 3))
for axes, above, title, arrow in ((panels[0], np.repeat(b, 4, axis=0), "forward: b is copied to every row", "->"),
                                  (panels[1], dy, "backward: the rows of dy are summed", "<-")):
    low = b if arrow == "->" else dy.sum(axis=0, keepdims=True)
    for row, values in enumerate([*above[::-1], low[0]]):
        at = 1.2 + row if row < 4 else 0
        for column, value in enumerate(values):
            axes.text(column, at, f"{value:g}", ha="center", va="center",
                      bbox={"boxstyle": "square,pad=0.5", "fc": "white" if row < 4 else "#F5DFA5", "ec": "0.4"})
    for column in range(3):
        axes.annotate("", (column + 0.35, 4.5), (column + 0.35, 0), arrowprops={"arrowstyle": arrow, "color": PALETTE[0]})
    axes.text(-0.8, 0, "b" if arrow == "->" else "db", ha="center", va="center")
    axes.text(-0.8, 2.7, "y" if arrow == "->" else "dy", ha="center", va="center")
    axes.set(xlim=(-1.2, 2.8), ylim=(-0.6, 4.8), title=title)
    axes.axis("off")
plt.show()

# %% [markdown]
# NumPy broadcasts in two ways: it puts new axes in front, and it stretches axes of length 1. The sum undoes both.

# %%
def unbroadcast(gradient, shape):
    new = gradient.ndim - len(shape)
    gradient = gradient.sum(axis=tuple(range(new)))
    stretched = tuple(i for i, n in enumerate(shape) if n == 1)
    return gradient.sum(axis=stretched, keepdims=True)


shapes = [((3,), (4, 3)), ((4, 1), (4, 3)), ((1, 1), (4, 3)), ((), (4, 3)), ((2, 1, 3), (2, 5, 3)), ((1, 3), (6, 5, 3))]
for small, large in shapes:
    b, g = rng.standard_normal(small), rng.standard_normal(large)
    db = unbroadcast(g, small)
    assert db.shape == small
    assert np.isclose((np.broadcast_to(b, large) * g).sum(), (b * db).sum())  # <R b, g> = <b, R^T g>
    np.testing.assert_allclose(db, minisl_unbroadcast(g, small))
print(len(shapes), "pairs of shapes: the transpose of broadcasting, and the same as minisl's")

# %% [markdown]
# The line with $\langle R b, g \rangle = \langle b, R^\top g \rangle$ is worth remembering: it tests the backward of *any*
# linear op, exactly, without a difference quotient.
#
# Where should this code be? One could put it into each op: add, multiply, divide, maximum, ... until somebody forgets it in
# one. In minisl no op does it. An op says `broadcasts = True` and returns gradients in the shape of its *output*; the engine
# sums them down in one place. An op that says nothing, and returns a wrong shape, is an error:

# %%
class Forgot(Function):
    """y = a + b, with nobody to sum b's gradient"""

    @staticmethod
    def forward(ctx, a, b):
        return a + b

    @staticmethod
    def backward(ctx, grad):
        return grad, grad


X, b = rng.standard_normal((4, 3)), Tensor(np.zeros(3), requires_grad=True)
try:
    Forgot.apply(X, b).sum().backward()
except ValueError as error:
    print("ValueError:", error)

# %% [markdown]
# Without this check the mistake would live on quietly: NumPy computes `b - 0.1 * grad` for shapes `(3,)` and `(4, 3)` without a
# word, and the bias has become a matrix.
#
# ## 5. The two engines side by side
#
# A network with one hidden layer, $L = \sum \tanh(X W_1 + b_1)\, W_2$, in ours (with `unbroadcast` built in) and in minisl's
# `Tensor`.

# %%
def backward(root):
    root.grad = np.ones_like(root.data)
    for node in in_order(root):
        for parent, g in zip(node.parents, node.pull(node.grad) if node.pull else ()):
            g = unbroadcast(g, parent.data.shape)
            parent.grad = g if parent.grad is None else parent.grad + g


arrays = [rng.standard_normal(shape) for shape in ((8, 5), (5, 6), (6,), (6, 1))]
results = []
for make in (Array, lambda a: Tensor(a, requires_grad=True)):
    X, W1, b1, W2 = leaves = [make(a) for a in arrays]
    loss = ((X @ W1 + b1).tanh() @ W2).sum()
    backward(loss) if make is Array else loss.backward()
    results.append([leaf.grad for leaf in leaves])
for ours, theirs in zip(*results):
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
print("gradients of shapes", *[g.shape for g in results[0]], "equal")

# %% [markdown]
# What `Tensor` has beyond `Array`, and why:
#
# - *Nodes point to nodes.* A closure like our `lambda g: ...` keeps `self`, with its array, alive until the end. minisl's graph
#   consists of `Node`s, which hold only what their backward asked for with `ctx.save`; everything else can be freed while the
#   loss is still being computed.
# - *Saved arrays are let go as the walk passes.* So a second `backward` through the same graph cannot be right, and is refused:

# %%
loss = (Tensor(np.array([1.0, 2.0]), requires_grad=True) ** 2).sum()
loss.backward()
try:
    loss.backward()
except RuntimeError as error:
    print("RuntimeError:", error)

# %% [markdown]
# - *Gradients add up in leaves*, so that a large batch can be computed in parts. The price is a pitfall everybody meets once:
#   forget `zero_grad`, and this step's gradient contains the last one's.
# - *A leaf can tell when its gradient is complete.* Topological order guarantees such a moment; per-layer updates (notebook 6)
#   use it to free each gradient before the next one exists.

# %%
w = Tensor(np.ones(2), requires_grad=True)
for step in range(3):
    (3 * w).sum().backward()
    print("step", step, "without zero_grad:", w.grad)

w.zero_grad()
w.register_post_accumulate_grad_hook(lambda leaf: print("complete:", leaf.grad))
(3 * w + w * w).sum().backward()

# %% [markdown]
# ## 6. Difference quotients
#
# How do we know that a backward is right? By asking the function itself. Taylor's formula, for a step $h$:
#
# $$\frac{f(x + h) - f(x - h)}{2h} = f'(x) + \frac{h^2}{6} f'''(x) + O(h^4).$$
#
# The even terms cancel; the one-sided quotient $\frac{f(x+h) - f(x)}{h}$ keeps $\frac h2 f''(x)$. So a smaller $h$ is better,
# until rounding takes over. A computed $f$ is off by about $\varepsilon |f|$, $\varepsilon$ the spacing of floating-point
# numbers at 1; divided by $2h$ this grows as $h$ shrinks. In total
#
# $$e(h) \approx \frac{h^2}{6}|f'''| + \frac{\varepsilon |f|}{h}, \qquad
# e'(h) = 0 \;\Rightarrow\;
# h = \left(\frac{3\,\varepsilon |f|}{|f'''|}\right)^{1/3} \sim \varepsilon^{1/3},
# \qquad e \sim \varepsilon^{2/3}.$$
#
# For the one-sided quotient the same calculation gives $h \sim \varepsilon^{1/2}$ and $e \sim \varepsilon^{1/2}$.

# %%
for dtype in (np.float64, np.float32):
    eps = np.finfo(dtype).eps
    print(f"{dtype.__name__}: eps {eps:.1e};  central: h {eps**(1/3):.0e}, error {eps**(2/3):.0e};"
          f"  one-sided: h and error {eps**0.5:.0e}")

# %%
def f(x):
    return x / (1 + x * x)


x0 = 0.7
exact = (1 - x0**2) / (1 + x0**2) ** 2
steps = 10.0 ** np.arange(-15, 0.1, 0.25)
errors = {}
for name, dtype, central in (("one-sided, float64", np.float64, False), ("central, float64", np.float64, True),
                             ("central, float32", np.float32, True)):
    x, h = dtype(x0), steps.astype(dtype)
    below = f(x - h) if central else f(x)
    quotient = (f(x + h) - below).astype(float) / ((2 if central else 1) * h.astype(float))
    errors[name] = abs(quotient - exact) + 1e-17

figure, axes = plt.subplots(figsize=(7, 4))
for (name, error), mark in zip(errors.items(), "svo"):
    axes.plot(steps, error, marker=mark, markersize=3.5, label=name)
axes.axvline(np.finfo(float).eps ** (1 / 3), color="0.5", linewidth=1, linestyle=":")
axes.text(1.3 * np.finfo(float).eps ** (1 / 3), 0.3, "eps^(1/3)", color="0.4", fontsize=9)
axes.axhline(1e-6, color="0.5", linewidth=1)
axes.text(1e-15, 1.5e-6, "a tolerance of 1e-6", color="0.4", fontsize=9)
axes.set(xscale="log", yscale="log", xlabel="step h", ylabel="error of the derivative", ylim=(1e-13, 5),
         title="Too large a step truncates, too small a step rounds")
axes.legend(loc="lower left")
plt.show()

# %%
best = {name: error.min() for name, error in errors.items()}
assert best["central, float64"] < 1e-10 < best["one-sided, float64"] < 1e-7 < best["central, float32"] < 1e-3
at = abs(np.log10(steps / 6e-6)).argmin()
assert errors["central, float64"][at] < 1e-9 < errors["one-sided, float64"][at] < errors["central, float32"][at]

# %% [markdown]
# On the right of each valley the lines are straight: slope 2 for the central quotient, 1 for the one-sided. On the left is
# rounding, noise that grows as $1/h$ when $h$ shrinks. (At the far left of the float32 line $x \pm h$ is rounded to $x$: the
# quotient is 0, and no digit is right.) In float64 the central quotient has about ten good digits at
# $h \approx \varepsilon^{1/3}$, and a tolerance of $10^{-6}$ leaves a wide margin. In float32 no step reaches that tolerance
# reliably: **check gradients in float64**, whatever you train in. minisl's `gradcheck` refuses anything else.
#
# ## 7. A gradient check that cannot fail
#
# Here is a check as one finds it in well-known course material: the gradient of the summed output, a central difference, and a
# tolerance that sounds strict enough.

# %%
def by_differences(f, x, h=1e-6):
    """df/dx for f from an array to a number."""
    g = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        e = np.zeros_like(x)
        e[i] = h
        g[i] = (f(x + e) - f(x - e)) / (2 * h)
    return g


def summed_check(f, backward, x, tolerance=1e-2):
    measured = by_differences(lambda x: f(x).sum(), x)
    derived = backward(x, np.ones(f(x).shape))
    return bool((abs(derived - measured) <= tolerance).all())


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()

# %% [markdown]
# Three ops to check, with inputs that look innocent. (Softmax's backward is derived in [02](02_llama.ipynb); here it is enough
# that it is right.) The last column is the test that matters: does the check accept a backward that returns **zeros**?

# %%
def zeros(x, dy):
    return np.zeros_like(x)


exponent = rng.integers(0, 1)  # "a random exponent": the upper end is not included
cases = {
    "log x at 100,000": (np.log, lambda x, dy: dy / x, np.full(3, 100_000.0)),
    "x^p, p drawn": (lambda x: x**exponent, lambda x, dy: dy * exponent * x ** (exponent - 1.0), rng.uniform(1, 2, 3)),
    "softmax": (softmax, lambda x, dy: softmax(x) * (dy - (dy * softmax(x)).sum()), rng.standard_normal(5)),
}
for name, (f, right, x) in cases.items():
    print(f"{name:17} right: {summed_check(f, right, x)}   zeros: {summed_check(f, zeros, x)}")

# %% [markdown]
# It accepts zeros, each time. Why:
#
# - *Logarithm:* the derivative at 100,000 is $10^{-5}$, far below the tolerance of $10^{-2}$. An **absolute** tolerance says
#   nothing about small gradients.
# - *Power:* the exponent is drawn from $\{0\}$. $x^0$ is constant, its derivative is 0, and so zeros are right here. The **draw
#   was constant**.
# - *Softmax:* the outputs sum to 1 whatever $x$ is. The derivative of the *sum* is zero, so with $\bar y = (1, \dots, 1)$ the
#   right backward returns zeros too. **Weights of all ones** look at one combination of the outputs, their sum, and softmax's
#   sum says nothing. The mean of normalised outputs has the same problem.
#
# The repair, a line for each:
#
# 1. Weigh the outputs with random $u$: check $L = \sum_i u_i y_i$.
# 2. Compare relatively: $|{\rm derived} - {\rm measured}| \le 10^{-6} \max(|{\rm derived}|, |{\rm measured}|)$. So that the
#    quotient is good enough, let the step grow with $|x|$. (Entries that are tiny beside the largest one get a floor, relative
#    to the largest.)
# 3. Refuse to judge where everything measured is zero: such a check cannot fail.
# 4. And before you trust a check, **show it a backward of zeros**. A check counts once it has rejected something.

# %%
def check(f, backward, x, tolerance=1e-6):
    u = rng.standard_normal(f(x).shape)
    measured = by_differences(lambda x: (u * f(x)).sum(), x, h=6e-6 * max(1, abs(x).max()))
    derived = backward(x, u)
    if not measured.any():
        return "refused"
    scale = np.maximum(np.maximum(abs(derived), abs(measured)), 1e-3 * abs(measured).max())
    return bool((abs(derived - measured) <= tolerance * scale).all())


for name, (f, right, x) in cases.items():
    print(f"{name:17} right: {check(f, right, x)}   zeros: {check(f, zeros, x)}")

# %% [markdown]
# The logarithm and softmax: right accepted, zeros rejected. The power with exponent 0 is refused, also for the right backward:
# choose other inputs. minisl's `gradcheck` follows the same rules, and compares the whole Jacobian while that is small. It
# takes ops, so we make ops of our softmax and of wrong versions of it.

# %%
def op(forward, backward):
    """A minisl op from two functions of arrays."""
    def remember(ctx, x):
        ctx.save(x)
        return forward(x)

    methods = {"forward": staticmethod(remember), "backward": staticmethod(lambda ctx, dy: backward(ctx.saved[0], dy))}
    return type("MyOp", (Function,), methods).apply


def gradcheck_says(f, backward, x):
    try:
        gradcheck(op(f, backward), x)
    except GradcheckError as error:
        return f"rejected: {error}"
    return "accepted"


f, right, x = cases["softmax"]
print("right:", gradcheck_says(f, right, x))
print("zeros:", gradcheck_says(f, zeros, x).split(" (relative")[0])
f, right, x = cases["x^p, p drawn"]
print("power, right:", gradcheck_says(f, right, x))
f, right, x = cases["log x at 100,000"]
print("log, right:", gradcheck_says(f, right, x))

# %% [markdown]
# The last one is refused as well: three times the same number is no random draw. The error names the op, the entry and both
# values, because that is what one needs to find a mistake.
#
# More wrong versions of softmax's backward $\bar x = p\,(\bar p - \sum_j \bar p_j p_j)$, of the kind people write:

# %%
p = softmax
wrong = {
    "zeros": zeros,
    "the sum forgotten": lambda x, dy: p(x) * dy,
    "mean for sum": lambda x, dy: p(x) * (dy - (dy * p(x)).mean()),
    "p forgotten": lambda x, dy: dy - (dy * p(x)).sum(),
    "1 % too large": lambda x, dy: 1.01 * p(x) * (dy - (dy * p(x)).sum()),
}
f, right, x = cases["softmax"]
print(f"{'':18} {'summed, 1e-2':14} {'ours, 1e-6':12} gradcheck")
table = {}
for name, backward_ in {"right": right, **wrong}.items():
    table[name] = [summed_check(f, backward_, x), check(f, backward_, x), gradcheck_says(f, backward_, x) == "accepted"]
    print(f"{name:18} " + "".join(f"{'accepts' if says else 'rejects':13}" for says in table[name]))
assert all(table["right"])
assert not any(row[1] or row[2] for name, row in table.items() if name != "right")
assert [row[0] for row in table.values()] == [True, True, False, False, True, True]

# %% [markdown]
# The summed check accepts three of the five: with weights of one, zeros are right, so is $1 - \sum_j p_j$, and so is the extra
# 1 % of nothing. The other two columns reject all five.
#
# minisl's own tests do this for every op: beside each there is a list of wrong versions, and a test that the check rejects
# every one. The ops of the package pass it, broadcasts and repeated uses included:

# %%
a, b = rng.standard_normal((3, 4)), rng.standard_normal(4)
gradcheck(lambda a, b: a * b + b.exp() / (a * a + 1), a, b)  # b is broadcast, and used twice
gradcheck(lambda a: ops.softmax(a @ a.T), a)
gradcheck(ops.log_softmax, a)
print("gradcheck has nothing to say")

# %% [markdown]
# In [02](02_llama.ipynb) the gradients of every layer of a LLaMA are derived by hand and put through such a check; in
# [03](03_sltrain.ipynb), those of SLTrain's layer.
#
# ## Exercises
#
# **Exercise 1.** Replace the diamond by doubling: `x = x + x`, ten times. Predict before you run it: how many nodes does
# `along_paths` enter, how many does `push` visit in topological order, and what is the derivative? Does topological order still
# work where both parents of a node are the same node?
#
# <details><summary>Answer</summary>
#
# There are 11 nodes, and from each two edges to the same parent: `along_paths` enters $1 + 2 + 4 + \dots + 2^{10} = 2047$,
# `push` 11. The derivative is $2^{10} = 1024$. It works since `waiting` counts edges, not users: both must be taken off before
# the parent's turn comes.
#
# ```python
# def doublings(x, k=10):
#     for _ in range(k):
#         x = x + x
#     return x
#
# x = Scalar(1.0)
# print(along_paths(doublings(x)), x.grad)
# x = Scalar(1.0)
# print(push(doublings(x), in_order), x.grad)
# assert x.grad == 1024
# ```
#
# </details>
#
# **Exercise 2.** A temperature $\tau$, one number, divides logits $Z\,(N, V)$: $Y = Z / \tau$. Derive $\bar\tau$. Which shape
# has it? Why is nothing about the shape to be done in the op? Check your formula against minisl.
#
# <details><summary>Answer</summary>
#
# Every $y_{nv} = z_{nv} / \tau$ uses $\tau$, so $\bar\tau = \sum_{nv} \bar y_{nv} \cdot (-z_{nv} / \tau^2)$: a single number,
# the sum over both axes. The op returns $-\bar Y Z / \tau^2$ in the shape $(N, V)$ of its output; the engine's un-broadcast
# takes the sum.
#
# ```python
# Z, dY = rng.standard_normal((4, 7)), rng.standard_normal((4, 7))
# tau = Tensor(np.array(0.8), requires_grad=True)
# (Tensor(Z) / tau).backward(dY)
# print(tau.grad.shape, np.isclose(tau.grad, -(dY * Z).sum() / 0.8**2))
# assert np.isclose(tau.grad, -(dY * Z).sum() / 0.8**2)
# ```
#
# </details>
#
# **Exercise 3.** Give $y = x^3$ the wrong backward $\bar x = 3x\,\bar y$ (instead of $3x^2$). Find inputs, not all equal, for
# which even `gradcheck` accepts it. What does that say about inputs such as 0, 1 or 2 in tests?
#
# <details><summary>Answer</summary>
#
# $3x = 3x^2$ where $x = 0$ or $x = 1$. At `[0.0, 1.0]` the wrong backward is right. A check speaks only about the points where
# it was done, and at "nice" numbers many formulas meet: $x = x^2$ at 0 and 1, $2x = x^2$ at 2. Draw inputs at random; a wrong
# formula meets the right one there with probability 0.
#
# ```python
# cube = lambda x: x * x * x
# for x in (np.array([0.0, 1.0]), rng.standard_normal(2)):
#     print(gradcheck_says(cube, lambda x, dy: 3 * x * dy, x).split(":")[0])
# ```
#
# </details>
