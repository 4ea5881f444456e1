"""The tree of modules: what is in containers is found, what is there under two names is one."""

import copy

import numpy as np
import pytest
from mutation import mutant_tests

from minisl import Tensor, optim
from minisl.nn import Linear, Module, Parameter
from minisl.nn.module import _inside


def linear(seed=0):
    return Linear(3, 3, np.random.default_rng(seed), "float64", std=1.0)


class Tied(Module):
    """One weight under two names, and one layer in two places; the second is a way round in a circle."""

    def __init__(self):
        self.embed, self.head, self.layer = linear(), linear(1), linear(2)
        self.head.weight = self.embed.weight
        self.blocks = [self.layer]
        self.layer.owner = self

    def forward(self, x):
        return self.head(self.blocks[0](self.layer(self.embed(x))))


class Held(Module):
    def __init__(self):
        self.rows = [[linear(0)], (linear(1), {"deep": linear(2)})]
        self.heads = {"a": linear(3), "b": [linear(4)]}
        self.scales = [Parameter(np.ones(2)), {"g": Parameter(np.ones(1))}]

    def all(self):
        return [self.rows[0][0], self.rows[1][0], self.rows[1][1]["deep"], self.heads["a"], self.heads["b"][0]]


def check_containers():
    model = Held()
    places = ["rows.0.0", "rows.1.0", "rows.1.1.deep", "heads.a", "heads.b.0"]
    assert [path for path, _ in model.named_modules()] == ["", *places]
    names = ["scales.0", "scales.1.g", *(f"{path}.weight" for path in places)]
    assert [name for name, _ in model.named_parameters()] == names
    assert model.num_parameters() == 5 * 9 + 3
    other = Held()
    other.load_state_dict({name: array + 1 for name, array in model.state_dict().items()})
    assert all(np.array_equal(a.data, b.data + 1) for a, b in zip(other.parameters(), model.parameters()))


def check_replaced_in_containers():
    model, seen = Held(), []
    model.replace_modules(lambda path, module: seen.append(path) or linear(9))
    assert seen == ["rows.0.0", "rows.1.0", "rows.1.1.deep", "heads.a", "heads.b.0"]
    assert all(np.array_equal(module.weight.data, linear(9).weight.data) for module in model.all())


def check_replaced_in_both_places():
    model, seen = Tied(), []
    model.replace_modules(lambda path, module: seen.append(path) or (linear(9) if path == "layer" else module))
    assert seen == ["embed", "head", "layer"]
    assert model.blocks[0] is model.layer
    assert np.array_equal(model.layer.weight.data, linear(9).weight.data)


def check_named_once():
    model = Tied()
    assert [name for name, _ in model.named_parameters()] == ["embed.weight", "layer.weight"]
    assert [path for path, _ in model.named_modules()] == ["", "embed", "head", "layer"]
    assert [path for path, _ in model.named_modules(remove_duplicate=False)] == ["", "embed", "head", "layer", "blocks.0"]
    assert model.num_parameters() == 18
    assert list(model.state_dict()) == ["embed.weight", "head.weight", "layer.weight", "blocks.0.weight"]  # as in PyTorch


def stepped(model, optimizer):
    """The weights after two steps."""
    for _ in range(2):
        (model(Tensor(np.random.default_rng(5).standard_normal((2, 3)))) ** 2).sum().backward()
        optimizer.step()
        model.zero_grad()
    return [p.data for p in model.parameters()]


def check_moved_once():
    """Also where the caller names it twice, in one step and in backward."""
    both = {"embed.weight": None, "head.weight": None, "layer.weight": None, "blocks.0.weight": None}
    right = stepped(model := Tied(), optim.AdamW(model.named_parameters(), 0.1))
    for in_backward in (False, True):
        model = Tied()
        pairs = [(name, model.embed.weight if name in ("embed.weight", "head.weight") else model.layer.weight) for name in both]
        optimizer = optim.AdamW(pairs, 0.1)
        if in_backward:
            optimizer.update_in_backward()
        assert list(optimizer.parameters) == ["embed.weight", "layer.weight"]
        assert all(map(np.array_equal, stepped(model, optimizer), right))


def check_clipped_once():
    p, q = Parameter(np.zeros(2)), Parameter(np.zeros(1))
    for twice in ([p, p, q], iter([p, q, p])):
        p.grad, q.grad = np.array([3.0, 0.0]), np.array([4.0])
        assert optim.grad_norm([p, q, p]) == 5
        assert optim.clip_grad_norm(twice, 0.5) == 5
        np.testing.assert_allclose([*p.grad, *q.grad], [0.3, 0, 0.4])


def check_saved_and_loaded():
    model, other = Tied(), Tied()
    for p in model.parameters():
        p.data = p.data + 1
    other.load_state_dict(model.state_dict())
    assert other.embed.weight is other.head.weight
    assert all(np.array_equal(a.data, b.data) for a, b in zip(model.parameters(), other.parameters()))
    assert copy.deepcopy(model).head.weight is not model.head.weight
    copied = copy.deepcopy(model)
    assert copied.embed.weight is copied.head.weight
    assert copied.layer.owner is copied


CHECKS = [f for name, f in list(globals().items()) if name.startswith("check_")]


@pytest.mark.parametrize("check", CHECKS)
def test_modules(check):
    check()


test_mutants = mutant_tests([
    (Module.named_parameters, "if p not in seen:", "if True:"),
    (Module.named_modules, "if module not in seen:", "if True:"),
    (Module.replace_modules, "done[value] = change(path, value)", "return change(path, value)"),
    (Module.replace_modules, "elif type(value) is tuple:", "elif False:"),
    (Module.replace_modules, "value |= {", "{"),
    (Module._parameter_places, "self._places()", "self.named_modules()"),
    (_inside, "yield from _inside", "yield from [(path, item)] or"),
    (optim.clip_grad_norm, "dict.fromkeys(parameters)", "list(parameters)"),
    (optim.grad_norm, "dict.fromkeys(parameters)", "parameters"),
], *CHECKS)
