"""Every fused op beside its NumPy form and PyTorch's, forward and backward, at the sizes of the 60M model."""

import numpy as np

from minisl import optim
from minisl.autograd import Tensor, ops
from minisl.bench.measure import in_turn, torch_or_none
from minisl.kernels import using
from minisl.nn.llama import rope_table
from minisl.nn.module import Parameter

N, D, F, V, B, H, T = 2048, 512, 1376, 32000, 8, 8, 256  # rows, features, ..., and B T = N, H heads of 64


def cases(rng):
    """name -> (function of Tensors, arrays, PyTorch's function, bytes that must move, operations of dense products)"""
    def draw(*shape):
        return rng.standard_normal(shape, np.float32)

    labels, ids = rng.integers(0, V, N), rng.integers(0, V, N)
    cos, sin = (a.astype(np.float32) for a in rope_table(D // H, 1e4, 0, T))
    head = (B, T, H, D // H)
    torch = torch_or_none()
    nn = torch.nn.functional if torch else None
    t = {k: torch.from_numpy(a) for k, a in {"labels": labels, "ids": ids, "cos": cos, "sin": sin}.items()} if torch else {}

    def torch_rope(x):
        from minisl.bench.torch_peer import rotate
        return rotate(x, t["cos"], t["sin"])

    heads = [draw(*head).swapaxes(1, 2) for _ in range(3)]
    return {
        "RMSNorm": (lambda x, g: ops.rms_norm(x, g, 1e-6), [draw(N, D), draw(D)], lambda x, g: nn.rms_norm(x, (D,), g, 1e-6),
                    4 * N * D * 5, 0),
        "SwiGLU": (ops.swiglu, [draw(N, F), draw(N, F)], lambda a, b: nn.silu(a) * b, 4 * N * F * 8, 0),
        "RoPE": (lambda x: ops.rope(x, cos, sin), heads[:1], torch_rope, 4 * N * D * 4, 0),
        "attention": (ops.attention, heads, lambda q, k, v: nn.scaled_dot_product_attention(q, k, v, is_causal=True),
                      4 * N * D * 11, 7 * N * T * D),
        "embedding": (lambda w: ops.embedding(w, ids), [draw(V, D)], lambda w: nn.embedding(t["ids"], w),
                      4 * (V * D + 4 * N * D), 0),
        "cross-entropy": (lambda z: ops.cross_entropy(z, labels), [draw(N, V)], lambda z: nn.cross_entropy(z, t["labels"]),
                          4 * N * V * 3, 0),
        "head and cross-entropy": (lambda x, w: ops.linear_cross_entropy(x, w, labels, 1 / N), [draw(N, D), draw(V, D)],
                                   lambda x, w: nn.cross_entropy(x @ w.T, t["labels"]), 0, 6 * N * D * V),
    }


def ours(function, arrays, backend):
    def run():
        with using(backend):
            out = function(*(Tensor(a, requires_grad=True) for a in arrays))
            out.backward(np.ones_like(out.data))
    return run


def theirs(torch, function, arrays):
    tensors = [torch.from_numpy(a).requires_grad_() for a in arrays]

    def run():
        for tensor in tensors:
            tensor.grad = None
        out = function(*tensors)
        out.backward(torch.ones_like(out))
    return run


def adamw(backend, parameters, gradients):
    parameters = [Parameter(p.copy()) for p in parameters]
    for p, g in zip(parameters, gradients):
        p.grad = g
    optimizer = optim.AdamW([(str(i), p) for i, p in enumerate(parameters)], 1e-3)

    def run():
        with using(backend):
            optimizer.step()
    return run


def torch_adamw(torch, parameters, gradients):
    parameters = [torch.nn.Parameter(torch.tensor(p)) for p in parameters]
    for p, g in zip(parameters, gradients):
        p.grad = torch.from_numpy(g)
    return torch.optim.AdamW(parameters, 1e-3, weight_decay=0.0, fused=True).step


def norm(backend, gradients):
    parameters = [Parameter(g) for g in gradients]
    for p in parameters:
        p.grad = p.data

    def run():
        with using(backend):
            optim.grad_norm(parameters)
    return run


def bench(machine, say):
    torch, rng = torch_or_none(), np.random.default_rng(0)
    everything = {}
    for name, (function, arrays, peer, moved, operations) in cases(rng).items():
        runs = {"minisl": ours(function, arrays, "auto"), "NumPy": ours(function, arrays, "numpy")}
        if torch:
            runs["PyTorch"] = theirs(torch, peer, arrays)
        everything[name] = runs, moved / machine["memory"] + operations / machine["gemm"]
    sizes = [(V, D), (D, D), (F, D)] + [(D,)] * 16
    parameters, gradients = ([rng.standard_normal(s, np.float32) for s in sizes] for _ in range(2))
    count = sum(p.size for p in parameters)
    optimizers = {"minisl": adamw("auto", parameters, gradients), "NumPy": adamw("numpy", parameters, gradients)}
    norms = {"minisl": norm("auto", gradients), "NumPy": norm("numpy", gradients)}
    if torch:
        optimizers["PyTorch"] = torch_adamw(torch, parameters, gradients)
        tensors = [torch.from_numpy(g) for g in gradients]
        norms["PyTorch"] = lambda: torch.nn.utils.get_total_norm(tensors)
    everything["AdamW"] = optimizers, 28 * count / machine["memory"]
    everything["gradient norm"] = norms, 4 * count / machine["memory"]

    rows = []
    say(f"Ops, forward + backward, {N:,} rows, D {D}, F {F}, V {V:,}, {H} heads, {T} positions, float32")
    say("limit: what must be moved and multiplied, at this machine's rates; reached: limit / minisl")
    say(f"  {'':24}{'minisl ms':>10}{'+-':>5}{'NumPy':>10}{'PyTorch':>10}{'of PyTorch':>11}{'limit':>8}{'reached':>9}")
    for name, (runs, limit) in everything.items():
        timings = in_turn(runs, turns=5)
        mine, peer = timings["minisl"], timings.get("PyTorch")
        rows.append({"op": name, **{f"{k}_ms": 1e3 * v.median for k, v in timings.items()}, "limit_ms": 1e3 * limit,
                     "reached": limit / mine.median, "spread": mine.spread})
        torch_columns = f"{1e3 * peer.median:10.2f}{mine.median / peer.median:11.2f}" if peer else f"{'':21}"
        say(f"  {name:24}{1e3 * mine.median:10.2f}{100 * mine.spread:4.0f}%{1e3 * timings['NumPy'].median:10.2f}{torch_columns}"
            f"{1e3 * limit:8.2f}{limit / mine.median:9.0%}")
    return rows
