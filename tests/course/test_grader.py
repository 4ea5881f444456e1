"""Grading: each task apart from the others, and from whoever would rather not answer it."""

import json
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import pytest

from minisl.course import grading, handout
from minisl.course.__main__ import main
from minisl.errors import InputError

pytest.importorskip("nbgrader", reason="needs the extra `course`")
fence = pytest.importorskip("minisl.course.fence", reason="grading needs Linux or macOS")

GIVEN = "import numpy as np\nfrom minisl.course import check, draw, raises, unchanged\ntwo = 2"
DOUBLE = "def double(x):\n    return two * x"
QUADRUPLE = "def quadruple(x):\n    return double(double(x))"
NORM = "def norm(x):\n    return np.sqrt((x * x).sum())"
ANSWERS = {"double": DOUBLE, "quadruple": QUADRUPLE, "norm": NORM}
TESTS = {"double": 'x = draw("x").standard_normal(5)\nold = x.copy()\ncheck("2 x", double(x), old + old)\nunchanged("x", x, old)',
         "quadruple": 'for k in range(3):\n    check(f"4 x for {k + 1}", quadruple(k + 1.0), 4.0 * (k + 1))',
         "norm": 'x = np.array([3.0, 4.0])\ncheck("norm", norm(x), np.sqrt(x @ x))\n'
                 '### BEGIN HIDDEN TESTS\ncheck("n", norm(np.ones(4)), 2.0)\n### END HIDDEN TESTS'}


def assignment(answers=None, own=()):
    """The cells of three tasks with these answers, and the student's own cells in front of them."""
    cells = [handout.Cell(0, GIVEN, "given")] + [handout.Cell(0, text, "answer") for text in own]
    for k, (task, answer) in enumerate((ANSWERS | (answers or {})).items()):
        cells += [handout.Cell(0, textwrap.dedent(answer), "answer", task), handout.Cell(0, TESTS[task], "test", task, k + 1, 3)]
    for place, cell in enumerate(cells):
        cell.place = place
    return cells


def graded(answers=None, own=(), seconds=3, **more):
    """{task: (points, message)}; seconds: of the last task, which is to stop."""
    source = assignment()
    source[-1].seconds = seconds
    outcomes = grading.grade(source, assignment(answers, own), **more)
    return {outcome.task: (outcome.earned, outcome.message) for outcome in outcomes}


def test_right_answers_have_all_points():
    assert graded() == {"double": (1, ""), "quadruple": (2, ""), "norm": (3, "")}


def test_a_wrong_answer_costs_its_own_task_only():
    """quadruple calls double: it is tried with the reference's."""
    outcomes = graded({"double": "def double(x):\n    return x"})
    assert outcomes == {"double": (0, "2 x is 0.5 times what it should be, everywhere: a factor is missing or wrong"),
                        "quadruple": (2, ""), "norm": (3, "")}


def test_a_wrong_answer_after_a_wrong_answer_says_with_what_it_was_tried():
    outcomes = graded({"double": "def double(x):\n    return x", "quadruple": "def quadruple(x):\n    return double(x)"})
    assert "tried with the reference's double" in outcomes["quadruple"][1]


def test_an_unwritten_answer():
    outcomes = graded({task: f"def {task}(x):\n    raise NotImplementedError()" for task in ANSWERS})
    assert {points for points, _ in outcomes.values()} == {0}
    assert all(message.startswith("NotImplementedError") for _, message in outcomes.values())


def test_students_may_have_cells_of_their_own():
    own = ["def helper(x):\n    return factor * x", "factor = 2.0"]
    outcomes = graded({"double": "def double(x):\n    return helper(x)"}, own)
    assert outcomes["double"] == (1, "")


def test_an_answer_whose_cell_was_deleted():
    cells = [cell for cell in assignment() if cell.kind != "answer" or cell.task != "double"]
    outcomes = {outcome.task: outcome for outcome in grading.grade(assignment(), cells)}
    assert outcomes["double"].message == "NameError: name 'double' is not defined"
    assert outcomes["quadruple"].earned == 2


def test_cells_that_no_answer_uses_are_not_run():
    """Even if they define a name that the test or a given cell has for itself."""
    assert graded(own=["old = two = 1 / 0", "def check(*args):\n    pass"])["double"] == (1, "")


