"""Tokens to batches of (inputs, labels)."""

from functools import lru_cache

import numpy as np

from minisl.backend import IGNORE_LABEL, generator
from minisl.errors import InputError


class Batches:
    """Training batches as a function of the step: nothing to save, nothing to lose.

    The tokens are cut into sequences of seq_len; each epoch visits all of them once, in an order drawn from
    (seed, epoch). Raises InputError if there are too few tokens for one sequence.
    """

    def __init__(self, tokens, batch_size, seq_len, seed):
        self.tokens, self.batch_size, self.seq_len, self.seed = tokens, batch_size, seq_len, seed
        self.sequences = (len(tokens) - 1) // seq_len
        if self.sequences < 1:
            raise InputError(f"--data: {len(tokens)} training tokens are too few for one sequence of --seq-len {seq_len} "
                             "and its label")
        self.order = lru_cache(maxsize=2)(self._order)

    def __call__(self, k):
        """Batch number k = 0, 1, ...: inputs (B, T) and labels (B, T), the token after each input."""
        first = k * self.batch_size
        picks = [self.order(n // self.sequences)[n % self.sequences] for n in range(first, first + self.batch_size)]
        rows = np.stack([self.tokens[p * self.seq_len : (p + 1) * self.seq_len + 1] for p in picks]).astype(np.int64)
        return rows[:, :-1], rows[:, 1:]

    def _order(self, epoch):
        return generator(self.seed, "data", epoch).permutation(self.sequences)


def validation_batches(tokens, batch_size, seq_len):
    """All tokens in order, each predicted exactly once but the first; the last row is padded with ignored labels.

    Yields inputs (B, T) and labels (B, T). Raises InputError if there is nothing to predict.
    """
    rows = -(-(len(tokens) - 1) // seq_len)
    if rows < 1:
        raise InputError("--data: the validation split is empty; give more text")
    inputs, labels = np.zeros(rows * seq_len, np.int64), np.full(rows * seq_len, IGNORE_LABEL, np.int64)
    inputs[: len(tokens) - 1], labels[: len(tokens) - 1] = tokens[:-1], tokens[1:]
    inputs, labels = inputs.reshape(rows, seq_len), labels.reshape(rows, seq_len)
    for k in range(0, rows, batch_size):
        yield inputs[k : k + batch_size], labels[k : k + batch_size]
