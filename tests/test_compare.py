"""The comparison: which runs it makes, that it goes on where it was stopped, what it says of them."""

import json
import math
from functools import partial
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
from mutation import mutant_tests
from test_train import changed_state

from minisl import checkpoint, train
from minisl.command import run_command
from minisl.compare import __main__ as compare
from minisl.compare import grid, run, weigh, words
from minisl.compare.grid import Comparison, Entry
from minisl.errors import InputError, NotSavedError

BYTES = {"weights": 4, "indices": 0, "optimizer": 8, "gradients": 4, "activations": 5, "temporaries": 6, "peak": 20}
WEIGHTS = {"parameters": 1, "estimated": BYTES, "measured": BYTES, "tokens_per_second": 7.0}
TEXT = "".join(f"{i} sheep and {i * i} goats went over the hill.\n" for i in range(120))


def job(folder):
    """Flags of a job of eight updates."""
    (folder / "text.txt").write_text(TEXT)
    (folder / "model.json").write_text(json.dumps({"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
                                                   "num_attention_heads": 2, "vocab_size": 257}))
    return ["--config", str(folder / "model.json"), "--data", str(folder / "text.txt"), "--tokenizer=bytes", "--seq-len=16",
            "--batch-size=4", "--rank=4", "--delta=0.1", "--steps=8", "--eval-every=4", "--backend=numpy"]


class Known(Comparison):
    """A comparison whose runs are a function of the learning rate and the seed."""

    def __init__(self, loss_of, rates, seeds=(1, 2, 3), short=None):
        self.short, self.grow = short, 3
        self.entries, self.rates, self.seeds = [Entry("full", ["--tiny"])], sorted(rates), seeds
        self.results, self.loss_of, self.made = {}, loss_of, []

    def result(self, entry, lr, seed, short=None):
        return self.results.get((lr, seed, short))

    def make_all(self):
        """Do what is missing, the first run of a round alone and the others at once."""
        while (todo := self.missing(self.entries[0])) and len(self.made) < 20:
            for key in todo if self.made else todo[:1]:
                loss = self.loss_of(*key[:2])
                self.made.append(key if self.short else key[:2])
                self.results[key] = {"status": "done", "val_loss": loss, "bits_per_byte": loss / 2, "steps": 4, "curve": []} \
                    if loss < math.inf else {"status": "diverged", "steps": 4, "curve": []}
        return self


def valley(bottom):
    return lambda lr, seed: 3 + abs(math.log(lr / bottom)) + seed / 100


def check_grid_inside():
    """The best is between others: the grid with the first seed, then the other seeds at the best."""
    found = Known(valley(0.2), [0.4, 0.1, 0.2]).make_all()
    assert found.made == [(0.1, 1), (0.2, 1), (0.4, 1), (0.2, 2), (0.2, 3)]
    assert found.expected() == (5, 5)


def check_short_runs_choose():
    """Learning rates are chosen by short runs, then every seed makes a whole one."""
    found = Known(valley(0.2), [0.1, 0.2, 0.4], short=7).make_all()
    assert found.made == [(0.1, 1, 7), (0.2, 1, 7), (0.4, 1, 7), (0.2, 1, None), (0.2, 2, None), (0.2, 3, None)]
    assert found.expected() == (6, 6)


def check_grid_grows():
    """Outwards by the ratio of its outermost two, until the best lies inside, three times at most."""
    assert Known(valley(0.025), [0.1, 0.2, 0.4], [1]).make_all().made[3:] == [(0.05, 1), (0.025, 1), (0.013, 1)]
    assert Known(valley(0.8), [0.1, 0.2, 0.4], [1]).make_all().made[3:] == [(0.8, 1), (1.6, 1)]
    assert len(Known(valley(99), [0.1, 0.2, 0.4], [1]).make_all().made) == 6
    assert len(Known(valley(99), [0.1], [1]).make_all().made) == 1


def check_grid_of_diverged():
    """A run that diverged is worse than any other; where all did, no other seeds are tried."""
    found = Known(lambda lr, seed: math.inf if lr > 0.2 or seed == 3 else 3 - lr, [0.1, 0.2, 0.4]).make_all()
    assert found.best(found.entries[0]) == 0.2
    row = found.rows({"full": WEIGHTS})[0]
    assert (row["lr"], row["diverged"], row["tried"]) == (0.2, 1, {"0.1": 1.45, "0.2": 1.4, "0.4": None})
    text = words.report([row])
    assert "1.400 to 1.400, 1 diverged" in text
    assert "0.2 (0.1, 0.2, 0.4 diverged)" in text
    never = Known(lambda *_: math.inf, [0.1, 0.2]).make_all()
    assert len(never.made) == 2
    assert "diverged" in words.report(never.rows({"full": WEIGHTS}))


