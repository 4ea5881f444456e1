# %% [markdown]
# # LLaMA: every layer, forwards and backwards
#
# A language model gives each next token a probability. LLaMA does it with seven kinds of pieces: a table, matrix products, a
# normalisation, a rotation, attention, a gate, and a loss. We take them one at a time: what it computes, its gradient derived
# on paper, both in a few lines of NumPy, and three judges that must agree. At the end the pieces are a model, and its logits
# and gradients are those of minisl, and of Hugging Face's code.
#
# After this notebook you can
#
# - derive the backward of RMSNorm, softmax, attention, SwiGLU and cross-entropy, and check it;
# - explain RoPE by a picture, and convert weights between its two layouts;
# - write a LLaMA, with its whole backward pass, in about a page of NumPy;
# - read what a trained attention head looks at.
#
# You need notebook 1 ([autograd](01_autograd.ipynb)), or to believe that gradients are checked by differences. About an hour
# and a half.

# %%
import numpy as np

from minisl.autograd import Tensor, ops
from minisl.nn import Llama, LlamaConfig
from minisl.optim import AdamW, learning_rate
from minisl.plot import PALETTE, notebook_style
from minisl.sliders import Sliders

plt = notebook_style()
rng = np.random.default_rng(2)

# %% [markdown]
# | symbol | what | symbol | what |
# |---|---|---|---|
# | $B, T$ | sequences in a batch, tokens in each | $H, d$ | heads, and the width of one: $D = H d$ |
# | $N = BT$ | tokens, when their order does not matter | $F$ | width inside the MLP |
# | $D$ | width of the model | $V$ | words in the vocabulary |
#
# For any array $y$ on the way to the loss $L$, `dy` is $\frac{\partial L}{\partial y}$, of the same shape. A backward turns
# `dy` into the gradients of what $y$ was computed from.
#
# The judges: our backward must equal central differences of our forward, and value and gradients must equal those of minisl's
# op. `dy` is drawn at random (all ones would hide mistakes, see notebook 1), and a gradient that is all zero does not count.

# %%
def differences(f, arrays, dy, h=6e-6):
    """The gradients of sum(dy * f(*arrays)), by moving one number at a time."""
    found = []
    for array in arrays:
        g = np.zeros_like(array)
        for i in np.ndindex(array.shape):
            old, ends = array[i], []
            for array[i] in (old + h, old - h):  # writes one, then the other, into the array
                ends.append((dy * f(*arrays)).sum())
            array[i] = old
            g[i] = (ends[0] - ends[1]) / (2 * h)
        found.append(g)
    return found


def agree(name, forward, backward, op, *arrays):
    y = forward(*arrays)
    dy = rng.standard_normal(y.shape)
    mine, measured = backward(dy, *arrays), differences(forward, arrays, dy)
    leaves = [Tensor(a, requires_grad=True) for a in arrays]
    out = op(*leaves)
    out.backward(dy)
    np.testing.assert_allclose(y, out.data, rtol=1e-10, atol=1e-12)
    for g, m, leaf in zip(mine, measured, leaves, strict=True):
        assert m.any(), "a check on zeros cannot fail"
        np.testing.assert_allclose(g, m, rtol=1e-6, atol=1e-7 * abs(m).max())
        np.testing.assert_allclose(g, leaf.grad, rtol=1e-9, atol=1e-12)
    print(f"{name}: value and {len(mine)} gradient{'s' * (len(mine) > 1)} as by differences and in minisl")

# %% [markdown]
# ## 1. The plan
#
# Token ids $(B, T)$ become rows of a table, $x\,(B, T, D)$. Then blocks follow, each adding two things to $x$:
#
# $$x \leftarrow x + {\rm Attention}({\rm RMSNorm}(x)), \qquad x \leftarrow x + {\rm MLP}({\rm RMSNorm}(x)).$$
#
# Attention moves information between tokens; everything else treats each token alone. A last RMSNorm, a matrix product with an
# output matrix $(V, D)$, called the model's head, and we have logits $(B, T, V)$: at each position, a score for each word that
# might come next.

# %%
steps = ["x  (B, T, D)", "RMSNorm", "q, k, v = products", "RoPE on q and k", "attention", "product with $W_o$", "+",
         "RMSNorm", "gate, up = products", "silu(gate) * up", "product with $W_{down}$", "+"]
figure, axes = plt.subplots(figsize=(9.5, 2.6))
for i, step in enumerate(steps):
    colour = "#CFE0EE" if i in (2, 5, 8, 10) else "white"
    axes.text(i, 0, step, rotation=90, ha="center", va="center", fontsize=9,
              bbox={"boxstyle": "round,pad=0.4", "fc": colour, "ec": "0.4"})
    if i:
        axes.annotate("", (i - 0.3, 0), (i - 0.72, 0), arrowprops={"arrowstyle": "->", "color": "0.4"})
for start, end in ((0, 6), (6, 11)):
    start += 0.12 * (start > 0)
    axes.plot([start, start, end - 0.12], [0.3 if start else 0.85, 1.5, 1.5], color=PALETTE[1], linestyle="-")
    axes.annotate("", (end - 0.12, 0.2), (end - 0.12, 1.52), arrowprops={"arrowstyle": "->", "color": PALETTE[1], "lw": 1.5})
    axes.text((start + end) / 2, 1.6, "residual", color=PALETTE[1], ha="center")
axes.set(xlim=(-0.6, 11.5), ylim=(-1.4, 2), title="One block. Shaded: the seven matrices, which SLTrain replaces")
axes.axis("off")
plt.show()

