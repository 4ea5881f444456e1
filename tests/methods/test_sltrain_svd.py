"""SLTrain with balanced factors: W stays, the factors come out balanced, and before the first split it is SLTrain."""

import numpy as np
import pytest
from method_checks import SETTINGS
from mutation import mutant_tests

from minisl.backend import generator
from minisl.methods import Method, sltrain, sltrain_svd
from minisl.nn import LlamaConfig

CONFIG = LlamaConfig(16, 24, 1, 2, vocab_size=32)
IDS = np.random.default_rng(7).integers(0, 32, (4, 9))


def trained(name, steps, every=3, **more):
    """(model, optimizer) after so many updates."""
    own = {"every": every, **more} if name == "sltrain_svd" else {}
    method = Method(name, SETTINGS | {"learned_scale": bool(more.get("learned_scale"))} | {"method_options": own})
    model = method.build(CONFIG, generator(3, "init"), "float64")
    optimizer = method.optimizer(model, 1e-2, seed=3)
    for step in range(1, steps + 1):
        update(method, model, optimizer, step)
    return method, model, optimizer


def update(method, model, optimizer, step):
    method.before_step(model, optimizer, step, 20, seed=3)
    model.loss(IDS[:, :-1], IDS[:, 1:], 1 / IDS[:, 1:].size).backward()
    optimizer.step()
    model.zero_grad()


def layers(model):
    return {path: m for path, m in model.named_modules() if isinstance(m, sltrain.SLLinear)}


def check_factors():
    """The product as it was, to the last digits, and its singular values in both factors' Gram matrices."""
    rng = np.random.default_rng(0)
    for out, width in ((9, 7), (7, 9), (4, 8)):
        B, A = rng.standard_normal((out, 4)), 0.01 * rng.standard_normal((4, width))
        B2, A2 = sltrain_svd.balanced(B, A)
        np.testing.assert_allclose(B2 @ A2, B @ A, rtol=1e-12, atol=1e-14)
        sigma = np.diag(np.linalg.svd(B @ A, compute_uv=False)[:4])
        np.testing.assert_allclose(B2.T @ B2, sigma, atol=1e-13)
        np.testing.assert_allclose(A2 @ A2.T, sigma, atol=1e-13)
        assert B2.flags.c_contiguous
        assert A2.flags.c_contiguous


def check_split_in_a_model():
    """Before update 4 with K = 3: every W as it was, all moments gone, also of embeddings and gains, S untouched. Nothing before
    5."""
    for learned_scale in (False, True):
        method, model, optimizer = trained("sltrain_svd", 3, learned_scale=learned_scale)
        before = {path: (m.to_dense(), m.sparse_value.data.copy()) for path, m in layers(model).items()}
        assert set(optimizer.rules) == set(optimizer.parameters)
        method.before_step(model, optimizer, 4, 20, seed=3)
        for path, m in layers(model).items():
            np.testing.assert_allclose(m.to_dense(), before[path][0], rtol=1e-12, atol=1e-12)
            np.testing.assert_array_equal(m.sparse_value.data, before[path][1])
            B, A = m.lora_B.data, m.lora_A.data
            np.testing.assert_allclose(B.T @ B, A @ A.T, atol=1e-12)
            assert abs(A @ A.T - np.diag(np.diag(A @ A.T))).max() < 1e-12
        assert not optimizer.rules
        update(method, model, optimizer, 4)
        kept = {path: m.lora_B.data.copy() for path, m in layers(model).items()}
        method.before_step(model, optimizer, 5, 20, seed=3)
        for path, m in layers(model).items():
            np.testing.assert_array_equal(m.lora_B.data, kept[path])


def check_is_sltrain_until_then():
    """K updates are those of sltrain, bit for bit; the next is not."""
    for steps, same in ((3, True), (4, False)):
        one, other = (trained(name, steps)[1].state_dict() for name in ("sltrain", "sltrain_svd"))
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[key], other[key]) for key in one) == same


def check_rate():
    """Ten updates from a thousandth to all of it, the first of them the last of a cycle but the first."""
    method = Method("sltrain_svd", SETTINGS | {"method_options": {"every": 12}})
    model = method.build(CONFIG, generator(3, "init"), "float64")
    optimizer, rates = method.optimizer(model, 1.0), []
    for step in range(1, 30):
        optimizer.lr = 2.0
        method.before_step(model, optimizer, step, 40, seed=3)
        rates.append(optimizer.lr / 2)
    ramp = np.linspace(0.001, 1, 10)
    np.testing.assert_allclose(rates, [*[1] * 12, *ramp[1:], 1, 1, *ramp, 1, 1, *ramp[:4]][:29], rtol=1e-12)


def check_zero_is_left_alone():
    """With B = 0 a split would set A to 0 for ever."""
    method, model, optimizer = trained("sltrain_svd", 0)
    before = {path: m.lora_A.data.copy() for path, m in layers(model).items()}
    method.before_step(model, optimizer, 4, 20, seed=3)
    for path, m in layers(model).items():
        np.testing.assert_array_equal(m.lora_A.data, before[path])


def test_factors():
    check_factors()


def test_split_in_a_model(backend):
    check_split_in_a_model()


def test_is_sltrain_until_then(backend):
    check_is_sltrain_until_then()


def test_rate():
    check_rate()


def test_zero_is_left_alone():
    check_zero_is_left_alone()


def test_without_reset_moments_and_rate_stay():
    method, model, optimizer = trained("sltrain_svd", 3, reset=False)
    rules = dict(optimizer.rules)
    method.before_step(model, optimizer, 4, 20, seed=3)
    assert optimizer.rules == rules
    assert optimizer.lr == 1e-2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_stays(dtype):
    rng = np.random.default_rng(0)
    factors = sltrain_svd.balanced(rng.standard_normal((6, 2)).astype(dtype), rng.standard_normal((2, 5)).astype(dtype))
    assert {f.dtype.name for f in factors} == {dtype}


test_mutants = mutant_tests([
    (sltrain_svd.balanced, "root = xp.sqrt(s)", "root = s"),
    (sltrain_svd.balanced, "Rb @ Ra.T", "Rb @ Ra"),
    (sltrain_svd.balanced, "(root[:, None] * vt)", "(vt * root)"),
    (sltrain_svd.before_step, "step % every == 1", "step % every == 0"),
    (sltrain_svd.before_step, "step <= every", "step < every"),
    (sltrain_svd.before_step, "0.001 + 0.999 *", ""),
    (sltrain_svd.before_step, "step % every /", "(step - 1) % every /"),
    (sltrain_svd.before_step, "(min(RECOVERY, every) - 1)", "min(RECOVERY, every)"),
    (sltrain_svd.before_step, "0 < float(", "0 <= float("),
    (sltrain_svd.before_step, "*optimizer.parameters", '*(n for n in optimizer.parameters if "lora" in n)'),  # B and A alone
    (sltrain_svd.before_step, "*optimizer.parameters", "*optimizer.parameters, keep_step=True"),
], check_factors, check_split_in_a_model, check_is_sltrain_until_then, check_rate, check_zero_is_left_alone)
