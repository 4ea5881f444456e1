"""The ops that work row by row, and the optimizers: what `ladders.py` asks about them, forward and backward together."""

from functools import partial

import numpy as np

from minisl.bench.cuda.layer import MODELS, TOKENS
from minisl.bench.cuda.question import TORCH, Question, lazily, rungs
from minisl.config import read_config
from minisl.kernels import cuda
from minisl.nn.llama import rope_table

LENGTH = 256  # of a sequence
LOGITS = 8192  # rows of the vocabulary's size, about as many as the trainer has at a time


def sources(gpu):
    """Functions that make the questions, one for each op and model."""
    for op in (rms_norm, swiglu, rope, attention, cross_entropy, adamw, adam8bit):
        for model in MODELS:
            yield partial(op, gpu, model, read_config(model))


def work(op, n, width):
    """(bytes, operations) of n rows of this width, or of n tokens whose heads have `width` components together."""
    size = n * width
    return {"rms_norm": (20 * size, 14 * size), "swiglu": (32 * size, 15 * size), "rope": (16 * size, 6 * size),
            "attention": (48 * size, 7 * size * (LENGTH + 1)),  # 14 d for each of (LENGTH + 1) / 2 pairs of a token and head
            "cross_entropy": (12 * size, 6 * size), "adamw": (28 * size, 12 * size), "adam8bit": (16 * size, 25 * size)}[op]


def question(op, model, n, width, calls, sizes, least=128):
    return Question(op, {"model": model, **sizes}, n, calls, *work(op, n, width), least=least)


def theirs(gpu, function, cut, learned=(), given=(), dout=None):
    """{"PyTorch": call(n)}: the value of `function` of `cut` (cut to n rows), `learned` and `given`, and the gradients of all but
    the last. Nothing without PyTorch."""
    def make():
        pieces, rest, fixed = ([gpu.tensor(a) for a in arrays] for arrays in (cut, learned, given))
        grad = None if dout is None else gpu.tensor(dout)

        def run(n):
            leaves = [t.detach().requires_grad_() for t in (*(t[:n] for t in pieces), *rest)]
            out = function(*leaves, *fixed)
            out.backward(None if grad is None else grad[:n])
            return [out.detach(), *(leaf.grad for leaf in leaves)]

        return run

    return {TORCH: lazily(make)} if gpu.torch else {}


def functional(gpu):
    return gpu.torch.nn.functional if gpu.torch else None


def rms_norm(gpu, model, config):
    width = config["hidden_size"]
    n = gpu.tokens_that_fit(TOKENS, 4 * 8 * width)
    x, dy, gain, F = gpu.draw(n, width), gpu.draw(n, width), gpu.draw(width), functional(gpu)

    def run(n):
        y, r = cuda.rms_norm(x[:n], gain, 1e-6)
        return [y, *cuda.rms_norm_backward(dy[:n], x[:n], gain, r)]

    calls = rungs(run, "rms_norm") | theirs(gpu, lambda x, g: F.rms_norm(x, (width,), g, 1e-6), [x], [gain], dout=dy)
    yield question("rms_norm", model, n, width, calls, {"D": width})


def swiglu(gpu, model, config):
    width = config["intermediate_size"]
    n = gpu.tokens_that_fit(TOKENS, 4 * 12 * width)
    a, b, dy, F = gpu.draw(n, width), gpu.draw(n, width), gpu.draw(n, width), functional(gpu)

    def run(n):
        return [cuda.swiglu(a[:n], b[:n]), *cuda.swiglu_backward(dy[:n], a[:n], b[:n])]

    calls = rungs(run, "swiglu") | theirs(gpu, lambda a, b: F.silu(a) * b, [a, b], dout=dy)
    yield question("swiglu", model, n, width, calls, {"F": width})


