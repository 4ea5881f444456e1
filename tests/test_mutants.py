"""The shipped tests reject every implementation listed here. Each is a mistake that people make."""

import tempfile
from functools import partial
from pathlib import Path

import backend_checks
import numpy as np
import pytest
from backend_checks import check_bits, check_same
from kernel_checks import ALGORITHMS, SUPPORTS, check_product, check_sparse, check_views
from method_checks import check_full, check_layer_gradient, check_low_rank, check_start, check_support
from mutation import load, mutated, patched, rejected, title, within
from op_cases import CASES, check_composed, check_float32, check_gradient, check_value, ops_in
from optim_checks import check_adamw, check_adamw_state, check_clip
from threadpoolctl import threadpool_limits

from minisl import evaluate, kernels, parallel
from minisl.autograd import Function, tensor
from minisl.autograd.ops import composed, elementwise, fused, index, reduce, shape
from minisl.autograd.ops.matmul import Einsum, MatMul
from minisl.data import batches, corpora, make_tokenizer, tokenizers
from minisl.kernels import Support, cost, numpy_backend, numpy_fused, reference
from minisl.kernels.support import starts
from minisl.methods import full, low_rank, sltrain
from minisl.nn import Linear
from minisl.optim import adamw, clip, optimizer

engine, ops_tests = (load(f"{p}.py") for p in ("autograd/test_engine", "autograd/test_ops"))
sl_tests, choice_tests, adam8bit_tests = (load(f"kernels/{p}.py") for p in ("test_sl_linear", "test_backends", "test_adam8bit"))
data_tests, evaluate_tests, parallel_tests = (load(f"{p}.py") for p in ("data/test_data", "test_evaluate", "test_parallel"))

CASES_OF = {}
for _name in CASES:
    for _op in ops_in(_name):
        CASES_OF.setdefault(_op.__name__, []).append(_name)
OPS = [op for op in Function.__subclasses__() if op.__module__.startswith("minisl.autograd.ops")]


def op_checks(*names):
    """The checks of these ops, with NumPy: the cpu backend has mutants of its own."""
    cases = [case for name in names for case in CASES_OF[name]]
    return within("numpy", [partial(check, case) for case in cases for check in (check_value, check_gradient, check_float32)]
                  + [partial(check_composed, case) for case in cases if CASES[case].composed])


def product_checks():
    products = [partial(check_product, s, a) for s in SUPPORTS for a in ALGORITHMS] + [partial(check_sparse, s) for s in SUPPORTS]
    return within("numpy", [*products, sl_tests.test_sddmm_over_several_slices]) + within("reference", products) + [
        partial(check_views, s) for s in SUPPORTS]


def engine_checks():
    """Its tests but those that measure time, which a busy machine may fail."""
    tests = [t for n, t in vars(engine).items() if n.startswith("test_") and not hasattr(t, "pytestmark")
             and t.__code__.co_argcount == 0 and "seconds" not in t.__code__.co_names]
    rng = np.random.default_rng(0)
    sums = [partial(engine.test_sum_over_an_axis_without_keepdims, axis, keep, rng) for axis in (0, (0, 2)) for keep in (False, True)]
    return tests + sums + [partial(check_gradient, name) for name in ("add broadcast", "mul broadcast", "matmul batched")]


def whole(gradients, change):
    """A backward that computes the right gradients and then spoils them."""
    return lambda ctx, grad: tuple(None if g is None else change(g) for g in as_tuple(gradients(ctx, grad)))


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


SPOILED = {
    "zero gradient": lambda right: whole(right, np.zeros_like),
    "doubled gradient": lambda right: whole(right, lambda g: 2 * g),
    "gradient of the wrong sign": lambda right: whole(right, lambda g: -g),
    "upstream gradient ignored": lambda right: lambda ctx, grad: right(ctx, np.ones_like(grad)),
    "last argument forgotten": lambda right: lambda ctx, grad: (*as_tuple(right(ctx, grad))[:-1], None),
}


@pytest.mark.parametrize("mistake", SPOILED)
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.__name__)
def test_every_op(op, mistake, killed):
    with patched(op, "backward", staticmethod(SPOILED[mistake](op.backward))):
        killed[f"{op.__name__}: {mistake}"] = rejected(op_checks(op.__name__))
    assert killed[f"{op.__name__}: {mistake}"]


