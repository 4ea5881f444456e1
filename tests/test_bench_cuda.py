"""The benchmark of the GPU, at toy sizes on the stand-in for CuPy, and on a GPU where there is one: what is compared computes
the same, what is counted is right, and what goes wrong is said and costs nothing else."""

import json
import math
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gpu import fake_cupy, needs_compiler

from minisl.backend import cuda_status, to_numpy
from minisl.bench import __main__ as bench
from minisl.bench import cuda as bench_cuda
from minisl.bench.cuda import gpu as gpu_module
from minisl.bench.cuda import ladders, layer, question, rows, step, table
from minisl.bench.cuda.gpu import Found, Gpu
from minisl.bench.measure import Timing
from minisl.command import run_command
from minisl.kernels.cuda import ladder
from minisl.methods import build_model
from minisl.nn import LlamaConfig

CONFIG = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 50, "rope_theta": 1e4}
VERSIONS = {"python": "3", "numpy": "2", "minisl": "0"}
STAND_IN = pytest.param("stand-in", marks=needs_compiler)


@pytest.fixture(params=[STAND_IN, pytest.param("gpu", marks=pytest.mark.gpu)])
def cupy(request, monkeypatch):
    """CuPy, the stand-in and the real one; PyTorch on the same device, where it is installed."""
    if request.param == "gpu":
        module, why = cuda_status()
        if module is None:
            pytest.skip(why)
        yield module
        return
    try:
        import torch
    except ImportError:
        torch = None
    monkeypatch.setattr(gpu_module, "torch_on_gpu", lambda: (torch, "" if torch else "not installed"))
    monkeypatch.setattr(Gpu, "torch_device", "cpu")
    memory = iter(range(10**6, 10**9, 10**6))
    monkeypatch.setattr(step, "held", lambda torch: (0, 0))
    monkeypatch.setattr(step, "most", lambda torch: (next(memory), next(memory)))
    with fake_cupy() as module:
        yield module


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """Sizes and times that a test has time for."""
    for name, value in {"SPOIL": 1 << 10, "GEMM": 16, "COPY": 1 << 10, "BLOCK": 1 << 8, "BUSY": 0, "TURNS": 2}.items():
        monkeypatch.setattr(gpu_module, name, value)
    for module in (layer, rows):
        monkeypatch.setattr(module, "TOKENS", 64)
        monkeypatch.setattr(module, "MODELS", {"toy": (4, 0.1)})
        monkeypatch.setattr(module, "read_config", lambda model: CONFIG)
    monkeypatch.setattr(rows, "LOGITS", 16)
    monkeypatch.setattr(rows, "LENGTH", 8)
    monkeypatch.setattr(step, "BATCHES", ((2, 8),))
    monkeypatch.setattr(step, "TURNS", 2)
    monkeypatch.setattr(step.child, "build", build)


def build(name, method, sizes):
    options = {"rank": 4, "delta": 0.1, "alpha": 8.0, "learned_scale": False, "algorithm": "auto"}
    model = build_model(LlamaConfig(16, 24, 1, 2, vocab_size=32), method, options, np.random.default_rng(0))
    ids = np.random.default_rng(1).integers(0, 32, (sizes[0], sizes[1] + 1))
    return model, ids[:, :-1].copy(), ids[:, 1:].copy(), 1


def report(cupy, sections, out=None, seconds=math.inf):
    lines = []
    return bench_cuda.report(cupy, sections, out, seconds, VERSIONS, lambda line="": lines.append(line)), lines


# What is counted

def test_layers_of_the_models(monkeypatch):
    monkeypatch.undo()
    assert list(layer.shapes()) == [
        ("60m", 512, 512, 128, 0.03), ("60m", 512, 1376, 128, 0.03), ("1b", 2048, 2048, 512, 0.03), ("1b", 2048, 5461, 512, 0.03),
        ("7b", 4096, 4096, 1024, 0.05), ("7b", 4096, 11008, 1024, 0.05)]


