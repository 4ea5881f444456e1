"""minisl.train, evaluate and generate, as they are called: what a run leaves behind, and what stopping it must not change."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import minisl
from minisl import checkpoint, evaluate, generate, optim, plot, train
from minisl.autograd import no_grad
from minisl.command import run_command
from minisl.config import parse
from minisl.data import Batches
from minisl.metrics import read

ROOT = Path(minisl.__file__).parents[1]
FILES = ["lock", "loss.png", "metrics.jsonl", "sample.txt"]  # of a run's folder, beside its checkpoints
METHODS = {
    "sltrain": {"learned_scale": True, "accumulate": 2, "clip_norm": 1, "weight_decay": 0.1},  # 2 x 4 x 12 crosses an epoch
    "low_rank": {"schedule": "linear", "parts": 2},
    "full": {"dtype": "float64", "warmup": 0},
}


def job(folder, **changes):
    """Flags of a training job of 12 steps and a fraction of a second; its text and config are written to `folder`."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 6))) for _ in range(20)]
    (folder / "text.txt").write_text("".join(" ".join(rng.choices(words, k=10)) + "\n" for _ in range(24)))
    (folder / "model.json").write_text(json.dumps({"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
                                                   "num_attention_heads": 2, "vocab_size": 257}))
    flags = {"config": folder / "model.json", "data": folder / "text.txt", "tokenizer": "bytes", "seq_len": 16, "batch_size": 4,
             "rank": 4, "delta": 0.1, "steps": 12, "eval_every": 5, "save_every": 5, "out": folder / "run", **changes}
    return [f"--{k.replace('_', '-')}" + ("" if v is True else f"={v}") for k, v in flags.items() if v is not None]


def run_job(folder, code=0, **changes):
    """Train; returns the run's folder."""
    assert run_command(train.main, job(folder, **changes)) == code
    return Path(changes.get("out", folder / "run"))


def resume(run, *flags):
    return run_command(train.main, ["--resume", str(run), *flags])


def at_step(monkeypatch, k, act):
    """Call `act(optimizer)` right after the k-th update."""
    step, done = optim.Optimizer.step, []

    def counted(self):
        step(self)
        done.append(1)
        if len(done) == k:
            act(self)

    monkeypatch.setattr(optim.Optimizer, "step", counted)


def press_ctrl_c(*_):
    signal.raise_signal(signal.SIGINT)


def tensors(run, name="model.safetensors"):
    """name -> array, of the newest checkpoint."""
    return checkpoint.read_tensors(checkpoint.find(run).folder / name)


@contextmanager
def changed_state(run):
    """Yields the state of a run's newest checkpoint, to be changed; the checkpoint is then as if that had been saved."""
    folder = checkpoint.folders(run)[-1]
    state = json.loads((folder / "state.json").read_text())
    yield state
    (folder / "state.json").write_text(json.dumps(state))
    (folder / checkpoint.SUMS).write_text(checkpoint.sums(folder))


def steps(run):
    """The steps of the checkpoints that are there."""
    return [checkpoint.step_of(folder) for folder in checkpoint.folders(run)]


def listing(run):
    """What is in a run's folder, without the checkpoints."""
    return sorted(p.name for p in run.iterdir() if not p.name.startswith("step-"))


def assert_same_run(a, b):
    """Weights, optimizer state and losses of two runs, bit for bit."""
    assert steps(a)[-1] == steps(b)[-1]
    for name in checkpoint.TENSORS:
        left, right = (tensors(run, name) for run in (a, b))
        assert left.keys() == right.keys()
        for key in left:
            assert left[key].dtype == right[key].dtype
            assert np.array_equal(left[key], right[key]), f"{name}: {key}"
    left, right = (read(run / "metrics.jsonl") for run in (a, b))
    assert [{**r, "tokens_per_second": 0} for r in left] == [{**r, "tokens_per_second": 0} for r in right]


