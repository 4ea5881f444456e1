"""Better BLAS kernels: found where there are some, a command starts again once to get them, the doctor measures both."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import threadpoolctl
from test_train import ROOT

from minisl import blas, doctor, evaluate
from minisl.command import run_command

AVX2 = {"sse2", "avx", "avx2", "fma"}
AVX512 = AVX2 | {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}
BETTER = blas.fitting_kernels("Nehalem", blas.cpu_flags()) if "openblas" in str(blas.numpy_blas()) else None
can_restart = pytest.mark.skipif(BETTER is None, reason="needs Linux, a CPU with AVX2 and NumPy on OpenBLAS")


def python(*argv, site="", path="", **env):
    """Run this Python as from a shell that knows nothing of these tests; `site`: what it does first, a file in `path`."""
    if site:
        (path / "sitecustomize.py").write_text(site)
    inherited = {k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", blas.KEEP)}
    return subprocess.run([sys.executable, *argv], env={**inherited, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}", **env},
                          text=True, capture_output=True, timeout=600)


# What is found

@pytest.mark.parametrize(("architecture", "flags", "kernels"), [
    *((a, AVX512, "SkylakeX") for a in ("Haswell", "Zen", "Excavator", "Sandybridge", "Nehalem", "Prescott", "Katmai")),
    *((a, AVX512, None) for a in ("SkylakeX", "Cooperlake", "SapphireRapids")),
    *((a, AVX2, "Haswell") for a in ("Sandybridge", "Bulldozer", "Steamroller", "Nehalem", "Core2", "Katmai")),
    *((a, AVX2, None) for a in ("Haswell", "Zen", "Excavator", "SkylakeX")),
    *(("Haswell", AVX512 - {flag}, None) for flag in sorted(AVX512 - AVX2)),  # Knights Landing has but some
    ("Nehalem", AVX512 - {"avx512vl"}, "Haswell"),
    *(("Nehalem", AVX2 - {flag}, None) for flag in ("avx2", "fma")),
    *(("Nehalem", flags, None) for flags in (set(), {"sse2"}, {"asimd", "sve"})),
    *((a, AVX512, None) for a in (None, "unknown", "Znver9", "armv8")),  # newer than the table, perhaps
])
def test_fitting_kernels(architecture, flags, kernels):
    assert blas.fitting_kernels(architecture, flags) == kernels


def pool(folder, api="openblas", user_api="blas", **more):
    return {"filepath": f"/numpy/site-packages/{folder}/lib.so", "internal_api": api, "user_api": user_api, **more}


@pytest.mark.parametrize(("pools", "kernels"), [
    ([pool("scipy.libs", architecture="SkylakeX"), pool("numpy.libs", architecture="Haswell")], "SkylakeX"),
    ([pool("scipy.libs", architecture="Haswell"), pool("numpy.libs", architecture="SkylakeX")], None),
    ([pool("lib", "openmp", "openmp"), pool("lib", architecture="Nehalem")], "SkylakeX"),
    ([pool("lib", "mkl", architecture="Haswell")], None),
    ([pool("numpy.libs")], None),
    ([], None),
])
def test_it_is_numpy_s_openblas_that_is_asked(monkeypatch, pools, kernels):
    monkeypatch.setattr(threadpoolctl, "threadpool_info", lambda: pools)
    monkeypatch.setattr(blas, "cpu_flags", lambda: AVX512)
    assert blas.better_kernels() == kernels


def test_module_loads_without_numpy():
    """A check that comes first must not cost what it is there to avoid."""
    done = python("-c", f"import runpy, sys; runpy.run_path({str(ROOT / 'minisl' / 'blas.py')!r}); print('numpy' in sys.modules)")
    assert (done.stdout, done.stderr) == ("False\n", "")


# Starting again

LAST_WORDS = """
import atexit, sys
def say():
    from minisl.blas import numpy_blas
    print(numpy_blas()["architecture"], sys.orig_argv[1:])
