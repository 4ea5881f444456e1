"""FRUGAL: which layers have their turn, a step of each split by hand, and that rho = 1 is Adam and rho = 0 signSGD."""

import numpy as np
import pytest
from mutation import mutant_tests

from minisl.backend import generator
from minisl.errors import InputError
from minisl.memory.formula import kept
from minisl.methods import Method, frugal
from minisl.nn import LlamaConfig
from minisl.optim import RULES, Adam


def train(steps=6, layers=2, dtype="float64", name="frugal", weight_decay=0.0, **options):
    """(model, optimizer, gradients of each step, start) of a job on random gradients, lr 0.01."""
    config = LlamaConfig(8, 12, layers, 2, vocab_size=16)
    method = Method(name, {"method_options": options})
    model = method.build(config, np.random.default_rng(1), dtype)
    optimizer = method.optimizer(model, 0.01, weight_decay=weight_decay, seed=3)
    start = {name: p.data.copy() for name, p in model.named_parameters()}
    rng, gradients = np.random.default_rng(2), []
    for step in range(1, steps + 1):
        method.before_step(model, optimizer, step, steps, seed=3)
        gradients.append({name: rng.standard_normal(p.shape).astype(dtype) for name, p in model.named_parameters()})
        for name, p in model.named_parameters():
            p.grad = gradients[-1][name]
        optimizer.step()
    return model, optimizer, gradients, start


def adam(gradients, lr=0.01):
    """The sum of Adam's steps from fresh moments, one number at a time."""
    moved, m, v = np.zeros(gradients[0].shape), np.zeros(gradients[0].shape), np.zeros(gradients[0].shape)
    for i in np.ndindex(moved.shape):
        for t, g in enumerate(gradients, 1):
            m[i], v[i] = 0.9 * m[i] + 0.1 * g[i], 0.999 * v[i] + 0.001 * g[i] ** 2
            moved[i] += lr * m[i] / (1 - 0.9**t) / (np.sqrt(v[i] / (1 - 0.999**t)) + 1e-8)
    return moved


def check_turns():
    """From the last layer to the first, n = ceil(rho L) at a time, and around; each equally often where n divides L."""
    assert [frugal.turns(p, 8, 0.25) for p in range(5)] == [{7, 6}, {5, 4}, {3, 2}, {1, 0}, {7, 6}]
    assert [frugal.turns(p, 5, 0.25) for p in range(3)] == [{4, 3}, {2, 1}, {0, 4}]
    assert frugal.turns(3, 2, 0.25) == {0}
    assert frugal.turns(7, 3, 1.0) == {0, 1, 2}
    assert frugal.turns(7, 3, 0.0) == set()
    assert len(frugal.turns(0, 100, 0.07)) == 7


def check_blocks_by_hand():
    """Three periods of two updates over two layers: each moves by Adam with fresh moments in its turn, else by a sign(g)."""
    model, optimizer, gradients, start = train(6, density=0.5, every=2, free_rate=0.3)
    for name, p in model.named_parameters():
        g = [step[name] for step in gradients]
        if "_proj" not in name:
            moved = adam(g)
        else:
            mine = [0, 2] if ".1." in name else [1]  # periods
            moved = sum(adam(g[2 * k : 2 * k + 2]) if k in mine else 0.01 * 0.3 * np.sign(g[2 * k : 2 * k + 2]).sum(0)
                        for k in range(3))
        np.testing.assert_allclose(start[name] - p.data, moved, rtol=1e-9, atol=1e-12, err_msg=name)
    on = {name for name in optimizer.rules if "_proj" in name and list(optimizer.rule(name).arrays())}
    assert len(on) == 7
    assert all(".1." in name for name in on)


def check_rho_one_is_adam():
    """To the bit over blocks, whose P is I; with any split to rounding, since nothing may be left over to take a sign of."""
    right = train(5, name="full", weight_decay=0.1)[0].state_dict()
    for split in ("blocks", "svd", "random"):
        found = train(5, split=split, density=1.0, every=2, weight_decay=0.1)[0].state_dict()
        for name in right:
            if split == "blocks":
                np.testing.assert_array_equal(found[name], right[name])
            np.testing.assert_allclose(found[name], right[name], rtol=1e-12, atol=1e-15)


def check_rho_zero_is_sign_sgd():
    for split in ("blocks", "svd", "random"):
        model, optimizer, gradients, start = train(5, split=split, density=0.0, every=2, weight_decay=0.1)
        for name, p in model.named_parameters():
            if "_proj" in name:
                W = start[name].copy()
                for g in gradients:
                    W = W - 0.01 * 0.1 * W - 0.01 * np.sign(g[name])
                np.testing.assert_allclose(p.data, W, rtol=1e-12, atol=1e-15)
                assert not list(optimizer.rule(name).arrays())


