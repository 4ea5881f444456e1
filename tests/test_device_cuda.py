"""The whole trainer on CuPy: on the stand-in of `fake_gpu`, whose kernels run in the emulator, and on a GPU where there is one.

What the GPU computes must be what the CPU does; and between the first product of a step and its last update nothing may be looked
at, since to look at a number is to wait for everything before it.
"""

import inspect
import re
from contextvars import ContextVar
from functools import partial
from types import ModuleType

import numpy as np
import pytest
from gpu import fake_cupy, needs_compiler
from mutation import mutated, rejected
from test_train import at_step, job, press_ctrl_c, tensors

from minisl import checkpoint, evaluate, generate, kernels, methods, optim, parallel, plot, summary, train
from minisl.autograd import Tensor, no_grad, ops
from minisl.autograd.ops import fused
from minisl.backend import cuda_status, generator, read, to_numpy
from minisl.command import run_command
from minisl.kernels import Support, cost, numpy_fused
from minisl.kernels.contract import Contract
from minisl.metrics import read as read_metrics
from minisl.nn import Llama, LlamaConfig, Parameter
from minisl.optim import clip

METHODS = {
    "sltrain": {"learned_scale": True, "accumulate": 2, "clip_norm": 0.5, "weight_decay": 0.1},
    "materialised": {"algorithm": "materialised", "activation_checkpointing": True},
    "factored": {"algorithm": "factored"},
    "fused": {"algorithm": "fused"},
    "low_rank": {"method": "low_rank", "clip_norm": 1e9},
    "full": {"method": "full"},
    "whole arrays": {"backend": "numpy", "algorithm": "materialised", "clip_norm": 0.5, "accumulate": 2},
    "whole arrays, factored": {"backend": "numpy", "algorithm": "factored"},
    "float64": {"dtype": "float64", "algorithm": "materialised"},
}
STAND_IN = pytest.param("stand-in", marks=needs_compiler)


@pytest.fixture(params=[STAND_IN, pytest.param("gpu", marks=pytest.mark.gpu)])
def cupy(request):
    """CuPy: the stand-in, and the real one where there is a GPU."""
    if request.param == "gpu":
        module, why = cuda_status()
        if module is None:
            pytest.skip(why)
        yield module
    else:
        with fake_cupy() as module:
            yield module


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No figure, and a sample of three tokens."""
    monkeypatch.setattr(plot, "loss_figure", lambda path, *_: path.write_bytes(b"a figure"))
    monkeypatch.setattr(summary, "generate", lambda model, ids, count, rng: generate.generate(model, ids, 3, rng))


def run_job(folder, name, code=0, **changes):
    """Train for four steps; returns the run's folder."""
    changes = {"steps": 4, "eval_every": 3, "save_every": 3, "out": folder / name, **changes}
    assert run_command(train.main, job(folder, **changes)) == code
    return folder / name


def assert_same_losses(a, b, steps=4):
    left, right = (read_metrics(run / "metrics.jsonl") for run in (a, b))
    assert [r["step"] for r in left] == [r["step"] for r in right] == list(range(1, steps + 1))
    for one, other in zip(left, right):
        assert one.keys() == other.keys()
        assert type(one["loss"]) is type(one["grad_norm"]) is float
        for key in {"loss", "val_loss", "bits_per_byte"} & one.keys():
            assert one[key] == pytest.approx(other[key], rel=1e-4), key
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_the_losses_are_those_of_the_cpu(cupy, tmp_path, method):
    changes = METHODS[method]
    on_cpu = {k: v for k, v in changes.items() if k != "backend" and v != "fused"}
    assert_same_losses(run_job(tmp_path, "gpu", device="cuda", **changes), run_job(tmp_path, "cpu", **on_cpu))


