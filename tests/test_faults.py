"""What a machine can do to a run: full disks, damaged files, signals, clocks, a folder that is gone. Training goes on or stops
with one line, and the checkpoints before are as they were."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from test_train import ROOT, assert_same_run, at_step, job, listing, quick_figure, read, resume, run_job, steps, tensors  # noqa: F401

from minisl import checkpoint, files, metrics, summary, train
from minisl.command import run_command
from minisl.errors import InputError
from minisl.lock import alone_in


@pytest.fixture(autouse=True)
def quick_sample(monkeypatch):
    monkeypatch.setattr(summary, "sample", lambda *_: "a text")


def errors(capsys):
    """The lines on stderr but for the progress bar's."""
    return [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line and "step/s" not in line
            and "?step" not in line and not line.startswith("no Numba")]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The job, undisturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minisl.plot.loss_figure", lambda path, *_: path.write_bytes(b"a figure"))
        return run_job(tmp_path_factory.mktemp("straight"), keep=9)


KEPT = "its lines are kept and tried again"


class Failing:
    """A call that fails from the n-th time on, so many times."""

    def __init__(self, call, first, times, number):
        self.call, self.first, self.times, self.number, self.calls = call, first, times, number, 0

    def __call__(self, *args, **options):
        self.calls += 1
        if self.first <= self.calls < self.first + self.times:
            raise OSError(self.number, os.strerror(self.number))
        return self.call(*args, **options)


OWNERS = {"save_file": checkpoint, "write_text": Path, "fsync": os, "mkdir": Path, "replace": os}  # of calls that a save makes


def check_save_fails(folder, straight, capsys, patch, where, number, k):
    """The k-th such call within the second save fails: one line, nothing half there, training goes on to the same end."""
    save, failing = checkpoint.save, Failing(getattr(OWNERS[where], where), k, 1, number)

    def second_save(run, config, tokenizer, model, moments, state):
        if state["step"] != 5:
            return save(run, config, tokenizer, model, moments, state)
        before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and "step-" in str(p)}
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(OWNERS[where], where, lambda *args, **options: failing(*args, **options))  # a function is bound to self
            try:
                return save(run, config, tokenizer, model, moments, state)
            finally:
                assert failing.calls >= k
                assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and "step-" in str(p)} == before
                assert not list(run.glob(".*"))

    patch.setattr(checkpoint, "save", second_save)
    run = run_job(folder, keep=9)
    [line] = errors(capsys)
    assert f"the checkpoint of step 5 could not be written ({os.strerror(number)}" in line
    assert "step-00000000 is kept" in line
    assert steps(run) == [0, 10, 12]
    assert_same_run(straight, run)


@pytest.mark.parametrize(("where", "number", "k"), [
    ("save_file", errno.ENOSPC, 1), ("save_file", errno.EIO, 2), ("write_text", errno.ENOSPC, 1), ("write_text", errno.EDQUOT, 3),
    ("write_text", errno.EIO, 4), ("fsync", errno.EIO, 1), ("fsync", errno.EIO, 7), ("mkdir", errno.EROFS, 1),
    ("mkdir", errno.EACCES, 1), ("replace", errno.EIO, 1)])
def test_a_save_that_fails_costs_nothing_but_itself(tmp_path, straight, capsys, monkeypatch, where, number, k):
    check_save_fails(tmp_path, straight, capsys, monkeypatch, where, number, k)


def test_a_last_save_that_fails_is_an_error(tmp_path, capsys, monkeypatch):
    save = checkpoint.save

    def full(run, config, tokenizer, model, moments, state):
        if state["step"] == 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(run, config, tokenizer, model, moments, state)

    monkeypatch.setattr(checkpoint, "save", full)
    run = run_job(tmp_path, 1)
    assert errors(capsys)[-1] == f"error: {run}: step 12 could not be saved, the checkpoints before are kept"
    assert steps(run)[-1] == 10
    monkeypatch.undo()
    assert resume(run) == 0
    assert steps(run)[-1] == 12


