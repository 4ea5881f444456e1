"""A Tensor among Python's and NumPy's own: what they make of it is right, or refused with what to write instead."""

import copy
import pickle

import numpy as np
import pytest
from mutation import mutant_tests

from minisl import Tensor, no_grad
from minisl.autograd import ops, tensor
from minisl.nn import Parameter


def leaf(*values, dtype=np.float32):
    return Tensor(np.array(values, dtype), requires_grad=True)


def check_one_number():
    one, two = Tensor([0.25]), leaf(1, 2)
    assert not Tensor([0.0])
    assert Tensor([[0.5]])
    assert float(one) == 0.25
    assert int(two.sum()) == 3
    assert f"{two.mean():.3f} {Tensor(2.0):5.1f}" == "1.500   2.0"
    assert f"{two}" == str(two)
    assert [5, 6, 7][Tensor(np.array(1))] == 6
    for use in (bool, float, int, Tensor.item, lambda t: f"{t:.3f}"):
        for t in (two, Tensor(np.zeros(0))):
            with pytest.raises(ValueError, match=r"not one number; take an element, or its sum, mean or max"):
                use(t)
    with pytest.raises(TypeError):
        range(Tensor(2.0))


def check_sequence():
    t = leaf(1, 2, 3)
    sum(t[1:]).backward()
    assert t.grad.tolist() == [0, 1, 1]
    assert [x.item() for x in t] == [1, 2, 3]
    assert 2 in t
    assert 5.0 not in t
    assert None not in t
    for use in (len, list):
        with pytest.raises(TypeError, match="len"):
            use(Tensor(3.0))


def check_comparisons():
    """Boolean arrays; what is no number is not equal."""
    t = leaf(1, 2, 3)
    for found, want in [(t > 1, [0, 1, 1]), (t >= 2, [0, 1, 1]), (t < leaf(2, 2, 2), [1, 0, 0]),
                        (t <= np.array([1, 1, 5.0]), [1, 0, 1]),
                        (t == 2, [0, 1, 0]), (t != t, [0, 0, 0]), (np.array([2, 2, 2.0]) < t, [0, 0, 1]), (2 == t, [0, 1, 0]),
                        (np.float64(2) > t, [1, 0, 0]), (t == leaf(1, 0, 3, dtype=np.float64), [1, 0, 1])]:
        assert type(found) is np.ndarray
        assert found.dtype == bool
        assert found.tolist() == want
    assert (t == None) is False  # noqa: E711
    assert t != "a"
    with pytest.raises(TypeError):
        t < "a"  # noqa: B015
    assert {t: 1}[t] == 1
    assert leaf(1, 2, 3) not in {t}


def check_arithmetic_from_the_left():
    t, a = leaf(1, 2), np.array([[3.0, 4], [5, 6]])
    for y, want in [(np.float64(2) * t, [2, 4]), (np.float32(2) - t, [1, 0]), (a[0] / t, [3, 2]), (a @ t, [11, 17]),
                    (2.0**t, [2, 4]),
                    (a[0] ** t, [3, 16]), (np.add(a[0], t), [4, 6]), (abs(-t), [1, 2]), (np.int64(3) * t, [3, 6])]:
        assert isinstance(y, Tensor)
        assert y.dtype == np.float32
        assert y.data.tolist() == want
        y.sum().backward()


def check_numpy_functions():
    """Those that are ops are ops; others give arrays where no gradient is lost, else say what to write."""
    t, plain = leaf(1, 4), Tensor(np.array([1.0, 4.0]))
    for name in ("exp", "log", "sqrt", "tanh", "negative", "abs", "absolute", "subtract", "multiply", "divide", "power"):
        function = getattr(np, name)
        arguments = (t, 2.0)[:function.nin]
        y = function(*arguments)
        assert isinstance(y, Tensor)
        np.testing.assert_allclose(y.data, function(*(t.data, 2.0)[:function.nin]), rtol=1e-6)
        assert y.requires_grad
    for lost in (lambda: np.asarray(t), lambda: np.sin(t), lambda: np.sum(t), lambda: np.concatenate([t, t]),
                 lambda: np.mean(t, axis=0),
                 lambda: np.add.reduce(t), lambda: np.split(t, 2), lambda: np.exp(t, out=np.zeros(2)), lambda: np.dot(t, t),
                 lambda: np.where([True, False], t, 0)):
        with pytest.raises(TypeError, match=r"lose .* gradient; write t\.data, or use minisl\.autograd\.ops"):
            lost()
    assert np.asarray(plain) is not None
    assert np.shares_memory(np.asarray(plain), plain.data)
    assert np.array(plain, np.float32).dtype == np.float32
    assert np.sum(plain) == 5
    assert np.sin(plain).tolist() == np.sin(plain.data).tolist()
    assert np.concatenate([plain, plain]).tolist() == [1, 4, 1, 4]
    assert np.allclose(t, [1, 4])
    assert np.isfinite(t).all()
    assert np.argmax(t) == 1
    assert np.shape(t) == (2,)
    array = np.ones(2)
    array += plain
    assert array.tolist() == [2, 5]
    np.testing.assert_array_equal(plain, [1, 4])
    with no_grad():
        assert np.sum(t * 2) == 10


