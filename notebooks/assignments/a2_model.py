# %% [markdown]
# # Assignment 2: the model
#
# You write the parts of a LLaMA that hold all of its mathematics but for matrix products: RMSNorm, RoPE, causal attention and
# cross-entropy, each forwards and backwards. At the end you put them together, and your logits are those of minisl's `Llama`.
#
# **How.** Replace each `raise NotImplementedError()` with your code. The cell below it checks your answer: it prints nothing and
# passes, or says what is wrong. Tasks are graded apart from each other: skip one and come back. To check them all, save the
# notebook, then run `python -m minisl.course check a2_model.ipynb` (or `pytest`) in this folder: both read the saved file. Your
# tests are a part of the grader's; there are more cases there, none of them a trick. The grader has its own copy of the test
# cells: editing yours changes nothing.
#
# **Rules.** Your functions take and return plain NumPy arrays, do not change what they are given, and use only NumPy and, if you
# like, your functions of earlier tasks: not `minisl.autograd`, `minisl.nn` or `minisl.kernels`, and not `value` and `gradients`
# of the next cell, which are for the tests. (A rule for people: no test looks.) While a function does not pass, a task that calls
# it fails here too; the grader tries it again with one that works.
#
# About three and a half hours. Read `notebooks/02_llama.ipynb` first, and for the backwards the pages under `docs/derivations`.
# The notebook has code for some of these pieces: close it before you start, and write yours from the formulas here. Open it again
# only where the hint did not help.
#
# | symbol | what | symbol | what |
# |---|---|---|---|
# | $B, T$ | sequences in a batch, tokens in each | $H, d$ | heads, and the width of one |
# | $D = H d$ | width of the model | $V$ | words in the vocabulary |
# | $F$ | width inside the MLP | $L$ | the loss |
#
# For an array $y$ on the way to the loss $L$, `dy` is $\frac{\partial L}{\partial y}$, of $y$'s shape. A backward gets `dy` and
# what the forward got, and returns the gradient of each array argument, of that argument's shape.

# %%
import numpy as np

from minisl.autograd import Tensor, ops
from minisl.course import Wrong, check, draw, unchanged
from minisl.kernels import using
from minisl.nn import Llama, LlamaConfig
from minisl.nn.llama import rope_table


def value(op, *arrays, **rest):
    """What an op of the package gives for these arrays."""
    with using("numpy"):
        return op(*map(Tensor, arrays), **rest).data


def gradients(op, dy, *arrays, **rest):
    """The gradients of sum(dy * op(*arrays)), by the package's own backward."""
    leaves = [Tensor(array, requires_grad=True) for array in arrays]
    with using("numpy"):
        op(*leaves, **rest).backward(dy)
    return tuple(leaf.grad for leaf in leaves)


def differences(op, dy, *arrays, h=6e-6, **rest):
    """The same by central differences: move one number at a time, and look what the sum does."""
    arrays, found = [array.copy() for array in arrays], []
    for array in arrays:
        slope = np.zeros_like(array)
        for i in np.ndindex(array.shape):
            old, ends = array[i], []
            for array[i] in (old + h, old - h):  # writes one, then the other, into the array
                ends.append((dy * value(op, *arrays, **rest)).sum())
            array[i] = old
            slope[i] = (ends[0] - ends[1]) / (2 * h)
        found.append(slope)
    return tuple(found)


def call(function, **arguments):
    """function(*arguments), which must leave its arguments as they are."""
    before = [np.copy(argument) for argument in arguments.values()]
    with np.errstate(all="ignore"):
        result = function(*arguments.values())
    for name, was in zip(arguments, before):
        unchanged(name, arguments[name], was)
    return result

# %% [markdown]
# ## Task 1. RMSNorm (3 points, 15 minutes)
#
# **Given** `x`, whose last axis holds the $D$ features of a token, a gain $g$ for each feature, and the number `eps`.
#
# **Write** `rms_norm(x, gain, eps)`: 2 or 3 lines. For each token by itself,
#
# $$y_i = g_i\, \frac{x_i}{\sqrt{\frac1D \sum_j x_j^2 + \epsilon}} .$$
#
# | | shape |
# |---|---|
# | `x` | `(..., D)`: any number of axes, such as `(B, T, D)` or `(D,)` |
# | `gain` | `(D,)` |
# | returns | as `x` |
#
# **Tested:** small numbers written out; one, two and three axes; tokens of very different length; `eps` large enough to see; a
# token of zeros; that arguments are not changed.
#
# <details><summary>Hint</summary>
#
# The mean must broadcast against `x`: keep the axis it is taken over.
#
# </details>

# %% task="rms_norm"
def rms_norm(x, gain, eps):
    """x over its root mean square along the last axis, times gain."""
    ### BEGIN SOLUTION
    return gain * x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    ### END SOLUTION

# %% test="rms_norm" points=3
rng = draw("rms_norm")
x, gain = np.array([[3, 4], [0.6, -0.8]]), np.array([1.0, 2.0])
check("rms_norm([[3, 4], [0.6, -0.8]], [1, 2], 3.5)", call(rms_norm, x=x, gain=gain, eps=3.5),
      np.array([[0.75, 2], [0.3, -0.8]]), wrong={
    "eps is added to the root, not under it": [[0.42640687, 1.13708499], [0.14261582, -0.38030886]],
    "eps is missing": [[0.84852814, 2.2627417], [0.84852814, -2.2627417]],
    "the sum of the squares is taken, not their mean": [[0.56195149, 1.49853731], [0.28284271, -0.75424723]],
    "the gain is missing": [[0.75, 1], [0.3, -0.4]],
    "the root is missing": [[0.1875, 0.5], [0.15, -0.4]],
    "keepdims is missing: the mean of token 0 goes to feature 0 of each token, that of token 1 to feature 1":
        [[0.75, 4], [0.15, -0.8]],
    "the variance was taken (the mean subtracted), should be the mean of x^2":
        [[1.54919334, 4.13118224], [0.30037570, -0.80100188]],
    "x is divided by its length: no mean, no eps": [[0.6, 1.6], [0.6, -1.6]],
    "the mean runs over the tokens, not over the features": [[1.04892540, 2.32691891], [0.20978508, -0.46538378]],
    "there is one mean for all tokens": [[0.94868330, 2.52982213], [0.18973666, -0.50596443]],
    "the mean of x is subtracted, as in LayerNorm": [[-0.25819889, 0.51639778], [0.35043832, -0.70087664]]})
B, T, D = (int(n) for n in rng.permutation([3, 4, 6]))
x = rng.standard_normal((B, T, D)) * rng.choice([0.01, 1, 100], (B, T, 1))
gain, eps = rng.uniform(0.5, 1.5, D), rng.uniform(0.1, 1)
want = value(ops.rms_norm, x, gain, eps=eps)
check(f"rms_norm of x {x.shape}", call(rms_norm, x=x, gain=gain, eps=eps), want, atol=1e-12, wrong={
    "the mean runs over axis 1, should run over the last":
        value(ops.rms_norm, x.swapaxes(1, 2), np.ones(T), eps=eps).swapaxes(1, 2) * gain})
check(f"rms_norm of one token {D,}", rms_norm(x[0, 0], gain, eps), value(ops.rms_norm, x[:1, :1], gain, eps=eps)[0, 0])
### BEGIN HIDDEN TESTS
check("rms_norm with eps = 1e-6", rms_norm(x, gain, 1e-6), value(ops.rms_norm, x, gain, eps=1e-6))
x[1, 2] = 0
check("rms_norm with a token of zeros", rms_norm(x, gain, 1e-6), value(ops.rms_norm, x, gain, eps=1e-6))
check(f"rms_norm of x {(T, D)}", rms_norm(x[0], gain, eps), value(ops.rms_norm, x, gain, eps=eps)[0])
### END HIDDEN TESTS

