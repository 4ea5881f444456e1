"""What importing costs, and that packages which are missing or broken take nothing else down with them."""

import os
import subprocess
import sys

import pytest
from test_train import FILES, ROOT, job, listing, run_job

from minisl import backend, doctor
from minisl.command import run_command

HEAVY = ("numba", "matplotlib", "cupy", "scipy")


def python(*argv, path=""):
    """Run this Python with `path` before the installed packages."""
    return subprocess.run([sys.executable, *map(str, argv)], env={**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}"},
                          text=True, capture_output=True)


@pytest.fixture
def broken(tmp_path):
    """A folder in which the optional packages fail on import, each in several lines."""
    folder = tmp_path / "broken"
    for name, error in {"matplotlib": "AttributeError", "numba": "RuntimeError", "cupy": "OSError"}.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise {error}('compiled for\\nanother {name}')")
    return folder


def test_importing_loads_few_modules_beside_numpy():
    """Counted, as the time they take is the machine's."""
    program = "import sys, numpy; before = len(sys.modules); import minisl; print(len(sys.modules) - before)"
    assert int(python("-c", program).stdout) < 100


@pytest.mark.parametrize("module", ["minisl", "minisl.train", "minisl.evaluate", "minisl.generate", "minisl.config"])
def test_import_is_silent_and_leaves_heavy_packages_alone(module):
    done = python("-c", f"import {module}, sys; print([name for name in {HEAVY} if name in sys.modules])")
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_doctor_has_one_line_for_each_item(capsys):
    assert run_command(doctor.main, []) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == list(doctor.LINES)
    assert "BROKEN" not in out
    assert err == ""


def test_doctor_has_one_line_for_each_item_where_packages_are_broken(broken):
    done = python("-m", "minisl.doctor", path=broken)
    assert (done.returncode, done.stderr) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert list(lines) == list(doctor.LINES)
    assert "matplotlib BROKEN (AttributeError: compiled for another matplotlib; fix: pip install" in lines["packages"]
    assert "numpy BROKEN" not in lines["packages"]
    assert "another numba" in lines["Numba"]
    assert lines["GPU"].startswith("none: there is no NVIDIA driver") or "another cupy" in lines["GPU"]


def test_reader_that_has_left_is_no_traceback():
    """As in `python -m minisl.doctor | true`."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run([sys.executable, "-m", "minisl.doctor"], env={**os.environ, "PYTHONUNBUFFERED": ""}, cwd=ROOT,
                              stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (141, "")


def test_doctor_survives_an_item_that_cannot_be_examined(monkeypatch, capsys):
    monkeypatch.setitem(doctor.LINES, "disk", lambda: 1 / 0)
    assert run_command(doctor.main, []) == 0
    assert capsys.readouterr().out.endswith("disk        could not be examined (ZeroDivisionError: division by zero)\n")


def test_training_works_where_packages_are_broken(broken, tmp_path):
    done = python("-m", "minisl.train", *job(tmp_path), path=broken)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line and "step/s" not in line]
    assert said == ["no Numba kernels, NumPy is slower: "
                    "Numba is installed but does not import (RuntimeError: compiled for another numba)",
                    "no loss.png: matplotlib does not work here (AttributeError: compiled for another matplotlib)"]
    assert listing(tmp_path / "run") == [f for f in FILES if f != "loss.png"]


def test_training_works_without_matplotlib(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run = run_job(tmp_path, steps=2)
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("no loss.png: matplotlib")]
    assert listing(run) == [f for f in FILES if f != "loss.png"]


def test_broken_cupy_is_a_reason_not_a_traceback(broken):
    done = python("-m", "minisl.train", "--tiny", "--device=cuda", "--out", broken / "run", path=broken)
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]  # after the one on Numba
    assert line.startswith("error: --device cuda: ")  # CuPy is only imported where there is a driver
    assert line.endswith("or use --device cpu")
    assert not (broken / "run").exists()


def test_broken_numba_asked_for_is_a_reason_not_a_traceback(broken):
    done = python("-m", "minisl.train", "--tiny", "--backend=cpu", "--out", broken / "run", path=broken)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "does not import (RuntimeError: compiled for another numba); use --backend numpy" in line
    assert not (broken / "run").exists()


def test_arrays_of_numpy_never_ask_for_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert backend.array_module(backend.np.ones(2)) is backend.np
