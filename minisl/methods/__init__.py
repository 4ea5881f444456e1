"""One file per paper. `--method NAME` is the file's name.

A method's module has `linear(in_features, out_features, rng, dtype, **options)`, which makes each of the seven
matrices of a block, and `OPTIONS`, the training settings it takes.
"""

import pkgutil
from functools import partial
from importlib import import_module

from minisl.errors import InputError
from minisl.nn.llama import Llama


def available():
    """Names of all methods."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def get(name):
    """A method's module. Raises InputError for an unknown name."""
    if name not in available():
        raise InputError(f"method {name!r} is unknown; allowed: {', '.join(available())}")
    return import_module(f"{__name__}.{name}")


def build_model(config, name, settings, rng=None, dtype="float32"):
    """A Llama whose blocks are made of a method's matrices.

    settings: mapping with the method's OPTIONS. rng None: shapes only, for counting.
    """
    method = get(name)
    return Llama(config, rng, partial(method.linear, **{k: settings[k] for k in method.OPTIONS}), dtype)


def check_rank(rank, in_features, out_features):
    """Raises InputError unless a matrix of this shape has so many dimensions."""
    if not 1 <= rank <= min(in_features, out_features):
        raise InputError(f"rank is {rank}; a {out_features} x {in_features} matrix allows 1 to {min(in_features, out_features)}")
