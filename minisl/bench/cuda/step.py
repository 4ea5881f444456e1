"""A whole training step of the 60M model on a GPU, beside the same model in PyTorch, eager."""

import time

from minisl import kernels
from minisl.backend import matmul_precision
from minisl.bench import child
from minisl.bench.cuda.gpu import TIME_IS_UP, Found
from minisl.bench.cuda.layer import torch_dtype, torch_precision
from minisl.bench.cuda.table import Table, ms, ratio
from minisl.bench.measure import Timing
from minisl.metrics import gpu_memory

MODEL, BATCHES, METHODS = "60m", ((8, 256), (256, 256)), ("sltrain", "full")
TURNS, WARM = 7, 2


def bench(gpu, machine, say):
    """Rows of milliseconds and bytes, one per batch, method, precision and trainer."""
    rows = []
    table = Table(say, f"Training step, {MODEL}, AdamW", "batch", "method", "products in", "minisl ms", "tokens/s", "PyTorch ms",
                  "times faster", "minisl MB", "PyTorch MB, in arrays", "PyTorch MB, taken", "memory ratio")
    for batch in BATCHES:
        for method in METHODS:
            for precision in gpu.precisions():
                label = f"{batch[0]} x {batch[1]}", method, precision
                if gpu.over:
                    rows.append({"batch": label[0], "method": method, "precision": precision, "failed": TIME_IS_UP})
                    table.row(*label, TIME_IS_UP, *[""] * 7)
                    continue
                mine, theirs = ours(gpu, method, batch, precision), peer(gpu, method, batch, precision)
                for who, (found, memory) in (("minisl", mine), ("torch", theirs)):
                    if found:
                        rows.append({"model": MODEL, "batch": label[0], "method": method, "precision": precision, "trainer": who,
                                     **found.row(), **memory})
                (found, memory), (other, other_memory) = mine, theirs
                table.row(*label, ms(found), f"{batch[0] * batch[1] / found.seconds:,.0f}" if found.timing else "",
                          ms(other) if other else gpu.no_torch, ratio(other, found), megabytes(memory, "taken"),
                          megabytes(other_memory, "arrays"), megabytes(other_memory, "taken"),
                          f"{memory['taken'] / other_memory['arrays']:.2f}" if memory and other_memory else "")
    say()
    say("Memory: what CuPy's pool has taken from the GPU, beside what PyTorch held in arrays at most, and has taken; the ratio "
        "is of the first to the second, the stricter one. In bf16 minisl keeps float32 and rounds what it multiplies; PyTorch "
        "holds everything in bf16, as the public code does.")
    return rows


def ours(gpu, method, batch, precision):
    """(Found, {"taken": bytes})"""
    found, memory = Found(1, 1), {}
    gpu.free()
    before = gpu_memory(gpu.xp)
    with gpu.noting(found), kernels.using("cuda"), matmul_precision(precision, gpu.xp):
        model, ids, labels, _ = child.build(MODEL, method, (*batch, 1))
        step = child.minisl_step(model.to(gpu.xp), ids, labels, 1)
        found.timing = timed(step)
        memory = {"taken": gpu_memory(gpu.xp) - before}
    return found, memory


def peer(gpu, method, batch, precision):
    """(Found, {"arrays": bytes, "taken": bytes}), or (None, {}) without PyTorch."""
    if gpu.torch is None:
        return None, {}
    from minisl.bench import torch_peer

    found, memory, torch = Found(1, 1), {}, gpu.torch
    gpu.free()
    with gpu.noting(found), torch_precision(torch, precision):
        before = held(torch)
        model, ids, labels, _ = child.build(MODEL, method, (*batch, 1))
        train = torch_peer.trainer(model, device=gpu.torch_device, dtype=torch_dtype(torch, precision))
        found.timing = timed(lambda: train(ids, labels))
        memory = dict(zip(("arrays", "taken"), (now - then for now, then in zip(most(torch), before))))
    return found, memory


def held(torch):
    """Bytes that PyTorch has now, in arrays and taken; from now on it notes the most."""
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()


def most(torch):
    """The most bytes since `held`, in arrays and taken."""
    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()


def timed(step):
    """Timing by the clock on the wall; a step ends with a loss that has been read."""
    for _ in range(WARM):
        step()
    seconds = []
    for _ in range(TURNS):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return Timing(seconds)


def megabytes(memory, word):
    return f"{memory[word] / 1e6:,.0f}" if word in memory else ""
