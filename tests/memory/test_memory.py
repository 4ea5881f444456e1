"""Memory: the paper's table, estimates of any method, and both beside the arrays of a real step."""

import numpy as np
import pytest
from method_checks import SETTINGS
from mutation import mutant_tests

from minisl import kernels
from minisl.autograd import Tensor, checkpoint
from minisl.backend import generator
from minisl.command import run_command
from minisl.memory import __main__ as command
from minisl.memory import formula, measure, paper, shapes
from minisl.methods import Method, available
from minisl.nn import LlamaConfig

needs_numba = pytest.mark.skipif(not kernels.numba_status()[0], reason="estimates are for kernels that keep no scores")
CONFIG = LlamaConfig(64, 96, 2, 4, vocab_size=512)  # matrices large enough for moments of 8 bits
OPTIONS = SETTINGS | {"rank": 16, "delta": 0.1, "algorithm": "factored"}
B, T = 4, 32
IDS = np.random.default_rng(0).integers(0, 512, (B, T + 1))


def method(name, **changes):
    return Method(name, OPTIONS | changes)


# The paper's table

def check_table():
    """What table 2 prints, but for three cells: a second time by the paper's formulas, written out."""
    shapes_ = {"60m": (512, 1376, 8, 128, 0.03), "130m": (768, 2048, 12, 256, 0.03), "350m": (1024, 2736, 24, 256, 0.03),
               "1b": (2048, 5461, 24, 512, 0.03), "7b": (4096, 11008, 32, 1024, 0.05)}
    off = set()
    for k, (size, (h, f, L, r, delta)) in enumerate(shapes_.items()):
        base, lin, low = 64000 * h + (2 * L + 1) * h, L * (4 * h * h + 3 * h * f), L * r * (11 * h + 3 * f)
        sparse = L * (4 * int(delta * h * h) + 3 * int(delta * h * f))
        both = {"full": (2 * (base + lin), 4 * (base + lin)), "low_rank": (2 * (base + low), 4 * (base + low)),
                "relora": (2 * (base + lin + base + low), 4 * (base + low)),
                "galore": (2 * (base + lin), 2 * (7 * L * r * h) + 4 * (base + L * r * (4 * h + 3 * f))),
                "sltrain": (2 * (base + low) + 10 * sparse, 4 * (base + low + sparse))}
        for name, (weights, optimizer) in both.items():
            assert (paper.closed if name in ("relora", "galore") else paper.counted)(name, size) == (weights, optimizer)
            cell = f"{paper.cell(name, size):.2f}"
            assert cell == f"{round(weights / 1e9, 2) + round(optimizer / 1e9, 2):.2f}"
            if size != "7b" and cell != f"{paper.TABLE[name][k]:.2f}":
                off.add((name, size, cell))
    assert off == {("low_rank", "60m", "0.26"), ("relora", "60m", "0.37"), ("galore", "350m", "1.39")}
    assert {(name, size) for name, size, _ in off} == paper.OFF.keys()
    for name, cells in {"low_rank": "0.24 0.54 1.11 3.63", "relora": "0.36 0.81 1.84 6.31"}.items():  # cut, not rounded
        found = [(paper.closed if name == "relora" else paper.counted)(name, size) for size in ("60m", "130m", "350m", "1b")]
        cut = [int(weights / 1e7) / 100 + 2 * int(moments / 2e7) / 100 for weights, moments in found]
        assert " ".join(f"{c:.2f}" for c in cut) == cells
        assert all(word in paper.OFF[name, "60m"] for word in (cells.split()[1], cells.split()[3]))
        assert f"{cut[0]:.2f}" == f"{paper.TABLE[name][0]:.2f}"


def check_relora_and_galore_as_counted():
    """GaLore's formula is what its file holds; the paper's ReLoRA has embeddings, head and gains once more."""
    for size, (h, L) in {"60m": (512, 8), "1b": (2048, 24)}.items():
        assert paper.counted("galore", size) == paper.closed("galore", size)
        (weights, optimizer), (twice, same) = paper.counted("relora", size), paper.closed("relora", size)
        assert (twice - weights, same) == (2 * (64000 * h + (2 * L + 1) * h), optimizer)


