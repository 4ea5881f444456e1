"""Which folder a run has, what it goes on from, and how it is asked to stop."""

import os
import signal
from contextlib import contextmanager
from pathlib import Path

from minisl import checkpoint, lock, methods
from minisl.config import FLAGS, MAY_CHANGE, Settings
from minisl.errors import InputError

MINE = {"metrics.jsonl", "loss.png", "sample.txt", "train.log", "tensorboard", lock.NAME}  # beside checkpoints
PATHS = {"config", "from_hf", "norms_of", "tokenizer"}  # flags that name a file or folder, which has other names elsewhere


def choose(settings):
    """The folder that these settings ask for. Raises InputError where a new run cannot be there."""
    if settings.resume and settings.resume != "auto":
        if settings.out and Path(settings.out) != Path(settings.resume):
            raise InputError(f"--out {settings.out}: a resumed run stays in its folder {settings.resume}")
        if (Path(settings.resume) / checkpoint.SUMS).exists():
            raise InputError(f"--resume {settings.resume}: is one checkpoint; give its run, {Path(settings.resume).parent}, "
                             "which goes on from the newest that is whole")
        if not checkpoint.folders(settings.resume):
            checkpoint.find(settings.resume)  # says why not
        return Path(settings.resume)
    runs = sorted(Path("runs").glob("[0-9][0-9][0-9]-*"))
    mine = [run for run in runs if run.name[4:] == settings.method]
    if settings.resume and not settings.out and mine:
        return mine[-1]
    if not settings.out:
        return Path("runs") / f"{max((int(run.name[:3]) for run in runs), default=0) + 1:03d}-{settings.method}"
    run = Path(settings.out)
    try:
        run.exists()
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL
        raise InputError(f"--out {run}: cannot be written ({getattr(error, 'strerror', None) or error})") from None
    if run.exists() and not run.is_dir():
        raise InputError(f"--out {run}: cannot be written (it is no folder)")
    if run.is_dir() and not settings.resume:
        if checkpoint.folders(run):
            raise InputError(f"--out {run}: already holds a run; go on with --resume {run}, or choose another folder")
        names = (p.name for p in run.iterdir() if not checkpoint.LEFTOVER.fullmatch(p.name))
        if other := sorted(name for name in names if name not in MINE and not name.startswith(checkpoint.ASIDE)):
            raise InputError(f"--out {run}: holds {other[0]}, which is no part of a run; choose another folder")
    return run


def last_checkpoint(run, settings, say):
    """The Checkpoint to go on from, or None to begin. The folder must be held."""
    checkpoint.tidy(run)
    if not settings.resume or (settings.resume == "auto" and not checkpoint.folders(run)):
        return None
    found = checkpoint.find(run, say)
    checkpoint.set_aside(run, found)
    return found


def holds_no_run(run):
    """Whether a folder has nothing in it but what a run that never began leaves."""
    return run.is_dir() and {p.name for p in run.iterdir()} <= {lock.NAME, "metrics.jsonl"}


def resumed_settings(settings, given, found, run):
    """The saved run's settings, with those changed that may be. given: names of the flags that were given.

    Raises InputError for a flag that would make it another run.
    """
    saved = Settings.from_dict(found.state["settings"])
    has = saved.to_dict() | methods.Method(saved.method, saved.to_dict()).options
    mine = {f.name for f in FLAGS} & given
    asked = {name: getattr(settings, name) for name in mine - MAY_CHANGE} | settings.method_options
    has["batch_size"] //= found.state["processes"]  # what each of those that began the run had
    for name in sorted(asked, key=lambda name: (name != "method", name)):
        if asked[name] != has[name] and not (name in PATHS and same_path(asked[name], has[name], found)):
            raise InputError(f"--resume {run}: that run has --{name.replace('_', '-')} {has[name]}, it cannot go on with "
                             f"{asked[name]}")
    for name in MAY_CHANGE & mine:
        setattr(saved, name, getattr(settings, name))
    saved.resolve(mine | {"accumulate"})  # its batch is already that of all processes
    saved.check()
    return saved


def same_path(asked, had, found):
    """Is what is asked for, from here, the file or folder that a run had, from where it was?"""
    before = found.state["corpus"].get("folder")
    return bool(asked and had and before) and os.path.realpath(asked) == os.path.realpath(os.path.join(before, had))


@contextmanager
def asked_to_stop():
    """Yields a list that holds the signal that came, Ctrl-C (SIGINT), SIGTERM or SIGHUP, if one did; a second interrupts at
    once."""
    asked, before = [], {}

    def ask(signum, frame):
        if asked:
            raise KeyboardInterrupt
        asked.append(signum)

    try:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number and signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                before[number] = signal.signal(number, ask)
    except ValueError:  # not the main thread: nobody can send it a signal
        pass
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