def check_copies():
    """Hooks are not copied, nor shared; a graph is not."""
    p, fired = Parameter(np.array([1.0, 2.0])), []
    p.grad = np.array([3.0, 4.0])
    p.register_post_accumulate_grad_hook(fired.append)
    for other in (copy.deepcopy(p), pickle.loads(pickle.dumps(p)), copy.copy(p)):
        assert type(other) is Parameter
        assert other.requires_grad
        assert other.grad.tolist() == [3, 4]
        assert other.data.tolist() == [1, 2]
        other.zero_grad()
        (other * 2).sum().backward()
        assert p.grad.tolist() == [3, 4]
    assert not fired
    deep = copy.deepcopy(p)
    deep.data += 1
    assert p.data.tolist() == [1, 2]
    for use in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"write t.detach\(\)"):
            use(p * 2)


def check_tensor_of_what():
    assert Tensor([1, 2]).dtype == Tensor(3).dtype == np.float32
    assert Tensor(np.float64(3)).data.shape == ()
    assert Tensor([Tensor(1.0), 2.0]).data.tolist() == [1, 2]
    assert Tensor([True]).dtype == bool
    swapped = Tensor(np.ones(2, ">f4"), requires_grad=True)
    (swapped * 2).sum().backward()
    assert swapped.grad.tolist() == [2, 2]
    with pytest.raises(TypeError, match="lose its gradient"):
        Tensor([leaf(1).sum(), 2.0])


def check_key():
    """A Tensor as index, alone and with others; a mask that a comparison made."""
    x, at = Tensor(np.arange(12.0).reshape(3, 4), requires_grad=True), Tensor(np.array([2, 0, 2]))
    for y, want in [(x[at], x.data[[2, 0, 2]]), (x[1:, at], x.data[1:, [2, 0, 2]]), (x[at, at], x.data[[2, 0, 2], [2, 0, 2]]),
                    (x[x > 5], x.data[x.data > 5]), (x[Tensor(x.data > 5)], x.data[x.data > 5]),
                    (x[Tensor(np.array(1))], x.data[1]),
                    (ops.gather(x, Tensor(np.array([[1], [0], [3]]))), [[1], [4], [11]]), (np.arange(5.0)[at], [2, 0, 2])]:
        np.testing.assert_array_equal(tensor.raw(y), want)
    x[at].sum().backward()
    assert x.grad.sum(1).tolist() == [4, 0, 8]


CHECKS = [f for name, f in list(globals().items()) if name.startswith("check_")]


@pytest.mark.parametrize("check", CHECKS)
def test_a_tensor(check):
    check()


test_mutants = mutant_tests([
    (Tensor.__bool__, "bool(self.item())", "True"),
    (Tensor.item, "if self.size != 1:", "if False:"),
    (Tensor.__iter__, "range(len(self))", "range(self.size and 3)"),
    (Tensor.__getstate__, 'vars(self) | {"_hooks": []}', "vars(self)"),
    (Tensor.__getstate__, "if self.node:", "if False:"),
    (Tensor.__array__, "if self.requires_grad:", "if False:"),
    (Tensor.call_ufunc, "and not options", ""),
    (Tensor.call_ufunc, 'name in ops.__all__', "False"),
    (Tensor.__array_function__, "if lost and", "if"),
    (Tensor.__array_function__, "if lost and", "if False and"),
    (tensor.compared, "return NotImplemented", "raise"),
    (tensor.bare, "lost is None or", ""),
    (Tensor.__rpow__, "ops.power(base, self)", "ops.power(self, base)"),
], *CHECKS)