@needs_compiler
def test_the_emulator_trains_too(tmp_path, capsys):
    """With NumPy arrays, as a backend like others."""
    emulated = run_job(tmp_path, "emulator", backend="emulator", algorithm="fused", steps=2)
    assert "CUDA kernels in the emulator" in capsys.readouterr().out
    assert_same_losses(emulated, run_job(tmp_path, "cpu", steps=2), 2)


def test_the_weights_start_as_on_the_cpu(cupy, tmp_path):
    """Bit for bit, and so does the support."""
    runs = [run_job(tmp_path, device, device=device, steps=1, lr=0, warmup=0) for device in ("cpu", "cuda")]
    mine, right = (tensors(run) for run in runs)
    assert mine.keys() == right.keys()
    assert any(name.endswith("sparse_index") for name in mine)
    for name in mine:
        np.testing.assert_array_equal(mine[name], right[name])


def test_model_goes_to_the_gpu_and_back_unchanged(cupy):
    options = {"rank": 2, "delta": 0.1, "alpha": 4.0, "learned_scale": True, "algorithm": "auto"}
    model = methods.build_model(LlamaConfig(8, 12, 1, 2, vocab_size=11), "sltrain", options, generator(1, "init"))
    before = {name: array.copy() for name, array in model.state_dict().items()}
    assert all(isinstance(p.data, cupy.ndarray) for p in model.to(cupy).parameters())
    for after in (model.state_dict(), model.to(np).state_dict()):
        assert all(isinstance(array, np.ndarray) for array in after.values())
        assert all(np.array_equal(after[name], array) for name, array in before.items())


def test_runs_go_on_on_another_device(cupy, tmp_path, monkeypatch):
    """cpu, cuda, cpu, as one run on the CPU."""
    straight = run_job(tmp_path, "straight", steps=6)
    for device in ("cpu", "cuda"):
        with monkeypatch.context() as patch:
            at_step(patch, 2, press_ctrl_c)
            flags = ["--resume", str(tmp_path / "run"), f"--device={device}"]
            assert run_command(train.main, flags if device == "cuda" else job(tmp_path, steps=6, eval_every=3)) == 130
    assert checkpoint.load_state(tmp_path / "run")["step"] == 4
    assert run_command(train.main, ["--resume", str(tmp_path / "run"), "--device=cpu"]) == 0
    assert_same_losses(tmp_path / "run", straight, 6)


def test_evaluate_and_generate_on_a_gpu(cupy, tmp_path, capsys):
    run = run_job(tmp_path, "run", steps=2)
    said = {}
    for device in ("cpu", "cuda"):
        capsys.readouterr()
        assert run_command(evaluate.main, [str(run), "--device", device]) == 0
        assert run_command(generate.main, [str(run), "--tokens=3", "--temperature=0", "--prompt=ab", "--device", device]) == 0
        said[device] = capsys.readouterr().out
    numbers = [[float(n) for n in re.findall(r"\d+\.\d+", text)] for text in said.values()]
    np.testing.assert_allclose(*numbers, rtol=1e-3)
    assert len(numbers[0]) == 3
    assert said["cuda"].splitlines()[-1] == said["cpu"].splitlines()[-1] != "ab"


def test_loss_that_is_no_number_stops_the_run_before_anything_is_saved(cupy, tmp_path, monkeypatch, capsys):
    def spoil(optimizer):
        next(iter(optimizer.parameters.values())).data[:] = np.nan

    at_step(monkeypatch, 2, spoil)
    run = run_job(tmp_path, "run", 1, device="cuda", backend="numpy", save_every=1)
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "step 3: loss is nan; training stopped, step-00000002 is kept" in line
    assert checkpoint.load_state(run)["step"] == 2
    assert [r["step"] for r in read_metrics(run / "metrics.jsonl")] == [1, 2]


