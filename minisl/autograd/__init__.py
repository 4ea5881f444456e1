"""Reverse-mode automatic differentiation over NumPy or CuPy arrays."""

from minisl.autograd.tensor import Function, Tensor, no_grad
from minisl.autograd.checkpoint import checkpoint
from minisl.autograd.gradcheck import GradcheckError, gradcheck

__all__ = ["Function", "GradcheckError", "Tensor", "checkpoint", "gradcheck", "no_grad"]