atexit.register(say)
"""
STUBBORN = """
import minisl.blas
minisl.blas.better_kernels = lambda: "Haswell"
minisl.blas.numpy_blas = lambda: {"architecture": "Core2"}
"""


@can_restart
def test_command_starts_again_with_better_kernels(tmp_path):
    argv = ["-B", "-X", "utf8", "-m", "minisl.evaluate", "no such run", "--batch-size=2"]
    done = python(*argv, site=LAST_WORDS, path=tmp_path, OPENBLAS_CORETYPE="Nehalem")
    assert done.returncode == 2
    restart, complaint = done.stderr.splitlines()
    for said in ("kernels for Nehalem", "(OPENBLAS_CORETYPE=Nehalem)", f"again with OPENBLAS_CORETYPE={BETTER}", "--keep-blas"):
        assert said in restart
    assert complaint.startswith("error: no such run")
    assert done.stdout == f"{BETTER} {argv}\n"


@can_restart
@pytest.mark.parametrize(("flags", "env"), [(["--keep-blas"], {}), ([], {blas.KEEP: "1"})])
def test_command_keeps_its_kernels_when_told(tmp_path, flags, env):
    argv = ["-m", "minisl.evaluate", "no such run", *flags]
    done = python(*argv, site=LAST_WORDS, path=tmp_path, OPENBLAS_CORETYPE="Nehalem", **env)
    assert done.returncode == 2
    [complaint] = done.stderr.splitlines()
    assert complaint.startswith("error: no such run")
    assert done.stdout.startswith("Nehalem ")


@pytest.mark.skipif(os.name != "posix", reason="no restart there")
@pytest.mark.parametrize("command", ["minisl.train", "minisl.evaluate"])
def test_command_starts_again_once_where_that_changes_nothing(tmp_path, command):
    """As with an OpenBLAS built for one CPU, which does not look at OPENBLAS_CORETYPE."""
    done = python("-m", command, "--no-such-flag", site=STUBBORN, path=tmp_path)
    assert done.returncode == 2
    restart, complaint = done.stderr.splitlines()
    assert restart == ("OpenBLAS runs its kernels for Core2, this CPU can more: starting again with OPENBLAS_CORETYPE=Haswell "
                       "(--keep-blas: do not)")
    assert complaint.startswith("error: ")


@pytest.fixture
def started(monkeypatch):
    """What os.execve would have started; there are better kernels."""
    calls = []
    monkeypatch.delenv(blas.KEEP)
    monkeypatch.setattr(blas, "os", SimpleNamespace(
        name="posix", environ=os.environ, execve=lambda path, argv, env: calls.append((argv[1:], env["OPENBLAS_CORETYPE"]))))
    monkeypatch.setattr(blas, "better_kernels", lambda: "SkylakeX")
    monkeypatch.setattr(blas, "numpy_blas", lambda: {"architecture": "Haswell"})
    monkeypatch.setattr(sys, "argv", ["train.py", "--tiny"])
    return calls


@pytest.mark.parametrize(("given", "again"), [
    (["-O", "-m", "minisl.train", "--tiny"], ["-O", "-m", "minisl.train", "--tiny"]),
    (["-m", "cProfile", "-m", "minisl.train", "--tiny"], ["-m", "cProfile", "-m", "minisl.train", "--tiny"]),
    (["-c", "import runpy; ..."], ["-m", "minisl.train", "--tiny"]),
    (["train.py", "--tiny"], ["-m", "minisl.train", "--tiny"]),
])
def test_same_arguments_again(monkeypatch, started, given, again):
    monkeypatch.setattr(sys, "orig_argv", ["python", *given])
    blas.restart_with_better_kernels("minisl.train")
    assert started == [(again, "SkylakeX")]


@pytest.mark.parametrize("fails", ["better_kernels", "numpy_blas"])
def test_command_runs_where_nothing_can_be_found_out(monkeypatch, started, capsys, fails):
    monkeypatch.setattr(blas, fails, lambda: 1 / 0)
    blas.restart_with_better_kernels("minisl.train")
    assert started == []
    assert capsys.readouterr() == ("", "")


def test_command_runs_where_it_cannot_start_again(monkeypatch, started):
    def fails(*argv):
        raise OSError(7, "Argument list too long")

    monkeypatch.setattr(blas.os, "execve", fails)
    blas.restart_with_better_kernels("minisl.train")


def test_nothing_happens_on_windows(monkeypatch, started, capsys):
    monkeypatch.setattr(blas.os, "name", "nt")
    blas.restart_with_better_kernels("minisl.train")
    assert started == []
    assert capsys.readouterr() == ("", "")


def test_evaluate_knows_the_flag(capsys):
    assert run_command(evaluate.main, ["no such run", "--keep-blas"]) == 2
    assert capsys.readouterr().err.startswith("error: no such run")


# The doctor

@pytest.mark.parametrize(("rate", "end"), [
    (460, "; fix: export OPENBLAS_CORETYPE=SkylakeX (460 GFLOP/s; train and evaluate do it for themselves)"),
    (252, "; those for SkylakeX would fit this CPU too, but are no faster (252 GFLOP/s)"),
])
def test_doctor_measures_before_it_prescribes(monkeypatch, rate, end):
    monkeypatch.setattr(doctor, "numpy_blas", lambda: pool("numpy.libs", version="0.3", architecture="Haswell"))
    monkeypatch.setattr(doctor, "better_kernels", lambda: "SkylakeX")
    monkeypatch.setattr(doctor, "gemm_rate", lambda: 230.0)
    monkeypatch.setattr(doctor, "gemm_rate_with", lambda kernels: float(rate))
    assert doctor.blas_line() == "openblas 0.3, kernels for Haswell, 230 GFLOP/s in float32" + end


@can_restart
def test_doctor_finds_older_kernels():
    """Both are measured, and then said to be ten times as fast: here the machine may be busy with something else."""
    program = """if True:
        from minisl import doctor
        rate, measured = doctor.gemm_rate(), doctor.gemm_rate_with
        doctor.gemm_rate, doctor.gemm_rate_with = lambda: rate, lambda kernels: 10 * rate * (measured(kernels) > 0)
        print(doctor.blas_line())
    """
    [line] = python("-c", program, OPENBLAS_CORETYPE="Nehalem").stdout.splitlines()
    assert ", kernels for Nehalem, " in line
    assert f"; fix: export OPENBLAS_CORETYPE={BETTER} (" in line


def test_doctor_finds_nothing_where_openblas_has_picked_well(monkeypatch):
    monkeypatch.setattr(doctor, "better_kernels", lambda: None)
    monkeypatch.setattr(doctor, "gemm_rate_with", lambda kernels: 1 / 0)
    assert "fix" not in doctor.blas_line()