def check_rows():
    """Means over seeds, the range, the best first, and how far the others' loss is above it in percent."""
    good, bad = (Known(loss, [0.1, 0.2, 0.4]).make_all() for loss in (valley(0.2), lambda *run: 1.1 * valley(0.2)(*run)))
    bad.entries[0].label = "worse"
    rows = [*bad.rows({"worse": WEIGHTS}), *good.rows({"full": WEIGHTS})]
    rows.sort(key=lambda r: r["val_loss"])
    assert rows[0]["method"] == "full"
    np.testing.assert_allclose([rows[0]["val_loss"], rows[0]["bits_per_byte"], *rows[0]["range"], rows[0]["perplexity"]],
                               [3.02, 1.51, 1.505, 1.515, math.exp(3.02)])
    lines = words.report(rows).splitlines()
    assert "| 0.0 % |" in lines[2]
    assert "| 10.0 % |" in lines[3]
    assert lines[5] == "Within 2% of the best loss, the lightest at rest first: `full` (0.00 MB at rest, 0.0 at the peak)."


def test_grid():
    check_grid_inside()
    check_short_runs_choose()
    check_grid_grows()
    check_grid_of_diverged()
    check_rows()


test_mutants = mutant_tests([
    (Comparison.tried, "edge * (edge / inner)", "edge / 10"),
    (Comparison.tried, ", len(rates) - 1: (rates[-1], rates[-2])", ""),
    (Comparison.tried, "if len(rates) > 1 else 0", ""),
    (Comparison.missing, "grid or", "grid +"),
    (Comparison.best, "not in (None, math.inf)", "is not None"),
    (Comparison.loss, 'result.get("val_loss", math.inf)', 'result.get("val_loss", 0)'),
    (Comparison.rows, "math.exp(loss)", "2**loss"),
    (Comparison.rows, "statistics.mean(bits)", "min(bits)"),
    (words.report, "<= CLOSE * least", "< math.inf"),
    (words.outcome, "row['val_loss'] / least - 1", "row['val_loss'] - least"),
    (Comparison.missing, "self.seeds[0], self.short", "self.seeds[0], None"),
], check_grid_inside, check_short_runs_choose, check_grid_grows, check_grid_of_diverged, check_rows)


