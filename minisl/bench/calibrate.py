"""Fit the constants of `minisl.kernels.cost` to this machine."""

import json

import numpy as np
from scipy.optimize import nnls

from minisl.bench.layer import problem, sl_layer
from minisl.bench.measure import in_turn
from minisl.errors import InputError
from minisl.files import replacing
from minisl.kernels import cost

GRID = [(n, width, out, r, delta) for width, out, r in ((128, 344, 32), (512, 512, 128), (512, 1376, 128), (768, 768, 256))
        for n, delta in ((64, 0.03), (512, 0.03), (2048, 0.03), (2048, 0.01), (2048, 0.1))]
NUMPY_GRID = [sizes for sizes in GRID if sizes[0] <= 512]  # SciPy's sparse product is slow


def measured(backend, grid):
    """(algorithm, n, in, out, r, nnz, seconds) of forward and backward"""
    rows = []
    for n, width, out, r, delta in grid:
        data = problem(width, out, r, n, delta)
        timings = in_turn({a: sl_layer(*data, a, backend) for a in ("materialised", "factored")}, turns=3)
        rows += [(a, n, width, out, r, len(data[-1]), t.median) for a, t in timings.items()]
    return rows


def fit(rows):
    """Non-negative constants with the least squared relative error."""
    names = sorted({name for row in rows for name in cost.features(*row[:-1])})
    work = np.array([[cost.features(*row[:-1]).get(name, 0.0) / row[-1] for name in names] for row in rows])
    size = work.max(axis=0)
    found, _ = nnls(work / size, np.ones(len(rows)))
    return {name: float(value) for name, value in zip(names, found / size)}


def expected(constants, row):
    return sum(constants[name] * amount for name, amount in cost.features(*row[:-1]).items())


def calibrate(say):
    """Measure both backends, keep the constants in `cost.calibration_file()`, and return (backend, row, expected) for a
    report."""
    path = cost.calibration_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another file with MINISL_COST") from None
    constants, report = {}, []
    for backend, module, grid in (("cpu", "cpu", GRID), ("numpy", "numpy_backend", NUMPY_GRID)):
        rows = measured(backend, grid)
        constants[module] = fit(rows)
        say(f"{backend}: " + ", ".join(f"{name} = {value:.3g}" for name, value in constants[module].items()))
        say(f"  {'algorithm':14}{'n':>6}{'in':>6}{'out':>6}{'r':>5}{'nnz':>8}{'ms':>9}{'expected':>10}{'off':>7}")
        for row in rows:
            t = expected(constants[module], row)
            report.append((backend, row, t))
            algorithm, n, width, out, r, nnz, found = row
            say(f"  {algorithm:14}{n:6}{width:6}{out:6}{r:5}{nnz:8}{1e3 * found:9.2f}{1e3 * t:10.2f}{t / found - 1:+7.0%}")
    with replacing(path) as [draft]:
        draft.write_text(json.dumps(constants, indent=1) + "\n")
    say(f"kept in {path}; --algorithm auto decides by it from now on")
    return report
