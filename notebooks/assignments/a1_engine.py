# %% [markdown]
# # Assignment 1: the engine
#
# You write the parts of an autograd engine that are easy to get wrong: the order of the backward pass, what broadcasting does to a
# gradient, five backwards, and a gradient check that can fail.
#
# **How.** Replace each `raise NotImplementedError()` with your code. The cell below it checks your answer: it prints nothing and
# passes, or says what is wrong. Tasks are graded apart from each other: skip one and come back. `pytest` in this folder checks them
# all. Your tests are a part of the grader's; there are more cases there, none of them a trick.
#
# About three hours. Read first: notebook `01_autograd`.

# %%
import numpy as np

from minisl.course import check, draw, raises, unchanged

# %% [markdown]
# ## Task 2. Un-broadcasting (4 points, 20 minutes)
#
# **Given** the gradient $G$ of a result that NumPy made by broadcasting an argument $x$ of shape `shape`. Broadcasting copies: entry
# $x_i$ was used at several places $j$ of the result, so by the chain rule
#
# $$\bar x_i = \sum_{j \text{ copies } i} G_j .$$
#
# **Write** `unbroadcast(grad, shape)`: 3 to 8 lines, NumPy only.
#
# | | shape |
# |---|---|
# | `grad` | any that `shape` broadcasts to, such as `(2, 3, 4)` |
# | returns | `shape`, such as `(3, 1)` |
#
# **Tested:** shapes with fewer axes, with axes of length 1, with both, and the scalar `()`; equal shapes; that `grad` is not changed.
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
for shape, want in (((2, 3, 4), grad), ((3, 4), grad.sum(0)), ((2, 3, 1), grad.sum(2, keepdims=True)),
                    ((3, 1), grad.sum((0, 2))[:, None]), ((), grad.sum())):
    before = grad.copy()
    check(f"gradient of shape {shape} from (2, 3, 4)", unbroadcast(grad, shape), want)
    unchanged("grad", grad, before)
### BEGIN HIDDEN TESTS
a, b, c = (int(n) for n in rng.integers(2, 6, 3))
grad = rng.standard_normal((a, b, 1, c))
check(f"gradient of shape (1, {b}, 1, 1) from {grad.shape}", unbroadcast(grad, (1, b, 1, 1)), grad.sum((0, 3), keepdims=True),
      wrong={"the mean over the copies, not the sum": grad.mean((0, 3), keepdims=True)})
check(f"gradient of shape (1,) from {grad.shape}", unbroadcast(grad, (1,)), grad.sum()[None])
### END HIDDEN TESTS
