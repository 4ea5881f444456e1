"""One file per paper. `--method NAME` is the file's name, and the file is all there is to a method.

A method changes how a block's seven matrices are made, how they move, or both. Its module has what it needs of

    OPTIONS                                         its settings: names of flags of minisl.train, and `Flag`s of its own
    linear(in_features, out_features, rng, dtype, **options) -> Module        (left out: dense)
    rule(name, like, base, rng_at, **options) -> Rule                         (left out: base, what --optimizer says)
    before_step(model, optimizer, step, steps, rng, **options)                (left out: nothing)
    ONLY                                            names of the matrices it is for, such as "gate_proj" (left out: all seven)
    SHARDS = False                                  before_step reads what rules remember, so every process must have all of them

and always `held(out_features, in_features, **options) -> Held`, what training keeps of one matrix. docs/adding-a-method.md adds
one.

    name: of the parameter; like: an array of the matrix's shape, dtype and device        base(array) -> Rule
    rng_at(t): a Generator that is a function of the seed, the matrix and t          step: the update to come, from 1 to steps
    rng: a Generator that is a function of the seed and step: a resumed run sees the same
    before_step may change `optimizer.lr` for its step, call `optimizer.reset(name)`, and set `requires_grad` of parameters

A method that moves embeddings, head and gains in its own way has `rule_elsewhere(name, like, base, rng_at, **options)` and
`held_elsewhere(name, size, **options)` too; one whose matrices of one shape keep different things has, beside `held`,
`held_named(name, out_features, in_features, **options)`.
"""

import pkgutil
import sys
from dataclasses import dataclass
from importlib import import_module

from minisl.backend import generator
from minisl.errors import InputError
from minisl.kernels import ALGORITHMS
from minisl.nn.llama import Llama
from minisl.optim import RULES, Optimizer


@dataclass(frozen=True)
class Flag:
    """A setting of one method: `--name` (with dashes) of minisl.train. Its type is the default's.

    choices: what is allowed; low, high: the least and the largest number that is.
    """

    name: str
    default: object
    help: str
    choices: tuple | None = None
    low: float = 0
    high: float = 2**31 - 1

    def check(self, value):
        """Raises InputError for a value that cannot be."""
        kind, name = type(self.default), "--" + self.name.replace("_", "-")
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise InputError(f"{name} {value!r}: must be {kind.__name__}")
        if self.choices and value not in self.choices:
            raise InputError(f"{name} {value}: unknown; allowed: {', '.join(self.choices)}")
        if kind in (int, float) and not self.low <= value <= self.high:
            raise InputError(f"{name} {value}: must lie between {self.low} and {self.high}")


SHARED = {f.name: f for f in (  # flags of minisl.train that methods take: what a file with settings may hold
    Flag("rank", 128, "", low=1), Flag("delta", 0.03, "", high=1), Flag("alpha", 32.0, "", high=sys.float_info.max),
    Flag("learned_scale", False, ""), Flag("algorithm", "auto", "", choices=ALGORITHMS))}


@dataclass(frozen=True)
class Held:
    """What training keeps of one matrix from step to step, in numbers. Its memory follows from the dtype and the optimizer.

    weights: sizes of the arrays that are trained; frozen: how many weights are not; indices: how many integers, as of a support.
    moments: sizes of the arrays that `base` keeps its state for; state: how many numbers of the weights' dtype the rule keeps.
    """

    weights: tuple
    moments: tuple = ()
    frozen: int = 0
    state: int = 0
    indices: int = 0


def trained(*sizes, **more):
    """Held of arrays that `base` moves."""
    return Held(weights=sizes, moments=sizes, **more)


def available():
    """Names of all methods."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def get(name):
    """A method's module. Raises InputError for an unknown name."""
    if name not in available():
        raise InputError(f"method {name!r} is unknown; allowed: {', '.join(available())}")
    return import_module(f"{__name__}.{name}")


def flags(name):
    """A method's own Flags, by name."""
    return {o.name: o for o in getattr(get(name), "OPTIONS", ()) if isinstance(o, Flag)}


