# %% [markdown]
# # What it learned
#
# A trained SLTrain matrix is a sum, $W = L + S$ with $L = (\alpha/r) B A$. Who does what? This notebook trains one model,
# writes down both parts as they grow, and then reads them: spectra, directions, do they help or hinder each other, what is lost
# without either. The main readings come with a control: what would the picture look like if $S$ had learned nothing?
#
# After this notebook you can
#
# - measure a matrix's numerical, stable and effective rank, and say how they differ;
# - split the singular values of $W$ into the share of $L$ and of $S$, and tell what of that picture is forced and what is
#   learned;
# - test two branches for cancellation, in weights and in outputs;
# - say what happened to the values of $S$ since they were drawn;
# - switch a part of a model off and read the damage.
#
# You need [03](03_sltrain.ipynb) and [04](04_why_random.ipynb). It runs for less than a minute.

# %%
import copy
import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before NumPy: matrices as small as these are slower on two
import numpy as np

from minisl.analysis import parts
from minisl.analysis.job import SETTINGS, matrices, read_text, validation_loss
from minisl.autograd import no_grad
from minisl.backend import generator
from minisl.data import Batches, make_tokenizer
from minisl.generate import generate
from minisl.methods import Method
from minisl.nn import LlamaConfig
from minisl.optim import learning_rate
from minisl.parallel import Workers
from minisl.plot import PALETTE, notebook_style

plt = notebook_style()

# %% [markdown]
# ## Train, and take notes
#
# Two blocks, rank a quarter of the width, 5 entries of $S$ in a hundred, bytes of Python's own documentation. The loop is the
# one of `minisl/analysis/job.py`, written out so that we can copy $B$, $A$ and the values $v$ of all matrices now and then. The
# notes are close together at first: that is when most changes.

# %% tags=["trained"]
RANK, DELTA, STEPS, PEAK = 24, 0.05, 700, 2.5e-3
shape = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
text = read_text(held_out=16_385)
method = Method("sltrain", SETTINGS | {"rank": RANK, "alpha": float(RANK), "delta": DELTA})
model = method.build(LlamaConfig(**shape, vocab_size=text.vocab_size), generator(42, "init"))
optimizer = method.optimizer(model, PEAK, seed=42)
batches, workers = Batches(text.train, 16, 64, seed=42), Workers(2)
notes = {}


def loss_of(inputs, labels):
    return model.loss(inputs, labels, 1 / (16 * 64))


for step in range(STEPS + 1):
    if step in (0, 1, 2, 4, 8, 16, 30, 50, 80, 120, 170, 230, 300, 400, 500, 600, 700):
        notes[step] = {path: (layer.lora_B.data.copy(), layer.lora_A.data.copy(), layer.sparse_value.data.copy())
                       for path, layer in matrices(model)}
    if step == STEPS:
        break
    optimizer.lr = learning_rate(step + 1, peak=PEAK, steps=STEPS, warmup=STEPS // 10)
    workers.backward(loss_of, *batches(step))
    optimizer.step()
    model.zero_grad()
trained = validation_loss(model, text)
print(f"{len(notes[0])} matrices; {trained:.2f} nats per byte")

# %% [markdown]
# Taking a matrix apart, in NumPy: $L$ is a product, $S$ is zeros with $v$ scattered into its flat positions.

# %%
layers = dict(matrices(model))
PATH = "model.layers.0.mlp.gate_proj"  # the matrix of most figures below


def split(path, step=STEPS):
    """L and S, (out, in) each, as they were noted."""
    B, A, v = (part.astype(np.float64) for part in notes[step][path])
    S = np.zeros((len(B), A.shape[1]))
    S.flat[layers[path].sparse_index] = v
    return layers[path].scale * B @ A, S


for path, layer in layers.items():
    L, S = split(path)
    np.testing.assert_allclose(L + S, layer.to_dense(), atol=1e-5)
    np.testing.assert_allclose((L, S), parts.split(layer))
print(f"all {len(layers)} are L + S; {PATH.rpartition('.')[2]} is", " x ".join(map(str, split(PATH)[0].shape)))

# %% [markdown]
# ## Spectra
#
# $v$ starts uniform on $[-1/\sqrt{\text{in}}, 1/\sqrt{\text{in}}]$, with variance $1/(3\,\text{in})$. An entry of $S$ is not
# zero with probability $\delta$, so its variance is $\delta/(3\,\text{in})$. If $S$ were dense noise of that variance, its
# largest singular value would be close to
#
# $$\sqrt{\frac{\delta}{3\,\text{in}}}\,\big(\sqrt{\text{out}} + \sqrt{\text{in}}\big).$$

# %% tags=["trained"]


def values(M):
    return np.linalg.svd(M, compute_uv=False)


L0, S0 = split(PATH, 0)
L, S = split(PATH)
out, into = S.shape
edge = np.sqrt(DELTA / 3 / into) * (out**0.5 + into**0.5)
print(f"S at the start: largest singular value {values(S0)[0]:.2f}, dense noise of this variance {edge:.2f}")

figure, (start, end) = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True)
for axes, (low, sparse), title in ((start, (L0, S0), "at the start: L = 0, W = S"), (end, (L, S), "after training")):
    for M, name in ((low + sparse, "W = L + S"), (low, "L"), (sparse, "S")):
        axes.plot(range(1, into + 1), values(M), label=name)
    axes.axvline(RANK + 0.5, color=PALETTE[7], linewidth=1, linestyle=":")
    axes.set(xlabel="index of the singular value", title=title)
