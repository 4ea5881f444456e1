"""SCALE's step number by number, and which of a model's parameters get which."""

import math

import numpy as np
from method_checks import SETTINGS
from mutation import mutant_tests

from minisl.methods import Method, scale
from minisl.methods.scale import EMBEDDINGS, HEAD, Normalised, held, held_elsewhere
from minisl.nn import LlamaConfig
from minisl.optim import SGD, Adam

SHAPES = {"model.layers.0.mlp.up_proj.weight": (5, 3), "model.layers.0.mlp.down_proj.weight": (3, 5),
          EMBEDDINGS: (7, 3), HEAD: (7, 3), "model.norm.weight": (3,)}


def rule_for(name, array, base=SGD, **options):
    method = Method("scale", SETTINGS | {"method_options": options})
    return (method.rule_in_block if "_proj" in name else method.rule_elsewhere)(name, array, base, None)


def rms(numbers):
    return math.sqrt(sum(x * x for x in numbers) / len(numbers))


def check_steps():
    """Three steps with weight decay: rows of matrices and head, columns of embeddings, gains by the base."""
    rng = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        W = rng.standard_normal(shape)
        rule, found, M = rule_for(name, W), W.copy(), np.zeros(shape)
        rule.weight_decay = 0.3
        for lr in (0.1, 0.05, 0.02):
            G = rng.standard_normal(shape)
            rule.update(found, G, lr)
            M = 0.9 * M + 0.1 * G if name == HEAD else G
            u = M.copy()
            if name == EMBEDDINGS:
                for j in range(shape[1]):
                    u[:, j] /= rms([M[i, j] for i in range(shape[0])])
            elif len(shape) > 1:
                for i in range(shape[0]):
                    u[i] /= rms([M[i, j] for j in range(shape[1])])
            W = W - lr * 0.3 * W - lr * u
        np.testing.assert_allclose(found, W, rtol=0, atol=1e-12, err_msg=name)


def check_zero_rows():
    """A row or a column without a gradient does not move; float32 stays, and the gradient is left as it was."""
    for name in (EMBEDDINGS, HEAD, "model.layers.0.mlp.up_proj.weight"):
        G = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
        G[1], G[:, 2] = 0, 0
        before, rule = G.copy(), rule_for(name, G)
        for _ in range(2):
            step = rule.direction(G)
            np.testing.assert_array_equal(G, before)
            assert step.dtype == np.float32
            assert not step[1].any()
            assert not step[:, 2].any()


def check_state():
    """Of a whole model: one momentum, of the head; Adam's moments for the gains alone."""
    method = Method("scale", SETTINGS)
    model = method.build(LlamaConfig(8, 12, 2, 2, vocab_size=16), np.random.default_rng(0))
    optimizer = method.optimizer(model, 0.1)
    for name, p in model.named_parameters():
        arrays = list(optimizer.rule(name).arrays())
        if p.data.ndim == 1:
            assert type(optimizer.rule(name)) is Adam
        else:
            assert type(optimizer.rule(name)) is Normalised
            assert [a.shape for a in arrays] == ([p.shape] if name == HEAD else [])
    assert held(8, 6, 0.9).state == 0
    for name, moments, state in ((EMBEDDINGS, (), 0), (HEAD, (), 48), ("model.norm.weight", (48,), 0)):
        kept = held_elsewhere(name, 48, 0.9)
        assert (kept.weights, kept.moments, kept.state) == ((48,), moments, state)


def test_steps():
    check_steps()


def test_zero_rows():
    check_zero_rows()


def test_state():
    check_state()


def test_head_without_momentum_is_a_row_of_a_matrix():
    G = np.random.default_rng(0).standard_normal((7, 3))
    head, matrix = (rule_for(name, G, momentum=0.0) for name in (HEAD, "model.layers.0.mlp.up_proj.weight"))
    for _ in range(2):
        np.testing.assert_allclose(head.direction(G), matrix.direction(G), rtol=1e-12)


def test_a_tied_table_is_an_embedding_and_learns():
    method = Method("scale", SETTINGS)
    model = method.build(LlamaConfig(16, 24, 2, 2, vocab_size=32, tie_word_embeddings=True), np.random.default_rng(0))
    optimizer = method.optimizer(model, 3e-3)
    ids, losses = np.random.default_rng(7).integers(0, 32, (4, 9)), []
    for _ in range(12):
        loss = model.loss(ids[:, :-1], ids[:, 1:], 1 / ids[:, 1:].size)
        loss.backward()
        optimizer.step()
        model.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert not list(optimizer.rule(EMBEDDINGS).arrays())


test_mutants = mutant_tests([
    (Normalised.direction, "u = self.average", "u = gradient"),
    (Normalised.direction, "(1 - self.b) * (gradient - self.average)", "self.b * (gradient - self.average)"),
    (Normalised.direction, ".mean(axis=self.axis, ", ".sum(axis=self.axis, "),
    (Normalised.direction, "axis=self.axis", "axis=1"),
    (Normalised.direction, "xp.maximum(xp.sqrt((u * u).mean(axis=self.axis, keepdims=True)), 1e-8)",
     "xp.sqrt((u * u).mean(axis=self.axis, keepdims=True))"),
    (scale.rule, "axis=1", "axis=0"),
    (scale.rule_elsewhere, "Normalised(axis=0)", "Normalised(axis=1)"),
    (scale.rule_elsewhere, "Normalised(1, like, momentum)", "Normalised(1)"),
    (scale.held_elsewhere, "state=size if name == HEAD else 0", "state=size"),
], check_steps, check_zero_rows, check_state)
