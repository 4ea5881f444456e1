"""Numbers in docs pages come from somewhere: from a file that a command wrote, from a computation that is made again here, or,
with the reason, from what elsewhere.json lists. And no page may hold a number of which nobody knows: each is changed in a copy,
and either something says so, or the test names it."""

import contextlib
import io
import json
import math
import re
from functools import cache
from pathlib import Path

import pytest

from minisl import config
from minisl.bench.distributed import BATCH, LENGTH, NETWORKS, RATE, ROWS, STEPS, modelled, on_paper, overlap
from minisl.compare.words import at_rest, report
from minisl.errors import InputError
from minisl.memory import __main__ as memory
from minisl.memory import paper
from minisl.memory.formula import estimate
from minisl.memory.measure import KINDS
from minisl.methods import Method, flags

DOCS = Path(__file__).parents[2] / "docs"
TESTS = DOCS.parent / "tests"
FUZZ = ("fuzz/test_configs.py", "fuzz/test_commands.py", "fuzz/test_runs.py", "fuzz/test_tensors.py", "fuzz/test_text.py",
        "test_hf.py", "data/test_fuzz.py")
SIZES = {"60m": "60M", "130m": "130M", "350m": "350M", "1b": "1B", "7b": "7B"}


def read(page):
    return " ".join((DOCS / page).read_text("utf-8").split())


@cache
def data(path):
    return json.loads((DOCS / path).read_text("utf-8"))


def rows_of(*rows):
    """Lines of a Markdown table; numbers as they are written."""
    return [f"| {' | '.join(cells)} |".replace("  |", " |") for cells in rows]


# What must be on each page

def comparison():
    rows = {r["method"]: r for r in data("comparison/compare.json")["rows"]}
    best, sl, full, low, eight, scale = (rows[name] for name in (
        "muon", "sltrain", "full", "low_rank", "sltrain:optimizer=adam8bit,per-layer", "scale"))
    bits = {name: f"{r['bits_per_byte']:.3f}" for name, r in rows.items()}
    near = rows["sltrain:initializer-range=0.005"]
    low_high = ["{:.3f} to {:.3f}".format(*r["range"]) for r in (sl, low)]
    runs = sum(len(r["tried"]) + len(r["curves"]) for r in rows.values())
    return [
        *report(list(rows.values())).splitlines(), f"{runs} runs",
        f"with {100 * sl['parameters'] / full['parameters']:.0f} % of its parameters: {bits['sltrain']} against {bits['full']}",
        f"It is {100 * (sl['val_loss'] / best['val_loss'] - 1):.1f} % over the best loss",
        f"`low_rank`, the same without it, has {bits['low_rank']}", f"the two ranges overlap ({low_high[0]} and {low_high[1]})",
        f"of all rows**, {at_rest(eight) / 1e6:.2f} MB, at {eight['bits_per_byte']:.3f}",
        f"SCALE comes next, {at_rest(scale) / 1e6:.2f} MB, at {bits['scale']}",
        f"({full['lr']:g} of {min(map(float, full['tried']))} to {max(map(float, full['tried']))})",
        f"from 0.005 chose {near['lr']} here and ends at {bits[near['method']]}",
        f"the 200 updates of its search end at {min(full['tried'].values()):.1f}",
        *who_needs_least(), *at_60m()]


@cache
def least(size):
    """name -> (bytes at rest, at the peak), as the command on the page says it."""
    flags = ["--config", size, "--optimizer", "adam8bit", "--per-layer", "--weights-dtype", "bfloat16", "--batch-size", "1"]
    flags += ["--rank", "1024", "--delta", "0.05"] if size == "7b" else []
    names = re.findall(r"^\| `(\w+)` \| \d+ \| \d+ \|", (DOCS / "comparison.md").read_text(), re.M)
    own, rest = memory.flags().parse_known_args([*flags, "--method", *names])
    found = {}
    for name in own.method:
        s = config.parse([*rest, "--method", name])[0]
        e = estimate(Method(name, s.to_dict()), s.model_config(), 1, 256, own.weights_dtype, s.optimizer, 4, s.per_layer)
        found[name] = e["weights"] + e["indices"] + e["optimizer"], e["peak"]
    return found


