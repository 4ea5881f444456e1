# %% [markdown]
# # Why a random support is enough
#
# SLTrain keeps a few percent of a matrix's entries, in places drawn by lot. Why not in the places that matter most? The paper's
# motivation study answers with a trained model: take it apart, keep a low-rank part, and try both. Here is that study on a model
# that trains in seconds, and then three measurements of why the lot does so well.
#
# After this notebook you can
#
# - state the Eckart-Young theorem, prove it in a few lines, and check it on a trained matrix;
# - say what a trained matrix leaves over after its best low-rank approximation, and why one cannot pick much from that;
# - redo the motivation table by hand and read it without fooling yourself;
# - explain what training a support does that copying its entries does not;
# - name the cases in which a random support is *not* enough.
#
# You need [03](03_sltrain.ipynb) and the singular value decomposition. It runs for a minute or two.

# %%
import copy
import os
from statistics import NormalDist

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before NumPy: matrices as small as these are slower on two
import numpy as np

from minisl.analysis import full_rank, parts, runs, spectrum, supports
from minisl.analysis.job import matrices, read_text, train, validation_loss
from minisl.autograd import no_grad
from minisl.data import Batches
from minisl.plot import PALETTE, notebook_style
from minisl.sliders import Sliders

plt = notebook_style()

# %% [markdown]
# ## A dense model to take apart
#
# One block, width $d = 128$, bytes of the documentation inside your Python, every matrix dense. `start` is the same model before
# its first update: we want to know later what training added. Losses are nats per byte on held-out text.

# %% tags=["trained"]
WIDE = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 1, "num_attention_heads": 4}
text = read_text(held_out=16_385)
start = train(text, "full", steps=0, shape=WIDE).model
dense = train(text, "full", steps=500, lr=2e-3, shape=WIDE, checks=1).model
full = validation_loss(dense, text)
print(f"a uniform guess {np.log(text.vocab_size):.2f}, this model {full:.2f} nats per byte")

# %% [markdown]
# ## The best matrix of rank r
#
# $W$ is (out, in). Its singular value decomposition is $W = \sum_i \sigma_i u_i v_i^\top$ with $\sigma_1 \ge \sigma_2 \ge \dots$
# and orthonormal $u_i$ and $v_i$. Cut the sum after $r$ terms and call it $W_r$.
#
# Two norms measure distance: $\|M\|_F^2 = \sum_{ij} M_{ij}^2 = \sum_i \sigma_i^2$, and $\|M\|_2 = \sigma_1$, the largest factor
# by which $M$ stretches a vector.
#
# **Theorem (Eckart and Young).** No matrix $M$ of rank $r$ at most is nearer to $W$ than $W_r$:
#
# $$\|W - M\|_F^2 \;\ge\; \|W - W_r\|_F^2 = \sum_{i > r} \sigma_i^2 , \qquad \|W - M\|_2 \;\ge\; \|W - W_r\|_2 = \sigma_{r+1}.$$
#
# *Proof.* Weyl's inequality says $\sigma_{i+j-1}(X + Y) \le \sigma_i(X) + \sigma_j(Y)$. Put $X = W - M$, $Y = M$ and
# $j = r + 1$, where $\sigma_{r+1}(M) = 0$: then $\sigma_{i+r}(W) \le \sigma_i(W - M)$. With $i = 1$ that is the second claim;
# squared and summed over $i$ it is the first. $\square$
#
# And why Weyl? $K = X_{i-1} + Y_{j-1}$ has rank $i + j - 2$ at most, so among the mixtures of the first $i + j - 1$ right
# singular vectors of $X + Y$ there is a unit vector $z$ with $Kz = 0$. On these mixtures $X + Y$ stretches by $\sigma_{i+j-1}$
# at least: $\sigma_{i+j-1}(X + Y) \le |(X + Y)z| = |(X - X_{i-1})z + (Y - Y_{j-1})z| \le \sigma_i(X) + \sigma_j(Y)$.

# %%
layers = {path.rpartition(".")[2]: layer for path, layer in matrices(dense)}
W = layers["o_proj"].weight.data.astype(np.float64)  # (128, 128), the matrix the paper shows
U, sigma, Vt = np.linalg.svd(W, full_matrices=False)


def best(r):
    return U[:, :r] * sigma[:r] @ Vt[:r]


for r in range(1, 128):
    rest = W - best(r)
    np.testing.assert_allclose((rest**2).sum(), (sigma[r:] ** 2).sum(), rtol=1e-8)
    np.testing.assert_allclose(np.linalg.norm(rest, 2), sigma[r], rtol=1e-8)

B, A = spectrum.best_low_rank(W, 16)  # the package's: the same, as factors (128, 16) and (16, 128)
np.testing.assert_allclose(B @ A, best(16), atol=1e-12)

