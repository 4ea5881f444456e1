"""Which runs a comparison needs, which are done, and what came of them."""

import math
import statistics
import zlib
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from minisl.compare.run import begin_process, one_run
from minisl.compare.weigh import material, plausible, step_seconds
from minisl.config import parse
from minisl.errors import InputError
from minisl.nn.config import read_json

PROGRAM = "python -m minisl.compare"
OF_A_METHOD = {  # flags of minisl.train that may be one method's alone
    "rank", "delta", "alpha", "learned_scale", "algorithm", "initializer_range", "optimizer", "per_layer", "weight_decay",
    "clip_norm", "schedule", "warmup", "min_lr_ratio", "decay_fraction", "uba_phi", "activation_checkpointing"}


class Entry:
    """A method as it was asked for: "galore", or "galore:every=50,projector=dct" with flags for it alone.

    job: the flags of minisl.train that all methods share. Raises InputError where a flag or value cannot be, before anything is
    trained.
    """

    def __init__(self, text, job):
        name, *flags = text.replace(":", ",", 1).split(",")
        flags = [f"--{flag}" for flag in flags if flag]
        self.label = f"{name}:{','.join(flag[2:] for flag in flags)}" if flags else name
        self.flags = [*job, "--method", name, *flags]
        try:
            _, given = parse(["--tiny", "--method", name, *flags], PROGRAM)
            if other := sorted(given - OF_A_METHOD - {"tiny", "method", "method_options"}):
                raise InputError(f"--{other[0].replace('_', '-')} is for all methods alike; one may have its own flags and "
                                 f"--{', --'.join(sorted(OF_A_METHOD)).replace('_', '-')}")
            material(self.settings(1e-3, 0), weightless=True)
        except InputError as error:
            raise InputError(f"--methods {text}: {error}") from None

    def settings(self, lr, seed):
        return parse([*self.flags, "--lr", repr(lr), "--seed", str(seed)], PROGRAM)[0]

    def folder(self, lr, seed, short):
        safe = "".join(c if c.isalnum() or c in "_.-" else "-" for c in self.label)
        return f"{safe}-{zlib.crc32(self.label.encode()):08x}-lr{lr!r}-seed{seed}" + (f"-steps{short}" if short else "")


def checked(result, path):
    """A result of `one_run`. Raises InputError unless it is one."""
    numbers = ("steps", "seconds", *(("val_loss", "bits_per_byte") if result.get("status") == "done" else ()))
    curve = result.get("curve")
    if (result.get("status") not in ("done", "diverged") or not isinstance(curve, list)
            or not all(isinstance(point, list) and len(point) == 3 and all(map(plausible, point)) for point in curve)
            or not all(plausible(result.get(name)) for name in numbers) or result.get("val_loss", 0) > 700):  # whose exp is inf
        raise InputError(f"{path}: damaged; remove its folder and the run is made again")
    return result