def who_needs_least():
    small, large = least("60m"), least("7b")
    rest = {name: large[name][0] / 1e9 for name in large}
    return [
        *rows_of(*([f"`{n}`", *(f"{b / 1e6:.0f}" for b in small[n]), *(f"{b / 1e9:.2f} GB" for b in large[n])] for n in small)),
        f"{rest['low_rank']:.1f} instead of {rest['sltrain']:.1f} GB at rest at 7B",
        f"come to {rest['scale']:.1f} and {rest['swan']:.1f} GB with every weight dense",
        ", ".join(f"{100 * (1 - rest['sltrain'] / rest[name]):.0f} % under {title}" for name, title in (
            ("apollo", "APOLLO"), ("galore", "GaLore"), ("full", "full-rank 8-bit Adam"))) + " at 7B"]


def at_60m():
    """Of the 60M run, whose folder was not kept: what can be computed, with the rest as the page has it."""
    section = (DOCS / "comparison.md").read_text().partition("\n## 60M\n")[2]
    lines, best, rests = [], float(re.search(r"\| `.*?` \| ([\d.]+)", section)[1]), {}
    for name, bits in re.findall(r"^\| `(.*?)` \| ([\d.]+) \| [\d.]+ to", section, re.M):
        method, _, flags = name.partition(":")
        s = config.parse(["--config", "60m", "--method", method, *(f"--{f}" for f in flags.split(",") if f)])[0]
        e = estimate(Method(method, s.to_dict()), s.model_config(), 4, 128, "float32", s.optimizer, 4, s.per_layer)
        rests[name] = rest = sum(e[k] for k in KINDS[:3])
        parameters = Method(method, s.to_dict()).build(s.model_config()).num_parameters()
        lines += [f"| `{name}` | {bits} | {bits} to {bits} |", f"| {parameters:,} | {rest / 1e6:.2f} |"]
        measured = re.search(rf"`{re.escape(name)}` .* ([\d.]+) \([\d.]+\) \| ([\d.]+) \([\d.]+\) \|$", section, re.M)
        lines.append(f"| `{name}` | " + " | ".join(f"{e[k] / 1e6:.2f} ({e[k] / 1e6:.2f})" for k in KINDS[:4])
                     + "".join(f" | {m} ({e[k] / 1e6:.2f})" for m, k in zip(measured.groups(), KINDS[4:])) + " |")
        if float(bits) <= 1.02 * best:
            lines.append(f"`{name}` ({rest / 1e6:.2f} MB at rest")
    return [*lines, f"at {100 * rests['sltrain:optimizer=adam8bit,per-layer'] / rests['muon']:.0f} % of Muon's memory at rest"]


def cpu():
    bench = data("bench/bench.json")
    by = {(r["in"], r["out"], r["what"]): r for r in bench["layer"]}
    layers = []
    for key in dict.fromkeys((r["in"], r["out"], r["r"]) for r in bench["layer"]):
        get = {what: by[(*key[:2], what)]["ms"] for *_, what in by}
        layers.append([", ".join(map(str, key)), f"{get['minisl']:.1f}", f"{get['NumPy dense']:.1f}",
                       f"**{get['minisl'] / get['NumPy dense']:.2f}**", f"{get['PyTorch, public algorithm']:.1f}",
                       f"**{get['minisl'] / get['PyTorch, public algorithm']:.2f}**", f"{get['PyTorch dense']:.1f}",
                       f"{get['NumPy and SciPy, factored']:.0f}"])
    ops = [[r["op"], *(f"{r[k]:.2f}" for k in ("minisl_ms", "NumPy_ms", "PyTorch_ms")), f"{r['minisl_ms'] / r['PyTorch_ms']:.2f}",
            f"{r['limit_ms']:.2f}", f"{r['limit_ms'] / r['minisl_ms']:.0%}"] for r in bench["ops"]]
    steps = {(r["model"], r["method"], r["trainer"]): r for r in bench["step"]}
    batches = {"tiny": "16 x 128", "60m": "8 x 256"}
    trained = [[f"{model}, {batches[model]}", method, f"{r['ms']:.1f}", f"{r['tokens_per_second']:,.0f}", f"{p['ms']:.1f}",
                f"**{p['ms'] / r['ms']:.2f}**", f"{r['peak_bytes'] / 1e6:,.0f}", f"{r['peak_bytes'] / p['peak_bytes']:.2f}"]
               for (model, method, trainer), r in steps.items() if trainer == "minisl"
               for p in [steps[model, method, "torch"]]]
    whole = bench["profile"][-1]["ms"]
    profile = [[r["op"], f"{r['ms']:.1f}", f"{r['ms'] / whole:.1%}", f"{r['needed_ms']:.1f}" if r["needed_ms"] else ""]
               for r in bench["profile"]]
    v, machine = bench["versions"], bench["machine"]
    return [
        *rows_of(*layers, *ops, *trained, *profile),
        f"`python -m minisl.bench --out docs/bench`, {bench['date']}: {bench['processor']}, {machine['cores']} cores, "
        f"{bench['blas']}, "
        f"{machine['gemm'] / 1e9:.0f} GFLOP/s float32 GEMM, {machine['memory'] / 1e9:.0f} GB/s; Python {v['python']}, NumPy "
        f"{v['numpy']}, Numba {v['numba']}, SciPy {v['scipy']}, PyTorch {v['torch']}.",
        "(512, 512, 128) is at the edge ({:.3f},".format(by[512, 512, "minisl"]["ms"] / by[512, 512, "NumPy dense"]["ms"]),
        "and (768, 768, 256) takes {:.2f}.".format(by[768, 768, "minisl"]["ms"] / by[768, 768, "NumPy dense"]["ms"]),
        f"W 512 x 512, 3 % of it in S: {int(.03 * 512**2):,} entries, {4096 * int(.03 * 512**2) / 1e6:.0f} million",
        f"64 tokens of x, turned, are 512 x 64 numbers: {512 * 64 * 4 // 1024} KB",
        f"the factors' products alone are {256 * (768 + 768) / 768**2:.2f} of the dense",
        f"Peak memory is {steps['60m', 'sltrain', 'minisl']['memory_ratio']:.2f} of PyTorch's",
        f"parameters and moments ({12 * 43_529_832 / 1e6:.0f} MB)"]