def test_summary_says_what_was_taken_of_the_gpu(cupy, tmp_path, capsys):
    run_job(tmp_path, "run", steps=1, device="cuda")
    out = capsys.readouterr().out
    assert "CUDA kernels, CuPy" in out
    assert re.search(r"^  peak memory +[\d,]+ MB\n  GPU memory pool +[\d,]+ MB$", out, re.M)
    run_job(tmp_path, "on the cpu", steps=1)
    assert "GPU memory" not in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_training_in_another_precision(cupy, tmp_path, precision):
    """Rounded factors change the loss a little, not a lot."""
    exact, rounded = (read_metrics(run_job(tmp_path, name, device="cuda", method="full", matmul_precision=name) / "metrics.jsonl")
                      for name in ("float32", precision))
    for a, b in zip(exact, rounded, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=0.02)
    if precision == "bf16":  # the stand-in does not round to TF32
        assert exact[-1]["loss"] != rounded[-1]["loss"]


# Nothing waits


@needs_compiler
@pytest.mark.parametrize("method", [m for m in METHODS if m != "whole arrays, factored"])  # CuPy looks at a sparse matrix
def test_a_step_waits_once_at_its_end(tmp_path, monkeypatch, method):
    """Loss and norm are read together, when the update has been asked for. From the very first step on."""
    with fake_cupy() as cupy:
        steps_wait_once(cupy.waits, tmp_path, monkeypatch, METHODS[method])


def steps_wait_once(waits, folder, monkeypatch, changes):
    rate, step = optim.learning_rate, optim.Optimizer.step
    monkeypatch.setattr(optim, "learning_rate", lambda *args, **options: waits.append("begin") or rate(*args, **options))
    monkeypatch.setattr(optim.Optimizer, "step", lambda self: (step(self), waits.append("update asked for")))
    run_job(folder, "run", device="cuda", steps=3, eval_every=9, save_every=9, **changes)
    first = waits.index("begin")
    assert waits[first : first + 9] == 3 * ["begin", "update asked for", "asnumpy"]


def test_numbers_are_read_together(cupy):
    one, other = cupy.asarray(1.5, "float32"), cupy.asarray(2.5, "float64")
    assert read(one, other, 3) == [1.5, 2.5, 3.0]
    assert read(np.float32(0.5), 1.0) == [0.5, 1.0]
    assert all(type(n) is float for n in (*read(one, other, 3), *read(np.float32(0.5))))


def test_norm_and_clipping_stay_on_the_gpu(cupy):
    parameters = [Parameter(cupy.zeros(n, "float32")) for n in (2, 1, 3)]
    for bound, factor in ((2.5, 0.5), (5.0, 1.0), (9.0, 1.0)):
        for p, g in zip(parameters, ([3.0, 0], [4.0])):
            p.grad = cupy.asarray(np.array(g, np.float32))
        norm = optim.clip_grad_norm(parameters, bound)
        assert isinstance(norm, cupy.ndarray)
        assert float(norm) == 5
        assert to_numpy(parameters[0].grad).tolist() == [3 * factor, 0]
        assert parameters[0].grad.dtype == np.float32
    assert optim.grad_norm([Parameter(cupy.zeros(2, "float32"))]) == 0.0


# Ids and labels


@pytest.fixture
def tiny_model(cupy):
    return Llama(LlamaConfig(8, 12, 1, 2, vocab_size=11), np.random.default_rng(0)).to(cupy)


def test_ids_and_labels_come_from_the_host_or_are_there(tiny_model, cupy, rng):
    ids = rng.integers(0, 11, (2, 5))
    labels = np.where(ids == 3, -100, ids)
    with no_grad():
        losses = [float(tiny_model.loss(a, b).data) for a, b in ((ids, labels), (cupy.asarray(ids), cupy.asarray(labels)))]
        logits = tiny_model(ids)
        means = [float(ops.cross_entropy(logits, xp.asarray(labels)).data) for xp in (np, cupy)]
    assert losses[0] == losses[1]
    assert means[0] == means[1] == pytest.approx(losses[0] / (labels != -100).sum(), rel=1e-5)


