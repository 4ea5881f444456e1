"""SLTrain: sparse plus low-rank pretraining (Han et al., NeurIPS 2024, arXiv 2406.02214), section 3.

    W = (alpha/r) B A + S                    B (out, r), A (r, in), S (out, in) sparse

S is zero except on a support I: nnz = int(delta out in) positions, drawn at random once and fixed. Only the values v
on it are trained. A random support is enough: with delta of order log(n)/n it almost surely holds a perfect matching,
and then B A + S has full rank for almost every v (Proposition 1).

Forward and backward, rows of X are tokens, s = alpha/r, G = dL/dY:

    materialised (Algorithm 1)               factored (the same, W and dW never formed)
    W  = s B A;  W.flat[I] += v
    Y  = X W^T                               Y  = s (X A^T) B^T + X S^T
    dX = G W,   dW = G^T X                   dX = s (G B) A + G S
    dB = s dW A^T                            dB = s G^T (X A^T)
    dA = s B^T dW                            dA = s (G B)^T X
    dv = dW.flat[I]                          dv[k] = sum_t G[t, row_k] X[t, col_k]

Saved for backward: X, B, A, v, I, and X A^T in the factored form. W is rebuilt there, not kept. The scale multiplies B A only.

Beside SLTrain: this is it.
State: r (out + in) + nnz weights, as many of each moment, and nnz indices that never change.
Pitfalls: alpha/r belongs to the learning rate, a change of one moves the other. The public code keeps the indices in 64 bits,
more than a value and its moments take in 16; 32 are enough below 2^31 elements, and are used here.
Our reading: the published steps, scales and start are those of the public code, whose evaluation is off by a factor n/(n+1).
Its script gives update n the rate of n - 1, means every micro-batch by itself and computes in bfloat16: docs/differences.md.

Start: B = 0, A and v ~ U(-1/sqrt(in), 1/sqrt(in)). At step 0 then W = S and dA = 0; if S were 0 as well, no signal
would pass and nothing could ever be learned.
"""

import numpy as np

from minisl import kernels
from minisl.autograd import Function, ops
from minisl.errors import InputError
from minisl.kernels import Support
from minisl.methods import check_rank, trained
from minisl.nn import init
from minisl.nn.module import Module, Parameter

OPTIONS = ("rank", "delta", "alpha", "learned_scale", "algorithm")


def sample_support(out_features, in_features, delta, rng):
    """Sorted flat row-major positions of S, int(delta out in) of them, each set equally likely.

    int32, or int64 where out * in needs it. Raises InputError unless 0 < delta < 1.
    """
    if not 0 < delta < 1:
        raise InputError(f"delta is {delta}; the density of S must lie strictly between 0 and 1")
    size = out_features * in_features
    nnz, dtype = int(delta * size), np.int32 if size < 2**31 else np.int64
    if rng is None:
        return np.broadcast_to(np.zeros((), dtype), (nnz,))
    return np.sort(rng.choice(size, nnz, replace=False, shuffle=False)).astype(dtype)


class SLProduct(Function):
    """Y = X (s B A + S)^T and its four gradients, by either column of the table above."""

    @staticmethod
    def forward(ctx, x, B, A, v, support, s, algorithm):
        on = kernels.of(x)
        y, xA = kernels.sl_linear_forward(x, B, A, v, support, s, algorithm=algorithm, backend=on)
        ctx.save(x, B, A, v, support, s, xA, algorithm, on)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, B, A, v, support, s, xA, algorithm, on = ctx.saved
        return kernels.sl_linear_backward(grad, x, B, A, v, support, s, xA, algorithm=algorithm, backend=on)


class SLLinear(Module):
    """y = x W^T with W = (alpha/r) B A + S, no bias.

    lora_B (out, r), lora_A (r, in), sparse_value (nnz,); sparse_index (nnz,) is a buffer.
    learned_scale: replace alpha/r by tanh(scaling), a parameter that starts at 1.
    algorithm: "materialised", "factored" or "auto".
    """

    buffers = ("sparse_index",)

    def __init__(self, in_features, out_features, rng, dtype="float32", *, rank, delta, alpha,
                 learned_scale=False, algorithm="auto"):
        check_rank(rank, in_features, out_features)
        self.shape = out_features, in_features
        self.sparse_index = sample_support(out_features, in_features, delta, init.spawn(rng))
        bound = in_features**-0.5
        self.lora_A = Parameter(init.uniform(rng, (rank, in_features), bound, dtype))
        self.lora_B = Parameter(init.constant(rng, (out_features, rank), 0, dtype))
        self.sparse_value = Parameter(init.uniform(rng, len(self.sparse_index), bound, dtype))
        self.scale = alpha / rank
        if learned_scale:
            self.scaling = Parameter(init.constant(rng, 1, 1, dtype))
        self.algorithm = algorithm

    @property
    def sparse_index(self):
        return self.support.index

    @sparse_index.setter
    def sparse_index(self, index):
        self.support = Support(index, self.shape)

    def check_buffer(self, name, array):
        if len(array) and not (0 <= int(array.min()) and int(array.max()) < self.shape[0] * self.shape[1]):
            raise InputError(f"positions run from {array.min()} to {array.max()}, a {self.shape[0]} x {self.shape[1]} matrix has "
                             f"0 to {self.shape[0] * self.shape[1] - 1}")

    def forward(self, x):
        B, s = self.lora_B, self.scale
        if hasattr(self, "scaling"):  # the scale is part of B, and the chain rule does the rest
            B, s = B * ops.tanh(self.scaling), 1.0
        return SLProduct.apply(x, B, self.lora_A, self.sparse_value, support=self.support, s=s, algorithm=self.algorithm)

    def to_dense(self):
        """W (out, in) as an array."""
        s = np.tanh(self.scaling.data) if hasattr(self, "scaling") else self.scale
        return kernels.scatter_add(s * self.lora_B.data @ self.lora_A.data, self.sparse_value.data, self.support)


def linear(in_features, out_features, rng, dtype, **options):
    return SLLinear(in_features, out_features, rng, dtype, **options)


def held(out_features, in_features, rank, delta, alpha, learned_scale, algorithm):
    nnz = int(delta * out_features * in_features)
    return trained(out_features * rank, rank * in_features, nnz, *[1] * learned_scale, indices=nnz)
