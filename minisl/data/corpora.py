"""Where text comes from. The default needs no download: it ships inside the Python interpreter."""

import ast
import gc
import hashlib
import sysconfig
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from minisl.data.files import find_files, first_bytes, foreign, identity, some
from minisl.data.pieces import LongText, blocks, whole
from minisl.errors import InputError

HOLD_OUT = 20  # every 20th document is for validation
LARGE = 1 << 26  # bytes from which on a file is not held in memory
TESTS = {"test", "tests", "idle_test", "site-packages", "dist-packages"}


@dataclass
class Corpus:
    """Documents, split. train, validation: lists of str (in train a LongText for each very large one). name: what was asked for;
    sha256: of all documents in order; notes: lines that say what was left out."""

    name: str
    train: list
    validation: list
    sha256: str
    notes: list = field(default_factory=list)


def load_corpus(sources=("python-docs",)):
    """A Corpus from "python-docs", "python-source", or UTF-8 files, folders and globs.

    Every 20th document is held out. With fewer than 20, the last 20th of each (from a line break on) is.
    Raises InputError: nothing there, empty, not UTF-8, too little to hold any out.
    """
    notes, name = [], " ".join(sources)
    documents = load_documents(sources, notes)
    digest = sha256_of(documents)
    if len(documents) >= HOLD_OUT:
        validation = [whole(d) for d in documents[HOLD_OUT - 1 :: HOLD_OUT]]
        train = [d for i, d in enumerate(documents) if i % HOLD_OUT != HOLD_OUT - 1]
    else:
        cuts = [cut(d) for d in documents]
        train = [d[:c] for d, c in zip(documents, cuts)]
        validation = [end for d, c in zip(documents, cuts) if (end := whole(d[c:])).strip()]
    if not validation:
        raise InputError(f"--data {name}: too little text to hold out a {HOLD_OUT}th of it for validation")
    return Corpus(name, train, validation, digest, notes)


def cut(document):
    """Where the held-out end starts: at a line from 90 % on if there is one, and by 95 % in any case."""
    end = len(document) - len(document) // HOLD_OUT
    low = end - len(document) // HOLD_OUT
    line = whole(document[low:end]).rfind("\n") + 1
    return low + line if line else end


def sha256_of(documents):
    """The hash of all documents, a zero byte between them."""
    digest = hashlib.sha256()
    for n, document in enumerate(documents):
        digest.update(b"\0" * (n > 0))
        for block in blocks(document):
            digest.update(block.encode())
    return digest.hexdigest()


def load_documents(sources, notes=None):
    """All documents of the sources, whole. A file that is named twice counts once, and so does a text that two files hold: one of
    them could be held out. notes: a list, to which lines about these and about empty files are added.

    Raises InputError: nothing there, empty, not UTF-8.
    """
    documents, seen, again, empty = [], set(), [], []
    for source in sources:
        if source in NAMED:
            documents += [d for d in NAMED[source]() if source not in seen and d.strip()]
            seen.add(source)
            continue
        for path in named_files(source):
            document = "" if identity(path) in seen else read_text(path)
            same = {identity(path), sha256_of([document])}
            if not any(block.strip() for block in blocks(document)):
                (again if same & seen else empty).append(path)
            elif same & seen:
                again.append(path)
            else:
                documents.append(document)
            seen |= same
    name = " ".join(sources)
    if not documents:
        raise InputError(f"--data {name}: no text in it")
    if notes is not None and again:
        notes.append(f"--data {name}: {some(again)} named twice, or with the text of another; each text counts once")
    if notes is not None and empty:
        notes.append(f"--data {name}: {some(empty)} without text, left out")
    return documents


def named_files(source):
    """The files of a source, in a fixed order. Raises InputError where there are none."""
    if not source:
        raise InputError("--data: must not be empty")
    paths = find_files(source)
    if not paths:
        raise InputError(f"--data {source}: no such file, folder or match (or use {', '.join(NAMED)})")
    return paths


def read_text(path):
    """A file's text, of a very large one a LongText. Raises InputError: not UTF-8, cannot be read."""
    try:
        return LongText(path) if path.stat().st_size > LARGE else path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"--data {path}: not UTF-8 text ({foreign(first_bytes(path)) or f'byte {error.start}'})") from None
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