start.set_ylabel("singular value")
end.legend(title=f"dotted: r = {RANK}")
plt.show()

assert values(L)[RANK] < 1e-6 < values(L)[RANK - 1]

# %% [markdown]
# After training $L$ has a few large values and ends at $r$, as it must. $S$ falls slowly over all 96, and keeps $W$ from ending.
#
# $S$ at the start is a bit above the formula: it has only five entries in a row, and rows that got a few more stand out. A
# sparse matrix is noisier than a dense one of the same variance.
#
# ## Rank over training
#
# Three answers to "what is the rank of $M$", with singular values $\sigma_i$:
#
# | | formula | what moves it |
# |---|---|---|
# | numerical | the number of $\sigma_i > \varepsilon\,\sigma_1$ | any direction at all, however weak |
# | stable | $\sum_i \sigma_i^2 / \sigma_1^2$ | the largest value alone can make it small |
# | effective | $e^H$ with $H = -\sum_i p_i \ln p_i$, $p_i = \sigma_i / \sum_k \sigma_k$ | the whole spectrum |
#
# All three are $k$ for a matrix with $k$ equal singular values and zeros, and none changes when $M$ is multiplied by a number.
# (Effective rank is also defined with $p_i \propto \sigma_i^2$, as in [07](07_neighbourhood.ipynb); that is a smaller number.)

# %%


def numerical(M):
    sigma = values(M)
    return int((sigma > 1e-6 * sigma[0]).sum())


def stable(M):
    sigma = values(M)
    return (sigma**2).sum() / sigma[0] ** 2


def effective(M):
    p = values(M) / values(M).sum()
    p = p[p > 0]
    return np.exp(-(p * np.log(p)).sum())


for k in (1, 5, 20):
    M = np.zeros((30, 40))
    M[:k, :k] = 3 * np.eye(k)
    assert numerical(M) == k
    np.testing.assert_allclose((stable(M), effective(M)), k)
geometric = np.diag(0.5 ** np.arange(20))
print(f"sigma_i = 1, 1/2, 1/4, ... 20 of them: numerical {numerical(geometric)}, stable {stable(geometric):.2f}, "
      f"effective {effective(geometric):.2f}")

# %% tags=["trained"]
steps = [step for step in notes if step]
history = {measure: {name: [] for name in ("W = L + S", "L", "S")} for measure in (numerical, stable, effective)}
for step in steps:
    L, S = split(PATH, step)
    for measure, found in history.items():
        for name, M in (("W = L + S", L + S), ("L", L), ("S", S)):
            found[name].append(measure(M))

