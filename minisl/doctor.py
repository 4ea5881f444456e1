"""`python -m minisl.doctor`: what this machine offers minisl, one line each, and a fix where something is off."""

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
import time

from minisl.backend import cuda_status
from minisl.command import Parser, run_command


def python_line():
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
    """Which BLAS NumPy calls and which kernels it picked for this CPU."""
    import numpy  # noqa: F401  loads the BLAS that is asked about
    from threadpoolctl import threadpool_info

    pools = [p for p in threadpool_info() if p["user_api"] == "blas"]
    if not pools:
        return "not recognised (NumPy may be built on Accelerate or its own loops)"
    pool = pools[0]
    name, kernels = f"{pool['internal_api']} {pool['version']}", pool.get("architecture", "unknown")
    return f"{name}, kernels for {kernels}, {gemm_rate():.0f} GFLOP/s in float32"


def gemm_rate(n=1024, seconds=0.3):
    """Best GFLOP/s of an n x n x n float32 product."""
    import numpy as np

    a, best, end = np.ones((n, n), np.float32), 1e9, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best / 1e9


def threads_line():
    from threadpoolctl import threadpool_info

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    used = max((p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"), default=1)
    line = f"{cores} cores for this process, BLAS uses {used}"
    limits = [v for v in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS") if v in os.environ]
    if used < cores:
        line += f"; fix: unset {', '.join(limits)}" if limits else "; fix: set OPENBLAS_NUM_THREADS to the number of cores"
    return line


def numba_line():
    try:
        return f"{importlib.import_module('numba').__version__} (no kernel uses it yet)"
    except ImportError:
        return "not installed (no kernel uses it yet)"
    except Exception as error:
        return f"installed but does not import ({type(error).__name__}: {error}); nothing here needs it yet"


def gpu_line():
    cupy, why = cuda_status()
    return why if cupy else f"none: {why}; training runs on the CPU"


def disk_line():
    free = shutil.disk_usage(".").free
    return f"{free / 1e9:.1f} GB free here" + ("" if free > 1e9 else "; fix: free some, a run needs room for its checkpoints")


LINES = {"Python": python_line, "packages": packages_line, "BLAS": blas_line, "threads": threads_line, "Numba": numba_line,
         "GPU": gpu_line, "disk": disk_line}


def main(argv):
    Parser(prog="python -m minisl.doctor", description="Say what this machine offers minisl.").parse_args(argv)
    for name, line in LINES.items():
        try:
            found = line()
        except Exception as error:  # the doctor reports what is broken, whatever it is
            found = f"could not be examined ({type(error).__name__}: {error})"
        print(f"{name:10}{' '.join(found.split())}")


if __name__ == "__main__":
    sys.exit(run_command(main))