def test_a_folder_that_takes_no_checkpoint_is_found_out_before_the_first_step(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(checkpoint, "save_file", Failing(None, 1, 99, errno.ENOSPC))
    monkeypatch.setattr(train.Trainer, "update", lambda *_: pytest.fail("a step was made"))
    run = run_job(tmp_path, 1)
    assert errors(capsys) == ["error: [Errno 28] No space left on device"]
    assert not run.exists()


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="a small file system is mounted: Linux, as root")
def test_a_disk_that_is_really_full(tmp_path, capsys, straight):
    """A file system with room for 2.7 checkpoints of those to come; then it gets room, and the run goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    checkpoints = sum(p.stat().st_size for p in straight.glob("step-00000012/*"))
    room = f"size={int(2.7 * checkpoints)}"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", room, "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        run = run_job(tmp_path, 1, out=disk / "run", save_every=1, keep=9)
        said = errors(capsys)
        assert "No space left on device" in said[0] or "os error 28" in said[0]
        assert "step 12 could not be saved" in said[-1]
        assert 2 <= len(steps(run)) <= 4
        for folder in checkpoint.folders(run):
            checkpoint.Checkpoint(folder)
        assert not list(run.glob(".*"))
        subprocess.run(["mount", "-o", f"remount,size={40 * checkpoints}", disk], check=True)
        assert resume(run) == 0
        assert_same_run(straight, run)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_metrics_that_cannot_be_written_are_written_later(tmp_path, straight, capsys, monkeypatch):
    write, calls = metrics.Metrics.write, []

    def full(self):
        calls.append(1)
        if 3 <= len(calls) <= 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self)

    monkeypatch.setattr(metrics.Metrics, "write", full)
    run = run_job(tmp_path, keep=9)
    assert errors(capsys) == [f"{run}/metrics.jsonl: cannot be written (No space left on device); {KEPT}"]
    assert_same_run(straight, run)


def check_half_written_line(folder):
    """What a full disk has cut short is completed, not repeated."""
    log = metrics.Metrics(folder / "m.jsonl")
    record = {"step": 1, "loss": 2.0, "tokens": 3}

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def tell(self):
            return self.file.tell()

        def write(self, data):
            if room:
                return self.file.write(data[:room.pop()])
            raise OSError(errno.ENOSPC, "full")

    room = [7]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "open", lambda *args, **options: Full(open(*args, **options)), raising=False)
        log.append(record)
    assert (folder / "m.jsonl").stat().st_size == 7
    log.append({**record, "step": 2})
    assert [r["step"] for r in metrics.read(folder / "m.jsonl")] == [1, 2]
    with open(folder / "m.jsonl", "ab") as file:  # somebody else's bytes
        file.write(b"rubbish")
    log.append({**record, "step": 3})
    assert [r["step"] for r in metrics.read(folder / "m.jsonl")] == [1, 2, 3]


def test_half_written_line(tmp_path):
    check_half_written_line(tmp_path)


def test_a_folder_that_is_removed_is_made_again(tmp_path, straight, capsys, monkeypatch):
    at_step(monkeypatch, 7, lambda _: shutil.rmtree(tmp_path / "run"))
    run = run_job(tmp_path, keep=9)
    assert steps(run) == [10, 12]
    assert errors(capsys) == [f"{run}/metrics.jsonl: cannot be written (No such file or directory); {KEPT}"]
    for name in checkpoint.TENSORS:
        left, right = tensors(straight, name), tensors(run, name)
        assert all(np.array_equal(left[key], right[key]) for key in left)
    assert [r["step"] for r in read(run / "metrics.jsonl")] == [7, 8, 9, 10, 11, 12]


# Damage


def flip(path, rng):
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def cut(path, rng):
    path.write_bytes(path.read_bytes()[:rng.randrange(path.stat().st_size)])


def check_damage(run, straight, damage, n, seed=0):
    """n times a random file of the run, damaged: what is found is whole, and what was written at that step."""
    rng, kept, passed = random.Random(seed), {p: p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}, 0
    files = [p for p in kept if kept[p] and "step-" in str(p)]
    for _ in range(n):
        path, said = rng.choice(files), []
        damage(path, rng)
        found = checkpoint.find(run, said.append)
        hit = path.parent == checkpoint.folders(run)[-1]
        assert found.folder == checkpoint.folders(run)[-2 if hit else -1]
        assert bool(said) == hit
        if hit:
            assert said[0].startswith(f"{path.parent}")
            assert said[0].endswith(f"passed over, {found.folder.name} is used")
            passed += 1
        right = checkpoint.read_tensors(straight / found.folder.name / "model.safetensors")
        mine = checkpoint.read_tensors(found.folder / "model.safetensors")
        assert all(np.array_equal(mine[name], right[name]) for name in right)
        path.write_bytes(kept[path])
    assert passed > n // 10


@pytest.mark.parametrize("damage", [flip, cut])
def test_200_damages_of_every_file_of_the_checkpoints(tmp_path, straight, damage):
    check_damage(shutil.copytree(straight, tmp_path / "run"), straight, damage, 200)


@pytest.mark.parametrize("damage", [flip, cut])
def test_damaged_runs_go_on_to_the_same_end_or_say_why_not(tmp_path, straight, capsys, damage):
    """Any file of a run that stopped at step 10."""
    stopped = shutil.copytree(straight, tmp_path / "stopped")
    shutil.rmtree(stopped / "step-00000012")
    rng, whole = random.Random(1), {p: p.read_bytes() for p in sorted(stopped.rglob("*")) if p.is_file()}
    refused = 0
    for path in [p for p in whole if whole[p]]:
        run = shutil.copytree(stopped, tmp_path / "run")
        damage(run / path.relative_to(stopped), rng)
        capsys.readouterr()
        code = resume(run)
        if code:
            assert (code, path.name) == (2, "metrics.jsonl")
            [line] = errors(capsys)
            assert "metrics.jsonl: line " in line
            refused += 1
        else:
            for name in checkpoint.TENSORS:
                left, right = tensors(straight, name), tensors(run, name)
                assert all(np.array_equal(left[key], right[key]) for key in left)
        shutil.rmtree(run)
    assert refused <= 1


def test_no_file_of_a_checkpoint_names_a_path(straight):
    """SHA256SUMS is compared, not followed: a name in it that leads elsewhere is damage."""
    text = checkpoint.sums(straight / "step-00000012")
    assert text.splitlines() == [f"{files.sha256(straight / 'step-00000012' / name)}  {name}" for name in checkpoint.FILES]


# Signals, clocks, company


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.usefixtures("hangup")
def test_a_signal_in_the_middle_of_a_save_lets_it_end(tmp_path, straight, monkeypatch, number, code):
    save_file, sent = checkpoint.save_file, []

    def interrupted(arrays, path, metadata):
        save_file(arrays, path, metadata)
        if "step-00000005" in str(path) and not sent:
            sent.append(signal.raise_signal(number))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", interrupted)
        run = run_job(tmp_path, code, keep=9)
    assert steps(run)[-1] in (5, 6)
    assert not list(run.glob(".*"))
    assert resume(run) == 0
    assert_same_run(straight, run)


def test_sigterm_in_a_process(tmp_path):
    command = [sys.executable, "-m", "minisl.train"]
    process = subprocess.Popen([*command, *job(tmp_path, steps=10**6, save_every=10)], text=True, cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    log = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= 3):
        time.sleep(0.02)
    # Another one in its folder is refused meanwhile
    other = subprocess.run([*command, "--resume", tmp_path / "run"], text=True, cwd=ROOT, capture_output=True)
    assert (other.returncode, other.stderr) == (
        2, f"error: --resume {tmp_path / 'run'}: process {process.pid} is at work there; wait for it, or choose another folder\n")
    process.terminate()
    out, err = process.communicate(timeout=600)
    assert process.returncode == 143, err
    assert f"--resume {tmp_path / 'run'}\n" in out
    assert "Traceback" not in err
    assert steps(tmp_path / "run")[-1] == read(log)[-1]["step"]


def test_a_hangup_that_is_ignored_stays_ignored(tmp_path, straight, monkeypatch):
    """As by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        at_step(monkeypatch, 7, lambda _: signal.raise_signal(signal.SIGHUP))
        assert_same_run(straight, run_job(tmp_path, keep=9))
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_clocks_that_jump_decide_nothing(tmp_path, straight, monkeypatch):
    """Back by a year after step 7, and the newest checkpoint's files are the oldest: the newest is the one of the last step."""
    real = time.time
    with monkeypatch.context() as patch:
        at_step(patch, 7, lambda _: patch.setattr(time, "time", lambda: real() - 3e7) or signal.raise_signal(signal.SIGTERM))
        run = run_job(tmp_path, 143, keep=9)
        for n, folder in enumerate(checkpoint.folders(run)):
            for path in (*folder.iterdir(), folder):
                os.utime(path, (real() - 1e6 * n, real() - 1e6 * n))
        assert resume(run) == 0
    assert_same_run(straight, run)


