"""The gradient's size, and a bound on it."""

import math
from numbers import Real

from minisl import kernels
from minisl.backend import array_module
from minisl.errors import InputError


def square_sum(gradients):
    """Sum of all squares, as a float, or where the gradients are on a GPU as an array of one number there."""
    return kernels.of(gradients[0]).square_sum(gradients) if gradients else 0.0


def grad_norm(parameters, over_all=None):
    """sqrt(sum of squares) over all gradients, as a float; 0.0 where there are none. A parameter listed twice counts once.

    Of gradients on a GPU: an array of that one number, there. To look at it is to wait for it.
    over_all: makes of the sum of squares here that of all processes, where each has other gradients (`Exchange.over_all`).
    """
    total = square_sum([p.grad for p in dict.fromkeys(parameters) if p.grad is not None])
    total = over_all(total) if over_all else total
    return math.sqrt(total) if isinstance(total, float) else array_module(total).sqrt(total)


def clip_grad_norm(parameters, max_norm, over_all=None):
    """Scale all gradients by min(1, max_norm / norm) (Pascanu et al. 2013). Returns the norm before.

    Raises InputError unless max_norm is above 0.
    """
    if not isinstance(max_norm, Real) or not max_norm > 0:
        raise InputError(f"max_norm {max_norm!r}: must be a number above 0")
    parameters = dict.fromkeys(parameters)
    norm = grad_norm(parameters, over_all)
    if isinstance(norm, float):
        factor = max_norm / norm if norm > max_norm else None
    else:  # a GPU alone knows whether its norm is too large
        factor = array_module(norm).minimum(1, max_norm / norm)
    for p in parameters:
        if p.grad is not None and factor is not None:
            p.grad *= factor
    return norm
