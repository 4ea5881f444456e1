"""A folder of token shards: `prepare` writes it once, training maps it into memory and finds any sequence at once.

index.json       what is there, with the SHA-256 of every file
tokenizer.json   what made the ids
tokens-00000.npy, documents-00000.npy    the ids, the end mark before each document, and where each document's mark is
validation.jsonl the held-out documents, as text
"""

import hashlib
import json
import os
from contextlib import closing
from pathlib import Path

import numpy as np

from minisl.backend import generator
from minisl.data.batches import Batches, PaddedBatches
from minisl.data.corpora import load_corpus
from minisl.data.files import read_records
from minisl.data.sources import HELD_OUT, digest, open_source
from minisl.data.stream import CHARACTERS, DOCUMENTS
from minisl.data.tokenizers import Tokenizer, load_tokenizer, lost_text, make_tokenizer, needs
from minisl.data.workers import Pool, encode_here
from minisl.errors import InputError
from minisl.files import new_folder, sha256

FORMAT = "minisl shards 1"
SHARD_TOKENS = 1 << 26
CHECK_ALL = 1 << 30  # bytes of shards up to which opening them compares every hash
COUNTS = ("tokens", "documents")


def prepare(sources, out, kind, vocab_size, shard_tokens=SHARD_TOKENS, workers=0, validation_documents=None, field="text",
            say=lambda tokens: None, notes=None):
    """Write the sources' documents, in order, as shards of at least `shard_tokens` to the folder `out`; returns its index. notes:
    a list, to which lines about what is not in them are added.

    All is written to OUT.preparing, which takes the name OUT once it is complete and on disk: see `new_folder`, which also says
    what OUT may be. Raises InputError.
    """
    notes = [] if notes is None else notes
    with new_folder(out, "--out") as draft:
        source = open_source(sources, field)
        if source is None:
            corpus = load_corpus(sources)
            documents, held_out = corpus.train, corpus.validation
            notes += corpus.notes
            if validation_documents is not None:
                raise InputError("--validation-documents: only for streams; every 20th text file is held out")
        else:
            held_out = source.hold_out(HELD_OUT if validation_documents is None else validation_documents)
            documents = in_order(source, held_out)
        tokenizer = make_tokenizer(kind, sample(documents if source is None else in_order(source, held_out)), vocab_size)
        (draft / "tokenizer.json").write_bytes(tokenizer.to_json().encode())
        lines = [json.dumps({"text": text}) + "\n" for text in held_out]
        (draft / "validation.jsonl").write_bytes("".join(lines).encode())
        feed = encode_here(tokenizer, chunks(documents)) if not workers else Pool(tokenizer, chunks(documents), workers)
        with closing(feed):
            shards = write_shards(draft, (ids for _, many in feed for ids in many), tokenizer, shard_tokens, say)
        notes += lost_text(tokenizer, held_out) + ([*source.notes, *filter(None, [source.left_out()])] if source else [])
        index = {"format": FORMAT, "name": " ".join(sources), "vocab_size": tokenizer.vocab_size,
                 **{name: sum(shard[name] for shard in shards) for name in COUNTS},
                 "validation_documents": len(held_out), "shards": shards,
                 "sha256": {name: sha256(draft / name) for name in ("tokenizer.json", "validation.jsonl")}}
        (draft / "index.json").write_bytes((json.dumps(index, indent=1) + "\n").encode())
    return index


def in_order(source, held_out):
    """The documents of a source but the held-out ones, as they come."""
    hashes = set(map(digest, held_out))
    source.begin()
    try:
        yield from (text for text in source if digest(text) not in hashes)
    finally:
        source.close()


def sample(documents, characters=10_000_000):
    """The first documents, as many as a BPE is trained on."""
    size = 0
    for text in documents:
        yield text
        size += len(text)
        if size >= characters:
            return


def chunks(documents):
    """(None, texts) for documents in groups of a size that is worth tokenising together."""
    texts, size = [], 0
    for text in documents:
        texts.append(text)
        size += len(text)
        if len(texts) == DOCUMENTS or size >= CHARACTERS:
            yield None, texts
            texts, size = [], 0
    if texts:
        yield None, texts