def test_one_process_a_folder(tmp_path, capsys):
    with alone_in(tmp_path / "run"):
        assert run_command(train.main, job(tmp_path)) == 2
    assert errors(capsys) == [f"error: --out {tmp_path / 'run'}: process {os.getpid()} is at work there; wait for it, or choose "
                              "another folder"]
    assert listing(tmp_path / "run") == ["lock"]
    run_job(tmp_path)


def test_resume_auto(tmp_path, straight, capsys, monkeypatch):
    """Begins, goes on, and has nothing to do: one command for a queue that starts it again and again."""
    with monkeypatch.context() as patch:
        at_step(patch, 7, lambda _: signal.raise_signal(signal.SIGTERM))
        run = run_job(tmp_path, 143, resume="auto", keep=9)
    assert steps(run)[-1] == 7
    assert run_command(train.main, job(tmp_path, resume="auto", keep=9)) == 0
    assert_same_run(straight, run)
    capsys.readouterr()
    assert run_command(train.main, job(tmp_path, resume="auto")) == 0
    assert capsys.readouterr().out == f"{run}: already at step 12 of 12; give a larger --steps to go on\n"
    assert run_command(train.main, job(tmp_path, resume="auto", lr=0.5)) == 2


def test_pretrain_goes_on_too(tmp_path, straight):
    """With a method's own settings, which are no flags of all methods."""
    flags = {name.replace("-", "_"): value for name, value in (word[2:].split("=", 1) for word in job(tmp_path, method="galore"))}
    numbers = {k: int(v) for k, v in flags.items() if v.isdigit()}
    again = {**flags, **numbers, "data": [flags["data"]], "delta": 0.1, "every": 3, "resume": "auto"}
    assert train.pretrain(**again | {"steps": 6}) == train.pretrain(**again) == tmp_path / "run"
    assert steps(tmp_path / "run")[-1] == 12


