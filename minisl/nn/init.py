"""Starting values. rng: a NumPy Generator, or None for an array that has a shape but takes no memory (to count with)."""

import numpy as np


def uniform(rng, shape, bound, dtype):
    """U(-bound, bound)"""
    return _shape_only(shape, dtype) if rng is None else rng.uniform(-bound, bound, shape).astype(dtype)


def normal(rng, shape, std, dtype):
    """N(0, std^2)"""
    return _shape_only(shape, dtype) if rng is None else (std * rng.standard_normal(shape)).astype(dtype)


def constant(rng, shape, value, dtype):
    return _shape_only(shape, dtype) if rng is None else np.full(shape, value, dtype)


def spawn(rng):
    """A stream for one layer, so that what it draws does not shift what the next one draws."""
    return None if rng is None else rng.spawn(1)[0]


def _shape_only(shape, dtype):
    return np.broadcast_to(np.zeros((), dtype), shape)
