# %% [markdown]
# # SLTrain, line by line
#
# Section 3 of the paper (Han et al., NeurIPS 2024, arXiv 2406.02214) trains a weight matrix as the sum of two parts, a low-rank
# product and a sparse matrix. We write both from scratch, derive every gradient, count what they cost, and prove when such a sum
# has full rank.
#
# After this notebook you can
#
# - write SLTrain's forward and backward pass (Algorithm 1) from memory, and the form of it that never builds $W$
# - say why $S$ must not start at zero, and show it in one pass
# - count operations, bytes and parameters of a layer, and tell when the factored form is the faster one
# - prove that $BA + S$ has full rank with high probability, and say how dense $S$ must be
#
# You need: matrix products and the chain rule ([01](01_autograd.ipynb)); what a linear layer of a transformer is
# ([02](02_llama.ipynb)). About two hours to read, a minute to run.

# %%
import itertools
import math
import time

import numpy as np
from scipy.sparse import csr_array

from minisl import kernels
from minisl.kernels import cost
from minisl.methods.sltrain import SLLinear, sample_support
from minisl.parallel import one_blas_thread
from minisl.plot import PALETTE, notebook_style
from minisl.sliders import Sliders

plt = notebook_style()

# %% [markdown]
# ## 1 A weight in two parts
#
# A linear layer maps a row $x$ to $y = x W^T$. SLTrain never stores $W$. It stores and trains
#
# $$W = \frac{\alpha}{r}\, B A + S$$
#
# | symbol | shape | what it is |
# |---|---|---|
# | $W$ | (out, in) | the weight; `out` and `in` are the numbers of outputs and inputs |
# | $r$ | number | the rank, a fraction of `in` and `out` |
# | $B$, $A$ | (out, r), (r, in) | the factors, trained; $BA$ is dense, of rank $r$ at most |
# | $\alpha$ | number | a constant; $s = \alpha / r$ scales $BA$ and nothing else |
# | $S$ | (out, in) | zero except at `nnz` positions |
# | $I$ | (nnz,) | these positions, the *support*: drawn once, never trained |
# | $v$ | (nnz,) | the values there, trained |
# | $\delta$ | number | the density of $S$, $0.03$ in most of the paper: `nnz = int(delta * out * in)` |
#
# Of `out * in` numbers, `r * (out + in) + nnz` remain. All seven matrices of a LLaMA's block are stored so; embedding, head and
# norms stay as they are.

# %%
OUT, IN, R, ALPHA, DELTA = 6, 10, 2, 4.0, 0.2
rng = np.random.default_rng(0)
B, A = rng.standard_normal((OUT, R)), rng.standard_normal((R, IN))
s = ALPHA / R


def draw_support(out, width, delta, rng):
    """Sorted positions in the flattened matrix, all of them equally likely."""
    nnz = int(delta * out * width)  # cut, not rounded
    return np.sort(rng.permutation(out * width)[:nnz])


I = draw_support(OUT, IN, DELTA, rng)
v = rng.standard_normal(len(I))
print("nnz =", len(I), "  I =", I)

# %% [markdown]
# ## 2 The support
#
# A position is one integer. Flattening *row-major* puts row after row, so entry $(i, j)$ is at $k = i \cdot \mathrm{in} + j$, and
# the way back is a division by the **number of columns**: $i = k$ div `in`, $j = k$ mod `in`.

# %%
rows, cols = np.divmod(I, IN)
print("rows", rows)
print("cols", cols)

S = np.zeros((OUT, IN))
S.flat[I] += v
for i, j, value in zip(rows, cols, v):
    assert S[i, j] == value
W = s * B @ A + S

# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 2.4))
for ax, M, name in zip(axes, (s * B @ A, S, W), ("(alpha/r) B A, rank 2", "S, its positions written in", "W, their sum")):
    image = ax.imshow(M, cmap="PuOr", vmin=-4, vmax=4)
    ax.set(title=name, xlabel="input", ylabel="output")
    ax.grid(False)
for k, i, j in zip(I, rows, cols):
    axes[1].text(j, i, k, ha="center", va="center", fontsize=8)
figure.colorbar(image, ax=axes, label="value", shrink=0.9)
plt.show()

# %% [markdown]
# The left matrix has rank 2: every row is a mixture of the two rows of $A$. The middle one is nearly empty. Their sum looks like
# any matrix.
#
# The package draws with `minisl.methods.sltrain.sample_support`. It chooses without shuffling first, so a seed gives it other
# positions, but the law is the same: each set of `nnz` positions is as likely as any other. Sorting changes no value. It puts
# positions of one row side by side, which is what a sparse product wants.

# %%
counts = np.zeros((2, OUT * IN))
for seed in range(4000):
    counts[0, draw_support(OUT, IN, DELTA, np.random.default_rng(seed))] += 1
    counts[1, sample_support(OUT, IN, DELTA, np.random.default_rng(seed))] += 1
for name, share in zip(("draw_support", "sample_support"), counts / 4000):
    print(f"{name:15} a position is in {share.min():.3f} to {share.max():.3f} of the supports, on average {share.mean():.3f}")
assert abs(counts / 4000 - DELTA).max() < 0.025  # four standard deviations

# %% [markdown]
# How many rows of $S$ are empty? A row of `in` entries is missed with probability about $(1-\delta)^{\mathrm{in}}$. At the
# paper's sizes that is next to never. In a small model it is not:

# %%
for name, out, width, delta in (("60M, q_proj", 512, 512, 0.03), ("small, q_proj", 64, 64, 0.05), ("small", 64, 64, 0.02)):
    row = np.divmod(sample_support(out, width, delta, np.random.default_rng(1)), width)[0]
    print(f"{name:14} {out} x {width}, delta {delta}: {out * (1 - delta) ** width:8.5f} empty rows expected, "
          f"{out - len(np.unique(row))} found, {delta * width:.1f} entries in a row")

# %% [markdown]
# Keep the formula $n(1-\delta)^n$ in mind: section 9 is about nothing else.
#
# Pitfalls: dividing by `out` instead of `in` (unnoticed in a square matrix, an error or nonsense in the others); rounding `nnz`
# (then a file from other code does not fit); indices as 64-bit integers, which take more memory than what they point to.
#
# ## 3 The start
#
# $$B = 0, \qquad A_{qj},\; v_k \sim U\left(-\tfrac{1}{\sqrt{\mathrm{in}}},\; \tfrac{1}{\sqrt{\mathrm{in}}}\right)$$
#
# So at step 0 $W = S$. How loud is such a layer? A uniform number on $(-b, b)$ has variance $b^2/3$, here $1/(3\,\mathrm{in})$.
# An output sums over `in` inputs, of which $\delta\,\mathrm{in}$ are connected. With inputs of variance 1,
#
# $$\mathrm{Var}(y_i) = \delta\,\mathrm{in} \cdot \frac{1}{3\,\mathrm{in}} = \frac{\delta}{3}$$
#
# The dense baseline starts from $N(0, 0.02^2)$, which gives $\mathrm{Var}(y_i) = 0.02^2\,\mathrm{in}$.

# %%
layer = SLLinear(512, 512, np.random.default_rng(0), rank=128, delta=0.03, alpha=32)
X = np.random.default_rng(1).standard_normal((2000, 512)).astype(np.float32)
start = (X @ layer.to_dense().T).std()
dense = (X @ (0.02 * np.random.default_rng(2).standard_normal((512, 512)))).std()
print(f"SLTrain  {start:.3f}   sqrt(delta / 3)  {math.sqrt(0.03 / 3):.3f}")
print(f"dense    {dense:.3f}   0.02 sqrt(in)    {0.02 * math.sqrt(512):.3f}")
assert not layer.lora_B.data.any()
assert abs(start - 0.1) < 0.002
assert dense > 4 * start

