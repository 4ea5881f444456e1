# %% [markdown]
# # Assignment 5: a small study
#
# You choose one research question, answer it with training runs of two seconds, and write up what they show and what they do not.
#
# | question | arms |
# |---|---|
# | `"support"`: is a random support of $S$ as good as others? | random, whole rows, a block, where the first gradient is large |
# | `"delta"`: with equal numbers of parameters, more rank or a denser $S$? | $\delta$ of 0, 0.1, 0.2, 0.3 |
# | `"memory"`: in the same bytes, SLTrain or GaLore? | GaLore, SLTrain with $\delta$ of 0.05 and 0.2 |
#
# First you write three tools (tasks 1 to 3, tested as in the other assignments). With them you make the record of your study,
# `study.json`, which is checked in task 4. The report in the end is read by a person.
#
# **How.** Replace each `raise NotImplementedError()` with your code. The cell below it checks your answer: it prints nothing and
# passes, or says what is wrong. Save the notebook, then `python -m minisl.course check a5_study.ipynb` (or `pytest`) in this
# folder checks them all. Both read the saved file. The grader uses its own copy of the test cells; editing yours changes nothing.
# It has more cases, none of them a trick.
#
# **Hand in** this notebook, `study.json`, and `student.txt` if you have one: all three lie in this folder.
#
# **Your seeds.** Your study has five, and they are yours: `seeds(5)` draws them from your name. If your course gave you one,
# write it, and nothing else, into a file `student.txt` beside this notebook, *before* you make the study: another name has other
# seeds. Without the file everybody's are the same.
#
# **Cells of your own** are welcome. One that makes a name which a task reads is run again with that task. So put what it does
# into a function (`def figure(): ...`), and calls into a cell that makes no names.
#
# About five hours, two of them for the report; the computer needs one or two minutes. Read first: notebooks `04_why_random` and
# `06_memory`.

# %%
import hashlib
import json
from pathlib import Path

import numpy as np
from scipy import stats

from minisl import kernels
from minisl.analysis.job import SETTINGS, Text, train
from minisl.analysis.supports import with_support
from minisl.backend import generator
from minisl.course import Wrong, check, draw, raises, seeds
from minisl.course.check import say
from minisl.data import Batches
from minisl.methods import Method
from minisl.nn import Llama, LlamaConfig
from minisl.parallel import one_blas_thread

# %% [markdown]
# ## What is given
#
# **A text** that is the same on every computer: 200 words of an invented language, each followed by one of six others. A model
# has to learn how words are spelled, and which follow which. A uniform guess is $\ln 29 = 3.37$ nats per letter.

# %%
LETTERS = " .abcdefghijklmnopqrstuvwxyz"  # ids 1 to 28; 0 would end a document


def make_text(length=300_000, words=200, followers=6):
    """A Text of one document; its last 8,193 letters are held out."""
    rng = np.random.default_rng(2406)
    lexicon = ["".join("bcdfghjklmnprstvz"[int(17 * rng.random())] + "aeiou"[int(5 * rng.random())]
                       for _ in range(1 + int(3 * rng.random()))) for _ in range(words)]
    after = [[int(words * rng.random() ** 2) for _ in range(followers)] for _ in range(words)]
    pieces, word, letters = [], 0, 0
    while letters < length:
        word = after[word][int(followers * rng.random() ** 2)]
        pieces.append(lexicon[word] + (". " if rng.random() < 0.15 else " "))
        letters += len(pieces[-1])
    ids = np.array([1 + LETTERS.index(letter) for letter in "".join(pieces)[:length]], np.int32)
    return Text(ids[:-8193], ids[-8193:], vocab_size=29)


TEXT = make_text()
print("".join(LETTERS[i - 1] for i in TEXT.train[:200]))

# %% [markdown]
# **The arms** of each question. All runs of a question have the same text, updates, batches and schedule; an arm is what differs.
# The first arm is the one that the others are compared with. $\alpha = r$ everywhere, so the scale is 1. The learning rates were
# looked for with seed 42: 0.01 is the best of 0.005, 0.01, 0.02 for SLTrain (tried with a random support, and with $\delta$ of
# 0.05 and 0.2), 0.08 the best of 0.02, 0.04, 0.08, 0.16 for GaLore. Without $S$ (`"delta 0"`) 0.005 was better than 0.01, by
# 0.014 nats.

# %%
SHAPE = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 1,
         "num_attention_heads": 4, "vocab_size": 29}
STEPS, BATCH, LENGTH = 120, 16, 32  # updates; sequences of so many tokens in each
SPARSE = {"method": "sltrain", "rank": 8, "delta": 0.1, "lr": 0.01}
ARMS = {
    "support": {kind: SPARSE | {"support": kind} for kind in ("random", "rows", "block", "gradient")},
    "delta": {
        "delta 0": {"method": "low_rank", "rank": 16, "lr": 0.01},
        "delta 0.1": {"method": "sltrain", "rank": 12, "delta": 0.1, "lr": 0.01},
        "delta 0.2": {"method": "sltrain", "rank": 8, "delta": 0.2, "lr": 0.01},
        "delta 0.3": {"method": "sltrain", "rank": 4, "delta": 0.3, "lr": 0.01}},
    "memory": {
        "galore": {"method": "galore", "rank": 8, "every": 20, "lr": 0.08},
        "sltrain 0.05": {"method": "sltrain", "rank": 15, "delta": 0.05, "lr": 0.01},
        "sltrain 0.2": {"method": "sltrain", "rank": 7, "delta": 0.2, "lr": 0.01}},
}
BUDGET = {"support": (18_774, "parameters"), "delta": (24_000, "parameters"), "memory": (320_000, "bytes")}

