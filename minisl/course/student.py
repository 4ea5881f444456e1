"""Self-grading with pytest: the tests of a handout as one test for each task."""

from pathlib import Path

import pytest

from minisl.course import handout
from minisl.course.border import described, in_words


def checks_of(file, notebook):
    """A parametrised test for the tasks of `notebook`, which lies beside `file`."""
    path = Path(file).parent / notebook
    cells = handout.read(path)

    @pytest.mark.parametrize("task", handout.tasks(cells))
    def test_task(task, monkeypatch):
        monkeypatch.chdir(path.parent)
        message = wrong(cells, task)
        if message is not None:
            others = [cell.task for cell in handout.needed(cells, task) if cell.task not in ("", task)]
            earlier = [other for other in others if wrong(cells, other)]
            pytest.fail(message + (handout.repair_first(earlier) if earlier else ""), pytrace=False)

    return test_task


def wrong(cells, task):
    """What the tests of a task say, None where it passes."""
    try:
        handout.run_here(cells, task)
    except Exception as error:
        error.where = described(error)[-1]
        return in_words(error)