# %% [markdown]
# SLTrain's layers start at 0.1, the dense ones at 0.45: more than four times as loud. Why exactly this start, and what goes wrong
# with others, needs the gradients.
#
# ## 4 Algorithm 1
#
# ### Forward
#
# Rows of $X$ (n, in) are tokens, rows of $Y$ (n, out) their outputs.
#
# 1. $W = s\,B A$, then $W[i_k, j_k] \mathrel{+}= v_k$ for every $k$. The paper writes this scatter-add as $\oplus_I$.
# 2. $Y = X W^T$.
# 3. Forget $W$. Keep $X, B, A, v, I$ for the backward pass.
#
# ### Backward, by hand
#
# Given is $G = \partial L/\partial Y$ (n, out), for some loss $L$. Wanted: the same for everything that $Y$ was made from. One
# rule does it all: if $y$ depends on $x$ along several paths, sum over the paths.
#
# **$dX$.** $Y_{ti} = \sum_j X_{tj} W_{ij}$, so $X_{tj}$ acts on $Y_{ti}$ for each $i$, with factor $W_{ij}$:
#
# $$dX_{tj} = \sum_i G_{ti} W_{ij} \qquad\Rightarrow\qquad dX = G\,W \quad (n, \mathrm{in})$$
#
# **$dW$.** $W_{ij}$ acts on $Y_{ti}$ for each token $t$, with factor $X_{tj}$:
#
# $$dW_{ij} = \sum_t G_{ti} X_{tj} \qquad\Rightarrow\qquad dW = G^T X \quad (\mathrm{out}, \mathrm{in})$$
#
# Now $W_{ij} = s \sum_q B_{iq} A_{qj} + \sum_k v_k\,[i = i_k, j = j_k]$, where the bracket is 1 if both hold and else 0.
#
# **$dB$.** $B_{iq}$ acts on the row $W_{i\cdot}$, on $W_{ij}$ with factor $s A_{qj}$:
#
# $$dB_{iq} = \sum_j dW_{ij}\, s A_{qj} \qquad\Rightarrow\qquad dB = s\,dW A^T \quad (\mathrm{out}, r)$$
#
# **$dA$.** $A_{qj}$ acts on the column $W_{\cdot j}$, on $W_{ij}$ with factor $s B_{iq}$:
#
# $$dA_{qj} = \sum_i s B_{iq}\, dW_{ij} \qquad\Rightarrow\qquad dA = s\,B^T dW \quad (r, \mathrm{in})$$
#
# **$dv$.** $v_k$ acts on one entry of $W$ with factor 1. Scatter forward, gather backward:
#
# $$dv_k = dW_{i_k j_k} \qquad\Rightarrow\qquad dv = dW[I] \quad (\mathrm{nnz},)$$

# %%
def dense_weight(B, A, v, I, s):
    W = s * B @ A
    W.flat[I] += v
    return W


def forward(X, B, A, v, I, s):
    return X @ dense_weight(B, A, v, I, s).T


def backward(G, X, B, A, v, I, s):
    dX = G @ dense_weight(B, A, v, I, s)  # W is built again
    dW = G.T @ X
    return dX, s * dW @ A.T, s * B.T @ dW, dW.flat[I]

# %% [markdown]
# ### Checked by differences
#
# Take $L = \sum_{ti} G_{ti} Y_{ti}$, whose gradient with respect to $Y$ is $G$. Change one number $p$ of $X$, $B$, $A$ or $v$ by
# $\pm h$ and compare $(L(p+h) - L(p-h)) / 2h$ with what we derived. Here $L$ is *linear* in each single number, so the quotient
# is exact for any $h$: we may take $h = 1$ and see nothing but rounding.

# %%
def differences(loss, array):
    """d loss / d array, one entry at a time."""
    found = np.empty(array.size)
    for k in range(array.size):
        kept = array.flat[k]
        array.flat[k] = kept + 1
        up = loss()
        array.flat[k] = kept - 1
        found[k] = (up - loss()) / 2
        array.flat[k] = kept
    return found.reshape(array.shape)


n = 5
X, G = rng.standard_normal((n, IN)), rng.standard_normal((n, OUT))
inputs = {"dX": X, "dB": B, "dA": A, "dv": v}


def errors(backward):
    """Of each gradient, the largest distance from the differences, relative to the largest entry."""
    by_hand = backward(G, X, B, A, v, I, s)
    exact = [differences(lambda: (G * forward(X, B, A, v, I, s)).sum(), array) for array in inputs.values()]
    return {name: abs(mine - d).max() / abs(d).max() for name, mine, d in zip(inputs, by_hand, exact)}


right = errors(backward)
assert max(right.values()) < 1e-12
print("dX, dB, dA and dv: relative errors below 1e-12")

# %% [markdown]
# A check is worth what it rejects. Five mistakes that people make:

# %%
def scale_forgotten(G, X, B, A, v, I, s):
    dX, dB, dA, dv = backward(G, X, B, A, v, I, s)
    return dX, dB / s, dA / s, dv


def s_scaled_too(G, X, B, A, v, I, s):
    dX, dB, dA, dv = backward(G, X, B, A, v, I, s)
    return dX, dB, dA, s * dv


def only_the_low_rank_part(G, X, B, A, v, I, s):
    return G @ (s * B @ A), *backward(G, X, B, A, v, I, s)[1:]


def columns_first(G, X, B, A, v, I, s):
    return *backward(G, X, B, A, v, I, s)[:3], (X.T @ G).flat[I]


def all_zero(*arguments):
    return [0 * gradient for gradient in backward(*arguments)]


for wrong in (scale_forgotten, s_scaled_too, only_the_low_rank_part, columns_first, all_zero):
    found = errors(wrong)
    print(f"{wrong.__name__:24}", "  ".join(f"{name} {error:.1f}" for name, error in found.items()))
    assert max(found.values()) > 0.1

# %% [markdown]
# Each shows in the gradients that it spoils and in no other. And the package, by its own two ways of computing:

# %%
for algorithm in ("materialised", "factored"):
    y, xA = kernels.sl_linear_forward(X, B, A, v, I, s, algorithm=algorithm)
    np.testing.assert_allclose(y, forward(X, B, A, v, I, s), rtol=1e-12, atol=1e-12)
    theirs = kernels.sl_linear_backward(G, X, B, A, v, I, s, xA, algorithm=algorithm)
    for mine, other in zip(backward(G, X, B, A, v, I, s), theirs):
        np.testing.assert_allclose(mine, other, rtol=1e-12, atol=1e-12)
print("the same")

# %% [markdown]
# Why is $W$ forgotten? Because keeping it would undo what SLTrain is for: a $W$ for every layer, alive at the same time, waiting
# for the backward pass. Rebuilt, there is one $W$ and one $dW$ at a time. The price is a second $s B A$.
#
# ## 5 Why this start
#
# Read the gradients at $B = 0$: $dA = s B^T dW = 0$. So $A$ does not move in the first update; $B$ and $v$ do, and from the
# second update on $A$ does too. That is harmless. Now a network of two such layers, and four ways to start them:

# %%
def uniform(shape, bound, seed):
    return np.random.default_rng(seed).uniform(-bound, bound, shape)


D, RANK = 16, 4
support = draw_support(D, D, 0.2, np.random.default_rng(3))
data, target = np.random.default_rng(4).standard_normal((2, 32, D))


def largest_gradients(B, v):
    """Of B, A, v in both layers of Y = (X W1^T) W2^T, for the loss |Y - target|^2 / 2."""
    one, two = ((B * uniform((D, RANK), 0.5, k), uniform((RANK, D), 0.25, 2 + k), v * uniform(len(support), 0.25, 4 + k))
                for k in (0, 1))
    hidden = forward(data, *one, support, 1.0)
    G = forward(hidden, *two, support, 1.0) - target
    G_hidden, *second = backward(G, hidden, *two, support, 1.0)
    _, *first = backward(G_hidden, data, *one, support, 1.0)
    return [abs(gradient).max() for gradient in (*first, *second)]