def test_resume_auto_without_a_folder_takes_the_newest_of_its_method(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = [flag for flag in job(tmp_path, steps=2) if not flag.startswith("--out")]
    for flags in ([], ["--method=full"], ["--resume=auto"], ["--resume=auto", "--steps=3"]):
        assert run_command(train.main, argv + flags) == 0
    assert [steps(run)[-1] for run in sorted((tmp_path / "runs").iterdir())] == [3, 2]


# What is kept


def check_kept(folder, losses, keep, expected):
    """Steps whose checkpoints are there after these validation losses, one a step."""
    losses = iter(losses)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minisl.plot.loss_figure", lambda path, *_: path.write_bytes(b"a figure"))
        patch.setattr(train, "evaluate", lambda *_: {"val_loss": next(losses), "bits_per_byte": 1.0, "perplexity": 1.0})
        run = run_job(folder, steps=6, eval_every=1, save_every=2, keep=keep, out=folder / str(expected))
    assert steps(run) == expected
    return run


def test_the_last_ones_are_kept_and_the_best(tmp_path):
    run = check_kept(tmp_path, [5, 4, 3, 3.5, 3.2, 4], 1, [3, 6])
    assert checkpoint.find(run / "best").state["step"] == 3
    assert checkpoint.find(run).state["best"] == {"step": 3, "val_loss": 3}
    check_kept(tmp_path, [5, 4, 3, 3.5, 3.2, 4], 2, [3, 4, 6])
    check_kept(tmp_path, [6, 5, 4, 3, 2, 1], 2, [5, 6])


def test_the_best_is_one_that_is_there(tmp_path, monkeypatch):
    """Where the save of a better one fails, the one before stays the best, and is kept."""
    losses, save = iter([3, 4, 2, 3, 3, 3]), checkpoint.save

    def full(run, config, tokenizer, model, moments, state):
        if state["step"] == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(run, config, tokenizer, model, moments, state)

    monkeypatch.setattr(checkpoint, "save", full)
    monkeypatch.setattr(train, "evaluate", lambda *_: {"val_loss": next(losses), "bits_per_byte": 1.0, "perplexity": 1.0})
    run = run_job(tmp_path, steps=6, eval_every=1, save_every=6, keep=1)
    assert steps(run) == [1, 6]
    assert checkpoint.find(run / "best").state["step"] == 1


def test_damaged_checkpoints_do_not_push_out_the_good_ones(tmp_path, straight):
    """Rejects: a damaged newer one that counts as the last, so that the one just written is removed."""
    run = shutil.copytree(straight, tmp_path / "run")
    flip(run / "step-00000012" / "state.json", random.Random(0))
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 1, lambda _: signal.raise_signal(signal.SIGTERM))
        assert resume(run, "--keep=1") == 143
    assert steps(run)[-1] == 11
    assert (run / "damaged-step-00000012").is_dir()
    checkpoint.find(run, lambda line: pytest.fail(line))
    assert resume(run) == 0
    assert_same_run(straight, run)


