"""AdamW (Loshchilov and Hutter 2019, algorithm 2), as torch.optim.AdamW computes it."""

import numpy as np

from minisl import kernels
from minisl.backend import array_module, to_numpy
from minisl.errors import InputError


class AdamW:
    """theta_t = (1 - lr wd) theta_{t-1} - lr mhat / (sqrt(vhat) + eps)

    m_t = b1 m_{t-1} + (1 - b1) g        mhat = m_t / (1 - b1^t)
    v_t = b2 v_{t-1} + (1 - b2) g^2      vhat = v_t / (1 - b2^t)

    named_parameters: (name, Parameter) pairs. A parameter without a gradient is left alone, its t too.
    State per parameter: exp_avg m and exp_avg_sq v, of its shape and dtype, and step t.
    """

    def __init__(self, named_parameters, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        self.parameters = dict(named_parameters)
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.exp_avg, self.exp_avg_sq, self.steps = {}, {}, dict.fromkeys(self.parameters, 0)

    def step(self):
        """One update of every parameter from its `.grad`, with the current `self.lr`."""
        for name, p in self.parameters.items():
            if p.grad is not None:
                self.update(name, p)

    def update(self, name, p):
        xp = array_module(p.data)
        if name not in self.exp_avg:
            self.exp_avg[name], self.exp_avg_sq[name] = xp.zeros_like(p.data), xp.zeros_like(p.data)
        self.steps[name] += 1
        kernels.of(p.data).adamw(p.data, p.grad, self.exp_avg[name], self.exp_avg_sq[name], self.lr, self.betas, self.eps,
                                 self.weight_decay, self.steps[name])

    def state_dict(self):
        """name -> NumPy array: "exp_avg.NAME", "exp_avg_sq.NAME" and "step.NAME" of every parameter updated so far."""
        state = {}
        for name in self.exp_avg:
            state[f"exp_avg.{name}"] = to_numpy(self.exp_avg[name])
            state[f"exp_avg_sq.{name}"] = to_numpy(self.exp_avg_sq[name])
            state[f"step.{name}"] = np.asarray(self.steps[name])
        return state

    def load_state_dict(self, state):
        """Take over a `state_dict`. Raises InputError, and changes nothing, if it belongs to other parameters."""
        moments = {"exp_avg": {}, "exp_avg_sq": {}, "step": {}}
        for key, array in state.items():
            kind, _, name = key.partition(".")
            p = self.parameters.get(name)
            if kind not in moments or p is None or (kind != "step" and array.shape != p.shape):
                raise InputError(f"optimizer state does not fit this model: {key} {array.shape}")
            moments[kind][name] = int(array) if kind == "step" else array_module(p.data).array(array, dtype=p.dtype)
        if not moments["exp_avg"].keys() == moments["exp_avg_sq"].keys() == moments["step"].keys():
            raise InputError("optimizer state is incomplete: every parameter needs exp_avg, exp_avg_sq and step")
        self.exp_avg, self.exp_avg_sq = moments["exp_avg"], moments["exp_avg_sq"]
        self.steps = dict.fromkeys(self.parameters, 0) | moments["step"]