def readme():
    bench, rows = data("bench/bench.json"), {r["method"]: r for r in data("comparison/compare.json")["rows"]}
    by = {(r["in"], r["out"], r["what"]): r["ms"] for r in bench["layer"]}
    shapes = list(dict.fromkeys(k[:2] for k in by))
    mine, dense, public = ([by[(*s, what)] for s in shapes] for what in ("minisl", "NumPy dense", "PyTorch, public algorithm"))
    steps = {(r["model"], r["method"], r["trainer"]): r for r in bench["step"]}

    def each(numbers, digits):
        return ", ".join(f"{n:.{digits}f}" for n in numbers)

    tiny, other = steps["tiny", "sltrain", "minisl"], steps["tiny", "sltrain", "torch"]
    large, theirs, full = (steps["60m", *k] for k in (("sltrain", "minisl"), ("sltrain", "torch"), ("full", "minisl")))
    table = []
    for name, r in rows.items():
        label = {"sltrain": "**`sltrain`**", "sltrain:optimizer=adam8bit,per-layer": "`sltrain`, 8-bit Adam, per-layer updates"}
        label = label.get(name, f"`{name.partition(':')[0]}`")
        rest = f"{at_rest(r) / 1e6:.2f}"
        table.append([label, f"{r['bits_per_byte']:.3f}", "{:.3f} to {:.3f}".format(*r["range"]), f"{r['parameters']:,}",
                      f"**{rest}**" if "per-layer" in name else rest])
    chosen = ("muon", "swan", "apollo:every=20", "sltrain", "galore:every=20", "low_rank", "sltrain:optimizer=adam8bit,per-layer",
              "full")
    return [
        *rows_of(*(table[list(rows).index(name)] for name in chosen)),
        f"{each(mine, 1)} ms | {each(dense, 1)} ms, the dense layer's",
        f"{each([a / b for a, b in zip(mine, dense)], 2)} of the time | | the same | | {each(public, 1)} ms, the public",
        f"in PyTorch | {each([a / b for a, b in zip(mine, public)], 2)} of the time",
        f"{tiny['ms']:.1f} ms | {other['ms']:.1f} ms, PyTorch eager | {other['ms'] / tiny['ms']:.1f} times as fast",
        " | ".join(f"{r['ms'] / 1e3:.2f} s, {r['peak_bytes'] / 1e9:.2f} GB" for r in (large, theirs))
        + f", PyTorch eager | {theirs['ms'] / large['ms']:.1f} times as fast, half the memory",
        f"{large['ms'] / 1e3:.2f} s | {full['ms'] / 1e3:.2f} s | {large['ms'] / full['ms']:.2f} of the time",
        f"reaches {round(bench['machine']['gemm'] / 1e9, -1):.0f} GFLOP/s under NumPy"]