# function, what is there, what is put in its place
OP_MUTANTS = [
    (elementwise.Mul.backward, "grad * b, grad * a", "grad * a, grad * b"),
    (elementwise.Div.backward, "(a / b / b)", "(a / b)"),
    (elementwise.Div.backward, "grad / b,", "grad * b,"),
    (elementwise.Maximum.backward, "a < b", "a > b"),
    (elementwise.Minimum.backward, "b > a", "b < a"),
    (elementwise.Minimum.forward, "minimum(a, b)", "minimum(a, 0 * b)"),
    (elementwise.Where.backward, "~mask", "mask"),
    (elementwise.Abs.backward, "x < 0", "x > 0"),
    (elementwise.Power.backward, "x ** (p - 1)", "x ** p"),
    (elementwise.Power.backward, "(p * x", "(x"),
    (elementwise.PowerOf.backward, "b - 1", "b"),
    (elementwise.PowerOf.backward, "grad * (b *", "grad * ("),
    (elementwise.PowerOf.backward, "y * xp.log(xp.where(zero, 1, a))", "y"),
    (elementwise.PowerOf.backward, "y * xp.log(xp.where(zero, 1, a))", "xp.log(xp.where(zero, 1, a))"),
    (elementwise.Log.backward, "grad / x", "grad * x"),
    (elementwise.Sqrt.backward, "0.5 * grad", "grad"),
    (elementwise.Rsqrt.backward, "y * y * y", "y * y"),
    (elementwise.Tanh.backward, "y * y", "y"),
    (elementwise.Sigmoid.backward, "(1 - y)", "(1 + y)"),
    (elementwise.SiLU.backward, "(1 + x * (1 - s))", "(1 + x * s)"),
    (elementwise.SiLU.backward, "(1 + x * (1 - s))", "1"),
    (reduce.Mean.backward, "grad / builtins.max(n, 1)", "grad"),
    (reduce.Mean.forward, "math.prod(x.shape[k] for k in axis)", "x.size"),
    (reduce.Extremum.backward, "/ hit.sum(axis=axis, keepdims=True, dtype=grad.dtype)", "/ 2"),
    (reduce.Extremum.backward, "~hit", "hit"),
    (reduce.CumSum.backward, "grad[back].cumsum(axis=axis)[back]", "grad.cumsum(axis=axis)"),
    (reduce.LogSumExp.forward, "+ top", ""),
    (reduce.LogSumExp.backward, "x - y", "x"),
    (reduce.Softmax.forward, "p.sum(axis=axis", "p.sum(axis=-1"),
    (reduce.Softmax.backward, "(grad * p).sum", "grad.sum"),
    (reduce.Softmax.backward, "- (grad * p).sum(axis=axis, keepdims=True)", ""),
    (reduce.LogSoftmax.backward, "array_module(y).exp(y) *", ""),
    (shape.Permute.backward, "inverse[axis] = k", "inverse[k] = axis"),
    (shape.Concatenate.backward, "ends[:-1]", "sizes[:-1]"),
    (index.GetItem.backward, "xp.add.at(dx, key, grad)", "dx[key] = grad"),
    (index.GetItem.backward, "xp.add.at(dx, key, grad)", "dx[key] += grad"),
    (index.Gather.backward, "xp.add.at(dx, tuple(where), grad)", "dx[tuple(where)] = grad"),
    (MatMul.backward, "grad @ b.swapaxes(-1, -2)", "grad @ b"),
    (MatMul.backward, "a.swapaxes(-1, -2) @ grad", "a @ grad"),
    (Einsum.backward, "*terms[i + 1:]", ""),
    (Einsum.backward, "ones(x)", "x"),
    (Einsum.backward, "(output, grad), ", ""),
    (fused.CrossEntropy.forward, "sum().astype(logits.dtype)", "sum().astype(logits.dtype) + logits.dtype.type(1)"),
    (fused.CrossEntropy.forward, "(labels != IGNORE_LABEL).sum()", "np.int64(len(labels))"),
    (fused.CrossEntropy.forward, "if mean else logits.dtype.type(1)", ""),
    (fused.CrossEntropy.forward, "labels != IGNORE_LABEL", "labels != 0"),
    (fused.CrossEntropy.backward, "grad / count", "grad"),
    (fused.LinearCrossEntropy.backward, "if array_module(grad) is not np or grad != 1:", "if False:"),
    (fused.LinearCrossEntropy.backward, "dx * grad, dweight * grad", "dx * grad, dweight"),
    (fused.Rope.backward, "-sin", "sin"),
    (numpy_fused.linear, "weight.T", "weight[::-1].T"),
    (numpy_fused.linear_backward, "matmul(dy.T", "matmul(dy[::-1].T"),
    (numpy_fused.cross_entropy, "labels != IGNORE_LABEL", "labels != 0"),
    (numpy_fused.cross_entropy, "xp.where(counts, xp.log(total) - right, 0)", "(xp.log(total) - right)"),
    (numpy_fused.cross_entropy_backward, "-= scale", "-= 0"),
    (numpy_fused.cross_entropy_backward, "xp.where(counts, scale, 0)", "xp.where(counts, scale, scale)"),
    (numpy_fused.cross_entropy_backward, "xp.where(counts, scale, 0)", "xp.where(counts, 1, 0)"),
    (numpy_fused.cross_entropy_backward, "scale / total", "scale"),
    (numpy_fused.cross_entropy_backward, "labels != IGNORE_LABEL", "labels != 0"),
    (numpy_fused.linear_cross_entropy, "return loss * x.dtype.type(scale)", "return loss"),
    (numpy_fused.linear_cross_entropy, "cross_entropy_backward(scale,", "cross_entropy_backward(1,"),
    (numpy_fused.linear_cross_entropy, "dz.T @ x[rows]", "dz[::-1].T @ x[rows]"),
    (numpy_fused.rms_norm, "mean_product(x, x) + x.dtype.type(eps)", "mean_product(x, x)"),
    (numpy_fused.rms_norm, "y *= gain", "pass"),
    (numpy_fused.rms_norm_backward, "dx -= normed", "pass"),
    (numpy_fused.rms_norm_backward, "mean_product(dx, normed)", "mean_product(dy, normed)"),
    (numpy_fused.rms_norm_backward, "dx = dy * gain", "dx = dy * 1"),
    (numpy_fused.rms_norm_backward, "(dy * normed)", "(dy * x)"),
    (numpy_fused.rms_norm_backward, ".sum(axis=0)", ".mean(axis=0)"),
    (numpy_fused.swiglu, "y += 1", "pass"),
    (numpy_fused.swiglu_backward, "db = dy * silu", "db = dy * s"),
    (numpy_fused.swiglu_backward, "da += s", "pass"),
    (numpy_fused.swiglu_backward, "da = 1 - s", "da = 1 + s"),
    (numpy_fused.rope, "[-sin, sin]", "[sin, -sin]"),
    (numpy_fused.rope, "[cos, cos]", "[cos, sin]"),
    (numpy_fused.rope, "x.shape[-1] // 2", "1"),
    (numpy_fused.attention, "q * (1 / math.sqrt(q.shape[-1]))", "q * 1"),
    (numpy_fused.attention, "out /= total", "pass"),
    (numpy_fused.attention, "e += causal_mask(*e.shape[-2:], e)", "pass"),
    (numpy_fused.causal_mask, "(keys - queries)", "(keys - queries) + 1"),
    (numpy_fused.causal_mask, "(keys - queries)", "(keys - queries) - 1"),
    (numpy_fused.causal_mask, "(keys - queries)", "0"),
    (numpy_fused.attention_backward, "g / total", "g"),
    (numpy_fused.attention_backward, "ds *= root", "pass"),
    (numpy_fused.attention_backward, "ds *= e", "pass"),
    (numpy_fused.attention_backward, "(ds @ q).sum(axis=2)", "(ds @ q)[:, :, 0]"),
    (numpy_fused.attention_backward, "(e @ g).sum(axis=2)", "(e @ g).mean(axis=2)"),
    (numpy_fused.attention_backward, '"...td,...td->...t", g, out', '"...td,...td->...t", 0 * g, out'),
    (numpy_fused.grouped, "kv_heads, x.shape[1] // kv_heads, *x.shape[2:])", "x.shape[1] // kv_heads, kv_heads, *x.shape[2:]).swapaxes(1, 2)"),
    (numpy_fused.embedding_backward, "xp.add.at(dweight, ids, dy)", "dweight[ids] = dy"),
    (numpy_fused.embedding_backward, "xp.add.at(dweight, ids, dy)", "dweight[ids] += dy"),
]
USERS = {  # a function -> the ops that it is in
    "linear": ["Linear"], "cross_entropy": ["CrossEntropy"], "linear_cross_entropy": ["LinearCrossEntropy"], "rms_norm": ["RMSNorm"],
    "swiglu": ["SwiGLU"], "rope": ["Rope"], "attention": ["Attention"], "causal_mask": ["Attention"], "grouped": ["Attention"],
    "embedding": ["Embedding"],
}


def op_mutant_checks(function):
    owner = function.__qualname__.split(".")[0]
    return op_checks(*USERS.get(owner.removesuffix("_backward"), [owner]))


