"""Every rung gives NumPy's numbers, in any order of its threads; and the ladder can be read one diff at a time."""

import difflib
import re

import numpy as np
import pytest
from backend_checks import attention
from ladder_checks import FUSED, HEADS, PROBLEMS, RAGGED, RUNGS, WITHOUT_LADDER, check, check_all, compile_all

from minisl import kernels
from minisl.backend import to_numpy
from minisl.errors import InputError
from minisl.kernels import Support, cuda
from minisl.kernels.cuda import emulator, ladder
from minisl.kernels.cuda.launch import instead, launch
from minisl.methods import sltrain
from minisl.nn import Llama, LlamaConfig

each_rung = pytest.mark.parametrize(("op", "rung"), RUNGS)


@pytest.fixture(scope="module", autouse=True)
def compiled(request):
    """Those that the chosen tests run in the emulator."""
    chosen = [getattr(item, "callspec", None) for item in request.session.items if item.module is request.module]
    chosen = [c.params for c in chosen if c and c.params.keys() >= {"op", "rung"} and c.params.get("device") != "gpu"]
    rungs = {(p["op"], p["rung"]) for p in chosen}
    if rungs:
        compile_all((op, rung, ladder.source(op, rung)) for op, rung in sorted(rungs))


@each_rung
def test_every_rung(op, rung, device):
    check_all(PROBLEMS[op], xp=device, **{op: rung})


@pytest.mark.parametrize("order", [1, 2])
@each_rung
def test_in_any_order(op, rung, order, compiler):
    """Of threads and blocks: backward, and at random."""
    check(PROBLEMS[op][RAGGED[op]], order=order, **{op: rung})


def test_what_has_no_ladder(device):
    check_all(WITHOUT_LADDER, xp=device)


@pytest.mark.parametrize("rung", range(ladder.rungs()["attention"]))
def test_the_three_kernels_of_attention_on_one_rung(rung, device):
    """And heads wider than the later ones have registers for, where all three are the first."""
    for case in (HEADS["attention 2 4 2 5 5 4"], attention(1, 2, 1, 6, 9, 136)):
        check(case, xp=device, attention=rung, attention_dq=rung, attention_dkv=rung)


def test_every_ladder_has_problems():
    assert PROBLEMS.keys() == ladder.rungs().keys()
    for op, count in ladder.rungs().items():
        assert all((ladder.FOLDER / f"{op}_{rung}.cu").exists() for rung in range(count)), f"a rung of {op} is missing"


