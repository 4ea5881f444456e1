"""Parts of a batch on threads of their own add up to the whole batch."""

import numpy as np
import pytest
from method_checks import SETTINGS

from minisl.autograd import ops
from minisl.backend import IGNORE_LABEL
from minisl.methods import build_model
from minisl.nn import LlamaConfig
from minisl.parallel import Workers


def gradients(threads, batch=5, again=0, activation_checkpointing=False):
    """(loss, name -> gradient) of one batch in `threads` parts."""
    model = build_model(LlamaConfig(8, 12, 2, 2, vocab_size=16), "sltrain", SETTINGS, np.random.default_rng(5), "float64")
    model.model.activation_checkpointing = activation_checkpointing
    ids = np.random.default_rng(0).integers(0, 16, (batch, 7))
    labels = ids[:, 1:].copy()
    labels[0] = IGNORE_LABEL  # a part may have no label at all

    def loss_of(inputs, labels):
        return ops.cross_entropy(model(inputs), labels, reduction="sum") * (1 / 24)

    for _ in range(again + 1):
        loss = Workers(threads).backward(loss_of, ids[:, :-1], labels)
    return loss, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("threads", [2, 3, 5, 8])
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_parts_equal_the_whole(threads, activation_checkpointing):
    (whole, right), (loss, mine) = gradients(1), gradients(threads, activation_checkpointing=activation_checkpointing)
    assert abs(loss - whole) < 1e-13
    for name in right:
        np.testing.assert_allclose(mine[name], right[name], rtol=1e-10, atol=1e-14, err_msg=name)


def test_gradients_of_several_batches_add_up():
    once, twice = gradients(2)[1], gradients(2, again=1)[1]
    for name in once:
        np.testing.assert_allclose(twice[name], 2 * once[name], rtol=1e-12)


def test_threads_do_not_change_the_bits_from_run_to_run():
    first = gradients(3)
    for _ in range(10):
        loss, found = gradients(3)
        assert loss == first[0]
        for name in found:
            np.testing.assert_array_equal(found[name], first[1][name])


def test_no_two_leaves_share_a_gradient():
    found = list(gradients(2)[1].values())
    assert len({g.__array_interface__["data"][0] for g in found}) == len(found)


def test_an_error_in_a_part_is_not_swallowed():
    def loss_of(x):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Workers(2).backward(loss_of, np.zeros((4, 1)))
