"""The handouts have the form they promise and are what build.py makes; no solution is in them, and nothing works yet."""

import ast
import importlib.util
import json
import re
import sys
from functools import cache
from pathlib import Path

import pytest

from minisl.course import handout

for package in ("jupytext", "nbformat"):
    pytest.importorskip(package, reason="needs the extra `course`")

COURSE = Path(__file__).parents[2] / "notebooks" / "assignments"
HEADING = re.compile(r"## Task (\d+)\. .+ \((\d+) points?(?:, (\d+) minutes)?\)\n")
HIDDEN = re.compile(r"### BEGIN HIDDEN TESTS\n.*?### END HIDDEN TESTS\n?", re.S)
SOLUTION = re.compile(r"### BEGIN SOLUTION\n(.*?)\s*### END SOLUTION", re.S)
HINT = re.compile(r"<details><summary>Hint</summary>\n\n(.+?)\n\n</details>", re.S)


def load(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load(COURSE / "build.py", "course_build")
NAMES = build.names()


@cache
def source(name):
    """The cells as build.py makes them, solutions included."""
    return build.read(name).cells


@cache
def release(name):
    return json.loads((COURSE / "release" / name / f"{name}.ipynb").read_text("utf-8"))["cells"]


def about(cell):
    return cell["metadata"].get("nbgrader", {})


def kind(cell):
    """given, answer or test; written: prose that a person grades; text."""
    data = about(cell)
    if data.get("grade"):
        return "written" if data["solution"] else "test"
    return "answer" if data.get("solution") else "given" if data else "text"


def blocks(cells):
    """The cells from each task's heading to the next."""
    found = []
    for cell in cells:
        if cell["cell_type"] == "markdown" and cell["source"].startswith("## "):
            found.append([])
        if found:
            found[-1].append(cell)
    return [block for block in found if HEADING.match(block[0]["source"])]


BLOCKS = [(name, block) for name in NAMES for block in blocks(source(name))]
TASKS = [(name, task) for name in NAMES for task in handout.tasks(handout.cells_of({"cells": source(name)}))]
named = pytest.mark.parametrize("name", NAMES)
each_task = pytest.mark.parametrize(("name", "block"), BLOCKS, ids=[
    f"{name}-{block[0]['source'].split(' (')[0][3:]}" for name, block in BLOCKS])


def answers(block):
    return [cell for cell in block if kind(cell) == "answer"]


def functions(cell):
    """The names of the functions that a cell defines."""
    return [node.name for node in ast.parse(cell["source"]).body if isinstance(node, ast.FunctionDef)]


def lines_to_write(cell):
    """The lines of a solution that are code."""
    lines = "\n".join(SOLUTION.findall(cell["source"])).splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


# The form

@named
def test_every_task_has_its_heading_and_they_are_counted(name):
    cells = source(name)
    assert re.match(rf"# Assignment {name[1]}: ", cells[0]["source"])
    inside = [cell for block in blocks(cells) for cell in block]
    assert [kind(cell) for cell in cells if cell not in inside and kind(cell) not in ("text", "given")] == []
    assert [int(HEADING.match(block[0]["source"])[1]) for block in blocks(cells)] == [*range(1, len(blocks(cells)) + 1)]


@each_task
def test_a_task_says_what_is_needed(name, block):
    words = "\n\n".join(cell["source"] for cell in block if kind(cell) == "text")
    kinds = [kind(cell) for cell in block if kind(cell) not in ("text", "given")]
    points = int(HEADING.match(words)[2])
    assert sum(about(cell).get("points", 0) for cell in block) == points
    assert HEADING.match(words)[3], "minutes"
    if kinds == ["written"]:
        return
    assert kinds == ["answer", "test"]
    answer, test = (cell for cell in block if kind(cell) in kinds)
    assert about(test)["grade_id"] == f"test_{about(answer)['grade_id']}"
    for part in ("**Given", "**Write", "**Tested"):
        assert words.count(part) == 1, part
    assert len(HINT.findall(words)) == words.count("<details>") == 1
    assert len(lines_to_write(answer)) <= sum(map(int, re.findall(r"\b\d+ (?:to|or) (\d+) lines", words))) <= 25
    assert about(answer)["grade_id"] in functions(answer)
    for node in ast.parse(answer["source"]).body:
        if isinstance(node, ast.FunctionDef):
            assert re.search(rf"`{node.name}[`(]", words), f"the text does not name {node.name}"
            assert ast.get_docstring(node), f"{node.name} has no docstring"


def half_of(cell, text):
    """Whether half of a solution's lines are in a text."""
    lines = [line for line in lines_to_write(cell) if len(line) >= 12]
    return sum(line in text for line in lines) >= max(1, len(lines) / 2)


@each_task
def test_a_hint_is_not_the_solution(name, block):
    hints = [hint for cell in block for hint in HINT.findall(cell["source"])]
    assert not any(half_of(cell, hint) for hint in hints for cell in answers(block))


@named
def test_names_are_unique(name):
    ids = [about(cell)["grade_id"] for cell in source(name) if about(cell)]
    assert len(set(ids)) == len(ids)
    written = [function for cell in source(name) if kind(cell) == "answer" for function in functions(cell)]
    assert len(set(written)) == len(written)


def needs_what_comes_later(cells):
    found = []
    for task in handout.tasks(cells):
        own = next(cell.place for cell in cells if cell.kind == "answer" and cell.task == task)
        found += [f"{task} needs {cell.task}" for cell in handout.needed(cells, task) if cell.place > own]
    return found


@named
def test_no_task_needs_a_later_one(name):
    assert needs_what_comes_later(handout.cells_of({"cells": source(name)})) == []


def test_a_task_that_needs_a_later_one_is_found():
    cells = [handout.Cell(0, "def f(): return g()", "answer", "f"), handout.Cell(1, "f()", "test", "f"),
             handout.Cell(2, "def g(): return 1", "answer", "g"), handout.Cell(3, "g()", "test", "g")]
    assert needs_what_comes_later(cells) == ["f needs g"]


def read_at_once(text):
    """The names that a cell reads when it is run, not when its functions are called."""
    body = [node for node in ast.parse(text).body if not isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    return handout.uses(ast.unparse(ast.Module(body, [])))


@named
def test_what_is_given_runs_without_answers(name):
    written = {function for cell in source(name) if kind(cell) == "answer" for function in functions(cell)}
    assert [read_at_once(cell["source"]) & written for cell in source(name) if kind(cell) == "given"
            if read_at_once(cell["source"]) & written] == []


# What is built

@named
def test_the_notebooks_are_what_build_makes(name, tmp_path):
    pytest.importorskip("nbgrader", reason="needs the extra `course`")
    build.write(name, tmp_path)
    for folder in ("source", "release"):
        for made in sorted((tmp_path / folder / name).iterdir()):
            kept = COURSE / folder / name / made.name
            if made.suffix == ".ipynb":
                made, kept = (json.loads(path.read_text("utf-8"))["cells"] for path in (made, kept))
                assert kept == made, f"{folder}: run `python notebooks/assignments/build.py {name}`"
            else:
                assert kept.read_text("utf-8") == made.read_text("utf-8")


def visible(name):
    """What students may see: the source without solutions and hidden tests."""
    return "\n".join(HIDDEN.sub("", SOLUTION.sub("", cell["source"])) for cell in source(name))


def leaked(text, name):
    """The lines of solutions that are in a text, but for short ones and those that the handout gives."""
    given = visible(name)
    return [line for cell in source(name) if kind(cell) == "answer" for line in lines_to_write(cell)
            if len(line) >= 12 and line in text and line not in given]


@named
def test_no_solution_is_released(name):
    text = "\n".join("".join(cell["source"]) for cell in release(name))
    assert leaked(text, name) == []
    assert leaked("\n".join(cell["source"] for cell in source(name)), name)
    for word in ("SOLUTION", "HIDDEN"):
        assert word not in text
    assert not any(cell.get("outputs") for cell in release(name))


@each_task
def test_the_tests_do_not_give_the_solution(name, block):
    assert not any(half_of(cell, visible(name)) for cell in answers(block))


@named
def test_the_visible_tests_are_released_and_nothing_else(name):
    tests = {about(cell)["grade_id"]: "".join(cell["source"]) for cell in release(name) if kind(cell) == "test"}
    assert tests == {about(cell)["grade_id"]: HIDDEN.sub("", cell["source"]).rstrip()
                     for cell in source(name) if kind(cell) == "test"}
    assert all(re.search(r"\b(check\w*|raises)\(|\bassert ", text) for text in tests.values())


@pytest.mark.parametrize(("name", "task"), TASKS, ids=[f"{name}-{task}" for name, task in TASKS])
def test_a_released_task_is_not_written_yet(name, task):
    with pytest.raises(NotImplementedError):
        handout.run_here(handout.cells_of({"cells": release(name)}), task)


@named
def test_links_do_not_lead_out_of_the_folder(name):
    """A handout is copied to where the repository is not."""
    targets = [target for cell in source(name) if cell["cell_type"] == "markdown"
               for target in re.findall(r"\]\(([^)]+)\)", cell["source"])]
    assert [target for target in targets if not re.match(r"https?://|#", target)] == []
