"""docs/api.md: its blocks run, in their order, in an empty folder; what it names exists."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
from test_train import job

from minisl import optim, plot, train
from minisl.checkpoint import load_model
from minisl.data import make_tokenizer, tokenize, validation_batches
from minisl.errors import InputError
from minisl.evaluate import evaluate
from minisl.generate import complete
from minisl.nn import Llama, LlamaConfig
from minisl.swap import method

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


def nothing(*_):
    raise AssertionError("a run has begun")


def test_mistakes_in_what_the_page_shows_are_said(tmp_path, monkeypatch):
    """One that a reader of the page makes, by function: in words, and before anything is done."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "run_of", nothing)
    config = LlamaConfig(16, 24, 1, 2, vocab_size=257)
    model, tokenizer = Llama(config, np.random.default_rng(0)), make_tokenizer("bytes", [], 257)
    batches = list(validation_batches(tokenize(tokenizer, ["to be or not to be"]), 2, 8))
    for call, mistakes in (
        (lambda **more: complete(model, tokenizer, **{"prompts": ["to"], "tokens": 2, **more}), [
            ({"prompts": "to be"}, "prompts 'to be': must be a list of strings"), ({"prompts": [5]}, "must be a list of strings"),
            ({"prompts": None}, "must be a list"), ({"stop": "x"}, "--stop 'x': must be a list"), ({"stop": [""]}, "--stop"),
            ({"tokens": 2.5}, "--tokens 2.5: must be an integer"), ({"top_k": 1.5}, "--top-k"), ({"seed": 0.5}, "--seed"),
            ({"temperature": "hot"}, "--temperature"), ({"top_p": "1"}, "--top-p"), ({"together": 0}, "--together")]),
        (lambda batches, n_bytes: evaluate(model, batches, n_bytes, tokenizer.end), [
            ({"batches": [], "n_bytes": 9}, "nothing to evaluate: 0 labels"), ({"batches": batches, "n_bytes": 0}, "0 bytes")]),
        (lambda **more: optim.learning_rate(1, peak=0.1, steps=10, warmup=5, **more), [
            ({"schedule": "cosin"}, "schedule 'cosin': unknown; allowed: cosine")]),
        (lambda **more: train.pretrain(tiny=True, **more), [
            ({"steps": True}, "--steps True: must be int"), ({"lr": True}, "--lr True: must be float"), ({"stpes": 3}, "--stpes"),
            ({"lr": float("nan")}, "--lr nan"), ({"steps": 0}, "--steps 0"), ({"callbacks": None}, "must be a list")]),
        (lambda **more: method(**more), [
            ({"name": "galore", "scale": float("nan")}, "--scale nan"), ({"name": "full", "rank": 3}, "'rank'; allowed: none"),
            ({"name": "sltrain", "rank": 2.0}, "--rank 2.0"), ({"name": None}, "is unknown")]),
        (lambda path: load_model(path), [({"path": "nowhere"}, "nowhere: not a run"), ({"path": "."}, "not a run")])):
        for given, words in mistakes:
            with pytest.raises(InputError, match=re.escape(words)):
                call(**given)
    assert not list(tmp_path.iterdir())


def test_the_page_names_what_exists():
    for module, name in re.findall(r"`minisl\.(\w+)\.(\w+)\b", PAGE):
        assert hasattr(importlib.import_module(f"minisl.{module}"), name), f"minisl.{module}.{name}"
    for path in re.findall(r"\]\((\w+\.md)\)", PAGE):
        assert (ROOT / "docs" / path).is_file(), path
