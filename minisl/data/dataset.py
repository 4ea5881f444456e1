"""`open_data`: whatever `--data` names, as batches to train on and batches to validate on."""

import numpy as np

from minisl.data.batches import Batches, PaddedBatches, inputs_and_labels, padded_validation, validation_batches
from minisl.data.corpora import load_corpus
from minisl.data.pieces import n_bytes
from minisl.data.shards import open_shards
from minisl.data.sources import digest, open_source
from minisl.data.stream import Shuffled, Stream
from minisl.data.tokenizers import Tokenizer, lost_text, make_tokenizer, needs
from minisl.data.tokens import tokenize
from minisl.errors import InputError

PROTOCOLS = ("packed", "padded")
MANY = 1 << 24  # ids looked at at a time
BPE_CHARACTERS = 10_000_000  # of a stream, from which a BPE is trained


class Data:
    """What a model is trained on.

    name: as asked for. sha256: of all the text; None for a stream. tokenizer. words: one line to print.
    batches: `batches(k)` -> inputs, labels, each int64 (rows, T), labels -100 where ignored, for k = 0, 1, ... in order;
    `batches.state()` is the position after the last one, for JSON, and `batches.restore(state)` goes on from it.
    validation_bytes: UTF-8 bytes of the text behind `validation()`. notes: lines that say what of the data is not used.
    """

    def __init__(self, name, sha256, tokenizer, batches, held_out, protocol, words, notes=None):
        """held_out: documents; words: what there is to train on."""
        self.name, self.sha256, self.tokenizer, self.batches = name, sha256, tokenizer, batches
        self.notes = [] if notes is None else notes
        self.notes += lost_text(tokenizer, held_out)
        self.packed = protocol == "packed"
        if self.packed:
            self.held_out, self.validation_bytes = tokenize(tokenizer, held_out), n_bytes(held_out)
            tokens = len(self.held_out)
        else:
            self.held_out, self.validation_bytes = padded_validation(tokenizer, held_out, batches.seq_len)
            tokens = int((self.held_out[:, 1:] >= 0).sum())
        self.words = f"{name}: {words}, {tokens:,} held out ({self.validation_bytes:,} bytes)"

    def validation(self):
        """Yields (inputs, labels) of all held-out documents, batch_size rows each, the same in every process."""
        size = self.batches.batch_size
        if self.packed:
            yield from validation_batches(self.held_out, size, self.batches.seq_len)
        else:
            for k in range(0, len(self.held_out), size):
                rows = self.held_out[k : k + size]
                yield inputs_and_labels((rows[:, :-1], rows[:, 1:]), self.tokenizer.end)

    def close(self):
        """End what runs in the background. Batches can still be asked for."""
        if isinstance(self.batches, Stream):
            self.batches.close()

    def left_out(self):
        """How many records without text a stream has passed over so far, in words; else ""."""
        return self.batches.source.left_out() if isinstance(self.batches, Stream) else ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def open_data(sources, tokenizer="bpe", vocab_size=32000, *, batch_size, seq_len, seed=42, protocol="packed", share=(0, 1),
              workers=0, folder=None, text_field="text", validation_documents=None, corpus=None):
    """A Data from a list of sources: text held in memory (see `load_corpus`), files of documents, a dataset of the Hugging Face
    hub, or a folder that `python -m minisl.data prepare` wrote (see data/README.md).

    tokenizer: bytes, bpe (trained on the data), a tokenizer.json, or a Tokenizer. vocab_size: how many ids the model has. share:
    (rank, size) of this process, whose rows alone it gets. workers: processes that tokenise a stream. folder: where rank 0 keeps
    the ids of a large text while this runs, the others do in the system's folder for such. corpus: the text of the sources, where
    it was read before. Raises InputError.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"--protocol {protocol}: unknown; allowed: {', '.join(PROTOCOLS)}")
    rest = {"batch_size": batch_size, "seq_len": seq_len, "seed": seed, "share": share}
    prepared = None if corpus else open_shards(sources)
    if prepared:
        refuse_held_out(validation_documents, sources)
        tokenizer = prepared.check_tokenizer(tokenizer, vocab_size)
        return Data(prepared.name, prepared.sha256, tokenizer, prepared.batches(protocol, **rest), prepared.held_out(), protocol,
                    f"{len(prepared):,} training tokens in {prepared.files}")
    source = None if corpus else open_source(sources, text_field)
    if source is None:
        refuse_held_out(validation_documents, sources)
        corpus = corpus or load_corpus(sources)
        tokenizer = tokenizer_of(tokenizer, lambda: corpus.train, vocab_size)
        tokens = tokenize(tokenizer, corpus.train, None if share[0] else folder)
        if protocol == "packed":
            batches = Batches(tokens, **rest)
        else:
            batches = PaddedBatches(documents_of(tokens, tokenizer.end), len(corpus.train), tokenizer.end, **rest)
        words = f"{len(tokens):,} training tokens in {batches.sequences:,} sequences of {seq_len} an epoch"
        return Data(corpus.name, corpus.sha256, tokenizer, batches, corpus.validation, protocol, words, corpus.notes.copy())
    held_out = source.hold_out(validation_documents)
    try:
        tokenizer = tokenizer_of(tokenizer, lambda: first_documents(source, seed, held_out), vocab_size)
    finally:
        source.close()
    batches = Stream(source, tokenizer, protocol=protocol, workers=workers, held_out=held_out, **rest)
    shards = len(source.shards)
    return Data(source.name, None, tokenizer, batches, held_out, protocol, f"a stream of {shards:,} file{'s' * (shards > 1)}",
                source.notes)


def in_memory(sources, text_field="text"):
    """Are these sources text that is held in memory, and neither a stream nor shards?"""
    return open_shards(sources) is None and open_source(sources, text_field) is None


def tokenizer_of(kind, documents, vocab_size):
    """A Tokenizer of any kind that `open_data` takes. documents: a function, called only to train one."""
    if isinstance(kind, Tokenizer):
        if needs(kind, vocab_size):
            raise InputError(f"--vocab-size {vocab_size}: the tokenizer has {kind.vocab_size} ids")
        return kind
    return make_tokenizer(str(kind), documents() if kind == "bpe" else [], vocab_size)


def first_documents(source, seed, held_out):
    """The documents a stream begins with, as many as a BPE is trained on."""
    found, size = [], 0
    for text in Shuffled(source, seed, frozenset(map(digest, held_out)), repeat=False):
        found.append(text)
        size += len(text)
        if size >= BPE_CHARACTERS:
            break
    return found


def documents_of(tokens, end):
    """p -> the ids of document p, without its mark."""
    parts = [np.flatnonzero(tokens[n : n + MANY] == end) + n for n in range(0, len(tokens), MANY)]
    starts = np.concatenate([*parts, [len(tokens)]])
    return lambda p: tokens[starts[p] + 1 : starts[p + 1]]


def refuse_held_out(wanted, sources):
    """Raise InputError where --validation-documents is given for data whose held-out part is fixed."""
    if wanted is not None:
        raise InputError(f"--validation-documents {wanted}: --data {' '.join(sources)} is no stream, what is held out is fixed")
