"""A run's folder: what is in it, how it is written so that nothing is ever half there, and how it is read back.

config.json, tokenizer.json    written when the run starts; with --schedule refined, schedule.json too
model.safetensors, optimizer.safetensors, state.json    a checkpoint; all three carry the step, the last the others' SHA-256
metrics.jsonl, loss.png, sample.txt    see `minisl.metrics` and `minisl.train`
"""

import hashlib
import json
import os
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from minisl.config import Settings
from minisl.data import make_tokenizer
from minisl.errors import InputError
from minisl.methods import build_model
from minisl.nn.config import LlamaConfig, read_json

TENSORS = ("model.safetensors", "optimizer.safetensors")
STATE = {"step": int, "settings": dict, "corpus": dict, "versions": dict, "sha256": dict}  # what a state.json must have


@contextmanager
def replacing(*paths):
    """Temporary paths beside `paths`, which take their places when the block ends well, once all are complete and on disk."""
    temporaries = [Path(p).with_name(f".{Path(p).name}.{os.getpid()}") for p in paths]
    try:
        yield temporaries
        for temporary in temporaries:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        for temporary, path in zip(temporaries, paths):
            os.replace(temporary, path)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def write_text(path, text):
    with replacing(path) as [temporary]:
        temporary.write_text(text, "utf-8")


def write_json(path, value):
    write_text(path, json.dumps(value, indent=1) + "\n")


def start_run(run, config, method, options, tokenizer, dtype):
    """Write what does not change: config.json (a LlamaConfig for transformers, plus the method) and tokenizer.json."""
    write_json(run / "config.json", {**config.to_dict(), "torch_dtype": dtype,
                                     "minisl": {"method": method, "options": options, "dtype": dtype}})
    write_text(run / "tokenizer.json", tokenizer.to_json())


def save(run, model, optimizer, state):
    """A checkpoint of a run. All three files are complete on disk before the first takes its place."""
    metadata = {"format": "pt", "step": str(state["step"])}  # "pt": transformers asks for it
    with replacing(*(run / name for name in (*TENSORS, "state.json"))) as [weights, moments, rest]:
        try:
            save_file(model.state_dict(), weights, metadata)
            save_file(optimizer.state_dict(), moments, metadata)
        except SafetensorError as error:  # what the library makes of a full disk
            raise OSError(f"{run}: cannot be saved ({error})") from None
        hashes = dict(zip(TENSORS, map(sha256, (weights, moments))))
        rest.write_text(json.dumps({**state, "sha256": hashes}, indent=1) + "\n", "utf-8")


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path):
    """(name -> array, step) of a safetensors file. Raises InputError naming it if it is missing or damaged."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, int((file.metadata() or {}).get("step", -1))
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: damaged or not a safetensors file ({error})") from None


def load_state(run):
    """state.json. Raises InputError where `run` is not a run's folder."""
    if not (Path(run) / "state.json").is_file():
        raise InputError(f"{run}: not a run (it has no state.json); give a folder that minisl.train wrote to --out")
    state = read_json(Path(run) / "state.json")
    try:
        state["settings"] = Settings.from_dict(state["settings"]).to_dict()  # with defaults for what an older one lacks
        wrong = [k for k, kind in STATE.items() if not isinstance(state[k], kind)]
    except (KeyError, TypeError, AttributeError, InputError) as error:
        wrong = [str(error)]
    if wrong:
        raise InputError(f"{Path(run) / 'state.json'}: damaged or not written by minisl.train ({wrong[0]})")
    return state


def build(run):
    """A Llama that only has shapes yet, from a run's config.json."""
    path = Path(run) / "config.json"
    content = read_json(path)
    try:
        method, options, dtype = (content["minisl"][k] for k in ("method", "options", "dtype"))
        config = LlamaConfig.from_dict(content, where=str(path))
        return build_model(config, method, options, dtype=dtype)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: damaged or not written by minisl.train ({error})") from None


def load_model(run):
    """The trained model of a run, ready to use: `load_model("runs/001-sltrain")(ids)`.

    Raises InputError where something is missing, damaged, or does not belong together.
    """
    run = Path(run)
    model = build(run)
    weights, _ = read_tensors(run / "model.safetensors")
    if (run / "state.json").is_file():
        check_hash(run / "model.safetensors", load_state(run))
    try:
        model.load_state_dict(weights)
    except InputError as error:
        raise InputError(f"{run / 'model.safetensors'}: {error}") from None
    return model


def load_tokenizer_of(run):
    return make_tokenizer(str(Path(run) / "tokenizer.json"), [], build(run).config.vocab_size)


def restore(run, model, optimizer, state):
    """Put a checkpoint's weights and optimizer state back. Raises InputError unless all parts are of one step."""
    weights, step = read_tensors(run / "model.safetensors")
    moments, moments_step = read_tensors(run / "optimizer.safetensors")
    if not step == moments_step == state["step"]:
        raise InputError(f"{run}: the files are of different steps (model {step}, optimizer {moments_step}, state "
                         f"{state['step']}); a save was cut short")
    for name in TENSORS:
        check_hash(run / name, state)
    model.load_state_dict(weights)
    optimizer.load_state_dict(moments)


def check_hash(path, state):
    """Raise InputError unless a file is, to the bit, the one that was saved."""
    if sha256(path) != state["sha256"].get(path.name):
        raise InputError(f"{path}: damaged (its SHA-256 is not the one in state.json)")


def check_corpus(state, corpus, run):
    """Raise InputError unless the text is the one the run was trained on."""
    if corpus.sha256 != state["corpus"].get("sha256"):
        raise InputError(f"{run}: {corpus.name} is not the text this run was trained on (its hash differs; the built-in corpora "
                         f"change with the Python version, which was {state['versions'].get('python')})")
