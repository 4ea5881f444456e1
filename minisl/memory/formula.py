"""What training keeps from step to step, from a method's `held` alone."""

import numpy as np

from minisl.methods import build_model
from minisl.optim import RULES


def kept(method, config, dtype="float32", optimizer="adamw", index_bytes=4):
    """Bytes by kind: weights (trained or frozen), indices, optimizer. Single numbers, such as a count of steps, are left out.

    method: a `Method`. dtype: a NumPy dtype or a number of bytes.
    """
    itemsize = dtype if isinstance(dtype, int) else np.dtype(dtype).itemsize
    found = {"weights": 0, "indices": 0, "optimizer": 0}
    for name, p in build_model(config, "full", {}).named_parameters():
        held = method.held(name, p.shape)
        found["weights"] += itemsize * (sum(held.weights) + held.frozen)
        found["indices"] += index_bytes * held.indices
        found["optimizer"] += itemsize * held.state + sum(RULES[optimizer].state_bytes(size, itemsize) for size in held.moments)
    return found