def test_who_is_refused_removes_nothing(tmp_path):
    """Rejects: the folder of the process that holds it, removed by the one that found it held."""
    entered = threading.Event()

    def second():
        with pytest.raises(InputError, match="at work there"), alone_in(tmp_path / "run", worthless=lambda: True):
            pass
        entered.set()

    with alone_in(tmp_path / "run", worthless=lambda: True):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(600)
        assert entered.is_set()
        assert (tmp_path / "run" / "lock").exists()


def test_ctrl_c_in_pretrain_is_ctrl_c_once_all_is_saved(tmp_path, monkeypatch):
    flags = {name.replace("-", "_"): value for name, value in (word[2:].split("=", 1) for word in job(tmp_path))}
    numbers = {k: int(v) for k, v in flags.items() if v.isdigit()}
    at_step(monkeypatch, 3, lambda _: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train.pretrain(**{**flags, **numbers, "data": [flags["data"]], "delta": 0.1})
    assert steps(tmp_path / "run")[-1] == 3


# Losses that are no numbers


def spoil_once(patch, k):
    """The k-th batch has a loss that is no number."""
    update = train.Trainer.update

    def spoiled(self, step):
        record = update(self, step)
        if record["batch"] == k:
            self.model.parameters()[0].data[:] = np.nan
            record["loss"] = float("nan")
        return record

    patch.setattr(train.Trainer, "update", spoiled)


def test_roll_back_goes_on_with_the_batches_after(tmp_path, capsys, monkeypatch):
    spoil_once(monkeypatch, 8)
    run = run_job(tmp_path, on_nan="rollback", keep=9)
    assert "step 8: loss is nan; back to step 5, on with batch 8" in errors(capsys)
    records = read(run / "metrics.jsonl")
    assert [(r["step"], r["batch"]) for r in records] == [(n, n if n <= 5 else n + 3) for n in range(1, 13)]
    assert all(np.isfinite(a).all() for a in tensors(run).values())


def test_roll_back_equals_a_run_that_never_saw_those_batches(tmp_path, monkeypatch):
    """Weights, moments and losses, to the bit."""
    with monkeypatch.context() as patch:
        spoil_once(patch, 8)
        rolled = run_job(tmp_path, on_nan="rollback", keep=9)
    opened = train.open_data

    def skipping(*args, **options):
        data = opened(*args, **options)
        batches = data.batches

        class Skipping:
            def __getattr__(self, name):
                return getattr(batches, name)

            def __call__(self, k):
                return batches(k if k < 5 else k + 3)

        data.batches = Skipping()
        return data

    monkeypatch.setattr(train, "open_data", skipping)
    never = run_job(tmp_path, keep=9, out=tmp_path / "never")
    for name in checkpoint.TENSORS:
        left, right = tensors(rolled, name), tensors(never, name)
        assert all(np.array_equal(left[key], right[key]) for key in left)


def test_rollbacks_end(tmp_path, capsys, monkeypatch):
    """Where every way on goes wrong."""
    update = train.Trainer.update
    monkeypatch.setattr(train.Trainer, "update", lambda self, step: update(self, step) | ({"loss": np.inf} if step == 7 else {}))
    run_job(tmp_path, 1, on_nan="rollback")
    said = errors(capsys)
    assert len(said) == 11
    assert said[-1].startswith("error: step 7: loss is inf, after 10 rollbacks to step 5; training stopped, step-00000005 is ke")
    assert "--on-nan" not in said[-1]


def test_a_decomposition_that_fails_is_rolled_back_too(tmp_path, capsys, monkeypatch):
    update, failed = train.Trainer.update, []

    def failing(self, step):
        if step == 7 and not failed:
            failed.append(1)
            raise np.linalg.LinAlgError("SVD did not converge")
        return update(self, step)

    monkeypatch.setattr(train.Trainer, "update", failing)
    run_job(tmp_path, on_nan="rollback")
    assert "step 7: SVD did not converge; back to step 5, on with batch 6" in errors(capsys)


def test_a_loss_that_is_no_number_is_said_where_no_checkpoint_is_left(tmp_path, capsys, monkeypatch):
    spoil_once(monkeypatch, 8)
    at_step(monkeypatch, 8, lambda _: shutil.rmtree(tmp_path / "run"))
    run_job(tmp_path, 1)
    assert errors(capsys)[-1].startswith("error: step 8: loss is nan; training stopped, no checkpoint is left")


def test_a_spike_counts_as_no_number(tmp_path, capsys, monkeypatch):
    update = train.Trainer.update
    monkeypatch.setattr(train.Trainer, "update", lambda self, step: update(self, step) | ({"loss": 9.0} if step == 7 else {}))
    assert run_job(tmp_path, max_spike=4.0, out=tmp_path / "calm")
    capsys.readouterr()
    run_job(tmp_path, 1, max_spike=2.0)
    [line] = errors(capsys)
    assert line.startswith("error: step 7: loss is 9.000, its recent mean 5.")
    assert "(--max-spike 2)" in line


def test_kills(tmp_path):
    """tests/kills does many more."""
    done = subprocess.run([sys.executable, ROOT / "tests/kills", "--kills", "4", "--steps", "40"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("4 kills, ")
