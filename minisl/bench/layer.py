"""One SLTrain layer, forward and backward, beside the dense layer it replaces and the public algorithm."""

import numpy as np

from minisl import kernels
from minisl.bench.measure import in_turn, torch_or_none
from minisl.kernels import Support
from minisl.methods.sltrain import sample_support

SHAPES = ((512, 512, 128), (512, 1376, 128), (768, 768, 256), (1024, 2736, 256))  # in, out, r
TOKENS, DELTA, SCALE = 4096, 0.03, 0.25


def problem(width, out, r, tokens=TOKENS, delta=DELTA, seed=0):
    """(dy, x, B, A, v, support) in float32"""
    rng = np.random.default_rng(seed)
    index = sample_support(out, width, delta, rng)
    shapes = (tokens, out), (tokens, width), (out, r), (r, width), (len(index),)
    return *(rng.standard_normal(shape, np.float32) for shape in shapes), Support(index, (out, width))


def sl_layer(dy, x, B, A, v, support, algorithm, backend):
    def run():
        _, xA = kernels.sl_linear_forward(x, B, A, v, support, SCALE, algorithm=algorithm, backend=backend)
        kernels.sl_linear_backward(dy, x, B, A, v, support, SCALE, xA, algorithm=algorithm, backend=backend)
    return run


def candidates(width, out, r, tokens=TOKENS, delta=DELTA):
    dy, x, B, A, v, support = data = problem(width, out, r, tokens, delta)
    W = np.random.default_rng(1).standard_normal((out, width), np.float32)

    def dense():
        x @ W.T
        dy @ W
        dy.T @ x

    found = {"minisl": sl_layer(*data, "auto", "auto"), "minisl, materialised": sl_layer(*data, "materialised", "auto"),
             "NumPy dense": dense, "NumPy and SciPy, factored": sl_layer(*data, "factored", "numpy")}
    if torch := torch_or_none():
        from minisl.bench import torch_peer

        public = torch_peer.SparseLowRank(B, A, v, support.index, SCALE)
        tensors = torch.from_numpy(x), torch.from_numpy(dy)
        found["PyTorch, public algorithm"] = torch_layer(public, *tensors)
        found["PyTorch dense"] = torch_layer(torch_peer.dense(W), *tensors)
    return found


def torch_layer(layer, x, dy):
    x = x.detach().requires_grad_()

    def run():
        x.grad = None
        layer.zero_grad()
        layer(x).backward(dy)
    return run


def bench(machine, say):
    """Rows of milliseconds and ratios, one per shape and candidate."""
    rows = []
    say(f"SLTrain layer, forward + backward, {TOKENS:,} tokens, delta {DELTA}, float32")
    say(f"  {'in, out, r':18}{'':28}{'ms':>8}{'+-':>5}{'of dense':>10}{'of public':>10}{'of GEMM peak':>14}")
    for width, out, r in SHAPES:
        timings = in_turn(candidates(width, out, r))
        dense, public = timings["NumPy dense"].median, timings.get("PyTorch, public algorithm")
        for name, timing in timings.items():
            work = 6 * TOKENS * width * out if "minisl" != name else 6 * TOKENS * (r * (width + out) + int(DELTA * width * out))
            row = {"in": width, "out": out, "r": r, "what": name, "ms": 1e3 * timing.median, "spread": timing.spread,
                   "of_dense": timing.median / dense, "of_public": timing.median / public.median if public else None,
                   "of_peak": work / timing.median / machine["gemm"]}
            rows.append(row)
            say(f"  {f'{width}, {out}, {r}':18}{name:28}{row['ms']:8.2f}{100 * timing.spread:4.0f}%{row['of_dense']:10.2f}"
                f"{'' if public is None else format(row['of_public'], '10.2f'):>10}{row['of_peak']:14.0%}")
    return rows