@pytest.fixture(autouse=True)
def quick_figure(monkeypatch):
    """Matplotlib takes longer than a run here; only `learned` is drawn."""
    monkeypatch.setattr(plot, "loss_figure", lambda path, *_: path.write_bytes(b"a figure"))


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A run long enough to have learned something."""
    return run_job(tmp_path_factory.mktemp("learned"), steps=60, eval_every=20, lr=0.01)


def test_folder_holds_these_files_and_no_temporary_ones(learned):
    assert listing(learned) == FILES
    assert {p.name for p in checkpoint.folders(learned)[-1].iterdir()} == {*checkpoint.FILES, "SHA256SUMS"}
    assert (learned / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (learned / "sample.txt").read_text().strip()


def test_loss_falls_on_training_and_held_out_text(learned):
    records = read(learned / "metrics.jsonl")
    assert records[0]["loss"] == pytest.approx(math.log(257), abs=0.2)  # knows nothing, and not less than nothing
    assert records[-1]["loss"] < 3.5
    assert records[-1]["val_loss"] < 3.5


def test_metrics_say_what_happened_in_each_step(learned):
    records = read(learned / "metrics.jsonl")
    every = {"step", "loss", "lr", "tokens", "tokens_per_second", "grad_norm", "batch"}
    for n, r in enumerate(records, 1):
        assert r.keys() == every | ({"val_loss", "bits_per_byte", "perplexity"} if n in (20, 40, 60) else set())
        assert (r["step"], r["tokens"], r["batch"]) == (n, n * 4 * 16, n)
        assert r["lr"] == optim.learning_rate(n, peak=0.01, steps=60, warmup=6, schedule="cosine", min_ratio=0.1)
        assert r["tokens_per_second"] > 0
        assert r["grad_norm"] > 0
    assert len(records) == 60
    assert records[-1]["perplexity"] == pytest.approx(math.exp(records[-1]["val_loss"]))


def test_bits_per_byte_is_the_loss_where_a_token_is_a_byte(learned):
    """The held-out text has as many predictions as bytes; a mean over batches, or over tokens and the end mark, differs."""
    record = read(learned / "metrics.jsonl")[-1]
    assert record["bits_per_byte"] == pytest.approx(record["val_loss"] / math.log(2), rel=1e-12)


def test_clipping_changes_the_update_and_not_the_norm_that_is_shown(tmp_path):
    free, clipped = (read(run_job(tmp_path, clip_norm=c, out=tmp_path / str(c)) / "metrics.jsonl") for c in (0, 1e-8))
    assert free[0]["grad_norm"] == clipped[0]["grad_norm"] > 1
    assert free[1]["loss"] != clipped[1]["loss"]


def test_each_batch_is_used_once_and_in_order_over_a_stop(tmp_path, monkeypatch):
    """Rejects: one batch for all steps, an accumulated batch twice, data from the start again after resuming."""
    asked, call = [], Batches.__call__
    monkeypatch.setattr(Batches, "__call__", lambda self, k: asked.append(k) or call(self, k))
    with monkeypatch.context() as patch:
        at_step(patch, 7, press_ctrl_c)
        run_job(tmp_path, 130, accumulate=2)
    assert resume(tmp_path / "run") == 0
    assert asked == list(range(2 * 12))


@pytest.mark.parametrize("method", METHODS)
def test_resumed_after_ctrl_c_equals_never_stopped_bit_for_bit(tmp_path, monkeypatch, capsys, method):
    """Rejects: lost moments or step counts, data from the start again, warm-up again, weights rounded on the way."""
    straight = run_job(tmp_path, method=method, **METHODS[method])
    capsys.readouterr()
    with monkeypatch.context() as patch:
        at_step(patch, 7, press_ctrl_c)
        stopped = run_job(tmp_path, 130, method=method, out=tmp_path / "stopped here", **METHODS[method])
    assert f"stopped at step 7, saved; go on with: python -m minisl.train --resume '{stopped}'" in capsys.readouterr().out
    assert checkpoint.load_state(stopped)["step"] == 7
    assert listing(stopped) == [f for f in FILES if f != "sample.txt"]

    (tmp_path / "model.json").unlink()  # a checkpoint has its own config.json
    assert resume(stopped) == 0
    assert_same_run(straight, stopped)
    assert (straight / "sample.txt").read_text() == (stopped / "sample.txt").read_text()
    assert listing(stopped) == FILES


def test_ctrl_c_in_a_process_saves_and_the_run_goes_on_bit_for_bit(tmp_path):
    flags = {"schedule": "constant", "warmup": 0, "eval_every": 10**6}  # so that a step does not depend on how many follow
    process = subprocess.Popen([sys.executable, "-m", "minisl.train", *job(tmp_path, **flags, steps=10**6)], text=True,
                               cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130, err
    assert f"--resume {tmp_path / 'run'}\n" in out
    assert "Traceback" not in err

    step = checkpoint.load_state(tmp_path / "run")["step"]
    assert step == read(metrics)[-1]["step"] >= 3
    assert resume(tmp_path / "run", f"--steps={step + 3}") == 0
    assert_same_run(tmp_path / "run", run_job(tmp_path, **flags, steps=step + 3, out=tmp_path / "straight"))


def test_second_ctrl_c_while_saving_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    straight = run_job(tmp_path)
    save_file = checkpoint.save_file

    def impatient(arrays, path, metadata):
        save_file(arrays, path, metadata)
        if "step-00000007" in str(path):
            press_ctrl_c()

    with monkeypatch.context() as patch:
        at_step(patch, 7, press_ctrl_c)
        patch.setattr(checkpoint, "save_file", impatient)
        stopped = run_job(tmp_path, 130, out=tmp_path / "stopped")
    assert checkpoint.load_state(stopped)["step"] == 5
    assert not list(stopped.glob(".*"))
    assert resume(stopped) == 0  # steps 6 and 7 are done again, and are not in the metrics twice
    assert_same_run(straight, stopped)


def test_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint_before(tmp_path, monkeypatch, capsys):
    def spoil(optimizer):
        next(iter(optimizer.parameters.values())).data[:] = np.nan

    at_step(monkeypatch, 7, spoil)
    run = run_job(tmp_path, 1)
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "step 8: loss is nan; training stopped, step-00000005 is kept" in line
    assert checkpoint.load_state(run)["step"] == 5
    assert all(np.isfinite(p.data).all() for p in checkpoint.load_model(run).parameters())
    assert [r["step"] for r in read(run / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(("lr", "count", "said"), [
    (1e30, 12, "step 2: loss is"), (1e300, 1, "step 1: validation loss is nan")])
def test_learning_rate_too_large_is_one_line_and_keeps_the_start(tmp_path, capsys, lr, count, said):
    """Also where the last update did it, and no training loss comes after."""
    run = run_job(tmp_path, 1, lr=lr, steps=count)
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert said in line
    assert "step-00000000 is kept" in line
    assert steps(run) == [0]


def test_two_batches_of_4_accumulated_equal_one_of_8(tmp_path):
    """Rejects: gradients summed instead of averaged, the same batch twice, an update per batch."""
    accumulated = run_job(tmp_path, dtype="float64", accumulate=2)
    whole = run_job(tmp_path, dtype="float64", batch_size=8, out=tmp_path / "whole")
    for name in checkpoint.TENSORS:
        left, right = (tensors(run, name) for run in (accumulated, whole))
        for key in left:
            np.testing.assert_allclose(left[key], right[key], rtol=0, atol=1e-12, err_msg=key)
    for a, b in zip(read(accumulated / "metrics.jsonl"), read(whole / "metrics.jsonl"), strict=True):
        assert (a["loss"], a["tokens"]) == (pytest.approx(b["loss"], abs=1e-12), b["tokens"])


@pytest.mark.parametrize("method", METHODS)
def test_load_model_gives_the_trained_model_back(tmp_path, monkeypatch, method):
    kept, save = [], checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda run, config, tokenizer, model, *rest: (
        kept.append(model) or save(run, config, tokenizer, model, *rest)))
    run = run_job(tmp_path, method=method, **METHODS[method])
    ids = np.arange(32).reshape(2, 16)
    with no_grad():
        trained, loaded = (model(ids).data for model in (kept[-1], checkpoint.load_model(run)))
    assert trained.dtype == loaded.dtype
    assert np.array_equal(trained, loaded)


@pytest.mark.parametrize("way", [{"activation_checkpointing": True}, {"algorithm": "factored"}, {"algorithm": "materialised"},
                                 {"backend": "numpy"}, {"parts": 3}], ids=str)
def test_how_it_is_computed_does_not_change_what_is_learned(tmp_path, way):
    a, b = run_job(tmp_path, dtype="float64"), run_job(tmp_path, dtype="float64", out=tmp_path / "other", **way)
    for left, right in zip(read(a / "metrics.jsonl"), read(b / "metrics.jsonl"), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-10)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_number_of_threads_does_not_change_a_bit(tmp_path, parts):
    assert_same_run(*(run_job(tmp_path, parts=parts, threads=n, out=tmp_path / str(n)) for n in (1, 2)))


@pytest.mark.parametrize("flags", [{}, {"per_layer": True}, {"clip_norm": 0.5}], ids=str)
def test_gradients_that_are_all_zero_unsaid(flags, tmp_path, monkeypatch, capsys):
    """Dead or blown-up weights have no gradient: the loss is a number, and nothing is learned."""
    def kill(optimizer):
        for name in ("lm_head.weight", "model.norm.weight"):
            optimizer.parameters[name].data[:] = 0

    at_step(monkeypatch, 3, kill)
    run_job(tmp_path, **flags)
    [line] = [line for line in capsys.readouterr().err.splitlines() if "every gradient is exactly 0" in line]
    assert line.startswith("step 4: ")


def test_zero_given_is_not_a_flag_left_out():
    """Rejects `if value`: seed 0 would train seed 42, and warmup 0 would warm up."""
    settings, given = parse(["--tiny", "--seed=0", "--warmup=0", "--lr=0", "--alpha=0"])
    assert (settings.seed, settings.warmup, settings.lr, settings.alpha) == (0, 0, 0, 0)
    assert given == {"tiny", "seed", "warmup", "lr", "alpha", "method_options"}


def test_aliases_of_the_public_script_are_the_same_flags():
    settings, _ = parse(["--tiny", "--peft_model=low_rank", "--sp_ratio=0.2", "--num_training_steps=7", "--max_length=9"])
    assert (settings.method, settings.delta, settings.steps, settings.seq_len) == ("low_rank", 0.2, 7, 9)


def test_runs_without_out_count_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = [flag for flag in job(tmp_path, steps=1) if not flag.startswith("--out")]
    assert [run_command(train.main, argv) for _ in range(2)] == [0, 0]
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["001-sltrain", "002-sltrain"]


def test_config_may_name_its_length_as_the_public_script_does(tmp_path):
    argv = job(tmp_path, steps=1)
    config = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**config, "max_sequence_length": 40}))
    assert run_command(train.main, argv) == 0
    assert checkpoint.load_model(tmp_path / "run").config.max_position_embeddings == 40


def run_and_read(capsys, command, *argv):
    """What a command prints to stdout."""
    capsys.readouterr()
    assert run_command(command.main, [str(a) for a in argv]) == 0
    return capsys.readouterr().out


def test_evaluate_repeats_the_loss_of_the_last_step(learned, capsys):
    record = read(learned / "metrics.jsonl")[-1]
    out = run_and_read(capsys, evaluate, learned)
    assert "step 60" in out
    for name in ("val_loss", "bits_per_byte", "perplexity"):
        assert f"{name:14} {record[name]:.4f}" in out


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_evaluate_does_not_depend_on_the_batch_size(learned, capsys, batch_size):
    """Rejects: a mean of batch means, a last batch dropped or its padding counted."""
    assert run_and_read(capsys, evaluate, learned, "--batch-size", batch_size) == run_and_read(capsys, evaluate, learned)


def test_evaluate_uses_all_of_a_given_file_as_one_document(learned, capsys, tmp_path):
    """Rejects a file cut for validation as in training: another end mark, and an end of spaces lost."""
    text = "abc def\n" * 30 + " " * 20
    (tmp_path / "a b.txt").write_text(text)
    out = run_and_read(capsys, evaluate, learned, "--data", tmp_path / "a b.txt")
    model, tokenizer = checkpoint.load_model(learned), checkpoint.load_tokenizer_of(learned)
    ids = np.array([tokenizer.end, *tokenizer.encode(text)])
    nats = 0.0
    with no_grad():
        for start in range(0, len(ids) - 1, 16):
            row = ids[start : start + 17]
            logits = model(row[None, :-1]).data[0].astype(np.float64)
            nats += (np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(row) - 1), row[1:]]).sum()
    assert f"{len(text)} bytes" in out
    assert float(out.split("val_loss")[1].split()[0]) == pytest.approx(nats / len(text), abs=1e-4)


def test_generate_is_a_function_of_its_seed(learned, capsys):
    first, again, other = (run_and_read(capsys, generate, learned, "--tokens=40", f"--seed={s}") for s in (1, 1, 2))
    assert first == again != other


def test_temperature_0_is_greedy_as_without_a_cache(learned, capsys):
    model, tokenizer = checkpoint.load_model(learned), checkpoint.load_tokenizer_of(learned)
    ids = [tokenizer.end, *tokenizer.encode("ab")]
    with no_grad():
        for _ in range(12):
            ids.append(int(model(np.array([ids])).data[0, -1].argmax()))
    assert tokenizer.end not in ids[1:]
    flags = learned, "--prompt=ab", "--tokens=12"
    expected = tokenizer.decode(ids[1:]) + "\n"
    assert run_and_read(capsys, generate, *flags, "--temperature=0") == expected
    assert run_and_read(capsys, generate, *flags, "--temperature=1e-300") == expected
    assert run_and_read(capsys, generate, *flags, "--temperature=5", "--top-k=1") == expected
    assert run_and_read(capsys, generate, *flags, "--temperature=5") != expected


def test_prompt_starts_a_document(learned, capsys, monkeypatch):
    """Rejects leaving out the end mark that stands before each document in training."""
    seen, right, tokenizer = [], generate.Sequence, checkpoint.load_tokenizer_of(learned)
    monkeypatch.setattr(generate, "Sequence", lambda ids, rng: seen.append(list(ids)) or right(ids, rng))
    run_and_read(capsys, generate, learned, "--prompt=ab", "--tokens=1")
    assert seen == [[tokenizer.end, *tokenizer.encode("ab")]]


def test_generate_goes_on_beyond_the_longest_sequence(learned, capsys):
    out = run_and_read(capsys, generate, learned, "--tokens=100", "--temperature=0", "--prompt", "ab " * 50)
    assert out.startswith("ab " * 50)
    assert len(out) > 200


def test_output_that_the_terminal_cannot_show_is_escaped(learned):
    done = subprocess.run([sys.executable, "-m", "minisl.generate", str(learned), "--prompt=é", "--tokens=2"],
                          env={**os.environ, "PYTHONIOENCODING": "ascii"}, cwd=ROOT, text=True, capture_output=True)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)  # what it took
    assert done.stdout.startswith("\\xe9")


def test_help_says_defaults_that_are_zero(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    assert "largest gradient norm; 0 does not clip (default: 0.0)" in " ".join(capsys.readouterr().out.split())


def test_a_sample_has_no_control_characters(tmp_path):
    """Of a model that has learned nothing, whose bytes are any."""
    text = (run_job(tmp_path, steps=1, lr=0) / "sample.txt").read_text()
    assert all(c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f") for c in text)


def test_a_model_from_elsewhere_sees_as_far_as_it_is_trained(tmp_path):
    run = run_job(tmp_path, method="full", steps=1)
    folder = checkpoint.folders(run)[-1]
    further = run_job(tmp_path, method="full", steps=1, out=tmp_path / "further", from_hf=folder, seq_len=40, config=None)
    assert checkpoint.find(further).config.max_position_embeddings == 40
