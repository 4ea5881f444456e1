"""For the tests in tests/fuzz: malformed documents to draw from, and what must hold of whatever reads them."""

import faulthandler
import io
import json
import os
import re
import resource
import signal
import sys
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutation import mutated, rejected, title

from minisl import files, lock, plot
from minisl.command import run_command
from minisl.compare import grid, weigh
from minisl.errors import InputError
from minisl.memory import measure

FULL = os.environ.get("MINISL_FUZZ") == "full"
NOTICES = re.compile("|".join((
    "no Numba kernels", "compiling the Numba kernels", r".*key .* is not known here and is ignored$", "no loss.png: ",
    "interrupted$", "starting again with ",
    r".*(it|step|run|B)(/s|\])", r"\s*\d+%\|", r"\S+, lr \S+, seed \d+: ", "a step of ", ".*: passed over, step-",
    "(as trained|merged): ", "$")), re.DOTALL)


def examples(few, full):
    """How many examples a test draws."""
    return settings(max_examples=full if FULL else few)


# What must hold


class Hang(BaseException):
    """Not an Exception: what catches those must not swallow it."""


@contextmanager
def within(seconds=300, memory=1 << 30):
    """The block must end, and may not ask for more than so many bytes beyond what the process has.

    A call into C that never comes back cannot be interrupted: then Python shows where it is, and ends.
    """
    fired = []

    def late(*_):
        fired.append(True)
        raise Hang

    hard, soft = resource.getrlimit(resource.RLIMIT_AS)[1], resource.getrlimit(resource.RLIMIT_AS)[0]
    before = signal.signal(signal.SIGALRM, late)
    faulthandler.dump_traceback_later(2 * seconds, exit=True, file=sys.__stderr__)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        if memory and (size := address_space()):
            resource.setrlimit(resource.RLIMIT_AS, (size + memory, hard))
        yield
    except Hang:
        pass
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)
    assert not fired, f"still at it after {seconds} s"