def distributed():
    rows = data("distributed/bench.json")["distributed"]
    same = {(r["method"], r["dtype"]): r["off"] for r in rows if r["what"] == "same"}
    sums = {r["processes"]: r for r in rows if r["what"] == "sum"}
    allowed = {"float64": "1e-12", "float32": "1e-6"}
    table = [[f"`{m}`, {d}", *(f"{off[n]:.1e}".replace("e-0", "e-") for n in "24"), allowed[d]] for (m, d), off in same.items()]
    steps = []
    for r in (r for r in rows if r["what"] == "step"):
        n, ms = r["processes"], [1e3 * r[k] for k in ("silent", "compute", "seconds", "sums")]
        payload = max(s["payload"] for s in rows if s["what"] == "step" and s["method"] == r["method"]) / 1e6
        talk = ["", ""] if n == 1 else [f"{ms[2] - ms[0]:.0f}", f"{ms[3]:.0f}"]
        label = f"`{r['method']}`, {payload:.2f} MB" if n == 1 else ""
        steps.append([label, str(n), f"{ms[0]:.0f}", f"{ms[1]:.0f}", *talk, f"{ms[2]:.0f}", f"{ms[1] + ms[3]:.0f}"])
        if n == 1:
            assert modelled(r["silent"], 1, [], None, 2)[0] == r["compute"]
    early, total = map(sum, zip(*(overlap(r["ranks"]) for r in rows if r["what"] == "timeline" and r["method"] == "full")))
    weights, times = [], []
    for size, title in SIZES.items():
        full, sl = (next(r["bytes"] for r in rows if r["what"] == "paper" and (r["size"], r["method"]) == (size, m))
                    for m in ("full", "sltrain"))
        weights.append([title, f"{full / 1e6:,.0f}", f"{sl / 1e6:,.0f}", f"{100 * sl / full:.0f} %"])
        slow, fast = ([on_paper(size, m, 64, b) for m in ("full", "sltrain")] for b in NETWORKS)
        times.append([title, *(f"{computed:.3f}" for computed, _ in slow), *(f"{sent:.3f}" for _, sent in (*slow, *fast))])
    full, sl = (max(on_paper("7b", m, 64, NETWORKS[1])) for m in ("full", "sltrain"))
    return [
        *rows_of(*table), *[line.replace("|  |", "| |") for line in rows_of(*steps)], *rows_of(*weights, *times),
        f"against one process, {STEPS} steps", f"With {ROWS} x {LENGTH} tokens a process",
        f"An update of {BATCH:,} tokens (the paper's 512 x {BATCH // 512}) by 64 GPUs of {RATE / 1e12:.0f} TFLOP/s",
        f"{early} of {total} sums ({total // 2} of each of two processes)",
        "Sums over 2 processes took {:.1f} ms + bytes / {:.2f} GB/s, over 4 on two cores {:.1f} ms + bytes / {:.2f} GB/s".format(
            *(f(sums[n]) for n in (2, 4) for f in (lambda s: 1e3 * s["latency"], lambda s: s["bandwidth"] / 1e9))),
        f"at 7B an update takes {sl:.1f} s and not {full:.1f}"]


@cache
def estimated(*flags):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        memory.main([*flags])
    return said.getvalue().splitlines()