def test_what_is_written_into_an_argument_is_seen():
    outcomes = graded({"double": "def double(x):\n    y = 2 * x\n    x[0] = 7\n    return y"})
    assert "was changed by the call" in outcomes["double"][1]


def test_a_write_through_a_view_is_seen():
    test = handout.Cell(0, "x = np.ones((2, 3))\ndouble(x[1])\nunchanged('x', x, np.ones((2, 3)))", "test", "double", 1, 3)
    cells = [handout.Cell(0, GIVEN, "given"), handout.Cell(1, "def double(x):\n    x[0] = 7", "answer", "double"), test]
    for place, cell in enumerate(cells):
        cell.place = place
    assert "x was changed by the call" in grading.grade(cells, None)[0].message


@pytest.mark.parametrize(("answer", "says"), [
    ("def double(x):\n    return 1 / 0",
     "ZeroDivisionError: division by zero\n(double, line 2: return 1 / 0; called with an array of shape (5,))"),
    ("def double(x) return x", "SyntaxError"), ("def double(x):\n    return undefined * x", "NameError: name 'undefined'"),
    ("def dubble(x):\n    return 2 * x", "double"), ("def double(x, y):\n    return x", "missing 1 required positional argument"),
    ("def double(x):\n    return object()", "the result has an object of type object where"),
    ("def double(x):\n    return [x, 'a', 2]", "2 x is"),
    ("def double(x):\n    return double(x)", "RecursionError"),
    ("1 / 0\n\n\ndef double(x):\n    return 2 * x", "ZeroDivisionError"),
], ids=["error", "syntax", "name", "no function", "signature", "object", "list", "recursion", "cell"])
def test_errors_are_told_with_their_line(answer, says):
    outcomes = graded({"double": answer})
    assert outcomes["double"][0] == 0
    assert says in outcomes["double"][1]
    assert outcomes["norm"] == (3, "")


# Whoever would rather not answer. `LEAVE` stands for a file outside that must be there afterwards, and unchanged.

