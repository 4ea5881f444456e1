"""Wrong implementations, made by changing one piece of a shipped function, in place, for the length of a block."""

import importlib.util
import inspect
import textwrap
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path

import pytest


@contextmanager
def mutated(function, old, new):
    """`function` behaves as if its source had `new` instead of `old` (which occurs exactly once)."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{function.__qualname__} holds {old!r} {source.count(old)} times"
    scope = {}
    exec(compile(source.replace(old, new), function.__code__.co_filename, "exec"), function.__globals__, scope)
    wrong = scope[function.__name__]
    wrong = inspect.unwrap(getattr(wrong, "__func__", getattr(wrong, "func", wrong)))
    right, function.__code__ = function.__code__, wrong.__code__
    try:
        yield
    finally:
        function.__code__ = right


@contextmanager
def patched(cls, name, value):
    right = cls.__dict__[name]
    setattr(cls, name, value)
    try:
        yield
    finally:
        setattr(cls, name, right)


def rejected(checks):
    """Does any of the shipped checks fail? Each runs in a context of its own, as `no_grad` lives in one."""
    for check in checks:
        try:
            copy_context().run(check)
        except (Exception, pytest.fail.Exception):  # a failed assertion, or code that no longer runs: the test is red
            return True
    return False


def load(path):
    """A test file as a module, for the tests in it."""
    file = Path(__file__).parent / path
    spec = importlib.util.spec_from_file_location("mutants_of_" + file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
