"""How the bench measures on a GPU: by the GPU's own clock, with nothing of the operands in its cache."""

import gc
import math
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from minisl.backend import PRECISIONS, in_words, matmul, matmul_precision
from minisl.bench.measure import Timing
from minisl.errors import InputError

TURNS = 9
ENOUGH = 0.3  # seconds in which a candidate is measured; twice at least
LONGEST = 0.5  # seconds that one call may take, where its tokens can be fewer
BUSY = 1e-3  # seconds in which the GPU is busy with something else while launches are queued
SPOIL = 1 << 28  # bytes written before each call: more than any L2 cache holds
GEMM = 8192  # rows and columns of the product that is one ceiling
COPY = 1 << 30  # bytes of the copy that is the other
BLOCK = 1 << 22  # random numbers that are drawn; arrays repeat them
TIME_IS_UP = "time was up"
NO_MEMORY = "no memory"


@dataclass
class Found:
    """The time of one candidate for `wanted` tokens, measured with `tokens`; or why there is none."""

    wanted: int = 0
    tokens: int = 0
    timing: Timing | None = None
    failed: str = ""

    @property
    def scaled(self):
        return self.tokens < self.wanted

    @property
    def seconds(self):
        return self.timing.median * self.wanted / self.tokens

    def row(self):
        """For bench.json."""
        if self.timing is None:
            return {"failed": self.failed}
        return {"ms": 1e3 * self.seconds, "spread": self.timing.spread, "turns": len(self.timing.seconds), "tokens": self.tokens}


