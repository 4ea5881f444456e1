"""The shipped tests reject every implementation listed here. Each is a mistake that people make."""

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from kernel_checks import RUNS, SUPPORTS, check_product, check_sparse, check_views
from method_checks import check_full, check_layer_gradient, check_low_rank, check_start, check_support
from mutation import load, mutated, patched, rejected
from op_cases import CASES, check_composed, check_float32, check_gradient, check_value
from optim_checks import check_adamw, check_adamw_state, check_clip, check_schedule

from minisl import evaluate, parallel
from minisl.autograd import Function, Tensor, tensor
from minisl.autograd.ops import elementwise, fused, index, reduce, shape
from minisl.autograd.ops.matmul import MatMul
from minisl.data import batches, corpora, make_tokenizer, tokenizers
from minisl.kernels import Support, numpy_backend, reference
from minisl.methods import full, low_rank, sltrain
from minisl.nn import Linear
from minisl.optim import adamw, clip, schedules

engine, ops_tests = (load(f"{p}.py") for p in ("autograd/test_engine", "autograd/test_ops"))
data_tests, evaluate_tests, parallel_tests = (load(f"{p}.py") for p in ("data/test_data", "test_evaluate", "test_parallel"))


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


CASES_OF = {}
for _name in CASES:
    for _op in ops_in(_name):
        CASES_OF.setdefault(_op, []).append(_name)
OPS = [op for op in Function.__subclasses__() if op.__module__.startswith("minisl.autograd.ops")]


def op_checks(op):
    return [partial(check, name) for name in CASES_OF[op] for check in (check_value, check_gradient, check_float32)
            ] + [partial(check_composed, name) for name in CASES_OF[op] if CASES[name].composed]


def product_checks():
    return [partial(check_product, s, *run) for s in SUPPORTS for run in RUNS] + [
        partial(check_sparse, s, b) for s in SUPPORTS for b in ("reference", "numpy")] + [partial(check_views, s) for s in SUPPORTS]


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
        killed[f"{op.__name__}: {mistake}"] = rejected(op_checks(op))
    assert killed[f"{op.__name__}: {mistake}"]


