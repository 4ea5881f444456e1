"""Tokenizers, all of them in the format of Hugging Face's `tokenizers`: bytes, byte-level BPE, or a given file."""

import base64
import json
import os
import re
import threading
from collections import Counter
from contextlib import contextmanager
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from minisl.data.pieces import CONTEXT, PIECE, pieces, whole
from minisl.errors import InputError

MOST_IDS = 2**24  # the library writes a vocabulary with a place in memory for each id, also those left out
PROBE = "The 1st tést: naïve, 東京 🙂\n\tx_y = 'z' * 10**3\r\n"  # what a tokenizer from a file must take
END = "<|endoftext|>"  # stands before every document, and nowhere else
AT_ONCE = 1 << 20  # characters encoded at a time; the library takes about 200 bytes for each
LONGEST_WORD = 1024  # a BPE is trained on words of so many characters at most: time goes with the square
SAMPLE, SAMPLES = 1000, 64  # characters of how many documents tell what a tokenizer loses
BPE_TEXT = 1 << 24  # characters that a BPE is trained on, spread over the text, where there are more


class Tokenizer:
    """Text to ids and back. vocab_size: number of ids; end: the id of the mark between documents."""

    def __init__(self, inner, where="tokenizer"):
        self.inner, self.where = inner, where
        inner.no_truncation()
        inner.no_padding()
        inner.encode_special_tokens = True  # a mark that is spelled out in a text is text
        self.json = inner.to_str()
        self.vocab_size = max(inner.get_vocab().values(), default=-1) + 1  # a given file may leave ids out
        known = (inner.token_to_id(t) for t in (END, "</s>", "<eos>", "<|end_of_text|>"))
        self.end = next((i for i in known if i is not None), None)
        if self.end is None:
            raise InputError(f"{where}: has no end-of-text token; expected one of {END}, </s>, <eos>, <|end_of_text|>")
        with in_words(where):
            self._keep_mark_apart()

    def _keep_mark_apart(self):
        """Where the vocabulary spells a text's "</s>" with the mark's own id, break such a text after its first character."""
        mark = self.inner.id_to_token(self.end)
        spelled = self.inner.encode_batch([mark, f" {mark} a", f"a{mark}a"], add_special_tokens=False)
        if len(mark) > 1 and any(self.end in encoding.ids for encoding in spelled):
            inside = Regex(f"{quoted(mark[0])}(?={quoted(mark[1:])})")
            before = [self.inner.pre_tokenizer] if self.inner.pre_tokenizer else []
            self.inner.pre_tokenizer = pre_tokenizers.Sequence(
                [*before, pre_tokenizers.Split(inside, "merged_with_previous")])

    def encode(self, text):
        """str to a list of ids, without any mark added. Raises InputError for what a given tokenizer.json cannot do."""
        return self.encode_all([text])[0].tolist()

    def encode_all(self, documents, limit=None):
        """The ids of each document, without marks, as uint32 arrays; the first `limit` of each."""
        parts = [[np.zeros(0, np.uint32)] for _ in documents]
        for n, ids in self.in_pieces(documents):
            parts[n].append(ids)
        return [np.concatenate(ids)[:limit] for ids in parts]

    def encode_documents(self, documents):
        """All documents as one array of ids, the end mark before each."""
        return np.concatenate(list(self.marked(documents)))

    def marked(self, documents):
        """As `encode_documents`, in pieces."""
        dtype, begun = np.uint16 if self.vocab_size <= 2**16 else np.uint32, 0
        for n, ids in self.in_pieces(documents):
            if n == begun:
                yield np.array([self.end], dtype)
                begun += 1
            yield ids.astype(dtype)

    def in_pieces(self, documents):
        """Yields (number of a document, ids of its next piece), at least one piece of each document. The mark is never among
        them: where a tokenizer has nothing else for a text, it is lost (see `lost`)."""
        waiting, size = [], 0
        for n, document in enumerate(documents):
            for before, piece in pieces(document, self.apart):
                waiting.append((n, before, piece))
                size += len(piece)
                if size >= AT_ONCE:
                    yield from self._encoded(waiting)
                    waiting, size = [], 0
        yield from self._encoded(waiting)

    def _encoded(self, waiting):
        with in_words(self.where):
            found = self.inner.encode_batch_fast([before + piece for _, before, piece in waiting], add_special_tokens=False)
            for (n, before, _), encoding in zip(waiting, found):
                ids = np.array(encoding.ids, np.uint32)[len(self._plain(before)) if before else 0 :]
                yield n, ids[ids != self.end]

    def _plain(self, text):
        return self.inner.encode(text, add_special_tokens=False).ids

    def apart(self, text, at):
        """Have both sides of this place in a text the ids that they have together?"""
        with in_words(self.where):
            left = self._plain(text[max(0, at - CONTEXT) : at])
            return self._plain(text[max(0, at - CONTEXT) : at + CONTEXT])[: len(left)] == left

    def text_of_first(self, count, text):
        """The beginning of a text that its first `count` ids stand for."""
        with in_words(self.where):
            encoding = self.inner.encode(text[:PIECE], add_special_tokens=False)
        ends = [end for i, (_, end) in zip(encoding.ids, encoding.offsets) if i != self.end]
        return text[: ends[count - 1]] if len(ends) > count else text

    def lost(self, documents):
        """The share of the documents' characters that do not come back: unknown ones, and what is normalised away."""
        total, gone = 0, 0
        for text in map(whole, documents):
            there = Counter(text)
            there.subtract(self.decode([i for i in self.encode(text) if i != self.unknown]))
            total += len(text)
            gone += sum(n for n in there.values() if n > 0)
        return gone / max(1, total)

    @cached_property
    def unknown(self):
        """The id for what is not in the vocabulary, or None."""
        model = json.loads(self.json)["model"]
        token = model.get("unk_token")
        return model.get("unk_id") if token is None else self.inner.token_to_id(token)

    def decode(self, ids):
        with in_words(self.where):
            return self.inner.decode([int(i) for i in ids], skip_special_tokens=True)

    @cached_property
    def anchor(self):
        """An id after which every other is spelled as in any text, which is what decoding in pieces needs; None where the decoder
        is not known to decode each token by itself, but for the first and for bytes of one character."""
        decoder = json.loads(self.json).get("decoder")
        if not re.fullmatch("[rm]*b?[rm]*f?r*s?|lf?|w", "".join(map(letter, parts_of(decoder)))):
            return None
        ids = (i for i in sorted(self.inner.get_vocab().values()) if not self.is_silent(i) and not self.is_byte(i))
        return next((i for i in ids if self.decode([i]).strip(" \ufffd")), None)

    def is_byte(self, i):
        """Is this the id of a token like <0xE6>, which may stand for a byte?"""
        token = self.inner.id_to_token(i)
        return len(token) == 6 and token.startswith("<0x") and token.endswith(">")

    def is_silent(self, i):
        """Is this an id that decoding leaves out, a mark or none at all?"""
        return i in self._marks or self.inner.id_to_token(i) is None

    @cached_property
    def _marks(self):
        return {i for i, token in self.inner.get_added_tokens_decoder().items() if token.special}

    def decode_documents(self, ids):
        """The texts between end marks, a blank line between them."""
        texts = [self.decode(list(part)) for mark, part in groupby(ids, lambda i: i == self.end) if not mark]
        return "\n\n".join(text.strip("\n") for text in texts)

    def to_json(self):
        return self.json


