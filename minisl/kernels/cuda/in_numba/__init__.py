"""The ladder again, in Numba CUDA: the rungs of scatter_add, spmm, sddmm and sl_forward, to be read beside the .cu files.

Rung 3 of spmm is spmm_3.cu there and `spmm.rung_3` here: the same grid and block, arguments in the same order, the same names.
What is different between the languages:

    CUDA C++                                    Numba CUDA
    x[(size_t)t * width + j]                    x[t, j]: an array knows its shape. Only scatter_add wants its W flat
    const int* start = starts + i               start = i, and then starts[start + k]
    __shared__ float tile[64][32 + 1]           tile = cuda.shared.array((64, 33), np.float32): sizes are not computed
    float sum[8] = {}                           sum = cuda.local.array(8, np.float32), and a loop that sets it to 0
    float sum = 0                               sum = np.float32(0): 0.0 would be a double, and so would all sums with it
    atomicAdd(&W[i], v)                         cuda.atomic.add(W, i, v)
    __shfl_down_sync(0xffffffff, sum, 16)       cuda.shfl_down_sync(0xFFFFFFFF, sum, 16)

Numba has no word for a load of 16 bytes, so the rungs that live by one are left out: scatter_add 2, spmm 5 and 6, sddmm 3 and 4.
Nothing here needs a GPU to be imported: Numba compiles a kernel when it is first launched, and
`minisl.kernels.cuda.emulator.numba_threads` runs it as plain Python.
"""

import warnings
from importlib import import_module

import numpy as np

from minisl.errors import InputError
from minisl.kernels.cuda import emulator, ladder, signature

OPS = tuple(ladder.rungs("numba"))


def launch(op, number, name, grid, block, values, xp):
    """Run a rung: on the GPU for CuPy arrays, in `numba_threads` for NumPy arrays. Its arguments are taken from `values` by name.

    Raises TypeError for one that does not fit what the .cu file says, without a GPU a KernelFault; InputError as `kernel`.
    """
    rung = kernel(op, number)
    parameters = signature.kernels(ladder.source(op, number))[name]
    arguments = signature.checked(f"{op} rung {number}", parameters, [values[p.name] for p in parameters], xp.ndarray)
    if op == "scatter_add":
        arguments = arguments[0].reshape(-1), *arguments[1:]
    if xp is np:
        from minisl.kernels.cuda.emulator import numba_threads

        numba_threads.run(rung, grid, block, arguments, emulator.thread_order.get())
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Grid size")  # too small to fill the GPU: what the first rungs show
        rung[grid, block](*arguments)


def kernel(op, number):
    """What @cuda.jit made of a rung. Raises InputError where Numba has no such rung, or no CUDA."""
    if op not in OPS:
        raise InputError(f"{op} is not written in Numba CUDA; these are: {', '.join(OPS)}")
    try:
        module = import_module(f"{__name__}.{op}")
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"the ladder in Numba CUDA does not import ({why}); pip install numba-cuda") from None
    if not hasattr(module, f"rung_{number}"):
        raise InputError(f"{op} has no rung {number} in Numba CUDA; its last is {last(op)}: Numba cannot load 16 bytes at a time")
    return getattr(module, f"rung_{number}")


def last(op):
    """The number of the last rung that is written in Numba CUDA."""
    return ladder.rungs("numba")[op] - 1
