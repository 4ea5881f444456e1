"""Weights that come from elsewhere: what is read, into which method, and what is refused in one line."""

import json
import math
import os
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from method_checks import SETTINGS
from mutation import mutant_tests
from safetensors.numpy import save, save_file

from minisl import hf
from minisl.autograd import no_grad
from minisl.errors import InputError
from minisl.hf import factors, files, place, tensorfile
from minisl.methods import available, build_model, matrix
from minisl.nn import Llama, LlamaConfig

EXAMPLES = 2000 if os.environ.get("MINISL_FUZZ") == "full" else 150
CONFIG = LlamaConfig(16, 24, 2, 4, num_key_value_heads=2, vocab_size=32)
IDS = np.random.default_rng(7).integers(0, 32, (2, 9))
Q = "model.layers.0.self_attn.q_proj"
REFUSE = {"cola", "lost", "structured_ffn"}
NEED = {"sltrain", "sltrain_svd", "low_rank"}


def dense_weights(config=CONFIG, dtype="float32"):
    """Weights of a LLaMA, none at a special value."""
    rng = np.random.default_rng(1)
    return {name: (0.3 * rng.standard_normal(p.shape) + (p.ndim == 1)).astype(dtype)
            for name, p in Llama(config).named_parameters()}


def write_folder(folder, weights, config=CONFIG, **more):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict() | more))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_shards(folder, weights, count=3, config=CONFIG):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    names = {name: f"model-{i % count + 1:05d}-of-{count:05d}.safetensors" for i, name in enumerate(sorted(weights))}
    for file in set(names.values()):
        save_file({n: w for n, w in weights.items() if names[n] == file}, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def sl_model(method="sltrain", config=CONFIG, **changes):
    """A model whose B is not 0, as after training."""
    model = build_model(config, method, SETTINGS | changes, np.random.default_rng(5))
    for name, p in model.named_parameters():
        if name.endswith(("lora_B", "scaling")):
            p.data = np.random.default_rng(len(name)).standard_normal(p.shape).astype(p.dtype)
    return model


def built(method, config=CONFIG, **changes):
    return build_model(config, method, SETTINGS | changes, np.random.default_rng(3))


def logits(model):
    with no_grad():
        return model(IDS).data


def complaint(act):
    """The line that an act is refused with, or None."""
    try:
        act()
    except InputError as error:
        return str(error)


def refused(act, *words):
    said = complaint(act)
    assert said is not None
    assert "\n" not in said
    for word in words:
        assert word in said


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


# Reading


def bf16(values):
    """float32 to the two bytes of bfloat16, one number at a time and exactly: the nearest, ties to even."""
    codes = []
    for value in values:
        exponent = math.frexp(value)[1] - 8 if value else 0  # 8 significant bits
        rounded = round(value / 2.0**exponent) * 2.0**exponent  # Python's round is ties to even
        codes.append(int(np.float32(rounded).view(np.uint32)) >> 16)
    return np.array(codes, "<u2")


def raw_file(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def check_reads_dtypes(folder):
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.standard_normal(50) * 10.0**rng.integers(-9, 9, 50), [0, 1, -2, 1 + 2**-8, 1 + 3 * 2**-8]])
    values = values.astype(np.float32)
    codes = bf16(values.astype(float))
    path = raw_file(folder / "half", {"x": {"dtype": "BF16", "shape": [5, 11], "data_offsets": [0, 110]}}, codes.tobytes())
    read = tensorfile.TensorFile(path).read("x")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read.view(np.uint32).ravel(), codes.astype(np.uint32) << 16)
    assert (np.abs(read.ravel() - values) <= np.abs(values) / 2**8).all()
    many = {"f8": values.astype("f8"), "f4": values.reshape(5, 11), "i8": np.arange(6).reshape(1, 2, 3),
            "none": np.zeros((0, 3), "f4"), "one": np.float32([[7]]),
            "bool": np.array([True, False, True]), "u1": np.arange(5, dtype="u1")}
    (folder / "many").write_bytes(save(many))
    opened = tensorfile.TensorFile(folder / "many")
    assert_same({name: opened.read(name) for name in opened.entries}, many)
    (folder / "f2").write_bytes(save({"x": values[-5:].astype("f2")}))
    assert_same({"x": tensorfile.TensorFile(folder / "f2").read("x")}, {"x": values[-5:].astype("f2").astype("f4")})


