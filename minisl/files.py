"""Files and folders that are never half there: written under another name, brought to the disk (fsync), and then renamed."""

import hashlib
import json
import os
import shutil
import signal
from contextlib import contextmanager, suppress
from pathlib import Path

from minisl.errors import InputError


@contextmanager
def replacing(*paths):
    """Temporary paths beside `paths`, which take their places when the block ends well, once all are complete and on disk."""
    temporaries = [Path(p).with_name(f".{Path(p).name}.{os.getpid()}") for p in paths]
    try:
        yield temporaries
        for temporary in temporaries:
            to_disk(temporary)
        for temporary, path in zip(temporaries, paths):
            os.replace(temporary, path)
        for folder in {Path(p).parent for p in paths}:
            to_disk(folder)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(folder, flag):
    """FOLDER.preparing, which takes the name `folder` when the block ends well, once all in it is on disk; else nothing is left,
    nor when SIGTERM or SIGHUP comes (as KeyboardInterrupt). `folder`'s own folder is made where there is none.

    flag: what asked for it. Raises InputError where `folder` is not new or empty, cannot be made, or FOLDER.preparing is there.
    """
    try:
        path = Path(os.path.realpath(folder))  # the name of "." is ""
        taken = path.exists() and not (path.is_dir() and not any(path.iterdir()))
        draft, missing = Path(f"{path}.preparing"), [p for p in path.parents if not p.exists()]
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL
        raise InputError(f"{flag} {folder}: cannot be written ({getattr(error, 'strerror', None) or error})") from None
    if taken:
        raise InputError(f"{flag} {folder}: exists and is not an empty folder; choose another")
    with ended_as_by_ctrl_c():
        try:
            make(draft, f"{flag} {folder}")
            try:
                yield draft
                for new in (*draft.rglob("*"), draft):
                    to_disk(new)
                if path.exists():
                    path.rmdir()  # refuses one that is no longer empty
                os.rename(draft, path)
            except BaseException:
                shutil.rmtree(draft, ignore_errors=True)
                raise
            for new in (path, *missing):
                to_disk(new.parent)
        except BaseException:
            for new in missing:
                with suppress(OSError):  # not empty: it is not ours alone
                    new.rmdir()
            raise


def make(draft, where):
    """Make a new folder and those above it. Raises InputError, naming `where`."""
    try:
        draft.parent.mkdir(parents=True, exist_ok=True)
        draft.mkdir()
    except OSError as error:
        why = f"cannot be written ({error.strerror})"
        if os.path.lexists(draft):
            why = f"{draft} is there: another process is writing it, or was killed while it did (then remove it)"
        raise InputError(f"{where}: {why}") from None


@contextmanager
def ended_as_by_ctrl_c():
    """SIGTERM and SIGHUP, where they would end the process at once, raise KeyboardInterrupt; the first one only, so that another
    does not end the cleaning up."""
    before = {}

    def end(number, frame):
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    try:
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, end)
    except ValueError:  # not the main thread: nobody can send it a signal
        pass
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write_text(path, text):
    """Write a text so that the file is never half there."""
    with replacing(path) as [temporary]:
        temporary.write_text(text, "utf-8")


def write_json(path, value):
    """Write a value as JSON so that the file is never half there."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def to_disk(path):
    """fsync a file, or a folder's list of names."""
    if os.name == "nt" and Path(path).is_dir():
        return  # Windows cannot, and need not
    descriptor = os.open(path, os.O_RDONLY if Path(path).is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_folder():
    """Where this user's caches are: minisl/ in $XDG_CACHE_HOME, or in ~/.cache. It need not be there, nor be one that can be read
    or written."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minisl"
    except RuntimeError:  # a user without a home: nothing is found there, and nothing kept
        return Path(os.devnull) / "minisl"


def sha256(path):
    """A file's SHA-256, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
