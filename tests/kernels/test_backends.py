"""Which module computes: `using`, arrays that only NumPy takes, a Numba that does not work; and which algorithm, by its cost."""

import json
import os
import threading
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import Mock, patch

import numpy as np
import pytest
from kernel_checks import BACKENDS
from threadpoolctl import threadpool_info

from minisl import kernels
from minisl.errors import InputError
from minisl.kernels import Support, cost, numba_status, numpy_backend, reference, resolve

with_numba = pytest.mark.skipif(not numba_status()[0], reason=numba_status()[1])
FLOATS = [np.zeros(2, np.float32), np.zeros((2, 2), np.float64)]
OTHERS = [np.zeros(2, np.float16), np.zeros(2, int), np.float32(1)]


def test_numpy_and_reference_in_use():
    with kernels.using("numpy"):
        with kernels.using("reference"):
            assert kernels.of(FLOATS[0]).module is reference
            assert kernels.load("numpy", FLOATS[0]).module is numpy_backend
        with pytest.raises(ZeroDivisionError), kernels.using("reference"):
            raise ZeroDivisionError
        assert kernels.of(FLOATS[0]).module is numpy_backend


@with_numba
@pytest.mark.parametrize("array", FLOATS, ids=str)
def test_auto_is_cpu_unless_another_is_in_use(array):
    cpu = numba_status()[0]
    assert kernels.of(array) is cpu
    with kernels.using("numpy"):
        assert kernels.of(array).module is numpy_backend
        for name in ("cpu", "auto"):
            with kernels.using(name):
                assert kernels.of(array) is cpu
    assert kernels.of(array) is cpu


@with_numba
def test_backend_in_use_is_that_of_one_thread():
    found = []
    with kernels.using("numpy"):
        thread = threading.Thread(target=lambda: found.append(kernels.of(FLOATS[0])))
        thread.start()
        thread.join()
    assert found == [numba_status()[0]]


@pytest.mark.parametrize("array", OTHERS, ids=str)
def test_arrays_that_numpy_alone_takes(array, backend):
    assert kernels.of(array).module is numpy_backend


def test_backend_given_by_name_wins(backend):
    x, B, A = np.ones((1, 2)), np.ones((3, 1)), np.ones((1, 2))
    for name in BACKENDS:
        if name != "cpu" or numba_status()[0]:
            assert kernels.load(name, x).name == name
            assert kernels.sl_linear(x, B, A, np.zeros(0), np.zeros(0, int), 2.0, backend=name).tolist() == [[4, 4, 4]]


def test_unknown_backend():
    with pytest.raises(InputError, match="'gpu' is unknown; allowed: auto, reference, numpy, cpu"), kernels.using("gpu"):
        pass


@pytest.fixture
def no_numba(monkeypatch):
    monkeypatch.setattr(kernels, "numba_status", lambda: (None, "Numba is not installed"))


def test_numpy_where_numba_does_not_work(no_numba):
    said = []
    with kernels.running("auto", say=said.append) as on:
        assert on == "NumPy"
        assert kernels.of(FLOATS[0]).module is numpy_backend
    assert said == ["no Numba kernels, NumPy is slower: Numba is not installed"]
    with kernels.running("numpy", say=said.append) as on:
        assert on == "NumPy"
    assert len(said) == 1


@with_numba
def test_numba_that_is_told_not_to_compile(monkeypatch):
    import numba

    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    assert numba_status.__wrapped__() == (None, "NUMBA_DISABLE_JIT is set; fix: unset it")


def test_cpu_asked_for_where_numba_does_not_work(no_numba):
    with pytest.raises(InputError, match="backend cpu: Numba is not installed; use --backend numpy"), kernels.using("cpu"):
        pass
    with pytest.raises(InputError, match="use --backend numpy"), kernels.running("cpu"):
        pass