@pytest.mark.parametrize(("op", "right"), [
    ("scatter_add", (7 * (4 + 4 + 4 + 4), 7)),  # place, value, W read and written; an addition each
    ("spmm", (4 * (10 * 3 + 10 * 5 + 10 * 5) + 7 * 8, 2 * 10 * 7)),  # x, y read and written, S
    ("spmm, transposed", (4 * (10 * 5 + 10 * 3 + 10 * 3) + 7 * 8, 2 * 10 * 7)),  # dy, dx read and written, S
    ("sddmm", (4 * (10 * 3 + 10 * 5) + 7 * 8, 2 * 10 * 7)),  # x, dy, places, dvalues
    ("sl_forward", (4 * (10 * 3 + 10 * 5 + 5 * 2 + 2 * 3) + 7 * 8,  # x, y, B, A, S
                    2 * 5 * 3 * 2 + 7 + 2 * 10 * 5 * 3)),  # W, y
    ("sl_backward", (4 * (10 * 3 + 10 * 5 + 10 * 3 + 2 * (5 * 2 + 2 * 3)) + 7 * 12,  # x, dy, dx; B, dB, A, dA; places, v, dv
                     2 * 5 * 3 * 2 + 7 + 2 * 10 * 5 * 3 + 2 * 10 * 5 * 3 + 2 * 5 * 3 * 2 + 2 * 5 * 3 * 2))])  # W, dx, dW, dB, dA
def test_bytes_and_operations(op, right):
    """10 tokens, x of 3 features, y of 5, rank 2, 7 entries."""
    assert ladders.work(op, 10, 3, 5, 2, 7) == right


@pytest.mark.parametrize(("op", "arrays", "operations"), [
    ("rms_norm", 2 + 3, 4 + 10), ("swiglu", 3 + 5, 5 + 10), ("rope", 2 + 2, 3 + 3),  # forward and backward, per element
    ("cross_entropy", 1 + 2, 6), ("adamw", 7, 12), ("attention", 4 + 8, 14 * (8 + 1) / 2)])  # of 8 positions one sees 4.5
def test_bytes_and_operations_of_rows(op, arrays, operations):
    assert rows.work(op, 10, 6) == (4 * 60 * arrays, 60 * operations)


def test_bytes_of_adam8bit():
    assert rows.work("adam8bit", 10, 1)[0] == 10 * (8 + 4 + 2 + 2)  # p, g, and two codes read and written


def test_operations_of_a_layer():
    n, width, out, r, nnz = 10, 3, 5, 2, 7
    assert layer.operations("dense", n, width, out, r, nnz) == 3 * 2 * n * width * out
    assert layer.operations("materialised", n, width, out, r, nnz) == 3 * 2 * n * width * out + (2 + 2) * 2 * out * r * width
    assert layer.operations("factored", n, width, out, r, nnz) == 3 * 2 * n * r * (width + out) + 3 * 2 * n * nnz


# How it is measured

class Clock:
    """A CuPy with nothing but a clock, which calls move on."""

    def __init__(self):
        self.now = 0.0
        clock = self

        class Event:
            def record(self):
                self.at = clock.now

            def synchronize(self):
                pass

        self.cuda = SimpleNamespace(Event=Event, get_elapsed_time=lambda a, b: 1e3 * (b.at - a.at),
                                    memory=SimpleNamespace(OutOfMemoryError=MemoryError),
                                    Device=lambda: SimpleNamespace(mem_info=(1000, 2000)))

    def empty(self, shape, dtype):
        return SimpleNamespace(fill=lambda value: self.takes(1e-5))

    def get_default_memory_pool(self):
        return SimpleNamespace(free_all_blocks=lambda: None)

    def takes(self, seconds):
        self.now += seconds


@pytest.fixture
def clocked(monkeypatch):
    monkeypatch.setattr(gpu_module, "torch_on_gpu", lambda: (None, "not installed"))
    monkeypatch.setattr(gpu_module, "TURNS", 9)
    monkeypatch.setattr(gpu_module, "BUSY", 1e-3)
    clock = Clock()
    return clock, Gpu(clock)


