# %% [markdown]
# # Quickstart: the paper in one page
#
# A language model's weights are mostly matrices. SLTrain trains each of them as **a low-rank matrix plus a sparse one**, and so
# has fewer numbers to train, and fewer to remember, than usual. This page says why that works, does it once from beginning to
# end on your laptop, and looks inside. Everything here is NumPy: you can read all of it.
#
# After this notebook you can
#
# - write SLTrain's one formula down, and say what each letter is and what each part is for,
# - train a small LLaMA with it on real English, and let it write,
# - compare it with full-rank and with low-rank training, and say what the comparison does not show,
# - compute how many parameters and bytes it saves for a model of any size,
# - find the notebook that explains the part you want to understand next.
#
# You need: what a matrix's rank is, and what a gradient step does. It runs in a minute or two and reads in a quarter of an hour.

# %%
import io
from contextlib import redirect_stderr, redirect_stdout

import numpy as np

from minisl.plot import PALETTE, notebook_style
from minisl.sliders import Sliders

plt = notebook_style()

# %% [markdown]
# ## The problem
#
# A LLaMA is a stack of blocks, and a block has seven matrices: four in its attention (q, k, v, o) and three in its MLP (gate,
# up, down). Training keeps more than the weights. The usual optimizer, Adam, remembers **two more numbers for every weight**: a
# running mean of its gradient and one of the gradient's square, its *moments*. Let us count, for two sizes of the paper: $h$ is
# the width of the model, $f$ the width inside the MLP, $L$ the number of blocks, $V$ the number of different tokens. A number
# takes 2 bytes (bfloat16).

# %%
SIZES = {"60M": {"h": 512, "f": 1376, "L": 8, "V": 32000}, "7B": {"h": 4096, "f": 11008, "L": 32, "V": 32000}}


def full_rank(h, f, L, V):
    """(parameters of the blocks' matrices, all other parameters)"""
    return L * (4 * h * h + 3 * h * f), 2 * V * h + (2 * L + 1) * h


for name, size in SIZES.items():
    blocks, others = full_rank(**size)
    N = blocks + others
    print(f"{name:4} {N:13,} parameters, {blocks / N:.0%} of them in the blocks' matrices; "
          f"at 2 bytes: weights {2 * N / 1e9:5.2f} GB, moments {4 * N / 1e9:5.2f} GB")

# %% [markdown]
# At 7B, 96 % of the parameters are in those matrices, and weights and moments take 13.48 + 26.95 GB before the first gradient
# is computed. Smaller matrices would help everywhere at once.
#
# ## The idea
#
# The classical way to make a matrix small is to write it as a product of two thin ones. With $B$ ($m \times r$) and $A$
# ($r \times n$),
#
# $$W = B A \qquad\text{has } r\,(m + n) \text{ numbers instead of } m\,n .$$
#
# The price: $BA$ has rank at most $r$, so it sees only $r$ directions of its input. The published models that were *trained* like
# that from the start are clearly worse. SLTrain's repair is to add a **sparse matrix** $S$, a few percent of whose entries are
# not zero:
#
# $$\boxed{\;W \;=\; \frac{\alpha}{r}\, B A \;+\; S\;}$$
#
# - $B$ ($m \times r$) and $A$ ($r \times n$) are trained; $r$ is the rank, $\alpha/r$ a fixed scale.
# - $S$ ($m \times n$) is zero but for a *support*: $\delta\, m\, n$ positions, drawn **at random** once, before training, and
#   never changed. $\delta$ (delta) is the density, a few percent. Only the values at these positions are trained.
#
# Why should random positions do? Because $S$ is there to fill in what $BA$ cannot reach, and randomly scattered entries soon
# touch every row and every column. Watch the rank:

# %%
def parts(r, delta, n=64, alpha=16, seed=0):
    """(L, S): the two parts of an n x n matrix, at random."""
    rng = np.random.default_rng(seed)
    B, A = rng.uniform(-1, 1, (n, r)), rng.uniform(-1, 1, (r, n))
    S = np.zeros((n, n))
    support = rng.choice(n * n, int(delta * n * n), replace=False)  # flat positions, none twice
    S.flat[support] = rng.uniform(-1, 1, len(support))
    return alpha / r * B @ A, S


