"""What each function of a backend takes, and the check that it is given that: once, the same for all backends.

`SIGNATURES` is the whole contract. `name (N, D)` is a floating array, and the same letter is the same size; all floating
arrays of a call have one dtype. `name: kind` is something else. A kernel reads and writes where it is told to, so what does not
fit is refused before it runs: TypeError for what an argument is, ValueError for its shape or number, IndexError for an index in
it that points outside. On a GPU values are not looked at, since to look is to wait.
"""

import math
import operator
import re
from functools import wraps
from numbers import Real
from typing import NamedTuple

import numpy as np

from minisl.backend import IGNORE_LABEL, array_module
from minisl.kernels.numpy_fused import BLOCK
from minisl.kernels.support import Support

PRODUCT = "x (N, in), B (out, r), A (r, in), values (nnz), support: support, scale: number"
SIGNATURES = f"""
linear                  x (N, in), weight (out, in)
linear_backward         dy (N, out), x (N, in), weight (out, in), need_dx: flag
cross_entropy           logits (N, V), labels (N) of V or ignored
cross_entropy_backward  scale: factor, logits (N, V), labels (N) of V or ignored, kept (2, N)
linear_cross_entropy    x (N, D), weight (V, D), labels (N) of V or ignored, scale: number
rms_norm                x (N, D), gain (D), eps: number
rms_norm_backward       dy (N, D), x (N, D), gain (D), r (N, 1)
swiglu                  a (..., F), b (..., F)
swiglu_backward         dy (..., F), a (..., F), b (..., F)
rope                    x (..., T, d), cos (T, d/2), sin (T, d/2)
attention               q (B, H, Tq, d), k (B, K, Tk, d), v (B, K, Tk, d)
attention_backward      dout (B, H, Tq, d), q (B, H, Tq, d), k (B, K, Tk, d), v (B, K, Tk, d), out (B, H, Tq, d), kept: kept
embedding               weight (V, D), ids (N) of V
embedding_backward      dy (N, D), ids (N) of vocab, vocab: count
adamw                   p (...) written, g (...), m (...) written, v (...) written,
                        lr: number, betas: betas, eps: number, weight_decay: number, t: step
adam8bit                p (...) written, g (...), m (...) uint8 written, v (...) uint8 written, m_top (blocks) float32 written,
                        v_top (blocks) float32 written, tables: tables,
                        lr: number, betas: betas, eps: number, weight_decay: number, t: step
square_sum              arrays: listed
scatter_add             W (out, in), values (nnz), support: support
spmm                    x (N, width), values (nnz), support: support, transpose: flag
sddmm                   dy (N, out), x (N, in), support: support
dense                   B (out, r), A (r, in), values (nnz), support: support, scale: number
sl_linear               {PRODUCT}
sl_linear_backward      dy (N, out), {PRODUCT}, xA (n, r) or None
materialised_forward    {PRODUCT}
materialised_backward   dy (N, out), {PRODUCT}, xA (N, r) or None
factored_forward        {PRODUCT}
factored_backward       dy (N, out), {PRODUCT}, xA (N, r) or None
fused_forward           {PRODUCT}
fused_backward          dy (N, out), {PRODUCT}, xA (N, r) or None
"""


class Array(NamedTuple):
    """An array that a function takes."""

    place: int
    name: str
    open: bool  # any axes may come before these
    axes: tuple
    dtype: np.dtype | None  # None: floating, all of one dtype
    of: str  # of an index: the size that it is below
    ignored: bool  # an index may also be IGNORE_LABEL
    written: bool
    optional: bool


