"""Drop-Muon: what moves in a step, what does not, and that the backward pass ends where it says."""

import numpy as np
import pytest
from method_checks import SETTINGS
from mutation import mutant_tests

from minisl.methods import Method, drop_muon
from minisl.nn import LlamaConfig

CONFIG = LlamaConfig(8, 12, 4, 2, vocab_size=16)
IDS = np.random.default_rng(7).integers(0, 16, (2, 7))


class Fixed:
    """A generator that draws what it is told."""

    def __init__(self, value):
        self.value = value

    def integers(self, n):
        assert n == 4
        return self.value


def start(name="drop_muon", config=CONFIG, **options):
    method = Method(name, SETTINGS | {"method_options": options})
    model = method.build(config, np.random.default_rng(0))
    return method, model, method.optimizer(model, 1e-2)


def loss_of(model):
    return model.loss(IDS[:, :-1], IDS[:, 1:], 1 / IDS[:, 1:].size)


def step(model, optimizer, first):
    """One update with the first moving block given; the names that had a gradient."""
    drop_muon.before_step(model, optimizer, 1, 9, Fixed(first), "uniform")
    loss_of(model).backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    model.zero_grad()
    return moved


def above(model, first):
    """The names that move, by hand."""
    below = {f"layers.{l}" for l in range(first)}
    return {name for name, _ in model.named_parameters()
            if ".".join(name.split(".")[1:3]) not in below and not (first and "embed_tokens" in name)}


def check_what_moves():
    """Blocks from the one drawn on, norm and head; of the rest neither weights nor momentum. A later step brings all back."""
    _, model, optimizer = start()
    step(model, optimizer, 0)
    for first in (3, 1, 0, 2):
        before = {k: a.copy() for k, a in (model.state_dict() | optimizer.state_dict()).items()}
        moved = step(model, optimizer, first)
        assert moved == above(model, first)
        assert ("model.embed_tokens.weight" in moved) == (first == 0)
        after = model.state_dict() | optimizer.state_dict()
        for key, array in before.items():
            name = key if key in dict(model.named_parameters()) else key.partition(".")[2]
            assert np.array_equal(array, after[key]) == (name not in moved), key


def check_gradients():
    """What moves gets the gradients of the whole backward pass, with and without activation checkpointing."""
    for checkpointing in (False, True):
        _, model, optimizer = start()
        model.model.activation_checkpointing = checkpointing
        loss_of(model).backward()
        whole = {name: p.grad for name, p in model.named_parameters()}
        model.zero_grad()
        drop_muon.before_step(model, optimizer, 1, 9, Fixed(2), "uniform")
        loss_of(model).backward()
        for name, p in model.named_parameters():
            assert (p.grad is not None) == (name in above(model, 2))
            assert p.grad is None or np.array_equal(p.grad, whole[name])


def check_by_numpy():
    """Four updates by NumPy alone: a block that rests keeps M and W, one that moves makes Muon's step from its own M."""
    method = Method("drop_muon", SETTINGS | {"method_options": {}})
    model = method.build(CONFIG, np.random.default_rng(0), "float64")
    optimizer = method.optimizer(model, 1e-2)
    layers = [block.mlp.up_proj.weight for block in model.model.layers]
    W, M = [p.data.copy() for p in layers], [np.zeros((12, 8)) for _ in layers]
    for first in (2, 0, 3, 1):
        for p in model.parameters():
            p.requires_grad = True
        loss_of(model).backward()
        gradients = [p.grad.copy() for p in layers]
        model.zero_grad()
        step(model, optimizer, first)
        for l in range(first, 4):
            M[l] = 0.95 * M[l] + 0.05 * gradients[l]
            U, s, Vt = np.linalg.svd(0.95 * M[l] + 0.05 * gradients[l], full_matrices=False)
            s = s / (np.sqrt((s**2).sum()) + 1e-7)
            for _ in range(5):
                s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
            W[l] = W[l] - 1e-2 * 0.2 * 12**0.5 * (U * s) @ Vt
        for p, right in zip(layers, W):
            np.testing.assert_allclose(p.data, right, rtol=0, atol=1e-8)


def check_every_block_comes_first_as_often():
    _, model, optimizer = start()
    rng, counts = np.random.default_rng(0), np.zeros(4)
    for t in range(2000):
        drop_muon.before_step(model, optimizer, t, 2000, rng, "uniform")
        counts[[block.mlp.up_proj.weight.requires_grad for block in model.model.layers].index(True)] += 1
    assert abs(counts / 2000 - 0.25).max() < 0.05  # five standard deviations


def check_none_is_muon():
    results = []
    for name, options in (("muon", {}), ("drop_muon", {"drop": "none"})):
        method, model, optimizer = start(name, **options)
        for t in (1, 2, 3):
            method.before_step(model, optimizer, t, 3)
            loss_of(model).backward()
            optimizer.step()
            model.zero_grad()
        results.append(model.state_dict())
    for key, array in results[0].items():
        np.testing.assert_array_equal(array, results[1][key])


def test_what_moves():
    check_what_moves()


def test_gradients():
    check_gradients()


def test_by_numpy():
    check_by_numpy()


def test_every_block_comes_first_as_often():
    check_every_block_comes_first_as_often()


def test_none_is_muon():
    check_none_is_muon()


def nodes(tensor):
    """How many ops a backward pass from here would visit."""
    seen, left = set(), [tensor.node]
    while left:
        node = left.pop()
        if node not in seen and hasattr(node, "parents"):
            seen.add(node)
            left += [p for p in node.parents if p is not None]
    return len(seen)


def test_below_the_first_block_nothing_is_recorded():
    """A step's graph holds the ops of the blocks that move: each of the four as many."""
    _, model, optimizer = start()
    sizes = []
    for first in range(4):
        drop_muon.before_step(model, optimizer, 1, 9, Fixed(first), "uniform")
        sizes.append(nodes(loss_of(model)))
    whole, *rest = -np.diff(sizes)
    assert rest[0] == rest[1]
    assert whole - rest[0] <= 2  # the embedding, and what joins it to block 1
    assert sizes[3] < sizes[0] / 3


@pytest.mark.parametrize("drop", ["uniform", "none"])
def test_tied_table_moves_as_the_embedding(drop):
    method, model, optimizer = start(config=LlamaConfig(8, 12, 4, 2, vocab_size=16, tie_word_embeddings=True), drop=drop)
    table, moved = model.model.embed_tokens.weight, 0
    for t in range(1, 17):
        method.before_step(model, optimizer, t, 16)
        before = table.data.copy()
        loss_of(model).backward()
        optimizer.step()
        model.zero_grad()
        assert table.requires_grad == (not np.array_equal(before, table.data))
        moved += table.requires_grad
    assert moved == 16 if drop == "none" else 1 <= moved <= 10


test_mutants = mutant_tests([
    (drop_muon.before_step, "requires_grad = first == 0", "requires_grad = True"),
    (drop_muon.before_step, "l >= first", "l > first"),
    (drop_muon.before_step, "l >= first", "l <= first"),
    (drop_muon.before_step, "= l >= first", "&= l >= first"),
    (drop_muon.before_step, "block.parameters()", "block.mlp.parameters()"),
    (drop_muon.before_step, 'drop == "uniform"', "True"),
    (drop_muon.before_step, "rng.integers(len(blocks))", "step % len(blocks)"),
], check_what_moves, check_gradients, check_by_numpy, check_every_block_comes_first_as_often, check_none_is_muon)
