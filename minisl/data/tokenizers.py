"""Tokenizers, all of them in the format of Hugging Face's `tokenizers`: bytes, byte-level BPE, or a given file."""

import base64
import json
import os
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from minisl.errors import InputError

MOST_IDS = 2**24  # the library writes a vocabulary with a place in memory for each id, also those left out
PROBE = "The 1st tést: naïve, 東京 🙂\n\tx_y = 'z' * 10**3\r\n"  # what a tokenizer from a file must take
END = "<|endoftext|>"  # stands before every document, and nowhere else


class Tokenizer:
    """Text to ids and back. vocab_size: number of ids; end: the id of the mark between documents."""

    def __init__(self, inner, where="tokenizer"):
        self.inner, self.where = inner, where
        inner.no_truncation()
        inner.no_padding()
        inner.encode_special_tokens = True  # a mark that is spelled out in a text is text
        self.vocab_size = max(inner.get_vocab().values(), default=-1) + 1  # a given file may leave ids out
        known = (inner.token_to_id(t) for t in (END, "</s>", "<eos>", "<|end_of_text|>"))
        self.end = next((i for i in known if i is not None), None)
        if self.end is None:
            raise InputError(f"{where}: has no end-of-text token; expected one of {END}, </s>, <eos>, <|end_of_text|>")

    def encode(self, text):
        """str to a list of ids, without any mark added. Raises InputError for what a given tokenizer.json cannot do."""
        with in_words(self.where):
            return self.inner.encode(text, add_special_tokens=False).ids

    def encode_documents(self, documents):
        """All documents as one array of ids, the end mark before each."""
        parts = []
        with in_words(self.where):
            for encoding in self.inner.encode_batch_fast(documents, add_special_tokens=False):
                parts += [[self.end], encoding.ids]
        return np.concatenate(parts).astype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)

    def decode(self, ids):
        with in_words(self.where):
            return self.inner.decode([int(i) for i in ids], skip_special_tokens=True)

    def decode_documents(self, ids):
        """The texts between end marks, a blank line between them."""
        texts = [self.decode(list(part)) for mark, part in groupby(ids, lambda i: i == self.end) if not mark]
        return "\n\n".join(text.strip("\n") for text in texts)

    def to_json(self):
        return self.inner.to_str()


def make_tokenizer(kind, documents, vocab_size):
    """A tokenizer by name: "bytes" (257 ids), "bpe" (byte-level, trained on the documents), or a tokenizer.json path.

    vocab_size: how many ids it may have. Raises InputError: no such file, more ids than that, or too few for a BPE.
    """
    if kind == "bpe":
        if vocab_size < 257:
            raise InputError(f"--vocab-size {vocab_size}: byte-level BPE needs at least 257 (256 bytes and the end mark)")
        inner = byte_level(models.BPE())
        inner.train_from_iterator(documents, trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet(), show_progress=False))
        return Tokenizer(inner)
    if kind == "bytes":
        tokenizer = Tokenizer(byte_level(models.BPE({c: i + 1 for i, c in enumerate(alphabet())} | {END: 0}, [])))
    else:
        tokenizer = load_tokenizer(kind)
    if needs(tokenizer, vocab_size):
        raise InputError(f"--tokenizer {kind}: has {tokenizer.vocab_size} ids, the model's vocab_size is {vocab_size}; "
                         f"give another tokenizer, or a new model with --vocab-size {tokenizer.vocab_size}")
    return tokenizer


def needs(tokenizer, vocab_size):
    """Can a text here have an id of `vocab_size` or above? No text has those of special tokens, such as a <pad> that was added
    when the model was done, but for the mark between documents."""
    special = {i for i, token in tokenizer.inner.get_added_tokens_decoder().items() if token.special} - {tokenizer.end}
    return any(i >= vocab_size and i not in special for i in tokenizer.inner.get_vocab().values())


def load_tokenizer(path):
    """From a tokenizer.json. Raises InputError: no such file, not a tokenizer, or one that cannot take every text."""
    if not Path(path).is_file():
        raise InputError(f"--tokenizer {path}: no such file; allowed: bytes, bpe, or a tokenizer.json")
    with in_words(f"--tokenizer {path}: not a tokenizer.json"):
        if b'"precompiled_charsmap"' in (content := Path(path).read_bytes()):
            check_tables(json.loads(content), path)
    with quiet_panics(), in_words(f"--tokenizer {path}: not a tokenizer.json"):
        inner = tokenizers.Tokenizer.from_file(str(path))
    with quiet_panics():
        tokenizer = Tokenizer(inner, where=str(path))
        if tokenizer.vocab_size > MOST_IDS:
            raise InputError(f"--tokenizer {path}: has an id {tokenizer.vocab_size - 1}; at most {MOST_IDS - 1} is allowed")
        tokenizer.decode(tokenizer.encode_documents(["", PROBE]))
    return tokenizer


def check_tables(content, path):
    """Raise InputError for a character table that says it is longer than it is: the library would ask for that much memory, and
    end the process where there is not so much."""
    stack = [content]
    while stack:
        here = stack.pop()
        if isinstance(here, list):
            stack += here
        elif isinstance(here, dict):
            stack += here.values()
            if isinstance(table := here.get("precompiled_charsmap"), str):
                try:
                    table = base64.b64decode(table)
                except ValueError:
                    table = b""
                if len(table) < 4 or int.from_bytes(table[:4], "little") > len(table) - 4:
                    raise InputError(f"--tokenizer {path}: not a tokenizer.json (a precompiled_charsmap is cut short)")


@contextmanager
def in_words(where):
    """What the library raises becomes an InputError: plain Exceptions, and panics, which are none."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{where} ({error})") from None


@contextmanager
def quiet_panics():
    """The library prints a panic before it raises it, past Python: within this block nothing reaches the process's stderr."""
    try:
        kept = os.dup(2)
    except OSError:  # there is none
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def byte_level(model):
    """A tokenizer of this model over bytes, with the end mark."""
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([END])
    return inner


def alphabet():
    """The 256 printable characters that stand for bytes."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())
