"""The gradient's size, and a bound on it."""

import math

from minisl import kernels


def grad_norm(parameters):
    """sqrt(sum of squares) over all gradients, as a float; 0.0 where there are none."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return math.sqrt(kernels.of(gradients[0]).square_sum(gradients)) if gradients else 0.0


def clip_grad_norm(parameters, max_norm):
    """Scale all gradients by min(1, max_norm / norm) (Pascanu et al. 2013). Returns the norm before."""
    parameters = list(parameters)
    norm = grad_norm(parameters)
    if norm > max_norm:
        for p in parameters:
            if p.grad is not None:
                p.grad *= max_norm / norm
    return norm