SEVERAL_SLICES = within("numpy", [ops_tests.test_linear_cross_entropy_over_several_slices])
OVERFLOW = [partial(ops_tests.test_large_inputs_do_not_overflow, op) for op in (ops_tests.ops.softmax, ops_tests.ops.log_softmax)]
MUTANTS = [(f, old, new, partial(op_mutant_checks, f)) for f, old, new in OP_MUTANTS] + [
    (f, old, new, lambda checks=checks: checks) for f, old, new, checks in [
        (elementwise.halved, "grad / 2", "grad", [ops_tests.test_maximum_splits_a_tie]),
        (reduce.Extremum.backward, "/ hit.sum(axis=axis, keepdims=True, dtype=grad.dtype)", "", [ops_tests.test_max_splits_a_tie]),
        (reduce.Softmax.forward, "x - largest(x, axis)", "x", OVERFLOW),
        (reduce.LogSoftmax.forward, "x - largest(x, axis)", "x + 0", OVERFLOW),
        *((composed.cross_entropy, old, new, [partial(check_value, case) for case in ("cross_entropy none", "cross_entropy smoothed")])
          for old, new in [("(1 - label_smoothing)", "1"), ("losses = ops.where(kept, losses, 0.0)", "pass"), ("kept.sum()", "kept.size"),
                           ("log_p.mean(-1) * label", "log_p.sum(-1) * label"), ('if reduction == "none"', "if False")]),
        (reduce.var, "max(n - correction, 0)", "max(n, 0)", [partial(check_value, "var")]),
        (reduce.var, "// builtins.max(m.size, 1)", "", [partial(check_value, "var")]),
        *((f, old, new, ops_tests.check_masks()) for f, old, new in [
            (elementwise.unless, "where(mask, grad.dtype.type(0), grad)", "multiply(~mask, grad)"),
            (elementwise.Abs.backward, "unless(x == 0, array_module(x).where(x < 0, -grad, grad))", "grad * array_module(x).sign(x)"),
            (elementwise.relu, "x <= 0", "x < 0"),
            (elementwise.Power.backward, "if p else", "if True else"),
            (elementwise.PowerOf.backward, "unless(b == 0, ", "("),
            (elementwise.PowerOf.backward, "unless(zero, ", "("),
            (reduce.std, "where(v == 0, 1.0, v)", "v"),
            (elementwise.clip, "x < low", "x <= low"),
        ]),
        *((f, old, new, ops_tests.check_small()) for f, old, new in [
            (elementwise.Div.backward, "(a / b / b)", "a / (b * b)"),
            (elementwise.logistic, "xp.where(x < 0, e, e.dtype.type(1)) / (1 + e)", "0.5 * (1 + xp.tanh(0.5 * x))"),
            (elementwise.logistic, "-1.0 * xp.absolute(x)", "-x"),
        ]),
        (numpy_fused.cross_entropy, "logits.max(axis=1)", "0 * logits.max(axis=1)", within("numpy", [partial(ops_tests.test_cross_entropy_survives_large_logits, "numpy")])),
        (numpy_fused.attention, "e -= e.max(axis=-2, keepdims=True)", "pass", within("numpy", [partial(ops_tests.test_attention_survives_large_scores, "numpy")])),
        (numpy_fused.linear_cross_entropy, "dweight += dz.T", "dweight[:] = dz.T", SEVERAL_SLICES),
        (numpy_fused.linear_cross_entropy, "loss = loss + part", "loss = part", SEVERAL_SLICES),
        (numpy_fused.linear_cross_entropy, "slice(n, n + step)", "slice(0, step)", SEVERAL_SLICES),
    ]
]

ENGINE_MUTANTS = [
    (tensor.walk_back, "gradients[parent] + g if parent in gradients else g", "g"),
    (tensor.walk_back, "gradients[parent] + g if parent in gradients", "gradients[parent].__iadd__(g) if parent in gradients"),
    (tensor.walk_back, "if waiting[parent] == 0:", "if True:"),
    (tensor.walk_back, "waiting[parent] -= 1", "waiting[parent] -= g is not None"),
    (tensor.walk_back, "if grad is not None else [None] * len(node.parents)", ""),
    (tensor.count_uses, "uses[parent] += 1", "uses[parent] = 1"),
    (tensor.count_uses, "if parent not in seen:", "if True:"),
    (tensor.walk_back, "grad if node in fresh else grad.copy()", "grad"),
    (tensor.walk_back, "g.base is None and", ""),
    (tensor.walk_back, "g is not grad and", ""),
    (tensor.walk_back, "sum(g is other for other in pulled) == 1", "True"),
    (tensor.Tensor.accumulate, "self.grad + gradient", "gradient"),
    (tensor.Tensor.accumulate, "for hook in self._hooks:", "for hook in ():"),
    (tensor.Tensor.backward, "if self.size != 1:", "if False:"),
    (tensor.Node.pull, "self.saved = self.rebuilt = None", "pass"),
    (tensor.Node.let_go, "makers.get(id(value), value)", "value"),
    (tensor.Node.output, "if self.rebuilt is None:", "if True:"),
    (tensor.Node.pull, "if len(gradients) != len(self.parents):", "if False:"),
    (tensor.Node._checked, "if gradient.shape != shape or gradient.dtype != dtype:", "if gradient.dtype != dtype:"),
    (tensor.Node._checked, "if gradient.shape != shape or gradient.dtype != dtype:", "if gradient.shape != shape:"),
    (tensor.Node._checked, "gradient = unbroadcast(gradient, shape)", "pass"),
    (tensor.unbroadcast, "gradient.sum(axis=axes, keepdims=True)", "gradient.mean(axis=axes, keepdims=True)"),
    (tensor.unbroadcast, "(*range(lead), *", "tuple("),
    (tensor.unbroadcast, "if n == 1 !=", "if 1 !="),
    (tensor.recording.__wrapped__, "finally:", "except ZeroDivisionError:"),
]
MUTANTS += [(f, old, new, engine_checks) for f, old, new in ENGINE_MUTANTS]

PRODUCT_MUTANTS = [
    (numpy_backend.dense, "(scale * B) @ A", "B @ A"),
    (numpy_backend.dense, "add_sparse(W, values, support)", "add_sparse(W, scale * values, support)"),
    (numpy_backend.dense, "add_sparse(W, values, support)", "pass"),
    (numpy_backend.materialised_forward, ".T", "[::-1].T"),
    (numpy_backend.materialised_backward, "dB *= scale", "pass"),
    (numpy_backend.materialised_backward, "dA *= scale", "pass"),
    (numpy_backend.materialised_backward, "[support.index]", "[support.index] * scale"),
    (numpy_backend.materialised_backward, "dW.reshape(-1)", "dW.T.reshape(-1)"),
    (numpy_backend.materialised_backward, "dW = dy.T @ x", "dW = dy.T @ x / len(x)"),
    (numpy_backend.factored_forward, "scale * B", "B"),
    (numpy_backend.factored_backward, "x @ A.T if xA is None else xA", "x @ A.T if xA is None else 2 * xA"),
    (numpy_backend.factored_forward, "y += spmm(x, values, support, False)", "pass"),
    (numpy_backend.factored_forward, "spmm(x, values, support, False)", "spmm(x, scale * values, support, False)"),
    (numpy_backend.factored_backward, "dyB *= scale", "pass"),
    (numpy_backend.factored_backward, "dB *= scale", "pass"),
    (numpy_backend.factored_backward, "dx += spmm(dy, values, support, True)", "pass"),
    (numpy_backend.scatter_add, "W.copy()", "W"),
    (numpy_backend.add_sparse, "array_module(W).add.at(flat, support.index, values)", "flat[support.index] += values"),
    (numpy_backend.add_sparse, "flat[support.index] += values", "flat[support.index] = values"),
    (numpy_backend.spmm, "values[order]", "values"),
    (numpy_backend.spmm, "support.csc if transpose else support.csr", "support.csr"),
    (numpy_backend.sddmm, "x[:, cols[k:k + step]])", "x[:, cols[k:k + step]]) / len(x)"),
    (numpy_backend.sddmm, "rows, cols = array_module(x), support.rows, support.cols", "rows, cols = array_module(x), support.rows, support.csr[1]"),
    (numpy_backend.sddmm, "cols[k:k + step]", "cols[:step]"),
    (reference.dense, "scale * B", "B"),
    (reference.scatter_add, "W[i, j] += value", "W[i, j] = value"),
    (reference.spmm, "(support.cols, support.rows) if transpose else (support.rows, support.cols)", "(support.rows, support.cols)"),
    (reference.sddmm, "+=", "="),
    (reference.materialised_backward, "dA[q, j] += scale *", "dA[q, j] +="),
    (reference.factored_backward, "product(dy.T, product(x, A.T))", "product(dy.T, product(x, A.T)) * scale"),
    (Support.rows.fget, "// self.shape[1]", "// self.shape[0]"),
    (Support.cols.fget, "% self.shape[1]", "% self.shape[0]"),
    (Support.unique.func, "== len(self.index)", ">= 0"),
    (Support.csr.func, "self.cols[order]", "self.cols"),
    (Support.csr.func, "self.rows[order]", "self.rows"),
    (Support.__init__, "bool((index[1:] >= index[:-1]).all())", "True"),
    (Support.csr.func, "self.index.argsort(kind=\"stable\")", "self.cols.argsort()"),
    (Support.csc.func, "xp.stack([self.rows, self.cols])", "xp.stack([self.cols, self.rows])"),
    (Support.csc.func, "self.cols[order]", "self.cols"),
    (starts, "arange(n + 1", "arange(1, n + 2"),
]
MUTANTS += [(f, old, new, product_checks) for f, old, new in PRODUCT_MUTANTS]


