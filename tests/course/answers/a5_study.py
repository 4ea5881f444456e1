"""What students write for a5: MISTAKES that must be named, and OTHERS that are right, by task. See a1_engine.

The record that load_study reads lies in a5_study/, made by make.py there. Mistakes of a record are made in it after it was read.
"""

LOAD = 'return json.loads(Path("study.json").read_text("utf-8"))'
READ = 'study = json.loads(Path("study.json").read_text("utf-8"))\n    runs = study["runs"]\n'
FORGED = '    study["summary"], study["digest"] = summary(runs, "random"), digest(runs)\n'  # as if nothing had happened


def record(what, change, says, forged=True):
    """A mistake of the record. forged: summary and digest are made to fit."""
    lines = "".join(f"    {line}\n" for line in change.split("\n"))
    return what, LOAD, READ + lines + FORGED * forged + "    return study", says


ALL = ('return {"seed": seed, "updates": len(job.losses), "tokens": len(job.losses) * BATCH * LENGTH,\n'
       '            "parameters": job.model.num_parameters(), "losses": job.losses.tolist(), "val_loss": job.val_loss}')
COST = 'cost = made.build(config).num_parameters() if unit == "parameters" else sum(kept(made, config).values())'
BOX = 'return {"mean": float(mean), "se": float(se), "low": float(mean - half), "high": float(mean + half)}'
SE = "np.std(values, ddof=1) / len(values) ** 0.5"
PAIRS = "box([by_seed[seed] - base[seed] for seed in base])"

