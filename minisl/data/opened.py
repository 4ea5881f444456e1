"""temporary"""
from dataclasses import dataclass

import numpy as np

from minisl.data.batches import Batches, validation_batches
from minisl.data.corpora import load_corpus
from minisl.data.tokenizers import make_tokenizer
from minisl.data.tokens import tokenize


class Share:
    def __init__(self, batches, share):
        self.batches, self.share = batches, share

    def __call__(self, k):
        rows = np.array_split(np.arange(self.batches.batch_size), self.share[1])[self.share[0]]
        return tuple(a[rows] for a in self.batches(k))

    def state(self):
        return {}

    def restore(self, state):
        pass


@dataclass
class Data:
    name: str
    sha256: str
    tokenizer: object
    batches: object
    validation: object
    validation_bytes: int
    words: str

    def close(self):
        pass


def open_data(sources, tokenizer="bpe", vocab_size=32000, *, batch_size, seq_len, seed, share=(0, 1), folder=None, corpus=None, **k):
    corpus = corpus or load_corpus(sources)
    tokenizer = tokenizer if not isinstance(tokenizer, str) else make_tokenizer(tokenizer, corpus.train, vocab_size)
    tokens, held_out = (tokenize(tokenizer, documents, folder) for documents in (corpus.train, corpus.validation))
    n = sum(len(d.encode()) for d in corpus.validation)
    batches = Batches(tokens, batch_size, seq_len, seed)
    words = (f"{corpus.name}: {len(tokens):,} training tokens, {len(held_out):,} held out ({n:,} bytes), "
          f"{batches.sequences:,} sequences of {seq_len} an epoch")
    return Data(corpus.name, corpus.sha256, tokenizer, Share(batches, share), lambda: validation_batches(held_out, batch_size, seq_len), n, words)
