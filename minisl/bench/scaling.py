"""How a training step's time and memory grow with tokens, width, rank and density, beside what the cost model expects."""

import numpy as np

from minisl import kernels, methods, optim
from minisl.bench.child import minisl_step
from minisl.bench.measure import in_turn
from minisl.kernels import cost
from minisl.memory.measure import measure
from minisl.methods.sltrain import SLLinear
from minisl.nn import LlamaConfig

BASE = {"tokens": 2048, "width": 512, "rank": 128, "delta": 0.03}
VARIED = {"tokens": (256, 512, 1024, 2048, 4096), "width": (128, 256, 512, 1024), "rank": (16, 32, 64, 128, 256),
          "delta": (0.003, 0.01, 0.03, 0.1, 0.3)}
LAYERS, VOCAB, LENGTH = 2, 4096, 256


def build(tokens, width, rank, delta):
    config = LlamaConfig(width, int(width * 2.6875), LAYERS, max(2, width // 64), vocab_size=VOCAB)
    options = {"rank": min(rank, width), "delta": delta, "alpha": 16.0, "learned_scale": False, "algorithm": "factored"}
    model = methods.build_model(config, "sltrain", options, np.random.default_rng(0))
    ids = np.random.default_rng(1).integers(0, VOCAB, (tokens // LENGTH, LENGTH + 1))
    return model, ids[:, :-1].copy(), ids[:, 1:].copy()


def expected_seconds(model, n, machine):
    """SL layers by the cost model; head and attention at the GEMM rate; all else by the bytes it must move."""
    config, g = model.config, cost.constants("cpu")["g"]
    D, F, L = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    layers = [m for _, m in model.named_modules() if isinstance(m, SLLinear)]
    products = sum(cost.seconds("factored", n, m.shape[1], m.shape[0], len(m.lora_A.data), len(m.support)) for m in layers)
    moved = 4 * n * L * (2 * 5 * D + 8 * F + 8 * D + 11 * D + 6 * D) + 28 * model.num_parameters()
    return products + g * (6 * n * VOCAB * D + 7 * n * LENGTH * D * L) + moved / machine["memory"]


def expected_bytes(model, n):
    """Parameters and two moments; what the graph keeps of a block: 6 D + 2 F + 7 r numbers a token, and 2 a norm or head; the
    head's gradient and a slice of logits."""
    config = model.config
    D, F, L, H = config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.num_attention_heads
    ranks = sum(len(m.lora_A.data) for _, m in model.named_modules() if isinstance(m, SLLinear))
    logits = min(n, max(64, kernels.numba_status()[0].module.LOGITS // VOCAB // 64 * 64)) * VOCAB
    return 4 * (3 * model.num_parameters() + n * (L * (6 * D + 2 * F + 2 + H) + ranks + 2 * D) + VOCAB * D + logits)


def bench(machine, say):
    rows = []
    say(f"Step of a model with {LAYERS} blocks, vocabulary {VOCAB:,}; one size varies, the others are "
        + ", ".join(f"{k} {v}" for k, v in BASE.items()))
    say(f"  {'':10}{'':>8}{'ms':>9}{'expected':>10}{'off':>7}{'MB':>9}{'expected':>10}{'off':>7}")
    for name, values in VARIED.items():
        for value in values:
            model, ids, labels = build(**BASE | {name: value})
            with kernels.running("cpu"):
                timing = in_turn({"step": minisl_step(model, ids, labels, 1)}, turns=5)["step"]
                optimizer = optim.AdamW(model.named_parameters(), 1e-3)
                peak = measure(model, optimizer, lambda: model.loss(ids, labels, 1 / labels.size))["peak"]  # noqa: B023
            t, m = expected_seconds(model, labels.size, machine), expected_bytes(model, labels.size)
            rows.append({"varied": name, "value": value, "ms": 1e3 * timing.median, "spread": timing.spread,
                         "expected_ms": 1e3 * t, "bytes": peak, "expected_bytes": m})
            say(f"  {name:10}{value:8}{1e3 * timing.median:9.1f}{1e3 * t:10.1f}{t / timing.median - 1:+7.0%}"
                f"{peak / 1e6:9.1f}{m / 1e6:10.1f}{m / peak - 1:+7.0%}")
    return rows

