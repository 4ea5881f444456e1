"""Calls between two processes that do not trust each other: numbers, text, lists, arrays and functions cross, nothing else.

A message is a JSON tree and, behind it, the arrays' bytes. Nothing is unpickled: whatever the other side sends can be wrong, but
it cannot run. What a call writes into an array it was given stays on its side, where nothing is compared with it; that it did is
noted, for `check.unchanged`.
"""

import builtins
import json
import struct
import traceback

import numpy as np

from minisl.course.check import WRITTEN

LARGEST = 1 << 30  # bytes of one message


class Gone(Exception):
    """The other process has ended."""


class Peer:
    """One end. `call` asks the other end for one of its functions; while it waits, it answers calls from there."""

    def __init__(self, socket):
        self.stream = socket.makefile("rwb")
        self.offered = []

    def send(self, *message):
        tree, arrays = pack(message, self.offered)
        text = json.dumps(tree).encode()
        try:
            self.stream.write(struct.pack("<QQ", len(text), len(arrays)) + text)
            for array in arrays:
                self.stream.write(struct.pack("<Q", array.nbytes) + array.tobytes())
            self.stream.flush()
        except OSError:
            raise Gone from None

    def receive(self):
        """The next message, as a list, and its arrays."""
        length, count = struct.unpack("<QQ", self.read(16))
        text = self.read(length)
        if count > 10_000:
            raise Gone
        buffers = [self.read(struct.unpack("<Q", self.read(8))[0]) for _ in range(count)]
        arrays = []
        return unpack(json.loads(text), buffers, arrays, self), arrays

    def read(self, count):
        if count > LARGEST:
            raise Gone
        try:
            data = self.stream.read(count)
        except OSError:
            raise Gone from None
        if len(data) < count:
            raise Gone
        return data

    def call(self, number, args, kwargs):
        given = []
        pack((args, kwargs), [], given, keep=True)
        self.send("call", number, args, kwargs)
        while True:
            (kind, *rest), _ = self.receive()
            if kind == "call":
                self.answer(*rest)
            elif kind == "return":
                value, changed = rest
                WRITTEN.extend(given[place] for place in changed)
                return value
            else:
                raise error_of(*rest)

    def answer(self, number, args, kwargs):
        """Do what the other side asked for."""
        arrays = []
        pack((args, kwargs), [], arrays, keep=True)
        before = [array.copy() for array in arrays]
        try:
            value = self.offered[number](*args, **kwargs)
            changed = [k for k, array in enumerate(arrays) if array.tobytes() != before[k].tobytes()]
            self.send("return", value, changed)
        except Gone:
            raise
        except BaseException as error:
            self.send("raise", *described(error))

    def serve(self):
        """Answer calls until the other side has gone."""
        try:
            while True:
                (_, *rest), _ = self.receive()
                self.answer(*rest)
        except Gone:
            pass


class Remote:
    """A function of the other process."""

    def __init__(self, peer, number, name):
        self.peer, self.number, self.__name__ = peer, number, name

    def __call__(self, *args, **kwargs):
        try:
            return self.peer.call(self.number, args, kwargs)
        except Exception as error:
            if getattr(error, "where", "").startswith(self.__name__):
                error.where += f"; called with {', '.join(map(brief, (*args, *kwargs.values())))}"
            raise


