"""Whatever a function of a backend is given: the right numbers or a refusal in words, the same from each backend, and nothing
read or written outside of an array."""

import inspect
from fractions import Fraction

import numpy as np
import pytest
from contract_checks import LAYOUTS, NUMBERS, SIZES, Drawn, Guarded, backends_of, of, run, same
from gpu import fake_cupy, no_compiler
from mutation import mutated, rejected, title

from minisl import kernels
from minisl.kernels import Support, contract, cuda, numba_status
from minisl.kernels.contract import CONTRACTS, Contract

FUNCTIONS = [name for name in CONTRACTS if backends_of(name)]
DTYPES = (np.float32, np.float64)


def others(name):
    """The backends beside NumPy that run here."""
    usable = {"cpu": bool(numba_status()[0]), "emulator": not no_compiler(), "reference": True, "numpy": True}
    return [b for b in backends_of(name) if usable[b] and b != "numpy"]


def compare(name, values, layouts=(), where="", dtype=np.float32):
    base = "numpy" if hasattr(of("numpy"), name) else "emulator"
    right = run(base, name, values, Guarded(), layouts, dtype)
    for backend in others(name):
        same(run(backend, name, values, Guarded(), layouts, dtype), right, f"{name} of {backend}: {where}")
    return right


def test_every_public_function_has_a_contract():
    """Those that all backends have, and `fused_*`: CUDA's list says which are public."""
    public = {name for name, function in vars(cuda).items() if inspect.isfunction(function)}
    assert public == set(FUNCTIONS)
    assert {"sl_linear", "sl_linear_backward", "embedding"} == CONTRACTS.keys() - public


@pytest.mark.parametrize("name", FUNCTIONS)
def test_contract_names_the_parameters_of_each_backend(name):
    for backend in backends_of(name):
        parameters = list(inspect.signature(getattr(of(backend).module, name)).parameters)
        assert parameters[: len(CONTRACTS[name].parameters)] == CONTRACTS[name].parameters, backend


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_right_arrays_in_every_layout(name, dtype):
    drawn = Drawn(name, dtype=dtype)
    if name.startswith("fused") and dtype == np.float64:
        said = f"{name}: backend emulator has kernels for float32, not for float64"
        assert compare(name, drawn.values, dtype=dtype) == ("refused", TypeError, said)
        return
    plain = compare(name, drawn.values, where="C", dtype=dtype)
    assert plain[:1] != ("refused",), plain
    for layout in LAYOUTS[1:]:
        written = {p.name for p in CONTRACTS[name].arrays if p.written}
        chosen = {n: layout for n in drawn.values if (n not in written or layout not in ("read-only", "repeated"))
                  and (n, layout) != ("A", "repeated")}  # which xA would not fit
        found = compare(name, drawn.values, chosen, layout, dtype)
        assert found[:1] != ("refused",), found
        if layout != "repeated":
            same(found, plain, layout)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_wrong_size(name):
    """Each array with an axis longer, shorter, missing or too many: refused by name, or right where it is a size of its own."""
    right = Drawn(name)
    for n, array in right.values.items():
        if not isinstance(array, np.ndarray):
            continue
        wrong = [np.concatenate([array, array[:1]]) if array.ndim else array[None], array[None], array[:-1], array[..., :1],
                 array[..., None], np.array(array.reshape(-1)[0]), array[:0]]
        for changed in wrong:
            found = compare(name, right.values | {n: changed}, where=f"{n} {changed.shape} for {array.shape}")
            assert found[:1] != ("refused",) or (found[1] in (ValueError, IndexError) and found[2].startswith(f"{name}: ")), found


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_wrong_dtype(name):
    right = Drawn(name)
    compare(name, right.values)  # its shapes are known now
    floating = [n for n, a in right.values.items() if isinstance(a, np.ndarray) and a.dtype == np.float32]
    for dtype in ("int64", "bool", "complex64", ">f4", "O") if floating else ():
        found = compare(name, right.values | {n: right.values[n].astype(dtype) for n in floating}, where=dtype)
        assert found[:2] == ("refused", TypeError)
        assert found[2].startswith(f"{name}: {floating[0]} must be floating, got ")
    for n, array in right.values.items():
        if not isinstance(array, np.ndarray):
            continue
        index = array.dtype.kind == "i"
        for dtype in ("float64", "float32", "float16", "int64", "int8", "uint64", "bool", "complex64", ">f4", "O", "U1"):
            if array.dtype == dtype:
                continue
            found = compare(name, right.values | {n: array.astype(dtype)}, where=f"{n} {dtype}")
            if index and dtype in ("int8", "uint64"):
                same(found, compare(name, right.values), dtype)
            elif n != CONTRACTS[name].arrays[0].name or dtype not in ("float16", "float64"):
                assert found[:2] == ("refused", TypeError), (n, dtype, found)
                assert n in found[2] or "must be" in found[2]
        for nothing in (None, 1.0, [1.0], "text", np.ma.ones(array.shape)):
            if nothing is None and n == "xA":
                continue
            for backend in ("numpy", *others(name)):
                if hasattr(of(backend), name):
                    with pytest.raises(TypeError, match=f"{name}: {n} must be an array, got"):
                        getattr(of(backend), name)(*(right.values | {n: nothing}).values())


