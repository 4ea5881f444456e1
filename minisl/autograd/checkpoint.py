"""Activation checkpointing: keep a block's inputs, run it again in the backward pass (Chen et al. 2016)."""

from minisl.autograd.tensor import Function, Tensor, recording


class Checkpoint(Function):
    """y = f(x). The gradient is that of f, run a second time on the saved inputs"""

    @staticmethod
    def forward(ctx, *inputs, function, parameters):
        n = len(inputs) - len(parameters)
        ctx.save(inputs[:n], function, parameters)
        with recording(False):
            return function(*map(Tensor, inputs[:n])).data

    @staticmethod
    def backward(ctx, grad):
        inputs, function, parameters = ctx.saved
        leaves = [*(Tensor(x, requires_grad=need) for x, need in zip(inputs, ctx.needs)), *parameters]
        with recording(True):
            output = function(*leaves[: len(inputs)])
        found = {}
        output.backward(grad, deliver=found.__setitem__)
        return tuple(found.get(leaf) for leaf in leaves)


def checkpoint(function, *inputs):
    """function(*inputs) with only the inputs saved; everything inside is computed again when its gradient is due.

    function: a Module (its parameters get their gradients through the graph, so hooks fire once, at the right time),
    or a plain function of the given tensors alone. inputs: Tensors. Returns one Tensor.
    """
    parameters = list(function.parameters()) if hasattr(function, "parameters") else []
    return Checkpoint.apply(*inputs, *parameters, function=function, parameters=parameters)
