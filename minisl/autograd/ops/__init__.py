"""Every differentiable op, by kind. Functions here take Tensors (or numbers and arrays) and return a Tensor."""

from minisl.autograd.ops.elementwise import (
    add,
    div,
    exp,
    log,
    maximum,
    mul,
    neg,
    power,
    rsqrt,
    sigmoid,
    silu,
    sqrt,
    sub,
    tanh,
    where,
)
from minisl.autograd.ops.fused import attention, cross_entropy, embedding, linear, linear_cross_entropy, rms_norm, rope, swiglu
from minisl.autograd.ops.index import gather, getitem
from minisl.autograd.ops.matmul import matmul
from minisl.autograd.ops.reduce import log_softmax, max, mean, softmax, sum
from minisl.autograd.ops.shape import concatenate, permute, reshape, stack, swapaxes

__all__ = [
    "add", "attention", "concatenate", "cross_entropy", "div", "embedding", "exp", "gather", "getitem", "linear",
    "linear_cross_entropy", "log",
    "log_softmax", "matmul", "max", "maximum", "mean", "mul", "neg", "permute", "power", "reshape", "rms_norm", "rope",
    "rsqrt", "sigmoid", "silu", "softmax", "sqrt", "stack", "sub", "sum", "swapaxes", "swiglu", "tanh", "where",
]
