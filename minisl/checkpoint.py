"""A run's folder: what is in it, how it is written so that nothing is ever half there, and how it is read back.

config.json, tokenizer.json    written when the run starts
model.safetensors, optimizer.safetensors, state.json    a checkpoint; all three carry the step
metrics.jsonl, loss.png, sample.txt    see `minisl.metrics` and `minisl.train`
"""

import json
import os
from contextlib import ExitStack, contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from minisl.data.tokenizers import load_tokenizer
from minisl.errors import InputError
from minisl.methods import build_model
from minisl.nn.config import LlamaConfig, read_json


@contextmanager
def replacing(path):
    """A temporary path beside `path`, which takes its place, complete and on disk, when the block ends well."""
    temporary = Path(path).with_name(f".{Path(path).name}.{os.getpid()}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text):
    with replacing(path) as temporary:
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
    with ExitStack() as stack:
        names = ("state.json", "model.safetensors", "optimizer.safetensors")  # left in reverse: state.json comes last
        paths = {name: stack.enter_context(replacing(run / name)) for name in names}
        save_file(model.state_dict(), paths["model.safetensors"], metadata)
        save_file(optimizer.state_dict(), paths["optimizer.safetensors"], metadata)
        paths["state.json"].write_text(json.dumps(state, indent=1) + "\n", "utf-8")


def read_tensors(path):
    """(name -> array, step) of a safetensors file. Raises InputError naming it if it is missing or damaged."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, int((file.metadata() or {}).get("step", -1))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: damaged or not a safetensors file ({error})") from None


def load_state(run):
    """state.json. Raises InputError where `run` is not a run's folder."""
    if not (Path(run) / "state.json").is_file():
        raise InputError(f"{run}: not a run (it has no state.json); give a folder that minisl.train wrote to --out")
    return read_json(Path(run) / "state.json")


def build(run, rng=None):
    """(Llama that only has shapes yet, LlamaConfig) from a run's config.json."""
    path = Path(run) / "config.json"
    content = read_json(path)
    try:
        method, options, dtype = (content["minisl"][k] for k in ("method", "options", "dtype"))
        config = LlamaConfig.from_dict(content, where=str(path))
        return build_model(config, method, options, rng, dtype)
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: not written by minisl.train (missing {error})") from None


def load_model(run):
    """The trained model of a run, ready to use: `load_model("runs/001-sltrain")(ids)`.

    Raises InputError where something is missing, damaged, or does not belong together.
    """
    model = build(run)
    tensors, _ = read_tensors(Path(run) / "model.safetensors")
    model.load_state_dict(tensors)
    return model


def load_tokenizer_of(run):
    return load_tokenizer(Path(run) / "tokenizer.json")


def restore(run, model, optimizer, state):
    """Put a checkpoint's weights and optimizer state back. Raises InputError unless all parts are of one step."""
    weights, step = read_tensors(run / "model.safetensors")
    moments, moments_step = read_tensors(run / "optimizer.safetensors")
    if not step == moments_step == state["step"]:
        raise InputError(f"{run}: the files are of different steps (model {step}, optimizer {moments_step}, state "
                         f"{state['step']}); a save was cut short")
    model.load_state_dict(weights)
    optimizer.load_state_dict(moments)


def check_corpus(state, corpus, run):
    """Raise InputError unless the text is the one the run was trained on."""
    if corpus.sha256 != state["corpus"]["sha256"]:
        raise InputError(f"{run}: {corpus.name} is not the text this run was trained on (its hash differs; the built-in corpora "
                         f"change with the Python version, which was {state['versions']['python']})")
