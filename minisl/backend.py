"""Where arrays live: the module of an array, the device a command runs on and why, how it multiplies, and where random numbers
come from."""

import ctypes
import os
import sys
import zlib
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from numbers import Integral

import numpy as np

from minisl.errors import InputError

IGNORE_LABEL = -100  # a label that takes no part in a loss; the number PyTorch and Hugging Face use
DEVICES = ("cpu", "cuda")
PRECISIONS = ("float32", "tf32", "bf16")
CUPY_PACKAGES = ("cupy-cuda13x", "cupy-cuda12x", "cupy-cuda11x", "cupy")  # each has the module cupy; the newest CUDA first

precision = ContextVar("precision", default="float32")  # how float32 matrices on a GPU are multiplied


def array_module(array):
    """`numpy` or `cupy`, whichever `array` belongs to."""
    if isinstance(array, (np.ndarray, np.generic)) or not type(array).__module__.startswith("cupy"):
        return np
    import cupy

    return cupy


def to_numpy(array):
    """The array on the host; a NumPy array is returned as it is."""
    return array if isinstance(array, np.ndarray) else array_module(array).asnumpy(array)


def generator(seed, *names):
    """An independent random stream for each purpose: the same (seed, names) is the same stream on every machine.

    names: strings or integers, such as ("data", epoch). Drawing more from one stream never shifts another.
    """
    if not isinstance(seed, Integral) or seed < 0:
        raise InputError(f"seed {seed!r}: must be an integer, 0 or above")
    words = [n if isinstance(n, int) else zlib.crc32(n.encode()) for n in names]
    return np.random.default_rng(np.random.SeedSequence([seed, *words]))


def check_arrays(state, what):
    """Raises InputError, which begins with `what`, unless this is a dictionary of names and arrays."""
    if not isinstance(state, dict):
        raise InputError(f"{what}: a {type(state).__name__}, not a dictionary of arrays")
    for name, array in state.items():
        if not isinstance(name, str) or not (isinstance(array, np.ndarray) or hasattr(array, "__cuda_array_interface__")):
            raise InputError(f"{what}: {name} is a {type(array).__name__}, not an array")


def choose_device(name):
    """(array module, what computes) for `--device name`.

    Raises InputError: unknown name, or "cuda" where no GPU can be used.
    """
    if name == "cpu":
        return np, "NumPy on the CPU"
    if name != "cuda":
        raise InputError(f"--device {name}: unknown; allowed: {', '.join(DEVICES)}")
    cupy, why = cuda_status()
    if cupy is None:
        raise InputError(f"--device cuda: {why}; or use --device cpu")
    return cupy, why


@cache
def cuda_status():
    """(cupy, what is on the GPU) where arrays can be; else (None, one sentence: what is missing, and the fix).

    Cheap where there is no GPU: CuPy is only imported where a driver has found one.
    """
    driver, gpus, why = nvidia_driver()
    if find_spec("cupy") is None:
        return None, why or f"CuPy is not installed; fix: pip install '{CUPY_PACKAGES[0]}[ctk]'"
    packages = cupy_packages()
    if len(packages) > 1:
        return None, (f"{len(packages)} CuPy packages are installed, each of which brings the module cupy; fix: pip uninstall "
                      f"{' '.join(packages)}, then pip install '{packages[0]}[ctk]'")
    package = packages[0] if packages else CUPY_PACKAGES[0]
    if why:
        return None, why
    try:
        import cupy

        toolkit = cupy.cuda.runtime.runtimeGetVersion()
    except Exception as error:  # a CuPy that does not load must not take the CPU path down with it
        return None, f"CuPy is installed but does not import ({in_words(error)}); fix: pip install --force-reinstall {package}"
    if driver // 1000 < toolkit // 1000:
        older = f", or pip uninstall {package} and pip install '{CUPY_PACKAGES[1]}[ctk]'" if driver // 1000 == 12 else ""
        return None, (f"the NVIDIA driver is for CUDA {version(driver)}, CuPy for CUDA {version(toolkit)}; fix: a newer driver"
                      f"{older}")
    try:
        cupy.cuda.nvrtc.getVersion()
    except Exception as error:
        return None, f"CuPy finds no NVRTC to compile kernels with ({in_words(error)}); fix: pip install '{package}[ctk]'"
    try:
        name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
        cupy.cuda.cublas  # noqa: B018  found when it is asked for
    except ImportError as error:
        return None, f"CuPy finds no cuBLAS to multiply with ({in_words(error)}); fix: pip install '{package}[ctk]'"
    except Exception as error:
        return None, f"CuPy {cupy.__version__} cannot use the GPU ({in_words(error)}); fix: see what nvidia-smi says"
    return cupy, f"CuPy {cupy.__version__} on GPU 0 of {gpus}, {name}, driver for CUDA {version(driver)}"


def cupy_packages():
    """Those of CUPY_PACKAGES that are installed."""
    from importlib import metadata  # with email and more behind it, which is not needed to import minisl

    found = []
    for name in CUPY_PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            metadata.distribution(name)
            found.append(name)
    return found