def check_writes_what_it_reads(folder):
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.standard_normal(500) * 10.0**rng.integers(-4, 4, 500), 1 + np.arange(64) / 2**9]).astype("f4")
    for dtype, same in (("float32", values), ("float64", values.astype("f8")), ("float16", values.astype("f2").astype("f4")),
                        ("bfloat16", (bf16(values.astype(float)).astype("u4") << 16).view("f4"))):
        tensors = {"a.weight": (dtype, (2, 282), lambda: values.reshape(2, 282)), "i": ("int64", (3,), lambda: np.arange(3)),
                   "none": (dtype, (0, 2), lambda: np.zeros((0, 2), "f4"))}
        tensorfile.write(folder / dtype, tensors, {"format": "pt"})
        opened = tensorfile.TensorFile(folder / dtype)
        np.testing.assert_array_equal(opened.read("a.weight"), same.reshape(2, 282))
        np.testing.assert_array_equal(opened.read("i"), np.arange(3))
        assert opened.read("none").shape == (0, 2)
        assert opened.start % 8 == 0  # the library asks for it
    special = np.float32([np.nan, -np.nan, np.inf, -np.inf, -0.0])
    special[:1].view("u4")[...] = 0x7FFFFFFF
    tensorfile.write(folder / "special", {"x": ("bfloat16", (5,), lambda: special)}, {})
    np.testing.assert_array_equal(tensorfile.TensorFile(folder / "special").read("x"), special)
    for dtype, value in (("float16", 7e4), ("bfloat16", 3.4e38), ("float32", 1e300)):
        refused(lambda dtype=dtype, value=value: tensorfile.write(
            folder / "large", {"x": (dtype, (1,), lambda: np.array([value]))}, {}), f"--dtype {dtype}", "x has numbers")


def test_reads_dtypes(tmp_path):
    check_reads_dtypes(tmp_path)


def test_writes_what_it_reads(tmp_path):
    check_writes_what_it_reads(tmp_path)


def test_the_library_reads_what_is_written(tmp_path):
    from safetensors.numpy import load_file

    values = np.random.default_rng(0).standard_normal((3, 4)).astype("f4")
    tensorfile.write(tmp_path / "x", {"w": ("float32", (3, 4), lambda: values), "i": ("int64", (2,), lambda: np.arange(2))},
                     {"format": "pt"})
    assert_same(load_file(tmp_path / "x"), {"w": values, "i": np.arange(2)})


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(("header", "data", "length", "said"), [
    (b"", b"", None, "not JSON"),
    (b"[]", b"", None, "not a JSON object"),
    (b"{", b"", None, "not JSON"),
    (b"\xff\xfe", b"", None, "not JSON"),
    (b"[" * 100_000, b"", None, "not JSON"),
    (b'{"x":' + b"9" * 5000 + b"}", b"", None, "not JSON"),
    (b'{"x":1,"x":2}', b"", None, "a name occurs twice"),
    ({"x": GOOD}, b"12345678", 2**63, "header would be"),
    ({"x": GOOD}, b"12345678", 10**7, "header would be"),
    ({"x": GOOD}, b"1234567", None, "needs 8 bytes"),
    ({"x": GOOD}, b"123456789", None, "end at byte 8, its data at 9"),
    ({"x": GOOD, "y": GOOD}, b"12345678", None, "'y' begins at byte 0"),
    ({"x": GOOD, "y": GOOD | {"data_offsets": [12, 20]}}, bytes(20), None, "'y' begins at byte 12"),
    ({"x": GOOD | {"dtype": "F8_E4M3"}}, bytes(8), None, "'F8_E4M3'; allowed: F64"),
    ({"x": GOOD | {"dtype": ["F32"]}}, bytes(8), None, "allowed: F64"),
    ({"x": GOOD | {"shape": [-2]}}, bytes(8), None, "cannot be"),
    ({"x": GOOD | {"shape": [2.0]}}, bytes(8), None, "cannot be"),
    ({"x": GOOD | {"shape": [True, 2]}}, bytes(8), None, "cannot be"),
    ({"x": GOOD | {"shape": None}}, bytes(8), None, "lacks"),
    ({"x": GOOD | {"shape": [2**62, 2**62]}}, bytes(8), None, "needs"),
    ({"x": GOOD | {"shape": [1] * 99}}, bytes(8), None, "cannot be"),
    ({"x": GOOD | {"data_offsets": [8, 0]}}, bytes(8), None, "needs 8 bytes"),
    ({"x": GOOD | {"data_offsets": [0, 8, 9]}}, bytes(8), None, "lacks"),
    ({"x": 5}, bytes(8), None, "lacks"),
    ({"x": {}}, bytes(8), None, "lacks"),
])
def test_header_that_cannot_be(tmp_path, header, data, length, said):
    path = raw_file(tmp_path / "bad.safetensors", header, data, length)
    refused(lambda: tensorfile.TensorFile(path), "bad.safetensors", said)


def test_file_that_shrinks_after_its_header_was_read(tmp_path):
    path = raw_file(tmp_path / "x", {"x": GOOD}, bytes(8))
    opened = tensorfile.TensorFile(path)
    path.write_bytes(path.read_bytes()[:-1])
    refused(lambda: opened.read("x"), "ends early")


