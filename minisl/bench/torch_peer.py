"""The same model in PyTorch, eager: what minisl is measured against.

`SparseLowRank` is the algorithm of the public SLTrain code: W is built in forward and again in backward, dW in full. All else
is what PyTorch does best without a compiler: fused attention, its own RMSNorm, cross-entropy and AdamW.
"""

import torch
from torch.nn import functional as F

from minisl.nn.llama import rope_table


class SLProduct(torch.autograd.Function):
    """Y = X (s B A + S)^T by Algorithm 1, as in the public code."""

    @staticmethod
    def weight(B, A, v, index, s):
        return (s * (B @ A)).view(-1).scatter_add_(0, index, v).view(B.shape[0], A.shape[1])

    @staticmethod
    def forward(ctx, x, B, A, v, index, s):
        ctx.save_for_backward(x, B, A, v, index)
        ctx.s = s
        return x @ SLProduct.weight(B, A, v, index, s).T

    @staticmethod
    def backward(ctx, dy):
        x, B, A, v, index = ctx.saved_tensors
        dx = dy @ SLProduct.weight(B, A, v, index, ctx.s)
        dW = dy.flatten(0, -2).T @ x.flatten(0, -2)
        return dx, ctx.s * (dW @ A.T), ctx.s * (B.T @ dW), dW.view(-1)[index], None, None


class SparseLowRank(torch.nn.Module):
    def __init__(self, B, A, v, index, scale):
        super().__init__()
        self.B, self.A, self.v = (torch.nn.Parameter(torch.as_tensor(a).clone()) for a in (B, A, v))
        self.register_buffer("index", torch.as_tensor(index).long())
        self.scale = scale

    def forward(self, x):
        return SLProduct.apply(x, self.B, self.A, self.v, self.index, self.scale)


def dense(weight):
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = torch.nn.Parameter(torch.as_tensor(weight).clone())
    return layer


def converted(layer):
    """A minisl layer (SLTrain or dense) as a PyTorch module with copies of its parameters."""
    if hasattr(layer, "sparse_value"):
        return SparseLowRank(layer.lora_B.data, layer.lora_A.data, layer.sparse_value.data, layer.sparse_index, layer.scale)
    return dense(layer.weight.data)


class Block(torch.nn.Module):
    def __init__(self, block):
        super().__init__()
        self.heads, self.kv_heads = block.self_attn.heads, block.self_attn.kv_heads
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, converted(getattr(block.self_attn, name)))
        for name in ("gate_proj", "up_proj", "down_proj"):
            setattr(self, name, converted(getattr(block.mlp, name)))
        for name in ("input_layernorm", "post_attention_layernorm"):
            norm = getattr(block, name)
            setattr(self, name, torch.nn.RMSNorm(len(norm.weight.data), norm.eps))

    def forward(self, x, cos, sin):
        h = self.input_layernorm(x)
        q = split(self.q_proj(h), self.heads)
        k, v = split(self.k_proj(h), self.kv_heads), split(self.v_proj(h), self.kv_heads)
        o = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True,
                                           enable_gqa=self.heads != self.kv_heads)
        x = x + self.o_proj(o.transpose(1, 2).flatten(2))
        h = self.post_attention_layernorm(x)
        return x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))


class Llama(torch.nn.Module):
    """A minisl Llama's double: same weights, same logits."""

    def __init__(self, model):
        super().__init__()
        decoder = model.model
        self.embed = torch.nn.Embedding.from_pretrained(torch.tensor(decoder.embed_tokens.weight.data), freeze=False)
        self.blocks = torch.nn.ModuleList(map(Block, decoder.layers))
        self.norm = torch.nn.RMSNorm(decoder.norm.weight.shape[0], decoder.norm.eps)
        self.head = dense(model.lm_head.weight.data)
        self.rope, self.angles = decoder.rope, {}

    def forward(self, ids):
        x = self.embed(ids)
        if ids.shape[1] not in self.angles:
            self.angles[ids.shape[1]] = [torch.tensor(a).to(x) for a in rope_table(*self.rope, 0, ids.shape[1])]
        cos, sin = self.angles[ids.shape[1]]
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.head(self.norm(x))


def split(x, heads):
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def rotate(x, cos, sin):
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1)


def trainer(model, lr=1e-3, device="cpu", dtype=torch.float32):
    """step(ids, labels) -> loss: one update of `model`'s double."""
    double = Llama(model).to(device, dtype)
    optimizer = torch.optim.AdamW(double.parameters(), lr=lr, weight_decay=0.0, fused=True)

    def step(ids, labels):
        ids, labels = torch.from_numpy(ids).to(device), torch.from_numpy(labels).to(device)
        loss = F.cross_entropy(double(ids).flatten(0, 1), labels.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step