def write_shards(folder, many, tokenizer, shard_tokens, say):
    """Write the groups of token ids that `many` yields; returns what the index says of each shard."""
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    shards, parts, starts, size = [], [], [], 0

    def flush():
        files = dict(zip(COUNTS, (path(folder, name, len(shards)) for name in COUNTS)))
        for name, array in zip(COUNTS, (np.concatenate(parts).astype(dtype), np.array(starts, np.int64))):
            np.save(files[name], array)
        shards.append({"tokens": size, "documents": len(starts), "sha256": {n: sha256(p) for n, p in files.items()}})

    mark = np.array([tokenizer.end], np.uint32)
    for ids in many:
        starts.append(size)
        parts += [mark, ids]
        size += 1 + len(ids)
        say(1 + len(ids))
        if size >= shard_tokens:
            flush()
            parts, starts, size = [], [], 0
    if parts:
        flush()
    if not shards:
        raise InputError("--data: no document to train on")
    return shards


def path(folder, name, number):
    """Where a shard's array is."""
    return folder / f"{name}-{number:05}.npy"


def open_shards(sources):
    """A Prepared where `--data` is a folder of shards, else None. Raises InputError."""
    names = "index.json", "tokenizer.json"
    folders = [source for source in sources if source and all(os.path.isfile(os.path.join(source, name)) for name in names)]
    if not folders:
        return None
    if len(sources) > 1:
        raise InputError(f"--data {' '.join(sources)}: a folder of shards ({folders[0]}) cannot be mixed with others")
    return Prepared(Path(folders[0]))


class Prepared:
    """A folder of shards as one long array of ids: `len`, and slices of it. Raises InputError naming a file that is missing,
    truncated or damaged; hashes are compared up to 1 GB, beyond it sizes (`check` compares all)."""

    def __init__(self, folder):
        self.folder, self.name = folder, str(folder)
        index = read_index(folder / "index.json")
        self.vocab_size, self.shards = index["vocab_size"], index["shards"]
        self.hashes = {folder / name: index["sha256"][name] for name in ("tokenizer.json", "validation.jsonl")}
        arrays = [[self._map(name, n) for name in COUNTS] for n in range(len(self.shards))]
        self.tokens, self.starts = zip(*arrays)
        self.hashes |= {path(folder, name, n): shard["sha256"][name] for n, shard in enumerate(self.shards) for name in COUNTS}
        large = sum(array.nbytes for pair in arrays for array in pair) > CHECK_ALL
        self.check([file for file in self.hashes if not (large and file.suffix == ".npy")])
        self.ends = np.cumsum([len(tokens) for tokens in self.tokens])
        self.document_ends = np.cumsum([len(starts) for starts in self.starts])
        self.sha256 = hashlib.sha256(json.dumps([*self.hashes.values()]).encode()).hexdigest()
        self.files = f"{len(self.shards)} shard{'s' * (len(self.shards) > 1)}"

    def _map(self, name, number):
        file, expected = path(self.folder, name, number), self.shards[number][name]
        try:
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise InputError(f"{file}: no such file, but index.json names it") from None
        except Exception as error:  # whatever NumPy makes of a damaged header
            raise InputError(f"{file}: damaged or truncated ({error})") from None
        kinds = (np.uint16, np.uint32) if name == "tokens" else (np.int64,)
        if array.dtype not in kinds or array.shape != (expected,):
            raise InputError(f"{file}: damaged (holds {array.dtype} of shape {array.shape}; index.json says {expected:,} {name})")
        return array

    def check(self, files=None):
        """Compare hashes, of all files where none are given."""
        for file in self.hashes if files is None else files:
            try:
                sound = sha256(file) == self.hashes[file]
            except OSError as error:
                raise InputError(f"{file}: cannot be read ({error.strerror or error})") from None
            if not sound:
                raise InputError(f"{file}: damaged (its SHA-256 is not the one in index.json)")

    def check_tokenizer(self, kind, vocab_size):
        """The shards' tokenizer. Raises InputError where the model has too few ids for it, or another was asked for."""
        tokenizer = load_tokenizer(self.folder / "tokenizer.json")
        if needs(tokenizer, vocab_size):
            raise InputError(f"--data {self.folder}: its tokenizer has {tokenizer.vocab_size} ids; give --vocab-size "
                             f"{tokenizer.vocab_size}")
        if kind != "bpe":  # the default: the shards' own
            other = kind if isinstance(kind, Tokenizer) else make_tokenizer(str(kind), [], vocab_size)
            if other.to_json() != tokenizer.to_json():
                raise InputError(f"--data {self.folder}: was made with another tokenizer; leave out --tokenizer")
        return tokenizer

    def __len__(self):
        return int(self.ends[-1])

    def __getitem__(self, where):
        """The ids of a slice."""
        start, stop, _ = where.indices(len(self))
        parts = []
        while start < stop:
            n = int(np.searchsorted(self.ends, start, "right"))
            first = int(self.ends[n]) - len(self.tokens[n])
            parts.append(self._sound(n, start - first, stop - first))
            start += len(parts[-1])
        return np.concatenate(parts) if parts else np.zeros(0, np.uint32)

    def document(self, p):
        """The ids of document p, without its mark."""
        n = int(np.searchsorted(self.document_ends, p, "right"))
        starts = self.starts[n]
        k = int(p) - (int(self.document_ends[n]) - len(starts))
        stop = int(starts[k + 1]) if k + 1 < len(starts) else len(self.tokens[n])
        return self._sound(n, int(starts[k]) + 1, stop)

    def _sound(self, n, start, stop):
        ids = self.tokens[n][start:stop]
        if len(ids) and ids.max() >= self.vocab_size:
            raise InputError(f"{path(self.folder, 'tokens', n)}: damaged (it holds an id beyond the {self.vocab_size:,} of the "
                             "tokenizer)")
        return ids

    def held_out(self):
        return [text for text in read_records(self.folder / "validation.jsonl", "text") if text]

    def batches(self, protocol, *, batch_size, seq_len, seed, share):
        """Batches or PaddedBatches, in an order that takes no memory."""
        rest = (batch_size, seq_len, seed, share)
        if protocol == "packed":
            batches = Batches(self, *rest)
        else:
            end = load_tokenizer(self.folder / "tokenizer.json").end
            batches = PaddedBatches(self.document, int(self.document_ends[-1]), end, *rest)
        batches.order = lambda epoch: Permutation(batches.sequences, generator(seed, "shards", epoch))
        return batches