starts = {"B = 0, v random (SLTrain)": (0, 1), "B = 0, v = 0": (0, 0), "B random, v = 0": (1, 0), "B, v random": (1, 1)}
found = {name: largest_gradients(*start) for name, start in starts.items()}
print(f"{'largest gradient of':28}" + "".join(f"{name:>8}" for name in ("B1", "A1", "v1", "B2", "A2", "v2")))
for name, gradients in found.items():
    print(f"{name:28}" + "".join(f"{g:8.2f}" for g in gradients))
assert not any(found["B = 0, v = 0"])
assert all(found["B, v random"])

# %% [markdown]
# With $B = 0$ and $v = 0$ *every* gradient is exactly zero, and not by accident:
#
# - $W_1 = 0$, so the hidden layer is 0, so $dW_2 = G_2^T \cdot 0 = 0$, so $dB_2$, $dA_2$, $dv_2$ are 0.
# - $W_2 = 0$, so what comes back is $G_1 = G_2 W_2 = 0$, so $dW_1 = 0$ and with it the rest.
#
# An update by zero leaves zero. The network waits for itself: each layer is silent as long as the other one is. A pure low-rank
# model ($W = sBA$, no $S$) with $B = 0$ is the same case, with the column $v$ left out. LoRA may start with $B = 0$ since its $W$
# contains a frozen, pretrained matrix besides $BA$.
#
# A LLaMA is not such a chain, it has residual connections, which pass everything on. They do not help. Every *branch* is a
# product of at least two of our matrices: in attention what `v_proj` puts out goes through `o_proj`, and with `v_proj` at 0 the
# gradient of the scores, hence of `q_proj` and `k_proj`, is 0 too; in the MLP `down_proj` follows `gate_proj` and `up_proj`. We
# try it, on a model of two blocks that reads bytes of Python's documentation:

# %%
from minisl.analysis.job import matrices, read_text, train

text = read_text()


def dead(model):
    for _, layer in matrices(model):
        layer.lora_B.data[:] = 0
        if hasattr(layer, "sparse_value"):
            layer.sparse_value.data[:] = 0


def moved(method, start):
    """Names of the parameters that 10 updates change."""
    with kernels.running("auto"):
        before, after = (train(text, method, steps=k, start=start, checks=1, lr=1e-3).model for k in (0, 10))
    return {name for (name, p), (_, q) in zip(before.named_parameters(), after.named_parameters()) if (p.data != q.data).any()}


for method in ("sltrain", "low_rank"):
    alive, stuck = moved(method, None), moved(method, dead)
    print(f"{method:9} usual start: {len(alive)} tensors move; B = 0{' and v = 0' * (method == 'sltrain')}: {sorted(stuck)}")
    assert not any("lora" in name or "sparse" in name for name in stuck)

# %% [markdown]
# Only the embedding, the head and the last norm learn: such a model guesses the next token from the current one alone, for ever.
# If the loss of a low-rank code of your own stops early and stays there, look at its start first.
#
# ### What the scale does
#
# $\alpha$ changes nothing about what $W$ can be: twice $\alpha$ is half $B$. It changes how fast $BA$ moves. Adam's first update
# moves each entry of $B$ by the learning rate, whatever the size of its gradient, so then $sBA$ is proportional to $s$. Plain
# gradient descent moves $B$ by its gradient, which has an $s$ of its own: $s^2$.

# %%
dW = np.random.default_rng(5).standard_normal((512, 512))
A0 = uniform((128, 512), 512**-0.5, 6)
for alpha in (16, 32, 64):
    scale = alpha / 128
    dB = scale * dW @ A0.T
    adam, descent = (np.linalg.norm(scale * step @ A0) for step in (1e-3 * np.sign(dB), 1e-3 * dB))
    print(f"alpha {alpha}: s = {scale:5.3f}   |s B A| after one update: Adam {adam:.3f}, gradient descent {descent:.3f}")

# %% [markdown]
# For $BA$ the scale acts like a factor on the learning rate, and only for $BA$: $S$, embedding and head are not scaled. So who
# changes $\alpha$ must tune the learning rate again, and cannot undo the one by the other. (The public code can also learn the
# scale, as the tanh of a number that starts at 1. By default it does not.)
#
# ## 6 Without building W
#
# Insert $W^T = s A^T B^T + S^T$ into each line of Algorithm 1, and let the brackets stand where the small matrices are:
#
# $$Y = X W^T = s\,(X A^T)\, B^T + X S^T$$
# $$dX = G W = s\,(G B)\, A + G S$$
# $$dB = s\,dW A^T = s\,(G^T X) A^T = s\,G^T (X A^T)$$
# $$dA = s\,B^T dW = s\,B^T (G^T X) = s\,(G B)^T X$$
# $$dv_k = (G^T X)_{i_k j_k} = \sum_t G_{t i_k} X_{t j_k}$$
#
# Nothing is approximated, products are only taken in another order. $X A^T$ and $G B$ have $r$ columns. $X S^T$ and $G S$ are
# products with a sparse matrix (SpMM). The last line takes of a dense product the entries on the support and no others (SDDMM,
# "sampled dense-dense matrix multiplication"). Neither $W$ nor $dW$ exists.

# %%
def factored_forward(X, B, A, v, I, s):
    S = csr_array((v, np.divmod(I, A.shape[1])), (len(B), A.shape[1]))
    XA = X @ A.T  # (n, r), kept for the backward pass
    return s * XA @ B.T + (S @ X.T).T, XA


def factored_backward(G, X, B, A, v, I, s, XA):
    rows, cols = np.divmod(I, A.shape[1])
    S = csr_array((v, (rows, cols)), (len(B), A.shape[1]))
    GB = s * G @ B  # (n, r)
    dX = GB @ A + (S.T @ G.T).T
    dv = np.einsum("tk,tk->k", G[:, rows], X[:, cols])
    return dX, s * G.T @ XA, GB.T @ X, dv

# %%
def problem(n, out, width, r, delta, seed=0):
    """G, X, B, A, v, I of random numbers."""
    rng = np.random.default_rng(seed)
    I = draw_support(out, width, delta, rng)
    return *(rng.standard_normal(shape) for shape in ((n, out), (n, width), (out, r), (r, width), len(I))), I


G2, *rest = problem(64, 96, 160, 24, 0.05)
Y2, XA = factored_forward(*rest, 0.25)
one, two = [forward(*rest, 0.25), *backward(G2, *rest, 0.25)], [Y2, *factored_backward(G2, *rest, 0.25, XA)]
gaps = [abs(a - b).max() / abs(a).max() for a, b in zip(one, two)]
assert max(gaps) < 1e-12
print("Y, dX, dB, dA and dv: the same to 1e-12 of the largest entry")

# %% [markdown]
# ## 7 What it costs
#
# ### Operations
#
# A product of $(a, b)$ and $(b, c)$ takes $2abc$ operations: $b$ multiplications and as many additions for each of $ac$ numbers.
#
# | | forward | backward |
# |---|---|---|
# | dense layer | $XW^T$: $2n\,in\,out$ | $GW$, $G^TX$: $4n\,in\,out$ |
# | Algorithm 1, besides | $sBA$: $2r\,in\,out$ | $sBA$, $dW A^T$, $B^T dW$: $6r\,in\,out$ |
# | factored | $XA^T$, $(XA^T)B^T$: $2nr(in + out)$ | $GB$, $(GB)A$, $G^T(XA^T)$, $(GB)^TX$: $4nr(in + out)$ |
# | | $XS^T$: $2n\,nnz$ | $GS$ and SDDMM: $4n\,nnz$ |
#
# Together: dense $6n\,in\,out$; Algorithm 1 $6n\,in\,out + 8r\,in\,out$; factored $6nr(in + out) + 6n\,nnz$.
#
# Let us not believe it. NumPy arrays can be made to count:

# %%
class Counting(np.ndarray):
    """An array that notes the operations of the matrix products it takes part in."""

    done = 0

    def __array_ufunc__(self, ufunc, method, *inputs, out=None):
        result = getattr(ufunc, method)(*map(np.asarray, inputs))
        if ufunc is np.matmul:
            Counting.done += 2 * inputs[0].shape[-1] * result.size
        return result.view(Counting)


def operations(n, width, out, r, nnz):
    return {"dense layer": 6 * n * width * out, "Algorithm 1": 6 * n * width * out + 8 * r * width * out,
            "factored": 6 * n * r * (width + out) + 6 * n * nnz}


n, out, width, r = 48, 30, 50, 8
*dense_arrays, places = problem(n, out, width, r, 0.1)
G3, X3, B3, A3, v3 = (array.view(Counting) for array in dense_arrays)
Counting.done = 0
forward(X3, B3, A3, v3, places, 0.5), backward(G3, X3, B3, A3, v3, places, 0.5)
algorithm_1, Counting.done = Counting.done, 0
v3 = np.asarray(v3)  # SciPy's products are not counted
_, XA = factored_forward(X3, B3, A3, v3, places, 0.5)
factored_backward(G3, X3, B3, A3, v3, places, 0.5, XA)
formulas = operations(n, width, out, r, len(places))
print(f"Algorithm 1: {algorithm_1:,} counted, {formulas['Algorithm 1']:,} by the formula")
print(f"factored, dense products: {Counting.done:,} counted, {formulas['factored'] - 6 * n * len(places):,} by the formula")
assert algorithm_1 == formulas["Algorithm 1"]
assert Counting.done == 6 * n * r * (width + out)

# %% [markdown]
# The package's cost model `minisl/kernels/cost.py` counts the same work and gives each kind of it a price (see
# [the cost model](../docs/cost-model.md)):

# %%
for name, algorithm in (("Algorithm 1", "materialised"), ("factored", "factored")):
    work = cost.features(algorithm, n, width, out, r, len(places))
    assert work["g"] + work.get("s", 0) == formulas[name]

print("shares of a dense layer's operations, 131,072 tokens (a batch of the paper's 60M model)")
for width, out, r in ((512, 512, 128), (512, 1376, 128), (2048, 2048, 512)):
    n, nnz = 512 * 256, int(0.03 * width * out)
    of = operations(n, width, out, r, nnz)
    print(f"  in {width}, out {out}, r {r}: Algorithm 1 {of['Algorithm 1'] / of['dense layer']:.3f}, factored "
          f"{of['factored'] / of['dense layer']:.2f}, of which S {6 * n * nnz / of['dense layer']:.2f}")

# %% [markdown]
# Algorithm 1 never has less to do than a dense layer. Rebuilding is cheap, since $8r\,in\,out$ is paid once a batch, not once a
# token. The factored form has about half of the work for a square matrix with $r = in/4$, and little more than a third for the
# wide one. But operations are not seconds: one with $S$ jumps about in memory and takes several times as long as one in a dense
# product. Call the ratio $\sigma$; then, but for the once a batch of Algorithm 1, factored is the faster form where
#
# $$\frac{r\,(in + out)}{in\,out} + \sigma\,\delta < 1$$

# %%
prices = cost.CONSTANTS["cpu"]
ratio = prices["s"] / prices["g"]
share = np.linspace(0.02, 0.6, 50)
figure, ax = plt.subplots()
for delta in (0.01, 0.03, 0.1, 0.2):
    ax.plot(share, 2 * share + ratio * delta, label=f"delta {delta}")
ax.axhline(1, color="black", linestyle="-", linewidth=1, label="dense layer, Algorithm 1")
ax.set(xlabel="r / in, square matrix", ylabel="time of the factored form / dense", ylim=(0, 2),
       title=f"The model: an operation with S costs {ratio:.1f} dense ones")
ax.legend()
plt.show()
print(f"sigma {ratio:.1f}: with r = in / 4 the factored form wins up to delta {0.5 / ratio:.2f}, "
      f"with delta 0.03 up to r = {(1 - ratio * 0.03) / 2:.2f} in")

# %% [markdown]
# Where each line crosses 1, the form should change; `--algorithm auto` does that. With the constants built in, $\sigma$ is 4.4,
# and at the paper's $\delta$ of 0.03 factored wins up to $r$ = 0.43 `in`. Your machine has another $\sigma$. Measure:

# %% tags=["timing"]
def best_ms(work, times=5):
    """Milliseconds of the fastest of some calls."""
    found = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        found.append(1e3 * (time.perf_counter() - started))
    return min(found)


def layer_ms(G, X, B, A, v, support, algorithm):
    def work():
        _, xA = kernels.sl_linear_forward(X, B, A, v, support, 0.25, algorithm=algorithm)
        kernels.sl_linear_backward(G, X, B, A, v, support, 0.25, xA, algorithm=algorithm)

    work()  # compiles, sorts the support
    return best_ms(work)


def dense_ms(G, X, W):
    return best_ms(lambda: (X @ W.T, G @ W, G.T @ X))


# %% tags=["timing"]
n, delta = 1024, 0.03
with kernels.running("auto") as described:
    print(f"{described}; ms, forward + backward, {n} tokens, delta {delta}")
    print(f"{'':24}{'dense':>8}{'Algorithm 1':>13}{'factored':>10}   expected of the last two")
    for width, out, r in ((512, 512, 32), (512, 512, 128), (512, 1376, 128), (512, 512, 384)):
        *arrays, places = problem(n, out, width, r, delta)
        arrays = [a.astype(np.float32) for a in arrays]
        found = [layer_ms(*arrays, kernels.Support(places, (out, width)), a) for a in ("materialised", "factored")]
        expected = [1e3 * cost.seconds(a, n, width, out, r, len(places)) for a in ("materialised", "factored")]
        print(f"  in {width}, out {out}, r {r}".ljust(24) + f"{dense_ms(*arrays[:2], arrays[2] @ arrays[3]):8.1f}"
              f"{found[0]:13.1f}{found[1]:10.1f}   {expected[0]:.1f}, {expected[1]:.1f}")

# %% [markdown]
# Look at the order in each row, not at the milliseconds: factored should be far ahead at small $r$, and by the model lose its
# lead at $r = 384$; a machine that does other things meanwhile can show anything. The expected times also count what the formula
# above leaves out: Algorithm 1 builds $W$, scatters into it and gathers from it once a batch, which weighs the more the fewer
# tokens there are. If your order is another one, `python -m minisl.bench --calibrate` fits the prices to your machine.
#
# ### Bytes
#
# For the backward pass Algorithm 1 keeps $X$; the factored form keeps $X$ and $X A^T$. While it runs, Algorithm 1 has a $W$ and a
# $dW$, (out, in) each, which go away again. We weigh what the autograd graph holds:

# %%
from minisl import Tensor
from minisl.memory.measure import saved_bytes

n, width, out, r = 256, 512, 1376, 128
x = Tensor(np.random.default_rng(0).standard_normal((n, width)).astype(np.float32), requires_grad=True)
for algorithm, numbers in (("materialised", n * width), ("factored", n * width + n * r)):
    layer = SLLinear(width, out, np.random.default_rng(0), rank=r, delta=0.03, alpha=32, algorithm=algorithm)
    kept = saved_bytes(layer(x), layer)
    passing = 2 * 4 * width * out if algorithm == "materialised" else 0
    print(f"{algorithm:13} keeps {kept:,} bytes, by hand {4 * numbers:,}; W and dW in passing {passing:,}")
    assert kept == 4 * numbers

# %% [markdown]
# And at rest, per trained number: its value, two moments of Adam; per non-zero of $S$ also its position. The paper counts
# bfloat16 (2 bytes) and 64-bit positions:

# %%
def at_rest(out, width, r, delta, value=2, position=8):
    """Bytes of a layer's weights, positions and Adam's moments."""
    factors, nnz = r * (out + width), int(delta * out * width)
    return 3 * value * (factors + nnz) + position * nnz


for out, width, r, delta in ((512, 1376, 128, 0.03), (4096, 11008, 1024, 0.05)):
    full, wide, narrow = 6 * out * width, at_rest(out, width, r, delta), at_rest(out, width, r, delta, position=4)
    print(f"{out} x {width}: full {full / 1e6:.2f} MB, SLTrain {wide / 1e6:.2f} ({wide / full:.0%}), with 32-bit positions "
          f"{narrow / 1e6:.2f} ({narrow / full:.0%})")

# %% [markdown]
# A position of 8 bytes weighs more than a value and both of its moments, 6 bytes. Four are enough for any matrix below $2^{31}$
# entries, and minisl uses them. All of a model's bytes: [06](06_memory.ipynb).
#
# ## 8 Parameters of the published models
#
# With hidden size $h$, intermediate size $f$, $L$ blocks and $V$ words, a LLaMA has four matrices $h \times h$ and three
# $h \times f$ in a block, an embedding and a head $V \times h$, and $2L + 1$ norms of $h$ gains:
#
# $$N_{base} = 2Vh + (2L+1)h, \qquad N_{dense} = L\,(4h^2 + 3hf)$$
# $$N_{factors} = L\,r\,(4 \cdot 2h + 3(h + f)) = L\,r\,(11h + 3f)$$
# $$N_S = L\,(4\lfloor\delta h^2\rfloor + 3\lfloor\delta hf\rfloor)$$

# %%
SIZES = {"60m": (512, 1376, 8, 128, 0.03), "130m": (768, 2048, 12, 256, 0.03), "350m": (1024, 2736, 24, 256, 0.03),
         "1b": (2048, 5461, 24, 512, 0.03), "7b": (4096, 11008, 32, 1024, 0.05)}
PUBLISHED = {"60m": 44, "130m": 97, "350m": 194, "1b": 646}  # millions, SLTrain's column; recalled, not read again


def parameters(h, f, L, r, delta, V=32000):
    base, dense = 2 * V * h + (2 * L + 1) * h, L * (4 * h * h + 3 * h * f)
    factors, sparse = L * r * (11 * h + 3 * f), L * (4 * int(delta * h * h) + 3 * int(delta * h * f))
    return {"full": base + dense, "low_rank": base + factors, "sltrain": base + factors + sparse}


print(f"{'':6}{'full':>16}{'low_rank':>16}{'sltrain':>16}{'of full':>9}   published (recalled)")
for size, shape in SIZES.items():
    counted = parameters(*shape)
    print(f"{size:6}" + "".join(f"{k:16,}" for k in counted.values())
          + f"{counted['sltrain'] / counted['full']:9.0%}" + (f"   {PUBLISHED[size]} M" if size in PUBLISHED else ""))
    assert size not in PUBLISHED or round(counted["sltrain"] / 1e6) == PUBLISHED[size]

# %% [markdown]
# The package builds the same models without allocating them and counts what is there:

# %%
from minisl.memory.paper import method_of, model_of

for size, shape in SIZES.items():
    for name, count in parameters(*shape).items():
        assert method_of(name, size).build(model_of(size)).num_parameters() == count
print("all", 3 * len(SIZES), "as counted")

# %% [markdown]
# At 7B 47 % of the parameters are left. At 60M it is 75 %: there the embedding and the head, which stay dense, are most of the
# model.
#
# ## 9 Proposition 1: the sum has full rank
#
# $BA$ alone has rank $r$ at most, for ever. The paper claims: with a random support of density $\delta = \Omega(\log n / n)$ the
# sum of $n \times n$ matrices $BA + S$ has full rank, with high probability. $\Omega$ means "at least a constant times". Here is
# a full proof, in four steps. The first word we need is *perfect matching*: $n$ positions of the support, no two in the same row
# and no two in the same column. In other words a permutation $\pi$ with all $(i, \pi(i))$ in the support.
#
# ### Step 1: the determinant is a polynomial that is not zero
#
# Hold $L = sBA$ fixed, whatever it is, and look at $\det(L + S)$ as a function of the values $v$. By Leibniz' formula
#
# $$\det(L + S) = \sum_{\sigma} \mathrm{sgn}(\sigma) \prod_{i=1}^{n} \left(L_{i\sigma(i)} + S_{i\sigma(i)}\right),$$
#
# a sum over all $n!$ permutations $\sigma$: a polynomial in $v$ of degree $n$ at most. Let $\pi$ be a perfect matching. Multiply
# the brackets out and ask where the monomial $m = \prod_i v_{(i, \pi(i))}$ comes from. It contains a variable of each row, at
# column $\pi(i)$, and a bracket holds no variable but its own. So it comes from $\sigma = \pi$ only, with coefficient
# $\mathrm{sgn}(\pi) = \pm 1$. Nothing can cancel it. **If the support has a perfect matching, the polynomial is not the zero
# polynomial, for any $L$.**
#
# For $L = 0$ the converse holds too: without a perfect matching each product has a factor that is zero for all $v$, so
# $\det S = 0$.

# %%
def leibniz(M):
    """det M by its definition; also the number of products that are not zero."""
    total, terms = 0.0, 0
    for sigma in itertools.permutations(range(len(M))):
        product = math.prod(M[i, j] for i, j in enumerate(sigma))
        inversions = sum(a > b for k, a in enumerate(sigma) for b in sigma[k + 1:])
        total, terms = total + (-1) ** inversions * product, terms + (product != 0)
    return total, terms


n, rng = 5, np.random.default_rng(1)
L = rng.standard_normal((n, 1)) @ rng.standard_normal((1, n))  # rank 1
S_with, S_without = np.zeros((n, n)), np.zeros((n, n))
S_with[np.arange(n), [1, 0, 3, 4, 2]] = rng.uniform(0.5, 2, n)  # a perfect matching and nothing else
S_without[:, :2] = rng.uniform(0.5, 2, (n, 2))  # twice as many entries, in two columns
for name, S in (("with", S_with), ("without", S_without)):
    (alone, terms), (both, _) = leibniz(S), leibniz(L + S)
    print(f"{name:8} a perfect matching, {np.count_nonzero(S):2} entries: det S = {alone:6.3f} from {terms} products, "
          f"det(L + S) = {abs(both):.3f}, rank(L + S) = {np.linalg.matrix_rank(L + S)}")
    np.testing.assert_allclose([alone, both], [np.linalg.det(S), np.linalg.det(L + S)], atol=1e-12)

# %% [markdown]
# Five entries in the right places are worth more than ten in the wrong ones.
#
# ### Step 2: such a polynomial is hardly ever zero
#
# **Lemma (Schwartz, Zippel).** Let $p$ be a polynomial of degree $d$ in $m$ variables, not the zero polynomial. Draw every
# variable independently, uniformly from a set $M$ of $|M|$ numbers. Then $P(p = 0) \le d / |M|$.
#
# *Proof*, by induction on $m$. One variable: a polynomial of degree $d$ has at most $d$ roots, so at most $d$ of the $|M|$
# numbers are bad. More variables: sort $p$ by powers of the last one, $p = \sum_k p_k(v_1, \dots, v_{m-1})\, v_m^k$, and take the
# largest $k$ with $p_k$ not the zero polynomial. Its degree is at most $d - k$. Either $p_k(v_1, \dots, v_{m-1}) = 0$:
# probability at most $(d-k)/|M|$ by induction. Or not; then, whatever the first $m - 1$ numbers are, $p$ is a polynomial of
# degree $k$ in $v_m$ alone, with at most $k$ roots: probability at most $k/|M|$. Together $d/|M|$. $\square$
#
# For numbers from a *continuous* distribution the same induction gives probability 0: at each stage there are finitely many
# roots, and finitely many points have no mass. In other words the zeros of $p$ have no volume. So: **if the support has a perfect
# matching and $v$ is drawn from a density, not looking at $B$ and $A$, then $sBA + S$ has full rank with probability 1, for every
# $B$ and $A$**, $B = 0$ included.
#
# "With probability 1" is not "always". There are bad values; they are just thin:

# %%
bad = np.ones((2, 2))  # two perfect matchings, whose products cancel
print("det of all ones:", leibniz(bad)[0])

n, trials, rng = 4, 20_000, np.random.default_rng(2)
L = np.outer([1, 2, -1, 3], [2, 0, 1, -1])  # rank 1, fixed
for size in (5, 20, 100, 1000):
    S = rng.integers(1, size + 1, (trials, n, n))
    singular = (abs(np.linalg.det(L + S)) < 0.5).mean()  # integers: a determinant below 1/2 is 0
    print(f"values from {{1..{size}}}: singular {singular:.4f}, bound n / |M| = {min(1, n / size):.4f}")
    assert singular <= n / size
print(f"n = 4096, float32 from Generator.random, {2**24:,} values: bound {4096 / 2**24:.4f}")

# %% [markdown]
# The bound holds and is generous. Even so: with float32 values drawn at random on a support with a perfect matching, a weight as
# wide as those of the 7B model is singular with probability 0.0002 at most. (Being *close* to singular is another matter. Step 2
# says nothing about the smallest singular value.)
#
# What does it say about a *trained* model, whose $v$ depends on $B$ and $A$? That the triples $(B, A, v)$ with a singular $W$ are
# a set without volume: training would have to aim at it. That is no proof that it does not.
#
# ### Step 3: when does a random support have a perfect matching?
#
# Let each of the $n^2$ positions be in the support with probability $\delta$, independently of the others. SLTrain draws exactly
# $\lfloor\delta n^2\rfloor$, which makes no difference in the limit. Given their number, independent entries are a uniform draw
# of that many; more entries never destroy a matching; and with probability $\delta + n^{-4/3}$ (or $\delta - n^{-4/3}$) there are
# almost certainly more (or fewer) than $\delta n^2$: the distance, $n^{2/3}$, is many times the standard deviation, about
# $\sqrt{n \ln n}$, while $\delta n$ changes by $n^{-1/3}$ only.
#
# **What must not happen.** An empty row. It has probability $(1-\delta)^n$, so $n(1-\delta)^n$ are expected, and as many empty
# columns. (Rows and columns together are *lines*.) Write $\delta = (\ln n + c)/n$ with a fixed $c$. Since
# $(1-\delta)^n \approx e^{-\delta n} = e^{-c}/n$,
#
# $$E[\text{empty rows and columns}] = 2n(1-\delta)^n \to 2e^{-c}$$
#
# These are many rare events that hardly know of each other. The number $Z$ of such events should follow the Poisson law
# ($P(Z = j) = e^{-m} m^j / j!$ for the mean $m$), and so $P(Z = 0) \to e^{-2e^{-c}}$. To prove it we need, for each $k$, the
# expected number of ordered $k$-tuples of different empty lines. Choose $a$ rows and $b = k - a$ columns; they cover
# $an + bn - ab$ positions:
#
# $$E[Z(Z-1)\cdots(Z-k+1)] = \sum_{a+b=k} \binom{k}{a}\, n_{(a)}\, n_{(b)}\, (1-\delta)^{kn - ab}$$
#
# with $n_{(a)} = n(n-1)\cdots(n-a+1)$; the left side is $E[Z_{(k)}]$ in this notation.
#
# For fixed $k$ and $n \to \infty$: $n_{(a)} n_{(b)} \sim n^k$; $(1-\delta)^{kn} \sim e^{-ck} n^{-k}$, since $n\delta^2 \to 0$;
# and $(1-\delta)^{-ab} \to 1$. Each term tends to $\binom{k}{a} e^{-ck}$, the sum to $(2e^{-c})^k$. Now inclusion and exclusion
# says $P(Z = 0) = \sum_k (-1)^k E[Z_{(k)}]/k!$, where each partial sum is alternately too large and too small; so the limit may
# be taken term by term:
#
# $$P(\text{no empty row or column}) \to \sum_k \frac{(-2e^{-c})^k}{k!} = e^{-2e^{-c}}$$
#
# **Nothing else matters.** Suppose no line is empty and there is still no perfect matching. Hall's theorem: then some set $R$ of
# rows (or of columns) has fewer neighbours than members, where the neighbours $N(R)$ are the columns with an entry in one of
# these rows. Take the smallest such set, of rows or of columns, and let $k$ be its size; $k \ge 2$ as no line is empty. Then
#
# 1. $|N(R)| = k - 1$. Were it less, $R$ without one member would do too.
# 2. Every column of $N(R)$ has at least two entries in $R$. Had it one, $R$ without that row would do: one member and one
#    neighbour less.
# 3. $k \le (n+1)/2$. The other $n - k + 1$ columns have all their entries in the other $n - k$ rows, so they are such a set as
#    well. Ours is the smallest, so $k \le n - k + 1$.
#
# Let $P_k$ be the probability that there is such a set of size $k$. It is at most the sum over all choices of $R$ and $N(R)$ (the
# *union bound*): $2\binom{n}{k}\binom{n}{k-1}$ choices; for each of the $k - 1$ columns, probability
# $q_k \le \binom{k}{2}\delta^2$ of two entries or more in $k$ places; and $k(n-k+1)$ positions that must be empty.
#
# $$P_k \le 2\binom{n}{k}\binom{n}{k-1}\, q_k^{\,k-1}\, (1-\delta)^{k(n-k+1)}$$
#
# Let $\lambda = \delta n = \ln n + c$. Use $\binom{n}{k} \le (en/k)^k$, $q_k \le k^2\lambda^2/2n^2$,
# $1 - \delta \le e^{-\lambda/n}$ and $k/(k-1) \le 2$:
#
# $$P_k \le 2\,\frac{en}{k}\left[\frac{e^2 n^2}{k(k-1)} \cdot \frac{k^2\lambda^2}{2n^2}\right]^{k-1} e^{-\lambda k}\,
# e^{\lambda k(k-1)/n} \;\le\; \frac{2e}{k}\, n e^{-\lambda}\, \rho^{\,k-1}, \qquad
# \rho = e^2 \lambda^2\, e^{-\lambda}\, e^{\lambda(n+1)/2n}$$
#
# The last step splits $e^{-\lambda k}$ into $e^{-\lambda}$ and $k - 1$ times $e^{-\lambda}$, and uses point 3:
# $k/n \le (n+1)/2n$. In front stands at most $e\,n e^{-\lambda} = e^{1-c}$. And $\rho = e^2\lambda^2 e^{-\lambda/2 + \lambda/2n}$
# tends to 0 like $\ln^2 n/\sqrt n$, so
#
# $$\sum_{k \ge 2} P_k \le e^{1-c}\,\frac{\rho}{1-\rho} \to 0 \qquad\text{and}\qquad P(\text{perfect matching}) \to e^{-2e^{-c}}$$
#
# With $\delta = C \ln n/n$ and $C > 1$, $c = (C-1)\ln n$ passes every bound, and since more entries never hurt, the probability
# tends to 1: **that is the proposition**. With $C < 1$ it tends to 0. So $\log n/n$ is the right order, and the constant is 1.
# (The limit is Erdős and Rényi's.) A matrix that is not square has full rank if a square part of it has, so further rows or
# columns only help.
#
# The estimates with $e^2$ are for the limit. Near the edge, at the sizes that we meet, $\rho$ is above 1 and they say nothing.
# The sum of the bounds on $P_k$ itself, with $q_k = 1 - (1-\delta)^k - k\delta(1-\delta)^{k-1}$, does:

