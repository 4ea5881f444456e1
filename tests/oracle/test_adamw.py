"""AdamW and gradient clipping against PyTorch's."""

import numpy as np
import pytest
from oracle_helpers import assert_same

from minisl import optim
from minisl.nn import Parameter

torch = pytest.importorskip("torch")

SHAPES = {"matrix": (4, 5), "vector": (7,), "sometimes": (3, 2), "never": (2, 2)}


def both(dtype, rng):
    """The same four parameters for minisl and for PyTorch."""
    arrays = {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}
    ours, theirs = (lambda a: Parameter(a.copy())), (lambda a: torch.nn.Parameter(torch.tensor(a)))
    return tuple({name: make(a) for name, a in arrays.items()} for make in (ours, theirs))


def give_gradients(ours, theirs, rng, names):
    """Random gradients, from tiny to large, for `names`; None for the others."""
    for name in ours:
        g = (rng.standard_normal(SHAPES[name]) * 10 ** rng.uniform(-4, 1)).astype(ours[name].dtype) if name in names else None
        ours[name].grad = g
        theirs[name].grad = None if g is None else torch.tensor(g)


@pytest.mark.parametrize("eps", [1e-8, 1e-2])  # 1e-2: large enough that it matters where eps is added
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-12)])
def test_fifty_steps_of_adamw_equal_pytorch(dtype, tolerance, weight_decay, eps, backend):
    rng = np.random.default_rng(0)
    ours, theirs = both(dtype, rng)
    before = ours["never"].data.copy()
    options = {"lr": 1.0, "betas": (0.8, 0.95), "eps": eps, "weight_decay": weight_decay}
    mine, other = optim.AdamW(ours.items(), **options), torch.optim.AdamW(theirs.values(), **options)
    for step in range(50):
        mine.lr = other.param_groups[0]["lr"] = 0.02 / (1 + step % 7)
        give_gradients(ours, theirs, rng, ["matrix", "vector"] + ["sometimes"] * (step % 3 == 0))
        mine.step()
        other.step()
        for name in ours:
            assert_same(ours[name].data, theirs[name], tolerance, f"{name} after step {step + 1}")
    assert np.array_equal(ours["never"].data, before), "a parameter without a gradient moved"


@pytest.mark.parametrize(("max_norm", "clips"), [(0.5, True), (1e3, False)])
def test_clip_grad_norm_equals_pytorch(max_norm, clips, backend):
    rng = np.random.default_rng(0)
    ours, theirs = both("float64", rng)
    give_gradients(ours, theirs, rng, ["matrix", "vector", "sometimes"])
    norm = optim.clip_grad_norm(ours.values(), max_norm)
    assert norm == pytest.approx(torch.nn.utils.clip_grad_norm_(theirs.values(), max_norm).item(), rel=1e-12)
    assert (norm > max_norm) == clips
    for name in ("matrix", "vector", "sometimes"):  # 1e-5: PyTorch divides by norm + 1e-6
        assert_same(ours[name].grad, theirs[name].grad, 1e-5 if clips else 1e-12, name)
    assert ours["never"].grad is None
