"""What the arrays of a real step take, by kind."""

import tracemalloc
from contextlib import contextmanager

import numpy as np

from minisl.autograd.tensor import Node

KINDS = ("parameters", "optimizer", "activations", "gradients", "temporaries")


def measure(model, optimizer, loss_of):
    """Bytes of arrays by kind (see KINDS) at the moment of a step when they are most, and their sum, "peak".

    loss_of(): the scalar Tensor to train on. Two updates are made: the optimizer's state exists after the first.
    Activations are what the graph keeps for backward; temporaries are all else, inside of ops.
    """
    for _ in range(2):
        most, fixed = {"peak": 0}, nbytes(p.data for p in model.parameters())
        state = nbytes(optimizer.arrays())

        def note(activations, gradients, traced):
            temporaries = max(0, traced - activations - gradients)
            now = dict(zip(KINDS, (fixed, state, activations, gradients, temporaries)))  # noqa: B023
            if sum(now.values()) > most["peak"]:  # noqa: B023
                most.update(now, peak=sum(now.values()))  # noqa: B023

        tracemalloc.start()
        try:
            with each_backward(model, note):
                loss = loss_of()
                note(saved_bytes(loss, model), 0, tracemalloc.get_traced_memory()[1])
                loss.backward()
            optimizer.step()
        finally:
            tracemalloc.stop()
        model.zero_grad()
    return most


@contextmanager
def each_backward(model, note):
    """note(activations, gradients, traced bytes) at each op's backward: traced is the peak since the op before."""
    pull, parameters = Node.pull, model.parameters()

    def noted(node, gradient):
        tracemalloc.reset_peak()
        kept = saved_bytes(node, model)
        gradients = pull(node, gradient)
        note(kept, nbytes(p.grad for p in parameters if p.grad is not None), tracemalloc.get_traced_memory()[1])
        return gradients

    Node.pull = noted
    try:
        yield
    finally:
        Node.pull = pull


def saved_bytes(start, model):
    """Bytes of the distinct arrays that the graph below a Tensor or Node keeps for backward, parameters left out."""
    seen, stack, parameters = set(), [getattr(start, "node", start)], {id(p.data) for p in model.parameters()}
    arrays = {}
    while stack:
        node = stack.pop()
        if node is None or node in seen or not isinstance(node, Node):
            continue
        seen.add(node)
        stack += node.parents
        for array in [*flat(node.saved or ()), *flat((node.rebuilt,))]:
            while isinstance(array.base, np.ndarray):
                array = array.base
            if id(array) not in parameters:
                arrays[id(array)] = array
    return nbytes(arrays.values())


def flat(values):
    for value in values:
        if isinstance(value, list | tuple):
            yield from flat(value)
        elif isinstance(value, np.ndarray):
            yield value


def nbytes(arrays):
    return sum(a.nbytes for a in arrays)
