"""Layers, the module they share, and the LLaMA built of them."""

from minisl.nn.config import LlamaConfig
from minisl.nn.layers import Embedding, Linear, RMSNorm
from minisl.nn.llama import KVCache, Llama, PackedCache
from minisl.nn.module import Module, Parameter

__all__ = ["Embedding", "KVCache", "Linear", "Llama", "LlamaConfig", "Module", "PackedCache", "Parameter", "RMSNorm"]
