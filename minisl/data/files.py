"""The files that `--data` names, and those among them that are read as a stream: JSON lines (plain, gzip, zstd) and Parquet, as
their content says, whatever their names. One record at a time is in memory, of Parquet a few hundred."""

import glob
import gzip
import importlib
import json
import os
import re
import zlib
from itertools import count
from pathlib import Path

from minisl.errors import InputError

ENDINGS = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst")
LONGEST = 1 << 26  # bytes of a line: beyond it a file is taken to be something else
GZIP, ZSTD, PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
BLANK = b"\xef\xbb\xbf \t\r\n"  # a byte order mark, white space
AS_LINES = "of a JSON array, make lines: jq -c '.[]' OLD.json > NEW.jsonl"
FOREIGN = {  # how a file begins that is no UTF-8 text
    b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16",
    GZIP: "gzip", ZSTD: "zstd", b"PK\3\4": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"%PDF": "PDF"}


def is_stream(path, field="text"):
    """Is this a file of many documents: by its ending, or as its first lines are JSON objects, one with this field?

    Raises InputError for a JSON array of such objects.
    """
    try:
        return (str(path).lower().endswith(ENDINGS) or first_bytes(path).startswith(PARQUET)
                or begins_with_records(path, field))
    except OSError:  # whoever reads it says why
        return False


def begins_with_records(path, field):
    """Is the first line a JSON object with this field, or are the first two JSON objects? Raises OSError, InputError."""
    with open_text(path) as file:
        starts = (next_line(file, path, 0, 64).lstrip(BLANK) for _ in range(100))
        start = next(filter(None, starts), b"")
        if start.startswith(b"["):
            head = start + b"".join(next_line(file, path, 0, 1000) for _ in range(10))
            if re.match(rb"\[\s*\{", head) and re.search(re.escape(json.dumps(field).encode()) + rb"\s*:", head):
                raise InputError(f"--data {path}: holds one JSON array; expected JSON lines ({AS_LINES})")
        if not start.startswith(b"{"):
            return False
        first = parsed(start if start.endswith(b"\n") else start + next_line(file, path, 0))
        return isinstance(first, dict) and (field in first or isinstance(parsed(next_line(file, path, 1)), dict))


def parsed(line):
    """A line of JSON, None where it is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def first_bytes(path):
    """The first 64. Raises OSError."""
    with open(path, "rb") as file:
        return file.read(64)


def foreign(start):
    """What bytes that are no UTF-8 text are, and what to do about it, or None where that is not known."""
    kind = next((kind for magic, kind in FOREIGN.items() if start.startswith(magic)), None)
    return kind and (f"it is {kind}: " + (f"iconv -f {kind} -t UTF-8 converts it" if kind.startswith("UTF") else "unpack it"))


def identity(path):
    """What tells a file from others, by whatever name or link it is called. Raises InputError."""
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"--data {path}: {error.strerror or error}") from None
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def some(paths):
    """How many files, and the first of them, for a message."""
    return f"{len(paths):,} file{'s' * (len(paths) > 1)} ({paths[0]}{', ...' * (len(paths) > 1)})"


def find_files(source):
    """The regular files that a source names: itself, those of a folder that are not hidden, or a glob's; sorted, [] without any.

    Raises InputError for a name that the system does not take, and one of a pipe or device.
    """
    path = Path(source)
    try:
        if path.is_dir():
            return sorted(p for p in path.rglob("*") if p.is_file() and "/." not in f"/{p.relative_to(path).as_posix()}")
        paths = [path] if path.exists() else sorted(p for p in matches(path) if p.is_file())
    except (OSError, ValueError, re.error) as error:  # a name that is too long, links in a circle, a NUL
        raise InputError(f"--data {source}: {getattr(error, 'strerror', None) or error}") from None
    if paths == [path] and not path.is_file():  # a pipe waits for who writes to it, /dev/zero never ends
        raise InputError(f"--data {source}: must be a regular file; save what a pipe or device gives to one")
    return paths


def matches(pattern):
    """The paths that a pattern names, as a set. ** is every folder below; links to folders are not followed there: two that lead
    upwards would be followed for ever."""
    parts = pattern.parts
    if "**" not in parts:
        return set(map(Path, glob.glob(str(pattern))))
    here = parts.index("**")
    found, rest = set(), parts[here + 1:] or ("*",)
    for top in glob.glob(str(Path(*parts[:here]))):
        for where, folders, _ in os.walk(top):
            folders[:] = [folder for folder in folders if not folder.startswith(".")]
            found |= matches(Path(glob.escape(where), *rest))
    return found


def needed(module, path, what):
    """An optional module. Raises InputError naming the extra."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # missing, or broken
        why = "" if isinstance(error, ImportError) else f" ({type(error).__name__}: {error})"
        raise InputError(f"--data {path}: {what} needs the package {module.partition('.')[0]}{why}: "
                         "pip install 'minisl[hf]'") from None


