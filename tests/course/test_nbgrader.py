"""The course under nbgrader's own commands: generate, autograde, feedback, export."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

for package in ("nbgrader", "jupytext"):
    pytest.importorskip(package, reason="needs the extra `course`")

COURSE = Path(__file__).parents[2] / "notebooks" / "assignments"


def nbgrader(course, *args):
    done = subprocess.run([sys.executable, "-m", "nbgrader", *args], cwd=course, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A course of a1, three students, graded."""
    course = tmp_path_factory.mktemp("course")
    shutil.copy(COURSE / "nbgrader_config.py", course)
    shutil.copytree(COURSE / "source" / "a1_engine", course / "source" / "a1_engine")
    nbgrader(course, "generate_assignment", "a1_engine", "--create")
    solved = json.loads((course / "source" / "a1_engine" / "a1_engine.ipynb").read_text("utf-8"))
    hand_in(course, "ada", solved)
    hand_in(course, "ben", json.loads((course / "release" / "a1_engine" / "a1_engine.ipynb").read_text("utf-8")))
    for cell in solved["cells"]:
        name = cell["metadata"].get("nbgrader", {}).get("grade_id")
        if name == "unbroadcast":
            cell["source"] = "def unbroadcast(grad, shape):\n    return grad"
        if name == "test_unbroadcast":
            cell["source"] = "print('4 of 4 points')"
    hand_in(course, "cy", solved)
    nbgrader(course, "autograde", "a1_engine", "--create")
    nbgrader(course, "generate_feedback", "a1_engine")
    nbgrader(course, "export")
    return course


def hand_in(course, student, notebook):
    folder = course / "submitted" / student / "a1_engine"
    folder.mkdir(parents=True)
    (folder / "a1_engine.ipynb").write_text(json.dumps(notebook), "utf-8")


def scores(course):
    with open(course / "grades.csv", newline="") as file:
        return {row["student_id"]: (float(row["score"]), float(row["max_score"])) for row in csv.DictReader(file)}


def test_scores(course):
    found = scores(course)
    full = found["ada"][1]
    assert full > 0
    assert found == {"ada": (full, full), "ben": (0, full), "cy": (full - 4, full)}


def test_feedback_says_what_is_wrong(course):
    page = (course / "feedback" / "cy" / "a1_engine" / "a1_engine.html").read_text("utf-8")
    assert "gradient of shape (3, 4) from (2, 3, 4) has shape (2, 3, 4), should have (3, 4)" in page
    assert "not written yet" in (course / "feedback" / "ben" / "a1_engine" / "a1_engine.html").read_text("utf-8")
