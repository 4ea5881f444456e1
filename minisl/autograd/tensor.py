"""The engine: `Tensor`, the graph that ops leave behind, and the walk back through it.

An op is a `Function` with two static methods on raw arrays. Calling it records a `Node`; nodes point to the
nodes they came from, so a tensor's array lives only as long as somebody needs it: the user, or an op's backward.
"""

import operator
from collections import Counter
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from minisl.backend import array_module, to_numpy

UFUNCS = {"subtract": "sub", "multiply": "mul", "divide": "div", "negative": "neg", "absolute": "abs"}  # NumPy's name: the op's

_recording = ContextVar("recording", default=True)
_used = ContextVar("used", default=None)  # where `watching` notes the tensors that ops are given


@contextmanager
def recording(on):
    """Within this block ops are recorded for `backward` (on=True) or not."""
    token = _recording.set(on)
    try:
        yield
    finally:
        _recording.reset(token)


@contextmanager
def watching():
    """Within this block nothing is recorded; a dict gets, in order, the tensors with requires_grad that ops were given."""
    token = _used.set({})
    try:
        with recording(False):
            yield _used.get()
    finally:
        _used.reset(token)


def no_grad():
    """Context manager and decorator: ops inside are not recorded and keep nothing alive."""
    return recording(False)


class NumpyOnly:
    """NumPy asks the class for `__array_ufunc__`, CuPy the tensor, where None says: leave your operators to mine."""

    def __get__(self, t, cls):
        return cls.call_ufunc if t is None else None