# %% [markdown]
# Now rivals. `random` projects $W$ on $r$ random directions. `twice` looks for $A$ given $B$ and $B$ given $A$, each by least
# squares, two rounds from a random start. Neither may get below the theorem's line, nor any singular value break Weyl's bound.

# %%
rng = np.random.default_rng(0)
ranks = np.array([1, 2, 4, 8, 16, 24, 32, 48, 64, 96])


def rivals(r):
    B = rng.standard_normal((128, r))
    random = np.linalg.qr(B)[0]
    random = random @ (random.T @ W)
    for _ in range(2):
        A = np.linalg.lstsq(B, W, rcond=None)[0]
        B = np.linalg.lstsq(A.T, W.T, rcond=None)[0].T
    return random, B @ A


squares = (sigma**2).sum()
left = {"random": [], "twice": []}
for r in ranks:
    for name, M in zip(left, rivals(r)):
        tail = np.linalg.svd(W - M, compute_uv=False)
        assert (sigma[r:] <= tail[: 128 - r] + 1e-9).all()  # Weyl
        left[name].append((tail**2).sum() / squares)
bound = 1 - np.cumsum(sigma**2)[ranks - 1] / squares

# %%
figure, (spectra, error) = plt.subplots(1, 2, figsize=(8, 3.2))
before = dict(matrices(start))["model.layers.0.self_attn.o_proj"].weight.data
spectra.plot(range(1, 129), sigma, label="after training")
spectra.plot(range(1, 129), np.linalg.svd(before, compute_uv=False), label="at the start")
spectra.axhline(0.02 * 2 * 128**0.5, color=PALETTE[7], linestyle=":", label="edge of pure noise")
spectra.set(xlabel="index of the singular value", ylabel="singular value", title="o_proj: spectrum", ylim=(0, None))
spectra.legend()
for (name, values), marker in zip(left.items(), "s^"):
    error.plot(ranks, values, marker=marker, label={"random": "random directions", "twice": "two rounds of least squares"}[name])
error.plot(ranks, bound, "ko", label="Eckart-Young")
error.set(xlabel="rank r", ylabel="share of |W|² left over", title="Nobody gets below the bound", xscale="log",
          xticks=(1, 2, 4, 8, 16, 32, 64), xticklabels=(1, 2, 4, 8, 16, 32, 64))
error.minorticks_off()
error.legend(fontsize=8)
plt.show()

# %% [markdown]
# Left: a head of large values, then a long tail that never breaks off. So any small $r$ throws something away.
#
# The dotted line says how much of that tail training wrote. The start is $N(0, s^2)$ noise with $s = 0.02$, and the largest
# singular value of such a matrix is about $s(\sqrt{\text{out}} + \sqrt{\text{in}})$. What lies above that line, training put
# there. Much of what lies below may be noise of the start that nobody needed to move. A model trained for days has far less of
# it: keep that in mind for everything below.

# %% tags=["trained"]
RANK, DELTA = 16, 0.05
edge = 0.02 * 2 * 128**0.5
print(f"edge {edge:.2f}, largest at the start {np.linalg.norm(before, 2):.2f}, largest now {sigma[0]:.2f}")
kept = {kind: (spectrum.spectrum(layer.weight.data, RANK).sigma ** 2) for kind, layer in layers.items()}
kept = {kind: squares[:RANK].sum() / squares.sum() for kind, squares in kept.items()}
print(f"the first {RANK} of 128 singular values hold this much of the squares:")
print("  ".join(f"{kind.removesuffix('_proj')} {share:.2f}" for kind, share in kept.items()))
assert max(kept.values()) == max(kept["q_proj"], kept["k_proj"]) > 0.7

# %% [markdown]
# Queries and keys are the nearest to low rank. `o` and `up` are far from it: at rank 16 about half of their squares are missing.
#
# ## What is left over
#
# Call the rest $R = W - W_r$. The paper's second observation is about its entries: small everywhere, large nowhere.

# %% tags=["trained"]
PUBLISHED_SHARE, PUBLISHED_SIZE = 0.97, 0.04  # of the residual's entries of a trained W_o are below this; recalled
R = W - best(RANK)
size = np.sort(np.abs(R), axis=None)
limit = size[int(0.97 * R.size)]
print(f"97 % of |R| below {limit:.3f}; the largest of |W| is {np.abs(W).max():.1f}")

figure, (whole, rest, histogram) = plt.subplots(1, 3, figsize=(10, 3.2), width_ratios=(1, 1, 1.2))
for axes, matrix, name in ((whole, W, "|W|"), (rest, R, f"|R| = |W - best of rank {RANK}|")):
    image = axes.imshow(np.abs(matrix), vmin=0, vmax=np.quantile(np.abs(W), 0.99), interpolation="nearest")
    axes.set(xlabel="input", ylabel="output", title=name)
    axes.grid(False)
