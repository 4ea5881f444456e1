"""What the arrays of a real step take, by kind."""

import tracemalloc
from contextlib import contextmanager

import numpy as np

from minisl.autograd.tensor import Node, Tensor

KINDS = ("weights", "indices", "optimizer", "gradients", "activations", "temporaries")


def measure(model, optimizer, loss_of, before_step=lambda step: None):
    """Bytes of arrays by kind (see KINDS) at the moment of a step when they are most, their sum, "peak", and in "most" each kind
    at its own moment.

    loss_of(): the scalar Tensor to train on. before_step(step): what a method does before its update 1 and 2, the only ones made:
    the optimizer's state exists after the first. Updates may be made in backward (`Optimizer.update_in_backward`).
    Weights are trained or frozen, indices integers that are saved with them. Activations are what the graph keeps for backward;
    temporaries are all else, inside of ops.
    """
    for step in (1, 2):
        before_step(step)
        arrays, peak, most = list(model.state_dict().values()), {"peak": 0}, dict.fromkeys(KINDS, 0)
        fixed = [nbytes(a for a in arrays if (a.dtype.kind == "f") == floats) for floats in (True, False)]
        fixed.append(nbytes(optimizer.arrays()))

        def note(activations, gradients, traced):
            temporaries = max(0, traced - activations - gradients)
            now = dict(zip(KINDS, (*fixed, gradients, activations, temporaries)))  # noqa: B023
            most.update({kind: max(n, most[kind]) for kind, n in now.items()})  # noqa: B023
            if sum(now.values()) > peak["peak"]:  # noqa: B023
                peak.update(now, peak=sum(now.values()))  # noqa: B023

        tracemalloc.start()
        try:
            with each_backward(model, note):
                loss = loss_of()
                note(saved_bytes(loss, model), 0, tracemalloc.get_traced_memory()[1])
                loss.backward()
            tracemalloc.reset_peak()
            gradients = gradient_bytes(model.parameters())
            optimizer.step()
            if step == 2:  # the first also makes the state
                note(0, gradients, tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        model.zero_grad()
    return peak | {"most": most}


@contextmanager
def each_backward(model, note):
    """note(activations, gradients, traced bytes) at each op's backward, and when each gradient is taken: traced is the peak since
    the call before."""
    pull, accumulate, around, last = Node.pull, Tensor.accumulate, [{}], []
    parameters, own = model.parameters(), own_arrays(model)

    def noted_pull(node, gradient):
        kept = around[-1] | saved_arrays(node, own)
        around.append(kept)  # an op that runs a block again has a graph inside
        tracemalloc.reset_peak()
        gradients = pull(node, gradient)
        around.pop()
        last[:] = [node]
        note(nbytes(kept.values()), gradient_bytes(parameters), tracemalloc.get_traced_memory()[1])
        return gradients

    def noted_accumulate(tensor, gradient):
        held = gradient_bytes(parameters) + gradient.nbytes
        tracemalloc.reset_peak()
        accumulate(tensor, gradient)
        note(nbytes(saved_arrays(last[0], own).values()), held, tracemalloc.get_traced_memory()[1])

    Node.pull, Tensor.accumulate = noted_pull, noted_accumulate
    try:
        yield
    finally:
        Node.pull, Tensor.accumulate = pull, accumulate


def gradient_bytes(parameters):
    """Bytes of all gradients that are there."""
    return nbytes(p.grad for p in parameters if p.grad is not None)


def saved_bytes(start, model):
    """Bytes of the distinct arrays that the graph below a Tensor or Node keeps for backward, the model's own left out."""
    return nbytes(saved_arrays(start, own_arrays(model)).values())


def saved_arrays(start, own):
    """id -> array, of those. own: ids of the model's."""
    seen, stack, arrays = set(), [getattr(start, "node", start)], {}
    while stack:
        node = stack.pop()
        if node is None or node in seen or not isinstance(node, Node):
            continue
        seen.add(node)
        stack += node.parents
        for array in map(base, [*flat(node.saved or ()), *flat((node.rebuilt,))]):
            if id(array) not in own:
                arrays[id(array)] = array
    return arrays


def base(array):
    """The array that owns the memory of a view."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def own_arrays(model):
    """ids of a model's weights and buffers."""
    modules = [module for _, module in getattr(model, "named_modules", list)()]
    buffers = [getattr(module, name) for module in modules for name in module.buffers]
    return {id(base(array)) for array in (*(p.data for p in model.parameters()), *buffers)}


def flat(values):
    """The arrays in lists in lists."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from flat(value)
        elif isinstance(value, np.ndarray):
            yield value


def nbytes(arrays):
    """Bytes of these arrays together."""
    return sum(a.nbytes for a in arrays)
