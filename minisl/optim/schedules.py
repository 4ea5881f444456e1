"""Learning rate as a function of the step."""

import math

import numpy as np

from minisl.errors import InputError

SCHEDULES = ("cosine", "linear", "constant", "wsd", "uba", "refined")


def learning_rate(step, *, peak, steps, warmup=0, schedule="cosine", min_ratio=0.1, decay_fraction=0.2, phi=1.0, factors=None):
    """The rate of update number `step`, counted from 1 to `steps`; of those after, that of the last; before, that of step 0.

    peak step / warmup until step = warmup. Then, with p = (step - warmup) / (steps - warmup) and m = min_ratio, peak times

    constant   1
    linear     m + (1 - m) (1 - p)
    cosine     m + (1 - m) (1 + cos pi p) / 2
    wsd        m + (1 - m) min(1, (steps - step) / (d steps))                           d = decay_fraction
    uba        m + (1 - m) 2 (1 + c) / (2 phi + (2 - phi) (1 + c))                      c = cos pi p
    refined    factors[step - 1], from `refined`; it has its own warm-up and its own end

    so that the last update has the rate m peak (constant: peak; refined: 0).

    wsd: warm-up, stable, decay (Hu et al. 2024, MiniCPM), here with a linear decay; d steps <= steps - warmup. Between the two no
    rate depends on `steps`: a run stopped there can go on to any number of them.
    uba: unified budget-aware; phi = 2 is cosine, with less the rate falls later, with more sooner. The formula is from a
    secondary source, not checked against the paper.
    """
    if schedule not in SCHEDULES:
        raise InputError(f"schedule {schedule!r}: unknown; allowed: {', '.join(SCHEDULES)}")
    step = min(max(step, 0), steps)
    if schedule == "refined":
        return peak * float(factors[min(max(step, 1), len(factors)) - 1])
    if step < warmup:
        return peak * step / warmup
    p = (step - warmup) / max(1, steps - warmup)
    c = math.cos(math.pi * p)
    if schedule == "constant":
        return peak
    if schedule == "linear":
        height = 1 - p
    elif schedule == "cosine":
        height = (1 + c) / 2
    elif schedule == "wsd":
        height = min(1, (steps - step) / (decay_fraction * steps))
    else:
        height = 2 * (1 + c) / (2 * phi + (2 - phi) * (1 + c))
    return peak * (min_ratio + (1 - min_ratio) * height)


def refined(norms, steps):
    """Factors (steps,) of a schedule, the largest 1, from the gradient norms G_t of a run before (Defazio et al. 2023, "When, why
    and how much? Adaptive learning rate scheduling by refinement"):

    eta_t ~ w_t sum_{s > t} w_s        w_t = G_t^-2

    Where all norms are alike that is 1 - t/T, linear decay. Where they fall at first it rises at first: a warm-up.

    G_t is the median over a tenth of the run. Before it stands the first norm again and again, after it the last ones in reverse,
    as in the authors' README: so norms that fall at first keep their warm-up.

    Our reading: the w_t of SGD, whatever the optimizer; norms of another number of steps are interpolated. Raises InputError for
    norms that are not all positive numbers, or none.
    """
    from scipy.ndimage import median_filter

    if not isinstance(norms, list | np.ndarray) or not len(norms):
        raise InputError("no gradient norms")
    for t, norm in enumerate(norms, 1):
        if isinstance(norm, bool) or not isinstance(norm, int | float) or not 0 < norm < 1e300:
            raise InputError(f"gradient norm {t} is {norm}; must be a positive number")
    half = len(norms) // 20
    padded = np.pad(np.pad(np.array(norms, float), (half, 0), "edge"), (0, half), "reflect")
    smooth = median_filter(padded, 2 * half + 1)[half : half + len(norms)]
    smooth = np.interp(np.linspace(0, 1, steps), np.linspace(0, 1, len(norms)), smooth)
    w = (smooth.min() / smooth) ** 2
    rates = w * np.append(w[:0:-1].cumsum()[::-1], 0)
    return rates / (rates.max() or 1)
