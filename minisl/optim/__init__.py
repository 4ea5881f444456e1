"""Optimizers, gradient clipping and learning-rate schedules."""

from minisl.optim.adam8bit import Adam8bit
from minisl.optim.adamw import Adam, AdamW
from minisl.optim.clip import clip_grad_norm, grad_norm
from minisl.optim.optimizer import Optimizer, Rule
from minisl.optim.schedules import SCHEDULES, learning_rate, refined
from minisl.optim.sgd import SGD

RULES = {"adamw": Adam, "adam8bit": Adam8bit, "sgd": SGD}

__all__ = ["RULES", "SCHEDULES", "SGD", "Adam", "Adam8bit", "AdamW", "Optimizer", "Rule", "clip_grad_norm", "grad_norm",
           "learning_rate", "refined"]
