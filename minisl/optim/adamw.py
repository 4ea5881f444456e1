"""AdamW (Loshchilov and Hutter 2019, algorithm 2), as torch.optim.AdamW computes it."""

import math
from functools import partial

from minisl import kernels
from minisl.backend import array_module
from minisl.errors import InputError
from minisl.optim.optimizer import Optimizer, Rule, not_negative


class Adam(Rule):
    """N_t = mhat / (sqrt(vhat) + eps)

    m_t = b1 m_{t-1} + (1 - b1) g        mhat = m_t / (1 - b1^t)
    v_t = b2 v_{t-1} + (1 - b2) g^2      vhat = v_t / (1 - b2^t)

    State: exp_avg m and exp_avg_sq v, of the weights' shape and dtype; step t.
    """

    state = "exp_avg", "exp_avg_sq", "step"

    def __init__(self, like, betas=(0.9, 0.999), eps=1e-8):
        check(betas, eps)
        self.betas, self.eps = betas, eps
        self.exp_avg, self.exp_avg_sq = (array_module(like).zeros_like(like) for _ in range(2))
        self.step = 0

    def update(self, weights, gradient, lr):
        self.step += 1
        kernels.of(weights).adamw(weights, gradient, self.exp_avg, self.exp_avg_sq, lr, self.betas, self.eps, self.weight_decay,
                                  self.step)

    def correction(self):
        """sqrt(1 - b2^t) / (1 - b1^t)"""
        b1, b2 = self.betas
        return math.sqrt(1 - b2**self.step) / (1 - b1**self.step)

    @staticmethod
    def state_bytes(size, itemsize):
        """Bytes of state for so many weights."""
        return 2 * size * itemsize


def check(betas, eps):
    """Raises InputError for values that Adam cannot have."""
    try:
        b1, b2 = betas
        possible = 0 <= b1 < 1 and 0 <= b2 < 1
    except (TypeError, ValueError):
        possible = False
    if not possible:
        raise InputError(f"betas {betas!r}: must be two numbers, each 0 or above and below 1")
    if not 0 < not_negative("eps", eps):
        raise InputError(f"eps {eps!r}: must be above 0, or a weight without a gradient is moved by 0/0")


class AdamW(Optimizer):
    """The optimizer whose every rule is Adam's."""

    def __init__(self, named_parameters, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        check(betas, eps)
        rule = partial(Adam, betas=betas, eps=eps)
        super().__init__(named_parameters, lr, lambda name, array: rule(array), weight_decay)