class Contract:
    """The check of one function's arguments.

    text: as in SIGNATURES. rows: N stands for any number of axes: ops take those, and hand rows to a backend.
    """

    def __init__(self, name, text, rows=False):
        self.name, self.parameters, self.arrays, self.others = name, [], [], []
        for parameter, axes, words, kind in re.findall(r"(\w+)(?: \(([^)]*)\)([^,]*)|: (\w+))", text):
            place, axes, words = len(self.parameters), axes.split(", "), words.split()
            self.parameters.append(parameter)
            if kind:
                self.others.append((getattr(self, kind), place, parameter))
                continue
            dtype = next((np.dtype(word) for word in words if word in ("uint8", "float32")), None)
            of = words[1] if words[:1] == ["of"] else ""
            opened = axes[0] == "..." or (rows and axes[0] == "N")
            axes = tuple(int(a) if a.isdigit() else a for a in axes[opened:])
            self.arrays.append(Array(place, parameter, opened, axes, dtype, of, "ignored" in words, "written" in words,
                                     "None" in words))
        self.others += [(self.index, p.place, p) for p in self.arrays if p.of]
        self.others += [(self.writable, p.place, p.name) for p in self.arrays if p.written]
        self.places, self.known = [p.place for p in self.arrays], {}

    def __call__(self, *args, **named):
        """The arguments, checked: numbers as Python's, indices in a dtype that every kernel knows, positions as a Support."""
        args = list(args) if len(args) == len(self.parameters) and not named else self.bound(args, named)
        try:
            kinds = tuple([(type(a), a.shape, a.dtype) if a is not None else None for a in [args[i] for i in self.places]])
            sizes = self.known.get(kinds)
        except AttributeError:
            sizes = kinds = None
        if sizes is None:
            sizes = self.sizes(args)
            if len(self.known) > 1000:  # in generation, each token has shapes of its own
                self.known.clear()
            self.known[kinds] = sizes
        for take, place, name in self.others:
            args[place] = take(name, args[place], sizes, args)
        if self.name in RULES and (wrong := RULES[self.name](sizes, *args)):
            raise ValueError(f"{self.name}: {wrong}")
        return args

    def sizes(self, args):
        """Size by axis, where the arrays fit. Found once for each combination of shapes; the next call has it from `known`."""
        sizes, first, dtype = {1: 1, 2: 2}, args[self.places[0]] if self.places else None, None
        for p in self.arrays:
            array = args[p.place]
            if array is None and p.optional:
                continue
            self.check_type(p.name, array, first, p.of)
            shape = array.shape
            lead = len(shape) - len(p.axes)
            if lead < 0 or (lead and not p.open):
                self.refuse(p, sizes, args)
            if p.open:
                sizes.setdefault("...", shape[:lead])
            if p.open and sizes["..."] != shape[:lead]:
                self.refuse(p, sizes, args)
            for axis, size in zip(p.axes, shape[lead:]):
                if sizes.setdefault(axis, size) != size:
                    self.refuse(p, sizes, args)
            if p.of:
                if array.dtype.kind not in "iu":
                    raise TypeError(f"{self.name}: {p.name} must be integers, got {array.dtype}")
            elif wanted := p.dtype or dtype:
                if array.dtype != wanted:
                    raise TypeError(f"{self.name}: {p.name} is {array.dtype}, must be {wanted}"
                                    + f" as {self.arrays[0].name} is" * (p.dtype is None))
            else:
                dtype = self.floating(p.name, array)
        return sizes

    def bound(self, args, named):
        """All arguments in order; those that may be left out are None."""
        given = dict(zip(self.parameters, args)) | named
        needed = set(self.parameters) - {p.name for p in self.arrays if p.optional}
        if len(given) < len(args) + len(named) or not needed <= given.keys() <= set(self.parameters):
            raise TypeError(f"{self.name} takes ({', '.join(self.parameters)}), got {len(args)} arguments"
                            + "".join(f", {name}" for name in named))
        return [given.get(name) for name in self.parameters]

    def refuse(self, p, sizes, args):
        """Raise what says p's shape, what it must be, and beside what."""
        lead = [str(n) for n in sizes["..."]] if "..." in sizes else ["..."]
        wanted = lead * p.open + [str(sizes.get(axis, axis)) for axis in p.axes]
        wanted = f"({', '.join(wanted)}{',' * (len(wanted) == 1)})"
        others = ", ".join(f"{o.name} {args[o.place].shape}" for o in self.arrays if o.place < p.place)
        raise ValueError(f"{self.name}: {p.name} has shape {args[p.place].shape}, must be {wanted}"
                         + f" beside {others}" * bool(others))

    def check_type(self, name, array, first, index=""):
        """Raise TypeError for what is no array, or not in the memory that the first is in; an index may come from the host."""
        if not is_array(array):
            raise TypeError(f"{self.name}: {name} must be an array, got {type(array).__name__}")
        there, here = array_module(array).__name__, array_module(first).__name__
        if there != here and not (index and there == "numpy"):
            raise TypeError(f"{self.name}: {name} is an array of {there}, must be one of {here}")

    def floating(self, name, array):
        if array.dtype.kind != "f" or not array.dtype.isnative:
            raise TypeError(f"{self.name}: {name} must be floating, got {array.dtype}")
        return array.dtype

    # What is no array of floating numbers: its name, what is given, sizes by axis and all arguments, to what a kernel gets

    def number(self, name, value, *_):
        if type(value) is float:
            return value
        if isinstance(value, Real) or (isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "iuf"):
            return float(value)
        raise TypeError(f"{self.name}: {name} must be a number, got {type(value).__name__}")

    def factor(self, name, value, *_):
        """A number, or an array of one."""
        if is_array(value) and value.size == 1:
            value = value.reshape(())
        return value if is_array(value) and array_module(value) is not np else self.number(name, value)

    def count(self, name, value, *_, least=0):
        try:
            value = operator.index(value)
        except TypeError:
            raise TypeError(f"{self.name}: {name} must be a whole number, got {type(value).__name__}") from None
        if value < least:
            raise ValueError(f"{self.name}: {name} is {value}, must be at least {least}")
        return value

    def step(self, name, value, *_):
        return self.count(name, value, least=1)

    def flag(self, name, value, *_):
        return bool(value)

    def betas(self, name, value, *_):
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise TypeError(f"{self.name}: {name} must be two numbers, got {value!r}")
        b1, b2 = (self.number(name, beta) for beta in value)
        if not (0 <= b1 < 1 and 0 <= b2 < 1):
            raise ValueError(f"{self.name}: {name} is {value!r}; both must be at least 0 and below 1")
        return b1, b2

    def listed(self, name, value, *_):
        """Floating arrays of any shape."""
        if not isinstance(value, tuple | list):
            raise TypeError(f"{self.name}: {name} must be a list of arrays, got {type(value).__name__}")
        for array in value:
            self.check_type(name, array, value[0])
            self.floating(name, array)
        return list(value)

    def tables(self, name, value, sizes, args):
        """The numbers that codes of 8 bits stand for, with and without a sign."""
        if not isinstance(value, tuple | list) or [getattr(table, "shape", 0) for table in value] != [(256,)] * 2:
            raise ValueError(f"{self.name}: {name} must be two arrays of shape (256,)")
        for table in value:
            self.check_type(name, table, args[0])
            if table.dtype != np.float32:
                raise TypeError(f"{self.name}: {name} must be float32, got {table.dtype}")
        return tuple(value)

    def kept(self, name, value, sizes, args):
        """What `attention` keeps: log sum exp of each row of scores, or the exponentials and their sums."""
        B, H, K, Tq, Tk = (sizes[axis] for axis in ("B", "H", "K", "Tq", "Tk"))
        many = isinstance(value, tuple)
        wanted = [(B, K, H // max(K, 1), Tk, Tq), (B, K, H // max(K, 1), Tq, 1)] if many else [(B, H, Tq)]
        found = []
        for array in value if many else (value,):
            self.check_type(name, array, args[0])
            if array.dtype != args[0].dtype:
                raise TypeError(f"{self.name}: {name} is {array.dtype}, must be {args[0].dtype} as dout is")
            found.append(array.shape)
        if found != wanted:
            raise ValueError(f"{self.name}: {name} has shape {', '.join(map(str, found))}, must be {', '.join(map(str, wanted))}")
        return value

    def support(self, name, value, sizes, args):
        """A Support, or positions in a matrix whose shape is known from the arrays."""
        if not isinstance(value, Support):
            if not {"out", "in"} <= sizes.keys():
                raise TypeError(f"{self.name}: {name} must be a Support, got {type(value).__name__}")
            value = Support(value, (sizes["out"], sizes["in"]))
        for axis, size in zip(("nnz", "out", "in"), (len(value), *value.shape)):
            if sizes.get(axis, size) != size:
                p = next(p for p in self.arrays if axis in p.axes)
                raise ValueError(f"{self.name}: {p.name} has shape {args[p.place].shape}, the support {len(value)} positions in "
                                 f"a {value.shape[0]} x {value.shape[1]} matrix")
        if type(value.index) is not type(args[self.places[0]]):
            self.check_type(name, value.index, args[self.places[0]])
        return value

    def writable(self, name, array, *_):
        if not getattr(array.flags, "writeable", True):
            raise ValueError(f"{self.name}: {name} is read-only, and would be written to")
        return array

    def index(self, p, array, sizes, args):
        limit = sizes[p.of] if p.of in sizes else args[self.parameters.index(p.of)]
        if isinstance(array, np.ndarray) and array.size and not (array.min() >= 0 and array.max() < limit):
            outside = (array < 0) | (array >= limit)
            if p.ignored:
                outside &= array != IGNORE_LABEL
            if outside.any():
                raise IndexError(f"{self.name}: {p.name}: {int(array[outside][0])} is outside 0..{limit - 1}"
                                 + f" (and not {IGNORE_LABEL})" * p.ignored)
        xp = array_module(args[self.arrays[0].place])
        return xp.asarray(array, array.dtype if array.dtype in (np.int32, np.int64) else np.int64)


def is_array(value):
    """One of NumPy's or of CuPy's, whose arithmetic is element by element."""
    on_host = isinstance(value, np.ndarray) and not isinstance(value, np.matrix | np.ma.MaskedArray)
    return on_host or (array_module(value) is not np and hasattr(value, "strides"))


# What sizes must be beyond being the same: a sentence where they are not

def some(*axes):
    """None of these axes is empty."""
    def rule(sizes, *args):
        return next((f"{axis} is 0, must be at least 1" for axis in axes if sizes[axis] == 0), "")

    return rule


def heads(sizes, *args):
    """Key/value heads that query heads can share, and no query before the first key."""
    H, K, Tq, Tk = (sizes[axis] for axis in ("H", "K", "Tq", "Tk"))
    if K == 0 or sizes["d"] == 0 or H % K:
        return f"{H} query heads of width {sizes['d']} cannot share {K} key/value heads"
    return f"{Tq} queries and {Tk} keys: each query needs its own key and all before it" if Tq > Tk else ""


def halves(sizes, x, cos, sin):
    """Angles for half of the width."""
    same = x.shape[-1] == 2 * cos.shape[-1]
    return "" if same else f"x has shape {x.shape}, cos {cos.shape}; the last axis of x must be twice that of cos"


def blocks(sizes, p, g, m, v, m_top, *others):
    """A scale for each block of moments."""
    count = -(-p.size // BLOCK)
    return "" if len(m_top) == count else f"m_top has shape {m_top.shape}, must be ({count},) beside p {p.shape}"


def sides(sizes, x, values, support, transpose):
    """The side of S that x is multiplied with."""
    width = support.shape[0 if transpose else 1]
    return "" if x.shape[1] == width else f"x has shape {x.shape}, with this support it must be ({len(x)}, {width})"


def as_many_rows(sizes, dy, x, B, A, values, index, scale, xA):
    """A row of xA for each row of x."""
    n = math.prod(x.shape[:-1])
    return "" if xA is None or len(xA) == n else f"xA has shape {xA.shape}, must be ({n}, {len(A)}) beside x {x.shape}"


RULES = {"cross_entropy": some("V"), "cross_entropy_backward": some("V"), "linear_cross_entropy": some("V"),
         "rms_norm": some("D"), "rms_norm_backward": some("D"), "attention": heads, "attention_backward": heads, "rope": halves,
         "adam8bit": blocks, "spmm": sides, "sl_linear_backward": as_many_rows}


LINES = re.findall(r"^(\w+) +((?:.*\n)(?: .*\n)*)", SIGNATURES, re.M)
CONTRACTS = {name: Contract(name, " ".join(text.split())) for name, text in LINES}
OF_OPS = {name: Contract(name, " ".join(text.split()), rows=True) for name, text in LINES}


class Backend:
    """The functions of a backend's module, each behind its contract. `module`: they themselves, unchecked.

    dtypes: those that it has kernels for; left out: all.
    """

    def __init__(self, name, module, dtypes=None):
        self.name, self.module, self.dtypes = name, module, dtypes
        for function in CONTRACTS.keys() & vars(module).keys():
            setattr(self, function, self.checked(CONTRACTS[function]))

    def __repr__(self):
        return f"<backend {self.name}>"

    def checked(self, contract):
        @wraps(getattr(self.module, contract.name))
        def call(*args, **named):
            args = contract(*args, **named)
            if self.dtypes and contract.places and args[contract.places[0]].dtype not in self.dtypes:
                raise TypeError(f"{contract.name}: backend {self.name} has kernels for {', '.join(self.dtypes)}, not for "
                                f"{args[contract.places[0]].dtype}")
            return getattr(self.module, contract.name)(*args)

        return call