def layer_checks():
    gradients = [partial(check_layer_gradient, learned_scale=learned) for learned in (False, True)]
    return within("numpy", [check_support, check_start, *gradients, check_low_rank, check_full])


LAYER_MUTANTS = [
    (sltrain.sample_support, "np.sort(rng.choice(size, nnz, replace=False, shuffle=False))", "rng.permutation(size)[:nnz]"),
    (sltrain.sample_support, "replace=False", "replace=True"),
    (sltrain.sample_support, "int(delta * size)", "int(delta * size) + 1"),
    (sltrain.sample_support, "int(delta * size)", "int(delta * out_features)"),
    (sltrain.sample_support, "size = out_features * in_features", "size = out_features * out_features"),
    (sltrain.sample_support, "rng.choice(size", "np.random.default_rng(0).choice(size"),
    (sltrain.SLLinear.__init__, "init.constant(rng, (out_features, rank), 0, dtype)", "init.uniform(rng, (out_features, rank), bound, dtype)"),
    (sltrain.SLLinear.__init__, "init.uniform(rng, len(self.sparse_index), bound, dtype)",
     "init.constant(rng, len(self.sparse_index), 0, dtype)"),
    (sltrain.SLLinear.__init__, "in_features**-0.5", "out_features**-0.5"),
    (sltrain.SLLinear.__init__, "alpha / rank", "alpha"),
    (sltrain.SLLinear.__init__, "alpha / rank", "alpha / rank**0.5"),
    (sltrain.SLLinear.forward, "ops.tanh(self.scaling)", "self.scaling"),
    (sltrain.SLLinear.forward, "B * ops.tanh(self.scaling), 1.0", "B * ops.tanh(self.scaling), s"),
    (sltrain.SLLinear.to_dense, "s * self.lora_B.data", "self.lora_B.data"),
    (sltrain.SLProduct.backward, "grad, x, B, A, v, support, s", "grad, x, B, A, v, support, 1.0"),
    (sltrain.SLProduct.forward, "forward(x, B, A, v, support, s", "forward(x, B, A, v, support, 1.0"),
    (low_rank.LowRankLinear.__init__, "alpha / rank", "alpha"),
    (low_rank.LowRankLinear.__init__, "init.uniform(rng, (out_features, rank), rank**-0.5, dtype)",
     "init.constant(rng, (out_features, rank), 0, dtype)"),
    (low_rank.LowRankLinear.forward, "* self.scale", "* 1.0"),
    (full.linear, "std=0.02", "std=0.2"),
    (full.linear, "Linear(in_features, out_features", "Linear(out_features, in_features"),
    (Linear.__init__, "(out_features, in_features), std", "(out_features, in_features), 1.0"),
]
MUTANTS += [(f, old, new, layer_checks) for f, old, new in LAYER_MUTANTS]

OPTIM_MUTANTS = [
    (numpy_fused.adamw, "denominator /= math.sqrt(1 - b2**t)", "pass"),
    (numpy_fused.adamw, "lr / (1 - b1**t)", "lr"),
    (numpy_fused.adamw, "denominator /= math.sqrt(1 - b2**t)\n    denominator += eps", "denominator += eps\n    denominator /= math.sqrt(1 - b2**t)"),
    (numpy_fused.adamw, "denominator = xp.sqrt(v)", "denominator = xp.sqrt(v + eps)"),
    (numpy_fused.adamw, "p *= 1 - lr * weight_decay", "p *= 1 - weight_decay"),
    (numpy_fused.adamw, "(b1, b2), xp = betas, array_module(p)", "(b1, b2), xp, g = betas, array_module(p), g + weight_decay * p"),
    (numpy_fused.adamw, "m += (1 - b1) * g", "m += g"),
    (numpy_fused.adamw, "v += (1 - b2) * (g * g)", "v += (1 - b2) * abs(g)"),
    (numpy_fused.adamw, "v *= b2", "v *= b1"),
    (numpy_fused.adamw, "if weight_decay:", "if False:"),
    (adamw.Adam.update, "self.step += 1", "self.step += 2"),
    (adamw.Adam.update, "self.exp_avg, self.exp_avg_sq", "self.exp_avg_sq, self.exp_avg"),
    (optimizer.Optimizer.step, "if p.grad is not None:", "if True:"),
    (optimizer.Optimizer.made, "= self.weight_decay", "= 0"),
    (optimizer.Rule.load_state_dict, "type(value)(state[name])", "value"),
    (optimizer.Rule.load_state_dict, "array_module(value).array(state[name], dtype=value.dtype)", "value"),
    (clip.clip_grad_norm, "max_norm / norm if norm > max_norm else None", "max_norm / norm"),
    (clip.clip_grad_norm, "max_norm / norm if", "1 / norm if"),
    (clip.clip_grad_norm, "return norm", "return max_norm"),
    (clip.grad_norm, "math.sqrt(", "("),
    (numpy_fused.square_sum, "vdot(a, a)", "sum(a)"),
]
MUTANTS += [(f, old, new, lambda: within("numpy", [check_adamw, check_adamw_state, check_clip])) for f, old, new in OPTIM_MUTANTS]


def adam8bit_checks():
    rng = np.random.default_rng(0)
    tests = [adam8bit_tests.test_the_published_map, adam8bit_tests.test_between_two_numbers_it_is_the_lower,
             adam8bit_tests.test_what_is_below_zero_stays_below,
             adam8bit_tests.test_zeros_are_the_code_of_zero, adam8bit_tests.test_nearly_adamw]
    return (tests + [partial(adam8bit_tests.test_nearest_in_each_block, (3, 400), table, rng) for table in adam8bit_tests.TABLES]
            + [partial(adam8bit_tests.test_update, (3, 200), t, order, rng) for t in (1, 7) for order in "CF"])


ADAM8BIT_MUTANTS = [
    (numpy_fused.dynamic_map, "i + (not signed)", "i + 1"),
    (numpy_fused.dynamic_map, "10.0 ** (i - 6)", "10.0 ** (i - 7)"),
    (numpy_fused.dynamic_map, "(edges[:-1] + edges[1:]) / 2", "edges[1:]"),
    (numpy_fused.dynamic_map, "[means, -means] if signed else [means]", "[means]"),
    (numpy_fused.dynamic_map, "[0.0, 1.0]", "[0.0, -1.0]"),
    (numpy_fused.decoded, "table[codes] * ", ""),
    (numpy_fused.decoded, "tops.repeat(BLOCK)", "np.tile(tops, BLOCK)"),
    (numpy_fused.encode, "abs(blocks).max(axis=1)", "blocks.max(axis=1)"),
    (numpy_fused.encode, "blocks /= xp.where(tops > 0, tops, 1)[:, None]", "pass"),
    (numpy_fused.encode, "xp.where(tops > 0, tops, 1)[:, None]", "tops.max()"),
    (numpy_fused.encode, "<= table[high] - blocks", "< table[high] - blocks"),
    (numpy_fused.encode, "nearest = high - lower", "nearest = high"),
    (numpy_fused.encode, " | ((blocks < 0) & (table[high] == 0))", ""),
    (numpy_fused.encode, ".clip(1, len(table) - 1)", ""),
    (numpy_fused.adam8bit, "decoded(v, v_top, tables[1])", "decoded(v, v_top, tables[0])"),
    (numpy_fused.adam8bit, "encode(v_now, v, v_top, tables[1])", "encode(v_now, v, v_top, tables[0])"),
    (numpy_fused.adam8bit, "    encode(m_now, m, m_top, tables[0])\n", ""),
    (numpy_fused.adam8bit, "(1 - b2) * (g * g)", "(1 - b2) * abs(g)"),
    (numpy_fused.adam8bit, "lr / (1 - b1**t)", "lr"),
    (numpy_fused.adam8bit, "xp.sqrt(v_now) / math.sqrt(1 - b2**t) + eps", "xp.sqrt(v_now) + eps"),
    (numpy_fused.adam8bit, "    p *= 1 - lr * weight_decay\n", ""),
    (numpy_fused.adam8bit, "(xp.sqrt(v_now)", "(xp.sqrt(v_now + eps)"),
]
MUTANTS += [(f, old, new, adam8bit_checks) for f, old, new in ADAM8BIT_MUTANTS]


