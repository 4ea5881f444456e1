"""Wrong implementations, made by changing one piece of a shipped function, in place, for the length of a block."""

import importlib.util
import inspect
import sys
import textwrap
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path

import pytest

from minisl import kernels


@contextmanager
def mutated(function, old, new):
    """`function` behaves as if its source had `new` instead of `old` (which occurs exactly once)."""
    kernel = hasattr(function, "py_func")
    source = textwrap.dedent(inspect.getsource(function.py_func if kernel else function))
    assert source.count(old) == 1, f"{function.__qualname__} holds {old!r} {source.count(old)} times"
    with (replaced_kernel if kernel else replaced_code)(function, source.replace(old, new)):
        yield


@contextmanager
def replaced_code(function, source):
    scope = {}
    exec(compile(source, function.__code__.co_filename, "exec"), function.__globals__, scope)
    wrong = scope[function.__name__]
    for wrapped in ("__func__", "func", "fget"):  # of a static method, a cached property, a property
        wrong = getattr(wrong, wrapped, wrong)
    wrong = inspect.unwrap(wrong)
    right, function.__code__ = function.__code__, wrong.__code__
    try:
        yield
    finally:
        function.__code__ = right


@contextmanager
def replaced_kernel(kernel, source):
    """A Numba kernel from another source, and the kernels of its module that call it compiled again; nothing goes to Numba's
    cache."""
    module, name = sys.modules[kernel.__module__], kernel.__name__
    scope = {}
    exec(compile(source[source.index("def "):], module.__file__, "exec"), vars(module), scope)  # without its decorator
    right = {name: kernel}
    changed = {name: scope[name]}
    while callers := {n: f.py_func for n, f in vars(module).items() if hasattr(f, "py_func") and n not in changed
                      and not changed.keys().isdisjoint(f.py_func.__code__.co_names)}:
        right |= {n: getattr(module, n) for n in callers}
        changed |= callers
    try:
        for n, function in changed.items():
            setattr(module, n, compiled(function, right[n].targetoptions))
        yield
    finally:
        for n, function in right.items():
            setattr(module, n, function)


def compiled(function, options):
    import numba

    return numba.jit(**options)(function)


@contextmanager
def patched(cls, name, value):
    right = cls.__dict__[name]
    setattr(cls, name, value)
    try:
        yield
    finally:
        setattr(cls, name, right)


def within(backend, checks):
    """The checks, each with this backend in use."""
    def check_within(check):
        with kernels.using(backend):
            check()

    return [lambda check=check: check_within(check) for check in checks]


def rejected(checks):
    """Does any of the shipped checks fail? Each runs in a context of its own, as `no_grad` lives in one."""
    for check in checks:
        try:
            copy_context().run(check)
        except (Exception, pytest.fail.Exception):  # a failed assertion, or code that no longer runs: the test is red
            return True
    return False


def title(function, old, new):
    return f"{function.__module__.removeprefix('minisl.')}.{function.__qualname__}: {old} -> {new}"


def mutant_tests(table, *checks):
    """A test for pytest: with each (function, old, new) of the table, one of the checks fails; without, none."""
    @pytest.mark.parametrize("mutant", table, ids=lambda mutant: title(*mutant))
    def test_rejects(mutant, killed):
        with mutated(*mutant):
            killed[title(*mutant)] = rejected(checks)
        assert killed[title(*mutant)]
        assert not rejected(checks), "restored, the shipped tests pass again"

    return test_rejects


def load(path):
    """A test file as a module, for the tests in it."""
    file = Path(__file__).parent / path
    spec = importlib.util.spec_from_file_location("mutants_of_" + file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