def draw(r, delta):
    L, S = parts(r, delta)
    figure, grid = plt.subplots(1, 3, figsize=(8.4, 3))
    for axes, matrix, name in zip(grid, (L, S, L + S), ("L = (α/r) B A", "S", "W = L + S")):
        size = np.abs(matrix).max()
        axes.imshow(matrix, cmap="PuOr", vmin=-size, vmax=size, interpolation="nearest")
        axes.set(title=f"{name}: rank {np.linalg.matrix_rank(matrix)} of {len(L)}", xticks=[], yticks=[])
        axes.grid(False)
    return figure


Sliders(draw, start={"r": 8, "delta": 0.05}, r=[2, 4, 8, 16], delta=[0.01, 0.02, 0.05, 0.1])

# %%
print("   r  delta  rank of L  rank of S  rank of L + S")
for r, delta in [(8, 0.01), (8, 0.02), (8, 0.05), (8, 0.1), (16, 0.05)]:
    L, S = parts(r, delta)
    ranks = [int(np.linalg.matrix_rank(matrix)) for matrix in (L, S, L + S)]
    assert ranks[2] == min(64, ranks[0] + ranks[1])
    print(f"{r:4} {delta:6} {ranks[0]:10} {ranks[1]:10} {ranks[2]:14}")

# %% [markdown]
# The ranks add up, until 64 is reached. With $r = 8$ and 5 % of the entries, $W$ already has all 64: at the cost of
# $8 \cdot 128 + 0.05 \cdot 64^2$ numbers instead of $64^2$, no direction is out of reach. The paper's proposition: a density of
# the order of $\log(n)/n$ gives full rank with high probability. [03](03_sltrain.ipynb) proves it, and
# [04](04_why_random.ipynb) asks whether *better* positions than random ones would help.
#
# (Rank says what can be reached, not how well it works. For that we have to train.)
#
# ## Train it
#
# One call. `tiny=True` is a LLaMA of four blocks, on the documentation that came with your Python. We ask for half as many
# updates as the command line makes. In a running notebook the picture below moves.

# %% tags=["trained"]
from minisl.callbacks import LivePlot
from minisl.train import pretrain

said = io.StringIO()  # the command's own words: speeds and paths, other ones on every machine
with redirect_stdout(said), redirect_stderr(said):
    run = pretrain(tiny=True, steps=300, eval_every=100, callbacks=[LivePlot(title="SLTrain")])

# %% [markdown]
# The loss is the mean of $-\log p$, with $p$ the probability that the model gave to the token that really came next. (The
# logarithm is the natural one, hence the unit, *nats*.) At first nothing is known, and $p$ is 1 over the number of different
# tokens. The points are the loss on text that is held out, which the model never trains on. Everything about the run is now in a
# folder, `runs/001-sltrain` for the first: weights, tokenizer, one line of `metrics.jsonl` for each update.

# %% tags=["trained"]
from minisl import metrics
from minisl.checkpoint import load_model, load_tokenizer_of

model, tokenizer = load_model(run), load_tokenizer_of(run)
first, *_, last = metrics.read(run / "metrics.jsonl")
print(f"{model.num_parameters():,} parameters, {last['tokens']:,} tokens seen")
print(f"loss at the first update {first['loss']:.2f}, log(1024) = {np.log(1024):.2f}")
print(f"held-out loss at the end {last['val_loss']:.2f}")
print(f"that is {last['bits_per_byte']:.2f} bits per byte; uncompressed text has 8")

# %% [markdown]
# Bits per byte is the held-out loss in bits ($\log_2$ instead of $\log$), shared out over the bytes of the text. It can be
# compared with that of a model whose tokens are longer or shorter.
#
# ## Let it write
#
# The model draws a next token from its $p$, appends it, and goes on. It has read little: expect the look of documentation, not
# sense.

# %% tags=["timing"]
from minisl.generate import complete

