"""One SLTrain layer on a GPU, forward and backward, beside the dense layer it replaces and the public algorithm in PyTorch."""

from contextlib import contextmanager

from minisl import kernels
from minisl.backend import matmul, matmul_precision
from minisl.bench.cuda.gpu import TIME_IS_UP, Found
from minisl.bench.cuda.question import lazily
from minisl.bench.cuda.table import Table, ms, ratio, why
from minisl.bench.layer import torch_layer
from minisl.config import read_config
from minisl.kernels import Support
from minisl.methods.sltrain import sample_support

TOKENS, SCALE = 65536, 0.25
MODELS = {"60m": (128, 0.03), "1b": (512, 0.03), "7b": (1024, 0.05)}  # rank and density, as the paper trains them
ALGORITHMS = ("materialised", "factored", "fused")
DENSE, PUBLIC, TORCH_DENSE = "cuBLAS dense", "PyTorch, public algorithm", "PyTorch dense"


def shapes():
    """(model, in, out, r, delta): a square matrix and the longest of each model"""
    for model, (r, delta) in MODELS.items():
        config = read_config(model)
        D, F = config["hidden_size"], config["intermediate_size"]
        yield from ((model, D, out, r, delta) for out in (D, F))


class Problem:
    """The operands of one layer, on the GPU: for as many of TOKENS tokens as fit."""

    def __init__(self, gpu, model, width, out, r, delta):
        self.model, self.width, self.out, self.r, self.delta = model, width, out, r, delta
        self.tokens = gpu.tokens_that_fit(TOKENS, 4 * 6 * (width + out))
        index = sample_support(out, width, delta, gpu.rng)
        self.support, self.nnz = Support(gpu.xp.asarray(index), (out, width)), len(index)
        self.x, self.dy = gpu.draw(self.tokens, width), gpu.draw(self.tokens, out)
        self.B, self.A, self.v, self.W = gpu.draw(out, r), gpu.draw(r, width), gpu.draw(self.nnz), gpu.draw(out, width)
        self.parameters = self.B, self.A, self.v, self.support, SCALE

    def sizes(self):
        return {"model": self.model, "in": self.width, "out": self.out, "r": self.r, "delta": self.delta, "nnz": self.nnz}


def operations(algorithm, n, width, out, r, nnz):
    """Multiplications and additions, forward and backward; "dense" has neither factors nor S."""
    if algorithm == "factored":
        return 6 * n * (r * (width + out) + nnz)
    return 6 * n * width * out + (0 if algorithm == "dense" else 8 * r * width * out)


def candidates(gpu, p, precision):
    """name -> call(n), n tokens, forward and backward"""
    def layer(algorithm):
        def run(n):
            x, dy = p.x[:n], p.dy[:n]
            _, xA = kernels.sl_linear_forward(x, *p.parameters, algorithm=algorithm, backend="cuda")
            kernels.sl_linear_backward(dy, x, *p.parameters, xA, algorithm=algorithm, backend="cuda")
        return run

    def dense(n):
        x, dy = p.x[:n], p.dy[:n]
        matmul(x, p.W.T)
        matmul(dy, p.W)
        matmul(dy.T, x)

    found = {a: layer(a) for a in ALGORITHMS if a != "fused" or precision == "float32"} | {DENSE: dense}
    if gpu.torch:
        found |= {name: lazily(peer, gpu, p, name, torch_dtype(gpu.torch, precision)) for name in (PUBLIC, TORCH_DENSE)}
    return found


def peer(gpu, p, name, dtype):
    """call(n) of a layer in PyTorch"""
    from minisl.bench import torch_peer

    layer = (torch_peer.dense(gpu.tensor(p.W)) if name == TORCH_DENSE else
             torch_peer.SparseLowRank(*(gpu.tensor(a) for a in (p.B, p.A, p.v, p.support.index)), SCALE)).to(dtype)
    x, dy = gpu.tensor(p.x).to(dtype), gpu.tensor(p.dy).to(dtype)
    return lambda n: torch_layer(layer, x[:n], dy[:n])()


def torch_dtype(torch, precision):
    """What PyTorch holds its numbers in: for bf16 all of them, as the public code does."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def bench(gpu, machine, say):
    """Rows of milliseconds, one per shape, precision and candidate."""
    rows = []
    table = Table(say, f"SLTrain layer, forward + backward, {TOKENS:,} tokens, milliseconds", "model", "in, out, r",
                  "products in", "tokens", *ALGORITHMS, DENSE, PUBLIC, TORCH_DENSE, "auto takes", "of public", "of cuBLAS dense",
                  "TFLOP/s", "of ceiling")
    for shape in shapes():
        label, whole = (shape[0], ", ".join(map(str, shape[1:4]))), Found(failed=TIME_IS_UP if gpu.over else "")
        if not whole.failed:
            with gpu.noting(whole):
                p = Problem(gpu, *shape)
                for precision in gpu.precisions():
                    measure(gpu, machine, p, precision, label, rows, table)
            p = None
            gpu.free()
        if whole.failed:
            rows.append(dict(zip(("model", "in", "out", "r"), shape)) | {"failed": whole.failed})
            table.row(*label, why(whole), *[""] * 13)
    say()
    say("auto takes: what `--algorithm auto` chooses, which the last four columns are about. In bf16 minisl keeps float32 and "
        "rounds what it multiplies; PyTorch holds everything in bf16, as the public code does. The fused kernels multiply in "
        "float32 only.")
    return rows


def measure(gpu, machine, p, precision, label, rows, table):
    with matmul_precision(precision, gpu.xp), torch_precision(gpu.torch, precision):
        found = gpu.measure(candidates(gpu, p, precision), p.tokens, least=128)
        auto = kernels.resolve("auto", p.tokens, p.support, p.A, kernels.of(p.x))
    for name, one in found.items():
        rows.append(p.sizes() | {"precision": precision, "what": name, "auto": name == auto} | one.row())
        if one.timing:
            algorithm = "dense" if "dense" in name else name if name in ALGORITHMS else "materialised"
            rate = operations(algorithm, p.tokens, p.width, p.out, p.r, p.nnz) / one.seconds
            rows[-1] |= {"rate": rate, "of_peak": rate / machine[precision]}
    mine, reached = found[auto], next(r for r in rows[::-1] if r["what"] == auto)
    table.row(*label, precision, f"{p.tokens:,}", *(ms(found.get(a)) for a in (*ALGORITHMS, DENSE)),
              *(ms(found[name]) if gpu.torch else gpu.no_torch for name in (PUBLIC, TORCH_DENSE)), auto,
              ratio(mine, found.get(PUBLIC)), ratio(mine, found[DENSE]),
              *(f"{reached['rate'] / 1e12:.1f}", f"{reached['of_peak']:.0%}") if mine.timing else ("", ""))


@contextmanager
def torch_precision(torch, precision):
    """Within this block PyTorch multiplies float32 as asked. torch: None where there is none."""
    if torch is None:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
