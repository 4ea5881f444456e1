"""`mpiexec -n N python -m minisl.train`: the same run as one process, whoever writes, fails or is told to stop."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_distributed import MPIEXEC, environment
from test_train import FILES, ROOT, job, listing, read, steps, tensors

from minisl import checkpoint

pytest.importorskip("mpi4py", reason="pip install 'minisl[mpi]'")
pytestmark = pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec; pip install 'minisl[mpi]'")
SHARED = {"batch_size": 2, "steps": 20, "eval_every": 10, "save_every": 10, "clip_norm": 1}  # of each of two processes


def start(n, argv, program=("-m", "minisl.train")):
    return subprocess.Popen([MPIEXEC, "-n", str(n), sys.executable, *map(str, (*program, *argv))], text=True, cwd=ROOT,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment() | {"TQDM_DISABLE": "1"})


def together(n, argv, code=0, **more):
    """(stdout, lines on stderr) of n processes that end with this code, in time."""
    process = start(n, argv, **more)
    try:
        out, err = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        process.terminate()
        pytest.fail(f"{n} processes hang: {process.communicate()}")
    assert process.returncode == code, err
    assert "Traceback" not in err
    return out, [line for line in err.splitlines() if line and not line.startswith("no Numba")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The batch of two processes, by one."""
    folder = tmp_path_factory.mktemp("alone")
    together(1, job(folder, **SHARED | {"batch_size": 4}))
    return folder / "run"


def assert_near(one, other, rel=1e-6):
    """The same losses, norms, tokens and weights."""
    left, right = (read(run / "metrics.jsonl") for run in (one, other))
    assert [(r["step"], r["tokens"], r["batch"]) for r in left] == [(r["step"], r["tokens"], r["batch"]) for r in right]
    for a, b in zip(left, right, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=rel)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
        assert a.get("val_loss") == (pytest.approx(b["val_loss"], rel=rel) if "val_loss" in b else None)
    for name in checkpoint.TENSORS:
        mine, right = tensors(one, name), tensors(other, name)
        assert mine.keys() == right.keys()
        for key in mine:
            assert mine[key].dtype == right[key].dtype
            np.testing.assert_allclose(mine[key], right[key], rtol=1e-3, atol=1e-5, err_msg=key)


@pytest.mark.parametrize(("n", "flags"), [
    (2, {}), (4, {"batch_size": 1}), (2, {"shard_optimizer": True}), (2, {"accumulate": 2, "batch_size": 1}),
    (2, {"parts": 2})], ids=str)
def test_the_run_is_that_of_one_process(tmp_path, alone, n, flags):
    """Rejects: gradients not added, or added twice; the batch of all by each; validation summed twice; a norm of one's own."""
    if "accumulate" in flags:  # two batches of one sequence each: the same rows in another shape
        alone = tmp_path / "accumulated"
        together(1, job(tmp_path, **SHARED | {"batch_size": 2, "accumulate": 2, "out": alone}))
    out, said = together(n, job(tmp_path, **SHARED | flags))
    run = tmp_path / "run"
    assert said == []
    assert out.count(f"{run}: sltrain") == 1
    assert listing(run) == FILES
    assert_near(run, alone)
    assert "bytes_sent" in read(run / "metrics.jsonl")[-1]


def test_bytes_that_are_sent_are_said_beside_those_of_full_rank(tmp_path):
    out, _ = together(2, job(tmp_path, **SHARED | {"steps": 2}))
    record, model = read(tmp_path / "run" / "metrics.jsonl")[-1], checkpoint.load_model(tmp_path / "run")
    assert record["bytes_sent"] == 4 * model.num_parameters()  # 2 (N-1)/N of the gradients
    assert "2 processes, 4 sequences a batch; each sends 0.04394 MB an update, 0.0537 MB in full rank" in out


def test_a_run_goes_on_with_another_number_of_processes(tmp_path, alone):
    """1, 4, 2: the batch stays what it was."""
    assert together(1, job(tmp_path, **SHARED | {"batch_size": 4, "steps": 7, "schedule": "constant", "warmup": 0}))
    straight = tmp_path / "straight"
    assert together(1, job(tmp_path, **SHARED | {"batch_size": 4, "schedule": "constant", "warmup": 0, "out": straight}))
    for n, until in ((4, 13), (2, 20)):
        together(n, ["--resume", tmp_path / "run", f"--steps={until}", *["--shard-optimizer"] * (n == 4)])
    left, right = (read(run / "metrics.jsonl") for run in (tmp_path / "run", straight))
    assert [r["loss"] for r in left] == pytest.approx([r["loss"] for r in right], rel=1e-6)
    _, said = together(8, ["--resume", tmp_path / "run", "--steps=30"], 2)
    assert said == [f"error: --resume {tmp_path / 'run'}: has 4 sequences a batch, too few for 8 processes"]
    _, said = together(2, ["--resume", tmp_path / "run", "--steps=30", "--batch-size=3"], 2)
    assert said == [f"error: --resume {tmp_path / 'run'}: that run has --batch-size 4, it cannot go on with 3"]