# %% [markdown]
# The residual connections are why deep stacks train at all. For $y = x + f(x)$ we get $dx = dy + J_f^\top dy$, $J_f$ the
# Jacobian of $f$: whatever $f$ does, $dy$ itself arrives at the bottom.
#
# ## 2. Embedding
#
# $y_n = E_{{\rm id}_n}$: row ${\rm id}_n$ of $E\,(V, D)$. With $O\,(N, V)$ the one-hot rows of the ids this is a matrix
# product, $Y = O E$, so $dE = O^\top dY$, in other words
#
# $$dE_v = \sum_{n:\ {\rm id}_n = v} dy_n .$$
#
# The pitfall is in "sum": a word that occurs three times gets three terms.

# %%
def embedding_backward(dy, E, ids):
    dE = np.zeros_like(E)
    np.add.at(dE, ids, dy)
    return dE


ids, E = np.array([[3, 1, 3, 0]]), rng.standard_normal((5, 2))
agree("embedding", lambda E: E[ids], lambda dy, E: (embedding_backward(dy, E, ids),), lambda E: ops.embedding(E, ids), E)

dE = np.zeros(5)
dE[ids] += 1
print("dE[ids] += 1       :", dE, " word 3 occurs twice, and one of its gradients is lost")
print("np.add.at(dE, ...) :", embedding_backward(np.ones((1, 4)), np.zeros(5), ids))

# %% [markdown]
# ## 3. Matrix product
#
# Weights are stored as $W\,({\rm out}, {\rm in})$, and $Y = X W^\top$ with $X\,(N, {\rm in})$. From
# $Y_{no} = \sum_i X_{ni} W_{oi}$ follows
#
# $$dX_{ni} = \sum_o dY_{no} W_{oi} \ \Rightarrow\ dX = dY\, W, \qquad
# dW_{oi} = \sum_n dY_{no} X_{ni} \ \Rightarrow\ dW = dY^\top X .$$
#
# $dW$ is a sum over tokens: the batch ends up in it, and nowhere else.

# %%
def rows(x):
    return x.reshape(-1, x.shape[-1])  # (B, T, D) as (N, D)


def linear(x, W):
    return x @ W.T


def linear_backward(dy, x, W):
    return dy @ W, rows(dy).T @ rows(x)


agree("linear", linear, linear_backward, ops.linear, rng.standard_normal((2, 3, 4)), rng.standard_normal((5, 4)))

# %% [markdown]
# ## 4. RMSNorm
#
# $$y_i = g_i\, x_i\, r, \qquad r = \Big(\frac1D \sum_j x_j^2 + \epsilon\Big)^{-1/2} .$$
#
# Each token is divided by its root mean square, then each feature gets its gain $g_i$. Derive in three steps. First $r$:
#
# $$\frac{\partial r}{\partial x_i} = -\frac12\,(\cdot)^{-3/2}\, \frac{2 x_i}{D} = -\frac{r^3 x_i}{D} .$$
#
# Then $y_j$ depends on $x_i$ in two ways, directly if $i = j$, and through $r$ always. With $\delta_{ij} = 1$ if $i = j$, else 0:
#
# $$\frac{\partial y_j}{\partial x_i} = g_j \Big( r\, \delta_{ij} - x_j \frac{r^3 x_i}{D} \Big) .$$
#
# Last, sum over $j$ with $dy_j$:
#
# $$dx_i = r\, g_i\, dy_i - r^3 x_i \cdot \frac1D \sum_j g_j\, dy_j\, x_j, \qquad dg_i = \sum_n dy_{ni}\, x_{ni}\, r_n .$$
#
# With $\hat x = r x$ this is $dx = r\,(u - \hat x\, {\rm mean}(u \hat x))$, where $u = g\, dy$.

# %%
EPS = 1e-6


def rms_norm(x, g):
    return g * x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS)


def rms_norm_backward(dy, x, g):
    r = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + EPS)
    hat, u = r * x, g * dy
    return r * (u - hat * (u * hat).mean(-1, keepdims=True)), rows(dy * hat).sum(axis=0)


x, g = rng.standard_normal((2, 3, 6)), rng.uniform(0.5, 1.5, 6)
agree("RMSNorm", rms_norm, rms_norm_backward, lambda x, g: ops.rms_norm(x, g, EPS), x, g)


def forgetful(dy, x, g):
    r = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + EPS)
    return r * g * dy, rows(dy * r * x).sum(axis=0)


try:
    agree("forgetful", rms_norm, forgetful, lambda x, g: ops.rms_norm(x, g, EPS), x, g)
except AssertionError:
    print("without the second term of dx: rejected")

# %% [markdown]
# What does the second term do? RMSNorm does not care how long $x$ is. So moving $x$ along itself must not change the loss: $dx$
# has to be perpendicular to $x$ (but for $\epsilon$). The second term is the projection that takes out the part along $x$. In
# two dimensions:

# %%
angles, push = np.radians([0, 45, 90, 135, 225, 315]), np.array([0.0, 1.2])
figure, panels = plt.subplots(1, 2, figsize=(8, 4))
for axes, size in zip(panels, (1, 2)):
    circle = size * np.sqrt(2) * np.stack([np.cos(np.linspace(0, 6.3, 100)), np.sin(np.linspace(0, 6.3, 100))])
    points = size * np.sqrt(2) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    dx, _ = rms_norm_backward(np.broadcast_to(push, points.shape), points, np.ones(2))
    assert (abs((dx * points).sum(axis=1)) < 1e-5).all()
    axes.plot(*circle, color="0.7", linewidth=1, linestyle="-")
    for vectors, colour, name in ((np.broadcast_to(push, points.shape), "0.7", "u = g dy"), (dx, PALETTE[1], "dx")):
        axes.quiver(*points.T, *vectors.T, color=colour, angles="xy", scale_units="xy", scale=1, width=0.01, label=name)
    axes.plot(*points.T, "o", color=PALETTE[0])
    axes.set(xlim=(-3.6, 3.6), ylim=(-3.2, 4.2), aspect="equal", xlabel="$x_1$", title=f"$|x| = {size}\\,\\sqrt{{2}}$")
