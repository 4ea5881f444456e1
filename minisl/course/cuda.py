"""Run a student's CUDA text on the emulator: in a process of its own, stopped when it loops for ever, its accesses counted.

    counts = cuda.run(text, "spmm", grid, block, (x, values, columns, starts, y, n, width, out), y)

writes y in place, as a launch does, and raises `Wrong` with one message: no kernel's text, what the compiler says, arguments that
do not fit, a fault (out of bounds, a race, ...), no end. No line of the text runs in the process that calls `run`.
"""

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minisl.backend import cuda_status
from minisl.course.check import Wrong, article, say
from minisl.errors import InputError
from minisl.kernels.cuda import emulator, signature

RECORDS = 1 << 20  # accesses that are counted; a launch with more is refused
COMPILE_SECONDS = 20  # of computing
PATIENCE = 10  # times as many seconds may pass on a machine that is busy with something else
APART = 1 << 16  # bytes around each array, so that an index past its end does not meet another array
KEPT = ("PATH", "HOME", "XDG_CACHE_HOME", "CXX", "LD_LIBRARY_PATH", "TMPDIR")  # of the environment, for the other process

# what a compiled kernel may want of other libraries: what the emulator calls itself, and mathematics
MACHINE = {"abort", "calloc", "free", "getcontext", "longjmp", "_longjmp", "makecontext", "malloc", "memcpy", "memmove", "memset",
           "setcontext", "setjmp", "_setjmp", "snprintf", "strcpy", "strncpy", "_Unwind_Resume", "__gxx_personality_v0"}
MATHS = {"acos", "asin", "atan", "atan2", "cbrt", "ceil", "cos", "cosh", "erf", "erfc", "exp", "exp2", "expm1", "fabs", "floor",
         "fma", "fmax", "fmin", "fmod", "hypot", "log", "log10", "log1p", "log2", "nearbyint", "pow", "rint", "round", "sin",
         "sincos", "sinh", "sqrt", "tan", "tanh", "tgamma", "trunc"}
# words that would get past the emulator's watch: other files, assembly, its own names, copies that it does not see
OUTSIDE = re.compile(r"#\s*(?:include|import|embed)\w*|\b__has_\w+|#\s*line|#\s*pragma\s+(?!unroll)\w+|"
                     r"\b_Pragma\b|##|%:|\[\s*\[|\b(?:__)?asm(?:__)?\b|"
                     r"\b__attribute\w*|\b__builtin_\w+|\bcu\b|\b(?:cu|CU)_\w+|\b__[tu]b?san_\w+|\bmem(?:cpy|move|set)\b|"
                     r"\b(?:free|malloc|calloc|abort)\b|\b_?(?:set|long)jmp\b|\b\w+context\b")


ADVICE = {
    emulator.Race: "\nIf one must come first, a __syncthreads() between them is missing. If both do the same step, no barrier "
                   "helps: let one thread write (if (s == 0)), give each thread its own element, or use atomicAdd.",
    emulator.Uninitialised: "\nNothing is there yet: is a __syncthreads() missing, or does a thread leave its place unwritten?",
    emulator.BarrierDivergence: "\nEvery thread of a block must come to each __syncthreads(), not only those in an `if`.",
    emulator.UndefinedBehaviour: "\nIs it an index? Compare each with its size in the declaration, from left to right.",
}
ENDLESS = "\nIs it a counter: does a loop never end? Or is a number too large for its type?"
BETWEEN_BLOCKS = "\nNo barrier reaches across blocks: is blockIdx used in the index? Otherwise use atomicAdd."


class Counts(NamedTuple):
    """What a launch did with global memory.

    sectors    of 32 bytes, moved between it and the threads
    of         {array: its sectors}
    accesses   of all threads
    busiest    of the thread that made most
    atomics    how many of the accesses were atomic
    """

    sectors: int
    of: dict
    accesses: int
    busiest: int
    atomics: int


def run(source, kernel, grid, block, args, writes, orders=(0, 1, 2), seconds=3):
    """Compile the text and launch `kernel` on args (arrays and numbers). Returns Counts; the array `writes` changes in place.

    writes   the one of args that the kernel is to write
    orders   of threads and blocks (see `emulator.order`); each launch begins with the arguments as given
    seconds  of computing, for all launches together
    Raises Wrong, also for a kernel that changes another; InputError where there is no compiler.
    """
    emulator.compiler()
    check_text(source, kernel)
    header = {"source": source, "kernel": kernel, "grid": [int(n) for n in grid], "block": [int(n) for n in block],
              "orders": list(orders), "seconds": seconds, "args": [described(a) for a in args]}
    answer, data = ask(kernel, header, b"".join(a.tobytes() for a in args if isinstance(a, np.ndarray)), seconds)
    if "wrong" in answer:
        raise Wrong(answer["wrong"])
    for p, a in zip(signature.kernels(source)[kernel], args):
        if p.pointer:
            if a is writes and not p.const:
                a[...] = np.frombuffer(data[:a.nbytes], a.dtype).reshape(a.shape)
            elif not p.const:
                say(data[:a.nbytes] == a.tobytes(), f"{kernel} changes {p.name}, which is only to be read: declare it const")
            data = data[a.nbytes:]
    return Counts(**answer["counts"])


