"""Rules and the Optimizer that has one for each parameter: SGD, Adam of 8 bits, rules within rules."""

from functools import partial

import numpy as np
import pytest
from mutation import mutant_tests, within

from minisl.errors import InputError
from minisl.kernels import numpy_fused
from minisl.kernels.numpy_fused import BLOCK, dynamic_map
from minisl.nn import Parameter
from minisl.optim import RULES, SGD, Adam, Adam8bit, Optimizer, Rule

SIZE = 4100  # enough for 8 bits, and a last block that is not full
TABLES = dynamic_map(True), dynamic_map(False)
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


class Nested(Rule):
    """Half of what the rule inside gives for a third of the gradient, plus a mean that is kept in an array."""

    state = "inner", "mean", "absent", "count"

    def __init__(self, like, inner=Adam):
        self.inner, self.mean, self.absent, self.count = inner(like), np.zeros_like(like), None, 0

    def direction(self, gradient):
        self.count += 1
        self.mean += gradient / self.count
        return self.inner.direction(gradient / 3) / 2 + self.mean


def gradients(shape, steps=6, dtype=np.float32):
    rng = np.random.default_rng(5)
    return [rng.standard_normal(shape).astype(dtype) * dtype(0.1) for _ in range(steps)]


def moved(rule, start, gradients, lr=0.1, weight_decay=0.0):
    """The weights after these gradients."""
    p = Parameter(start.copy())
    optimizer = Optimizer([("p", p)], lr, lambda name, array: rule(array), weight_decay)
    for g in gradients:
        p.grad = g.copy()
        optimizer.step()
    return p.data, optimizer


def check_sgd():
    """theta = (1 - lr wd) theta - lr g, nothing is kept, and the gradient is not written to."""
    start, found = np.array([1.0, -2.0, 4.0]), np.array([0.5, 0.25, -1.0])
    right = start.copy()
    for g in gradients(3, dtype=np.float64):
        right = right - 0.1 * 0.3 * right - 0.1 * g
    found, optimizer = moved(SGD, start, gradients(3, dtype=np.float64), weight_decay=0.3)
    np.testing.assert_allclose(found, right, rtol=1e-12)
    assert optimizer.state_dict() == {}
    assert list(optimizer.arrays()) == []
    g = np.ones(3)
    SGD(g).update(np.zeros(3), g, 0.5)
    assert g.tolist() == [1, 1, 1]
    assert SGD.state_bytes(1000, 4) == 0


