"""Several processes train what one would: real ones, started by mpiexec. What they do and check is in `distributed_job.py`."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import distributed_job
import numpy as np
import pytest
from gpu import needs_compiler
from mutation import title

from minisl import Tensor, distributed, exchange
from minisl.bench import __main__ as bench_command
from minisl.bench import distributed as bench
from minisl.command import run_command
from minisl.distributed import Alone, join, started
from minisl.errors import InputError
from minisl.plot import timeline_figure

pytest.importorskip("mpi4py", reason="pip install 'minisl[mpi]'")
HERE = Path(__file__).parent
MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
pytestmark = pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec; pip install 'minisl[mpi]'")

WITH_4 = ("full", "overlap", "resumed_by_others", "sharded", "words")
CHECKS = [(name, 2) for name in distributed_job.CHECKS] + [(f"check_{name}", 4) for name in WITH_4]


def environment():
    names = [n for n in os.environ if n.startswith(("PMI", "MPI", "OMPI", "HYDRA"))]
    path = os.pathsep.join(map(str, (HERE.parent, HERE)))
    return {k: v for k, v in os.environ.items() if k not in names} | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1",
                                                                      "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}


def start(n, *argv):
    return subprocess.Popen([MPIEXEC, "-n", str(n), sys.executable, *map(str, argv)], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env=environment())


def mpi(n, what, **job):
    """(exit code, stdout, stderr) of n processes."""
    running = start(n, HERE / "distributed_job.py", what, json.dumps(job))
    try:
        out, err = running.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        running.terminate()
        pytest.fail(f"{n} processes hang: {running.communicate()}")
    return running.returncode, out, err


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """what, n -> what n processes have found, asked once."""
    known = {}

    def ask(what, n):
        if (what, n) not in known:
            out = tmp_path_factory.mktemp("mpi") / "found.json"
            code, said, err = mpi(n, what, checks=[name for name, k in CHECKS if k == n], out=str(out))
            assert (code, err) == (0, "")
            assert said == "rank 0 speaks\n"
            known[what, n] = json.loads(out.read_text())
        return known[what, n]

    return ask


@pytest.mark.parametrize(("check", "n"), CHECKS)
def test_of_several_processes(check, n, results):
    assert results("checks", n)[check] == [""] * n


@pytest.mark.parametrize("i", range(len(distributed_job.MUTANTS)), ids=lambda i: title(*distributed_job.MUTANTS[i][:3]))
def test_rejects(i, results, killed):
    name = title(*distributed_job.MUTANTS[i][:3])
    killed[name] = results("mutants", 2)[str(i)]
    assert killed[name]
    assert not results("mutants", 2)["none"], "as they are shipped, the checks pass"


# One process that fails ends all


def test_help_is_shown_once():
    assert mpi(2, "run", fail="help") == (0, "usage: ...\n", "")


@pytest.mark.parametrize(("how", "code", "line"), [
    ("flags", 2, "error: --lr -1: must be positive"),
    ("flags of one", 2, "error: process 1 of 2: corpus.txt: no such file"),
    ("drift", 1, "error: the weights have drifted apart: those of process 1 of 2 are not those of process 0")])
def test_error_of_all_is_shown_once(how, code, line):
    found, out, err = mpi(2, "run", fail=how, steps=4)
    assert (found, err.splitlines()) == (code, [line])
    assert out == ("" if "flags" in how else "rank 0 speaks\n")


@pytest.mark.parametrize(("how", "code", "line"), [
    ("exception", 1, "error: process 1 of 2: ZeroDivisionError: nothing was divided"),
    ("input", 2, "error: process 1 of 2: no such weights"), ("exit", 3, ""), ("kill", 9, "Killed (signal 9)")])
def test_failing_process_ends_all(how, code, line):
    found, out, err = mpi(2, "run", fail=how, steps=10**6)
    assert found == code
    assert line in out + err
    assert ("Traceback" in err) == (how == "exception")


def test_abort_never_returns_whatever_mpi_does(monkeypatch):
    def end(code):
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", end)
    group = object.__new__(distributed.MPI)
    group.rank, group.size = 1, 2
    group.library = SimpleNamespace(COMM_WORLD=SimpleNamespace(Abort=lambda code: None))
    with pytest.raises(SystemExit) as ended, group.guard():
        raise InputError("no such weights")
    assert ended.value.code == 2


def test_stop_is_agreed_on_and_signals_reach_all(tmp_path):
    program = tmp_path / "program.py"
    program.write_text("""if True:
        import itertools, os, signal, sys, time
        from minisl.distributed import join
        group, asked = join(), []
        signal.signal(signal.SIGTERM, lambda *_: group.rank == 1 and asked.append(1))
        os.write(1, b"ready\\n")
        for step in itertools.count():
            time.sleep(0.01)
            if group.total(bool(asked))[0]:
                os.write(1, b"stopped at %d\\n" % step)
                sys.exit(0)
    """)
    with start(2, program) as running:
        assert [running.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        running.send_signal(signal.SIGTERM)
        out, err = running.communicate(timeout=600)
    first, second = out.splitlines()
    assert first == second
    assert (running.returncode, err) == (0, "")


# Started in other ways


def test_alone_without_mpiexec(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    group = join("cuda")
    assert type(group) is Alone
    exchange = group.exchange([("w", Tensor(np.ones(2), requires_grad=True))], shard=True)
    exchange.arm(), exchange.finish(), exchange.share_weights()
    assert (group.total(1, 2.5), group.broadcast(3), group.gather(4), exchange.bytes) == ([1.0, 2.5], 3, [4], 0)
    assert group.together(lambda a, b: a + b, 1, b=2) == group.first(lambda a, b: a + b, 1, b=2) == 3
    assert exchange.gather_state({"a": 1}) == exchange.own_part({"a": 1}) == {"a": 1}


def test_import_leaves_mpi4py_alone():
    program = "import sys, minisl.distributed; minisl.distributed.join(); print('mpi4py' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], env=environment(), text=True, capture_output=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.parametrize(("variables", "n"), [
    ({}, 1), ({"PMI_SIZE": "4"}, 4), ({"OMPI_COMM_WORLD_SIZE": "3"}, 3), ({"SLURM_NTASKS": "8"}, 1),
    ({"SLURM_NTASKS": "8", "PMIX_RANK": "0"}, 8), ({"PMI_SIZE": "1"}, 1)])
def test_launchers(variables, n, monkeypatch):
    for name in (*distributed.SIZES, *distributed.RANKS, "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert started() == n


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("missing", [True, False])
def test_without_the_right_mpi_one_process_says_so(missing, rank, monkeypatch, capsys):
    monkeypatch.setenv("PMI_SIZE", "4")
    monkeypatch.setenv("PMI_RANK", str(rank))
    if missing:
        monkeypatch.setitem(sys.modules, "mpi4py", None)
    distributed.mpi.cache_clear()
    if rank:
        with pytest.raises(SystemExit) as stopped:
            join()
        assert stopped.value.code == 2
        return
    assert run_command(lambda argv: join()) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "mpiexec has started 4 processes" in line
    assert "pip install 'minisl[mpi]'" in line
    assert ("mpi4py sees 1" in line) != missing


@pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's")
def test_processes_bound_to_cores_share_none():
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core")
    program = ("import os; from minisl.distributed import join; rank = int(os.environ['PMI_RANK']); "
               "os.sched_setaffinity(0, [sorted(os.sched_getaffinity(0))[rank]]); os.write(1, b'%d\\n' % join().threads())")
    assert start(2, "-c", program).communicate(timeout=600) == ("1\n1\n", "")


# NCCL, with a stand-in for CuPy whose arrays are on the host


@needs_compiler
@pytest.mark.parametrize("shard", [False, True])
def test_gpus_add_up_as_one(shard, tmp_path):
    found = []
    for n in (1, 2):
        code, _, err = mpi(n, "run", device="cuda", dtype="float32", steps=2, shard=shard, rows=2, length=4,
                              out=str(tmp_path / "out"))
        assert (code, err) == (0, "")
        found.append(json.loads((tmp_path / "out").read_text()))
    one, two = found
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=1e-6)
    np.testing.assert_allclose(two["norms"], one["norms"], rtol=1e-6)
    assert two["held"] < (0.6 if shard else 1.1) * one["held"]


def test_more_processes_than_gpus():
    code, _, err = mpi(2, "run", device="cuda", gpus=1)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "2 processes on" in err
    assert "allowed is one process for each GPU" in err


def test_one_error_for_bad_combination():
    with pytest.raises(InputError, match="--shard-optimizer: not with --per-layer"):
        exchange.Exchange(None, [], shard=True, per_layer=True)


# The benchmark


def test_bench_reads_latency_bandwidth_and_time():
    sums = [[4, 1e-5 + 4e-9], [4096, 1.0], [4_000_000, 1e-5 + 4e-3]]
    assert bench.latency_and_bandwidth(sums) == pytest.approx((1e-5, 1e9))
    assert bench.modelled(0.5, 1, [], [], 2) == (0.5, 0)
    assert bench.modelled(0.5, 2, [10**6, 2 * 10**6], sums, 2) == pytest.approx((0.5, 2e-5 + 3e-3))
    assert bench.modelled(0.5, 4, [10**6], sums, 2) == pytest.approx((1.0, 1e-5 + 1e-3))


def test_bytes_of_the_papers_sizes():
    """Of 7B LLaMA's 6.74 billion weights SLTrain trains 3.14; a ring of two sends each byte once."""
    assert bench.gradient_bytes("full", "7b") == 4 * 6_738_415_616
    assert bench.gradient_bytes("sltrain", "7b") / 4e9 == pytest.approx(3.14, abs=0.01)
    assert bench.on_paper("60m", "sltrain", 2, 1e9)[1] == pytest.approx(bench.gradient_bytes("sltrain", "60m") / 1e9)
    assert bench.on_paper("60m", "full", 1, 1e9)[1] == 0
    computes = [bench.on_paper("7b", method, n, 1e9)[0] * bench.RATE for method in ("full", "sltrain") for n in (1, 64)]
    assert computes[0] == pytest.approx(64 * computes[1]) == pytest.approx(6 * 6_738_415_616 * bench.BATCH)
    own = 8 * 1024 * 32 * (4 * 4096**2 + 3 * 4096 * 11008)  # of every GPU, however many there are
    assert [computes[2] - computes[0], computes[3] - computes[1]] == pytest.approx([own, own])


