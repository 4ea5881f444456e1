"""The safetensors format, read one tensor at a time and written one tensor at a time, with bfloat16, which NumPy does not know.

    8 bytes: length n of the header, little-endian;  n bytes: JSON;  the rest: the tensors' bytes, row-major, little-endian
    JSON: {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [begin, end]}, ..., "__metadata__": {...}}

A bfloat16 is the upper half of a float32. The package `safetensors` reads and writes whole checkpoints of NumPy's types, and
`minisl.checkpoint` uses it; here a 7B model must pass through the memory of one matrix.
"""

import json
import math
import os

import numpy as np

from minisl.errors import InputError

LONGEST_HEADER = 100_000_000  # of the format
STORED = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1",
          "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1", "BOOL": "?"}
NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32"}


class TensorFile:
    """The tensors of one safetensors file: `.shapes` name -> shape, `.read(name)` -> array; float16 and bfloat16 as float32.

    Raises InputError, which names the file and the tensor, for a file that is missing, damaged, or says what cannot be.
    """

    def __init__(self, path):
        self.path = path
        self.entries, self.start = {}, 0
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                length = int.from_bytes(file.read(8), "little")
                if size < 8 or length > min(size - 8, LONGEST_HEADER):
                    raise self.damaged(f"its header would be {length} bytes, the file has {size}")
                header = json.loads(file.read(length).decode(), object_pairs_hook=no_name_twice)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from None
        except (ValueError, RecursionError) as error:
            raise error if isinstance(error, InputError) else self.damaged(f"its header is not JSON: {error}") from None
        if not isinstance(header, dict):
            raise self.damaged("its header is not a JSON object")
        self.start = 8 + length
        header.pop("__metadata__", None)
        for name, entry in header.items():
            self.entries[name] = self.checked(name, entry, size - self.start)
        end = 0
        for begin, stop, name in sorted((*spans, name) for name, (_, _, spans) in self.entries.items()):
            if begin != end:
                raise self.damaged(f"{name!r:.100} begins at byte {begin}, the tensor before it ends at {end}")
            end = stop
        if end != size - self.start:
            raise self.damaged(f"its tensors end at byte {end}, its data at {size - self.start}")

    def checked(self, name, entry, room):
        """(dtype, shape, (begin, end)) of a header's entry, if it can be."""
        try:
            dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        except (TypeError, KeyError, ValueError):
            raise self.damaged(f"{name!r:.100} lacks a dtype, a shape or two data_offsets") from None
        if not isinstance(dtype, str) or dtype not in STORED:
            raise InputError(f"{self.path}: {name!r:.100} is of type {dtype!r:.100}; allowed: {', '.join(STORED)}")
        if len(shape) > 64 or not all(type(n) is int and 0 <= n < 2**63 for n in (*shape, begin, end)):
            raise self.damaged(f"{name!r:.100} has a shape or data_offsets that cannot be")
        needs = math.prod(shape) * np.dtype(STORED[dtype]).itemsize
        if not begin <= end <= room or end - begin != needs:
            raise self.damaged(f"{name!r:.100}, {dtype} of shape {shape}, needs {needs} bytes and has those from {begin} to "
                               f"{end}, of {room}")
        return dtype, shape, (begin, end)

    def damaged(self, why):
        return InputError(f"{self.path}: damaged or not a safetensors file ({why})")

    @property
    def shapes(self):
        return {name: shape for name, (_, shape, _) in self.entries.items()}

    def kind(self, name):
        """NumPy's letter: f, i, u or b."""
        return "f" if self.entries[name][0] == "BF16" else np.dtype(STORED[self.entries[name][0]]).kind

    def read(self, name):
        dtype, shape, (begin, end) = self.entries[name]
        stored = np.dtype(STORED[dtype])
        try:
            raw = np.fromfile(self.path, stored, (end - begin) // stored.itemsize, offset=self.start + begin)
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror or error}") from None
        if raw.nbytes != end - begin:
            raise self.damaged(f"{name!r:.100} ends early")
        if dtype == "BF16":
            raw = (raw.astype("<u4") << 16).view("<f4")
        elif dtype == "F16":
            raw = raw.astype("<f4")
        return raw.reshape(shape)


def no_name_twice(pairs):
    """For json.loads: a dict of the pairs. Raises ValueError where a name occurs twice."""
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name occurs twice")
    return content


def write(path, tensors, metadata):
    """A safetensors file. tensors: name -> (dtype of NAMES, shape, function that gives the array), called one after another.

    Raises InputError for a number that the dtype cannot hold.
    """
    order = sorted(tensors, key=lambda name: (-itemsize(tensors[name][0]), name))  # so every tensor is aligned
    header, end = {"__metadata__": metadata}, 0
    for name in order:
        dtype, shape, _ = tensors[name]
        begin, end = end, end + math.prod(shape) * itemsize(dtype)
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            dtype, shape, array = tensors[name]
            file.write(stored(array(), dtype, name).reshape(shape).data if math.prod(shape) else b"")


def itemsize(dtype):
    """Bytes of a number of this dtype, by safetensors' name for it."""
    return np.dtype(STORED[NAMES[dtype]]).itemsize


def stored(array, dtype, name):
    """The array as it lies in a file; bfloat16 rounds to the nearest, ties to even."""
    array = np.ascontiguousarray(array)
    if dtype == "bfloat16":
        with np.errstate(over="ignore"):
            bits = array.astype("<f4").view("<u4")
        nearest = bits + np.uint32(0x7FFF) + (bits >> 16 & 1)
        fits = np.isnan(array) | (nearest & 0x7F800000 != 0x7F800000)
        bits = np.where(np.isnan(array), bits | 0x400000, nearest) >> 16  # a NaN must not be rounded to infinity
        small = bits.astype("<u2")
    else:
        with np.errstate(over="ignore"):
            small = array.astype(STORED[NAMES[dtype]], copy=False)
        fits = np.isfinite(small)
    if array.dtype.kind == "f" and not (fits | ~np.isfinite(array)).all():
        raise InputError(f"--dtype {dtype}: {name} has numbers up to {np.abs(array[np.isfinite(array)]).max():.3g}, "
                         "too large for it")
    return small