# function, what is there, what is put in its place
OP_MUTANTS = [
    (elementwise.Mul.backward, "grad * b, grad * a", "grad * a, grad * b"),
    (elementwise.Div.backward, "/ (b * b)", "/ b"),
    (elementwise.Div.backward, "grad / b,", "grad * b,"),
    (elementwise.Maximum.backward, "(a > b)", "(a < b)"),
    (elementwise.Where.backward, "~mask", "mask"),
    (elementwise.Power.backward, "x ** (p - 1)", "x ** p"),
    (elementwise.Power.backward, "grad * p *", "grad *"),
    (elementwise.Log.backward, "grad / x", "grad * x"),
    (elementwise.Sqrt.backward, "0.5 * grad", "grad"),
    (elementwise.Rsqrt.backward, "y * y * y", "y * y"),
    (elementwise.Tanh.backward, "y * y", "y"),
    (elementwise.Sigmoid.backward, "(1 - y)", "(1 + y)"),
    (elementwise.SiLU.backward, "(1 + x * (1 - s))", "(1 + x * s)"),
    (elementwise.SiLU.backward, "(1 + x * (1 - s))", "1"),
    (reduce.Mean.backward, "grad / n", "grad"),
    (reduce.Mean.forward, "x.size // y.size", "x.size"),
    (reduce.Max.backward, "/ hit.sum(axis=axis, keepdims=True)", "/ x.dtype.type(2)"),
    (reduce.Softmax.forward, "p.sum(axis=axis", "p.sum(axis=-1"),
    (reduce.Softmax.backward, "(grad * p).sum", "grad.sum"),
    (reduce.Softmax.backward, "- (grad * p).sum(axis=axis, keepdims=True)", ""),
    (reduce.LogSoftmax.backward, "array_module(y).exp(y) *", ""),
    (shape.Permute.backward, "inverse[axis] = k", "inverse[k] = axis"),
    (shape.Concatenate.backward, "ends[:-1]", "sizes[:-1]"),
    (index.GetItem.backward, "xp.add.at(dx, key, grad)", "dx[key] = grad"),
    (index.GetItem.backward, "xp.add.at(dx, key, grad)", "dx[key] += grad"),
    (index.Gather.backward, "xp.add.at(dx, tuple(where), grad)", "dx[tuple(where)] = grad"),
    (index.Embedding.backward, "xp.add.at(dw, ids.reshape(-1), grad.reshape(-1, shape[1]))", "dw[ids] = grad"),
    (index.Embedding.backward, "xp.add.at(dw, ids.reshape(-1), grad.reshape(-1, shape[1]))", "dw[ids] += grad"),
    (MatMul.backward, "grad @ b.swapaxes(-1, -2)", "grad @ b"),
    (MatMul.backward, "a.swapaxes(-1, -2) @ grad", "a @ grad"),
    (fused.Linear.forward, "weight.T", "weight[::-1].T"),
    (fused.Linear.backward, "dy.T @ x", "dy[::-1].T @ x"),
    (fused.CrossEntropy.forward, "len(rows) if mean else 1", "len(rows) + 1 if mean else 1"),
    (fused.CrossEntropy.forward, "len(rows) if mean else 1", "len(labels) if mean else 1"),
    (fused.CrossEntropy.forward, "len(rows) if mean else 1", "len(rows)"),
    (fused.CrossEntropy.forward, "labels != IGNORE_LABEL", "labels != 0"),
    (fused.CrossEntropy.backward, "dz[rows, labels] -= 1", "pass"),
    (fused.CrossEntropy.backward, "grad / count", "grad"),
    (fused.CrossEntropy.backward, "if len(rows) < len(dz):", "if False:"),
    (fused.RMSNorm.forward, "+ x.dtype.type(eps)", ""),
    (fused.RMSNorm.forward, "y *= gain", "pass"),
    (fused.RMSNorm.backward, "dx -= normed", "pass"),
    (fused.RMSNorm.backward, "mean_product(dx, normed)", "mean_product(grad, normed)"),
    (fused.RMSNorm.backward, "dx = grad * gain", "dx = grad * 1"),
    (fused.RMSNorm.backward, "(grad * normed)", "(grad * x)"),
    (fused.RMSNorm.backward, ".sum(axis=0)", ".mean(axis=0)"),
    (fused.SwiGLU.forward, "y += 1", "pass"),
    (fused.SwiGLU.backward, "db = grad * silu", "db = grad * s"),
    (fused.SwiGLU.backward, "da += s", "pass"),
    (fused.SwiGLU.backward, "da = 1 - s", "da = 1 + s"),
    (fused.Rope.backward, "-sin", "sin"),
    (fused.rotate, "[-sin, sin]", "[sin, -sin]"),
    (fused.rotate, "[cos, cos]", "[cos, sin]"),
    (fused.rotate, "x.shape[-1] // 2", "1"),
    (fused.Attention.forward, "q * root", "q * 1"),
    (fused.Attention.forward, "out /= total", "pass"),
    (fused.Attention.forward, "e += causal_mask(*e.shape[-2:], e)", "pass"),
    (fused.causal_mask, "(keys - queries)", "(keys - queries) + 1"),
    (fused.causal_mask, "(keys - queries)", "(keys - queries) - 1"),
    (fused.causal_mask, "(keys - queries)", "0"),
    (fused.Attention.backward, "/ total", ""),
    (fused.Attention.backward, "dq *= root", "pass"),
    (fused.Attention.backward, "ds *= e", "pass"),
    (fused.Attention.backward, "(ds @ q).sum(axis=2)", "(ds @ q)[:, :, 0]"),
    (fused.Attention.backward, "(e @ g).sum(axis=2)", "(e @ g).mean(axis=2)"),
    (fused.Attention.backward, '"...td,...td->...t", g, out', '"...td,...td->...t", 0 * g, out'),
    (fused.grouped, "kv_heads, -1, *x.shape[2:])", "-1, kv_heads, *x.shape[2:]).swapaxes(1, 2)"),
]


def op_mutant_checks(function):
    owner = function.__qualname__.split(".")[0]
    users = {"rotate": "Rope", "causal_mask": "Attention", "grouped": "Attention"}
    return op_checks(next(op for op in OPS if op.__name__ == users.get(owner, owner)))


