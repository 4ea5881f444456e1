"""Make source/ and release/ of assignments: `python notebooks/assignments/build.py [NAME ...]`, such as a1_engine.

NAME.py is where an assignment is written, solutions and hidden tests included (cells after `# %%`, text after `# %% [markdown]`):

    # %% task="unbroadcast"                   what a student writes, between ### BEGIN SOLUTION and ### END SOLUTION
    # %% test="unbroadcast" points=4          its tests; seconds=60 where 30 are too few
    # %% [markdown] written="report" points=10   prose that a person grades

Any other code cell is given, and locked. source/ is what nbgrader works on; release/ is what it makes of that for students.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jupytext
from nbformat.v4 import new_notebook

HERE = Path(__file__).parent
TESTS = '''"""`pytest` here checks {name}.ipynb, each task apart from the others."""

from minisl.course.student import checks_of

test_task = checks_of(__file__, "{name}.ipynb")
'''


def names():
    return sorted(path.stem for path in HERE.glob("a[0-9]_*.py"))


def read(name):
    """The notebook of NAME.py, solutions included, with nbgrader's metadata."""
    cells, given = [], 0
    for number, cell in enumerate(jupytext.read(HERE / f"{name}.py").cells):
        about, cell.id = dict(cell.metadata), f"cell-{number}"
        if task := about.get("task"):
            data = named(task, solution=True)
        elif task := about.get("test"):
            data = named(f"test_{task}", grade=True, locked=True) | {"points": about["points"]}
        elif task := about.get("written"):
            data = named(task, grade=True, solution=True) | {"points": about["points"]}
        elif cell.cell_type == "code":
            given += 1
            data = named(f"given_{given}", locked=True)
        else:
            data = None
        cell.metadata = {} if data is None else {"nbgrader": data | {"cell_type": cell.cell_type}}
        if "seconds" in about:
            cell.metadata["seconds"] = about["seconds"]
        cells.append(cell)
    return new_notebook(cells=cells, metadata={
        "kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}, "language_info": {"name": "python"}})


def named(grade_id, grade=False, solution=False, locked=False):
    """nbgrader's metadata of a cell."""
    return {"schema_version": 3, "grade_id": grade_id, "grade": grade, "solution": solution, "locked": locked, "task": False}


def write(name, course=HERE):
    """Write source/NAME and release/NAME into a course's folder."""
    source = course / "source" / name
    source.mkdir(parents=True, exist_ok=True)
    jupytext.write(read(name), source / f"{name}.ipynb", fmt="ipynb")
    (source / f"test_{name}.py").write_text(TESTS.format(name=name), "utf-8")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "nbgrader", "generate_assignment", name, f"--course-dir={course.resolve()}",
                        "--force", "--create", f"--CourseDirectory.db_url=sqlite:///{folder}/gradebook.db", "--log-level=ERROR"],
                       check=True, cwd=HERE)


if __name__ == "__main__":
    for name in sys.argv[1:] or names():
        write(name)
        print(f"{name}: {shutil.os.path.getsize(HERE / 'release' / name / f'{name}.ipynb'):,} bytes")
