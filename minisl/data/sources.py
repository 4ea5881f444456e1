"""What `--data` names: text that is held in memory, or shards of documents that are read as a stream."""

import glob
import hashlib
import json
import os
from pathlib import Path

from minisl.backend import generator
from minisl.data import hub
from minisl.data.corpora import HOLD_OUT, NAMED
from minisl.data.files import ENDINGS, find_files, identity, is_stream, read_records, some
from minisl.errors import InputError

HELD_OUT = 1000  # documents of a stream that are kept for validation
FIRST_SHARDS = 16  # of a dataset on the hub without a validation split, the shards from which some are held out


class Source:
    """Documents in shards, read in order. name: what was asked for; shards: what `read(shard, skip)` takes, which yields
    texts; validation: another Source, or None; fingerprint: tells whether it is still the same; names: tells the same but for
    sizes, or None; notes: lines that say what was left out."""

    def __init__(self, name, shards, read, fingerprint, validation=None, spread=None, names=None, notes=()):
        self.name, self.shards, self.read, self.validation, self.spread = name, shards, read, validation, spread
        self.notes, self.empty, self.counted = list(notes), 0, {}
        self.fingerprint = hashlib.sha256(json.dumps(fingerprint).encode()).hexdigest()
        self.names = names and hashlib.sha256(json.dumps(names).encode()).hexdigest()
        self.records = None

    def begin(self, seed=None, epoch=0, position=(0, 0)):
        """Start an epoch: its shards in an order drawn from (seed, epoch), or as they are without a seed."""
        self.close()
        shards = len(self.shards)
        self.order = range(shards) if seed is None else generator(seed, "shards", epoch).permutation(shards).tolist()
        self.at, self.taken = position

    def position(self):
        """[shards done, records taken of the next]: where `begin` can go on."""
        return [self.at, self.taken]

    def __iter__(self):
        return self

    def __next__(self):
        while self.at < len(self.shards):
            if self.records is None:
                self.records = self.read(self.shards[self.order[self.at]], self.taken)
            for text in self.records:
                self.taken += 1
                if text and not text.isspace():
                    return text
                self._count(text)
            self.at, self.taken, self.records = self.at + 1, 0, None
        raise StopIteration

    def _count(self, text):
        """Note a record without text, but not again where it is read again; an empty line is no record."""
        shard = self.order[self.at]
        if text is not None and self.taken > self.counted.get(shard, 0):
            self.empty, self.counted[shard] = self.empty + 1, self.taken

    def left_out(self):
        """How many records without text were passed over, in words; "" if none was."""
        records = f"{self.empty:,} record{'s' * (self.empty > 1)} without text"
        return f"--data {self.name}: {records} left out" if self.empty else ""

    def close(self):
        if self.records is not None:
            self.records.close()
            self.records = None

    def hold_out(self, wanted=None):
        """The documents for validation, `wanted` at most: the first of the validation split, or every 20th from the start of
        each shard, as many of each. Raises InputError where there are none."""
        wanted = HELD_OUT if wanted is None else wanted
        if self.validation is not None:
            return self._take(self.validation, wanted, 1, wanted)
        shards = self.shards[: self.spread]
        return self._take(Source(self.name, shards, self.read, []), wanted, HOLD_OUT, -(-wanted // len(shards)))

    def _take(self, source, wanted, every, of_each):
        taken, seen = {}, 0
        for shard in source.shards:
            here, records = 0, source.read(shard, 0)
            for text in records:
                if text and not text.isspace():
                    seen += 1
                    if seen % every == 0 and text not in taken:
                        taken[text] = None
                        here += 1
                if here == of_each or len(taken) == wanted:
                    break
            records.close()
            if len(taken) == wanted:
                break
        if not taken:
            raise InputError(f"--data {self.name}: too few documents to hold out every {HOLD_OUT}th for validation ({seen} seen)")
        return list(taken)


def digest(text):
    """What tells held-out documents from others, and from copies of themselves."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def located(sources, folder):
    """The sources, paths that are relative taken from this folder."""
    def absolute(source):
        if not source or source in NAMED or hub.parse_name(source) or Path(source).is_absolute():
            return source
        whole = os.path.join(folder, source)
        return whole if os.path.exists(whole) else os.path.join(glob.escape(folder), source)  # else a pattern

    return [absolute(source) for source in sources]


def open_source(sources, field="text"):
    """A Source for `--data`, or None where it is text to be held in memory. Raises InputError."""
    name = " ".join(sources)
    names = [(source, hub.parse_name(source)) for source in sources]
    if any(parsed for _, parsed in names):
        if len(names) > 1:
            raise InputError(f"--data {name}: a dataset of the hub cannot be mixed with others")
        return open_dataset(name, *names[0][1], field)
    groups = [paths_of(source, field) for source in sources]
    if not any(groups):
        return None
    for source, group in zip(sources, groups):
        if not group:
            raise InputError(f"--data {name}: {source or 'an empty name'} is text to be held in memory, and cannot be mixed with "
                             f"files that are streamed ({', '.join(ENDINGS)})")
    named = [path for group in groups for path in group]
    files = {}
    again = [path for path in named if files.setdefault(identity(path), path) is not path]
    paths = list(files.values())
    notes = [f"--data {name}: {some(again)} named twice; each counts once"] if again else []

    def read(path, skip):
        return read_records(path, field, skip)

    try:
        sizes = [[path.name, path.stat().st_size] for path in paths]
    except OSError as error:
        raise InputError(f"--data {error.filename}: {error.strerror}") from None
    return Source(name, paths, read, [sizes, field], names=[[path.name for path in paths], field], notes=notes)


def open_dataset(name, dataset, config, field):
    """The `Source` of a dataset of the hub."""
    splits = hub.open_hub(name, dataset, config)

    def shards(split):
        return list(range(splits[split].num_shards))

    def read_from(split):
        return lambda shard, skip: hub.read_shard(name, splits[split], shard, field, skip)

    held_out = Source(name, shards("validation"), read_from("validation"), []) if "validation" in splits else None
    fingerprint = [dataset, config, splits["train"].num_shards, field]
    return Source(name, shards("train"), read_from("train"), fingerprint, held_out, FIRST_SHARDS)


def paths_of(source, field):
    """The files of one source that are streamed, sorted; [] where it is something else.

    Raises InputError for a folder or a glob of both kinds, and as `find_files` does.
    """
    if not source:
        return []
    path, paths = Path(source), find_files(source)
    streamed = [p for p in paths if is_stream(p, field)]
    if streamed and len(streamed) < len(paths):
        other = next(p for p in paths if p not in streamed)
        raise InputError(f"--data {source}: holds both files of documents ({streamed[0].name}) and text ({other.name}); give a "
                         f"glob of one kind, such as '{path if path.is_dir() else path.parent}/*{streamed[0].suffix}'")
    return streamed