def blas_threads():
    return [p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas" and "numpy" in p["filepath"]]


@with_numba
def test_running_says_what_computes_and_keeps_blas_on_one_thread():
    before = blas_threads()
    with kernels.running("auto", 1) as on:
        assert on.startswith("Numba ")
        assert on.endswith(" on 1 core")
        assert set(blas_threads()) <= {1}
    with kernels.running("cpu", 3) as on:
        assert on.endswith(" on 3 cores")
    assert blas_threads() == before


@with_numba
def test_compiling_is_announced_once_and_only_where_it_happens():
    import numba

    said, cpu = [], numba_status()[0]
    cpu.square_sum([FLOATS[0]])
    with cpu.module.announced(said.append):
        cpu.square_sum([FLOATS[0]])
    assert said == []
    with cpu.module.announced(said.append):
        for new in (numba.njit(lambda x: x + 1), numba.njit(lambda x: x + 2)):
            new(1)
    assert len(said) == 1


# The cost model


@contextmanager
def calibrated(text=None):
    """This text, or nothing, in the calibration file."""
    cost.calibration.cache_clear()
    with TemporaryDirectory() as folder, patch.dict(os.environ, MINISL_COST=str(Path(folder) / "cost.json")):
        if text is not None:
            cost.calibration_file().write_text(text)
        yield
    cost.calibration.cache_clear()


FREE = dict.fromkeys(cost.CONSTANTS["cpu"], 0.0)
COSTS = [  # constant, what it is multiplied with
    ("g", 6 * 10 * 3 * 5 + 8 * 2 * 3 * 5, 6 * 10 * 2 * (3 + 5)), ("s", 0, 6 * 10 * 4), ("c", 0, 5 * 10 * (3 + 5)),
    ("w", 3 * 5, 0), ("o", 1, 1)]


def test_every_constant_is_tried():
    assert {constant for constant, *_ in COSTS} == cost.CONSTANTS["cpu"].keys() == cost.CONSTANTS["numpy_backend"].keys()


@pytest.mark.parametrize(("constant", "materialised", "factored"), COSTS)
def test_cost_counts_the_work(constant, materialised, factored):
    with calibrated(json.dumps({"cpu": FREE | {constant: 0.5}})):
        for algorithm, work in (("materialised", materialised), ("factored", factored)):
            assert cost.seconds(algorithm, n=10, width=3, out=5, r=2, nnz=4) == 0.5 * work


def test_auto_takes_the_cheaper_algorithm_of_the_backend():
    """On cpu only dense products cost here, so the factored form wins; with NumPy only the sparse ones."""
    support, A = Support(np.arange(0, 64 * 64, 33), (64, 64)), np.zeros((8, 64))
    with calibrated(json.dumps({"cpu": FREE | {"g": 0.5}, "numpy_backend": FREE | {"s": 0.5}})):
        for backend, name in ((numba_status()[0], "factored"), (kernels.load("numpy", A), "materialised")):
            if backend:
                assert resolve("auto", 100, support, A, backend) == name
            for given in ("materialised", "factored"):
                assert resolve(given, 100, support, A, kernels.load("numpy", A)) == given


def test_auto_counts_inputs_and_outputs_apart():
    asked = []
    with patch.object(cost, "seconds", lambda *sizes: asked.append(sizes) or 0):
        resolve("auto", 10, Support(np.arange(4), (5, 3)), np.zeros((2, 3)), kernels.load("numpy", FLOATS[0]))
    assert asked == [(a, 10, 3, 5, 2, 4, "numpy_backend") for a in ("materialised", "factored")]


def test_built_in_constants_without_a_calibration():
    with calibrated():
        for backend, built_in in cost.CONSTANTS.items():
            assert cost.constants(backend) == built_in
    with calibrated(json.dumps({"cpu": {"g": 0.25}})):
        assert cost.constants("cpu") == cost.CONSTANTS["cpu"] | {"g": 0.25}
        assert cost.constants("reference") == cost.CONSTANTS["reference"]


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"cpu": 3}', *(f'{{"cpu": {{"g": {g}}}}}' for g in ('"x"', "-1.0", "NaN"))])
def test_calibration_that_cannot_be_used_is_said_and_stops_nothing(text, capsys):
    with calibrated(text):
        assert cost.constants("cpu") == cost.constants("cpu") == cost.CONSTANTS["cpu"]
    [line] = capsys.readouterr().err.splitlines()
    assert "cost.json: not a calibration" in line


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), IsADirectoryError(21, "Is a directory")])
def test_calibration_in_the_home_of_another_user(error, monkeypatch, capsys):
    monkeypatch.setattr(Path, "read_text", Mock(side_effect=error))
    with calibrated():
        assert cost.constants("cpu") == cost.CONSTANTS["cpu"]
    assert capsys.readouterr().err.endswith(f"cost.json: cannot be read ({error.strerror}); the built-in constants are used\n")


def test_a_user_without_a_home(monkeypatch, capsys):
    monkeypatch.delenv("MINISL_COST")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", Mock(side_effect=RuntimeError("Could not determine home directory.")))
    cost.calibration.cache_clear()
    assert cost.constants("cpu") == cost.CONSTANTS["cpu"]
    cost.calibration.cache_clear()
    assert capsys.readouterr().err == ""


def test_calibration_is_in_the_folder_for_caches(monkeypatch, tmp_path):
    monkeypatch.delenv("MINISL_COST")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cost.calibration_file() == tmp_path / "minisl" / "cost.json"