MISTAKES = {
    "largest_rank": [
        ("less than the budget", "cost <= budget", "cost < budget", "a cost equal to the budget is allowed"),
        ("the smallest rank", "return fitting[-1]", "return fitting[0]", "it is the smallest rank"),
        ("the next rank, over the budget", "return fitting[-1]", "return fitting[-1] + 1", "costs more than the budget"),
        ("the hidden size left out", 'shape["hidden_size"] + 1)', 'shape["hidden_size"])',
         "the rank may be equal to the hidden size"),
        ("indices not counted", "sum(kept(made, config).values())",
         'sum(n for kind, n in kept(made, config).items() if kind != "indices")', "the indices of S are not counted"),
        ("moments not counted", "sum(kept(made, config).values())",
         'sum(n for kind, n in kept(made, config).items() if kind != "optimizer")', "the moments are not counted"),
        ("weights only", "sum(kept(made, config).values())", 'kept(made, config)["weights"]', "weights alone are counted"),
        ("bytes whatever the unit", COST, "cost = sum(kept(made, config).values())", "is it parameters that are counted"),
        ("parameters whatever the unit", COST, "cost = made.build(config).num_parameters()", "parameters are counted, not bytes"),
        ("parameters times twelve", "sum(kept(made, config).values())", "12 * made.build(config).num_parameters()",
         "the indices of S are not counted"),
        ("indices of eight bytes", "kept(made, config).values()", "kept(made, config, index_bytes=8).values()",
         "an index takes 4 bytes, not 8"),
        ("stops at the first that does not fit", "            fitting.append(rank)\n",
         "            fitting.append(rank)\n        else:\n            break\n", "look beyond the first that does not fit"),
        ("no error for a small budget", 'raise ValueError(f"no rank of {method} fits {budget} {unit}")', "return 0",
         "accepts a budget that not even rank 1 fits"),
        ("None for a small budget", 'raise ValueError(f"no rank of {method} fits {budget} {unit}")', "return None",
         "accepts a budget that not even rank 1 fits"),
        ("delta forgotten", "model_and_method(method, rank, delta, shape)", "model_and_method(method, rank, 0.1, shape)",
         "sltrain with delta 0.2"),
        ("the course's shape", "model_and_method(method, rank, delta, shape)", "model_and_method(method, rank, delta, SHAPE)",
         "3 blocks of hidden size 24"),
        ("nothing returned", "return fitting[-1]", "fitting[-1]", "is None"),
        ("rank and budget", "return fitting[-1]", "return fitting[-1], budget", "should be one number"),
        ("the course's hidden size", 'shape["hidden_size"] + 1)', 'SHAPE["hidden_size"] + 1)', "and of this shape?"),
        ("the peak, not at rest", "sum(kept(made, config).values())",
         '__import__("minisl.memory.formula", fromlist="f").estimate(made, config, 4, 8)["peak"]', "bytes at rest"),
    ],
    "run": [
        ("one seed for all", "trained(settings, seed, steps)", "trained(settings, 42, steps)", "has the losses of seed 42"),
        ("another seed", "trained(settings, seed, steps)", "trained(settings, seed + 1, steps)", "has the losses of seed"),
        ("always STEPS", "trained(settings, seed, steps)", "trained(settings, seed)", "STEPS, not the `steps` of this run"),
        ("sequences, not tokens", "len(job.losses) * BATCH * LENGTH", "len(job.losses) * BATCH", "each has LENGTH tokens"),
        ("tokens of one update", "len(job.losses) * BATCH * LENGTH", "BATCH * LENGTH", "it counts those of one update"),
        ("tokens of STEPS", "len(job.losses) * BATCH * LENGTH", "STEPS * BATCH * LENGTH", "not the `steps` of this run"),
        ("one update fewer", '"updates": len(job.losses)', '"updates": len(job.losses) - 1', "one too few"),
        ("an array", "job.losses.tolist()", "job.losses", "does not go into JSON"),
        ("a list of arrays", "job.losses.tolist()", "[np.array(loss) for loss in job.losses]", "does not go into JSON"),
        ("the last loss only", "job.losses.tolist()", "float(job.losses[-1])", "one number for each update"),
        ("rounded", "job.losses.tolist()", "[round(loss, 2) for loss in job.losses.tolist()]", "it is rounded to 2 digits"),
        ("the first update left out", "job.losses.tolist()", "job.losses.tolist()[1:]", "the first included"),
        ("reversed", "job.losses.tolist()", "job.losses.tolist()[::-1]", "in reverse order"),
        ("the training loss", '"val_loss": job.val_loss', '"val_loss": float(job.losses[-1])', "it is the last training loss"),
        ("the best training loss", '"val_loss": job.val_loss', '"val_loss": float(job.losses.min())',
         "training loss"),
        ("the mean training loss", '"val_loss": job.val_loss', '"val_loss": float(job.losses.mean())',
         "mean of the training losses"),
        ("the better of two seeds", "job = trained(settings, seed, steps)",
         "job = min((trained(settings, one, steps) for one in (seed, seed + 1)), key=lambda job: job.val_loss)",
         "has the losses of seed"),
        ("parameters of the dense model", "job.model.num_parameters()", "Llama(LlamaConfig(**SHAPE)).num_parameters()",
         "'parameters'"),
        ("a key is missing", '"tokens": len(job.losses) * BATCH * LENGTH,', "", "has no 'tokens'"),
        ("a tuple", ALL, "return seed, steps, job.losses.tolist(), job.val_loss", "should be a dict"),
        ("nothing returned", "return {", "record = {", "should be a dict"),
    ],
    "summary": [
        ("ddof 0", "np.std(values, ddof=1)", "np.std(values)", "ddof = 0"),
        ("standard deviation", SE, "np.std(values, ddof=1)", "the standard deviation"),
        ("divided by n", SE, "np.std(values, ddof=1) / len(values)", "divided by n, not by its root"),
        ("variance", SE, "np.var(values, ddof=1) / len(values)", "the root is missing"),
        ("divided twice by n - 1", SE, "np.std(values, ddof=1) / (len(values) - 1) ** 0.5", "where the root of n belongs"),
        ("1.96", "stats.t.ppf(0.975, n - 1)", "1.96", "1.96 is for large n"),
        ("normal", "stats.t.ppf(0.975, n - 1)", "stats.norm.ppf(0.975)", "1.96 is for large n"),
        ("two", "stats.t.ppf(0.975, n - 1)", "2", "2 is for large n"),
        ("2.78", "stats.t.ppf(0.975, n - 1)", "2.78", "for 5 losses only"),
        ("4 degrees of freedom", "n - 1)", "4)", "t for 5 losses, here are"),
        ("one-sided", "stats.t.ppf(0.975, n - 1)", "stats.t.ppf(0.95, n - 1)", "take 0.975"),
        ("n degrees of freedom", "n - 1)", "n)", "n degrees of freedom, should be n - 1"),
        ("no t", "half = stats.t.ppf(0.975, n - 1) * se", "half = se", "one standard error, without t"),
        ("low and high swapped", BOX, BOX.replace('"low"', '"x"').replace('"high"', '"low"').replace('"x"', '"high"'),
         "the mean is not between"),
        ("median", "np.mean(values)", "np.median(values)", "it is the median"),
        ("best of all", "np.mean(values)", "np.min(values)", "it is the best of the runs"),
        ("sign", "by_seed[seed] - base[seed]", "base[seed] - by_seed[seed]", "wrong sign: arm minus `against`"),
        ("paired by position", PAIRS, "box([a - b for a, b in zip(by_seed.values(), base.values())])",
         "paired in the order of the list, should be by seed"),
        ("paired by rank", PAIRS, "box([a - b for a, b in zip(sorted(by_seed.values()), sorted(base.values()))])",
         "sorted by loss"),
        ("unpaired", PAIRS, """(lambda a, b: {"mean": a["mean"] - b["mean"], "se": (a["se"]**2 + b["se"]**2) ** 0.5,
            "low": 0.0, "high": 0.0})(box(list(by_seed.values())), box(list(base.values())))""", "as if they were independent"),
        ("boxes subtracted", PAIRS,
         "{k: box(list(by_seed.values()))[k] - box(list(base.values()))[k] for k in ('mean', 'se', 'low', 'high')}",
         "one arm's standard error minus the other's"),
        ("without sign", "by_seed[seed] - base[seed]", "abs(by_seed[seed] - base[seed])", "sign"),
        ("relative", "by_seed[seed] - base[seed]", "(by_seed[seed] - base[seed]) / base[seed]", "relative to the other"),
        ("not differences", PAIRS, "box(list(by_seed.values()))", "the arm's own mean"),
        ("against is compared with itself", " if arm != against}}", "}}", "all but"),
        ("always the first arm", "base = losses[against]", "base = losses[sorted(losses)[0]]", "the first arm, was taken"),
        ("a key is missing", '"se": float(se), ', "", "'se'"),
        ("other words", '"differences": {arm', '"difference": {arm', "keys 'arms', 'difference'"),
        ("nothing returned", BOX, "return None", "is None"),
    ],
    "load_study": [
        record("a seed swapped", 'runs[3]["seed"] = 42', "which is not yours", forged=False),
        record("a run left out", "del runs[7]", "lacks a run with seed", forged=False),
        record("an arm left out of the runs", 'runs[:] = [one for one in runs if one["arm"] != "block"]', "has no runs"),
        record("an arm left out", 'del study["arms"]["rows"]', "arm 'rows' is missing"),
        record("one run copied to another seed", 'runs[1] = runs[0] | {"seed": runs[1]["seed"]}', "one is a copy"),
        record("one run copied to another arm", 'runs[5] = runs[0] | {"arm": "rows"}', "one is a copy"),
        record("copied, val_loss too, losses not", 'runs[1]["val_loss"] = runs[0]["val_loss"]', "same val_loss"),
        record("a run twice", "runs.append(dict(runs[2]))", "twice"),
        record("best of two: another seed's run", 'runs[1] = run(study["arms"]["random"], 17) | {"arm": "random", "seed": 17}',
               "which is not yours", forged=False),
        record("more seeds than planned", 'runs.append(run(study["arms"]["random"], 17) | {"arm": "random"})',
               "which is not yours", forged=False),
        record("another budget", 'study["arms"]["random"]["rank"] = 12', "arm 'random' has rank 12, the plan says 8"),
        record("another density", 'study["arms"]["rows"]["delta"] = 0.2', "another budget"),
        record("another learning rate", 'study["arms"]["rows"]["lr"] = 0.001', "has lr 0.001"),
        record("parameters of another arm", 'runs[2]["parameters"] += 1232', "another budget"),
        record("longer runs of one arm", 'runs[4]["updates"] = 240', "240 updates, should be 120"),
        record("losses cut off", 'runs[4]["losses"] = runs[4]["losses"][:100]', "has 100 losses"),
        record("more tokens", 'runs[4]["tokens"] *= 2', "tokens, should be"),
        record("a better val_loss", 'runs[6]["val_loss"] -= 0.5', "does not go with that"),
        record("a loss that is no number", 'runs[6]["losses"][50] = float("nan")', "is no number"),
        record("the first updates cut off", 'runs[6]["losses"] = runs[6]["losses"][40:] + runs[6]["losses"][-40:]', "untrained"),
        record("one loss edited", 'runs[9]["losses"][60] += 0.01', "a number was changed", forged=False),
        record("one val_loss edited", 'runs[9]["val_loss"] += 0.01',
               "a number was changed", forged=False),
        record("summary of chosen runs", 'study["summary"]["arms"]["random"]["mean"] -= 0.02', "it does not follow from the runs",
               forged=False),
        record("no summary", 'study["summary"] = None', "has no summary yet", forged=False),
        record("summary against another arm", 'study["summary"] = summary(runs, "block")', "'differences'", forged=False),
        record("all losses better, and all made to fit",
               'for one in runs:\n    one["losses"] = [loss * 0.98 for loss in one["losses"]]\n    one["val_loss"] *= 0.98',
               "made again: start of its losses"),
        record("ends better, and all made to fit",
               'for one in runs:\n    one["losses"][20:] = [loss * 0.97 for loss in one["losses"][20:]]\n'
               '    one["val_loss"] *= 0.97',
               "made again: list of its losses"),
        record("val_loss better, and all made to fit", 'for one in runs:\n    one["val_loss"] -= 0.05',
               "made again: its val_loss"),
        record("another student's", 'for one in runs:\n    one["seed"] += 1', "which is not yours"),
        record("arms swapped", 'for one in runs:\n'
               '    one["arm"] = {"random": "block", "block": "random"}.get(one["arm"], one["arm"])',
               "made again"),
        record("another question", 'study["question"] = "delta"', "is missing"),
        record("no runs", 'study = {"question": "support", "arms": study["arms"]}', "has no digest, runs, summary", forged=False),
        ("the text", LOAD, 'return Path("study.json").read_text("utf-8")', "should be a dict"),
        ("the runs only", LOAD, 'return json.loads(Path("study.json").read_text("utf-8"))["runs"]', "should be a dict"),
        ("nothing returned", LOAD, LOAD.removeprefix("return "), "should be a dict"),
        ("a cut file", LOAD, LOAD.replace('"utf-8")', '"utf-8")[:1000]'), "no whole JSON file"),
        ("no file", LOAD, LOAD.replace("study.json", "other.json"), "No such file"),
    ],
}

