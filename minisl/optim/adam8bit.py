"""Adam with moments of eight bits (Dettmers et al. 2022, arXiv 2110.02861): SLTrain's 7B run and its memory figure use it."""

import numpy as np

from minisl import kernels
from minisl.backend import array_module
from minisl.kernels.numpy_fused import BLOCK, dynamic_map
from minisl.optim.adamw import Adam, check
from minisl.optim.optimizer import Rule

SMALL = 4096


class Adam8bit(Rule):
    """As `Adam`, with m and v each as one byte an element and one number a block of 256.

    A byte is a place in a table of 256 numbers, `dynamic_map`: of both signs for m, of one for v. The block's number is its
    largest magnitude, which multiplies the table. The update uses the new m and v as computed; they are rounded afterwards, an m
    below 0 never to 0, as in bitsandbytes. There weight decay comes after the step.

    State: exp_avg and exp_avg_sq (bytes, the weights' shape), exp_avg_top and exp_avg_sq_top (float32, one a block), step t.
    An array of fewer than 4,096 weights gets `Adam`: its tables and numbers of blocks would weigh more than they save. Its
    moments are then of the weights' dtype; in bitsandbytes they are float32.
    """

    state = "exp_avg", "exp_avg_top", "exp_avg_sq", "exp_avg_sq_top", "step"
    correction = Adam.correction

    def __new__(cls, like, betas=(0.9, 0.999), eps=1e-8):
        return Adam(like, betas, eps) if like.size < SMALL else object.__new__(cls)

    def __init__(self, like, betas=(0.9, 0.999), eps=1e-8):
        check(betas, eps)
        xp, self.betas, self.eps, self.step = array_module(like), betas, eps, 0
        self.tables = tuple(xp.asarray(dynamic_map(signed)) for signed in (True, False))
        zero = [int(np.flatnonzero(dynamic_map(signed) == 0)[0]) for signed in (True, False)]
        self.exp_avg, self.exp_avg_sq = (xp.full(like.shape, place, np.uint8) for place in zero)
        self.exp_avg_top, self.exp_avg_sq_top = (xp.zeros(-(-like.size // BLOCK), np.float32) for _ in range(2))

    def update(self, weights, gradient, lr):
        self.step += 1
        kernels.of(weights).adam8bit(weights, gradient, self.exp_avg, self.exp_avg_sq, self.exp_avg_top, self.exp_avg_sq_top,
                                     self.tables, lr, self.betas, self.eps, self.weight_decay, self.step)

    @staticmethod
    def state_bytes(size, itemsize):
        """Bytes of state for so many weights, of this many bytes each."""
        return Adam.state_bytes(size, itemsize) if size < SMALL else 2 * size + 8 * -(-size // BLOCK)
