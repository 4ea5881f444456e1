"""`python -m minisl.doctor`: what this machine offers minisl, one line each, and a fix where something is off."""

import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from minisl.backend import cuda_status
from minisl.blas import better_kernels, numpy_blas
from minisl.command import Parser, run_command
from minisl.errors import InputError
from minisl.files import cache_folder
from minisl.kernels import numba_status
from minisl.kernels.cost import read_calibration
from minisl.parallel import cores


def python_line():
    """Which Python, and whether it is one that is tested."""
    good = (3, 11) <= sys.version_info[:2] <= (3, 13)
    line = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return line if good else line + "; fix: minisl is tested on 3.11 to 3.13"


def packages_line():
    """The libraries that minisl imports when they are needed, and whether they do import."""
    found = []
    for name in ("numpy", "scipy", "matplotlib", "safetensors", "tokenizers", "tqdm"):
        try:
            importlib.import_module(name)
            found.append(f"{name} {importlib.metadata.version(name)}")
        except Exception as error:
            found.append(f"{name} BROKEN ({type(error).__name__}: {error}; fix: pip install --force-reinstall {name})")
    return ", ".join(found)


def blas_line():
    """Which BLAS NumPy calls, which kernels it picked for this CPU, and whether it has better ones."""
    blas = numpy_blas()
    if blas is None:
        return "not recognised (NumPy may be built on Accelerate or its own loops)"
    rate, kernels = gemm_rate(), better_kernels()
    line = (f"{blas['internal_api']} {blas['version']}, kernels for {blas.get('architecture', 'unknown')}, "
            f"{rate:.0f} GFLOP/s in float32")
    if kernels is None:
        return line
    better = gemm_rate_with(kernels)
    if better < 1.1 * rate:
        return f"{line}; those for {kernels} would fit this CPU too, but are no faster ({better:.0f} GFLOP/s)"
    return f"{line}; fix: export OPENBLAS_CORETYPE={kernels} ({better:.0f} GFLOP/s; train and evaluate do it for themselves)"


def gemm_rate(n=1024, seconds=0.3):
    """Best GFLOP/s of an n x n x n float32 product."""
    import numpy as np

    a, best, end = np.ones((n, n), np.float32), 1e9, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best / 1e9


def gemm_rate_with(kernels):
    """gemm_rate() in a process of its own, in which OpenBLAS is told to run these kernels."""
    done = subprocess.run([sys.executable, "-c", "from minisl.doctor import gemm_rate; print(gemm_rate())"], check=True,
                          text=True, capture_output=True, env={**os.environ, "OPENBLAS_CORETYPE": kernels}, timeout=60)
    return float(done.stdout)


def threads_line():
    """How many cores, and whether BLAS uses them."""
    from threadpoolctl import threadpool_info

    used = max((p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"), default=1)
    line = f"{cores()} cores for this process, BLAS uses {used}"
    limits = [v for v in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS") if v in os.environ]
    if used < cores():
        line += f"; fix: unset {', '.join(limits)}" if limits else "; fix: set OPENBLAS_NUM_THREADS to the number of cores"
    return line


def numba_line():
    """Whether the Numba kernels run."""
    module, why = numba_status()
    if module is None:
        return f"none: {why}; training runs on NumPy, slower"
    from minisl.kernels.cpu import jit, rows

    line = f"{why.removeprefix('Numba ')}, its kernels (--backend cpu) run on {cores()} cores"
    if jit.kept(rows.square_sum.py_func):
        return line
    return f"{line}, compiled at each start, as no folder for them can be written; fix: set NUMBA_CACHE_DIR to one that can"


def caches_line():
    """Where this user's caches are, whether they can be written, and which constants `--algorithm auto` decides by."""
    folder, (found, why) = cache_folder(), read_calibration()
    line = f"{folder}; " + (why or f"--algorithm auto decides by constants {'measured here' if found else 'built in'}")
    if can_be_written(folder):
        return line
    return f"{line}; the folder cannot be written, the emulator compiles at each start; fix: set XDG_CACHE_HOME to one that can"


def can_be_written(folder):
    """Can files be made in a folder, or a folder of this name?"""
    folder = Path(folder).absolute()
    while not os.path.lexists(folder):
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def gpu_line():
    """What is on the GPU, or why there is none."""
    cupy, why = cuda_status()
    return why if cupy else f"none: {why}"


def cuda_line():
    """Which rung of each ladder of CUDA kernels runs."""
    from minisl.kernels.cuda import ladder

    last = ", ".join(f"{op} {count - 1}" for op, count in ladder.rungs().items())
    if cuda_status()[0]:
        return f"--device cuda runs the last rung of each ladder: {last}"
    return f"none: the line on the GPU has the reason and the fix; the emulator can run the last rungs: {last}"


def emulator_line():
    """Whether the emulator has a compiler."""
    from minisl.kernels.cuda import emulator

    try:
        return f"--backend emulator runs the CUDA kernels on the CPU, compiled by {emulator.compiler()}"
    except InputError as why:
        return f"none: {why}"


def numba_cuda_line():
    """Whether the ladders in Numba CUDA can be compiled."""
    found = installed("numba-cuda")
    return f"{found}, for the ladders in Numba" if found else "none: not installed; fix: pip install 'numba-cuda[cu13]'"


def nvrtc_line():
    """The compiler from its wheel, with which the tests compile the kernels for GPUs that are not here."""
    found = installed("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12")
    if found:
        return f"{found}, with which the tests compile the CUDA kernels"
    return "none: its wheel is not installed; fix: pip install 'nvidia-cuda-nvrtc>=13,<14'"


def installed(*packages):
    """The version of the first of these packages that is installed, or None."""
    for name in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


def disk_line():
    """How much room is here."""
    free = shutil.disk_usage(".").free
    if not can_be_written("."):
        return f"{free / 1e9:.1f} GB free, but this folder cannot be written; fix: go to one that can, or give --out"
    return f"{free / 1e9:.1f} GB free here" + ("" if free > 1e9 else "; fix: free some, a run needs room for its checkpoints")


LINES = {"Python": python_line, "packages": packages_line, "BLAS": blas_line, "threads": threads_line, "Numba": numba_line,
         "caches": caches_line, "GPU": gpu_line, "cuda": cuda_line, "emulator": emulator_line, "numba-cuda": numba_cuda_line,
         "NVRTC": nvrtc_line, "disk": disk_line}


def main(argv):
    Parser(prog="python -m minisl.doctor", description="Say what this machine offers minisl.").parse_args(argv)
    for name, line in LINES.items():
        try:
            found = line()
        except Exception as error:  # the doctor reports what is broken, whatever it is
            found = f"could not be examined ({type(error).__name__}: {error})"
        print(f"{name:12}{' '.join(found.split())}")


if __name__ == "__main__":
    sys.exit(run_command(main))