def in_heads(gpu, config, count, memory):
    """(tokens, heads, `count` arrays (B, T, H, d))"""
    width, heads = config["hidden_size"], config["num_attention_heads"]
    n = max(LENGTH, gpu.tokens_that_fit(TOKENS, 4 * memory * width))
    return n, heads, [gpu.draw(n // LENGTH, LENGTH, heads, width // heads) for _ in range(count)]


def swapped(*arrays):
    """(B, T, H, d), as projections leave them, seen as (B, H, T, d); and back."""
    return [a.swapaxes(1, 2) for a in arrays]


def rope(gpu, model, config):
    n, heads, (x, dy) = in_heads(gpu, config, 2, 8)
    width = config["hidden_size"]
    cos, sin = (gpu.xp.asarray(a.astype(np.float32)) for a in rope_table(width // heads, config["rope_theta"], 0, LENGTH))

    def run(n):
        x_heads, dy_heads = swapped(x[: n // LENGTH], dy[: n // LENGTH])
        return swapped(cuda.rope(x_heads, cos, sin), cuda.rope(dy_heads, cos, -sin))

    def peer(x, cos, sin):
        from minisl.bench.torch_peer import rotate

        return rotate(x.transpose(1, 2), cos, sin).transpose(1, 2)

    calls = rungs(run, "rope") | by_sequence(theirs(gpu, peer, [x], given=[cos, sin], dout=dy))
    yield question("rope", model, n, width, calls, {"heads": heads, "d": width // heads}, least=LENGTH)


def attention(gpu, model, config):
    n, heads, (q, k, v, dout) = in_heads(gpu, config, 4, 16)
    width = config["hidden_size"]

    def run(n):
        operands = swapped(*(a[: n // LENGTH] for a in (q, k, v)))
        out, kept = cuda.attention(*operands)
        return swapped(out, *cuda.attention_backward(dout[: n // LENGTH].swapaxes(1, 2), *operands, out, kept))

    def peer(q, k, v):
        q, k, v = (a.transpose(1, 2) for a in (q, k, v))
        return functional(gpu).scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

    calls = rungs(run, "attention", "attention_dq", "attention_dkv") | by_sequence(theirs(gpu, peer, [q, k, v], dout=dout))
    yield question("attention", model, n, width, calls, {"heads": heads, "d": width // heads}, least=LENGTH)


def by_sequence(calls):
    """call(n) of n tokens, from one of n sequences"""
    return {name: lambda n, call=call: call(n // LENGTH) for name, call in calls.items()}


def cross_entropy(gpu, model, config):
    vocab = config["vocab_size"]
    n = gpu.tokens_that_fit(LOGITS, 4 * 8 * vocab)
    logits, labels, F = gpu.draw(n, vocab), gpu.xp.asarray(gpu.rng.integers(0, vocab, n)), functional(gpu)

    def run(n):
        loss, kept = cuda.cross_entropy(logits[:n], labels[:n])
        return [loss, cuda.cross_entropy_backward(1.0, logits[:n], labels[:n], kept)]

    def peer(z):
        return F.cross_entropy(z, gpu.tensor(labels[: len(z)]), reduction="sum")

    if model == next(iter(MODELS)):  # all have the same vocabulary
        yield question("cross_entropy", model, n, vocab, rungs(run, "cross_entropy") | theirs(gpu, peer, [logits]), {"V": vocab})


def adamw(gpu, model, config):
    """On as many parameters as the longest matrix of a block has."""
    size = config["hidden_size"] * config["intermediate_size"]
    p, g, m, v = (gpu.draw(size) for _ in range(4))
    v *= v
    calls = rungs(lambda n: cuda.adamw(p, g, m, v, 1e-3, (0.9, 0.999), 1e-8, 0.0, 10), "adamw")

    def peer():
        parameter = gpu.torch.nn.Parameter(gpu.tensor(p).clone())
        parameter.grad = gpu.tensor(g)
        optimizer = gpu.torch.optim.AdamW([parameter], 1e-3, weight_decay=0.0, fused=True)
        return lambda n: optimizer.step()

    if gpu.torch:
        calls[TORCH] = lazily(peer)
    yield question("adamw", model, size, 1, calls, {"parameters": size}, least=None)


def adam8bit(gpu, model, config):
    size, xp = config["hidden_size"] * config["intermediate_size"], gpu.xp
    p, g, blocks = gpu.draw(size), gpu.draw(size), -(-size // 256)
    m, v, tops = xp.full(size, 128, "uint8"), xp.full(size, 128, "uint8"), [xp.full(blocks, 0.1, "float32") for _ in range(2)]
    tables = [xp.asarray(np.linspace(low, 1, 256, dtype=np.float32)) for low in (-1, 0)]
    calls = rungs(lambda n: cuda.adam8bit(p, g, m, v, *tops, tables, 1e-3, (0.9, 0.999), 1e-8, 0.0, 10), "adam8bit")
    yield question("adam8bit", model, size, 1, calls, {"parameters": size}, least=None)