figure, grid = plt.subplots(1, 3, figsize=(10, 3.1), sharey=True)
for axes, (measure, found) in zip(grid, history.items()):
    for name, line in found.items():
        axes.plot(steps, line, label=name)
    axes.set(xlabel="updates", title=f"{measure.__name__} rank", xscale="log", ylim=(0, 100))
grid[0].set_ylabel("rank of gate_proj, first block")
grid[1].legend()
plt.show()

full = [numerical(sum(split(path, step))) == min(layers[path].shape) for path in layers for step in steps[1:]]
print("W of full numerical rank:",
      "in all 14 matrices, from the second update on" if all(full) else f"{sum(full)} of {len(full)}")
assert np.mean(full) > 0.95
assert set(history[numerical]["L"][1:]) == {RANK}
assert history[effective]["W = L + S"][-1] < history[effective]["W = L + S"][0]

# %% [markdown]
# - *Numerical*: $W$ has full rank from the start to the last update. (With another text a singular value may fall below the limit
#   of rounding once or twice.) That is all the proposition says, and all it can say.
# - *Effective*: $W$ starts where $S$ is, broad, and comes down as $L$ grows a head. It does not come down to $L$'s.
# - *Stable*: the most dramatic curve, because it is about $\sigma_1$ alone.
#
# $L$ reaches numerical rank $r$ within two updates and then *uses* less: its effective rank stays below $r$. Now all matrices.

# %% tags=["trained"]


def short(path):
    return path.removeprefix("model.layers.").replace("self_attn.", "").replace("mlp.", "").removesuffix("_proj")


figure, axes = plt.subplots(figsize=(8, 3.4))
for (name, pick), marker in zip((("W = L + S", sum), ("L", lambda both: both[0]), ("S", lambda both: both[1])), "osx"):
    axes.plot([short(path) for path in layers], [effective(pick(split(path))) for path in layers], marker, label=name)
axes.axhline(RANK, color=PALETTE[7], linestyle=":", label="r")
axes.set(ylabel="effective rank", title="Block and kind: queries and keys are the narrow ones", ylim=(0, 100))
axes.legend(ncols=4)
plt.show()

narrow = [effective(sum(split(path))) for path in layers if path.endswith(("q_proj", "k_proj"))]
wide = [effective(sum(split(path))) for path in layers if not path.endswith(("q_proj", "k_proj"))]
assert max(narrow) < min(wide)

# %% [markdown]
# ## Who carries which direction
#
# Let $W = \sum_i \sigma_i u_i v_i^\top$. Multiply by $u_i^\top$ from the left and $v_i$ from the right, and put in $W = L + S$:
#
# $$\sigma_i = u_i^\top W v_i = u_i^\top L\, v_i + u_i^\top S\, v_i .$$
#
# So each singular value is a sum of two shares. This is the paper's last figure; its finding: $L$ carries the head, $S$ the tail.

# %% tags=["trained"]


def along(L, S):
    """sigma (k,), u^T L v (k,), u^T S v (k,)"""
    U, sigma, Vt = np.linalg.svd(L + S, full_matrices=False)
    low, sparse = (np.einsum("oi,on,in->i", U, part, Vt, optimize=True) for part in (L, S))
    np.testing.assert_allclose(low + sparse, sigma, atol=1e-10)
    return sigma, low, sparse


def shuffled(S, seed=0):
    """S with its own values, at its own places, in another order."""
    places, mixed = np.flatnonzero(S), S.copy()
    mixed.flat[places] = np.random.default_rng(seed).permutation(S.flat[places])
    return mixed


L, S = split(PATH)
np.testing.assert_allclose(along(L, S), parts.by_direction(L, S))

figure, grid = plt.subplots(1, 2, figsize=(8.4, 3.3), sharey=True)
for axes, sparse, title in ((grid[0], S, "as learned"), (grid[1], shuffled(S), "control: values of S shuffled")):
    for line, name in zip(along(L, sparse), ("sigma", "share of L", "share of S")):
        axes.plot(range(1, into + 1), line, label=name)
    axes.axvline(RANK + 0.5, color=PALETTE[7], linewidth=1, linestyle=":")
    axes.set(xlabel="index of the singular value of W", title=title)