for prompt in ("Return the ", "If the argument is "):
    [text] = complete(model, tokenizer, [prompt], tokens=50, seed=3, temperature=0.6)
    print(prompt + text.replace("\n", "\n    "), end="\n\n")

# %% [markdown]
# ## Look at one layer
#
# What is in such a model? One of its matrices, taken apart: the output matrix of the second block's attention.

# %%
layer = model.model.layers[1].self_attn.o_proj
B, A, v, I = layer.lora_B.data, layer.lora_A.data, layer.sparse_value.data, layer.sparse_index
for name, array in {"B": B, "A": A, "values of S": v, "positions of S": I}.items():
    print(f"{name:15} {array.shape!s:11} {array.dtype}, {array.size:6,} numbers")
print(f"trained: {B.size + A.size + v.size:,} instead of {128 * 128:,}; alpha/r = {layer.scale}")

# %% [markdown]
# A layer's forward pass is the paper's Algorithm 1, four lines of NumPy. `flat` sees the matrix as one long row, which is how
# positions are stored:

# %%
def forward(x):
    W = layer.scale * B @ A      # (out, in)
    W.flat[I] += v               # S is added where it is not zero
    return x @ W.T               # (tokens, out); W is forgotten again, and rebuilt in the backward pass


from minisl import Tensor

x = np.random.default_rng(0).standard_normal((5, 128)).astype(np.float32)
np.testing.assert_allclose(forward(x), layer(Tensor(x)).data, rtol=1e-4, atol=1e-5)

# %% tags=["trained"]
L = layer.scale * B @ A
S = np.zeros_like(L)
S.flat[I] = v
figure, grid = plt.subplots(1, 3, figsize=(8.4, 3.2))
for axes, matrix, name in zip(grid, (L, S, L + S), ("L = (α/r) B A", "S", "W = L + S")):
    size = np.percentile(np.abs(matrix), 99.5)
    axes.imshow(matrix[:64, :64], cmap="PuOr", vmin=-size, vmax=size, interpolation="nearest")
    axes.set(title=name, xlabel=f"darkest: ±{size:.2g}", xticks=[], yticks=[])
    axes.grid(False)
figure.suptitle("Upper left quarter of a trained matrix, each part in shades of its own")
plt.show()

figure, axes = plt.subplots()
for matrix, name, marker in ((L, "L", "o"), (S, "S", "s"), (L + S, "W = L + S", "^")):
    axes.plot(np.arange(1, 129), np.linalg.svd(matrix, compute_uv=False), label=name, marker=marker, markevery=8)
axes.set(xlabel="index", ylabel="singular value", title="The low-rank part ends, the sparse part goes on", ylim=(0, None))
axes.legend()
plt.show()

ranks = [int(np.linalg.matrix_rank(matrix)) for matrix in (L, S, L + S)]
assert ranks[0] == 32
assert ranks[1] < ranks[2] == 128
print("ranks of L, S and W:", *ranks)

# %% [markdown]
# The formula, with real numbers in it. (From here on $L$ is the low-rank part.) $L$ is stripes: rows and columns that go
# together. $S$ is dust, and its few entries are the larger ones by far. A matrix's *singular values* say how strongly it acts,
# direction by direction: those of $L$ end at 32, those of $S$ fall slowly over nearly all 128. Together no direction is lost,
# though the last ones are weak. [08](08_what_it_learned.ipynb) reads more out of trained matrices.
#
# ## Compare
#
# Three models, the same in everything but their matrices: full rank ($W$ itself is trained), low rank ($W = (\alpha/r) B A$
# alone), and SLTrain. To keep you waiting for seconds only, they are smaller still (two blocks, single bytes as tokens), and
# each sees the same two hundred batches in the same order, at the same learning rate.

# %% tags=["trained"]
from minisl.analysis.job import read_text, train
from minisl.parallel import one_blas_thread

text = read_text()
with one_blas_thread():  # small matrices are multiplied fastest by one core each
    jobs = {name: train(text, name, steps=200, checks=8) for name in ("full", "sltrain", "low_rank")}
