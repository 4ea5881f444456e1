"""AdamW and clipping."""

import numpy as np
import pytest
from optim_checks import check_adamw, check_adamw_state, check_clip

from minisl.errors import InputError
from minisl.nn import Parameter
from minisl.optim import AdamW


def test_adamw(backend):
    check_adamw()


def test_adamw_state_survives_saving(backend):
    check_adamw_state()


def test_clip(backend):
    check_clip()


@pytest.mark.parametrize("change", ["shape", "name", "half"])
def test_state_of_another_model_is_refused(change):
    p = Parameter(np.ones(3))
    optimizer = AdamW([("p", p)], 0.1)
    p.grad = np.ones(3)
    optimizer.step()
    state = optimizer.state_dict()
    if change == "shape":
        state["exp_avg.p"] = np.zeros(4)
    if change == "name":
        state["exp_avg.q"] = np.zeros(3)
    if change == "half":
        del state["exp_avg_sq.p"]
    with pytest.raises(InputError, match="optimizer state"):
        optimizer.load_state_dict(state)


def test_float32_stays_float32(backend):
    p = Parameter(np.ones(3, np.float32))
    p.grad = np.ones(3, np.float32)
    optimizer = AdamW([("p", p)], 0.1, weight_decay=0.1)
    optimizer.step()
    assert {p.data.dtype, *(a.dtype for a in optimizer.arrays())} == {np.dtype(np.float32)}
