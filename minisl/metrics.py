"""metrics.jsonl: one JSON object a line, one line a step. And what a process has used."""

import json
import sys
from pathlib import Path

from minisl.checkpoint import write_text
from minisl.errors import InputError


class Metrics:
    """Appends to a run's metrics.jsonl.

    Keys: step, loss (mean nats per token of the update's batch), lr, tokens (trained on so far), tokens_per_second,
    grad_norm (before clipping); at evaluations also val_loss, bits_per_byte, perplexity.
    """

    def __init__(self, path, after_step=0):
        """Keep the lines up to `after_step`, drop later ones: they belong to work that a resumed run does again."""
        self.records = [r for r in read(path) if r["step"] <= after_step] if Path(path).exists() else []
        write_text(path, "".join(json.dumps(r) + "\n" for r in self.records))
        self.file = open(path, "a", encoding="utf-8")

    def append(self, record):
        self.records.append(record)
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()

    def close(self):
        self.file.close()


def read(path):
    """The records of a metrics.jsonl; a last line cut short by a crash is dropped. Raises InputError for other damage."""
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    records = []
    for n, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            numbers = all(isinstance(record[key], int | float) for key in ("step", "loss", "tokens"))
        except (ValueError, KeyError, TypeError, RecursionError):
            numbers = False
        if numbers:
            records.append(record)
        elif n < len(lines):
            raise InputError(f"{path}: line {n} is not a record of a step")
    return records


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