def data_checks():
    """The tests of splitting, tokens, batches and the reported loss that need no long text."""
    def in_a_folder(test):
        with tempfile.TemporaryDirectory() as folder:
            test(Path(folder))

    folders = [data_tests.test_every_20th_document_is_held_out_and_none_is_in_both,
               data_tests.test_single_file_is_split_at_a_line_near_95_percent,
               data_tests.test_single_file_without_a_line_there_is_split_near_95_percent_too,
               data_tests.test_each_of_a_few_files_gives_some_of_its_end]
    return [partial(in_a_folder, test) for test in folders] + [
        data_tests.test_labels_are_the_inputs_shifted_by_one, data_tests.test_epochs_and_seeds_have_different_orders,
        data_tests.test_batch_k_does_not_depend_on_what_was_asked_before,
        *(partial(data_tests.test_each_epoch_visits_each_sequence_exactly_once, n, k) for n, k in ((61, 6), (60, 5), (11, 1))),
        *(partial(data_tests.test_validation_predicts_each_token_but_the_first_exactly_once, n, b) for n in (5, 11, 21) for b in (1, 3)),
        partial(data_tests.test_end_stands_before_each_document_and_nowhere_else, make_tokenizer("bpe", ["some text"] * 30, 270)),
        *(partial(evaluate_tests.test_loss_is_the_mean_over_tokens, b) for b in (1, 2)), parts_on_threads]


def parts_on_threads():
    with kernels.using("numpy"):
        parallel_tests.test_parts_equal_the_whole(2, False, "numpy")
        parallel_tests.test_gradients_of_several_batches_add_up("numpy")
        parallel_tests.test_hooks_are_called_once_with_the_whole_gradient(3)


DATA_MUTANTS = [
    (corpora.load_corpus, "documents[HOLD_OUT - 1 :: HOLD_OUT]", "documents[::HOLD_OUT]"),
    (corpora.load_corpus, "if i % HOLD_OUT != HOLD_OUT - 1", ""),
    (corpora.load_corpus, "train = [d[:c]", "train = [d[:]"),
    (corpora.load_corpus, "whole(d[c:])", "whole(d)"),
    (corpora.cut, "low = end - len(document) // HOLD_OUT", "low = 0"),
    (tokenizers.Tokenizer.marked, "yield np.array([self.end], dtype)", "pass"),
    (tokenizers.Tokenizer.marked, "if n == begun", "if n + 1 == begun"),
    (batches.Batches.__call__, "rows[:, 1:]", "rows[:, :-1]"),
    (batches.Batches.__call__, "self.order(n // self.sequences)", "self.order(0)"),
    (batches.Batches.__call__, "k * self.batch_size", "k"),
    (batches.Batches._order, '"data", epoch', '"data"'),
    (batches.Batches._order, "self.seed, ", "0, "),
    (batches.Batches._order, "permutation(self.sequences)", "integers(0, self.sequences, self.sequences)"),
    (batches.Batches.__init__, "(len(tokens) - 1) // seq_len", "len(tokens) // seq_len"),
    (batches.validation_batches, "tokens[:-1], tokens[1:]", "tokens[1:], tokens[1:]"),
    (batches.validation_batches, "np.full(rows * seq_len, IGNORE_LABEL, np.int64)", "np.zeros(rows * seq_len, np.int64)"),
    (batches.validation_batches, "-(-(len(tokens) - 1) // seq_len)", "(len(tokens) - 1) // seq_len"),
    (evaluate.evaluate, "mark_nats, count = 0.0, 0.0, 0", "mark_nats, count = 0.0, 0.0, 1"),
    (evaluate.evaluate, "count += int((labels != IGNORE_LABEL).sum())", "count += labels.size"),
    (evaluate.evaluate, 'reduction="sum"', 'reduction="mean"'),
    (evaluate.evaluate, "(nats - mark_nats)", "nats"),
    (evaluate.evaluate, "/ math.log(2)", ""),
    (evaluate.evaluate, "/ math.log(2) / n_bytes", "/ math.log(2) / count"),
    (parallel.Workers.backward, "leaf.accumulate(in_order(found.pop(leaf)))", "leaf.grad = in_order(found.pop(leaf))"),
    (parallel.Workers.backward, "if len(of_parts) == n:", "if len(of_parts) == 1:"),
    (parallel.Workers.backward, "return sum(losses)", "return sum(losses) / n"),
]
MUTANTS += [(f, old, new, data_checks) for f, old, new in DATA_MUTANTS]


def shared_out():
    parallel.state.alone = False  # however a mutant has left it
    with threadpool_limits(2):
        check_sharing_out()


def check_sharing_out():
    parallel_tests.test_blas_runs_on_one_thread_within_each_and_on_as_many_as_before_after_it(False)
    parallel_tests.test_each_covers_everything_once_in_pieces_that_threads_do_not_decide(600, 7, 2)
    parallel_tests.test_each_within_each()
    parallel_tests.test_what_the_caller_has_set_holds_in_every_piece()
    parallel_tests.test_nothing_is_kept_alive_by_threads_that_wait()
    parallel_tests.test_each_uses_that_many_threads(2)
    parallel_tests.test_using_threads_is_over_after_its_block()
    parallel_tests.test_an_error_in_a_piece_is_raised_after_all_have_stopped(2, 5)


PARALLEL_MUTANTS = [
    (parallel.each, "min(begin + grain, n)", "begin + grain"),
    (parallel.each, "range(0, max(n, 1), grain)", "range(0, max(n, 1) - grain, grain)"),
    (parallel.each, "return work(0, n)", "return work(0, n - 1)"),
    (parallel.using_threads.__wrapped__, "limit.reset(token)", "pass"),
    (parallel.attempt, "return error", "return None"),
    (parallel.Crew.run, "for error in filter(None, errors):", "for error in ():"),
    (parallel.Crew.run, "(copy_context(), ", "(type(copy_context())(), "),
    (parallel.Crew.run, "state.alone = False", "state.alone = True"),
    (parallel.BlasThreads.give_back, "self.set(self.before)", "pass"),
    (parallel.BlasThreads.take, "self.set([1] * len(self.libraries))", "pass"),
    (parallel.BlasThreads.take, "if not self.users:", "if True:"),
]
MUTANTS += [(f, old, new, lambda: [shared_out]) for f, old, new in PARALLEL_MUTANTS]


