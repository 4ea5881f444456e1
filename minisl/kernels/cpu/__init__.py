"""The same as `numpy_backend`, on all cores: BLAS for dense products, Numba for what BLAS has no word for.

Tokens are shared out among the cores; where a gradient sums over tokens, its rows or columns are. So no result depends on the
number of threads.
"""

from contextlib import contextmanager

from numba.core import event

from minisl.kernels.cpu import rows
from minisl.kernels.cpu.fused import *  # noqa: F403  a backend has the fused ops too
from minisl.kernels.cpu.jit import kept
from minisl.kernels.cpu.product import *  # noqa: F403


class Announcement(event.Listener):
    def __init__(self, say):
        self.say, self.said = say, False

    def on_start(self, event):
        if not self.said:
            self.said = True
            self.say("compiling the Numba kernels for this CPU, " + (
                "once; they are kept for the next time ..." if kept(rows.square_sum.py_func) else
                "at each start, as no folder for them can be written; fix: set NUMBA_CACHE_DIR to one that can"))

    def on_end(self, event):
        pass


@contextmanager
def announced(say):
    """Within this block, say(one line) when a kernel is compiled for the first time rather than found in Numba's cache."""
    with event.install_listener("numba:compile", Announcement(say)):
        yield