class Gpu:
    """A GPU to measure on.

    seconds: after so many, `over` is true. torch: PyTorch if it can use this GPU, else None, and `no_torch` says why.
    """

    torch_device = "cuda"

    def __init__(self, cupy, seconds=math.inf):
        self.xp, self.end, self.rng = cupy, time.monotonic() + seconds, np.random.default_rng(0)
        self.torch, self.no_torch = torch_on_gpu()
        self.out_of_memory = (cupy.cuda.memory.OutOfMemoryError, *([self.torch.cuda.OutOfMemoryError] if self.torch else []))
        self.spoiler, self.fills = cupy.empty(SPOIL // 4, np.float32), 1
        once = min(self.seconds(lambda: self.spoiler.fill(1)) for _ in range(4))
        self.fills = max(1, min(1000, math.ceil(BUSY / max(once, 1e-9))))

    @property
    def over(self):
        return time.monotonic() > self.end

    def seconds(self, call):
        """What the GPU takes for one call.

        Before it, the GPU writes to a large array: that leaves nothing of the call's operands in the L2 cache, and takes so long
        that Python can queue the call's launches meanwhile. So what is measured is the GPU's time, not Python's.
        """
        event = self.xp.cuda.Event
        start, end = event(), event()
        for _ in range(self.fills):
            self.spoiler.fill(0)
        start.record()
        call()
        end.record()
        end.synchronize()
        return 1e-3 * self.xp.cuda.get_elapsed_time(start, end)

    def measure(self, candidates, tokens=1, least=None):
        """name -> Found of candidates call(n), for `tokens` tokens. What takes longer than LONGEST is measured with fewer, but no
        fewer than `least`, if that is given."""
        found = {name: Found(tokens) for name in candidates}
        for name, call in candidates.items():
            with self.noting(found[name]):
                call(min(tokens, least or tokens))  # to compile, and to take memory
                found[name].tokens = self.most_tokens(call, tokens, least) if least else tokens
        timings = self.in_turn({name: (lambda call=call, n=found[name].tokens: call(n)) for name, call in candidates.items()
                                if not found[name].failed}, found)
        for name, seconds in timings.items():
            found[name].timing = Timing(seconds) if seconds and not found[name].failed else None
        return found

    def in_turn(self, candidates, found):
        """name -> seconds. In each turn one after the other, so that a change of the GPU's clock hits them all; what takes long
        takes part in fewer turns."""
        seconds = {name: [] for name in candidates}
        for turn in range(TURNS):
            for name, call in candidates.items():
                if not found[name].failed and (turn < 2 or sum(seconds[name]) <= ENOUGH):
                    with self.noting(found[name]):
                        seconds[name].append(self.seconds(call))
        return seconds

    @contextmanager
    def noting(self, found):
        """Within this block an error is noted as why there is no time, and what was taken is given back."""
        try:
            yield
        except self.out_of_memory:
            found.failed = NO_MEMORY
        except Exception as error:  # one call that a library does not know must not cost the measurements of all others
            found.failed = f"failed: {in_words(error)}"
        if found.failed:
            self.free()

    def most_tokens(self, call, tokens, least):
        """`tokens`, or fewer, a power of two times `least`, with which call(n) takes no more than LONGEST; found from below."""
        n = min(tokens, least)
        while True:
            once = self.seconds(lambda: call(n))  # noqa: B023
            more = [f for f in (8, 4, 2) if f * once <= LONGEST]
            if n == tokens or not more:
                return n
            n = min(tokens, n * more[0])

    def tokens_that_fit(self, tokens, bytes_each):
        """`tokens`, halved until arrays of `bytes_each` a token take no more than 70 % of the GPU's free memory."""
        self.free()
        free, _ = self.xp.cuda.Device().mem_info
        while tokens > 1 and tokens * bytes_each > 0.7 * free:
            tokens //= 2
        return tokens

    def free(self):
        """Give back to the GPU what CuPy and PyTorch keep for later."""
        gc.collect()
        self.xp.get_default_memory_pool().free_all_blocks()
        if self.torch and self.torch_device == "cuda":
            self.torch.cuda.empty_cache()

    def draw(self, *shape):
        """Normal numbers on the GPU."""
        rows = max(1, min(shape[0], BLOCK // math.prod(shape[1:])))
        block, out = self.xp.asarray(self.rng.standard_normal((rows, *shape[1:]), np.float32)), self.xp.empty(shape, np.float32)
        for i in range(0, shape[0], rows):
            out[i : i + rows] = block[: min(rows, shape[0] - i)]
        return out

    def tensor(self, array):
        """The array as a PyTorch tensor on the same memory."""
        return self.torch.from_dlpack(array)

    def precisions(self):
        """Those of PRECISIONS that this GPU has."""
        found = []
        for name in PRECISIONS:
            try:
                with matmul_precision(name, self.xp):
                    found.append(name)
            except InputError:
                pass
        return found

    def ceilings(self):
        """"copy": bytes per second within the GPU's memory, read and write counted; for each precision cuBLAS's operations per
        second; the best of several."""
        found = {"copy": 2 * COPY / self.best(copied, self.draw(COPY // 4), self.draw(COPY // 4))}
        for name in self.precisions():
            with matmul_precision(name, self.xp):
                found[name] = 2 * GEMM**3 / self.best(matmul, self.draw(GEMM, GEMM), self.draw(GEMM, GEMM))
        self.free()
        return found

    def best(self, function, *operands):
        """The least seconds of a call. Raises RuntimeError where there are none."""
        [found] = self.measure({"": lambda _: function(*operands)}).values()
        if found.failed:
            raise RuntimeError(f"no ceiling to compare with: {found.failed}")
        return min(found.timing.seconds)

    def about(self):
        """{word: what this machine has}"""
        cupy, runtime = self.xp, self.xp.cuda.runtime
        return {"gpu": runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode(), "driver": driver_version(),
                "driver_cuda": dotted(runtime.driverGetVersion()), "cuda": dotted(runtime.runtimeGetVersion()),
                "cupy": cupy.__version__, "torch": self.torch.__version__ if self.torch else self.no_torch}


def copied(x, y):
    y[...] = x


def dotted(cuda):
    """13010 is "13.1"."""
    return f"{cuda // 1000}.{cuda % 1000 // 10}"


def driver_version():
    """As nvidia-smi has it, such as "580.65.06"."""
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=20).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def torch_on_gpu():
    """(PyTorch, "") if it can use the GPU, else (None, why)."""
    try:
        import torch
    except ImportError:
        return None, "not installed"
    return (torch, "") if torch.cuda.is_available() else (None, f"{torch.__version__} sees no GPU")

