"""What a machine or a user's environment lacks: nothing that training does not need may stop it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from test_hf import dense_weights, write_folder
from test_train import job, quick_figure, run_command  # noqa: F401  quick_figure is used by itself

import minisl
from minisl import checkpoint, doctor, evaluate, generate, kernels, train
from minisl.config import plain, settings_from
from minisl.data import make_tokenizer
from minisl.errors import InputError
from minisl.nn import LlamaConfig

ROOT = Path(minisl.__file__).parents[1]


def as_function(flags):
    """The command with these flags, as a call of `pretrain`."""
    settings, given = train.parse(flags)
    train.pretrain(**{name: getattr(settings, name) for name in given - {"method_options"}})
    return 0


@pytest.mark.parametrize("start", [lambda flags: run_command(train.main, flags), as_function])
def test_closed_stderr_and_stdout_cost_nothing(tmp_path, monkeypatch, start):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert start(job(tmp_path, steps=1)) == 0
    sys.stdout.close()
    sys.stderr.close()
    assert checkpoint.load_state(tmp_path / "run")["step"] == 1


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell closes the streams")
def test_no_file_gets_the_number_of_a_closed_stream(tmp_path):
    code = ("from minisl.command import run_command\n"
            "run_command(lambda argv: open('number', 'w').write(str(open('number', 'w').fileno())) and 0, [])")
    subprocess.run(["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, code], cwd=tmp_path, check=True,
                   env={"PYTHONPATH": str(ROOT)})
    assert int((tmp_path / "number").read_text()) > 2


# A run that was begun in another folder


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A function that begins a run in one folder with these relative paths, and goes to another."""
    home, elsewhere = tmp_path / "a [home]", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (home / "texts").mkdir(parents=True)

    def begin(**changes):
        flags = job(home, config="model.json", out="run", steps=2, **changes)
        text = (home / "text.txt").read_text()
        (home / "texts" / "one.txt").write_text(text)
        (home / "texts.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in text.splitlines()))
        monkeypatch.chdir(home)
        assert run_command(train.main, flags) == 0
        monkeypatch.chdir(elsewhere)
        return home / "run"

    return begin


@pytest.mark.parametrize("data", ["text.txt", "texts", "t*/one.txt", "texts.jsonl"])
def test_run_goes_on_from_another_folder(begun, data, capsys):
    run = begun(data=data)
    assert run_command(evaluate.main, [str(run)]) == 0
    assert run_command(train.main, ["--resume", str(run), "--steps", "3"]) == 0
    assert run_command(train.main, ["--resume", str(run), "--steps", "4"]) == 0
    assert checkpoint.load_state(run)["step"] == 4
    assert capsys.readouterr().err == ""


def test_another_text_of_that_name_here_is_not_the_runs(begun, capsys):
    run = begun(data="text.txt")
    Path("text.txt").write_text("Another text.\n" * 99)
    assert run_command(evaluate.main, [str(run)]) == 0
    (run.parent / "text.txt").write_text("Another text.\n")
    capsys.readouterr()
    assert run_command(evaluate.main, [str(run)]) == 2
    assert "text.txt is not the text this run was trained on" in capsys.readouterr().err


def test_resume_takes_the_text_under_another_name_and_no_other(begun, capsys):
    run = begun(data="text.txt")
    (run.parent / "text.txt").rename("moved.txt")
    resume = ["--resume", str(run), "--config", str(run.parent / "model.json"), "--data"]
    assert run_command(train.main, [*resume, "moved.txt", "--steps", "3"]) == 0
    Path("other.txt").write_text("Another text.\n" * 99)
    assert run_command(train.main, [*resume, "other.txt", "--steps", "4"]) == 2
    assert "other.txt is not the text this run was trained on" in capsys.readouterr().err
    assert run_command(evaluate.main, [str(run)]) == 0
    assert run_command(train.main, ["--resume", str(run), "--config", "another.json", "--steps", "4"]) == 2
    assert "it cannot go on with another.json" in capsys.readouterr().err


# Settings from Python


def test_paths_and_numbers_of_numpy_are_what_a_command_line_has(tmp_path):
    job(tmp_path)
    given = {"config": tmp_path / "model.json", "data": (tmp_path / "text.txt",), "tokenizer": Path("bytes"), "seq_len": 16,
             "steps": np.int64(1), "lr": np.float32(0.5), "seed": np.array(3), "per_layer": np.bool_(True),
             "batch_size": np.uint8(4), "rank": 4, "method": "sst", "every": np.int16(9), "out": tmp_path / "run",
             "max_spike": np.float64(9)}
    state = checkpoint.load_state(train.pretrain(**given))
    wanted = {name: plain(value) for name, value in given.items() if name != "every"}
    assert state["settings"] == state["settings"] | wanted | {"method_options": {"every": 9}}
    assert wanted["data"] == [str(tmp_path / "text.txt")]
    assert settings_from(given | {"data": tmp_path / "text.txt"}).data == wanted["data"]
    assert settings_from(given | {"tokenizer": "bytes", "norms_of": tmp_path, "schedule": "refined"}).norms_of == str(tmp_path)


@pytest.mark.parametrize(("name", "value"), [("steps", True), ("lr", True), ("steps", np.float64(1)), ("config", b"model.json"),
                                             ("data", [3]), ("data", {"a"}), ("lr", np.float32("nan"))])
def test_what_is_no_path_or_number_is_still_refused(name, value):
    with pytest.raises(InputError, match=f"--{name}"):
        settings_from({"tiny": True, name: value})


# A model of transformers whose tokenizer has an id more than the model


@pytest.mark.parametrize(("token", "special", "code"), [("<pad>", True, 0), ("<pad>", False, 2), ("</s>", True, 0)])
def test_a_token_added_to_a_finished_model(tmp_path, capsys, token, special, code):
    config = LlamaConfig(16, 24, 1, 2, vocab_size=257)
    folder = write_folder(tmp_path / "theirs", dense_weights(config), config, eos_token_id=[0, 2])
    inner = make_tokenizer("bytes", [], 257).inner
    inner.add_tokens([tokenizers.AddedToken(token, special=special)])
    inner.save(str(folder / "tokenizer.json"))
    flags = job(tmp_path, steps=1, method="full", from_hf=folder, config=None, tokenizer=None, rank=None, delta=None)
    assert run_command(train.main, flags) == code
    if code:
        assert "has 258 ids, the model's vocab_size is 257; give another tokenizer" in capsys.readouterr().err
        return
    run = str(tmp_path / "run")
    assert run_command(train.main, ["--resume", run, "--steps", "2"]) == 0
    assert run_command(evaluate.main, [run]) == 0
    assert run_command(generate.main, [run, "--tokens", "3", "--prompt", f"a {token} b"]) == 0


# The doctor


def test_doctor_tells_of_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("MINISL_COST", str(tmp_path / "cost.json"))
    assert doctor.caches_line() == f"{tmp_path / 'minisl'}; --algorithm auto decides by constants built in"
    (tmp_path / "cost.json").write_text('{"cpu": {"g": 1e-12}}')
    assert doctor.caches_line().endswith("constants measured here")
    (tmp_path / "cost.json").write_text("{")
    assert "cost.json: not a calibration" in doctor.caches_line()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert doctor.caches_line().endswith("; fix: set XDG_CACHE_HOME to one that can")
    monkeypatch.setattr(doctor, "can_be_written", lambda folder: False)
    assert "this folder cannot be written; fix" in doctor.disk_line()


@pytest.mark.skipif(not kernels.numba_status()[0], reason=kernels.numba_status()[1])
def test_doctor_tells_of_numba(monkeypatch):
    monkeypatch.setattr("numba.core.caching.CompileResultCacheImpl._locator_classes", [])
    assert doctor.numba_line().endswith("no folder for them can be written; fix: set NUMBA_CACHE_DIR to one that can")
    monkeypatch.setattr("numba.config.DISABLE_JIT", 1)
    monkeypatch.setattr(doctor, "numba_status", kernels.numba_status.__wrapped__)
    assert doctor.numba_line() == "none: NUMBA_DISABLE_JIT is set; fix: unset it; training runs on NumPy, slower"