def test_compares_and_goes_on(tmp_path, capsys, monkeypatch):
    """Two methods, two seeds; again at no cost; one more method later. A run's result is the one of minisl.train alone."""
    monkeypatch.setattr(grid, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(weigh, "step_seconds", lambda settings: 0.01)
    flags = [*job(tmp_path), "--lrs", "0.01", "--seeds", "1", "2", f"--out={tmp_path / 'c'}", "--methods"]
    assert run_command(compare.main, [*flags, "full", "sltrain:rank=2"]) == 0
    out = capsys.readouterr().out
    assert "| `sltrain:rank=2` |" in out
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["compare.json", "compare.md", "curves.png", "job.json", "lock",
                                                                  "perplexity.png", "runs", "weights.json"]
    rows = json.loads((tmp_path / "c/compare.json").read_text())["rows"]
    assert {r["method"]: len(r["curves"]) for r in rows} == {"full": 2, "sltrain:rank=2": 2}
    assert run_command(train.main, [*job(tmp_path), "--method=sltrain", "--rank=2", "--lr=0.01", "--seed=2",
                                    f"--out={tmp_path / 'alone'}"]) == 0
    last = json.loads((tmp_path / "alone/metrics.jsonl").read_text().splitlines()[-1])
    mine = next(r for r in rows if "rank" in r["method"])
    assert mine["curves"]["2"][-1] == [last["tokens"], last["val_loss"], last["bits_per_byte"]]
    monkeypatch.setattr(grid, "one_run", lambda settings, *_: pytest.fail("done before") if settings.method != "low_rank"
                        else run.one_run(settings, *_))
    assert run_command(compare.main, [*flags, "full", "sltrain:rank=2", "low_rank"]) == 0
    assert not list((tmp_path / "c").rglob("*.safetensors"))


class InThisProcess:
    """A pool that computes when asked, where monkeypatching reaches."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *args):
        from concurrent.futures import Future

        future = Future()
        future.set_result(grid.one_run(*args))
        return future


def test_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch):
    """What a run cut short has saved is used: the second half alone is trained."""
    flags = job(tmp_path)
    whole, cut = (Entry("full", flags).settings(0.01, 1) for _ in range(2))
    expected = run.one_run(whole, tmp_path / "whole", False)
    cut.steps = 4
    monkeypatch.setattr(run.metrics, "read", lambda path: pytest.fail("stopped here"))
    with pytest.raises(pytest.fail.Exception):
        run.one_run(cut, tmp_path / "cut", False)
    monkeypatch.undo()
    assert checkpoint.load_state(tmp_path / "cut")["step"] == 4
    with changed_state(tmp_path / "cut") as state:
        state["settings"]["steps"] = 8
    found = run.one_run(Entry("full", flags).settings(0.01, 1), tmp_path / "cut", False)
    assert found["curve"][-1][0] == expected["curve"][-1][0]
    assert found["status"] == "done"
    assert not checkpoint.folders(tmp_path / "cut")


def test_a_last_save_that_fails_is_no_divergence(tmp_path, monkeypatch):
    save = checkpoint.save

    def full(run_, config, tokenizer, model, moments, state):
        if state["step"]:
            raise OSError(28, "No space left on device")
        return save(run_, config, tokenizer, model, moments, state)

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(NotSavedError):
        run.one_run(Entry("full", job(tmp_path)).settings(0.01, 1), tmp_path / "cut", False)
    assert not (tmp_path / "cut/result.json").exists()


def test_streams_are_refused(tmp_path, capsys):
    (tmp_path / "d.jsonl").write_text('{"text": "hello"}\n' * 99)
    assert run_command(compare.main, [*job(tmp_path), f"--data={tmp_path / 'd.jsonl'}", "--lrs=1", "--methods", "full"]) == 2
    assert "held in memory" in capsys.readouterr().err


def test_seconds_become_steps(tmp_path, monkeypatch):
    """As many as fit, the same number for every run of a method; and step_seconds is a time."""
    entry = Entry("full", job(tmp_path))
    monkeypatch.setattr(weigh, "time", SimpleNamespace(perf_counter=partial(next, count(0, 0.25))))
    assert weigh.step_seconds(entry.settings(0.01, 1)) == 0.25
    monkeypatch.setattr(grid, "step_seconds", lambda settings: 0.1)
    comparison = Comparison(tmp_path, [entry], [0.01], [1, 2], seconds=3)
    assert comparison.prepare(entry, 0.01, 1, None)[0].steps == 30
    monkeypatch.setattr(grid, "step_seconds", lambda settings: 99)
    assert comparison.prepare(entry, 0.01, 2, None)[0].steps == 30


@pytest.mark.parametrize(("flags", "words_"), [
    (["--methods"], ["--methods", "expected at least one"]),
    (["--methods", "lora"], ["'lora'", "sltrain"]),
    (["--methods", "full:ranc=3"], ["--ranc"]),
    (["--methods", "galore:steps=3"], ["galore:steps=3: --steps is for all methods alike", "--rank"]),
    (["--methods", "galore:rank=100"], ["galore:rank=100", "1 to 16"]),
    (["--methods", "full", "galore:evry=2"], ["galore:evry=2"]),
    (["--methods", "full:every=2"], ["full:every=2", "a flag of", "galore", "--method full has no flags"]),
    (["--methods", "full", "--lrs", "0", "1e-3"], ["--lrs", "above 0"]),
    (["--methods", "full", "--tune-steps", "9"], ["--tune-steps 9", "--steps 8"]),
    (["--methods", "full", "--grow", "-1"], ["--grow -1"]),
    (["--methods", "full", "--lr=1"], ["--lr", "not for a whole comparison"]),
    (["--methods", "full", "--lrs", "1e-3", "1e-3"], ["--lrs", "given once"]),
    (["--methods", "full", "--lrs", "-1"], ["--lrs"]),
    (["--methods", "full", "--seeds", "-1"], ["--seeds"]),
    (["--methods", "full", "--jobs", "0"], ["--jobs 0", "above 0"]),
    (["--methods", "full", "--tokens", "5", "--seconds", "5"], ["not allowed with"]),
    (["--methods", "full", "--seconds", "nan"], ["--seconds"]),
])
def test_bad_input(tmp_path, capsys, flags, words_):
    assert run_command(compare.main, [*job(tmp_path), f"--out={tmp_path / 'c'}", *flags]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    for word in words_:
        assert word in err
    assert not (tmp_path / "c").exists()


def test_another_job_in_the_folder_is_refused(tmp_path):
    settings = Entry("full", job(tmp_path)).settings(0.01, 1)
    compare.remember(tmp_path, settings, None)
    settings.steps = 9
    with pytest.raises(InputError, match="--steps 8, this one has 9"):
        compare.remember(tmp_path, settings, None)


def test_two_at_once_in_a_folder_are_refused(tmp_path):
    folder = tmp_path / "c"
    with compare.alone_in(folder), pytest.raises(InputError, match="is at work there"), compare.alone_in(folder):
        pass


def test_entries_do_not_share_a_folder(tmp_path):
    """Two that differ in punctuation, or in a rate's seventh digit; and what says the same is the same."""
    one, other = (Entry(f"galore:scale=1e{sign}3", job(tmp_path)) for sign in "+-")
    assert len({e.folder(lr, 1, short) for e in (one, other) for lr in (1e-3, 1.0000001e-3) for short in (None, 4)}) == 8
    assert Entry("galore:every=2,", job(tmp_path)).label == "galore:every=2"


@pytest.mark.parametrize(("content", "file"), [
    ("{}", "result.json"), ('{"status": "done", "val_loss": "x"}', "result.json"), ('{"full": {}}', "weights.json")])
def test_damaged_files_are_named(tmp_path, content, file):
    entry = Entry("full", job(tmp_path))
    path = tmp_path / ("runs/" + entry.folder(0.01, 1, None) if file == "result.json" else "") / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)

    def read():
        Comparison(tmp_path, [entry], [0.01], [1]).result(entry, 0.01, 1)
        weigh.weigh_all([entry], tmp_path, print)

    with pytest.raises(InputError, match=f"{file}: damaged"):
        read()
