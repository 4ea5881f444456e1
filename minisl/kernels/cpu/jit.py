"""Numba's `njit` for the kernels here: what it compiles is kept on disk, where a folder for that can be read and written."""

from contextlib import suppress

from numba import njit
from numba.core.caching import FunctionCache


class Kept(FunctionCache):
    """Numba's cache. A kernel that cannot be read from it is compiled again, one that cannot be written is not kept."""

    def load_overload(self, signature, target_context):
        try:
            return super().load_overload(signature, target_context)
        except Exception:  # damaged, or another user's: begun anew, if that is possible
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, signature, data):
        with suppress(OSError):
            super().save_overload(signature, data)


def compiled(**options):
    """`numba.njit(cache=True, **options)`, which no folder and no damaged file can stop."""

    def decorate(function):
        dispatcher = njit(**options)(function)
        if cache := kept(function):
            dispatcher._cache = cache  # as cache=True does
        return dispatcher

    return decorate


def kept(function):
    """Numba's cache for a function, or None where it finds no folder for one."""
    try:
        return Kept(function)
    except (RuntimeError, OSError):  # "no locator available"
        return None
