"""Grade an assignment, each task in processes of its own: `python -m minisl.course.apart < job.json > outcomes.json`.

For a task there are two processes. One runs the student's answers behind the fence (fence.py); the other runs the tests, and
calls the first one's functions (border.py). So an answer neither sees nor changes what judges it, and whatever happens to its
process is this task's loss only. An answer that fails is replaced by the reference where a later task uses it.

Answers' processes are forked by one that has never read the job (`breed`): hidden tests are nowhere in their memory.
"""

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from minisl.course import fence, handout
from minisl.course.border import Gone, Peer, described, error_of, in_words

MEMORY = 4 * fence.GIB
LONGEST = 1 << 16  # characters of a message, at most
PATIENCE = 10  # times a task's seconds may pass, where something else has kept the machine from computing it


@dataclass
class Outcome:
    """What became of a task: points earned of points, the message where some were lost, and how long it took."""

    task: str
    points: float
    earned: float
    message: str = ""
    seconds: float = 0.0


def grade(source, submitted, files, breeder, course):
    """Outcomes of all tasks: the answers of `submitted` under the tests of `source` (lists of handout.Cell).

    submitted: None for those of `source`: a student's own notebook, where there is no reference for a task that fails
    files: None, or the folder of the submitted notebook; what else lies in it is copied to where answers and tests run.
    """
    cells = source if submitted is None else handout.with_answers(source, submitted)
    reference = {cell.task: cell for cell in source if cell.kind == "answer"}
    asked = set().union(*(handout.defines(cell.source) for cell in reference.values()))
    outcomes, failed = [], set()
    for name in handout.tasks(source):
        test = next(cell for cell in cells if cell.kind == "test" and cell.task == name)
        answers = handout.needed(cells, name)
        borrowed = [cell.task for cell in answers if cell.task in failed]
        given = [cell for cell in cells if cell.kind == "given" and cell.place < test.place]
        started = time.perf_counter()
        message = judge(given, answers, test, asked, files, breeder, course)
        if message is not None:
            failed.add(name)
            if submitted is not None:
                cells = [replace(reference[name], place=cell.place) if cell.kind == "answer" and cell.task == name else cell
                         for cell in cells]
            if borrowed and submitted is None:
                message += handout.repair_first(borrowed)
            elif borrowed:
                message += f"\n(tried with the reference's {', '.join(borrowed)}, as yours did not pass)"
        outcomes.append(Outcome(name, test.points, test.points if message is None else 0, message or "",
                                time.perf_counter() - started))
    return outcomes


def judge(given, answers, test, asked, files, breeder, course):
    """None where the answers pass the test, else what is to be said. asked: the names that tests may take from answers."""
    with scratch() as folder:
        ours, theirs = (os.path.join(folder, name) for name in ("tests", "answer"))
        for path in (ours, theirs):
            copy_files(files, path)
        near, far = socket.socketpair()
        cells = [asdict(cell) for cell in sorted(given + answers, key=lambda cell: cell.place)]
        pid = order(breeder, {"cells": cells, "seconds": test.seconds, "folder": theirs}, far)
        far.close()
        read, write = os.pipe()
        tester = fork(run_tests, near, read, write, given, test, asked, ours, course, pid)
        near.close()
        os.close(write)
        try:
            return outcome_of(read, test)
        finally:
            os.close(read)
            stop(tester)
            os.waitpid(tester, 0)
            stop_answers(breeder)


@contextlib.contextmanager
def scratch():
    """A folder that is gone afterwards, however deep an answer has filled it."""
    folder = tempfile.mkdtemp(prefix="minisl-course-")
    try:
        yield folder
    finally:
        subprocess.run(["rm", "-rf", "--", folder], stderr=subprocess.DEVNULL)


def outcome_of(pipe, test):
    """What the tests' process says, as long as it may take."""
    said, until = b"", time.monotonic() + PATIENCE * test.seconds + 60
    while True:
        ready, _, _ = select.select([pipe], [], [], max(0.0, until - time.monotonic()))
        if not ready or len(said) > LONGEST:
            return too_slow(test)
        piece = os.read(pipe, 1 << 16)
        if not piece:
            break
        said += piece
    try:
        return json.loads(said)
    except ValueError:
        return "the tests of this task were ended from outside"


def fork(work, *args, **more):
    """A child that does `work` and nothing else; returns its pid."""
    if (pid := os.fork()) != 0:
        return pid
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        work(*args, **more)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def breed(orders):
    """Fork a process for each order that comes through this socket, until the other end is closed."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the job is not for this process
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # whoever loses its parent becomes a child of this process
    pid = None
    while (head := socket.recv_fds(orders, 4, 1))[0]:
        if not head[1]:
            end_children(pid)
            orders.send(b".")
            continue
        text = orders.recv(struct.unpack("<I", head[0])[0], socket.MSG_WAITALL)
        far = socket.socket(fileno=head[1][0])
        pid = fork(answer_calls, far, orders, **json.loads(text))
        far.close()
        orders.send(struct.pack("<I", pid))
    end_children(pid)


def order(breeder, job, far):
    """Have a process forked that answers calls through `far`; returns its pid."""
    text = json.dumps(job).encode()
    socket.send_fds(breeder, [struct.pack("<I", len(text))], [far.fileno()])
    breeder.sendall(text)
    return struct.unpack("<I", breeder.recv(4, socket.MSG_WAITALL))[0]


def stop_answers(breeder):
    """End the answers' process and whatever it has started; returns when they are gone."""
    breeder.sendall(struct.pack("<I", 0))
    breeder.recv(1)


