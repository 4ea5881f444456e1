"""Random programs against PyTorch: chains of ops with repeated operands, views, broadcasting, numbers, lengths of 1 and 0, in any
layout, in both precisions; then single ops at the numbers where formulas break."""

import numpy as np
import pytest

from minisl.autograd import Tensor, no_grad, ops

torch = pytest.importorskip("torch")
F = torch.nn.functional

ONE = {  # ours, PyTorch's; the values stay of the size of 1
    "tanh": (ops.tanh, torch.tanh), "sigmoid": (ops.sigmoid, torch.sigmoid), "silu": (ops.silu, F.silu),
    "relu": (ops.relu, F.relu),
    "abs": (abs, abs), "neg": (lambda x: -x,) * 2, "clip": (lambda x: x.clip(-0.5, 0.9), lambda x: x.clamp(-0.5, 0.9)),
    "square": (lambda x: ops.tanh(x * x), lambda x: torch.tanh(x * x)), "2 ** x": (lambda x: 2.0**-abs(x),) * 2,
    "sqrt": (lambda x: (x * x + 1).sqrt() - 1,) * 2, "1 / x": (lambda x: 1 / (2 + x * x),) * 2,
    "log": (lambda x: (1 + x * x).log(),) * 2, "exp": (lambda x: (-x * x).exp(),) * 2,
    "x ** 3": (lambda x: (x / (1 + x * x)) ** 3,) * 2, "T": (lambda x: x.T, lambda x: x.permute(*reversed(range(x.ndim)))),
    "flat": (lambda x: x.flatten(),) * 2, "sum": (lambda x: ops.tanh(x.sum()), lambda x: torch.tanh(x.sum())),
    "detached": (lambda x: x * x.detach(),) * 2, "number": (lambda x: 0.5 - x * 3,) * 2,
    "unsqueezed": (lambda x: x.unsqueeze(0),) * 2, "squeezed": (lambda x: x.squeeze(),) * 2,
}
AXIS = {  # along an axis
    "softmax": (ops.softmax, torch.softmax), "log_softmax": (lambda x, k: ops.log_softmax(x, k).exp(), torch.softmax),
    "mean": (ops.mean, torch.mean), "sum": (lambda x, k: ops.tanh(x.sum(k, True)), lambda x, k: torch.tanh(x.sum(k, True))),
    "max": (ops.max, torch.amax), "min": (ops.min, torch.amin),
    "std": (lambda x, k: ops.std(x, k, correction=0), lambda x, k: torch.std(x, k, correction=0)),
    "cumsum": (lambda x, k: ops.tanh(x.cumsum(k)), lambda x, k: torch.tanh(x.cumsum(k))),
    "logsumexp": (lambda x, k: ops.tanh(x.logsumexp(k)), lambda x, k: torch.tanh(x.logsumexp(k))),
    "stack": (lambda x, k: ops.stack([x, x], k), lambda x, k: torch.stack([x, x], k)),
    "concatenate": (lambda x, k: ops.concatenate([x, -x, x], k), lambda x, k: torch.cat([x, -x, x], k)),
    "slice": (lambda x, k: x[..., :1],) * 2, "repeated": (lambda x, k: x[[0, -1, 0]],) * 2,
    "swap": (lambda x, k: x.unsqueeze(0).swapaxes(0, k),) * 2, "split": (lambda x, k: x.split(2, k)[-1],) * 2,
    "product": (lambda x, k: ops.tanh(x.swapaxes(k, -2) @ x if x.ndim > 1 else x @ x),
                lambda x, k: torch.tanh(x.swapaxes(k, -2) @ x if x.ndim > 1 else x @ x)),
}
TWO = {"add": (ops.add, torch.add), "sub": (ops.sub, torch.sub), "mul": (ops.mul, torch.mul), "max": (ops.maximum, torch.maximum),
       "min": (ops.minimum, torch.minimum), "div": (lambda a, b: a / (1 + b * b),) * 2,
       "where": (lambda a, b: ops.where(a > b, a, b * 2), lambda a, b: torch.where(a > b, a, b * 2)),
       "twice": (lambda a, b: a + (a + b), lambda a, b: a + (a + b))}


def laid_out(array, how):
    """The same numbers: in rows, in columns, every other of a larger array, backwards in memory."""
    if how == 1 or not array.ndim:
        return np.asfortranarray(array)
    if how == 2:
        return np.repeat(array, 2, axis=0)[::2]
    return array[::-1].copy()[::-1] if how == 3 else array


def program(rng):
    """A list of (ours, PyTorch's, the operands' places)."""
    steps = []
    for _ in range(12):
        kind = rng.choice(["one", "axis", "two"])
        table = {"one": ONE, "axis": AXIS, "two": TWO}[kind]
        steps.append((kind, table[rng.choice(list(table))], rng.integers(0, 1 << 30, 2)))
    return steps


def run(steps, leaves, which):
    """The values after each step; what PyTorch refuses (which = 1) is left out in both."""
    values, done = list(leaves), []
    for kind, functions, places in steps:
        a, b = (values[p % len(values)] for p in places)
        try:
            y = functions[which](*{"one": (a,), "axis": (a, -1), "two": (a, b)}[kind])
        except (RuntimeError, IndexError, ValueError, TypeError):
            if which == 0:
                raise
            continue
        done.append((kind, functions, places))
        values.append(y)
    return values, done


