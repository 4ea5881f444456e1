"""`python -m minisl.memory --config 60m`: what a training step holds in memory, by kind. Takes the flags of minisl.train."""

import sys
import tracemalloc
from contextlib import contextmanager

import numpy as np

from minisl import kernels, methods, optim
from minisl.autograd.tensor import Node
from minisl.backend import generator
from minisl.command import run_command
from minisl.config import parse
from minisl.errors import InputError
from minisl.metrics import peak_memory

KINDS = ("parameters", "optimizer", "activations", "gradients", "temporaries")


def measure(model, optimizer, loss_of):
    """Bytes of arrays by kind (see KINDS) at the moment of a step when they are most, and their sum, "peak".

    loss_of(): the scalar Tensor to train on. Two updates are made: the optimizer's state exists after the first.
    Activations are what the graph keeps for backward; temporaries are all else, inside of ops.
    """
    for _ in range(2):
        most, fixed = {"peak": 0}, nbytes(p.data for p in model.parameters())
        state = nbytes([*optimizer.exp_avg.values(), *optimizer.exp_avg_sq.values()])

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


def main(argv):
    settings, _ = parse(argv, prog="python -m minisl.memory", description="What a training step holds in memory, by kind.")
    if settings.device != "cpu":
        raise InputError(f"--device {settings.device}: only the CPU's arrays can be told apart by kind; minisl.train says at its "
                         "end what it took of the GPU")
    config = settings.model_config()
    config.vocab_size = config.vocab_size or 32000
    with kernels.running(settings.backend, settings.threads, lambda line: print(line, file=sys.stderr)) as on:
        model = methods.build_model(config, settings.method, settings.to_dict(), generator(settings.seed, "init"), settings.dtype)
        model.model.activation_checkpointing = settings.activation_checkpointing
        optimizer = optim.AdamW(model.named_parameters(), settings.lr)
        ids = generator(settings.seed, "data").integers(0, config.vocab_size, (settings.batch_size, settings.seq_len + 1))
        found = measure(model, optimizer, lambda: model.loss(ids[:, :-1], ids[:, 1:], 1 / ids[:, 1:].size))
    print(f"{settings.method}, {model.num_parameters():,} parameters, {settings.batch_size} x {settings.seq_len} tokens, {on}; "
          "at the peak:")
    for kind in (*KINDS, "peak"):
        print(f"  {kind if kind != 'peak' else 'all arrays':16}{found[kind] / 1e6:>12,.1f} MB")
    if (peak := peak_memory()) is not None:
        print(f"  {'process':16}{peak / 1e6:>12,.1f} MB resident at its peak, with Python, libraries and this measurement")


if __name__ == "__main__":
    sys.exit(run_command(main))
