"""docs/adding-a-method.md: its example, in a folder of its own, passes what every method must pass, and its commands train it."""

import importlib
import inspect
import itertools
import re
import subprocess
import sys
from pathlib import Path

import mutation
import pytest

from minisl import methods
from minisl.config import FLAGS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "adding-a-method.md").read_text()
FILES = dict(zip(("lion.py", "test_lion.py"), re.findall(r"```python\n(.*?)```", PAGE, re.S), strict=True))
COMMANDS = [line.split() for line in re.search(r"```sh\n(.*?)```", PAGE, re.S)[1].splitlines()]

# The folder is part of minisl.methods before the flags are made, as if its file were in there.
DRIVER = """
import sys
import minisl.methods
minisl.methods.__path__.append({folder!r})
from minisl import config, plot, train
from minisl.command import run_command
plot.loss_figure = lambda path, *_: path.write_bytes(b"a figure")
for argv in {jobs!r}:
    assert run_command(train.main, argv) == 0
for argv in {lines!r}:
    try:
        assert config.parse(argv)[0].method == "lion"
    except SystemExit as end:
        assert end.code == 0
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Of the page's two files; the first is in a folder that minisl.methods extends to, and --method takes its name."""
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "lion.py").write_text(FILES["lion.py"])
    (tmp_path / "test_lion.py").write_text(FILES["test_lion.py"])
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path / "methods")])
    importlib.invalidate_caches()
    names = next(f.metadata["choices"] for f in FLAGS if f.name == "method")
    names.append("lion")
    yield tmp_path
    names.remove("lion")
    sys.modules.pop("minisl.methods.lion", None)
    vars(methods).pop("lion", None)


def calls(test, **fixed):
    """Arguments of each run of a parametrized test function, with these fixed."""
    values = {mark.args[0]: mark.args[1] for mark in getattr(test, "pytestmark", ()) if mark.name == "parametrize"}
    for chosen in itertools.product(*(values[n] for n in values if n not in fixed)):
        given = dict(zip((n for n in values if n not in fixed), chosen)) | fixed
        yield {n: given[n] for n in inspect.signature(test).parameters}


def functions_of(path):
    return {name: test for name, test in vars(mutation.load(path)).items() if name.startswith("test_")}


def test_the_example_is_short():
    assert [len(text.splitlines()) <= most for text, most in zip(FILES.values(), (45, 25))] == [True, True]
    assert len(PAGE.splitlines()) <= 120


def test_its_own_tests_pass(folder):
    killed = {}
    for test in functions_of(folder / "test_lion.py").values():
        for given in calls(test, killed=killed):
            test(**given)
    assert len(killed) == 2
    assert all(killed.values())


def test_it_passes_what_every_method_must(folder, monkeypatch):
    assert "lion" in methods.available()
    found = [t for t in functions_of("methods/test_every_method.py").values() if "name" in inspect.signature(t).parameters]
    assert len(found) == 8
    for test in found:
        for given in calls(test, name="lion", tmp_path=folder, monkeypatch=monkeypatch):
            test(**given)


def test_its_commands_train_it(folder):
    """Twelve steps, fourteen after resuming, --help with its flags, and the flags of the page as they stand."""
    job = mutation.load("test_train.py").job(folder, method="lion", beta1=0.95)
    lines = [c[3:] for c in COMMANDS if c[1:3] == ["-m", "minisl.train"]]
    assert any("--help" in line for line in lines)
    jobs = [job, ["--resume", str(folder / "run"), "--steps", "14"]]
    code = DRIVER.format(folder=str(folder / "methods"), jobs=jobs, lines=lines)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "flags of lion" in done.stdout
    assert "--beta2" in done.stdout
    assert len((folder / "run" / "metrics.jsonl").read_text().splitlines()) == 14


def test_the_page_names_what_exists():
    for name in re.findall(r"`(?:minisl/methods/)?(\w+\.py)`", PAGE):
        assert name in ("NAME.py", "lion.py") or (ROOT / "minisl" / "methods" / name).is_file(), name
    for word in re.findall(r"\(`(\w+)`[,)]", PAGE):
        assert any(word in p.read_text() for p in (ROOT / "minisl" / "methods").glob("*.py")), word