def address_space():
    """Bytes of this process's address space; None where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return None


def accepted(call, *args, names=(), **kwargs):
    """(True, what it returns), or (False, the InputError's text), which must be there and hold `names`; no other exception."""
    with within(), redirect_stderr(io.StringIO()):
        try:
            return True, call(*args, **kwargs)
        except InputError as error:
            said = str(error)
        except BaseException as error:
            if type(error).__name__ == "PanicException":  # which is no Exception
                pytest.fail(f"a library panicked: {error}")
            raise
    assert said.strip()
    for name in names:
        assert str(name) in said, said
    return False, said


def run(command, argv, folder):
    """Exit code of a command on words that may be anything: 0, 1, 2, 130 or 141; with 2 one line is said, and nothing in
    `folder` is new or changed."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace"))
    before = listing(folder)
    with within(), redirect_stdout(out), redirect_stderr(err):
        try:
            code = run_command(command, argv)
        except SystemExit as asked_for_help:
            code = asked_for_help.code or 0
    err.flush()
    said = [line for line in re.split("[\r\n]", err.buffer.getvalue().decode()) if line.strip()]
    errors = [line for line in said if line.startswith("error: ")]
    assert code in (0, 1, 2, 130, 141), (code, said)
    assert len(errors) == (code in (1, 2)), said
    assert [line for line in said if not NOTICES.match(line)] == errors, said
    assert all(len(line) < 1300 for line in errors), "no line to read"
    if code == 2:
        after = listing(folder)
        assert after == before, {k: (before.get(k), after.get(k)) for k in before.keys() ^ after.keys()}
    return code


def listing(folder):
    """Every path below a folder, with what tells whether a file was written; but for locks, which say who held them last."""
    return {os.path.join(where, name): (os.lstat(os.path.join(where, name)).st_mtime_ns,
                                        os.lstat(os.path.join(where, name)).st_size)
            if name in files else None
            for where, folders, files in os.walk(folder) for name in (*folders, *files) if name != lock.NAME}


def must_notice(mutant, check, killed):
    """With a piece of a function changed (function, old, new), a test of few examples fails; without, it passes."""
    if FULL:
        pytest.skip("is shown with the few examples")
    with mutated(*mutant):
        killed[title(*mutant)] = rejected([check])
    assert killed[title(*mutant)]


def over(strategy, check, count=300):
    """`check` of so many draws: for what the few examples of a plain run do not always meet."""
    @given(example=strategy)
    @settings(max_examples=count)
    def checked(example):
        check(example)

    checked()


def wrong(*table):
    return pytest.mark.parametrize("mutant", table, ids=lambda mutant: title(*mutant))


# What to draw

INTS = st.one_of(st.integers(-3, 300), st.sampled_from((
    2**15, 2**16, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30, 10**400, -(10**400))))
FLOATS = st.one_of(st.floats(), st.sampled_from((0.0, -0.0, 0.5, 1.0, 1e-300, 5e-324, 1e300, float("inf"), float("nan"))))
TEXT = st.one_of(st.text(max_size=8), st.sampled_from((
    "", " ", "\0", "a\0b", "\ud800", "../x", "/etc/passwd", "nan", "1e999", "true", "\ufeff", "x" * 5000, "%s%n", "{0}", "\n\n")),
    st.text(st.characters(), max_size=4))
SCALARS = st.one_of(st.none(), st.booleans(), INTS, FLOATS, TEXT)
VALUES = st.recursive(SCALARS, lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)), max_leaves=5)


@st.composite
def edited(draw, document, edits=3):
    """A JSON document with up to so many places changed: another value, of another type, missing, renamed, or grown."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, edits))):
        places = [(parent, key) for parent, key in walk(document)]
        if not places:
            break
        parent, key = draw(st.sampled_from(places))
        how = draw(st.sampled_from(("value", "value", "value", "missing", "renamed", "copied", "nested", "grown")))
        if how == "value":
            parent[key] = draw(VALUES)
        elif how == "missing":
            del parent[key]
        elif how == "renamed" and isinstance(parent, dict):
            parent[draw(st.one_of(TEXT, near(key)))] = parent.pop(key)
        elif how == "copied":
            other, there = draw(st.sampled_from(places))
            if there in other if isinstance(other, dict) else there < len(other):
                parent[key] = json.loads(json.dumps(other[there]))
        elif how == "nested":
            for _ in range(draw(st.sampled_from((1, 2, 50)))):
                parent[key] = [parent[key]] if draw(st.booleans()) else {"a": parent[key]}
        elif isinstance(parent, dict):
            parent[draw(TEXT)] = draw(VALUES)
        else:
            parent.append(draw(VALUES))
    return document


def walk(document, deepest=8):
    """(container, key) of every value in a document."""
    stack = [(document, 0)]
    while stack:
        here, depth = stack.pop()
        if isinstance(here, (dict, list)) and depth < deepest:
            keys = list(here) if isinstance(here, dict) else range(len(here))
            yield from ((here, key) for key in keys)
            stack += [(here[key], depth + 1) for key in keys]


def near(word):
    """Words that are almost this one."""
    word = word or "a"
    return st.integers(0, len(word) - 1).flatmap(lambda i: st.sampled_from((
        word[:i] + word[i + 1:], word[:i] + word[i] + word[i:], word[:i] + word[i].swapcase() + word[i + 1:],
        word.replace("_", "-"), word + " ", word + "s")))


@st.composite
def damaged(draw, content, edits=4):
    """Bytes with bits flipped, pieces cut out, doubled, replaced or moved, or the end missing."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, edits))):
        here = draw(st.integers(0, max(0, len(content) - 1)))
        length = draw(st.sampled_from((1, 1, 2, 8, 100, 5000)))
        how = draw(st.sampled_from(("flip", "flip", "cut", "double", "replace", "end")))
        if how == "flip" and content:
            content[here] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del content[here:here + length]
        elif how == "double":
            content[here:here] = content[here:here + length]
        elif how == "replace":
            content[here:here + length] = draw(st.binary(max_size=16))
        elif how == "end":
            del content[here:]
    return bytes(content)


def as_json(document):
    """Bytes of a document that may hold what UTF-8 cannot: lone surrogates are escaped."""
    return json.dumps(document).encode()


# The work that is left out


class Inline:
    """A ProcessPoolExecutor that does the work at once, here."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, work, *args):
        future = Future()
        future.set_result(work(*args))
        return future


def runs_made_up(patch):
    """A comparison's runs are not done, and its steps not weighed: what comes of them is made up, in this process."""
    result = {"status": "done", "steps": 2, "seconds": 0.1, "curve": [[64, 5.0, 7.0]], "tokens": 64, "val_loss": 5.0,
              "perplexity": 148.0, "bits_per_byte": 7.0}

    def one_run(settings, run, keep_weights):
        Path(run).mkdir(parents=True)
        files.write_json(Path(run) / "result.json", result | {"val_loss": 4 + settings.lr})
        return result | {"val_loss": 4 + settings.lr}

    patch.setattr(grid, "ProcessPoolExecutor", Inline)
    patch.setattr(grid, "one_run", one_run)
    sizes = dict.fromkeys((*measure.KINDS, "peak"), 1)
    patch.setattr(weigh, "step_seconds", lambda *_: 0.01)
    patch.setattr(grid, "step_seconds", lambda *_: 0.01)
    patch.setattr(weigh, "weigh", lambda *_: {"parameters": 1, "estimated": sizes, "measured": sizes})
    for figure in ("circles_figure", "curves_figure"):
        patch.setattr(plot, figure, lambda path, *_: Path(path).write_bytes(b""))