grid[0].set_ylabel("size along the direction")
grid[1].legend()
plt.show()

# %% [markdown]
# The left picture is the paper's. Now look at the right one. There the values of $S$ were dealt out anew among its places:
# whatever $S$ had learned is gone. And the picture is nearly the same.

# %% tags=["trained"]
heads = {name: [] for name in ("learned", "shuffled")}
tails, tops = ({name: [] for name in heads} for _ in range(2))
for path in layers:
    L, S = split(path)
    for name, sparse in (("learned", S), ("shuffled", shuffled(S))):
        sigma, low, high = along(L, sparse)
        tops[name].append(high[0] / sigma[0])
        heads[name].append(low[:RANK].sum() / sigma[:RANK].sum())
        tails[name].append(low[RANK:].sum() / sigma[RANK:].sum())
print("L's share of the first r, mean of 14 matrices: learned {:.2f}, shuffled {:.2f}".format(*map(np.mean, heads.values())))
assert np.abs(np.subtract(heads["learned"], heads["shuffled"])).max() < 0.05
assert max(tails["learned"] + tails["shuffled"]) < 0.2
more = np.subtract(tops["learned"], tops["shuffled"])  # S's share of the very first direction
assert min(more) < 0 < max(more)

# %% [markdown]
# In each matrix $L$'s share of the head is the same to within 0.05, learned or shuffled, and its share of the tail is below 0.2
# in both.
#
# So "$L$ the head, $S$ the tail" is no division of labour that training discovered. It is what *any* sum looks like of a
# rank-$r$ matrix with large values and a spread-out one: by Weyl's inequality $\sigma_{i+r}(W) \le \sigma_i(S)$, beyond index
# $r$ only $S$ can hold anything up. True, useful, and no evidence for cooperation.
#
# In the figure the learned $S$ has more of the very first directions than the shuffled one. That is so in some matrices and the
# other way round in others. Cooperation, if there is any, must be looked for elsewhere: in outputs.
#
# ## Do they work against each other?
#
# Two branches of which one takes back what the other does waste parameters. The authors of CHTsL report that of SLTrain: its
# branches partly cancel, most in Q and K (how they measure it we do not know). A cosine says it:
#
# $$\cos = \frac{\langle P, Q \rangle}{\|P\|_F \|Q\|_F} , \qquad P, Q = L, S \quad\text{or}\quad P, Q = X L^\top, X S^\top$$
#
# in weights, or in what the layer really puts out for inputs $X$ (n, in). Negative: they cancel. Zero: they ignore each other.

# %% tags=["trained"]
ids = text.held_out[:4096].astype(int).reshape(-1, 64)
with parts.listening(model) as inputs, no_grad():  # path -> X (n, in)
    model(ids)


def cosine(P, Q):
    return (P * Q).sum() / np.sqrt((P**2).sum() * (Q**2).sum())


weights, outputs, control = [], [], []
for path in layers:
    (L, S), X = split(path), inputs[path]
    weights.append(cosine(L, S))
    outputs.append(cosine(X @ L.T, X @ S.T))
    control.append([cosine(X @ L.T, X @ shuffled(S, seed).T) for seed in range(10)])
    np.testing.assert_allclose(weights[-1], parts.cancellation(L, S)[0], atol=1e-9)  # the package's
    np.testing.assert_allclose(outputs[-1], parts.cancellation(L, S, X)[0], atol=1e-9)

figure, axes = plt.subplots(figsize=(8, 3.4))
x = [short(path) for path in layers]
axes.plot(x, outputs, "o", label="outputs")
axes.plot(x, weights, "s", label="weights")
for seed in range(10):
    label = "outputs, S shuffled" if seed == 0 else None
    axes.plot(x, np.array(control)[:, seed], "x", color=PALETTE[7], markersize=4, label=label)
axes.axhline(0, color="black", linewidth=1)
axes.set(ylabel="cosine of L and S", ylim=(-0.2, 0.45), title="The parts help each other a little; they do not cancel")
axes.legend(ncols=3)
plt.show()