figure.colorbar(image, ax=[whole, rest], label="magnitude", shrink=0.8)
histogram.hist(R.ravel(), 80, density=True, color=PALETTE[5], label="entries of R")
x = np.linspace(-0.11, 0.11, 200)
histogram.plot(x, np.exp(-(x**2) / 2 / R.var()) / np.sqrt(2 * np.pi * R.var()), "k--", label="normal, same variance")
for end in (-limit, limit):
    histogram.axvline(end, ymax=0.6, color=PALETTE[1], linestyle=":", label=f"97 % within {limit:.3f}" if end > 0 else None)
histogram.set(xlabel="entry of R", ylabel="density", title="No outliers", ylim=(0, 26))
histogram.legend(fontsize=8)
plt.show()

# %% [markdown]
# The paper's, recalled: 97 % below 0.04. The picture of $|W|$ has faint stripes (rows and columns that matter), the picture of
# $|R|$ is an even field: the low-rank part took the stripes. And the histogram is close to a normal distribution.
#
# Suppose it is exactly that; its variance does not matter to shares, so let it be 1. We may keep a fraction $\delta$ of the
# entries. How much of $\|R\|_F^2$ do they hold?
#
# - Drawn by lot: each entry stays with probability $\delta$, so $\delta$ of it.
# - The largest: those beyond $z$, where $P(|x| > z) = \delta$. With the normal density $\varphi$ and integration by parts
#   ($x\varphi(x)$ is $-\varphi'(x)$),
#
# $$\int_{|x| > z} x^2 \varphi(x)\,dx = 2\Big[z\varphi(z) + \int_z^\infty \varphi(x)\,dx\Big] = 2 z\varphi(z) + \delta .$$

# %% tags=["trained"]
normal = NormalDist()


def held_by_largest(delta):
    z = normal.inv_cdf(1 - delta / 2)
    return 2 * z * normal.pdf(z) + delta


def share_of_largest(R, delta):
    squares = np.sort(R**2, axis=None)[::-1]
    return squares[: int(delta * R.size)].sum() / squares.sum()


residuals = {kind: spectrum.spectrum(layer.weight.data, RANK).residual for kind, layer in layers.items()}
shares = [share_of_largest(rest, DELTA) for rest in residuals.values()]
print(f"the largest 5 % hold, normal: {held_by_largest(DELTA):.3f}; the seven residuals: {min(shares):.2f} to {max(shares):.2f}")
assert max(shares) < 0.3  # so 70 % and more stay behind

# %% [markdown]
# Seven matrices, and all of them 0.28 to 0.29 where a normal distribution has 0.279. **By the sizes of its entries, what is left
# of a matrix looks like noise.** The largest 5 % of them still leave at least seven tenths of it behind.
#
# Try other ranks and densities. Left: the singular values that remain of $W$ after $L = W_r$, and after $L$ and the chosen
# entries of $R$. Right: what share of $\|W\|_F^2$ is missing.

# %%
order = np.argsort(-np.abs(rng.standard_normal(W.size)))  # one random order of all places, for every position of the sliders


def leftover(r, delta):
    R, k = W - best(r), int(delta * W.size)
    left = {"L alone": R, "L + random": R.copy(), "L + largest": R.copy()}
    left["L + random"].flat[order[:k]] = 0
    left["L + largest"].flat[np.argsort(-np.abs(R), axis=None)[:k]] = 0
    return left


def draw(r, delta):
    figure, (spectra, bars) = plt.subplots(1, 2, figsize=(7.4, 2.9), width_ratios=(1.6, 1))
    left = leftover(r, delta)
    spectra.plot(range(1, 129), sigma, color=PALETTE[7], label="W")
    for (name, rest), colour, line in zip(left.items(), PALETTE[6::-3], ("-", "--", ":")):
        spectra.plot(range(1, 129), np.linalg.svd(rest, compute_uv=False), color=colour, linestyle=line, label=f"after {name}")
    spectra.set(xlabel="index", ylabel="singular value left", ylim=(0, 0.85), title=f"r = {r}, delta = {delta:g}")
    spectra.legend(fontsize=8)
    missing = [(rest**2).sum() / (W**2).sum() for rest in left.values()]
    drawn = bars.barh(list(left), missing, color=PALETTE[5], hatch=["", "//", ".."], edgecolor="white")
    bars.bar_label(drawn, fmt="%.2f", padding=2)
    bars.set(xlabel="share of |W|² missing", xlim=(0, 1.1))
    bars.invert_yaxis()
    return figure


Sliders(draw, {"r": RANK, "delta": DELTA}, dpi=80, r=[2, 8, 16, 32, 64], delta=[0.01, 0.05, 0.1, 0.2])

# %% [markdown]
# Things to find with it: random entries hardly change the curve. The largest press it down, all of it, and lift only its very
# end: they have no direction. And per number kept (positions not counted), large entries are *cheaper* than rank, in this norm
# and for this matrix:

# %% tags=["trained"]
shares = {(r, delta, name): (rest**2).sum() / (W**2).sum()
          for r, delta in ((8, 0.05), (16, 0.05)) for name, rest in leftover(r, delta).items()}
print(f"r 8 and the largest 5 % ({8 * 256 + int(0.05 * W.size)} numbers): {shares[8, 0.05, 'L + largest']:.2f} of |W|² missing")
print(f"r 16 alone ({16 * 256} numbers): {shares[16, 0.05, 'L alone']:.2f}")

# %% [markdown]
# So copying is not useless. It is copying *random* entries that is. Hold that against what comes now.
#
# ## The table
#
# Now the model, not the matrix. Replace every matrix by $L = W_r$, by $L$ and the largest $\delta$ of the residual's entries,
# by $L$ and random ones, and look at the loss. By hand that is a mask:

# %% tags=["trained"]


def with_matrices(change):
    """A copy of the dense model, each matrix W (out, in) replaced by change(path, W)."""
    model = copy.deepcopy(dense)
    for path, layer in matrices(model):
        layer.weight.data = change(path, layer.weight.data)
    return model


def low_rank_and(choose):
    def change(path, W):
        B, A = spectrum.best_low_rank(W, RANK)
        new = B @ A
        places = choose(path, W.shape, int(DELTA * W.size)) if choose else []
        new.flat[places] = W.flat[places]  # L + (W - L) there
        return new

    return with_matrices(change)


def largest(path, shape, nnz):
    W = dict(matrices(dense))[path].weight.data
    B, A = spectrum.best_low_rank(W, RANK)
    return np.argsort(-np.abs(W - B @ A), axis=None)[:nnz]


def by_lot(path, shape, nnz):
    return np.random.default_rng(len(path)).choice(shape[0] * shape[1], nnz, replace=False)


copied = {"L": None, "largest": largest, "random": by_lot}
losses = {"full": full} | {name: validation_loss(low_rank_and(choose), text) for name, choose in copied.items()}
print("  ".join(f"{name} {loss:.2f}" for name, loss in losses.items()))
assert losses["full"] < losses["largest"] < losses["random"] < losses["L"]

# %% [markdown]
# Then training. Freeze $L$, embedding, head and gains; let the values of $S$ start at zero and train only them, a hundred
# updates or so, on either support. `supports.from_dense` sets up such a model: an SLTrain model whose factors are those of $L$.
# (That the paper freezes the low-rank part is our reading of it.)

# %% tags=["trained"]
settings = {"rank": RANK, "alpha": float(RANK), "delta": DELTA, "shape": WIDE}
choices = {"trained largest": supports.largest_of(dense, RANK), "trained random": supports.at_random(0)}
kept = train(text, steps=0, start=supports.from_dense(dense, choices["trained largest"], keep=True), **settings).model
np.testing.assert_allclose(validation_loss(kept, text), losses["largest"], rtol=1e-4)  # the mask above, and the package's

for name, choose in choices.items():
    job = train(text, steps=120, lr=1e-2, checks=1, start=supports.from_dense(dense, choose, keep=False), **settings)
    losses[name] = job.val_loss
print("  ".join(f"{name} {loss:.2f}" for name, loss in losses.items()))
trained = {name.split()[1]: losses[name] for name in choices}
assert abs(trained["random"] - trained["largest"]) < (losses["random"] - losses["largest"]) / 3
assert max(trained.values()) < losses["largest"]

# %% [markdown]
# Beside the paper's (recalled, not looked up again; perplexity per token of its smallest model, with $r = 128$). Perplexity is
# $e^{\text{loss}}$, so take its logarithm before you compare gaps.

# %%
PUBLISHED = {"full": 34.06, "L": 36633, "largest": 5294, "random": 29121, "trained largest": 53.75, "trained random": 51.98}
published = {name: np.log(perplexity) for name, perplexity in PUBLISHED.items()}
print("paper, recalled, nats per token:", "  ".join(f"{name} {loss:.2f}" for name, loss in published.items()))

figure, axes = plt.subplots(figsize=(7.2, 3.2))
names = list(losses)[2:]
for k, (found, label, hatch) in enumerate(((published, "paper, 60M (recalled)", ""), (losses, "here", "///"))):
    repaired = [100 * (found["L"] - found[name]) / (found["L"] - found["full"]) for name in names]
    bars = axes.barh(np.arange(4) + 0.4 * k - 0.2, repaired, 0.36, color=PALETTE[k], hatch=hatch, edgecolor="white", label=label)
    axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=9)
rows = ["L + largest, copied", "L + random, copied", "L + S trained on largest", "L + S trained on random"]
axes.set(yticks=range(4), yticklabels=rows, xlabel="share of L's damage repaired (%)", xlim=(0, 110),
         title="Copied entries: the largest win. Trained: nearly a draw")
axes.invert_yaxis()
axes.legend()
plt.show()

