"""`python -m minisl.bench`: how fast minisl is here, beside PyTorch, SciPy and the dense layer, in one run."""

import json
import math
import platform
import sys
import time
from pathlib import Path

import numpy as np

import minisl
from minisl.backend import DEVICES, cuda_status, keep_freed_memory
from minisl.blas import numpy_blas, restart_with_better_kernels
from minisl.command import Parser, run_command
from minisl.errors import InputError
from minisl.kernels import numba_status

SECTIONS = ("layer", "ops", "step", "profile", "scaling", "distributed")
ON_GPU = ("layer", "step", "ops")


def here():
    """The sections that can be asked here: for the last, mpi4py and mpiexec are needed."""
    try:
        from minisl.bench.distributed import mpiexec

        mpiexec()
    except InputError:
        return SECTIONS[:-1]
    return SECTIONS


def versions():
    found = {"minisl": minisl.__version__, "python": platform.python_version(), "numpy": np.__version__}
    for name in ("numba", "scipy", "torch"):
        try:
            found[name] = __import__(name).__version__
        except ImportError:
            found[name] = "not installed"
    return found


def processor():
    """The CPU's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main(argv):
    parser = Parser(prog="python -m minisl.bench", description="Time minisl beside its peers, in turn, in one run.")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="what to measure; on a GPU: " + ", ".join(ON_GPU))
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="which questions to ask (left out: all)")
    parser.add_argument("--out", help="a folder for bench.json and the plots, on a GPU the tables")
    parser.add_argument("--seconds", type=float, default=math.inf, help="on a GPU: begin no measurement after so many")
    parser.add_argument("--calibrate", action="store_true", help="fit the cost model behind --algorithm auto to this machine")
    parser.add_argument("--keep-blas", action="store_true", help="do not start again where OpenBLAS has better kernels")
    args = parser.parse_args(argv)
    out, on_gpu, sections = Path(args.out) if args.out else None, args.device == "cuda", args.only or here()
    if on_gpu:
        sections = args.only or ON_GPU
        if args.calibrate or not set(sections) <= set(ON_GPU):
            raise InputError(f"--device cuda: allowed with it is --only {' '.join(ON_GPU)}")
        cupy, why = cuda_status()
        if cupy is None:
            raise InputError(f"--device cuda: {why}")
    else:
        cpu, why = numba_status()
        if cpu is None:
            raise InputError(f"minisl.bench times the Numba kernels: {why}")
        if "distributed" in sections:
            from minisl.bench.distributed import mpiexec

            mpiexec()  # or an error, before anything is measured
    if out:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {out}: cannot be written ({error.strerror})") from None
    keep_freed_memory()
    if on_gpu:
        from minisl.bench import cuda

        return cuda.report(cupy, sections, out, args.seconds, versions(), say)
    with cpu.module.announced(say):
        if args.calibrate:
            from minisl.bench.calibrate import calibrate

            calibrate(say)
        else:
            report(sections, out)
    return 0


def report(sections, out):
    from minisl.bench import distributed, layer, measure, ops, scaling, step

    machine, blas = measure.ceilings(), numpy_blas()
    kernels = "{internal_api} {version}, kernels for {architecture}".format(**{"architecture": "?"} | blas) if blas else "BLAS ?"
    command = "python -m minisl.bench" + (f" --only {' '.join(sections)}" if tuple(sections) != here() else "")
    say(f"$ {command}   ({time.strftime('%Y-%m-%d %H:%M')})")
    say(f"{processor()}, {machine['cores']} cores; {kernels}; " + ", ".join(f"{k} {v}" for k, v in versions().items()))
    say(f"ceilings now: {machine['gemm'] / 1e9:.0f} GFLOP/s float32 GEMM, {machine['memory'] / 1e9:.1f} GB/s memory; "
        "ms are medians, +- is half the distance between the quartiles")
    if "torch" not in sys.modules and measure.torch_or_none() is None:
        say("PyTorch is not installed: no rows for it (pip install torch)")
    found = {"command": command, "date": time.strftime("%Y-%m-%d"), "processor": processor(), "blas": kernels,
             "versions": versions(), "machine": machine}
    questions = {"layer": layer.bench, "ops": ops.bench, "step": step.bench, "profile": step.profile, "scaling": scaling.bench,
                 "distributed": distributed.bench}
    for name in sections:
        say("")
        found[name] = questions[name](machine, say)
    if out:
        from minisl.files import write_text
        from minisl.plot import layer_figure, scaling_figure, timeline_figure

        figures = {"layer": layer_figure, "scaling": scaling_figure, "distributed": timeline_figure}
        write_text(out / "bench.json", json.dumps(found, indent=1) + "\n")
        for name, figure in figures.items():
            if name in found:
                figure(out / f"{name}.png", found[name], f"{processor()}, {machine['cores']} cores, {found['date']}")
        say(f"\n{out} holds bench.json" + "".join(f", {n}.png" for n in figures if n in found))


def say(line=""):
    print(line, flush=True)


if __name__ == "__main__":
    if "cuda" not in sys.argv:
        restart_with_better_kernels("minisl.bench")
    sys.exit(run_command(main))