# %% tags=["trained"]
narrow = [c for path, c in zip(layers, outputs) if path.endswith(("q_proj", "k_proj", "down_proj"))]
above = (np.array(outputs) > np.max(control, axis=1)).sum()
assert 0 < min(outputs) < max(outputs) < 0.5
assert above >= 10  # of 14 matrices
assert np.abs(control).max() < 0.2
assert -0.1 < min(weights) < max(weights) < 0.2
assert np.mean(narrow) > np.mean(outputs)
print("cosines of outputs: all above 0, the largest in q, k and down; of weights: all near 0")

# %% [markdown]
# The cosines of the outputs are all positive and below 0.5, largest in q, k and down. In at least 10 of the 14 matrices they
# are above *every* one of ten shuffles, which scatter around zero. So $S$ did learn to point where $L$ points, on the inputs
# that come. In the weights there is much less to see: the two agree in the few directions that the inputs have, not in all. (A
# cosine of outputs needs such a control. Where inputs have few directions, two random matrices may differ from zero by 0.1 and
# more.)
#
# No cancellation here, then. That is no refutation: another size, another rate, 700 updates instead of tens of thousands.
#
# ## What became of the values
#
# The $v$ were drawn uniformly. Where are they now?

# %% tags=["trained"]
first, last = (np.concatenate([notes[step][path][2] * layers[path].shape[1] ** 0.5 for path in layers]) for step in (0, STEPS))
flipped, together = np.mean(first * last < 0), np.corrcoef(first, last)[0, 1]
print(f"correlation of start and end {together:.2f}; spread {first.std():.2f} at the start, {last.std():.2f} at the end")
assert 0.1 < flipped < 0.3

figure, (histogram, scatter) = plt.subplots(1, 2, figsize=(8, 3.3))
for data, name, line in ((first, "start", "-"), (last, "end", "--")):
    histogram.hist(data, np.linspace(-4, 4, 81), histtype="step", density=True, linestyle=line, label=name)
histogram.set(xlabel="v, in units of 1/sqrt(in)", ylabel="density", title="All values of S")
histogram.legend()
every = slice(None, None, 5)
scatter.plot(first[every], last[every], ".", markersize=2, alpha=0.5, color=PALETTE[0])
scatter.plot([-1, 1], [-1, 1], color="black", linewidth=1, linestyle="--", label="not moved")
scatter.set(xlabel="at the start", ylabel="at the end", ylim=(-4, 4), title="Each value, before and after")
scatter.legend()
plt.show()

# %% [markdown]
# The box has become a bell with long tails. But each value still remembers its start: the correlation is about 0.7, and between
# 0.1 and 0.3 of them changed their sign. $L$ started at zero and holds only what was learned; in $S$ the draw of the start is
# still a large part after 700 updates.
#
# ## What is lost without a part?
#
# Switch it off, in all matrices at once. Shuffling is the control again: the same sizes at the same places, nothing learned.

# %% tags=["trained"]


def loss_with(change):
    other = copy.deepcopy(model)
    for _, layer in matrices(other):
        change(layer)
    return validation_loss(other, text)


def without_L(layer):
    layer.lora_B.data = np.zeros_like(layer.lora_B.data)


def without_S(layer):
    layer.sparse_value.data = np.zeros_like(layer.sparse_value.data)


def shuffle_S(layer):
    layer.sparse_value.data = np.random.default_rng(0).permutation(layer.sparse_value.data)


damage = {"L + S": trained} | {name: loss_with(change) for name, change in (
    ("L alone", without_S), ("S alone", without_L), ("L + shuffled S", shuffle_S))}
print("nats per byte:", ", ".join(f"{name} {loss:.1f}" for name, loss in damage.items()))
assert min(list(damage.values())[1:]) > 1.5 * trained

# %% [markdown]
# Neither part is a model. $S$ holds a small share of the parameters and is no garnish: without it, or with its values in
# disorder, the loss is more than half as high again. That is the measurement that the picture of directions could not give.
#
# It is the damage to *this* model, not what a part is worth for training: without $S$ from the start $L$ would have learned
# something else. For that question two models must be trained, as in [07](07_neighbourhood.ipynb).
#
# ## What the model says
#
# A hundred bytes after a prompt, by the whole model and by its parts. (Your text may differ: the last bit of a sum decides
# about a byte, and that byte about all that follow.)

