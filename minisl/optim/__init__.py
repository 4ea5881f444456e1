"""Optimizers, gradient clipping and learning-rate schedules."""

from minisl.optim.adamw import AdamW
from minisl.optim.clip import clip_grad_norm, grad_norm
from minisl.optim.schedules import SCHEDULES, learning_rate

__all__ = ["SCHEDULES", "AdamW", "clip_grad_norm", "grad_norm", "learning_rate"]