def choice_checks():
    known = [partial(choice_tests.test_cost_counts_the_work, *case) for case in choice_tests.COSTS]
    arrays = [partial(choice_tests.test_arrays_that_numpy_alone_takes, array, "auto") for array in choice_tests.OTHERS]
    return [*known, *arrays, choice_tests.test_auto_takes_the_cheaper_algorithm_of_the_backend, choice_tests.test_numpy_and_reference_in_use,
            choice_tests.test_auto_counts_inputs_and_outputs_apart,
            choice_tests.test_built_in_constants_without_a_calibration, partial(choice_tests.test_backend_given_by_name_wins, "auto")]


CHOICE_MUTANTS = [
    (kernels.using.__wrapped__, "in_use.reset(token)", "pass"),
    (kernels.using.__wrapped__, "in_use.set(backend)", "in_use.set('auto')"),
    (kernels.load, 'in_use.get() if backend == "auto" else backend', "in_use.get()"),
    (kernels.resolve, "return min(", "return max("),
    (kernels.resolve, "*support.shape[::-1], len(A)", "*support.shape, len(A)"),
    (kernels.resolve, 'if algorithm != "auto":', "if False:"),
    (cost.features, "6 * n + 8 * r", "6 * n"),
    (cost.features, "6 * n * r * (width + out)", "6 * n * r * width"),
    (cost.features, "6 * n * nnz", "6 * nnz"),
    (cost.features, "5 * n * (width + out)", "5 * n * (width + 2 * out)"),
    (cost.features, '"w": width * out', '"w": width'),
    (cost.constants, "CONSTANTS[backend] | calibration().get(backend, {})", "calibration().get(backend, {}) | CONSTANTS[backend]"),
    (cost.constants, "CONSTANTS[backend] | ", ""),
]
MUTANTS += [(f, old, new, choice_checks) for f, old, new in CHOICE_MUTANTS]


# The cpu backend, each function by the cases of its op: Python that shares work out, then Numba kernels, compiled anew for each change.


def cpu_checks(*ops):
    return [partial(check, name) for check in (check_same, check_bits) for name in backend_checks.CASES
            if not set(ops).isdisjoint(name.split()) and (check is check_same or name in SHARED_OUT)]


SHARED_OUT = ("rms_norm 600 40", "embedding 600 50 40", "product 1100 48 33 factored", "sparse 1100 48 33")
CPU_USERS = {
    "matmul": ["linear"], "linear": ["linear"], "cross_entropy": ["cross_entropy", "linear_cross_entropy"], "turned": ["rope"],
    "groups": ["attention"], "blocks": ["attention"], "by_group": ["attention"], "softmax_block": ["attention"],
    "whole": ["swiglu", "embedding"], "largest": ["cross_entropy"], "dense": ["materialised"], "in_order": ["rms_norm", "factored"],
    "by_row": ["sparse"], "by_column": ["sparse"], "spmm": ["sparse"], "sddmm": ["sparse"], "turn_in": ["sparse"], "turn_out": ["factored"],
    "encode": ["adam8bit"], "magnitude": ["adam8bit"], "spmm_tile": ["sparse"], "sddmm_tile": ["sparse"], "spmm_add": ["sparse"], "sddmm_add": ["sparse"], "backward_add": ["factored"],
    "factored_few": ["factored"], "spmm_few": ["factored"],
}


def cpu_mutant_checks(function):
    name = function.__name__.removesuffix("_backward").removesuffix("_forward")
    return cpu_checks(*CPU_USERS.get(name, [name]))