# %% tags=["timing"]
tokenizer = make_tokenizer("bytes", [], 257)


def say(model, prompt="Return the ", count=100):
    ids = generate(model, tokenizer.encode(prompt), count, generator(1, "sample"), temperature=0.5, stop=text.end)
    return prompt + "".join(c if c.isprintable() else " " for c in tokenizer.decode(list(ids)))


def changed(change):
    other = copy.deepcopy(model)
    for _, layer in matrices(other):
        change(layer)
    return other


for name, one in (("L + S", model), ("L alone", changed(without_S)), ("S alone", changed(without_L))):
    print(f"{name:8s}{say(one)}")

# %% [markdown]
# The whole model writes words, or nearly. Each part alone babbles, in syllables that repeat.
#
# ## Where it looks
#
# A head's query and key at positions $t$ and $s$ give the weight $a_{ts} = \operatorname{softmax}_s(q_t \cdot k_s / \sqrt{d})$
# over $s \le t$; $q$ and $k$ are rotated by RoPE ([02](02_llama.ipynb)). We have noted the inputs $X$ of every matrix, so the
# maps can be made by hand, and with $L$ alone in place of $W$ as well. That the map is right shows in what comes out: it must
# be what `o_proj` was given.

# %%
T, H = 64, shape["num_attention_heads"]
d = shape["hidden_size"] // H
angle = np.outer(np.arange(T), 10000.0 ** (-np.arange(0, d, 2) / d))  # (T, d / 2)
cos, sin = np.cos(angle), np.sin(angle)


def rotated(x):
    """x (H, T, d), its halves rotated against each other."""
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def heads_of(path, X, pick):
    return (X @ pick(split(path)).T).reshape(T, H, d).swapaxes(0, 1)


def attention(block, sequence, pick=sum):
    """(H, T, T) weights and (H, T, d) outputs; pick((L, S)) is what queries and keys are made of."""
    at = f"model.layers.{block}.self_attn."
    X = inputs[f"{at}q_proj"][sequence * T:(sequence + 1) * T]
    q, k = (rotated(heads_of(f"{at}{name}", X, pick)) for name in ("q_proj", "k_proj"))
    scores = np.where(np.tri(T, dtype=bool), q @ k.swapaxes(1, 2) / d**0.5, -np.inf)
    a = np.exp(scores - scores.max(axis=-1, keepdims=True))
    a /= a.sum(axis=-1, keepdims=True)
    return a, a @ heads_of(f"{at}v_proj", X, sum)


for block in (0, 1):
    mixed = attention(block, 5)[1].swapaxes(0, 1).reshape(T, -1)
    np.testing.assert_allclose(mixed, inputs[f"model.layers.{block}.self_attn.o_proj"][5 * T:6 * T], atol=1e-4)