def check_figure():
    """In units of W's numbers: full-rank 8-bit Adam per layer holds 2 + 2 + 8/256 bytes of each; int64 indices weigh 8."""
    full = paper.estimated("full", "7b", "adam8bit", True)
    assert (full["weights"], full["gradients"]) == (2 * 6_738_415_616, 2 * 32000 * 4096)
    assert full["optimizer"] == pytest.approx((2 + 8 / 256) * 6_738_415_616, rel=1e-4)
    sl = paper.estimated("sltrain", "7b", "adam8bit", True)
    nnz = 32 * (4 * int(0.05 * 4096**2) + 3 * int(0.05 * 4096 * 11008))
    assert sl["indices"] == 8 * nnz
    assert sl["weights"] == 2 * 3_144_735_808
    assert sl["temporaries"] == 2 * 2 * 4096 * 11008  # W and dW
    plain = paper.estimated("full", "7b", "adamw", False)
    assert plain["peak"] == 8 * 6_738_415_616  # weights, two moments, gradients: the activations are gone by then
    assert full["peak"] == sum(full[k] for k in ("weights", "optimizer", "activations", "temporaries"))


# Estimates

def check_activations_by_hand():
    """A block: 6 D + 2 F + 7 r numbers a token, 2 for the norms, H for attention; the end: 2 D + 1 and the head's gradient;
    angles and ids."""
    D, F, H, L, V = 64, 96, 4, 2, 512
    for algorithm, more in (("factored", 7 * 16), ("materialised", 0)):
        found, built = formula.activations(method("sltrain", algorithm=algorithm), CONFIG, B, T)
        numbers = B * T * (L * (6 * D + 2 * F + more + 2 + H) + 2 * D + 1) + V * D + T * D // H
        assert found == 4 * numbers + 4 * B * T
        assert built == (0 if more else D * F)
        half, _ = formula.activations(method("sltrain", algorithm=algorithm), CONFIG, B, T, "bfloat16")
        assert half == 2 * numbers + 4 * B * T


def check_kept():
    """Trained, frozen, indices and moments, each with its own bytes."""
    config = LlamaConfig(64, 96, 1, 2, vocab_size=512)
    frozen, factors = 4 * 64 * 64 + 3 * 64 * 96, 16 * (11 * 64 + 3 * 96)
    rest = 2 * 512 * 64 + 3 * 64
    assert formula.kept(method("relora"), config) == {"weights": 4 * (frozen + factors + rest), "indices": 0,
                                                      "optimizer": 8 * (factors + rest)}
    nnz = 4 * int(0.1 * 64 * 64) + 3 * int(0.1 * 64 * 96)
    assert formula.kept(method("sltrain"), config, 2, index_bytes=8) == {
        "weights": 2 * (factors + nnz + rest), "indices": 8 * nnz, "optimizer": 4 * (factors + nnz + rest)}


def graph(name):
    """Bytes a real model's graph keeps after a forward pass in the second half of a job."""
    one = method(name)
    model = one.build(CONFIG, generator(0, "init"))
    one.before_step(model, one.optimizer(model, 1e-3), 7, 12)
    with kernels.using("cpu"):
        return measure.saved_bytes(model.loss(IDS[:, :-1], IDS[:, 1:]), model)


@needs_numba
@pytest.mark.parametrize("name", available())
def test_activations_of_every_method(name):
    """The model run on shapes keeps what the model keeps, or more where a method skips layers now and then."""
    expected, found = formula.activations(method(name), CONFIG, B, T)[0], graph(name)
    assert found <= 1.02 * expected
    assert name == "drop_muon" or found >= 0.98 * expected


def test_shapes_are_arrays_of_nothing():
    a, b = shapes.fresh((4, 1000, 500), "float32"), shapes.fresh((500, 300), "float32")
    c = (a @ b + 1.0) * np.float32(2)
    c *= a.mean(axis=-1, keepdims=True)
    assert (c.shape, c.dtype, c.strides) == ((4, 1000, 300), np.float32, (0, 0, 0))
    assert np.concatenate([c, c], axis=1).shape == (4, 2000, 300)
    assert c.sum(axis=(0, 2)).shape == (1000,)
    assert (c > 0).dtype == bool
    assert np.zeros_like(c.swapaxes(0, 2)).shape == (300, 1000, 4)
    assert c[np.zeros((2, 3), int)].shape == (2, 3, 1000, 300)
    assert "shapes" not in kernels.BACKENDS


# Beside a real step

def step(name, optimizer="adamw", per_layer=False, checkpointing=False, first=False, **options):
    """(measured, estimated) bytes of an update in the middle of a job, or at its start."""
    one = method(name, **options)
    model = one.build(CONFIG, generator(0, "init"))
    model.model.activation_checkpointing = checkpointing
    moved = one.optimizer(model, 1e-3, optimizer)
    if per_layer:
        moved.update_in_backward()
    with kernels.using("cpu"):
        found = measure.measure(model, moved, lambda: model.loss(IDS[:, :-1], IDS[:, 1:], 1 / (B * T)),
                                lambda k: one.before_step(model, moved, k if first else 6 + k, 12))
    return found, formula.estimate(one, CONFIG, B, T, "float32", optimizer, 4, per_layer, checkpointing, first)


