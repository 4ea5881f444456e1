"""AdamW with moments of 8 bits, as NumPy defines it: the table of numbers, the nearest of them, and the update by elements."""

import math

import numpy as np
import pytest

from minisl import parallel
from minisl.kernels import numba_status, numpy_fused
from minisl.kernels.numpy_fused import BLOCK, adam8bit, adamw, decoded, dynamic_map, encode

TABLES = dynamic_map(True), dynamic_map(False)


def test_the_published_map():
    """In each decade twice as many as in the one below it, and 0 and 1."""
    signed, unsigned = dynamic_map(True), dynamic_map(False)
    for table, decade in ((signed, 64), (unsigned, 128)):
        assert table.shape == (256,)
        assert table.dtype == np.float32
        assert (np.diff(table) > 0).all()
        counts = [np.count_nonzero((table > 10.0 ** (k - 1)) & (table < 10.0**k)) for k in range(0, -7, -1)]
        assert counts == [decade >> k for k in range(7)]
    assert signed[[127, 255]].tolist() == unsigned[[0, 255]].tolist() == [0, 1]
    np.testing.assert_array_equal(signed[:127], -signed[254:127:-1])
    np.testing.assert_allclose(signed[128:135], [5.5e-7, 3.25e-6, 7.75e-6, 2.125e-5, 4.375e-5, 6.625e-5, 8.875e-5], rtol=1e-6)
    np.testing.assert_allclose(signed[[0, 253, 254]], [-1 + 0.9 / 128, 1 - 2.7 / 128, 1 - 0.9 / 128], rtol=1e-6)
    np.testing.assert_allclose(unsigned[[1, 2, 3, 254]], [3.25e-7, 7.75e-7, 2.125e-6, 1 - 0.9 / 256], rtol=1e-6)


