"""The ops that backends compute: what does not fit is refused by the op's name, a backward pass runs where its forward did, and
numbers that are large or small come out right on each."""

import subprocess
import sys

import numpy as np
import pytest
from gpu import no_compiler

from minisl import kernels
from minisl.autograd import Tensor, no_grad, ops
from minisl.autograd.ops import fused
from minisl.kernels import Support, numba_status
from minisl.methods.sltrain import SLProduct
from minisl.nn.llama import KVCache, PackedCache

BACKENDS = ["reference", "numpy", *["cpu"] * bool(numba_status()[0]), *["emulator"] * (not no_compiler())]
on_each_backend = pytest.mark.parametrize("backend", BACKENDS)
F = np.float32


def tensor(*shape, dtype=F):
    rng = np.random.default_rng(sum(shape) + len(shape))
    return Tensor(rng.standard_normal(shape).astype(dtype), requires_grad=True)


def test_a_gain_too_short_in_a_process_of_its_own():
    """Its gradient was written past the end: after 200 rounds the heap was corrupt and the process aborted."""
    script = """if True:
        import numpy as np
        from minisl.autograd import Tensor, ops
        refused = 0
        for _ in range(1000):
            x, g = Tensor(np.ones((2, 64)), True), Tensor(np.ones(2), True)
            try:
                ops.rms_norm(x, g, 1e-6).sum().backward()
            except ValueError as error:
                refused += str(error) == "rms_norm: gain has shape (2,), must be (64,) beside x (2, 64)"
        print(refused)"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1000\n", "")


@on_each_backend
@pytest.mark.parametrize(("call", "error", "says"), [
    (lambda: ops.linear(tensor(2, 3, 5), tensor(4, 6)),
     ValueError, "linear: weight has shape (4, 6), must be (4, 5) beside x (2, 3, 5)"),
    (lambda: ops.linear(tensor(2, 5), tensor(4, 5, dtype=float)),
     TypeError, "Linear: tensors of float32 and float64; all must have one dtype"),
    (lambda: ops.linear(tensor(2, 5), [1.0]), TypeError, "linear: weight must be an array, got list"),
    (lambda: ops.linear(Tensor(np.ones((2, 5), int)), tensor(4, 5)), TypeError, "linear: x must be floating, got int64"),
    (lambda: ops.linear(tensor(), tensor(4, 5)), ValueError, "linear: x has shape (), must be (..., in)"),
    (lambda: ops.rms_norm(tensor(2, 64), tensor(2), 1e-6),
     ValueError, "rms_norm: gain has shape (2,), must be (64,) beside x (2, 64)"),
    (lambda: ops.rms_norm(tensor(2, 4), tensor(4), "tiny"), TypeError, "rms_norm: eps must be a number, got str"),
    (lambda: ops.rms_norm(tensor(2, 0), tensor(0), 1e-6), ValueError, "rms_norm: D is 0"),
    (lambda: ops.swiglu(tensor(2, 4), tensor(4)), ValueError, "swiglu: b has shape (4,), must be (2, 4) beside a (2, 4)"),
    (lambda: ops.rope(tensor(1, 1, 2, 5), *[np.ones((2, 2), F)] * 2), ValueError, "rope: x has shape (1, 1, 2, 5), cos (2, 2)"),
    (lambda: ops.rope(tensor(1, 1, 3, 4), *[np.ones((2, 2), F)] * 2), ValueError, "rope: cos has shape (2, 2), must be (3, d/2)"),
    (lambda: ops.rope(tensor(1, 1, 2, 4), *[np.ones((2, 2))] * 2), TypeError, "rope: cos is float64, must be float32 as x is"),
    (lambda: ops.rope(tensor(1, 1, 2, 4), *[tensor(2, 2)] * 2), TypeError, "rope: cos must be an array, got Tensor"),
    (lambda: ops.attention(tensor(1, 2, 4, 8), *[tensor(1, 2, 2, 8)] * 2), ValueError, "attention: 4 queries and 2 keys"),
    (lambda: ops.attention(tensor(1, 3, 4, 8), *[tensor(1, 2, 4, 8)] * 2), ValueError, "attention: 3 query heads"),
    (lambda: ops.attention(tensor(1, 2, 4, 8), tensor(1, 2, 4, 8), tensor(2, 2, 4, 8)),
     ValueError, "attention: v has shape (2, 2, 4, 8)"),
    (lambda: ops.embedding(tensor(4, 3), np.array([True, False])), TypeError, "embedding: ids must be integers, got bool"),
    (lambda: ops.embedding(tensor(4, 3), np.array([1.0])), TypeError, "embedding: ids must be integers, got float64"),
    (lambda: ops.embedding(tensor(4, 3), [1, 2]), TypeError, "embedding: ids must be an array, got list"),
    (lambda: ops.embedding(tensor(4, 3), np.array([1, -1])), IndexError, "embedding: ids: -1 is outside 0..3"),
    (lambda: ops.cross_entropy(tensor(2, 3), np.array([0.0, 1.0])),
     TypeError, "cross_entropy: labels must be integers, got float64"),
    (lambda: ops.cross_entropy(tensor(2, 3), np.array([True, False])),
     TypeError, "cross_entropy: labels must be integers, got bool"),
    (lambda: ops.cross_entropy(tensor(2, 3), [0, 1]), TypeError, "cross_entropy: labels must be an array, got list"),
    (lambda: ops.cross_entropy(tensor(2, 3), np.array([0, 1, 2])),
     ValueError, "cross_entropy: labels has shape (3,), must be (2,)"),
    (lambda: ops.cross_entropy(tensor(2, 0), np.array([-100, -100]), "sum"), ValueError, "cross_entropy: V is 0"),
    (lambda: ops.linear_cross_entropy(tensor(2, 3), tensor(5, 4), np.array([0, 1])),
     ValueError, "linear_cross_entropy: weight has"),
    (lambda: ops.linear_cross_entropy(tensor(2, 3), tensor(5, 3), np.array([0, 5])), IndexError, "labels: 5 is outside 0..4"),
])
def test_what_does_not_fit_is_refused_by_the_ops_name(call, error, says, backend):
    with kernels.using(backend), pytest.raises(error) as raised:
        call()
    assert says in str(raised.value)


@on_each_backend
def test_ids_of_any_integers(backend):
    weight, x = tensor(4, 3), tensor(2, 4)
    with kernels.using(backend):
        for dtype in ("int8", "uint8", "int16", "uint32", "int64", "uint64"):
            ids = np.array([3, 1], dtype)
            np.testing.assert_array_equal(ops.embedding(weight, ids).data, weight.data[[3, 1]])
            assert ops.cross_entropy(x, ids).item() == ops.cross_entropy(x, np.array([3, 1])).item()


MATRIX = tensor(3, 4)  # whose gradient needs the output before it, which is made again
SUPPORT = Support(np.array([0, 5, 7]), (3, 4))
CALLS = {
    "linear": lambda: (ops.linear, tensor(2, 4), tensor(3, 4)),
    "cross_entropy": lambda: (lambda z: ops.cross_entropy(z, np.array([0, -100, 3])), tensor(3, 5)),
    "linear_cross_entropy": lambda: (lambda x, w: ops.linear_cross_entropy(x, w, np.array([0, 4])), tensor(2, 4), tensor(5, 4)),
    "rms_norm": lambda: (lambda x, g: ops.linear(ops.rms_norm(x, g, 0.1), MATRIX), tensor(2, 4), tensor(4)),
    "swiglu": lambda: (lambda a, b: ops.linear(ops.swiglu(a, b), MATRIX), tensor(2, 4), tensor(2, 4)),
    "rope": lambda: (lambda x: ops.rope(x, np.full((3, 2), 0.6, F), np.full((3, 2), 0.8, F)), tensor(1, 2, 3, 4)),
    "attention": lambda: (ops.attention, tensor(1, 4, 3, 2), tensor(1, 2, 5, 2), tensor(1, 2, 5, 2)),
    "embedding": lambda: (lambda w: ops.embedding(w, np.array([1, 1])), tensor(3, 2)),
    "materialised": lambda: (lambda *t: SLProduct.apply(*t, support=SUPPORT, s=np.float64(0.5), algorithm="materialised"),
                             tensor(2, 4), tensor(3, 2), tensor(2, 4), tensor(3)),
    "factored": lambda: (lambda *t: SLProduct.apply(*t, support=SUPPORT, s=np.float64(0.5), algorithm="factored"),
                         tensor(2, 4), tensor(3, 2), tensor(2, 4), tensor(3)),
}


def gradients(name, forward, backward):
    op, *inputs = CALLS[name]()
    with kernels.using(forward):
        y = op(*inputs)
    with kernels.using(backward):
        y.backward(np.random.default_rng(0).standard_normal(y.shape).astype(F))
    assert all(t.grad.dtype == F for t in inputs)
    return [t.grad for t in inputs]


@pytest.mark.parametrize("forward", BACKENDS)
@pytest.mark.parametrize("name", CALLS)
def test_backward_runs_where_forward_did(name, forward):
    """What attention keeps for its backward pass is a backend's own: under another it crashed."""
    right = gradients(name, forward, forward)
    for backward in BACKENDS:
        for a, b in zip(gradients(name, forward, backward), right, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.skipif("emulator" not in BACKENDS, reason=no_compiler())
def test_backward_of_the_fused_algorithm_under_another_backend():
    with kernels.using("emulator"):
        inputs = tensor(2, 4), tensor(3, 2), tensor(2, 4), tensor(3)
        y = SLProduct.apply(*inputs, support=SUPPORT, s=0.5, algorithm="fused")
    with kernels.using("numpy"):
        y.sum().backward()
    assert all(t.grad is not None for t in inputs)


@on_each_backend
@pytest.mark.parametrize("call", [
    lambda: (ops.linear, tensor(2, 3, 4), tensor(0, 4)), lambda: (ops.linear, tensor(2, 3, 0), tensor(4, 0)),
    lambda: (ops.linear, tensor(0, 3, 4), tensor(2, 4)), lambda: (ops.linear, tensor(4), tensor(2, 4)),
    lambda: (lambda x, g: ops.rms_norm(x, g, 0.1), tensor(2, 0, 4), tensor(4)), lambda: (ops.swiglu, tensor(2, 0), tensor(2, 0)),
    lambda: (lambda x: ops.rope(x, np.ones((0, 2), F), np.ones((0, 2), F)), tensor(1, 2, 0, 4)),
    lambda: (ops.attention, tensor(1, 2, 0, 4), tensor(1, 2, 0, 4), tensor(1, 2, 0, 4)),
    lambda: (ops.attention, tensor(0, 2, 3, 4), tensor(0, 2, 3, 4), tensor(0, 2, 3, 4)),
    lambda: (ops.attention, tensor(1, 2, 0, 4), tensor(1, 1, 3, 4), tensor(1, 1, 3, 4)),
    lambda: (lambda w: ops.embedding(w, np.zeros((2, 0), int)), tensor(3, 4)),
    lambda: (lambda w: ops.embedding(w, np.zeros(0, int)), tensor(0, 4)),
    lambda: (lambda z: ops.cross_entropy(z, np.zeros((2, 0), int), "sum"), tensor(2, 0, 3)),
    lambda: (lambda x, w: ops.linear_cross_entropy(x, w, np.zeros(0, int)), tensor(0, 4), tensor(3, 4)),
    lambda: (lambda x, w: ops.linear_cross_entropy(x, w, np.zeros(2, int)), tensor(2, 0), tensor(3, 0)),
], ids=range(15))
def test_nothing_along_an_axis(call, backend):
    """`linear` to 0 outputs was a reshape error."""
    op, *inputs = call()
    with kernels.using(backend):
        y = op(*inputs)
        y.backward(np.ones(y.shape, F))
    for t in inputs:
        assert t.grad.shape == t.shape
        assert t.grad.dtype == F
        assert np.isfinite(t.grad).all()


# Numbers


def relative(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


def in_float64(op, *inputs):
    """What the op gives for the same numbers in float64, and its gradients, under NumPy."""
    wide = [Tensor(t.data.astype(float), requires_grad=True) for t in inputs]
    with kernels.using("numpy"):
        return run(op, wide)


def run(op, inputs):
    y = op(*inputs)
    y.backward(np.random.default_rng(0).uniform(0.5, 1, y.shape).astype(y.dtype))
    return [y.data, *(t.grad for t in inputs)]


@on_each_backend
@pytest.mark.parametrize("shift", [0, 1e4, -1e4])
def test_logits_far_from_zero(shift, backend):
    """Off by 7e-5 at 1e4: log sum exp was rounded there before the logit was subtracted."""
    rng = np.random.default_rng(0)
    z, labels = Tensor((rng.standard_normal((40, 50)) + shift).astype(F), requires_grad=True), rng.integers(0, 50, 40)

    def op(z):
        return ops.cross_entropy(z, labels)

    right = in_float64(op, z)
    with kernels.using(backend):
        for mine, exact in zip(run(op, [z]), right):
            assert relative(mine, exact) < 5e-7


@on_each_backend
@pytest.mark.parametrize(("size", "eps"), [(1, 1e-6), (1e20, 1e-6), (3e38, 1e-6), (1e-30, 0.0), (1e-36, 0.0), (1e-30, 1e-6)])
def test_rms_norm_of_any_size(size, eps, backend):
    """Squares of 1e20 overflow float32, those of 1e-30 vanish: 0 or NaN."""
    x = tensor(3, 40)
    x.data = (x.data.clip(-1, 1) * size).astype(F)
    gain = tensor(40)

    def op(x, gain):
        return ops.rms_norm(x, gain, eps)

    right = in_float64(op, x, gain)
    with kernels.using(backend):
        for mine, exact in zip(run(op, [x, gain]), right):
            assert relative(mine, exact) < 1e-6


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "emulator"])
def test_rms_norm_in_float64(backend):
    with kernels.using(backend):
        y = ops.rms_norm(Tensor(np.array([[3e200, -4e200], [3e-200, -4e-200]])), Tensor(np.ones(2)), 0.0)
    np.testing.assert_allclose(y.data, np.array([[3, -4]] * 2) / 12.5**0.5, rtol=1e-15)


