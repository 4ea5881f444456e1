"""One process a folder."""

import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path

from minisl.errors import InputError

NAME = "lock"


@contextmanager
def alone_in(folder, flag="--out", worthless=lambda: False):
    """Make a folder, and hold it: the system lets go of it when the process ends, however it ends.

    worthless(): is nothing in it yet that anybody wants? Then, if the block fails, what was not there before is removed again.
    Raises InputError, which names the flag, where another process holds it, or it cannot be written.
    """
    from filelock import FileLock, Timeout

    folder, path = Path(folder), Path(folder) / NAME
    new = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire(timeout=0)
    except Timeout:
        who = "another process"
        with suppress(OSError, ValueError):
            who = f"process {int(path.read_text())}"
        raise InputError(f"{flag} {folder}: {who} is at work there; wait for it, or choose another folder") from None
    except OSError as error:
        remove_empty(new)
        raise InputError(f"{flag} {folder}: cannot be written ({error.strerror or error})") from None
    with suppress(OSError):  # a full disk: nobody will read who it is
        path.write_text(f"{os.getpid()}\n")
    try:
        yield
    except BaseException:
        if folder in new and worthless():
            shutil.rmtree(folder, ignore_errors=True)
            remove_empty(new)
        raise
    finally:
        lock.release()


def remove_empty(folders):
    """Remove those folders that are empty."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