def cpu_mutants():
    from minisl.kernels.cpu import fused, product, rows, sparse

    return [
        (fused.matmul, "a[begin:end], b", "a[end - 1:begin - 1:-1] if begin else a[:end], b"),
        (fused.matmul, "len(a), even", "len(a) - 1, even"),
        (fused.matmul, "out=out[begin:end]", "out=out[:end - begin]"),
        (fused.linear_backward, "if need_dx else None", ""),
        (fused.linear_backward, "matmul(dy.T, x)", "matmul(dy[::-1].T, x)"),
        (fused.cross_entropy, "losses.sum()", "losses[:-1].sum()"),
        (fused.cross_entropy_backward, 'np.array(logits, order="C")', "logits"),
        (fused.linear_cross_entropy, "first=n == 0", "first=True"),
        (fused.linear_cross_entropy, "first=n == 0", "first=False"),
        (fused.linear_cross_entropy, "range(0, max(len(x), 1), step)", "range(0, min(len(x), step), step)"),
        (fused.linear_cross_entropy, "range(0, max(len(x), 1), step)", "range(0, len(x), step)"),
        (fused.linear_cross_entropy, "losses.sum() * scale", "losses.sum()"),
        (fused.linear_cross_entropy, "shares.append((begin, z[:, begin:end] @ weight[begin:end]))", "shares[:] = [(begin, z[:, begin:end] @ weight[begin:end])]"),
        (fused.linear_cross_entropy, "in_order(shares, 1)", "shares[0][1]"),
        (fused.linear_cross_entropy, "dweight[begin:end] +=", "dweight[begin:end] ="),
        (fused.linear_cross_entropy, "labels=labels[here]", "labels=labels"),
        (fused.linear_cross_entropy, "each(gradient, m)", "each(gradient, m - 1)"),
        (fused.rms_norm, "x.dtype.type(eps)", "x.dtype.type(0)"),
        (fused.rms_norm_backward, "dgain = np.zeros", "dgain = np.empty"),
        (fused.rms_norm_backward, "shares.append((begin, dgain))", "shares[:] = [(begin, dgain)]"),
        (fused.swiglu, "a.size, a.size,", "a.size - 1, a.size,"),
        (fused.swiglu_backward, "(da.reshape(-1), db.reshape(-1))", "(db.reshape(-1), da.reshape(-1))"),
        (fused.rope, "plain(x.swapaxes(1, 2))", "plain(x)"),
        (fused.turned, "x.shape[2] if x.ndim == 4 else 1", "1"),
        (fused.attention, "1 / math.sqrt(d)", "1 / d"),
        (fused.attention, "Tk - Tq", "0"),
        (fused.attention, "g.start * H // G, g.stop * H // G", "g.start, g.stop"),
        (fused.attention, "(s, root, i, offset, L)", "(s, root, 0, offset, L)"),
        (fused.attention, "whole(heads, B * G,", "whole(heads, B * G - 1,"),
        (fused.blocks, "range(0, queries, QUERIES)", "range(0, min(queries, QUERIES), QUERIES)"),
        (fused.groups, "slice(g, stop)", "slice(0, stop - g)"),
        (fused.by_group, "g.stop - g.start, len(a) // (g.stop - g.start), *a.shape[1:])", "len(a) // (g.stop - g.start), g.stop - g.start, *a.shape[1:]).swapaxes(0, 1)"),
        (fused.attention_backward, "1 / math.sqrt(d)", "1"),
        (fused.attention_backward, "Tk - Tq", "0"),
        (fused.attention_backward, 'np.einsum("ghtd,ghtd->ght", dO, O)', '0 * np.einsum("ghtd,ghtd->ght", dO, O)'),
        (fused.attention_backward, "np.zeros((B, Tk, G, d), q.dtype)", "np.empty((B, Tk, G, d), q.dtype)"),
        (fused.attention_backward, "dk[b, g, :keys] +=", "dk[b, g, :keys] ="),
        (fused.attention_backward, "dv[b, g, :keys] +=", "dv[b, g, :keys] ="),
        (fused.attention_backward, "(ds.swapaxes(-1, -2) @ Q[here]).sum(axis=1)", "(ds.swapaxes(-1, -2) @ Q[here])[:, 0]"),
        (fused.attention_backward, "(s.swapaxes(-1, -2) @ dO[here]).sum(axis=1)", "(s.swapaxes(-1, -2) @ dO[here])[:, -1]"),
        (fused.attention_backward, "whole(heads, B * G,", "whole(heads, G,"),
        (fused.embedding_backward, "np.zeros((vocab", "np.empty((vocab"),
        (fused.embedding_backward, "dy.shape[1], dy.size", "dy.shape[1] - 1, dy.size"),
        (fused.adamw, "a.flags.carray for", "True for"),
        (fused.adamw, "lr / (1 - b1**t)", "lr"),
        (fused.adamw, "1 / math.sqrt(1 - b2**t)", "1"),
        (fused.adamw, "1 - lr * weight_decay", "1 - weight_decay"),
        (fused.adamw, "1 - b1, 1 - b2,", "1 - b2, 1 - b1,"),
        (fused.adamw, "p.size, p.size)", "p.size - 1, p.size)"),
        (fused.adam8bit, "a.flags.carray for", "True for"),
        (fused.adam8bit, "1 - b1, 1 - b2,", "1 - b2, 1 - b1,"),
        (fused.adam8bit, "lr / (1 - b1**t)", "lr"),
        (fused.adam8bit, "math.sqrt(1 - b2**t)", "1"),
        (fused.adam8bit, "1 - lr * weight_decay", "1 - weight_decay"),
        (fused.adam8bit, "np.float32(b1), np.float32(b2)", "np.float32(b2), np.float32(b1)"),
        (fused.adam8bit, "whole(blocks, len(m_top)", "whole(blocks, len(m_top) - 1"),
        (fused.square_sum, "range(0, len(a), block)", "range(0, min(len(a), block), block)"),
        (fused.square_sum, "range(begin, end)", "range(begin, end - 1)"),
        (fused.square_sum, "min(len(a), i + block)", "len(a)"),
        (fused.whole, "work(0, n)", "work(0, n - 1)"),
        (fused.whole, "each(work, n, grain)", "each(work, n - 1, grain)"),
        (product.dense, "scaled(B, scale)", "scaled(B, 1)"),
        (product.dense, "values, support)", "scale * values, support)"),
        (product.dense, "numpy_backend.add_sparse(W, values, support)", "pass"),
        (product.materialised_backward, "scaled(A.T, scale)", "A.T"),
        (product.materialised_backward, "scaled(B.T, scale)", "B.T"),
        (product.materialised_backward, "[support.index]", "[support.index[::-1]]"),
        (product.factored_forward, "scaled(B.T, scale)", "scaled(B.T, 1)"),
        (product.factored_forward, "sparse.spmm_add(x, *entries, t, here.stop, xt, yt, y)", "pass"),
        (product.factored_forward, "range(begin, end, CHUNK)", "range(begin, begin + 1, CHUNK)"),
        (product.factored_forward, "each(tokens, len(x),", "each(tokens, len(x) - 1,"),
        (product.factored_forward, "t, here.stop, xt", "begin, here.stop, xt"),
        (product.factored_few, "scaled(xA, scale)", "xA"),
        (product.factored_few, "*by_row(support, values)", "*by_row(support, scale * values)"),
        (sparse.spmm_few, "dot = y[t, i]", "dot = 0 * y[t, i]"),
        (sparse.spmm_few, "range(len(x))", "range(1)"),
        (sparse.spmm_few, "len(starts) - 1", "len(starts) - 2"),
        (sparse.spmm_few, "x[t, columns[k]]", "x[0, columns[k]]"),
        (sparse.spmm_few, "range(starts[i], starts[i + 1])", "range(starts[i], starts[i + 1] - 1)"),
        (product.factored_backward, "range(begin, end, CHUNK)", "range(begin, begin + 1, CHUNK)"),
        (product.factored_backward, "scaled(B, scale)", "scaled(B, 1)"),
        (product.factored_backward, "dB *= dB.dtype.type(scale)", "pass"),
        (product.factored_backward, "dA += ", "dA[:] = "),
        (product.factored_backward, "dB += ", "dB[:] = "),
        (product.factored_backward, "np.zeros(shape, x.dtype)", "np.empty(shape, x.dtype)"),
        (product.factored_backward, "dvalues[order] = by_rows", "dvalues[:] = by_rows"),
        (product.factored_backward, "*transposed, t, here.stop", "*transposed, begin, here.stop"),
        (product.factored_backward, "linear(x, A) if xA is None else xA", "linear(x, A) if xA is None else 2 * xA"),
        (fused.in_order, "for other in others:", "for other in ():"),
        (fused.in_order, "sorted(shares, key=lambda share: share[0])", "shares"),
        (product.by_row, "values[order]", "values"),
        (product.by_column, "values[order]", "values"),
        (product.spmm, "np.zeros((len(x), out), x.dtype)", "np.empty((len(x), out), x.dtype)"),
        (product.spmm, "len(x))\n", "len(x) - 1)\n"),
        (product.sddmm, "np.zeros(len(support), x.dtype)", "np.empty(len(support), x.dtype)"),
        (product.sddmm, "dvalues[order] = by_rows", "dvalues[:] = by_rows"),
        (rows.largest, "if z[i] > top", "if z[i] < top"),
        (rows.largest, "larger(lanes, load(z, i, 0))", "load(z, i, 0)"),
        (rows.largest, "range(whole, len(z))", "range(whole, len(z) - 1)"),
        (rows.largest, "top = highest(lanes)", "pass"),
        (rows.cross_entropy, "range(len(z))", "range(len(z) - 1)"),
        (rows.cross_entropy, "np.log(total)", "total"),
        (rows.cross_entropy, "if labels[n] != IGNORE_LABEL else 0", "if labels[n] != IGNORE_LABEL else top"),
        (rows.cross_entropy, "total += exp", "total = exp"),
        (rows.cross_entropy_backward, "z[n] = 0\n", "pass\n"),
        (rows.cross_entropy_backward, "share * exp", "exp"),
        (rows.cross_entropy_backward, "row[labels[n]] -= scale", "row[labels[n]] -= 1"),
        (rows.cross_entropy_backward, "range(len(row))", "range(1, len(row))"),
        (rows.rms_norm, "squares / x.dtype.type(x.shape[1])", "squares"),
        (rows.rms_norm, " + eps", ""),
        (rows.rms_norm, " * gain[i]", ""),
        (rows.rms_norm, "range(x.shape[1]):\n                y", "range(x.shape[1] - 1):\n                y"),
        (rows.rms_norm_backward, "mean /= x.dtype.type(x.shape[1])", "pass"),
        (rows.rms_norm_backward, "dgain[i] +=", "dgain[i] ="),
        (rows.rms_norm_backward, "normed = x[n, i] * scale", "normed = x[n, i]"),
        (rows.rms_norm_backward, " - normed * mean", ""),
        (rows.swiglu, "exp(-a[i])", "exp(a[i])"),
        (rows.swiglu, "range(len(a))", "range(len(a) - 1)"),
        (rows.swiglu_backward, "(one + a[i] * (one - s))", "(one + a[i] * s)"),
        (rows.swiglu_backward, "dy[i] * a[i] * s", "dy[i] * s"),
        (rows.rope, "- x[n, i + half]", "+ x[n, i + half]"),
        (rows.rope, "a * c - b * s", "a * c + b * s"),
        (rows.rope, "n // heads % positions", "n % positions"),
        (rows.rope, "range(whole, half)", "range(whole, half - 1)"),
        (rows.rope, "range(0, whole, LANES)", "range(LANES, whole, LANES)"),
        (rows.softmax_block, "first + i + offset + 1", "first + i + offset + 2"),
        (rows.softmax_block, "first + i + offset + 1", "i + offset + 1"),
        (rows.softmax_block, "row[j] *= share", "pass"),
        (rows.softmax_block, "s[seen:] = 0", "pass"),
        (rows.softmax_block, "top * root + np.log(total)", "top + np.log(total)"),
        (rows.softmax_block, "(row[j] - top) * root", "row[j] - top"),
        (rows.softmax_block, "range(scores.shape[1])", "range(1)"),
        (rows.softmax_block_backward, "p[j] * root - shift", "p[j] - shift"),
        (rows.softmax_block_backward, "(d[j] - mean) * root", "(d[j] - mean)"),
        (rows.softmax_block_backward, "(d[j] - mean)", "d[j]"),
        (rows.softmax_block_backward, "ds[seen:] = 0", "pass"),
        (rows.softmax_block_backward, "\n                s[seen:] = 0", ""),
        (rows.softmax_block_backward, "first + i + offset + 1", "i + offset + 1"),
        (rows.embedding_backward, "row[i] += g[i]", "row[i] = g[i]"),
        (rows.embedding_backward, "dy[n, begin:end]", "dy[n, :end - begin]"),
        (rows.embedding_backward, "range(len(ids))", "range(len(ids) - 1)"),
        (rows.adamw, "c2 * g[i] * g[i]", "c2 * g[i]"),
        (rows.adamw, "b1 * m[i] + c1", "m[i] + c1"),
        (rows.adamw, "root2 + eps", "root2"),
        (rows.adamw, "np.sqrt(v[i]) * root2 + eps", "(np.sqrt(v[i]) + eps) * root2"),
        (rows.adamw, "decay * p[i]", "p[i]"),
        (rows.adam8bit, "min(k * BLOCK + BLOCK, len(p))", "k * BLOCK + BLOCK - 1"),
        (rows.adam8bit, "m_now[i] = b1 * (signed[mk[i]] * m_was)", "m_now[i] = b1 * signed[mk[i]]"),
        (rows.adam8bit, "unsigned[vk[i]]", "signed[vk[i]]"),
        (rows.adam8bit, "c2 * (gk[i] * gk[i])", "c2 * abs(gk[i])"),
        (rows.adam8bit, "pk[i] * decay", "pk[i]"),
        (rows.adam8bit, "np.sqrt(v_now[i]) / root + eps", "(np.sqrt(v_now[i]) + eps) / root"),
        (rows.adam8bit, "encode(v_now[: len(pk)], vk, unsigned, below)", "encode(v_now[: len(pk)], vk, signed, below)"),
        (rows.encode, "if top > 0 else x.dtype.type(1)", ""),
        (rows.encode, "16, 8, 4, 2, 1)", "16, 8, 4, 2)"),
        (rows.encode, "ahead[below[i]] >= x[i]", "ahead[below[i]] < x[i]"),
        (rows.encode, "low if lower else high", "high"),
        (rows.encode, " or (x[i] < 0 and table[high] == 0)", ""),
        (rows.magnitude, "0x7FFFFFFF", "-1"),
        (rows.magnitude, "bits if bits > top", "bits if bits < top"),
        (rows.square_sum, "range(len(a))", "range(len(a) - 1)"),
        (rows.square_sum, "np.float64(a[i]) * np.float64(a[i])", "abs(np.float64(a[i]))"),
        (sparse.turn_in, "range(0, TILE, LANES)", "range(0, TILE - LANES, LANES)"),
        (sparse.turn_in, "transpose(x, t + lo, j, xt, j, lo)", "transpose(x, t, j, xt, j, lo)"),
        (sparse.turn_in, "range(whole, width)", "range(whole, width - 1)"),
        (sparse.turn_in, "else x.dtype.type(0)", "else x.dtype.type(1)"),
        (sparse.turn_in, "xt[j, lo] = x[t + lo, j]", "xt[j, lo] = x[t, j]"),
        (sparse.turn_out, "transpose_add(yt, i, lo, y, t + lo, i)", "transpose_add(yt, i, 0, y, t + lo, i)"),
        (sparse.turn_out, "y[t + lo, i] += yt[i, lo]", "y[t + lo, i] = yt[i, lo]"),
        (sparse.turn_out, "range(whole, width)", "range(whole, width - 1)"),
        (sparse.turn_out, "range(min(TILE, end - t))", "range(min(TILE, end - t) - 1)"),
        (sparse.turn_out, "range(0, whole, LANES)", "range(0, whole - LANES, LANES)"),
        (sparse.spmm_tile, "for i in range(len(starts) - 1):\n        y0, y1, y2, y3 = zero, zero, zero, zero",
         "y0, y1, y2, y3 = zero, zero, zero, zero\n    for i in range(len(starts) - 1):"),
        (sparse.spmm_tile, "load(xt, j, 16)", "load(xt, j, 0)"),
        (sparse.spmm_tile, "load(xt, j, 48), y3", "load(xt, j, 48), y2"),
        (sparse.spmm_tile, "store(yt, i, 48, y3)", "store(yt, i, 48, y2)"),
        (sparse.spmm_tile, "len(starts) - 1", "len(starts) - 2"),
        (sparse.spmm_tile, "range(starts[i], starts[i + 1])", "range(starts[i], starts[i + 1] - 1)"),
        (sparse.spmm_tile, "splat(values[k])", "splat(values[starts[i]])"),
        (sparse.sddmm_tile, "dvalues[k] += total", "dvalues[k] = total"),
        (sparse.sddmm_tile, "load(dyt, i, 48)", "load(dyt, i, 32)"),
        (sparse.sddmm_tile, "g2 * load(xt, j, 32)", "g2 * load(xt, j, 0)"),
        (sparse.sddmm_tile, "total(a + b)", "total(a)"),
        (sparse.sddmm_tile, "len(starts) - 1", "len(starts) - 2"),
        (sparse.spmm_add, "range(begin, end, TILE)", "range(begin, begin + 1, TILE)"),
        (sparse.spmm_add, "turn_in(x, t, end, xt)", "turn_in(x, begin, end, xt)"),
        (sparse.sddmm_add, "turn_in(x, t, end, xt)", "turn_in(x, begin, end, xt)"),
        (sparse.sddmm_add, "range(begin, end, TILE)", "range(begin, end - TILE, TILE)"),
        (sparse.backward_add, "turn_out(dxt, dx, t, end)", "pass"),
        (sparse.backward_add, "turn_in(x, t, end, xt)", "turn_in(x, begin, end, xt)"),
        (sparse.backward_add, "range(begin, end, TILE)", "range(begin, begin + 1, TILE)"),
    ]


CPU = [(f, old, new, partial(cpu_mutant_checks, f)) for f, old, new in cpu_mutants()] + [
    (kernels.load, "array.dtype not in (np.float32, np.float64)", "False", choice_checks),
    (kernels.load, "not on_host or", "", choice_checks),
] if kernels.numba_status()[0] else []


def title_of(mutant):
    return title(*mutant[:3])


@pytest.mark.parametrize("mutant", MUTANTS, ids=title_of)
def test_one_change(mutant, killed):
    function, old, new, checks = mutant
    with mutated(function, old, new):
        killed[title(*mutant[:3])] = rejected(checks())
    assert killed[title(*mutant[:3])]
    assert not rejected(checks()), "restored, the shipped tests pass again"


@pytest.mark.skipif(not CPU, reason=kernels.numba_status()[1])
@pytest.mark.parametrize("mutant", CPU, ids=title_of)
def test_one_change_of_the_cpu_backend(mutant, killed):
    test_one_change(mutant, killed)
