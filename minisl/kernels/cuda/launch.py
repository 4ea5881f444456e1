"""Launch the rung of an operation: on the GPU for CuPy arrays, in the emulator for NumPy arrays."""

from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import MappingProxyType

import numpy as np

from minisl.backend import array_module
from minisl.kernels.cuda import emulator, ladder, signature

replaced = ContextVar("replaced", default=MappingProxyType({}))


@contextmanager
def instead(op, text, name="the text given"):
    """Within this block this .cu text runs where a rung of `op` would: for trying out a change. name: what errors call it."""
    token = replaced.set(dict(replaced.get()) | {op: (text, name)})
    try:
        yield
    finally:
        replaced.reset(token)


def launch(op, grid, block, kernel=None, **values):
    """Run a kernel of the rung of `op` that is in use; its parameters are taken from `values` by name.

    grid, block: up to three sizes; nothing runs where one of the grid's is 0. kernel: its name, if it is not that of op.
    Raises TypeError for an array that does not fit, or a parameter that there is no value for; in the emulator a KernelFault.
    """
    if 0 in grid:
        return
    number, kernel = ladder.rung(op), kernel or op
    xp = array_module(next(v for v in values.values() if hasattr(v, "strides")))
    if ladder.language() == "numba" and op in ladder.rungs("numba"):
        from minisl.kernels.cuda import in_numba

        in_numba.launch(op, number, kernel, grid, block, values, xp)
        return
    text, name = replaced.get().get(op) or (ladder.source(op, number), f"{op}_{number}.cu")
    kernels = signature.kernels(text)
    if kernel not in kernels:
        raise TypeError(f"{name} has no kernel {kernel}; it has {', '.join(kernels) or 'none (__global__ void ...)'}")
    if unknown := [p.name for p in kernels[kernel] if p.name not in values]:
        raise TypeError(f"{kernel} in {name} has a parameter {unknown[0]}; those there can be are {', '.join(values)}")
    arguments = signature.checked(kernel, kernels[kernel], [values[p.name] for p in kernels[kernel]], xp.ndarray)
    compiled(text, name, kernel, xp is np)(grid, block, arguments)


@cache
def compiled(text, name, kernel, emulated):
    if emulated:
        return emulator.RawModule(code=text, name=name).get_function(kernel)
    import cupy

    return cupy.RawModule(code=text).get_function(kernel)


def pieces(n, size):
    """How many pieces of `size` make up n, the last perhaps smaller."""
    return -(-n // size)
