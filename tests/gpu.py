"""CuPy for tests: the stand-in of `fake_gpu`, or the real one."""

import sys
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import pytest

from minisl import backend
from minisl.errors import InputError
from minisl.kernels.cuda import emulator

FAKE = Path(__file__).parent / "fake_gpu"


def no_compiler():
    """Why the emulator does not run here, or ""."""
    try:
        emulator.compiler()
    except InputError as why:
        return str(why)
    return ""


needs_compiler = pytest.mark.skipif(bool(no_compiler()), reason=no_compiler())


@contextmanager
def fake_cupy():
    """Within this block the stand-in is the CuPy of this process, and a driver has found one GPU. Yields it."""
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in ("cupy", "cupyx")}
    forget()
    try:
        with (patch.object(sys, "path", [str(FAKE), *sys.path]), patch.object(backend, "nvidia_driver", lambda: (13000, 1, "")),
              patch.object(backend, "cupy_packages", lambda: ["cupy-cuda13x"])):
            yield import_module("cupy")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] in ("cupy", "cupyx")]:
            del sys.modules[name]
        sys.modules.update(before)
        forget()


def forget():
    """What was found out about a GPU, and kernels compiled for it."""
    backend.cuda_status.cache_clear()
    import_module("minisl.kernels.cuda.launch").compiled.cache_clear()
