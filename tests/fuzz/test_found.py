"""What fuzzing found, one plain test each: every input here once gave a traceback, a hang, an abort, or left something behind."""

import base64
import json
import os
import socket
import struct

import numpy as np
import pytest
from fuzz_checks import accepted, run, within
from safetensors.numpy import save_file
from test_train import job

from minisl import checkpoint, generate, train
from minisl.command import run_command
from minisl.compare.grid import checked
from minisl.config import Settings, parse
from minisl.data import load_corpus, load_documents, load_tokenizer, make_tokenizer, open_data
from minisl.errors import InputError
from minisl.methods import Method
from minisl.nn import Llama, LlamaConfig

TINY = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 31}
OPTIONS = {"rank": 2, "delta": 0.2, "alpha": 4.0, "learned_scale": False, "algorithm": "auto"}


def refused(call, *args, word):
    """Fails unless there is an InputError with this word in it, soon and without much memory."""
    good, said = accepted(call, *args)
    assert not good
    assert word in said


@pytest.mark.parametrize(("change", "word"), [
    ({"rope_parameters": {"rope_type": ["default"]}}, "rope_parameters"),  # unhashable
    ({"num_hidden_layers": 2**31 - 1}, "at most 4096"),  # modules for days
    ({"hidden_size": 2**30, "intermediate_size": 2**31 - 1}, "2^59"),  # more bytes than an address tells: NumPy's ValueError
])
def test_config(change, word):
    refused(LlamaConfig.from_dict, {**TINY, **change}, word=word)


@pytest.mark.parametrize(("settings", "word"), [
    ({}, "rank is missing"), ({**OPTIONS, "method_options": None}, "method_options"), ({**OPTIONS, "rank": "2"}, "--rank"),
    ({**OPTIONS, "alpha": None}, "--alpha"), ({**OPTIONS, "rank": 0}, "--rank"),
    ({**OPTIONS, "learned_scale": 1}, "--learned-scale")])
def test_options_of_a_method(settings, word):
    refused(Method, "sltrain", settings, word=word)


@pytest.mark.parametrize(("change", "word"), [
    ({"method_options": None}, "method_options"), ({"method_options": [1]}, "method_options"), ({"colour": 1}, "colour")])
def test_settings(change, word):
    refused(Settings.from_dict, {**parse(["--tiny"])[0].to_dict(), **change}, word=word)


def test_a_state_without_some_settings_has_their_defaults(tmp_path):
    """A KeyError of `evaluate`."""
    assert run(train.main, job(tmp_path, steps=2), tmp_path) == 0
    path = max(tmp_path.rglob("state.json"), key=str)
    state = json.loads(path.read_text())
    del state["settings"]["uba_phi"]
    path.write_text(json.dumps(state))
    (path.parent / checkpoint.SUMS).write_text(checkpoint.sums(path.parent))
    assert checkpoint.load_state(path.parent)["settings"]["uba_phi"] == 1.0


def weights(**changes):
    model = Method("sltrain", OPTIONS).build(LlamaConfig(**TINY), np.random.default_rng(0))
    name, state = "model.layers.0.self_attn.q_proj.", model.state_dict()
    return model, state | {name + k: change(state[name + k]) for k, change in changes.items()}


@pytest.mark.parametrize("changes", [
    {"lora_A": lambda a: a.astype(np.complex64)}, {"sparse_index": lambda a: a.astype(np.float32)},
    {"sparse_index": lambda a: a + 64}, {"sparse_index": lambda a: -1 - a},
    {"sparse_index": lambda a: a.astype(np.uint64) + np.uint64(2**63)}])
def test_weights_of_another_kind_and_positions_outside(changes):
    """A ComplexWarning, and a ValueError after half of the model had been replaced."""
    model, state = weights(**changes)
    before = {k: v.copy() for k, v in model.state_dict().items()}
    refused(model.load_state_dict, state, word="do not fit this model: model.layers.0.self_attn.q_proj.")
    assert all(np.array_equal(before[k], v) for k, v in model.state_dict().items())


def test_columns_that_are_not():
    model = Method("lost", {**OPTIONS, "columns": 0.5}).build(LlamaConfig(**TINY), np.random.default_rng(0))
    name = "model.layers.0.mlp.up_proj.index"
    for wrong in ([0, 1, 2, 8], [0, 1, 1, 2], [-1, 0, 1, 2]):
        refused(model.load_state_dict, model.state_dict() | {name: np.array(wrong, np.int32)}, word="columns of 0 to 7")


@pytest.mark.parametrize(("name", "value"), [("step", -1), ("step", 0.5), ("chosen", -1), ("exp_avg", 1j)])
def test_optimizer_state(name, value):
    """A division by 1 - b^0, and a random stream of a negative number."""
    model = Llama(LlamaConfig(**TINY), np.random.default_rng(0))
    ids = np.arange(8).reshape(2, 4)
    method = Method("galore", {**OPTIONS, "projector": "random"})
    optimizer = method.optimizer(model, 1e-3)
    model.loss(ids, ids, 1 / 8).backward()
    optimizer.step()
    state = optimizer.state_dict()
    key = next(k for k in state if k.split(".")[0].split("/")[-1] == name)
    refused(optimizer.load_state_dict, state | {key: np.full_like(state[key], value, dtype=np.asarray(value).dtype)},
            word="optimizer state does not fit this model")