def test_only_the_call_is_measured(clocked):
    clock, gpu = clocked
    assert gpu.fills in (100, 101)  # of 1e-5 s: long enough to queue launches
    before = clock.now
    assert gpu.seconds(lambda: clock.takes(0.25)) == pytest.approx(0.25)
    assert clock.now - before == pytest.approx(0.25 + 1e-3, abs=2e-5)


def test_candidates_take_turns_and_slow_ones_fewer(clocked):
    clock, gpu = clocked
    calls = []

    def takes(name, seconds):
        return lambda n: calls.append(name) or clock.takes(seconds)

    found = gpu.measure({"a": takes("a", 0.01), "b": takes("b", 0.2), "c": takes("c", 9)})
    assert "".join(calls) == "abc" + "abc" * 2 + "a" * 7  # to warm up; turns of all; b and c have had enough
    assert {name: len(f.timing.seconds) for name, f in found.items()} == {"a": 9, "b": 2, "c": 2}
    assert found["b"].seconds == pytest.approx(0.2)


@pytest.mark.parametrize(("each", "tokens"), [(1e-6, 65536), (0.5 / 65536, 65536), (1e-5, 32768), (0.5 / 128, 128), (1, 128)])
def test_slow_candidates_get_fewer_tokens(clocked, each, tokens):
    clock, gpu = clocked
    [found] = gpu.measure({"a": lambda n: clock.takes(n * each)}, 65536, least=128).values()
    assert found.tokens == tokens
    assert found.seconds == pytest.approx(65536 * each)
    assert found.row()["tokens"] == tokens
    assert table.ms(found).startswith("~") == (tokens < 65536)


def test_what_fails_is_noted_and_the_rest_goes_on(clocked):
    clock, gpu = clocked

    def full(n):
        if n > 200:
            raise MemoryError

    found = gpu.measure({"wrong": lambda n: 1 / 0, "full": full, "right": lambda n: clock.takes(1e-3)}, 1024, least=128)
    assert found["wrong"].row() == {"failed": "failed: ZeroDivisionError: division by zero"}
    assert found["full"].row() == {"failed": "no memory"}
    assert [table.ms(found[name]) for name in found] == ["failed", "no memory", "1.00"]
    assert table.ratio(found["right"], found["wrong"]) == ""


def test_tokens_that_fit(clocked):
    _, gpu = clocked  # 1000 bytes are free
    assert [gpu.tokens_that_fit(64, size) for size in (1, 10, 11, 100, 701)] == [64, 64, 32, 4, 1]


def test_a_table_is_markdown():
    lines = []
    told = table.Table(lambda line="": lines.append(line), "times", "a", "b")
    told.row(1, "x")
    assert lines == ["", "**times**", "", "| a | b |", "|---|---|", "| 1 | x |"]
    assert [table.number(x) for x in (12345.6, 99.96, 12.34, 1.234, 0.01234)] == ["12,346", "100.0", "12.3", "1.23", "0.012"]


def found_in(seconds):
    return Found(1, 1, Timing(seconds))


def test_ratio_is_of_medians():
    assert table.ratio(found_in([1, 2, 9]), found_in([4, 4, 4])) == "0.50"
    assert table.ratio(found_in([1]), None) == ""


# What is compared

SPARSE = {"scatter_add", "spmm", "spmm, transposed", "sddmm", "sl_forward", "sl_backward"}



def test_rungs_are_all_rungs():
    asked = question.rungs(lambda n: (ladder.rung("sl_backward_dx"), ladder.rung("attention"), n), "sl_backward_dx", "attention")
    last = ladder.rungs()["sl_backward_dx"] - 1
    assert [call(5) for call in asked.values()] == [(min(k, last), k, 5) for k in range(ladder.rungs()["attention"])]


def close(mine, right):
    mine, right = (host(a) for a in (mine, right))
    np.testing.assert_allclose(mine, right, rtol=2e-4, atol=2e-4 * np.abs(right).max())


def host(array):
    return array.detach().cpu().numpy() if hasattr(array, "detach") else to_numpy(array)


