"""The cores that NumPy leaves idle.

NumPy computes on one core, except inside BLAS, but lets other Python threads run meanwhile. So parts of a batch go to
threads of their own, BLAS on one core each: a micro-batch per thread, all at the same time.
"""

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import numpy as np
from threadpoolctl import ThreadpoolController


class Workers:
    """`threads` parts of a batch at a time; 1 keeps the batch whole and leaves the cores to BLAS."""

    def __init__(self, threads):
        self.threads = threads
        self.pool = ThreadPoolExecutor(threads)
        self.blas = ThreadpoolController()

    def backward(self, loss_of, *arrays):
        """The sum of loss_of(*part) over parts of the arrays' rows, as a float; its gradients are added to the leaves.

        The parts' gradients are added in the order of the rows, so the result does not depend on who finishes first.
        """
        n = min(self.threads, len(arrays[0]))
        if n == 1:
            loss = loss_of(*arrays)
            loss.backward()
            return loss.item()
        parts = [(copy_context(), loss_of, *part) for part in zip(*(np.array_split(a, n) for a in arrays))]
        with self.blas.limit(limits=1, user_api="blas"):
            losses, gradients = zip(*self.pool.map(lambda part: part[0].run(loss_and_gradients, *part[1:]), parts))
        for found in gradients:
            for leaf, gradient in found.items():
                leaf.accumulate(gradient)
        return sum(losses)


def loss_and_gradients(loss_of, *part):
    """(loss, leaf -> gradient) of one part; no leaf is touched."""
    found, loss = {}, loss_of(*part)
    loss.backward(deliver=found.__setitem__)
    return loss.item(), found
