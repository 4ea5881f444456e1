"""Per-layer updates: each parameter moves while `backward` runs, and its gradient is gone before the next is there."""

import weakref

import numpy as np
import pytest
from mutation import mutant_tests, within
from test_train import job, quick_figure, run_job, tensors  # noqa: F401

from minisl import checkpoint, train
from minisl.backend import generator
from minisl.command import run_command
from minisl.config import parse
from minisl.methods import Method
from minisl.metrics import read
from minisl.nn import LlamaConfig
from minisl.optim import RULES, Optimizer, grad_norm
from minisl.optim.clip import square_sum

SETTINGS = {"rank": 3, "delta": 0.3, "alpha": 6.0, "learned_scale": False, "algorithm": "auto"}
IDS = np.random.default_rng(7).integers(0, 32, (4, 9))


def start(method="sltrain", base="adamw", tied=False, checkpointing=False, layers=2):
    widths = (72, 88) if base == "adam8bit" else (16, 24)  # large enough for 8 bits
    config = LlamaConfig(*widths, layers, 2, vocab_size=32, tie_word_embeddings=tied)
    model = Method(method, SETTINGS).build(config, generator(3, "init"))
    model.model.activation_checkpointing = checkpointing
    optimizer = Optimizer(model.named_parameters(), 1e-2, lambda name, array: RULES[base](array), weight_decay=0.1)
    return model, optimizer


def backward(model):
    model.loss(IDS[:, :-1], IDS[:, 1:], 1 / IDS[:, 1:].size).backward()


def run(per_layer, **changes):
    """(weights, state, norms) after four updates."""
    model, optimizer = start(**changes)
    if per_layer:
        optimizer.update_in_backward()
    norms = []
    for t in range(1, 5):
        optimizer.lr = 1e-2 / t
        backward(model)
        norms.append(optimizer.taken_norm() if per_layer else grad_norm(model.parameters()))
        optimizer.step()
        model.zero_grad()
    return model.state_dict(), optimizer.state_dict(), norms


WAYS = [{}, {"base": "sgd"}, {"base": "adam8bit", "method": "full"}, {"tied": True}, {"checkpointing": True},
        {"tied": True, "checkpointing": True, "method": "low_rank"}]


def check_same_bits(ways=tuple(WAYS)):
    for way in ways:
        (weights, state, norms), (others, other_state, other_norms) = (run(per_layer, **way) for per_layer in (False, True))
        for left, right in ((weights, others), (state, other_state)):
            assert left.keys() == right.keys()
            for key in left:
                np.testing.assert_array_equal(left[key], right[key], err_msg=f"{way} {key}")
        np.testing.assert_allclose(other_norms, norms, rtol=1e-6)
        assert type(other_norms[0]) is float


def check_one_gradient_at_a_time():
    """When a parameter's turn comes no other holds a gradient, and what the earlier ones held is no more, but for the matrices of
    one op. Each has one turn; afterwards none has a gradient, and another `step` moves nothing."""
    for way in ({"method": "full"}, {"tied": True}, {}):
        model, optimizer = start(**way, layers=4)
        parameters, turns, alive = dict(model.named_parameters()), [], []
        update, gradients = optimizer.update, []

        def look(name, parameters=parameters, turns=turns, alive=alive, update=update, gradients=gradients):
            assert [n for n, p in parameters.items() if p.grad is not None] == [name]
            alive.append(sum(g().nbytes for g in gradients if g() is not None) + parameters[name].grad.nbytes)
            gradients.append(weakref.ref(parameters[name].grad))
            turns.append(name)
            update(name)

        optimizer.update = look
        optimizer.update_in_backward()
        backward(model)
        assert sorted(turns) == sorted(parameters)
        assert all(p.grad is None for p in parameters.values())
        largest = 4 * max(p.size for p in parameters.values())
        assert max(alive) <= 2 * largest < 4 * model.num_parameters() / 4
        before = {name: p.data.copy() for name, p in parameters.items()}
        optimizer.step()
        for name, p in parameters.items():
            np.testing.assert_array_equal(p.data, before[name])


