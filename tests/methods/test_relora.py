"""ReLoRA: merges, ranks, the warm start, and the rate."""

import numpy as np
import pytest
from method_checks import SETTINGS
from mutation import mutant_tests

from minisl import Tensor, gradcheck
from minisl.autograd import ops
from minisl.errors import InputError
from minisl.methods import Method, relora
from minisl.nn import LlamaConfig
from minisl.nn.module import Module
from minisl.optim import Optimizer

X, TARGET = np.random.default_rng(1).standard_normal((2, 30, 12))


class Block(Module):
    def __init__(self, layer):
        self.q_proj = layer


def start(rank=2, alpha=4.0, name="relora", **options):
    """(method, block with a 10 x 12 layer in float64, optimizer)"""
    method = Method(name, SETTINGS | {"rank": rank, "alpha": alpha, "method_options": options})
    block = Block(method.linear(12, 10, np.random.default_rng(5), "float64", "q_proj"))
    return method, block, method.optimizer(block, 0.0)


def run(job, first, last, steps=20, lr=0.05):
    """Updates first to last, least squares; the rates they were made with."""
    method, block, optimizer = job
    rates = []
    for step in range(first, last + 1):
        optimizer.lr = lr
        method.before_step(block, optimizer, step, steps, seed=3)
        rates.append(optimizer.lr)
        error = block.q_proj(Tensor(X)) - TARGET[:, :10]
        (error * error).sum().backward()
        optimizer.step()
        block.zero_grad()
    return rates


def check_gradient():
    """The layer as a function of x, B and A, against differences and against W + s B A written out."""
    layer = start()[1].q_proj
    rng = np.random.default_rng(0)
    B, A = rng.standard_normal((10, 2)), rng.standard_normal((2, 12))

    def forward(x, B, A):
        layer.lora_B, layer.lora_A = B, A
        return layer(x)

    gradcheck(forward, X[:4], B, A)
    W = layer.weight.data + 2.0 * B @ A  # alpha / r
    np.testing.assert_allclose(forward(*map(Tensor, (X, B, A))).data, X @ W.T, rtol=1e-12, atol=1e-12)


def check_merge():
    """It leaves the function alone, empties B, draws A anew and forgets the moments, but not how many updates there were; then B
    has a gradient and A has none."""
    job = method, block, optimizer = start(warm_start=0.0, every=4, rewarm=0)
    layer = block.q_proj
    run(job, 1, 5)
    before, A, W = layer.to_dense(), layer.lora_A.data.copy(), layer.weight.data.copy()
    assert set(optimizer.rules) == {"q_proj.lora_A", "q_proj.lora_B"}
    method.before_step(block, optimizer, 6, 20, seed=3)
    np.testing.assert_allclose(layer.to_dense(), before, rtol=0, atol=1e-12)
    assert np.abs(layer.weight.data - W).max() > 0.1
    assert not layer.lora_B.data.any()
    for name in ("q_proj.lora_A", "q_proj.lora_B"):
        assert not optimizer.rules[name].exp_avg.any()
        assert not optimizer.rules[name].exp_avg_sq.any()
        assert optimizer.rules[name].step == 5
    assert np.abs(layer.lora_A.data - A).min() > 0
    assert np.abs(layer.lora_A.data).max() <= 12**-0.5
    layer(Tensor(X)).sum().backward()
    assert np.abs(layer.lora_B.grad).min() > 0
    assert not layer.lora_A.grad.any()