def at_most(limit, counts, uses, of):
    """Raise Wrong if a launch moved more than `limit` sectors for each of its `uses`; of: what a use is, in words."""
    moved = counts.sectors / uses
    parts = ", ".join(f"{name} {sectors / uses:.2g}" for name, sectors in sorted(counts.of.items(), key=lambda item: -item[1]))
    say(moved <= limit, f"too many sectors: {moved:.3g} {of}, should be at most {limit} ({parts}): "
                        "do the lanes of a warp read neighbours, and is each word fetched once and then kept?")


def ready():
    """Say in a line what the emulator lacks here, and how to get it; nothing if it lacks nothing."""
    try:
        emulator.compiler()
    except InputError as error:
        print(error)


def on_gpu(source, kernel, grid, block, args):
    """Launch on a CUDA GPU, through CuPy: arrays that are not const change in place. Returns microseconds, None without a GPU."""
    cupy, what = cuda_status()
    if cupy is None:
        print(f"no GPU to try it on: {what}")
        return None
    check_text(source, kernel)
    parameters = signature.kernels(source)[kernel]
    values = signature.checked(kernel, parameters, args, np.ndarray)
    given = [cupy.asarray(v) if p.pointer else v for p, v in zip(parameters, values)]
    launch_it = cupy.RawModule(code=source).get_function(kernel)
    launch_it(tuple(grid), tuple(block), tuple(given))
    for p, mine, there in zip(parameters, args, given):
        if p.pointer and not p.const:
            mine[...] = there.get()
    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    begin.record()
    for _ in range(20):
        launch_it(tuple(grid), tuple(block), tuple(given))
    end.record()
    end.synchronize()
    return 1000 * cupy.cuda.get_elapsed_time(begin, end) / 20


def check_text(source, kernel):
    """Raise Wrong for what is no kernel's text, or reaches for what no kernel needs."""
    say(source is not None, "the kernel's text is None: does the function return it?")
    say(isinstance(source, str), f"the kernel's text is {article(type(source).__name__)}, should be a str")
    say(source.isascii(), "the kernel's text has letters that CUDA C++ does not know (outside of ASCII)")
    source = source.replace("\r\n", "\n")
    say(not re.search(r"\\[^\S\n]+\n|\r|\?\?", source), "the kernel's text has a backslash with spaces behind it, or a trigraph")
    tokens = r"//[^\n]*|/\*.*?\*/|(?<!\w)\"[^\"\\/*\n]*\"|[\"']"  # comments, plain strings, quotes of any other kind
    joined = source.replace("\\\n", "")
    say(not any(found[0] in "\"'" for found in re.finditer(tokens, joined, re.S)),
        "the kernel's text has a quote ' or a text with special characters, which is not allowed here")
    text = re.sub(tokens, lambda found: found[0] if found[0][0] == '"' else " ", joined, flags=re.S)
    try:
        found = signature.kernels(source)
    except ValueError as error:
        raise Wrong(str(error)) from None
    has = f"; it has {', '.join(found)}" if found else ""
    say(kernel in found, f"the text has no kernel `__global__ void {kernel}(...)`{has}")
    say(re.search(r'extern\s*"C"', text), f'extern "C" is missing before `__global__ void {kernel}`: C++ gives it another name')
    outside = OUTSIDE.search(text)
    say(outside is None, lambda: f"the kernel's text has `{outside[0]}`, which is not allowed here")


def described(a):
    """An argument as JSON: an array by dtype and shape, a number as it is."""
    if isinstance(a, np.ndarray):
        return {"dtype": a.dtype.str, "shape": a.shape}
    return a.item() if isinstance(a, np.generic) else a