def test_ids_and_labels_that_are_there_are_not_looked_at():
    with fake_cupy() as cupy:
        not_looked_at(cupy)


def not_looked_at(cupy):
    model = Llama(LlamaConfig(8, 12, 1, 2, vocab_size=11), np.random.default_rng(0), dtype="float64").to(cupy)
    ids = cupy.asarray(np.array([[1, 2, 3]]))
    model.loss(ids, ids).backward()
    ops.cross_entropy(model(ids), ids).backward()
    assert cupy.waits == []


def test_ids_and_labels_are_checked_on_the_host(tiny_model, cupy):
    good, bad = np.zeros((1, 3), int), np.full((1, 3), 11)
    with pytest.raises(IndexError, match="ids: 11 is outside"):
        tiny_model(bad)
    with pytest.raises(IndexError, match="labels: 11 is outside"):
        tiny_model.loss(good, bad)
    with pytest.raises(ValueError, match="every label is ignored"):
        ops.cross_entropy(Tensor(cupy.zeros((3, 11), "float32")), np.full(3, -100))


# Products with S


@pytest.mark.parametrize("index", [[], [3], [0, 3, 8], [8, 0, 3], [8, 3, 8, 3, 0]], ids=str)
def test_views_of_a_support_are_those_of_the_cpu(cupy, index):
    mine, right = (Support(xp.asarray(np.array(index, np.int32)), (3, 4)) for xp in (cupy, np))
    views = ("csr", "csc", "rows", "cols", "unique", "index32")
    found = [[*(getattr(s, name) for name in views), s.transposed.index, s.tiled(2, 3)] for s in (mine, right)]
    for one, other in zip(*found):
        for a, b in zip(*((v if isinstance(v, tuple) else (v,)) for v in (one, other)), strict=True):
            assert isinstance(a, cupy.ndarray) == isinstance(b, np.ndarray)
            np.testing.assert_array_equal(to_numpy(a) if isinstance(a, cupy.ndarray) else a, b)


def test_auto_counts_dense_products_by_the_precision_they_run_in(cupy, monkeypatch):
    asked = []
    support, A = Support(cupy.arange(4), (5, 3)), cupy.zeros((2, 3), np.float32)
    monkeypatch.setattr(cost, "seconds", lambda *sizes: asked.append(sizes[-1]) or 0)
    for name in ("float32", "tf32", "bf16"):
        monkeypatch.setattr(kernels, "precision", ContextVar("precision", default=name))
        kernels.resolve("auto", 10, support, A, kernels.of(A))
    assert asked == ["cuda"] * 2 + ["cuda tf32"] * 2 + ["cuda bf16"] * 2
    assert cost.CONSTANTS["cuda"]["g"] > cost.CONSTANTS["cuda tf32"]["g"] > cost.CONSTANTS["cuda bf16"]["g"] > 0


@pytest.mark.parametrize(("backend", "algorithm"), [("cuda", "materialised"), ("cuda", "factored"), ("cuda", "fused"),
                                                    ("numpy", "materialised"), ("numpy", "factored")])
def test_product_on_the_gpu_is_that_of_the_cpu(cupy, rng, backend, algorithm):
    index = np.array([8, 3, 8, 20, 8, 33, 3], np.int32)
    arrays = [rng.standard_normal(s).astype(np.float32) for s in ((4, 5), (4, 7), (5, 3), (3, 7), (7,))]
    right = kernels.sl_linear_backward(*arrays, index, 0.3, backend="reference")
    there = [cupy.asarray(a) for a in (*arrays, index)]
    mine = kernels.sl_linear_backward(*there, 0.3, backend=backend, algorithm=algorithm)
    y = kernels.sl_linear(*there[1:], 0.3, backend=backend, algorithm=algorithm)
    for a, b in zip((y, *mine), (kernels.sl_linear(*arrays[1:], index, 0.3, backend="reference"), *right), strict=True):
        np.testing.assert_allclose(to_numpy(a), b, rtol=1e-5, atol=1e-5)


