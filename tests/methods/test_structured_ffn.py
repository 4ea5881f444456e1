"""Structured FFN: the three structures against dense matrices put together by hand, their sizes, and the guide's life."""

import copy
import math

import numpy as np
import pytest
from method_checks import SETTINGS
from mutation import mutant_tests

from minisl import Tensor, gradcheck
from minisl.backend import generator
from minisl.errors import InputError
from minisl.methods import Method, matrix, structured_ffn
from minisl.nn import LlamaConfig

KINDS = "low_rank", "block_dense", "block_shuffle"
CONFIG = LlamaConfig(16, 24, 1, 2, vocab_size=32)
IDS = np.random.default_rng(7).integers(0, 32, (4, 9))


def student(kind, shape=(12, 8), rank=4, blocks=2):
    rng = np.random.default_rng(0)
    return structured_ffn.linear(*reversed(shape), rng, "float64", rank=rank, kind=kind, blocks=blocks, guided=0.0)


def start(kind="low_rank", seed=3, **own):
    method = Method("structured_ffn", SETTINGS | {"rank": 4, "method_options": {"kind": kind, "blocks": 2, **own}})
    model = method.build(CONFIG, generator(seed, "init"), "float64")
    return method, model, method.optimizer(model, 1e-2, seed=3)


def run(method, model, optimizer, first, last):
    for step in range(first, last + 1):
        method.before_step(model, optimizer, step, 12, seed=3)
        model.loss(IDS[:, :-1], IDS[:, 1:], 1 / IDS[:, 1:].size).backward()
        optimizer.step()
        model.zero_grad()


def guided(model):
    return {path: m for path, m in model.named_modules() if isinstance(m, structured_ffn.Guided)}


