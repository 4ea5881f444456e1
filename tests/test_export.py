"""Weights that go elsewhere: what a folder for transformers holds, that it comes back, and that it is never half there."""

import errno
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from method_checks import SETTINGS
from mutation import mutant_tests
from safetensors.numpy import load_file
from test_hf import CONFIG, built, dense_weights, logits, refused, settings, sl_model, write_folder, write_shards
from test_train import run_job

from minisl import checkpoint, export, files, hf, plot
from minisl.command import run_command
from minisl.data import Tokenizer, make_tokenizer
from minisl.hf import tensorfile
from minisl.methods import available, build_model, structured_ffn
from minisl.nn import Llama, LlamaConfig

BYTES = make_tokenizer("bytes", [], 257)
FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def check_round_trip(folder):
    """In and out again: the same names, shapes and bits, from one file or shards; and bfloat16, read as float32, too."""
    for kind, config in (("grouped", CONFIG), ("tied", LlamaConfig(8, 12, 2, 2, vocab_size=11, tie_word_embeddings=True))):
        weights = dense_weights(config)
        for form, make in (("one", write_folder), ("many", write_shards)):
            here, there = folder / kind / form / "in", folder / kind / form / "out"
            make(here, weights, config=config)
            model = built("full", config)
            hf.start_from(model, here)
            size = export.export(model, BYTES, there)
            assert sorted(p.name for p in there.iterdir()) == FILES
            assert size == (there / "model.safetensors").stat().st_size
            again = load_file(there / "model.safetensors")
            assert again.keys() == weights.keys()
            for name, array in weights.items():
                assert (again[name].dtype, again[name].shape) == (array.dtype, array.shape)
                assert again[name].tobytes() == array.tobytes()
        export.export(model, BYTES, folder / kind / "bf16", "bfloat16")
        half = built("full", config)
        hf.start_from(half, folder / kind / "bf16")
        export.export(half, BYTES, folder / kind / "bf16 again", "bfloat16")
        assert content(folder / kind / "bf16") == content(folder / kind / "bf16 again")
        assert hf.read_config(there).num_key_value_heads == config.num_key_value_heads


def test_round_trip(tmp_path):
    check_round_trip(tmp_path)


def moved(method, dtype="float32"):
    """A model away from its start."""
    model = build_model(CONFIG, method, SETTINGS, np.random.default_rng(3), dtype)
    rng = np.random.default_rng(4)
    for p in model.parameters():
        p.data = (p.data + 0.1 * rng.standard_normal(p.shape)).astype(dtype)
    for _, layer in model.named_modules():
        if isinstance(layer, structured_ffn.Guided):
            layer.a = 0.3
    return model


def check_every_method(folder, only=None):
    """The dense model computes what the method's does, and is of the same dtype."""
    for method in only or available():
        for dtype in ("float32", "float64"):
            model, where = moved(method, dtype), folder / method / dtype
            if method == "cola":
                refused(lambda model=model, where=where: export.export(model, BYTES, where), "CoLALinear", "no dense W")
                assert not where.parent.exists()
                continue
            export.export(model, BYTES, where)
            config = hf.read_config(where)
            again = Llama(config, dtype=dtype)
            again.load_state_dict(load_file(where / "model.safetensors"))
            assert again.state_dict()["lm_head.weight"].dtype == dtype
            assert json.loads((where / "config.json").read_text())["torch_dtype"] == dtype
            np.testing.assert_allclose(logits(again), logits(model), atol=1e-4 if dtype == "float32" else 1e-12, rtol=0)


def test_every_method(tmp_path):
    check_every_method(tmp_path)


def test_lost_with_silu_has_no_dense_w(tmp_path):
    model = build_model(CONFIG, "lost", SETTINGS | {"activation": "silu"}, np.random.default_rng(3))
    refused(lambda: export.export(model, BYTES, tmp_path / "out"), "no dense W")
    assert list(tmp_path.iterdir()) == []


def check_keep_factors(folder):
    """B, A, S under the public names, with 64-bit positions and alpha beside them; minisl reads its own words back."""
    for changes in ({}, {"learned_scale": True}):
        model, where = sl_model(**changes), folder / str(len(changes))
        export.export(model, BYTES, where, keep_factors=True)
        assert sorted(p.name for p in where.iterdir()) == sorted([*FILES, "splora_config.json"])
        raw = load_file(where / "model.safetensors")
        assert raw.keys() == model.state_dict().keys()
        for name, array in model.state_dict().items():
            np.testing.assert_array_equal(raw[name], array)
            assert raw[name].dtype == ("int64" if name.endswith("sparse_index") else "float32")
        public = json.loads((where / "splora_config.json").read_text())
        assert public == {"r": 3, "lora_alpha": 6.0, "lora_dropout": 0.0, "sp_ratio": 0.3, "trainable_scaling": bool(changes),
                          "target_modules": sorted(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])}
        options = {"rank": 3, "delta": 0.3, "alpha": 6.0, "learned_scale": bool(changes), "algorithm": "auto"}
        assert json.loads((where / "config.json").read_text())["minisl"] == {
            "method": "sltrain", "options": options, "dtype": "float32"}
        one = settings(where)
        hf.adopt(one, set())
        again = build_model(hf.read_config(where), "sltrain", SETTINGS | vars(one), np.random.default_rng(0))
        hf.start_from(again, where)
        for name, array in model.state_dict().items():
            np.testing.assert_array_equal(again.state_dict()[name], array)
        np.testing.assert_array_equal(logits(again), logits(model))
        (where / "splora_config.json").unlink()
        assert hf.sl_settings(where) == {"rank": 3, "delta": 0.3, "alpha": 6.0, "learned_scale": bool(changes)}