# %% [markdown]
# **The supports** of the first question: functions from a matrix's path, shape and number of places to sorted flat positions.
# **A run**: `trained(settings, seed, steps)` is a `Job` of `minisl.analysis.job`, with `model`, `losses` (one an update, an
# array) and `val_loss` (of the held-out letters, after the last update). The same arguments give the same run.

# %%
def at_random(seed):
    return lambda path, shape, nnz: np.sort(generator(seed, "support", path).choice(shape[0] * shape[1], nnz, replace=False))


def whole_rows(seed):
    def choose(path, shape, nnz):
        rows = generator(seed, "support", path).permutation(shape[0])[:-(-nnz // shape[1])]
        return np.sort(rows[:, None] * shape[1] + np.arange(shape[1]), axis=None)[:nnz]

    return choose


def one_block(seed):
    """A rectangle somewhere, of the shape's proportions."""
    def choose(path, shape, nnz):
        height = round((nnz * shape[0] / shape[1]) ** 0.5)
        width = -(-nnz // height)
        top, left = (int(generator(seed, "support", path, axis).random() * (shape[axis] - side))
                     for axis, side in enumerate((height, width)))
        return ((top + np.arange(height)[:, None]) * shape[1] + left + np.arange(width)).ravel()[:nnz]

    return choose


def largest_gradient(seed):
    """Where the dense model that starts from this seed has the largest |dL/dW| in its first batch."""
    model = Llama(LlamaConfig(**SHAPE), generator(seed, "init"))
    model.loss(*Batches(TEXT.train, BATCH, LENGTH, seed)(0), 1 / (BATCH * LENGTH)).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return lambda path, shape, nnz: np.sort(np.argsort(-np.abs(gradients[f"{path}.weight"]), axis=None, kind="stable")[:nnz])


SUPPORTS = {"random": at_random, "rows": whole_rows, "block": one_block, "gradient": largest_gradient}


def trained(settings, seed, steps=STEPS):
    """One run of an arm's settings, such as ARMS["delta"]["delta 0.1"]."""
    options = {key: settings[key] for key in ("rank", "delta", "every") if key in settings}
    shape = {key: size for key, size in SHAPE.items() if key != "vocab_size"}
    with kernels.using("numpy"), one_blas_thread():  # one core, the same result on all
        start = with_support(SUPPORTS[settings["support"]](seed)) if "support" in settings else None
        return train(TEXT, settings["method"], steps=steps, shape=shape, lr=settings["lr"], seed=seed, checks=1, start=start,
                     batch=BATCH, length=LENGTH, parts=1, alpha=float(settings["rank"]), **options)


def model_and_method(method, rank, delta, shape):
    """(LlamaConfig, Method) of a model; delta is read by "sltrain" only."""
    return LlamaConfig(**shape), Method(method, SETTINGS | {"rank": rank, "delta": delta or 0.5, "alpha": float(rank)})

# %% [markdown]
# ## Task 1. Equal budgets (5 points, 40 minutes)
#
# Two methods are compared fairly when they may spend the same. What they spend is a `unit`:
#
# - `"parameters"`: trained numbers. With $B$, $A$ and $S$ of each matrix $W$ (out, in) these are
#   $N = N_{base} + \sum_W \big(r\,(\text{out} + \text{in}) + \lfloor \delta\,\text{out}\,\text{in} \rfloor\big)$.
# - `"bytes"`: what is there all through training, in float32 with Adam: weights, indices of $S$ (4 bytes each), moments, and
#   GaLore's projections; neither gradients nor activations.
#
# **Given** a method, a budget and a model's shape. You need not derive the costs: `model_and_method` (above) returns a `config`
# and a `Method`; the model that its `build(config)` makes has `num_parameters()`; and `kept` counts bytes by kind (import it from
# `minisl.memory.formula`; notebook `06_memory`, section 1).
#
# **Write** `largest_rank(method, delta, budget, unit, shape)`: 6 to 12 lines. It raises `ValueError` where no rank fits. Else the
# result is
#
# $$\max\,\{\, r : 1 \le r \le h,\ \text{cost}(r) \le \text{budget} \,\}, \qquad h = \text{hidden size of the shape}.$$
#
# | | |
# |---|---|
# | `method` | `"low_rank"`, `"sltrain"` or `"galore"` |
# | `delta` | density of $S$; `None` unless SLTrain |
# | `budget` | int, to be kept: a cost equal to it is allowed |
# | `unit` | `"parameters"` or `"bytes"`; GaLore only comes with bytes |
# | `shape` | dict such as `SHAPE` |
# | returns | int |
#
# **Tested:** that it gives the ranks of `ARMS`; other shapes, several blocks; budgets that fit exactly, or lack one; too small
# and very large ones. GaLore's cost falls at $r = h$, where nothing is projected any more: the *largest* rank that fits may lie
# beyond some that do not.
#
# <details><summary>Hint</summary>
#
# `kept(method, config)` gives a dict; bytes at rest are the sum of its values. There are at most $h$ ranks: try them all.
#
# </details>

# %% task="largest_rank"
def largest_rank(method, delta, budget, unit, shape):
    """The largest rank of a model that costs no more than the budget."""
    ### BEGIN SOLUTION
    from minisl.memory.formula import kept

    fitting = []
    for rank in range(1, shape["hidden_size"] + 1):
        config, made = model_and_method(method, rank, delta, shape)
        cost = made.build(config).num_parameters() if unit == "parameters" else sum(kept(made, config).values())
        if cost <= budget:
            fitting.append(rank)
    if not fitting:
        raise ValueError(f"no rank of {method} fits {budget} {unit}")
    return fitting[-1]
    ### END SOLUTION

# %% test="largest_rank" points=5
small = {"hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 11}


def check_rank(method, delta, budget, unit, shape, rank, wrong=None):
    name = f"{method} with delta {delta:.3g}" if delta else method
    what = f"rank of {name}, {shape['num_hidden_layers']} blocks of hidden size {shape['hidden_size']}, for {budget:,} {unit},"
    try:
        got = largest_rank(method, delta, budget, unit, dict(shape))
    except ValueError as error:
        counted = {"parameters": "parameters", "bytes": "bytes at rest"}[unit]
        raise Wrong(f"{what} should be {rank}, but there is a ValueError ({error}): is it {counted} that are counted, "
                    "and of this shape?") from None
    say(np.ndim(got) == 0, f"{what} is {got}, should be one number")
    check(what, got, rank, wrong=wrong)


# What counts
check_rank("sltrain", 0.2, 20_000, "parameters", small, 14, {
    "it is the smallest rank, not the largest": 1, "rank 15 costs more than the budget": 15})
check_rank("sltrain", 0.1, 60_000, "bytes", small, 2, {
    "the moments are not counted": 10, "weights alone are counted": 11, "parameters are counted, not bytes": 24,
    "an index takes 4 bytes, not 8": 1})
check_rank("sltrain", 0.4, 200_000, "bytes", small, 7, {"the indices of S are not counted": 9})
# Just enough, and one too few
for method, delta, unit, cost, rank in (("low_rank", None, "parameters", 14_088, 12), ("low_rank", None, "bytes", 169_056, 12),
                                        ("sltrain", 0.2, "parameters", 17_016, 12), ("galore", None, "bytes", 150_048, 12)):
    check_rank(method, delta, cost, unit, small, rank, {"a cost equal to the budget is allowed": rank - 1})
    check_rank(method, delta, cost - 1, unit, small, rank - 1, {f"rank {rank} costs one of the {unit} more than that": rank})
# The ends
check_rank("sltrain", 0.1, 10**9, "bytes", small, 24, {"the rank may be equal to the hidden size": 23})
check_rank("galore", None, 184_608, "bytes", small, 24, {
    "at full rank GaLore projects nothing and costs less than at 18 to 23; look beyond the first that does not fit": 17})
raises(ValueError, largest_rank, "sltrain", 0.2, 68_591, "bytes", small, when="a budget that not even rank 1 fits")
# The arms of the study
for question, (budget, unit) in BUDGET.items():
    for method, delta, rank in {(arm["method"], arm.get("delta"), arm["rank"]) for arm in ARMS[question].values()}:
        check_rank(method, delta, budget, unit, SHAPE, rank)
### BEGIN HIDDEN TESTS
rng = draw("largest_rank")


def cost_of(method, delta, unit, shape, rank):
    h, f, layers, words = (shape[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"))
    base, sides = 2 * words * h + (2 * layers + 1) * h, [(h, h)] * 4 + [(h, f)] * 3
    if method == "galore":
        low = 8 * rank * f * 3 + 8 * rank * h * 4 + 4 * rank * h * 7 if rank < h else 8 * (4 * h * h + 3 * h * f)
        return 12 * base + layers * (4 * sum(a * b for a, b in sides) + low)
    nnz = layers * sum(int(delta * a * b) for a, b in sides) if delta else 0
    numbers = base + nnz + layers * rank * sum(a + b for a, b in sides)
    return numbers if unit == "parameters" else 12 * numbers + 4 * nnz


for method, unit in (("low_rank", "parameters"), ("sltrain", "parameters"), ("sltrain", "bytes"), ("galore", "bytes"),
                     ("low_rank", "bytes"), ("sltrain", "bytes")):
    drawn = {"hidden_size": 4 * int(rng.integers(5, 9)), "intermediate_size": int(rng.integers(40, 70)),
             "num_hidden_layers": int(rng.integers(2, 4)), "num_attention_heads": 2, "vocab_size": int(rng.integers(5, 30))}
    delta = float(rng.uniform(0.05, 0.3)) if method == "sltrain" else None
    rank = int(rng.integers(6, 13))
    budget = cost_of(method, delta, unit, drawn, rank) + int(rng.integers(0, 9))
    check_rank(method, delta, budget, unit, drawn, rank)
### END HIDDEN TESTS

# %% [markdown]
# ## Task 2. One run, written down (5 points, 30 minutes)
#
# A record must let another person count, compare and repeat.
#
# **Given** `trained(settings, seed, steps)`, which makes one run and returns its `Job` (above).
#
# **Write** `run(settings, seed, steps)`: 4 to 10 lines. It makes the run and returns a dict with these keys, and no others:
#
# | key | type | |
# |---|---|---|
# | `"seed"` | int | what it was started from |
# | `"updates"` | int | how many there were |
# | `"tokens"` | int | trained on: updates times `BATCH` times `LENGTH` |
# | `"parameters"` | int | trained numbers of the model |
# | `"losses"` | list of float | of every update, in order, as they are (not rounded) |
# | `"val_loss"` | float | of the held-out letters after the last update: nothing is chosen by looking at it |
#
# `steps` need not be `STEPS`. The dict will be written to a JSON file, which has lists, numbers and strings, and no arrays.
#
# **Tested:** several arms, seeds and numbers of updates, each against a run made by the test; that it can be written as JSON.
#
# <details><summary>Hint</summary>
#
# An array has `tolist()`. The `Job` has the model, and a model counts its parameters as in task 1.
#
# </details>

# %% task="run"
def run(settings, seed, steps=STEPS):
    """One run of an arm's settings, as a dict of what it was and what came out."""
    ### BEGIN SOLUTION
    job = trained(settings, seed, steps)
    return {"seed": seed, "updates": len(job.losses), "tokens": len(job.losses) * BATCH * LENGTH,
            "parameters": job.model.num_parameters(), "losses": job.losses.tolist(), "val_loss": job.val_loss}
    ### END SOLUTION

# %% test="run" points=5
rng = draw("run")


def check_run(question, name, seed, steps):
    what, settings = f"arm {name!r} of {question!r}, seed {seed}, {steps} updates: the record", ARMS[question][name]
    got, job = run(dict(settings), seed, steps), trained(settings, seed, steps)
    say(isinstance(got, dict), f"{what} is {'None' if got is None else type(got).__name__}, should be a dict")
    try:
        json.dumps(got)
    except TypeError as error:
        raise Wrong(f"{what} does not go into JSON ({error}): use lists, int and float") from None
    check(what, {key: got[key] for key in got if key not in ("losses", "val_loss")},
          {"seed": seed, "updates": steps, "tokens": steps * BATCH * LENGTH, "parameters": job.model.num_parameters()}, wrong={
              "tokens": {"it counts sequences: each has LENGTH tokens": steps * BATCH,
                         "it counts those of one update": BATCH * LENGTH,
                         "it counts STEPS updates, not the `steps` of this run": STEPS * BATCH * LENGTH},
              "updates": {"STEPS, not the `steps` of this run": STEPS, "one too few: the losses start with update 1": steps - 1}})
    say("losses" in got and "val_loss" in got, f"{what} has no 'losses' or no 'val_loss'")
    say(isinstance(got["losses"], list), f"{what}'s losses are no list; there should be one number for each update")
    say(len(got["losses"]) == steps, f"{what} has {len(got['losses'])} losses, should have one for each of {steps} updates, the "
        "first included: does `trained` get `steps`?")
    for other in (seed + 1, 42, 0):
        say(other == seed or got["losses"][:1] != trained(settings, other, 1).losses.tolist(),
            f"{what} has the losses of seed {other}")
    check(f"{what}['losses']", np.array(got["losses"]), job.losses, rtol=1e-6, wrong={
        f"it is rounded to {digits} digits": np.round(job.losses, digits) for digits in (2, 3, 4)})
    check(f"{what}['val_loss']", got["val_loss"], job.val_loss, rtol=1e-6, wrong={
        "it is the last training loss": job.losses[-1], "it is the lowest training loss": job.losses.min(),
        "it is the mean of the training losses": job.losses.mean()})


check_run("delta", "delta 0.1", int(rng.integers(100, 5000)), int(rng.integers(6, 10)))
check_run("memory", "galore", int(rng.integers(5000, 9000)), int(rng.integers(3, 6)))
### BEGIN HIDDEN TESTS
check_run("support", "rows", int(rng.integers(100, 9000)), int(rng.integers(3, 6)))
check_run("delta", "delta 0", int(rng.integers(100, 9000)), int(rng.integers(12, 15)))
### END HIDDEN TESTS

# %% [markdown]
# ## Task 3. Error bars (6 points, 45 minutes)
#
# **Given** the runs of several arms, each with the same $n$ seeds. An arm has $n$ losses $x_1, \dots, x_n$. With
# $s^2 = \frac{1}{n-1}\sum_i (x_i - \bar x)^2$ their mean has the standard error $s / \sqrt n$, and if the losses were drawn from
# a normal distribution, the 95 % interval for its mean is
#
# $$\bar x \pm t\, \frac{s}{\sqrt n}, \qquad t = t_{0.975,\, n-1},$$
#
# the 0.975 quantile of Student's $t$ with $n - 1$ degrees of freedom.
#
# The 1.96 of the normal distribution is for large $n$; for $n = 5$ the factor is 2.78, for $n = 3$ it is 4.30. And a seed decides
# about initialisation *and* order of the batches, in all arms alike: part of the spread is common to them. So compare **in
# pairs**: take for each seed the difference $d_i$ of an arm's loss and the other arm's loss with the same seed, and treat
# $d_1, \dots, d_n$ as above. (Two intervals that overlap prove nothing; an interval of the differences that does not contain 0
# says something.)
#
# **Write** `summary(runs, against)`: 10 to 20 lines.
#
# | | |
# |---|---|
# | `runs` | list of dicts in any order, with `"arm"`, `"seed"` and `"val_loss"`. Arms and seeds are those of the list |
# | `against` | name of the arm that the others are compared with |
# | returns | `{"arms": {name: box}, "differences": {name: box}}`; differences of every arm but `against`: arm minus `against` |
# | a box | `{"mean": ..., "se": ..., "low": ..., "high": ...}`, floats: mean, standard error, ends of the 95 % interval |
#
# **Tested:** invented losses, two to four arms, 3 to 8 seeds, in any order.
#
# <details><summary>Hint</summary>
#
# Write the box of a list of numbers first, as a function inside. `np.std` divides by $n$ unless told otherwise;
# `scipy.stats.t.ppf(0.975, n - 1)` is $t$. For pairs, make a dict from seed to loss for each arm.
#
# </details>

# %% task="summary"
def summary(runs, against):
    """Mean, standard error and 95 % interval of each arm's val_loss, and of its paired differences to another arm."""
    ### BEGIN SOLUTION
    def box(values):
        n, mean, se = len(values), np.mean(values), np.std(values, ddof=1) / len(values) ** 0.5
        half = stats.t.ppf(0.975, n - 1) * se
        return {"mean": float(mean), "se": float(se), "low": float(mean - half), "high": float(mean + half)}

    losses = {}
    for one in runs:
        losses.setdefault(one["arm"], {})[one["seed"]] = one["val_loss"]
    base = losses[against]
    return {"arms": {arm: box(list(by_seed.values())) for arm, by_seed in losses.items()},
            "differences": {arm: box([by_seed[seed] - base[seed] for seed in base])
                            for arm, by_seed in losses.items() if arm != against}}
    ### END SOLUTION

# %% test="summary" points=6
rng = draw("summary")


def invented(arms, n):
    """Runs of so many arms with the same n seeds, in any order; and the losses (arms, n), by seed."""
    losses = 1.5 + 0.1 * rng.standard_normal(n) + 0.05 * rng.standard_normal((arms, n)) + 0.3 * rng.random((arms, 1))
    numbers = [int(seed) for seed in rng.choice(9000, n, replace=False)]
    runs = [{"arm": "pqrs"[a], "seed": numbers[k], "val_loss": float(losses[a, k])} for a in range(arms) for k in range(n)]
    return [runs[k] for k in rng.permutation(len(runs))], losses


def words(got):
    if isinstance(got, dict):
        return f"one with the keys {', '.join(map(repr, got))}"
    return "None" if got is None else type(got).__name__


def check_box(what, got, values, other=None):
    """other: the two arms' losses, where values are their differences."""
    n, mean = len(values), sum(values) / len(values)
    squares = sum((x - mean) ** 2 for x in values)
    deviation = (squares / (n - 1)) ** 0.5
    say(isinstance(got, dict) and got.keys() == {"mean", "se", "low", "high"},
        f"{what} should be a dict with the keys 'mean', 'se', 'low', 'high', and is {words(got)}")
    check(f"{what}, mean", got["mean"], mean, wrong={
        "it is the median": np.median(values), "it is the best of the runs": min(values)})
    wrong = {"the standard deviation: the mean of n losses varies less, by the root of n": deviation,
             "divided by n, not by its root": deviation / n, "a variance: the root is missing": squares / (n - 1) / n,
             "divided by n - 1 where the root of n belongs": deviation / (n - 1) ** 0.5,
             "ddof = 0: the squares are divided by n, not by n - 1": (squares / n / n) ** 0.5}
    if other is not None:
        wrong["the arms' errors are combined as if they were independent: take differences by seed first"] = (
            sum(np.var(x, ddof=1) for x in other) / n) ** 0.5
        wrong["paired after both were sorted by loss, should be by seed"] = stats.sem(np.sort(other[0]) - np.sort(other[1]))
        wrong["one arm's standard error minus the other's: take differences by seed first"] = (
            stats.sem(other[0]) - stats.sem(other[1]))
    check(f"{what}, se", got["se"], deviation / n**0.5, wrong=wrong)
    half = got["high"] - got["mean"]
    say(half > 0 > got["low"] - got["mean"],
        f"{what}: low is {got['low']:.4g} and high is {got['high']:.4g}, the mean is not between")
    for factor, mistake in ((1.96, "1.96 is for large n, take Student's t"), (2, "2 is for large n, take Student's t"),
                            (stats.norm.ppf(0.975), "the normal distribution's 1.96 is for large n, take Student's t"),
                            (stats.t.ppf(0.95, n - 1), "the 0.95 quantile leaves out 5 % on each side, take 0.975"),
                            (stats.t.ppf(0.975, n), "t with n degrees of freedom, should be n - 1"),
                            (2.78, "2.78 is rounded, and for 5 losses only"), (1, "one standard error, without t"),
                            *[(stats.t.ppf(0.975, 4), f"t for 5 losses, here are {n}")] * (n != 5)):
        say(abs(half / (deviation / n**0.5) - factor) > 1e-6, f"{what}: the interval is wrong: {mistake}")
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    check(f"{what}, low", got["low"], low)
    check(f"{what}, high", got["high"], high)


def check_summary(arms, n, against):
    runs, losses = invented(arms, n)
    base, names, what = "pqrs"[against], "pqrs"[:arms], f"{arms} arms, {n} seeds:"
    got = summary([dict(one) for one in runs], base)
    say(isinstance(got, dict) and got.keys() == {"arms", "differences"},
        f"{what} the result should be a dict with the keys 'arms' and 'differences', and is {words(got)}")
    check(f"{what} names in 'arms'", ", ".join(sorted(got["arms"])), ", ".join(names))
    check(f"{what} names in 'differences', all but {base!r},", ", ".join(sorted(got["differences"])),
          ", ".join(names.replace(base, "")))
    for a, name in enumerate(names):
        check_box(f"{what} arm {name!r}", got["arms"][name], losses[a])
        if a == against:
            continue
        box, difference, pair = got["differences"][name], losses[a] - losses[against], f"{what} {name!r} minus {base!r}"
        check(f"{pair}, mean", box["mean"], difference.mean(), wrong={
            "it has the wrong sign: arm minus `against`": -difference.mean(),
            f"{names[0]!r}, the first arm, was taken, not `against`": losses[a].mean() - losses[0].mean(),
            "it is the arm's own mean, not that of differences": losses[a].mean(),
            "the differences lost their sign": abs(difference).mean(),
            "it is relative to the other arm's loss, should be the plain difference": (difference / losses[against]).mean()})
        in_order = np.subtract(*([one["val_loss"] for one in runs if one["arm"] == arm] for arm in (name, base)))
        say(abs(box["se"] - in_order.std(ddof=1) / n**0.5) > 1e-9 or np.isclose(in_order.std(), difference.std()),
            f"{pair} is paired in the order of the list, should be by seed")
        check_box(pair, box, difference, other=(losses[a], losses[against]))


check_summary(2, 5, 0)
check_summary(3, int(rng.integers(6, 9)), 1)
### BEGIN HIDDEN TESTS
check_summary(4, 3, 3)
check_summary(2, 4, 1)
check_summary(3, int(rng.integers(5, 8)), 2)
### END HIDDEN TESTS

# %% [markdown]
# ## Task 4. The study, and its record (8 points, 30 minutes)
#
# **Given** `save_study`, in the next cell. It runs every arm of a question with each of your seeds, writes each run to
# `study.json` as soon as it is done, and at the end your summary. If it is stopped, call it again: runs that are there are kept.
# If you changed `summary`, just call it again. If you changed `run`, or the name in `student.txt`, delete `study.json` first.
#
# **Do:** choose your question *before* you look at any result. Then, in a cell of your own below the next one,
#
# ```python
# save_study("support", run, summary)    # or "delta", or "memory"
# ```
#
# **Write** `load_study()`: 1 to 3 lines that return what `study.json` holds, as it is.
#
# **Tested:** whether the record can be believed. All arms, with your five seeds each, none left out, swapped or run twice;
# settings, updates, tokens and parameters as planned; every run its own losses, and a `val_loss` that goes with them; the summary
# that follows from them; nothing changed by hand. And one run of each arm, drawn by lot, is **run again** (the grader takes
# one more): the first twenty losses must agree to 0.1 %, the others to 1 % (GaLore 8 %), which leaves room for another computer.
#
# <details><summary>Hint</summary>
#
# `json.loads` makes a dict of a text, `Path("study.json").read_text("utf-8")` is the text. If the test says that something is
# wrong with the record, do not mend the record: find out how it came about, and make it anew.
#
# </details>

# %%
RUNS = 5  # seeds for each arm


def digest(runs):
    """A number that changes when anything in the runs does."""
    return hashlib.sha256(json.dumps(runs, sort_keys=True).encode()).hexdigest()


def save_study(question, run, summary, path="study.json"):
    """Run all arms with each of your seeds, and write the record. Runs that are in the file are kept."""
    if question not in ARMS:
        raise ValueError(f"question is {question!r}, should be one of {', '.join(map(repr, ARMS))}")
    arms, path = ARMS[question], Path(path)
    before = json.loads(path.read_text("utf-8")) if path.exists() else {}
    if before.get("question", question) != question:
        raise ValueError(f"{path} is a study of {before['question']!r}; delete it if you want another question")
    runs = before["runs"] if before.get("arms") == arms else []
    there = {(one["arm"], one["seed"]) for one in runs}
    for name, settings in arms.items():
        for seed in seeds(RUNS):
            if (name, seed) not in there:
                runs.append({"arm": name} | run(settings, seed, STEPS))
                print(f"{name}, seed {seed}: {runs[-1]['val_loss']:.4f}", flush=True)
                write_study(path, {"question": question, "arms": arms, "runs": runs, "summary": None, "digest": digest(runs)})
    write_study(path, {"question": question, "arms": arms, "runs": runs, "summary": summary(runs, next(iter(arms))),
                       "digest": digest(runs)})


def write_study(path, study):
    text = json.dumps(study, indent=1)
    if not path.exists() or path.read_text("utf-8") != text:
        path.write_text(text, "utf-8")

# %% task="load_study"
def load_study():
    """What study.json holds."""
    ### BEGIN SOLUTION
    return json.loads(Path("study.json").read_text("utf-8"))
    ### END SOLUTION

# %% test="load_study" points=8 seconds=60
try:
    study = load_study()
except FileNotFoundError as error:
    raise Wrong(f"{error}: save_study makes it, beside this notebook. It is handed in with the notebook") from None
except ValueError as error:
    raise Wrong(f"study.json is no whole JSON file ({error}): delete it, and call save_study again") from None
say(isinstance(study, dict), f"load_study returns {study if study is None else type(study).__name__}, should be a dict")
missing = {"question", "arms", "runs", "summary", "digest"} - study.keys()
say(not missing, f"the record has no {', '.join(sorted(missing))}: was it written by save_study?")
say(study["question"] in ARMS, f"{study['question']!r} is none of the questions")
plan = ARMS[study["question"]]

# The plan was kept: arms, and what each may spend
for name in plan:
    say(name in study["arms"], f"arm {name!r} is missing: the question {study['question']!r} has {len(plan)} arms")
    for key in sorted(plan[name].keys() | study["arms"][name].keys()):
        done, planned = study["arms"][name].get(key), plan[name].get(key)
        say(done == planned, f"arm {name!r} has {key} {done}, the plan says {planned}: another "
            + ("budget than {:,} {}".format(*BUDGET[study["question"]]) if key in ("rank", "delta") else "arm"))
say(len(study["arms"]) == len(plan), f"arms {', '.join(study['arms'].keys() - plan.keys())} are not of this question")

# Complete: every arm with every seed, once
mine = seeds(RUNS)
for name in plan:
    there = [one.get("seed") for one in study["runs"] if one.get("arm") == name]
    twice = sorted({seed for seed in there if there.count(seed) > 1})
    say(there, f"arm {name!r} has no runs")
    say(not set(there) - set(mine), f"arm {name!r} has seed {sorted(set(there) - set(mine))}, which is not yours: {mine}. "
        "They are drawn from the name in student.txt: was it another when the study was made? Then delete study.json "
        "and make it anew")
    say(not set(mine) - set(there), f"arm {name!r} lacks a run with seed {sorted(set(mine) - set(there))}: none may be left "
        "out. Call save_study again, it adds what is missing")
    say(not twice, f"arm {name!r} has seed {twice} twice: each is run once, and nothing is chosen among runs")
say(len(study["runs"]) == RUNS * len(plan), f"{len(study['runs'])} runs, should be {RUNS * len(plan)}: some are of no arm")

# Each run: as long as all others, with losses that are its own
counted = {}
for name, settings in plan.items():
    config, made = model_and_method(settings["method"], settings["rank"], settings.get("delta"), SHAPE)
    counted[name] = made.build(config).num_parameters()
ends = {}
for one in study["runs"]:
    what = f"run of arm {one['arm']!r} with seed {one['seed']}"
    lost = {"updates", "tokens", "parameters", "losses", "val_loss"} - one.keys()
    say(not lost, f"{what} has no {', '.join(sorted(lost))}")
    say(len(one["losses"]) == STEPS, f"{what} has {len(one['losses'])} losses, should be one for each of {STEPS} updates")
    say(one["updates"] == STEPS, f"{what} had {one['updates']} updates, should be {STEPS} as the others")
    say(one["tokens"] == STEPS * BATCH * LENGTH, f"{what} had {one['tokens']:,} tokens, should be {STEPS * BATCH * LENGTH:,}")
    say(one["parameters"] == counted[one["arm"]],
        f"{what} trained {one['parameters']:,} parameters, this arm has {counted[one['arm']]:,}: another budget")
    losses = np.array([*one["losses"], one["val_loss"]], float)
    say(np.isfinite(losses).all(), f"{what} has a loss that is no number")
    say(abs(losses[0] - np.log(29)) < 0.3, f"{what} starts at {losses[0]:.3f}; an untrained model has about {np.log(29):.2f}")
    say(abs(losses[-1] - losses[-11:-1].mean()) < 0.25,
        f"{what} ends with training losses about {losses[-11:-1].mean():.2f}, val_loss {losses[-1]:.2f} does not go with that")
    end = tuple(one["losses"][-10:])
    say(end not in ends, f"{what} has the same losses as the {ends.get(end)}: one is a copy")
    ends[end] = what
say(len({one["val_loss"] for one in study["runs"]}) == len(study["runs"]), "two runs have the same val_loss: one is a copy")

# What is stated follows from what was measured
say(study["digest"] == digest(study["runs"]), "the runs are not as save_study wrote them: a number was changed (digest). "
    "Delete study.json, and make it anew")
say(study["summary"] is not None, "the record has no summary yet: call save_study again, it keeps the runs")
try:
    check("the record's summary", study["summary"], summary(study["runs"], next(iter(plan))), rtol=1e-6)
except Wrong as error:
    raise Wrong(f"{error}: it does not follow from the runs; after a change of `summary`, call save_study again") from None


# Some are run again. Computers differ in the last digits. That grows little in SLTrain; GaLore's projection has signs that are
# arbitrary, and from update 21, when it is renewed, its losses depend on them.
def run_again(one):
    job, what = trained(plan[one["arm"]], one["seed"]), f"run of arm {one['arm']!r} with seed {one['seed']}, made again:"
    later = 0.08 if plan[one["arm"]]["method"] == "galore" else 0.01
    check(f"{what} start of its losses (updates 1 to 20)", np.array(one["losses"][:20]), job.losses[:20], rtol=1e-3, atol=0)
    check(f"{what} list of its losses", np.array(one["losses"]), job.losses, rtol=later, atol=0)
    check(f"{what} its val_loss", one["val_loss"], job.val_loss, rtol=later, atol=0)


rng = draw("load_study")
for name in plan:
    of_arm = [one for one in study["runs"] if one["arm"] == name]
    run_again(of_arm[rng.integers(RUNS)])
### BEGIN HIDDEN TESTS
run_again(study["runs"][rng.integers(len(study["runs"]))])


def losses_of(arm):
    return np.array([one["val_loss"] for seed in mine for one in study["runs"] if (one["arm"], one["seed"]) == (arm, seed)])


for part, group in (("arms", plan), ("differences", list(plan)[1:])):
    for name in group:
        values = losses_of(name) - (losses_of(next(iter(plan))) if part == "differences" else 0)
        low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        check(f"the record's summary of {name!r} in {part!r}", study["summary"][part][name], {
            "mean": values.mean(), "se": values.std(ddof=1) / RUNS**0.5, "low": low, "high": high}, rtol=1e-6)
### END HIDDEN TESTS

# %% [markdown]
# ## Task 5. The report (20 points, 120 minutes)
#
# One to two pages, below, for a reader who knows SLTrain and not your notebook. Your figure comes from a code cell of your own
# above the report; the numbers come from `load_study()`. Save the notebook with the figure in it. A result of "no difference that
# five seeds can show" is as good as any other.
#
# | criterion | points | full | half | none |
# |---|---|---|---|---|
# | Question | 3 | what, why it is open, what you expected before the runs | no reason or no expectation | a topic |
# | Method | 4 | enough to repeat it, see below | one or two things are missing | "I ran the code" |
# | Result | 6 | figure with intervals, differences in numbers, no more said | no intervals, or too much claimed | runs picked |
# | Limits | 5 | the three that matter, what each could change, what to do next | a list for any study | "more compute" |
# | Writing | 2 | short, in order, every number with its unit | to be read twice | not to be followed |
#
# Method: arms; what is held equal, and by what count; updates and tokens; seeds; learning rates and how they were chosen; the
# statistic. Result: axes and units named; paired differences with their intervals. Limits: think of size, length, text, learning
# rates, seeds, and of what "equal" did not count.
#
# Half points exist. What was tried and did not work may be told, and costs nothing.

# %% [markdown] written="report" points=20
# **A random support, and three that are not.** (A model answer, of the seeds of a student without a name.)
#
# *Question.* SLTrain draws the places of $S$ by lot. That costs nothing, but nothing says that it is best: places where the loss
# falls fastest at first might be worth more. Where $S$ fills whole rows or one block it has the same number of values, but adds
# to the rank of few rows only. We expected the gradient's places first, random ones close to them, rows and block last.
#
# *Method.* One block of width 64, text of an invented language, vocabulary of 29. SLTrain with $r = 8$, $\delta = 0.1$ in all
# arms: 18,774 trained parameters each. 120 updates of 16 sequences of 32 letters, 61,440 in all; Adam, cosine schedule, learning
# rate 0.01, chosen with seed 42 and a random support. Five seeds, drawn from the name; a seed is the same initial model and the
# same batches in every arm, so differences are taken by seed. Intervals are 95 %, Student's $t$ with 4 degrees of freedom.
#
# *Result.* Loss of 8,192 held-out letters, nats per letter, lower is better:
#
# | support | mean and interval | minus random, by seed |
# |---|---|---|
# | random | 1.533 (1.464 to 1.601) | |
# | gradient | 1.640 (1.533 to 1.748) | 0.108 (0.007 to 0.209) |
# | block | 1.691 (1.618 to 1.764) | 0.159 (0.112 to 0.205) |
# | rows | 1.735 (1.700 to 1.771) | 0.202 (0.101 to 0.304) |
#
# ```python
# import matplotlib.pyplot as plt
#
# study = load_study()
# for k, (arm, box) in enumerate(study["summary"]["arms"].items()):
#     losses = [one["val_loss"] for one in study["runs"] if one["arm"] == arm]
#     plt.plot([k - 0.15] * len(losses), losses, "o", color="gray")
#     plt.errorbar(k, box["mean"], yerr=box["high"] - box["mean"], fmt="ks", capsize=4)
# plt.xticks(range(len(study["summary"]["arms"])), study["summary"]["arms"])
# plt.ylabel("held-out loss (nats per letter)")
# plt.show()
# ```
#
# None of the three is better than random; block and rows are worse, well outside of their intervals. The gradient's places look
# worse too, but their interval nearly reaches 0, and with three comparisons one in seven such studies would show an interval
# that misses 0 by chance alone. We expected the opposite.
#
# *Limits.* (1) 120 updates end far from convergence: what is ahead then need not be ahead later, and the spread of speeds at the
# start may be all that is seen. (2) The learning rate was chosen for random places; where gradients are large, a smaller one may
# be right. (3) One batch's gradient is a noisy choice, and at the start embeddings are noise too; a support chosen from a trained
# dense model could do better. The experiment that would decide most: the same four arms, 1,000 updates, three learning rates for
# each.
