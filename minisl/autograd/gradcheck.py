"""Check a backward against central differences, in float64, so strictly that a wrong one does not pass."""

import math

import numpy as np

from minisl.autograd.tensor import Tensor, raw

FULL_JACOBIAN = 20_000  # entries; above this, random projections of the Jacobian
PROJECTIONS = 12
STEP = np.finfo(np.float64).eps ** (1 / 3)
ROUNDING = 4 * np.finfo(np.float64).eps  # of a function's values, relative


class GradcheckError(AssertionError):
    """The derivative and the difference quotient disagree, or the check could not have failed."""


def gradcheck(function, *inputs, tolerance=1e-6, seed=0):
    """Raise GradcheckError unless `function`'s gradients equal its difference quotients.

    function: Tensors in, one Tensor out. inputs: float64 arrays or Tensors, all of them differentiated. They stay as they are,
    as do NumPy's global random numbers, and the gradients of other tensors that the function uses; their hooks are not called.
    Compared entry by entry (the full Jacobian, or u^T J v for random u and v where that is large):
    |derived - measured| <= tolerance * max(|derived|, |measured|, 1e-3 * the largest entry), or <= what rounding does to the
    quotient.
    What fails is measured once more, with steps in proportion to each entry of the input: 1 / x near 0 needs small ones.
    Also refused, since they would prove nothing: inputs that are all one number, gradients that are all zero,
    a function that changes its inputs in place, a backward that changes the gradient it was given.
    """
    arrays = [np.array(raw(x)) for x in inputs]
    rng = np.random.default_rng(seed)
    for i, array in enumerate(arrays):
        if array.dtype != np.float64:
            raise TypeError(f"gradcheck: argument {i} is {array.dtype}; differences need float64")
        if array.size > 1 and np.ptp(array) == 0:
            raise GradcheckError(f"argument {i} is constant ({array.flat[0]}): a check on it proves little; draw it at random")
    state = np.random.get_state()  # noqa: NPY002  the function may draw from it
    try:
        check(function, arrays, tolerance, rng)
    finally:
        np.random.set_state(state)  # noqa: NPY002


def check(function, arrays, tolerance, rng):
    """As `gradcheck`, of arrays that may be checked."""
    output = function(*(Tensor(a.copy(), requires_grad=True) for a in arrays))
    name = output.node.op.__name__ if output.node else getattr(function, "__name__", "function")
    if output.node is None:
        raise GradcheckError(f"{name}: the output was not computed from the inputs by ops")
    full = output.size * max(a.size for a in arrays) <= FULL_JACOBIAN
    weights = np.eye(output.size).reshape(-1, *output.shape) if full else rng.standard_normal((PROJECTIONS, *output.shape))
    derived = [derive(function, arrays, w) for w in weights]  # derived[row][argument]
    for i, array in enumerate(arrays):
        rows = np.stack([d[i] for d in derived]).reshape(len(weights), -1)
        directions = np.eye(array.size) if full else rng.standard_normal((PROJECTIONS, array.size))
        mine = rows if full else rows @ directions.T
        measured, noise = measure(function, arrays, i, directions, weights, 1.0)
        error = errors(mine, measured, noise)
        if not (error <= tolerance).all():
            sizes = np.where(array == 0, 1, abs(array)).reshape(-1)
            scaled = rows * sizes if full else rows * sizes @ directions.T
            error = np.minimum(error, errors(scaled, *measure(function, arrays, i, directions, weights, sizes), trusted=1e-3))
        report(name, i, array.shape, mine, measured, noise, error, tolerance, full)


def derive(function, arrays, weight):
    """d(sum weight * output)/d(each argument), by backward."""
    copies, given, found = [a.copy() for a in arrays], weight.copy(), {}
    leaves = [Tensor(a, requires_grad=True) for a in copies]
    function(*leaves).backward(given, deliver=found.__setitem__)
    if not np.array_equal(given, weight):
        raise GradcheckError("backward wrote into the gradient it was given")
    for i, (now, before) in enumerate(zip(copies, arrays)):
        if not np.array_equal(now, before, equal_nan=True):
            raise GradcheckError(f"argument {i} was changed in place: backward would compute with other numbers than forward")
    return [found.get(t, np.zeros_like(a)) for a, t in zip(arrays, leaves)]


def measure(function, arrays, i, directions, weights, sizes):
    """The same by (f(x + h v) - f(x - h v)) / 2h, for every direction v of argument i, times `sizes`; and the rounding error to
    expect: both (weights, directions)."""
    columns, noise = [], []
    for direction in directions:
        v = (direction * sizes).reshape(arrays[i].shape)
        h = STEP if np.ndim(sizes) else STEP * max(1.0, float(abs(arrays[i][v != 0]).max()))
        ends = []
        for sign in (1, -1):
            moved = [Tensor(a + sign * h * v if k == i else a.copy()) for k, a in enumerate(arrays)]
            with np.errstate(all="ignore"):  # what is not finite is reported
                ends.append(function(*moved).data)
        columns.append((weights * ((ends[0] - ends[1]) / (2 * h))).reshape(len(weights), -1).sum(axis=1))
        noise.append(np.linalg.norm((weights * ends[0]).reshape(len(weights), -1), axis=1) * (ROUNDING / h))
    return np.stack(columns, axis=1), np.stack(noise, axis=1)


def errors(derived, measured, noise, trusted=None):
    """Relative errors, 0 within noise; infinite where something is not finite, or the noise more than `trusted` of the entry."""
    scale = np.maximum(np.maximum(abs(derived), abs(measured)), 1e-3 * abs(measured[np.isfinite(measured)]).max(initial=0))
    with np.errstate(invalid="ignore"):
        error = abs(derived - measured)
        error = np.where(error <= noise, 0, error / np.where(scale == 0, 1, scale))
    good = np.isfinite(derived) & np.isfinite(measured)
    return np.where(good if trusted is None else good & (noise <= trusted * scale), error, math.inf)


def report(name, argument, shape, derived, measured, noise, error, tolerance, full):
    """Raise GradcheckError unless every error is within the tolerance, and there was something to find."""
    row, column = np.unravel_index(error.argmax(), error.shape)
    if error[row, column] <= tolerance:
        if (abs(derived) <= noise).all() and (abs(measured) <= noise).all():
            raise GradcheckError(f"{name}: argument {argument}: the derivative is zero everywhere, so this check cannot fail; "
                                 "choose other inputs")
    elif not np.isfinite(measured[row, column]):
        raise GradcheckError(f"{name}: argument {argument}: the function is not finite near the input")
    else:
        index = tuple(int(k) for k in np.unravel_index(column, shape)) if full else f"projection {column}"
        raise GradcheckError(f"{name}: argument {argument}, index {index}: derived {derived[row, column]:.9g}, "
                             f"measured {measured[row, column]:.9g} (relative error {error[row, column]:.1e} > {tolerance:.0e})")
