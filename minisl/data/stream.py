"""A stream of documents: shuffled through a buffer, tokenised, cut into batches; its position is a small dictionary."""

import hashlib
from collections import deque

import numpy as np

from minisl.backend import generator
from minisl.data.batches import inputs_and_labels, padded, rows_of
from minisl.data.sources import digest
from minisl.data.workers import Pool, encode_here
from minisl.errors import InputError

BUFFER = 1000  # documents among which the next is drawn
MARK_EVERY = 100  # documents between positions of the source that are remembered
DOCUMENTS, CHARACTERS = 64, 1 << 20  # of a chunk, which is what one tokenising process gets at a time
START = {"epoch": 0, "handed": 0, "read": 0, "buffer": [], "mark": [0, [0, 0]]}


class Shuffled:
    """The documents of a source without the held-out ones, epoch after epoch, each in an order of its own: the next is drawn from
    a buffer of the `size` that were read last and not drawn yet.

    The draws are a function of (seed, epoch, position), so that the state is: how many were drawn, the numbers of those in the
    buffer, and a position of the source at or before the oldest of them. Going on reads again from there: about 8 times `size`
    documents, and within a file all before them.
    """

    def __init__(self, source, seed, held_out=frozenset(), size=BUFFER, state=START, repeat=True):
        self.source, self.seed, self.held_out, self.size, self.repeat = source, seed, held_out, size, repeat
        self._begin(state["epoch"], *state["mark"])
        self.buffer = dict.fromkeys(state["buffer"])  # number of a document -> its text
        for number in range(self.read, state["read"]):
            text = self._read()
            if text is None:
                raise InputError(f"--data {source.name}: has fewer documents than when this run was saved")
            if number in self.buffer:
                self.buffer[number] = text
        self.numbers, self.handed = list(state["buffer"]), state["handed"]
        self.random = self._random()

    def _begin(self, epoch, number=0, position=(0, 0)):
        self.source.begin(self.seed, epoch, position)
        self.epoch, self.handed, self.read, self.over = epoch, 0, number, False
        self.marks, self.numbers, self.buffer = deque(), [], {}
        self.random = self._random()

    def _random(self):
        bits = generator(self.seed, "buffer", self.epoch).bit_generator
        return bits.advance(self.handed)

    def _read(self):
        """The next document of the source, None at the end."""
        if self.read % MARK_EVERY == 0 or not self.marks:
            self.marks.append([self.read, self.source.position()])
        for text in self.source:
            if not (self.held_out and digest(text) in self.held_out):
                self.read += 1
                return text
        self.over = True
        return None

    def __iter__(self):
        return self

    def __next__(self):
        while True:
            while len(self.numbers) < self.size and not self.over:
                text = self._read()
                if text is not None:
                    self.numbers.append(self.read - 1)
                    self.buffer[self.read - 1] = text
            if self.numbers:
                break
            if not self.read:
                raise InputError(f"--data {self.source.name}: no document to train on")
            if not self.repeat:
                raise StopIteration
            self._begin(self.epoch + 1)
        k = self.random.random_raw() % len(self.numbers)
        self.numbers[k], self.numbers[-1] = self.numbers[-1], self.numbers[k]
        self.handed += 1
        return self.buffer.pop(self.numbers.pop())

    def state(self):
        oldest = min(self.numbers, default=self.read)
        while len(self.marks) > 1 and self.marks[1][0] <= oldest:
            self.marks.popleft()
        mark = self.marks[0] if self.marks else [self.read, self.source.position()]
        return {"epoch": self.epoch, "handed": self.handed, "read": self.read, "buffer": self.numbers.copy(), "mark": mark}

    def chunks(self):
        """Yields (the state before, texts) without end."""
        try:
            while True:
                state, texts, size = self.state(), [], 0
                while len(texts) < DOCUMENTS and size < CHARACTERS:
                    texts.append(next(self))
                    size += len(texts[-1])
                yield state, texts
        finally:
            self.source.close()