for name, job in jobs.items():
    print(f"{name:9} {job.model.num_parameters():8,} parameters, held-out loss {job.val_loss:.2f} nats per byte")
assert jobs["sltrain"].val_loss < jobs["low_rank"].val_loss - 0.05
assert jobs["sltrain"].val_loss < jobs["full"].val_loss + 0.1
N = {name: job.model.num_parameters() for name, job in jobs.items()}
print(f"SLTrain has {N['sltrain'] / N['full']:.0%} of the parameters of full rank")

# %%
for (name, job), marker in zip(jobs.items(), "os^"):
    plt.plot(job.checked, job.val_losses, marker=marker, label=f"{name}, {N[name]:,} parameters")
plt.xlabel("updates")
plt.ylabel("held-out loss (nats per byte)")
plt.title("Three kinds of matrices, the same 200 batches and learning rate")
plt.legend()
plt.show()

# %% [markdown]
# With a few more parameters than low rank SLTrain is ahead, and with 58 % of those of full rank it does not lag behind.
#
# **Do not believe more than this shows.** 200 updates of a tiny model say who starts fast, not who ends best; there is one
# seed; and nobody looked for the best learning rate of each. With such a comparison one can "prove" nearly anything:
# [07](07_neighbourhood.ipynb) does so, on purpose, and then does it right.
#
# Two better comparisons. The paper's is at 60M, on a billion tokens of C4; *perplexity* is $e^{\text{loss}}$, so lower is
# better. (full and low_rank are from the GaLore paper's table; SLTrain's number is recalled, not read again.) The other is of
# [this repository](../docs/comparison.md): the model of above, twice as many updates, each method at its own best learning
# rate, three seeds.

# %%
PUBLISHED = {"full": 34.06, "sltrain": 34.15, "low_rank": 78.18}  # perplexity
TUNED = {"full": (1.872, 1.889), "sltrain": (1.782, 1.827), "low_rank": (1.817, 1.851)}  # bits per byte, range of three seeds
for name, perplexity in PUBLISHED.items():
    print(f"{name:9} published: perplexity {perplexity}; here, tuned: {TUNED[name][0]} to {TUNED[name][1]} bits per byte")

# %% [markdown]
# In both, SLTrain is level with full rank or better. How far low rank falls behind is another matter: tuned, it comes close to
# SLTrain here (their ranges overlap), and 78.18 looks more like a training that failed than like what rank 128 can do.
#
# ## What it costs and gains
#
# Now the count of the beginning, with SLTrain's matrices. An $m \times n$ matrix becomes $r(m+n)$ numbers of $B$ and $A$ and
# $k = \lfloor\delta m n\rfloor$ values of $S$. To these belong $k$ *positions*, which are not trained and need no moments: as
# the public code stores them, 8 bytes each.

# %%
RANK, DELTA = {"60M": 128, "7B": 1024}, {"60M": 0.03, "7B": 0.05}


def sltrain(size, r, delta):
    """(trained parameters, values of S among them)"""
    h, f, L, _ = size.values()
    others = full_rank(**size)[1]
    k = L * (4 * int(delta * h * h) + 3 * int(delta * h * f))
    return others + L * r * (4 * (h + h) + 3 * (h + f)) + k, k


rows = []
for name, size in SIZES.items():
    N, (n, k) = sum(full_rank(**size)), sltrain(size, RANK[name], DELTA[name])
    rows += [(name, "full", N, 2 * N, 0, 4 * N), (name, "sltrain", n, 2 * n, 8 * k, 4 * n)]
print(f"{'':13}{'parameters':>14}{'weights':>10}{'positions':>10}{'moments':>10}{'together':>10}  (GB)")
for name, method, n, *sizes in rows:
    print(f"{name:5}{method:8}{n:14,}" + "".join(f"{b / 1e9:10.2f}" for b in (*sizes, sum(sizes))))
for full, ours in (rows[:2], rows[2:]):
    print(f"{ours[0]:3}: {1 - ours[2] / full[2]:.0%} fewer parameters, {1 - sum(ours[3:]) / sum(full[3:]):.0%} fewer bytes")

