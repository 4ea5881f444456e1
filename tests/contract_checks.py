"""Arguments drawn for any function of `kernels.contract`, right or wrong in one place, in arrays with guards around them."""

from math import prod

import numpy as np

from minisl import kernels
from minisl.kernels import Support
from minisl.kernels.contract import CONTRACTS
from minisl.kernels.numpy_fused import dynamic_map

SIZES = {1: 1, 2: 2, "N": 5, "in": 6, "out": 4, "width": 6, "V": 7, "D": 6, "B": 2, "H": 4, "K": 2, "Tq": 3, "Tk": 5, "d": 4,
         "d/2": 2, "T": 3, "r": 2, "F": 3, "n": 5, "nnz": 6, "blocks": 1, "...": (2, 3)}
NUMBERS = {"scale": 0.5, "eps": 1e-3, "lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.9), "t": 3, "vocab": 7, "need_dx": True,
           "transpose": False}
LAYOUTS = ("C", "F", "backwards", "gaps", "shifted", "read-only", "repeated")
GUARD = 64  # elements on either side


class Guarded:
    """Arrays within larger ones. What is around them is NaN, or -1: read, it spoils a result; written to, `intact` says so."""

    def __init__(self):
        self.inside = []

    def __call__(self, values, layout="C"):
        """The values in an array that lies in memory in this way."""
        values = np.asarray(values)
        if values.dtype.hasobject:
            return values
        kept = values[:1] if layout == "repeated" and values.ndim else values
        step = 2 if layout == "gaps" else 1
        count = prod(kept.shape) * step ** bool(kept.ndim)
        memory = np.full((count + 2 * GUARD) * values.itemsize + 1, 0xFF, np.uint8)
        start = GUARD * values.itemsize + (layout == "shifted")
        array = memory[start:start + count * values.itemsize].view(values.dtype)
        if kept.ndim:
            array = array.reshape(*kept.shape[:-1], kept.shape[-1] * step, order="F" if layout == "F" else "C")[..., ::step]
        else:
            array = array.reshape(())
        if layout == "backwards" and array.ndim:
            array = array[(slice(None, None, -1),) * array.ndim]
        array[...] = kept
        outside = np.ones(len(memory), bool)
        if array.size:
            places = array.__array_interface__["data"][0] - memory.ctypes.data + np.zeros(array.shape, int)
            for indices, stride in zip(np.indices(array.shape), array.strides):
                places += indices * stride
            outside[(places.reshape(-1, 1) + np.arange(values.itemsize)).ravel()] = False
        self.inside.append((memory, outside))
        if layout == "repeated":
            array = np.broadcast_to(array, values.shape)
        if layout == "read-only":
            array.flags.writeable = False
        return array

    def intact(self):
        return all((memory[outside] == 0xFF).all() for memory, outside in self.inside)


class Drawn:
    """Right arguments for a function: `values` by parameter, plain arrays in float64 that each dtype holds."""

    def __init__(self, name, sizes=None, seed=0, dtype=np.float32):
        self.contract, self.dtype = CONTRACTS[name], dtype
        self.sizes, rng = SIZES | (sizes or {}), np.random.default_rng(seed)
        if name == "rope":
            self.sizes |= {"...": (2, 4)}
        self.values = {}
        for p in self.contract.arrays:
            shape = tuple(self.sizes[a] for a in p.axes)
            shape = self.sizes["..."] + shape if p.open else shape
            if p.of:
                self.values[p.name] = rng.integers(0, max(1, self.limit(p.of)), shape)
            elif p.dtype == np.uint8:
                self.values[p.name] = rng.integers(0, 256, shape).astype(np.uint8)
            else:
                values = rng.standard_normal(shape)
                positive = p.name in ("kept", "r", "v", "m_top", "v_top") and "attention" not in name
                self.values[p.name] = (abs(values) + 0.5 if positive else values).astype(p.dtype or dtype)
        for take, _, name in self.contract.others:
            if isinstance(name, str) and name not in self.values:
                self.values[name] = self.other(take.__name__, name, rng)
        self.values = {name: self.values[name] for name in self.contract.parameters}
        if "xA" in self.values:
            self.values["xA"] = self.values["x"] @ self.values["A"].T

    def limit(self, of):
        return self.sizes[of] if of in self.sizes else NUMBERS[of]

    def other(self, kind, name, rng):
        if kind == "support":
            out, width = (self.sizes["out"], self.sizes["in"])
            return Support(rng.integers(0, max(1, out * width), self.sizes["nnz"] * bool(out * width)), (out, width))
        if kind == "tables":
            return dynamic_map(True), dynamic_map(False)
        if kind == "listed":
            return [rng.standard_normal(shape).astype(self.dtype) for shape in ((5,), (2, 3), ())]
        if kind == "kept":
            return None  # of the forward pass, see `run`
        return 0.7 if kind == "factor" else NUMBERS[name]