def by_hand(layer):
    """W, element by element: blocks on the diagonal, and P where units are shuffled."""
    V, U = (M.data[None] if M.ndim == 2 else M.data for M in (layer.V, layer.U))

    def diagonal(M):
        b, q, p = M.shape
        D = np.zeros((b * q, b * p))
        for i in range(b):
            D[i * q:(i + 1) * q, i * p:(i + 1) * p] = M[i]
        return D

    k = V.shape[0] * V.shape[1]
    P = np.eye(k)
    if layer.shuffle:
        b, place, P = len(U), [0] * len(U), np.zeros((k, k))
        for u in range(k):  # unit u takes the next free place of block u mod b
            P[u % b * (k // b) + place[u % b], u] = 1
            place[u % b] += 1
    return diagonal(U) @ P @ diagonal(V)


def check_structures():
    for kind in KINDS:
        for shape in ((12, 8), (8, 12)):
            one, x = student(kind, shape), np.random.default_rng(1).standard_normal((2, 3, shape[1]))
            np.testing.assert_allclose(one(Tensor(x)).data, x @ by_hand(one).T, atol=1e-13)
            np.testing.assert_allclose(one.to_dense(), by_hand(one), atol=1e-13)
            assert all(p.data.flags.c_contiguous for p in one.parameters())


def check_sizes_and_ranks():
    """About the parameters of rank r, or exactly; and what rank W then can have."""
    for shape, hidden in (((88, 32), 10), ((32, 88), 12)):
        for kind, about, rank in (("low_rank", 0, 8), ("block_dense", 0.1, hidden), ("block_shuffle", 0, 32)):
            one = student(kind, shape, rank=8)
            assert abs(one.num_parameters() / (8 * 120) - 1) <= about
            assert np.linalg.matrix_rank(one.to_dense()) == rank


def check_starts():
    """block kinds: singular values 1; low_rank: the leading ones of N(0, 0.02^2), evenly split."""
    for kind in KINDS[1:]:
        s = np.linalg.svd(student(kind).to_dense(), compute_uv=False)
        np.testing.assert_allclose(s[s > 1e-9], 1, atol=1e-12)
    one = student("low_rank", (100, 80), rank=80)
    assert abs(one.to_dense().std() - 0.02) < 0.001  # all triplets: the drawn matrix
    np.testing.assert_allclose(one.U.data.T @ one.U.data, one.V.data @ one.V.data.T, atol=1e-12)


def check_guide():
    """At the start it changes nothing for any a; a runs down half a cosine; then it is not computed, not moved, and forgotten."""
    for kind in KINDS:
        _, model, _ = start(kind)
        for layer in guided(model).values():
            x = np.random.default_rng(1).standard_normal((3, layer.student.shape[1]))
            layer.a = 0.3
            np.testing.assert_allclose(layer(Tensor(x)).data, layer.student(Tensor(x)).data, atol=1e-12)
            layer.guide.data = layer.guide.data + 1  # 0.3 of it then
            np.testing.assert_allclose(layer(Tensor(x)).data - layer.student(Tensor(x)).data,
                                       np.repeat(0.3 * x.sum(axis=1, keepdims=True), layer.student.shape[0], axis=1), atol=1e-12)
            np.testing.assert_allclose(layer(Tensor(x)).data, x @ layer.to_dense().T, atol=1e-12)
    method, model, optimizer = start()
    seen, last = [], None
    for step in (1, 4, 6, 7, 8):
        run(method, model, optimizer, step, step)
        seen.append({m.a for m in guided(model).values()})
        names = {name for name in optimizer.rules if name.endswith("guide")}
        assert len(names) == (3 if step <= 6 else 0)
        guides = [m.guide.data.copy() for m in guided(model).values()]
        assert last is None or all(np.array_equal(a, b) == (step > 6) for a, b in zip(guides, last))
        last = guides
    expected = [*((1 + math.cos(math.pi * t / 6)) / 2 for t in (0, 3, 5)), 0, 0]
    assert [len(a) for a in seen] == [1] * 5
    np.testing.assert_allclose([a.pop() for a in seen], expected, atol=1e-15)
    assert list(guided(model)) == [f"model.layers.0.mlp.{name}" for name in structured_ffn.ONLY]


def test_structures(backend):
    check_structures()


@pytest.mark.parametrize("kind", KINDS)
def test_gradient(kind, backend):
    one, rng = structured_ffn.Guided(student(kind), np.random.default_rng(0)), np.random.default_rng(2)
    one.a = 0.3

    def forward(x, guide, V, U):
        one.guide, one.student.V, one.student.U = guide, V, U
        return one(x)

    gradcheck(forward, *(rng.standard_normal(s) for s in ((3, 8), (12, 8), one.student.V.shape, one.student.U.shape)))


def test_sizes_and_ranks():
    check_sizes_and_ranks()


def test_starts():
    check_starts()


def test_guide(backend):
    check_guide()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_holds_what_is_said(kind, share):
    """Sizes of all kinds, with and without a guide, by shapes alone."""
    method, *_ = start(kind, guided=share)
    shaped = method.build(CONFIG)
    for path, m in shaped.named_modules():
        if matrix(path) in structured_ffn.ONLY and path.endswith("_proj"):
            shape = m.student.shape if share else m.shape
            held = method.held(path, shape)
            arrays = [a.size for _, a in m._arrays()]
            assert sum(held.weights) + held.frozen == sum(arrays)
            assert held.weights == held.moments
            assert held.frozen == (shape[0] * shape[1] + 1 if share else 0)


def test_resumes_with_the_guide_half_way():
    whole = start()
    run(*whole, 1, 9)
    method, model, optimizer = start()
    run(method, model, optimizer, 1, 3)
    weights, state = (copy.deepcopy(o.state_dict()) for o in (model, optimizer))
    _, model, optimizer = start(seed=4)
    model.load_state_dict(weights)
    assert {m.a for m in guided(model).values()} == {(1 + math.cos(math.pi * 2 / 6)) / 2}
    optimizer.load_state_dict(state)
    run(method, model, optimizer, 4, 9)
    for key, array in whole[1].state_dict().items():
        np.testing.assert_array_equal(array, model.state_dict()[key], err_msg=key)


def test_a_guide_once_dropped_stays_so():
    """A finished run, resumed with twice the steps, lies in the first half again."""
    method, model, optimizer = start()
    run(method, model, optimizer, 7, 7)
    _, again, optimizer = start(seed=4)
    again.load_state_dict(model.state_dict())
    method.before_step(again, optimizer, 8, 24, seed=3)
    assert {m.a for m in guided(again).values()} == {0.0}


def test_no_guide():
    method, model, optimizer = start(guided=0.0)
    run(method, model, optimizer, 1, 2)
    assert not guided(model)
    assert not [key for key in model.state_dict() if "guide" in key or "share" in key]


@pytest.mark.parametrize(("options", "match"), [
    ({"kind": "block_shuffle", "rank": 3}, "8 / 3 blocks"),
    ({"kind": "block_shuffle", "rank": 4, "shape": (13, 8)}, "divides both"),
    ({"kind": "block_dense", "blocks": 3}, "does not divide the 8 columns"), ({"kind": "block_dense", "rank": 8}, "allowed: 8"),
    ({"kind": "low_rank", "rank": 9}, "1 to 8")])
def test_shapes_that_cannot_be(options, match):
    with pytest.raises(InputError, match=match):
        student(**options)


def test_share_that_cannot_be():
    with pytest.raises(InputError, match="between 0 and 1"):
        start(guided=1.5)


test_mutants = mutant_tests([
    (structured_ffn.product, "x.reshape(-1, p, b).permute(2, 0, 1)", "x.reshape(-1, b, p).permute(1, 0, 2)"),
    (structured_ffn.product, "M.swapaxes(1, 2)).permute(1, 0, 2)", "M.swapaxes(1, 2))"),
    (structured_ffn.shapes, "in_features / b + out_features", "in_features + out_features"),
    (structured_ffn.shapes, "(b, rank, in_features // b), (b, out_features // b, rank)",
     "(b, rank, in_features // b), (b, out_features // b, rank // 2)"),
    (structured_ffn.orthogonal, "U @ Vt", "drawn"),
    (structured_ffn.Guided.forward, "self.student(x) * (1 - self.a)", "self.student(x)"),
    (structured_ffn.before_step, "t, T = step - 1, guided * steps", "t, T = step, guided * steps"),
    (structured_ffn.before_step, "t, T = step - 1, guided * steps", "t, T = step - 1, steps"),
    (structured_ffn.before_step, "/ T)) / 2", "/ T / 2))"),
    (structured_ffn.before_step, 'optimizer.reset(f"{path}.guide")', "pass"),
], check_structures, check_sizes_and_ranks, check_starts, check_guide)