@on_each_backend
def test_rms_norm_keeps_what_is_not_finite(backend):
    x = np.ones((4, 5), F)
    x[1, 2], x[2, 2] = np.nan, np.inf
    with kernels.using(backend), np.errstate(all="ignore"):
        y = ops.rms_norm(Tensor(x), Tensor(np.ones(5, F)), 1e-6).data
    assert np.isnan(y[1]).all()
    assert np.isnan(y[2]).tolist() == [False, False, True, False, False]
    np.testing.assert_allclose(y[[0, 3]], 1, rtol=1e-6)


@on_each_backend
def test_swiglu_far_below_zero(backend):
    """silu(-20) is -4e-8; by tanh it was 0."""
    a = Tensor(np.linspace(-85, 30, 200).astype(F), requires_grad=True)
    b = Tensor(np.ones(200, F), requires_grad=True)
    right = in_float64(ops.swiglu, a, b)
    with kernels.using(backend):
        for mine, exact in zip(run(ops.swiglu, [a, b]), right):
            np.testing.assert_allclose(mine, exact, rtol=2e-6)


# Keys and values of a generation


def test_a_cache_takes_what_fits_what_it_holds():
    """One of two sequences took a row for one, and gave both the same keys."""
    layer, one, two = KVCache(1).layers[0], tensor(1, 2, 1, 4).detach(), tensor(2, 2, 1, 4).detach()
    with no_grad():
        layer.attend(two, two, two)
        wide, double = tensor(2, 2, 1, 6).detach(), Tensor(two.data.astype(float))
        for bad, error in ((one, ValueError), (wide, ValueError), (double, TypeError)):
            with pytest.raises(error, match="KVCache: holds"):
                layer.attend(bad, bad, bad)
        with pytest.raises(ValueError, match="attention: k has shape"):
            layer.attend(two, one, two)
        assert layer.length == 1
        assert layer.attend(two, two, two).shape == two.shape
    with pytest.raises(RuntimeError, match="under no_grad"):
        layer.attend(two, tensor(2, 2, 1, 4), two)


def test_packed_caches_take_the_tokens_they_were_told_of():
    with pytest.raises(ValueError, match="2 caches and 1 counts"):
        PackedCache([KVCache(1), KVCache(1)], [3])
    layer, row = PackedCache([KVCache(1), KVCache(1)], [1, 1]).layers[0], tensor(1, 2, 3, 4).detach()
    with pytest.raises(ValueError, match="one row of 2 tokens, got 1 of 3"):
        layer.attend(row, row, row)


def test_every_op_that_a_backend_computes_is_here():
    assert CALLS.keys() - {"materialised", "factored"} == {n for n in vars(fused) if n in ops.__all__}
