"""Starting values. rng: a NumPy Generator, or None for an array that has a shape but takes no memory (to count with)."""

import numpy as np

from minisl.errors import InputError


def uniform(rng, shape, bound, dtype):
    """U(-bound, bound)"""
    return _drawn(rng, shape, dtype, lambda n: rng.uniform(-bound, bound, n))


def normal(rng, shape, std, dtype):
    """N(0, std^2)"""
    return _drawn(rng, shape, dtype, lambda n: std * rng.standard_normal(n))


def constant(rng, shape, value, dtype):
    """An array full of `value`; without memory where rng is None."""
    return _shape_only(shape, dtype) if rng is None else np.full(shape, value, dtype)


def spawn(rng):
    """A stream for one layer, so that what it draws does not shift what the next one draws."""
    return None if rng is None else checked(rng).spawn(1)[0]


def checked(rng):
    """rng. Raises InputError unless it is a Generator."""
    if not isinstance(rng, np.random.Generator):
        raise InputError(f"rng {rng!r}: must be a NumPy Generator, such as np.random.default_rng(0), or None for shapes alone")
    return rng


def _shape_only(shape, dtype):
    return np.broadcast_to(np.zeros((), dtype), shape)


def _drawn(rng, shape, dtype, draw, step=1 << 20):
    """draw(n) gives float64, which is kept for no more than `step` numbers at a time."""
    if np.dtype(dtype).kind != "f":
        raise InputError(f"dtype {dtype}: weights are float32 or float64")
    if rng is None:
        return _shape_only(shape, dtype)
    checked(rng)
    values = np.empty(shape, dtype)
    flat = values.reshape(-1)
    for i in range(0, flat.size, step):
        flat[i:i + step] = draw(min(step, flat.size - i))
    return values