def sizes_of(name):
    return sorted({a for p in CONTRACTS[name].arrays for a in p.axes if isinstance(a, str) and a != "d/2"})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nothing_along_an_axis(name):
    """Each size 0, alone and all together: the right (empty) result, or a refusal in words."""
    axes = sizes_of(name)
    for empty in [*([a] for a in axes), axes]:
        sizes = dict.fromkeys(empty, 0) | ({"d/2": 0} if "d" in empty else {}) | ({"width": 0} if "in" in empty else {})
        if {"in", "out"} & set(empty):
            sizes["nnz"] = 0
        drawn = Drawn(name, sizes)
        if "spmm" in name and "width" in empty:
            drawn = Drawn(name, sizes | {"in": 0, "nnz": 0})
        found = compare(name, drawn.values, where=f"{empty} are 0")
        if found[:1] == ("refused",):
            assert found[1] in (ValueError, IndexError)
            assert "0" in found[2]
    if any(p.open for p in CONTRACTS[name].arrays):
        for lead in ((), (0,), (2, 0)):
            compare(name, Drawn(name, {"...": lead, "blocks": 0 if 0 in lead else 1}).values, where=str(lead))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_random_faults(name):
    """Several faults at once, in any layout, of any size up to four: never garbage, never a crash."""
    rng = np.random.default_rng(7)
    for _ in range(25):
        sizes = {a: int(rng.integers(0, 5)) for a in SIZES if isinstance(a, str) and a != "..." and rng.random() < 0.2}
        drawn = Drawn(name, sizes, seed=int(rng.integers(1 << 30)))
        values = drawn.values | {n: None for n in drawn.values if n == "xA"}  # it would have to be that of the x that is drawn
        for n, array in values.items():
            if isinstance(array, np.ndarray) and array.ndim and rng.random() < 0.1:
                values[n] = array.swapaxes(0, -1)
        layouts = {n: LAYOUTS[rng.integers(len(LAYOUTS))] for n in values}
        compare(name, values, layouts, f"{sizes} {layouts}")


NUMBER_TYPES = (np.float64, np.float32, np.float16, Fraction, lambda x: np.array(x))


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if {"scale", "eps", "lr"} & set(CONTRACTS[n].parameters)])
def test_any_type_of_number(name):
    """A scale as np.float64 made float32 arrays float64."""
    drawn = Drawn(name)
    drawn.values |= {n: 0.5 for n in drawn.values if n in ("scale", "eps", "lr", "weight_decay")}
    if "betas" in drawn.values:
        drawn.values["betas"] = (0.5, 0.75)
    right = compare(name, drawn.values)
    numbers = [n for n, value in drawn.values.items() if isinstance(value, float | tuple) and n != "tables"]
    for n in numbers:
        value = drawn.values[n]
        for make in NUMBER_TYPES:
            changed = tuple(map(make, value)) if isinstance(value, tuple) else make(value)
            same(compare(name, drawn.values | {n: changed}), right, n)
        for wrong in (None, "1", 1j, [0.5, 0.5, 0.5], np.ones(2), np.float32):
            assert compare(name, drawn.values | {n: wrong})[:2] == ("refused", TypeError)


@pytest.mark.parametrize(("name", "change"), [
    ("adamw", {"t": 0}), ("adamw", {"t": -1}), ("adamw", {"betas": (1.0, 0.5)}), ("adam8bit", {"betas": (0.5, -0.1)}),
    ("embedding_backward", {"vocab": -1})])
def test_numbers_that_cannot_be(name, change):
    assert compare(name, Drawn(name).values | change)[:2] == ("refused", ValueError)