class Tensor:
    """An array and, after `backward`, the gradient of a scalar with respect to it.

    data: NumPy or CuPy array (kept as it is, not copied); Python numbers and lists become float32.
    grad: array of the same shape and dtype, or None. Several `backward` calls add up; `zero_grad` forgets.
    Raises TypeError if data are not real numbers, or `requires_grad` is asked of a dtype that is not floating.

    Ops keep the arrays that their backward needs, not copies of them. An array that is changed in place between forward and
    backward (`t.data += 1`, `optimizer.step()`) gives the gradient at the new values, and nothing says so: change arrays after
    `backward`, or make new ones (`t.data = t.data + 1`). `gradcheck` finds functions that do this.

    Beside a floating Tensor numbers, arrays and integer Tensors take its dtype; two floating dtypes are refused (TypeError).
    Comparisons give plain boolean arrays. NumPy's functions give plain arrays, and are refused where a gradient would be lost;
    those that are ops too, such as np.exp, are the ops.
    """

    __array_ufunc__ = NumpyOnly()

    def __init__(self, data, requires_grad=False):
        array = real(raw(data), "Tensor")
        data = array if hasattr(data, "dtype") or array.dtype.kind == "b" else array.astype(np.float32)
        if requires_grad and data.dtype.kind != "f":
            raise TypeError(f"requires_grad needs a floating dtype, got {data.dtype}")
        self.data = data
        self.requires_grad = requires_grad
        self.grad = None
        self.node = None  # the op that made this tensor; None for a leaf
        self._hooks = []

    shape = property(lambda self: self.data.shape)
    dtype = property(lambda self: self.data.dtype)
    ndim = property(lambda self: self.data.ndim)
    size = property(lambda self: self.data.size)

    def __len__(self):
        return len(self.data)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __contains__(self, value):
        return bool(np.any(self == value))

    __hash__ = object.__hash__  # a tensor is a key by what it is, not by its values

    def __bool__(self): return bool(self.item())
    def __float__(self): return float(self.item())
    def __int__(self): return int(self.item())
    def __index__(self): return self.data.__index__()

    def __format__(self, spec):
        return format(self.item(), spec) if spec else str(self)

    def __repr__(self):
        made_by = f", op={self.node.op.__name__}" if self.node else ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({self.data}, dtype={self.dtype}{made_by})"

    def __getstate__(self):
        """For copy and pickle: hooks stay behind, and of a graph there are no copies."""
        if self.node:
            raise TypeError("a tensor that was computed by ops cannot be copied or pickled with its graph; write t.detach()")
        return vars(self) | {"_hooks": []}

    def __array__(self, dtype=None, copy=None):
        if self.requires_grad:
            raise TypeError("an array made of this tensor would lose its gradient; write t.data, or use minisl.autograd.ops")
        return np.array(to_numpy(self.data), dtype, copy=copy)

    def call_ufunc(self, ufunc, method, *inputs, **options):
        """What NumPy calls for np.exp(t), and for `array * t`."""
        name = UFUNCS.get(ufunc.__name__, ufunc.__name__)
        if name in ops.__all__ and method == "__call__" and not options:
            return getattr(ops, name)(*inputs)
        yes_or_no = "d->?" in ufunc.types or "dd->?" in ufunc.types
        return getattr(ufunc, method)(*bare(inputs, [] if yes_or_no else None), **options)

    def __array_function__(self, function, types, args, options):
        lost = []
        result = function(*bare(args, lost), **{name: bare(value, lost) for name, value in options.items()})
        parts = result if isinstance(result, (tuple, list)) else [result]
        if lost and any(np.asarray(part).dtype.kind == "f" for part in parts):
            raise TypeError(f"np.{function.__name__} would lose this tensor's gradient; write t.data, or use minisl.autograd.ops")
        return result

    def item(self):
        """The value as a Python number. Raises ValueError unless there is one alone."""
        if self.size != 1:
            raise ValueError(f"a tensor of shape {self.shape} is not one number; take an element, or its sum, mean or max")
        return self.data.item()

    def detach(self):
        """The same array, cut off from the graph."""
        return Tensor(self.data)

    def zero_grad(self):
        self.grad = None

    def register_post_accumulate_grad_hook(self, hook):
        """Call `hook(self)` whenever a backward pass has finished this leaf's gradient, before the pass goes on."""
        if self.node is not None or not self.requires_grad:
            raise ValueError("gradient hooks are for leaf tensors with requires_grad=True")
        self._hooks.append(hook)

    def backward(self, gradient=None, deliver=None):
        """Add d(self)/d(leaf) to `leaf.grad` for every leaf that self was computed from.

        gradient: dL/d(self), numbers of self's shape, of any dtype; may be left out for a scalar (then 1).
        deliver: called as deliver(leaf, gradient) instead; the array is the leaf's alone.
        Raises RuntimeError: self was not computed from a tensor with requires_grad, or its graph was used before.
        """
        if not self.requires_grad:
            raise RuntimeError("backward: this tensor was not computed from any tensor with requires_grad=True")
        if gradient is None:
            if self.size != 1:
                raise RuntimeError(f"backward: shape {self.shape} is not a scalar; pass dL/d(self) as an argument")
            gradient = array_module(self.data).ones_like(self.data)
        gradient = cast(gradient, self.data, "backward")
        if gradient.shape != self.shape:
            raise ValueError(f"backward: gradient has shape {gradient.shape}, the tensor {self.shape}")
        walk_back(self.node or self, gradient, deliver or Tensor.accumulate)

    def accumulate(self, gradient):
        """Take a finished gradient: an array that nobody else holds."""
        total = gradient if self.grad is None else self.grad + gradient
        self.grad = np.asarray(total) if isinstance(total, np.generic) else total  # NumPy's 0-d arrays become numbers
        for hook in self._hooks:
            hook(self)

    # Arithmetic. Each line is one op of `minisl.autograd.ops`.
    def __add__(self, other): return ops.add(self, other)
    def __sub__(self, other): return ops.sub(self, other)
    def __mul__(self, other): return ops.mul(self, other)
    def __truediv__(self, other): return ops.div(self, other)
    def __radd__(self, other): return ops.add(other, self)
    def __rsub__(self, other): return ops.sub(other, self)
    def __rmul__(self, other): return ops.mul(other, self)
    def __rtruediv__(self, other): return ops.div(other, self)
    def __neg__(self): return ops.neg(self)
    def __pow__(self, exponent): return ops.power(self, exponent)
    def __rpow__(self, base): return ops.power(base, self)
    def __abs__(self): return ops.abs(self)
    def __matmul__(self, other): return ops.matmul(self, other)
    def __rmatmul__(self, other): return ops.matmul(other, self)
    def __getitem__(self, key): return ops.getitem(self, key)

    def __eq__(self, other): return compared(operator.eq, self, other)
    def __ne__(self, other): return compared(operator.ne, self, other)
    def __lt__(self, other): return compared(operator.lt, self, other)
    def __le__(self, other): return compared(operator.le, self, other)
    def __gt__(self, other): return compared(operator.gt, self, other)
    def __ge__(self, other): return compared(operator.ge, self, other)

    def exp(self): return ops.exp(self)
    def log(self): return ops.log(self)
    def sqrt(self): return ops.sqrt(self)
    def rsqrt(self): return ops.rsqrt(self)
    def tanh(self): return ops.tanh(self)
    def sigmoid(self): return ops.sigmoid(self)
    def silu(self): return ops.silu(self)
    def relu(self): return ops.relu(self)
    def abs(self): return ops.abs(self)
    def clip(self, low=None, high=None): return ops.clip(self, low, high)
    def sum(self, axis=None, keepdims=False): return ops.sum(self, axis, keepdims)
    def mean(self, axis=None, keepdims=False): return ops.mean(self, axis, keepdims)
    def max(self, axis=None, keepdims=False): return ops.max(self, axis, keepdims)
    def min(self, axis=None, keepdims=False): return ops.min(self, axis, keepdims)
    def var(self, axis=None, keepdims=False, correction=1): return ops.var(self, axis, keepdims, correction)
    def std(self, axis=None, keepdims=False, correction=1): return ops.std(self, axis, keepdims, correction)
    def logsumexp(self, axis=None, keepdims=False): return ops.logsumexp(self, axis, keepdims)
    def cumsum(self, axis): return ops.cumsum(self, axis)
    def reshape(self, *shape): return ops.reshape(self, *one_or_many(shape))
    def permute(self, *axes): return ops.permute(self, *one_or_many(axes))
    def squeeze(self, axis=None): return ops.squeeze(self, axis)
    def unsqueeze(self, axis): return ops.unsqueeze(self, axis)
    def flatten(self, start=0, end=-1): return ops.flatten(self, start, end)
    def split(self, size, axis=0): return ops.split(self, size, axis)
    def swapaxes(self, a, b): return ops.swapaxes(self, a, b)
    def transpose(self, a, b): return ops.swapaxes(self, a, b)  # PyTorch's name for it
    T = property(lambda self: ops.permute(self, tuple(reversed(range(self.ndim)))))


