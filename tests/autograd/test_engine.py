"""The engine's structure. Each test is named after a mistake that some teaching engine makes."""

import gc
import sys
import weakref
from functools import partial
from inspect import signature
from unittest.mock import patch

import numpy as np
import pytest
from mutation import mutant_tests

from minisl import Tensor, no_grad
from minisl.autograd import Function, checkpoint, ops
from minisl.autograd.checkpoint import Checkpoint, as_leaves
from minisl.autograd.tensor import watching


def leaf(*values):
    return Tensor(np.array(values, np.float64), requires_grad=True)


def calls(function):
    """How many Python functions it calls: as many on any machine."""
    events = []
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, arg: events.append(event))
    try:
        function()
    finally:
        sys.setprofile(before)
    return events.count("call")


def test_recursion_over_a_long_chain():
    x = y = leaf(1.0)
    for _ in range(5000):
        y = y + 1.0
    y.sum().backward()
    assert x.grad.tolist() == [1.0]


def test_visiting_a_node_once_per_path():
    """A 16-fold diamond has 2^16 paths and 33 nodes."""

    def run():
        x = y = leaf(1.0)
        for _ in range(16):
            y = y + y
        y.sum().backward()
        assert x.grad.tolist() == [2.0**16]

    assert calls(run) < 1000


def test_visiting_a_node_before_all_its_users():
    x = leaf(2.0)
    a = x * 3.0
    b = a * a
    (a * b + b).sum().backward()  # 27 x^3 + 9 x^2
    np.testing.assert_allclose(x.grad, [81 * 4 + 18 * 2])


def test_gradient_array_shared_between_two_tensors():
    a, b = leaf(1.0, 2.0), leaf(3.0, 4.0)
    (a + (a + b)).sum().backward()
    assert a.grad.tolist() == [2.0, 2.0]
    assert b.grad.tolist() == [1.0, 1.0]
    a.grad *= 0
    assert b.grad.tolist() == [1.0, 1.0]


def test_leaf_gradient_shared_with_the_callers_array():
    a, given = leaf(1.0, 2.0), np.array([5.0, 6.0])
    (a + 0.0).backward(given)
    a.grad *= 0
    assert given.tolist() == [5.0, 6.0]


def test_leaf_gradient_that_is_a_view_of_the_callers_array():
    a, given = leaf(1.0, 2.0), np.array([[5.0], [6.0]])
    a.reshape(2, 1).backward(given)
    a.grad *= 0
    assert given.tolist() == [[5.0], [6.0]]


class Twice(Function):
    @staticmethod
    def forward(ctx, a, b):
        return 2 * (a + b)

    @staticmethod
    def backward(ctx, grad):
        both = 2 * grad
        return both, both


def test_one_new_array_as_the_gradient_of_two_leaves():
    a, b = leaf(1.0, 2.0), leaf(3.0, 4.0)
    Twice.apply(a, b).sum().backward()
    a.grad *= 0
    assert b.grad.tolist() == [2.0, 2.0]


def test_shared_leaf_counted_once():
    x = leaf(3.0)
    (x * x).sum().backward()
    assert x.grad.tolist() == [6.0]


def test_second_use_of_a_leaf_overwrites_the_first():
    x = leaf(3.0)
    (x * 2.0).sum().backward()
    (x * 5.0).sum().backward()
    assert x.grad.tolist() == [7.0]
    x.zero_grad()
    assert x.grad is None


@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1, (0, 2), (1, -1), (0, 1, 2)])
@pytest.mark.parametrize("keepdims", [False, True])
def test_sum_over_an_axis_without_keepdims(axis, keepdims, rng):
    x = Tensor(rng.standard_normal((2, 3, 4)), requires_grad=True)
    y = x.sum(axis, keepdims)
    weight = rng.standard_normal(y.shape)
    y.backward(weight)
    np.testing.assert_array_equal(x.grad, np.broadcast_to(weight.reshape(x.data.sum(axis, keepdims=True).shape), x.shape))


def test_slow_residual_stream(rng):
    def run():
        x = y = Tensor(np.ones((64, 128), np.float32), requires_grad=True)
        for _ in range(24):
            y = y + y * 0.5
        y.sum().backward()
        np.testing.assert_allclose(x.grad, 1.5**24, rtol=1e-5)

    assert calls(run) < 3000