panels[0].set_ylabel("$x_2$")
panels[0].legend(loc="lower right", fontsize=8)
figure.suptitle("The gradient runs along the circle; for a longer x it is shorter")
plt.show()

# %% [markdown]
# And the factor $r$ in front makes $dx$ inversely proportional to the length of $x$.
#
# ## 5. RoPE
#
# Attention compares a query with keys by inner products, and those know nothing about positions. RoPE writes the position into
# the angle: split a head's $d$ numbers into $d/2$ pairs, and at position $t$ turn pair $i$ by $t\,\omega_i$,
# $\omega_i = \theta^{-2i/d}$, $\theta = 10000$. The first pair turns by one radian a token, the last hardly at all. In LLaMA's
# *half-rotation* layout pair $i$ is $(x_i, x_{i + d/2})$:
#
# $$\begin{pmatrix} y_i \\ y_{i+d/2} \end{pmatrix} =
# \begin{pmatrix} \cos t\omega_i & -\sin t\omega_i \\ \sin t\omega_i & \cos t\omega_i \end{pmatrix}
# \begin{pmatrix} x_i \\ x_{i+d/2} \end{pmatrix}, \qquad\text{or}\quad y = R_t\, x .$$
#
# **Backward.** $y = R_t x$ is linear, so $dx = R_t^\top dy$, and the transpose of a rotation is the rotation by the opposite
# angle.

# %%
def angles_of(T, d, theta=10_000.0):
    angle = np.arange(T)[:, None] * theta ** (-np.arange(0, d, 2) / d)  # (T, d/2)
    return np.cos(angle), np.sin(angle)


def rope(x, cos, sin):
    a, b = np.split(x, 2, axis=-1)  # the halves of each head
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def rope_backward(dy, cos, sin):
    return rope(dy, cos, -sin)


cos, sin = angles_of(5, 8)
x = rng.standard_normal((1, 2, 5, 8))  # (B, H, T, d)
agree("RoPE", lambda x: rope(x, cos, sin), lambda dy, x: (rope_backward(dy, cos, sin),), lambda x: ops.rope(x, cos, sin), x)

