"""Every op with inputs to try it on and its value written down independently. Used by test_ops and test_mutants."""

from dataclasses import dataclass, field

import numpy as np
from scipy import special

from minisl import gradcheck
from minisl.autograd import Tensor, ops
from minisl.autograd.ops import composed


@dataclass
class Case:
    function: object  # Tensors to Tensor
    value: object  # the same on arrays, written another way
    shapes: list
    positive: bool = False
    composed: object = field(default=None)  # a fused op from primitive ones

    def inputs(self, dtype=np.float64):
        rng = np.random.default_rng(7)
        arrays = [rng.standard_normal(s) for s in self.shapes]
        return [(np.abs(a) + 0.5 if self.positive else a).astype(dtype) for a in arrays]


MASK = np.array([[True, False, True], [False, False, True]])
PICK = np.array([2, 0, 2, 1])
ALONG = np.array([[1, 1, 3], [0, 2, 0]])
IDS = np.array([[3, 0, 3], [1, 3, 0]])
LABELS = np.array([[1, -100, 4], [0, 2, -100]])
ANGLES = np.random.default_rng(3).uniform(0, 6, (4, 3))
COS, SIN = np.cos(ANGLES), np.sin(ANGLES)


def softmax(x, axis):
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def smoothed(logits):
    """Cross-entropy with the labels' own distribution, 0.9 on the label and 0.1 over all."""
    rows = [special.log_softmax(z) @ -(0.9 * np.eye(5)[label] + 0.02) if label != -100 else 0
            for z, label in zip(logits.reshape(-1, 5), LABELS.ravel())]
    return np.reshape(rows, LABELS.shape)


def nll(logits, mean):
    picked = [special.logsumexp(z) - z[label] for z, label in zip(logits.reshape(-1, 5), LABELS.ravel()) if label != -100]
    return np.mean(picked) if mean else np.sum(picked)


def rotated(x):
    x1, x2 = x[..., :3], x[..., 3:]
    return np.concatenate([x1 * COS - x2 * SIN, x1 * SIN + x2 * COS], axis=-1)