def test_second_backward_through_a_used_graph():
    x = leaf(2.0)
    y = (x * x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match=r"already used.*run the forward pass again"):
        y.backward()
    assert x.grad.tolist() == [4.0]


def test_second_loss_on_a_used_trunk():
    x = leaf(2.0)
    trunk = x * x
    (trunk * 3.0).sum().backward()
    with pytest.raises(RuntimeError, match="Mul was already"):
        (trunk * 5.0).sum().backward()


class WrongShape(Function):
    @staticmethod
    def forward(ctx, a, b):
        return a @ b

    @staticmethod
    def backward(ctx, grad):
        return grad, grad


def test_backward_of_a_wrong_shape_goes_unnoticed():
    a, b = (Tensor(np.ones(s), requires_grad=True) for s in ((2, 3), (3, 4)))
    with pytest.raises(ValueError, match=r"WrongShape\.backward: gradient of argument 0 has shape \(2, 4\).*\(2, 3\)"):
        WrongShape.apply(a, b).sum().backward()


class TooFew(WrongShape):
    @staticmethod
    def backward(ctx, grad):
        return grad


def test_backward_that_forgets_an_argument():
    a, b = (Tensor(np.ones((2, 2)), requires_grad=True) for _ in range(2))
    with pytest.raises(ValueError, match=r"TooFew\.backward returned 1 gradients for 2 arguments"):
        TooFew.apply(a, b).sum().backward()


class Widens(WrongShape):
    @staticmethod
    def backward(ctx, grad):
        return grad.astype(np.float64), grad


def test_gradient_of_another_dtype():
    a, b = (Tensor(np.ones((2, 2), np.float32), requires_grad=True) for _ in range(2))
    with pytest.raises(ValueError, match=r"Widens.*float64.*float32"):
        Widens.apply(a, b).sum().backward()


def test_saved_arrays_kept_after_backward():
    """Once the pass is through, an intermediate array is held by nobody."""
    x = leaf(1.0, 2.0)
    hidden = ops.exp(x)
    alive = weakref.ref(hidden.data)
    y = (hidden * hidden).sum()
    del hidden
    gc.collect()
    assert alive() is not None
    y.backward()
    assert alive() is None


def test_activations_nobody_needs_kept_alive():
    """x + 1 saves nothing, so its input's array is gone as soon as the user lets go."""
    x = leaf(1.0, 2.0)
    hidden = x + 1.0
    alive = weakref.ref(hidden.data)
    y = hidden + 1.0
    del hidden
    assert alive() is None
    y.sum().backward()
    assert x.grad.tolist() == [1.0, 1.0]


def test_output_that_can_be_rebuilt_kept_alive():
    """rms_norm's is rebuilt for all who saved it, once, when backward comes to them."""
    x, gain, w, u = (Tensor(np.random.default_rng(k).standard_normal(s), requires_grad=True)
                     for k, s in enumerate(((2, 3, 4), (4,), (5, 4), (5, 4))))
    y, calls = ops.rms_norm(x, gain, 0.1), []
    value, alive, op = y.data.copy(), weakref.ref(y.data), y.node.op
    loss = (ops.linear(y, w) ** 2).sum() + (ops.linear(y, u) ** 2).sum()
    del y
    assert alive() is None
    rebuild = op.rebuild
    with patch.object(op, "rebuild", staticmethod(lambda ctx: calls.append(ctx) or rebuild(ctx))):
        loss.backward()
    assert len(calls) == 1
    for m in (w, u):
        np.testing.assert_allclose(m.grad, 2 * np.einsum("bto,bti->oi", value @ m.data.T, value), rtol=1e-12)


def test_recording_under_no_grad():
    x = leaf(1.0)
    with no_grad():
        y = x * 2.0
    assert not y.requires_grad
    with pytest.raises(RuntimeError, match="requires_grad"):
        y.backward()
    assert (x * 2.0).requires_grad


def test_no_grad_left_on_by_an_exception():
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    assert (leaf(1.0) * 2.0).requires_grad


def test_backward_from_a_vector_without_a_gradient():
    with pytest.raises(RuntimeError, match="not a scalar"):
        (leaf(1.0, 2.0) * 2.0).backward()
    with pytest.raises(ValueError, match="shape"):
        (leaf(1.0, 2.0) * 2.0).backward(np.ones(3))


