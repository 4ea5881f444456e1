"""What minisl is measured against computes the same thing."""

import numpy as np
import pytest

from minisl import kernels
from minisl.autograd import Tensor
from minisl.methods import build_model
from minisl.nn import LlamaConfig

torch = pytest.importorskip("torch")
from minisl.bench import layer, ops, torch_peer  # noqa: E402
from minisl.bench.child import minisl_step  # noqa: E402

OPTIONS = {"rank": 4, "delta": 0.1, "alpha": 8.0, "learned_scale": False, "algorithm": "auto"}


@pytest.mark.parametrize("method", ["sltrain", "full"])
def test_steps_have_the_same_losses(method):
    config = LlamaConfig(32, 48, 2, 4, num_key_value_heads=2, vocab_size=64)
    model = build_model(config, method, OPTIONS, np.random.default_rng(0))
    ids = np.random.default_rng(1).integers(0, 64, (3, 17))
    ids, labels = ids[:, :-1].copy(), ids[:, 1:].copy()
    theirs, ours = torch_peer.trainer(model), minisl_step(model, ids, labels, 1)
    for _ in range(5):
        assert ours() == pytest.approx(theirs(ids, labels), rel=2e-5)


def test_public_layer():
    """Value and all gradients as minisl's"""
    dy, x, B, A, v, support = layer.problem(24, 16, 4, tokens=10, delta=0.2)
    public, leaf = torch_peer.SparseLowRank(B, A, v, support.index, 0.25), torch.tensor(x, requires_grad=True)
    y = public(leaf)
    y.backward(torch.from_numpy(dy))
    mine = [kernels.sl_linear(x, B, A, v, support, 0.25), *kernels.sl_linear_backward(dy, x, B, A, v, support, 0.25)]
    for value, right in zip(mine, (y.detach(), leaf.grad, public.B.grad, public.A.grad, public.v.grad)):
        np.testing.assert_allclose(value, right.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [
    "RMSNorm", "SwiGLU", "RoPE", "attention", "embedding", "cross-entropy", "head and cross-entropy"])
def test_ops_that_are_compared_are_the_same(name, monkeypatch):
    for size, value in {"N": 32, "D": 16, "F": 24, "V": 50, "B": 2, "H": 2, "T": 16}.items():
        monkeypatch.setattr(ops, size, value)
    mine, arrays, theirs, *_ = ops.cases(np.random.default_rng(0))[name]
    value, right = mine(*map(Tensor, arrays)).data, theirs(*map(torch.from_numpy, arrays)).numpy()
    np.testing.assert_allclose(value, right, rtol=1e-4, atol=1e-5)