# %% [markdown]
# The same pattern in both. $L$ alone breaks the model. Copying random entries of $R$ repairs next to nothing,
# copying the largest repairs some. Training $S$ repairs most, and now the two supports are nearly equal.
#
# What is not the same. The paper's damage is 7 nats per *token*, ours less than 1 per *byte*; besides the unit, one block has
# less to break than a stack of eight. In the paper the random support comes out slightly ahead, here slightly behind: the theory
# below does not say which, and neither does one run.
#
# ## Why: three measurements
#
# **1. The slope does not know where R is large.** Put the model at $W = L$ and ask which entries training would like to move:
# those with a large gradient $G = \partial\ell/\partial W$. A gradient step on the values $v$ of a support $\Omega$ lowers the
# loss, to first order, by $\eta \sum_{\Omega} G_{ij}^2$. By lot a support gets the share $\delta$ of $\|G\|_F^2$. And the
# largest entries of $R$?

# %% tags=["trained"]
at_L = low_rank_and(None)
batches = Batches(text.train, 16, 64, seed=7)
for k in range(4):
    at_L.loss(*batches(k), 1 / (4 * 16 * 64)).backward()

of_R, of_G = [], []
for path, layer in matrices(at_L):
    R, G = dict(matrices(dense))[path].weight.data - layer.weight.data, layer.weight.grad
    places = largest(path, R.shape, int(DELTA * R.size))
    of_R.append((R.flat[places] ** 2).sum() / (R**2).sum())
    of_G.append((G.flat[places] ** 2).sum() / (G**2).sum())
of_R, of_G = np.mean(of_R), np.mean(of_G)
print(f"the largest {DELTA:.0%} of R hold, mean of seven matrices: {of_R:.2f} of |R|²")
assert 0.045 < of_G < 0.075  # of |G|²

# %% [markdown]
# They hold 0.29 of the residual, but between 0.045 and 0.075 of the gradient, where a lot gets 0.05. Large in $R$ means "far
# from where the dense model ended", not "important now". The loss wants *some* change of $W$ that makes the outputs right, and
# there are far more such changes than the one the dense run happened to find.
#
# **2. Trained values are not copies.** One output $y_o = \sum_i R_{oi} x_i$ of the residual's branch. Copying keeps $R_{oi}$ on
# the support. Better: choose the values $v$ that make the *output* right for the inputs that really come. With
# $C = \mathbb{E}[x x^\top]$ (in, in) and $\Omega$ the support in row $o$,
#
# $$\min_v \mathbb{E}\Big(\sum_i R_{oi}x_i - \sum_{i \in \Omega} v_i x_i\Big)^2
# \quad\Longrightarrow\quad C_{\Omega\Omega}\, v = (C R_o)_\Omega .$$
#
# Were $C$ diagonal (uncorrelated inputs of mean 0), then $v = R_{o\Omega}$: copying would be best. Inputs of a trained model are
# correlated, and an entry that is kept can speak for neighbours that are not. `parts.listening` notes what goes into each matrix.

# %% tags=["trained"]
ids = text.train[:4096].astype(int).reshape(-1, 64)
with parts.listening(dense) as inputs, no_grad():
    dense(ids)


def fitted(R, C, mask):
    """S (out, in) on the mask, each row the least-squares one."""
    S = np.zeros_like(R)
    for row, free, wanted in zip(S, mask, R @ C):
        i = np.flatnonzero(free)
        row[i] = np.linalg.solve(C[np.ix_(i, i)] + 1e-9 * np.eye(len(i)), wanted[i])
    return S


def squared_output(M, C):
    """E |M x|^2"""
    return ((M @ C) * M).sum()


unrepaired = {("copied", "largest"): [], ("copied", "random"): [], ("fitted", "largest"): [], ("fitted", "random"): []}
for path, _ in matrices(dense):
    R, X = residuals[path.rpartition(".")[2]], inputs[path]
    C = X.T @ X / len(X)
    for name, choose in (("largest", largest), ("random", by_lot)):
        mask = np.zeros(R.shape, bool)
        mask.flat[choose(path, R.shape, int(DELTA * R.size))] = True
        for how, S in (("copied", R * mask), ("fitted", fitted(R, C, mask))):
            unrepaired[how, name].append(squared_output(R - S, C) / squared_output(R, C))
mean = {key: np.mean(values) for key, values in unrepaired.items()}
print("output error left, mean of seven matrices:", ", ".join(f"{how} {name} {value:.2f}" for (how, name), value in mean.items()))
assert mean["fitted", "largest"] < mean["copied", "largest"] < mean["fitted", "random"] + 0.1 < mean["copied", "random"]