def of(backend, dtype=np.float32):
    return kernels.load(backend, np.zeros(0, dtype))


def backends_of(name):
    """Those that have this function of the contract."""
    return [b for b in ("reference", "numpy", "cpu", "emulator") if hasattr(of(b), name)]


def run(backend, name, values, guarded, layouts=(), dtype=np.float32):
    """What a function gives for these values, or what it raises: ("refused", type, text)."""
    values = dict(values)
    first = next((a for a in values.values() if isinstance(a, np.ndarray) and a.dtype.kind != "i"), np.zeros(0, dtype))
    chosen = kernels.load(backend, first)
    if not hasattr(chosen, name):  # fused_forward is CUDA's alone
        chosen = of(backend)
    arrays = {n: guarded(a, layouts.get(n, "C") if layouts else "C") for n, a in values.items() if isinstance(a, np.ndarray)}
    if "arrays" in values:
        arrays["arrays"] = [guarded(a, layouts.get("arrays", "C") if layouts else "C") for a in values["arrays"]]
    if "kept" in values and values["kept"] is None:
        try:
            arrays["kept"] = chosen.attention(*(np.array(arrays[n]) for n in "qkv"))[1]
        except (TypeError, ValueError):  # nor will the backward pass take these
            arrays["kept"] = np.zeros((2, 4, 3), dtype)
    before = {n: np.array(a) for n, a in arrays.items() if isinstance(a, np.ndarray)}
    try:
        with np.errstate(all="ignore"):
            found = getattr(chosen, name)(*(values | arrays).values())
    except (TypeError, ValueError, IndexError) as error:
        return "refused", type(error), str(error)
    finally:
        assert guarded.intact(), f"{name} of {backend} wrote outside of an array"
    written = {p.name for p in CONTRACTS[name].arrays if p.written}
    for n, a in before.items():
        if n not in written:
            np.testing.assert_array_equal(arrays[n], a, err_msg=f"{name} of {backend} changed {n}")
    return [*flat(found, name), *(arrays[n].copy() for n in sorted(written))]


def flat(found, name):
    """The arrays of a result that all backends share."""
    if name == "attention":
        return [found[0]]  # what is kept is a backend's own
    if name.endswith("_forward"):
        return [found[0]]
    if found is None:
        return []
    return [np.asarray(a) for a in (found if isinstance(found, tuple) else (found,)) if a is not None]


def same(found, right, where):
    """Both refused in the same words, or both the same numbers in the same shapes and dtypes."""
    if right[:1] == ("refused",) or found[:1] == ("refused",):
        assert found == right, f"{where}: {found}\n{right}"
        return
    assert [(a.shape, a.dtype) for a in found] == [(a.shape, a.dtype) for a in right], where
    for a, b in zip(found, right):
        if a.dtype == np.uint8:
            assert (np.abs(a.astype(int) - b) <= 1).all(), where  # between two codes
        else:
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 if a.dtype == np.float32 else 1e-9, err_msg=where)