HOSTILE = {
    "loops": "def norm(x):\n    while True:\n        pass",
    "loops through every exception": """
        def norm(x):
            while True:
                try:
                    while True:
                        pass
                except BaseException:
                    pass""",
    "loops in C": "def norm(x):\n    return sum(x for x in iter(int, 1))",
    "loops before it is asked": "while True:\n    pass",
    "sleeps": "import time\n\n\ndef norm(x):\n    time.sleep(1000)",
    "100 GB": "def norm(x):\n    return np.ones(12_500_000_000).sum()",
    "100 GB of list": "def norm(x):\n    return len([0] * 12_500_000_000)",
    "grows": "def norm(x):\n    a = [b'x' * 10**8]\n    while True:\n        a.append(a[0] + bytes([len(a) % 256]))",
    "deletes": "import os\n\n\ndef norm(x):\n    os.remove('LEAVE')\n    return 5.0",
    "deletes the folder": "import shutil\n\n\ndef norm(x):\n    shutil.rmtree(__import__('os').path.dirname('LEAVE'))",
    "deletes quietly": """
        import os, shutil
        shutil.rmtree(os.path.dirname('LEAVE'), ignore_errors=True)


        def norm(x):
            return 5.0""",
    "deletes by a program": "import subprocess\n\n\ndef norm(x):\n    subprocess.run(['rm', 'LEAVE'])\n    return 5.0",
    "deletes by C": "import ctypes\n\n\ndef norm(x):\n    ctypes.CDLL(None).unlink(b'LEAVE')\n    return 5.0",
    "renames": "import os\n\n\ndef norm(x):\n    os.rename('LEAVE', 'mine')\n    return 5.0",
    "overwrites": "def norm(x):\n    open('LEAVE', 'w').write('x')\n    return 5.0",
    "overwrites by C": "import ctypes\n\n\ndef norm(x):\n    ctypes.CDLL(None).creat(b'LEAVE', 0o644)\n    return 5.0",
    "prints a score": "print('6 of 6 points')\nprint('{\"score\": 6}')\n\n\ndef norm(x):\n    print('null')\n    return 1.0",
    "writes to every pipe": """
        import os
        for number in range(3, 64):
            try:
                os.write(number, b'null')
            except OSError:
                pass
        os._exit(0)""",
    "exits": "import os\n\n\ndef norm(x):\n    os._exit(0)", "exits politely": "import sys\n\n\ndef norm(x):\n    sys.exit(0)",
    "equals everything": """
        class Yes(float):
            __array_ufunc__ = None
            def __eq__(self, other):
                return True
            __sub__ = __rsub__ = __lt__ = __le__ = __eq__


        def norm(x):
            return Yes(1.0)""",
    "brings its own check": """
        def check(*args, **more):
            pass


        def range(*args):
            return []


        def norm(x):
            return 1.0""",
    "patches numpy": "np.allclose = lambda *args, **kwargs: True\n\n\ndef norm(x):\n    return 1.0",
    "patches check": "import minisl.course.check as c\nc.close = lambda *args: True\n\n\ndef norm(x):\n    return 1.0",
    "kills": "import os, signal\n\n\ndef norm(x):\n    os.kill(os.getppid(), signal.SIGKILL)\n    return 1.0",
    "kills by C": "import ctypes, os\n\n\ndef norm(x):\n    ctypes.CDLL(None).kill(os.getppid(), 9)\n    return 1.0",
    "changes modes by C": "import ctypes\n\n\ndef norm(x):\n    return 5.0 if ctypes.CDLL(None).chmod(b'LEAVE', 0) == 0 else 1.0",
    "forks": "import os\n\n\ndef norm(x):\n    while True:\n        os.fork()",
    "knows one case": "def norm(x):\n    return 5.0",
    "looks for the tests": """
        def norm(x):
            import gc
            found = [o for o in gc.get_objects() if 'HIDDEN' + ' TESTS' in str(getattr(o, 'source', ''))]
            return 5.0 if not found else np.sqrt((x * x).sum())""",
    "leaves a file": "def norm(x):\n    open('/dev/shm/LEFT', 'w').write('x')\n    return np.sqrt((x * x).sum())",
    "tells the secret word": "import os\n\n\ndef norm(x):\n    raise ValueError(os.environ['MINISL_COURSE'])",
    "leaves a daemon": """
        import ctypes, time


        def norm(x):
            held = np.ones(10**8)  # so that its end takes a while
            libc = ctypes.CDLL(None)
            if libc.fork() == 0:
                libc.setsid()
                if libc.fork() == 0:
                    libc.setsid()
                    libc.prctl(15, b'left-behind', 0, 0, 0)
                    time.sleep(1000)
            raise ValueError('gone')""",
    "digs deep": """
        import os


        def norm(x):
            for _ in range(3000):
                os.mkdir('d')
                os.chdir('d')
            raise ValueError('deep')""",
    "names an error at length": "def norm(x):\n    raise type('A' * 10**7, (Exception,), {})('B' * 10**7)",
    "spoils the expected value": "def norm(x):\n    x[...] = 0\n    return 0.0",
    "reads another's": "def norm(x):\n    open('LEAVE').read()\n    return np.sqrt((x * x).sum())",
}
BY_LANDLOCK = {"leaves a file", "deletes by C", "overwrites by C", "reads another's"}
BY_SECCOMP = {"kills by C", "changes modes by C"}


@pytest.mark.parametrize("what", HOSTILE)
def test_the_hostile_are_stopped(what, tmp_path, monkeypatch):
    if what in BY_LANDLOCK and "Landlock" in fence.lacking():
        pytest.skip("needs Landlock (Linux since 5.13)")
    if what in BY_SECCOMP and "seccomp filter" in fence.lacking():
        pytest.skip("needs a seccomp filter (Linux on x86_64 or aarch64)")
    (tmp_path / "other").mkdir()
    leave = tmp_path / "other" / "gradebook.db"
    leave.write_text("points")
    mode = leave.stat().st_mode
    (tmp_path / "ada").mkdir()
    monkeypatch.setenv("MINISL_COURSE", "4 points")
    seconds = 0.1 if what == "sleeps" else 1  # of computing; sleep is counted as a tenth
    outcomes = graded({"norm": HOSTILE[what].replace("LEAVE", str(leave))}, seconds=seconds, files=tmp_path / "ada")
    assert (leave.read_text(), leave.stat().st_mode) == ("points", mode)
    assert (outcomes["double"], outcomes["quadruple"]) == ((1, ""), (2, ""))
    assert outcomes["norm"][0] == 0
    assert outcomes["norm"][1]
    assert "points" not in outcomes["norm"][1]
    assert len(outcomes["norm"][1]) < 5000
    assert not Path("/dev/shm/LEFT").exists()
    assert "left-behind" not in names_of_processes()


