"""Work shared out among threads: all of it, once, whatever happens; parts of a batch that add up to the whole; and no bit of
a model's gradients that depends on how many threads there were."""

import threading
import time
import weakref

import numpy as np
import pytest
from backend_checks import last_piece_first
from method_checks import SETTINGS
from threadpoolctl import threadpool_info

from minisl import kernels, parallel
from minisl.autograd import Tensor
from minisl.backend import IGNORE_LABEL
from minisl.methods import build_model
from minisl.nn import LlamaConfig
from minisl.parallel import Workers, each, using_threads


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("n", [0, 1, 7, 64, 65, 600, 1001])
@pytest.mark.parametrize("grain", [None, 1, 3, 64, 1000])
def test_each_covers_everything_once_in_pieces_that_threads_do_not_decide(n, grain, threads):
    pieces, alone = [], []
    with using_threads(threads):
        each(lambda begin, end: pieces.append((begin, end)), n, grain)
    with using_threads(1):
        each(lambda begin, end: alone.append((begin, end)), n, grain)
    assert sorted(pieces) == alone
    assert [i for begin, end in alone for i in range(begin, end)] == list(range(n))
    assert max(end - begin for begin, end in alone) <= (grain or max(64, n // 8 + 64))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_each_uses_that_many_threads(threads):
    seen, meet = set(), threading.Barrier(threads)

    def work(begin, end):
        seen.add(threading.get_ident())
        meet.wait(timeout=600)  # nobody can take two

    with using_threads(threads):
        each(work, threads, 1)
    assert len(seen) == threads
    assert threading.get_ident() in seen


def test_using_threads_is_over_after_its_block():
    with using_threads(3):
        with pytest.raises(KeyError), using_threads(1):
            raise KeyError
        assert parallel.limit.get() == 3
    assert parallel.limit.get() is None


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("where", [0, 5, 9])
def test_an_error_in_a_piece_is_raised_after_all_have_stopped(threads, where):
    running = []

    def work(begin, end):
        running.append(begin)
        try:
            if begin == where:
                raise ZeroDivisionError(begin)
            time.sleep(0.001)
        finally:
            running.remove(begin)

    with using_threads(threads):
        with pytest.raises(ZeroDivisionError):
            each(work, 10, 1)
        assert not running
        test_each_covers_everything_once_in_pieces_that_threads_do_not_decide(600, 1, threads)


def test_each_within_each():
    counts = np.zeros((7, 600), int)

    def row(begin, end):
        for i in range(begin, end):
            def columns(first, last, i=i):
                counts[i, first:last] += 1
            each(columns, 600, 7)

    with using_threads(3):
        each(row, 7, 1)
    assert (counts == 1).all()


def test_each_from_two_threads_at_once():
    counts, errors = np.zeros((4, 3000), int), []

    def caller(k):
        def work(begin, end):
            counts[k, begin:end] += 1
            if k == 3 and begin == 1500:
                raise KeyError

        for _ in range(20):
            try:
                each(work, 3000, 30)
            except KeyError:
                errors.append(k)

    with using_threads(2):
        threads = [threading.Thread(target=caller, args=(k,)) for k in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(timeout=600)
    assert not any(t.is_alive() for t in threads)
    assert (counts[:3] == 20).all()
    assert errors == [3] * 20


def blas_threads():
    return [p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas" and "numpy" in p["filepath"]]


@pytest.mark.parametrize("fails", [False, True])
def test_blas_runs_on_one_thread_within_each_and_on_as_many_as_before_after_it(fails):
    with using_threads(2):
        before, within = blas_threads(), []

        def work(begin, end):
            within.append(blas_threads())
            if fails:
                raise KeyError

        try:
            with parallel.one_blas_thread():  # as a command has it for as long as it runs
                each(work, 3, 1)
                work(0, 1)
        except KeyError:
            assert fails
        assert blas_threads() == before
        assert {n for counts in within for n in counts} <= {1}


def test_what_the_caller_has_set_holds_in_every_piece():
    """np.errstate, as training has it so that a loss which is no number prints nothing but that."""
    seen = []

    def work(begin, end):
        seen.append(np.geterr()["over"])
        time.sleep(0.001)

    with using_threads(3), np.errstate(over="ignore"):
        each(work, 30, 1)
    with using_threads(3), np.errstate(over="raise"):
        each(work, 30, 1)
    assert seen == ["ignore"] * 30 + ["raise"] * 30


def test_nothing_is_kept_alive_by_threads_that_wait():
    array = np.zeros(3)
    alive = weakref.ref(array)
    with using_threads(3):
        each(lambda begin, end, array=array: time.sleep(0.001), 9, 1)
    del array
    assert alive() is None


# Parts of a batch


def gradients(parts, batch=5, again=0, activation_checkpointing=False):
    """(loss, name -> gradient) of one batch in so many parts."""
    model = build_model(LlamaConfig(8, 12, 2, 2, vocab_size=16), "sltrain", SETTINGS, np.random.default_rng(5), "float64")
    model.model.activation_checkpointing = activation_checkpointing
    ids = np.random.default_rng(0).integers(0, 16, (batch, 7))
    labels = ids[:, 1:].copy()
    labels[0] = IGNORE_LABEL  # a part may have no label at all

    def loss_of(inputs, labels):
        return model.loss(inputs, labels, 1 / 24)

    for _ in range(again + 1):
        loss = Workers(parts).backward(loss_of, ids[:, :-1], labels)
    return loss, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("parts", [2, 3, 5, 8])
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_parts_equal_the_whole(parts, activation_checkpointing, backend):
    (whole, right), (loss, mine) = gradients(1), gradients(parts, activation_checkpointing=activation_checkpointing)
    assert abs(loss - whole) < 1e-13
    for name in right:
        np.testing.assert_allclose(mine[name], right[name], rtol=1e-10, atol=1e-14, err_msg=name)


def test_parts_compute_with_the_backend_in_use(backend):
    seen = []
    Workers(3).backward(lambda x: seen.append(kernels.of(x)) or Tensor(x, requires_grad=True).sum(), np.zeros((3, 1)))
    assert set(seen) == {kernels.of(np.zeros(1))}


def test_gradients_of_several_batches_add_up(backend):
    once, twice = gradients(2)[1], gradients(2, again=1)[1]
    for name in once:
        np.testing.assert_allclose(twice[name], 2 * once[name], rtol=1e-12)


@pytest.mark.parametrize("threads", [1, 3])
def test_hooks_are_called_once_with_the_whole_gradient(threads):
    with using_threads(threads):
        used, other = (Tensor(np.ones(3), requires_grad=True) for _ in range(2))
        seen = []
        used.register_post_accumulate_grad_hook(lambda t: seen.append(t.grad.copy()))
        Workers(3).backward(lambda x: (used * x).sum() + (other.sum() if x.any() else 0.0), np.arange(3.0)[:, None] * np.ones(3))
    np.testing.assert_array_equal(seen, [[3.0, 3, 3]])
    np.testing.assert_array_equal(other.grad, [2.0, 2, 2])  # which one part does not use


def test_parts_have_the_same_bits_from_run_to_run(backend):
    first = gradients(3)
    for threads in (None, 1, 2, 3) * 3:
        with using_threads(threads):
            loss, found = gradients(3)
        assert loss == first[0]
        for name in found:
            np.testing.assert_array_equal(found[name], first[1][name])


def test_no_two_leaves_share_a_gradient(backend):
    found = list(gradients(2)[1].values())
    assert len({g.__array_interface__["data"][0] for g in found}) == len(found)


@pytest.mark.parametrize("parts", [1, 2])
def test_an_error_in_a_part_is_not_swallowed(parts):
    def loss_of(x):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Workers(parts).backward(loss_of, np.zeros((4, 1)))


# A whole model


def bits(method, parts, **options):
    """The loss and every gradient of a model, large enough that all of its work is shared out."""
    model = build_model(LlamaConfig(64, 144, 2, 4, 2, vocab_size=320), method, SETTINGS | {"rank": 8, "delta": 0.05} | options,
                        np.random.default_rng(5))
    for p in model.parameters():
        p.data += np.random.default_rng(p.size).normal(0, 0.05, p.shape).astype(p.dtype)
    ids = np.random.default_rng(0).integers(0, 320, (6, 101))
    loss = Workers(parts).backward(lambda inputs, labels: model.loss(inputs, labels, 1 / 600), ids[:, :-1], ids[:, 1:])
    return [np.float64(loss).tobytes(), *(p.grad.tobytes() for p in model.parameters())]


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(("method", "options"), [
    ("full", {}), ("low_rank", {}), ("sltrain", {"algorithm": "factored"}), ("sltrain", {"algorithm": "materialised"}),
    ("sltrain", {"learned_scale": True})])
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_the_number_of_threads_decides_no_bit_of_a_gradient(method, options, parts, backend):
    with last_piece_first():
        right = bits(method, parts, **options)
    for threads in (1, 2, 3):
        with using_threads(threads):
            assert bits(method, parts, **options) == right