def read_index(file):
    """An index.json, with all its fields checked. Raises InputError."""
    try:
        index = json.loads(file.read_bytes())
        if index["format"] != FORMAT:
            raise ValueError(f"its format is {index['format']!r}")
        counts = [index["vocab_size"], *(shard[name] for shard in index["shards"] for name in COUNTS)]
        hashes = [*(index["sha256"][name] for name in ("tokenizer.json", "validation.jsonl")),
                  *(shard["sha256"][name] for shard in index["shards"] for name in COUNTS)]
        if not index["shards"] or not all(type(n) is int and 0 < n < 2**62 for n in counts):
            raise ValueError("a count is wrong")
        if not all(isinstance(text, str) for text in hashes):
            raise ValueError("a hash is wrong")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{file}: damaged or not written by minisl.data prepare ({type(error).__name__}: {error})") from None
    return index


class Permutation:
    """0 ... n - 1 in an order drawn from `rng`, one at a time and without a table: a Feistel network of four rounds permutes the
    next power of four, and what falls outside is permuted again until it lies within."""

    def __init__(self, n, rng):
        self.n, self.half = n, max(1, ((n - 1).bit_length() + 1) // 2)
        self.keys = [int(key) for key in rng.integers(0, 2**63, 4)]

    def __getitem__(self, k):
        mask = (1 << self.half) - 1
        while True:
            left, right = k >> self.half, k & mask
            for key in self.keys:
                left, right = right, left ^ (mixed(right ^ key) & mask)
            k = left << self.half | right
            if k < self.n:
                return k


def mixed(x):
    """Scatter 64 bits (the finaliser of SplitMix64)."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
    x = (x ^ x >> 27) * 0x94D049BB133111EB & (1 << 64) - 1
    return x ^ x >> 31