def names_of_processes():
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):  # it has ended
            found.append(path.read_text().strip())
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives a daemon back to whose it was")
def test_a_daemon_is_ended_where_no_filter_keeps_it_from_starting(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("from minisl.course import fence\nfence.seccomp = lambda: False")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    outcomes = graded({"norm": HOSTILE["leaves a daemon"]}, seconds=30)
    assert outcomes["norm"][0] == 0
    assert "ValueError: gone" in outcomes["norm"][1]
    assert "left-behind" not in names_of_processes()


@pytest.mark.parametrize(("what", "says"), [
    ("loops", "stopped after 3 seconds: too slow, or a loop that never ends"),
    ("100 GB", "MemoryError: Unable to allocate 93.1 GiB"),
    ("deletes", "an answer may not change files outside its own folder"),
    ("deletes by a program", "may not use subprocess.Popen"),
    ("exits", "ended before it was done"), ("exits politely", "SystemExit"),
    ("overwrites", "an answer may write only into its own folder"),
])
def test_what_was_refused_is_said(what, says, tmp_path):
    assert says in graded({"norm": HOSTILE[what].replace("LEAVE", str(tmp_path / "file"))}, files=tmp_path)["norm"][1]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what another process has computed")
def test_a_busy_machine_costs_no_points():
    """An answer that needs more seconds than the task has, most of which it is kept from computing."""
    waits = "import time\n\n\ndef norm(x):\n    time.sleep(2)\n    return np.sqrt((x * x).sum())"
    assert graded({"norm": waits}, seconds=1)["norm"] == (3, "")


def test_a_cell_that_loops_stops_only_who_uses_it():
    outcomes = graded({"double": "while True:\n    pass"})
    assert outcomes["double"][0] == 0
    assert outcomes["quadruple"] == (2, "")


def test_answers_write_into_their_folder_and_find_what_was_handed_in(tmp_path):
    (tmp_path / "factor.txt").write_text("2")
    outcomes = graded({"double": """
        def double(x):
            open("note.txt", "w").write("mine")
            return float(open("factor.txt").read()) * x"""}, files=tmp_path)
    assert outcomes["double"] == (1, "")
    assert [path.name for path in tmp_path.iterdir()] == ["factor.txt"]


def test_students_have_numbers_of_their_own():
    """An answer that knows Ada's numbers is right for Ada only."""
    from minisl.course import draw

    def known(name):
        return {"double": f"def double(x):\n    return np.array({(2 * numbers(name)).tolist()})"}

    def numbers(name):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MINISL_STUDENT", name)
            return draw("x").standard_normal(5)

    assert graded(known("ada"), student="ada")["double"] == (1, "")
    assert graded(known("ada"), student="bob")["double"][0] == 0


# The command.

def notebook(cells):
    """Cells as a notebook with nbgrader's metadata."""
    def about(k, cell):
        kind = {"given": (False, False, True), "answer": (False, True, False), "test": (True, False, True)}[cell.kind]
        return dict(zip(("grade", "solution", "locked"), kind), points=cell.points,
                    grade_id="test_" * (cell.kind == "test") + (cell.task or f"given{k}"))

    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [
        {"cell_type": "code", "id": f"c{k}", "outputs": [], "execution_count": None, "source": cell.source,
         "metadata": {"seconds": 3, "nbgrader": about(k, cell)}} for k, cell in enumerate(cells)]})


