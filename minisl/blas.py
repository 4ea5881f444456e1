"""The kernels of NumPy's OpenBLAS. It can run those of an older CPU, where it does not know the one it is on or somebody has set
OPENBLAS_CORETYPE, and then multiplies at half the speed or less."""

import os
import sys
from contextlib import suppress
from pathlib import Path

KEEP = "MINISL_KEEP_BLAS"  # set: never restart. Also how a restarted process knows that it is one.
AVX512_FLAGS = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}
AVX2 = {"Haswell", "Zen", "Excavator"}
OLDER = {"Katmai", "Coppermine", "Northwood", "Banias", "Prescott", "Core2", "Penryn", "Dunnington", "Nehalem", "Atom", "Nano",
         "Athlon", "Opteron", "Opteron_SSE3", "Barcelona", "Bobcat", "Sandybridge", "Bulldozer", "Piledriver", "Steamroller"}


def numpy_blas():
    """threadpoolctl's description of the BLAS that NumPy calls, or None where it knows none."""
    import numpy  # noqa: F401  loads the BLAS that is asked about
    from threadpoolctl import threadpool_info

    pools = [p for p in threadpool_info() if p["user_api"] == "blas"]  # SciPy brings one of its own
    return min(pools, key=lambda p: Path(p["filepath"]).parent.name != "numpy.libs", default=None)


def cpu_flags():
    """What an x86 CPU can do, as Linux writes it; empty elsewhere."""
    with suppress(OSError), open("/proc/cpuinfo") as lines:
        return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())
    return set()


def fitting_kernels(architecture, flags):
    """The OPENBLAS_CORETYPE that fits a CPU with these flags better than the kernels for `architecture`, or None. Kernels that
    are not known here may be newer than this table and are left alone."""
    if flags >= AVX512_FLAGS and architecture in AVX2 | OLDER:
        return "SkylakeX"
    if flags >= {"avx2", "fma"} and architecture in OLDER:
        return "Haswell"
    return None


def better_kernels():
    """The OPENBLAS_CORETYPE that fits this CPU better than the kernels OpenBLAS has picked, or None: there is none, NumPy calls
    another BLAS, or the CPU's flags are unknown."""
    blas = numpy_blas()
    if blas is None or blas["internal_api"] != "openblas":
        return None
    return fitting_kernels(blas.get("architecture"), cpu_flags())


def restart_with_better_kernels(module):
    """Where better_kernels() finds some: say so in one line on stderr and replace this process, `python -m module ...`, by the
    same with OPENBLAS_CORETYPE set. Once at most, and never with --keep-blas, MINISL_KEEP_BLAS set, or on Windows."""
    if os.name != "posix" or "--keep-blas" in sys.argv or KEEP in os.environ:
        return
    with suppress(Exception):  # whatever goes wrong, the command can run without
        kernels = better_kernels()
        if kernels is None:
            return
        found = numpy_blas()["architecture"]
        if "OPENBLAS_CORETYPE" in os.environ:
            found += f" (OPENBLAS_CORETYPE={os.environ['OPENBLAS_CORETYPE']})"
        from minisl.distributed import first_to_speak

        if first_to_speak():
            print(f"OpenBLAS runs its kernels for {found}, this CPU can more: starting again with OPENBLAS_CORETYPE={kernels} "
                  "(--keep-blas: do not)", file=sys.stderr, flush=True)
        started, plain = sys.orig_argv[1:], ["-m", module, *sys.argv[1:]]
        if started[-len(plain) :] != plain:  # not by `python FLAGS -m module ...`
            started = plain
        os.execve(sys.executable, [sys.executable, *started], os.environ | {"OPENBLAS_CORETYPE": kernels, KEEP: "1"})