@pytest.mark.parametrize(("name", "sizes"), [
    ("attention", {"H": 3}), ("attention", {"K": 0}), ("attention", {"K": 0, "H": 0}), ("attention", {"Tq": 6}),
    ("attention", {"d": 0}), ("attention_backward", {"Tq": 6}), ("rope", {"d": 5}), ("rope", {"d": 6}),
    ("adam8bit", {"blocks": 2}), ("adam8bit", {"blocks": 0}), ("spmm", {"width": 5}),
    ("cross_entropy", {"V": 0, "N": 0}), ("rms_norm", {"D": 0})])
def test_sizes_apart(name, sizes):
    found = compare(name, Drawn(name, sizes).values)
    assert found[:2] == ("refused", ValueError)
    assert found[2].startswith(f"{name}: ")


def test_what_is_known_does_not_grow():
    for n in range(1100):
        CONTRACTS["swiglu"](*[np.ones((1, n), np.float32)] * 2)
    assert len(CONTRACTS["swiglu"].known) <= 1001


@pytest.mark.parametrize(("name", "which", "bad"), [
    ("cross_entropy", "labels", 7), ("cross_entropy", "labels", -1), ("cross_entropy_backward", "labels", 7),
    ("linear_cross_entropy", "labels", -101), ("embedding_backward", "ids", 7), ("embedding_backward", "ids", -1)])
def test_an_index_outside(name, which, bad):
    """Memory was written to where it pointed."""
    drawn = Drawn(name)
    drawn.values[which][2] = bad
    assert compare(name, drawn.values) == ("refused", IndexError, f"{name}: {which}: {bad} is outside 0..6"
                                           + " (and not -100)" * (which == "labels"))


@pytest.mark.parametrize("name", ["adamw", "adam8bit"])
def test_read_only_weights(name):
    found = compare(name, Drawn(name).values, {"p": "read-only"})
    assert found == ("refused", ValueError, f"{name}: p is read-only, and would be written to")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arrays_of_a_gpu_beside_those_of_the_host(name):
    with fake_cupy() as cupy:
        for backend in ("numpy", "cuda"):
            chosen, values = kernels.load(backend, cupy.zeros(1, "float32")), Drawn(name).values
            floating = [p.name for p in CONTRACTS[name].arrays if not p.of]
            if not hasattr(chosen, name) or len(floating) < 2:
                continue
            first = floating[0]
            with pytest.raises(TypeError, match=f"{name}: .* is an array of numpy, must be one of cupy"):
                getattr(chosen, name)(*(values | {first: cupy.asarray(values[first])}).values())


def test_arguments_by_name_and_too_few():
    x = np.ones((2, 3), np.float32)
    assert of("cpu").rms_norm(gain=x[0], x=x, eps=0.0)[0].tolist() == [[1, 1, 1]] * 2
    for args, named in (((x,), {}), ((x, x[0], 0.1, 1), {}), ((x,), {"gain": x[0], "epsilon": 0}), ((x, x[0]), {"x": x})):
        with pytest.raises(TypeError, match=r"rms_norm takes \(x, gain, eps\), got"):
            of("cpu").rms_norm(*args, **named)


# Supports


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_positions_of_few_bits(dtype):
    """Those of 20 x 30 in int8 overflowed in `transposed`, and dx was wrong."""
    index = np.array([3, 120, 7, 64], dtype)
    where, right = Support(index, (20, 30)), Support(index.astype(np.int64), (20, 30))
    for view in ("csr", "csc", "transposed", "rows", "cols"):
        a, b = (getattr(s, view) for s in (where, right))
        for mine, theirs in zip((a.index,) if view == "transposed" else a, (b.index,) if view == "transposed" else b):
            np.testing.assert_array_equal(mine, theirs)


def test_positions_beyond_31_bits():
    """int32 positions in a matrix whose own do not all fit them."""
    turned = Support(np.array([5, 2 * 10**6 + 3], np.int32), (10**4, 10**6)).transposed
    assert turned.index.tolist() == [5 * 10**4, 3 * 10**4 + 2]
    assert Support(np.array([900_000], np.int32), (10**4, 10**6)).transposed.index.tolist() == [9 * 10**9]


@pytest.mark.parametrize(("index", "error"), [
    (np.array([True]), TypeError), (np.array([1.0]), TypeError), ([1, 2], TypeError), (np.array([[1]]), ValueError),
    (np.array([600]), ValueError), (np.array([2**63 + 5], np.uint64), ValueError)])
def test_positions_that_cannot_be(index, error):
    with pytest.raises(error, match="support: "):
        Support(index, (20, 30))


