"""`python -m minisl.compare --tiny --methods sltrain full galore`: methods side by side on one job.

Each method is trained with the first seed at every learning rate; while its best one is the least or the largest tried, the next
one beyond is tried too. The other seeds train at the best; with --tune-steps all do, and the runs before are that short. All see
the same tokens in the same order. What is done is kept in --out: the same command goes on where it was stopped, and methods can
be added.
"""

import math
import shlex
import sys
import time
from pathlib import Path

from tqdm import tqdm

from minisl import files, plot
from minisl.blas import restart_with_better_kernels
from minisl.command import Parser, run_command
from minisl.compare.grid import PROGRAM, Comparison, Entry
from minisl.compare.run import corpus
from minisl.compare.weigh import weigh_all
from minisl.compare.words import report
from minisl.config import parse
from minisl.data import in_memory, make_tokenizer
from minisl.errors import InputError
from minisl.lock import alone_in
from minisl.nn.config import read_json
from minisl.parallel import cores

NOT_OF_A_JOB = {"method", "lr", "seed", "out", "resume", "device"}


def flags():
    """The command's parser."""
    parser = Parser(prog="python -m minisl.compare", description="Methods side by side on one job.",
                    epilog="All other flags are those of minisl.train, and describe the job.")
    parser.add_argument("--methods", nargs="+", required=True, metavar="METHOD",
                        help="names, with flags of their own as in galore:every=50,projector=dct")
    parser.add_argument("--lrs", nargs="+", type=float, default=[1e-3, 3e-3, 1e-2, 3e-2], metavar="LR",
                        help="learning rates to begin with")
    parser.add_argument("--grow", type=int, default=3, help="how many rates beyond these are tried at most, towards the best")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 1, 2], metavar="SEED",
                        help="the first one chooses the learning rate")
    parser.add_argument("--tune-steps", type=int, help="updates of the runs that choose the learning rate (left out: --steps)")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--tokens", type=int, help="train each on so many tokens (left out: --steps)")
    budget.add_argument("--seconds", type=float, help="train each for about so many seconds")
    parser.add_argument("--out", default="comparison", help="folder of the runs and of what came of them")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores")
    parser.add_argument("--keep-weights", action="store_true", help="keep the trained weights of every run")
    return parser


def main(argv):
    args, job = flags().parse_known_args(argv)
    for name in ("lrs", "seeds"):
        values, least = getattr(args, name), "above 0" if name == "lrs" else "0 or above"
        if len(set(values)) < len(values) or not all(0 <= v < math.inf and (v or name == "seeds") for v in values):
            raise InputError(f"--{name} {' '.join(map(str, values))}: each must be finite, {least}, and given once")
    if args.grow < 0:
        raise InputError(f"--grow {args.grow}: must be 0 or above")
    for name in ("tune_steps", "tokens", "seconds", "jobs"):
        if (value := getattr(args, name)) is not None and not 0 < value < math.inf:
            raise InputError(f"--{name.replace('_', '-')} {value}: must be above 0")
    settings, given = parse(job, PROGRAM)
    if taken := sorted(given & NOT_OF_A_JOB):
        raise InputError(f"--{taken[0]}: is not for a whole comparison (--help lists its flags)")
    if args.tokens:
        job += ["--steps", str(max(1, args.tokens // (settings.batch_size * settings.accumulate * settings.seq_len)))]
    if args.tune_steps and args.tune_steps > parse(job)[0].steps:
        raise InputError(f"--tune-steps {args.tune_steps}: must not be above --steps {parse(job)[0].steps}")
    shared = job if settings.threads else [*job, "--threads", str(max(1, cores() // args.jobs))]
    if not in_memory(settings.data):
        raise InputError(f"--data {' '.join(settings.data)}: a comparison takes text that is held in memory, no stream or shards")
    out, started = Path(args.out), time.perf_counter()
    entries = list({entry.label: entry for entry in (Entry(text, shared) for text in args.methods)}.values())
    make_tokenizer(settings.tokenizer, corpus(tuple(settings.data)).train, settings.model_config().vocab_size)
    with alone_in(out):
        remember(out, parse(job)[0], args.seconds)
        return compare(args, argv, entries, job, out, started)


def compare(args, argv, entries, job, out, started):
    """Train, weigh, and write what came of it."""

    def say(line):
        tqdm.write(line, file=sys.stderr)

    comparison = Comparison(out, entries, args.lrs, args.seeds, args.grow, args.tune_steps, args.seconds, args.keep_weights)
    if not comparison.run(args.jobs, say):
        print(f"stopped, and saved; the same command goes on (--out {out})")
        return 130
    rows = comparison.rows(weigh_all([Entry(entry.label, job) for entry in entries], out, say))
    files.write_json(out / "compare.json", {"command": shlex.join(["python", "-m", "minisl.compare", *argv]), "rows": rows})
    files.write_text(out / "compare.md", report(rows))
    trained = [r for r in rows if "lr" in r]
    if trained:
        with files.replacing(out / "perplexity.png", out / "curves.png") as [circles, curves]:
            plot.circles_figure(circles, trained)
            plot.curves_figure(curves, trained)
    print(f"{report(rows)}\n{out} holds compare.json and compare.md{', perplexity.png and curves.png' if trained else ''} "
          f"({(time.perf_counter() - started) / 60:.0f} minutes this time)")


def remember(out, settings, seconds):
    """Write what is compared on. Raises InputError where the folder belongs to another job."""
    job = {k: v for k, v in settings.to_dict().items() if k not in NOT_OF_A_JOB | {"threads", "method_options"}}
    job["seconds"] = seconds
    before = read_json(out / "job.json") if (out / "job.json").exists() else job
    for name in sorted(k for k in job if job[k] != before.get(k)):
        raise InputError(f"--out {out}: holds a comparison with --{name.replace('_', '-')} {before.get(name)}, this one has "
                         f"{job[name]}; choose another folder")
    if not (out / "job.json").exists():
        files.write_json(out / "job.json", job)


if __name__ == "__main__":
    restart_with_better_kernels("minisl.compare")
    sys.exit(run_command(main))