def nvidia_driver():
    """(the newest CUDA that the driver can run, as 1000 major + 10 minor; number of GPUs; "" or what is wrong and the fix)."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return 0, 0, f"there is no NVIDIA driver ({library} is not found); fix: where there is an NVIDIA GPU, install its driver"
    newest, gpus = ctypes.c_int(0), ctypes.c_int(0)
    error = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(gpus))
    cuda.cuDriverGetVersion(ctypes.byref(newest))
    if error in (0, 100) and not gpus.value:  # 100 is CUDA_ERROR_NO_DEVICE
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        fix = "see what nvidia-smi -L lists" if hidden is None else f"unset CUDA_VISIBLE_DEVICES, which is {hidden!r}"
        return newest.value, 0, f"the NVIDIA driver finds no GPU; fix: {fix}"
    if error:
        return newest.value, 0, (f"the NVIDIA driver does not start (CUDA error {error}); fix: see what nvidia-smi says; after "
                                 "the driver was updated, restart the machine")
    return newest.value, gpus.value, ""


def version(cuda):
    """12040 is "12.4"."""
    return f"{cuda // 1000}.{cuda % 1000 // 10}"


def in_words(error):
    """An error's type and text in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def read(*numbers):
    """Python floats of numbers. Those on a GPU come over together, once all that was asked of it is done: the one wait of a
    step."""
    xp = next((m for m in map(array_module, numbers) if m is not np), np)
    return to_numpy(xp.stack([xp.asarray(n) for n in numbers])).tolist()


def unread(number):
    """A NumPy number as a Python float. One on a GPU stays there as an array: to look at it is to wait for it."""
    return number.item() if array_module(number) is np else number


@contextmanager
def matmul_precision(name, xp):
    """Within this block float32 matrices on a GPU are multiplied so: with factors as they are ("float32"), rounded to TF32
    (10 bits after the point) or to bfloat16 (7 bits); products are added in float32.

    Raises InputError: unknown, not on a GPU (xp is NumPy), or a GPU that cannot.
    """
    if name not in PRECISIONS:
        raise InputError(f"--matmul-precision {name}: unknown; allowed: {', '.join(PRECISIONS)}")
    if xp is np:
        if name != "float32":
            raise InputError(f"--matmul-precision {name}: --device cuda is needed; the CPU multiplies in float32")
        yield
        return
    capability = int(xp.cuda.Device().compute_capability)
    if name != "float32" and capability < 80:
        raise InputError(f"--matmul-precision {name}: needs a GPU of compute capability 8.0 (Ampere) or later, this one has "
                         f"{capability // 10}.{capability % 10}; allowed: float32")
    core, types = xp._core, xp._core._routines_linalg
    compute_type = core.get_compute_type(np.float32)
    core.set_compute_type(np.float32, types.COMPUTE_TYPE_TF32 if name == "tf32" else types.COMPUTE_TYPE_DEFAULT)
    token = precision.set(name)
    try:
        yield
    finally:
        precision.reset(token)
        core.set_compute_type(np.float32, compute_type)


def matmul(a, b):
    """a b of two matrices, on a GPU in the precision asked for. CuPy's @ knows TF32; for bfloat16 cuBLAS is called here."""
    if precision.get() != "bf16" or array_module(a) is np or a.dtype != np.float32 or not (a.size and b.size):
        return a @ b
    xp, out = array_module(a), array_module(a).empty((len(a), b.shape[1]), np.float32)
    cublas, float32, one, zero = xp.cuda.cublas, xp.cuda.runtime.CUDA_R_32F, np.ones(1, np.float32), np.zeros(1, np.float32)
    (a, a_turned, a_step), (b, b_turned, b_step) = by_columns(a), by_columns(b)
    # cuBLAS counts down columns, where our rows stand: it is asked for out^T = b^T a^T
    cublas.gemmEx(xp.cuda.device.get_cublas_handle(), b_turned, a_turned, out.shape[1], out.shape[0], a.shape[1],
                  one.ctypes.data, b.data.ptr, float32, b_step, a.data.ptr, float32, a_step,
                  zero.ctypes.data, out.data.ptr, float32, out.shape[1],
                  cublas.CUBLAS_COMPUTE_32F_FAST_16BF, cublas.CUBLAS_GEMM_DEFAULT)
    return out


def by_columns(a):
    """(a, 1 if cuBLAS must transpose what it sees to see a^T, elements from one of its columns to the next)"""
    if a.flags.f_contiguous and not a.flags.c_contiguous:
        return a, 1, a.shape[0]
    return array_module(a).ascontiguousarray(a), 0, a.shape[1]


def keep_freed_memory():
    """Ask glibc to keep freed arrays for the next ones. A training step makes the same large arrays again and again;
    handed back to the system each time, they return as pages to be cleared one by one. On two cores a step of the tiny
    model took 134 ms with this and 154 ms without, in the same minute."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: arrays below 1 GiB come from the heap
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap does not shrink
        libc.mallopt(-8, 1)  # M_ARENA_MAX: what one thread frees, another can use