def test_algorithms_agree_at_the_sizes_of_training(device):
    """On a GPU with 65,536 tokens, where an offset that overflows or a sum too long would show."""
    n, width, out, rank = (200, 70, 130, 20) if device is np else (65_536, 2048, 2736, 128)
    rng = np.random.default_rng(0)
    support = Support(device.asarray(np.sort(rng.permutation(out * width)[: out * width // 30]).astype(np.int32)), (out, width))
    shapes = (n, out), (n, width), (out, rank), (rank, width), (len(support),)
    dy, x, B, A, values = (device.asarray(rng.standard_normal(shape, np.float32)) for shape in shapes)
    found = []
    for algorithm in ("materialised", "factored"):
        y, xA = getattr(cuda, f"{algorithm}_forward")(x, B, A, values, support, 0.1)
        found.append([y, *getattr(cuda, f"{algorithm}_backward")(dy, x, B, A, values, support, 0.1, xA)])
    for a, b in zip(*found, strict=True):
        assert float(abs(a - b).max()) <= 1e-4 * float(abs(b).max())


@pytest.mark.parametrize("algorithm", ["materialised", "factored", "fused"])
def test_training_step(algorithm, device):
    """Loss and all gradients of a small LLaMA with SLTrain's layers."""
    config = LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, max_position_embeddings=16)
    numbers = np.random.default_rng(1)
    ids = numbers.integers(0, 50, (3, 14))

    def step(backend, xp):
        def linear(*args):
            name = algorithm if backend != "numpy" or algorithm != "fused" else "factored"
            return sltrain.linear(*args[:4], rank=3, delta=0.1, alpha=6.0, learned_scale=False, algorithm=name)

        model = Llama(config, np.random.default_rng(0), linear)
        draws = np.random.default_rng(2)
        for name, p in model.named_parameters():
            if name.endswith("lora_B"):
                p.data = draws.standard_normal(p.shape).astype(np.float32) / 4
        model.to(xp)
        with kernels.using(backend, xp):
            assert (kernels.of(xp.zeros(1, np.float32)).module is cuda) == (backend != "numpy")
            loss = model.loss(xp.asarray(ids[:, :-1]), xp.asarray(ids[:, 1:]), 1 / 39)
            loss.backward()
        return {"loss": to_numpy(np.asarray(loss.data) if xp is np else loss.data)} | {
            name: to_numpy(p.grad) for name, p in model.named_parameters()}

    mine, right = step("emulator" if device is np else "cuda", device), step("numpy", np)
    assert mine.keys() == right.keys()
    for name, b in right.items():
        assert np.abs(b).max() > 0
        assert np.abs(mine[name] - b).max() <= 1e-5 * np.abs(b).max(), name


# The ladder as a text


def lines(op, rung):
    """Those of the rung without the comment it begins with."""
    return re.sub(r"\A(?://.*\n)+\n*", "", ladder.source(op, rung)).splitlines()


@pytest.mark.parametrize(("op", "rung"), [(op, rung) for op, rung in RUNGS if rung])
def test_a_rung_is_a_small_step(op, rung):
    """At most 30 lines go, and at most 30 come."""
    diff = [line[0] for line in difflib.unified_diff(lines(op, rung - 1), lines(op, rung), n=0, lineterm="")
            if not line.startswith(("---", "+++", "@@"))]
    assert 0 < len(diff)
    assert diff.count("-") <= 30
    assert diff.count("+") <= 30


@each_rung
def test_a_rung_says_what_it_is(op, rung):
    """Which it is, its idea, and what it costs; and it includes nothing."""
    title, text = ladder.header(op, rung)
    assert re.fullmatch(rf"{op}, rung {rung}: .+\.", title)
    assert re.fullmatch(r".{60,}\nBytes\b.+\.", text, re.S)
    assert "#include" not in ladder.source(op, rung)


# Which rung runs


def test_the_last_rung_runs_unless_told_otherwise():
    assert ladder.rung("scatter_add") == 2
    with ladder.at(scatter_add=0, rope=0):
        assert (ladder.rung("scatter_add"), ladder.rung("rope"), ladder.rung("adamw")) == (0, 0, 1)
        with ladder.at("numba", scatter_add=1):
            assert (ladder.rung("scatter_add"), ladder.rung("rope"), ladder.language()) == (1, 0, "numba")
        assert (ladder.rung("scatter_add"), ladder.language()) == (0, "cuda")
        with pytest.raises(ZeroDivisionError), ladder.at(scatter_add=1):
            raise ZeroDivisionError
        assert ladder.rung("scatter_add") == 0
    assert ladder.rung("scatter_add") == 2


@pytest.mark.parametrize(("rungs", "text"), [
    ({"spmm": 9}, r"spmm has no rung 9; allowed: 0\.\.\d"), ({"spmm": -1}, "spmm has no rung -1"),
    ({"matmul": 0}, "operation 'matmul' has no ladder; allowed: .*spmm"), ({"language": "hip"}, "language 'hip' is unknown")])
def test_rungs_that_do_not_exist(rungs, text):
    with pytest.raises(InputError, match=text), ladder.at(**rungs):
        pass


def test_a_text_instead_of_a_rung(compiler):
    doubled = ladder.source("scatter_add", 0).replace("values[k]", "2 * values[k]")
    case = PROBLEMS["scatter_add"]["scatter_add 3 7"]
    with pytest.raises(AssertionError), instead("scatter_add", doubled):
        check(case, scatter_add=0)
    check(case, scatter_add=0)


def test_nothing_is_launched_for_no_blocks():
    launch("spmm", (3, 0), (32,))


def test_a_wrong_kernel_of_a_rung_is_named(compiler):
    wrong = ladder.source("sl_forward", 0).replace("row + tx < out) y", "row + tx <= out) y")
    assert wrong != ladder.source("sl_forward", 0)
    with instead("sl_forward", wrong), pytest.raises(emulator.KernelFault, match=r"sl_forward, line \d+, block") as caught:
        check(FUSED["fused 5 63 65 17"], sl_forward=0)
    assert "row + tx <= out) y" in wrong.splitlines()[caught.value.line - 1]
