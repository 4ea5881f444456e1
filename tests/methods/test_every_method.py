"""What holds for every method, found by its file: it learns, weighs what its formula says, resumes, and says what it is."""

import copy

import numpy as np
import pytest
from method_checks import SETTINGS

from minisl.backend import generator
from minisl.memory.formula import kept
from minisl.methods import Method, available, flags
from minisl.nn import LlamaConfig

CONFIG = LlamaConfig(16, 24, 2, 2, vocab_size=32)
IDS = np.random.default_rng(7).integers(0, 32, (4, 9))
every_method = pytest.mark.parametrize("name", available())


def start(name, dtype="float32", optimizer="adamw", seed=3, config=CONFIG):
    """A method with its periods shortened to 2 updates, a model and its optimizer."""
    method = Method(name, SETTINGS | {"method_options": {o: 2 for o in flags(name) if o == "every"}})
    model = method.build(config, generator(seed, "init"), dtype)
    return method, model, method.optimizer(model, 1e-2, optimizer, seed=seed)


def run(method, model, optimizer, first, last, ids=IDS, lr=1e-2):
    """Updates first to last of a job of 12; their losses."""
    losses = []
    for step in range(first, last + 1):
        optimizer.lr = lr
        method.before_step(model, optimizer, step, 12, seed=3)
        loss = model.loss(ids[:, :-1], ids[:, 1:], 1 / ids[:, 1:].size)
        loss.backward()
        optimizer.step()
        model.zero_grad()
        losses.append(loss.item())
    return losses


@every_method
def test_learns_a_batch_by_heart(name):
    """At one of three rates, twelve updates take a tenth of the loss away."""
    falls = []
    for lr in (3e-3, 1e-2, 1e-1):
        with np.errstate(all="ignore"):
            losses = run(*start(name), 1, 12, lr=lr)
        falls.append(losses[-1] / losses[0])
    assert np.nanmin(falls) < 0.9, falls


@every_method
@pytest.mark.parametrize("optimizer", ["adamw", "adam8bit"])
def test_weighs_what_its_formula_says(name, optimizer):
    """To the byte, weights, indices and optimizer state, in the middle of a job."""
    config = LlamaConfig(72, 88, 1, 2, vocab_size=32) if optimizer == "adam8bit" else CONFIG  # large enough for 8 bits
    method, model, opt = start(name, optimizer=optimizer, config=config)
    run(method, model, opt, 7, 9)
    arrays = list(model.state_dict().values())
    found = {"weights": sum(a.nbytes for a in arrays if a.dtype.kind == "f"),
             "indices": sum(a.nbytes for a in arrays if a.dtype.kind == "i"),
             "optimizer": sum(a.nbytes for a in opt.arrays())}
    assert found == kept(method, config, "float32", optimizer)


@every_method
def test_resumes_bit_for_bit(name):
    """Six updates, weights and state into a model that started elsewhere, six more: as twelve in one go."""
    whole = start(name)
    run(*whole, 1, 12)
    method, model, optimizer = start(name)
    run(method, model, optimizer, 1, 6)
    weights, state = (copy.deepcopy(o.state_dict()) for o in (model, optimizer))
    _, model, optimizer = start(name, seed=4)
    model.load_state_dict(weights)
    optimizer = method.optimizer(model, 1e-2, seed=3)
    optimizer.load_state_dict(state)
    run(method, model, optimizer, 7, 12)
    for one, other in ((whole[1], model), (whole[2], optimizer)):
        left, right = one.state_dict(), other.state_dict()
        assert left.keys() == right.keys()
        for key in left:
            np.testing.assert_array_equal(left[key], right[key], err_msg=key)


@every_method
def test_per_layer_updates_are_the_same_updates(name):
    results = []
    for per_layer in (False, True):
        method, model, optimizer = start(name)
        if per_layer:
            optimizer.update_in_backward()
        run(method, model, optimizer, 1, 4)
        results.append(model.state_dict())
    for key, array in results[0].items():
        np.testing.assert_array_equal(array, results[1][key], err_msg=key)


@every_method
def test_opens_with_what_a_reader_wants_to_know(name):
    page = Method(name, SETTINGS).module.__doc__
    for part in ("Beside SLTrain:", "State:", "Pitfalls:", "Our reading:"):
        assert part in page, part


@every_method
def test_its_flags_do_not_hide_those_of_the_trainer(name):
    from minisl.config import FLAGS

    assert not flags(name).keys() & {f.name for f in FLAGS}