def test_integers_asked_for_a_gradient():
    with pytest.raises(TypeError, match="floating"):
        Tensor(np.arange(3), requires_grad=True)


def test_hook_before_the_gradient_is_complete():
    """Two uses of w, one deep and one shallow: the hook fires once, with their sum."""
    w, seen = leaf(2.0), []
    w.register_post_accumulate_grad_hook(lambda t: seen.append(t.grad.copy()))
    y = w * 3.0
    for _ in range(5):
        y = y * 1.0
    (y + w).sum().backward()
    assert [g.tolist() for g in seen] == [[4.0]]


def test_hook_after_the_whole_pass():
    """The last layer's weight is finished, and may be updated and freed, before the first layer's."""
    first, last, order = leaf(2.0), leaf(3.0), []
    first.register_post_accumulate_grad_hook(lambda t: order.append("first"))
    last.register_post_accumulate_grad_hook(lambda t: (order.append("last"), t.zero_grad()))
    (ops.tanh(first) * last).sum().backward()
    assert order == ["last", "first"]
    assert last.grad is None


def test_hook_on_a_tensor_that_is_no_leaf():
    with pytest.raises(ValueError, match="leaf"):
        (leaf(1.0) * 2.0).register_post_accumulate_grad_hook(print)


def test_branch_without_gradient_blocks_the_rest():
    """An op that gives no gradient for one argument still releases the nodes below it."""

    class FirstOnly(Function):
        @staticmethod
        def forward(ctx, a, b):
            return a + b

        @staticmethod
        def backward(ctx, grad):
            return grad, None

    x = leaf(1.0)
    a, b = x * 2.0, x * 5.0
    FirstOnly.apply(a, b).sum().backward()
    assert x.grad.tolist() == [2.0]


def test_leaf_gradient_that_is_a_number_and_no_array():
    """NumPy makes numbers of 0-d arrays, which nothing can change in place."""
    x = Tensor(np.float64(3.0), requires_grad=True)
    for _ in range(2):
        (x * x).backward()
        assert isinstance(x.grad, np.ndarray)
    assert isinstance(x.data, np.ndarray)
    assert x.grad == 12