OVERFLOW = [partial(ops_tests.test_large_inputs_do_not_overflow, op) for op in (ops_tests.ops.softmax, ops_tests.ops.log_softmax)]
MUTANTS = [(f, old, new, partial(op_mutant_checks, f)) for f, old, new in OP_MUTANTS] + [
    (f, old, new, lambda checks=checks: checks) for f, old, new, checks in [
        (elementwise.Maximum.backward, "0.5 *", "1.0 *", [ops_tests.test_maximum_splits_a_tie]),
        (reduce.Max.backward, "/ hit.sum(axis=axis, keepdims=True)", "", [ops_tests.test_max_splits_a_tie]),
        (reduce.Softmax.forward, "x - x.max(axis=axis, keepdims=True)", "x", OVERFLOW),
        (reduce.LogSoftmax.forward, "x - x.max(axis=axis, keepdims=True)", "x + 0", OVERFLOW),
        (fused.CrossEntropy.forward, "logits.max(axis=1)", "0 * logits.max(axis=1)", [ops_tests.test_cross_entropy_survives_large_logits]),
        (fused.Attention.forward, "e -= e.max(axis=-2, keepdims=True)", "pass", [ops_tests.test_attention_survives_large_scores]),
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
    (tensor.Tensor.accumulate, "gradient.copy()", "gradient"),
    (tensor.Tensor.accumulate, "self.grad + gradient", "gradient"),
    (tensor.Tensor.accumulate, "for hook in self._hooks:", "for hook in ():"),
    (tensor.Tensor.backward, "if self.size != 1:", "if False:"),
    (tensor.Node.pull, "self.saved = None", "pass"),
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
    (numpy_backend.factored_forward, "xA *= scale", "pass"),
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
    (numpy_backend.sddmm, "dy[:, rows], x[:, cols]", "dy[:, rows], x[:, cols] / len(x)"),
    (numpy_backend.sddmm, "rows, cols = support.rows[k:k + step], support.cols[k:k + step]", "rows, cols = support.csr[1] * 0, support.csr[1]"),
    (reference.dense, "scale * B", "B"),
    (reference.scatter_add, "support.cols[k]] += values[k]", "support.cols[k]] = values[k]"),
    (reference.spmm, "(support.cols, support.rows) if transpose else (support.rows, support.cols)", "(support.rows, support.cols)"),
    (reference.sddmm, "+=", "="),
    (reference.materialised_backward, "dA[q, j] += scale *", "dA[q, j] +="),
    (reference.factored_backward, "product(dy.T, product(x, A.T))", "product(dy.T, product(x, A.T)) * scale"),
    (Support.rows.func, "// self.shape[1]", "// self.shape[0]"),
    (Support.cols.func, "% self.shape[1]", "% self.shape[0]"),
    (Support.unique.func, "== len(self.index)", ">= 0"),
    (Support.csr.func, "self.cols[order]", "self.cols"),
    (Support.csr.func, "self.index.argsort(kind=\"stable\")", "self.cols.argsort()"),
    (Support.csc.func, "xp.stack([self.rows, self.cols])", "xp.stack([self.cols, self.rows])"),
    (Support._starts, "starts[1:]", "starts[:-1]"),
]
MUTANTS += [(f, old, new, product_checks) for f, old, new in PRODUCT_MUTANTS]


def layer_checks():
    gradients = [partial(check_layer_gradient, learned_scale=learned) for learned in (False, True)]
    return [check_support, check_start, *gradients, check_low_rank, check_full]


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
    (sltrain.SLProduct.forward, "kernels.sl_linear(x, B, A, v, support, s", "kernels.sl_linear(x, B, A, v, support, 1.0"),
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
    (adamw.AdamW.update, "denominator /= math.sqrt(1 - b2**t)", "pass"),
    (adamw.AdamW.update, "self.lr / (1 - b1**t)", "self.lr"),
    (adamw.AdamW.update, "self.steps[name] + 1", "self.steps[name] + 2"),
    (adamw.AdamW.update, "denominator /= math.sqrt(1 - b2**t)\n    denominator += self.eps",
     "denominator += self.eps\n    denominator /= math.sqrt(1 - b2**t)"),
    (adamw.AdamW.update, "denominator = xp.sqrt(v)", "denominator = xp.sqrt(v + self.eps)"),
    (adamw.AdamW.update, "p.data *= 1 - self.lr * self.weight_decay", "p.data *= 1 - self.weight_decay"),
    (adamw.AdamW.update, "g, xp = self.betas, p.grad,", "g, xp = self.betas, p.grad + self.weight_decay * p.data,"),
    (adamw.AdamW.update, "m += (1 - b1) * g", "m += g"),
    (adamw.AdamW.update, "v += (1 - b2) * (g * g)", "v += (1 - b2) * abs(g)"),
    (adamw.AdamW.update, "v *= b2", "v *= b1"),
    (adamw.AdamW.update, "if self.weight_decay:", "if False:"),
    (adamw.AdamW.step, "if p.grad is not None:", "if True:"),
    (adamw.AdamW.load_state_dict, '| moments["step"]', ""),
    (adamw.AdamW.load_state_dict, 'moments["exp_avg"], moments["exp_avg_sq"]\n', 'moments["exp_avg_sq"], moments["exp_avg"]\n'),
    (schedules.learning_rate, "if step < warmup:", "if False:"),
    (schedules.learning_rate, "peak * step / warmup", "peak * (step - 1) / warmup"),
    (schedules.learning_rate, "(step - warmup) / max(1, steps - warmup)", "step / steps"),
    (schedules.learning_rate, "(step - warmup) / max(1, steps - warmup)", "(step - 1 - warmup) / max(1, steps - warmup)"),
    (schedules.learning_rate, "(min_ratio + (1 - min_ratio) * (1 + math.cos(math.pi * progress)) / 2)",
     "(1 + math.cos(math.pi * progress)) / 2"),
    (schedules.learning_rate, "math.pi * progress", "math.pi * progress / 2"),
    (schedules.learning_rate, "(1 - (1 - min_ratio) * progress)", "(1 - progress)"),
    (clip.clip_grad_norm, "if norm > max_norm:", "if True:"),
    (clip.clip_grad_norm, "p.grad *= max_norm / norm", "p.grad *= 1 / norm"),
    (clip.clip_grad_norm, "return norm", "return max_norm"),
    (clip.grad_norm, "math.sqrt(float(", "(float("),
]
MUTANTS += [(f, old, new, lambda: [check_adamw, check_adamw_state, check_schedule, check_clip]) for f, old, new in OPTIM_MUTANTS]


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
    parallel_tests.test_parts_equal_the_whole(2, False)