@pytest.mark.parametrize("op", ["rms_norm", "swiglu", "rope", "attention", "cross_entropy"])
def test_rows_and_their_peer_compute_the_same(cupy, op):
    [asked] = getattr(rows, op)(Gpu(cupy), "toy", CONFIG)
    right = asked.calls["rung 0"](asked.tokens // 2)
    for name, call in asked.calls.items():
        got = call(asked.tokens // 2)
        assert len(got) == len(right), name
        for a, b in zip(got, right):
            close(a, b)


def test_sparse_products_and_their_peers_compute_the_same(cupy):
    gpu = Gpu(cupy)
    p = layer.Problem(gpu, "toy", 16, 24, 4, 0.1)
    S = np.zeros((24, 16), np.float32)
    S.flat[to_numpy(p.support.index)] = to_numpy(p.v)
    x, dy = to_numpy(p.x)[:32], to_numpy(p.dy)[:32]
    for operand, transposed, right in ((p.x, False, x @ S.T), (p.dy, True, dy @ S)):
        y = gpu.xp.ones((64, right.shape[1]), "float32")
        ladders.cusparse_spmm(p, operand, y, transposed)(32)
        close(y[:32], 1 + right)
        assert (to_numpy(y)[32:] == 1).all()
    if gpu.torch:
        close(ladders.torch_sddmm(gpu, p)(32).values(), (dy.T @ x).ravel()[to_numpy(p.support.index)])
        before = to_numpy(p.W)
        close(ladders.torch_scatter_add(gpu, p)(32).reshape(24, 16), before + S)
        np.testing.assert_array_equal(to_numpy(p.W), before)  # its own copy
    asked = {q.op: q.calls for q in ladders.sparse_questions(gpu, ("toy", 16, 24, 4, 0.1))}
    assert asked.keys() == SPARSE
    for op in ("sddmm", "sl_forward", "sl_backward"):  # the others add to what is there
        calls = {name: call for name, call in asked[op].items() if name.startswith("rung") or (op, name) == ("sddmm", "cuBLAS")}
        right = as_list(calls["rung 0"](32))
        for call in calls.values():
            for a, b in zip(as_list(call(32)), right, strict=True):
                close(a, b)


def as_list(result):
    return [a for a in result if a is not None] if isinstance(result, tuple) else [result]


def test_layers_compute_the_same(cupy):
    """The public algorithm's peer takes minisl's operands as they are."""
    gpu = Gpu(cupy)
    if gpu.torch is None:
        pytest.skip("PyTorch is not installed")
    p, kept = layer.Problem(gpu, "toy", 16, 24, 4, 0.1), {}
    W = 0.25 * to_numpy(p.B) @ to_numpy(p.A)
    W.flat[to_numpy(p.support.index)] += to_numpy(p.v)

    def run(made, x, dy):
        kept[len(kept)] = made(x)
        return lambda: None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer, "torch_layer", run)
        for name in (layer.PUBLIC, layer.TORCH_DENSE):
            layer.peer(gpu, p, name, gpu.torch.float32)(32)
    close(kept[0], to_numpy(p.x)[:32] @ W.T)
    close(kept[1], to_numpy(p.x)[:32] @ to_numpy(p.W).T)


# The whole of it

def test_everything_is_measured(cupy, tmp_path):
    code, lines = report(cupy, bench.ON_GPU, tmp_path)
    found = json.loads((tmp_path / "bench.json").read_text())
    failed = [row for name in bench.ON_GPU for row in found[name] if "failed" in row]
    assert (code, failed) == (0, [])
    gpu = Gpu(cupy)
    expected = {*layer.ALGORITHMS, layer.DENSE} | ({layer.PUBLIC, layer.TORCH_DENSE} if gpu.torch else set())
    assert {row["what"] for row in found["layer"]} == expected
    assert {row["precision"] for row in found["layer"]} == set(gpu.precisions())
    assert {row["trainer"] for row in found["step"]} == {"minisl", *(["torch"] if gpu.torch else [])}
    ops = {row["op"] for row in found["ops"]}
    assert ops == {*SPARSE, "rms_norm", "swiglu", "rope", "attention", "cross_entropy", "adamw", "adam8bit"}
    for op, count in ladder.rungs().items():
        if op in ops:
            assert {row["what"] for row in found["ops"] if row["op"] == op} >= {f"rung {k}" for k in range(count)}
    assert all(row["ms"] > 0 and row["bytes"] / row["bandwidth"] == pytest.approx(row["ms"] / 1e3)
               for row in found["ops"] if row["what"].startswith("rung"))
    text = (tmp_path / "bench.md").read_text().splitlines()
    assert text == lines[: len(text)]
    heads = [k for k, line in enumerate(text) if line.startswith("|---")]
    assert len(heads) == 2 + len(ops)
    for k in heads:  # every row has as many cells as its head
        end = next((j for j in range(k, len(text)) if not text[j].startswith("|")), len(text))
        assert end > k + 1
        assert {line.count("|") for line in text[k - 1 : end]} == {text[k].count("|")}


def test_when_time_is_up_the_rest_is_not_measured(cupy, tmp_path):
    code, lines = report(cupy, ("layer", "ops"), tmp_path, seconds=0)
    assert code == 0
    assert {row["failed"] for name in ("layer", "ops") for row in json.loads((tmp_path / "bench.json").read_text())[name]} == {
        "time was up"}
    assert "Not all sizes were measured: time was up." in lines


def test_a_failure_is_said_and_costs_nothing_else(cupy, tmp_path, monkeypatch):
    monkeypatch.setattr(ladders, "cusparse_spmm", lambda *args: 1 / 0)
    monkeypatch.setattr(rows, "rope", lambda *args: 1 / 0)
    code, lines = report(cupy, ("ops",), tmp_path)
    assert code == 1
    assert lines[-1].startswith("5 measurements failed, the first: failed: ZeroDivisionError")  # two shapes, both ways; rope
    found = json.loads((tmp_path / "bench.json").read_text())["ops"]
    assert {row["op"] for row in found if "op" in row} >= {"sddmm", "adam8bit"}
    assert "Not all sizes were measured: failed: ZeroDivisionError: division by zero." in lines


@pytest.mark.parametrize(("argv", "message"), [
    (["--only", "profile"], "--device cuda: allowed with it is --only layer step ops"), (["--calibrate"], "allowed with it"),
    (["--seconds", "soon"], "invalid float"), ([], "--device cuda: there is no GPU here")])
def test_bad_input_is_one_line(argv, message, monkeypatch, capsys):
    monkeypatch.setattr(bench, "cuda_status", lambda: (None, "there is no GPU here"))
    assert run_command(bench.main, ["--device", "cuda", *argv]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert message in err


@needs_compiler
def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu_module, "torch_on_gpu", lambda: (None, "not installed"))
    with fake_cupy():
        assert run_command(bench.main, ["--device", "cuda", "--only", "step", "--out", str(tmp_path / "new")]) == 0
    assert "`python -m minisl.bench --device cuda --only step`" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"bench.json", "bench.md"}


def test_the_real_cupy_has_what_is_asked_of_it():
    """As far as that can be seen without a GPU; the rest of it is looked at in test_device_cuda.py."""
    cupy = pytest.importorskip("cupy")
    if "stand-in" in cupy.__version__:
        pytest.skip("the stand-in")
    runtime, memory = cupy.cuda.runtime, cupy.cuda.memory
    assert all(map(callable, (cupy.cuda.Event.record, cupy.cuda.Event.synchronize, cupy.cuda.get_elapsed_time,
                              cupy.cuda.set_allocator, cupy.ndarray.__dlpack__, cupy.ndarray.fill, runtime.driverGetVersion,
                              runtime.runtimeGetVersion, runtime.getDeviceProperties)))
    assert isinstance(cupy.cuda.Device.mem_info, type(cupy.cuda.Device.attributes))
    assert issubclass(memory.OutOfMemoryError, MemoryError)
    source = Path(find_spec("cupyx").origin).with_name("cusparse.py").read_text()  # to import it needs libcusparse
    assert "def spmm(a, b, c=None, alpha=1, beta=0, transa=False, transb=False):" in source