# What must be rejected

QUICK = {"backend": "numpy", "algorithm": "materialised", "clip_norm": 0.5}  # nothing runs in the emulator


def waiting_checks(folder):
    def check():
        with fake_cupy() as cupy, pytest.MonkeyPatch.context() as patch:
            for path in sorted(folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            steps_wait_once(cupy.waits, folder, patch, QUICK)

    return [check]


def device_checks(*tests):
    def check(test):
        with fake_cupy() as cupy:
            test(cupy)

    return [partial(check, test) for test in tests]


def small(test):
    def run(cupy):
        test(Llama(LlamaConfig(8, 12, 1, 2, vocab_size=11), np.random.default_rng(0)).to(cupy), cupy)

    return run


ids_checks = device_checks(
    small(test_ids_and_labels_are_checked_on_the_host), test_norm_and_clipping_stay_on_the_gpu, test_numbers_are_read_together,
    lambda cupy: test_views_of_a_support_are_those_of_the_cpu(cupy, [8, 0, 3]), not_looked_at)
MUTANTS = [
    (fused.LinearCrossEntropy.backward, "array_module(grad) is not np or grad != 1", "grad != 1"),
    (parallel.Workers.backward, "return unread(loss.data)", "return loss.item()"),
    (numpy_fused.square_sum, "unread(", "float("),
    (numpy_fused.cross_entropy, "labels != IGNORE_LABEL", "(labels != IGNORE_LABEL) & bool((labels != -1).all())"),
    (clip.grad_norm, "array_module(total).sqrt(total)", "math.sqrt(total)"),
    (clip.clip_grad_norm, "isinstance(norm, float)", "norm"),
    (clip.clip_grad_norm, ".minimum(1, max_norm / norm)", ".minimum(1, max_norm / float(norm))"),
    (train.Trainer.update, "loss, norm = read(loss, norm)", "loss, norm = read(loss) + read(norm)"),
    (train.Trainer.update, "self.optimizer.step()\n", "float(loss), self.optimizer.step()\n"),
]
WRONG = [
    (clip.clip_grad_norm, ".minimum(1, max_norm / norm)", ".maximum(1, max_norm / norm)"),
    (clip.clip_grad_norm, ".minimum(1, max_norm / norm)", ".minimum(2, max_norm / norm)"),
    (Contract.index, "isinstance(array, np.ndarray) and", "not isinstance(array, np.ndarray) and"),
    (Contract.index, "isinstance(array, np.ndarray) and", ""),
    (fused.cross_entropy, "isinstance(labels, np.ndarray) and ", ""),
    (fused.CrossEntropy.forward, "(labels != IGNORE_LABEL).sum().astype(logits.dtype)",
     "logits.dtype.type(int((labels != IGNORE_LABEL).sum()))"),
    (Support.csc.func, "xp.lexsort(xp.stack([self.rows, self.cols]))", "xp.lexsort([self.rows, self.cols])"),
    (Support.csr.func, 'self.index.argsort(kind="stable")', 'self.index.argsort(kind="mergesort")'),
]


def title(mutant):
    function, old, new = mutant
    return f"{function.__module__.removeprefix('minisl.')}.{function.__qualname__}: {old.strip()} -> {new.strip()}"


@needs_compiler
@pytest.mark.parametrize("mutant", [*MUTANTS, *WRONG], ids=title)
def test_one_change(mutant, killed, tmp_path):
    """Each makes a step wait for the GPU more than once, or is wrong there."""
    checks = waiting_checks(tmp_path) if mutant in MUTANTS else ids_checks
    with mutated(*mutant):
        killed[title(mutant)] = rejected(checks)
    assert killed[title(mutant)]
    assert not rejected(checks), "restored, the tests pass again"


# The stand-in itself


def test_stand_in_refuses_what_cupy_refuses():
    with fake_cupy() as cupy:
        a, host = cupy.asarray(np.arange(6.0).reshape(2, 3)), np.ones(3)
        for mixed in (lambda: a + host, lambda: host + a, lambda: a[np.array([0])], lambda: np.asarray(a), lambda: cupy.exp(host),
                      lambda: cupy.concatenate([a, np.ones((2, 3))]), lambda: a.sum(where=True), lambda: a.__setitem__(0, host),
                      lambda: a.__iadd__(host), lambda: np.add(host, a)):
            with pytest.raises(TypeError):
                mixed()
        with pytest.raises(ValueError, match="stable"):
            a.argsort(kind="quicksort")
        assert cupy.waits == []


def test_stand_in_notes_what_waits():
    with fake_cupy() as cupy:
        a, rows = cupy.asarray(np.arange(6.0).reshape(2, 3)), cupy.asarray(np.array([1, 0]))
        for quiet in (lambda: a + 1, lambda: np.float32(2) * a, lambda: a[rows], lambda: a @ a.T, lambda: cupy.where(a > 2, a, 0),
                      lambda: a.sum() / 2, lambda: np.sqrt(a), lambda: a.__imul__(a.max())):
            assert isinstance(quiet(), cupy.ndarray)
        assert cupy.waits == []
        waiting = {
            "float": lambda: float(a.sum()), "bool": lambda: 1 if a.sum() > 2 else 0, "int": lambda: int(a.max()),
            "get": lambda: a.get(), "asnumpy": lambda: cupy.asnumpy(a), "item": lambda: a.sum().item(), "mask": lambda: a[a > 2],
            "flatnonzero": lambda: cupy.flatnonzero(a), "unique": lambda: cupy.unique(a), "nonzero": lambda: cupy.where(a),
            "tolist": lambda: a.tolist(), "repr": lambda: repr(a)}
        for wait in waiting.values():
            wait()
        assert cupy.waits == list(waiting)


def test_stand_in_has_nothing_that_cupy_does_not_have():
    """Names, and which keywords they take, of the CuPy that is installed here; it need not find a GPU."""
    real = pytest.importorskip("cupy")
    with fake_cupy() as cupy:
        tables = [(real.ndarray, cupy.METHODS), (real, cupy.FUNCTIONS | cupy.WAITING)]
        names = {name for name, value in vars(cupy).items() if not (name.startswith("_") or isinstance(value, ModuleType))} - {
            "METHODS", "FUNCTIONS", "UFUNCS", "WAITING", "Ufunc", "waits", "waited", "down", "up", "index", "checked", "method",
            "function", "operation", "in_place", "bfloat16", "SimpleNamespace"}
        tools = vars(cupy.cuda).keys() - {"cublas", "nccl"}, vars(cupy.cuda.runtime).keys()  # which may not be installed
    for owner, known in zip((real, real.cuda, real.cuda.runtime), (names, *tools)):
        assert [name for name in sorted(known) if not hasattr(owner, name)] == []
    for owner, table in tables:
        for name, keywords in table.items():
            assert set(keywords.split()) <= set(parameters(getattr(owner, name))), name
    linear_algebra = real._core._routines_linalg
    assert {linear_algebra.COMPUTE_TYPE_DEFAULT, linear_algebra.COMPUTE_TYPE_TF32} == {1, 7}
    assert callable(real._core.set_compute_type)
    assert real.cuda.runtime.CUDA_R_32F == 0


def parameters(function):
    """The names of a function's parameters; compiled ones have them in the first line of their docstring."""
    if hasattr(function, "__wrapped__") or hasattr(function, "__code__"):
        return inspect.signature(function).parameters
    return re.findall(r"(\w+)(?=[,=)]|$)", function.__doc__.split("\n")[0].split("->")[0])
