"""What holds for every method, found by its file: its matrices learn, it weighs what its formula says, the trainer can stop it
and go on, and it says what it is."""

import copy
import re
from functools import partial

import numpy as np
import pytest
from method_checks import SETTINGS
from mutation import mutant_tests, patched
from test_train import assert_same_run, at_step, press_ctrl_c, resume, run_job

from minisl import checkpoint, summary
from minisl.autograd import no_grad
from minisl.backend import generator
from minisl.generate import generate
from minisl.memory.formula import kept
from minisl.methods import Method, available, flags, low_rank, matrix, muon
from minisl.nn import LlamaConfig
from minisl.parallel import one_blas_thread

CONFIG = LlamaConfig(16, 24, 2, 2, vocab_size=32)
IDS = np.random.default_rng(7).integers(0, 32, (4, 9))
every_method = pytest.mark.parametrize("name", available())


@pytest.fixture(autouse=True)
def one_core():
    """These matrices are too small for two."""
    with one_blas_thread():
        yield


def start(name, dtype="float32", optimizer="adamw", seed=3, config=CONFIG):
    """A method with its periods shortened to 2 updates, a model and its optimizer."""
    method = Method(name, SETTINGS | {"method_options": {o: 2 for o in flags(name) if o == "every"}})
    model = method.build(config, generator(seed, "init"), dtype)
    return method, model, method.optimizer(model, 1e-2, optimizer, seed=seed)


def run(method, model, optimizer, first, last, ids=IDS, lr=1e-2, still=lambda name: False):
    """Updates first to last of a job of 12, parameters whose name is `still` frozen; their losses."""
    losses = []
    for step in range(first, last + 1):
        optimizer.lr = lr
        method.before_step(model, optimizer, step, 12, seed=3)
        for name in filter(still, optimizer.parameters):
            optimizer.parameters[name].requires_grad = False
        loss = model.loss(ids[:, :-1], ids[:, 1:], 1 / ids[:, 1:].size)
        loss.backward()
        optimizer.step()
        model.zero_grad()
        losses.append(loss.item())
    return losses


def fall(name, lr, still):
    """What twelve updates on one batch leave of its loss, as a fraction."""
    with np.errstate(all="ignore"):
        losses = run(*start(name), 1, 12, lr=lr, still=still)
    return losses[-1] / losses[0]


def check_matrices_learn(name):
    """Embeddings, head and gains frozen, as they would learn a batch by heart without any matrix. At one of three rates."""
    falls = [fall(name, lr, still=lambda p: not matrix(p)) for lr in (1e-2, 1e-1, 0.3)]
    assert np.nanmin(falls) < 0.99, falls


@every_method
def test_matrices_learn_a_batch(name):
    check_matrices_learn(name)


@every_method
def test_the_rest_learns_a_batch(name):
    assert fall(name, 1e-2, still=matrix) < 0.9


test_mutants = mutant_tests([
    (low_rank.LowRankLinear.__init__, "rank**-0.5", "0"),  # B = 0: no gradient reaches a factor
    (muon.Muon.direction, "self.c *", "0 *"),
    (muon.Muon.direction, "self.c *", "-self.c *"),
], *(partial(check_matrices_learn, name) for name in ("low_rank", "muon")))


@every_method
@pytest.mark.parametrize("optimizer", ["adamw", "adam8bit"])
def test_weighs_what_its_formula_says(name, optimizer):
    """To the byte, weights, indices and optimizer state, in the middle of a job."""
    config = LlamaConfig(72, 88, 1, 2, vocab_size=32) if optimizer == "adam8bit" else CONFIG  # 8-bit moments
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


def check_trained(folder, monkeypatch, name, **changes):
    """By minisl.train: updates in one go, and with Ctrl-C after the fifth, end in the same bits, and load_model gives that
    model back, which writes."""
    saved, save = [], checkpoint.save
    changes = {"method": name, "steps": 9, "backend": "numpy", **{o: 3 for o in flags(name) if o == "every"}, **changes}
    with monkeypatch.context() as patch:
        patch.setattr(summary, "draw_loss", lambda *_: None)
        patch.setattr(summary, "generate", lambda model, ids, count, rng: generate(model, ids, 3, rng))
        patch.setattr(checkpoint, "save", lambda run, config, tokenizer, model, *rest: (
            saved.append(model) or save(run, config, tokenizer, model, *rest)))
        straight = run_job(folder, **changes)
        with monkeypatch.context() as at_5:
            at_step(at_5, 5, press_ctrl_c)
            stopped = run_job(folder, 130, out=folder / "stopped", **changes)
        assert checkpoint.load_state(stopped)["step"] == 5
        assert resume(stopped) == 0
    assert_same_run(straight, stopped)

    ids, loaded = np.arange(32).reshape(2, 16), checkpoint.load_model(stopped)
    with no_grad():
        np.testing.assert_array_equal(loaded(ids).data, saved[-1](ids).data)
    assert len(list(generate(loaded, [1, 2], 3, generator(0, "sample")))) == 3


@every_method
def test_the_trainer_stops_and_goes_on_and_its_model_loads(tmp_path, monkeypatch, name):
    check_trained(tmp_path, monkeypatch, name)


@pytest.mark.parametrize("changes", [
    {"name": "relora", "optimizer": "sgd"},
    {"name": "apollo", "optimizer": "adam8bit", "rank": 32, "hidden_size": 128, "num_hidden_layers": 1},  # 8-bit moments
    {"name": "switchlora", "rank": 12, "steps": 20},  # still switches when it has gone on, and gets old vectors back
], ids=str)
def test_the_trainer_does_so_in_other_jobs(tmp_path, monkeypatch, changes):
    check_trained(tmp_path, monkeypatch, **changes)


def test_the_trainer_would_notice_momentum_that_is_not_saved(tmp_path, monkeypatch):
    with patched(muon.Muon, "state", ()), pytest.raises(AssertionError):
        check_trained(tmp_path, monkeypatch, "muon")


@every_method
def test_opens_with_what_a_reader_wants_to_know(name):
    """Equations, then four paragraphs, the first of one sentence."""
    titles = "Beside SLTrain", "State", "Pitfalls", "Our reading"
    equations, *found = re.split(rf"^({'|'.join(titles)}): ", Method(name, SETTINGS).module.__doc__, flags=re.M)
    assert tuple(found[::2]) == titles
    assert re.search(r"\n\n {4}\S.* (=|<-|~) ", equations)
    assert len(re.findall(r"[.!?]\s", found[1])) == 1, found[1]


@every_method
def test_its_flags_do_not_hide_those_of_the_trainer(name):
    from minisl.config import FLAGS

    assert not flags(name).keys() & {f.name for f in FLAGS}
