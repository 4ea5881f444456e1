"""`python -m minisl.analysis --out docs/analyses`: train what the analyses look at, draw them all, one line of numbers each."""

import platform
import sys
import time
from functools import cached_property
from pathlib import Path

import numpy as np

from minisl import kernels
from minisl.analysis import counting, eight_bits, full_rank, parts, runs, spectrum, supports
from minisl.analysis.job import SHAPE, matrices, read_text, train
from minisl.backend import keep_freed_memory
from minisl.blas import numpy_blas, restart_with_better_kernels
from minisl.command import Parser, run_command
from minisl.errors import InputError
from minisl.files import write_json
from minisl.nn.config import read_json
from minisl.optim import Adam
from minisl.plot import PALETTE

WIDE = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 2, "num_attention_heads": 4}
SLTRAIN = {"rank": 32, "delta": 0.05, "alpha": 32.0}  # of the wide model: a quarter of its width


class Study:
    """A method a figure: draws it to a path, returns a line of numbers. What several need is trained when first asked for.

    steps: of the short runs; the wide models get twice as many.
    """

    def __init__(self, steps, read_text=read_text, wide=WIDE, shape=SHAPE, options=SLTRAIN):
        self.steps, self.read_text, self.wide, self.options = steps, read_text, wide, options
        self.job = {"steps": steps, "shape": shape}

    @cached_property
    def text(self):
        return self.read_text()

    @cached_property
    def dense(self):
        return train(self.text, "full", steps=2 * self.steps, shape=self.wide, lr=2e-3).model

    @cached_property
    def sltrain(self):
        return train(self.text, "sltrain", steps=2 * self.steps, shape=self.wide, **self.options).model

    def layer(self, model, end):
        return next(layer for path, layer in matrices(model) if path.endswith(f"layers.0.{end}"))

    def spectrum(self, path):
        found = spectrum.spectrum(self.layer(self.dense, "self_attn.o_proj").weight.data, self.options["rank"])
        start = train(self.text, "full", steps=0, shape=self.wide).model
        spectrum.spectrum_figure(path, found, "o_proj of the first block, trained at full rank",
                                 self.layer(start, "self_attn.o_proj").weight.data)
        kept = (found.sigma[: found.rank] ** 2).sum() / (found.sigma**2).sum()
        return (f"the first {found.rank} of {len(found.sigma)} singular values hold {kept:.0%} of the squares; 97 % of the "
                f"residual's entries are below {found.within(0.97):.3f}, the largest of W is {np.abs(found.W).max():.2f}")

    def supports(self, path):
        found = supports.support_table(self.dense, self.text, steps=self.steps, rank=self.options["rank"],
                                       delta=self.options["delta"], shape=self.wide)
        supports.support_figure(path, found, f"rank {self.options['rank']}, delta {self.options['delta']}")
        return ", ".join(f"{name} {loss:.3f}" for name, loss in found.items()) + " nats per byte"

    def parts(self, path):
        rank, layer = self.options["rank"], self.layer(self.sltrain, "self_attn.o_proj")
        sigma, low, sparse = found = parts.by_direction(*parts.split(layer))
        parts.direction_figure(path, found, rank, "o_proj of the first block, trained as W = L + S")
        head, tail = slice(0, rank), slice(rank, None)
        return (f"L's share of the first {rank} singular values: {low[head].sum() / sigma[head].sum():.0%}, of the other "
                f"{len(sigma) - rank}: {low[tail].sum() / sigma[tail].sum():.0%}; the larger part of the first "
                f"{np.append(low > sparse, False).argmin()}")

    def seeds(self, path):
        rank = 16
        dense = train(self.text, "full", lr=2e-3, checks=1, **self.job).model
        random = {f"random, seed {seed}": supports.at_random(seed) for seed in range(5)}
        found = runs.support_runs(self.text, random | {"largest": supports.largest_of(dense, rank)}, rank=rank, **self.job)
        last = {name: job.val_loss for name, job in found.items()}
        chosen = [last[name] for name in random]
        runs.curves_figure(path, found, "SLTrain, the same but for the support",
                           {"largest": {"color": "black", "linestyle": "--"}})
        apart = runs.spread({name: found[name] for name in random})
        return (f"five random supports end at {min(chosen):.3f} to {max(chosen):.3f} nats per byte, {apart.max():.3f} apart "
                f"at most and {apart[-1]:.3f} at the end; the largest entries of a trained residual at {last['largest']:.3f}")

    def full_rank(self, path):
        found = full_rank.ranks()
        full_rank.rank_figure(path, found, f"{found.n} x {found.n} matrices, r = {found.r}, {found.both.shape[1]} draws")
        alone, both = found.shares()
        return "; ".join(f"c {c:g}: B A + S {b:.0%}, S {a:.0%}" for c, a, b in zip(found.c, alone, both)) + " of full rank"

    def ablation(self, path):
        ranks, deltas = (8, 16, 32), (0.02, 0.05, 0.1)
        losses, parameters = runs.ablation(self.text, ranks, deltas, **self.job)
        runs.ablation_figure(path, losses, parameters, ranks, deltas, "rank and density, alpha = rank")
        return "; ".join(f"r {rank}: " + ", ".join(f"{delta:g} {loss:.3f}" for delta, loss in zip((0, *deltas), row))
                         for rank, row in zip(ranks, losses)) + " nats per byte at each delta"

    def cancellation(self, path):
        ids = self.text.held_out[:2048]
        found = parts.cancellations(self.sltrain, ids[: len(ids) // 64 * 64].astype(int).reshape(-1, 64))
        parts.cancellation_figure(path, found, "L and S of a trained SLTrain model")
        cosines = {kind.removesuffix("_proj"): rows[:, :, 0].mean(axis=0) for kind, rows in found.items()}
        return "cosines of outputs (weights): " + ", ".join(f"{kind} {y:.2f} ({w:.2f})" for kind, (w, y) in cosines.items())

    def basis_change(self, path):
        every = (5, 50)
        found = runs.basis_changes(self.text, every, lr=1e-2, **self.job)
        colour = dict(zip(("keep", "reset", "rotate"), PALETTE))
        look = {f"{choice}, every {n}": {"color": colour[choice], "linestyle": ":" if n == every[0] else "-"}
                for choice, n in found}
        runs.curves_figure(path, dict(zip(look, found.values())), "GaLore, its moments when the basis changes", look)
        return ", ".join(f"{name} {job.val_loss:.3f}" for name, job in zip(look, found.values())) + " nats per byte"

    def maps(self, path):
        eight_bits.map_figure(path, "A moment in a byte: the error of rounding")
        tables = {name: table(False) for name, table in eight_bits.MAPS.items()}
        error = {name: eight_bits.rounding_error(table, np.logspace(-3, 0, 1000)).mean() for name, table in tables.items()}
        return "; ".join(f"{name} map for v: mean error {error[name]:.1%} over three decades, 0 below {table[1] / 2:.1e}"
                         for name, table in tables.items())

    def eight_bits(self, path):
        def rule(m, v, all=True):
            mapped = eight_bits.adam_with(m, v)
            return lambda array: (mapped if all or len(array) != self.text.vocab_size else Adam)(array)

        rules = {"32 bits": None, "m and v dynamic": rule("dynamic", "dynamic"), "m linear": rule("linear", "dynamic"),
                 "v linear": rule("dynamic", "linear"),
                 "v linear, embedding and head 32 bits": rule("dynamic", "linear", all=False)}
        found = {name: train(self.text, "full", lr=2e-3, rule=one, **self.job) for name, one in rules.items()}
        runs.curves_figure(path, found, "Adam with moments of eight bits", scale="log")
        lost = {name: eight_bits.underflow(rule.exp_avg_sq, eight_bits.linear_map(False))
                for name, rule in found["32 bits"].optimizer.rules.items() if rule.exp_avg_sq.ndim == 2}
        shares = {kind: np.mean([share for name, share in lost.items() if part in name])
                  for kind, part in (("embedding", "embed_tokens"), ("head", "lm_head"), ("matrices", "_proj"))}
        return (", ".join(f"{name} {job.val_loss:.3f}" for name, job in found.items())
                + " nats per byte; of Adam's v at the end the linear map would make 0: "
                + ", ".join(f"{kind} {share:.2%}" for kind, share in shares.items()))

    def counting(self, path):
        found = counting.counted(self.dense, self.text.held_out, (1, 4, 16, 64, 256, 512))
        counting.counting_figure(path, found, "Dividing by N + 1")
        ours = ", ".join(f"{np.exp(p):.3f} (N {n})" for n, _, p in zip(*found))
        tables = ", ".join(f"{name} {was:.2f} -> {right:.2f}" for name, (_, was, right) in counting.corrections().items())
        return f"perplexity {np.exp(found[1][0]):.3f} here would be printed as {ours}; published, inferred: {tables}"


FIGURES = ("maps", "full_rank", "spectrum", "supports", "parts", "cancellation", "counting", "seeds", "ablation", "basis_change",
           "eight_bits")


def main(argv):
    parser = Parser(prog="python -m minisl.analysis", description="Draw the figures of docs/analyses.md, a line of numbers each.")
    parser.add_argument("--out", default="docs/analyses", help="a folder for the figures and numbers.json")
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=FIGURES, metavar="NAME", help="of " + ", ".join(FIGURES))
    parser.add_argument("--steps", type=int, default=400, help="updates of the short runs; the models looked into get twice")
    parser.add_argument("--keep-blas", action="store_true", help="do not start again where OpenBLAS has better kernels")
    args = parser.parse_args(argv)
    if not 1 <= args.steps < 2**31:
        raise InputError(f"--steps {args.steps}: must be at least 1 and below {2**31}")
    out = Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror})") from None
    keep_freed_memory()
    study, names, started, computed = Study(args.steps), list(dict.fromkeys(args.only)), time.perf_counter(), time.process_time()
    with kernels.running("auto", say=lambda line: print(line, file=sys.stderr)):
        for name in names:
            begun = time.perf_counter()
            line = getattr(study, name)(out / f"{name}.png")
            fewer_colours(out / f"{name}.png")
            note(out / "numbers.json", args.steps, name, line)
            print(f"{name} ({time.perf_counter() - begun:.0f} s): {line}", flush=True)
    print(f"{out}: {len(names)} figures in {time.perf_counter() - started:.0f} s; the cores computed for "
          f"{time.process_time() - computed:.0f} s")


def note(path, steps, name, line):
    """The line of figure `name` in a JSON file, beside those that were computed in the same way."""
    blas = numpy_blas() or {}
    how = {"python": platform.python_version(), "numpy": np.__version__, "blas": blas.get("architecture", "?"), "steps": steps}
    before = read_json(path) if path.exists() else {}
    kept = before.get("lines", {}) if how.items() <= before.items() else {}
    write_json(path, how | {"lines": kept | {name: line}})


def fewer_colours(path):
    """The same picture in a third of the bytes."""
    from PIL import Image  # matplotlib needs it too

    with Image.open(path) as image:
        small = image.convert("RGB").quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


if __name__ == "__main__":
    restart_with_better_kernels("minisl.analysis")
    sys.exit(run_command(main))
