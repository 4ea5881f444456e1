"""What a training step holds in memory, without doing one: from a method's `held`, and from the model run on shapes."""

from dataclasses import replace

import numpy as np

from minisl.memory import shapes
from minisl.memory.measure import own_arrays, saved_arrays
from minisl.methods import build_model, matrix
from minisl.optim import RULES

MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LOGITS = 1 << 23  # how many of them the CPU's kernels hold at a time


def kept(method, config, dtype="float32", optimizer="adamw", index_bytes=4, first=False):
    """Bytes by kind: weights (trained or frozen), indices, optimizer. Single numbers, such as a count of steps, are left out.

    method: a `Method`. dtype: a NumPy dtype or a number of bytes. first: in the method's first phase (`has_first_phase`).
    """
    size = itemsize(dtype)
    found = {"weights": 0, "indices": 0, "optimizer": 0}
    for held in all_held(method, config, first):
        found["weights"] += size * (sum(held.weights) + held.frozen)
        found["indices"] += index_bytes * held.indices
        found["optimizer"] += size * held.state + sum(RULES[optimizer].state_bytes(n, size) for n in held.moments)
    return found


def estimate(method, config, batch, length, dtype="float32", optimizer="adamw", index_bytes=4, per_layer=False,
             checkpointing=False, first=False):
    """Bytes by kind (those of `measure.KINDS`), each at the moment of a step when it is most, and "peak", all at one moment.

    The backward pass frees activations as it makes gradients: the peak is at its start or at its end. Temporaries are a slice of
    logits, or W and dW of the largest matrix where layers build W: a lower bound, ops have more. first: in the method's first
    phase (`has_first_phase`).
    """
    size = itemsize(dtype)
    sizes = [n for held in all_held(method, config, first) for n in held.weights]
    found = kept(method, config, dtype, optimizer, index_bytes, first)
    found["gradients"] = size * (max(sizes) if per_layer else sum(sizes))
    found["activations"], built = activations(method, config, batch, length, dtype, checkpointing, first)
    rows = min(batch * length, max(64, LOGITS // config.vocab_size // 64 * 64))
    found["temporaries"] = size * max(rows * config.vocab_size, 2 * built)
    return found | {"peak": sum(at_peak(found).values())}


def at_peak(found):
    """What of an estimate is there at its peak: activations and temporaries, or gradients."""
    gone = ("gradients",) if found["activations"] + found["temporaries"] > found["gradients"] else ("activations", "temporaries")
    return {kind: 0 if kind in gone else n for kind, n in found.items() if kind != "peak"}


def activations(method, config, batch, length, dtype="float32", checkpointing=False, first=False):
    """(bytes that the graph keeps for backward at the end of the forward pass, largest matrix that is built for a layer alone).

    The real model is run, on arrays without memory, with one block and with two; each further block keeps as much as the
    second. With checkpointing the graph has the blocks' inputs, and one block's own graph when it is run again, with the output
    of its SwiGLU, which down_proj has made again.
    """
    size = itemsize(dtype)

    def traced(layers, checkpointing=False):
        model = shapes.hollowed(method.build(replace(config, num_hidden_layers=layers)))
        model.model.activation_checkpointing = checkpointing
        if first:
            for path, layer in model.named_modules():
                if matrix(path) in phased(method) and path.endswith("_proj"):
                    method.module.put_first(layer)
        ids = np.zeros((batch, length), np.int32)
        arrays = saved_arrays(model.loss(ids, ids), own_arrays(model)).values()
        return sum(a.size * (size if a.dtype.kind == "f" else a.itemsize) for a in arrays)

    def whole(checkpointing):
        one = traced(1, checkpointing)
        return one + (config.num_hidden_layers - 1) * (traced(2, checkpointing) - one)

    with shapes.tracing() as built:
        total = whole(checkpointing)
        if checkpointing:
            block, tokens = traced(2) - traced(1), size * batch * length
            inputs = (config.num_hidden_layers - 1) * tokens * config.hidden_size
            total = max(total, inputs + block + tokens * config.intermediate_size)
        return total, max(built, default=0)


def all_held(method, config, first=False):
    """`Held` of every parameter of the dense model."""
    changed = phased(method) if first else ()
    return [method.module.held_first(*p.shape, **method.options) if matrix(name) in changed else method.held(name, p.shape)
            for name, p in build_model(config, "full", {}).named_parameters()]


def phased(method):
    """The matrices that a method's first phase treats in another way."""
    return getattr(method.module, "ONLY", MATRICES) if hasattr(method.module, "held_first") else ()


def has_first_phase(method, config):
    """Does a method begin with another kind of training, such as one in full rank?"""
    shape = config.intermediate_size, config.hidden_size
    return bool(phased(method)) and method.module.held_first(*shape, **method.options) is not None


def itemsize(dtype):
    """Bytes of a number: of a dtype's name, or that many."""
    return dtype if isinstance(dtype, int) else 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
