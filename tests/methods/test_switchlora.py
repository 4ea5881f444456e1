"""SwitchLoRA: a switch leaves the function alone, the counterpart is reset and held, and Adam counts for each vector."""

import math

import numpy as np
import pytest
from method_checks import SETTINGS
from mutation import mutant_tests

from minisl import Tensor, gradcheck
from minisl.autograd import ops
from minisl.errors import InputError
from minisl.methods import Method, switchlora
from minisl.methods.switchlora import SwitchLoRALinear, VectorAdam
from minisl.nn import LlamaConfig
from minisl.nn.module import Module

X = np.random.default_rng(1).standard_normal((7, 14))


class Block(Module):
    def __init__(self, layer):
        self.q_proj = layer


def layer(rank=8, alpha=4.0):
    """A 20 x 14 layer in float64: six candidates to eight in use."""
    return SwitchLoRALinear(14, 20, np.random.default_rng(5), "float64", rank=rank, alpha=alpha)


def check_start():
    """Both factors uniform within the published bounds, and so are the candidates."""
    one = SwitchLoRALinear(80, 100, np.random.default_rng(0), "float64", rank=20, alpha=1.0)
    std_A, std_B = (math.sqrt(100) * 20 / 80**1.5)**0.25 * 3**-0.25, (20 / math.sqrt(8000))**0.25 * 3**-0.25
    for values, std, shape in ((one.lora_A.data, std_A, (20, 80)), (one.spare_A, std_A, (60, 80)),
                               (one.lora_B.data, std_B, (100, 20)), (one.spare_B, std_B, (100, 60))):
        assert values.shape == shape
        assert 0.99 * 3**0.5 * std < np.abs(values).max() <= 3**0.5 * std
        assert abs(values.std() / std - 1) < 0.05
    assert one.scale == 1 / 20


def check_switch():
    """W + s B A stays to the last digits; as many rows and columns are new as were asked for, and no vector gets lost."""
    one = layer()
    dense, seen = one.to_dense(), set(one.lora_A.data[:, 0])
    vectors = [np.sort(np.concatenate(pair, axis), axis) for axis, pair in
               enumerate(((one.lora_A.data, one.spare_A), (one.lora_B.data, one.spare_B)))]
    for count in (1, 2, 3, 1, 2):
        A, B, W = one.lora_A.data.copy(), one.lora_B.data.copy(), one.weight.copy()
        rows, columns = one.switch(count)
        np.testing.assert_allclose(one.to_dense(), dense, rtol=0, atol=1e-12)
        assert np.abs(one.weight - W).max() > 0.1
        assert set(np.flatnonzero((one.lora_A.data != A).any(axis=1))) == set(rows)
        assert set(np.flatnonzero((one.lora_B.data != B).any(axis=0))) == set(columns)
        assert len(rows) == len(columns) == count
        assert not set(rows) & set(columns)
        seen |= set(one.lora_A.data[:, 0])
    for axis, pair in enumerate(((one.lora_A.data, one.spare_A), (one.lora_B.data, one.spare_B))):
        np.testing.assert_array_equal(np.sort(np.concatenate(pair, axis), axis), vectors[axis])
    assert len(seen) == 14  # nine switches: all six candidates have had their turn
    assert one.switches.tolist() == [9]


def check_waits():
    """A vector that is held is not switched, in whole runs at several ranks and rates: its turn waits, and comes."""
    for rank, every in ((2, 10), (3, 12), (8, 6)):
        method = Method("switchlora", SETTINGS | {"rank": rank, "method_options": {"every": every}})
        block = Block(layer(rank))
        optimizer = method.optimizer(block, 0.1)
        for step in range(1, 61):
            before = {n: getattr(block.q_proj, n).data.copy() for n in ("lora_A", "lora_B")}
            held = {n: optimizer.rule(f"q_proj.{n}").age.ravel() < 0 for n in before}
            method.before_step(block, optimizer, step, 2000, step)
            for axis, name in ((1, "lora_A"), (0, "lora_B")):
                assert not (held[name] & (getattr(block.q_proj, name).data != before[name]).any(axis=axis)).any()
            (block.q_proj(Tensor(X)) ** 2.0).sum().backward()
            optimizer.step()
            block.zero_grad()
        assert block.q_proj.switches[0] > 2