# %% [markdown]
# The package counts the same, from the model itself (built as shapes, without memory, so that 7B fits anywhere):

# %%
from minisl.memory import paper

for name, method, n, *sizes in rows:
    assert paper.method_of(method, name.lower()).build(paper.model_of(name.lower())).num_parameters() == n
    assert sum(paper.counted(method, name.lower())) == sum(sizes)

# %%
figure, grid = plt.subplots(1, 2, figsize=(7.6, 3.2))
kinds = (("weights", PALETTE[0], ""), ("positions of S", PALETTE[2], "xx"), ("Adam's moments", PALETTE[4], "//"))
for axes, name in zip(grid, SIZES):
    mine, bottom = [row for row in rows if row[0] == name], np.zeros(2)
    for k, (kind, colour, hatch) in enumerate(kinds):
        heights = np.array([row[3 + k] for row in mine]) / 1e9
        axes.bar(["full rank", "SLTrain"], heights, 0.6, bottom, label=kind, color=colour, hatch=hatch, edgecolor="white")
        bottom += heights
    for place, top in enumerate(bottom):
        axes.annotate(f"{top:.2f}", (place, top), xytext=(0, 3), textcoords="offset points", ha="center")
    axes.set(title=name, ylabel="GB", ylim=(0, 1.3 * bottom.max()))
grid[0].legend(fontsize=8)
figure.suptitle("What training keeps from step to step, at 2 bytes a number")
plt.show()

# %% [markdown]
# At 7B SLTrain trains 53 % fewer numbers, and keeps 47 % fewer bytes. Two things to notice:
#
# - At 60M the gain is only 23 %: embeddings and head, which are left as they are, are more than half of that model. The larger
#   the model, the more it pays.
# - A *position* in 8 bytes takes more than its value and both moments in 6 together. 4 bytes are enough for any matrix here,
#   and `minisl` uses 4.
#
# The paper's famous number is larger: nearly three quarters less, measured on one A100 (its figure 3). That is three savings
# together: SLTrain, moments in one byte instead of two (8-bit Adam), and gradients that are used and dropped one layer at a
# time.

# %%
A100 = {"Adam, full rank": 67.4, "8-bit Adam, layer by layer, full rank": 29.4, "8-bit Adam, layer by layer, SLTrain": 18.3}
for name, gigabytes in A100.items():
    print(f"7B, {name:38} {gigabytes:5.1f} GB, {1 - gigabytes / 67.4:4.0%} less than the first")