def ask(kernel, header, data, seconds):
    """(the answer, the arrays' bytes) of another process."""
    home, most = str(Path(__file__).parents[2]), PATIENCE * (COMPILE_SECONDS + seconds)
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    environment["LC_ALL"] = "C"  # the compiler's messages in English
    environment["PYTHONPATH"] = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen([sys.executable, "-P", "-m", "minisl.course.cuda"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, start_new_session=True, env=environment, cwd="/")
    try:
        out, err = process.communicate(json.dumps(header).encode() + b"\n" + data, most)
    except subprocess.TimeoutExpired:
        raise Wrong(f"{kernel}: compiling and running did not end within {most} s") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode == -signal.SIGPROF:
        raise Wrong(f"{kernel} did not end within {seconds} s: does a loop never end?")
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise Wrong(f"{kernel} crashed ({name}): endless recursion, or a large array inside a function?")
    if process.returncode:
        raise RuntimeError(f"the emulator's process failed:\n{err.decode(errors='replace')[-2000:]}")
    answer, _, rest = out.partition(b"\n")
    return json.loads(answer), rest


# ---- the other process


def main():
    header, _, data = sys.stdin.buffer.read().partition(b"\n")
    asked = json.loads(header)
    limit(asked["seconds"])
    try:
        counts, data = launch(asked, data)
        answer = {"counts": counts}
    except emulator.KernelFault as fault:
        answer, data = {"wrong": f"{type(fault).__name__}: {fault}{advice(fault)}"}, b""
    except (Wrong, TypeError, ValueError) as error:
        answer, data = {"wrong": str(error)}, b""
    except emulator.CompileError as error:
        answer, data = {"wrong": f"the compiler says: {with_line(str(error), asked)}"}, b""
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n" + data)


def advice(fault):
    """What to look for after a fault, in words."""
    if type(fault) is emulator.Race and "blocks are ordered" in fault.what:
        return BETWEEN_BLOCKS
    return ENDLESS if "an integer" in fault.what and "overflows" in fault.what else ADVICE.get(type(fault), "")


def launch(asked, data):
    """(what Counts is made of, the arrays' bytes after the last launch)"""
    kernel, counts = compiled(asked["source"], f"{asked['kernel']}.cu").get_function(asked["kernel"]), None
    for order in asked["orders"]:
        args = arguments(asked["args"], data)
        with emulator.order(order), emulator.record(limit=RECORDS if counts is None else 0) as launches:
            kernel(asked["grid"], asked["block"], args)
        counts = counts or counted(launches[0])
    return counts, b"".join(a.tobytes() for a in args if isinstance(a, np.ndarray))


def arguments(descriptions, data):
    """Numbers, and arrays that hold the next bytes of `data`, as they were described."""
    args, place = [], 0
    for given in descriptions:
        if isinstance(given, dict):
            dtype = np.dtype(given["dtype"])
            size = dtype.itemsize * math.prod(given["shape"])
            room = bytearray(APART) + data[place:place + size] + bytes(APART)
            given = np.frombuffer(room, dtype, size // dtype.itemsize, APART).reshape(given["shape"])
            place += size
        args.append(given)
    return args


def limit(seconds):
    """From now on this process ends after so many seconds of computing, and has no more than 8 GB; the compiler has its own."""
    import resource

    limits = {resource.RLIMIT_AS: 8 << 30, resource.RLIMIT_CPU: COMPILE_SECONDS + seconds, resource.RLIMIT_CORE: 0}
    for what, most in limits.items():
        allowed = resource.getrlimit(what)[1]
        most = most if allowed == resource.RLIM_INFINITY else min(most, allowed)
        resource.setrlimit(what, (most, most))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)


def compiled(source, name, options=()):
    """The module, if it needs nothing but mathematics of this machine."""
    path = emulator.build.build(source, options, name, tuple(signature.kernels(source)))
    needs = emulator.build.output("nm", "-D", "--undefined-only", path)
    unknown = set(re.findall(r"^\s+U (\w+)", needs, re.M)) - MACHINE - MATHS - {f"{word}f" for word in MATHS}
    say(not unknown, f"the kernel's text uses {', '.join(sorted(unknown))}, which is not known here")
    from minisl.course import fence  # is for Linux and macOS

    # a domain of its own: what is loaded now may neither signal the tests' process nor look into it
    fence.landlock([os.environ.get("TMPDIR") or "/nonexistent"], [*fence.readable(), os.path.dirname(path)], programs=True)
    return emulator.RawModule(code=source, name=name)


def counted(launch):
    """What Counts is made of."""
    table = launch.accesses
    say(len(table) < RECORDS, f"{launch.kernel} makes more than {RECORDS:,} accesses: far too many for this problem")
    arrays = [(k, a.name) for k, a in enumerate(launch.arrays) if not a.shared]
    table = table[np.isin(table["array"], [k for k, _ in arrays])]
    sectors = {name: launch.summary(name)["moved"] for _, name in arrays}
    of_thread = np.unique(1024 * table["block"].astype(np.int64) + table["thread"], return_counts=True)[1]
    return {"sectors": sum(sectors.values()), "of": sectors, "accesses": len(table), "busiest": int(of_thread.max(initial=0)),
            "atomics": int((table["use"] == 2).sum())}


def with_line(error, asked):
    """A compiler's error, and the line that it is about."""
    source = asked["source"]
    if "cuda_on_cpu.h" in error:  # a barrier, an atomic or a shuffle, which is a macro there: where does it stand?
        error = error.partition("error: ")[2]
        try:
            compiled(source, f"{asked['kernel']}.cu", ("-ftrack-macro-expansion=0",))
        except emulator.CompileError as placed:
            error = error if "cuda_on_cpu.h" in str(placed) else str(placed)
        error = re.sub(r"\bcu_(\w+)\((?:int, )?", r"\1(", error)
    place, lines = re.search(r":(\d+):", error), source.splitlines()
    number = int(place[1]) if place else 0
    if macro := re.search(r"\b(__sync\w+|__\w+_sync|atomic\w+) *\(", "\n".join(lines[max(number - 1, 0):])):
        error = re.sub(r"before 'cu\w*'", f"before '{macro[1]}'", error)
    if re.search(r"atomic\w+\((float|int)&", error):
        error += "; it takes an address: &d[k]"
    return error + (f"\n    {lines[number - 1].strip()}" if 0 < number <= len(lines) else "")


if __name__ == "__main__":
    main()