def check_any_bytes(content):
    """A folder whose model.safetensors has these bytes is read or refused in one line, and nothing is left beside it."""
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder), {})
        (Path(folder) / "model.safetensors").write_bytes(content)
        before = sorted(os.listdir(folder))
        model = Llama(CONFIG, np.random.default_rng(0))
        weights = model.state_dict()
        said = complaint(lambda: hf.start_from(model, folder))
        if said is not None:
            assert 0 < len(said) < 3000
            assert_same(model.state_dict(), weights)
        assert sorted(os.listdir(folder)) == before


def test_any_header_is_read_or_refused():
    pytest.importorskip("hypothesis")
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    whole = save(dense_weights())
    length = int.from_bytes(whole[:8], "little")
    right = json.loads(whole[8:8 + length])
    numbers = st.integers() | st.integers(-2, 70) | st.sampled_from([2**31, 2**63, 2**64, -2**63])
    junk = st.recursive(st.none() | st.booleans() | numbers | st.floats() | st.text(max_size=8),
                        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
                        max_leaves=8)
    entry = st.fixed_dictionaries({}, optional={
        "dtype": st.sampled_from([*tensorfile.STORED, "F8", ""]) | junk, "shape": st.lists(numbers, max_size=4) | junk,
        "data_offsets": st.lists(numbers, min_size=2, max_size=2) | junk})
    names = st.sampled_from([*right, "__metadata__", f"{Q}.lora_A"]) | st.text(max_size=20)

    @st.composite
    def files(draw):
        kind = draw(st.sampled_from(["noise", "header", "entries", "flip", "cut", "length"]))
        if kind == "noise":
            return draw(st.binary(max_size=300))
        if kind == "header":
            text = json.dumps(draw(st.dictionaries(names, entry | junk, max_size=5) | junk)).encode()
            return len(text).to_bytes(8, "little") + text + draw(st.binary(max_size=100))
        if kind == "entries":  # a good file with some entries changed
            changed = right | draw(st.dictionaries(names, entry | junk, min_size=1, max_size=2))
            text = json.dumps(changed).encode()
            return len(text).to_bytes(8, "little") + text + whole[8 + length:]
        data = bytearray(whole)
        if kind == "flip":
            data[draw(st.integers(0, 8 + length - 1))] ^= draw(st.integers(1, 255))
        elif kind == "cut":
            del data[draw(st.integers(0, len(data) - 1)):]
        else:
            data[:8] = draw(st.integers(0, 2**64 - 1)).to_bytes(8, "little")
        return bytes(data)

    @settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=EXAMPLES < 2000,
              suppress_health_check=list(HealthCheck))
    @given(files())
    def any_header(content):
        check_any_bytes(content)

    any_header()


def test_a_flipped_header_byte_by_byte():
    whole = save(dense_weights(LlamaConfig(4, 4, 1, 1, vocab_size=3)))
    for i in range(0, 8 + int.from_bytes(whole[:8], "little"), 7):
        check_any_bytes(whole[:i] + bytes([whole[i] ^ 0x55]) + whole[i + 1:])


# Folders


def check_shards(folder):
    weights = dense_weights()
    assert_same(dict(hf.read_weights(write_folder(folder / "one", weights))), weights)
    assert_same(dict(hf.read_weights(write_shards(folder / "many", weights))), weights)


def test_one_file_and_many_are_the_same(tmp_path):
    check_shards(tmp_path)


def change_index(folder, **changes):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] |= changes
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("name", [
    "../other.safetensors", "/etc/passwd", "/tmp/x.safetensors", "a/b.safetensors", "..", "", "model.bin", "a\\b.safetensors",
    "x\x00.safetensors", "ü.safetensors", 300 * "a" + ".safetensors", None, 5, ["model.safetensors"], "\ud800.safetensors",
    "model.safetensors\n"])
def test_index_that_names_a_file_elsewhere(tmp_path, name):
    write_shards(tmp_path / "hf", dense_weights())
    save_file(dense_weights(), tmp_path / "other.safetensors")
    change_index(tmp_path / "hf", **{"lm_head.weight": name})
    refused(lambda: hf.read_weights(tmp_path / "hf"), "index.json", "'lm_head.weight' would be in")


def check_links(folder):
    """A link out of the folder is refused, one within it and the cache's blobs are not."""
    weights = dense_weights()
    hub = folder / "models--a--b"
    cached = write_folder(hub / "snapshots" / "0123", weights)
    (hub / "blobs").mkdir()
    (cached / "model.safetensors").rename(hub / "blobs" / "abc")
    (cached / "model.safetensors").symlink_to(Path("..", "..", "blobs", "abc"))
    assert_same(dict(hf.read_weights(cached)), weights)
    other = write_folder(folder / "hf", weights)
    (other / "model.safetensors").rename(folder / "secret.safetensors")
    (other / "model.safetensors").symlink_to(folder / "secret.safetensors")
    refused(lambda: hf.read_weights(other), "model.safetensors", "leads out of its folder")
    (other / "config.json").rename(folder / "config.json")
    (other / "config.json").symlink_to(folder / "config.json")
    refused(lambda: hf.read_config(other), "config.json", "leads out of its folder")
    again = write_folder(folder / "within", weights)
    (again / "model.safetensors").rename(again / "w")
    (again / "model.safetensors").symlink_to(again / "w")
    assert_same(dict(hf.read_weights(again)), weights)
    (folder / "shortcut").symlink_to(again)
    assert_same(dict(hf.read_weights(folder / "shortcut")), weights)