def brief(value):
    """An argument in a few words."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    if isinstance(value, (list, tuple, dict)):
        return f"a {type(value).__name__} of {len(value)}"
    return f"the function {value.__name__}" if callable(value) else repr(value)[:40]


def pack(value, offered, arrays=None, keep=False):
    """A JSON tree of `value`, and its arrays in order; functions are entered in `offered`. keep: the arrays themselves.

    Raises TypeError: something in it cannot cross.
    """
    arrays = [] if arrays is None else arrays

    def tree(x):
        if x is None or (isinstance(x, (bool, int, float, str)) and not isinstance(x, np.generic)):
            return x
        if isinstance(x, (np.ndarray, np.generic)):
            array = x if keep and isinstance(x, np.ndarray) else np.asarray(x)
            if array.dtype.kind not in "biufcUS":
                raise TypeError(f"the result is an array of {array.dtype}; it should be of numbers")
            if isinstance(x, np.ndarray) or not keep:
                arrays.append(array)
            return {"array": [array.dtype.str, array.shape, isinstance(x, np.generic)]}
        if isinstance(x, (list, tuple)):
            return {type(x).__name__ if type(x) in (list, tuple) else "tuple": [tree(y) for y in x]}
        if isinstance(x, dict):
            return {"dict": [[tree(key), tree(y)] for key, y in x.items()]}
        if isinstance(x, bytes):
            return {"bytes": x.hex()}
        if isinstance(x, (set, frozenset, range)):
            return {"list": [tree(y) for y in (x if isinstance(x, range) else sorted(x))]}
        if callable(x):
            offered.append(x)
            return {"function": [len(offered) - 1, getattr(x, "__name__", "function")]}
        fix = "; list(...) makes one of it" if hasattr(x, "__iter__") else ""
        raise TypeError(f"the result has an object of type {type(x).__name__} where a number, a list or an array should be{fix}")

    return tree(value), arrays


def unpack(tree, buffers, arrays, peer):
    """The value of a JSON tree; its arrays can be written to, and are listed in `arrays`."""
    if not isinstance(tree, dict):
        return tree
    (kind, content), = tree.items()
    if kind == "array":
        dtype, shape, scalar = content
        dtype = np.dtype(dtype)
        if dtype.kind not in "biufcUS":
            raise Gone
        array = np.frombuffer(buffers[len(arrays)], dtype).reshape(shape).copy()
        arrays.append(array)
        return array[()] if scalar else array
    if kind == "dict":
        return {unpack(key, buffers, arrays, peer): unpack(value, buffers, arrays, peer) for key, value in content}
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "function":
        return Remote(peer, *content)
    values = [unpack(value, buffers, arrays, peer) for value in content]
    return tuple(values) if kind == "tuple" else values


def described(error):
    """An error as what can cross: its nearest built-in type, its own name, its text, where in an answer it arose."""
    kind = next(parent.__name__ for parent in type(error).__mro__ if getattr(builtins, parent.__name__, None) is parent)
    at = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith("<answer")]
    if isinstance(error, SyntaxError):
        where = f"line {error.lineno}: {(error.text or '').strip()}"
        if (error.text or "").lstrip().startswith(("%", "!")):
            where += "; a notebook's % and ! do not work in answers"
    else:
        where = f"{at[-1].name}, line {at[-1].lineno}: {(at[-1].line or '').strip()}" if at else ""
    return kind, type(error).__name__, text_of(error)[:2000], where


def text_of(error):
    """str(error), but of a KeyError, which would be quoted each time it crosses."""
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


class InAnswer(Exception):
    """An answer raised an error that has no other name here."""


def error_of(kind, name, text, where):
    """The other side's error, to be raised here."""
    kind = getattr(builtins, kind, None)
    quiet = (StopIteration, StopAsyncIteration)  # would end a loop of the tests
    if not (isinstance(kind, type) and issubclass(kind, Exception)) or kind is Exception or issubclass(kind, quiet):
        kind, text = InAnswer, f"{name}: {text}"
    try:
        error = kind(text)
    except TypeError:  # UnicodeDecodeError and the like
        error = InAnswer(f"{name}: {text}")
    error.where = where
    return error


def in_words(error):
    """An error as a student reads it."""
    if isinstance(error, NotImplementedError):
        return "NotImplementedError: not written yet"
    text = text_of(error)
    if isinstance(error, RecursionError):
        text = "it calls itself too often; a loop with a list as its stack has no such limit"
    words = text if isinstance(error, AssertionError) and text else f"{type(error).__name__}: {text}"
    cause = error
    while cause is not None and not (where := getattr(cause, "where", "")):
        cause = cause.__cause__ or cause.__context__
    return words + (f"\n({where})" if where else "")