def check_adam():
    """Against Adam written out for one number at a time, with a count for each vector, restarts and holds."""
    rng = np.random.default_rng(0)
    b1, b2, eps, lr = 0.9, 0.999, 1e-8, 0.1
    for axis in (0, 1):
        start, gradients = rng.standard_normal((3, 4)), rng.standard_normal((9, 3, 4))
        rule, weights, decay = VectorAdam(start, axis), start.copy(), 0.3
        rule.weight_decay = decay
        x, m, v, t, rest = start.copy(), np.zeros((3, 4)), np.zeros((3, 4)), [0] * 4, [0] * 4
        for step, gradient in enumerate(gradients):
            for when, vector, hold in ((3, 1, 2), (4, 0, 3), (7, 1, 1)):
                if step == when:
                    rule.restart(np.array([vector]), hold)
                    t[vector], rest[vector] = 0, hold
                    m[(slice(None),) * axis + (vector,)] = v[(slice(None),) * axis + (vector,)] = 0
            rule.update(weights, gradient, lr)
            for k in range((3, 4)[axis]):
                if rest[k]:
                    rest[k] -= 1
                    continue
                t[k] += 1
                for other in range((4, 3)[axis]):
                    i = (k, other) if axis == 0 else (other, k)
                    m[i] = b1 * m[i] + (1 - b1) * gradient[i]
                    v[i] = b2 * v[i] + (1 - b2) * gradient[i]**2
                    x[i] *= 1 - lr * decay
                    x[i] -= lr * (m[i] / (1 - b1**t[k])) / (math.sqrt(v[i] / (1 - b2**t[k])) + eps)
            np.testing.assert_allclose(weights, x, rtol=1e-9, atol=1e-12)


def check_counterpart():
    """Of a row of A that was switched, the column of B is reset and held for five updates, and the other way round."""
    method = Method("switchlora", SETTINGS | {"rank": 8, "method_options": {"every": 4}})
    block = Block(layer())
    optimizer = method.optimizer(block, 0.1)

    def update():
        y = block.q_proj(Tensor(X))
        (y * y).sum().backward()
        optimizer.step()
        block.zero_grad()

    for _ in range(3):
        update()
    A, B = block.q_proj.lora_A.data.copy(), block.q_proj.lora_B.data.copy()
    method.before_step(block, optimizer, 1, 100)  # two switches, rho is 1
    rows, columns = (block.q_proj.lora_A.data != A).any(axis=1), (block.q_proj.lora_B.data != B).any(axis=0)
    assert rows.sum() == columns.sum() == 2
    for name, held in (("lora_B", rows), ("lora_A", columns)):
        rule = optimizer.rule(f"q_proj.{name}")
        np.testing.assert_array_equal(rule.age.ravel(), np.where(held, -5, 3))
        for moment in (rule.exp_avg, rule.exp_avg_sq):
            moved = moment.any(axis=0 if name == "lora_B" else 1)
            np.testing.assert_array_equal(moved, ~held)
    for number in range(1, 7):
        A, B = block.q_proj.lora_A.data.copy(), block.q_proj.lora_B.data.copy()
        update()
        np.testing.assert_array_equal((block.q_proj.lora_B.data != B).any(axis=0), ~rows | (number == 6))
        np.testing.assert_array_equal((block.q_proj.lora_A.data != A).any(axis=1), ~columns | (number == 6))