def make_tokenizer(kind, documents, vocab_size):
    """A tokenizer by name: "bytes" (257 ids), "bpe" (byte-level, trained on the documents), or a tokenizer.json path.

    vocab_size: how many ids it may have. Raises InputError: no such file, more ids than that, or too few for a BPE.
    """
    if kind == "bpe":
        if vocab_size < 257:
            raise InputError(f"--vocab-size {vocab_size}: byte-level BPE needs at least 257 (256 bytes and the end mark)")
        inner = byte_level(models.BPE())
        whole = inner.pre_tokenizer
        inner.pre_tokenizer = pre_tokenizers.Sequence([whole, pre_tokenizers.Split(Regex(f".{{{LONGEST_WORD}}}"), "isolated")])
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet(),
                                      show_progress=False)
        interruptible(lambda: inner.train_from_iterator(bpe_text(list(documents)), trainer))
        inner.pre_tokenizer = whole
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


def lost_text(tokenizer, documents):
    """[a line] where a tokenizer loses text, which makes bits per byte too low, else []. Looks at some of the documents."""
    share = tokenizer.lost([document[:SAMPLE] for document in documents[:: max(1, len(documents) // SAMPLES)]])
    return [f"--tokenizer {tokenizer.where}: loses {share:.1%} of the held-out text (unknown, or normalised away); bits per byte "
            "are too low, they count its bytes too"] if share >= 0.001 else []


def parts_of(decoder):
    """The decoders, described as in a tokenizer.json, that one consists of, in order."""
    if not decoder:
        return []
    return [part for inner in decoder["decoders"] for part in parts_of(inner)] if "decoders" in decoder else [decoder]


def letter(decoder):
    """A decoder's kind, "?" for one that may change what is beside a token."""
    kind = decoder["type"]
    if kind == "Replace":  # of one character; a longer one could begin in one token and end in the next
        return "r" if len(decoder["pattern"].get("String", "")) == 1 and decoder["content"] == " " else "?"
    if kind == "Strip":
        return "s" if decoder["stop"] == 0 else "?"
    return {"ByteLevel": "l", "ByteFallback": "b", "Fuse": "f", "Metaspace": "m", "WordPiece": "w"}.get(kind, "?")


def bpe_text(documents):
    """What a BPE is trained on: the documents in pieces, of a large text every second, every third and so on."""
    step = -(-sum(map(len, documents)) // BPE_TEXT)
    return islice((piece for document in documents for _, piece in pieces(document)), 0, None, max(1, step))


def interruptible(work):
    """Do work of the library's that takes long in a thread, so that Ctrl-C is heard. Raises what `work` raises."""
    errors = []

    def run():
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():  # in short: Ctrl-C just before a wait does not end it
        thread.join(0.1)
    if errors:
        raise errors[0]


def quoted(text):
    """Text for a `Regex`, as itself."""
    return "".join(f"\\x{{{ord(c):x}}}" for c in text)


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
