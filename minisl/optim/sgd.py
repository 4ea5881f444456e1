"""Stochastic gradient descent: the rule without memory."""

from minisl.optim.optimizer import Rule


class SGD(Rule):
    """N_t = g"""

    def __init__(self, like):
        pass

    def direction(self, gradient):
        return gradient.copy()

    @staticmethod
    def state_bytes(size, itemsize):
        return 0
