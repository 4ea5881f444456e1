"""Tokenising, here or in processes of its own that run ahead, in the same order whatever their number.

A worker is a plain child process that reads requests on its standard input and answers on its standard output: the pipes are the
bounded queues (a full one makes the writer wait), and a worker whose parent is gone, however it went, reads the end of the file
and leaves. It starts no copy of the parent's script, so that scripts need no `if __name__ == "__main__"` for it.
"""

import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np

from minisl.data.pieces import whole

AHEAD = 4  # chunks that are read, in work or done, for each worker
GONE = "a worker reads no more"
SERVE = "from minisl.data.workers import serve; serve()"


def encode_here(tokenizer, chunks, limit=None):
    """For each (state, texts) of `chunks`: (state, the texts' ids)."""
    for state, texts in chunks:
        yield state, tokenizer.encode_all(texts, limit)


class Pool:
    """`encode_here` over `workers` processes: iterate over it. A thread reads `chunks` and hands them out in turn; answers are
    taken in the same turn. Raises ChildProcessError where a worker died, and what `chunks` raises. `close` ends all.
    """

    def __init__(self, tokenizer, chunks, workers, limit=None):
        root = str(Path(__file__).resolve().parents[2])
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
               "TOKENIZERS_PARALLELISM": "false", "OPENBLAS_NUM_THREADS": "1"}
        self.chunks, self.states, self.closed = chunks, queue.Queue(AHEAD * workers), threading.Event()
        settings = tokenizer.to_json().encode()
        self.thread = threading.Thread(target=self._feed, args=(settings, limit or 0), name="minisl-data", daemon=True)
        self.workers = []
        try:
            for _ in range(workers):
                self.workers.append(subprocess.Popen([sys.executable, "-P", "-c", SERVE], stdin=subprocess.PIPE,
                                                     stdout=subprocess.PIPE, env=env, start_new_session=True))  # Ctrl-C is ours
            self.thread.start()
        except BaseException:  # there may be too many processes already
            self.close()
            raise

    def _feed(self, settings, limit):
        try:
            for worker in self.workers:
                write(worker.stdin, [settings, str(limit).encode()])
            for n, (state, texts) in enumerate(self.chunks):
                if not self._put((state, None)):
                    return
                write(self.workers[n % len(self.workers)].stdin, [whole(text).encode() for text in texts])
            self._put(None)
        except BrokenPipeError:
            self._put((None, GONE))
        except BaseException as error:
            self._put((None, error))
        finally:
            self.chunks.close()

    def _put(self, item):
        while not self.closed.is_set():
            try:
                self.states.put(item, timeout=0.1)
                return True
            except queue.Full:
                pass
        return False

    def __iter__(self):
        n = 0
        while (item := self.states.get()) is not None:
            state, error = item
            if error is not None and error is not GONE:
                raise error
            worker = self.workers[n % len(self.workers)]
            answer = None if error is GONE else read(worker.stdout)
            if answer is None:
                raise ChildProcessError(self._obituary(worker))
            yield state, [np.frombuffer(ids, np.uint32) for ids in answer]
            n += 1

    def _obituary(self, worker):
        dead = [w for w in self.workers if w.poll() is not None]
        worker = worker if worker in dead or not dead else dead[0]
        try:
            code = worker.wait(5)
        except subprocess.TimeoutExpired:
            code = None
        how = {None: "stopped answering"}.get(code) or (
            f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}")
        return f"a tokenising process ({worker.pid}) {how}; too little memory is the usual reason: try fewer --data-workers"

    def close(self):
        self.closed.set()
        for worker in self.workers:
            worker.kill()
        if self.thread.is_alive():
            self.thread.join(60)
        for worker in self.workers:
            worker.wait()
            worker.stdout.close()
            try:
                worker.stdin.close()
            except BrokenPipeError:  # what was still to be flushed
                pass


def write(file, parts):
    """One message: how many parts, how long each is, the parts."""
    file.write(np.array([len(parts), *map(len, parts)], "<u4").tobytes() + b"".join(parts))
    file.flush()


def read(file):
    """The parts of the next message; None where the other side is gone."""
    count = numbers(file, 1)
    lengths = None if count is None else numbers(file, int(count[0]))
    body = None if lengths is None else file.read(int(lengths.sum(dtype=np.int64)))
    if body is None or len(body) < lengths.sum(dtype=np.int64):
        return None
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    return [body[start:end] for start, end in zip([0, *ends], ends)]


def numbers(file, count):
    """The next `count` 32-bit numbers from a pipe, or None where it ends."""
    raw = file.read(4 * count)
    return np.frombuffer(raw, "<u4") if len(raw) == 4 * count else None


def serve():
    """A worker: the tokenizer and the limit come first, then texts until the parent is gone."""
    import tokenizers

    from minisl.data.tokenizers import Tokenizer

    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # nothing else may write between the answers
    try:
        first = read(requests)
        if first is None:
            return
        tokenizer, limit = Tokenizer(tokenizers.Tokenizer.from_str(first[0].decode())), int(first[1]) or None
        while (texts := read(requests)) is not None:
            write(answers, [ids.tobytes() for ids in tokenizer.encode_all([text.decode() for text in texts], limit)])
    except (BrokenPipeError, KeyboardInterrupt):
        os._exit(0)