# %%
T, d = 14, 8
cos, sin = angles_of(T, d)
figure, axes = plt.subplots(figsize=(8.5, 3))
across, down = np.meshgrid(np.arange(T), -np.arange(d // 2), indexing="ij")
axes.scatter(across, down, s=550, facecolors="none", edgecolors="0.8")
axes.quiver(across, down, cos, sin, color=PALETTE[0], scale=2.4, scale_units="xy", angles="xy", width=0.0035)
axes.set(xlabel="position t", ylabel="pair i", xlim=(-0.7, T - 0.3), ylim=(-d // 2 + 0.4, 0.6), xticks=range(T), aspect="equal",
         yticks=-np.arange(d // 2), yticklabels=range(d // 2), title="Where (1, 0) points after RoPE: clocks of different speed")
axes.grid(visible=False)
plt.show()

# %% [markdown]
# **Why it works.** $\langle R_m q, R_n k \rangle = q^\top R_m^\top R_n k = q^\top R_{n-m}\, k$: the score depends on positions
# only through their distance.

# %%
def score(q, k, m, n, theta=10_000.0):
    cos, sin = angles_of(max(m, n) + 1, len(q), theta)
    return rope(q, cos[m], sin[m]) @ rope(k, cos[n], sin[n])


q, k = rng.standard_normal((2, 16))
print("at (3, 1), (13, 11), (103, 101):", *(f"{score(q, k, m, m - 2):.6f}" for m in (3, 13, 103)))
print("at (3, 0):                      ", f"{score(q, k, 3, 0):.6f}")

# %% [markdown]
# For a query and a key of ones the score at distance $s$ is $2\sum_i \cos(s\,\omega_i)$. Move the sliders. With a small $\theta$
# all clocks have turned round soon, and beyond that the score no longer tells near from far; with a large one it keeps falling
# slowly. That is why models for long texts raise $\theta$. In a wide head many clocks average out: the curve gets smoother.

# %%
def draw(theta, d):
    distance = np.arange(0, 601)
    omega = theta ** (-np.arange(0, d, 2) / d)
    figure, axes = plt.subplots(figsize=(6, 2.8))
    axes.plot(distance, np.cos(distance[:, None] * omega).mean(axis=1), color=PALETTE[0], linewidth=1)
    axes.set(xlabel="distance (tokens)", ylabel="score / d", ylim=(-1.1, 1.1),
             title=f"equal query and key, theta {theta:g}, d {d}")
    return figure


Sliders(draw, theta=[100, 1_000, 10_000, 500_000], d=[8, 32, 128])

# %% [markdown]
# **Pitfall: two layouts.** The first RoPE code, and Meta's LLaMA, pair neighbours, $(x_{2i}, x_{2i+1})$; Hugging Face and
# minisl pair halves. Both are the same up to an order of the $d$ features. But weights trained with one and used with the other
# give nonsense, without any error. Reordering the *rows* of $W_q$ and $W_k$, within each head, converts:

# %%
def rope_neighbours(x, cos, sin):
    y = np.empty_like(x)
    y[..., ::2] = x[..., ::2] * cos - x[..., 1::2] * sin
    y[..., 1::2] = x[..., 1::2] * cos + x[..., ::2] * sin
    return y


cos, sin = angles_of(8, 6)
Wq, Wk, h = rng.standard_normal((6, 4)), rng.standard_normal((6, 4)), rng.standard_normal((8, 4))  # one head of width 6
order = np.r_[0:6:2, 1:6:2]
truth = rope_neighbours(h @ Wq.T, cos, sin) @ rope_neighbours(h @ Wk.T, cos, sin).T
mixed_up = rope(h @ Wq.T, cos, sin) @ rope(h @ Wk.T, cos, sin).T
converted = rope(h @ Wq[order].T, cos, sin) @ rope(h @ Wk[order].T, cos, sin).T
print("rows in the order", order, "- equal:", np.allclose(converted, truth), "- not converted:", np.allclose(mixed_up, truth))

# %% [markdown]
# ## 6. Causal attention
#
# Three products with the normalised $x$ give each token a *query* (what it looks for), a *key* (what it can be found by) and a
# *value* (what it hands on), each of width $D$, cut into $H$ heads of width $d$. Queries and keys are turned by RoPE. Then, for
# one head, with $Q, K, V\,(T, d)$:
#
# $$S = \frac{Q K^\top}{\sqrt d} + M, \qquad P = {\rm softmax}(S) \text{ over each row}, \qquad O = P V .$$
#
# Row $i$ of $P$ says from where token $i$ takes its information. The mask $M$ is 0 for $j \le i$ and $-\infty$ for $j > i$: a
# token that is to be predicted must not be seen. Why $\sqrt d$? If the entries of $q$ and $k$ are independent, with mean 0 and
# variance 1, then $q \cdot k = \sum_i q_i k_i$ has variance $d$. Undivided, the softmax of a wide head would be saturated (nearly
# all of a row on one key), and where it is saturated its gradient vanishes:

# %%
for d in (4, 64, 1024):
    q, k = rng.standard_normal((200, d)), rng.standard_normal((200, 32, d))
    s = np.einsum("nd,nkd->nk", q, k)
    top = [np.exp(z - z.max(1, keepdims=True)) for z in (s, s / np.sqrt(d))]
    top = [(e.max(1) / e.sum(1)).mean() for e in top]
    print(f"d {d:4d}: standard deviation of q.k {s.std():5.1f};  largest of 32 probabilities, on average, {top[0]:.2f};"
          f" scaled {top[1]:.2f}")

# %% [markdown]
# **Backward.** Four steps, from the end. The two products are section 3:
#
# $$dV = P^\top dO, \qquad dP = dO\, V^\top .$$
#
# Softmax, for one row: $p_i = e^{s_i} / \sum_k e^{s_k}$ gives $\frac{\partial p_i}{\partial s_j} = p_i (\delta_{ij} - p_j)$,
# hence
#
# $$ds_j = \sum_i dp_i\, p_i (\delta_{ij} - p_j) = p_j \Big( dp_j - \sum_i dp_i\, p_i \Big) .$$
#
# In words: a score gets more gradient the more its $dp$ lies above the average of $dp$ under $p$. Where $p_j = 0$, as
# everywhere behind the mask, $ds_j = 0$; the mask needs no line in the backward. And the products again:
#
# $$dQ = \frac{dS\, K}{\sqrt d}, \qquad dK = \frac{dS^\top Q}{\sqrt d} .$$
#
# One simplification is used by every fast implementation. Row $i$ of $O$ is $o = \sum_j p_j v_j$ and $dp_j = do \cdot v_j$,
# therefore $\sum_j dp_j\, p_j = do \cdot o$: the average needs neither $P$ nor $dP$.
#
# **Grouped heads.** In many LLaMAs $H$ query heads share $H_{kv}$ key/value heads. Forwards keys are repeated, so backwards
# their gradients are summed: un-broadcasting, again.

# %%
def probabilities(q, k):
    s = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])  # (B, H, T, T)
    s = np.where(np.tri(s.shape[-1], dtype=bool), s, -np.inf)
    e = np.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(q, k, v):
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    return probabilities(q, k) @ v


def attention_backward(do, q, k, v):
    (B, H_kv, T, d), H = k.shape, q.shape[1]
    k, v = np.repeat(k, H // H_kv, axis=1), np.repeat(v, H // H_kv, axis=1)
    p = probabilities(q, k)
    dv, dp = p.swapaxes(-1, -2) @ do, do @ v.swapaxes(-1, -2)
    ds = p * (dp - (do * (p @ v)).sum(-1, keepdims=True)) / np.sqrt(d)
    dq, dk = ds @ k, ds.swapaxes(-1, -2) @ q
    return dq, *(g.reshape(B, H_kv, -1, T, d).sum(axis=2) for g in (dk, dv))


q, k, v = rng.standard_normal((2, 4, 5, 6)), rng.standard_normal((2, 2, 5, 6)), rng.standard_normal((2, 2, 5, 6))
agree("attention", attention, attention_backward, ops.attention, q, k, v)

# %% [markdown]
# The subtraction of the row's maximum changes nothing in exact arithmetic, as numerator and denominator get the same factor; it
# keeps `exp` from overflowing. minisl's NumPy version (`minisl/kernels/numpy_fused.py`) does the same with less memory traffic:
# it keeps $E = e^{S - \max}$, never forms $P$, and divides $O$ instead.
#
# An off-by-one in the mask is the worst mistake in this notebook: the model sees the answer, and the loss falls wonderfully.
# Differences do not catch it, since the gradient of the wrong function is right. What catches it is a test of the *property*:
# the output at $i$ must not depend on what comes later.

# %%
q, k, v = (rng.standard_normal((1, 1, 12, 16)) for _ in range(3))
before = attention(q, k, v)
k2, v2 = k.copy(), v.copy()
k2[:, :, 7], v2[:, :, 7] = 9, 9  # another token 7
moved = abs(attention(q, k2, v2) - before).max(axis=(0, 1, 3)) > 0
print("positions that notice a change of token 7:", np.flatnonzero(moved))

figure, panels = plt.subplots(1, 3, figsize=(9.5, 3.2))
pictures = {"scores $QK^T/\\sqrt{d}$": (q @ k.swapaxes(-1, -2) / 4)[0, 0], "mask": np.where(np.tri(12), 0, np.nan),
            "P: each row sums to 1": probabilities(q, k)[0, 0]}
for axes, (title, picture) in zip(panels, pictures.items()):
    shown = axes.imshow(picture if "scores" in title else np.where(np.tri(12), picture, np.nan))
    axes.set(title=title, xlabel="key j", xticks=range(0, 12, 2))
    axes.grid(visible=False)
    axes.set_facecolor("0.85")
    if title != "mask":
        figure.colorbar(shown, ax=axes, shrink=0.8)
panels[1].text(8, 3, "$-\\infty$", ha="center", fontsize=16)
panels[1].text(3, 8.5, "0", ha="center", fontsize=16, color="white")
panels[0].set_ylabel("query i")
plt.show()

# %% [markdown]
# ## 7. SwiGLU
#
# The MLP takes two products of the same input, $a = x W_{\rm gate}^\top$ and $b = x W_{\rm up}^\top$, both $(N, F)$. Its result
# is $y\,W_{\rm down}^\top$ with
#
# $$y = {\rm silu}(a)\, b, \qquad {\rm silu}(a) = a\, s, \qquad s = \sigma(a) = \frac{1}{1 + e^{-a}} .$$
#
# With $s' = s(1 - s)$ the derivative is ${\rm silu}'(a) = s + a\,s(1 - s)$, and
#
# $$da = dy \cdot b \cdot s\,(1 + a(1 - s)), \qquad db = dy \cdot {\rm silu}(a) .$$

# %%
def sigmoid(a):
    return 0.5 * (1 + np.tanh(0.5 * a))  # the same as 1 / (1 + exp(-a)), and cannot overflow


def swiglu(a, b):
    return a * sigmoid(a) * b


def swiglu_backward(dy, a, b):
    s = sigmoid(a)
    return dy * b * s * (1 + a * (1 - s)), dy * a * s


agree("SwiGLU", swiglu, swiglu_backward, ops.swiglu, rng.standard_normal((3, 4)), rng.standard_normal((3, 4)))
a = np.linspace(-7, 7, 281)
slope, _ = swiglu_backward(np.ones_like(a), a, np.ones_like(a))
figure, axes = plt.subplots()
axes.plot(a, swiglu(a, 1), label="silu(a)")
axes.plot(a, slope, label="its derivative")
axes.plot(a, np.maximum(a, 0), label="relu(a), to compare", color="0.6", linestyle=":")
axes.set(xlabel="a", ylim=(-0.6, 3), title="SiLU: smooth, a little below zero on the left, a slope that exceeds 1")
axes.legend()
plt.show()
print(f"lowest value {swiglu(a, 1).min():.3f} at a = {a[swiglu(a, 1).argmin()]:.2f}; largest slope {slope.max():.3f}")

# %% [markdown]
# Unlike ReLU it passes a gradient to the left of zero too, so a unit is hardly ever dead for good. And $b$ scales the result:
# the gate says how much of $b$ passes.
#
# ## 8. Cross-entropy
#
# For one position with logits $z\,(V)$ and the right word $c$: $l = -\ln p_c$ with $p = {\rm softmax}(z)$, that is
#
# $$l = \ln \sum_k e^{z_k} - z_c, \qquad
# \frac{\partial l}{\partial z_j} = \frac{e^{z_j}}{\sum_k e^{z_k}} - \delta_{jc} = p_j - \delta_{jc} .$$
#
# The prettiest gradient of all: **what the model said, minus what was right**. The loss of a batch is the mean over the
# positions that count; labels of $-100$ (padding) count neither in the sum nor in the number one divides by.

# %%
def cross_entropy(z, labels):
    kept = labels != -100
    z, labels = z[kept], labels[kept]  # (N, V) and (N,)
    top = z.max(axis=1)
    logsumexp = top + np.log(np.exp(z - top[:, None]).sum(axis=1))
    return (logsumexp - z[np.arange(len(z)), labels]).mean()


def cross_entropy_backward(dl, z, labels):
    kept = labels != -100
    p = np.exp(z[kept] - z[kept].max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(p)), labels[kept]] -= 1
    dz = np.zeros_like(z)
    dz[kept] = dl * p / kept.sum()
    return dz


labels = np.array([[1, 4, -100], [0, -100, 2]])
agree("cross-entropy", lambda z: cross_entropy(z, labels), lambda dl, z: (cross_entropy_backward(dl, z, labels),),
      lambda z: ops.cross_entropy(z, labels), rng.standard_normal((2, 3, 6)))

# %%
words, z = ["the", "a", "cat", "dog", "on", "sat"], np.array([1.0, 0.5, 2.5, 2.0, -1.0, 0.0])
figure, panels = plt.subplots(1, 3, figsize=(9.5, 2.9), sharey=True)
for axes, steps in zip(panels, (0, 2, 20)):
    now = z[None].copy()
    for _ in range(steps):
        now -= cross_entropy_backward(1.0, now, np.array([3]))
    dz = cross_entropy_backward(1.0, now, np.array([3]))[0]
    p = dz + np.eye(6)[3]
    axes.bar(np.arange(6) - 0.2, p, 0.4, color=PALETTE[0], label="p")
    axes.bar(np.arange(6) + 0.2, dz, 0.4, color=PALETTE[4], hatch="//", label="gradient dz")
    axes.set(xticks=range(6), xticklabels=words, title=f"after {steps} steps: loss {-np.log(p[3]):.2f}")
    assert abs(dz.sum()) < 1e-12
panels[0].set_ylabel("p and dz; dog is right")
panels[0].legend(loc="lower left", fontsize=8)
plt.show()

# %% [markdown]
# A step against the gradient lowers every wrong word's logit in proportion to its probability and raises the right one's. The
# entries of $dz$ always sum to zero. As $p_c \to 1$ the gradient fades: a model that is sure and right is left alone.
#
# ## 9. The whole model
#
# Everything is there. The weights are a dictionary with the names that Hugging Face uses, which are minisl's too. Two helpers
# split the width into heads and merge it again; being reshapes, each is the other's backward.

# %%
def split(x, heads):
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)  # (B, T, H d) to (B, H, T, d)


def merge(x):
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def block(x, w, c, angles):
    """One block; w: its weights by name. Returns the result, and all that a backward wants to know."""
    h = rms_norm(x, w["input_layernorm"])
    q = rope(split(linear(h, w["self_attn.q_proj"]), c.num_attention_heads), *angles)
    k = rope(split(linear(h, w["self_attn.k_proj"]), c.num_key_value_heads), *angles)
    v = split(linear(h, w["self_attn.v_proj"]), c.num_key_value_heads)
    o = merge(attention(q, k, v))
    middle = x + linear(o, w["self_attn.o_proj"])
    m = rms_norm(middle, w["post_attention_layernorm"])
    a, b = linear(m, w["mlp.gate_proj"]), linear(m, w["mlp.up_proj"])
    return middle + linear(swiglu(a, b), w["mlp.down_proj"]), (x, h, q, k, v, o, middle, m, a, b)

# %%
def of_block(w, i):
    start = f"model.layers.{i}."
    return {name[len(start):].removesuffix(".weight"): array for name, array in w.items() if name.startswith(start)}


def llama(ids, w, c):
    """Logits (B, T, V), what each block left, and the last block's x."""
    angles = angles_of(ids.shape[1], c.head_dim, c.rope_theta)
    x, kept = w["model.embed_tokens.weight"][ids], []
    for i in range(c.num_hidden_layers):
        x, left = block(x, of_block(w, i), c, angles)
        kept.append(left)
    return linear(rms_norm(x, w["model.norm.weight"]), w["lm_head.weight"]), kept, x


config = LlamaConfig(hidden_size=32, intermediate_size=88, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                     vocab_size=50)
model = Llama(config, rng, dtype="float64")
for p in model.parameters():  # away from the start, where gains are 1 and everything is small
    p.data = 5 * p.data + 0.1 * rng.standard_normal(p.shape)
weights = model.state_dict()
ids = rng.integers(0, config.vocab_size, (2, 17))
logits, kept, last = llama(ids[:, :-1], weights, config)
np.testing.assert_allclose(logits, model(ids[:, :-1]).data, rtol=1e-10, atol=1e-10)
print(f"{sum(p.size for p in weights.values()):,} weights in {len(weights)} arrays; logits {logits.shape} equal to minisl's")

# %% [markdown]
# ### Its backward pass
#
# The same lines from the last to the first. Three things to see: where a result was used twice ($h$ by $q$, $k$ and $v$; $m$ by
# gate and up; $x$ by the branch and the residual), gradients are added; a residual passes `dy` on unchanged; and all that is
# needed was either kept or is a weight.

# %%
def block_backward(dy, w, c, angles, left):
    """dx, and the gradient of each of the block's weights by name."""
    x, h, q, k, v, o, middle, m, a, b = left
    grads = {}

    def through(name, dy, x):
        dx, grads[name] = linear_backward(dy, x, w[name])
        return dx

    da, db = swiglu_backward(through("mlp.down_proj", dy, swiglu(a, b)), a, b)
    dm = through("mlp.gate_proj", da, m) + through("mlp.up_proj", db, m)
    dmiddle, grads["post_attention_layernorm"] = rms_norm_backward(dm, middle, w["post_attention_layernorm"])
    dmiddle = dmiddle + dy  # the residual

    do = split(through("self_attn.o_proj", dmiddle, o), c.num_attention_heads)
    dq, dk, dv = attention_backward(do, q, k, v)
    dh = (through("self_attn.q_proj", merge(rope_backward(dq, *angles)), h)
          + through("self_attn.k_proj", merge(rope_backward(dk, *angles)), h)
          + through("self_attn.v_proj", merge(dv), h))
    dx, grads["input_layernorm"] = rms_norm_backward(dh, x, w["input_layernorm"])
    return dx + dmiddle, grads

# %%
def llama_backward(ids, labels, w, c):
    """The mean loss, and the gradient of every weight."""
    logits, kept, x = llama(ids, w, c)
    angles, grads = angles_of(ids.shape[1], c.head_dim, c.rope_theta), {}
    dz, normed = cross_entropy_backward(1.0, logits, labels), rms_norm(x, w["model.norm.weight"])
    dx, grads["lm_head.weight"] = linear_backward(dz, normed, w["lm_head.weight"])
    dx, grads["model.norm.weight"] = rms_norm_backward(dx, x, w["model.norm.weight"])
    for i in reversed(range(c.num_hidden_layers)):
        dx, of_this = block_backward(dx, of_block(w, i), c, angles, kept[i])
        grads |= {f"model.layers.{i}.{name}.weight": g for name, g in of_this.items()}
    grads["model.embed_tokens.weight"] = embedding_backward(dx, w["model.embed_tokens.weight"], ids)
    return cross_entropy(logits, labels), grads


loss, grads = llama_backward(ids[:, :-1], ids[:, 1:], weights, config)
theirs = ops.cross_entropy(model(ids[:, :-1]), ids[:, 1:])
theirs.backward()
assert np.isclose(loss, theirs.item(), rtol=1e-12)
for name, p in model.named_parameters():
    assert grads[name].any()
    np.testing.assert_allclose(grads[name], p.grad, rtol=1e-8, atol=1e-10 * abs(p.grad).max(), err_msg=name)
print(len(grads), "gradients equal to minisl's, with no autograd in ours")

# %% [markdown]
# Two more judges. Differences for a few weights drawn from each array, through the whole model; and Hugging Face's
# `LlamaForCausalLM`, if it is here, with our weights in it (in float32, as its RMSNorm computes in float32 whatever it is
# given).

# %%
for name, array in weights.items():
    at = tuple(rng.integers(0, n) for n in array.shape)
    if name == "model.embed_tokens.weight":
        at = (ids[0, 0], at[1])  # a word that occurs
    ends = []
    for h in (1e-5, -1e-5):
        moved = array.copy()
        moved[at] += h
        ends.append(cross_entropy(llama(ids[:, :-1], weights | {name: moved}, config)[0], ids[:, 1:]))
    assert np.isclose((ends[0] - ends[1]) / 2e-5, grads[name][at], rtol=1e-4, atol=1e-8), name
print("every array's gradient as by differences")

# %%
try:
    import torch
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM
except ImportError:
    print("transformers or torch is not installed; to ask them: pip install -e '.[oracle]'")
else:
    other = LlamaForCausalLM(TheirConfig(**config.to_dict()))
    other.load_state_dict({name: torch.tensor(array, dtype=torch.float32) for name, array in weights.items()}, strict=True)
    their_logits = other(torch.tensor(ids[:, :-1])).logits
    torch.nn.functional.cross_entropy(their_logits.flatten(0, 1), torch.tensor(ids[:, 1:]).flatten()).backward()
    np.testing.assert_allclose(logits, their_logits.detach().numpy(), rtol=1e-4, atol=1e-4)
    for name, p in other.named_parameters():
        np.testing.assert_allclose(grads[name], p.grad.numpy(), rtol=1e-3, atol=1e-4 * abs(grads[name]).max(), err_msg=name)
    print("Hugging Face: the same logits and the same gradients")

# %% [markdown]
# ## 10. What a head looks at
#
# Where should the loss start? An untrained model with small weights gives all $V$ words about the same probability, so its loss
# is near $\ln V$. A first loss far above that is a bug, or too large a start.
#
# Our data: 12 random symbols, said three times. The first round cannot be guessed; its labels are $-100$. From then on the next
# symbol is the one that came 12 positions before it, so a token has to look back exactly 11 tokens. One block, one head:

# %% tags=["trained"]
period, vocabulary = 12, 32
draws = np.random.default_rng(0)


def rounds(count):
    ids = np.tile(draws.integers(0, vocabulary, (count, period)), 3)
    labels = ids[:, 1:].copy()
    labels[:, :period - 1] = -100
    return ids[:, :-1], labels


small = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=1, vocab_size=vocabulary)
copier = Llama(small, np.random.default_rng(0))
start = {name: array.copy() for name, array in copier.state_dict().items()}
optimizer, losses = AdamW(copier.named_parameters(), lr=0.005), []
for step in range(1, 201):
    optimizer.lr = learning_rate(step, peak=0.005, steps=200, warmup=20)
    inputs, labels = rounds(16)
    loss = ops.cross_entropy(copier(inputs), labels)
    loss.backward()
    optimizer.step()
    copier.zero_grad()
    losses.append(loss.item())
print(f"ln V = {np.log(vocabulary):.2f}, first loss {losses[0]:.2f}")

# %%
inputs, _ = rounds(1)
looks, at = {}, period - 1  # how far back
for name, w in (("before", start), ("after", copier.state_dict())):
    _, [(_, _, q, k, *_)], _ = llama(inputs, w, small)
    looks[name] = probabilities(q, k)[0, 0]  # (T, T)
late = np.arange(period, inputs.shape[1])
by_distance = {name: [p[late, late - s].mean() for s in range(period + 1)] for name, p in looks.items()}
assert abs(losses[0] - np.log(vocabulary)) < 0.1
assert losses[-1] < 0.1
assert by_distance["before"][at] < 0.1 < 0.8 < by_distance["after"][at]

figure, (curve, *panels, bars) = plt.subplots(1, 4, figsize=(11, 3), width_ratios=(1.1, 1, 1, 1.1))
curve.plot(losses, color=PALETTE[0])
curve.axhline(np.log(vocabulary), color="0.5", linewidth=1, linestyle=":")
curve.text(200, np.log(vocabulary) + 0.05, "ln V", color="0.4", ha="right")
curve.set(xlabel="update", ylabel="loss (nats per token)", title="Training", ylim=(0, 4))
for axes, (name, p) in zip(panels, looks.items()):
    axes.imshow(np.where(np.tri(len(p)), p, np.nan), vmin=0, vmax=1)
    axes.set(title=f"P {name} training", xlabel="key j", ylabel="query i" if name == "before" else None)
    axes.grid(visible=False)
    axes.set_facecolor("0.85")
for shift, (name, values), hatch in zip((-0.2, 0.2), by_distance.items(), ("//", "")):
    bars.bar(np.arange(period + 1) + shift, values, 0.4, label=name, hatch=hatch)
bars.set(xlabel="tokens back, i - j", ylabel="mean of P", title="Where it looks", xticks=range(0, period + 1, 2), ylim=(0, 1.05))
bars.legend(loc="upper left")
plt.show()

# %% [markdown]
# Before training each row of $P$ is nearly even: a token looks at everything it may see. After it there is a stripe parallel to
# the diagonal: from wherever a token stands, in the second and the third round, it looks 11 tokens back. (In the first round
# there is nothing there to look at, nothing is asked, and what the rows show means nothing.) No position was ever given to the
# model as a number: the stripe is RoPE's doing. The trained $W_q$ and $W_k$ make queries and keys whose inner product peaks at
# one distance (section 5). And the loss has fallen from $\ln V$ to nearly zero.
#
# More about this model: generating text with the keys and values kept ([page](../docs/generation.md)), weights from and to
# Hugging Face ([page](../docs/hf.md)), the same ops on all cores ([page](../docs/cpu.md)).
#
# What SLTrain changes in all of this is one line: the seven matrices of a block become $W = \frac{\alpha}{r} B A + S$. That is
# [03](03_sltrain.ipynb).
#
# ## Exercises
#
# **Exercise 1.** Add 100 to every position before RoPE's angles are computed. Predict what happens to the logits. And what if
# every position is doubled?
#
# <details><summary>Answer</summary>
#
# Scores depend on distances only, so adding a constant changes nothing (but rounding). Doubling changes all distances, and the
# logits with them.
#
# ```python
# def logits_at(positions):
#     global angles_of
#     usual = angles_of
#     def angles_of(T, d, theta):
#         angle = positions[:, None] * theta ** (-np.arange(0, d, 2) / d)
#         return np.cos(angle), np.sin(angle)
#     try:
#         return llama(ids[:, :-1], weights, config)[0]
#     finally:
#         angles_of = usual
#
# t = np.arange(16)
# print("shifted:", np.allclose(logits_at(t + 100), logits), "  doubled:", np.allclose(logits_at(2 * t), logits))
# ```
#
# </details>
#
# **Exercise 2.** Let the mask be off by one: a token may see its successor too (`np.tri(T, k=1)`). Does `agree` notice, if
# minisl's op is left out? Write a test that does, and uses gradients: which entries of the loss's gradient must be zero?
#
# <details><summary>Answer</summary>
#
# Differences agree with a backward derived for the same wrong mask. But the loss at position $i$ must not depend on the
# embeddings behind $i$: put $dO = 0$ everywhere but at position $i$; then $dK$ and $dV$ must vanish behind $i$.
#
# ```python
# q, k, v = (rng.standard_normal((1, 1, 6, 4)) for _ in range(3))
# do = np.zeros_like(q)
# do[:, :, 2] = rng.standard_normal(4)
#
# def seen():
#     _, dk, dv = attention_backward(do, q, k, v)
#     return np.flatnonzero(abs(dk).sum(axis=(0, 1, 3)) + abs(dv).sum(axis=(0, 1, 3)))
#
# print("token 2 sees", seen())
# right = probabilities
# def probabilities(q, k):
#     s = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
#     e = np.where(np.tri(s.shape[-1], k=1, dtype=bool), np.exp(s), 0)
#     return e / e.sum(-1, keepdims=True)
# print("with the wrong mask it sees", seen())
# measured, derived = differences(attention, [q, k, v], do), attention_backward(do, q, k, v)
# print("differences agree:", all(np.allclose(m, g, atol=1e-7) for m, g in zip(measured, derived)))
# probabilities = right
# ```
#
# </details>
#
# **Exercise 3.** Small models often tie the head to the embedding: one array $E$ is used as both. What is its gradient, in
# terms of the two that `llama_backward` returns? Check with `tie_word_embeddings=True`. And where does the gradient reach words
# that do not occur in the batch?
#
# <details><summary>Answer</summary>
#
# One array, two uses, so the gradients add up. The embedding's part is zero for words that do not occur; the head's part is
# not, since every word has a probability at every position.
#
# ```python
# tied = LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=20,
#                    tie_word_embeddings=True)
# one = Llama(tied, np.random.default_rng(5), dtype="float64")
# text = rng.integers(0, 10, (2, 8))  # words of 10 and above do not occur
# state = one.state_dict()
# _, g = llama_backward(text[:, :-1], text[:, 1:], state | {"lm_head.weight": state["model.embed_tokens.weight"]}, tied)
# ops.cross_entropy(one(text[:, :-1]), text[:, 1:]).backward()
# both = g["model.embed_tokens.weight"] + g["lm_head.weight"]
# print("the sum:", np.allclose(both, one.model.embed_tokens.weight.grad))
# print("words that do not occur:", g["model.embed_tokens.weight"][10:].any(), g["lm_head.weight"][10:].any())
# ```
#
# </details>