@pytest.mark.skipif(os.name == "nt", reason="links need a permission there")
def test_links(tmp_path):
    check_links(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_is_no_file_to_wait_for(tmp_path):
    folder = write_folder(tmp_path, {})
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    refused(lambda: hf.read_weights(folder), "no such file")


def test_index_that_does_not_fit_its_shards(tmp_path):
    folder = write_shards(tmp_path, dense_weights(), 2)
    refused(lambda: (change_index(folder, extra="model-00001-of-00002.safetensors"), hf.read_weights(folder)),
            "'extra' should be in", "lacks it")
    write_shards(tmp_path, dense_weights(), 2)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    del index["weight_map"]["model.norm.weight"]
    path.write_text(json.dumps(index))
    refused(lambda: hf.read_weights(folder), "'model.norm.weight' is not listed")
    write_shards(tmp_path, dense_weights(), 2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(lambda: hf.read_weights(folder), "model-00002-of-00002.safetensors", "no such file")
    for content in ("{}", '{"weight_map": []}', '{"weight_map": {}}'):
        path.write_text(content)
        refused(lambda: hf.read_weights(folder), "has no weight_map")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "last.ckpt", "optimizer.pt"])
def test_pickle_is_refused_with_a_reason(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    for path in (tmp_path, tmp_path / name):
        refused(lambda path=path: hf.read_weights(path), name, "a pickle, which can run any code", "weights_only=True",
                "safetensors")
    refused(lambda: hf.read_config(tmp_path / name), "a pickle")


def test_safetensors_beside_a_pickle_is_read(tmp_path):
    (write_folder(tmp_path, dense_weights()) / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    assert_same(dict(hf.read_weights(tmp_path)), dense_weights())


def test_folder_that_is_none(tmp_path):
    for act in (hf.read_config, hf.read_weights):
        refused(lambda act=act: act(tmp_path / "nowhere"), "--from-hf", "nowhere: no such folder")
    refused(lambda: hf.read_config(tmp_path), "config.json: no such file")
    refused(lambda: hf.read_weights(tmp_path), "has neither model.safetensors nor")
    refused(lambda: hf.tokenizer_file(tmp_path), "tokenizer.json: no such file", "--tokenizer")
    write_folder(tmp_path, {}, model_type="qwen2")
    refused(lambda: hf.read_config(tmp_path), "model_type is 'qwen2'; those understood are llama, mistral")


def test_config_is_the_model_s(tmp_path):
    assert hf.read_config(write_folder(tmp_path, {})) == CONFIG


def read_back(folder, weights, config=CONFIG, method="full", **more):
    write_folder(folder, weights, config)
    model = built(method, config)
    hf.start_from(model, folder, **more)
    return model


@pytest.mark.parametrize(("change", "words"), [
    ({"model.norm.weight": None}, ("model.norm.weight is missing",)),
    ({f"{Q}.weight": None}, (f"{Q}.weight is missing",)),
    ({"lm_head.weight": None}, ("lm_head.weight is missing",)),
    ({f"{Q}.bias": np.zeros(16, "f4")}, (f"{Q}.bias", "no part of this model")),
    ({"model.layers.2.mlp.up_proj.weight": np.zeros((24, 16), "f4")}, ("layers.2", "no part of this model")),
    ({f"{Q}.weight": np.zeros((16, 15), "f4")}, (f"{Q}.weight", "(16, 15)", "(16, 16)")),
    ({"model.norm.weight": np.zeros((16, 1), "f4")}, ("model.norm.weight", "(16, 1)", "(16,)")),
    ({f"{Q}.weight": np.zeros((16, 16), "i4")}, (f"{Q}.weight", "I32")),
    ({"model.embed_tokens.weight": None}, ("model.embed_tokens.weight, found 0",)),
    ({"copy.model.embed_tokens.weight": np.zeros((32, 16), "f4")}, ("found 2",)),
])
def test_tensors_that_do_not_fit(tmp_path, change, words):
    weights = {k: v for k, v in (dense_weights() | change).items() if v is not None}
    write_folder(tmp_path, weights)
    model = built("full")
    before = model.state_dict()
    refused(lambda: hf.start_from(model, tmp_path), *words)
    assert_same(model.state_dict(), before)


# Into models


def check_every_method(folder, only=None):
    """Exactly W where a method can hold it; factors with --decompose; or one line."""
    weights = dense_weights()
    write_folder(folder, weights)
    dense = read_back(folder / "full", weights)
    assert_same(dense.state_dict(), weights)
    for method in only or available():
        model = built(method)
        if method in REFUSE:
            refused(lambda model=model: hf.start_from(model, folder, "random", np.random.default_rng(0)),
                    "cannot start from a dense matrix")
            continue
        if method in NEED:
            refused(lambda model=model: hf.start_from(model, folder), "q_proj.weight' is dense", "--decompose random")
            errors = hf.start_from(model, folder, "random")
            assert list(errors) == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        else:
            assert hf.start_from(model, folder, None, np.random.default_rng(0)) == {}
            np.testing.assert_allclose(logits(model), logits(dense), rtol=0, atol=2e-5, err_msg=method)
        for name, array in model.state_dict().items():
            if not matrix(name):
                np.testing.assert_array_equal(array, weights[name])


def test_every_method(tmp_path):
    check_every_method(tmp_path)


def test_every_method_trains_on_from_there(tmp_path):
    """A first update of the methods that reorganise their matrices leaves the function near where it was."""
    from minisl.methods import Method

    write_folder(tmp_path, dense_weights())
    dense = read_back(tmp_path / "full", dense_weights())
    for name in ("relora", "switchlora", "sst", "galore"):
        method = Method(name, SETTINGS)
        model = method.build(CONFIG, np.random.default_rng(3))
        hf.start_from(model, tmp_path, None, np.random.default_rng(0))
        optimizer = method.optimizer(model, 1e-9)
        method.before_step(model, optimizer, 9, 10)
        model.loss(IDS[:, :-1], IDS[:, 1:]).backward()
        optimizer.step()
        np.testing.assert_allclose(logits(model), logits(dense), rtol=0, atol=1e-4, err_msg=name)


def check_tied(folder):
    config = LlamaConfig(16, 24, 1, 4, vocab_size=32, tie_word_embeddings=True)
    weights = dense_weights(config)
    assert "lm_head.weight" not in weights
    assert_same(read_back(folder / "tied", weights, config).state_dict(), weights)
    both = weights | {"lm_head.weight": weights["model.embed_tokens.weight"]}
    assert_same(read_back(folder / "both", both, config).state_dict(), weights)
    other = weights | {"lm_head.weight": weights["model.embed_tokens.weight"] + 1}
    refused(lambda: read_back(folder / "other", other, config), "lm_head.weight", "tied")


def test_tied_head(tmp_path):
    check_tied(tmp_path)


def test_old_buffers_are_ignored(tmp_path):
    old = dense_weights() | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, "f4")}
    assert_same(read_back(tmp_path, old).state_dict(), dense_weights())


