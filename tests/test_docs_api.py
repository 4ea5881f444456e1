"""docs/api.md: its blocks run, in their order, in an empty folder; what it names exists."""

import importlib
import re
from pathlib import Path

from test_train import job

from minisl import plot, train

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "api.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_the_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plot, "loss_figure", lambda path, *_: path.write_bytes(b"a figure"))
    names = {"__name__": "page"}
    for block in BLOCKS:
        exec(compile(block, "docs/api.md", "exec"), names)
    assert (tmp_path / "live.png").exists()


def test_pretrain_runs_as_the_page_says(tmp_path, monkeypatch):
    monkeypatch.setattr(plot, "loss_figure", lambda path, *_: path.write_bytes(b"a figure"))
    steps = []
    watcher = type("Watcher", (), {"on_step": lambda self, record: steps.append(record["step"])})()
    flags = {name.replace("-", "_"): value for name, value in (word[2:].split("=", 1) for word in job(tmp_path))}
    numbers = {k: float(v) if "." in v else int(v) for k, v in flags.items() if re.fullmatch(r"[\d.]+", v)}
    run = train.pretrain(**{**flags, "data": [flags["data"]], **numbers}, callbacks=[watcher])
    assert (run, steps) == (tmp_path / "run", list(range(1, 13)))


def test_the_block_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plot, "loss_figure", lambda path, *_: path.write_bytes(b"a figure"))
    [block] = [b for b in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S) if "pretrain(" in b]
    names = {}
    exec(block.replace("steps=100", "steps=4").replace("eval_every=20", "eval_every=2"), names)
    assert re.search(r"^2 \d\.\d+\n4 \d\.\d+$", capsys.readouterr().out, re.M)
    assert (names["run"] / "step-00000004").is_dir()


def test_the_page_names_what_exists():
    for module, name in re.findall(r"`minisl\.(\w+)\.(\w+)\b", PAGE):
        assert hasattr(importlib.import_module(f"minisl.{module}"), name), f"minisl.{module}.{name}"
    for path in re.findall(r"\]\((\w+\.md)\)", PAGE):
        assert (ROOT / "docs" / path).is_file(), path