def memory_page():
    bars = {(b["label"], b["size"]): b for b in paper.bars()}
    large = {label: b for (label, size), b in bars.items() if size == "7B"}
    paid = {label: b["published"] for label, b in large.items()}
    peaks = {name: paper.estimated(m, "7b", o, p, index_bytes=i)["peak"] / 1e9 for name, m, o, p, i, _ in paper.STEPS}
    first, eight, layers, sl, narrow = peaks.values()
    rest = {label: sum(b["found"][k] for k in ("weights", "indices", "optimizer")) / 1e9 for label, b in large.items()}
    before, own = paid["Adam"] - paid["8-bit Adam"], paid["8-bit Adam"] - paid["8-bit SLTrain"]
    million = paper.method_of("full", "7b").build(paper.model_of("7b")).num_parameters()
    printed = list(paper.table())
    measured = re.search(r"```\npython -m minisl.memory --config 60m --measure.*?```", (DOCS / "memory.md").read_text(), re.S)[0]
    s = config.parse(["--config", "60m", "--batch-size", "1"])[0]
    found = estimate(Method("sltrain", s.to_dict()), s.model_config(), 1, s.seq_len)
    columns = [f"{k} {got} {found[k] / 1e6:.1f} {100 * (found[k] / 1e6 / float(got) - 1):+.0f}"[:-1] for k, got in
               re.findall(r"^  (\w+) +([\d.]+) +[\d.]+ +[-+]", measured, re.M)]
    assert len(columns) == 7

    def needs(size):
        """How many sequences a step would have had, by the bars of a size."""
        batches = []
        for label, how in paper.BARS.items():
            few, many = (paper.estimated(how[0], size.lower(), *how[1:], batch=b)["peak"] / 1e9 for b in (32, 48))
            batches.append(32 + 16 * (bars[label, size]["published"] - few) / (many - few))
        return f"{min(batches):.0f} to {max(batches):.0f}"

    worst = max(100 * abs(b["found"]["peak"] / 1e9 / b["published"] - 1) for label, b in large.items() if label != "Adam")
    closed = [sum(paper.closed("relora", size)) / 1e9 - sum(paper.counted("relora", size)) / 1e9 for size in SIZES]
    return [
        *printed, *estimated("--config", "60m", "--method", "full", "low_rank", "sltrain", "cola"),
        *paper.figure(list(bars.values())), *paper.ladder(), *columns,
        "That rule gives " + next(line for line in printed if "cells agree" in line).partition(" agree")[0] + " to the digit",
        f"The 73 % are {paid['8-bit SLTrain']} against {paid['Adam']} GB",
        f"Of the {before + own:.1f} GB, **{before:.1f} ({100 * before / (before + own):.0f} %) are there without SLTrain**",
        f"on a full-rank model ({paid['8-bit Adam']} GB)",
        f"and **{own:.1f} ({100 * own / (before + own):.0f} %) are SLTrain's own**",
        f"with the same optimizer SLTrain saves {100 * own / paid['8-bit Adam']:.0f} %",
        f"{first - eight:.1f} from 8-bit moments, {eight - layers:.1f} from gradients that are not kept",
        f"What SLTrain saves ({layers - sl:.1f} estimated, {own:.1f} measured)",
        f"{rest['8-bit SLTrain']:.1f} GB at rest instead of {rest['8-bit Adam']:.1f}.",
        f"int32 indices would save {sl - narrow:.1f} more", f"8 bytes a parameter, {8 * million / 1e9:.1f} GB",
        f"The paper's {paid['Adam']} is 10 bytes a parameter ({million / 1e8:.2f})",
        f"that would be these {paid['Adam'] - first:.1f} GB",
        f"Measured against {first:.1f}, {paid['8-bit SLTrain']} is {100 * (1 - paid['8-bit SLTrain'] / first):.0f} % less",
        f"ReLoRA is {min(closed):.2f} to {max(closed):.2f} G smaller",
        f"SLTrain at 60M has {sum(paper.counted('sltrain', '60m')) / 1e9:.3f} G and prints {paper.cell('sltrain', '60m'):.2f}",
        f"fits 7B with per-layer updates to {worst:.0f} %; 350M needs {needs('350M')}, 1B {needs('1B')}, so"]


def differences():
    printed = math.exp(3.40 * 20 / 21)
    return [f"With 3.40 nats a token and 20 batches that is {3.40 * 20 / 21:.2f}, a perplexity of {printed:.1f} instead of "
            f"{math.exp(3.40):.1f}", f"so {config.Settings.seq_len} times as many tokens",
            f"| 2,048 | {paper.model_of('7b').max_position_embeddings:,}, as for the other sizes",
            f"128 times `--scale`, which is {768 / 4 / 128} for that script", f"K = {flags('trp')['every'].default}; on"]


def cost_model():
    rows = data("bench/bench.json")["scaling"]
    off = {(r["varied"], r["value"]): r["expected_ms"] / r["ms"] - 1 for r in rows}
    wide = {k: v for k, v in off.items() if abs(v) > 0.2}
    assert set(wide) == {("tokens", 256), ("delta", 0.3)}
    low = [100 * (1 - r["expected_bytes"] / r["bytes"]) for r in rows]
    short = next(r["ms"] for r in rows if (r["varied"], r["value"]) == ("tokens", 256))
    return [
        f"256 tokens, expected {-100 * off['tokens', 256]:.0f} % too little: a step of {short // 10 * 10:.0f} ms",
        f"density 0.3, expected {100 * off['delta', 0.3]:.0f} % too much",
        f"Memory is expected {min(low):.0f} to {max(low):.0f} % too low"]