DATA_MUTANTS = [
    (corpora.load_corpus, "documents[HOLD_OUT - 1 :: HOLD_OUT]", "documents[::HOLD_OUT]"),
    (corpora.load_corpus, "if i % HOLD_OUT != HOLD_OUT - 1", ""),
    (corpora.load_corpus, "train = [d[:c]", "train = [d[:]"),
    (corpora.load_corpus, "validation = [d[c:]", "validation = [d"),
    (corpora.cut, "end - len(document) // HOLD_OUT, end)", "0, end)"),
    (tokenizers.Tokenizer.encode_documents, "parts += [[self.end], encoding.ids]", "parts += [encoding.ids]"),
    (tokenizers.Tokenizer.encode_documents, "parts += [[self.end], encoding.ids]", "parts += [encoding.ids, [self.end]]"),
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
    (evaluate.evaluate, 'xp.asarray(labels), reduction="sum"', 'xp.asarray(labels), reduction="mean"'),
    (evaluate.evaluate, "(nats - mark_nats)", "nats"),
    (evaluate.evaluate, "/ math.log(2)", ""),
    (evaluate.evaluate, "/ math.log(2) / n_bytes", "/ math.log(2) / count"),
    (parallel.Workers.backward, "leaf.accumulate(gradient)", "leaf.grad = gradient"),
    (parallel.Workers.backward, "return sum(losses)", "return sum(losses) / n"),
]
MUTANTS += [(f, old, new, data_checks) for f, old, new in DATA_MUTANTS]


@pytest.mark.parametrize(("function", "old", "new", "checks"), MUTANTS,
                         ids=[f"{f.__qualname__}: {old} -> {new}" for f, old, new, _ in MUTANTS])
def test_one_change(function, old, new, checks, killed):
    name = f"{function.__qualname__}: {old} -> {new}"
    with mutated(function, old, new):
        killed[name] = rejected(checks())
    assert killed[name]
    assert not rejected(checks()), "restored, the shipped tests pass again"