# %% [markdown]
# ## Task 2. RMSNorm's backward (5 points, 20 minutes)
#
# **Given** `dy` and what `rms_norm` got. With $r = (\frac1D \sum_j x_j^2 + \epsilon)^{-1/2}$, a number for each token,
# $y_i = g_i x_i r$; and $r$ depends on all of $x$: $\frac{\partial r}{\partial x_i} = -\frac{r^3 x_i}{D}$. So
#
# $$dx_i = r\, g_i\, dy_i - r^3 x_i\, \frac1D \sum_j g_j\, dy_j\, x_j, \qquad dg_i = \sum_{\text{tokens}} dy_i\, x_i\, r .$$
#
# **Write** `rms_norm_backward(dy, x, gain, eps)`: 4 to 6 lines. It returns the two gradients `(dx, dgain)`.
#
# | | shape |
# |---|---|
# | `dy`, `x`, `dx` | `(..., D)`: two or three axes |
# | `gain`, `dgain` | `(D,)` |
#
# **Tested:** small numbers written out; against differences and against minisl's backward; `dx` is perpendicular to `x` where
# `eps` is 0; that arguments are not changed.
#
# <details><summary>Hint</summary>
#
# The gain is one array for all tokens of all sequences. All axes of its gradient but the last are summed over; reshaping to
# `(-1, D)` makes it one axis, however many there were.
#
# </details>

# %% task="rms_norm_backward"
def rms_norm_backward(dy, x, gain, eps):
    """(dx, dgain) for dy, the gradient of rms_norm(x, gain, eps)."""
    ### BEGIN SOLUTION
    r = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    normed, u = x * r, gain * dy
    dx = r * (u - normed * (u * normed).mean(-1, keepdims=True))
    return dx, (dy * normed).reshape(-1, x.shape[-1]).sum(axis=0)
    ### END SOLUTION

# %% test="rms_norm_backward" points=5
rng = draw("rms_norm_backward")
x, gain, dy = np.array([[3, 4], [0.6, -0.8]]), np.array([1.0, 2.0]), np.array([[4.0, 1], [2, -1]])
check("(dx, dgain) for x = [[3, 4], [0.6, -0.8]], gain = [1, 2], eps = 3.5",
      call(rms_norm_backward, dy=dy, x=x, gain=gain, eps=3.5),
      (np.array([[0.53125, -0.125], [0.895, -0.86]]), np.array([3.6, 1.4])), wrong={
          0: {"the second term is missing: r depends on x too": [[1, 0.5], [1, -1]],
              "the second term is added, not subtracted": [[1.46875, 1.125], [1.105, -1.14]],
              "1 / D is missing (a sum where the mean belongs)": [[0.0625, -0.75], [0.79, -0.72]],
              "the gain is missing": [[0.625, -0.25], [0.925, -0.4]],
              "the gain is twice in the second term": [[0.34375, -0.375], [0.835, -0.78]],
              "the gain is missing in the first term": [[0.53125, -0.375], [0.895, -0.36]],
              "the gain is missing in the second term": [[0.625, 0], [0.925, -0.9]],
              "the second term has r where r^3 belongs": [[-6.5, -9.5], [0.58, -0.44]],
              "the second term has r^2 where r^3 belongs": [[-0.875, -2], [0.79, -0.72]],
              "r is the root, should be 1 / root": [[-1904, -2552], [-2.72, 4.96]],
              "the mean runs over the tokens, not over the features": [[0.6625, 0.15], [0.73, -0.72]],
              "the mean runs over all tokens too": [[0.7, 0.1], [0.76, -0.68]],
              "eps is missing": [[0.45254834, -0.33941125], [0.45254834, 0.33941125]]},
          1: {"r is missing: it is dy times the normalised x": [13.2, 4.8],
              "the gain is in it, but y is linear in the gain": [3.6, 2.8],
              "the mean over the tokens, not their sum": [1.8, 0.7],
              "summed over the features, should be summed over the tokens": [4, 1],
              "eps is missing": [5.09116882, 2.2627417]}})
B, T, D = (int(n) for n in rng.permutation([2, 3, 4]))
x, dy, gain, eps = *rng.standard_normal((2, B, T, D)), rng.uniform(0.5, 1.5, D), rng.uniform(0.1, 1)
found = call(rms_norm_backward, dy=dy, x=x, gain=gain, eps=eps)
check(f"(dx, dgain) for x {x.shape}, against differences,", found, differences(ops.rms_norm, dy, x, gain, eps=eps), rtol=1e-6)
dx, dgain = rms_norm_backward(dy, x, gain, 0.0)
check("eps = 0: the sum of dx * x for each token", (dx * x).sum(-1), np.zeros((B, T)), atol=1e-12)
### BEGIN HIDDEN TESTS
check(f"(dx, dgain) for x {x.shape}", found, gradients(ops.rms_norm, dy, x, gain, eps=eps))
check(f"(dx, dgain) for x {(T, D)}", rms_norm_backward(dy[0], x[0], gain, eps),
      gradients(ops.rms_norm, dy[0], x[0], gain, eps=eps))
x *= rng.choice([0.01, 1, 100], (B, T, 1))
check("(dx, dgain) for tokens of different length", rms_norm_backward(dy, x, gain, 1e-5),
      gradients(ops.rms_norm, dy, x, gain, eps=1e-5))
### END HIDDEN TESTS

# %% [markdown]
# ## Task 3. RoPE (4 points, 25 minutes)
#
# **Given** the queries or keys `x` of $H$ heads for $T$ tokens in a row, the position `start` of the first of them (not 0 where a
# text is continued), and the number `theta`, $\theta$.
#
# **Write** `rope(x, start, theta)`: 5 to 8 lines. At position $t$ = `start`, `start + 1`, ... pair $i$ of a head's $d$ numbers
# turns by the angle $t\,\omega_i$ with $\omega_i = \theta^{-2i/d}$, $i = 0, \dots, d/2 - 1$. As in Hugging Face's LLaMA, a pair
# is one number of the first half and one of the second, $(x_i, x_{i + d/2})$:
#
# $$y_i = x_i \cos t\omega_i - x_{i+d/2} \sin t\omega_i, \qquad y_{i+d/2} = x_{i+d/2} \cos t\omega_i + x_i \sin t\omega_i .$$
#
# | | shape |
# |---|---|
# | `x` | `(B, H, T, d)`, $d$ even |
# | `start`, `theta` | an int, a float |
# | returns | as `x` |
#
# **Tested:** against minisl's `ops.rope`, with `start` 0 and not; $T = 1$; $d = 2$; that lengths are kept; that the inner product
# of a turned query and a turned key depends only on the distance of their positions; that `x` is not changed.
#
# <details><summary>Hint</summary>
#
# Make the angles first, an array `(T, d/2)`: a column of positions times a row of $\omega$. It broadcasts against each half of
# `x`.
#
# </details>

