"""A process that makes training steps when told to: `python -m minisl.bench.child minisl|torch MODEL METHOD`.

Each line on stdin asks for a step; the answer is a line of JSON with its seconds, its loss and the process's peak memory in
bytes. While it waits it uses no core, so two of them can be timed in turn.
"""

import contextlib
import json
import sys
import time

import numpy as np

from minisl import kernels, methods, optim
from minisl.backend import keep_freed_memory, read
from minisl.config import SHAPE, TINY, read_config
from minisl.metrics import peak_memory
from minisl.nn import LlamaConfig
from minisl.parallel import Workers

MODELS = {"tiny": (16, 128, 2), "60m": (8, 256, 1)}  # sequences, tokens of each, parts of a batch


def build(name, method, sizes=None):
    """(model, ids, labels, parts)"""
    batch, length, parts = sizes or MODELS[name]
    if name == "tiny":
        config, rank = LlamaConfig(**{k: TINY[k] for k in SHAPE if k in TINY}), TINY["rank"]
    else:
        config, rank = LlamaConfig.from_dict(read_config(name), where=name), 128
    options = {"rank": rank, "delta": 0.03, "alpha": 16.0, "learned_scale": False, "algorithm": "auto"}
    model = methods.build_model(config, method, options, np.random.default_rng(0))
    ids = np.random.default_rng(1).integers(0, config.vocab_size, (batch, length + 1))
    return model, ids[:, :-1].copy(), ids[:, 1:].copy(), parts


def minisl_step(model, ids, labels, parts):
    """The step of minisl.train"""
    optimizer, workers, parameters = optim.AdamW(model.named_parameters(), 1e-3), Workers(parts), model.parameters()

    def step():
        loss = workers.backward(lambda ids, labels: model.loss(ids, labels, 1 / labels_count), ids, labels)
        norm = optim.grad_norm(parameters)
        optimizer.step()
        model.zero_grad()
        return read(loss, norm)[0]

    labels_count = labels.size
    return step


def main(which, name, method):
    model, ids, labels, parts = build(name, method)
    running = contextlib.nullcontext()
    if which == "torch":
        from minisl.bench.measure import torch_or_none
        from minisl.bench.torch_peer import trainer

        torch_or_none()
        train = trainer(model)
        del model

        def step():
            return train(ids, labels)
    else:
        keep_freed_memory()
        running, step = kernels.running("auto"), minisl_step(model, ids, labels, parts)
    with running:
        for _ in sys.stdin:
            start = time.perf_counter()
            loss = step()
            print(json.dumps({"seconds": time.perf_counter() - start, "loss": loss, "peak": peak_memory()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