def runs():
    soak = data("soak/soak.json")
    checkpoints, evaluations = soak["steps"] // 100 + 1, soak["steps"] // 250 + 1
    memory_, speed, clock = soak["resident_mb"], soak["tokens_per_cpu_second"], [round(x, -2) for x in soak["tokens_per_second"]]
    drawn = {path: [int(few or many) for few, many in re.findall(
        r"^@examples\(\d+, (\d+)\)|^EXAMPLES = (\d+)", (TESTS / path).read_text(), re.M)] for path in FUZZ}
    hub, streams = drawn["test_hf.py"], 2 * drawn["data/test_fuzz.py"]
    fuzz = drawn | {"test_hf.py": hub, "data/test_fuzz.py": streams}
    counts = {name: f"{sum(fuzz[path]):,}" for name, path in (
        ("configs, settings, method options", "fuzz/test_configs.py"),
        ("command lines of eight commands", "fuzz/test_commands.py"),
        ("runs and comparisons", "fuzz/test_runs.py"))}
    text = [f"{n:,}" for n in fuzz["fuzz/test_text.py"]]
    counts |= {"tokenizer files": text[0], "text": text[1],
               "safetensors of runs; of Hugging Face": f"{sum(fuzz['fuzz/test_tensors.py']):,}; {hub[0]:,}",
               "streamed files and tokenizers; folders of shards": "; ".join(f"{n:,}" for n in streams)}
    return [
        *(f"| {name} | {count} |" for name, count in counts.items()), f"draws {sum(map(sum, fuzz.values())):,} malformed inputs",
        f"On {soak['date']}, two cores",
        f"{soak['minutes']:.1f} minutes, {soak['steps']:,} steps, {checkpoints} checkpoints, {evaluations} evaluations.",
        f"Resident memory was {memory_[0]:.1f} MB after the first tenth and {memory_[1]:.1f} MB at the end, with "
        f"{soak['threads'][0]} threads and {soak['files'][0]} open files throughout; {speed[0]:,.0f} tokens a second of "
        f"processor time in the first quarter, {speed[1]:,.0f} in the last.",
        f"By the clock it was {clock[0]:,.0f} to {clock[-1]:,.0f} a second"]