def agree(found, expected):
    for kind in ("weights", "indices", "optimizer", "gradients", "activations"):
        assert expected[kind] == pytest.approx(found["most"][kind], rel=0.02), kind
    assert found["peak"] == sum(found[kind] for kind in measure.KINDS)
    assert found["most"]["temporaries"] > 0


@needs_numba
@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "adam8bit"])
@pytest.mark.parametrize("name", ["full", "low_rank", "sltrain"])
def test_estimate_is_what_is_measured(name, optimizer, per_layer):
    agree(*step(name, optimizer, per_layer))


@needs_numba
@pytest.mark.parametrize("name", ["relora", "galore"])
def test_methods_that_act_before_a_step(name):
    agree(*step(name))


def check_first_phases():
    """A guide, or training in full rank, holds more than what comes after it."""
    for name, some in (("structured_ffn", {"guided": 0.5}), ("relora", {"warm_start": 0.5})):
        none = dict.fromkeys(some, 0.0)
        assert formula.has_first_phase(method(name, **some), CONFIG)
        assert not formula.has_first_phase(method(name, **none), CONFIG)
        found, expected = step(name, first=True, **some)
        agree(found, expected)
        later, expected_later = step(name, **none)
        agree(later, expected_later)
        assert found["peak"] > later["peak"]
        assert expected["peak"] > expected_later["peak"]
    assert not formula.has_first_phase(method("full"), CONFIG)


def check_per_layer():
    """Then no more than one gradient exists at a time, and the largest is embeddings or head."""
    found, expected = step("sltrain", per_layer=True)
    agree(found, expected)
    assert found["most"]["gradients"] == expected["gradients"] == 4 * 512 * 64


def check_checkpointing():
    """Inputs of blocks, and one block's graph while it is run again."""
    found, expected = step("sltrain", checkpointing=True)
    agree(found, expected)
    assert expected["activations"] == formula.activations(method("sltrain"), CONFIG, B, T, checkpointing=True)[0]
    assert expected["activations"] < formula.activations(method("sltrain"), CONFIG, B, T)[0]


def check_views_are_counted_once():
    """A view's memory is its owner's, a model's own arrays are nobody's activations, and a block inside counts with what is
    outside."""
    x = Tensor(np.ones((8, 8), np.float32), requires_grad=True)

    class Model:
        def parameters(self):
            return [x]

    y = x.exp()
    loss = (y.reshape(64) * y.swapaxes(0, 1).reshape(8, 8).reshape(64)).sum() + (x.swapaxes(0, 1) * x).sum()
    assert measure.saved_bytes(loss, Model()) == 2 * 256  # y, and y transposed, which reshape copies
    assert measure.saved_bytes(checkpoint(lambda z: z.exp(), x + 1.0).sum(), Model()) == 256  # the block's input
    inner = checkpoint(lambda z: z.exp().exp(), y).sum()
    seen = []
    with measure.each_backward(Model(), lambda activations, gradients, traced: seen.append(activations)):
        measure.tracemalloc.start()
        inner.backward()
        measure.tracemalloc.stop()
    assert max(seen) == 3 * 256  # y, and both outputs of the block


COUNTED = (check_table, check_relora_and_galore_as_counted, check_figure, check_activations_by_hand, check_kept,
           check_views_are_counted_once)
MEASURED = (check_per_layer, check_checkpointing, check_first_phases)


@pytest.mark.parametrize("check", COUNTED)
def test_counted(check):
    check()


@needs_numba
@pytest.mark.parametrize("check", MEASURED)
def test_measured(check):
    check()


# The command

def run(capsys, *argv):
    code = run_command(command.main, list(argv))
    return code, capsys.readouterr()


def test_estimates_of_several_methods(capsys, tmp_path):
    code, said = run(capsys, "--tiny", "--method", "full", "sltrain", "--optimizer", "adam8bit", "--per-layer", "--weights-dtype",
                     "bfloat16", "--index-bytes", "8", "--activation-checkpointing", "--plot", str(tmp_path / "a.png"))
    assert code == 0, said.err
    first, *rows = said.out.splitlines()
    assert "full" in first
    assert [row.split()[0] for row in rows[:7]] == [*measure.KINDS, "peak"]
    assert (tmp_path / "a.png").stat().st_size > 1000


