"""A folder that appears when all is in it and on disk, or not at all; whatever ends what writes it."""

import os
import shutil
import signal
import tempfile
import threading
from pathlib import Path

import pytest
from mutation import mutant_tests

from minisl import files
from minisl.errors import InputError
from minisl.files import new_folder


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def write(folder, fail=None):
    with new_folder(folder, "--out") as draft:
        (draft / "in").mkdir()
        (draft / "in" / "file").write_text("x")
        if fail is not None:
            raise fail


def check_good(root):
    (root / "empty").mkdir()
    for name in ("empty", "new", "a/b/c"):
        write(root / name)
    assert names(root) == ["a", "a/b", "a/b/c", "a/b/c/in", "a/b/c/in/file", "empty", "empty/in", "empty/in/file",
                           "new", "new/in", "new/in/file"]


def check_on_disk(root):
    """The files and folders before the name is given, and the names after."""
    done, patch, right = [], pytest.MonkeyPatch(), os.rename
    with patch.context() as patched:
        patched.setattr(files, "to_disk", lambda path: done.append(Path(path)))
        patched.setattr(os, "rename", lambda *paths: (done.append("renamed"), right(*paths)))
        write(root / "a" / "b")
    at, draft = done.index("renamed"), root.resolve() / "a" / "b.preparing"
    assert {draft, draft / "in", draft / "in" / "file"} <= set(done[:at])
    assert set(done[at + 1:]) == {draft.parent, root.resolve()}


def check_bad(root):
    for fail in (OSError(28, "No space left on device"), KeyboardInterrupt(), InputError("no")):
        for name in ("out", "a/b/out"):
            with pytest.raises(type(fail)):
                write(root / name, fail)
            assert names(root) == []
    (root / "out").mkdir()
    with pytest.raises(InputError):
        write(root / "out", InputError("no"))
    assert names(root) == ["out"]


def check_refused(root):
    (root / "full" / "x").mkdir(parents=True)
    (root / "file").write_text("mine")
    (root / "other.preparing").mkdir()
    before = names(root)
    for name, said in (("full", "exists and is not an empty folder"), ("file", "exists and is not an empty folder"),
                       ("other", "another process is writing it, or was killed"), ("file/x", "cannot be written"),
                       ("x" * 300, "cannot be written"), ("x" * 250, "cannot be written"), ("a\0b", "cannot be written")):
        with pytest.raises(InputError, match=f"^--out [^:]*: .*{said}"):
            write(root / name)
        assert names(root) == before


def stop(folder, number):
    """Send ourselves a signal, and another while what it ended is cleaned up."""
    def slow(*args, **kwargs):
        signal.raise_signal(number)
        right(*args, **kwargs)

    right = shutil.rmtree
    with pytest.MonkeyPatch.context() as patch, new_folder(folder, "--out"):
        assert callable(signal.getsignal(number))  # else it ends the tests
        patch.setattr(shutil, "rmtree", slow)
        signal.raise_signal(number)


def check_signals(root):
    for number in (signal.SIGTERM, signal.SIGHUP):
        try:
            with pytest.raises(KeyboardInterrupt):
                stop(root / "out", number)
            assert signal.getsignal(number) is signal.SIG_DFL
            assert names(root) == []
        finally:
            for each in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(each, signal.SIG_DFL)


def check_handlers_of_others_stay(root):
    got = []
    before = signal.signal(signal.SIGTERM, lambda *_: got.append(1))
    try:
        with new_folder(root / "out", "--out"):
            signal.raise_signal(signal.SIGTERM)
    except KeyboardInterrupt:
        pytest.fail("ours was called")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert got == [1]
    assert names(root) == ["out"]


def test_in_a_thread(tmp_path):
    thread = threading.Thread(target=write, args=(tmp_path / "out",))
    thread.start()
    thread.join()
    assert names(tmp_path) == ["out", "out/in", "out/in/file"]


def test_a_folder_filled_in_the_meantime_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match="not empty"), new_folder(tmp_path / "out", "--out"):
        (tmp_path / "out" / "theirs").write_text("theirs")
    assert names(tmp_path) == ["out", "out/theirs"]


def check_replacing(root):
    (root / "a").write_text("old")
    with pytest.raises(FileNotFoundError), files.replacing(root / "a", root / "b") as [temporary, _]:
        temporary.write_text("new")
    assert names(root) == ["a"]
    with files.replacing(root / "a", root / "b") as temporaries:
        for temporary in temporaries:
            temporary.write_text("new")
    assert names(root) == ["a", "b"]
    assert (root / "a").read_text() == "new"


def in_folder(check):
    def test():
        with tempfile.TemporaryDirectory() as folder:
            check(Path(folder))

    return test


CHECKS = (check_good, check_on_disk, check_bad, check_refused, check_signals, check_handlers_of_others_stay, check_replacing)
for check in CHECKS:
    globals()["test_" + check.__name__.removeprefix("check_")] = in_folder(check)

make_folder, stopped = files.new_folder.__wrapped__, files.ended_as_by_ctrl_c.__wrapped__
test_rejects = mutant_tests([
    (make_folder, "shutil.rmtree(draft, ignore_errors=True)", "pass"),
    (make_folder, "new.rmdir()", "pass"),
    (make_folder, '(*draft.rglob("*"), draft)', "[draft]"),
    (make_folder, '*draft.rglob("*"), draft', '*draft.rglob("*"),'),
    (make_folder, "for new in (path, *missing)", "for new in ()"),
    (make_folder, "for new in (path, *missing)", "for new in (path,)"),
    (make_folder, "not any(path.iterdir())", "True"),
    (make_folder, "(OSError, ValueError)", "OSError"),
    (make_folder, "with ended_as_by_ctrl_c()", "if True"),
    (files.make, "if os.path.lexists(draft)", "if False"),
    (stopped, "signal.signal(each, signal.SIG_IGN)", "pass"),
    (stopped, "is signal.SIG_DFL", "is not None"),
    (stopped, "signal.signal(number, handler)", "pass"),
    (stopped, '"SIGTERM", "SIGHUP"', '"SIGTERM",'),
    (files.replacing.__wrapped__, "temporary.unlink(missing_ok=True)", "pass"),
], *map(in_folder, CHECKS))