# %% [markdown]
# In all it is 73 %, and 29.4 to 18.3 is SLTrain's own share. [06](06_memory.ipynb) rebuilds these numbers byte by byte.
#
# And what does it cost? A hyperparameter more (delta); a scale $\alpha/r$ that belongs to the learning rate; a sparse product,
# for which most libraries have no fast kernel ([05](05_kernels.ipynb) writes one); and, in the published runs (recalled), a
# slightly higher loss.
#
# ## Where to go next
#
# | notebook | what you will understand |
# |---|---|
# | [01 Autograd](01_autograd.ipynb) | how gradients come about: `Tensor`, the graph, backward, and a check that can fail |
# | [02 LLaMA](02_llama.ipynb) | every layer of the model, forward and backward |
# | [03 SLTrain](03_sltrain.ipynb) | the paper's method line by line, with the proof of full rank: the heart of all this |
# | [04 Why random?](04_why_random.ipynb) | whether it matters where $S$ is not zero |
# | [05 Kernels](05_kernels.ipynb) | from three loops to fast code, on the CPU and (emulated) on a GPU |
# | [06 Memory](06_memory.ipynb) | where each byte of a training step goes |
# | [07 The neighbourhood](07_neighbourhood.ipynb) | GaLore, ReLoRA, Muon, ... beside SLTrain, and how comparisons go wrong |
# | [08 What it learned](08_what_it_learned.ipynb) | what $L$ and $S$ do in a trained model |
# | [09 Scale](09_scale.ipynb) | several processes, several GPUs |
#
# To write these things yourself, with tests that say what is wrong: [the course](../docs/course/index.md), five assignments.
#
# | page | for |
# |---|---|
# | [The paper, mapped](../docs/paper.md) | each equation, table and figure, and the code that does it |
# | [In your own scripts](../docs/api.md) | `pretrain`, callbacks, SLTrain layers in a model of your own |
# | [Comparison](../docs/comparison.md) | 21 methods on one job |
# | [Adding a method](../docs/adding-a-method.md) | an idea of your own, in one file |
# | [Glossary](../docs/glossary.md), [questions](../docs/faq.md) | words you do not know; what goes wrong for others |
#
# No time at all? Read `minisl/methods/sltrain.py`. It is one page, too.
#
# ## Exercises
#
# **Exercise 1.** Set $r$ as low as 1 in `parts` and keep 64 x 64. Which density makes $W$ full rank then? Guess first:
# $\log(64)/64$ is the theory's order of magnitude.
#
# <details><summary>Answer</summary>
#
# The rank of $W$ is $\min(64, 1 + \mathrm{rank}\, S)$, so $S$ has to do all but one of the 64 itself. That takes something
# between one and three times $\log(64)/64 \approx 0.065$, depending on luck.
#
# ```python
# print(f"log(64)/64 = {np.log(64) / 64:.3f}")
# for delta in (0.03, 0.05, 0.065, 0.1, 0.2):
#     full = [np.linalg.matrix_rank(sum(parts(1, delta, seed=seed))) == 64 for seed in range(50)]
#     print(f"delta {delta}: full rank for {np.mean(full):.0%} of 50 supports")
# ```
#
# A low rank $r$ helps here too: with $r = 8$, $S$ may miss as many as 8.
#
# </details>
#
# **Exercise 2.** SLTrain starts with $B = 0$ and *random* values in $S$. Why not with $S = 0$, as is usual for something one
# adds? Predict what such a run can learn, then train it: `train` has an argument `start(model)`, called before the first
# update.
#
# <details><summary>Answer</summary>
#
# With $B = 0$ and $S = 0$ every $W$ is 0, so every branch of the network outputs 0, and every gradient in a block is 0 too:
# $\partial L/\partial A = (\alpha/r) B^T dW$ has the factor $B = 0$, and $dW = G^T X$ itself is 0, because the layers in front
# give $X = 0$ or the layers behind send back $G = 0$. Only embeddings, head and last norm train: the model learns which byte
# follows which, and nothing more, ever. Look at the held-out losses in the middle and at the end: that little it even learns
# sooner.
#
# ```python
# def dead(model):
#     for name, p in model.named_parameters():
#         if name.endswith("sparse_value"):
#             p.data[...] = 0
#
# with one_blas_thread():
#     stuck = train(text, "sltrain", steps=200, checks=8, start=dead)
# moved = [np.abs(p.data).max() for name, p in stuck.model.named_parameters() if name.endswith(("lora_B", "sparse_value"))]
# assert max(moved) == 0  # not one of them has moved
# assert jobs["sltrain"].val_loss < stuck.val_loss - 0.1
# for k in (1, 3, 7):
#     print(f"after {stuck.checked[k]:3} updates: {stuck.val_losses[k]:.2f}, as it should be {jobs['sltrain'].val_losses[k]:.2f}")
# ```
#
# </details>
#
# **Exercise 3.** For which rank would SLTrain (delta 5 %, 7B) have as many parameters as full rank? Estimate it for a square
# matrix first.
#
# <details><summary>Answer</summary>
#
# For $n \times n$: $2 r n + \delta n^2 = n^2$, so $r = (1 - \delta)\, n / 2$. With $n = 4096$ that is 1,946, not far from half
# of $n$; the MLP's longer matrices allow somewhat more.
#
# ```python
# print(int((1 - 0.05) * 4096 / 2 + 0.5))
# N = sum(full_rank(**SIZES["7B"]))
# r = next(r for r in range(1, 4096) if sltrain(SIZES["7B"], r, 0.05)[0] >= N)
# assert 1946 < r < 2600
# print(r)
# ```
#
# </details>
