"""Fifty training steps against an implementation of its own in plain PyTorch."""

import numpy as np
import pytest

from minisl import methods, optim
from minisl.nn import LlamaConfig

torch = pytest.importorskip("torch")
F = torch.nn.functional

STEPS, WARMUP, PEAK, WEIGHT_DECAY = 50, 5, 0.01, 0.1
CONFIG = LlamaConfig(hidden_size=16, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                     vocab_size=31, rms_norm_eps=1e-5, initializer_range=0.2)  # small embeddings would magnify rounding
SETTINGS = {"rank": 3, "alpha": 4.0, "delta": 0.1, "learned_scale": False, "algorithm": "auto"}
CASES = {
    "full": ("full", {}),
    "low_rank": ("low_rank", {}),
    "sltrain": ("sltrain", {}),
    "sltrain-factored": ("sltrain", {"algorithm": "factored"}),
    "sltrain-learned_scale": ("sltrain", {"learned_scale": True}),
}


def plain_weight(P, name):
    """W of one matrix: dense, (alpha/r) B A, or (alpha/r) B A + S."""
    if f"{name}.weight" in P:
        return P[f"{name}.weight"]
    scale = P[f"{name}.scaling"].tanh() if f"{name}.scaling" in P else SETTINGS["alpha"] / SETTINGS["rank"]
    W = scale * P[f"{name}.lora_B"] @ P[f"{name}.lora_A"]
    if f"{name}.sparse_value" in P:
        W = W.flatten().scatter_add(0, P[f"{name}.sparse_index"].long(), P[f"{name}.sparse_value"]).view_as(W)
    return W


def plain_norm(P, name, x):
    return P[f"{name}.weight"] * x / torch.sqrt(x.square().mean(-1, keepdim=True) + CONFIG.rms_norm_eps)


def plain_rope(x):
    """Each pair (x_i, x_{i + d/2}) turned as a complex number by t theta^(-2i/d)."""
    t, half = x.shape[-2], x.shape[-1] // 2
    angle = torch.outer(torch.arange(t, dtype=x.dtype), CONFIG.rope_theta ** (-torch.arange(half, dtype=x.dtype) / half))
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.exp(1j * angle)
    return torch.cat([turned.real, turned.imag], dim=-1)


def plain_attention(P, name, x):
    q, k, v = (F.linear(x, plain_weight(P, f"{name}.{part}_proj")) for part in "qkv")
    q, k, v = (y.unflatten(-1, (-1, CONFIG.head_dim)).transpose(1, 2) for y in (q, k, v))
    group = CONFIG.num_attention_heads // CONFIG.num_key_value_heads
    k, v = plain_rope(k).repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = plain_rope(q) @ k.mT / CONFIG.head_dim**0.5
    future = torch.ones_like(scores, dtype=torch.bool).triu(1)
    out = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
    return F.linear(out.transpose(1, 2).flatten(2), plain_weight(P, f"{name}.o_proj"))


def plain_mlp(P, name, x):
    gate, up, down = (plain_weight(P, f"{name}.{part}_proj") for part in ("gate", "up", "down"))
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def plain_loss(P, ids, labels):
    x = P["model.embed_tokens.weight"][ids]
    for i in range(CONFIG.num_hidden_layers):
        block = f"model.layers.{i}"
        x = x + plain_attention(P, f"{block}.self_attn", plain_norm(P, f"{block}.input_layernorm", x))
        x = x + plain_mlp(P, f"{block}.mlp", plain_norm(P, f"{block}.post_attention_layernorm", x))
    logits = F.linear(plain_norm(P, "model.norm", x), P["lm_head.weight"])
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def plain_training(state, batches):
    """The loss of every step, from a state_dict's weights."""
    P = {name: torch.tensor(array, requires_grad=array.dtype.kind == "f") for name, array in state.items()}
    optimizer = torch.optim.AdamW([p for p in P.values() if p.requires_grad], PEAK, weight_decay=WEIGHT_DECAY)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / WARMUP, 1.0, WARMUP - 1)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS - WARMUP, 0.1 * PEAK)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm_up, cosine], [WARMUP - 1])
    losses = []
    for ids, labels in batches:
        loss = plain_loss(P, torch.tensor(ids), torch.tensor(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def minisl_training(model, batches):
    optimizer = optim.AdamW(model.named_parameters(), PEAK, weight_decay=WEIGHT_DECAY)
    losses = []
    for step, (ids, labels) in enumerate(batches, start=1):
        optimizer.lr = optim.learning_rate(step, peak=PEAK, steps=STEPS, warmup=WARMUP, schedule="cosine", min_ratio=0.1)
        loss = model.loss(ids, labels, 1 / labels.size)
        model.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("case", CASES)
def test_fifty_training_steps_equal_plain_pytorch(case, backend):
    method, special = CASES[case]
    model = methods.build_model(CONFIG, method, {**SETTINGS, **special}, np.random.default_rng(0), "float64")
    tokens = np.random.default_rng(1).integers(0, CONFIG.vocab_size, (5, 3, 13))
    batches = [(t[:, :-1], t[:, 1:]) for t in tokens] * (STEPS // 5)
    theirs = plain_training(model.state_dict(), batches)  # first: it copies the starting weights
    ours = minisl_training(model, batches)
    assert ours == pytest.approx(theirs, rel=1e-9)
    assert theirs[-1] < theirs[0] - 1, "little was learned, so little was compared"