def test_weights_that_do_not_fit_are_named_by_file(tmp_path):
    assert run(train.main, job(tmp_path, steps=2), tmp_path) == 0
    path = max(tmp_path.rglob("model.safetensors"), key=str)
    state = checkpoint.read_tensors(path)
    state.pop(min(state))
    save_file(state, path)
    (path.parent / checkpoint.SUMS).write_text(checkpoint.sums(path.parent))
    refused(checkpoint.load_model, path.parent, word="model.safetensors")


@pytest.mark.parametrize("shape", [[2**60], [2**31, 2**31], [0, 2**62], [2**64], [-1], [1] * 70])
def test_a_header_that_claims_much_allocates_nothing(tmp_path, shape):
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"abcd")
    refused(checkpoint.read_tensors, tmp_path / "x.safetensors", word="x.safetensors")


def tokenizer(tmp_path, **parts):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(make_tokenizer("bytes", [], 257).to_json()) | parts))
    return path


@pytest.mark.parametrize("parts", [
    {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},  # a panic, which is no Exception
    {"normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(b"\xff" * 12).decode()}},  # asked for 8 GB
    {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "a"}},  # a panic at the first text
    {"model": {"type": "BPE", "vocab": {"<|endoftext|>": 2**32 - 1, "a": 1}, "merges": []}},  # 17 GB to write it
    {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    {"model": {"type": "WordLevel", "vocab": {"<|endoftext|>": 0, "The": 1}, "unk_token": "?"}},  # Exception at the first text
])
def test_tokenizers_that_panic_or_ask_for_gigabytes(tmp_path, parts, capfd):
    refused(load_tokenizer, tokenizer(tmp_path, **parts), word="tokenizer.json")
    assert capfd.readouterr() == ("", "")


def opened(sources):
    return open_data(sources, "bytes", 257, batch_size=2, seq_len=8)


@pytest.mark.parametrize("source", ["/dev/zero", "PIPE", "PIPE.jsonl", "ZERO.jsonl.gz", "SOCKET", "LOOP", "a/" * 3000, "x" * 300,
                                    "x" * 300 + ".jsonl"])
@pytest.mark.parametrize("read", [load_corpus, opened])
def test_data_that_never_ends_or_has_no_name(tmp_path, monkeypatch, source, read):
    """`open_data` asked for x.../index.json first, and waited for a pipe with a stream's name."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("PIPE")
    os.mkfifo("PIPE.jsonl")
    os.symlink("LOOP", "LOOP")
    os.symlink("/dev/zero", "ZERO.jsonl.gz")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("SOCKET")
    refused(read, [source], word=f"--data {source}: ")
    with pytest.raises(InputError, match=r"^--data (?!.*--data)"):
        read([source])
    assert run(train.main, ["--tiny", "--steps=1", f"--data={source}", "--tokenizer=bytes", "--vocab-size=257"], tmp_path) == 2


def test_links_that_lead_upwards_and_a_glob(tmp_path):
    """Two of them, and glob's ** was at it for 2^40 folders."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "b.txt").write_text("b\n" * 30)
    (tmp_path / "a.txt").write_text("a\n" * 30)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "c.txt").write_text("c\n" * 30)
    for name in ("one", "two"):
        (tmp_path / "in" / name).symlink_to("..")
    for pattern in ("**", "**/*", "**/*.txt", "**/**/*.txt"):
        assert accepted(load_documents, [f"{tmp_path}/{pattern}"]) == (True, ["a\n" * 30, "b\n" * 30])
        assert accepted(opened, [f"{tmp_path}/{pattern}"])[1].sha256 == load_corpus([str(tmp_path)]).sha256
    assert accepted(load_documents, [f"{tmp_path}/*/**/b.txt"]) == (True, ["b\n" * 30])
    for n in range(20):
        (tmp_path / "in" / "deep" / f"{n}.jsonl").write_text(json.dumps({"text": "a document"}) + "\n")
    assert len(accepted(opened, [f"{tmp_path}/**/*.jsonl"])[1].batches.source.shards) == 20


def test_a_long_complaint_is_cut(capsys):
    assert run_command(generate.main, ["x" * 100_000]) == 2
    assert len(capsys.readouterr().err) < 1300


def test_a_refused_job_leaves_no_folder_and_removes_none(tmp_path, monkeypatch):
    """runs/ was left, and an empty folder that was given as --out was removed."""
    argv = [a for a in job(tmp_path, tokenizer="nowhere.json") if not a.startswith("--out")]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert run(train.main, argv, tmp_path) == 2
    assert run(train.main, [*argv, "--out=a/b/c"], tmp_path) == 2
    assert run(train.main, [*argv, "--out=mine"], tmp_path) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "model.json", "text.txt"]


@pytest.mark.parametrize("change", [{"curve": [3]}, {"curve": [[1, "a", 2]]}, {"val_loss": 1e300},
                                    {"bits_per_byte": float("nan")}, {"val_loss": 10**400}])
def test_results_of_a_comparison(change):
    """Tracebacks of the report and the plot."""
    good = {"status": "done", "steps": 2, "seconds": 0.1, "curve": [[64, 5.0, 7.0]], "val_loss": 5.0, "bits_per_byte": 7.0}
    assert checked(good, "result.json") is good
    with pytest.raises(InputError, match="damaged"), within():
        checked(good | change, "result.json")
