"""Shared by all tests: a seeded generator, the backends, and the count of mutants at the end of the run."""

import gc
import os
import signal
from pathlib import Path

# Before NumPy is loaded. Some tests compare a command's process with this one to the last bit, or read each line on its stderr:
# so both run the kernels that OpenBLAS picks itself, whatever the machine sets, and no command starts again with others.
os.environ.pop("OPENBLAS_CORETYPE", None)
os.environ["MINISL_KEEP_BLAS"] = "1"
os.environ["MINISL_COST"] = str(Path(__file__).parent / "no file")  # what this machine was measured at decides nothing here

import numpy as np
import pytest

from minisl import kernels

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's background job, whose children would not hear Ctrl-C either
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["extras"]
KILLED = {}  # name of a wrong implementation -> whether the shipped tests rejected it
TOOK = {}  # what is promised to end within minutes -> seconds; reported, as they are the machine's


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(params=["numpy", "cpu"])
def backend(request):
    """Runs a test with each backend that has kernels of its own for all ops; "auto" means this one within the test."""
    if request.param == "cpu" and not kernels.numba_status()[0]:
        pytest.skip(kernels.numba_status()[1])
    with kernels.using(request.param):
        yield request.param


@pytest.fixture(scope="session")
def killed():
    return KILLED


@pytest.fixture(scope="session")
def took():
    return TOOK


@pytest.fixture
def hangup():
    """SIGHUP reaches the test and its children, also where pytest itself was started with nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def pytest_collection_finish():
    gc.freeze()  # what is loaded by now need not be looked at by every collection of garbage


def pytest_terminal_summary(terminalreporter):
    if KILLED:
        terminalreporter.write_line(f"wrong implementations rejected: {sum(KILLED.values())}/{len(KILLED)}")
    for what, seconds in TOOK.items():
        terminalreporter.write_line(f"{what}: {seconds:.0f} s" + " (180 are promised)" * (seconds > 180))
