"""How long a forward and backward pass of an SLTrain layer takes, from its sizes: what `--algorithm auto` decides by.

    materialised   t = g (6 n in out + 8 r in out) + w in out + o
    factored       t = g 6 n r (in + out) + s 6 n nnz + c 5 n (in + out) + o

    n tokens, W (out, in) of rank r plus nnz entries
    g  seconds per operation of a dense product
    s  seconds per operation of a product with S: SpMM twice, SDDMM once
    c  seconds to move one activation in and out of the layout that the sparse products need
    w  seconds per element of W that is built, scattered into and gathered from, in forward and backward together
    o  seconds of what must be done however small the sizes are

The constants depend on the machine; only their ratios decide. `python -m minisl.bench --calibrate` fits them to measurements and
keeps them in a file that is read here. Those built in were measured so, see docs/cost-model.md.

Those of "cuda" are estimates, not measured on a GPU, for one that does 15e12 float32 operations and moves 1.5e12 bytes a second:
g is two thirds of the one; s ten times g, as what S is multiplied with is fetched anew for each value; w is 24 bytes at the other
(W written and read in both passes, dW once); o is ten launches. With --matmul-precision g is a quarter (tf32) or an eighth (bf16)
of that.
"""

import json
import os
import sys
from functools import cache
from pathlib import Path

CONSTANTS = {
    "cpu": {"g": 2.7e-12, "s": 1.2e-11, "c": 1.3e-10, "w": 5e-9, "o": 1.7e-4},
    "numpy_backend": {"g": 2.2e-12, "s": 4e-10, "c": 0.0, "w": 1.2e-9, "o": 1.6e-5},
    "cuda": {"g": 1e-13, "s": 1e-12, "c": 0.0, "w": 1.6e-11, "o": 5e-5},
    "cuda tf32": {"g": 2.5e-14, "s": 1e-12, "c": 0.0, "w": 1.6e-11, "o": 5e-5},
    "cuda bf16": {"g": 1.25e-14, "s": 1e-12, "c": 0.0, "w": 1.6e-11, "o": 5e-5},
    "emulator": {"g": 2.7e-12, "s": 5e-8, "c": 0.0, "w": 1.3e-8, "o": 1.5e-4},
    "reference": {"g": 1.0, "s": 1.0, "c": 0.0, "w": 0.0, "o": 0.0},
}


def seconds(algorithm, n, width, out, r, nnz, backend="cpu"):
    """Expected seconds of one forward and backward pass of a (out, in) layer over n tokens."""
    k, work = constants(backend), features(algorithm, n, width, out, r, nnz)
    return sum(k[name] * amount for name, amount in work.items())


def features(algorithm, n, width, out, r, nnz):
    """constant -> what it is multiplied with"""
    if algorithm == "materialised":
        return {"g": (6 * n + 8 * r) * width * out, "w": width * out, "o": 1}
    return {"g": 6 * n * r * (width + out), "s": 6 * n * nnz, "c": 5 * n * (width + out), "o": 1}


def calibration_file():
    """Where this user's constants are: $MINISL_COST, or minisl/cost.json in the folder for caches."""
    if "MINISL_COST" in os.environ:
        return Path(os.environ["MINISL_COST"])
    from minisl.files import cache_folder  # shutil and its like are not needed to import minisl

    return cache_folder() / "cost.json"


def read_calibration():
    """(backend -> its constants as measured on this machine, or {}; why the file cannot be used, or "")."""
    path = calibration_file()
    try:
        found = json.loads(path.read_text())
        for backend, values in found.items():
            if not isinstance(values, dict):
                raise ValueError(f"{backend} has no constants")
            if not all(isinstance(v, float) and 0 <= v < 1 for v in values.values()):
                raise ValueError("a constant is no number between 0 and 1")
        return found, ""
    except (FileNotFoundError, NotADirectoryError):
        return {}, ""
    except OSError as error:
        return {}, f"{path}: cannot be read ({error.strerror}); the built-in constants are used"
    except (ValueError, AttributeError, RecursionError) as error:
        return {}, (f"{path}: not a calibration ({error}), the built-in constants are used; fix: delete it, or python -m "
                    "minisl.bench --calibrate")


@cache
def calibration():
    """What `read_calibration` finds; why it finds nothing is a line on stderr, once."""
    found, why = read_calibration()
    if why:
        print(why, file=sys.stderr)
    return found


def constants(backend):
    """The constants of a backend: calibrated on this machine, or built in."""
    return CONSTANTS[backend] | calibration().get(backend, {})
