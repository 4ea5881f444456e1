"""Damaged safetensors files of a run: an InputError that names the file, or arrays that the model and the optimizer can use.

A file's SHA-256 guards a run against chance; here nothing does, so every header and value reaches the code that reads it. A
header may claim what it likes: what it claims is not allocated (`fuzz_checks.within` leaves 1 GiB).
"""

import json
import struct
import warnings
from functools import cache

import numpy as np
import pytest
from fuzz_checks import INTS, TEXT, VALUES, accepted, as_json, damaged, edited, examples, must_notice, over, wrong
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from minisl import checkpoint
from minisl.methods import Method
from minisl.methods.lost import LOSTLinear
from minisl.methods.sltrain import SLLinear
from minisl.nn import LlamaConfig, Module
from minisl.optim.optimizer import Rule

TINY = LlamaConfig(hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, vocab_size=520)
OPTIONS = {"rank": 2, "delta": 0.2, "alpha": 4.0, "learned_scale": True, "algorithm": "auto"}
IDS = np.arange(12).reshape(2, 6) % 31
METHODS = {"sltrain": {}, "lost": {"columns": 0.5}, "sst": {}, "switchlora": {}, "structured_ffn": {}, "full": {}}
RULES = {  # method, options, --optimizer
    "adamw": ("full", {}, "adamw"), "adam8bit": ("full", {}, "adam8bit"), "galore": ("galore", {}, "adamw"),
    "dct": ("galore", {"projector": "dct", "at_change": "rotate"}, "adam8bit"), "apollo": ("apollo", {}, "adamw"),
    "frugal": ("frugal", {"split": "random"}, "adamw"), "spam": ("spam", {"density": 0.5}, "adamw"),
    "switchlora": ("switchlora", {}, "adamw"), "fira": ("fira", {}, "adamw"), "trp": ("trp", {}, "adamw"),
    "muon": ("muon", {}, "sgd")}
DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "C64", "I64", "I32", "I16", "I8", "U64", "U8",
          "BOOL", "f32", "F128", "", None, 7)
NUMBERS = st.sampled_from((-1, 0, 1, 2, 3, 8, 31, 100, 2**31, 2**32, 2**40, 2**60, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64,
                           -2**63, 1.0, 0.5, True, None, "8"))


def trained(method, options, base):
    """(model, optimizer) after an update."""
    method = Method(method, OPTIONS | options)
    model = method.build(TINY, np.random.default_rng(0))
    optimizer = method.optimizer(model, 1e-3, base)
    use(method, model, optimizer)
    return method, model, optimizer


def use(method, model, optimizer):
    with np.errstate(all="ignore"):
        method.before_step(model, optimizer, 2, 4)
        model.loss(IDS, IDS, 1 / IDS.size).backward()
        optimizer.step()
    model.zero_grad()


@cache
def model_file(name):
    _, model, _ = trained(name, METHODS[name], "adamw")
    return save(model.state_dict(), {"format": "pt", "step": "1"})


@cache
def optimizer_file(name):
    _, _, optimizer = trained(*RULES[name])
    return save(optimizer.state_dict(), {"format": "pt", "step": "1"})


def take_apart(content):
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8:8 + size]), content[8 + size:]