def read_records(path, field, skip=0):
    """Yields the text of each record of a file but the first `skip`; "" where the field is null, None for an empty line.

    Raises InputError naming the file and the line or row where it is damaged, has no such field, or the field is no string.
    """
    try:
        parquet = path.name.lower().endswith(".parquet") or first_bytes(path).startswith(PARQUET)
        yield from (read_parquet if parquet else read_json_lines)(path, field, skip)
    except OSError as error:
        raise InputError(f"--data {path}: cannot be read ({error.strerror or error})") from None


def read_json_lines(path, field, skip):
    """The text in this field of each line of a file of JSON lines, None for an empty line, from the one after `skip` on.

    Raises InputError: damaged, no such field.
    """
    with open_text(path) as file:
        for number in count(1):
            line = next_line(file, path, number - 1)
            if not line:
                return
            if len(line) > LONGEST:
                raise InputError(f"--data {path}: line {number} has more than {LONGEST:,} bytes; is it JSON lines?")
            if number > skip:
                yield text_of(line, field, path, number) if line.strip() else None


def next_line(file, path, number, limit=None):
    """The line after that number, of `limit` bytes at most. Raises InputError where the file is damaged."""
    try:
        return file.readline(LONGEST + 1 if limit is None else limit)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"--data {path}: damaged after line {number} ({error})") from None
    except Exception as error:
        if type(error).__name__ != "ZstdError":
            raise
        raise InputError(f"--data {path}: damaged after line {number} ({error})") from None


def open_text(path):
    """A binary file of lines, decompressed. What ends in .jsonl.gz and is JSON was unpacked on its way."""
    start, name = first_bytes(path), path.name.lower()
    packed = name.endswith(ENDINGS) and start.lstrip(BLANK)[:1] not in (b"{", b"")
    if start.startswith(GZIP) or (packed and name.endswith(".gz")):
        return gzip.open(path)
    if start.startswith(ZSTD) or (packed and name.endswith(".zst")):
        return ZstdLines(needed("zstandard", path, "a .zst file"), path)
    return open(path, "rb")


class ZstdLines:
    """readline of a zstd file, which may have several frames. One that ends within a frame is damaged: EOFError."""

    def __init__(self, zstandard, path):
        self.file, self.new = open(path, "rb"), lambda: zstandard.ZstdDecompressor().decompressobj()
        self.frame, self.given, self.lines, self.start = None, b"", b"", 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def more(self):
        """The next decompressed bytes; b"" at the end of the file."""
        while True:
            self.given = self.given or self.file.read(1 << 12)  # little: a frame may hold 30,000 times as much
            if not self.given:
                if self.frame is not None:
                    raise EOFError("it ends within a zstd frame")
                return b""
            self.frame = self.frame or self.new()
            out = self.frame.decompress(self.given)
            self.given = self.frame.unused_data
            if self.frame.eof:
                self.frame = None
            if out:
                return out

    def readline(self, limit):
        end, parts = self.lines.find(b"\n", self.start), []
        while end < 0:
            parts.append(self.lines[self.start :])
            self.lines, self.start = self.more(), 0
            if not self.lines or sum(map(len, parts)) > limit:
                return b"".join(parts)
            end = self.lines.find(b"\n")
        parts.append(self.lines[self.start : end + 1])
        self.start = end + 1
        return b"".join(parts)


def text_of(line, field, path, number):
    """The string in this field of a line of JSON. Raises InputError, naming the line."""
    hint = f" ({AS_LINES})" if number == 1 and line.lstrip(BLANK).startswith(b"[") else ""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # ValueError: also what is not UTF-8
        raise InputError(f"--data {path}: line {number} is not JSON ({foreign(line) or error}){hint}") from None
    if not isinstance(record, dict):
        raise InputError(f"--data {path}: line {number} is a JSON {type(record).__name__}; expected an object with a "
                         f"{field!r} string{hint}")
    return checked(record.get(field), field, path, f"line {number}", record)


def checked(text, field, path, where, names):
    """The text of a record, "" where it is null. Lone surrogates, which JSON allows and UTF-8 does not, become U+FFFD."""
    if text is None and field in names:
        return ""
    if not isinstance(text, str):
        raise InputError(f"--data {path}: {where} has no string {field!r} (its fields: {listed(names)}); "
                         "choose one with --text-field")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def listed(names):
    """The first ten names, for a message."""
    names = [repr(str(n)[:40]) for n in names]
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "") or "none"


def read_parquet(path, field, skip):
    """The text in this column of each row of a Parquet file, from the one after `skip` on.

    Raises InputError: damaged, no such column.
    """
    pq = needed("pyarrow.parquet", path, "a Parquet file")
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if field not in names:
                raise InputError(f"--data {path}: has no column {field!r} (its columns: {listed(names)}); choose one with "
                                 "--text-field")
            row, groups = 0, []
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if not groups and row + rows <= skip:
                    row += rows
                else:
                    groups.append(group)
            if groups:
                for batch in file.iter_batches(256, groups, columns=[field]):
                    for text in batch.column(0).to_pylist():
                        row += 1
                        if row > skip:
                            yield checked(text, field, path, f"row {row}", names)
    except InputError:
        raise
    except GeneratorExit:
        raise
    except Exception as error:  # pyarrow has many
        raise InputError(f"--data {path}: damaged or not Parquet ({error})") from None
