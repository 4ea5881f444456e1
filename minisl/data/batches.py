"""Tokens to batches of (inputs, labels)."""

from functools import lru_cache

import numpy as np

from minisl.backend import IGNORE_LABEL, generator
from minisl.errors import InputError


class Batches:
    """Training batches as a function of the step: nothing to save, nothing to lose.

    The tokens are cut into sequences of seq_len; each epoch visits all of them once, in an order drawn from
    (seed, epoch). share: (rank, size), where batch_size is of all processes together and this one gets its rows.
    Raises InputError if there are too few tokens for one sequence.
    """

    def __init__(self, tokens, batch_size, seq_len, seed, share=(0, 1)):
        self.tokens, self.batch_size, self.seq_len, self.seed = tokens, batch_size, seq_len, seed
        self.sequences = (len(tokens) - 1) // seq_len
        if self.sequences < 1:
            raise InputError(f"--data: {len(tokens)} training tokens are too few for one sequence of --seq-len {seq_len} "
                             "and its label")
        self.rows, self.next = rows_of(batch_size, share), 0
        self.order = lru_cache(maxsize=2)(self._order)

    def __call__(self, k):
        """Batch number k = 0, 1, ...: inputs (B, T) and labels (B, T), the token after each input."""
        first = k * self.batch_size
        picks = [self.order(n // self.sequences)[n % self.sequences] for n in (first + row for row in self.rows)]
        rows = np.stack([self.sequence(p) for p in picks]).astype(np.int64)
        self.next = k + 1
        return rows[:, :-1], rows[:, 1:]

    def sequence(self, p):
        return self.tokens[p * self.seq_len : (p + 1) * self.seq_len + 1]

    def state(self):
        """The position after the last batch handed out."""
        return {"next": self.next}

    def restore(self, state):
        if not isinstance(state.get("next"), int) or state["next"] < 0:
            raise InputError("the saved position in the data is damaged")
        self.next = state["next"]

    def _order(self, epoch):
        return generator(self.seed, "data", epoch).permutation(self.sequences)


class PaddedBatches(Batches):
    """One document a sequence; each epoch visits every document once. document(p): the ids of document p after its end mark;
    count: how many there are; end: the id of the mark. The rest as in `Batches`."""

    def __init__(self, document, count, end, batch_size, seq_len, seed, share=(0, 1)):
        if count < 1:
            raise InputError("--data: no training document")
        self.document, self.sequences, self.end = document, count, end
        self.batch_size, self.seq_len, self.seed = batch_size, seq_len, seed
        self.rows, self.next = rows_of(batch_size, share), 0
        self.order = lru_cache(maxsize=2)(self._order)

    def __call__(self, k):
        return inputs_and_labels(np.stack(super().__call__(k)), self.end)

    def sequence(self, p):
        return padded(self.document(p), self.end, self.seq_len)


def rows_of(batch_size, share):
    """The rows of a batch that process `rank` of `size` gets, as a range.

    Raises InputError where there are more processes than rows.
    """
    rank, size = share
    if batch_size < size:
        raise InputError(f"--batch-size {batch_size}: fewer sequences than the {size} processes; each needs one at least")
    rows = np.array_split(np.arange(batch_size), size)[rank]
    return range(int(rows[0]), int(rows[-1]) + 1)


def padded(ids, end, seq_len):
    """(seq_len + 1,): the mark, a document, the mark, cut where they are longer, filled with IGNORE_LABEL where shorter."""
    row = np.full(seq_len + 1, IGNORE_LABEL, np.int64)
    ids = ids[:seq_len]
    row[0] = end
    row[1 : 1 + len(ids)] = ids
    if len(ids) < seq_len:
        row[1 + len(ids)] = end
    return row


def inputs_and_labels(pair, end):
    """Inputs and labels of rows from `padded`. An input after the document's end may be any id: its label is ignored, and no
    earlier token attends to it."""
    inputs, labels = pair
    return np.where(inputs == IGNORE_LABEL, end, inputs), labels


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


def padded_validation(tokenizer, documents, seq_len):
    """(rows (N, seq_len + 1) as `padded` makes them, the UTF-8 bytes of the text in them)."""
    rows, n_bytes = [], 0
    for ids, text in zip(tokenizer.encode_all(documents, seq_len + 1), documents):
        rows.append(padded(ids, tokenizer.end, seq_len))
        n_bytes += len((tokenizer.text_of_first(seq_len, text) if len(ids) > seq_len else text).encode())
    if not rows:
        raise InputError("--data: the validation split is empty; give more text")
    return np.stack(rows), n_bytes
