"""The course's tests accept what is right, however it is written, and name what is wrong."""

import importlib.util
import re
import sys
import textwrap
import warnings
from contextlib import chdir, redirect_stdout
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from minisl.course import handout

for package in ("jupytext", "nbformat"):
    pytest.importorskip(package, reason="needs the extra `course`")

HERE = Path(__file__).parent
COURSE = HERE.parents[1] / "notebooks" / "assignments"


def load(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load(COURSE / "build.py", "course_build")
pages = load(HERE / "pages.py", "course_pages")
ANSWERS = {path.stem: load(path, f"course_{path.stem}") for path in sorted((HERE / "answers").glob("a*.py"))}
CELLS = {name: handout.cells_of(build.read(name)) for name in ANSWERS}
TASKS = [(name, task) for name in ANSWERS for task in handout.tasks(CELLS[name])]
MISTAKES = [(name, task, *row) for name, module in ANSWERS.items() for task, rows in module.MISTAKES.items() for row in rows]
OTHERS = [(name, task, *row) for name, module in ANSWERS.items() for task, rows in module.OTHERS.items() for row in rows.items()]


def with_text(name, task, old, new):
    """The source's cells, with another text in a task's answer; run by a student who has no hidden word."""
    cells = [replace(cell) for cell in CELLS[name]]
    cell = next(cell for cell in cells if cell.kind == "answer" and cell.task == task)
    if old is None:
        cell.source = textwrap.dedent(new)
    else:
        assert cell.source.count(old) == 1, f"{task}: {old!r} stands {cell.source.count(old)} times in the solution"
        cell.source = cell.source.replace(old, new)
    return cells


def run(name, cells, task):
    """Run a task, as students and graders do: beside the files that are handed in, without warnings as errors."""
    beside = HERE / "answers" / name
    with chdir(beside if beside.is_dir() else "."), redirect_stdout(None), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        handout.run_here(cells, task)


@cache
def said(name, task, old, new):
    """What the tests say to a mistake; docs/course/mistakes.md shows it too."""
    try:
        run(name, with_text(name, task, old, new), task)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


@pytest.mark.parametrize(("name", "task"), TASKS, ids=[f"{n}-{t}" for n, t in TASKS])
def test_the_solution_passes(name, task):
    run(name, CELLS[name], task)


@pytest.mark.parametrize(("name", "task"), TASKS, ids=[f"{n}-{t}" for n, t in TASKS])
def test_there_are_enough(name, task):
    assert len({mistake[0] for mistake in ANSWERS[name].MISTAKES[task]}) >= 8
    assert len(ANSWERS[name].OTHERS[task]) >= 3


@pytest.mark.parametrize(("name", "task", "what", "old", "new", "says"), MISTAKES, ids=[f"{m[1]}-{m[2]}" for m in MISTAKES])
def test_a_mistake_is_named(name, task, what, old, new, says):
    text = said(name, task, old, new)
    assert text is not None, "accepted"
    assert says in text


@pytest.mark.parametrize(("name", "task", "what", "new"), OTHERS, ids=[f"{m[1]}-{m[2]}" for m in OTHERS])
def test_another_way_passes(name, task, what, new):
    run(name, with_text(name, task, None, new), task)


# What docs/course says of it

@pytest.mark.parametrize("page", ["index.md", "instructor.md"])
def test_the_tables_of_tasks_are_those_of_the_notebooks(page):
    assert (pages.PAGES / page).read_text("utf-8") == pages.pages()[page], "run `python tests/course/pages.py`"


def without_numbers(text):
    """Numbers depend on the machine, and what Python says of an error on its version."""
    return re.sub(r"[-+]?\d[\d.,]*(e[-+]?\d+)?", "#", re.sub(r"(\w+(Error|Exception)): .* \|$", r"\1 |", text, flags=re.M))


def test_the_page_of_mistakes_says_what_the_tests_say():
    page = (pages.PAGES / "mistakes.md").read_text("utf-8")
    assert without_numbers(page) == without_numbers(pages.mistakes(ANSWERS, said)), "run `python tests/course/pages.py`"