@pytest.mark.parametrize(("flags", "word"), [
    (["--rank=0"], "--rank 0"), (["--data=nowhere"], "nowhere"), (["--colour=1"], "--colour"),
    (["--shard-optimizer", "--method=switchlora"], "switchlora"), (["--shard-optimizer", "--per-layer"], "--per-layer")])
def test_bad_flags_are_one_line(tmp_path, flags, word):
    _, [line] = together(2, [*job(tmp_path, **SHARED | {"clip_norm": 0}), *flags], 2)
    assert line.startswith("error: ")
    assert word in line
    assert not (tmp_path / "run").exists()


def test_resume_auto_with_another_number_is_the_same_command(tmp_path):
    for n, until in ((2, 5), (1, 9), (4, 12)):
        together(n, [*job(tmp_path, **SHARED | {"steps": until, "schedule": "constant", "warmup": 0}), "--resume=auto"])
    records = read(tmp_path / "run" / "metrics.jsonl")
    assert [r["tokens"] for r in records] == [4 * 16 * n for n in range(1, 13)]


def test_help_is_said_once():
    out, _ = together(2, ["--help"])
    assert out.count("usage: ") == 1


def test_sigterm_to_mpiexec_saves_and_the_run_goes_on(tmp_path):
    process = start(2, job(tmp_path, **SHARED | {"steps": 10**6, "eval_every": 10**6}))
    log = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= 3):
        time.sleep(0.02)
    for pid in children(process.pid):  # as a queue does, which signals every process of the job
        os.kill(pid, signal.SIGTERM)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 143, err
    assert "stopped at step " in out
    assert steps(tmp_path / "run")[-1] == read(log)[-1]["step"]


def children(pid):
    """The processes below one that train."""
    found, waiting = [], [pid]
    while waiting:
        below = Path(f"/proc/{waiting[0]}/task/{waiting.pop(0)}/children").read_text().split()
        waiting += map(int, below)
        found += [int(p) for p in below if Path(f"/proc/{p}/cmdline").read_text().startswith(sys.executable)]
    return found


FAILING = """
import sys
from minisl import train
from minisl.command import run_command
from minisl.distributed import join
update = train.Trainer.update

def failing(self, step):
    if (self.group.rank, step) == (1, 3):
        raise ZeroDivisionError("on purpose")
    return update(self, step)

train.Trainer.update = failing
sys.exit(run_command(train.main))
"""


def test_one_that_fails_ends_all_with_its_error(tmp_path):
    (tmp_path / "failing.py").write_text(FAILING)
    process = start(2, job(tmp_path, **SHARED), program=(tmp_path / "failing.py",))
    _, err = process.communicate(timeout=600)
    assert process.returncode == 1
    assert [l for l in err.splitlines() if "Error:" in l][1:] == ["error: process 1 of 2: ZeroDivisionError: on purpose"]
    assert checkpoint.load_state(tmp_path / "run")["step"] == 0


PRETRAIN = """
import sys
from minisl import train
from minisl.config import parse
settings, given = parse(sys.argv[1:])
train.pretrain(**{name: getattr(settings, name) for name in given - {"method_options"}})
"""


def test_pretrain_in_a_script_that_fails_in_one_ends_all(tmp_path):
    """Without a guard of its own; and rollbacks, which all make alike, do not."""
    (tmp_path / "script.py").write_text(FAILING.rpartition("sys.exit")[0] + PRETRAIN)
    process = start(2, job(tmp_path, **SHARED), program=(tmp_path / "script.py",))
    _, err = process.communicate(timeout=600)
    assert process.returncode == 1
    assert [l for l in err.splitlines() if "Error:" in l][1:] == ["error: process 1 of 2: ZeroDivisionError: on purpose"]


SPOILED = """
import sys
from minisl import train
from minisl.command import run_command
update, n = train.Trainer.update, []

def spoiled(self, step):
    record = update(self, step)
    n.append(1)
    return record | ({"loss": float("nan")} if len(n) % 2 else {})

train.Trainer.update = spoiled
sys.exit(run_command(train.main))
"""


def test_rollbacks_are_made_by_all(tmp_path):
    """More of them in all than are allowed from one checkpoint."""
    (tmp_path / "spoiled.py").write_text(SPOILED)
    _, said = together(2, job(tmp_path, **SHARED | {"steps": 13, "save_every": 1, "on_nan": "rollback"}),
                         program=(tmp_path / "spoiled.py",))
    assert len(said) == 13
    assert all("back to step" in line for line in said)
    assert steps(tmp_path / "run")[-1] == 13


def test_one_that_is_killed_ends_all(tmp_path):
    process = start(2, job(tmp_path, **SHARED | {"steps": 10**6, "eval_every": 10**6, "save_every": 3}))
    log = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= 7):
        time.sleep(0.02)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    process.communicate(timeout=600)
    assert process.returncode not in (0, None)
    assert checkpoint.load_state(tmp_path / "run")["step"] >= 3


def test_a_loss_that_is_no_number_is_said_once(tmp_path):
    _, [line] = together(2, job(tmp_path, **SHARED | {"lr": 1e30}), 1)
    assert line.startswith("error: step 2: ")