# %%
def log_choose(n, k):
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def other_obstacles(n, delta):
    """The union bound over k >= 2: no line is empty, and still there is no perfect matching."""
    total = 0.0
    for k in range(2, (n + 1) // 2 + 1):
        q = 1 - (1 - delta) ** k - k * delta * (1 - delta) ** (k - 1)
        total += math.exp(math.log(2) + log_choose(n, k) + log_choose(n, k - 1) + (k - 1) * math.log(q)
                          + k * (n - k + 1) * math.log1p(-delta))
    return total


print(f"{'n':>6}{'C':>6}{'delta':>9}{'empty lines expected':>22}{'other obstacles, at most':>26}")
for n, C in itertools.product((128, 512, 4096), (1, 1.5, 2)):
    delta = C * math.log(n) / n
    print(f"{n:6}{C:6}{delta:9.4f}{2 * n * (1 - delta) ** n:22.5f}{other_obstacles(n, delta):26.2e}")

# %% [markdown]
# At the edge other obstacles are several times rarer than empty lines, and above it far rarer still: empty lines are nearly the
# whole story. And the published models?

# %%
for name, n, delta in (("60M", 512, 0.03), ("1B", 2048, 0.03), ("7B", 4096, 0.05)):
    print(f"{name:4} n {n}: ln n / n = {math.log(n) / n:.4f}, delta = {delta} is C = {delta * n / math.log(n):.1f}; "
          f"empty lines expected {2 * n * (1 - delta) ** n:.0e}")

# %% [markdown]
# The widths of the paper's models are well beyond the edge: 7B has 25 times the density that it needs.
#
# ### Step 4: what $BA$ adds
#
# So far $BA$ only had to do no harm. In fact it stands in for up to $r$ rows and columns that have no partner. Call the largest
# number of positions in the support with no two in a line the *matching number* $\mu$.
#
# **For almost all $B$, $A$, $v$: $\mathrm{rank}(BA + S) = \min(n, r + \mu)$.**
#
# *Not more:* a square part of $S$ of size $\mu + 1$ has no perfect matching, so its determinant is 0 and
# $\mathrm{rank}\,S \le \mu$; the rank of a sum is at most the sum of ranks. *Not less:* take $\mu$ matched positions and, of the
# $n - \mu$ rows and columns that are left, $t = \min(r, n - \mu)$ each, paired somehow. The determinant of the square part on
# these $\mu + t$ rows and columns is a polynomial in $B$, $A$ and $v$. It is not the zero polynomial, since at one point it is
# $\pm 1$: set $v = 1$ on the matching and 0 elsewhere, and let $BA$ be 1 at the $t$ pairs and 0 elsewhere, which is possible as
# $t \le r$. That part of $BA + S$ is then a permutation matrix. By step 2 it is zero almost nowhere. $\square$
#
# So full rank needs only $\mu \ge n - r$: up to $r$ empty rows and up to $r$ empty columns are forgiven. Their numbers are each
# about Poisson with mean $n(1-\delta)^n$, so there is hope wherever
#
# $$P(\mathrm{Poisson}(n(1-\delta)^n) \le r)^2$$
#
# is near 1. (Hope, not certainty: below $C = 1$ the other obstacles, such as two rows with their only entries in one column, are
# no longer rare.)
#
# ### Simulated

# %%
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.stats import poisson

from minisl.analysis import full_rank


def matching_number(I, n):
    graph = csr_array((np.ones(len(I)), np.divmod(I, n)), (n, n))
    return (maximum_bipartite_matching(graph) >= 0).sum()


window = np.linspace(-1.5, 4, 8)
perfect = {}
for n, trials in ((32, 300), (128, 300), (512, 100)):
    for c in window:
        rng = np.random.default_rng(7)
        full = [matching_number(sample_support(n, n, (math.log(n) + c) / n, rng), n) == n for _ in range(trials)]
        perfect.setdefault(n, []).append(np.mean(full))
limit = np.exp(-2 * np.exp(-window))
for n, shares in perfect.items():
    print(f"n {n:4}: " + "  ".join(f"{share:4.0%}" for share in shares))
print("limit:  " + "  ".join(f"{share:4.0%}" for share in limit))
assert abs(np.array(perfect[512]) - limit).max() < 0.12

# %%
ranks = full_rank.ranks(n=128, r=8, c=(0.25, 0.5, 0.625, 0.75, 1, 1.25, 1.5, 2), trials=50)
np.testing.assert_array_equal(ranks.sparse, ranks.matching)
np.testing.assert_array_equal(ranks.both, np.minimum(128, 8 + ranks.matching))
alone, both = ranks.shares()
expected = poisson.cdf(8, 128 * (1 - ranks.delta) ** 128) ** 2
for name, shares in (("C", ranks.c), ("S alone", alone), ("BA + S", both), ("hope", expected)):
    print(f"{name:9}" + "".join(f"{share:8.3g}" if name == "C" else f"{share:8.0%}" for share in shares))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
fine = np.linspace(-1.5, 4, 100)
left.plot(fine, 100 * np.exp(-2 * np.exp(-fine)), color="black", linestyle="-", label="limit")
for (n, shares), marker in zip(perfect.items(), "osx"):
    left.plot(window, 100 * np.array(shares), marker, label=f"n = {n}")
left.set(xlabel="c in delta = (ln n + c) / n", ylabel="supports with a perfect matching (%)", title="The edge, magnified")
left.legend()
fine = np.linspace(0.25, 2, 100) * math.log(128) / 128
right.plot(fine * 128 / math.log(128), 100 * poisson.cdf(8, 128 * (1 - fine) ** 128) ** 2, label="B A + S, at best")
right.plot(fine * 128 / math.log(128), 100 * full_rank.expected(128, fine), label="S alone, the limit")
right.plot(ranks.c, 100 * both, "s", color=PALETTE[0], label="B A + S")
right.plot(ranks.c, 100 * alone, "o", color=PALETTE[1], label="S alone")
right.set(xlabel="C in delta = C ln(n) / n", ylabel="of full rank (%)", title="n = 128, r = 8")
right.legend()
plt.show()

# %% [markdown]
# Left: three sizes near one curve, as the limit says, and a little above it, since $(1-\delta)^n$ is below $e^{-\delta n}$.
# Right: $S$ alone needs $C$ clearly above 1; with eight rows of help the edge is well below 1, a little later than empty lines
# alone would have it. In each of the draws the rank was exactly $\min(n, r + \mu)$, which the cell asserts.
#
# What the proposition does not say: that full rank is *good*, that singular values beyond $r$ are large, or that training uses
# them. [04](04_why_random.ipynb) and [08](08_what_it_learned.ipynb) look at that.
#
# ## 10 Turn the knobs
#
# A weight of 128 x 128 once $B$ has moved (all entries uniform, as $A$'s start): its singular values, how many numbers are stored
# for it, and what a step with the factored form takes by section 7's model. $r$ sets how many large singular values there are,
# $\delta$ how high the tail is that $S$ alone carries; both cost memory, and $\delta$ costs more time than memory.

# %%
WIDTH = 128


def spectrum(M):
    return np.linalg.svd(M, compute_uv=False)


def draw(r, delta):
    rng, bound = np.random.default_rng(0), WIDTH**-0.5
    S = np.zeros((WIDTH, WIDTH))
    I = draw_support(WIDTH, WIDTH, delta, rng)
    S.flat[I] = rng.uniform(-bound, bound, len(I))
    BA = 4 * rng.uniform(-bound, bound, (WIDTH, r)) @ rng.uniform(-bound, bound, (r, WIDTH))
    figure, (left, right, time_) = plt.subplots(1, 3, figsize=(8.4, 2.8), width_ratios=(3, 1, 1))
    with one_blas_thread():  # small matrices: two threads would wait for each other
        sigma = {"B A + S": spectrum(BA + S), "B A alone": spectrum(BA), "S alone": spectrum(S)}
    for name, values in sigma.items():
        left.semilogy(np.arange(1, WIDTH + 1), values, label=name)
    left.set(xlabel="index", ylabel="singular value", ylim=(1e-3, 5), title=f"rank {(sigma['B A + S'] > 1e-10).sum()} of {WIDTH}")
    left.legend()
    stored = np.array([2 * r * WIDTH, len(I)]) / WIDTH**2
    right.bar(["B, A", "S"], 100 * stored, color=PALETTE[:2], hatch=["", "//"])
    right.set(ylabel="of the dense numbers (%)", ylim=(0, 60), title=f"{stored.sum():.0%} stored")
    time_.bar(["dense", "factored"], [1, 2 * r / WIDTH + ratio * delta], color=PALETTE[2:4], hatch=["", "//"])
    time_.set(ylabel="time, by section 7's model", ylim=(0, 1.2), title=f"{2 * r / WIDTH + ratio * delta:.2f} of dense")
    return figure


Sliders(draw, r=[2, 8, 16, 32], delta=[0.01, 0.02, 0.03, 0.05, 0.1])

# %% [markdown]
# Where does the rank fall short of 128? Step 4 says: where $r$ is less than the number of rows without a partner.

# %%
for delta in (0.01, 0.02, 0.03):
    missing = WIDTH - matching_number(draw_support(WIDTH, WIDTH, delta, np.random.default_rng(0)), WIDTH)
    print(f"delta {delta}: {missing} rows without a partner")

# %% [markdown]
# At 0.02, $r = 16$ makes up for its 15 and $r = 8$ does not. At 0.01 no $r$ of the slider is enough.
#
# ## 11 Does it train?
#
# Two blocks of width 64 on bytes, a short run at the paper's learning rate, three models: low-rank; low-rank with a higher rank,
# so that it has as many parameters as SLTrain; SLTrain.

# %% tags=["trained"]
def trained(method, **options):
    with kernels.running("auto"):
        return train(text, method, steps=200, lr=3e-3, **options)


jobs = {"low rank, r 16": trained("low_rank"), "low rank, r 18": trained("low_rank", rank=18),
        "SLTrain, r 16": trained("sltrain")}
for name, job in jobs.items():
    print(f"{name:15} {job.model.num_parameters():,} parameters, validation loss {job.val_loss:.2f} nats per byte")
assert all(jobs["SLTrain, r 16"].val_loss < job.val_loss for name, job in jobs.items() if name != "SLTrain, r 16")

# %% tags=["trained"]
W_end = {name: dict(matrices(job.model))["model.layers.0.self_attn.o_proj"].to_dense() for name, job in jobs.items()}
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
for (name, job), marker in zip(jobs.items(), "osx"):
    left.plot(job.checked, job.val_losses, marker=marker, label=name)
    right.plot(np.arange(1, 65), np.linalg.svd(W_end[name], compute_uv=False), label=name)
    print(f"{name:15} rank of the first block's o_proj: {np.linalg.matrix_rank(W_end[name])} of 64")
left.set(xlabel="updates", ylabel="validation loss (nats per byte)", title="Three models, 200 updates")
right.set(xlabel="index", ylabel="singular value of o_proj", title="Singular values at the end")
right.legend()
plt.show()
assert np.linalg.matrix_rank(W_end["low rank, r 16"]) == 16
assert np.linalg.matrix_rank(W_end["SLTrain, r 16"]) > 48

# %% [markdown]
# SLTrain is ahead of both, and its `o_proj` has directions that a low-rank matrix does not have. Do not read more into it: one
# seed, one learning rate for all, 200 updates. (Rank 18 even ends behind rank 16, by chance or by its smaller $\alpha/r$.) Nor
# does the right figure show that the tail is *used*: $S$ is random from the start, and has one before the first update. How much
# of a gap is left when each method gets a learning rate of its own is what [07](07_neighbourhood.ipynb) measures.
#
# The code that trained it is one page, `minisl/methods/sltrain.py`. Every equation above, with its line of code and its test, is
# in [the paper's map](../docs/paper.md).
#
# ## Exercises
#
# **Exercise 1.** Suppose the scale multiplied $S$ as well: $W = s(BA + S)$. Which gradients change, and what happens to the
# outputs at step 0 if $\alpha = 32$, $r = 128$? Predict, then change `dense_weight` and `backward` and check by differences.
#
# <details><summary>Answer</summary>
#
# $dv = s\,dW[I]$, all else stays. At step 0 $W = sS$ with $s = 1/4$: outputs are a quarter as large, $\sqrt{\delta/3}/4$. The
# differences agree with the new backward and reject the old one.
#
# ```python
# def forward_scaled(X, B, A, v, I, s):
#     return forward(X, B, A, s * v, I, s)
#
# def backward_scaled(G, X, B, A, v, I, s):
#     dX, dB, dA, dv = backward(G, X, B, A, s * v, I, s)
#     return dX, dB, dA, s * dv
#
# n = 5
# I_small = draw_support(OUT, IN, DELTA, np.random.default_rng(0))
# X_small, G_small = np.random.default_rng(1).standard_normal((n, IN)), np.random.default_rng(2).standard_normal((n, OUT))
# B_small, A_small, v_small = (np.random.default_rng(3).standard_normal(shape) for shape in ((OUT, R), (R, IN), len(I_small)))
# exact = differences(lambda: (G_small * forward_scaled(X_small, B_small, A_small, v_small, I_small, 0.25)).sum(), v_small)
# right = backward_scaled(G_small, X_small, B_small, A_small, v_small, I_small, 0.25)[3]
# old = backward(G_small, X_small, B_small, A_small, v_small, I_small, 0.25)[3]
# print(abs(right - exact).max() < 1e-12, abs(old - exact).max() > 0.1)
# assert abs(right - exact).max() < 1e-12 < 0.1 < abs(old - exact).max()
# ```
#
# </details>
#
# **Exercise 2.** By operations alone, up to which rank does the factored form of a square layer beat a dense one if
# $\delta = 0.03$? And for out = 4 in? Use `operations`; then derive the rank.
#
# <details><summary>Answer</summary>
#
# $6nr(in + out) + 6n\,\delta\,in\,out < 6n\,in\,out$ gives $r < (1-\delta)\, in\,out/(in + out)$: 0.485 `in` if square, 0.776
# `in` if out = 4 in. The wider the matrix, the more rank fits in.
#
# ```python
# for ratio in (1, 4):
#     width, out = 1000, 1000 * ratio
#     costs = [operations(1, width, out, r, int(0.03 * width * out)) for r in range(width)]
#     best = max(r for r, of in enumerate(costs) if of["factored"] < of["dense layer"])
#     print(ratio, best / width, 0.97 * ratio / (1 + ratio))
#     assert abs(best / width - 0.97 * ratio / (1 + ratio)) < 0.002
# ```
#
# </details>
#
# **Exercise 3.** At $n = 128$ and $C = 0.5$, how large must $r$ be for $BA + S$ to have full rank in nine of ten draws? Find it
# by step 4 without computing a single rank, then compute ranks. What would empty lines alone have said?
#
# <details><summary>Answer</summary>
#
# $BA + S$ has full rank where $n - \mu \le r$, so $r$ is the 90 % quantile of $n - \mu$: 22. Empty rows and columns alone would
# ask for 17: that far from the edge they are most of the obstacles, not all.
#
# ```python
# delta = 0.5 * math.log(128) / 128
# missing = [128 - matching_number(sample_support(128, 128, delta, np.random.default_rng(t)), 128) for t in range(300)]
# r = int(np.quantile(missing, 0.9, method="higher"))
# lines = min(k for k in range(64) if poisson.cdf(k, 128 * (1 - delta) ** 128) ** 2 >= 0.9)
# share = full_rank.ranks(n=128, r=r, c=(0.5,), trials=60).shares()[1][0]
# print(f"90 % quantile of n - mu: {r}; by empty lines alone: {lines}; full rank in {share:.0%} of 60 draws")
# assert share > 0.75
# ```
#
# </details>
