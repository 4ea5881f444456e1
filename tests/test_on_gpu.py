"""tests/on_gpu, without a GPU: with none it says so, and with stand-ins for what it runs it writes what it promises."""

import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from gpu import FAKE, fake_cupy, needs_compiler

SCRIPT = Path(__file__).parent / "on_gpu"
BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None or sys.platform != "linux", reason="a script for bash, on Linux")

# A driver that has found one GPU
DRIVER = """extern "C" int cuInit(unsigned) { return 0; }
extern "C" int cuDeviceGetCount(int* n) { *n = 1; return 0; }
extern "C" int cuDriverGetVersion(int* v) { *v = 13000; return 0; }
"""
# A Python that only says that it tests, trains and measures
PYTHON = """#!/bin/bash
case "$*" in
*pytest*) [ -n "$WAIT" ] && exec sleep 3600; echo "a | b"; echo "3 passed in 0.1s"; exit ${PYTEST_CODE:-0} ;;
*minisl.train*) echo trained ;;
*minisl.bench*)
    while [ $# -gt 0 ]; do [ "$1" = --out ] && folder=$2; shift; done
    mkdir -p "$folder"; echo "| ms |" >"$folder/bench.md"; echo "{}" >"$folder/bench.json" ;;
*) exec REAL "$@" ;;
esac
"""
SANITIZER = """#!/bin/bash
[ "$1" = --help ] && { echo " --kernel-name arg"; exit; }
echo "$*" >>"$CALLED"
while [[ $1 != *python ]]; do shift; done
"$@"
echo "========= ERROR SUMMARY: 0 errors"
"""


def run(**environment):
    clean = {k: v for k, v in os.environ.items() if k not in ("OUT", "PYTHON", "TIME_LIMIT", "PYTHONPATH")}
    return subprocess.run([str(SCRIPT)], env={**clean, "PYTHON": sys.executable, **environment}, capture_output=True, text=True,
                          timeout=600)


@pytest.fixture
def machine(tmp_path):
    """The environment of a machine with a GPU, or so it seems; results go to tmp_path / "out"."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"python": PYTHON.replace("REAL", sys.executable), "compute-sanitizer": SANITIZER,
                       "nvidia-smi": '#!/bin/bash\necho "NVIDIA Stand-in 1, 580.1, 1 MiB"\n'}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (tmp_path / "driver.cpp").write_text(DRIVER)
    subprocess.run([os.environ.get("CXX", "g++"), "-shared", "-fPIC", tmp_path / "driver.cpp", "-o", tmp_path / "libcuda.so.1"],
                   check=True)
    return {"PYTHON": str(folder / "python"), "PATH": f"{folder}:{os.environ['PATH']}", "LD_LIBRARY_PATH": str(tmp_path),
            "PYTHONPATH": str(FAKE), "OUT": str(tmp_path / "out"), "CALLED": str(tmp_path / "called")}


def parts(text):
    """{part: how it ended} of a report"""
    found = re.findall(r"^\| ([\w ]+) \| ([^|]+) \| \d+ \| ([^|]*) \|$", text, re.M)
    return {name: result for name, result, _ in found}


def test_the_script_is_bash():
    assert subprocess.run([BASH, "-n", str(SCRIPT)], capture_output=True, text=True, check=True).stderr == ""
    assert os.access(SCRIPT, os.X_OK)


def test_without_a_gpu_it_is_one_line(tmp_path):
    done = run(CUDA_VISIBLE_DEVICES="-1", OUT=str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert re.match(r"error: on_gpu: .*; fix: ", line)
    assert not (tmp_path / "out").exists()


def test_without_a_python_it_is_one_line():
    done = run(PYTHON="/no/python")
    assert (done.returncode, done.stderr) == (2, "error: on_gpu: /no/python does not run; choose another with PYTHON\n")


@needs_compiler
def test_every_part_runs_and_is_reported(machine, tmp_path):
    done = run(**machine)
    assert done.returncode == 0, done.stdout + done.stderr
    report, measured, log = sorted((tmp_path / "out").iterdir(), key=lambda p: [".md", ".json", ".log"].index(p.suffix))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-no-GPU", report.stem)  # the stand-in's name
    assert report.stem == measured.stem == log.stem
    text = report.read_text()
    assert parts(text) == dict.fromkeys(
        ("gpu tests", "training run", "benchmark", "memcheck", "racecheck", "synccheck", "initcheck"), "passed")
    assert "NVIDIA Stand-in 1, 580.1, 1 MiB; Python 3" in text
    assert re.search(r"\| gpu tests \| passed \| \d+ \| 3 passed in 0.1s \|", text)
    assert text.endswith("## Benchmark\n\n| ms |\n")
    assert measured.read_text() == "{}\n"
    assert log.read_text().count("3 passed") == 5
    called = Path(machine["CALLED"]).read_text().splitlines()
    assert [line.split()[1] for line in called] == ["memcheck", "racecheck", "synccheck", "initcheck"]
    assert [line.count("--kernel-name kns=attention ") for line in called] == [1, 1, 1, 0]
    assert all("--error-exitcode 1" in line and "-p no_pool -m gpu tests/kernels/cuda -k not numba" in line for line in called)


@needs_compiler
def test_a_part_that_fails_does_not_keep_the_rest_from_running(machine, tmp_path):
    done = run(**machine, PYTEST_CODE="1")
    assert done.returncode == 1
    [report] = (tmp_path / "out").glob("*.md")
    found = parts(report.read_text())
    assert found.pop("gpu tests") == "failed: exit code 1"
    assert set(found.values()) == {"passed"}
    assert "**gpu tests**, the end of its output:\n\n```text\na | b\n3 passed in 0.1s\n```\n" in report.read_text()


@needs_compiler
def test_time_has_an_end(machine, tmp_path):
    done = run(**machine, WAIT="1", TIME_LIMIT="4")
    assert done.returncode == 1
    [report] = (tmp_path / "out").glob("*.md")
    found = parts(report.read_text())
    for part in ("gpu tests", "initcheck"):
        assert found[part].startswith(("failed: not done after", "not run: time was up"))


@needs_compiler
def test_without_compute_sanitizer(machine, tmp_path):
    (tmp_path / "bin" / "compute-sanitizer").unlink()
    if shutil.which("compute-sanitizer") or list(Path("/usr/local").glob("cuda*/bin/compute-sanitizer")):
        pytest.skip("it is installed here")
    done = run(**machine)
    assert done.returncode == 1
    [report] = (tmp_path / "out").glob("*.md")
    assert parts(report.read_text())["racecheck"] == "not run: compute-sanitizer is not installed"


def test_each_array_gets_memory_of_its_own(monkeypatch):
    monkeypatch.delitem(sys.modules, "no_pool", raising=False)
    with fake_cupy() as cupy:
        asked = []
        cupy.cuda.set_allocator = asked.append
        import_module("no_pool")
    assert asked == [None]
