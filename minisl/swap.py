"""Linear layers of a model of your own, replaced: by a method's (`swap_linears`), or by their dense W (`merge`)."""

import difflib
from dataclasses import fields

from minisl import methods
from minisl.backend import array_module
from minisl.config import Settings
from minisl.errors import InputError
from minisl.methods import Method
from minisl.nn import Linear, Llama, Parameter, init

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
                         + f" It takes: {', '.join(sorted(takes)) or 'none'}")
    given = Settings(method=name, **{k: v for k, v in settings.items() if k in known},
                     method_options={k: v for k, v in settings.items() if k in own})
    return Method(name, given.to_dict())


def swap_linears(model, how, *, rng, only=None, start=None, **settings):
    """Replace `Linear`s of a Module by a method's layers, in place; returns their names.

    how: a `Method`, or its name with settings as in `method`. rng: Generator for the new layers' start.
    only: names of layers, or of what they are in, anywhere in a path: "q_proj", "mlp". Left out: the matrices that the method is
    for, all but one called lm_head.
    start: `start(layer, W)` puts values into a new layer that were made from the old W (out, in); left out, W is forgotten.
    Raises InputError, and changes nothing: no layer of a name, nothing to swap, or a setting that does not fit a layer.
    """
    how = how if isinstance(how, Method) else method(how, **settings)
    made, names = {}, []
    only = (only,) if isinstance(only, str) else only
    for path, module in model.named_modules(remove_duplicate=False):
        if type(module) is Linear and wanted(path, how, only):
            names.append(path)
            if id(module) not in made:  # one that is in two places stays one
                made[id(module)] = module, new_layer(how, module, rng, start)
    check_names(model, how, only, names)
    model.replace_modules(lambda path, module: made[id(module)][1] if id(module) in made else module)
    return names


def wanted(path, how, only):
    """Whether the layer at this path is to be swapped."""
    parts = path.split(".")
    if only is None:
        return HEAD not in parts and (not hasattr(how.module, "ONLY") or bool(set(parts) & set(how.module.ONLY)))
    return path in only or bool(set(parts) & set(only))


def check_names(model, how, only, names):
    """Raises InputError where something asked for would not happen."""
    if not hasattr(how.module, "linear"):
        raise InputError(f"method {how.name} keeps dense matrices: there is nothing to swap, its optimizer is all there is to it")
    for name in only or ():
        if not any(name == path or name in path.split(".") for path in names):
            linears = {path.rpartition(".")[2] for path, module in model.named_modules() if type(module) is Linear}
            raise InputError(f"only={name!r}: no Linear of that name; there are: {', '.join(sorted(linears)) or 'none'}")
    if not names:
        meant = ", ".join(getattr(how.module, "ONLY", ()))
        raise InputError(f"no Linear to swap for {how.name}" + (f", which is for {meant}: name some in only=" if meant else ""))
    heads = {f"{path}.{HEAD}".lstrip(".") for path, module in model.named_modules() if isinstance(module, Llama)}
    for name in heads.intersection(names):
        raise InputError(f"only={name!r}: a Llama multiplies with its head's weight itself, which stays dense")


def new_layer(how, old, rng, start):
    """A layer of the method in the place of `old`, of its shape and dtype and on its device."""
    out_features, in_features = old.weight.shape
    if not hasattr(how.module, "linear"):
        return old
    layer = how.module.linear(in_features, out_features, init.spawn(rng), old.weight.dtype.name, **how.options)
    layer.to(array_module(old.weight.data))
    if start:
        start(layer, old.weight.data)
    return layer


def merge(model):
    """Replace each layer that is not dense by a `Linear` with its W (`to_dense`), in place, one by one; returns the model.

    Raises InputError where the layers of a method have no W.
    """
    def dense(path, layer):
        if hasattr(layer, "to_dense"):
            W = layer.to_dense()
            merged = Linear(*W.shape[::-1], None, W.dtype)
            merged.weight = Parameter(W)
            return merged
        if path.endswith("_proj") and not isinstance(layer, Linear):
            raise InputError(f"{path}: a {type(layer).__name__} is no linear function of x, so there is no W to merge it into")
        return layer

    model.replace_modules(dense)
    return model