def analyses():
    """The lines that `python -m minisl.analysis` printed, each number as the page writes it."""
    kept = data("analyses/numbers.json")

    def found(name, pattern, **more):
        """The groups of a pattern in a figure's line."""
        match = re.search(pattern, kept["lines"][name])
        assert match, f"{name}: {kept['lines'][name]}"
        return match.groups()

    def percent(text):
        return text.replace("%", " %")

    kept_part, below, largest = found("spectrum", r"hold (\d+%) .* below ([\d.]+), the largest of W is ([\d.]+)")
    losses = dict(re.findall(r"([a-z ]+?) ([\d.]+)(?:,|  *nats) ?", kept["lines"]["supports"]))
    low, high, steep, apart, chosen = found(
        "seeds", r"([\d.]+) to ([\d.]+) nats per byte, ([\d.]+) apart at most and ([\d.]+) at .* residual at ([\d.]+)")
    head, tail, first = found("parts", r": (\d+%), of the other 96: (\d+%); the larger part of the first (\d+)")
    cosines = re.findall(r"(\w+) ([\d.]+) \(([\d.]+)\)", kept["lines"]["cancellation"])
    outputs, weights = {kind: y for kind, y, _ in cosines}, [w for *_, w in cosines]
    both, alone = zip(*re.findall(r"B A \+ S (\d+)%, S (\d+)%", kept["lines"]["full_rank"]))
    at = re.findall(r"c ([\d.]+):", kept["lines"]["full_rank"])
    shares = [alone[at.index(c)] for c in ("0.5", "1", "1.5", "2", "3")]
    grid = [[rank, *re.findall(r"[\d.]+ ([\d.]+)(?:,|$| nats)", rest)] for rank, rest in
            re.findall(r"r (\d+): ([^;]+)", kept["lines"]["ablation"])]
    best = min(loss for _, *row in grid for loss in row)
    basis = dict(re.findall(r"(\w+, every \d+) ([\d.]+)", kept["lines"]["basis_change"]))
    linear, dynamic, smallest = found("maps", r"error ([\d.]+%).*error ([\d.]+%) over three decades, 0 below ([\de.-]+)$")
    bits = dict(re.findall(r"([\w ,]+?) ([\d.]+)(?:, | nats)", kept["lines"]["eight_bits"]))
    lost = found("eight_bits", r"embedding ([\d.]+%), head ([\d.]+%), matrices ([\d.]+%)")
    ours, printed = found("counting", r"perplexity ([\d.]+) here would be printed as (.*);")
    printed = {n: value for value, n in re.findall(r"([\d.]+) \(N (\d+)\)", printed)}
    right = ", ".join(" -> ".join(pair) for pair in re.findall(r"([\d.]+) -> ([\d.]+)", kept["lines"]["counting"]))
    tenth = [f"{float(share[:-1]):.1f}" for share in lost]
    return [
        f"the first 32 of 128 singular values hold {percent(kept_part)} of the squares",
        f"the residual's entries are below {below}, with {largest} the largest entry of W",
        f"The wide full-rank model ({losses['full']})", f"rank 32: {losses['alone']}.",
        f"of the residual's entries {losses['largest']}, with random ones {losses['random']}",
        f"all else frozen: {losses['trained largest']} and {losses['trained random']}.",
        f"random supports end between {low} and {high}, {apart} apart", f"they were {float(steep):.2f} apart",
        f"no better and no worse than those, {chosen}:",
        f"L carries {percent(head)} of the first 32 and {percent(tail)} of the other 96",
        f"larger part of the first {first} only",
        f"largest in q ({outputs['q']}), down ({outputs['down']}) and k ({outputs['k']})",
        f"those of the weights are {min(weights)} to {max(weights)}",
        f"full rank in {both[0]} % at c = 0.5 and in {both[at.index('1')]} % from c = 1 on",
        f"S alone in {', '.join(shares[:-1])} and {shares[-1]} % at c = 0.5, 1, 1.5, 2 and 3",
        *(line.replace(best, f"**{best}**") for line in rows_of(*grid)),
        "*keep* (as published) ends at {}, *reset* at {}, *rotate* at {}; every 50, {}, {} and {}".format(
            *(basis[f"{how}, every {n}"] for n in (5, 50) for how in ("keep", "reset", "rotate"))),
        f"reaches down to {smallest.replace('e-0', 'e-')}", f"upper three decades: {percent(linear)} and {percent(dynamic)}",
        f"{bits['32 bits']} with 32 bits, {bits['m and v dynamic']} with both moments dynamic, {bits['m linear']} with m linear",
        f"the loss ends at {float(bits['v linear']):,.0f}",
        f"It would have been {tenth[0]} % of the positive v of the embedding and {tenth[1]} % of the head's",
        f"and {percent(lost[2])} in the matrices", f"still stands still, at {bits['v linear, embedding and head 32 bits']}",
        f"has perplexity {ours} per byte; that loop prints {printed['512']} in 512 batches, {printed['32']} in 32, "
        f"{printed['8']} in 8 and {printed['1']} in one",
        f"full rank {right} at 60M, 130M, 350M and 1B"]


EXPECTED = {"analyses.md": analyses, "comparison.md": comparison, "cpu.md": cpu, "../README.md": readme,
            "distributed.md": distributed, "memory.md": memory_page, "differences.md": differences, "cost-model.md": cost_model,
            "runs.md": runs}


@cache
def expected(page):
    return [" ".join(line.split()) for line in EXPECTED[page]()]


def missing(text, page):
    return [line for line in expected(page) if line not in text]


@pytest.mark.parametrize("page", EXPECTED)
def test_the_numbers_are_those_of_their_source(page):
    assert missing(read(page), page) == []


# Numbers that nothing above accounts for

ASIDE = re.compile(
    r"step-\d+|-m minisl\.memory --.*?(?=Estimated|sltrain,)|SHA-?256\w*|```(?:sh|python) .*?```|(?<!`)`[^`]+`(?!`)"
    r"|\]\([^)]*\)|https?://\S+|\[[\w.]+\.(?:py|md|json|h)\]|\d{4}-\d\d-\d\d|arXiv[: ]\d+\.\d+|(?:NeurIPS|Python|NumPy) [\d.]*\d"
    r"|(?:[Ss]ections?|[Tt]ables?|[Ff]igures?|[Aa]lgorithms?|PyTorch|transformers|sm_) ?\d[\d.]*|commit \w+")
NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?(?P<percent> ?%)?")


def numbers(text):
    """Where the numbers of a page are: all but whole ones up to 10, and those in code, links, dates and versions."""
    hidden = ASIDE.sub(lambda m: re.sub(r"\d", "x", m.group()), text)
    return [m for m in NUMBER.finditer(hidden) if "." in m.group() or m["percent"] or float(m.group().replace(",", "")) > 10]


def changed(text, match):
    """A copy in which the last digit of a number is another."""
    at = match.end() - len(match["percent"] or "") - 1
    return text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1:]


ELSEWHERE = json.loads(Path(__file__).with_name("elsewhere.json").read_text("utf-8"))  # page -> reason -> words


def unknown(text, page):
    """The numbers of which a change is not noticed and that are not elsewhere.json, each with some words around it."""
    known = [span for reason in ELSEWHERE.get(page, {}).values() for words in reason for span in spans(words, text)]
    found, as_it_is = [], len(missing(text, page))
    for match in numbers(text):
        inside = any(begin <= match.start() and match.end() <= end + 2 for begin, end in known)
        if not inside and len(missing(changed(text, match), page)) == as_it_is:
            found.append(text[max(0, match.start() - 40): match.end() + 40])
    return found


def spans(words, text):
    return [m.span() for m in re.finditer(re.escape(words), text)]


@pytest.mark.parametrize("page", [page for page in EXPECTED if page != "../README.md"])
def test_a_changed_digit_is_found_wherever_it_is(page):
    """A number that is named here comes from nowhere: give its source, say where it was measured, or leave it out."""
    assert unknown(read(page), page) == []


@pytest.mark.parametrize("page", ELSEWHERE)
def test_what_is_elsewhere_is_still_there(page):
    assert [words for reason in ELSEWHERE[page].values() for words in reason if words not in read(page)] == []


@pytest.mark.parametrize(("page", "old", "new"), [
    ("analyses.md", "0.026 apart", "0.027 apart"), ("comparison.md", "1.747", "1.748"), ("comparison.md", "57 %", "58 %"),
    ("comparison.md", "| `swan` | 183 |", "| `swan` | 184 |"),
    ("cpu.md", "**0.55**", "**0.54**"), ("cpu.md", "47.3%", "47.4%"), ("../README.md", "2.67 GB", "2.68 GB"),
    ("distributed.md", "4.3e-8", "4.4e-8"), ("distributed.md", "12,579", "12,578"),
    ("memory.md", "21.459", "21.458"), ("memory.md", "847.1", "847.2"), ("memory.md", "38.0 (77 %)", "38.0 (78 %)"),
    ("differences.md", "25.5", "25.6"), ("cost-model.md", "26 %", "27 %"), ("runs.md", "9,307", "9,308"),
    ("runs.md", "11,000", "12,000")])
def test_a_changed_number_is_found(page, old, new):
    text = read(page)
    assert old in text
    assert missing(text.replace(old, new, 1), page)


def test_a_new_number_without_a_source_is_found():
    assert unknown(read("cpu.md") + " It is 37 times as fast.", "cpu.md") == [f"{read('cpu.md')[-33:]} It is 37 times as fast."]


def counted(text):
    """Of each rung in a printed ladder: what it is called and what was counted; not how far it is off, in its last digits."""
    return re.findall(r"^(\d  .*?) +\d\w+[-+]\d+((?: +[\d,]+){5})$", text, re.M)


def test_the_ladder_is_what_the_emulator_counts(capsys):
    from minisl import ladder
    from minisl.kernels.cuda import emulator

    try:
        emulator.compiler()
    except InputError as why:
        pytest.skip(str(why))
    ladder.main(["spmm"])
    rungs, page = counted(capsys.readouterr().out), (DOCS / "cuda.md").read_text("utf-8")
    assert len(rungs) == 7
    assert counted(page)[:7] == rungs
    assert counted(page.replace("17,434", "17,433"))[:7] != rungs
    cells = [row.split() for _, row in rungs]
    assert f"{cells[2][1]} sectors where {cells[2][2]} would do" in read("cuda.md")
    assert f"{cells[5][3]} cycles where {cells[5][4]} would do" in read("cuda.md")
