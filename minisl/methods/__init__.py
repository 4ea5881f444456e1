"""One file per paper. `--method NAME` is the file's name, and the file is all there is to a method.

A method changes how a block's seven matrices are made, how they move, or both. Its module has what it needs of

    OPTIONS                                         its settings: names of flags of minisl.train, and `Flag`s of its own
    linear(in_features, out_features, rng, dtype, **options) -> Module        (left out: dense)
    rule(name, like, base, rng_at, **options) -> Rule                         (left out: base, what --optimizer says)
    before_step(model, optimizer, step, steps, rng, **options)                (left out: nothing)
    ONLY                                            names of the matrices it is for, such as "gate_proj" (left out: all seven)
    SHARDS = False                                  before_step reads what rules remember, so every process must have all of them

and always `held(out_features, in_features, **options) -> Held`, what training keeps of one matrix. docs/adding-a-method.md adds
one. Where a method has `linear`, `rule` is for the parameters of layers whose class is in its file; where it has not, for dense
matrices, both sides 2 or more. Nothing else is given to it: a bias, a gain or a convolution beside them is moved by base.

    name: of the parameter; like: an array of the matrix's shape, dtype and device        base(array) -> Rule
    rng_at(t): a Generator that is a function of the seed, the matrix and t          step: the update to come, from 1 to steps
    rng: a Generator that is a function of the seed and step: a resumed run sees the same
    before_step may change `optimizer.lr` for its step, call `optimizer.reset(name)`, and set `requires_grad` of parameters;
    optimizer.by_rule: the names of those that `rule` is for

A method that moves embeddings, head and gains in its own way has `rule_elsewhere(name, like, base, rng_at, **options)` and
`held_elsewhere(name, size, **options)` too; one whose matrices of one shape keep different things has, beside `held`,
`held_named(name, out_features, in_features, **options)`.
"""

import math
import pkgutil
import sys
from dataclasses import dataclass
from importlib import import_module

