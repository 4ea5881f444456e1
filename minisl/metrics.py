"""metrics.jsonl: one JSON object a line, one line a step. And what a process has used."""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from minisl.errors import InputError
from minisl.files import replacing, to_disk


class Metrics:
    """Appends to a run's metrics.jsonl.

    Keys: step, loss (mean nats per token of the update's batch), lr, tokens (trained on so far), tokens_per_second,
    grad_norm (before clipping), batch (the first that later steps have not seen); at evaluations also val_loss, bits_per_byte,
    perplexity. say(line): told when lines cannot be written; they are kept, and written when that works again.
    """

    def __init__(self, path, after_step=0, say=print):
        """Keep the lines up to `after_step`, drop later ones: they belong to work that a resumed run does again."""
        self.path, self.say, self.last = Path(path), say, None
        self.rewind(after_step)

    def rewind(self, step):
        """Go on after this step."""
        with suppress(OSError, AttributeError):  # what could not be written before
            self.write()
        self.pending, self.failing = b"", False
        with replacing(self.path) as [temporary], open(temporary, "w", encoding="utf-8") as file:
            for record in records(self.path) if self.path.exists() else ():
                if record["step"] <= step:
                    file.write(json.dumps(record) + "\n")
                    self.last = record
        self.size = self.path.stat().st_size

    def append(self, record):
        self.last, self.pending = record, self.pending + json.dumps(record).encode() + b"\n"
        try:
            self.write()
            self.failing = False
        except OSError as error:
            if not self.failing:
                self.say(f"{self.path}: cannot be written ({error.strerror or error}); its lines are kept and tried again")
            self.failing = True

    def write(self):
        """Write what is not in the file yet. A line that a full disk has cut short is cut off first; a file that somebody has
        removed is begun anew."""
        with open(self.path, "ab", buffering=0) as file:
            if file.tell() != self.size:
                self.size = min(self.size, file.tell())
                file.truncate(self.size)
            while self.pending:
                written = file.write(self.pending)
                self.pending, self.size = self.pending[written:], self.size + written

    def sync(self):
        """Bring all lines to the disk."""
        with suppress(OSError):
            self.write()
            to_disk(self.path)


def records(path):
    """The records of a metrics.jsonl, one by one; a last line cut short by a crash is dropped. Raises InputError for other
    damage."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            for n, line in enumerate(file, 1):
                try:
                    record = json.loads(line)
                    numbers = all(isinstance(record[key], int | float) for key in ("step", "loss", "tokens"))
                except (ValueError, KeyError, TypeError, RecursionError):
                    numbers = False
                if numbers:
                    yield record
                elif file.tell() < size:
                    raise InputError(f"{path}: line {n} is not a record of a step; remove that line to go on without it")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def read(path):
    """All records of a metrics.jsonl as a list."""
    return list(records(path))


def gpu_memory(cupy):
    """Bytes that CuPy has taken from the GPU. It keeps what is freed for the next arrays, so this is the most there was."""
    return cupy.get_default_memory_pool().total_bytes()


def peak_memory():
    """Most resident memory this process has held, in bytes; None where the system does not tell."""
    try:  # Linux; getrusage there starts a child at its parent's peak
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
