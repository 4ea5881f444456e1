"""The sparse-plus-low-rank product against PyTorch's autograd and against the paper's Algorithm 1."""

import numpy as np
import pytest
from oracle_helpers import assert_same

from minisl import kernels

torch = pytest.importorskip("torch")

OUT, IN, RANK, NNZ, SCALE = 13, 11, 3, 40, 2.5
SUPPORTS = {
    "sorted": lambda rng: np.sort(rng.permutation(OUT * IN)[:NNZ]),
    "unsorted": lambda rng: rng.permutation(OUT * IN)[:NNZ],
    "repeated": lambda rng: rng.integers(0, OUT * IN // 4, NNZ),
}


def plain(x, B, A, values, index):
    """s B A, the values added at their places, then a dense layer; gradients by PyTorch's autograd."""
    W = (SCALE * B @ A).flatten().scatter_add(0, index, values)
    return torch.nn.functional.linear(x, W.view(OUT, IN))


class Algorithm1(torch.autograd.Function):
    """The paper's Algorithm 1: only the factors are saved, W is built again in backward."""

    @staticmethod
    def dense(B, A, values, index):
        W = SCALE * torch.mm(B, A)
        return W.put_(index, values, accumulate=True)

    @staticmethod
    def forward(ctx, x, B, A, values, index):
        ctx.save_for_backward(x, B, A, values, index)
        return x @ Algorithm1.dense(B, A, values, index).T

    @staticmethod
    def backward(ctx, dy):
        x, B, A, values, index = ctx.saved_tensors
        dW = torch.einsum("...o,...i->oi", dy, x)
        return dy @ Algorithm1.dense(B, A, values, index), SCALE * dW @ A.T, SCALE * B.T @ dW, dW.take(index), None


@pytest.mark.parametrize("oracle", [plain, Algorithm1.apply], ids=["autograd", "algorithm1"])
@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-12)])
@pytest.mark.parametrize("algorithm", ["materialised", "factored"])
def test_forward_and_four_gradients_equal_pytorch(algorithm, dtype, tolerance, support, oracle, backend):
    rng = np.random.default_rng(0)
    index = SUPPORTS[support](rng)
    shapes = [(2, 3, IN), (OUT, RANK), (RANK, IN), (NNZ,), (2, 3, OUT)]
    *arrays, dy = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
    y = oracle(*leaves, torch.tensor(index))
    y.backward(torch.tensor(dy))

    assert_same(kernels.sl_linear(*arrays, index, SCALE, algorithm=algorithm), y, tolerance, "forward")
    gradients = kernels.sl_linear_backward(dy, *arrays, index, SCALE, algorithm=algorithm)
    for name, mine, leaf in zip(("dx", "dB", "dA", "dvalues"), gradients, leaves, strict=True):
        assert_same(mine, leaf.grad, tolerance, name)
