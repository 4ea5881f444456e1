"""Learning rate as a function of the step."""

import math

SCHEDULES = ("cosine", "linear", "constant")


def learning_rate(step, *, peak, steps, warmup=0, schedule="cosine", min_ratio=0.1):
    """The rate of update number `step`, counted from 1 to `steps`.

    Warm-up: peak step / warmup, reaching `peak` at step = warmup. After it, with p = (step - warmup) / (steps - warmup):
    cosine  peak (min_ratio + (1 - min_ratio) (1 + cos(pi p)) / 2)
    linear  peak (1 - (1 - min_ratio) p)
    constant  peak
    so the last update has the rate min_ratio * peak.
    """
    if step < warmup:
        return peak * step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    if schedule == "cosine":
        return peak * (min_ratio + (1 - min_ratio) * (1 + math.cos(math.pi * progress)) / 2)
    if schedule == "linear":
        return peak * (1 - (1 - min_ratio) * progress)
    if schedule == "constant":
        return peak
    raise ValueError(f"schedule {schedule!r}; allowed: {', '.join(SCHEDULES)}")
