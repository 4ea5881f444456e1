"""The cpu backend: NumPy's results at every size, NaN where NumPy has it, and the same bits on any number of cores."""

import inspect
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from backend_checks import CASES, Draw, check_bits, check_not_finite, check_same

from minisl import kernels
from minisl.autograd import Tensor, ops
from minisl.backend import IGNORE_LABEL
from minisl.kernels import numba_status, numpy_backend

cpu, why = numba_status()
cpu = cpu and cpu.module
pytestmark = pytest.mark.skipif(not cpu, reason=why)
MAGNIFIED = ("rms_norm 1 1", "attention 1 2 1 20 20 4 10000.0")  # what float32 rounds off is not small in these results


@pytest.mark.parametrize("name", CASES)
def test_same_as_numpy(name):
    check_same(name)


@pytest.mark.parametrize("name", [n for n in CASES if n not in MAGNIFIED])
def test_same_as_numpy_in_float32(name):
    check_same(name, np.float32)


@pytest.mark.parametrize("name", CASES)
def test_same_bits_on_any_number_of_cores(name):
    check_bits(name)


# Not compared: NumPy's attention adds -inf to a NaN that must not be seen, its cross-entropy multiplies one without a label by 0.
@pytest.mark.parametrize("name", [n for n in CASES if "attention" not in n and ("cross_entropy" not in n or "False" in n)])
def test_not_finite(name):
    check_not_finite(name)


def test_every_function_has_a_case():
    """A new function of a backend without a case fails here."""
    tried = set()

    class Backend(SimpleNamespace):
        def __getattr__(self, name):
            tried.add(name)
            return getattr(cpu, name)

    for case in CASES.values():
        case(Backend(), Draw())
    both = {n for n, f in vars(numpy_backend).items() if inspect.isfunction(f) and f.__module__.startswith("minisl.kernels")
            and hasattr(cpu, n)}
    assert both - tried == set()


@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_attention_keeps_nan(where):
    """A NaN at position 5 is in every row that sees it; in q, in that row alone."""
    with kernels.using("cpu"):
        arrays = {name: np.random.default_rng(0).standard_normal((1, 1, 20, 4)).astype(np.float32) for name in "qkv"}
        arrays[where][0, 0, 5, 2] = np.nan
        rows = np.isnan(ops.attention(*map(Tensor, arrays.values())).data[0, 0]).any(axis=-1)
    assert rows[5]
    assert rows[6:].all() if where != "q" else not rows[6:].any()
    assert where == "v" or not rows[:5].any()


@pytest.mark.parametrize("vocab", [1, 15, 16, 17, 1000])
@pytest.mark.parametrize("where", [0, 0.5, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_loss_of_a_nan_is_nan_unless_its_row_is_ignored(vocab, where, dtype):
    logits = np.zeros((2, vocab), dtype)
    logits[0, int(where * (vocab - 1))] = np.nan
    with kernels.using("cpu"):
        for labels, is_nan in (([0, 0], True), ([IGNORE_LABEL, 0], False)):
            z = Tensor(logits, requires_grad=True)
            loss = ops.cross_entropy(z, np.array(labels))
            loss.backward()
            assert np.isnan(loss.data) == is_nan
            assert np.isnan(z.grad[0]).all() == is_nan
            assert not np.isnan(z.grad[1]).any()


def test_exp_in_float32():
    """Right to 2 units in the last place where that can be; 0 below; NaN stays NaN."""
    numba = pytest.importorskip("numba")
    from minisl.kernels.cpu import rows

    @numba.njit(fastmath=rows.swiglu.targetoptions["fastmath"])
    def exps(x, y):
        for i in range(len(x)):
            y[i] = rows.exp(x[i])

    def exp(x):
        y = np.empty_like(x)
        exps(x, y)
        return y

    switch = (np.arange(-251, 254) * (np.log(2) / 2)).astype(np.float32).view(np.int32)  # where the power of 2 changes
    near = (switch[:, None] + np.arange(-50, 51)).ravel().view(np.float32)
    x = np.concatenate([np.linspace(-87, 88, 1_000_003, dtype=np.float32), near, np.float32([1e-38, -1e-38, 1e-45, 1e-7, -1e-7])])
    x = x[(x >= -87) & (x <= 88)]
    right = np.exp(x.astype(np.float64))
    assert (np.abs(exp(x) - right) / np.spacing(right.astype(np.float32))).max() <= 2
    assert exp(np.float32([0, -0.0])).tolist() == [1, 1]
    assert exp(np.float32([np.nextafter(np.float32(-87), np.float32(-88)), -100, -1e30, -np.inf])).tolist() == [0, 0, 0, 0]
    assert (exp(np.float32([88.5, 1e4, 1e30, np.inf])) >= exp(np.float32([88]))).all()
    assert np.isnan(exp(np.float32([np.nan] * 20))).all()


def twice(x):
    return 2 * x


@pytest.fixture
def kept_in(monkeypatch, tmp_path):
    """A folder of its own for compiled kernels."""
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path / "kept"))
    return tmp_path / "kept"


def test_damaged_cache_is_compiled_again_and_replaced(kept_in):
    from minisl.kernels.cpu.jit import compiled

    assert compiled()(twice)(1) == 2
    for index in kept_in.rglob("*.nbi"):
        index.write_bytes(b"no pickle")
    for hits in (0, 1):
        again = compiled()(twice)
        assert again(1) == 2
        assert sum(again.stats.cache_hits.values()) == hits


def test_cache_that_cannot_be_written_any_more(kept_in):
    from minisl.kernels.cpu.jit import compiled

    kernel = compiled()(twice)
    shutil.rmtree(kept_in)
    kept_in.write_text("")
    assert kernel(1) == 2


def test_no_folder_for_a_cache(kept_in, monkeypatch):
    from minisl.kernels.cpu.jit import compiled

    monkeypatch.setattr("numba.core.caching.CompileResultCacheImpl._locator_classes", [])
    kernel, said = compiled()(twice), []
    with cpu.announced(said.append):
        assert kernel(1) == 2
    assert said == ["compiling the Numba kernels for this CPU, at each start, as no folder for them can be written; fix: set "
                    "NUMBA_CACHE_DIR to one that can"]