def check_split_by_hand():
    """Adam on P g, sign on g - P^T P g, wide and tall, for an svd computed here; the second period starts from fresh moments."""
    rng = np.random.default_rng(0)
    for shape in ((6, 9), (9, 6)):
        rule = frugal.rule("q_proj", np.zeros(shape), Adam, lambda t: generator(0, t), "svd", 0.34, 2, 0.3)  # r = round(2.04)
        g = [rng.standard_normal(shape) for _ in range(4)]
        W, P, seen = np.zeros(shape), None, []
        right = np.zeros(shape)
        for t in range(4):
            rule.update(W, g[t], 0.01)
            wide = g[t] if shape[0] < shape[1] else g[t].T  # its short side is the first
            if t % 2 == 0:
                P, seen = np.linalg.svd(wide)[0][:, :2].T, []
            seen.append(P @ wide)
            moved = P.T @ (adam(seen) - (adam(seen[:-1]) if seen[:-1] else 0)) + 0.003 * np.sign(wide - P.T @ P @ wide)
            right -= moved if shape[0] < shape[1] else moved.T
        np.testing.assert_allclose(W, right, rtol=1e-9, atol=1e-12)


def test_turns():
    check_turns()


def test_blocks_by_hand(backend):
    check_blocks_by_hand()


def test_rho_one_is_adam(backend):
    check_rho_one_is_adam()


def test_rho_zero_is_sign_sgd():
    check_rho_zero_is_sign_sgd()


def test_split_by_hand():
    check_split_by_hand()


@pytest.mark.parametrize("split", ["blocks", "svd", "random"])
@pytest.mark.parametrize(("layers", "density"), [(2, 0.25), (3, 0.5), (5, 0.3), (4, 0.0), (4, 1.0)])
def test_weighs_what_its_formula_says_at_every_step(split, layers, density):
    """Of the optimizer's state, also where the turns do not divide the layers."""
    config = LlamaConfig(8, 12, layers, 2, vocab_size=16)
    method = Method("frugal", {"method_options": {"split": split, "density": density, "every": 2}})
    for steps in (1, 2, 3, 5):
        found = train(steps, layers, "float32", split=split, density=density, every=2)[1].arrays()
        assert sum(a.nbytes for a in found) == kept(method, config, "float32")["optimizer"]


@pytest.mark.parametrize("split", ["blocks", "svd", "random"])
@pytest.mark.parametrize("base", RULES)
def test_state_goes_into_a_new_rule(split, base):
    """Whether it was its turn or not, and in the middle of a period."""
    config = LlamaConfig(8, 12, 2, 2, vocab_size=16)
    method = Method("frugal", {"method_options": {"split": split, "every": 4}})
    model = method.build(config, np.random.default_rng(1))
    one, two = (method.optimizer(model, 0.01, base, seed=3) for _ in range(2))
    gradient = np.random.default_rng(0).standard_normal
    for step in range(1, 6):
        method.before_step(model, one, step, 9, seed=3)
        for p in model.parameters():
            p.grad = gradient(p.shape).astype("float32")
        one.step()
    two.load_state_dict(one.state_dict())
    assert one.state_dict().keys() == two.state_dict().keys()
    for step in (6, 9):
        ends, before = [], model.state_dict()
        for optimizer in (one, two):
            model.load_state_dict({name: array.copy() for name, array in before.items()})
            method.before_step(model, optimizer, step, 9, seed=3)
            optimizer.step()
            ends.append(model.state_dict())
        for name in ends[0]:
            np.testing.assert_array_equal(ends[0][name], ends[1][name])


def test_density_that_cannot_be():
    with pytest.raises(InputError, match=r"--density 1\.5: must lie between 0 and 1"):
        train(1, density=1.5)


test_mutants = mutant_tests(
    [(frugal.turns, "L - 1 - n * period - i", "L - 1 - period - i"),  # a window that slides
     (frugal.turns, "- i) % L", "+ i) % L"),
     (frugal.full_layers, "math.ceil(density * L - 1e-9)", "round(density * L)"),  # none of two layers
     (frugal.full_layers, " - 1e-9", ""),  # 0.07 * 100 is 7.000000000000001
     (frugal.before_step, "(step - 1) // every", "step // every"),  # the first period is a step short
     (frugal.InTurn.turn, "if on else None", "if on or self.full else None"),  # moments that stay, and memory with them
     (frugal.InTurn.turn, "(self.full or self.start())", "self.start()"),  # fresh moments at every update
     (frugal.InTurn.update, "self.full or self.free", "self.free"),
     (frugal.InTurn.update, "now.weight_decay = self.weight_decay", "pass"),
     (frugal.Sign.direction, "self.rate * ", ""),
     (frugal.Split.direction, "self.full, self.chosen = self.start(), ", "self.chosen = "),  # moments of another subspace
     (frugal.Split.direction, "self.free.direction(left_over)", "self.free.direction(gradient)"),  # what is seen moves twice
     (frugal.Split.direction, "self.step += 1", "pass"),
     (frugal.subspace, 'split if rank < min(shape) else "identity"', "split")],  # signs of rounding noise at rho = 1
    check_turns, check_rho_zero_is_sign_sgd, check_rho_one_is_adam, check_split_by_hand, check_blocks_by_hand)
