"""Activation checkpointing: keep a block's inputs, run it again in the backward pass (Chen et al. 2016)."""

from contextlib import contextmanager

from minisl.autograd.tensor import Function, Tensor, recording, watching


class Checkpoint(Function):
    """y = f(x). The gradient is that of f, run a second time. The arguments are all tensors whose gradient passes through f"""

    @staticmethod
    def forward(ctx, *arrays, tensors, output, function):
        ctx.save(arrays, tensors, function)
        return output

    @staticmethod
    def backward(ctx, grad):
        (_, tensors, function), found = ctx.saved, {}
        with as_leaves(tensors), recording(True):
            output = function()
            if output.requires_grad:
                output.backward(grad, deliver=found.__setitem__)
        return tuple(map(found.get, tensors))


@contextmanager
def as_leaves(tensors):
    """Within this block a backward pass ends at these tensors."""
    nodes = [t.node for t in tensors]
    for t in tensors:
        t.node = None
    try:
        yield
    finally:
        for t, node in zip(tensors, nodes):
            t.node = node


def checkpoint(function, *inputs, **options):
    """function(*inputs, **options) with only what goes in saved; all inside is computed again when its gradient is due.

    function: a Module, or any function that does the same each time and returns one Tensor (TypeError for another). The tensors
    that it uses, its arguments or not, get their gradients through the graph: hooks fire once, at the right time.
    """
    with watching() as used:
        output = function(*inputs, **options)
    if not isinstance(output, Tensor):
        raise TypeError(f"checkpoint: the function returns {type(output).__name__}; one Tensor is needed (ops.concatenate joins)")
    tensors = tuple(used | ({output: None} if output.requires_grad else {}))
    return Checkpoint.apply(*tensors, tensors=tensors, output=output.data, function=lambda: function(*inputs, **options))
