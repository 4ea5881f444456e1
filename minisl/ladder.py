"""`python -m minisl.ladder spmm 3`: climb a ladder of CUDA kernels without a GPU.

    python -m minisl.ladder                             # which ladders there are
    python -m minisl.ladder spmm                        # all rungs of one: right? how much memory do they move?
    python -m minisl.ladder spmm 3                      # one rung: the idea, the diff from the rung below, the same checks
    python -m minisl.ladder spmm 3 --file mine.cu       # your version of it
    python -m minisl.ladder spmm 3 --draw spmm.png      # a picture of what its first block touches
    python -m minisl.ladder spmm 3 --language numba     # the same rung in Numba CUDA, run as Python
"""

import difflib
import inspect
import sys
from contextlib import nullcontext
from pathlib import Path

from minisl.command import Parser, run_command
from minisl.errors import InputError
from minisl.kernels.cuda import emulator, in_numba, ladder, nvrtc, signature, trial
from minisl.kernels.cuda.launch import instead


def main(argv):
    parser = Parser(prog="python -m minisl.ladder", description="Climb a ladder of CUDA kernels without a GPU.")
    parser.add_argument("op", nargs="?", choices=list(ladder.rungs()), help="an operation (left out: list them)")
    parser.add_argument("rung", nargs="?", type=int, help="one of its rungs (left out: all)")
    parser.add_argument("--file", help="a .cu file to run in place of this rung")
    parser.add_argument("--draw", metavar="PNG", help="save a picture of what a launch of this rung touches")
    parser.add_argument("--language", choices=ladder.LANGUAGES, default="cuda", help="CUDA C++, or Numba CUDA where there is any")
    args = parser.parse_args(argv)
    numba, rungs = args.language == "numba", ladder.rungs(args.language)
    for flag, value in (("--file", args.file), ("--draw", args.draw)):
        if value is not None and (numba or args.rung is None):
            raise InputError(f"{flag}: is for CUDA C++" if numba else f"{flag}: say which rung, such as: minisl.ladder spmm 3")
    if args.op is None:
        for op, count in rungs.items():
            print(f"{op:16}{count} rungs, the last: {title(op, count - 1)}")
        return 0
    with ladder.at(args.language, **{args.op: args.rung or 0}):
        if numba:
            in_numba.kernel(args.op, args.rung or 0)  # is it there?
        if not numba or args.op == "sl_forward":  # whose problem has a backward pass
            emulator.compiler()
        if args.rung is None:
            print(f"{args.op}: {size_of(args.op)}\n{columns(numba)}")
            return max(report(args.op, number) for number in range(rungs[args.op]))
        mine = None if args.file is None else read(args.file)
        if args.draw is not None and not (args.draw.endswith(".png") and Path(args.draw).absolute().parent.is_dir()):
            raise InputError(f"--draw {args.draw}: must be a .png in a folder that exists")
        print_rung(args.op, args.rung, mine, args.file)
        with nullcontext() if mine is None else instead(args.op, mine, Path(args.file).name):
            print(f"\n{columns(numba)}")
            code = report(args.op, args.rung, args.file) or real_compiler(mine, args.op, args.file)
            if args.draw and code == 0:
                draw(args.op, args.rung, args.draw)
    return code


def print_rung(op, number, mine=None, file=None):
    """The header of a rung, and what is different from the one below; or what is different in my version of it."""
    first, idea = ladder.header(op, number)
    if mine is not None:
        changes = difflib.unified_diff(ladder.source(op, number).splitlines(), mine.splitlines(), f"{op}_{number}.cu", file,
                                       lineterm="", n=2)
        print(first, "\n".join(changes) or f"{file} is the same", sep="\n")
        return
    print(f"{first}\n{idea}\n")
    if ladder.language() == "numba":
        print(inspect.getsource(in_numba.kernel(op, number).py_func).strip())
        return
    text = ladder.source(op, number).splitlines()
    if number == 0:
        print("\n".join(line for line in text if not line.startswith("//")).strip())
        return
    below = ladder.source(op, number - 1).splitlines()
    changes = difflib.unified_diff(body(below), body(text), f"{op}_{number - 1}.cu", f"{op}_{number}.cu", lineterm="", n=2)
    print("\n".join(changes))


def body(lines):
    """The text without the comment at its top."""
    return lines[next(i for i, line in enumerate(lines) if not line.startswith("//")) + 1:]


def report(op, number, file=None):
    """Print a rung's line: how far off it is, what it touches. Returns an exit code: 1 where it is wrong."""
    with ladder.at(**{op: number}):
        name = f"{number}  {file or title(op, number)}"
        try:
            off, where = trial.error(op)
            counts = trial.counts(op)[0].values() if ladder.language() == "cuda" else ()
        except (emulator.KernelFault, emulator.CompileError, TypeError, ValueError) as error:
            print(f"{name:58}{'WRONG':>10}\n{type(error).__name__}: {error}")
            return 1
    right = off <= trial.TOLERANCE
    print(f"{name:58}{off:>10.0e}" + "".join(f"{n:>10,}" for n in counts) + f"\nWRONG: {where}" * (not right))
    return 0 if right else 1


def real_compiler(mine, op, file):
    """What NVRTC, where it is installed, says of a text that g++ took for CUDA. Returns an exit code."""
    if mine is None or nvrtc.library() is None:
        return 0
    try:
        log = nvrtc.compiler_log(mine, "sm_80", Path(file).name)
    except nvrtc.CompileError as error:
        print(f"WRONG: CUDA's own compiler does not take it:\n{error}")
        return 1
    if "warning" in log:  # of what is allowed, such as a variable without use
        print(f"CUDA's own compiler remarks:\n{log[:log.find('ptxas info')].strip()}")
    found = {kernel["kernel"] for kernel in nvrtc.KERNEL.finditer(log)}
    if missing := signature.kernels(ladder.source(op, ladder.rung(op))).keys() - found:
        print(f'WRONG: for CUDA there is no kernel {missing.pop()}; it needs extern "C"')
        return 1
    return 0


def draw(op, number, path):
    """Draw what the first block of a rung touches, into a file."""
    from minisl.kernels.cuda.emulator.draw import draw

    with ladder.at(**{op: number}):
        _, launches = trial.counts(op)
    draw(launches[0], path)
    print(f"{path}: what the first block of {launches[0].kernel} touches")


def columns(numba):
    """The table's head."""
    counted = () if numba else ("accesses", "sectors", "needed", "cycles", "needed")
    return f"{'':58}{'off by':>10}" + "".join(f"{name:>10}" for name in counted)


def title(op, number):
    """A rung's idea, from its header."""
    return ladder.header(op, number)[0].partition(": ")[2].rstrip(".")


def size_of(op):
    """What was checked and counted, in words."""
    size = trial.SIZES[0]
    return (f"each rung against NumPy, in three orders of threads; off by: largest difference over largest entry. Counted for\n"
            f"{size.tokens} tokens, {size.out} x {size.width}: accesses, 32-byte sectors moved and needed, cycles of shared "
            "memory's banks and how many are needed")


def read(path):
    """The text of --file. Raises InputError: cannot be read, not UTF-8."""
    try:
        return Path(path).read_text("utf-8-sig")
    except OSError as error:
        raise InputError(f"--file {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"--file {path}: is not UTF-8 text") from None


if __name__ == "__main__":
    sys.exit(run_command(main))