def check_frequency():
    """r / 40 switches an update at first, three tenths of that after a tenth of the run."""
    method = Method("switchlora", SETTINGS | {"rank": 8})
    for step, mean, slack in ((1, 0.2, 0.045), (11, 0.06, 0.027)):  # five standard deviations
        block = Block(layer())
        optimizer = method.optimizer(block, 0.1)
        for seed in range(2000):
            method.before_step(block, optimizer, step, 100, seed)
            for rule in optimizer.rules.values():
                rule.age[...] = 1  # no vector is held
        assert abs(int(block.q_proj.switches[0]) / 2000 - mean) < slack


@pytest.mark.parametrize("check", [check_start, check_switch, check_waits, check_adam, check_counterpart, check_frequency])
def test_law(check):
    check()


def test_gradient():
    one = layer()

    def forward(x, B, A):
        one.lora_B, one.lora_A = B, A
        return one(x)

    B, A = one.lora_B.data, one.lora_A.data
    gradcheck(forward, X, B, A)
    np.testing.assert_allclose(forward(*map(Tensor, (X, B, A))).data, X @ (one.weight + 0.5 * B @ A).T, rtol=1e-12, atol=1e-12)


def test_any_base_optimizer_is_for_the_rest_of_the_model():
    method = Method("switchlora", SETTINGS)
    model = method.build(LlamaConfig(16, 24, 1, 2, vocab_size=32), np.random.default_rng(0))
    for base in ("sgd", "adam8bit", "adamw"):
        optimizer = method.optimizer(model, 0.1, base)
        rules = {type(optimizer.rule(name)).__name__ for name in optimizer.parameters if "_proj" in name}
        assert rules == {"VectorAdam"}
    assert type(method.optimizer(model, 0.1, "sgd").rule("lm_head.weight")).__name__ == "SGD"


def test_activation_checkpointing_changes_no_gradient():
    config, ids, found = LlamaConfig(8, 12, 2, 2, vocab_size=16), np.random.default_rng(0).integers(0, 16, (2, 6)), []
    for on in (False, True):
        model = Method("switchlora", SETTINGS).build(config, np.random.default_rng(5), "float64")
        model.model.activation_checkpointing = on
        ops.cross_entropy(model(ids[:, :-1]), ids[:, 1:]).backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in found[0].items():
        np.testing.assert_array_equal(gradient, found[1][name], err_msg=name)


@pytest.mark.parametrize("rank", [0, 1, 14, 15])
def test_a_rank_that_leaves_no_candidates(rank):
    with pytest.raises(InputError, match="2 to 13"):
        layer(rank=rank)


test_mutants = mutant_tests([
    (SwitchLoRALinear.switch, "@ (old - new)", "@ (new - old)"),
    (SwitchLoRALinear.switch, "self.scale * (old - new)", "old - new"),
    (SwitchLoRALinear.switch, "A[rows], self.spare_A[line] = new, old", "A[rows] = new"),
    (SwitchLoRALinear.switch, "(turn + r // 2) % r", "turn % r"),
    (SwitchLoRALinear.__init__, "(3 * gain)**0.5 * (r", "gain**0.5 * (r"),
    (VectorAdam.restart, "self.exp_avg[where] = self.exp_avg_sq[where] = 0", "self.exp_avg[where] = 0"),
    (VectorAdam.direction, "gradient * (self.age > 0)", "gradient"),
    (VectorAdam.direction, "xp.maximum(self.age, 1)", "xp.full_like(self.age, self.age.max())"),
    (switchlora.before_step, '("lora_A", "lora_B")', '("lora_B", "lora_A")'),
    (SwitchLoRALinear.switch, "held.argmax()) if held.any()", "0) if False"),
    (VectorAdam.update, " * (self.age > 0)", ""),
    (switchlora.before_step, "(0.1 * steps)", "steps"),
    (switchlora.before_step, " + rng.random()", " + 0.5"),
], check_start, check_switch, check_waits, check_adam, check_counterpart, check_frequency)
