"""Where text comes from. The default needs no download: it ships inside the Python interpreter."""

import ast
import gc
import hashlib
import sysconfig
import warnings
from dataclasses import dataclass
from pathlib import Path

from minisl.data.files import find_files
from minisl.errors import InputError

HOLD_OUT = 20  # every 20th document is for validation
TESTS = {"test", "tests", "idle_test", "site-packages", "dist-packages"}


@dataclass
class Corpus:
    """Documents, split. train, validation: lists of str. name: what was asked for; sha256: of all documents in order."""

    name: str
    train: list
    validation: list
    sha256: str


def load_corpus(sources=("python-docs",)):
    """A Corpus from "python-docs", "python-source", or UTF-8 files, folders and globs.

    Every 20th document is held out. With fewer than 20, the last 20th of each (from a line break on) is.
    Raises InputError: nothing there, empty, not UTF-8, too little to hold any out.
    """
    documents, name = load_documents(sources), " ".join(sources)
    digest = hashlib.sha256("\0".join(documents).encode()).hexdigest()
    if len(documents) >= HOLD_OUT:
        validation = documents[HOLD_OUT - 1 :: HOLD_OUT]
        train = [d for i, d in enumerate(documents) if i % HOLD_OUT != HOLD_OUT - 1]
    else:
        cuts = [cut(d) for d in documents]
        train = [d[:c] for d, c in zip(documents, cuts)]
        validation = [d[c:] for d, c in zip(documents, cuts) if d[c:].strip()]
    if not validation:
        raise InputError(f"--data {name}: too little text to hold out a {HOLD_OUT}th of it for validation")
    return Corpus(name, train, validation, digest)


def cut(document):
    """Where the held-out end starts: at a line from 90 % on if there is one, and by 95 % in any case."""
    end = len(document) - len(document) // HOLD_OUT
    return document.rfind("\n", end - len(document) // HOLD_OUT, end) + 1 or end


def load_documents(sources):
    """All documents of the sources, whole. Raises InputError: nothing there, empty, not UTF-8."""
    documents = [d for source in sources for d in read(source) if d.strip()]
    if not documents:
        raise InputError(f"--data {' '.join(sources)}: no text in it")
    return documents


def read(source):
    """The documents of one source, in a fixed order."""
    if source in NAMED:
        return NAMED[source]()
    if not source:
        raise InputError("--data: must not be empty")
    paths = find_files(source)
    if not paths:
        raise InputError(f"--data {source}: no such file, folder or match (or use {', '.join(NAMED)})")
    return [read_text(p) for p in paths]


def read_text(path):
    """A file's text. Raises InputError: not UTF-8, cannot be read."""
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"--data {path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise InputError(f"--data {path}: {error.strerror or error}") from None


def python_docs():
    """The language reference's topics and every docstring of the standard library, each text once, sorted."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        topics = {}
    documents = set(topics.values())
    collecting = gc.isenabled()
    gc.disable()  # millions of short-lived syntax nodes, no cycles: collecting them takes longer than parsing
    try:
        for text in python_source():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in old modules
                try:
                    documents.update(docstrings(ast.parse(text)))
                except (SyntaxError, ValueError):
                    pass  # a template, not a module
    finally:
        if collecting:
            gc.enable()
    return sorted(documents)


def python_source():
    """The text of every module of the standard library, without its tests, sorted by path."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(p for p in root.rglob("*.py") if not TESTS.intersection(p.relative_to(root).parts))
    texts = []
    for path in paths:
        try:
            texts.append(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError):
            pass  # a few old modules declare another encoding
    if not texts:
        raise InputError(f"--data: this Python has no standard library sources under {root}; give files of your own")
    return texts


def docstrings(module):
    """Docstrings of a module, its classes and functions, in order of appearance."""
    stack, found = [module], []
    while stack:
        node = stack.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            found.append(ast.get_docstring(node))
        for block in ("body", "handlers", "orelse", "finalbody"):
            inner = getattr(node, block, None)
            stack += reversed(inner) if isinstance(inner, list) else []
    return [d for d in found if d]


NAMED = {"python-docs": python_docs, "python-source": python_source}  # --data NAME: a function that returns a list of texts
