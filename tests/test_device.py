"""Which device, which backend, which precision: what is found out about a GPU, and what is refused. Nothing here needs one."""

import sys
from importlib import metadata
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from gpu import fake_cupy, needs_compiler
from test_bad_input import refuse
from test_train import job

from minisl import backend, doctor, evaluate, generate, kernels, train
from minisl.errors import InputError
from minisl.kernels import Support, cost
from minisl.kernels.cuda import emulator, ladder
from minisl.memory import __main__ as memory

# What is found out about a GPU


class Driver:
    """libcuda.so.1 of a machine."""

    def __init__(self, version=13000, gpus=1, error=0):
        self.version, self.gpus, self.error = version, gpus, error

    def cuInit(self, flags):
        return self.error

    def cuDeviceGetCount(self, count):
        count._obj.value = self.gpus
        return 0

    def cuDriverGetVersion(self, version):
        version._obj.value = self.version
        return 0


def failing(error):
    def call(*args):
        raise error

    return call


class CuPy(ModuleType):
    """As much of it as is asked what it is for."""

    def __init__(self, toolkit=13020, nvrtc=lambda: (13, 0), gpu=lambda n: {"name": b"NVIDIA H200"}, cublas=None):
        super().__init__("cupy")
        self.__spec__, self.__version__ = ModuleSpec("cupy", None), "14.2.0"

        class Cuda:
            runtime = SimpleNamespace(runtimeGetVersion=lambda: toolkit, getDeviceProperties=gpu)
            cublas = property(lambda self: self.found() if self.found else None)

        self.cuda = Cuda()
        self.cuda.found, self.cuda.nvrtc = cublas, SimpleNamespace(getVersion=nvrtc)