OTHERS = {
    "largest_rank": {
        "from the top down": """
def largest_rank(method, delta, budget, unit, shape):
    from minisl.memory import formula
    for rank in reversed(range(1, shape["hidden_size"] + 1)):
        config, made = model_and_method(method, rank, delta, shape)
        if unit == "bytes":
            found = formula.kept(made, config)
            cost = found["weights"] + found["indices"] + found["optimizer"]
        else:
            cost = sum(p.data.size for p in made.build(config).parameters())
        if cost <= budget:
            return rank
    raise ValueError("too small")
""",
        "by formula": """
def largest_rank(method, delta, budget, unit, shape):
    h, f, L, V = (shape[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"))
    base = 2 * V * h + (2 * L + 1) * h
    nnz = L * (4 * int(delta * h * h) + 3 * int(delta * h * f)) if method == "sltrain" else 0
    dense = L * (4 * h * h + 3 * h * f)
    if method == "galore":
        if 12 * (base + dense) <= budget:
            return h
        rank = min(h - 1, (budget - 12 * base - 4 * dense) // (L * (8 * (4 * h + 3 * f) + 4 * 7 * h)))
    elif unit == "bytes":
        rank = (budget - 12 * (base + nnz) - 4 * nnz) // (12 * L * (11 * h + 3 * f))
    else:
        rank = (budget - base - nnz) // (L * (11 * h + 3 * f))
    if rank < 1:
        raise ValueError(budget)
    return min(rank, h)
""",
        "from what a method holds": """
import numpy as np
def largest_rank(method, delta, budget, unit, shape):
    costs = []
    for rank in range(1, shape["hidden_size"] + 1):
        config, made = model_and_method(method, rank, delta, shape)
        dense = Method("full", {}).build(config)
        numbers = extra = 0
        for name, p in dense.named_parameters():
            held = made.held(name, p.shape)
            numbers += sum(held.weights)
            extra += 4 * (sum(held.weights) + held.frozen + held.state + held.indices) + 8 * sum(held.moments)
        costs.append(numbers if unit == "parameters" else extra)
    fits = np.flatnonzero(np.array(costs) <= budget)
    if not len(fits):
        raise ValueError("nothing fits")
    return int(fits.max()) + 1
""",
    },
    "run": {
        "one key after another": """
def run(settings, seed, steps=STEPS):
    job, record = trained(settings, seed, steps), {}
    record["seed"], record["updates"] = seed, steps
    record["tokens"] = steps * LENGTH * BATCH
    record["parameters"] = int(sum(np.prod(p.data.shape) for p in job.model.parameters()))
    record["losses"] = [float(loss) for loss in job.losses]
    record["val_loss"] = float(job.val_losses[-1])
    return record
""",
        "evaluated again": """
def run(settings, seed, steps=STEPS):
    from minisl.analysis.job import validation_loss
    job = trained(settings, seed, steps)
    with kernels.using("numpy"):
        val_loss = validation_loss(job.model, TEXT, LENGTH)
    losses = list(map(float, job.losses))
    return dict(val_loss=val_loss, losses=losses, seed=seed, updates=len(losses), tokens=len(losses) * LENGTH * BATCH,
                parameters=sum(p.data.size for p in job.model.parameters()))
""",
        "without the given function": """
def run(settings, seed, steps=STEPS):
    shape = {k: v for k, v in SHAPE.items() if k != "vocab_size"}
    more = {k: settings[k] for k in ("delta", "every") if k in settings}
    start = None
    if "support" in settings:
        start = with_support(SUPPORTS[settings["support"]](seed))
    job = train(TEXT, settings["method"], steps=steps, shape=shape, lr=settings["lr"], seed=seed, checks=1, start=start,
                batch=BATCH, length=LENGTH, parts=2, rank=settings["rank"], alpha=float(settings["rank"]), **more)
    return {"seed": seed, "updates": steps, "tokens": steps * BATCH * LENGTH, "parameters": job.model.num_parameters(),
            "losses": job.losses.tolist(), "val_loss": job.val_loss}
""",
    },
    "summary": {
        "SciPy": """
def summary(runs, against):
    def box(x):
        low, high = stats.t.interval(0.95, len(x) - 1, loc=np.mean(x), scale=stats.sem(x))
        return dict(mean=np.mean(x), se=stats.sem(x), low=low, high=high)

    runs = sorted(runs, key=lambda one: one["seed"])
    x = {arm: np.array([one["val_loss"] for one in runs if one["arm"] == arm]) for arm in {one["arm"] for one in runs}}
    return {"arms": {arm: box(x[arm]) for arm in x},
            "differences": {arm: box(x[arm] - x[against]) for arm in x if arm != against}}
""",
        "a test's interval": """
def summary(runs, against):
    def box(x, y):
        found = stats.ttest_rel(x, y)
        ends = found.confidence_interval(0.95)
        d = np.subtract(x, y)
        return {"mean": d.mean(), "se": abs(d.mean() / found.statistic), "low": ends.low, "high": ends.high}

    seeds = sorted({one["seed"] for one in runs})
    table = {(one["arm"], one["seed"]): one["val_loss"] for one in runs}
    arms = list(dict.fromkeys(arm for arm, _ in table))
    rows = {arm: [table[arm, seed] for seed in seeds] for arm in arms}
    return {"arms": {arm: box(rows[arm], [0] * len(seeds)) for arm in arms},
            "differences": {arm: box(rows[arm], rows[against]) for arm in arms if arm != against}}
""",
        "loops and the statistics module": """
import math
import statistics
def summary(runs, against):
    out = {"arms": {}, "differences": {}}
    for arm in sorted({one["arm"] for one in runs}):
        values, differences = [], []
        for one in runs:
            if one["arm"] != arm:
                continue
            values.append(one["val_loss"])
            for other in runs:
                if other["arm"] == against and other["seed"] == one["seed"]:
                    differences.append(one["val_loss"] - other["val_loss"])
        for place, x in (("arms", values), ("differences", differences)):
            if place == "differences" and arm == against:
                continue
            m, e = statistics.fmean(x), math.sqrt(statistics.variance(x) / len(x))
            t = -stats.t.ppf(0.025, len(x) - 1)
            out[place][arm] = {"low": m - t * e, "high": m + t * e, "mean": m, "se": e}
    return out
""",
    },
    "load_study": {
        "open": """
def load_study():
    with open("study.json", encoding="utf-8") as file:
        return json.load(file)
""",
        "bytes": """
def load_study():
    return json.JSONDecoder().decode(Path("study.json").read_bytes().decode())
""",
        "what is needed, in another order": """
import pathlib
def load_study():
    study = json.loads((pathlib.Path.cwd() / "study.json").read_text())
    runs = sorted(study["runs"], key=lambda one: one["seed"])
    return {"question": study["question"], "arms": study["arms"], "runs": study["runs"][:0] + study["runs"],
            "summary": study["summary"], "digest": study["digest"], "seeds": [one["seed"] for one in runs]}
""",
    },
}
