"""The course as it is committed: its solutions have all points, its release none."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minisl.course import grading, handout

pytest.importorskip("nbgrader", reason="needs the extra `course`")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="grading forks")
NAMES = grading.assignments()
ANSWERS = Path(__file__).parent / "answers"


def notebook(name, kind):
    return grading.COURSE / kind / name / f"{name}.ipynb"


def grade(name, kind, folder, student=""):
    """Outcomes of the solutions or of the release, handed in with the files that belong to them."""
    there = folder / kind / name
    shutil.copytree(notebook(name, kind).parent, there)
    if kind == "source" and (beside := ANSWERS / name).is_dir():
        shutil.copytree(beside, there, dirs_exist_ok=True)
    return grading.grade_file(there / f"{name}.ipynb", student=student)


@pytest.fixture(scope="module")
def solved(tmp_path_factory, took):
    """Outcomes of the solutions."""
    started = time.perf_counter()
    outcomes = {name: grade(name, "source", tmp_path_factory.mktemp("course")) for name in NAMES}
    took["grading five assignments"] = time.perf_counter() - started
    return outcomes


def test_there_are_five():
    assert [name[:2] for name in NAMES] == ["a1", "a2", "a3", "a4", "a5"]


@pytest.mark.parametrize("name", NAMES)
def test_solutions_have_all_points(name, solved):
    assert [(outcome.task, outcome.earned, outcome.message) for outcome in solved[name]] == [
        (outcome.task, outcome.points, "") for outcome in solved[name]]


@pytest.mark.parametrize("name", NAMES)
def test_the_release_has_no_points_because_nothing_is_written(name, tmp_path):
    outcomes = grade(name, "release", tmp_path)
    assert outcomes
    said = {(outcome.earned, outcome.message.split("\n")[0]) for outcome in outcomes}
    assert said == {(0, "NotImplementedError: not written yet")}


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("a5")])  # whose record is one student's
def test_solutions_have_all_points_whatever_is_drawn(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MINISL_COURSE", "a secret word")
    outcomes = grade(name, "source", tmp_path, "Ada L. (ä)")
    assert not [outcome for outcome in outcomes if outcome.message]


def test_pytest_in_the_handout(tmp_path):
    """What a student sees: a test for each task, and no traceback through the package."""
    name = NAMES[0]
    for kind, code in (("release", 1), ("source", 0)):
        folder = tmp_path / kind
        folder.mkdir()
        for path in notebook(name, kind).parent.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], cwd=folder, capture_output=True,
                              text=True, env=os.environ | {"PYTHONPATH": str(Path(grading.__file__).parents[2])})
        assert done.returncode == code, done.stdout
        tasks = handout.tasks(handout.read(notebook(name, kind)))
        assert f"{len(tasks)} {'failed' if code else 'passed'}" in done.stdout
        assert "Traceback" not in done.stdout
        assert "run_here" not in done.stdout