def test_a_tensor_at_a_time(tmp_path):
    """Reading takes the memory of the largest tensor, not of the model."""
    import tracemalloc

    config = LlamaConfig(64, 96, 12, 4, vocab_size=32)
    write_folder(tmp_path, dense_weights(config, "float16"), config)
    model = built("full", config)
    total = sum(a.nbytes for a in model.state_dict().values())
    tracemalloc.start()
    hf.start_from(model, tmp_path)
    new, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - new < 0.2 * total


# SVD and residual


def check_decompose():
    rng = np.random.default_rng(0)
    for m, n, rank, alpha in ((12, 20, 4, 8.0), (20, 12, 5, 3.0), (7, 7, 7, 1.0)):
        W = rng.standard_normal((m, n))
        index = np.sort(rng.choice(m * n, 30, replace=False))
        B, A, same, v = hf.decompose(W, rank, alpha, index)
        assert (B.shape, A.shape) == ((m, rank), (rank, n))
        np.testing.assert_array_equal(same, index)
        L, sigma = alpha / rank * B @ A, np.linalg.svd(W, compute_uv=False)
        assert np.linalg.norm(W - L) == pytest.approx(np.linalg.norm(sigma[rank:]), abs=1e-12)  # Eckart-Young
        np.testing.assert_allclose(B.T @ B, A @ A.T, atol=1e-12)
        full = L.copy()
        full.reshape(-1)[index] += v
        np.testing.assert_allclose(full.reshape(-1)[index], W.reshape(-1)[index], atol=1e-12)
        off = np.delete(np.arange(m * n), index)
        np.testing.assert_array_equal(full.reshape(-1)[off], L.reshape(-1)[off])
        B, A, index, v = hf.decompose(W, rank, alpha, 9)
        rest = np.abs(W - alpha / rank * B @ A).reshape(-1)
        assert (np.diff(index) > 0).all()
        assert len(index) == 9
        assert rank == min(m, n) or rest[index].min() >= np.delete(rest, index).max()