def test_keep_factors(tmp_path):
    check_keep_factors(tmp_path)


@pytest.mark.parametrize("method", ["full", "low_rank", "relora"])
def test_no_factors_to_keep(tmp_path, method):
    refused(lambda: export.export(moved(method), BYTES, tmp_path / "out", keep_factors=True), "--keep-factors", "sltrain")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", export.DTYPES)
def test_dtype(tmp_path, dtype):
    model = moved("full")
    export.export(model, BYTES, tmp_path, dtype)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == dtype
    weights = hf.read_weights(tmp_path)
    bound = {"float64": 0, "float32": 0, "float16": 2**-11, "bfloat16": 2**-8}[dtype]
    for name, array in model.state_dict().items():
        np.testing.assert_allclose(weights[name], array, rtol=bound, atol=1e-7 * bool(bound))


def test_number_too_large_for_the_dtype(tmp_path):
    model = moved("full")
    model.model.norm.weight.data[3] = 1e5
    refused(lambda: export.export(model, BYTES, tmp_path / "out", "float16"), "--dtype float16", "model.norm.weight", "1e+05")
    assert list(tmp_path.iterdir()) == []


def check_tokenizer(folder):
    """tokenizer.json gives minisl's ids, and adds no marks; the settings name the end mark."""
    given = json.loads(BYTES.to_json())
    given["post_processor"] = {"type": "TemplateProcessing", "single": [
        {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [
        {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": {
        "<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}}
    (folder / "given.json").write_text(json.dumps(given))
    import tokenizers

    for i, tokenizer in enumerate((BYTES, make_tokenizer("bpe", ["to be or not to be"] * 9, 262),
                                   Tokenizer(tokenizers.Tokenizer.from_file(str(folder / "given.json"))))):
        config = LlamaConfig(8, 12, 1, 2, vocab_size=300, max_position_embeddings=77)
        export.export(Llama(config, np.random.default_rng(0)), tokenizer, folder / str(i))
        inner = tokenizers.Tokenizer.from_file(str(folder / str(i) / "tokenizer.json"))
        for text in ("to be, ünï\n", "not"):
            assert inner.encode(text).ids == tokenizer.encode(text)
        words = json.loads((folder / str(i) / "tokenizer_config.json").read_text())
        assert (words["bos_token"], words["eos_token"], words["model_max_length"]) == ("<|endoftext|>", "<|endoftext|>", 77)
        assert words["split_special_tokens"] is True
        written = hf.read_config(folder / str(i))
        assert written.bos_token_id == written.eos_token_id == tokenizer.end
        assert make_tokenizer(hf.tokenizer_file(folder / str(i)), [], 300).encode("to be") == tokenizer.encode("to be")


def test_tokenizer(tmp_path):
    check_tokenizer(tmp_path)


# Never half there


def check_never_half_there(folder):
    model = moved("full")
    for name, make in (("file", lambda p: p.write_text("mine")), ("full", lambda p: (p.mkdir(), (p / "x").write_text("mine")))):
        make(folder / name)
        before = content(folder)
        refused(lambda name=name: export.export(model, BYTES, folder / name), f"{name}: exists and is not an empty folder")
        assert content(folder) == before
    (folder / "empty").mkdir()
    for name in ("empty", "new", "deep/er/new"):
        export.export(model, BYTES, folder / name)
        assert sorted(p.name for p in (folder / name).iterdir()) == FILES
        assert [p.name for p in (folder / name).parent.iterdir() if "preparing" in p.name] == []


def test_never_half_there(tmp_path):
    check_never_half_there(tmp_path)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("calls", [0, 3])
def test_a_write_that_fails(tmp_path, monkeypatch, error, calls):
    done, right = [], tensorfile.stored

    def failing(*args):
        done.append(1)
        if len(done) > calls:
            raise error
        return right(*args)

    monkeypatch.setattr(tensorfile, "stored", failing)
    with pytest.raises(type(error)):
        export.export(moved("full"), BYTES, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_filled_in_the_meantime_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    right = export.write

    def slow(*args):
        right(*args)
        (tmp_path / "out" / "theirs").write_text("theirs")

    monkeypatch.setattr(export, "write", slow)
    with pytest.raises(OSError, match="not empty"):
        export.export(moved("full"), BYTES, tmp_path / "out")
    assert content(tmp_path) == {"out/theirs": b"theirs"}


# The command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot, "loss_figure", lambda path, *_: path.write_bytes(b""))
        return run_job(folder, steps=3)


def command(*argv):
    return run_command(export.main, [str(a) for a in argv])


def test_command(run, tmp_path, capsys):
    before = content(run)
    assert command(run, "--to", "hf", tmp_path / "dense") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"{tmp_path / 'dense'}: 0.1 MB of weights; load it with transformers.AutoModel")
    assert command(run, "--to", "hf", tmp_path / "factors", "--keep-factors", "--dtype", "bfloat16") == 0
    model = checkpoint.load_model(run)
    ids = np.arange(32).reshape(2, 16)
    for kind, near in (("dense", 1e-5), ("factors", 0.1)):
        again = build_model(hf.read_config(tmp_path / kind), "full", {})
        hf.start_from(again, tmp_path / kind)
        np.testing.assert_allclose(again(ids).data, model(ids).data, atol=near, rtol=0)
    assert content(run) == before


@pytest.mark.parametrize(("flags", "words"), [
    ([], ("--to",)), (["--to", "hf"], ("--to",)), (["--to", "gguf", "DIR"], ("--to gguf", "hf DIR")),
    (["--to", "hf", ""], ("must not be empty",)), (["--to", "hf", "DIR", "--dtype", "int8"], ("--dtype", "bfloat16")),
    (["--to", "hf", "DIR", "--keep"], ("--keep", "--help")),
])
def test_command_that_cannot_be(run, tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    assert command(run, *flags) == 2
    [line] = capsys.readouterr().err.splitlines()
    for word in words:
        assert word in line
    assert list(tmp_path.iterdir()) == []


def test_stopped_half_way_nothing_is_there(run, tmp_path):
    """SIGTERM ended the process where it was, and the draft stayed."""
    program = ("import sys, time; from minisl import export; from minisl.command import run_command\n"
               "def write(*_):\n"
               "    print('here', flush=True)\n"
               "    while True:\n"  # in short: a signal just before a sleep does not end it
               "        time.sleep(0.01)\n"
               "export.write = write\n"
               f"sys.exit(run_command(export.main, [{str(run)!r}, '--to', 'hf', {str(tmp_path / 'out')!r}]))")
    child = subprocess.Popen([sys.executable, "-c", program], cwd=Path(export.__file__).parents[1], text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout.readline() == "here\n"
    child.terminate()
    assert child.communicate(timeout=600) == ("", "interrupted\n")
    assert child.returncode == 130
    assert list(tmp_path.iterdir()) == []


def test_command_with_no_run(tmp_path, capsys):
    assert command(tmp_path / "nowhere", "--to", "hf", tmp_path / "out") == 2
    assert "nowhere" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_import_is_light():
    names = ("torch", "transformers", "numba", "matplotlib", "scipy", "cupy", "datasets")
    program = f"import minisl.export, minisl.hf, sys; print([n for n in {names} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(export.__file__).parents[1], text=True, capture_output=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


# Wrong implementations


def in_folder(check):
    def run():
        with tempfile.TemporaryDirectory() as folder:
            check(Path(folder))

    return run


test_mutants = mutant_tests([
    (export.array_of, 'if hasattr(layer, "to_dense"):', 'if hasattr(layer, "to_dense") and not hasattr(layer, "weight"):'),
    (export.dense, "lambda layer=layer: array_of(layer)", "lambda: array_of(layer)"),  # the last layer for all
    (export.factors, "lambda array=array: array", "lambda: array"),
    (export.factors, '*["scaling"] * hasattr(layer, "scaling")', ""),
    (export.factors, '"int64" if part == "sparse_index" else dtype', "dtype"),
    (export.sl_config, "one.scale * rank", "one.scale"),
    (export.sl_config, '"learned_scale": learned', '"learned_scale": False'),
    (export.export, ', "bos_token_id": tokenizer.end, "eos_token_id": tokenizer.end', ""),
    (export.export, '"torch_dtype": dtype or own', '"torch_dtype": "float32"'),
    (export.for_transformers, '"post_processor": None', "**{}"),
    (export.for_transformers, '"split_special_tokens": True', ""),
    (files.new_folder.__wrapped__, "os.rename(draft, path)", "shutil.copytree(draft, path)"),  # leaves something
    (files.new_folder.__wrapped__, "not any(path.iterdir())", "True"),
], *map(in_folder, (check_keep_factors, check_tokenizer, check_never_half_there, check_round_trip,
                    partial(check_every_method, only=["full", "relora", "sltrain"]))))
