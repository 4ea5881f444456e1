"""CUDA C++ without a GPU: the same .cu text, compiled by g++ and run on the CPU, with every access watched.

    from minisl.kernels.cuda import emulator
    code = '''extern "C" __global__ void twice(float* x, int n) {
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i <= n) x[i] *= 2;
    }'''
    twice = emulator.RawModule(code=code).get_function("twice")
    twice((1,), (32,), (np.ones(20, np.float32), 20))
    # OutOfBounds: twice, line 3, block (0, 0, 0), thread (20, 0, 0): reads x[20]; it has 20 elements

`RawModule` has the interface of `cupy.RawModule`. What is wrong with a launch is raised as a `KernelFault`; all kinds are in
`faults.py`. It tells right from wrong, not fast from slow; fences between blocks, tensor cores and inline PTX are not known here.

    with emulator.order(2): ...          # threads and blocks run in another order: 0 forward, 1 backward, 2.. random
    with emulator.record() as launches:  # keep every access: `trace.py` counts them, `draw.py` draws them
        ...
"""

from minisl.kernels.cuda.emulator.build import CompileError, compiler
from minisl.kernels.cuda.emulator.faults import (
    BadLaunch,
    BadShuffle,
    BarrierDivergence,
    Deadlock,
    KernelFault,
    OutOfBounds,
    Race,
    UndefinedBehaviour,
    Uninitialised,
)
from minisl.kernels.cuda.emulator.module import RawModule, order, record, thread_order

__all__ = ["BadLaunch", "BadShuffle", "BarrierDivergence", "CompileError", "Deadlock", "KernelFault", "OutOfBounds", "Race",
           "RawModule", "UndefinedBehaviour", "Uninitialised", "compiler", "order", "record", "thread_order"]