@pytest.fixture
def machine(monkeypatch):
    """machine(cupy, packages, driver): what cuda_status says there."""

    def status(cupy=None, packages=("cupy-cuda13x",), driver=None):
        def distribution(name):
            if name not in packages:
                raise metadata.PackageNotFoundError(name)

        def library(name):
            assert name == ("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
            if driver is None:
                raise OSError("libcuda.so.1: cannot open shared object file")
            return driver

        if cupy != "broken":
            monkeypatch.setitem(sys.modules, "cupy", cupy)
        monkeypatch.setattr(metadata, "distribution", distribution)
        monkeypatch.setattr(backend.ctypes, "CDLL", library)
        return backend.cuda_status.__wrapped__()

    return status


def test_a_gpu_that_works(machine):
    cupy = CuPy()
    assert machine(cupy, driver=Driver(gpus=2)) == (cupy, "CuPy 14.2.0 on GPU 0 of 2, NVIDIA H200, driver for CUDA 13.0")


NO_NVRTC = CuPy(nvrtc=failing(RuntimeError("libnvrtc.so.13:\nnot found")))
FAILURES = {
    "no CuPy": ((None, (), Driver()), "CuPy is not installed; fix: pip install 'cupy-cuda13x[ctk]'"),
    "neither": ((None, (), None), "there is no NVIDIA driver (libcuda.so.1 is not found); fix: where there is an NVIDIA GPU, "
                                  "install its driver"),
    "two packages": ((CuPy(), ("cupy-cuda12x", "cupy-cuda13x"), Driver()),
                     "2 CuPy packages are installed, each of which brings the module cupy; fix: pip uninstall cupy-cuda13x "
                     "cupy-cuda12x, then pip install 'cupy-cuda13x[ctk]'"),
    "no driver": ((CuPy(), ("cupy-cuda13x",), None), "there is no NVIDIA driver (libcuda.so.1 is not found); fix: where there is "
                                                     "an NVIDIA GPU, install its driver"),
    "no GPU": ((CuPy(), ("cupy-cuda13x",), Driver(gpus=0)), "the NVIDIA driver finds no GPU; fix: see what nvidia-smi -L lists"),
    "no device": ((CuPy(), ("cupy-cuda13x",), Driver(gpus=0, error=100)), "the NVIDIA driver finds no GPU; fix: see what "
                                                                          "nvidia-smi -L lists"),
    "driver does not start": ((CuPy(), ("cupy-cuda13x",), Driver(error=803)),
                              "the NVIDIA driver does not start (CUDA error 803); fix: see what nvidia-smi says; after the "
                              "driver was updated, restart the machine"),
    "old driver": ((CuPy(), ("cupy-cuda13x",), Driver(12040)),
                   "the NVIDIA driver is for CUDA 12.4, CuPy for CUDA 13.2; fix: a newer driver, or pip uninstall cupy-cuda13x "
                   "and pip install 'cupy-cuda12x[ctk]'"),
    "very old driver": ((CuPy(12090), ("cupy-cuda12x",), Driver(11080)),
                        "the NVIDIA driver is for CUDA 11.8, CuPy for CUDA 12.9; fix: a newer driver"),
    "no NVRTC": ((NO_NVRTC, ("cupy-cuda12x",), Driver()), "CuPy finds no NVRTC to compile kernels with (RuntimeError: "
                                                          "libnvrtc.so.13: not found); fix: pip install 'cupy-cuda12x[ctk]'"),
    "no cuBLAS": ((CuPy(cublas=failing(ImportError("libcublas.so.13"))), ("cupy-cuda13x",), Driver()),
                  "CuPy finds no cuBLAS to multiply with (ImportError: libcublas.so.13); fix: pip install 'cupy-cuda13x[ctk]'"),
    "unusable": ((CuPy(gpu=failing(RuntimeError("out of order"))), ("cupy-cuda13x",), Driver()),
                 "CuPy 14.2.0 cannot use the GPU (RuntimeError: out of order); fix: see what nvidia-smi says"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_each_failure_has_its_sentence_and_fix(machine, monkeypatch, name):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    given, said = FAILURES[name]
    assert machine(*given) == (None, said)


def test_older_minor_version_of_the_driver_is_good_enough(machine):
    assert machine(CuPy(13020), driver=Driver(13000))[0]
    assert machine(CuPy(12090), ("cupy-cuda12x",), driver=Driver(13000))[0]


def test_hidden_gpu(machine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine(CuPy(), driver=Driver(gpus=0))[1].endswith("fix: unset CUDA_VISIBLE_DEVICES, which is ''")


@pytest.fixture
def broken_cupy(tmp_path, monkeypatch):
    (tmp_path / "cupy").mkdir()
    (tmp_path / "cupy" / "__init__.py").write_text("raise OSError('compiled for\\nanother machine')")
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(tmp_path)


def test_cupy_that_does_not_import(machine, broken_cupy):
    said = "CuPy is installed but does not import (OSError: compiled for another machine); fix: pip install --force-reinstall "
    assert machine("broken", driver=Driver()) == (None, said + "cupy-cuda13x")


def test_cupy_is_not_imported_without_a_gpu(machine, broken_cupy):
    for driver in (None, Driver(gpus=0), Driver(error=999)):
        assert "does not import" not in machine("broken", driver=driver)[1]


# Which backend computes with an array

NUMPY, CPU, CUDA, REFERENCE = "numpy", "cpu", "cuda", "reference"
FASTEST = CPU if kernels.numba_status()[0] else NUMPY
REFUSED = "refused"
CHOICES = {  # backend -> module for float32 on the host, float64 and integers there; float32 on a GPU, float64 and integers there
    "auto": (FASTEST, FASTEST, NUMPY, CUDA, NUMPY, NUMPY),
    "reference": (REFERENCE, REFERENCE, NUMPY, REFUSED, REFUSED, REFUSED),
    "numpy": (NUMPY, NUMPY, NUMPY, NUMPY, NUMPY, NUMPY),
    "cpu": (CPU, CPU, NUMPY, REFUSED, REFUSED, REFUSED),
    "cuda": (REFUSED, REFUSED, REFUSED, CUDA, NUMPY, NUMPY),
    "emulator": ("emulator", NUMPY, NUMPY, REFUSED, REFUSED, REFUSED),
}


def chosen(name, array):
    try:
        return kernels.load(name, array).name
    except InputError:
        return REFUSED


@pytest.mark.parametrize("name", CHOICES)
def test_backend_for_each_array(name):
    if name == "cpu" and FASTEST != CPU:
        pytest.skip(kernels.numba_status()[1])
    with fake_cupy() as cupy:
        arrays = [xp.zeros(2, dtype) for xp in (np, cupy) for dtype in ("float32", "float64", "int64")]
        assert [chosen(name, a) for a in arrays] == list(CHOICES[name])


def test_every_backend_is_tried():
    assert CHOICES.keys() == {"auto", *kernels.BACKENDS}


def test_using_cuda_is_about_cupy_arrays():
    with fake_cupy() as cupy, kernels.using("cuda"):
        assert kernels.of(cupy.zeros(1, "float32")).name == CUDA
        with pytest.raises(InputError, match="backend cuda: --device cuda is needed"):
            kernels.of(np.zeros(1, np.float32))
    with fake_cupy(), pytest.raises(InputError, match="--device cuda is needed"), kernels.using("cuda", np):
        pass


def test_cuda_in_use_without_a_gpu(monkeypatch):
    monkeypatch.setattr(kernels, "cuda_status", lambda: (None, "no driver"))
    with pytest.raises(InputError, match="backend cuda: --device cuda is needed; --backend emulator runs"), kernels.using("cuda"):
        pass


def test_emulator_without_a_compiler_is_refused_early(monkeypatch):
    def compiler():
        raise InputError("the CUDA emulator needs g++")

    monkeypatch.setattr(emulator, "compiler", compiler)
    with pytest.raises(InputError, match="needs g"), kernels.using("emulator"):
        pass


def test_whole_arrays_where_kernels_cannot_be_compiled(monkeypatch):
    with fake_cupy() as cupy:
        monkeypatch.setattr(kernels, "cuda_status", lambda: (None, "no NVRTC"))
        assert kernels.of(cupy.zeros(1, "float32")).name == NUMPY


@pytest.mark.parametrize(("name", "dtype", "said"), [
    ("auto", "float32", "CUDA kernels, CuPy"), ("cuda", "float32", "CUDA kernels, CuPy"), ("numpy", "float32", "CuPy"),
    ("auto", "float64", "CuPy")])
def test_what_computes_on_a_gpu_is_said(name, dtype, said):
    told = []
    with fake_cupy() as cupy, kernels.running(name, say=told.append, xp=cupy, dtype=dtype) as on:
        assert on.startswith(said)
        assert "on GPU 0 of 1" in on
    assert told == []


@needs_compiler
def test_what_computes_in_the_emulator_is_said():
    for dtype, said in (("float32", "CUDA kernels in the emulator"), ("float64", "NumPy")):
        with kernels.running("emulator", dtype=dtype) as on:
            assert on == said


# Algorithms


@needs_compiler
def test_fused_is_an_algorithm_of_the_cuda_kernels():
    x, B, A = np.ones((1, 2), np.float32), np.ones((3, 1), np.float32), np.ones((1, 2), np.float32)
    rest = np.zeros(0, np.float32), np.zeros(0, np.int32), 2.0
    assert kernels.sl_linear(x, B, A, *rest, algorithm="fused", backend="emulator").tolist() == [[4, 4, 4]]
    for name in ("auto", "numpy", "reference"):
        with pytest.raises(InputError, match="algorithm fused: only the backends cuda and emulator have it, for float32; allowed "
                                             "here: auto, materialised, factored"):
            kernels.sl_linear(x, B, A, *rest, algorithm="fused", backend=name)
    with pytest.raises(InputError, match="algorithm 'fast' is unknown; allowed: auto, materialised, factored, fused"):
        kernels.sl_linear(x, B, A, *rest, algorithm="fast")


def test_auto_is_decided_by_the_constants_of_gpu_and_emulator(monkeypatch):
    asked = []
    monkeypatch.setattr(cost, "seconds", lambda *args: asked.append((args[0], args[-1])) or 0)
    with fake_cupy() as cupy:
        for xp, name in ((np, "emulator"), (cupy, "cuda")):
            A = xp.zeros((2, 3), "float32")
            kernels.resolve("auto", 10, Support(xp.arange(4), (5, 3)), A, kernels.load(name, A))
    assert asked == [(a, name) for name in ("emulator", "cuda") for a in ("materialised", "factored")]
    assert {"cuda", "emulator"} <= cost.CONSTANTS.keys()


# Precision


@pytest.mark.parametrize("name", ["tf32", "bf16"])
def test_precision_of_the_cpu_is_float32(name):
    with pytest.raises(InputError, match=f"--matmul-precision {name}: --device cuda is needed"):
        backend.matmul_precision(name, np).__enter__()
    with backend.matmul_precision("float32", np):
        assert backend.matmul(np.ones((1, 2)), np.ones((2, 1))).tolist() == [[2]]


def test_precision_is_told_to_cupy_and_taken_back():
    with fake_cupy() as cupy:
        kind = lambda: cupy._core.get_compute_type(np.float32)  # noqa: E731
        before = kind()
        with backend.matmul_precision("tf32", cupy):
            assert kind() == cupy._core._routines_linalg.COMPUTE_TYPE_TF32
            with backend.matmul_precision("float32", cupy):
                assert kind() == cupy._core._routines_linalg.COMPUTE_TYPE_DEFAULT
            assert kind() == cupy._core._routines_linalg.COMPUTE_TYPE_TF32
        assert kind() == before


def test_precision_that_a_gpu_is_too_old_for(monkeypatch):
    with fake_cupy() as cupy:
        monkeypatch.setattr(cupy.cuda.Device, "compute_capability", "75")
        with pytest.raises(InputError, match=r"needs a GPU of compute capability 8\.0 .* this one has 7\.5"):
            backend.matmul_precision("tf32", cupy).__enter__()
        with backend.matmul_precision("float32", cupy):
            pass


LAYOUTS = {"rows": lambda xp, a: xp.ascontiguousarray(a), "columns": lambda xp, a: xp.ascontiguousarray(a.T).T,
           "cut out": lambda xp, a: xp.concatenate([a, a], axis=1)[:, : a.shape[1]]}


@pytest.mark.parametrize("left", LAYOUTS)
@pytest.mark.parametrize("right", LAYOUTS)
@pytest.mark.parametrize("sizes", [(3, 4, 5), (1, 4, 1), (4, 1, 3), (2, 0, 3), (0, 2, 3)], ids=str)
def test_bf16_product_rounds_its_factors_and_nothing_else(rng, left, right, sizes):
    """However the factors lie in memory, and asked of cuBLAS in its order of elements."""
    m, k, n = sizes
    with fake_cupy() as cupy:
        a, b = (rng.standard_normal(s).astype(np.float32) for s in ((m, k), (k, n)))
        mine = [LAYOUTS[layout](cupy, cupy.asarray(x)) for layout, x in ((left, a), (right, b))]
        with backend.matmul_precision("bf16", cupy):
            product = cupy.asnumpy(backend.matmul(*mine))
        np.testing.assert_allclose(product, cupy.bfloat16(a) @ cupy.bfloat16(b), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(cupy.asnumpy(backend.matmul(*mine)), a @ b, rtol=1e-6, atol=1e-6)
        assert product.size == 0 or k == 0 or not np.allclose(product, a @ b, rtol=1e-6, atol=1e-6)


# Commands


@pytest.mark.parametrize(("flags", "words"), [
    (["--backend=cuda"], ("backend cuda", "--device cuda is needed")),
    (["--algorithm=fused"], ("algorithm fused", "cuda and emulator")),
    (["--algorithm=fused", "--backend=emulator", "--dtype=float64"], ("algorithm fused", "for float32")),
    (["--matmul-precision=tf32"], ("--matmul-precision tf32", "--device cuda is needed")),
    (["--matmul-precision=fp8"], ("--matmul-precision", "bf16")),
])
def test_training_on_the_cpu_refuses(capsys, tmp_path, flags, words):
    refuse(capsys, train, [*job(tmp_path), *flags], *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("flags", "words"), [
    (["--backend=cpu"], ("backend cpu", "on a GPU", "auto, numpy, cuda")),
    (["--backend=reference"], ("backend reference", "on a GPU")),
    (["--backend=emulator"], ("backend emulator", "on a GPU")),
    (["--algorithm=fused", "--backend=numpy"], ("algorithm fused",)),
    (["--algorithm=fused", "--dtype=float64"], ("algorithm fused", "for float32")),
])
def test_training_on_a_gpu_refuses(capsys, tmp_path, flags, words):
    with fake_cupy():
        refuse(capsys, train, [*job(tmp_path, device="cuda"), *flags], *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", [train, evaluate, generate])
def test_gpu_asked_for_where_there_is_none(capsys, tmp_path, monkeypatch, command):
    monkeypatch.setattr(backend, "cuda_status", lambda: (None, "there is no driver; fix: install it"))
    argv = job(tmp_path) if command is train else [tmp_path]
    refuse(capsys, command, [*argv, "--device=cuda"], "--device cuda: there is no driver; fix: install it; or use --device cpu")


def test_memory_by_kind_is_the_cpus(capsys):
    refuse(capsys, memory, ["--tiny", "--device=cuda"], "--device cuda", "only the CPU's arrays")


# doctor


def test_doctor_without_anything_for_a_gpu(monkeypatch):
    def compiler():
        raise InputError("the CUDA emulator needs g++; fix: apt install g++")

    monkeypatch.setattr(doctor, "cuda_status", lambda: (None, "there is no NVIDIA driver; fix: install it"))
    monkeypatch.setattr(emulator, "compiler", compiler)
    monkeypatch.setattr(doctor, "installed", lambda *packages: None)
    said = {name: doctor.LINES[name]() for name in ("GPU", "cuda", "emulator", "numba-cuda", "NVRTC")}
    assert said["GPU"] == "none: there is no NVIDIA driver; fix: install it"
    assert said["cuda"].startswith("none: the line on the GPU has the reason and the fix; the emulator can run the last rungs: ")
    assert f"spmm {ladder.rungs()['spmm'] - 1}" in said["cuda"]
    assert said["emulator"] == "none: the CUDA emulator needs g++; fix: apt install g++"
    assert said["numba-cuda"] == "none: not installed; fix: pip install 'numba-cuda[cu13]'"
    assert said["NVRTC"] == "none: its wheel is not installed; fix: pip install 'nvidia-cuda-nvrtc>=13,<14'"


def test_doctor_with_everything_for_a_gpu(monkeypatch):
    monkeypatch.setattr(doctor, "cuda_status", lambda: ("cupy", "CuPy 14.2.0 on GPU 0 of 1"))
    monkeypatch.setattr(emulator, "compiler", lambda: "/usr/bin/g++")
    monkeypatch.setattr(doctor, "installed", lambda *packages: f"{packages[0]} 1.2")
    assert doctor.gpu_line() == "CuPy 14.2.0 on GPU 0 of 1"
    assert doctor.cuda_line().startswith("--device cuda runs the last rung of each ladder: ")
    assert f"spmm {ladder.rungs()['spmm'] - 1}" in doctor.cuda_line()
    assert doctor.emulator_line().endswith("compiled by /usr/bin/g++")
    assert doctor.numba_cuda_line().startswith("numba-cuda 1.2")
    assert doctor.nvrtc_line().startswith("nvidia-cuda-nvrtc 1.2")


def test_doctor_finds_the_first_of_some_packages():
    assert doctor.installed("no-such-package", "numpy") == np.__version__
    assert doctor.installed("no-such-package") is None