class Stream:
    """Batches of a stream, in order: `stream(k)` for k = 0, 1, 2, ...

    packed: the documents, the end mark before each, are one long row of tokens that goes on from epoch to epoch; sequence n
    predicts its tokens n T + 1 to (n + 1) T. padded: sequence n is document n, see `padded`.
    share: see `Batches`; padded, a process tokenises its own documents only. Neither it nor `workers` changes a batch.
    """

    def __init__(self, source, tokenizer, batch_size, seq_len, seed, protocol="packed", share=(0, 1), workers=0, held_out=()):
        self.source, self.tokenizer, self.seed, self.held_out = source, tokenizer, seed, frozenset(map(digest, held_out))
        self.split = hashlib.blake2b(b"".join(map(digest, held_out)), digest_size=16).hexdigest()
        self.batch_size, self.seq_len, self.packed = batch_size, seq_len, protocol == "packed"
        self.rows, self.workers, self.feed = rows_of(batch_size, share), workers, None
        self._set({**START, "skip": 0, "next": 0})

    def _set(self, state):
        self.start, self.next, self.skip = state, state["next"], state["skip"]
        self.pieces, self.held = deque(), 0  # [state, tokens or rows of it that are gone, the others]

    def __call__(self, k):
        """Inputs (rows, T) and labels (rows, T) of batch k. Raises ValueError for one that was handed out before."""
        if k < self.next:
            raise ValueError(f"batch {k} of a stream is gone; restore an earlier state")
        try:
            for _ in range(self.next, k):
                self._take()
            return self._take()
        except BaseException:
            self.close()
            raise

    def _take(self):
        step = self.batch_size * (self.seq_len if self.packed else 1)
        while self.held < step + self.packed:
            self._fetch()
        rows, T = self.rows, self.seq_len
        if self.packed:
            tokens = np.concatenate([piece[2] for piece in self.pieces])
            found = np.stack([tokens[r * T : (r + 1) * T + 1] for r in rows]).astype(np.int64)
        else:
            found = np.concatenate([piece[2] for piece in self.pieces])[rows.start : rows.stop]
        self._drop(step)
        self.next += 1
        pair = found[:, :-1], found[:, 1:]
        return pair if self.packed else inputs_and_labels(pair, self.tokenizer.end)

    def _fetch(self):
        if self.feed is None:
            self._open()
        state, ids = next(self.answers)
        if self.packed:
            piece = np.concatenate([part for one in ids for part in ([self.tokenizer.end], one)]).astype(np.uint32)
        else:
            piece = np.stack([padded(one, self.tokenizer.end, self.seq_len) for one in ids])
        gone = min(self.skip, len(piece))
        self.skip -= gone
        self.pieces.append([state, gone, piece[gone:]])
        self.held += len(piece) - gone

    def _drop(self, count):
        self.held -= count
        while count:
            piece = self.pieces[0]
            here = min(count, len(piece[2]))
            piece[1], piece[2], count = piece[1] + here, piece[2][here:], count - here
            if not len(piece[2]) and len(self.pieces) > 1:
                self.pieces.popleft()

    def _open(self):
        chunks = Shuffled(self.source, self.seed, self.held_out, state=self.start).chunks()
        if not self.packed:
            chunks = self._own(chunks)
        limit = None if self.packed else self.seq_len
        if self.workers:
            self.feed = Pool(self.tokenizer, chunks, self.workers, limit)
            self.answers = iter(self.feed)
        else:
            self.feed = self.answers = encode_here(self.tokenizer, chunks, limit)

    def _own(self, chunks):
        """The chunks, with nothing to tokenise in place of other processes' documents and of those that are gone."""
        n = -self.skip
        for state, texts in chunks:
            yield state, [text if k >= 0 and k % self.batch_size in self.rows else "" for k, text in enumerate(texts, n)]
            n += len(texts)

    def state(self):
        """The position after the last batch handed out: JSON, about 8 KB."""
        state, gone = (self.pieces[0][0], self.pieces[0][1]) if self.pieces else (self.start, self.skip)
        return {**state, "skip": gone, "next": self.next, "source": self.source.fingerprint,
                "names": self.source.names, "split": self.split}

    def restore(self, state):
        """Go on from a state. Raises InputError where it is of other data, or damaged.

        Files of the same names, from which the same documents are held out, may have another size: a line was repaired.
        """
        self.close()
        state = state if isinstance(state, dict) else {}
        repaired = self.source.names and [self.source.names, self.split] == [state.get("names"), state.get("split")]
        if state.get("source") != self.source.fingerprint and not repaired:
            raise InputError(f"--data {self.source.name}: is not what this run was trained on (other names or sizes)")
        if state.get("source") != self.source.fingerprint:
            self.source.notes.append(f"--data {self.source.name}: has another size than when this run was saved, and goes on at "
                                     "the same record")
        try:
            counts = [state[name] for name in ("epoch", "handed", "read", "skip", "next")]
            number, (shard, record) = state["mark"]
            sound = all(isinstance(n, int) and n >= 0 for n in (*counts, *state["buffer"], number, shard, record))
        except (KeyError, TypeError, ValueError):
            sound = False
        if not sound:
            raise InputError(f"--data {self.source.name}: the saved position in it is damaged")
        self._set({name: state[name] for name in (*START, "skip", "next")})

    @property
    def epoch(self):
        """How often the source ended before the last batch."""
        return self.state()["epoch"]

    def close(self):
        """End what runs ahead; the next batch, if there is one, starts it again from where this one stands."""
        if self.feed is not None:
            state = self.state()
            feed, self.feed = self.feed, None
            feed.close()
            self._set({name: state[name] for name in (*START, "skip", "next")})
        self.source.close()  # also where the feed could not be begun
