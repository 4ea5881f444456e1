"""The rungs: which .cu files there are, what each says of itself, and which one runs.

    minisl/kernels/cuda/spmm_3.cu is rung 3 of the operation spmm. The last rung runs unless told otherwise:

    with ladder.at(spmm=0):                    # the first rung of spmm, the last of all others
        kernels.spmm(x, values, support, backend="emulator")
    with ladder.at(language="numba", spmm=0):  # the same rung, written in Numba CUDA; other ladders too, where they are
        ...
"""

import re
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from types import MappingProxyType

from minisl.errors import InputError

FOLDER = Path(__file__).parent
LANGUAGES = ("cuda", "numba")
chosen = ContextVar("rungs", default=MappingProxyType({}))


@cache
def rungs(language="cuda"):
    """{operation: number of rungs} of the ladders in a language, from the files."""
    if language == "numba":
        found = {path.stem: len(re.findall(r"^def rung_\d", path.read_text(), re.M)) for path in FOLDER.glob("in_numba/*.py")}
        return {op: count for op, count in sorted(found.items()) if count}
    found = {}
    for path in sorted(FOLDER.glob("*_[0-9].cu")):
        op, _, number = path.stem.rpartition("_")
        found[op] = max(found.get(op, 0), int(number) + 1)
    return found


@contextmanager
def at(language=None, **numbers):
    """Within this block these rungs run, in this language (left out: as before).

    Raises InputError for a language, an operation or a rung that does not exist.
    """
    if language not in (None, *LANGUAGES):
        raise InputError(f"language {language!r} is unknown; allowed: {', '.join(LANGUAGES)}")
    for op, number in numbers.items():
        if op not in rungs():
            raise InputError(f"operation {op!r} has no ladder; allowed: {', '.join(rungs())}")
        if number not in range(rungs()[op]):
            raise InputError(f"{op} has no rung {number}; allowed: 0..{rungs()[op] - 1}")
    token = chosen.set(dict(chosen.get()) | numbers | ({"language": language} if language else {}))
    try:
        yield
    finally:
        chosen.reset(token)


def rung(op):
    """The number of the rung that runs now."""
    return chosen.get().get(op, (rungs() | rungs(language()))[op] - 1)


def language():
    return chosen.get().get("language", "cuda")


@cache
def source(op, number):
    """The text of a rung."""
    return (FOLDER / f"{op}_{number}.cu").read_text()


def header(op, number):
    """(title, idea) from the comment that a rung begins with."""
    comment = re.match(r"(?://.*\n)+", source(op, number))[0]
    title, *rest = [line.removeprefix("//").strip() for line in comment.splitlines()]
    return title, "\n".join(rest)