def attended(q, k, v):
    """One query at a time."""
    out = np.zeros(q.shape)
    group, offset = q.shape[1] // k.shape[1], k.shape[2] - q.shape[2]
    for b, h, i in np.ndindex(q.shape[:3]):
        seen = i + offset + 1
        scores = k[b, h // group, :seen] @ q[b, h, i] / np.sqrt(q.shape[3])
        out[b, h, i] = softmax(scores, 0) @ v[b, h // group, :seen]
    return out


def normed(x, g):
    return np.stack([row / np.sqrt(np.mean(row**2) + 0.1) * g for row in x.reshape(-1, x.shape[-1])]).reshape(x.shape)


def table(x):
    return COS.astype(x.dtype), SIN.astype(x.dtype)


def xent(reduction):
    return lambda z: ops.cross_entropy(z, LABELS, reduction)


CASES = {
    "add": Case(ops.add, np.add, [(2, 3), (2, 3)]),
    "add broadcast": Case(ops.add, np.add, [(2, 1, 3), (4, 1)]),
    "sub broadcast": Case(ops.sub, np.subtract, [(3,), (2, 3)]),
    "mul broadcast": Case(ops.mul, np.multiply, [(2, 3), (1, 3)]),
    "div broadcast": Case(ops.div, np.divide, [(2, 3), (2, 1)], positive=True),
    "maximum": Case(ops.maximum, np.maximum, [(4, 3), (3,)]),
    "minimum": Case(ops.minimum, np.minimum, [(4, 3), (3,)]),
    "abs": Case(abs, np.abs, [(2, 3)]),
    "relu": Case(ops.relu, lambda x: np.maximum(x, 0), [(2, 3)]),
    "clip": Case(lambda x: x.clip(-0.5, 0.3), lambda x: np.clip(x, -0.5, 0.3), [(3, 4)]),
    "clip, tensors": Case(ops.clip, np.clip, [(4, 3), (3,), (4, 1)]),
    "where": Case(lambda a, b: ops.where(MASK, a, b), lambda a, b: np.where(MASK, a, b), [(2, 3), (3,)]),
    "neg": Case(ops.neg, np.negative, [(2, 3)]),
    "power 3": Case(lambda x: x**3, lambda x: x * x * x, [(2, 3)]),
    "power -0.5": Case(lambda x: x**-0.5, lambda x: 1 / np.sqrt(x), [(2, 3)], positive=True),
    "power of a tensor": Case(lambda x: 0.7**x, lambda x: np.exp(x * np.log(0.7)), [(2, 3)]),
    "power, both": Case(ops.power, lambda a, b: np.exp(b * np.log(a)), [(2, 3), (2, 1)], positive=True),
    "exp": Case(ops.exp, np.exp, [(2, 3)]),
    "log": Case(ops.log, np.log, [(2, 3)], positive=True),
    "sqrt": Case(ops.sqrt, np.sqrt, [(2, 3)], positive=True),
    "rsqrt": Case(ops.rsqrt, lambda x: x**-0.5, [(2, 3)], positive=True),
    "tanh": Case(ops.tanh, np.tanh, [(2, 3)]),
    "sigmoid": Case(ops.sigmoid, special.expit, [(2, 3)]),
    "silu": Case(ops.silu, lambda x: x * special.expit(x), [(2, 3)]),
    "sum all": Case(ops.sum, np.sum, [(2, 3)]),
    "sum axes": Case(lambda x: x.sum((0, -1)), lambda x: x.sum((0, -1)), [(2, 3, 4)]),
    "mean axis": Case(lambda x: x.mean(1), lambda x: x.mean(1), [(2, 3, 4)]),
    "mean all": Case(ops.mean, np.mean, [(2, 3)]),
    "max axis": Case(lambda x: x.max(-1), lambda x: x.max(-1), [(4, 5)]),
    "max axes kept": Case(lambda x: x.max((0, 2), True), lambda x: x.max((0, 2), keepdims=True), [(2, 3, 4)]),
    "min axes": Case(lambda x: x.min((0, 2)), lambda x: x.min((0, 2)), [(2, 3, 4)]),
    "var": Case(lambda x: x.var((0, 2)), lambda x: x.var((0, 2), ddof=1), [(2, 3, 4)]),
    "std": Case(lambda x: x.std(-1, True, 0), lambda x: x.std(-1, keepdims=True), [(3, 4)]),
    "cumsum": Case(lambda x: x.cumsum(1), lambda x: np.einsum("ijk,jm->imk", x, np.triu(np.ones((3, 3)))), [(2, 3, 4)]),
    "logsumexp": Case(lambda x: x.logsumexp(1), lambda x: special.logsumexp(x, 1), [(2, 3, 4)]),
    "logsumexp kept": Case(lambda x: x.logsumexp(-1, True), lambda x: special.logsumexp(x, -1, keepdims=True), [(2, 3, 4)]),
    "softmax": Case(ops.softmax, lambda x: softmax(x, -1), [(3, 4)]),
    "softmax axis 0": Case(lambda x: ops.softmax(x, 0), lambda x: softmax(x, 0), [(3, 4)]),
    "log_softmax": Case(ops.log_softmax, lambda x: special.log_softmax(x, -1), [(3, 4)]),
    "reshape": Case(lambda x: x.reshape(3, -1), lambda x: x.reshape(3, -1), [(2, 6)]),
    "permute": Case(lambda x: x.permute(2, 0, 1), lambda x: np.einsum("ijk->kij", x), [(2, 3, 4)]),
    "swapaxes": Case(lambda x: x.swapaxes(-1, -2), lambda x: np.einsum("ijk->ikj", x), [(2, 3, 4)]),
    "squeeze": Case(lambda x: x.squeeze(-1), lambda x: x[:, :, 0], [(1, 3, 1)]),
    "unsqueeze": Case(lambda x: x.unsqueeze(-2), lambda x: x[:, None], [(2, 3)]),
    "flatten": Case(lambda x: x.flatten(1, 2), lambda x: x.reshape(2, 12, 2), [(2, 3, 4, 2)]),
    "split": Case(lambda x: x.split(2, 1)[1] * x.split([2, 3], -1)[1][:, 1:], lambda x: x[:, 2:4] * x[:, 3:], [(2, 5)]),
    "concatenate": Case(lambda *xs: ops.concatenate(xs, 1), lambda *xs: np.hstack(xs), [(2, 3), (2, 1), (2, 2)]),
    "stack": Case(lambda *xs: ops.stack(xs, -1), lambda *xs: np.dstack(xs), [(2, 3), (2, 3)]),
    "getitem slice": Case(lambda x: x[1:, ..., ::2], lambda x: x[1:, ..., ::2], [(3, 2, 4)]),
    "getitem repeated": Case(lambda x: x[:, PICK], lambda x: np.stack([x[:, i] for i in PICK], 1), [(2, 3)]),
    "getitem tensor": Case(lambda x: x[Tensor(PICK)], lambda x: np.stack([x[i] for i in PICK]), [(3, 2)]),
    "gather": Case(lambda x: ops.gather(x, ALONG), lambda x: np.array([[x[i, j] for j in ALONG[i]] for i in (0, 1)]), [(2, 4)]),
    "embedding": Case(lambda w: ops.embedding(w, IDS), lambda w: np.array([[w[i] for i in row] for row in IDS]), [(5, 2)]),
    "matmul": Case(ops.matmul, np.dot, [(2, 3), (3, 4)]),
    "matmul batched": Case(ops.matmul, lambda a, b: np.einsum("aij,bjk->abik", a[:, 0], b), [(2, 1, 2, 3), (4, 3, 5)]),
    "matmul vectors": Case(ops.matmul, lambda a, b: (a * b).sum(), [(3,), (3,)]),
    "matmul vector, matrices": Case(ops.matmul, lambda a, b: np.einsum("j,bjk->bk", a, b), [(3,), (2, 3, 4)]),
    "matmul matrices, vector": Case(ops.matmul, lambda a, b: np.einsum("bij,j->bi", a, b), [(2, 4, 3), (3,)]),
    "einsum": Case(lambda a, b: ops.einsum("bij,kj->bk", a, b), lambda a, b: a.sum(1) @ b.T, [(2, 3, 4), (5, 4)]),
    "einsum broadcast": Case(lambda a, b: ops.einsum("...ij,...jk", a, b), np.matmul, [(2, 1, 3, 4), (5, 4, 2)]),
    "linear": Case(ops.linear, lambda x, w: np.einsum("btd,od->bto", x, w), [(2, 3, 4), (5, 4)], composed=composed.linear),
    "cross_entropy": Case(xent("mean"), lambda z: nll(z, True), [(2, 3, 5)],
                          composed=lambda z: composed.cross_entropy(z, LABELS)),
    "cross_entropy sum": Case(xent("sum"), lambda z: nll(z, False), [(2, 3, 5)]),
    "cross_entropy none": Case(lambda z: ops.cross_entropy(z, LABELS, "none", 0.1), smoothed, [(2, 3, 5)]),
    "cross_entropy smoothed": Case(lambda z: ops.cross_entropy(z, LABELS, label_smoothing=0.1), lambda z: smoothed(z).sum() / 4,
                                   [(2, 3, 5)]),
    "linear_cross_entropy": Case(lambda x, w: ops.linear_cross_entropy(x, w, LABELS, 0.3), lambda x, w: 0.3 * nll(x @ w.T, False),
                                 [(2, 3, 4), (5, 4)], composed=lambda x, w: composed.linear_cross_entropy(x, w, LABELS, 0.3)),
    "rms_norm": Case(lambda x, g: ops.rms_norm(x, g, 0.1), normed, [(2, 3, 4), (4,)],
                     composed=lambda x, g: composed.rms_norm(x, g, 0.1)),
    "swiglu": Case(ops.swiglu, lambda a, b: a * special.expit(a) * b, [(2, 3), (2, 3)], composed=composed.swiglu),
    "rope": Case(lambda x: ops.rope(x, *table(x)), rotated, [(2, 4, 6)], composed=lambda x: composed.rope(x, *table(x))),
    "attention": Case(ops.attention, attended, [(2, 2, 4, 3)] * 3, composed=composed.attention),
    "attention grouped": Case(ops.attention, attended, [(1, 4, 3, 2), (1, 2, 3, 2), (1, 2, 3, 2)], composed=composed.attention),
    "attention cached": Case(ops.attention, attended, [(1, 2, 2, 2), (1, 2, 5, 2), (1, 2, 5, 2)], composed=composed.attention),
}


def ops_in(name):
    """The ops that a case runs through."""
    case, seen = CASES[name], set()
    todo = [case.function(*(Tensor(a, requires_grad=True) for a in case.inputs())).node]
    while todo:
        node = todo.pop()
        if getattr(node, "op", None):
            seen.add(node.op)
            todo += [p for p in node.parents if p is not None]
    return seen


# Cases that each backend computes in its own way; the others are the same NumPy on all.
WITH_KERNELS = [name for name in CASES
                if any("kernels" in f.__code__.co_names for op in ops_in(name) for f in (op.forward, op.backward))]


def check_value(name):
    case = CASES[name]
    arrays = case.inputs()
    np.testing.assert_allclose(case.function(*map(Tensor, arrays)).data, case.value(*arrays), rtol=1e-12, atol=1e-12)


def check_gradient(name):
    case = CASES[name]
    gradcheck(case.function, *case.inputs())


def check_float32(name):
    """float32 in gives float32 out, value and gradients, and close to what float64 gives."""
    case, results = CASES[name], []
    for dtype in (np.float32, np.float64):
        leaves = [Tensor(a, requires_grad=True) for a in case.inputs(dtype)]
        out = case.function(*leaves)
        out.backward(np.ones_like(out.data))
        results.append([out.data, *(leaf.grad for leaf in leaves)])
        assert {a.dtype for a in results[-1]} == {np.dtype(dtype)}
    for low, high in zip(*results):
        np.testing.assert_allclose(low, high, rtol=2e-5, atol=2e-5)


def check_composed(name):
    """The fused op and its composition: same value, same gradients."""
    case, results = CASES[name], []
    for function in (case.function, case.composed):
        leaves = [Tensor(a, requires_grad=True) for a in case.inputs()]
        out = function(*leaves)
        out.backward(np.random.default_rng(5).standard_normal(out.shape) if out.shape else np.float64(1.5) * np.ones(()))
        results.append([out.data, *(leaf.grad for leaf in leaves)])
    for mine, theirs in zip(*results):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-12)
