"""Fair timing on a machine that is not: candidates take turns, so that a slow minute hits them all."""

import statistics
import time
from dataclasses import dataclass

import numpy as np

from minisl.parallel import cores, each

PAUSE = 0.1  # seconds: the idle threads of BLAS and OpenMP spin for a while, on cores that the next candidate needs


@dataclass
class Timing:
    """Seconds of one candidate, one per turn."""

    seconds: list

    @property
    def median(self):
        return statistics.median(self.seconds)

    @property
    def spread(self):
        """Half the distance between the quartiles, over the median."""
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / 2 / self.median


def in_turn(candidates, turns=9, least=0.02):
    """name -> Timing of callables: in each turn one after the other, warmed up, and called until `least` seconds have passed.

    What takes a second or more is called once a turn, in three turns only.
    """
    found, slow = {name: [] for name in candidates}, set()
    for turn in range(turns):
        for name, call in candidates.items():
            if name in slow and turn >= 3:
                continue
            time.sleep(PAUSE)
            if name not in slow:
                call()
            start, calls = time.perf_counter(), 0
            while calls == 0 or time.perf_counter() - start < least:
                call()
                calls += 1
            found[name].append((time.perf_counter() - start) / calls)
            if found[name][-1] > 1:
                slow.add(name)
    return {name: Timing(seconds) for name, seconds in found.items()}


def ceilings():
    """What this machine gives at best, with all cores, measured now: "gemm" operations per second of a float32 product in the
    BLAS that NumPy calls, "memory" bytes per second of y = x + y over arrays larger than any cache."""
    a, b = (np.ones((1536, 1536), np.float32) for _ in range(2))
    out = np.empty_like(a)
    x, y = (np.ones(1 << 25, np.float32) for _ in range(2))

    def triad():
        each(lambda i, j: np.add(y[i:j], x[i:j], out=y[i:j]), len(x))

    timings = in_turn({"gemm": lambda: np.matmul(a, b, out=out), "memory": triad}, turns=7)
    return {"gemm": 2 * 1536**3 / min(timings["gemm"].seconds), "memory": 3 * x.nbytes / min(timings["memory"].seconds),
            "cores": cores()}


def torch_or_none():
    """PyTorch using all our cores, or None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(cores())
    return torch
