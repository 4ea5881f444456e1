"""`Parameter` and `Module`: a tree of arrays with names."""

import numpy as np

from minisl.autograd import Tensor
from minisl.backend import array_module, check_arrays, to_numpy
from minisl.errors import InputError


class Parameter(Tensor):
    """A leaf tensor that is trained."""

    def __init__(self, data):
        super().__init__(data, requires_grad=True)


class Module:
    """Holds Parameters and Modules as plain attributes, or in lists, tuples and dicts of attributes; their names are the paths to
    them, such as "layers.0.weight".

    What has several names is one: trained once, counted once, called by its first. A state_dict has it under each, as in PyTorch.
    buffers: names of attributes that are arrays to be saved but not trained (a class attribute).
    """

    buffers = ()

    def check_buffer(self, name, array):
        """Raises InputError for a buffer of the right shape and kind of numbers that this module cannot work with."""

    def __call__(self, *args, **kwargs):
        return self.forward(*args, **kwargs)

    def named_modules(self, prefix="", remove_duplicate=True):
        """(path, module), itself first with its path `prefix`; one in several places at the first of them, or at all."""
        seen = set()
        for path, module in self._places(prefix):
            if module not in seen:
                yield path, module
            if remove_duplicate:
                seen.add(module)

    def replace_modules(self, change, prefix="", done=None):
        """Put change(path, module) in the place of each module below this one; into one that comes back itself, look too.
        A module in several places is changed once, and replaced in all."""
        done = {self: self} if done is None else done

        def new(path, value):
            if isinstance(value, Module):
                if value not in done:
                    done[value] = change(path, value)
                    if done[value] is value:
                        value.replace_modules(change, path, done)
                return done[value]
            if isinstance(value, dict):
                value |= {key: new(f"{path}.{key}", v) for key, v in value.items()}
            elif isinstance(value, list):
                value[:] = [new(f"{path}.{k}", v) for k, v in enumerate(value)]
            elif type(value) is tuple:
                return tuple(new(f"{path}.{k}", v) for k, v in enumerate(value))
            return value

        for name, value in list(vars(self).items()):
            vars(self)[name] = new(f"{prefix}.{name}".lstrip("."), value)

    def named_parameters(self):
        """(path, Parameter), each once."""
        seen = set()
        for name, p in self._parameter_places():
            if p not in seen:
                yield name, p
            seen.add(p)

    def parameters(self):
        return [p for _, p in self.named_parameters()]

    def num_parameters(self):
        """How many numbers the Parameters have, also those that a method does not train just now."""
        return sum(p.size for p in self.parameters())

    def zero_grad(self):
        for p in self.parameters():
            p.zero_grad()

    def state_dict(self):
        """name -> NumPy array, parameters and buffers."""
        return {name: to_numpy(array) for name, array in self._arrays()}

    def load_state_dict(self, state):
        """Take over arrays by name. Raises InputError, and changes nothing, if a name, a shape or the kind of numbers does not
        match, or a buffer cannot be."""
        check_arrays(state, "weights do not fit this model")
        mine = dict(self._arrays())
        missing, extra = sorted(mine.keys() - state.keys()), sorted(state.keys() - mine.keys())
        if missing or extra:
            raise InputError("weights do not fit this model: "
                             + "; ".join(f"{what}: {names[0]}" + (f" and {len(names) - 1} more" if names[1:] else "")
                                         for what, names in (("missing", missing), ("not in the model", extra)) if names))
        for name, array in mine.items():
            if state[name].shape != array.shape:
                raise InputError(f"weights do not fit this model: {name} has shape {state[name].shape}, the model {array.shape}")
            if not np.can_cast(state[name].dtype, array.dtype, "same_kind"):
                raise InputError(f"weights do not fit this model: {name} holds {state[name].dtype}, the model {array.dtype}")
        for path, module in self.named_modules():
            for name in module.buffers:
                where = f"{path}.{name}" if path else name
                try:
                    module.check_buffer(name, state[where])
                except InputError as error:
                    raise InputError(f"weights do not fit this model: {where}: {error}") from None
        for name, p in self._parameter_places():
            p.data = _like(p.data, state[name])
        for path, module in self.named_modules():
            for name in module.buffers:
                setattr(module, name, _like(getattr(module, name), state[f"{path}.{name}" if path else name]))

    def to(self, xp):
        """Move every array to NumPy or CuPy (`xp` is the module). Returns self."""
        for p in self.parameters():
            p.data = _move(p.data, xp)
        for _, module in self.named_modules():
            for name in module.buffers:
                setattr(module, name, _move(getattr(module, name), xp))
        return self

    def _places(self, prefix="", above=()):
        """(path, module) of every place a module is in."""
        yield prefix, self
        for name, value in vars(self).items():
            for path, child in _inside(f"{prefix}.{name}".lstrip("."), value):
                if isinstance(child, Module) and child not in (*above, self):
                    yield from child._places(path, (*above, self))

    def _parameter_places(self):
        """(path, Parameter) of every place a parameter is in."""
        for path, module in self._places():
            for name, value in vars(module).items():
                yield from ((p, v) for p, v in _inside(f"{path}.{name}".lstrip("."), value) if isinstance(v, Parameter))

    def _arrays(self):
        for name, p in self._parameter_places():
            yield name, p.data
        for path, module in self._places():
            for name in module.buffers:
                yield (f"{path}.{name}" if path else name), getattr(module, name)


def _inside(path, value):
    """(path, thing) of all in lists, tuples and dicts inside each other; of another value, itself."""
    if isinstance(value, (list, dict)) or type(value) is tuple:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _inside(f"{path}.{key}", item)
    else:
        yield path, value


def _move(array, xp):
    return to_numpy(array) if xp is np else xp.asarray(array)


def _like(mine, given):
    """A copy of `given` on the device and with the dtype of `mine`."""
    with np.errstate(over="ignore"):  # what float32 does not hold becomes inf, and is found as a loss that is no number
        return array_module(mine).array(given, dtype=mine.dtype)