class Comparison:
    """All runs of one job, done and to do, in one folder.

    grow: how many learning rates beyond the grid are tried at most. short: updates of the runs that choose the learning rate;
    None: as many as of the others. seconds: what each run may take, instead of a number of updates.
    """

    def __init__(self, out, entries, rates, seeds, grow=3, short=None, seconds=None, keep_weights=False):
        self.out, self.entries, self.rates, self.seeds, self.grow = Path(out), entries, sorted(rates), seeds, grow
        self.short, self.seconds, self.keep_weights = short, seconds, keep_weights
        self.results, self.steps = {}, {}

    def result(self, entry, lr, seed, short=None):
        """A run's result, of this session or an earlier one; None if it is not done."""
        key = entry.label, lr, seed, short
        path = self.out / "runs" / entry.folder(lr, seed, short) / "result.json"
        if key not in self.results and path.exists():
            self.results[key] = checked(read_json(path), path)
        return self.results.get(key)

    def loss(self, entry, lr):
        """The validation loss that judges a learning rate: inf if the run diverged, None if it is not done."""
        result = self.result(entry, lr, self.seeds[0], self.short)
        return result and result.get("val_loss", math.inf)

    def tried(self, entry):
        """The learning rates of the first seed: the grid, and beyond it as long as the best is the least or the largest."""
        rates = list(self.rates)
        for _ in range(self.grow if len(rates) > 1 else 0):
            losses = [self.loss(entry, lr) for lr in rates]
            if None in losses or min(losses) == math.inf:
                break
            best = losses.index(min(losses))
            edge, inner = {0: (rates[0], rates[1]), len(rates) - 1: (rates[-1], rates[-2])}.get(best, (None, None))
            if not edge or not 1e-12 < (beyond := float(f"{edge * (edge / inner):.2g}")) < 1e6 or beyond in rates:
                break
            rates = sorted([*rates, beyond])
        return rates

    def best(self, entry):
        """The learning rate with the lowest loss of the first seed so far; None where no run has ended well."""
        losses = {lr: loss for lr in self.tried(entry) if (loss := self.loss(entry, lr)) not in (None, math.inf)}
        return min(losses, key=losses.get, default=None)

    def missing(self, entry):
        """(lr, seed, short) of the runs that can be started now: first the grid, then all seeds at the best rate."""
        grid = [(lr, self.seeds[0], self.short) for lr in self.tried(entry) if self.loss(entry, lr) is None]
        lr = self.best(entry)
        return grid or [(lr, seed, None) for seed in self.seeds if lr is not None and not self.result(entry, lr, seed)]

    def expected(self):
        """(runs done, runs in all as far as is known)"""
        grid = [self.loss(e, lr) is not None for e in self.entries for lr in self.tried(e)]
        seeds = self.seeds if self.short else self.seeds[1:]
        best = [(e, self.best(e)) for e in self.entries]
        rest = [lr is not None and bool(self.result(e, lr, seed)) for e, lr in best for seed in seeds]
        return sum(grid) + sum(rest), len(grid) + len(rest)

    def run(self, jobs, say):
        """Do all that is missing, so many runs at a time. True when done, False when stopped by Ctrl-C.

        say: is told of every run that ends.
        """
        done, total = self.expected()
        with (ProcessPoolExecutor(jobs, get_context("spawn"), begin_process) as pool,
              tqdm(total=total, initial=done, unit="run", dynamic_ncols=True) as bar):
            running = {}
            try:
                while True:
                    for entry in self.entries:
                        for run in self.missing(entry):
                            if len(running) < jobs and (entry.label, *run) not in running.values():
                                running[pool.submit(one_run, *self.prepare(entry, *run))] = entry.label, *run
                    if not running:
                        return True
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        key = running.pop(future)
                        self.results[key] = result = future.result()
                        if result is None:
                            del self.results[key]
                            raise KeyboardInterrupt
                        how = f"{result['bits_per_byte']:.4f} bits per byte" if "bits_per_byte" in result else "diverged"
                        say(f"{key[0]}, lr {key[1]:g}, seed {key[2]}: {how}, {result['seconds']:.0f} s")
                        bar.n, bar.total = self.expected()
                        bar.refresh()
            except KeyboardInterrupt:
                wait(running)  # they were told too, and save
                return False

    def prepare(self, entry, lr, seed, short):
        """The arguments of `one_run`."""
        settings = entry.settings(lr, seed)
        if self.seconds and entry.label not in self.steps:
            done = next((r for rate in self.tried(entry) if (r := self.result(entry, rate, self.seeds[0]))), None)
            self.steps[entry.label] = done["steps"] if done else max(1, int(self.seconds / step_seconds(settings)))
        settings.steps = short or self.steps.get(entry.label, settings.steps)
        return settings, str(self.out / "runs" / entry.folder(lr, seed, short)), self.keep_weights

    def rows(self, weights):
        """One record a method, the best first. weights: of `weigh.weigh_all`."""
        rows = []
        for entry in self.entries:
            tried = {f"{lr:g}": self.result(entry, lr, self.seeds[0], self.short).get("bits_per_byte")
                     for lr in self.tried(entry)}
            row = {"method": entry.label, "tried": tried, **weights[entry.label]}
            lr = self.best(entry)
            seeds = {s: r for s in self.seeds if lr is not None and "val_loss" in (r := self.result(entry, lr, s))}
            if seeds:
                bits = [r["bits_per_byte"] for r in seeds.values()]
                loss = statistics.mean(r["val_loss"] for r in seeds.values())
                row |= {"lr": lr, "steps": next(iter(seeds.values()))["steps"], "val_loss": loss,
                        "perplexity": math.exp(loss), "bits_per_byte": statistics.mean(bits), "range": [min(bits), max(bits)],
                        "diverged": len(self.seeds) - len(seeds), "curves": {s: r["curve"] for s, r in seeds.items()}}
            rows.append(row)
        return sorted(rows, key=lambda r: r.get("val_loss", math.inf))
