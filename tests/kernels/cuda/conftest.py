"""Where the CUDA kernels run: in the emulator, and on a GPU where there is one."""

import numpy as np
import pytest

from minisl.backend import cuda_status
from minisl.errors import InputError
from minisl.kernels.cuda import emulator


@pytest.fixture
def compiler():
    """Without a C++ compiler there is no emulator."""
    try:
        return emulator.compiler()
    except InputError as why:
        pytest.skip(str(why))


@pytest.fixture(params=["emulator", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request):
    """NumPy, whose arrays the emulator takes, or CuPy: `device.asarray(x)` is x where kernels run, `to_numpy` brings it back."""
    if request.param == "emulator":
        request.getfixturevalue("compiler")
        return np
    cupy, why = cuda_status()
    return cupy or pytest.skip(why)
