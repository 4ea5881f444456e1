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
        message = None
        try:
            handout.run_here(cells, task)
        except Exception as error:
            error.where = described(error)[-1]
            message = in_words(error)
        if message is not None:
            pytest.fail(message, pytrace=False)

    return test_task
