"""notebooks/: sources and notebooks are one, they run, no output is stale, and every number in their text is computed."""

import copy
import importlib.util
import re
import sys
from pathlib import Path

import pytest

for package in ("nbclient", "jupytext", "ipykernel"):
    pytest.importorskip(package, reason="needs the extra `notebooks`")
nbformat = pytest.importorskip("nbformat")

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / "notebooks"


def load(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load(FOLDER / "build.py", "notebooks_build")
quotes = load(HERE / "quotes.py", "notebooks_quotes")
NAMES = build.names()


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def committed(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def test_source_and_notebook_are_one(name):
    source = [(cell.cell_type, cell.source, quotes.tags(cell)) for cell in build.read(name).cells]
    assert source == [(cell.cell_type, cell.source, quotes.tags(cell)) for cell in committed(name).cells], f"run build.py {name}"


def test_it_says_what_for_and_ends_with_exercises(name):
    cells = build.read(name).cells
    assert cells[0].cell_type == "markdown"
    assert re.match(r"# .+", cells[0].source)
    assert re.search(r"After this notebook you can\n+(- .+\n?)+", cells[0].source), "what you will be able to do, as a list"
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    exercises = text[text.rindex("## Exercises"):]
    assert len(re.findall(r"^\*\*Exercise \d\.", exercises, re.M)) == 3
    assert len(build.ANSWER.findall(exercises)) == 3


def test_it_runs_and_nothing_in_it_is_stale(name, took):
    fresh = build.with_answers(build.read(name))
    took[f"notebook {name}"] = build.run(fresh)
    assert not quotes.unfounded(answers_only(fresh, committed(name)))
    fresh.cells = [cell for cell in fresh.cells if "answer" not in quotes.tags(cell)]
    written_with = sys.version_info[:2] == (3, 11)  # the text that models train on is the documentation of this Python
    assert not quotes.stale(committed(name), fresh, trained=0.05 if written_with else 0.15)


def answers_only(fresh, committed):
    """The committed notebook, with the answers' outputs, which only a run has."""
    old = iter(committed.cells)
    both = copy.copy(fresh)
    both.cells = [cell if "answer" in quotes.tags(cell) else next(old) for cell in fresh.cells]
    return both


# The checks themselves, on a notebook of three cells.

def small(prose="The sum is 41.5, a quarter is 25 %.", printed="41.52 0.25\n", source="print(a, b)", tag=()):
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": list(tag)},
                                     outputs=[nbformat.v4.new_output("stream", name="stdout", text=printed)])
    return nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_markdown_cell(prose)])


@pytest.mark.parametrize("prose", [
    "The sum is 41.5, a quarter is 25 %.", "In section 3 of 2 papers, `x[77]`, $x^{12}$, [a link](3000)", "1. first\n2. second",
    "It is 41.52."])
def test_numbers_that_are_known(prose):
    assert not quotes.unfounded(small(prose))


@pytest.mark.parametrize(("wrong", "word"), [
    (small("The sum is 41.6."), "41.6"), (small("A third: 33 %."), "33 %"), (small("It took 1,200 steps."), "1,200"),
    (small(tag=["timing"]), "41.5"), (small("Seen: 77.", source="f('77')  # 77"), "77"), (small("0.260"), "0.260"),
], ids=["rounded wrong", "percent", "thousands", "a timing is quoted", "only in a string", "digits that were not printed"])
def test_numbers_that_come_from_nowhere(wrong, word):
    assert word in [written for _, written in quotes.unfounded(wrong)]


def test_a_number_must_be_above_its_text():
    notebook = small()
    notebook.cells.reverse()
    assert len(quotes.unfounded(notebook)) == 2


@pytest.mark.parametrize(("printed", "tag", "fine"), [
    ("41.52 0.25\n", [], True), ("41.60 0.25\n", [], False), ("41.60 0.25\n", ["trained"], True),
    ("49 0.25\n", ["trained"], False), ("49 0.25\n", ["timing"], True), ("41.52\n", [], False),
])
def test_stale_outputs(printed, tag, fine):
    assert (not quotes.stale(small(tag=tag), small(printed=printed, tag=tag))) == fine


def test_a_picture_that_is_gone_is_stale():
    drawn = small()
    drawn.cells[0].outputs.append(nbformat.v4.new_output("display_data", data={"image/png": "", "text/plain": "<Figure>"}))
    assert quotes.stale(drawn, small())


def test_an_error_in_a_cell_or_an_answer_is_one():
    from nbclient.exceptions import CellExecutionError

    notebook = small("<details>\n\n```python\nassert 1 > 2\n```\n</details>", source="print(1)")
    notebook.cells[1].id = "exercise"
    with pytest.raises(CellExecutionError):
        build.run(build.with_answers(notebook))
