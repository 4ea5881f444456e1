"""docs/adding-a-kernel.md: its pieces, put where it says in a copy of the repository, pass the tests and commands it names."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from gpu import needs_compiler

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding-a-kernel.md").read_text()
PLACE = r"(?:#|//) (\S+?)(?:, (at the end|before|after|in place of)(?: (.+))?)?"
PIECE = re.compile(rf"^```(?:python|c\+\+)\n{PLACE}\n((?:.*\n)*?)```$", re.M)
PIECES = PIECE.findall(PAGE)
COMMANDS = [shlex.split(line) for line in re.search(r"```sh\n(.*?)```", PAGE, re.S)[1].splitlines()]


def put(text, how, where, piece):
    """The text with the piece in it. `where` is there, and for "in place of" once."""
    apart = "\n\n" * piece.startswith(("def ", "@"))
    if how == "at the end":
        return f"{text}{apart}{piece}"
    if how == "before":  # the first line that begins so, however far in
        start = re.search(rf"^ *{re.escape(where)}", text, re.M).start()
        return f"{text[:start]}{piece}{apart}{text[start:]}"
    assert text.count(where) >= 1
    if how == "after":
        return text.replace(where, f"{where}\n{piece.rstrip()}", 1)
    assert text.count(where) == 1
    return text.replace(where, piece.strip())


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """minisl and its tests, with every piece of the page."""
    folder = tmp_path_factory.mktemp("repository")
    for name in ("minisl", "tests", "data"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for file, how, where, piece in PIECES:
        path = folder / file
        assert path.exists() == bool(how), file
        path.write_text(put(path.read_text(), how, where, piece) if how else piece)
    return folder


def run(copy, command):
    python, *arguments = command
    assert python == ".venv/bin/python"
    done = subprocess.run([sys.executable, *arguments], cwd=copy, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_piece_of_code_says_where_it_goes():
    assert len(PIECES) == PAGE.count("```python") + PAGE.count("```c++")
    assert len(COMMANDS) == 4
    assert len(PAGE.splitlines()) <= 270


@needs_compiler
def test_the_ladder_knows_it(copy):
    whole, drawn = run(copy, COMMANDS[0]), run(copy, COMMANDS[1])
    printed = re.search(r"```\n(0  .*\n1  .*\n)```", PAGE)[1]
    assert printed in whole
    assert "WRONG" not in whole + drawn
    assert (copy / "gather.png").stat().st_size > 10_000


def test_the_ladder_knows_its_twin(copy):
    pytest.importorskip("greenlet")
    pytest.importorskip("numba.cuda")
    printed = run(copy, COMMANDS[2])
    assert "def rung_0(W, index, values, nnz):" in printed
    assert "WRONG" not in printed


@needs_compiler
def test_its_tests_pass_and_notice_the_mistakes(copy):
    printed = run(copy, [*COMMANDS[3], "-rs", "-p", "no:cacheprovider"])
    mistakes = len(re.findall(r'^    \("gather", \d, ', PAGE, re.M))
    assert f"wrong implementations rejected: {mistakes}/{mistakes}" in printed
    assert int(re.search(r"(\d+) passed", printed)[1]) >= 30


def test_the_page_names_what_exists():
    for name in set(re.findall(r"`(\w+\.(?:py|cu))`", PAGE)) - {"spmm_N.cu"}:
        assert list((ROOT / "minisl" / "kernels").rglob(name)), name
    assert (ROOT / "minisl" / "autograd" / "ops").is_dir()