@needs_numba
def test_measured_beside_the_estimate(capsys):
    code, said = run(capsys, "--tiny", "--measure", "--batch-size", "2", "--seq-len", "32", "--method", "low_rank")
    assert code == 0, said.err
    for line in said.out.splitlines()[2:7]:
        assert len(line.split()) == 4 or abs(float(line.split()[3].rstrip("%"))) <= 2, line


@needs_numba
def test_the_phase_that_holds_more_is_shown(capsys):
    code, said = run(capsys, "--tiny", "--method", "structured_ffn", "full")
    assert code == 0, said.err
    assert said.out.splitlines()[-1] == "structured_ffn: at the start of the run, where it holds more than later."
    assert float(said.out.splitlines()[-3].split()[1]) > 140
    code, said = run(capsys, "--tiny", "--measure", "--batch-size", "2", "--seq-len", "32", "--method", "structured_ffn")
    assert code == 0, said.err
    assert said.out.splitlines()[0].endswith(", at the start of the run")


def test_paper(capsys):
    """All tables, 7B among them, in the memory of a breath."""
    pytest.importorskip("resource")
    from fuzz_checks import within

    with within(memory=256 << 20):
        code, said = run(capsys, "--paper")
    assert code == 0, said.err
    assert "(1.59) 1.39" in said.out
    assert "17 of 20" in said.out


@pytest.mark.parametrize(("argv", "words"), [
    (["--paper", "--config", "60m"], "--paper --config 60m: takes no other flag"),
    (["--measure", "--weights-dtype", "bfloat16", "--tiny"], "--measure: weighs the arrays"),
    (["--weights-dtype", "int4", "--tiny"], "invalid choice"),
    (["--method", "lora", "--tiny"], "lora"),
    (["--method", "full", "sltrain"], "--tiny, --config"),
    (["--tiny", "--rank", "500"], "rank is 500"),
    (["--tiny", "--measure", "--rank", "500"], "rank is 500"),
    (["--config", "61m"], "no such file"),
    (["--tiny", "--optimizer", "adafactor"], "use adamw"),
    (["--tiny", "--device", "cuda"], "only the CPU's arrays"),
    (["--resume", "runs/001-sltrain"], "--resume: is not for this command"),
    (["--tiny", "--shard-optimizer"], "--shard-optimizer: is not for this command"),
    (["--tiny", "--bogus"], "--bogus"),
])
def test_bad_input_is_one_line(capsys, argv, words):
    code, said = run(capsys, *argv)
    assert code == 2
    assert len(said.err.splitlines()) == 1
    assert words in said.err
    assert said.out == ""


# Wrong implementations

test_mutants = mutant_tests([
    (formula.kept, "sum(held.weights) + held.frozen", "sum(held.weights)"),
    (formula.kept, "index_bytes * held.indices", "size * held.indices"),
    (formula.kept, "(n, size) for n", "(n, 4) for n"),
    (formula.estimate, "max(sizes) if per_layer else sum(sizes)", "sum(sizes)"),
    (formula.estimate, "2 * built", "built"),
    (formula.at_peak, ">", "<"),
    (formula.activations, "one + (config.num_hidden_layers - 1) *", "one + config.num_hidden_layers *"),
    (formula.activations, '(size if a.dtype.kind == "f" else a.itemsize)', "size"),
    (shapes.attention, "fresh(q.shape[:-1], q.dtype)", "fresh((*q.shape[:-1], q.shape[-2]), q.dtype)"),
    (shapes.factored_forward, ", fresh((len(x), len(A)), x.dtype)", ", None"),
    (paper.closed, "7 * L * r * h", "L * r * h"),
    (paper.closed, "linears + base + low_rank", "linears + low_rank"),
    (paper.cell, "round(weights / 1e9, 2) + round(optimizer / 1e9, 2)", "round((weights + optimizer) / 1e9, 2)"),
    (paper.method_of, '0.05 if size == "7b" else 0.03', "0.03"),
    (measure.base, "array = array.base", "return array"),
    (measure.saved_arrays, "id(array) not in own", "True"),
    (measure.flat, "isinstance(value, list | tuple)", "isinstance(value, list)"),
], *COUNTED)

test_mutants_of_the_meter = needs_numba(mutant_tests([
    (formula.activations, "if first:", "if False:"),
    (formula.all_held, "if first else ()", "if False else ()"),
    (formula.has_first_phase, "bool(phased(method)) and ", "bool(phased(method)) or "),
    (formula.activations, "inputs + block", "inputs"),
    (measure.measure, "fixed.append(nbytes(optimizer.arrays()))", "fixed.append(0)"),
    (measure.measure, '(a.dtype.kind == "f") == floats', "floats"),
], *MEASURED))
