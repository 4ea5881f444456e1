"""Every differentiable op against PyTorch's, value and gradients, in float64."""

import numpy as np
import pytest
from oracle_helpers import assert_same

from minisl.autograd import Tensor, ops
from minisl.autograd.ops import fused

torch = pytest.importorskip("torch")
F = torch.nn.functional

IDS = np.array([[3, 0, 3], [3, 1, 0]])  # repeats: their gradients add up
INDEX = np.array([[2, 2, 0], [4, 4, 4]])
LABELS = np.array([[1, -100, 4], [0, 0, -100]])
MASK = np.array([[True], [False], [True]])
SPREAD = np.array([1e4, 100.0, 10.0, 1.0])  # exp overflows at 710
ANGLES = np.random.default_rng(1).uniform(-3, 3, (4, 3))


def torch_rope(x):
    """The pair (x_i, x_{i + d/2}) as a complex number, times e^(i angle)."""
    turned = torch.complex(*x.chunk(2, dim=-1)) * torch.polar(torch.ones(4, 3, dtype=x.dtype), torch.tensor(ANGLES))
    return torch.cat([turned.real, turned.imag], dim=-1)


def torch_cross_entropy(z, reduction, smoothing=0.0):
    return F.cross_entropy(z.flatten(0, 1), torch.tensor(LABELS).flatten(), reduction=reduction, label_smoothing=smoothing)