def coded(x, table):
    codes, tops = np.full(x.shape, 99, np.uint8), np.full(-(-x.size // BLOCK), np.nan, x.dtype)
    encode(x, codes, tops, table)
    return codes, tops


@pytest.mark.parametrize(("signed", "power", "mean"), [(True, 1, 0.0154), (False, 2, 0.0171)])
def test_round_trip(signed, power, mean):
    """How far off numbers are that are normally distributed, and their squares, on average."""
    x = np.random.default_rng(0).standard_normal(1 << 18).astype(np.float32) ** power
    table = dynamic_map(signed)
    back = decoded(*coded(x, table), table)
    assert abs((np.abs(back - x) / np.abs(x)).mean() - mean) < 0.0005
    assert np.linalg.norm(back - x) < 0.012 * np.linalg.norm(x)


@pytest.mark.parametrize("shape", [(0,), (1,), (255,), (256,), (257,), (3, 400)])
@pytest.mark.parametrize("table", TABLES, ids=["signed", "unsigned"])
def test_nearest_in_each_block(shape, table, rng):
    x = rng.standard_normal(shape).astype(np.float32) * np.float32(7)
    if table[0] == 0:
        x = np.abs(x)
    codes, tops = coded(x, table)
    for k in range(0, x.size, BLOCK):
        block = x.reshape(-1)[k:k + BLOCK]
        assert tops[k // BLOCK] == np.abs(block).max()
        distance = np.abs(table[:, None] - block / tops[k // BLOCK])
        chosen = codes.reshape(-1)[k:k + BLOCK]
        np.testing.assert_array_equal(distance[chosen, np.arange(len(block))], distance.min(axis=0))
    np.testing.assert_array_equal(decoded(codes, tops, table), table[codes] * np.repeat(tops, BLOCK)[:x.size].reshape(shape))


def test_between_two_numbers_it_is_the_lower():
    table = np.arange(256, dtype=np.float32) / 255
    x = np.full(BLOCK, 1, np.float64)
    x[:255] = (table[:-1].astype(float) + table[1:]) / 2
    assert coded(x, table)[0].tolist() == [*range(255), 255]


def test_what_is_below_zero_stays_below():
    """As in bitsandbytes: a sign that rounding would lose is put back by one place. Above zero nothing has to be."""
    x = np.array([-1, -1e-30, -1e-9, -2.7e-7, -2.8e-7, -0.0, 0, 1e-30, 2.7e-7, 2.8e-7, 1], np.float32)
    assert coded(x, TABLES[0])[0].tolist() == [0, 126, 126, 126, 126, 127, 127, 127, 127, 128, 255]


def test_zeros_are_the_code_of_zero():
    for table, zero in zip(TABLES, (127, 0)):
        codes, tops = coded(np.zeros(300, np.float32), table)
        assert set(codes.tolist()) == {zero}
        assert tops.tolist() == [0, 0]


def state(shape, rng, order="C"):
    """p, m, v, m_top, v_top as after some steps."""
    m, v = (np.array(rng.integers(0, 256, shape, np.uint8), order=order) for _ in range(2))
    tops = np.abs(rng.standard_normal((2, -(-math.prod(shape) // BLOCK)))).astype(np.float32)
    return np.array(rng.standard_normal(shape).astype(np.float32), order=order), m, v, *tops


def by_element(p, g, m, v, m_top, v_top, lr, betas, eps, weight_decay, t):
    """(new p, m, v) in float64, from AdamW's equations."""
    new = np.zeros((3, *p.shape))
    for k, i in enumerate(np.ndindex(p.shape)):
        mk = betas[0] * float(TABLES[0][m[i]]) * float(m_top[k // BLOCK]) + (1 - betas[0]) * float(g[i])
        vk = betas[1] * float(TABLES[1][v[i]]) * float(v_top[k // BLOCK]) + (1 - betas[1]) * float(g[i]) ** 2
        m_hat, v_hat = mk / (1 - betas[0] ** t), vk / (1 - betas[1] ** t)
        new[:, *i] = p[i] - lr * weight_decay * p[i] - lr * m_hat / (math.sqrt(v_hat) + eps), mk, vk
    return new


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("shape", [(0,), (1,), (257,), (3, 200)])
@pytest.mark.parametrize("t", [1, 7])
def test_update(shape, t, order, rng):
    """p moves by the moments as they are before they are rounded to codes; those are the nearest."""
    p, m, v, m_top, v_top = state(shape, rng, order)
    g = rng.standard_normal(shape).astype(np.float32)
    settings = 0.03, (0.8, 0.95), 1e-3, 0.1, t
    right = by_element(p, g, m, v, m_top, v_top, *settings)
    arrays = p, m, v, m_top, v_top
    adam8bit(p, g, m, v, m_top, v_top, TABLES, *settings)
    assert [a.dtype for a in arrays] == [np.float32, np.uint8, np.uint8, np.float32, np.float32]
    np.testing.assert_allclose(p, right[0], rtol=1e-5, atol=1e-6)
    for codes, tops, moments, table in ((m, m_top, right[1], TABLES[0]), (v, v_top, right[2], TABLES[1])):
        nearest, largest = coded(moments, table)
        np.testing.assert_allclose(tops, largest, rtol=1e-5)
        assert np.count_nonzero(codes != nearest) <= 1  # between two


@pytest.mark.skipif(not numba_status()[0], reason=numba_status()[1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 255, 256, 257, 70_001])
def test_the_cpu_kernel_gives_numpys_bits(size, dtype, rng):
    """From any codes, with ties, zeros and numbers that are not finite, on one core and on two."""
    p, *moments = state((size,), rng)
    gradients = [np.round(rng.standard_normal(size), 1).astype(dtype) for _ in range(3)]
    gradients[1][: size // 3] = 0
    gradients[2][size // 2] = np.inf
    gradients[2][size // 4] = np.nan
    results = []
    for module, threads in ((numpy_fused, 1), (numba_status()[0], 1), (numba_status()[0], 2)):
        arrays = [p.astype(dtype), *(a.copy() for a in moments)]
        with parallel.using_threads(threads), np.errstate(all="ignore"):
            results.append([])
            for t, g in enumerate(gradients, 1):
                module.adam8bit(*arrays[:1], g, *arrays[1:], TABLES, 0.03, (0.9, 0.999), 1e-8, 0.1, t)
                results[-1] += [a.copy() for a in arrays]
    for right, *others in zip(*results, strict=True):
        for other in others:
            np.testing.assert_array_equal(other, right, strict=True)


def test_nearly_adamw():
    """A sum of squares shrinks as it does with moments of 32 bits."""
    goal = np.random.default_rng(1).standard_normal(2000).astype(np.float32)
    p, q = np.zeros((2, 2000), np.float32)
    m, v, tops = np.full(2000, 127, np.uint8), np.zeros(2000, np.uint8), np.zeros((2, 8), np.float32)
    exact = np.zeros((2, 2000), np.float32)
    for t in range(1, 51):
        adam8bit(p, p - goal, m, v, *tops, TABLES, 0.02, (0.9, 0.95), 1e-8, 0.0, t)
        adamw(q, q - goal, *exact, 0.02, (0.9, 0.95), 1e-8, 0.0, t)
    before, after, right = ((goal**2).sum(), ((p - goal) ** 2).sum(), ((q - goal) ** 2).sum())
    assert right < 0.4 * before
    assert abs(after - right) < 0.03 * right
    assert np.abs(p - q).max() > 0