# %% [markdown]
# Fitting each matrix by itself takes the random support from next to nothing to nearly what copying the largest achieves. But
# the largest gain too, and stay ahead. So this is only part of the answer. In the table above the gap nearly closes, and what is
# new there is what a matrix by itself cannot do: the loss does not ask for the old outputs back, and seven matrices are trained
# together, each making up for the others.
#
# **3. A lot misses nobody.** Whatever the values, a row of $S$ without an entry leaves its output to $L$ alone, and a column
# without an entry its input. A row of $n$ places is empty with probability $(1-\delta)^n \approx e^{-\delta n}$, so of $n$ rows
# about $n e^{-\delta n}$ are: below one as soon as $\delta > \ln(n)/n$.

# %%
for n, delta in ((128, 0.02), (128, 0.05), (512, 0.03), (4096, 0.05)):
    print(f"n {n:4d}, delta {delta:.2f}: {delta * n:5.1f} entries a row, {n * (1 - delta) ** n:8.1e} rows empty; "
          f"ln(n)/n = {np.log(n) / n:.4f}")

lots = [by_lot("x" * seed, (128, 128), int(0.02 * 128**2)) for seed in range(200)]
empty = np.mean([128 - len(np.unique(places // 128)) for places in lots])
print(f"counted in 200 draws with n 128, delta 0.02: {empty:.1f} empty rows")
np.testing.assert_allclose(empty, 128 * 0.98**128, rtol=0.1)

# %% [markdown]
# The paper's sizes (the last two lines) are far on the safe side. In a random support, covered rows and columns are nearly all
# it takes for a *perfect matching*: $n$ entries, no two in one row or column. Picture rows and columns as two teams, entries as
# allowed pairs: everyone finds a partner. With a perfect matching $L + S$ has full rank for almost all values (the proposition
# of [03](03_sltrain.ipynb)), and without one $\operatorname{rank}(L + S) = \min(n, r + \text{matching})$, again for almost all.
# The lot spreads its entries evenly. The largest entries are not spread like that:

# %% tags=["trained"]
figure, (rows, small) = plt.subplots(1, 2, figsize=(8, 3.2), width_ratios=(1.5, 1))
path, layer = next((p, one) for p, one in matrices(dense) if p.endswith("gate_proj"))
shape, nnz = layer.weight.shape, int(DELTA * layer.weight.size)
for name, choose, colour, line in (("random", by_lot, PALETTE[0], "-"), ("largest of R", largest, PALETTE[1], "--")):
    counts = np.bincount(choose(path, shape, nnz) // shape[1], minlength=shape[0])
    rows.plot(np.sort(counts)[::-1], color=colour, linestyle=line, label=f"{name}: {(counts == 0).sum()} empty")
rows.set(xlabel="row of gate_proj, the fullest first", ylabel="entries of S in the row", title="Who gets entries")
rows.legend()

places = np.array([1, 8, 12, 20, 25, 27, 34, 35])  # a support
grid = np.zeros((6, 6))
grid.flat[places] = 1
small.imshow(grid, cmap="Greys", vmax=2)
small.set(title=f"6 x 6: matching of {full_rank.matching(places, 6)}, not 6", xlabel="column", ylabel="row")
small.grid(False)
plt.show()

for choose in (by_lot, largest):
    for path, layer in matrices(dense):
        n, m = layer.weight.shape
        if n == m:  # q, k, v, o
            places = choose(path, (n, m), int(DELTA * n * m))
            S = np.zeros((n, m))
            S.flat[places] = rng.standard_normal(len(places))
            L = rng.standard_normal((n, RANK)) @ rng.standard_normal((RANK, n))
            assert np.linalg.matrix_rank(S) == full_rank.matching(places, n) >= n - RANK
            assert np.linalg.matrix_rank(L + S) == n
print("q, k, v and o: L + S has full rank on both supports")

# %% [markdown]
# The small picture: no row and no column is empty, but rows 1 and 3 have only column 2 between them, so one of them finds no
# partner. (Hall's theorem: a perfect matching exists exactly when any $k$ rows have entries in at least $k$ columns.)
#
# On the real matrices either support gives full rank, since $L$ makes up for $r$ missing partners. So rank does not *separate*
# the two supports. It only says that the lot is safe. That random is as good as largest is what the table and the first
# measurement say.
#
# ## Does the seed matter?
#
# If places do not matter, different draws must train alike. Small models from scratch: three supports, the same start and
# batches. But how near is near? The control is the other way round: one support, three starts and orders of the batches.

# %% tags=["trained"]
SMALL = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 1, "num_attention_heads": 4}
job = {"steps": 300, "batch": 8, "lr": 2e-3, "shape": SMALL, "checks": 5, "rank": 16, "alpha": 16.0, "delta": 0.1}
draws = runs.support_runs(text, {k: supports.at_random(k) for k in range(3)}, **job)
same = supports.with_support(supports.at_random(0))
starts = {0: draws[0]} | {k: train(text, start=same, seed=k, **job) for k in (1, 2)}
ends = [one.val_loss for one in (*draws.values(), starts[1], starts[2])]
noise = max(runs.spread(draws)[-1], runs.spread(starts)[-1])
print(f"mean at the end {np.mean(ends):.2f} nats per byte")
assert noise < 0.2

figure, grid = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True)
for axes, found, title in ((grid[0], draws, "three supports, one start"), (grid[1], starts, "one support, three starts")):
    for one, marker in zip(found.values(), "os^"):
        axes.plot(one.checked, one.val_losses, marker=marker, markersize=4)
    axes.set(xlabel="updates", title=f"{title}: {runs.spread(found)[-1]:.2f} apart")
grid[0].set(ylabel="validation loss (nats per byte)")
plt.show()

# %% [markdown]
# Changing the support moves the end about as much as changing the start does: nothing beyond the noise that every run has. (The
# paper's figure has its curves nearly on one another.) The other lesson is about noise: with one seed each, no difference below
# a tenth of a nat means anything in runs as short as these.
#
# ## Rank or density?
#
# One matrix (out, in) of SLTrain has $r(\text{out} + \text{in}) + \delta\,\text{out}\,\text{in}$ parameters. For a square one,
# $n \times n$, a unit of rank costs as much as $2/n$ of density. So: the same number of parameters, from nearly all in $S$ to
# none in $S$.

# %%
h, f = SMALL["hidden_size"], SMALL["intermediate_size"]
shapes = 4 * [(h, h)] + 2 * [(f, h)] + [(h, f)]
unit = sum(o + i for o, i in shapes)  # parameters of one unit of rank
places = sum(o * i for o, i in shapes)
budget = 16 * unit + 0.1 * places
pairs = [(r, (budget - r * unit) / places) for r in (4, 8, 16)]
print("r, delta:", ", ".join(f"({r}, {delta:.3f})" for r, delta in pairs), f"and ({budget / unit:.0f}, 0)")

# %% tags=["trained"]
once = job | {"checks": 1}
equal = [draws[0] if r == 16 else train(text, start=same, **(once | {"rank": r, "alpha": float(r), "delta": delta}))
         for r, delta in pairs]
low_rank = train(text, "low_rank", **(once | {"rank": 20, "alpha": 20.0, "delta": 0.1}))
counts = [one.model.num_parameters() for one in (*equal, low_rank)]
assert max(counts) - min(counts) < 0.01 * min(counts)
assert low_rank.val_loss > max(one.val_loss for one in equal[1:])  # r = 8 and 16

figure, axes = plt.subplots()
x = [r for r, _ in pairs] + [20]
y = [one.val_loss for one in (*equal, low_rank)]
axes.errorbar(x, y, noise / 2, fmt="o", capsize=4, label="one run each; bar: the noise above")
for r, delta in [*pairs, (20, 0)]:
    axes.annotate(f"delta {delta:.2f}", (r, 0.95), xycoords=("data", "axes fraction"), ha="center", fontsize=8)
axes.set(xlabel="rank r, delta taking the rest of the budget", ylabel="validation loss (nats per byte)", xticks=x,
         title="The same number of parameters, spent in four ways", xlim=(2, 22), ylim=(min(y) - noise, max(y) + 1.5 * noise))
axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.9))
plt.show()

# %% [markdown]
# How the budget is split matters little over a wide range. Without $S$ the loss is higher than at $r = 8$ and $r = 16$, by
# about the noise. (It also starts differently, both factors drawn, since with $B = 0$ and no $S$ nothing would ever move.)
#
# The paper's ablation (recalled) is not at equal parameters, but the numbers of parameters are known exactly, and so is the price
# of a point of perplexity:

# %%
ABLATION = {(96, 0.03): 34.80, (128, 0.01): 34.81, (128, 0.03): 34.15, (128, 0.05): 33.41, (160, 0.03): 33.20}  # recalled; 60M


def parameters(r, delta, h=512, f=1376, blocks=8, vocabulary=32000):
    inside = r * (11 * h + 3 * f) + 4 * int(delta * h * h) + 3 * int(delta * h * f)
    return 2 * vocabulary * h + (2 * blocks + 1) * h + blocks * inside


assert parameters(128, 0.03) == 43_529_832
for change, a, b in (("more density", (128, 0.01), (128, 0.05)), ("more rank", (96, 0.03), (160, 0.03))):
    more = (parameters(*b) - parameters(*a)) / 1e6
    gain = ABLATION[a] - ABLATION[b]
    print(f"{change}: {more:.2f} million parameters for {gain:.2f} of perplexity, {gain / more:.2f} a million")

# %% [markdown]
# Per parameter, entries of $S$ were worth more than four times as much as rank there, 1.38 against 0.32 if the recalled numbers
# are right. Per byte less so: an entry brings its index along ([06](06_memory.ipynb)), and per millisecond less
# still ([05](05_kernels.ipynb)). These are reasons to stay at a few percent.
#
# ## When a random support is not enough
#
# The argument above has conditions. Take them away one by one.
#
# - **$S$ is not trained.** Then only the copied squares count, and a lot of 5 % is worth 5 %. After-the-fact compression
#   (prune, quantise) is that case: there choose the largest.
# - **The rest is not noise.** Let a few entries be outliers, as in some activations and weights of large models:

# %%
noise_only = rng.standard_normal((512, 512))
spiked = noise_only * np.where(rng.random((512, 512)) < 0.01, 10, 1)
for name, matrix in (("noise", noise_only), ("1 % of the entries ten times as large", spiked)):
    print(f"{name}: the largest 5 % hold {share_of_largest(matrix, 0.05):.2f} of the squares")

# %% [markdown]
#   A lot catches 5 % of either; knowing where the outliers are is worth 0.62 of the second. Whole rows or columns that stand
#   out are the same story: LOST (in [07](07_neighbourhood.ipynb)) gives them to a structured part.
# - **The inputs are not correlated.** Then no value can speak for its neighbours, and fitting is copying (measurement 2).
# - **Too few entries.** Below about $\ln(n)/n$ rows go empty. And at the start of training, when $BA = 0$ and $W = S$, they let
#   no signal through. Small matrices feel it first: a few percent of 64 columns are two or three entries.
# - **Speed.** A random pattern is the worst one for memory. "Enough" here means loss, not time.
#
# What this notebook cannot show: a model trained for seconds still carries its start's noise, so its residual is probably more
# normal than that of a model trained for days. And our gaps between runs are as large as the effects the paper's table is about.
#
# ## Exercises
#
# **Exercise 1.** The share of the squares that the largest 5 % hold depends on the shape of the distribution only. Predict the
# order for a uniform, a normal and a Laplace distribution, then compute. For the uniform one you can do it in your head.
#
# <details><summary>Answer</summary>
#
# The heavier the tail, the more the largest hold. Uniform on $[-1, 1]$: the largest $\delta$ are those with $|x| > 1 - \delta$,
# and $\int x^2$ over them is $1 - (1-\delta)^3$ of the whole, 0.143 for $\delta = 0.05$.
#
# ```python
# draw = np.random.default_rng(1)
# found = [share_of_largest(x, 0.05) for x in (draw.uniform(-1, 1, 10**6), draw.standard_normal(10**6), draw.laplace(size=10**6))]
# print("uniform {:.3f}, normal {:.3f}, Laplace {:.3f}".format(*found), f"; uniform, by formula {1 - 0.95**3:.3f}")
# assert found == sorted(found)
# ```
#
# </details>
#
# **Exercise 2.** Put all entries of $S$ into the first columns of `o_proj`, instead of anywhere. With $\delta = 0.05$ that
# fills 6 columns and part of a seventh. Predict the matching, the rank of $S$ and the rank of $L + S$ with $r = 16$.
#
# <details><summary>Answer</summary>
#
# Every entry needs a column of its own, so the matching is 7, and so is the rank of $S$. $L + S$ has rank $16 + 7 = 23$ of 128:
# more parameters in $S$ would not help, other places would.
#
# ```python
# nnz = int(0.05 * 128 * 128)
# rows, columns = np.arange(nnz) % 128, np.arange(nnz) // 128
# S = np.zeros((128, 128))
# S[rows, columns] = rng.standard_normal(nnz)
# print(full_rank.matching(np.sort(rows * 128 + columns), 128), np.linalg.matrix_rank(S), np.linalg.matrix_rank(best(16) + S))
# assert np.linalg.matrix_rank(best(16) + S) == 23
# ```
#
# </details>
#
# **Exercise 3.** If places matter to training only through the gradient, take the entries with the largest $|G|$ at $L$. What
# share of $\|G\|_F^2$ do you expect them to hold: about 5 %, the normal distribution's 28 %, or more? And if the gradient is
# taken on other batches than it was chosen on?
#
# <details><summary>Answer</summary>
#
# Far more than the normal's: unlike $R$, the gradient has outliers, whole rows and columns of them (it is a sum of products of
# two vectors). On other batches a little less, but nowhere near 5 %: the large entries are a property of the model, not of the
# batch. So the gradient is a thing one *can* pick from. It is only known once there is a model, and it moves as training goes
# on.
#
# ```python
# again = low_rank_and(None)
# for k in range(4, 8):
#     again.loss(*batches(k), 1 / (4 * 16 * 64)).backward()
# same, other = [], []
# for (_, one), (_, two) in zip(matrices(at_L), matrices(again)):
#     chosen = np.argsort(-np.abs(one.weight.grad), axis=None)[: int(0.05 * one.weight.size)]
#     same.append((one.weight.grad.flat[chosen] ** 2).sum() / (one.weight.grad**2).sum())
#     other.append((two.weight.grad.flat[chosen] ** 2).sum() / (two.weight.grad**2).sum())
# print(f"same batches {np.mean(same):.2f}, others {np.mean(other):.2f}")
# assert np.mean(same) > np.mean(other) > 0.28
# ```
#
# </details>