def check_start_of_factors(folder, **changes):
    """W' is the best of rank r, plus the residual on the support: the reported error is that of to_dense, and largest loses
    less than random."""
    weights = dense_weights()
    write_folder(folder, weights)
    lost = {}
    for method, choice in (("sltrain", "random"), ("sltrain", "largest"), ("low_rank", "random")):
        model = built(method, **changes)
        before = dict(model.named_modules())[Q].sparse_index.copy() if method == "sltrain" else None
        errors = hf.start_from(model, folder, choice)
        layers = dict(model.named_modules())
        sums = {}
        for path, layer in layers.items():
            if hasattr(layer, "to_dense"):
                W = weights[f"{path}.weight"]
                B, A = layer.lora_B.data, layer.lora_A.data
                s = np.tanh(1.0) if hasattr(layer, "scaling") else 2.0
                best = np.linalg.svd(W)
                np.testing.assert_allclose(s * B @ A, (best[0][:, :3] * best[1][:3]) @ best[2][:3], atol=1e-5)
                one = sums.setdefault(matrix(path), np.zeros(2))
                one += np.linalg.norm(W - layer.to_dense())**2, np.linalg.norm(W)**2
                if method == "sltrain":
                    np.testing.assert_allclose(layer.to_dense().flat[layer.sparse_index], W.flat[layer.sparse_index], atol=1e-6)
        for name, (left, whole) in sums.items():
            assert errors[name] == pytest.approx(np.sqrt(left / whole), rel=1e-4)
        assert set(errors) == set(sums)
        if choice == "random" and method == "sltrain":
            np.testing.assert_array_equal(layers[Q].sparse_index, before)
        lost[method, choice] = sum(errors.values())
    assert lost["sltrain", "largest"] < lost["sltrain", "random"] < lost["low_rank", "random"]
    assert "q_proj" in hf.words(errors)


def test_decompose():
    check_decompose()


def test_start_of_factors(tmp_path):
    check_start_of_factors(tmp_path)
    check_start_of_factors(tmp_path, learned_scale=True)


def test_exact_where_the_factors_can_be(tmp_path):
    """With full rank nothing is lost, whatever alpha and the scale."""
    write_folder(tmp_path, dense_weights())
    for changes in ({"alpha": 1.0}, {"alpha": 64.0}, {"learned_scale": True}):
        model = built("sltrain", rank=8, **changes)
        errors = hf.start_from(model, tmp_path, "random")
        assert errors["k_proj"] < 1e-6  # 8 x 16
        assert errors["q_proj"] > 1e-2


def test_decompose_of_what_cannot_be(tmp_path):
    refused(lambda: hf.decompose(np.eye(3), 4, 1.0, 0), "rank is 4", "3 x 3")
    refused(lambda: hf.decompose(np.eye(3), 2, 0.0, 0), "alpha 0.0")
    bad = dense_weights()
    bad[f"{Q}.weight"][0, 0] = np.nan
    write_folder(tmp_path, bad)
    refused(lambda: hf.start_from(built("sltrain"), tmp_path, "random"), f"{Q}.weight", "not finite")


# The public layout of SLTrain