from minisl.backend import generator
from minisl.errors import InputError
from minisl.kernels import ALGORITHMS
from minisl.nn.llama import Llama
from minisl.nn.module import Module
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

    def optimizer(self, model, lr, base="adamw", weight_decay=0.0, seed=0, only=None):
        """The Optimizer that moves a model's parameters by this method's rules. base: "adamw", "adam8bit" or "sgd".

        only: where the method has a rule for dense matrices, which: names of them or of what they are in, as in `swap_linears`.
        Left out: those with a part that ends with _proj, as a LLaMA's have. Raises InputError for a value that cannot be, and
        where the method has a rule that would move nothing.
        """
        if not isinstance(model, Module):
            raise InputError(f"model is a {type(model).__name__}: must be a Module")
        if base not in list(RULES):
            raise InputError(f"base {base!r}: unknown; allowed: {', '.join(RULES)}")
        generator(seed)
        by_rule = self.by_rule(model, only)

        def rule_of(name, array):
            def rng_at(t):
                return generator(seed, "method", name, t)

            own = self.rule_in_block if name in by_rule else self.rule_elsewhere
            return own(name, array, RULES[base], rng_at)

        made = Optimizer(model.named_parameters(), lr, rule_of, weight_decay)
        made.by_rule = by_rule
        made.check()
        return made

    def by_rule(self, model, only=None):
        """Names of the model's parameters that the method's rule is for."""
        only = names_given(only)
        if not hasattr(self.module, "rule") or hasattr(self.module, "linear"):
            if only is not None:
                raise InputError(f"only={only}: method {self.name} has no rule for dense matrices; for its layers, swap_linears "
                                 "has only=")
            return self.of_its_layers(model)
        found = [name for name, p in model.named_parameters() if is_matrix(p.shape)]
        chosen = [name for name in found if (self.is_for(name) if only is None else within(name, only))]
        for one in only or ():
            if not any(within(name, [one]) for name in chosen):
                raise InputError(f"only={one!r}: no matrix of that name; there are: {few(found)}")
        if not chosen:
            meant = ", ".join(getattr(self.module, "ONLY", ())) or "the matrices in parts whose name ends with _proj"
            raise InputError(f"method {self.name} is for {meant}, and this model has none: name some in only=; there are: "
                             f"{few(found)}")
        return set(chosen)

    def of_its_layers(self, model):
        """Names of the parameters in layers of this method, where it has a rule for them."""
        if not hasattr(self.module, "rule"):
            return set()
        layers = [(path, m) for path, m in model.named_modules() if is_layer(m, self.module.__name__)]
        if not layers:
            raise InputError(f"method {self.name} moves layers of its own, and this model has none: swap_linears puts them there")
        return {f"{path}.{name}".lstrip(".") for path, layer in layers for name, _ in layer.named_parameters()}

    def is_for(self, name):
        """Whether the method is for the matrix of a block that this parameter belongs to."""
        return matrix(name) is not None and matrix(name) in getattr(self.module, "ONLY", (matrix(name),))

    def rule_in_block(self, name, array, base, rng_at):
        if not hasattr(self.module, "rule"):
            return base(array)
        return self.module.rule(name, array, base, rng_at, **self.options)

    def rule_elsewhere(self, name, array, base, rng_at):
        if hasattr(self.module, "rule_elsewhere"):
            return self.module.rule_elsewhere(name, array, base, rng_at, **self.options)
        return base(array)

    def before_step(self, model, optimizer, step, steps, seed=0):
        """To be called before the forward pass of update number `step`, counted from 1, with `optimizer.lr` set.

        Raises InputError where the optimizer has parameters that are not the model's, as before a swap.
        """
        if step < 1:
            raise InputError(f"step {step}: must be 1 or above, updates are counted from 1")
        optimizer.check_is_for(model)
        if hasattr(self.module, "before_step"):
            self.module.before_step(model, optimizer, step, steps, generator(seed, "method", step), **self.options)

    def held(self, name, shape):
        """What is kept of one parameter of the dense model: name and shape as in the full-rank LLaMA."""
        if self.is_for(name) and (is_matrix(shape) or hasattr(self.module, "linear")):
            if hasattr(self.module, "held_named"):  # matrices of one shape keep different things
                return self.module.held_named(name, *shape, **self.options)
            return self.module.held(*shape, **self.options)
        size = math.prod(shape)
        if not matrix(name) and hasattr(self.module, "held_elsewhere"):
            return self.module.held_elsewhere(name, size, **self.options)
        return trained(size)


def matrix(name):
    """The matrix of a block that a parameter belongs to, "q_proj" for instance; None for embeddings, head and gains."""
    return next((part for part in reversed(name.split(".")) if part.endswith("_proj")), None)


def is_matrix(shape):
    """Whether an array of this shape is one to a rule for matrices: a single row or column is a vector."""
    return len(shape) == 2 and min(shape) > 1


def is_layer(module, of=__name__):
    """Whether a Module is a layer of a method, its class one of a method's file. of: "minisl.methods.NAME" of one method."""
    return any(f"{c.__module__}.".startswith(f"{of}.") for c in type(module).__mro__)


def names_given(only):
    """The names in `only`, one or several, as a tuple; None stays None."""
    if only is None:
        return None
    try:
        names = (only,) if isinstance(only, str) else tuple(only)
    except TypeError:
        names = (only,)
    for name in names:
        if not isinstance(name, str):
            raise InputError(f"only={name!r}: must be names, such as \"layers\" or (\"q_proj\", \"mlp\")")
    return names


def few(names, most=4):
    """A list of names for a sentence."""
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more]) or "none"


def within(path, names):
    """Whether one of the names is this path, or a part of it: "mlp" and "layers.0" of "layers.0.mlp.up_proj"."""
    return any(f".{name}." in f".{path}." for name in names)


def build_model(config, name, settings, rng=None, dtype="float32"):
    """A Llama whose blocks are made of a method's matrices: `Method(name, settings).build(config, rng, dtype)`."""
    return Method(name, settings).build(config, rng, dtype)


def check_rank(rank, in_features, out_features):
    """Raises InputError unless a matrix of this shape has so many dimensions."""
    if not 1 <= rank <= min(in_features, out_features):
        raise InputError(f"rank is {rank}; a {out_features} x {in_features} matrix allows 1 to {min(in_features, out_features)}")