def check_order():
    """From the head down to the embeddings; weights above have moved when those below get their gradient."""
    model, optimizer = start("full")
    turns, update = [], optimizer.update
    optimizer.update = lambda name: turns.append(name) or update(name)
    optimizer.update_in_backward()
    backward(model)
    assert turns[0] == "lm_head.weight"
    assert turns[-1] == "model.embed_tokens.weight"
    layers = [int(name.split(".")[2]) for name in turns if ".layers." in name]
    assert layers == sorted(layers, reverse=True)


def check_norm_begins_anew():
    model, optimizer = start()
    optimizer.update_in_backward()
    backward(model)
    assert optimizer.taken_norm() > 0
    assert optimizer.taken_norm() == 0.0


CHECKS = [check_same_bits, check_one_gradient_at_a_time, check_order, check_norm_begins_anew]


@pytest.mark.parametrize("check", CHECKS)
def test_per_layer(check, backend):
    check()


test_mutants = mutant_tests([
    (Optimizer.update_in_backward, "lambda p, name=name:", "lambda p:"),
    (Optimizer.update_now, "p.zero_grad()", "pass"),
    (Optimizer.update_now, "self.update(name)", "pass"),
    (Optimizer.update_now, "    p.zero_grad()", "    self.update(name)\n    p.zero_grad()"),
    (Optimizer.update_now, "square_sum([p.grad])", "square_sum([p.data])"),
    (Optimizer.update_now, "p.zero_grad()", "[other.zero_grad() for other in self.parameters.values() if other is not p]"),
    (Optimizer.update_now, "self.squares.append(square_sum([p.grad]))", "self.squares = [square_sum([p.grad])]"),
    (Optimizer.taken_norm, "sum(self.squares), []", "sum(self.squares), self.squares"),
    (Optimizer.taken_norm, "math.sqrt(total)", "total"),
    (Optimizer.taken_norm, "sum(self.squares)", "sum(math.sqrt(s) for s in self.squares) ** 2"),
    (square_sum, "square_sum(gradients) if", "square_sum(gradients[1:]) if"),
], *within("numpy", CHECKS))


# minisl.train

@pytest.mark.parametrize("flags", [{}, {"method": "full", "optimizer": "adam8bit", "activation_checkpointing": True}], ids=str)
def test_run_equals_one_without(tmp_path, flags):
    plain, per_layer = (run_job(tmp_path, **flags, **more, out=tmp_path / str(len(more))) for more in ({}, {"per_layer": True}))
    for name in checkpoint.TENSORS:
        left, right = (tensors(run, name) for run in (plain, per_layer))
        assert left.keys() == right.keys()
        for key in left:
            np.testing.assert_array_equal(left[key], right[key], err_msg=key)
    for a, b in zip(*(read(run / "metrics.jsonl") for run in (plain, per_layer)), strict=True):
        same = {"grad_norm": pytest.approx(a["grad_norm"], rel=1e-6), "tokens_per_second": b["tokens_per_second"]}
        assert b == a | same


@pytest.mark.parametrize(("flag", "why"), [
    ("--accumulate=2", "a gradient is gone before the next forward pass could add to it; allowed: 1"),
    ("--clip-norm=1", "the norm of all gradients is known when the last one is, and then the others are gone; allowed: 0"),
    ("--parts=2", "a gradient is complete only when the parts' gradients have been added; allowed: 1"),
])
def test_refused(tmp_path, capsys, flag, why):
    assert run_command(train.main, [*job(tmp_path), "--per-layer", flag]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("no Numba kernels")]
    assert line.startswith(f"error: --per-layer with {flag.split('=')[0]} ")
    assert line.endswith(why)
    assert not (tmp_path / "run").exists()


def test_tiny_has_two_parts_unless_per_layer():
    assert [parse(["--tiny", *flags])[0].parts for flags in ([], ["--per-layer"], ["--per-layer", "--parts=1"])] == [2, 1, 1]