def test_bench_of_two_processes(tmp_path, monkeypatch):
    """What the children find, and the figure of it; small models and NumPy alone."""
    program = tmp_path / "program.py"
    program.write_text("""if True:
        import sys
        from contextlib import nullcontext
        from minisl import kernels
        from minisl.bench import distributed as bench
        from minisl.nn import LlamaConfig
        bench.TIMED, bench.TURNS, bench.STEPS = LlamaConfig(128, 344, 2, 2, vocab_size=512), 2, 3
        kernels.running = lambda *_: kernels.using("numpy")
        bench.child(sys.argv[1])
    """)
    found = {}
    for n in (1, 2):
        done = start(n, program, tmp_path / "found.json")
        assert done.communicate(timeout=600) == ("", "")
        found[n] = json.loads((tmp_path / "found.json").read_text())
    monkeypatch.setattr(bench, "PROCESSES", (1, 2))
    monkeypatch.setattr(bench, "asked", found.get)
    lines = []
    rows = bench.bench(None, lines.append)
    assert all(r["equal"] for r in rows if r["what"] == "same")
    steps = {(r["method"], r["processes"]): r for r in rows if r["what"] == "step"}
    assert steps["full", 2]["sent"] == steps["full", 2]["payload"] > steps["sltrain", 2]["payload"] > 0
    assert steps["full", 1]["sent"] == 0
    for row in rows:
        if row["what"] == "timeline":
            early, total = bench.overlap(row["ranks"])
            assert total >= early > total / 2
    timeline_figure(tmp_path / "timeline.png", rows, "two processes")
    assert (tmp_path / "timeline.png").stat().st_size > 10_000


def test_bench_without_mpi4py(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert "distributed" not in bench_command.here()
    with pytest.raises(InputError, match="--only distributed: mpi4py is not installed"):
        bench.mpiexec()
