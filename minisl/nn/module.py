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
    """Holds Parameters, Modules, and lists of Modules as plain attributes; their names are the attribute paths.

    buffers: names of attributes that are arrays to be saved but not trained (a class attribute).
    """

    buffers = ()

    def check_buffer(self, name, array):
        """Raises InputError for a buffer of the right shape and kind of numbers that this module cannot work with."""

    def __call__(self, *args, **kwargs):
        return self.forward(*args, **kwargs)

    def named_modules(self, prefix=""):
        """(path, module), itself first with its path `prefix`."""
        yield prefix, self
        for name, value in vars(self).items():
            items = [(f"{name}.{i}", v) for i, v in enumerate(value)] if isinstance(value, list) else [(name, value)]
            for path, child in items:
                if isinstance(child, Module):
                    yield from child.named_modules(f"{prefix}.{path}" if prefix else path)

    def replace_modules(self, change, prefix=""):
        """Put change(path, module) in the place of each module below this one; into one that comes back itself, look too."""
        for name, value in list(vars(self).items()):
            listed = isinstance(value, list)
            for key in range(len(value)) if listed else [name]:
                place = value if listed else vars(self)
                if isinstance(module := place[key], Module):
                    path = ".".join(filter(None, (prefix, name, str(key) if listed else "")))
                    place[key] = new = change(path, module)
                    if new is module:
                        module.replace_modules(change, path)

    def named_parameters(self):
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter):
                    yield (f"{path}.{name}" if path else name), value

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
        for path, module in self.named_modules():
            for name, value in list(vars(module).items()):
                if isinstance(value, Parameter):
                    value.data = _like(value.data, state[f"{path}.{name}" if path else name])
            for name in module.buffers:
                setattr(module, name, _like(getattr(module, name), state[f"{path}.{name}" if path else name]))

    def to(self, xp):
        """Move every array to NumPy or CuPy (`xp` is the module). Returns self."""
        for module in (m for _, m in self.named_modules()):
            for value in vars(module).values():
                if isinstance(value, Parameter):
                    value.data = _move(value.data, xp)
            for name in module.buffers:
                setattr(module, name, _move(getattr(module, name), xp))
        return self

    def _arrays(self):
        for name, p in self.named_parameters():
            yield name, p.data
        for path, module in self.named_modules():
            for name in module.buffers:
                yield (f"{path}.{name}" if path else name), getattr(module, name)


def _move(array, xp):
    return to_numpy(array) if xp is np else xp.asarray(array)


def _like(mine, given):
    """A copy of `given` on the device and with the dtype of `mine`."""
    with np.errstate(over="ignore"):  # what float32 does not hold becomes inf, and is found as a loss that is no number
        return array_module(mine).array(given, dtype=mine.dtype)