def check_ranks():
    """W is a multiple of r away from where it was after each merge; what the factors add has rank r at any time."""
    job = _, block, _ = start(warm_start=0.0, every=3, rewarm=0)
    layer, W0 = block.q_proj, block.q_proj.weight.data.copy()
    for step in range(1, 14):
        run(job, step, step)
        assert np.linalg.matrix_rank(layer.weight.data - W0, 1e-9) == 2 * (step > 4) * ((step - 2) // 3)
        assert np.linalg.matrix_rank(layer.to_dense() - layer.weight.data, 1e-9) <= 2


def check_warm_start():
    """Until then the updates are those of full-rank training, and only W has moments; afterwards W rests and has none."""
    job = _, block, optimizer = start(warm_start=0.25, every=5, rewarm=0)
    dense = start(name="full")
    layer, A = block.q_proj, block.q_proj.lora_A.data.copy()
    dense[1].q_proj.weight.data = layer.weight.data.copy()
    run(job, 1, 5)
    run(dense, 1, 5)
    np.testing.assert_array_equal(layer.weight.data, dense[1].q_proj.weight.data)
    np.testing.assert_array_equal(layer.lora_A.data, A)
    assert set(optimizer.rules) == {"q_proj.weight"}
    W = layer.weight.data.copy()
    run(job, 6, 10)
    np.testing.assert_array_equal(layer.weight.data, W)
    assert set(optimizer.rules) == {"q_proj.lora_A", "q_proj.lora_B"}
    assert optimizer.rules["q_proj.lora_A"].step == 5  # counted from the end of the warm start
    run(job, 11, 12)
    assert np.abs(layer.weight.data - W).max() > 0.1


def check_rate():
    """Warmed up again after the warm start and each merge, by hand."""
    rates = run(start(warm_start=0.25, every=6, rewarm=4), 1, 20, lr=1.0)
    assert rates == [1, 1, 1, 1, 1, *[0, 0.25, 0.5, 0.75, 1, 1] * 2, 0, 0.25, 0.5]
    assert run(start(warm_start=0.0, every=2, rewarm=0), 1, 4, lr=1.0) == [1, 1, 1, 1]
    assert run(start(warm_start=0.0, every=4, rewarm=2), 1, 8, lr=1.0) == [1, 1, 1, 1, 0, 0.5, 1, 1]  # the run's own comes first


@pytest.mark.parametrize("check", [check_gradient, check_merge, check_ranks, check_warm_start, check_rate])
def test_law(check):
    check()


def test_resumed_with_more_steps_it_may_be_in_the_warm_start_again():
    """Then what the factors hold goes into W first: nothing is lost, and full-rank training goes on from it."""
    job = _, block, _ = start(warm_start=0.25, every=9)
    run(job, 1, 7, steps=12)
    _, other, _ = again = start(warm_start=0.25, every=9)
    other.load_state_dict(block.state_dict())
    before = other.q_proj.to_dense()
    again[0].before_step(other, again[2], 8, 40, seed=3)
    np.testing.assert_allclose(other.q_proj.to_dense(), before, rtol=0, atol=1e-12)
    np.testing.assert_allclose(other.q_proj(Tensor(X)).data, X @ before.T, rtol=1e-12, atol=1e-12)
    run(again, 8, 9, steps=40)
    assert np.abs(other.q_proj.weight.data - before).max() > 0.05


def test_activation_checkpointing_changes_no_gradient():
    config, ids, found = LlamaConfig(8, 12, 2, 2, vocab_size=16), np.random.default_rng(0).integers(0, 16, (2, 6)), []
    for on in (False, True):
        method = Method("relora", SETTINGS)
        model = method.build(config, np.random.default_rng(5), "float64")
        model.model.activation_checkpointing = on
        method.before_step(model, method.optimizer(model, 0.1), 9, 12)
        ops.cross_entropy(model(ids[:, :-1]), ids[:, 1:]).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in found[0].items():
        np.testing.assert_array_equal(gradient, found[1][name], err_msg=name)


@pytest.mark.parametrize("wrong", [{"warm_start": 1.5}, {"warm_start": -0.1}, {"every": 1}, {"rewarm": -1}, {"rank": 11}])
def test_values_that_cannot_be(wrong):
    with pytest.raises(InputError, match=r"allow|between"):
        start(**wrong)


test_mutants = mutant_tests([
    (relora.Adapted.backward, "grad @ (s * A.T)", "grad @ A.T"),
    (relora.ReLoRALinear.merge, "self.to_dense()", "self.weight.data + self.lora_B.data @ self.lora_A.data"),
    (relora.ReLoRALinear.merge, "self.lora_B.data[...] = 0", "self.lora_A.data[...] = 0"),
    (relora.ReLoRALinear.redraw, "A.shape[1]**-0.5", "0"),
    (relora.before_step, "layer.redraw(rng)", "pass"),
    (relora.before_step, 'reset(f"{path}.lora_B", f"{path}.lora_A", ', 'reset(f"{path}.lora_B", '),
    (relora.before_step, "keep_step=merging", "keep_step=False"),  # the first update after a merge as if it were the first
    (Optimizer.reset, "self.rule(name).step = old.step", "self.rules[name] = old"),  # moments kept as well
    (relora.before_step, 'optimizer.reset(f"{path}.weight")', "pass"),
    (relora.before_step, "done % every / min", "(done % every + 1) / min"),
    (relora.before_step, "done % every / min", "done / min"),
    (relora.before_step, "done > every and done % every == 1", "done % every == 0"),  # before the update with rate 0
    (relora.before_step, "(first or done >= every)", "first"),
    (relora.before_step, "(first or done >= every)", "True"),
    (relora.before_step, "step - 1 - first", "step - first"),
], check_gradient, check_merge, check_ranks, check_warm_start, check_rate)