def one_or_many(numbers):
    """x.reshape(2, 3) and x.reshape((2, 3)): the shape, as the one argument that ops take."""
    return numbers if len(numbers) == 1 and isinstance(numbers[0], (tuple, list)) else (numbers,)


def compared(relation, t, other):
    """relation(t, other), element by element: a boolean array. Where `other` is no number, Python decides."""
    try:
        pair = operands("a comparison", (t, other))
    except TypeError:
        return NotImplemented
    return relation(*map(raw, pair))


def raw(value):
    """A Tensor's array; all else as it is."""
    return value.data if isinstance(value, Tensor) else value


def bare(value, lost=None):
    """An argument of a NumPy function with arrays in the place of Tensors. lost: gets those that require a gradient; left out,
    they are refused."""
    if isinstance(value, Tensor):
        if lost is None or not value.requires_grad:
            return np.asarray(value)
        lost.append(value)
        return to_numpy(value.data)
    return type(value)(bare(v, lost) for v in value) if type(value) in (tuple, list) else value


def real(data, op):
    """Numbers as an array, in the byte order of the machine. Raises TypeError for what holds no real numbers."""
    array = data if isinstance(data, np.ndarray) or array_module(data) is not np else np.asarray(data)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{op}: real numbers are needed, got {type(data).__name__} (dtype {array.dtype})")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def cast(value, like, op):
    """A number or array as an array of the dtype of `like`, where `like` is."""
    if type(value) not in (int, float):
        value = real(raw(value), op)
    return array_module(like).asarray(value, dtype=like.dtype)


def operands(op, args):
    """The arguments of an op that are to have one dtype: a floating Tensor's, where there is one, else what NumPy makes of them.
    Raises TypeError: no number, or two floating dtypes."""
    like = next((a.data for a in args if isinstance(a, Tensor) and a.dtype.kind == "f"), None)
    if like is not None:
        return [a if isinstance(a, Tensor) and a.dtype.kind == "f" else cast(a, like, op) for a in args]
    return [a if isinstance(a, Tensor) or type(a) in (int, float) else real(a, op) for a in args]


class Node:
    """What one call of an op left behind: where its inputs came from and the arrays its backward needs.

    This is the `ctx` that forward and backward receive.
    """

    __slots__ = ("inputs", "needs", "op", "parents", "rebuilt", "saved")

    def __init__(self, op, args):
        tensors = [a if isinstance(a, Tensor) else None for a in args]
        dtypes = {t.dtype for t in tensors if t is not None and t.dtype.kind == "f"}
        if len(dtypes) > 1:
            raise TypeError(f"{op.__name__}: tensors of {' and '.join(sorted(map(str, dtypes)))}; all must have one dtype")
        self.op = op
        self.needs = [t is not None and t.requires_grad for t in tensors]  # which gradients backward must give
        self.parents = [(t.node or t) if need else None for t, need in zip(tensors, self.needs)]
        self.inputs = [(t.shape, t.dtype) if need else None for t, need in zip(tensors, self.needs)]
        self.saved, self.rebuilt = (), None

    def save(self, *values):
        self.saved = values

    def let_go(self, args):
        """Do not keep arguments that the op they come from can rebuild: remember the op."""
        makers = {id(t.data): t.node for t in args if isinstance(t, Tensor) and t.node and t.node.op.rebuild}
        self.saved = tuple(makers.get(id(value), value) for value in self.saved)

    def fetch(self):
        """Put rebuilt arrays back where `let_go` took them."""
        self.saved = tuple(value.output() if isinstance(value, Node) else value for value in self.saved)

    def output(self):
        """What the op's forward returned, rebuilt once for all who saved it."""
        if self.rebuilt is None:
            self.fetch()
            self.rebuilt = self.op.rebuild(self)
        return self.rebuilt

    def pull(self, gradient):
        """One gradient per input, checked, or None where no gradient is needed. The saved arrays are let go."""
        if self.saved is None:
            raise RuntimeError(f"backward: the graph through {self.op.__name__} was already used and its saved arrays "
                               "released; run the forward pass again (or add the losses before one backward)")
        self.fetch()
        gradients = self.op.backward(self, gradient)
        self.saved = self.rebuilt = None
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        if len(gradients) != len(self.parents):
            raise ValueError(f"{self.op.__name__}.backward returned {len(gradients)} gradients for "
                             f"{len(self.parents)} arguments")
        return [self._checked(i, g) if self.needs[i] and g is not None else None for i, g in enumerate(gradients)]

    def _checked(self, i, gradient):
        shape, dtype = self.inputs[i]
        if self.op.broadcasts and gradient.shape != shape:
            gradient = unbroadcast(gradient, shape)
        if gradient.shape != shape or gradient.dtype != dtype:
            raise ValueError(f"{self.op.__name__}.backward: gradient of argument {i} has shape {gradient.shape} and dtype "
                             f"{gradient.dtype}, the argument {shape} and {dtype}")
        return gradient


