"""What a kernel takes, read from its text, and the check that what it is given fits.

A GPU checks nothing: a float64 array handed to a kernel for float is read as nonsense, a transposed view as its base, a Python
int as eight bytes where the kernel takes four. So every launch is checked here, on the GPU as in the emulator.
"""

import re
from dataclasses import dataclass
from functools import cache

import numpy as np

DTYPES = {"float": np.float32, "double": np.float64, "int": np.int32, "unsigned": np.uint32, "unsigned int": np.uint32,
          "long long": np.int64, "unsigned char": np.uint8, "signed char": np.int8, "float2": np.float32, "float4": np.float32,
          "int4": np.int32, "uchar4": np.uint8}
KERNEL = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\s*\((?P<bound>[^)]*)\)\s*)?"
                    r"(?P<name>\w+)\s*\((?P<parameters>[^)]*)\)")


@dataclass(frozen=True)
class Parameter:
    name: str
    type: str  # without const, * and __restrict__
    pointer: bool
    const: bool = False

    @property
    def dtype(self):
        return np.dtype(DTYPES[self.type])


@cache
def kernels(source):
    """{kernel: [Parameter, ...]} of a .cu text. Raises ValueError for a type that is not known here."""
    found = {}
    text = re.sub(r"//[^\n]*|/\*.*?\*/", lambda comment: re.sub(r"[^\n]", " ", comment[0]), source, flags=re.S)
    for kernel in KERNEL.finditer(text):
        found[kernel["name"]] = [parameter(p, kernel["name"]) for p in kernel["parameters"].split(",") if p.strip()]
    return found


def parameter(text, kernel):
    words = re.sub(r"\bconst\b|__restrict__", " ", text).replace("*", " * ").split()
    pointer = "*" in words
    *kind, name = [w for w in words if w != "*"]
    if (kind := " ".join(kind)) not in DTYPES:
        raise ValueError(f"{kernel}: parameter {name} has type {kind!r}; known: {', '.join(DTYPES)}")
    return Parameter(name, kind, pointer, bool(re.search(r"\bconst\b", text)))


def checked(kernel, parameters, arguments, array_type):
    """The arguments, numbers as NumPy scalars of the kernel's types. Raises TypeError, naming kernel and parameter."""
    if len(arguments) != len(parameters):
        names = ", ".join(p.name for p in parameters)
        raise TypeError(f"{kernel} takes {len(parameters)} arguments ({names}), got {len(arguments)}")
    return tuple(fitting(kernel, p, a, array_type) for p, a in zip(parameters, arguments))


def fitting(kernel, p, given, array_type):
    where = f"{kernel}: {p.name}"
    if p.pointer:
        if not isinstance(given, array_type):
            raise TypeError(f"{where} must be an array of {p.dtype}, got {type(given).__name__}")
        if given.dtype != p.dtype:
            raise TypeError(f"{where} must be an array of {p.dtype}, got {given.dtype}")
        if not given.flags.c_contiguous:
            raise TypeError(f"{where} must be contiguous, got strides {given.strides} of shape {given.shape}")
        if not p.const and not getattr(given.flags, "writeable", True):
            raise TypeError(f"{where} is written to, the array given is read-only (or the parameter should be const)")
        return given
    if isinstance(given, bool | np.bool_ | array_type) or not isinstance(given, int | float | np.integer | np.floating):
        raise TypeError(f"{where} must be a number ({p.type}), got {type(given).__name__}")
    if p.dtype.kind in "iu":
        if not isinstance(given, int | np.integer):
            raise TypeError(f"{where} must be a whole number ({p.type}), got {given!r}")
        limits = np.iinfo(p.dtype)
        if not limits.min <= given <= limits.max:
            raise TypeError(f"{where} is {given}, which does not fit {p.type}")
    return p.dtype.type(given)