def public_folder(folder, model, prefix="", alpha=6.0, index="int64", **more):
    state = {prefix + name: a.astype(index) if name.endswith("sparse_index") else a for name, a in model.state_dict().items()}
    state[f"{prefix}model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, "f4")
    write_folder(folder, state, **more)
    if alpha is not None:
        (folder / "splora_config.json").write_text(json.dumps({
            "r": 3, "lora_alpha": alpha, "lora_dropout": 0.0, "sp_ratio": 0.3, "target_modules": ["attn", "mlp"],
            "trainable_scaling": False}))
    return folder


def check_public_layout(folder):
    for i, (prefix, changes) in enumerate([("", {}), ("wrapped_model.", {}), ("module.wrapped_model.", {"learned_scale": True})]):
        model = sl_model(**changes)
        where = public_folder(folder / str(i), model, prefix)
        assert hf.sl_settings(where) == {"rank": 3, "delta": 0.3, "learned_scale": bool(changes), "alpha": 6.0}
        for method in ("sltrain", "sltrain_svd"):
            again = built(method, **changes)
            assert hf.start_from(again, where) == {}
            assert_same(again.state_dict(), model.state_dict())
        dense = built("full")
        hf.start_from(dense, where)
        np.testing.assert_allclose(logits(dense), logits(model), atol=1e-4, rtol=1e-4)
        assert np.abs(logits(model) - logits(built("full"))).max() > 0.1


def test_public_layout(tmp_path):
    check_public_layout(tmp_path)


def settings(folder, method="sltrain", **changes):
    return SimpleNamespace(**{"from_hf": str(folder), "method": method, "rank": 128, "delta": 0.03, "alpha": 32.0,
                              "learned_scale": False} | changes)


def check_adopt(folder):
    where = public_folder(folder / "a", sl_model())
    one = settings(where)
    hf.adopt(one, set())
    assert (one.rank, one.delta, one.alpha, one.learned_scale) == (3, 0.3, 6.0, False)
    hf.adopt(settings(where, rank=3, delta=0.3, alpha=6.0), {"rank", "delta", "alpha"})
    for name, value in (("rank", 4), ("delta", 0.2), ("alpha", 5.0), ("learned_scale", True)):
        refused(lambda name=name, value=value: hf.adopt(settings(where, **{name: value}), {name}),
                f"--{name.replace('_', '-')} {value}")
    other = settings(where, "full")
    hf.adopt(other, set())
    assert other == settings(where, "full")

    where = public_folder(folder / "b", sl_model(), alpha=None)
    assert "alpha" not in hf.sl_settings(where)
    refused(lambda: hf.adopt(settings(where), set()), "give --alpha")
    one = settings(where, alpha=7.0)
    hf.adopt(one, {"alpha"})
    assert (one.rank, one.delta, one.alpha) == (3, 0.3, 7.0)
    refused(lambda: hf.start_from(built("full"), where), "alpha, without which there is no W")
    for method in ("full", "low_rank", "relora"):
        refused(lambda method=method: hf.adopt(settings(where, method), set()), "give --alpha")
        two = settings(where, method, alpha=6.0)
        hf.adopt(two, {"alpha"})
        assert two == settings(where, method, alpha=6.0)
    for alpha, found in ((6.0, True), (7.0, False)):
        hf.start_from(dense := built("full"), where, alpha=alpha)
        assert np.allclose(logits(dense), logits(sl_model()), atol=1e-4, rtol=1e-4) == found
    hf.start_from(dense := built("full"), folder / "a", alpha=7.0)
    np.testing.assert_allclose(logits(dense), logits(sl_model()), atol=1e-4, rtol=1e-4, err_msg="the folder's alpha counts")
    learned = public_folder(folder / "e", sl_model(learned_scale=True), alpha=None)
    hf.adopt(settings(learned, "full"), set())
    hf.start_from(built("full"), learned)

    where = public_folder(folder / "c", sl_model(), alpha=None, minisl={"options": {"alpha": 9, "delta": 0.3}})
    assert hf.sl_settings(where)["alpha"] == 9.0
    hf.adopt(dense := settings(write_folder(folder / "d", dense_weights())), set())
    assert dense.rank == 128


def test_adopt(tmp_path):
    check_adopt(tmp_path)


@pytest.mark.parametrize("junk", [5, [], "x", {"options": 5}, {"options": {"alpha": "6"}}, {"options": {"alpha": -1}},
                                  {"options": {"alpha": float("inf")}}, {"options": {"delta": "x"}}])
def test_a_key_of_ours_that_is_junk(tmp_path, junk):
    where = public_folder(tmp_path, sl_model(), alpha=None, minisl=junk)
    said = complaint(lambda: hf.sl_settings(where))
    assert said is None or "alpha is" in said
    assert said or "alpha" not in hf.sl_settings(where)


def test_density():
    for delta in (0.01, 0.03, 0.05, 0.1, 0.3, 0.123):
        counts = {(int(delta * size), size) for size in (16 * 16, 8 * 16, 24 * 16, 512 * 512, 512 * 1376, 4096 * 11008)}
        assert factors.density(counts) == delta
        assert factors.density(counts, delta) == delta
    assert factors.density({(3, 100), (30, 100)}) is None
    assert factors.density({(3, 100)}, 0.5) == 0.035
    assert factors.density({(3, 100)}, "x") == 0.035


@pytest.mark.parametrize(("name", "array", "words"), [
    (f"{Q}.sparse_index", np.full(76, 256), ("sparse_index", "256")),
    (f"{Q}.sparse_index", np.full(76, -1), ("sparse_index", "-1")),
    (f"{Q}.sparse_index", np.zeros(76, "f4"), ("sparse_index", "F32")),
    (f"{Q}.sparse_index", np.zeros(75, "i8"), ("do not fit each other",)),
    (f"{Q}.sparse_value", None, ("without a", "sparse_value")),
    (f"{Q}.lora_B", None, ("without a", "lora_B")),
    (f"{Q}.lora_A", np.zeros((3, 15), "f4"), ("(16, 15)", "(16, 16)")),
    (f"{Q}.lora_A", np.zeros((4, 16), "f4"), ("do not fit each other",)),
    (f"{Q}.lora_A", np.zeros(48, "f4"), ("do not fit each other",)),
    (f"{Q}.scaling", np.ones(1, "f4"), ("learned-scale",)),
    (f"{Q}.weight", np.ones((16, 16), "f4"), (f"{Q}.", "no part of this model")),
])
def test_factors_that_do_not_fit(tmp_path, name, array, words):
    where = public_folder(tmp_path, sl_model())
    state = dict(hf.read_weights(where)) | {name: array}
    write_folder(tmp_path, {k: v for k, v in state.items() if v is not None})
    refused(lambda: hf.start_from(built("sltrain"), where), *words)


def test_factors_of_another_rank(tmp_path):
    where = public_folder(tmp_path, sl_model())
    refused(lambda: hf.start_from(built("sltrain", rank=4), where), "--rank")
    refused(lambda: hf.start_from(built("sltrain", delta=0.2), where), "--delta")
    refused(lambda: hf.start_from(built("sltrain", learned_scale=True), where), "--learned-scale")
    mixed = dict(hf.read_weights(where))
    mixed[f"{Q}.lora_A"], mixed[f"{Q}.lora_B"] = np.ones((2, 16), "f4"), np.ones((16, 2), "f4")
    write_folder(tmp_path, mixed)
    refused(lambda: hf.sl_settings(where), "differ in rank")


# Wrong implementations


def in_folder(check):
    def run():
        with tempfile.TemporaryDirectory() as folder:
            check(Path(folder))

    return run


test_mutants = mutant_tests([
    (tensorfile.TensorFile.read, "<< 16", "<< 15"),
    (tensorfile.TensorFile.read, ", offset=self.start + begin", ", offset=begin"),
    (tensorfile.TensorFile.read, 'raw = raw.astype("<f4")', "pass"),
    (tensorfile.stored, "+ (bits >> 16 & 1)", ""),  # ties up
    (tensorfile.stored, "+ np.uint32(0x7FFF) + (bits >> 16 & 1)", ""),  # cut off
    (tensorfile.stored, "bits | 0x400000", "nearest"),
    (tensorfile.stored, "fits = np.isfinite(small)", "fits = np.ones(small.shape, bool)"),
    (tensorfile.write, "math.prod(shape) * itemsize(dtype)", "math.prod(shape) * 4"),
    (tensorfile.write, "-len(text) % 8", "len(text) % 8"),
    (files.inside, "if not (target.is_relative_to(base)", "if False and not (target.is_relative_to(base)"),
    (files.inside, "or target.is_relative_to(blobs)", ""),
    (files.read_weights, "name.removeprefix(prefix)", "name"),
    (files.read_weights, 'if not name.endswith("rotary_emb.inv_freq")', ""),
    (files.shards, "for name, file in where.items()}", "for name, file in list(where.items())[1:]}"),
    (place.check_names, "if tied and", "if False and"),
    (place.check_names, "if not np.array_equal(", "if False and not np.array_equal("),
    (place.place, "W = W - (layer.to_dense() - dense)", "pass"),  # B A of switchlora on top of W
    (place.place, "scale * len(layer.lora_A.data)", "scale"),  # alpha/r forgotten
    (place.place, 'nnz if choice == "largest" else index', "index"),
    (place.place, 'nnz if choice == "largest" else index', "nnz"),
    (place.place, "fill(layer.sparse_value, v)", "pass"),
    (place.place, "layer.sparse_index = index.astype(layer.sparse_index.dtype)", "pass"),
    (place.start_from, "sums[1] += float(np.vdot(W, W))", "sums[1] = float(np.vdot(W, W))"),
    (place.start_from, "sums[0] += lost", "sums[0] = lost"),
    (place.start_from, "math.sqrt(lost / whole)", "lost / whole"),
    (place.copy_factors, "layer.sparse_index = index.astype(layer.sparse_index.dtype)", "pass"),
    (place.copy_factors, 'for part in ("lora_B", "lora_A", "sparse_value"):', 'for part in ("lora_B", "lora_A"):'),
    (place.copy_factors, "layer.scaling.data[...] = one_number", "one_number"),
    (factors.decompose, "sigma[:rank] / scale", "sigma[:rank] * scale"),
    (factors.decompose, "U[:, :rank] * root, root[:, None] * Vt[:rank]", "U[:, :rank] * root * root, Vt[:rank]"),  # not balanced
    (factors.decompose, "W - scale * B @ A", "W"),
    (factors.decompose, "W - scale * B @ A", "W - B @ A"),
    (factors.decompose, "-np.abs(residual)", "np.abs(residual)"),
    (factors.decompose, "-np.abs(residual)", "-residual"),
    (factors.product, "scale = alpha / len(A)", "scale = alpha"),
    (factors.product, "alpha_of(folder) or alpha", "alpha_of(folder)"),
    (factors.product, "alpha_of(folder) or alpha", "alpha or alpha_of(folder)"),
    (factors.unscaled, 'f"{layer}.scaling" not in weights', "True"),
    (factors.unscaled, "and alpha_of(folder) is None", ""),
    (factors.adopt, "not keeps and unscaled(settings.from_hf)", "False"),
    (factors.product, "np.tanh(one_number", "(one_number"),
    (factors.product, "np.add.at(W.reshape(-1)", "np.add.at(W.T.copy().reshape(-1)"),
    (factors.adopt, "setattr(settings, name, value)", "pass"),
    (factors.adopt, "if name in given and", "if False and"),
    (factors.written, 'public.get("lora_alpha")', 'public.get("r")'),
], *map(in_folder, (check_reads_dtypes, check_writes_what_it_reads, check_shards, check_links, check_tied, check_start_of_factors,
                    check_public_layout, check_adopt, partial(check_every_method, only=["switchlora", "sst", "galore"]))),
    check_decompose)
