"""Trainings in one process, in turn or in threads, with other backends, cores and algorithms: each as if it were alone."""

import threading
from contextlib import ExitStack

import numpy as np
import pytest

from minisl import kernels, no_grad, parallel, swap
from minisl.nn import Llama, LlamaConfig
from minisl.parallel import Workers, using_threads

CONFIG = LlamaConfig(16, 24, 2, 4, 2, vocab_size=31)
WAYS = [("sltrain", {"rank": 4, "delta": 0.1, "algorithm": "factored"}, "numpy", 1),
        ("sltrain", {"rank": 3, "delta": 0.2}, "auto", 2),
        ("relora", {"rank": 4, "every": 2}, "auto", None)]


def training(name, settings, backend, threads, steps=8):
    """Yields after each step; at last the weights."""
    rng, how = np.random.default_rng(0), swap.method(name, **settings)
    with ExitStack() as stack:
        stack.enter_context(kernels.using(backend))
        stack.enter_context(using_threads(threads))
        model = Llama(CONFIG, rng)
        swap.swap_linears(model, how, rng=rng)
        optimizer, workers = how.optimizer(model, 0.01), Workers(2)
        for step in range(1, steps + 1):
            assert (kernels.in_use.get(), parallel.limit.get()) == (backend, threads)
            ids = rng.integers(0, 31, (4, 9))
            how.before_step(model, optimizer, step, steps)
            workers.backward(lambda ids, labels: model.loss(ids, labels, 1 / 32), ids[:, :-1], ids[:, 1:])
            optimizer.step()
            model.zero_grad()
            with no_grad():
                model(ids)
            yield None
        yield model.state_dict()


def weights(way):
    return list(training(*way))[-1]


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.fixture(scope="module")
def alone():
    return [weights(way) for way in WAYS]


def test_in_threads(alone):
    found, start = [None] * len(WAYS), threading.Barrier(len(WAYS))

    def run(i):
        start.wait()
        found[i] = weights(WAYS[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(WAYS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine, expected in zip(found, alone):
        assert_same(mine, expected)
    assert (kernels.in_use.get(), parallel.limit.get()) == ("auto", None)


def test_again_after_others(alone):
    for way, expected in reversed(list(zip(WAYS, alone))):
        assert_same(weights(way), expected)