# %% tags=["trained"]
letters = [c if c.isprintable() else "~" for c in (tokenizer.decode([i]) for i in ids[5].tolist())][:24]
figure, grid = plt.subplots(2, 4, figsize=(10, 5.4), sharex=True, sharey=True)
for block in (0, 1):
    for head, axes in enumerate(grid[block]):
        axes.imshow(attention(block, 5)[0][head, :24, :24], cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
        axes.set(title=f"block {block}, head {head}", xticks=range(24), yticks=range(24))
        axes.tick_params(length=0)
        axes.set_xticklabels(letters, fontsize=7)
        axes.set_yticklabels(letters, fontsize=7)
        axes.grid(False)
figure.supylabel("byte that looks")
figure.supxlabel("byte it looks at; black: all of the weight")
plt.show()

back = np.array([[np.mean([np.diag(a, -k).sum() / T for a in (attention(block, i)[0][head] for i in range(8))])
                  for k in range(4)] for block in (0, 1) for head in range(H)])  # mean weight on the byte k places back
low_only = np.mean([np.abs(attention(block, i, lambda both: both[0])[0] - attention(block, i)[0]).sum(axis=-1).mean() / 2
                    for block in (0, 1) for i in range(4)])
near = back.sum(axis=1)
print(f"mean weight on the byte itself and the three before it, over all heads: {near.mean():.1f}")
assert near.max() > 0.75
assert low_only < 0.5

# %% [markdown]
# Dark diagonals: most heads look at the byte itself or a few places back. That is what one learns first about text: which byte
# follows which.
#
# Make queries and keys of $L$ alone and less than half of the weight moves to other bytes (`low_only`): in these narrow matrices
# $L$ alone decides much of where a head looks.
#
# ## Exercises
#
# **Exercise 1.** Set to zero the half of $S$'s values that are smallest in magnitude, in each matrix. They hold how much of
# $\|S\|_F^2$, about? And is the loss hurt as much as by switching off $S$, half as much, or hardly?
#
# <details><summary>Answer</summary>
#
# They hold less than a tenth of the squares, and the model hardly notices. So training used half of its places for little.
# Methods that move the support during training start from this observation.
#
# ```python
# def pruned(layer):
#     v = layer.sparse_value.data
#     layer.sparse_value.data = np.where(np.abs(v) > np.median(np.abs(v)), v, 0)
#
#
# small = np.mean([np.sort(note[2] ** 2)[: len(note[2]) // 2].sum() / (note[2] ** 2).sum() for note in notes[STEPS].values()])
# half = loss_with(pruned)
# print(f"the smaller half holds {small:.2f} of the squares; loss {trained:.2f} -> {half:.2f}, without S {damage['L alone']:.2f}")
# assert small < 0.1
# assert half - trained < 0.2 * (damage["L alone"] - trained)
# ```
#
# </details>
#
# **Exercise 2.** $L$ is a matrix of rank $r$ that is near $W$, but not the nearest. Replace each $W$ by its best approximation
# of rank $r$ instead. Is that better or worse than $L$ alone, and how does it compare with the whole model?
#
# <details><summary>Answer</summary>
#
# Better than $L$: by Eckart and Young it is nearer to $W$, and here the loss agrees. It is still far from the whole: the tail
# that only $S$ can hold up counts. So one cannot train SLTrain and then throw away $S$.
#
# ```python
# from minisl.analysis.spectrum import best_low_rank
#
#
# def nearest(layer):
#     layer.lora_B.data, layer.lora_A.data = best_low_rank(layer.to_dense() / layer.scale, RANK)
#     layer.sparse_value.data = np.zeros_like(layer.sparse_value.data)
#
#
# best = loss_with(nearest)
# print(f"L alone {damage['L alone']:.2f}, best of rank r {best:.2f}, W {trained:.2f}")
# assert trained < best < damage["L alone"]
# ```
#
# </details>
#
# **Exercise 3.** The control shuffled $S$ within its support. Try another: keep the learned values in their order, but on a
# support drawn anew. What do you expect of the picture of directions, and of the loss?
#
# <details><summary>Answer</summary>
#
# The picture does not change, again: it depends on the spectrum of $L$ and the size of $S$ only. The loss is as bad as with
# shuffled values: each value was trained for its place. "A random support is enough" means random *before* training.
#
# ```python
# from minisl.methods.sltrain import sample_support
#
#
# def moved(layer):
#     layer.sparse_index = sample_support(*layer.shape, DELTA, np.random.default_rng(9))
#
#
# L, S = split(PATH)
# elsewhere = np.zeros_like(S)
# elsewhere.flat[sample_support(*S.shape, DELTA, np.random.default_rng(9))] = notes[STEPS][PATH][2]
# change = np.abs(along(L, elsewhere)[1] - along(L, S)[1]).max() / along(L, S)[0][0]
# elsewhere_loss = loss_with(moved)
# print(f"shares move by at most {change:.2f} of sigma_1; loss {elsewhere_loss:.1f}, shuffled {damage['L + shuffled S']:.1f}")
# assert elsewhere_loss > 1.5 * trained
# ```
#
# </details>
