"""What the hand-written pages say: their commands exist and answer as shown, the picture of the house is true."""

import ast
import importlib.util
import math
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from minisl import backend, train
from minisl.command import run_command
from minisl.config import FLAGS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FAQ = (DOCS / "faq.md").read_text("utf-8")
ANSWERS = re.findall(r"^\$ (.*)\n(.*)$", FAQ, re.M)
PAGES = ("faq.md", "install.md", "benchmarks.md", "glossary.md", "index.md", "architecture.md")
sys.path.append(str(DOCS))
spec = importlib.util.spec_from_file_location("pictures", DOCS / "pictures.py")
pictures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pictures)


@pytest.mark.parametrize(("command", "answer"), ANSWERS, ids=[command for command, _ in ANSWERS])
def test_the_faq_says_what_minisl_says(command, answer, tmp_path, monkeypatch, capsys):
    if "--device cuda" in command and "there is no NVIDIA driver" not in backend.cuda_status()[1]:
        answer = f"error: --device cuda: {backend.cuda_status()[1]}; or use --device cpu"  # another machine, another reason
        if backend.cuda_status()[0]:
            pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    prepare, _, asked = command.rpartition("; ")
    if prepare:
        subprocess.run(["sh", "-c", prepare], check=True)
    words = shlex.split(asked)
    assert words[:3] == ["python", "-m", "minisl.train"]
    assert run_command(train.main, words[3:]) == 2
    assert capsys.readouterr().err.strip() == answer


def test_the_faq_has_its_answers():
    assert len(ANSWERS) >= 7
    assert f"{math.log(1024):.2f} for the 1,024 ids" in FAQ
    assert f"{math.log(32000):.2f} for 32,000" in FAQ
    assert f"spends {2 * 32000 * 512 / 1e6:.0f} million parameters" in FAQ


@pytest.mark.parametrize("page", PAGES)
def test_commands_flags_and_extras_exist(page):
    text = (DOCS / page).read_text("utf-8")
    for module in re.findall(r"python -m (minisl[.\w]*)", text):
        assert importlib.util.find_spec(module), module
    known = {"--" + f.name.replace("_", "-") for f in FLAGS} | set(re.findall(r'"(--[a-z][\w-]*)"', "".join(
        path.read_text("utf-8") for folder in ("minisl", "tests/soak", "tests/kills") for path in files(ROOT / folder))))
    others = {"--upgrade", "--force-reinstall", "--gpus", "--python", "--sp_ratio", "--help"}  # of pip, docker, uv; an alias
    for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", text):
        assert flag in known | others, flag
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    for extra in re.findall(r"'\.\[(\w+)\]'", text):
        assert extra in extras
    for path in re.findall(r"(?<![\w/])(?:tests|minisl|docs)/[\w/.]*\w", text):
        assert (ROOT / path).exists() or path in ("docs/gpu", "docs/_build/html"), path


def files(folder):
    return [folder] if folder.is_file() else folder.rglob("*.py")


def floors():
    return {name: floor for floor, (_, names) in enumerate(pictures.FLOORS) for name in names.split()}


def test_every_room_is_in_the_picture():
    there = {path.stem for path in (ROOT / "minisl").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert set(floors()) == there - {"__init__"}
    assert {room for _, room in pictures.STEP} <= there


def upwards(floor):
    """Imports at the top of a module, from a floor above its own."""
    found = []
    for path in sorted((ROOT / "minisl").rglob("*.py")):
        parts = path.relative_to(ROOT / "minisl").with_suffix("").parts
        for node in ast.parse(path.read_text("utf-8")).body if parts != ("__init__",) else ():
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "minisl":
                rooms = node.module.split(".")[1:2] or [alias.name for alias in node.names]
                found += [f"{'/'.join(parts)} imports {room}" for room in rooms if floor.get(room, 0) > floor[parts[0]]]
    return found


def test_rooms_import_from_below():
    assert upwards(floors()) == []


def test_an_import_from_above_is_found(killed):
    killed["docs: autograd below kernels in the picture"] = bool(upwards({**floors(), "kernels": 2, "autograd": 1}))
    assert killed["docs: autograd below kernels in the picture"]


@pytest.mark.parametrize("name", ["architecture", "sltrain"])
def test_the_pictures_are_those_of_their_script(name):
    assert (DOCS / f"{name}.svg").read_text("utf-8") == getattr(pictures, name)()
