"""Linear layers of a model of your own, replaced: by a method's (`swap_linears`), or by their dense W (`merge`)."""

import difflib
from contextlib import contextmanager
from dataclasses import fields

from minisl import methods
from minisl.backend import array_module
from minisl.config import Settings
from minisl.errors import InputError
from minisl.methods import Method, is_layer, names_given, within
from minisl.nn import Linear, Llama, Module, Parameter, init

HEAD = "lm_head"


def method(name, **settings):
    """A Method; settings that are left out have the defaults of minisl.train's flags: `method("sltrain", rank=8, alpha=16)`.

    Raises InputError for an unknown method, a setting that it does not have, or a value that cannot be.
    """
    own, known = methods.flags(name), {f.name for f in fields(Settings)}
    takes = {o if isinstance(o, str) else o.name for o in getattr(methods.get(name), "OPTIONS", ())}
    for unknown in settings.keys() - takes:
        near = difflib.get_close_matches(unknown, takes, n=1)
        raise InputError(f"method {name} has no setting {unknown!r}" + (f"; did you mean {near[0]!r}?" if near else "")
                         + f"; allowed: {', '.join(sorted(takes)) or 'none'}")
    given = Settings(method=name, **{k: v for k, v in settings.items() if k in known},
                     method_options={k: v for k, v in settings.items() if k in own})
    return Method(name, given.to_dict())


def swap_linears(model, how, *, rng, only=None, start=None, **settings):
    """Replace `Linear`s of a Module by a method's layers, in place; returns their names.

    how: a `Method`, or its name with settings as in `method`. rng: Generator for the new layers' start; None, for one of a model
    that only has shapes.
    only: names of layers, or of what they are in, anywhere in a path: "q_proj", "mlp". Left out: the matrices that the method is
    for, all but one called lm_head. Linears that share a weight share the new layer.
    start: `start(layer, W)` puts values into a new layer that were made from the old W (out, in); left out, W is forgotten.
    Raises InputError, and changes nothing: no layer of a name, nothing to swap, or a setting that does not fit a layer.
    """
    if isinstance(how, Method) and settings:
        raise InputError(f"{next(iter(settings))}=: the settings of a Method are in it already; give them to method(...)")
    how = how if isinstance(how, Method) else method(how, **settings)
    only = names_given(only)
    check_tree(model)
    places = model.named_modules(remove_duplicate=False)
    old = {path: m for path, m in places if type(m) is Linear and wanted(path, how, only)}
    check_names(model, how, only, list(old))
    check_shared(model, old)
    made = {}
    for path, linear in old.items():
        if id(linear.weight) not in made:
            with at(path):
                made[id(linear.weight)] = new_layer(how, linear, rng, start)
    model.replace_modules(lambda path, m: made.get(id(m.weight), m) if type(m) is Linear else m)
    return list(old)


def wanted(path, how, only):
    """Whether the layer at this path is to be swapped."""
    if only is None:
        return not within(path, [HEAD]) and within(path, getattr(how.module, "ONLY", [path]))
    return within(path, only)


def check_tree(model):
    """Raises InputError for what holds no layers that could be replaced."""
    if not isinstance(model, Module):
        raise InputError(f"{type(model).__name__}: not a Module; give one that holds the layers")
    if isinstance(model, Linear) or hasattr(model, "to_dense"):
        raise InputError(f"the model is a {type(model).__name__} itself, and cannot be replaced in place; give a Module that "
                         "holds it")


def check_names(model, how, only, names):
    """Raises InputError where something asked for would not happen."""
    if not hasattr(how.module, "linear"):
        raise InputError(f"method {how.name} keeps dense matrices: there is nothing to swap, its optimizer is all there is to it")
    for name in only or ():
        if not any(within(path, [name]) for path in names):
            linears = {path.rpartition(".")[2] for path, module in model.named_modules() if type(module) is Linear}
            raise InputError(f"only={name!r}: no Linear of that name; there are: {', '.join(sorted(linears)) or 'none'}")
    if not names:
        meant = ", ".join(getattr(how.module, "ONLY", ()))
        raise InputError(f"no Linear to swap for {how.name}" + (f", which is for {meant}: name some in only=" if meant else ""))
    heads = {f"{path}.{HEAD}".lstrip(".") for path, module in model.named_modules() if isinstance(module, Llama)}
    for name in heads.intersection(names):
        raise InputError(f"only={name!r}: a Llama multiplies with its head's weight itself, which stays dense")


def check_shared(model, old):
    """Raises InputError where a layer to be swapped has a part that something else would lose: old, its path -> Linear."""
    swapped, weights = {id(linear) for linear in old.values()}, {id(linear.weight): path for path, linear in old.items()}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if id(module) in swapped and name != "weight" and isinstance(value, Parameter | Module):
                raise InputError(f"{path} has a {name} beside its weight, which the new layer would not have; leave it out with "
                                 "only=")
            if id(module) not in swapped and isinstance(value, Parameter) and id(value) in weights:
                raise InputError(f"{weights[id(value)]} shares its weight with {f'{path}.{name}'.lstrip('.')}, which would keep "
                                 "it; leave it out with only=")


def new_layer(how, old, rng, start):
    """A layer of the method in the place of `old`, of its shape and dtype and on its device."""
    out_features, in_features = old.weight.shape
    layer = how.module.linear(in_features, out_features, init.spawn(rng), old.weight.dtype.name, **how.options)
    layer.to(array_module(old.weight.data))
    if start:
        start(layer, old.weight.data)
    return layer


def merge(model):
    """Replace each layer that is not dense by a `Linear` with its W (`to_dense`), in place; returns the model.

    Raises InputError, and changes nothing, where the layers of a method have no W.
    """
    check_tree(model)
    made, whole = {}, ()  # id of a layer -> its Linear; paths of what is replaced, in which is nothing more to replace
    for path, layer in model.named_modules(remove_duplicate=False):
        if path.startswith(whole):
            continue
        if id(layer) not in made:
            with at(path):
                made[id(layer)] = dense(layer)
        if made[id(layer)]:
            whole += (f"{path}.",)
    model.replace_modules(lambda path, layer: made[id(layer)] or layer)
    return model


def dense(layer):
    """The Linear with a layer's W; None for a Module that is none of a method's."""
    if not hasattr(layer, "to_dense"):
        if is_layer(layer):
            raise InputError(f"a {type(layer).__name__} is no linear function of x, so there is no W to merge it into")
        return None
    W = layer.to_dense()
    merged = Linear(*W.shape[::-1], None, W.dtype)
    merged.weight = Parameter(W)
    return merged


@contextmanager
def at(path):
    """An InputError of the block names the layer."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
