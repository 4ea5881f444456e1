"""`python -m minisl.memory --config 60m`: what a training step holds in memory, by kind.

    --config 60m --method full sltrain     estimated, nothing is trained; takes the flags of minisl.train
    --config 60m --measure                 measured in a real step, beside the estimate
    --paper                                the memory table and figure of the SLTrain paper
"""

import sys
from pathlib import Path

from minisl import files, kernels
from minisl.backend import generator
from minisl.command import Parser, run_command
from minisl.config import Settings, parse
from minisl.errors import InputError
from minisl.memory import paper
from minisl.memory.formula import at_peak, estimate, has_first_phase
from minisl.memory.measure import KINDS, measure
from minisl.methods import Method
from minisl.metrics import peak_memory

NOT_WEIGHED = {"resume", "shard_optimizer"}


def main(argv):
    own, rest = flags().parse_known_args(argv)
    if own.plot is not None and (not own.plot.endswith(".png") or not Path(own.plot).parent.is_dir() or Path(own.plot).is_dir()):
        raise InputError(f"--plot {own.plot}: must be a file in a folder that exists, and end in .png")
    if own.paper:
        if rest or own.measure or own.method:
            raise InputError(f"{' '.join(['--paper', *rest])}: takes no other flag but --plot")
        return show_paper(own.plot)
    parsed = [parse([*rest, "--method", name], prog="python -m minisl.memory") for name in own.method or [Settings.method]]
    jobs, given = [settings for settings, _ in parsed], parsed[0][1]
    if taken := sorted(given & NOT_WEIGHED):
        raise InputError(f"--{taken[0].replace('_', '-')}: is not for this command, which weighs a new run of one process "
                         "(--help lists its flags)")
    if jobs[0].device != "cpu":
        raise InputError(f"--device {jobs[0].device}: only the CPU's arrays can be told apart by kind; minisl.train says at its "
                         "end what it took of the GPU")
    if own.measure:
        if own.weights_dtype or own.index_bytes or own.plot:
            raise InputError("--measure: weighs the arrays there are; leave out --weights-dtype, --index-bytes and --plot")
        for settings in jobs:
            show_measured(settings)
    else:
        show_estimates(jobs, own)


def flags():
    """The command's parser."""
    parser = Parser(prog="python -m minisl.memory", description="What a training step holds in memory, by kind.",
                    epilog="and the flags of python -m minisl.train (--help there), without --resume and --shard-optimizer")
    parser.add_argument("--method", "--peft_model", nargs="+", help="one or several (default: sltrain)")
    parser.add_argument("--measure", action="store_true", help="do two updates and weigh the arrays")
    parser.add_argument("--paper", action="store_true", help="table 2 and figure 3 of the paper; no other flag but --plot")
    parser.add_argument("--weights-dtype", choices=("bfloat16", "float32"), help="to estimate with (left out: --dtype)")
    parser.add_argument("--index-bytes", type=int, choices=(4, 8), help="of a position of S (left out: 4)")
    parser.add_argument("--plot", metavar="FILE.png", help="draw it")
    return parser


def show_estimates(jobs, own):
    """A column for each method; each kind when it is most, and the most there is at one moment."""
    dtype, found, early = own.weights_dtype or jobs[0].dtype, {}, []
    for s in jobs:
        method, config = Method(s.method, s.to_dict()), config_of(s)
        phases = [estimate(method, config, s.batch_size, s.seq_len, dtype, s.optimizer, own.index_bytes or 4, s.per_layer,
                           s.activation_checkpointing, first) for first in (False, True)[: 1 + has_first_phase(method, config)]]
        found[s.method] = max(phases, key=lambda phase: phase["peak"])
        early += [s.method] * (found[s.method] is not phases[0])
    s = jobs[0]
    print(f"Estimated MB: {described(s)}, {dtype}:" + "".join(f"{name:>16}" for name in found))
    for kind in (*KINDS, "peak"):
        print(f"  {kind:14}" + "".join(f"{e[kind] / 1e6:>16,.1f}" for e in found.values()))
    print("Each kind when it is most. Activations go as gradients come: the peak has the larger of the two.")
    for name in early:
        print(f"{name}: at the start of the run, where it holds more than later.")
    draw(own.plot, [{"label": name, "size": "", "published": None, "found": e} for name, e in found.items()], described(s))


