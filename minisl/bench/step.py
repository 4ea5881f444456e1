"""A whole training step, each trainer in a process of its own, in turn; and where minisl's time goes."""

import json
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

from minisl import kernels
from minisl.bench import child
from minisl.bench.layer import problem
from minisl.bench.measure import PAUSE, in_turn, torch_or_none
from minisl.methods.sltrain import SLLinear


@contextmanager
def process(*arguments):
    """A function that asks a child for one step."""
    with subprocess.Popen([sys.executable, "-m", "minisl.bench.child", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as running:
        def step():
            print(file=running.stdin, flush=True)
            return json.loads(running.stdout.readline())
        try:
            yield step
        finally:
            running.stdin.close()


def compare(model, turns):
    """(trainer, method) -> answers of a child, taken in turn after two steps to warm up."""
    trainers = ["minisl", *(["torch"] if torch_or_none() else [])]
    with ExitStack() as stack:
        steps = {(who, method): stack.enter_context(process(who, model, method))
                 for method in ("sltrain", "full") for who in trainers}
        for step in steps.values():
            step()
            step()
        answers = {key: [] for key in steps}
        for _ in range(turns):
            for key, step in steps.items():
                time.sleep(PAUSE)
                step()  # the first after a pause has cold caches
                answers[key].append(step())
    return answers


def bench(machine, say, models=(("tiny", 15), ("60m", 5))):
    rows = []
    for model, turns in models:
        batch, length, _ = child.MODELS[model]
        say(f"Training step, {model}, batch {batch} x {length}, float32, AdamW")
        say(f"  {'':20}{'ms':>9}{'+-':>5}{'tokens/s':>10}{'of PyTorch':>12}{'peak MB':>9}{'of PyTorch':>12}")
        answers = compare(model, turns)
        for (who, method), found in answers.items():
            seconds, peak = [a["seconds"] for a in found], found[-1]["peak"]
            median = statistics.median(seconds)
            low, _, high = statistics.quantiles(seconds, n=4)
            row = {"model": model, "method": method, "trainer": who, "ms": 1e3 * median, "spread": (high - low) / 2 / median,
                   "tokens_per_second": batch * length / median, "peak_bytes": peak}
            columns = f"  {who + ' ' + method:20}{row['ms']:9.1f}{100 * row['spread']:4.0f}%{row['tokens_per_second']:10,.0f}"
            if peer := answers.get(("torch", method)):
                theirs = statistics.median(a["seconds"] for a in peer)
                row |= {"times_faster": theirs / median, "memory_ratio": peak / peer[-1]["peak"]}
                columns += f"{row['times_faster']:11.2f}x{peak / 1e6:9,.0f}{row['memory_ratio']:12.2f}"
            else:
                columns += f"{'':12}{peak / 1e6:9,.0f}"
            say(columns)
            rows.append(row)
    return rows


FUNCTIONS = ("linear_cross_entropy", "linear", "linear_backward", "factored_forward", "factored_backward",
             "materialised_forward", "materialised_backward", "attention", "attention_backward", "rms_norm", "rms_norm_backward",
             "swiglu", "swiglu_backward", "rope", "embedding_backward", "adamw", "square_sum")


def profile(machine, say, model="60m", turns=5):
    """Time inside each kernel of an SLTrain step, beside what its dense and sparse products need at the rates measured here."""
    built, ids, labels, _ = child.build(model, "sltrain")
    spent, rates = {}, sparse_rates()
    with kernels.running("cpu"):
        step = child.minisl_step(built, ids, labels, 1)
        step()
        for _ in range(turns):
            with timed(spent):
                step()
    whole = spent.pop("step") / turns
    needed = needs(built, labels.size, machine["gemm"], rates)
    say(f"Where a step goes, {model} sltrain, {1e3 * whole:.0f} ms; needed: its products at {machine['gemm'] / 1e9:.0f} GFLOP/s "
        f"dense, {rates['spmm'] / 1e9:.0f} and {rates['sddmm'] / 1e9:.0f} sparse (SpMM, SDDMM)")
    say(f"  {'':28}{'ms':>9}{'share':>8}{'needed ms':>11}")
    rows, total = [], 0.0
    for name, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        total += seconds / turns
        row = {"op": name, "ms": 1e3 * seconds / turns, "share": seconds / turns / whole, "needed_ms": 1e3 * needed.get(name, 0)}
        rows.append(row)
        say(f"  {name:28}{row['ms']:9.1f}{row['share']:8.1%}" + (f"{row['needed_ms']:11.1f}" if name in needed else ""))
    rows.append({"op": "all else", "ms": 1e3 * (whole - total), "share": 1 - total / whole, "needed_ms": 0.0})
    rows.append({"op": "step", "ms": 1e3 * whole, "share": 1.0, "needed_ms": 1e3 * sum(needed.values())})
    say(f"  {'all else':28}{rows[-2]['ms']:9.1f}{rows[-2]['share']:8.1%}")
    say(f"  {'step':28}{1e3 * whole:9.1f}{'':8}{rows[-1]['needed_ms']:11.1f}   needed: {sum(needed.values()) / whole:.0%}")
    return rows


def sparse_rates():
    """Operations per second of SpMM and SDDMM alone, 512 x 512."""
    dy, x, _, _, v, support = problem(512, 512, 8)
    timings = in_turn({"spmm": lambda: kernels.spmm(x, v, support), "sddmm": lambda: kernels.sddmm(dy, x, support)}, turns=5)
    return {name: 2 * len(v) * len(x) / min(t.seconds) for name, t in timings.items()}


def needs(model, tokens, gemm, sparse):
    """kernel -> seconds that its products take at these rates."""
    layers = [m for _, m in model.named_modules() if isinstance(m, SLLinear)]
    dense = sum(2 * tokens * len(m.lora_A.data) * sum(m.shape) for m in layers) / gemm
    entries = 2 * tokens * sum(len(m.support) for m in layers)
    V, D = model.head.shape
    heads, length = D, model.config.max_position_embeddings
    blocks = model.config.num_hidden_layers
    scores = 2 * tokens * min(length, 256) * heads * blocks * 0.75 / gemm  # half of the scores, in blocks of 128 queries
    return {"linear_cross_entropy": 6 * tokens * V * D / gemm, "factored_forward": dense + entries / sparse["spmm"],
            "factored_backward": 2 * dense + entries / sparse["spmm"] + entries / sparse["sddmm"],
            "attention": 2 * scores, "attention_backward": 5 * scores}


@contextmanager
def timed(spent):
    """Add the seconds inside the CPU backend's functions, and of the block as "step", to `spent`."""
    cpu = kernels.numba_status()[0].module
    right = {name: getattr(cpu, name) for name in FUNCTIONS}

    def wrapped(name, function):
        def call(*args):
            start = time.perf_counter()
            try:
                return function(*args)
            finally:
                spent[name] = spent.get(name, 0.0) + time.perf_counter() - start
        return call

    for name, function in right.items():
        setattr(cpu, name, wrapped(name, function))
    start = time.perf_counter()
    try:
        yield
    finally:
        spent["step"] = spent.get("step", 0.0) + time.perf_counter() - start
        for name, function in right.items():
            setattr(cpu, name, function)


