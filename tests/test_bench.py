"""The benchmark asks what it says it asks: turns, fits, bytes; and it runs."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from minisl import Tensor, kernels, optim
from minisl.autograd import ops
from minisl.backend import generator
from minisl.bench import __main__ as bench
from minisl.bench import calibrate, child, layer, measure, scaling, step
from minisl.command import run_command
from minisl.kernels import cost
from minisl.memory import __main__ as memory
from minisl.memory.measure import measure as measure_memory
from minisl.memory.measure import saved_bytes
from minisl.methods import build_model
from minisl.nn import LlamaConfig

needs_numba = pytest.mark.skipif(not kernels.numba_status()[0], reason=kernels.numba_status()[1])
OPTIONS = {"rank": 4, "delta": 0.1, "alpha": 8.0, "learned_scale": False, "algorithm": "auto"}


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(measure, "PAUSE", 0)


def test_candidates_take_turns():
    calls = []
    timings = measure.in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, turns=3, least=0)
    assert "".join(calls) == "aabb" * 3  # a call to warm up, then the one that counts
    assert {name: len(t.seconds) for name, t in timings.items()} == {"a": 3, "b": 3}


def test_slow_candidates_are_called_less_often(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock.now)
    calls = []

    def slow():
        calls.append(clock.now)
        clock.now += 2.0

    [timing] = measure.in_turn({"slow": slow}, turns=9).values()
    assert len(calls) == 4  # one to warm up, three turns
    assert timing.median == 2.0


def test_median_and_spread():
    timing = measure.Timing([4.0, 1.0, 2.0, 3.0, 5.0])
    assert timing.median == 3.0
    assert timing.spread == pytest.approx(0.5, abs=0.01)


def test_fit_finds_the_constants_that_made_the_times():
    right = {"g": 2e-12, "s": 3e-11, "c": 4e-11, "w": 5e-10, "o": 1e-4}
    sizes = [(a, n, width, out, r, nnz) for a in ("materialised", "factored") for n in (64, 512, 4096)
             for width, out, r, nnz in ((128, 344, 32, 1000), (512, 512, 128, 7000), (768, 300, 256, 100))]
    rows = [(*s, sum(right[k] * v for k, v in cost.features(*s).items())) for s in sizes]
    found = calibrate.fit(rows)
    assert found == pytest.approx(right, rel=1e-6)
    for row in rows:
        assert calibrate.expected(found, row) == pytest.approx(row[-1])


@needs_numba
def test_calibration_is_kept_and_decides(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MINISL_COST", str(tmp_path / "deep" / "cost.json"))
    monkeypatch.setattr(calibrate, "GRID", [(n, 32, 48, 8, 0.1) for n in (16, 64, 256)])
    monkeypatch.setattr(calibrate, "NUMPY_GRID", calibrate.GRID)
    cost.calibration.cache_clear()
    assert run_command(bench.main, ["--calibrate"]) == 0
    kept = json.loads((tmp_path / "deep" / "cost.json").read_text())
    cost.calibration.cache_clear()
    assert cost.constants("cpu") == cost.CONSTANTS["cpu"] | kept["cpu"]
    cost.calibration.cache_clear()
    assert "--algorithm auto decides by it" in capsys.readouterr().out


@needs_numba
def test_calibration_that_cannot_be_kept_is_not_measured(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINISL_COST", str(tmp_path / "file" / "cost.json"))
    monkeypatch.setattr(calibrate, "measured", None)
    assert run_command(bench.main, ["--calibrate"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "cost.json: cannot be written" in line


@needs_numba
def test_layer_rows(monkeypatch):
    monkeypatch.setattr(layer, "SHAPES", ((24, 16, 4),))
    monkeypatch.setattr(layer, "candidates", lambda width, out, r: candidates(width, out, r, 40))
    lines = []
    rows = layer.bench({"gemm": 1e9}, lines.append)
    assert [r["what"] for r in rows][:4] == ["minisl", "minisl, materialised", "NumPy dense", "NumPy and SciPy, factored"]
    assert rows[2]["of_dense"] == 1.0
    assert len(lines) == 2 + len(rows)


candidates = layer.candidates


@needs_numba
def test_a_child_steps_when_told_to(monkeypatch):
    with step.process("minisl", "tiny", "sltrain") as ask:
        first, second = ask(), ask()
    assert second["loss"] < first["loss"]
    assert second["seconds"] > 0
    assert second["peak"] is None or second["peak"] > 1e7


@needs_numba
def test_time_inside_kernels_adds_up_to_less_than_the_step():
    model = build_model(LlamaConfig(16, 24, 1, 2, vocab_size=32), "sltrain", OPTIONS, np.random.default_rng(0))
    ids = np.random.default_rng(1).integers(0, 32, (2, 9))
    spent = {}
    with kernels.using("cpu"), step.timed(spent):
        child.minisl_step(model, ids[:, :-1], ids[:, 1:], 1)()
    whole = spent.pop("step")
    assert {"linear_cross_entropy", "factored_forward", "attention_backward", "adamw"} <= spent.keys() | {"factored_forward"}
    assert 0 < sum(spent.values()) < whole
    assert all(getattr(kernels.numba_status()[0].module, name).__name__ == name for name in step.FUNCTIONS)  # as it was


@pytest.mark.parametrize(("argv", "message"), [
    (["--only", "everything"], "invalid choice"), (["--out", "{file}"], "cannot be written"), (["--fast"], "unrecognized")])
def test_bad_input_is_one_line(argv, message, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run_command(bench.main, [a.format(file=tmp_path / "file") for a in argv]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


def test_without_numba_there_is_nothing_to_time(monkeypatch, capsys):
    monkeypatch.setattr(bench, "numba_status", lambda: (None, "Numba is not installed (pip install numba)"))
    assert run_command(bench.main, []) == 2
    assert "Numba is not installed" in capsys.readouterr().err


# The memory meter

def test_saved_bytes_counts_each_array_once():
    x = Tensor(np.ones((10, 10), np.float32), requires_grad=True)
    model = SimpleNamespace(parameters=lambda: [x])
    y = x.exp()  # keeps y: 400 bytes
    loss = (y * y + y.reshape(100).reshape(10, 10) * x).sum()  # y twice, x is a parameter
    assert saved_bytes(loss, model) == 400


def test_outputs_that_can_be_rebuilt_are_not_kept():
    rng = np.random.default_rng(0)
    a, b = (Tensor(rng.standard_normal((8, 16)), requires_grad=True) for _ in range(2))
    w = Tensor(rng.standard_normal((5, 16)), requires_grad=True)
    model = SimpleNamespace(parameters=lambda: [a, b, w])
    loss = ops.linear(ops.swiglu(a, b), w).sum()
    assert saved_bytes(loss, model) == 0
    loss.backward()
    kept = ops.swiglu(a, b).data
    np.testing.assert_array_equal(w.grad, np.ones((8, 5)).T @ kept)


@pytest.mark.parametrize("backend", ["cpu", "numpy"], indirect=True)
def test_meter(backend):
    model = build_model(LlamaConfig(32, 48, 2, 2, vocab_size=64), "sltrain", OPTIONS, generator(0, "init"))
    ids = np.random.default_rng(1).integers(0, 64, (4, 17))
    found = {}
    for checkpointing in (False, True):
        model.model.activation_checkpointing = checkpointing
        optimizer = optim.AdamW(model.named_parameters(), 1e-3)
        found[checkpointing] = measure_memory(model, optimizer, lambda: model.loss(ids[:, :-1], ids[:, 1:], 1 / 64))
    for result in found.values():
        assert result["weights"] == 4 * model.num_parameters()
        assert result["optimizer"] == 8 * model.num_parameters()
        assert result["peak"] == sum(result[kind] for kind in memory.KINDS)
    assert found[True]["activations"] < found[False]["activations"]


@needs_numba
def test_what_the_graph_keeps():
    """A block: 6 D + 2 F + 7 r numbers a token, 2 for the norms, H for attention; the end: 2 D + 1 and the head's gradient."""
    config, options = LlamaConfig(32, 48, 2, 2, vocab_size=64), OPTIONS | {"algorithm": "factored"}
    model = build_model(config, "sltrain", options, generator(0, "init"))
    ids = np.random.default_rng(1).integers(0, 64, (4, 17))
    with kernels.using("cpu"):
        kept = saved_bytes(model.loss(ids[:, :-1], ids[:, 1:]), model)
    assert kept == pytest.approx(4 * (64 * (2 * (6 * 32 + 2 * 48 + 7 * 4 + 2 + 2) + 2 * 32 + 1) + 64 * 32), rel=0.05)


def test_memory_command(capsys):
    assert run_command(memory.main, ["--tiny", "--batch-size", "2", "--seq-len", "16"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[1:7]] == list(memory.KINDS)
    assert run_command(memory.main, ["--tiny", "--rank", "0"]) == 2


@needs_numba
def test_expected_memory_is_close(monkeypatch):
    model, ids, labels = scaling.build(512, 128, 32, 0.03)
    optimizer = optim.AdamW(model.named_parameters(), 1e-3)
    with kernels.using("cpu"):
        found = measure_memory(model, optimizer, lambda: model.loss(ids, labels, 1 / labels.size))
    assert scaling.expected_bytes(model, labels.size) == pytest.approx(found["peak"], rel=0.25)


def test_importing_the_bench_needs_no_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert measure.torch_or_none() is None