def test_support_of_another_shape_or_none():
    drawn = Drawn("spmm").values
    for wrong in (np.arange(6), None, Support(np.arange(6), (4, 5)), Support(np.arange(3), (4, 6))):
        assert compare("spmm", drawn | {"support": wrong})[0] == "refused"
    assert compare("spmm", drawn | {"transpose": True})[0] == "refused"


def test_every_number_of_the_table_is_drawn():
    kinds = ("number", "betas", "step", "count", "flag")
    assert {n for c in CONTRACTS.values() for take, _, n in c.others if take.__name__ in kinds} == NUMBERS.keys()


# Mistakes in the check


MISTAKES = [
    (Contract.sizes, "lead < 0 or (lead and not p.open)", "lead < 0", test_one_wrong_size, "rms_norm"),
    (Contract.sizes, "if sizes.setdefault(axis, size) != size:", "if False:", test_one_wrong_size, "rms_norm"),
    (Contract.sizes, 'if p.open and sizes["..."] != shape[:lead]:', "if False:", test_one_wrong_size, "swiglu"),
    (Contract.sizes, "zip(p.axes, shape[lead:])", "zip(p.axes, shape)", test_right_arrays_in_every_layout, "rope", np.float32),
    (Contract.sizes, "array.dtype != wanted", "False", test_one_wrong_dtype, "linear"),
    (Contract.sizes, "p.dtype or dtype", "dtype", test_one_wrong_dtype, "adam8bit"),
    (Contract.sizes, 'array.dtype.kind not in "iu"', "False", test_one_wrong_dtype, "cross_entropy"),
    (Contract.floating, 'array.dtype.kind != "f"', "False", test_one_wrong_dtype, "rms_norm"),
    (Contract.floating, "not array.dtype.isnative", "False", test_one_wrong_dtype, "linear"),
    (Contract.check_type, "if not is_array(array):", "if False:", test_one_wrong_dtype, "linear"),
    (Contract.check_type, "if there != here and", "if False and", test_arrays_of_a_gpu_beside_those_of_the_host, "linear"),
    (Contract.__call__, "(type(a), a.shape, a.dtype)", "(type(a), a.dtype)", test_one_wrong_size, "linear"),
    (Contract.__call__, "(type(a), a.shape, a.dtype)", "(type(a), a.shape)", test_one_wrong_dtype, "linear"),
    (Contract.__call__, "if len(self.known) > 1000:", "if False:", test_what_is_known_does_not_grow),
    (Contract.number, "return float(value)", "return value", test_any_type_of_number, "dense"),
    (Contract.index, "array.min() >= 0", "True", test_an_index_outside, "embedding_backward", "ids", -1),
    (Contract.index, "array.max() < limit", "array.max() <= limit", test_an_index_outside, "cross_entropy", "labels", 7),
    (Contract.index, "array != IGNORE_LABEL", "array < IGNORE_LABEL", test_an_index_outside, "cross_entropy", "labels", -1),
    (Contract.writable, "raise ValueError", "ValueError", test_read_only_weights, "adamw"),
    (Contract.count, "value < least", "False", test_numbers_that_cannot_be, "adamw", {"t": 0}),
    (Contract.betas, "0 <= b1 < 1 and 0 <= b2 < 1", "0 <= b1 <= 1", test_numbers_that_cannot_be, "adamw", {"betas": (1.0, 0.5)}),
    (Contract.support, "if sizes.get(axis, size) != size:", "if False:", test_support_of_another_shape_or_none),
    (contract.heads, "if Tq > Tk", "if False", test_sizes_apart, "attention", {"Tq": 6}),
    (contract.heads, "or H % K", "", test_sizes_apart, "attention", {"H": 3}),
    (contract.halves, "2 * cos.shape[-1]", "2 * cos.shape[-1] + x.shape[-1] % 2", test_sizes_apart, "rope", {"d": 5}),
    (contract.blocks, "len(m_top) == count", "True", test_sizes_apart, "adam8bit", {"blocks": 2}),
    (contract.sides, "0 if transpose else 1", "1", test_support_of_another_shape_or_none),
    (Support.transposed.func, "2**31", "2**62", test_positions_beyond_31_bits),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: title(*m[:3]))
def test_rejects(mistake, killed):
    function, old, new, check, *args = mistake

    def checked():
        for each in CONTRACTS.values():
            each.known.clear()
        check(*args)

    with mutated(function, old, new):
        killed[title(function, old, new)] = rejected([checked])
    assert killed[title(function, old, new)]
    checked()