# %% task="rope"
def rope(x, start, theta):
    """Each pair (x_i, x_{i + d/2}) turned by its position's angle."""
    ### BEGIN SOLUTION
    T, d = x.shape[-2:]
    angle = np.arange(start, start + T)[:, None] * theta ** (-np.arange(0, d, 2) / d)
    cos, sin = np.cos(angle), np.sin(angle)
    a, b = x[..., :d // 2], x[..., d // 2:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    ### END SOLUTION

# %% test="rope" points=4
rng = draw("rope")
(B, H, T), d = (int(n) for n in rng.permutation([2, 3, 5])), int(rng.choice([4, 6, 8]))
x, theta = rng.standard_normal((B, H, T, d)), rng.uniform(20, 200)
apart = np.r_[:d:2, 1:d:2]  # 0, 2, 4, ..., 1, 3, 5, ...
for start in (0, int(rng.integers(3, 90))):
    def package(theta, start=start, sign=1, x=x):
        cos, sin = rope_table(d, theta, start, x.shape[2])
        return value(ops.rope, x, cos=cos, sin=sign * sin)

    def halves(first, second):
        return np.concatenate([first[..., :d // 2], second[..., d // 2:]], axis=-1)

    want, back = package(theta), package(theta, sign=-1)
    neighbours = np.empty_like(x)
    neighbours[..., apart] = package(theta, x=x[..., apart])
    got = call(rope, x=x, start=start, theta=theta)
    check(f"rope of x {x.shape}, start = {start},", got, want, wrong={
        "neighbours (x_2i, x_2i+1) are paired, not halves": neighbours,
        "it turns the wrong way (the signs of the two sin)": back,
        "the sign of sin in the first half": halves(back, want),
        "the sign of sin in the second half": halves(want, back),
        "the second half is made of a first half that is turned already": halves(want, package(theta, x=halves(want, x))),
        "the terms with sin are missing": package(theta, sign=0),
        "the first half stays as it is": halves(x, want),
        "the second half stays as it is": halves(want, x),
        "positions begin at 0, `start` is not used": package(theta, 0),
        "positions begin one too late": package(theta, start + 1),
        "positions run along the heads (axis 1), not along the tokens (axis 2)":
            package(theta, x=x.swapaxes(1, 2)).swapaxes(1, 2),
        "the exponent is -i / d, should be -2i / d": package(theta ** 0.5),
        "the exponent is -4i / d, should be -2i / d": package(theta ** 2),
        "the exponent's sign: omega_i falls with i": package(1 / theta),
        "all pairs turn by the same angle t": package(1.0),
        "x came back as it was": x})
    check("the lengths of the heads' vectors after rope", np.sqrt((got ** 2).sum(-1)), np.sqrt((x ** 2).sum(-1)))
### BEGIN HIDDEN TESTS
cos, sin = rope_table(d, theta, 700, 1)
check("rope of one token at 700", rope(x[:, :, :1], 700, theta), value(ops.rope, x[:, :, :1], cos=cos, sin=sin))
cos, sin = rope_table(2, 1e4, 2, T)
check("rope with d = 2", rope(x[..., :2], 2, 1e4), value(ops.rope, x[..., :2], cos=cos, sin=sin))
q, k = x[:1, :1, :1], x[:1, :1, 1:2]
check("<rope(q at 10), rope(k at 7)>", (rope(q, 10, theta) * rope(k, 7, theta)).sum(),
      (rope(q, 3, theta) * rope(k, 0, theta)).sum())
### END HIDDEN TESTS

# %% [markdown]
# ## Task 4. RoPE's backward (2 points, 10 minutes)
#
# **Given** `dy`, the gradient of `y = rope(x, start, theta)`.
#
# **Write** `rope_backward(dy, start, theta)`, which returns `dx`: 1 to 8 lines. At each position $y = R\,x$ with a matrix $R$ of
# rotations, so $dx = R^\top dy$: each pair turns by the same angle, the other way.
#
# | | shape |
# |---|---|
# | `dy`, `dx` | `(B, H, T, d)` |
#
# **Tested:** the sum of `dx * x` equals the sum of `dy * rope(x, start, theta)`, for any `x`; that it undoes `rope`; against
# differences and minisl's backward; with `start` 0 and not.
#
# <details><summary>Hint</summary>
#
# You can write the formula again with one sign changed. Or use `rope`: if both points and rotation are seen in a mirror, the
# rotation goes the other way. (The mirror of a pair is $(x_i, -x_{i+d/2})$.)
#
# </details>

# %% task="rope_backward"
def rope_backward(dy, start, theta):
    """dx for dy, the gradient of rope(x, start, theta)."""
    ### BEGIN SOLUTION
    d = dy.shape[-1]
    mirror = np.where(np.arange(d) < d // 2, 1, -1)
    return mirror * rope(mirror * dy, start, theta)
    ### END SOLUTION

# %% test="rope_backward" points=2
rng = draw("rope_backward")
(B, H, T), d = (int(n) for n in rng.permutation([2, 3, 5])), int(rng.choice([4, 6]))
x, dy, theta = *rng.standard_normal((2, B, H, T, d)), rng.uniform(20, 200)
for start in (int(rng.integers(3, 90)), 0):
    (cos, sin), (cos0, sin0), (low, high) = (rope_table(d, theta, t, T) for t in (start, 0, -start))
    want, inverse = value(ops.rope, dy, cos=cos, sin=-sin), rope_table(d, 1 / theta, start, T)
    dx = call(rope_backward, dy=dy, start=start, theta=theta)
    check(f"dx for dy {dy.shape}, start = {start},", dx, *gradients(ops.rope, dy, x, cos=cos, sin=sin), wrong={
        "it turns as rope does, should turn back": value(ops.rope, dy, cos=cos, sin=sin),
        "positions begin at 0, `start` is not used": value(ops.rope, dy, cos=cos0, sin=-sin0),
        "positions run from -start upwards; the angles to turn by are those of rope, times -1":
            value(ops.rope, dy, cos=low, sin=high),
        "the positions are in reverse order": value(ops.rope, dy, cos=cos[::-1], sin=-sin[::-1]),
        "the second half has the wrong sign": want * (1 - 2 * (np.arange(d) >= d // 2)),
        "the second half of dy changes its sign before it turns":
            value(ops.rope, dy * (1 - 2 * (np.arange(d) >= d // 2)), cos=cos, sin=-sin),
        "the first half has the wrong sign": want * (1 - 2 * (np.arange(d) < d // 2)),
        "theta is inverted, which does not invert the angles": value(ops.rope, dy, cos=inverse[0], sin=inverse[1]),
        "the terms with sin are missing": value(ops.rope, dy, cos=cos, sin=0 * sin),
        "dy came back as it was": dy})
    check("the sum of dx * x", (dx * x).sum(), (dy * value(ops.rope, x, cos=cos, sin=sin)).sum())
    check("rope_backward of rope(x)", rope_backward(value(ops.rope, x, cos=cos, sin=sin), start, theta), x)
### BEGIN HIDDEN TESTS
check("dx, against differences,", dx, *differences(ops.rope, dy, x, cos=cos, sin=sin), rtol=1e-6)
cos, sin = rope_table(d, 1e4, 700, 1)
check("dx of one token at 700", rope_backward(dy[:, :, :1], 700, 1e4), value(ops.rope, dy[:, :, :1], cos=cos, sin=-sin))
### END HIDDEN TESTS

# %% [markdown]
# ## Task 5. Causal attention (5 points, 25 minutes)
#
# **Given** queries, keys and values of $H$ heads. Heads and sequences do not see each other. For one head of one sequence,
# $Q, K, V$ are $(T, d)$ ($V$ here is the values, not the vocabulary), and token $i$ sees the tokens $j \le i$, itself among them:
#
# $$S_{ij} = \frac{1}{\sqrt d} \sum_c Q_{ic} K_{jc}, \qquad P_{ij} = \frac{e^{S_{ij}}}{\sum_{k \le i} e^{S_{ik}}}
# \text{ for } j \le i, \text{ else } 0, \qquad O_i = \sum_j P_{ij} V_j .$$
#
# **Write** `attention(q, k, v)`: 5 to 8 lines. A score of 10,000 is no reason for a NaN: $e^{10000}$ is too large for a float64,
# but a row's $P$ does not change if one number is subtracted from all of its scores.
#
# | | shape |
# |---|---|
# | `q`, `k`, `v` | `(B, H, T, d)` |
# | scores $S$ and $P$ | `(B, H, T, T)`: row $i$ is the query, column $j$ the key |
# | returns | `(B, H, T, d)` |
#
# **Tested:** equal scores, where the answer is the mean of the values so far; against minisl's `ops.attention`; scores of
# $\pm 10^4$ and more; $T = 1$; that what comes later, however large, changes nothing; that arguments are not changed.
#
# <details><summary>Hint</summary>
#
# `@` on arrays of four axes multiplies the matrices in the last two. `np.tri` makes a mask. A score of `-np.inf` becomes a $P$ of
# exactly 0; set it before you look for the row's maximum.
#
# </details>

# %% task="attention"
def attention(q, k, v):
    """Causal softmax(q k^T / sqrt(d)) v, for each head of each sequence."""
    ### BEGIN SOLUTION
    T, d = q.shape[-2:]
    s = q @ k.swapaxes(-1, -2) / np.sqrt(d)
    s = np.where(np.tri(T, dtype=bool), s, -np.inf)
    e = np.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True) @ v
    ### END SOLUTION

# %% test="attention" points=5
rng = draw("attention")
B, H, T, d = (int(n) for n in rng.permutation([2, 3, 4, 5]))
q, k, v = rng.standard_normal((3, B, H, T, d))


def by_token(f):
    """f(0), f(1), ... (B, H, d) along axis 2, for T tokens."""
    return np.stack([f(i) for i in range(T)], axis=2)


check(f"attention of q, k, v {q.shape} with q = 0, the mean of the values so far,", call(attention, q=0 * q, k=k, v=v),
      by_token(lambda i: v[:, :, :i + 1].mean(2)), wrong={
        "every token sees all (no mask, or masked scores are 0, not -inf)": by_token(lambda i: v.mean(2)),
        "the mask is off by one: a token sees the next one": by_token(lambda i: v[:, :, :i + 2].mean(2)),
        "the mask is off by one: a token does not see itself":
            by_token(lambda i: v[:, :, :i].mean(2) if i else np.full((B, H, d), np.nan)),
        "the mask is upside down: a token sees what follows": by_token(lambda i: v[:, :, i:].mean(2)),
        "masked after the softmax: the rows of P do not sum to 1": by_token(lambda i: v[:, :, :i + 1].sum(2) / T),
        "the softmax runs over the queries (axis -2), not over the keys (axis -1)":
            by_token(lambda i: sum(v[:, :, j] / (T - j) for j in range(i + 1))),
        "P is transposed": by_token(lambda i: sum(v[:, :, j] / (j + 1) for j in range(i, T))),
        "not divided by the sum of the row": by_token(lambda i: v[:, :, :i + 1].sum(2))})
check(f"attention of q, k, v {q.shape}", call(attention, q=q, k=k, v=v), value(ops.attention, q, k, v), wrong={
    "1 / sqrt(d) is missing": value(ops.attention, q * d ** 0.5, k, v),
    "divided by d, not by sqrt(d)": value(ops.attention, q / d ** 0.5, k, v),
    "multiplied by sqrt(d), not divided": value(ops.attention, q * d, k, v),
    "divided by sqrt(T), not by sqrt(d)": value(ops.attention, q * (d / T) ** 0.5, k, v),
    "divided by sqrt(H d), not by sqrt(d)": value(ops.attention, q / H ** 0.5, k, v),
    "q and k are exchanged: row i of the scores is the query": value(ops.attention, k, q, v)})
check("attention with scores of about 10,000 (subtract, in each row, the largest score that this query sees)",
      call(attention, q=1e4 * q, k=k, v=v), value(ops.attention, 1e4 * q, k, v))
### BEGIN HIDDEN TESTS
check("attention with T = 1", attention(q[:, :, :1], k[:, :, :1], v[:, :, :1]), v[:, :, :1])
later = k + 1e5 * (np.arange(T) == T - 1)[:, None], v + 1e5 * (np.arange(T) == T - 1)[:, None]
check("attention of all tokens but the last, with another last one,", call(attention, q=q, k=later[0], v=later[1])[:, :, :-1],
      value(ops.attention, q, k, v)[:, :, :-1])
check("attention with scores of about -10,000", call(attention, q=abs(q), k=-1e4 * abs(k), v=v),
      value(ops.attention, abs(q), -1e4 * abs(k), v))
### END HIDDEN TESTS

# %% [markdown]
# ## Task 6. Attention's backward (6 points, 30 minutes)
#
# **Given** `do`, the gradient of $O$ = `attention(q, k, v)`, and the three arguments. For one head of one sequence, with $S$ and
# $P$ as in task 5, from the end to the start:
#
# $$dV = P^\top dO, \qquad dP = dO\, V^\top, \qquad dS_{ij} = P_{ij} \Big( dP_{ij} - \sum_k P_{ik}\, dP_{ik} \Big), \qquad
# dQ = \frac{dS\, K}{\sqrt d}, \qquad dK = \frac{dS^\top Q}{\sqrt d} .$$
#
# **Write** `attention_backward(do, q, k, v)`: 8 to 12 lines. It returns `(dq, dk, dv)`. $P$ has to be computed again, as safe as
# before.
#
# | | shape |
# |---|---|
# | `do`, `q`, `k`, `v` and each gradient | `(B, H, T, d)` |
# | $P$, $dP$, $dS$ | `(B, H, T, T)` |
#
# **Tested:** small numbers written out; against differences and against minisl's backward; scores of $\pm 10^4$ and more; that a
# `do` for token $i$ alone gives no gradient to a key or value behind it; that arguments are not changed.
#
# <details><summary>Hint</summary>
#
# The sum in $dS$ runs over the keys of one query: it is one number a row. Where $P$ is 0, $dS$ is 0: the mask needs no further
# care. You may use `attention`, or write a helper that gives $P$ into this cell.
#
# </details>

# %% task="attention_backward"
def attention_backward(do, q, k, v):
    """(dq, dk, dv) for do, the gradient of attention(q, k, v)."""
    ### BEGIN SOLUTION
    T, d = q.shape[-2:]
    s = np.where(np.tri(T, dtype=bool), q @ k.swapaxes(-1, -2) / np.sqrt(d), -np.inf)
    p = np.exp(s - s.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    dp = do @ v.swapaxes(-1, -2)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) / np.sqrt(d)
    return ds @ k, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ do
    ### END SOLUTION

# %% test="attention_backward" points=6
rng = draw("attention_backward")
# T = 2, d = 4, with P = [[1, 0], [1/5, 4/5]] and dP = [[1, 5], [10, 50]] (the 5 behind the mask), so dS = [[0, 0], [-6.4, 6.4]]
l = np.log(4)
q, k, v, do = np.array([[[0, 0, 2, 0], [1, 1, 0, 0]], [[0, 0, 1, 0], [l, l, 0, 0]],
                        [[1, 0, 0, 0], [5, 0, 0, 0]], [[1, 0, 0, 0], [10, 0, 0, 0]]])[:, None, None]


def dq_of(a, b, c, e):
    """The dq that belongs to dS = [[a, b], [c, e]]."""
    return np.array([[[[b * l, b * l, a, 0], [e * l, e * l, c, 0]]]]) / 2


want = dq_of(0, 0, -6.4, 6.4), np.array([[[[-3.2, -3.2, 0, 0], [3.2, 3.2, 0, 0]]]]), np.array([[[[3, 0, 0, 0], [8.0, 0, 0, 0]]]])
unmasked = np.e / (1 + np.e) ** 2 * 4
check("(dq, dk, dv) for two tokens", call(attention_backward, do=do, q=q, k=k, v=v), want, wrong={
    0: {"dq and dk are exchanged": want[1],
        "1 / sqrt(d) is missing": dq_of(0, 0, -12.8, 12.8),
        "P was computed without 1 / sqrt(d)": dq_of(0, 0, -640 / 289, 640 / 289),
        "1 / sqrt(d) is missing, in P too": dq_of(0, 0, -1280 / 289, 1280 / 289),
        "in dS the row's sum needs keepdims": dq_of(0, 0, 1.8, 6.4),
        "divided by d, should be divided by sqrt(d)": dq_of(0, 0, -3.2, 3.2),
        "divided by sqrt(T), should be divided by sqrt(d)": dq_of(0, 0, -6.4 * 2 ** 0.5, 6.4 * 2 ** 0.5),
        "token 0 sees token 1: P is not masked": dq_of(-unmasked, unmasked, -6.4, 6.4),
        "in dS the sum of P dP over the row is not subtracted": dq_of(1, 0, 2, 40),
        "in dS the sum of P dP over the row is added": dq_of(2, 0, 10.4, 73.6),
        "in dS the mean of dP is subtracted, should be the sum of P dP": dq_of(-2, 0, -4, 16),
        "in dS the sum of dP is subtracted, should be the sum of P dP": dq_of(-5, 0, -10, -8),
        "dP is taken for dS: the softmax has a derivative too": dq_of(1, 5, 10, 50),
        "dP is taken for dS (masked): the softmax has a derivative too": dq_of(1, 0, 10, 50),
        "in dS the factor P in front is missing": dq_of(0, 4, -32, 8),
        "in dS the sum runs over the queries (a column), should run over the keys (a row)": dq_of(-2, 0, 1.4, 8),
        "dS is P (1 - P) dP, as if each P depended on its own score alone": dq_of(0, 0, 1.6, 8)},
    1: {"1 / sqrt(d) is missing": 2 * want[1],
        "dS is not transposed": [[[[0, 0, 0, 0], [3.2, 3.2, -6.4, 0]]]]},
    2: {"P is not transposed": [[[[1, 0, 0, 0], [8.2, 0, 0, 0]]]],
        "multiplied by v, should be by do": [[[[2, 0, 0, 0], [4, 0, 0, 0]]]],
        "divided by sqrt(d), which belongs to dq and dk only": want[2] / 2}})
B, H, T, d = (int(n) for n in rng.permutation([2, 3, 4, 5]))
q, k, v, do = rng.standard_normal((4, B, H, T, d))
found = call(attention_backward, do=do, q=q, k=k, v=v)
check(f"(dq, dk, dv) for q {q.shape}", found, gradients(ops.attention, do, q, k, v), wrong={
    0: {"dq and dk are exchanged": gradients(ops.attention, do, q, k, v)[1]}})
check("(dq, dk, dv) of the first sequence and head, against differences,", tuple(g[:1, :1] for g in found),
      differences(ops.attention, do[:1, :1], q[:1, :1], k[:1, :1], v[:1, :1]), rtol=1e-6)
check("(dq, dk, dv) with scores of about 10,000", call(attention_backward, do=do, q=1e4 * q, k=k, v=v),
      gradients(ops.attention, do, 1e4 * q, k, v), atol=1e-8)
### BEGIN HIDDEN TESTS
do[:, :, 1:] = 0
_, dk, dv = attention_backward(do, q, k, v)
check("the dk of keys behind the only token with a do", dk[:, :, 1:], 0 * dk[:, :, 1:])
check("the dv of values behind the only token with a do", dv[:, :, 1:], 0 * dv[:, :, 1:])
### END HIDDEN TESTS

# %% [markdown]
# ## Task 7. Cross-entropy (3 points, 20 minutes)
#
# **Given** logits $z$, a score for each word at each position, and the words that really came. A label of $-100$ says that a
# position does not count (padding): neither in the sum nor in the number one divides by. At least one counts.
#
# **Write** `cross_entropy(logits, labels)`: 4 to 7 lines. With $N$ the number of positions that count and $c_n$ the label of the
# $n$-th,
#
# $$L = \frac1N \sum_n \Big( \ln \sum_w e^{z_{nw}} - z_{n c_n} \Big) .$$
#
# As in task 5, logits of 10,000 must not overflow; and a word's probability may be so small that as a number it is 0, while its
# logarithm is not $-\infty$.
#
# | | shape |
# |---|---|
# | `logits` | `(B, T, V)` |
# | `labels` | `(B, T)`, integers 0 to $V - 1$, or $-100$ |
# | returns | a number |
#
# **Tested:** small numbers written out, with an ignored position; equal logits; against minisl's `ops.cross_entropy`; logits of
# $\pm 10^4$; that arguments are not changed.
#
# <details><summary>Hint</summary>
#
# For any $m$, $\ln \sum_w e^{z_w} = m + \ln \sum_w e^{z_w - m}$. To select first what counts, with `labels != -100` as an index,
# leaves `(N, V)` and `(N,)`. One number of each row: index with `np.arange(N)` and the labels.
#
# </details>

# %% task="cross_entropy"
def cross_entropy(logits, labels):
    """The mean of -ln softmax(logits) at the labels that are not -100."""
    ### BEGIN SOLUTION
    kept = labels != -100
    z, labels = logits[kept], labels[kept]  # (N, V) and (N,)
    top = z.max(axis=1)
    logsumexp = top + np.log(np.exp(z - top[:, None]).sum(axis=1))
    return (logsumexp - z[np.arange(len(z)), labels]).mean()
    ### END SOLUTION

# %% test="cross_entropy" points=3
rng = draw("cross_entropy")
logits = np.log([[[1.0, 2, 5], [6, 1, 1], [4, 2, 2], [2, 4, 2], [1, 1, 6]]])  # probabilities of n / 8
labels = np.array([[2, 0, -100, 1, 0]])
a, b, c, e, ignored = np.log([8 / 5, 8 / 6, 8 / 4, 8 / 1, 8 / 4])
check("cross_entropy with probabilities 5/8, 6/8, 4/8 and 1/8", call(cross_entropy, logits=logits, labels=labels),
      (a + b + c + e) / 4, wrong={
    "the sum, not the mean over the positions that count": a + b + c + e,
    "divided by all positions, also those that do not count": (a + b + c + e) / 5,
    "the position labelled -100 counts too, as word 0": (a + b + c + e + ignored) / 5,
    "divided by the number of logits (the mean over V too)": (a + b + c + e) / 12,
    "the logarithm has base 2": (a + b + c + e) / 4 / np.log(2),
    "ln of the sum over all words is missing (no softmax)": -np.log(5 * 6 * 4 * 1) / 4,
    "the maximum that was subtracted is not added again": (a + b + c + e - np.log(5 * 6 * 4 * 6)) / 4,
    "z[:, labels] takes the labels of all positions at each position": np.log(8) - np.log(10 * 36 * 32 * 6) / 16,
    "1 minus the probability, should be minus its logarithm": 1 - (5 + 6 + 4 + 1) / 32,
    "the logarithm of the mean, should be the mean of the logarithms": -np.log((5 + 6 + 4 + 1) / 32)})
B, T, V = (int(n) for n in rng.permutation([3, 4, 6]))
logits, labels = 3 * rng.standard_normal((B, T, V)), rng.integers(0, V, (B, T))
check(f"cross_entropy of {logits.shape}", call(cross_entropy, logits=logits, labels=labels),
      value(ops.cross_entropy, logits, labels=labels))
labels[0, 1:] = -100
check(f"cross_entropy of {logits.shape}, {T - 1} positions ignored,", call(cross_entropy, logits=logits, labels=labels),
      value(ops.cross_entropy, logits, labels=labels))
check("cross_entropy of equal logits, ln V,", call(cross_entropy, logits=0 * logits, labels=labels), np.log(V))
check("cross_entropy with logits of about 10,000 (subtract each position's own largest; take no logarithm of a probability)",
      call(cross_entropy, logits=1e4 * logits, labels=labels), value(ops.cross_entropy, 1e4 * logits, labels=labels))
### BEGIN HIDDEN TESTS
check("cross_entropy with 1,000 added to all logits", cross_entropy(logits + 1e3, labels),
      value(ops.cross_entropy, logits, labels=labels))
labels[:] = -100
labels[1, 2] = V - 1
check("cross_entropy where one position counts", cross_entropy(logits, labels), value(ops.cross_entropy, logits, labels=labels))
labels = rng.integers(0, V, (B, T))
check("cross_entropy with logits of about -10,000", call(cross_entropy, logits=-1e4 * abs(logits), labels=labels),
      value(ops.cross_entropy, -1e4 * abs(logits), labels=labels))
### END HIDDEN TESTS

# %% [markdown]
# ## Task 8. Cross-entropy's backward (3 points, 15 minutes)
#
# **Given** what `cross_entropy` got. (Its gradient from above is 1: it is the loss.)
#
# **Write** `cross_entropy_backward(logits, labels)`, which returns the gradient of the logits: 5 to 8 lines. What the model said,
# minus what was right: at the $n$-th of the $N$ positions that count,
#
# $$dz_{nw} = \frac1N \Big( \frac{e^{z_{nw}}}{\sum_u e^{z_{nu}}} - [w = c_n] \Big),$$
#
# where $[w = c]$ is 1 if $w = c$ and else 0; and $dz = 0$ at the positions that do not count.
#
# | | shape |
# |---|---|
# | `logits` | `(B, T, V)` |
# | `labels` | `(B, T)`, integers 0 to $V - 1$, or $-100$ |
# | returns | `(B, T, V)` |
#
# **Tested:** small numbers written out, with an ignored position; against differences and minisl's backward; logits of
# $\pm 10^4$; that arguments are not changed.
#
# <details><summary>Hint</summary>
#
# Start from an array of zeros like `logits`, and write into it at the positions that count only.
#
# </details>

# %% task="cross_entropy_backward"
def cross_entropy_backward(logits, labels):
    """The gradient of cross_entropy(logits, labels) with respect to logits."""
    ### BEGIN SOLUTION
    kept = labels != -100
    p = np.exp(logits[kept] - logits[kept].max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(p)), labels[kept]] -= 1
    dz = np.zeros_like(logits)
    dz[kept] = p / len(p)
    return dz
    ### END SOLUTION

# %% test="cross_entropy_backward" points=3
rng = draw("cross_entropy_backward")
eighths = np.array([[[1.0, 2, 5], [6, 1, 1], [3, 4, 1], [2, 4, 2]]])
logits, labels = np.log(eighths), np.array([[2, 0, -100, 1]])
want = np.array([[[1, 2, -3], [-2, 1, 1], [0, 0, 0], [2, -4, 2.0]]]) / 24
ignored = np.array([[[0], [0], [1], [0]]])
check("the gradient for probabilities of n / 8", call(cross_entropy_backward, logits=logits, labels=labels), want, wrong={
    "not divided by the number of positions that count": 3 * want,
    "divided by all positions, also those that do not count": want * 3 / 4,
    "divided by the number of logits (V too)": want / 3,
    "divided by all positions, and those that do not count have a gradient": (want + ignored * eighths / 24) * 3 / 4,
    "positions that do not count have a gradient": want + ignored * eighths / 24,
    "positions that do not count have a gradient, as if the label was word 0": want + ignored * np.array([-5, 4, 1]) / 24,
    "divided by all positions, and -100 is taken for word 0": (want + ignored * np.array([-5, 4, 1]) / 24) * 3 / 4,
    "the 1 of the right word is not subtracted": (1 - ignored) * eighths / 24,
    "1 is subtracted from all words": (1 - ignored) * (eighths - 8) / 24,
    "the softmax runs over the positions, should run over the words": np.array([[
        [0.03921569, 0.08510638, -0.13333333], [-0.1372549, 0.03546099, 0.03333333], [0, 0, 0], [0.09803922, -0.12056738, 0.1]]]),
    "only the right word has a gradient": np.array([[[0, 0, -3], [-2, 0, 0], [0, 0, 0], [0, -4, 0]]]) / 24,
    "the 1 of the right word is subtracted after dividing by the number of positions":
        np.array([[[1, 2, -19], [-18, 1, 1], [0, 0, 0], [2, -20, 2]]]) / 24})
B, T, V = (int(n) for n in rng.permutation([2, 3, 5]))
logits, labels = 2 * rng.standard_normal((B, T, V)), rng.integers(0, V, (B, T))
labels[0, 1] = -100
found = call(cross_entropy_backward, logits=logits, labels=labels)
check(f"the gradient of {logits.shape}", found, *gradients(ops.cross_entropy, np.ones(()), logits, labels=labels))
check("the gradient, against differences,", found, *differences(ops.cross_entropy, np.ones(()), logits, labels=labels), rtol=1e-6)
check("the gradient with logits of about 10,000", call(cross_entropy_backward, logits=1e4 * logits, labels=labels),
      *gradients(ops.cross_entropy, np.ones(()), 1e4 * logits, labels=labels))
### BEGIN HIDDEN TESTS
labels[:] = rng.integers(0, V, (B, T))
check("the gradient where all positions count", cross_entropy_backward(logits, labels),
      *gradients(ops.cross_entropy, np.ones(()), logits, labels=labels))
labels[:] = -100
labels[1, 2 % T] = V - 1
check("the gradient where one position counts", cross_entropy_backward(logits, labels),
      *gradients(ops.cross_entropy, np.ones(()), logits, labels=labels))
check("the gradient with logits of about -10,000", call(cross_entropy_backward, logits=-1e4 * abs(logits), labels=labels),
      *gradients(ops.cross_entropy, np.ones(()), -1e4 * abs(logits), labels=labels))
### END HIDDEN TESTS

# %% [markdown]
# ## Task 9. The whole forward pass (5 points, 45 minutes)
#
# **Given** token ids, a dict of weights under Hugging Face's names, a dict of sizes, and two functions you need not write:

# %%
def linear(x, W):
    """x (..., n) times the transpose of W (m, n): (..., m)."""
    return x @ W.T


def swiglu(gate, up):
    """silu(gate) * up, silu(a) = a / (1 + e^-a)."""
    return 0.5 * gate * (1 + np.tanh(0.5 * gate)) * up

# %% [markdown]
# Token ids become rows of the embedding, $x\,(B, T, D)$. Then each of the $n$ blocks adds two things to $x$, one after the other:
#
# $$x \leftarrow x + {\rm Attention}({\rm RMSNorm}(x)), \qquad x \leftarrow x + {\rm MLP}({\rm RMSNorm}(x)),$$
#
# a last RMSNorm follows, and a matrix product with the head gives the logits. (The norm comes before attention and MLP, and what
# is added to is not normed.) In pieces:
#
# - **Attention** of $h\,(B, T, D)$: `q_proj`, `k_proj` and `v_proj` make queries, keys and values $(B, T, D)$ of it. Head $a$ of
#   $H$ owns the numbers $a d$ to $a d + d - 1$ of a token's $D$; `attention` wants $(B, H, T, d)$. RoPE, from position 0, turns
#   queries and keys, not values. The heads' outputs go back to $(B, T, D)$, in the same order, and through `o_proj`.
# - **MLP** of $h$: `swiglu` of $h$ through `gate_proj` and $h$ through `up_proj`; the result goes through `down_proj`.
#
# | weight, with $i = 0, \dots, n - 1$ | shape |
# |---|---|
# | `model.embed_tokens.weight` | `(V, D)` |
# | `model.layers.{i}.input_layernorm.weight`, the gain before attention | `(D,)` |
# | `model.layers.{i}.self_attn.q_proj.weight`, also `k_proj`, `v_proj`, `o_proj` | `(D, D)` |
# | `model.layers.{i}.post_attention_layernorm.weight`, the gain before the MLP | `(D,)` |
# | `model.layers.{i}.mlp.gate_proj.weight`, also `up_proj` | `(F, D)` |
# | `model.layers.{i}.mlp.down_proj.weight` | `(D, F)` |
# | `model.norm.weight`, the last norm's gain | `(D,)` |
# | `lm_head.weight` | `(V, D)` |
#
# | key of `config` | what |
# |---|---|
# | `num_hidden_layers`, `num_attention_heads` | $n$, $H$ |
# | `rms_norm_eps`, `rope_theta` | `eps` of all norms, `theta` |
#
# **Write** `llama(ids, weights, config)`: 15 to 20 lines that call your functions, `linear` and `swiglu`. `ids` are integers
# `(B, T)`; it returns `(B, T, V)`. All matrices are used by `linear`.
#
# **Tested:** against minisl's `Llama` with the same weights: first with attention and MLP switched off (their last matrix 0),
# then with one of them, then the whole; several layers, and one; that the order of earlier tokens counts; that `weights` are not
# changed.
#
# <details><summary>Hint</summary>
#
# From $(B, T, D)$ to heads are two steps, and both are needed: `reshape` to $(B, T, H, d)$, then exchange axes 1 and 2. A
# `reshape` straight to $(B, H, T, d)$ gives the right shape with the numbers of other tokens in it. On the way back, the same in
# reverse.
#
# </details>

# %% task="llama"
def llama(ids, weights, config):
    """Logits (B, T, V) of a LLaMA."""
    ### BEGIN SOLUTION
    H, eps, theta = config["num_attention_heads"], config["rms_norm_eps"], config["rope_theta"]
    x = weights["model.embed_tokens.weight"][ids]
    B, T, D = x.shape
    for i in range(config["num_hidden_layers"]):
        w = {name.split(".")[-2]: a for name, a in weights.items() if name.startswith(f"model.layers.{i}.")}
        h = rms_norm(x, w["input_layernorm"], eps)
        q, k, v = (linear(h, w[name]).reshape(B, T, H, -1).swapaxes(1, 2) for name in ("q_proj", "k_proj", "v_proj"))
        o = attention(rope(q, 0, theta), rope(k, 0, theta), v)
        x = x + linear(o.swapaxes(1, 2).reshape(B, T, D), w["o_proj"])
        h = rms_norm(x, w["post_attention_layernorm"], eps)
        x = x + linear(swiglu(linear(h, w["gate_proj"]), linear(h, w["up_proj"])), w["down_proj"])
    return linear(rms_norm(x, weights["model.norm.weight"], eps), weights["lm_head.weight"])
    ### END SOLUTION

# %% [markdown]
# The next cell is for the tests only.

# %%
def package_llama(ids, weights, config):
    """The logits of minisl's Llama. For the tests."""
    model = Llama(LlamaConfig(**config), dtype="float64")
    model.load_state_dict(weights)
    with using("numpy"):
        return model(ids).data


def off(w, *matrices, keep=" "):
    """The weights w, but these matrices are 0 in all layers (if their names do not start with `keep`)."""
    return {name: 0 * a if name.split(".")[-2] in matrices and not name.startswith(keep) else a for name, a in w.items()}


def instead(w, **pairs):
    """The weights w if, in each layer, another matrix or gain is used in the place of one."""
    sources = {name: ".".join(pairs.get(part, part) for part in name.split(".")) for name in w}
    return {name: w[source] for name, source in sources.items()}


def transposed(w, *matrices):
    """The weights w if these (square) matrices are used as x @ W, not as linear(x, W)."""
    return {name: a.T if name.split(".")[-2] in matrices else a for name, a in w.items()}


def interleaved(w, H, *matrices):
    """The weights w if, of H heads, head h owned the numbers h, h + H, h + 2 H, ... of these matrices' results."""
    order = np.arange(len(w["model.norm.weight"])).reshape(-1, H).T.ravel()
    return {name: a[order] if name.split(".")[-2] in matrices else a for name, a in w.items()}


def through_norms(w, config, *gains):
    """The weights w, with rows of the embedding that went through the norms with these gains of each layer."""
    x = w["model.embed_tokens.weight"]
    for i in range(config["num_hidden_layers"]):
        for gain in gains:
            x = value(ops.rms_norm, x, w[f"model.layers.{i}.{gain}.weight"], eps=config["rms_norm_eps"])
    return w | {"model.embed_tokens.weight": x}


def others(w, L, H):
    """What people do, and the weights and sizes with which minisl's Llama does the same."""
    square = ("q_proj", "k_proj", "v_proj", "o_proj")
    input_gain, second_gain = "input_layernorm", "post_attention_layernorm"
    E, W = "model.embed_tokens.weight", "lm_head.weight"
    return {
        "gate_proj and up_proj are exchanged": (instead(w, gate_proj="up_proj", up_proj="gate_proj"), {}),
        "the gain of input_layernorm is used for both norms (or the first norm's result is used twice)": (
            instead(w, post_attention_layernorm=input_gain), {}),
        "the gain of post_attention_layernorm is used for both norms": (instead(w, input_layernorm=second_gain), {}),
        "the gains of a block's two norms are exchanged": (
            instead(w, input_layernorm=second_gain, post_attention_layernorm=input_gain), {}),
        "the last norm's gain is not used": (w | {"model.norm.weight": 1 + 0 * w["model.norm.weight"]}, {}),
        "v_proj is used for the keys": (instead(w, k_proj="v_proj"), {}),
        "k_proj is used for the values": (instead(w, v_proj="k_proj"), {}),
        "o_proj is not used": ({name: np.eye(len(a)) if "o_proj" in name else a for name, a in w.items()}, {}),
        "o_proj is used as x @ W, should be linear(x, W)": (transposed(w, "o_proj"), {}),
        "q_proj, k_proj and v_proj are used as x @ W, should be linear(x, W)": (transposed(w, *square[:3]), {}),
        "the square matrices are used as x @ W, should be linear(x, W)": (transposed(w, *square), {}),
        "the heads' numbers are interleaved: H comes before d where heads are split": (interleaved(w, H, *square[:3]), {}),
        "every layer has the weights of layer 0": (instead(w, **{str(i): "0" for i in range(L)}), {}),
        "only layer 0 is computed": (off(w, "o_proj", "down_proj", keep="model.layers.0."), {}),
        "rows of lm_head are taken, should be of embed_tokens": (w | {E: w[W]}, {}),
        "embed_tokens is used as the head": (w | {W: w[E]}, {}),
        "config's rms_norm_eps is not used (1e-6 is)": (w, {"rms_norm_eps": 1e-6}),
        "config's rms_norm_eps is not used (1e-5 is)": (w, {"rms_norm_eps": 1e-5}),
        "config's rope_theta is not used (10,000 is)": (w, {"rope_theta": 1e4})}

# %% test="llama" points=5
rng = draw("llama")
(B, H), T, d, L = (int(n) for n in rng.permutation([2, 3])), *(int(rng.choice(n)) for n in ([5, 7], [4, 6], [2, 3]))
config = {"hidden_size": H * d, "intermediate_size": int(rng.integers(19, 23)), "vocab_size": int(rng.integers(23, 27)),
          "num_hidden_layers": L, "num_attention_heads": H, "rms_norm_eps": rng.uniform(0.01, 0.1),
          "rope_theta": rng.uniform(20, 200)}
weights = {name: rng.uniform(0.5, 1.5, a.shape) if a.ndim == 1 else rng.standard_normal(a.shape) * 1.5 * a.shape[1] ** -0.5
           for name, a in Llama(LlamaConfig(**config)).state_dict().items()}
before = {name: a.copy() for name, a in weights.items()}
ids = np.stack([rng.permutation(config["vocab_size"])[:T] for _ in range(B)])


def compare(what, got, ids, w, **known):
    """Hold logits for the weights w against the package's."""
    want = package_llama(ids, w, config)
    e = np.exp(want)
    check(f"logits for ids {ids.shape}, {L} layers, {what}", got, want, wrong=known | {
        mistake: package_llama(ids, other, config | sizes) for mistake, (other, sizes) in others(w, L, H).items()} | {
        "these are probabilities, should be logits": e / e.sum(-1, keepdims=True)})


### BEGIN HIDDEN TESTS
def mistaken(w, rotate="qk", raw="", pre=True, post=False, last=True, add=(1, 1), normed=0, split=True, join=True,
             parallel=False):
    c, E = config, w["model.embed_tokens.weight"][ids]
    (cos, sin), norm = rope_table(d, c["rope_theta"], 0, T), lambda x, g: value(ops.rms_norm, x, g, eps=c["rms_norm_eps"])
    x = E
    for i in range(L):
        n = {name.split(".")[-2]: a for name, a in w.items() if name.startswith(f"model.layers.{i}.")}
        h = norm(x, n["input_layernorm"]) if pre else x
        q, k, v = (y.reshape(B, T, H, d).swapaxes(1, 2) if split else y.reshape(B, H, T, d)
                   for y in (linear(x if name in raw else h, n[f"{name}_proj"]) for name in "qkv"))
        q, k, v = (value(ops.rope, y, cos=cos, sin=sin) if name in rotate else y for name, y in zip("qkv", (q, k, v)))
        o = value(ops.attention, q, k, v)
        o = linear((o.swapaxes(1, 2) if join else o).reshape(B, T, -1), n["o_proj"])
        start, x = x, add[0] * (h if normed else x) + o
        x = norm(x, n["input_layernorm"]) if post else x
        h = norm(start if parallel else x, n["post_attention_layernorm"]) if pre else x
        m = linear(swiglu(linear(h, n["gate_proj"]), linear(h, n["up_proj"])), n["down_proj"])
        x = add[1] * (h if normed == 2 else x) + m
        x = norm(x, n["post_attention_layernorm"]) if post else x
    return linear(norm(x, w["model.norm.weight"]) if last else x, w["lm_head.weight"])


found, known = llama(ids, weights, config), {
    "RoPE has no effect: it is missing, or takes heads for tokens": mistaken(weights, rotate=""),
    "RoPE turns the queries only, should turn the keys too": mistaken(weights, rotate="q"),
    "RoPE turns the values too": mistaken(weights, rotate="qkv"),
    **{f"{names} computed from x before its norm": mistaken(weights, raw=raw) for names, raw in (
        ("queries are", "q"), ("keys are", "k"), ("values are", "v"), ("queries, keys and values are", "qkv"))},
    "the last norm is missing": mistaken(weights, last=False),
    "the norms stand behind the sums, should stand before attention and MLP": mistaken(weights, pre=False, post=True),
    "the norms in the blocks are missing": mistaken(weights, pre=False),
    "x is not added to what attention gives (residual)": mistaken(weights, add=(0, 1)),
    "x is not added to what the MLP gives (residual)": mistaken(weights, add=(1, 0)),
    "x is not added to what attention and MLP give (residuals)": mistaken(weights, add=(0, 0)),
    "what is added to attention's output is x after the norm, should be x itself": mistaken(weights, normed=1),
    "what is added to is x after the norm, should be x itself": mistaken(weights, normed=2),
    "the heads are split by a reshape alone: axes 1 and 2 must be exchanged": mistaken(weights, split=False),
    "the heads are joined by a reshape alone: axes 1 and 2 must be exchanged back": mistaken(weights, join=False),
    "the heads are split and joined by a reshape alone: axes 1 and 2 must be exchanged":
        mistaken(weights, split=False, join=False),
    "the MLP gets the block's input, should get it with attention's output added": mistaken(weights, parallel=True)}
if any(np.shape(found) == values.shape and np.allclose(found, values) for values in known.values()):
    compare("the whole model,", found, ids, weights, **known)
### END HIDDEN TESTS
w = off(weights, "o_proj", "down_proj")
unnormed = package_llama(ids, w | {"model.norm.weight": np.full(H * d, 1e9 ** 0.5)}, config | {"rms_norm_eps": 1e9})
compare("with o_proj = down_proj = 0: embedding, last norm and head only,", llama(ids, w, config), ids, w, **{
    "the last norm is missing": unnormed, "x itself must be added to what attention and MLP give (residual)": 0 * unnormed,
    **{"x itself is normed: it stays as it is, only what attention and MLP get is normed" + where:
       package_llama(ids, through_norms(w, config, *gains), config) for where, gains in (
           ("", ("input_layernorm", "post_attention_layernorm")), (" (wrong at attention)", ("input_layernorm",)),
           (" (wrong at the MLP)", ("post_attention_layernorm",)))}})
w = off(weights, "o_proj")
compare("with o_proj = 0, so without attention,", llama(ids, w, config), ids, w)
w = off(weights, "down_proj")
compare("with down_proj = 0, so without MLPs, texts of one token,", llama(ids[:, :1], w, config), ids[:, :1], w)
one = {name: a for name, a in weights.items() if "layers" not in name or "layers.0." in name}, config | {"num_hidden_layers": 1}
if np.allclose(llama(ids[:, [1, 0, *range(2, T)]], *one)[:, -1], llama(ids, *one)[:, -1]):
    raise Wrong("two earlier tokens are swapped and the last one's logits do not notice (one layer): do q and k go through rope?")
compare("with down_proj = 0, so without MLPs (one token alone is right, so look at what mixes tokens: a reshape where "
        "heads are split or joined, queries and keys, RoPE, the mask),", llama(ids, w, config), ids, w)
compare("the whole model (right with attention alone and with the MLP alone, so look at what goes from one to the other),",
        llama(ids, weights, config), ids, weights)
check("logits of a model with one layer", llama(ids, *one), package_llama(ids, *one))
for name, a in weights.items():
    unchanged(f"weights[{name!r}]", a, before[name])