class TestCheckpoint:
    def block(self, x, w):
        return ops.silu(x @ w) * x

    def gradients(self, run, arrays):
        x, w = (Tensor(a, requires_grad=True) for a in arrays)
        run(run(x, w), w).sum().backward()
        return x.grad, w.grad

    def test_gradient_lost_in_recomputation(self, rng):
        arrays = rng.standard_normal((2, 3, 3))
        plain = self.gradients(self.block, arrays)
        again = self.gradients(lambda x, w: checkpoint(self.block, x, w), arrays)
        for a, b in zip(plain, again):
            np.testing.assert_array_equal(a, b)

    def test_activations_inside_the_block_kept(self, rng):
        made = []

        def block(x):
            hidden = ops.exp(x)
            made.append(weakref.ref(hidden.data))
            return hidden * hidden

        x = leaf(0.5, 1.0)
        y = checkpoint(block, x)
        gc.collect()
        assert made[0]() is None
        y.sum().backward()
        np.testing.assert_allclose(x.grad, 2 * np.exp(2 * x.data))
        assert len(made) == 2

    def same(self, f, *leaves):
        """Gradients and hooks with every call of `keep` a checkpoint are those with none."""
        found = []
        for keep in (lambda f, *args, **options: f(*args, **options), checkpoint):
            fired = []
            for k, t in enumerate(leaves):
                t.zero_grad()
                t._hooks = [lambda _, k=k, fired=fired: fired.append(k)]
            f(keep).sum().backward()
            assert len(fired) == len(set(fired))
            found.append([t.grad for t in leaves])
        for a, b in zip(*found):
            np.testing.assert_allclose(a, b, rtol=1e-12)

    def test_captured_tensors_forgotten(self, rng):
        """Leaves that the function did not get as arguments, one of them used outside too; and what was computed before."""
        x, w, b = (Tensor(rng.standard_normal((3, 3)), requires_grad=True) for _ in range(3))
        self.same(lambda keep: keep(lambda x: x * w, x), x, w)
        self.same(lambda keep: keep(lambda x: x @ w + b * w, x) * w, x, w, b)

        def with_a_computed_one(keep):
            h = ops.exp(w)
            return keep(lambda x: ops.tanh(x * h), x) * h

        self.same(with_a_computed_one, x, w)
        self.same(lambda keep: keep(lambda: w * w), w)
        self.same(lambda keep: keep(lambda x: w, x) * 2.0, w)

    def test_nested_checkpoints(self, rng):
        x, w = (Tensor(rng.standard_normal((3, 3)), requires_grad=True) for _ in range(2))
        self.same(lambda keep: keep(lambda y: keep(lambda z: ops.silu(z @ w), y * w) + keep(lambda z: z * w, y), x), x, w)

    def test_arguments_that_are_no_tensors(self, rng):
        x, w, g = (Tensor(rng.standard_normal((3, 3)), requires_grad=True) for _ in range(3))
        self.same(lambda keep: keep(lambda pair, mask, power, scale=None: (pair[0] * mask @ pair[1]) ** power * scale,
                                    [x, w], np.eye(3) > 0, 2, scale=g), x, w, g)

    def test_no_grad_inside(self, rng):
        """What is computed under it gets no gradient, which is no error, even where it is all."""
        x, w = (Tensor(rng.standard_normal(3), requires_grad=True) for _ in range(2))

        def f(x):
            with no_grad():
                c = ops.exp(w)
            return x * c

        checkpoint(f, x).sum().backward()
        np.testing.assert_array_equal(x.grad, np.exp(w.data))
        assert w.grad is None
        (checkpoint(no_grad()(lambda x: x * 2), x).sum() + w.sum()).backward()
        with no_grad():
            assert not checkpoint(f, x).requires_grad

    def test_frozen_leaf_and_a_function_that_fails(self):
        x, w = leaf(2.0), Tensor(np.array([3.0]))
        checkpoint(lambda x: x * w, x).sum().backward()
        assert x.grad.tolist() == [3.0]
        assert w.grad is None
        calls = []

        def fails_again(h):
            calls.append(h)
            return h * (1 if len(calls) == 1 else None)

        h = x * 2.0
        y = checkpoint(fails_again, h)
        with pytest.raises(TypeError):
            y.sum().backward()
        assert h.node is not None  # is part of its graph again
        assert (x * 2.0).requires_grad

    def test_function_of_several_results(self):
        with pytest.raises(TypeError, match="returns tuple; one Tensor is needed"):
            checkpoint(lambda x: (x, x), leaf(1.0))

    def test_parameters_of_a_module_left_out(self, rng):
        from minisl.nn import Linear

        layer = Linear(3, 3, rng, "float64")
        seen = []
        layer.weight.register_post_accumulate_grad_hook(lambda t: seen.append(t.grad.copy()))
        x = Tensor(rng.standard_normal((2, 3)), requires_grad=True)
        checkpoint(layer, checkpoint(layer, x)).sum().backward()  # used twice: the hook still fires once, complete
        plain = Linear(3, 3, None, "float64")
        plain.weight.data, z = layer.weight.data, Tensor(x.data, requires_grad=True)
        plain(plain(z)).sum().backward()
        assert len(seen) == 1
        np.testing.assert_allclose(seen[0], plain.weight.grad, rtol=1e-12)
        np.testing.assert_allclose(x.grad, z.grad, rtol=1e-12)


CHECKPOINT = [partial(getattr(TestCheckpoint(), name), *[np.random.default_rng(0)] * ("rng" in signature(test).parameters))
              for name, test in vars(TestCheckpoint).items() if name.startswith("test_")]
test_checkpoint_mutants = mutant_tests([
    (as_leaves.__wrapped__, "t.node = None", "pass"),
    (as_leaves.__wrapped__, "t.node = node", "pass"),
    (checkpoint, "used | ({output: None} if output.requires_grad else {})", "used"),
    (checkpoint, "tuple(used |", "tuple({t: None for t in used if t in inputs} |"),
    (checkpoint, "function(*inputs, **options))", "function(*inputs))"),
    (Checkpoint.backward, "if output.requires_grad:", "if True:"),
    (Checkpoint.backward, ", deliver=found.__setitem__", ""),
    (Function.apply.__func__, "(used := _used.get()) is not None", "(used := _used.get()) is not None and False"),
    (watching.__wrapped__, "with recording(False):", "if True:"),
], *CHECKPOINT)
