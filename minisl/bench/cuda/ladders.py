"""Every rung of every ladder on a GPU, at the layers' sizes, beside cuSPARSE, cuBLAS and PyTorch."""

import warnings
from functools import partial

from minisl.backend import matmul
from minisl.bench.cuda import rows as row_ops
from minisl.bench.cuda.gpu import TIME_IS_UP, Found
from minisl.bench.cuda.layer import SCALE, Problem, shapes
from minisl.bench.cuda.question import CUBLAS, CUSPARSE, TORCH, Question, ask, lazily, rungs, tell
from minisl.kernels.cuda import sparse

# What must be moved at least: every operand once, an entry of S as 4 bytes for its place and 4 for its value.

def work(op, n, width, out, r, nnz):
    """(bytes, operations)"""
    activations, factors = 4 * n * (width + out), 4 * r * (width + out)
    return {"scatter_add": (16 * nnz, nnz), "spmm": (activations + 4 * n * out + 8 * nnz, 2 * n * nnz),
            "spmm, transposed": (activations + 4 * n * width + 8 * nnz, 2 * n * nnz),
            "sddmm": (activations + 8 * nnz, 2 * n * nnz),
            "sl_forward": (activations + factors + 8 * nnz, 2 * (n + r) * width * out + nnz),
            "sl_backward": (activations + 4 * n * width + 2 * factors + 12 * nnz, (4 * n + 6 * r) * width * out + nnz)}[op]


def sparse_questions(gpu, shape):
    """Of the products with S, and of the fused ones."""
    p = Problem(gpu, *shape)
    S, v, x, dy, W, V = p.support, p.v, p.x, p.dy, p.W, p.W.copy()  # V is added to
    y, dx = gpu.xp.zeros((p.tokens, p.out), "float32"), gpu.xp.zeros((p.tokens, p.width), "float32")
    calls = {
        "scatter_add": rungs(lambda n: sparse.add_sparse(V, v, S), "scatter_add"),
        "spmm": rungs(lambda n: sparse.add_spmm(y[:n], x[:n], v, S, False), "spmm"),
        "spmm, transposed": rungs(lambda n: sparse.add_spmm(dx[:n], dy[:n], v, S, True), "spmm"),
        "sddmm": rungs(lambda n: sparse.sddmm(dy[:n], x[:n], S), "sddmm"),
        "sl_forward": rungs(lambda n: sparse.fused_forward(x[:n], p.B, p.A, v, S, SCALE), "sl_forward"),
        "sl_backward": rungs(lambda n: sparse.fused_backward(dy[:n], x[:n], p.B, p.A, v, S, SCALE),
                             "sl_backward_dx", "sl_backward_dw")}
    calls["spmm"][CUBLAS] = lambda n: matmul(x[:n], W.T)
    calls["spmm, transposed"][CUBLAS] = lambda n: matmul(dy[:n], W)
    calls["sddmm"][CUBLAS] = lambda n: matmul(dy[:n].T, x[:n]).reshape(-1)[S.index]
    calls["sl_forward"][CUBLAS] = calls["spmm"][CUBLAS]
    calls["sl_backward"][CUBLAS] = lambda n: (matmul(dy[:n], W), matmul(dy[:n].T, x[:n]))
    calls["spmm"][CUSPARSE] = lazily(cusparse_spmm, p, x, y, False)
    calls["spmm, transposed"][CUSPARSE] = lazily(cusparse_spmm, p, dy, dx, True)
    if gpu.torch:
        calls["scatter_add"][TORCH], calls["sddmm"][CUSPARSE] = lazily(torch_scatter_add, gpu, p), lazily(torch_sddmm, gpu, p)
    for op, candidates in calls.items():
        moved, computed = work(op, p.tokens, p.width, p.out, p.r, p.nnz)
        yield Question(op, p.sizes(), p.tokens, candidates, moved, computed, least=None if op == "scatter_add" else 128)


def cusparse_spmm(p, x, y, transposed):
    """y += x S^T, or x S. cuSPARSE takes dense matrices column by column, and so sees ours as x^T and y^T: y^T += S x^T"""
    from cupyx import cusparse
    from cupyx.scipy.sparse import csr_matrix

    order, columns, starts = p.support.csr
    S = csr_matrix((p.v[order], columns, starts), shape=(p.out, p.width))
    return lambda n: cusparse.spmm(S, x[:n].T, y[:n].T, beta=1, transa=transposed)


def torch_scatter_add(gpu, p):
    """As the public algorithm adds S to B A."""
    W, index, v = gpu.tensor(p.W.copy()).view(-1), gpu.tensor(p.support.index).long(), gpu.tensor(p.v)
    return lambda n: W.scatter_add_(0, index, v)


def torch_sddmm(gpu, p):
    """cuSPARSE's SDDMM, which CuPy does not have, by way of PyTorch."""
    _, columns, starts = p.support.csr
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that CSR is a beta feature
        S = gpu.torch.sparse_csr_tensor(gpu.tensor(starts), gpu.tensor(columns), gpu.tensor(gpu.xp.zeros_like(p.v)),
                                        (p.out, p.width), check_invariants=False)
    x, dy = gpu.tensor(p.x), gpu.tensor(p.dy)
    return lambda n: gpu.torch.sparse.sampled_addmm(S, dy[:n].T, x[:n], beta=0.0)


NOTES = {"scatter_add": "PyTorch: `scatter_add_`, as in the public algorithm.",
         "spmm": "cuSPARSE through cupyx, Y += X S^T as ours; cuBLAS: the product with a dense W.",
         "spmm, transposed": "cuSPARSE through cupyx with the transpose of S in CSR; cuBLAS: the product with a dense W.",
         "sddmm": "cuSPARSE through `torch.sparse.sampled_addmm`, as CuPy does not have it; cuBLAS: all of dY^T X, then the "
                  "entries picked, as in the public algorithm.",
         "sl_forward": "cuBLAS: the product with a dense W.",
         "sl_backward": "Both kernels on that rung; cuBLAS: dX and dW of a dense W."}


def bench(gpu, machine, say):
    """Rows of milliseconds, bytes and operations, one per operation, size and candidate."""
    rows, answers = [], {}
    say()
    say("Below, bytes are those that must be moved at least, every operand once, and operations those that must be computed. "
        "GB/s, TFLOP/s and their shares of the ceilings (a copy; cuBLAS in float32) are the last rung's.")
    for source in (*(partial(sparse_questions, gpu, shape) for shape in shapes()), *row_ops.sources(gpu)):
        whole = Found()
        with gpu.noting(whole):
            for question in source():
                if gpu.over:
                    whole.failed = TIME_IS_UP
                    break
                found, more = ask(gpu, machine, question)
                rows += more
                answers.setdefault(question.op, []).append((question, found, more))
        if whole.failed:
            rows.append({"what": "what comes next", "failed": whole.failed})
        gpu.free()
    for op, asked in answers.items():
        tell(say, asked, NOTES.get(op))
    for why in dict.fromkeys(row["failed"] for row in rows if row.get("what") == "what comes next"):
        say()
        say(f"Not all sizes were measured: {why}.")
    return rows
