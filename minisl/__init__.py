"""minisl: pretraining a LLaMA with W = (alpha/r) B A + S, from NumPy arrays up (SLTrain, NeurIPS 2024)."""

from minisl.autograd import Tensor, gradcheck, no_grad

__version__ = "0.7.1"
__all__ = ["Tensor", "gradcheck", "no_grad"]
