"""SST: the SVD that is held, the enhanced gradients, the choice of active vectors."""

import numpy as np
import pytest
from method_checks import SETTINGS
from mutation import mutant_tests

from minisl import Tensor, gradcheck
from minisl.autograd import ops
from minisl.errors import InputError
from minisl.methods import Method, sst
from minisl.methods.sst import Spectral, SSTLinear
from minisl.nn import LlamaConfig
from minisl.nn.module import Module
from minisl.optim.sgd import SGD

X, TARGET = np.random.default_rng(1).standard_normal((2, 9, 7))


class Block(Module):
    def __init__(self, layer):
        self.q_proj = layer


def layer(rank=2):
    """A 5 x 7 layer in float64."""
    return SSTLinear(7, 5, np.random.default_rng(5), "float64", rank=rank)


def whole(one):
    """U, S, V with the active vectors first"""
    return np.hstack([one.U.data, one.U_rest]), one.S.data.copy(), np.vstack([one.V.data, one.V_rest])


def check_svd():
    """A new round leaves W as it is, and holds an SVD of it: U and V orthonormal, S its singular values."""
    one = layer()
    rng = np.random.default_rng(0)
    for p in one.parameters():
        p.data += 0.1 * np.abs(rng.standard_normal(p.shape))  # no SVD of anything now
    W = one.to_dense()
    one.begin_round(W, rng)
    U, S, V = whole(one)
    np.testing.assert_allclose(one.to_dense(), W, rtol=0, atol=1e-10)
    np.testing.assert_allclose((U * S) @ V, W, rtol=0, atol=1e-10)
    np.testing.assert_allclose(U.T @ U, np.eye(5), rtol=0, atol=1e-10)
    np.testing.assert_allclose(V @ V.T, np.eye(5), rtol=0, atol=1e-10)
    np.testing.assert_allclose(np.sort(S), np.sort(np.linalg.svd(W)[1]), rtol=0, atol=1e-10)
    assert all(array.flags.c_contiguous for array in (one.U.data, one.U_rest, one.V.data, one.V_rest))  # as one that was loaded


