"""The course under nbgrader's own commands: generate, collect, autograde, feedback, export."""

import csv
import json
import shutil
import subprocess
import sys
import zipfile
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
    released = json.loads((course / "release" / "a1_engine" / "a1_engine.ipynb").read_text("utf-8"))
    moodle = "Ada Lovelace_4711_assignsubmission_file_"
    archive(course, "all", {f"{moodle}/a1_engine.ipynb": solved, f"{moodle}/study.json": {}, f"{moodle}/notes.json": {},
                            "ben_LATE_12_3456_a1_engine-1.ipynb": released})  # Canvas, the second time
    for cell in solved["cells"]:
        name = cell["metadata"].get("nbgrader", {}).get("grade_id")
        if name == "unbroadcast":
            cell["source"] = "def unbroadcast(grad, shape):\n    return grad"
        if name == "test_unbroadcast":
            cell["source"] = "print('4 of 4 points')"
    archive(course, "cy", {"a1_engine.ipynb": solved})
    nbgrader(course, "zip_collect", "a1_engine")
    nbgrader(course, "autograde", "a1_engine", "--create")
    nbgrader(course, "generate_feedback", "a1_engine")
    nbgrader(course, "export")
    return course


def archive(course, name, files):
    """A zip of {path: what is in it} as it was downloaded."""
    path = course / "downloaded" / "a1_engine" / "archive" / f"{name}.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for inside, content in files.items():
            file.writestr(inside, json.dumps(content))


def test_collected(course):
    found = {str(path.relative_to(course / "submitted")) for path in (course / "submitted").rglob("*.*")}
    assert found == {"Ada Lovelace/a1_engine/a1_engine.ipynb", "Ada Lovelace/a1_engine/study.json",
                     "ben/a1_engine/a1_engine.ipynb", "cy/a1_engine/a1_engine.ipynb"}


def scores(course):
    with open(course / "grades.csv", newline="") as file:
        return {row["student_id"]: (float(row["score"]), float(row["max_score"])) for row in csv.DictReader(file)}


def test_scores(course):
    found = scores(course)
    full = found["Ada Lovelace"][1]
    assert full > 0
    assert found == {"Ada Lovelace": (full, full), "ben": (0, full), "cy": (full - 4, full)}


def test_feedback_says_what_is_wrong(course):
    page = (course / "feedback" / "cy" / "a1_engine" / "a1_engine.html").read_text("utf-8")
    assert "gradient of shape (3, 4) from (2, 3, 4) has shape (2, 3, 4), should have (3, 4)" in page
    assert "not written yet" in (course / "feedback" / "ben" / "a1_engine" / "a1_engine.html").read_text("utf-8")
