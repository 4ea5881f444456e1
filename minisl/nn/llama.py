"""LLaMA: token embedding, L blocks of attention and SwiGLU with a residual around each, RMSNorm, output head.

Attribute names are the tensor names of Hugging Face's LlamaForCausalLM.
"""

import numpy as np

from minisl.autograd import Tensor, checkpoint, ops
from minisl.backend import array_module
from minisl.errors import InputError
from minisl.kernels import fitting
from minisl.nn import init
from minisl.nn.config import LlamaConfig
from minisl.nn.layers import Embedding, Linear, RMSNorm
from minisl.nn.module import Module


class Attention(Module):
    """Causal self-attention with rotary positions; H query heads share H_kv key/value heads."""

    def __init__(self, config, linear, rng, dtype):
        D, d = config.hidden_size, config.head_dim
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.q_proj = linear(D, self.heads * d, init.spawn(rng), dtype, "q_proj")
        self.k_proj = linear(D, self.kv_heads * d, init.spawn(rng), dtype, "k_proj")
        self.v_proj = linear(D, self.kv_heads * d, init.spawn(rng), dtype, "v_proj")
        self.o_proj = linear(self.heads * d, D, init.spawn(rng), dtype, "o_proj")

    def forward(self, x, cos, sin, past=None):
        q = ops.rope(split_heads(self.q_proj(x), self.heads), cos, sin)  # (B, H, T, d)
        k = ops.rope(split_heads(self.k_proj(x), self.kv_heads), cos, sin)
        v = split_heads(self.v_proj(x), self.kv_heads)
        out = (past.attend if past else ops.attention)(q, k, v).swapaxes(1, 2)  # (B, T, H, d)
        return self.o_proj(out.reshape(*out.shape[:2], -1))


class MLP(Module):
    """down(silu(gate x) * up x)"""

    def __init__(self, config, linear, rng, dtype):
        D, F = config.hidden_size, config.intermediate_size
        self.gate_proj = linear(D, F, init.spawn(rng), dtype, "gate_proj")
        self.up_proj = linear(D, F, init.spawn(rng), dtype, "up_proj")
        self.down_proj = linear(F, D, init.spawn(rng), dtype, "down_proj")

    def forward(self, x):
        return self.down_proj(ops.swiglu(self.gate_proj(x), self.up_proj(x)))


class Block(Module):
    """x + attention(norm x), then x + mlp(norm x)"""

    def __init__(self, config, linear, rng, dtype):
        eps = config.rms_norm_eps
        self.self_attn = Attention(config, linear, rng, dtype)
        self.mlp = MLP(config, linear, rng, dtype)
        self.input_layernorm = RMSNorm(config.hidden_size, rng, dtype, eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, rng, dtype, eps)

    def forward(self, x, cos, sin, past=None):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, past)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(Module):
    """Everything but the output head."""

    def __init__(self, config, linear, rng, dtype):
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, init.spawn(rng), dtype, config.initializer_range)
        self.layers = [Block(config, linear, rng, dtype) for _ in range(config.num_hidden_layers)]
        self.norm = RMSNorm(config.hidden_size, rng, dtype, config.rms_norm_eps)
        self.rope = config.head_dim, config.rope_theta
        self.activation_checkpointing = False

    def forward(self, ids, cache=None):
        if getattr(ids, "ndim", 0) != 2 or ids.dtype.kind not in "iu" or not ids.size:
            raise InputError("ids: must be an array of integers (B, T), with one token at least; got "
                             + (f"{ids.dtype} {ids.shape}" if hasattr(ids, "ndim") else type(ids).__name__))
        x, positions = self.embed_tokens(ids), cache.positions(ids.shape[1]) if cache else np.arange(ids.shape[1])
        cos, sin = (array_module(x.data).asarray(a, x.dtype) for a in rope_at(*self.rope, positions))
        for i, block in enumerate(self.layers):
            if self.activation_checkpointing and cache is None:
                x = checkpoint(block, x, cos, sin)
            else:
                x = block(x, cos, sin, cache.layers[i] if cache else None)
        return self.norm(x)


class Llama(Module):
    """A LLaMA for causal language modelling.

    config: LlamaConfig. rng: NumPy Generator for the starting weights, or None for a model that only has shapes.
    linear: `linear(in_features, out_features, rng, dtype, name)` makes each of the seven matrices of a block, name "q_proj" to
    "down_proj"; dense if left out.
    """

    def __init__(self, config, rng=None, linear=None, dtype="float32"):
        if not isinstance(config, LlamaConfig):
            raise InputError(f"config {config!r}: must be a LlamaConfig; LlamaConfig.from_dict makes one of a dictionary")
        std = config.initializer_range
        linear = linear or (lambda n, m, rng, dtype, name: Linear(n, m, rng, dtype, std))
        self.config = config
        self.model = Decoder(config, linear, rng, dtype)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, init.spawn(rng), dtype, std)

    def forward(self, ids, cache=None):
        """ids (B, T) integers to logits (B, T, V). With a KVCache, ids continue the sequences in it; with a PackedCache ids are
        (1, T), what continues its first sequence before what continues the next."""
        return ops.linear(self.model(ids, cache), self.head)

    def loss(self, ids, labels, scale=1.0):
        """scale times the summed cross-entropy of labels (B, T); the logits never exist as a whole."""
        return ops.linear_cross_entropy(self.model(ids), self.head, labels, scale)

    @property
    def head(self):
        return self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight


class KVCache:
    """Keys and values of the tokens seen so far, per layer, for generation. Use it under `no_grad`."""

    def __init__(self, num_layers):
        self.layers = [LayerCache() for _ in range(num_layers)]

    @property
    def length(self):
        return self.layers[0].length

    @property
    def nbytes(self):
        """Memory taken, room for tokens to come included."""
        return sum(a.nbytes for layer in self.layers for a in (layer.keys, layer.values) if a is not None)

    def positions(self, count):
        """Of the next `count` tokens."""
        return np.arange(self.length, self.length + count)


class PackedCache:
    """The caches of several sequences, for one row of tokens: counts[0] that continue the first, counts[1] the second, and so on.

    Lengths may differ and nothing is padded: what acts on single tokens sees all of them together, attention each sequence alone.
    """

    def __init__(self, caches, counts):
        if len(caches) != len(counts):
            raise ValueError(f"PackedCache: {len(caches)} caches and {len(counts)} counts of tokens")
        self.caches, self.counts = caches, counts
        self.layers = [PackedLayer(layers, counts) for layers in zip(*(cache.layers for cache in caches))]

    def positions(self, count):
        """Of the row's tokens, each counted from the start of its sequence."""
        return np.concatenate([cache.positions(n) for cache, n in zip(self.caches, self.counts)])


class PackedLayer:
    """One layer's caches of several sequences."""

    def __init__(self, layers, counts):
        self.layers, self.ends = layers, np.cumsum(counts).tolist()

    def attend(self, q, k, v):
        """What each sequence's `LayerCache.attend` gives for its part of q, k and v (1, H, T, d), in one row again."""
        if q.shape[0] != 1 or q.shape[2] != self.ends[-1]:
            raise ValueError(f"PackedCache: takes one row of {self.ends[-1]} tokens, got {q.shape[0]} of {q.shape[2]}")
        starts = [0, *self.ends[:-1]]
        return ops.concatenate([layer.attend(q[:, :, i:j], k[:, :, i:j], v[:, :, i:j])
                                for layer, i, j in zip(self.layers, starts, self.ends)], axis=2)


class LayerCache:
    """Keys and values of one layer, with room for more than there are."""

    length = 0
    keys = values = None  # (B, H_kv, room, d), the first `length` positions filled

    def attend(self, q, k, v):
        """Attention of the next T tokens, q (B, H, T, d), to all so far and to themselves.

        Raises ValueError and TypeError, before anything is kept, for what does not fit the tokens so far.
        """
        fitting("attention", q.data, k.data, v.data)
        if k.requires_grad or v.requires_grad:
            raise RuntimeError("KVCache: no gradient passes through what it keeps; use it under no_grad")
        if self.keys is not None:
            kept, new = (*self.keys.shape[:2], self.keys.shape[3]), (*k.shape[:2], k.shape[3])
            if kept != new:
                raise ValueError(f"KVCache: holds (sequences, heads, width) {kept}, k has shape {k.shape}")
            if self.keys.dtype != k.dtype:
                raise TypeError(f"KVCache: holds {self.keys.dtype}, k is {k.dtype}")
        return ops.attention(q, *self.extend(k, v))

    def extend(self, k, v):
        """Append k and v (B, H_kv, T, d) and return all keys and values so far."""
        end = self.length + k.shape[2]
        if self.keys is None or end > self.keys.shape[2]:
            self.keys, self.values = (self._grown(old, new, 2 * end) for old, new in ((self.keys, k.data), (self.values, v.data)))
        self.keys[:, :, self.length:end], self.values[:, :, self.length:end] = k.data, v.data
        self.length = end
        return Tensor(self.keys[:, :, :end]), Tensor(self.values[:, :, :end])

    def _grown(self, old, new, room):
        grown = array_module(new).empty((*new.shape[:2], room, new.shape[3]), new.dtype)
        if old is not None:
            grown[:, :, : self.length] = old[:, :, : self.length]
        return grown


def split_heads(x, heads):
    """(B, T, H d) to (B, H, T, d)"""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def rope_table(head_dim, theta, start, length):
    """cos and sin (length, d/2) of t theta^(-2i/d) for positions t = start, start + 1, ..."""
    return rope_at(head_dim, theta, np.arange(start, start + length))


def rope_at(head_dim, theta, positions):
    """As `rope_table`, for any positions (T,)."""
    angle = positions[:, None] * theta ** (-np.arange(0, head_dim, 2) / head_dim)
    return np.cos(angle), np.sin(angle)
