"""What can be wrong with a launch: one exception for each kind, which says kernel, line, block and thread."""


class KernelFault(RuntimeError):
    """A kernel did what it must not. Attributes: kernel, line (in its source) or None, block and thread as (x, y, z) or None."""

    def __init__(self, what, kernel, line=None, block=None, thread=None, source=""):
        self.what, self.kernel, self.line, self.block, self.thread = what, kernel, line, block, thread
        where = kernel + (f", line {line}" if line else "")
        if block is not None:
            where += f", block {block}"
        if thread is not None:
            where += f", thread {thread}"
        text = source.splitlines()[line - 1].strip() if line and line <= len(source.splitlines()) else ""
        super().__init__(f"{where}: {what}" + (f"\n    {text}" if text else ""))


class OutOfBounds(KernelFault):
    """An address outside of every array the kernel was given."""


class Uninitialised(KernelFault):
    """Shared memory read before any thread of the block wrote it."""


class Race(KernelFault):
    """Two threads touch the same bytes, one of them writes, and no barrier or atomic orders them."""


class BarrierDivergence(KernelFault):
    """Threads of one block do not all reach the same __syncthreads()."""


class BadShuffle(KernelFault):
    """A warp collective whose mask names the wrong lanes."""


class Deadlock(KernelFault):
    """No thread can go on."""


class UndefinedBehaviour(KernelFault):
    """C++ that means nothing: an index past a fixed array, a misaligned wide load, a shift too far."""


class BadLaunch(KernelFault):
    """Grid, block, shared memory or arguments that no GPU would take."""