class Method:
    """A method with its settings. Raises InputError for one that is unknown, or a value that cannot be.

    settings: mapping with the flags of minisl.train that the method takes; its own are in `settings["method_options"]`, or here,
    or have their defaults.
    """

    def __init__(self, name, settings):
        self.name, self.module = name, get(name)
        more, own = settings.get("method_options", {}), flags(name)
        if not isinstance(more, dict):
            raise InputError(f"method_options {more!r}: must be a dict of the method's own flags")
        given = {**settings, **more}
        shared = [o for o in getattr(self.module, "OPTIONS", ()) if isinstance(o, str)]
        if missing := [o for o in shared if o not in given]:
            raise InputError(f"method {name}: {missing[0]} is missing")
        self.options = {o: given[o] for o in shared} | {o: given.get(o, flag.default) for o, flag in own.items()}
        for flag in (*(SHARED[o] for o in shared), *own.values()):
            flag.check(self.options[flag.name])

    def build(self, config, rng=None, dtype="float32"):
        """A Llama of this method's matrices. rng None: shapes only, for counting."""
        return Llama(config, rng, self.linear, dtype)

    def linear(self, in_features, out_features, rng, dtype, name):
        if name in getattr(self.module, "ONLY", (name,)) and hasattr(self.module, "linear"):
            return self.module.linear(in_features, out_features, rng, dtype, **self.options)
        return get("full").linear(in_features, out_features, rng, dtype)

    def optimizer(self, model, lr, base="adamw", weight_decay=0.0, seed=0):
        """The Optimizer that moves a model's parameters by this method's rules. base: "adamw", "adam8bit" or "sgd"."""
        def rule_of(name, array):
            def rng_at(t):
                return generator(seed, "method", name, t)

            own = self.rule_in_block if matrix(name) else self.rule_elsewhere
            return own(name, array, RULES[base], rng_at)

        return Optimizer(model.named_parameters(), lr, rule_of, weight_decay)

    def rule_in_block(self, name, array, base, rng_at):
        if matrix(name) in getattr(self.module, "ONLY", (matrix(name),)) and hasattr(self.module, "rule"):
            return self.module.rule(name, array, base, rng_at, **self.options)
        return base(array)

    def rule_elsewhere(self, name, array, base, rng_at):
        if hasattr(self.module, "rule_elsewhere"):
            return self.module.rule_elsewhere(name, array, base, rng_at, **self.options)
        return base(array)

    def before_step(self, model, optimizer, step, steps, seed=0):
        """To be called before the forward pass of update number `step`, counted from 1, with `optimizer.lr` set."""
        if hasattr(self.module, "before_step"):
            self.module.before_step(model, optimizer, step, steps, generator(seed, "method", step), **self.options)

    def held(self, name, shape):
        """What is kept of one parameter of the dense model: name and shape as in the full-rank LLaMA."""
        if matrix(name) and matrix(name) in getattr(self.module, "ONLY", (matrix(name),)):
            if hasattr(self.module, "held_named"):  # matrices of one shape keep different things
                return self.module.held_named(name, *shape, **self.options)
            return self.module.held(*shape, **self.options)
        size = shape[0] * (shape[1] if len(shape) > 1 else 1)
        if not matrix(name) and hasattr(self.module, "held_elsewhere"):
            return self.module.held_elsewhere(name, size, **self.options)
        return trained(size)


def matrix(name):
    """The matrix of a block that a parameter belongs to, "q_proj" for instance; None for embeddings, head and gains."""
    return next((part for part in name.split(".") if part.endswith("_proj")), None)


def build_model(config, name, settings, rng=None, dtype="float32"):
    """A Llama whose blocks are made of a method's matrices: `Method(name, settings).build(config, rng, dtype)`."""
    return Method(name, settings).build(config, rng, dtype)


def check_rank(rank, in_features, out_features):
    """Raises InputError unless a matrix of this shape has so many dimensions."""
    if not 1 <= rank <= min(in_features, out_features):
        raise InputError(f"rank is {rank}; a {out_features} x {in_features} matrix allows 1 to {min(in_features, out_features)}")