@pytest.fixture
def course(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source" / "a1_sums").mkdir(parents=True)
    (tmp_path / "source" / "a1_sums" / "a1_sums.ipynb").write_text(notebook(assignment()))
    (tmp_path / "ada").mkdir()
    (tmp_path / "ada" / "a1_sums.ipynb").write_text(notebook(assignment({"double": "def double(x):\n    return x"})))
    return tmp_path


def test_grade_and_gradescope(course, capsys):
    assert main(["grade", "ada", "--course", ".", "--to", "results.json"]) == 0
    assert "5 of 6 points" in capsys.readouterr().out
    results = json.loads((course / "results.json").read_text())
    assert results["score"] == 5
    assert [(test["name"], test["score"], test["max_score"], test["status"]) for test in results["tests"]] == [
        ("a1_sums: double", 0, 1, "failed"), ("a1_sums: quadruple", 2, 2, "passed"), ("a1_sums: norm", 3, 3, "passed")]
    assert "0.5 times" in results["tests"][0]["output"]


def test_a_renamed_notebook_is_said_and_not_graded(course, capsys, monkeypatch):
    monkeypatch.setattr(fence, "lacking", list)
    right = (course / "ada" / "a1_sums.ipynb").read_text()
    for name in (".ipynb_checkpoints/a1_sums-checkpoint.ipynb", "__MACOSX/._a1_sums.ipynb", "deep/notes.txt"):
        (course / "ada" / name).parent.mkdir()
        (course / "ada" / name).write_text(right)
    assert main(["grade", "ada", "--course", "."]) == 0
    assert capsys.readouterr().err == ""
    for name in ("a1_sums (1).ipynb", "deep/A1_sums.IPYNB"):
        (course / "ada" / name).write_text(right)
    assert main(["grade", "ada", "--course", ".", "--to", "results.json"]) == 0
    said = capsys.readouterr()
    note = said.err.removeprefix("note: ").rstrip("\n")
    assert note == ("not graded: ada/a1_sums (1).ipynb, ada/deep/A1_sums.IPYNB; only notebooks with these names are: "
                    "a1_sums.ipynb. If it is the one to grade, give it its name back")
    results = json.loads((course / "results.json").read_text())
    assert (results["score"], results["output"]) == (5, note)
    (course / "ada" / "a1_sums.ipynb").unlink()
    with pytest.raises(InputError, match=r"ada: no notebook of the course; not graded: ada/a1_sums \(1\)\.ipynb"):
        main(["grade", "ada", "--course", "."])


@pytest.mark.parametrize(("lacks", "says"), [
    ([], ""),
    (["Landlock", "seccomp filter"], "note: this system has no Landlock and no seccomp filter, so answers can do more than "
                                     "compute; docs/course/instructor.md says what\n")])
def test_grading_says_what_keeps_answers_in_less_well(course, capsys, monkeypatch, lacks, says):
    monkeypatch.setattr(fence, "lacking", lambda: lacks)
    assert main(["grade", "ada", "--course", "."]) == 0
    assert capsys.readouterr().err == says


def test_check_has_no_reference_and_says_so(course, capsys):
    unwritten = assignment({"double": "def double(x):\n    raise NotImplementedError()"})
    (course / "ada" / "a1_sums.ipynb").write_text(notebook(unwritten))
    assert main(["check", "ada/a1_sums.ipynb"]) == 1
    assert "this used your double, which does not pass yet: repair it first" in capsys.readouterr().out


def test_check_is_for_students(course, capsys):
    assert main(["check", "ada/a1_sums.ipynb"]) == 1
    assert "2 x is 0.5 times what it should be" in capsys.readouterr().out
    assert main(["check", "source/a1_sums/a1_sums.ipynb"]) == 0


def test_changed_tests_and_given_cells_do_not_count(course):
    cells = assignment({"double": "def double(x):\n    return x"})
    for cell in cells:
        if cell.kind == "test":
            cell.source, cell.points = "pass", 1000
        if cell.kind == "given":
            cell.source += "\ncheck = print"
    (course / "ada" / "a1_sums.ipynb").write_text(notebook(cells))
    assert sum(outcome.earned for outcome in grading.grade_file(course / "ada" / "a1_sums.ipynb", course)) == 5


@pytest.mark.parametrize(("argv", "says"), [
    (["grade", "nobody", "--course", "."], "nobody: there is no such file"),
    (["grade", "ada", "--course", "ada"], "has no source/NAME"),
    (["grade", "source", "ada", "--course", "."], "a second a1_sums.ipynb"),
    (["grade", "empty", "--course", "."], "no notebook of the course"),
    (["grade", "broken.ipynb", "--course", "."], "broken.ipynb: no assignment has this name; there are a1_sums"),
    (["check", "broken.ipynb"], "broken.ipynb: is no notebook"), (["check", "nothing.ipynb"], "cannot be read"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_bad_input(course, argv, says):
    (course / "empty").mkdir()
    (course / "broken.ipynb").write_text("{")
    with pytest.raises(InputError, match=says):
        main(argv)


def test_a_broken_notebook_of_one_student(course):
    for text in ("", "[]", '{"cells": 3}', '{"cells": [{"cell_type": "code"}]}', "\x00"):
        (course / "ada" / "a1_sums.ipynb").write_text(text)
        with pytest.raises(InputError, match="is no notebook"):
            main(["grade", "ada", "--course", "."])
