"""`Rule`, how one array of weights moves; `Optimizer`, which has one for each parameter."""

import math
from numbers import Real

import numpy as np

from minisl.autograd import Tensor, no_grad
from minisl.backend import array_module, check_arrays, to_numpy
from minisl.errors import InputError
from minisl.optim.clip import square_sum


class Rule:
    """theta_t = (1 - lr wd) theta_{t-1} - lr N_t, with N_t and what is remembered for it up to the subclass.

    A rule is made from an array of the weights' shape, dtype and device. A subclass has `direction`, or `update` where one kernel
    does it all; each is here in terms of the other. Rules nest: GaLore's has an Adam of a smaller shape inside.

    state: names of the attributes a checkpoint keeps: arrays, numbers, Rules; None is left out.
    weight_decay: wd; the Optimizer sets it.
    """

    state = ()
    weight_decay = 0.0

    def direction(self, gradient):
        """N_t, an array of its own."""
        step = array_module(gradient).zeros_like(gradient)
        self.update(step, gradient, -1.0)
        return step

    def update(self, weights, gradient, lr):
        """Move the weights, in place."""
        step = self.direction(gradient)
        if self.weight_decay:
            weights *= 1 - lr * self.weight_decay
        step *= lr
        weights -= step

    def correction(self):
        """What bias correction has multiplied the last step by; 1 for a rule without it."""
        return 1.0

    def arrays(self):
        """What is kept from step to step, without single numbers."""
        for value in (getattr(self, name) for name in self.state):
            if isinstance(value, Rule):
                yield from value.arrays()
            elif hasattr(value, "nbytes"):
                yield value

    def state_dict(self):
        """name -> NumPy array; an inner rule's names are "attribute/name"."""
        found = {}
        for name in self.state:
            value = getattr(self, name)
            if isinstance(value, Rule):
                found |= {f"{name}/{inner}": array for inner, array in value.state_dict().items()}
            elif value is not None:
                found[name] = to_numpy(value) if hasattr(value, "nbytes") else np.asarray(value)
        return found

    def load_state_dict(self, state):
        """Take over a `state_dict`. Raises InputError unless names, shapes and kinds of numbers are those of this rule, and
        counts are 0 or above."""
        mine = {name: array.shape for name, array in self.state_dict().items()}
        given = {name: array.shape for name, array in state.items()}
        if wrong := dict(mine.items() ^ given.items()):
            raise InputError(f"{min(wrong)} {given.get(min(wrong), 'is missing')}")
        for name, array in self.state_dict().items():
            if not np.can_cast(state[name].dtype, array.dtype, "same_kind"):
                raise InputError(f"{name} holds {state[name].dtype}, not {array.dtype}")
            if array.dtype.kind == "i" and array.size and state[name].min() < 0:  # a count, or places
                raise InputError(f"{name} is {state[name].min()}, it must be 0 or above")
        for name in self.state:
            value = getattr(self, name)
            if isinstance(value, Rule):
                value.load_state_dict({k.removeprefix(f"{name}/"): a for k, a in state.items() if k.startswith(f"{name}/")})
            elif hasattr(value, "nbytes"):
                with np.errstate(over="ignore"):
                    setattr(self, name, array_module(value).array(state[name], dtype=value.dtype))
            elif value is not None:
                setattr(self, name, type(value)(state[name]))


