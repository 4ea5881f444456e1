"""Every differentiable op, by kind. Functions here take Tensors (or numbers and arrays) and return a Tensor."""

from minisl.autograd.ops.elementwise import (
    abs,
    add,
    clip,
    div,
    exp,
    log,
    maximum,
    minimum,
    mul,
    neg,
    power,
    relu,
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
from minisl.autograd.ops.matmul import einsum, matmul
from minisl.autograd.ops.reduce import cumsum, log_softmax, logsumexp, max, mean, min, softmax, std, sum, var
from minisl.autograd.ops.shape import concatenate, flatten, permute, reshape, split, squeeze, stack, swapaxes, unsqueeze

__all__ = [
    "abs", "add", "attention", "clip", "concatenate", "cross_entropy", "cumsum", "div", "einsum", "embedding",
    "exp", "flatten", "gather", "getitem", "linear", "linear_cross_entropy", "log", "log_softmax",
    "logsumexp", "matmul", "max", "maximum", "mean", "min", "minimum", "mul", "neg", "permute", "power",
    "relu", "reshape", "rms_norm", "rope", "rsqrt", "sigmoid", "silu", "softmax", "split", "sqrt", "squeeze",
    "stack", "std", "sub", "sum", "swapaxes", "swiglu", "tanh", "unsqueeze", "var", "where",
]