def check_adam8bit():
    """Its first steps are those of numpy_fused.adam8bit from zeros, with the step counted from 1, to the bit."""
    start = np.random.default_rng(1).standard_normal((41, 100)).astype(np.float32)
    rule, p, q = Adam8bit(start, (0.8, 0.95), 1e-3), start.copy(), start.copy()
    rule.weight_decay = 0.2
    codes = [np.full(p.shape, int(np.argmin(abs(table))), np.uint8) for table in TABLES]
    tops = [np.zeros(-(-p.size // BLOCK), np.float32) for _ in range(2)]
    np.testing.assert_array_equal([rule.exp_avg, rule.exp_avg_sq], codes)
    for t, g in enumerate(gradients(p.shape), 1):
        rule.update(p, g, 0.1 / t)
        numpy_fused.adam8bit(q, g, *codes, *tops, TABLES, 0.1 / t, (0.8, 0.95), 1e-3, 0.2, t)
        for mine, right in ((p, q), (rule.exp_avg, codes[0]), (rule.exp_avg_sq, codes[1]), (rule.exp_avg_top, tops[0]),
                            (rule.exp_avg_sq_top, tops[1])):
            np.testing.assert_array_equal(mine, right, strict=True)
        assert rule.step == t
    assert (Adam8bit(start).betas, Adam8bit(start).eps) == ((0.9, 0.999), 1e-8)


def check_small_arrays_get_adam():
    """Below 4,096 weights the rule is Adam's, to its settings; the bytes are those of the arrays."""
    small = Adam8bit(np.zeros((63, 65), np.float32), (0.8, 0.95), 1e-3)
    assert type(small) is Adam
    assert (small.betas, small.eps) == ((0.8, 0.95), 1e-3)
    assert type(Adam8bit(np.zeros((64, 64), np.float32))) is Adam8bit
    for size in (1, 4095, 4096, 4097, 5000):
        for dtype in (np.float32, np.float64):
            found = sum(a.nbytes for a in Adam8bit(np.zeros(size, dtype)).arrays())
            assert found == Adam8bit.state_bytes(size, np.dtype(dtype).itemsize)


def check_linear_map_is_worse():
    """sum_i c_i x_i^2 / 2 from x = +-1, with c from 10^-decades to 1 in each block: v spans twice as many. Adam's steps do not
    depend on c. The dynamic map keeps that over three decades; the linear one makes small v 0, and their steps huge."""
    linear = np.linspace(-127 / 128, 1, 256, dtype=np.float32), np.linspace(0, 1, 256, dtype=np.float32)

    def mean_square(decades, tables):
        """(of x after 100 steps, part of v that is 0)"""
        curvature = np.tile(np.logspace(-decades, 0, BLOCK, dtype=np.float32), 16)
        x = np.random.default_rng(0).choice([-1, 1], 16 * BLOCK).astype(np.float32)
        rule = Adam8bit(x) if tables else Adam(x)
        if tables is linear:
            rule.tables = linear
            rule.exp_avg[:] = np.argmin(abs(linear[0]))
        for _ in range(100):
            rule.update(x, curvature * x, 0.01)
        v = numpy_fused.decoded(rule.exp_avg_sq, rule.exp_avg_sq_top, rule.tables[1]) if tables else rule.exp_avg_sq
        return (x**2).mean(), (v == 0).mean()

    for decades in (0, 1, 2, 3):
        (exact, _), (dynamic, none), (coarse, many) = (mean_square(decades, tables) for tables in (None, TABLES, linear))
        assert 0.04 < exact < 0.06
        assert abs(dynamic / exact - 1) < 0.1
        assert none == 0
        if decades < 2:
            assert abs(coarse / exact - 1) < 0.1
            assert many == 0
        else:
            assert coarse > 10  # it started at 1
            assert many > 0.3


@pytest.mark.parametrize("check", [check_sgd, check_adam8bit, check_small_arrays_get_adam, check_linear_map_is_worse])
def test_rule(check, backend):
    check()


def check_direction_and_update():
    """Each is the other: theta - update(theta) = lr N, with what is remembered alike."""
    for make in (*RULES.values(), Nested, partial(Nested, inner=Adam8bit)):
        start = np.random.default_rng(2).standard_normal(SIZE).astype(np.float32)
        one, other, p, q = make(start), make(start), start.copy(), start.copy()
        one.weight_decay = other.weight_decay = 0.5
        for g in gradients(SIZE):
            before = g.copy()
            one.update(p, g, 0.1)
            other.weight_decay = 0.0
            step = other.direction(g)
            assert step is not g
            np.testing.assert_array_equal(g, before)
            q = (1 - 0.1 * 0.5) * q - 0.1 * step
            np.testing.assert_allclose(p, q, rtol=1e-5, atol=1e-6)
            assert p.dtype == step.dtype == np.float32
        for name, array in one.state_dict().items():
            np.testing.assert_array_equal(array, other.state_dict()[name])


def check_saved():
    """Three steps, the state into a new optimizer, three more: to the bit as six. Arrays are copies."""
    for make in (*RULES.values(), Nested, partial(Nested, inner=Adam8bit)):
        start = np.random.default_rng(2).standard_normal(SIZE).astype(np.float32)
        whole, optimizer = moved(make, start, gradients(SIZE))
        half, first = moved(make, start, gradients(SIZE)[:3])
        p = Parameter(half.copy())
        second = Optimizer([("p", p)], 0.1, lambda name, array, make=make: make(array))
        state = first.state_dict()
        second.load_state_dict(state)
        before = {name: array.copy() for name, array in state.items()}
        for g in gradients(SIZE)[3:]:
            p.grad = g.copy()
            second.step()
        np.testing.assert_array_equal(p.data, whole)
        for name, array in optimizer.state_dict().items():
            np.testing.assert_array_equal(array, second.state_dict()[name], err_msg=name, strict=True)
            np.testing.assert_array_equal(state[name], before[name], err_msg=name)


def check_names_of_state():
    """"KIND.NAME", an inner rule's kind "attribute/kind"; what is None is left out, arrays() are the arrays of them."""
    _, optimizer = moved(Nested, np.zeros(3, np.float32), gradients(3))
    state = optimizer.state_dict()
    assert sorted(state) == ["count.p", "inner/exp_avg.p", "inner/exp_avg_sq.p", "inner/step.p", "mean.p"]
    assert state["count.p"].tolist() == state["inner/step.p"].tolist() == 6
    assert sum(a.nbytes for a in optimizer.arrays()) == 3 * 12


def check_refused():
    """State of another rule, shape or parameter: nothing is changed."""
    _, adam = moved(Adam, np.zeros(3, np.float32), gradients(3))
    for make, shape in ((SGD, 3), (Nested, 3), (Adam, 4)):
        _, other = moved(make, np.zeros(shape, np.float32), gradients(shape))
        rules, before = other.rules, {name: array.copy() for name, array in other.state_dict().items()}
        with pytest.raises(InputError, match="optimizer state does not fit this model: "):
            other.load_state_dict(adam.state_dict())
        assert other.rules is rules
        for name, array in other.state_dict().items():
            np.testing.assert_array_equal(array, before[name])
    p, q = Parameter(np.zeros(3, np.float32)), Parameter(np.zeros(4, np.float32))
    two = Optimizer([("p", p), ("q", q)], 0.1, lambda name, array: Adam(array))
    p.grad, q.grad = p.data + 1, q.data + 1
    two.step()
    fits = adam.state_dict()
    with pytest.raises(InputError, match="q: "):  # p's would do
        two.load_state_dict(fits | {name.replace(".p", ".q"): array for name, array in fits.items()})
    assert two.rule("p").step == 1


def check_optimizer():
    """Each parameter its rule, made once, at its first gradient; reset forgets those named and no others."""
    parameters = {name: Parameter(np.ones(3)) for name in "abc"}
    asked = []

    def rule_of(name, array):
        asked.append(name)
        assert array is parameters[name].data
        return SGD(array) if name == "a" else Adam(array)

    optimizer = Optimizer(parameters.items(), 0.5, rule_of, weight_decay=0.25)
    for _ in range(2):
        for name in "ab":
            parameters[name].grad = np.full(3, 2.0)
        optimizer.step()
    assert asked == ["a", "b"]
    assert parameters["a"].data.tolist() == [(1 * 0.875 - 1) * 0.875 - 1] * 3
    np.testing.assert_allclose(parameters["b"].data, (1 * 0.875 - 0.5) * 0.875 - 0.5)
    assert parameters["c"].data.tolist() == [1, 1, 1]
    assert optimizer.rule("b").weight_decay == 0.25
    optimizer.reset("b", "c")
    optimizer.step()
    assert asked == ["a", "b", "b"]
    assert optimizer.rule("b").step == 1


SHARED = [check_direction_and_update, check_saved, check_names_of_state, check_refused, check_optimizer]


@pytest.mark.parametrize("check", SHARED)
def test_optimizer(check, backend):
    check()


test_mutants = mutant_tests([
    (SGD.direction, "gradient.copy()", "gradient"),
    (Rule.direction, "-1.0", "1.0"),
    (Rule.direction, "step = array_module(gradient).zeros_like(gradient)", "step = gradient"),
    (Rule.update, "1 - lr * self.weight_decay", "1 - self.weight_decay"),
    (Rule.update, "if self.weight_decay:", "if False:"),
    (Rule.update, "step *= lr", "pass"),
    (Rule.arrays, "yield from value.arrays()", "pass"),
    (Rule.state_dict, 'f"{name}/{inner}"', "inner"),
    (Rule.state_dict, "elif value is not None:", "else:"),
    (Rule.load_state_dict, "array_module(value).array(state[name], dtype=value.dtype)", "state[name]"),
    (Rule.load_state_dict, "type(value)(state[name])", "value"),
    (Rule.load_state_dict, "dict(mine.items() ^ given.items())", "dict(mine.items() - given.items())"),
    (Rule.load_state_dict, "array.shape for name, array in state.items()", "array.dtype for name, array in state.items()"),
    (Optimizer.rule, "if name not in self.rules:", "if True:"),
    (Optimizer.update, "p.grad, self.lr", "p.grad, 1e-2"),
    (Optimizer.reset, "names:", "self.parameters:"),
    (Optimizer.load_state_dict, "self.rules = rules", "pass"),
    (Optimizer.load_state_dict, "self.made(name) for", "self.rule(name) for"),
    (Adam8bit.__new__, "if like.size < SMALL", "if like.size <= SMALL"),
    (Adam8bit.__new__, "Adam(like, betas, eps)", "Adam(like)"),
    (Adam8bit.__init__, "for signed in (True, False))\n    zero", "for signed in (False, True))\n    zero"),
    (Adam8bit.__init__, "== 0)[0])", "== 1)[0])"),
    (Adam8bit.update, "self.step += 1", "pass"),
    (Adam8bit.update, "self.exp_avg_top, self.exp_avg_sq_top", "self.exp_avg_sq_top, self.exp_avg_top"),
    (Adam8bit.update, "self.weight_decay", "0.0"),
    (Adam8bit.state_bytes, "8 * -(-size // BLOCK)", "8 * (size // BLOCK)"),
], *within("numpy", [check_sgd, check_adam8bit, check_small_arrays_get_adam, *SHARED]))


@every_rule
def test_state_bytes(rule):
    for size in (10, SIZE):
        assert rule.state_bytes(size, 4) == sum(a.nbytes for a in rule(np.zeros(size, np.float32)).arrays())


def test_arrays_that_do_not_fit_are_refused(backend):
    """The kernels read as far as the weights reach."""
    for rule in (Adam(np.ones(5)), Adam8bit(np.ones(5000))):
        with pytest.raises(ValueError, match="shape"):
            rule.update(np.ones(6000), np.ones(6000), 0.1)


def test_rules_that_cannot_be_made_are_refused_before_training():
    def rule_of(name, array):
        raise InputError("no rule")

    with pytest.raises(InputError, match="no rule"):
        Optimizer([("p", Parameter(np.ones(3)))], 0.1, rule_of).check()
