"""Check a backward against central differences, in float64, so strictly that a wrong one does not pass."""

import math

import numpy as np

from minisl.autograd.tensor import Tensor

FULL_JACOBIAN = 20_000  # entries; above this, random projections of the Jacobian
PROJECTIONS = 12


class GradcheckError(AssertionError):
    """The derivative and the difference quotient disagree, or the check could not have failed."""


def gradcheck(function, *inputs, tolerance=1e-6, seed=0):
    """Raise GradcheckError unless `function`'s gradients equal its difference quotients.

    function: Tensors in, one Tensor out. inputs: float64 arrays or Tensors, all of them differentiated.
    Compared entry by entry (the full Jacobian, or u^T J v for random u and v where that is large):
    |derived - measured| <= tolerance * max(|derived|, |measured|, 1e-3 * the largest entry).
    Also refused, since they would prove nothing: inputs that are all one number, gradients that are all zero,
    a backward that changes the gradient it was given.
    """
    arrays = [np.array(x.data if isinstance(x, Tensor) else x) for x in inputs]
    rng = np.random.default_rng(seed)
    for i, array in enumerate(arrays):
        if array.dtype != np.float64:
            raise TypeError(f"gradcheck: argument {i} is {array.dtype}; differences need float64")
        if array.size > 1 and np.ptp(array) == 0:
            raise GradcheckError(f"argument {i} is constant ({array.flat[0]}): a check on it proves little; draw it at random")
    leaves = [Tensor(a, requires_grad=True) for a in arrays]
    output = function(*leaves)
    name = output.node.op.__name__ if output.node else getattr(function, "__name__", "function")
    if output.node is None:
        raise GradcheckError(f"{name}: the output was not computed from the inputs by ops")

    full = output.size * max(a.size for a in arrays) <= FULL_JACOBIAN
    weights = np.eye(output.size).reshape(-1, *output.shape) if full else rng.standard_normal((PROJECTIONS, *output.shape))
    derived = [derive(function, arrays, w) for w in weights]  # derived[row][argument]
    for i, array in enumerate(arrays):
        rows = np.stack([d[i] for d in derived]).reshape(len(weights), -1)
        if full:
            directions, mine = np.eye(array.size), rows
        else:
            directions = rng.standard_normal((PROJECTIONS, array.size))
            mine = rows @ directions.T
        measured = measure(function, arrays, i, directions, weights)
        compare(name, i, array.shape, mine, measured, tolerance, full)


def derive(function, arrays, weight):
    """d(sum weight * output)/d(each argument), by backward."""
    leaves = [Tensor(a.copy(), requires_grad=True) for a in arrays]
    given = weight.copy()
    function(*leaves).backward(given)
    if not np.array_equal(given, weight):
        raise GradcheckError("backward wrote into the gradient it was given")
    return [np.zeros_like(a) if t.grad is None else t.grad for a, t in zip(arrays, leaves)]


def measure(function, arrays, i, directions, weights):
    """The same by (f(x + h v) - f(x - h v)) / 2h, for every direction v of argument i: (weights, directions)."""
    columns = []
    for v in directions.reshape(-1, *arrays[i].shape):
        h = np.finfo(np.float64).eps ** (1 / 3) * max(1.0, float(abs(arrays[i][v != 0]).max()))
        ends = []
        for sign in (1, -1):
            moved = [Tensor(a + sign * h * v) if k == i else Tensor(a) for k, a in enumerate(arrays)]
            ends.append(function(*moved).data)
        columns.append((weights * ((ends[0] - ends[1]) / (2 * h))).reshape(len(weights), -1).sum(axis=1))
    return np.stack(columns, axis=1)


def compare(name, argument, shape, derived, measured, tolerance, full):
    """Raise GradcheckError unless `derived` is as near to `measured` as the tolerance says; the rest is for its words."""
    if not np.isfinite(measured).all():
        raise GradcheckError(f"{name}: argument {argument}: the function is not finite near the input")
    largest = abs(measured).max()
    if largest == 0 and not derived.any():
        raise GradcheckError(f"{name}: argument {argument}: the derivative is zero everywhere, so this check cannot fail; "
                             "choose other inputs")
    scale = np.maximum(np.maximum(abs(derived), abs(measured)), 1e-3 * largest)
    error = np.where(np.isfinite(derived), abs(derived - measured) / scale, math.inf)
    row, column = np.unravel_index(error.argmax(), error.shape)
    if error[row, column] > tolerance:
        index = tuple(int(k) for k in np.unravel_index(column, shape)) if full else f"projection {column}"
        raise GradcheckError(f"{name}: argument {argument}, index {index}: derived {derived[row, column]:.9g}, "
                             f"measured {measured[row, column]:.9g} (relative error {error[row, column]:.1e} > {tolerance:.0e})")