@pytest.mark.filterwarnings("ignore:std")  # PyTorch's, of nothing
@pytest.mark.parametrize("seed", range(40))
def test_random_program(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.choice([1, 2, 3, 4] if seed % 6 else [0, 1, 2], 3)
    shapes = [tuple(sizes[3 - n:]) for n in (3, int(rng.integers(0, 4)), 1)]
    shapes[1] = tuple(1 if rng.random() < 0.3 else n for n in shapes[1])
    steps, arrays = program(rng), [np.asarray(rng.standard_normal(s)) for s in shapes]
    for dtype, tolerance in ((np.float64, 1e-9), (np.float32, 2e-3)):
        given = [laid_out(a.astype(dtype), int(rng.integers(4))) for a in arrays]
        theirs = [torch.tensor(a.copy(), requires_grad=True) for a in given]
        mine = [Tensor(a, requires_grad=True) for a in given]
        expected, done = run(steps, theirs, 1)
        with np.errstate(all="ignore"):
            found, _ = run(done, mine, 0)
            with no_grad():
                plain, _ = run(done, mine, 0)
        for y, z, t in zip(found, plain, expected):
            assert (y.shape, y.dtype) == (tuple(t.shape), dtype)
            np.testing.assert_allclose(y.data, t.detach().numpy(), tolerance, tolerance)
            np.testing.assert_array_equal(y.data, z.data)
            assert not z.requires_grad or any(z is x for x in mine)
        with np.errstate(all="ignore"):
            ops.stack([y.sum() for y in found]).sum().backward()
        sum(t.sum() for t in expected).backward()
        for x, t in zip(mine, theirs):
            assert x.grad.dtype == dtype
            np.testing.assert_allclose(x.grad, t.grad.numpy(), tolerance, tolerance * float(1 + abs(t.grad).sum()))


EDGES = np.array([0.0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 1e-25, -1e-25, 1e20, 20, -20, 90, -90, 1e-8, 0.5, 2])
AT_EDGES = {
    "exp": (ops.exp, torch.exp), "log": (ops.log, torch.log), "sqrt": (ops.sqrt, torch.sqrt), "rsqrt": (ops.rsqrt, torch.rsqrt),
    "tanh": (ops.tanh, torch.tanh), "sigmoid": (ops.sigmoid, torch.sigmoid), "silu": (ops.silu, F.silu),
    "relu": (ops.relu, F.relu),
    "square": (lambda x: x**2,) * 2, "x ** 0": (lambda x: x**0,) * 2, "x ** -1": (lambda x: x**-1,) * 2,
    "x ** 3": (lambda x: x**3,) * 2,
    "2 ** x": (lambda x: 2.0**x,) * 2, "0 ** x": (lambda x: 0.0**x,) * 2, "1 / x": (lambda x: 1 / x,) * 2,
    "cumsum": (lambda x: x.cumsum(0),) * 2, "x ** x": (lambda x: x**x,) * 2, "x / x": (lambda x: x / x,) * 2,
}
PAIRS = {"div": (ops.div, torch.div), "maximum": (ops.maximum, torch.maximum), "minimum": (ops.minimum, torch.minimum),
         "power": (ops.power, torch.pow), "mul": (ops.mul, torch.mul),
         "softmax": (lambda a, b: ops.softmax(ops.stack([a, b]), 0)[0], lambda a, b: torch.softmax(torch.stack([a, b]), 0)[0]),
         "log_softmax": (lambda a, b: ops.log_softmax(ops.stack([a, b]), 0), lambda a, b: torch.stack([a, b]).log_softmax(0)),
         "logsumexp": (lambda a, b: ops.logsumexp(ops.stack([a, b]), 0), lambda a, b: torch.stack([a, b]).logsumexp(0)),
         "where": (lambda a, b: ops.where(a > b, a, b), lambda a, b: torch.where(a > b, a, b))}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [*AT_EDGES, *PAIRS])
def test_where_formulas_break(name, dtype):
    """Infinities and NaN where PyTorch has them, and nowhere else; all else to a few roundings."""
    ours, theirs = (AT_EDGES | PAIRS)[name]
    arrays = [a.ravel().astype(dtype) for a in (np.meshgrid(EDGES, EDGES) if name in PAIRS else [EDGES])]
    mine, other = [Tensor(a, requires_grad=True) for a in arrays], [torch.tensor(a, requires_grad=True) for a in arrays]
    with np.errstate(all="ignore"):
        y = ours(*mine)
        y.sum().backward()
    z = theirs(*other)
    z.sum().backward()
    for found, expected in [(y.data, z.detach()), *((x.grad, t.grad) for x, t in zip(mine, other))]:
        tolerance = {"rtol": 1e-5, "atol": 1e-37} if dtype == "float32" else {"rtol": 1e-12}  # PyTorch may flush what is below
        np.testing.assert_allclose(found, expected.numpy(), **tolerance)