def check_gradient():
    """From G = dL/dW: u_i^T G v_i for every S_i, G v_i and G^T u_i for the active vectors; S and x against differences too."""
    one = layer()
    x, dy = Tensor(X, requires_grad=True), TARGET[:, :5]
    one(x).backward(dy)
    G = np.zeros((5, 7))
    for row, d in zip(X, dy):  # y = W x for each row
        G += np.outer(d, row)
    U, S, V = whole(one)
    for i in range(5):
        assert abs(one.S.grad[i] - U[:, i] @ G @ V[i]) < 1e-12
    for i in range(2):
        np.testing.assert_allclose(one.U.grad[:, i], G @ V[i], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(one.V.grad[i], G.T @ U[:, i], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(x.grad, dy @ (U * S) @ V, rtol=1e-12, atol=1e-12)

    def forward(x, S):
        one.S = S
        return one(x)

    gradcheck(forward, X, S)


def start(lr=0.1, rank=2, weight_decay=0.0, **options):
    method = Method("sst", SETTINGS | {"rank": rank, "method_options": options})
    block = Block(layer(rank))
    return method, block, method.optimizer(block, lr, weight_decay=weight_decay)


def update(job, step, lr=0.1):
    """One update, least squares; its rate."""
    method, block, optimizer = job
    optimizer.lr = lr
    method.before_step(block, optimizer, step, 12, seed=3)
    error = block.q_proj(Tensor(X)) - TARGET[:, :5]
    (error * error).sum().backward()
    optimizer.step()
    block.zero_grad()
    return optimizer.lr


def check_update():
    """Active vectors move and keep length 1, the others rest, S never goes below 0 and is moved by Adam above it."""
    job = _, block, optimizer = start(rewarm=0)
    one, low = block.q_proj, []
    for step in range(1, 9):
        U, S, V = whole(one)
        update(job, step)
        found = whole(one)
        np.testing.assert_allclose(np.linalg.norm(one.U.data, axis=0), 1, rtol=1e-12)
        np.testing.assert_allclose(np.linalg.norm(one.V.data, axis=1), 1, rtol=1e-12)
        np.testing.assert_array_equal((found[0] != U).any(axis=0), np.arange(5) < 2)
        np.testing.assert_array_equal((found[2] != V).any(axis=1), np.arange(5) < 2)
        low.append(found[1].min())
        if step == 1:  # Adam's first step is the rate, either way
            down, up = np.maximum(S - 0.1, 0), S + 0.1
            assert np.minimum(abs(found[1] - down), abs(found[1] - up)).max() < 1e-6
    assert min(low) == 0  # some would have gone below
    assert sum(a.size for a in optimizer.arrays()) == 2 * 2 * (5 + 7) + 2 * 5


def check_decay():
    """Weight decay reaches the rule inside."""
    rule, S = sst.rule("q_proj.S", np.ones(3), SGD, None), np.ones(3)
    rule.weight_decay = 0.5
    rule.update(S, np.array([1.0, 0, 20]), 0.1)
    np.testing.assert_allclose(S, [0.85, 0.95, 0], rtol=1e-12)


def check_choice():
    """p_i = (1/s + S_i / sum S) / 2, against frequencies; the rest keeps its place beside its values."""
    one, rng, W = layer(rank=1), np.random.default_rng(0), np.eye(5, 7) * [4, 2, 1, 0.6, 0.4, 0, 0]
    found = []
    for _ in range(3000):
        one.begin_round(W, rng)
        found.append(one.S.data[0])
    for value in (4, 2, 1, 0.6, 0.4):
        p = (1 / 5 + value / 8) / 2
        assert abs(np.isclose(found, value).mean() - p) < 0.045  # five standard deviations
    assert len(set(np.round(one.S.data, 6))) == 5


def check_rounds():
    """Every three updates: another choice of the same W, no moments, and the rate warmed up again."""
    job = method, block, optimizer = start(every=3, rewarm=2)
    rates = []
    for step in range(1, 8):
        if step in (4, 7):
            W, active = block.q_proj.to_dense(), block.q_proj.U.data.copy()
            method.before_step(block, optimizer, step, 12, seed=3)
            np.testing.assert_allclose(block.q_proj.to_dense(), W, rtol=0, atol=1e-10)
            assert np.abs(block.q_proj.U.data - active).max() > 0.1
            assert not optimizer.rules
        else:
            U = block.q_proj.U_rest
            method.before_step(block, optimizer, step, 12, seed=3)
            assert block.q_proj.U_rest is U
        rates.append(update(job, step))
    assert rates == [0.05, 0.1, 0.1, 0.05, 0.1, 0.1, 0.05]


def check_by_numpy():
    """Seven updates with all vectors active, in rounds of three, by NumPy alone: Adam from nothing in each."""
    job = start(rank=5, every=3, rewarm=0)
    parts = list(whole(job[1].q_proj))
    for step in range(1, 8):
        t = (step - 1) % 3 + 1
        if t == 1:
            parts = list(np.linalg.svd((parts[0] * parts[1]) @ parts[2], full_matrices=False))
            moments = [[np.zeros_like(a), np.zeros_like(a)] for a in parts]
        U, S, V = parts
        G = 2 * (X @ ((U * S) @ V).T - TARGET[:, :5]).T @ X
        for k, g in enumerate((G @ V.T, np.diag(U.T @ G @ V.T), U.T @ G)):
            m, v = moments[k] = 0.9 * moments[k][0] + 0.1 * g, 0.999 * moments[k][1] + 0.001 * g * g
            parts[k] = parts[k] - 1e-3 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        parts[0] = parts[0] / np.linalg.norm(parts[0], axis=0)
        parts[1] = np.maximum(parts[1], 0)
        parts[2] = parts[2] / np.linalg.norm(parts[2], axis=1, keepdims=True)
        update(job, step, lr=1e-3)
        np.testing.assert_allclose(job[1].q_proj.to_dense(), (parts[0] * parts[1]) @ parts[2], rtol=0, atol=1e-10)


CHECKS = check_svd, check_gradient, check_update, check_decay, check_choice, check_rounds, check_by_numpy


@pytest.mark.parametrize("check", CHECKS)
def test_law(check):
    check()


def test_all_vectors_may_be_active():
    job = start(rank=5, every=2)
    for step in range(1, 5):
        update(job, step)
    assert job[1].q_proj.U_rest.shape == (5, 0)


def test_activation_checkpointing_changes_no_gradient():
    config, ids, found = LlamaConfig(8, 12, 2, 2, vocab_size=16), np.random.default_rng(0).integers(0, 16, (2, 6)), []
    for on in (False, True):
        model = Method("sst", SETTINGS).build(config, np.random.default_rng(5), "float64")
        model.model.activation_checkpointing = on
        ops.cross_entropy(model(ids[:, :-1]), ids[:, 1:]).backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in found[0].items():
        np.testing.assert_array_equal(gradient, found[1][name], err_msg=name)


@pytest.mark.parametrize("rank", [0, 6])
def test_ranks_that_cannot_be(rank):
    with pytest.raises(InputError, match="1 to 5"):
        layer(rank)


test_mutants = mutant_tests([
    (Spectral.backward, "dU = grad @ V.T", "dU = grad @ V.T * ctx.saved[1][:len(V)]"),
    (Spectral.backward, "[(U * dU).sum(axis=0), (U_rest", "[0 * (U * dU).sum(axis=0), (U_rest"),
    (SSTLinear.begin_round, "1 / len(S) + share", "0 + share"),
    (SSTLinear.begin_round, "S[order], V[order]", "S[order], V"),
    (SSTLinear.begin_round, "map(xp.ascontiguousarray, ", "map(xp.asarray, "),
    (sst.clip, "array_module(S).maximum(S, 0, out=S)", "pass"),
    (sst.unit_columns, ".sum(axis=0)", ".sum()"),
    (sst.before_step, 'f"{path}.U", f"{path}.S", f"{path}.V"', 'f"{path}.S"'),
    (sst.before_step, "step > 1", "step >= 1"),
    (sst.Mended.update, "self.inner.weight_decay = self.weight_decay", "pass"),
    (sst.unit_rows, "unit_columns(V.T)", "pass"),
    (sst.before_step, "% every", "% (every + 1)"),
], *CHECKS)