class Function:
    """Base of all ops. `forward(ctx, *arrays, **options)` and `backward(ctx, grad)` work on raw arrays.

    forward keeps what backward needs with `ctx.save(...)`; backward finds it in `ctx.saved` and returns one gradient per
    positional argument (None where there is none). It must not write into `grad`, which others may hold, nor return an array
    that it keeps. An op with `broadcasts = True` is given arrays of one dtype whatever numbers it was called with, and returns
    gradients in the output's shape; the engine sums them down. An op that can make its output again from `ctx.saved`, cheaply,
    does so in `rebuild(ctx)`: ops that save that output for backward then keep nothing.
    """

    broadcasts = False
    rebuild = None

    @classmethod
    def apply(cls, *args, **options):
        if cls.broadcasts:
            args = operands(cls.__name__, args)
        ctx = Node(cls, args)
        data = cls.forward(ctx, *map(raw, args), **options)
        out = Tensor(data)
        if any(ctx.needs):
            if _recording.get():
                out.requires_grad, out.node = True, ctx
                ctx.let_go(args)
            elif (used := _used.get()) is not None:
                used |= dict.fromkeys(a for a, need in zip(args, ctx.needs) if need)
        return out


def unbroadcast(gradient, shape):
    """Sum a gradient over the axes along which an argument of `shape` was repeated."""
    lead = gradient.ndim - len(shape)
    if lead < 0 or any(have != want != 1 for have, want in zip(gradient.shape[lead:], shape)):
        return gradient  # not a broadcast of `shape`; the caller reports it
    axes = (*range(lead), *(lead + i for i, n in enumerate(shape) if n == 1 != gradient.shape[lead + i]))
    return gradient.sum(axis=axes, keepdims=True).reshape(shape)


def walk_back(root, gradient, deliver):
    """Visit every node once, each after all its users, and hand finished gradients to `deliver(leaf, gradient)`.

    Kahn's topological order with an explicit stack, so depth is not limited by recursion. Gradients that meet are
    added out of place: the array a node returned may be held by others. A leaf gets an array of its own, copied only where it is
    a view, was passed through, or goes to two parents.
    """
    waiting = count_uses(root)
    gradients, ready, fresh = {root: gradient}, [root], set()
    while ready:
        node = ready.pop()
        grad = gradients.pop(node, None)
        if isinstance(node, Tensor):
            if grad is not None:
                deliver(node, grad if node in fresh else grad.copy())
            continue
        pulled = node.pull(grad) if grad is not None else [None] * len(node.parents)
        for parent, g in zip(node.parents, pulled):
            if parent is None:
                continue
            if g is not None:
                if parent in gradients or (g.base is None and g is not grad and sum(g is other for other in pulled) == 1):
                    fresh.add(parent)
                gradients[parent] = gradients[parent] + g if parent in gradients else g
            waiting[parent] -= 1
            if waiting[parent] == 0:
                ready.append(parent)


def count_uses(root):
    """How many gradients each node below `root` will be sent."""
    uses, seen, stack = Counter(), {root}, [root]
    while stack:
        for parent in getattr(stack.pop(), "parents", ()):
            if parent is not None:
                uses[parent] += 1
                if parent not in seen:
                    seen.add(parent)
                    stack.append(parent)
    return uses


from minisl.autograd import ops  # noqa: E402  at the end: the ops are built from Tensor and Function