def show_measured(s):
    """Measured and estimated, kind by kind, in that phase of the run that holds more."""
    config, method = config_of(s), Method(s.method, s.to_dict())
    two = has_first_phase(method, config)
    with kernels.running(s.backend, s.threads, lambda line: print(line, file=sys.stderr)) as on:
        phases = [(measured(s, method, config, done), first) for done, first in ((s.steps // 2, False), (0, True))[: 1 + two]]
    found, first = max(phases, key=lambda phase: phase[0]["peak"])
    expected = estimate(method, config, s.batch_size, s.seq_len, s.dtype, s.optimizer, 4, s.per_layer,
                        s.activation_checkpointing, first)
    when = f", at the {'start' if first else 'middle'} of the run" if two else ""
    print(f"{s.method}, {found['parameters']:,} parameters, {described(s)}, {on}{when}")
    print(f"  {'MB':16}{'measured':>12}{'estimated':>12}{'off':>9}{'at peak':>12}")
    for kind in (*KINDS, "peak"):
        got = found["most"][kind] if kind != "peak" else found["peak"]
        off = f"{expected[kind] / got - 1:+9.1%}" if got else " " * 9
        print(f"  {kind:16}{got / 1e6:>12,.1f}{expected[kind] / 1e6:>12,.1f}{off}{found[kind] / 1e6:>12,.1f}")
    if (peak := peak_memory()) is not None:
        print(f"  {'process':16}{peak / 1e6:>12,.1f} MB resident at its peak, with Python, libraries and this measurement")


def measured(s, method, config, done):
    """What `measure` finds after so many updates, and the number of parameters."""
    model = method.build(config, generator(s.seed, "init"), s.dtype)
    model.model.activation_checkpointing = s.activation_checkpointing
    optimizer = method.optimizer(model, s.lr, s.optimizer, s.weight_decay, s.seed)
    if s.per_layer:
        optimizer.update_in_backward()
    ids = generator(s.seed, "data").integers(0, config.vocab_size, (s.batch_size, s.seq_len + 1))
    found = measure(model, optimizer, lambda: model.loss(ids[:, :-1], ids[:, 1:], 1 / ids[:, 1:].size),
                    lambda step: method.before_step(model, optimizer, done + step, s.steps, s.seed))
    return found | {"parameters": model.num_parameters()}


def show_paper(plot):
    """Print the paper's table and figure beside ours, and draw them if asked to."""
    rows = list(paper.bars())
    for part in (paper.table(), paper.figure(rows), paper.ladder()):
        print("\n".join(part), end="\n\n")
    draw(plot, rows, f"Measured in the paper (lines, numbers) and estimated for 1 x {paper.LENGTH} tokens")


def draw(path, rows, title):
    """rows: {"label", "size", "published", "found"}"""
    if path is None:
        return
    try:
        from minisl.plot import memory_figure

        with files.replacing(path) as [temporary]:
            memory_figure(temporary, [r | {"found": at_peak(r["found"])} for r in rows], title)
    except ImportError as error:
        raise InputError(f"--plot {path}: matplotlib does not work here ({error})") from None
    print(f"{path} written")


def config_of(settings):
    """The LlamaConfig of these settings, with the paper's vocabulary where none is said."""
    config = settings.model_config()
    config.vocab_size = config.vocab_size or 32000
    return config


def described(s):
    """The job in words."""
    return ", ".join([f"{'tiny' if s.tiny and not s.config else s.config}, {s.batch_size} x {s.seq_len} tokens, {s.optimizer}",
                      *["per layer"] * s.per_layer, *["checkpointing"] * s.activation_checkpointing])


if __name__ == "__main__":
    sys.exit(run_command(main))