def torch_attention(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def torch_cached_attention(q, k, v):
    """The last query sees every key; PyTorch's is_causal would line up the first query with the first key."""
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
    return F.scaled_dot_product_attention(q, k, v, mask)


# The op's name and what is special about the call: ours, PyTorch's, shapes of the arguments.
CASES = {
    "add, broadcast on the left": (ops.add, torch.add, (4,), (3, 1)),
    "add a number": (lambda x: 2 + x, lambda x: 2 + x, (3,)),
    "sub, broadcast": (ops.sub, torch.sub, (2, 3, 4), (3, 1)),
    "sub from a number": (lambda x: 2 - x, lambda x: 2 - x, (3,)),
    "mul, broadcast": (ops.mul, torch.mul, (1, 4), (3, 1)),
    "mul by itself": (lambda x: x * x, torch.square, (3,)),
    "div, broadcast": (ops.div, torch.div, (4,), (3, 4)),
    "div a number": (lambda x: 2 / x, lambda x: 2 / x, (3,)),
    "neg": (ops.neg, torch.neg, (3, 4)),
    "power 3": (lambda x: x**3, lambda x: x**3, (3, 4)),
    "power -1.5": (lambda x: x**-1.5, lambda x: x**-1.5, (3, 4)),
    "power of a tensor": (lambda x: 2**x, lambda x: 2**x, (3, 4)),
    "exp": (ops.exp, torch.exp, (3, 4)),
    "log": (ops.log, torch.log, (3, 4)),
    "sqrt": (ops.sqrt, torch.sqrt, (3, 4)),
    "rsqrt": (ops.rsqrt, torch.rsqrt, (3, 4)),
    "tanh": (ops.tanh, torch.tanh, (3, 4)),
    "sigmoid": (ops.sigmoid, torch.sigmoid, (3, 4)),
    "sigmoid of large numbers": (lambda x: ops.sigmoid(x * SPREAD), lambda x: torch.sigmoid(x * torch.tensor(SPREAD)), (3, 4)),
    "silu": (ops.silu, F.silu, (3, 4)),
    "silu of large numbers": (lambda x: ops.silu(x * SPREAD), lambda x: F.silu(x * torch.tensor(SPREAD)), (3, 4)),
    "maximum": (ops.maximum, torch.maximum, (3, 4), (4,)),
    "maximum, half each at a tie": (lambda x: ops.maximum(x, x * 2 - x.detach()),  # equal, but with slopes 1 and 2
                                    lambda x: torch.maximum(x, x * 2 - x.detach()), (3,)),
    "minimum": (ops.minimum, torch.minimum, (3, 4), (4,)),
    "abs": (ops.abs, torch.abs, (3, 4)),
    "relu": (ops.relu, F.relu, (3, 4)),
    "clip": (lambda x: ops.clip(x, -0.5, 0.5), lambda x: x.clamp(-0.5, 0.5), (3, 4)),
    "clip, tensors": (ops.clip, torch.clamp, (3, 4), (4,), (3, 1)),
    "where": (lambda a, b: ops.where(MASK, a, b), lambda a, b: torch.where(torch.tensor(MASK), a, b), (3, 4), (4,)),
    "sum": (ops.sum, torch.sum, (3, 4)),
    "sum over two axes": (lambda x: ops.sum(x, (0, -1)), lambda x: x.sum((0, -1)), (3, 4, 2)),
    "mean": (ops.mean, torch.mean, (3, 4)),
    "mean, axis kept": (lambda x: ops.mean(x, -1, keepdims=True), lambda x: x.mean(-1, keepdim=True), (3, 4)),
    "max": (ops.max, torch.amax, (3, 4)),
    "max over an axis": (lambda x: ops.max(x, 1), lambda x: x.amax(1), (3, 4, 2)),
    "max, shared at a tie": (lambda x: ops.max(x[[0, 0, 1, 2]], 0), lambda x: x[[0, 0, 1, 2]].amax(0), (3, 4)),
    "min over axes": (lambda x: ops.min(x, (0, 2), True), lambda x: x.amin((0, 2), True), (3, 4, 2)),
    "var": (lambda x: ops.var(x, 1), lambda x: x.var(1), (3, 4, 2)),
    "std": (lambda x: ops.std(x, correction=0), lambda x: x.std(correction=0), (3, 4)),
    "cumsum": (lambda x: ops.cumsum(x, -2), lambda x: x.cumsum(-2), (3, 4, 2)),
    "logsumexp": (lambda x: ops.logsumexp(x, (0, 1)), lambda x: x.logsumexp((0, 1)), (3, 4, 2)),
    "softmax": (ops.softmax, lambda x: x.softmax(-1), (3, 4)),
    "softmax of large numbers, first axis": (lambda x: ops.softmax(x * 1e3, 0), lambda x: (x * 1e3).softmax(0), (3, 8)),
    "log_softmax": (ops.log_softmax, lambda x: x.log_softmax(-1), (3, 4)),
    "log_softmax of large numbers": (lambda x: ops.log_softmax(x * 1e3, 0), lambda x: (x * 1e3).log_softmax(0), (3, 4)),
    "reshape": (lambda x: x.reshape(4, -1), lambda x: x.reshape(4, -1), (3, 4, 2)),
    "permute": (lambda x: x.permute(2, 0, 1), lambda x: x.permute(2, 0, 1), (3, 4, 2)),
    "swapaxes": (lambda x: x.swapaxes(0, -1), lambda x: x.swapaxes(0, -1), (3, 4, 2)),
    "squeeze": (ops.squeeze, torch.squeeze, (3, 1, 2, 1)),
    "unsqueeze": (lambda x: ops.unsqueeze(x, -1), lambda x: x.unsqueeze(-1), (3, 2)),
    "flatten": (lambda x: ops.flatten(x, 1), lambda x: x.flatten(1), (3, 4, 2)),
    "split": (lambda x: ops.split(x, 3, 1)[1], lambda x: x.split(3, 1)[1], (2, 5)),
    "concatenate": (lambda *x: ops.concatenate(x, 1), lambda *x: torch.cat(x, 1), (2, 3), (2, 1), (2, 4)),
    "stack": (lambda *x: ops.stack(x, -1), lambda *x: torch.stack(x, -1), (2, 3), (2, 3)),
    "getitem, slices": (lambda x: x[..., None, 1:, 2], lambda x: x[..., None, 1:, 2], (2, 3, 4)),
    "getitem, arrays with repeats": (lambda x: x[IDS, :, IDS], lambda x: x[IDS, :, IDS], (4, 2, 4)),
    "gather": (lambda x: ops.gather(x, INDEX), lambda x: x.gather(-1, torch.tensor(INDEX)), (2, 5)),
    "gather, first axis": (lambda x: ops.gather(x, INDEX.T, 0), lambda x: x.gather(0, torch.tensor(INDEX.T)), (5, 2)),
    "embedding": (lambda w: ops.embedding(w, IDS), lambda w: F.embedding(torch.tensor(IDS), w), (5, 4)),
    "matmul, broadcast": (ops.matmul, torch.matmul, (2, 1, 3, 4), (5, 4, 2)),
    "matmul of vectors": (ops.matmul, torch.matmul, (4,), (4,)),
    "einsum": (lambda *x: ops.einsum("...ij,kj->...k", *x), lambda *x: torch.einsum("...ij,kj->...k", *x), (2, 3, 4), (5, 4)),
    "linear": (ops.linear, F.linear, (2, 3, 4), (5, 4)),
    "cross_entropy": (lambda z: ops.cross_entropy(z, LABELS), lambda z: torch_cross_entropy(z, "mean"), (2, 3, 5)),
    "cross_entropy, sum": (lambda z: ops.cross_entropy(z, LABELS, "sum"), lambda z: torch_cross_entropy(z, "sum"), (2, 3, 5)),
    "cross_entropy, of each": (lambda z: ops.cross_entropy(z, LABELS, "none"),
                               lambda z: torch_cross_entropy(z, "none").reshape(LABELS.shape), (2, 3, 5)),
    "cross_entropy, smoothed": (lambda z: ops.cross_entropy(z, LABELS, label_smoothing=0.2),
                                lambda z: torch_cross_entropy(z, "mean", 0.2), (2, 3, 5)),
    "cross_entropy, smoothed, sum": (lambda z: ops.cross_entropy(z, LABELS, "sum", 1.0),
                                     lambda z: torch_cross_entropy(z, "sum", 1.0), (2, 3, 5)),
    "cross_entropy of large numbers": (lambda z: ops.cross_entropy(z * 1e3, LABELS),
                                       lambda z: torch_cross_entropy(z * 1e3, "mean"), (2, 3, 5)),
    "linear_cross_entropy": (lambda x, w: ops.linear_cross_entropy(x, w, LABELS, 0.3),
                             lambda x, w: 0.3 * torch_cross_entropy(F.linear(x, w), "sum"), (2, 3, 4), (5, 4)),
    "rms_norm": (lambda x, g: ops.rms_norm(x, g, 0.1), lambda x, g: F.rms_norm(x, (5,), g, 0.1), (2, 3, 5), (5,)),
    "swiglu": (ops.swiglu, lambda a, b: F.silu(a) * b, (2, 3, 5), (2, 3, 5)),
    "rope": (lambda x: ops.rope(x, np.cos(ANGLES), np.sin(ANGLES)), torch_rope, (2, 3, 4, 6)),
    "attention": (ops.attention, torch_attention, (2, 3, 5, 4), (2, 3, 5, 4), (2, 3, 5, 4)),
    "attention, grouped heads": (ops.attention, torch_attention, (2, 6, 5, 4), (2, 2, 5, 4), (2, 2, 5, 4)),
    "attention, more keys than queries": (ops.attention, torch_cached_attention, (2, 3, 2, 4), (2, 3, 5, 4), (2, 3, 5, 4)),
}
POSITIVE = ("log", "sqrt", "rsqrt", "power -1.5")


def op_name(case):
    return case.replace(",", " ").split()[0]


RUNS = [(case, "numpy") for case in CASES] + [(case, "cpu") for case in CASES if hasattr(fused, op_name(case))]


@pytest.mark.parametrize(("case", "backend"), RUNS, indirect=["backend"])
def test_value_and_gradients_equal_pytorch(case, backend):
    ours, theirs, *shapes = CASES[case]
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape) for shape in shapes]
    if case in POSITIVE:
        arrays = [abs(a) + 0.1 for a in arrays]
    x, tx = [Tensor(a, requires_grad=True) for a in arrays], [torch.tensor(a, requires_grad=True) for a in arrays]
    y, ty = ours(*x), theirs(*tx)
    assert_same(np.asarray(y.data), ty, 1e-12, "value")

    dy = rng.standard_normal(ty.shape)
    y.backward(dy)
    ty.backward(torch.tensor(dy))
    for i, (mine, other) in enumerate(zip(x, tx)):
        assert_same(mine.grad, other.grad, 1e-12, f"gradient {i}")


def test_every_op_is_compared():
    assert {op_name(case) for case in CASES} == set(ops.__all__)