class Optimizer:
    """Moves every parameter by a rule of its own.

    named_parameters: (name, Parameter) pairs; one without a gradient is left alone, one under two names is moved once. lr: the
    rate of the next step.
    rule_of(name, array): the parameter's Rule, asked for at its first gradient. by_rule: names of those that a method has its
    own rule for. Raises InputError: no parameters, two of one name, a rate or weight decay that cannot be.
    """

    by_rule = frozenset()

    def __init__(self, named_parameters, lr, rule_of, weight_decay=0.0):
        self.parameters = by_name(named_parameters)
        self.lr, self.rule_of, self.weight_decay = lr, rule_of, not_negative("weight_decay", weight_decay)
        self.rules, self.squares, self.model = {}, None, None

    @property
    def lr(self):
        return self._lr

    @lr.setter
    def lr(self, value):
        self._lr = not_negative("lr", value)

    def step(self):
        """One update of every parameter from its `.grad`, with the current `self.lr`."""
        for name, p in self.parameters.items():
            if p.grad is not None:
                self.update(name)

    def update(self, name):
        p = self.parameters[name]
        self.rule(name).update(p.data, p.grad, self.lr)

    def rule(self, name):
        """A parameter's rule."""
        if name not in self.rules:
            if self.parameters[name].size > 1 and not any(self.parameters[name].data.strides):
                raise InputError(f"{name} is a shape without memory (rng None): there is nothing to train")
            self.rules[name] = self.made(name)
        return self.rules[name]

    def made(self, name):
        rule = self.rule_of(name, self.parameters[name].data)
        rule.weight_decay = self.weight_decay
        return rule

    def check(self):
        """Make the rule of all that is trained once, and drop it: an InputError comes now rather than at the first gradient."""
        for name, p in self.parameters.items():
            if p.requires_grad:
                try:
                    self.made(name)
                except InputError as error:
                    raise InputError(f"{error} ({name})") from None

    def check_is_for(self, model):
        """Raises InputError unless the parameters are this model's. One model is looked through once: that takes time."""
        if model is self.model:
            return
        there = dict(model.named_parameters())
        for name, p in self.parameters.items():
            if there.get(name) is not p:
                raise InputError(f"the optimizer's {name} is not the model's: make the optimizer of this model, after the last "
                                 "swap_linears or merge")
        self.model = model

    def reset(self, *names, keep_step=False):
        """Forget what these parameters' rules remember: the next step is their first. keep_step: all but the count of steps, so
        that bias correction does not start again."""
        for name in names:
            old = self.rules.pop(name, None)
            if keep_step and old and "step" in old.state:
                self.rule(name).step = old.step

    def update_in_backward(self):
        """Per-layer updates (Lv et al. 2023, LOMO): from now on `backward` moves each parameter as soon as its gradient is
        complete, and drops the gradient before it makes the next. There is nothing left for `step` to do."""
        self.squares = []
        for name, p in self.parameters.items():
            p.register_post_accumulate_grad_hook(lambda p, name=name: self.update_now(name, p))

    def update_now(self, name, p):
        self.squares.append(square_sum([p.grad]))
        with no_grad():
            self.update(name)
        p.zero_grad()

    def taken_norm(self):
        """sqrt of the sum of squares of the gradients used by `update_in_backward` since the last call."""
        total, self.squares = sum(self.squares), []
        return math.sqrt(total) if isinstance(total, int | float) else array_module(total).sqrt(total)

    def arrays(self):
        """All that is kept from step to step."""
        for rule in self.rules.values():
            yield from rule.arrays()

    def state_dict(self):
        """"KIND.NAME" -> NumPy array, of every parameter updated so far."""
        return {f"{kind}.{name}": array for name, rule in self.rules.items() for kind, array in rule.state_dict().items()}

    def load_state_dict(self, state):
        """Take over a `state_dict`. Raises InputError, and changes nothing, if it belongs to other parameters or another rule."""
        check_arrays(state, "optimizer state does not fit this model")
        given = {}
        for key, array in state.items():
            kind, _, name = key.partition(".")
            if name not in self.parameters:
                raise InputError(f"optimizer state does not fit this model: {key} {array.shape}")
            given.setdefault(name, {})[kind] = array
        rules = {name: self.made(name) for name in given}
        for name, rule in rules.items():
            try:
                rule.load_state_dict(given[name])
            except InputError as error:
                raise InputError(f"optimizer state does not fit this model: {name}: {error}") from None
        self.rules = rules


def by_name(named_parameters):
    """As a dictionary, each Parameter under the first of its names. Raises InputError: no pairs, or one name for two."""
    try:
        pairs = [(name, p) for name, p in named_parameters]
        possible = pairs and all(isinstance(name, str) and isinstance(p, Tensor) for name, p in pairs)
    except (TypeError, ValueError):
        possible = False
    first = {}
    for name, p in pairs if possible else ():
        first.setdefault(id(p), (name, p))
    names = dict(first.values())
    if not names or len(names) < len(first):
        raise InputError("an optimizer needs (name, Parameter) pairs, at least one, and a name for each, such as "
                         "model.named_parameters()")
    return names


def not_negative(name, value):
    """The value as a float. Raises InputError unless it is a finite number, 0 or above."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise InputError(f"{name} {value!r}: must be a finite number, 0 or above")
    return float(value)