@st.composite
def other_arrays(draw, arrays):
    """Well-formed, but one or two arrays are missing, named, shaped or filled otherwise, or hold another kind of numbers."""
    arrays = dict(arrays)
    for _ in range(draw(st.integers(1, 2))):
        integers = [name for name, array in arrays.items() if array.dtype.kind in "iu"]
        name = draw(st.sampled_from(integers if integers and draw(st.booleans()) else sorted(arrays)))
        array = arrays[name]
        how = draw(st.sampled_from(("value", "value", "value", "kind", "kind", "shape", "missing", "named")))
        if how == "value" and array.size:
            value = draw(st.sampled_from((0, 1, -1, 7, 2**31 - 1, -(2**31), 2**62, float("nan"), float("inf"), 1e300, 255)))
            array = array.copy()
            with warnings.catch_warnings(action="ignore"):
                place = draw(st.sampled_from((0, -1, array.size // 2)))
                array.reshape(-1)[place] = np.array([value], np.float64).astype(array.dtype)[0]
        elif how == "kind":
            kind = draw(st.sampled_from(("int64", "float64", "uint8", "complex64", "bool", "float16", "uint64", "int8")))
            with warnings.catch_warnings(action="ignore"):
                array = array.astype(kind)
        elif how == "shape":
            array = draw(st.sampled_from((array[None], array.reshape(-1), array.T, array.reshape(-1)[:0], array.reshape(-1)[:1])))
        elif how == "named":
            arrays[draw(st.one_of(TEXT.filter(lambda text: text.isprintable()), st.sampled_from(sorted(arrays))))] = array
        arrays[name] = np.array(array, order="C")  # not ascontiguousarray, which gives a number an axis
        if how == "missing" and len(arrays) > 1:
            del arrays[name]
    return arrays


@st.composite
def tensor_files(draw, file, name):
    """A safetensors file with a header that is wrong in a way of its own, or with other numbers in it."""
    content = file(name)
    how = draw(st.sampled_from(("arrays", "arrays", "arrays", "header", "header", "entry", "entry", "length", "raw", "bytes")))
    if how == "arrays":
        return save(draw(other_arrays(load(content))), {"step": draw(st.sampled_from(("1", "-1", "x", "", "9" * 5000, "1e3")))})
    header, data = take_apart(content)
    names = [n for n in header if n != "__metadata__"]
    if how == "bytes":
        return draw(damaged(content))
    if how == "raw":
        return draw(st.one_of(st.binary(max_size=40), st.builds(lambda h: struct.pack("<Q", len(h)) + h, st.binary(max_size=40)),
                              VALUES.map(as_json).map(lambda h: struct.pack("<Q", len(h)) + h)))
    if how == "header":
        header = draw(edited(header))
    for _ in range(draw(st.integers(1, 3)) if how == "entry" else 0):
        entry = header[draw(st.sampled_from([n for n in names if n in header]))]
        what = draw(st.sampled_from(("dtype", "shape", "side", "offset", "name", "metadata", "missing", "same")))
        if what == "dtype":
            entry["dtype"] = draw(st.sampled_from(DTYPES))
        elif what == "shape":
            entry["shape"] = draw(st.one_of(st.lists(NUMBERS, max_size=4), st.just([1] * 70), st.just([0, 2**62]), INTS))
        elif what == "side" and isinstance(entry["shape"], list) and entry["shape"]:
            entry["shape"][draw(st.integers(0, len(entry["shape"]) - 1))] = draw(NUMBERS)
        elif what == "offset":
            entry["data_offsets"][draw(st.integers(0, 1))] = draw(st.one_of(NUMBERS, st.integers(0, 2000)))
        elif what == "name":
            header[draw(TEXT)] = dict(entry)
        elif what == "metadata":
            header["__metadata__"] = draw(st.one_of(st.dictionaries(TEXT, st.one_of(TEXT, VALUES), max_size=2), VALUES))
        elif what == "missing":
            header.pop(draw(st.sampled_from(names)), None)
        else:
            entry |= header[draw(st.sampled_from([n for n in names if n in header]))]
    text = as_json(header)
    if draw(st.integers(0, 4)) == 0:  # names that are there twice, text that is not UTF-8, spaces
        text = draw(st.sampled_from((text.replace(b"{", b"{" + as_json(names[0]) + b": " + as_json(header.get(names[0])) + b",",
                                                  1),
                                     text.replace(b"lm_head", b"lm_\xff\xfe"), text + b" " * 9, b" " + text,
                                     text.replace(b"a", b"\0", 1),
                                     text.replace(b"1", b"NaN", 1), text.replace(b"1", b"-1", 1), text.replace(b"1", b"1e3", 1))))
    length = len(text)
    if how == "length":
        length = draw(st.one_of(st.sampled_from((0, 1, 2**31, 100_000_001, 2**32, 2**63, 2**64 - 1)),
                                st.integers(0, 2 * len(text))))
    return struct.pack("<Q", length) + text + data


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("tensors") / "model.safetensors"


def check_weights(path, name, content):
    path.write_bytes(content)
    good, found = accepted(checkpoint.read_tensors, path, names=[path])
    if not good:
        return
    method, model, optimizer = trained(name, METHODS[name], "adamw")
    before = {k: v.copy() for k, v in model.state_dict().items()}
    good, _ = accepted(model.load_state_dict, found)
    if good:
        accepted(use, method, model, optimizer)
    else:
        after = model.state_dict()
        assert before.keys() == after.keys()
        assert all(np.array_equal(before[k], after[k]) for k in before)


def check_state(path, name, content):
    path.write_bytes(content)
    good, found = accepted(checkpoint.read_tensors, path, names=[path])
    if not good:
        return
    method, model, optimizer = trained(*RULES[name])
    rules = optimizer.rules
    good, _ = accepted(optimizer.load_state_dict, found)
    if good:
        accepted(use, method, model, optimizer)
    else:
        assert optimizer.rules is rules


@given(name=st.sampled_from(sorted(METHODS)), data=st.data())
@examples(80, 1000)
def test_weights(path, name, data):
    """Rejects: any exception but InputError; numbers of another kind, or positions of S outside its matrix, taken over."""
    check_weights(path, name, data.draw(tensor_files(model_file, name)))


@given(name=st.sampled_from(sorted(RULES)), data=st.data())
@examples(80, 1000)
def test_optimizer_state(path, name, data):
    check_state(path, name, data.draw(tensor_files(optimizer_file, name)))


@wrong((checkpoint.read_tensors, "(SafetensorError, OSError, ValueError, TypeError)", "OSError"),
       (Module.load_state_dict, 'not np.can_cast(state[name].dtype, array.dtype, "same_kind")', "False"),
       (Module.load_state_dict, "state[name].shape != array.shape", "False"),
       (Module.load_state_dict, "if missing or extra:", "if False:"))
def test_rejects_weights(mutant, path, killed):
    files = tensor_files(model_file, "sltrain")
    must_notice(mutant, lambda: over(files, lambda content: check_weights(path, "sltrain", content), 900), killed)


@pytest.mark.parametrize(("name", "mutant"), [
    ("sltrain", (SLLinear.check_buffer, "int(array.max()) < self.shape[0] * self.shape[1]", "True")),
    ("lost", (LOSTLinear.check_buffer, "columns[-1] < self.shape[1]", "True"))])
def test_rejects_places(name, mutant, path, killed):
    files = other_arrays(load(model_file(name))).map(save)
    must_notice(mutant, lambda: over(files, lambda content: check_weights(path, name, content)), killed)


@wrong((Rule.load_state_dict, 'not np.can_cast(state[name].dtype, array.dtype, "same_kind")', "False"),
       (Rule.load_state_dict, "state[name].min() < 0", "False"))
def test_rejects_optimizer_state(mutant, path, killed):
    must_notice(mutant, lambda: over(other_arrays(load(optimizer_file("frugal"))).map(save),
                                     lambda content: check_state(path, "frugal", content)), killed)


def test_unchanged_they_pass(path):
    """What the wrong implementations above fail, in the same words."""
    for name in ("sltrain", "lost"):
        over(tensor_files(model_file, name), lambda content, name=name: check_weights(path, name, content), 10)
    over(tensor_files(optimizer_file, "frugal"), lambda content: check_state(path, "frugal", content), 10)