def end_children(pid, seconds=60):
    """Kill `pid`, this process's child, and on Linux what that has started, until no child is left.

    Whoever loses its parent has become a child too. An answer that forks faster than this kills gets away after `seconds`.
    """
    until = time.monotonic() + seconds
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < until:
            os.waitpid(-1, os.WNOHANG)  # raises where no child is left: this process does not wait for them otherwise
            try:
                alive = map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
            except OSError:
                alive = [pid]
            for child in alive:
                stop(child)
            time.sleep(0.005)


def stop(pid):
    """Kill a process, and its group where it leads one."""
    for send in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            send(pid, signal.SIGKILL)


def copy_files(files, folder):
    """What was handed in beside the notebook, at most 16 MB of plain files."""
    os.mkdir(folder)
    left = 16 << 20
    for path in sorted(Path(files).iterdir()) if files is not None else ():
        with contextlib.suppress(OSError):  # such as one that cannot be read
            if path.suffix != ".ipynb" and not path.is_symlink() and path.is_file():
                left -= path.stat().st_size
                if left >= 0:
                    shutil.copyfile(path, Path(folder, path.name))


def answer_calls(far, orders, cells, seconds, folder):
    """The answers' process: run their cells, then do what the tests ask for."""
    orders.close()
    enter(folder)
    peer, space, errors, names = Peer(far), {"__name__": "__main__"}, {}, set()
    fence.limits(MEMORY, seconds + 5)
    fence.landlock([folder], fence.readable())
    fence.seccomp()
    fence.audit(folder)
    if "numba" in sys.modules:
        sys.modules["numba"].config.BOUNDSCHECK = 1  # an index past the end is an error with a name, not the end of the process
    for cell in [handout.Cell(**cell) for cell in cells]:
        try:
            handout.run_cell(cell, space)
        except BaseException as error:
            errors[cell.task] = described(error)
        if cell.kind == "answer":
            names |= handout.defines(cell.source)
    peer.send("ready", {name: space[name] for name in names if callable(space.get(name))}, errors)
    peer.serve()


def run_tests(near, read, write, given, test, asked, folder, course, other):
    """The tests' process: its verdict goes into the pipe `write`."""
    os.close(read)
    enter(folder)
    fence.limits(2 * MEMORY, test.seconds + 5)
    fence.landlock([folder], fence.readable(), programs=True)
    os.environ["MINISL_COURSE"] = course
    stop_after(test.seconds, other)
    try:
        peer, space = Peer(near), {"__name__": "__main__"}
        for cell in given:
            handout.run_cell(cell, space)
        (_, functions, errors), _ = peer.receive()
        if test.task in errors:
            raise error_of(*errors[test.task])
        space.update((name, function) for name, function in functions.items() if name in asked - space.keys())
        handout.run_cell(test, space)
        verdict = None
    except TooLong:
        verdict = too_slow(test)
    except Gone:
        verdict = "the process that ran your answer ended before it was done: killed for memory or time, or by its own exit"
    except BaseException as error:
        verdict = in_words(error)
    signal.setitimer(signal.ITIMER_REAL, 0)
    if verdict is not None:  # no control characters for the terminal, no half characters
        verdict = "".join(c if c.isprintable() or c == "\n" else "?" for c in verdict[:4000])
    os.write(write, json.dumps(verdict).encode())


class TooLong(BaseException):
    """A task's seconds are over."""


def too_slow(test):
    """What is said of an answer that was stopped."""
    return f"stopped after {test.seconds:g} seconds: too slow, or a loop that never ends"


def stop_after(seconds, other):
    """Raise TooLong here once this process and `other` have computed for so many seconds, or waited PATIENCE times as long.

    So a task is not lost because the machine was busy with something else. (Where the time that another process has computed
    cannot be read, on macOS, all that passes counts.)
    """
    begun = time.monotonic()

    def look(*_):
        left = seconds - computed(other)
        if left < 0.01 or time.monotonic() - begun > PATIENCE * seconds:
            raise TooLong
        signal.setitimer(signal.ITIMER_REAL, left)

    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def computed(other):
    """Seconds of computing of this process, those that it has started and waited for, and `other`; inf where that is unknown."""
    try:
        others = time.clock_gettime(~other << 3 | 2)  # Linux: the clock of another process
    except OSError:  # it has ended
        others = 0 if sys.platform == "linux" else float("inf")
    return sum(os.times()[:4]) + others


def enter(folder):
    """Work in `folder`, silent, with temporary files and what the emulator compiles in there."""
    os.chdir(folder)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    os.environ["TMPDIR"] = os.environ["XDG_CACHE_HOME"] = tempfile.tempdir = folder


def main():
    orders, breeder = socket.socketpair()
    if os.fork() == 0:
        breeder.close()
        breed(orders)
        os._exit(0)
    orders.close()
    job = json.load(sys.stdin)
    source, submitted = (part and [handout.Cell(**cell) for cell in part] for part in (job["source"], job["submitted"]))
    json.dump([asdict(outcome) for outcome in grade(source, submitted, job["files"], breeder, job["course"])], sys.stdout)


if __name__ == "__main__":
    import numba  # noqa: F401  here once, not in each child
    import scipy.sparse  # noqa: F401

    import minisl.kernels
    import minisl.methods
    import minisl.nn  # noqa: F401

    main()
