"""Grade submissions: what `python -m minisl.course` and nbgrader do."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from minisl.course import handout
from minisl.course.apart import Outcome
from minisl.errors import InputError

COURSE = Path(__file__).parents[2] / "notebooks" / "assignments"
QUIET = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "VECLIB_MAXIMUM_THREADS": "1"}


def grade(source, submitted, files=None, student=None):
    """Outcomes of all tasks of an assignment, from a process of its own (apart.py).

    source, submitted   lists of handout.Cell: the instructor's, with hidden tests, and the student's (None: there is one only)
    files               the folder the submitted notebook lies in
    student             whose numbers are drawn (by default $MINISL_STUDENT, or student.txt in `files`)

    Raises InputError: this system has no fork (Windows); RuntimeError: the grader itself failed.
    """
    if not hasattr(os, "fork"):
        raise InputError("grading needs Linux or macOS (processes are forked); run the notebook's own test cells instead")
    env = os.environ | QUIET
    paths = [str(Path(__file__).parents[2]), *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    env["PYTHONPATH"] = os.pathsep.join(paths)
    course = env.pop("MINISL_COURSE", "")  # not for answers
    if student is not None:
        env["MINISL_STUDENT"] = student
    job = {"source": [asdict(cell) for cell in source], "submitted": submitted and [asdict(cell) for cell in submitted],
           "course": course, "files": None if files is None else str(Path(files).resolve())}
    done = subprocess.run([sys.executable, "-P", "-m", "minisl.course.apart"], input=json.dumps(job), env=env,
                          capture_output=True, text=True)
    try:
        return [Outcome(**outcome) for outcome in json.loads(done.stdout)]
    except ValueError:
        raise RuntimeError(f"the grader failed (exit {done.returncode}): {done.stderr[-2000:]}") from None


def assignments(course=COURSE):
    """The names of a course's assignments."""
    names = sorted(path.name for path in (Path(course) / "source").glob("*") if (path / f"{path.name}.ipynb").is_file())
    if not names:
        raise InputError(f"{course}: has no source/NAME/NAME.ipynb; give the course's folder with --course")
    return names


def grade_file(path, course=COURSE, student=None):
    """Outcomes for one submitted notebook; its name says which assignment it is. Raises InputError."""
    path = Path(path)
    if path.stem not in (known := assignments(course)):
        raise InputError(f"{path}: no assignment has this name; there are {', '.join(known)}")
    if path.is_symlink() or not path.is_file():
        raise InputError(f"{path}: is no plain file")
    submitted = handout.read(path)
    return grade(handout.read(Path(course) / "source" / path.stem / path.name), submitted, path.parent, student)


def gradescope(graded, note=""):
    """{assignment: outcomes} as the content of Gradescope's results.json; note: for the student, above the tests."""
    tests = [{"name": f"{name}: {outcome.task}", "score": outcome.earned, "max_score": outcome.points, "visibility": "visible",
              "status": "passed" if outcome.earned == outcome.points else "failed", "output": outcome.message}
             for name, outcomes in graded.items() for outcome in outcomes]
    seconds = sum(outcome.seconds for outcomes in graded.values() for outcome in outcomes)
    score = sum(test["score"] for test in tests)
    result = {"score": score, "execution_time": round(seconds), "visibility": "visible", "tests": tests}
    return result | ({"output": note} if note else {})
