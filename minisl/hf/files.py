"""A folder with a Hugging Face LLaMA as files: config.json, and safetensors in one file or in shards.

Pickles (pytorch_model.bin, *.pt, *.ckpt) are never opened: loading one runs whatever code it holds. What a file says about where
other files are does not lead out of the folder.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from minisl.errors import InputError
from minisl.hf.tensorfile import TensorFile
from minisl.nn import LlamaConfig
from minisl.nn.config import read_json

# The model types that compute what a LLaMA does, and what transformers takes where their config.json does not say it.
DEFAULTS = {"llama": {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
                      "num_attention_heads": 32}}
DEFAULTS["mistral"] = DEFAULTS["llama"] | {"intermediate_size": 14336, "num_key_value_heads": 8, "sliding_window": 4096}
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}


def inside(folder, name):
    """The path of a file that lies in the folder. Raises InputError for a link that leads elsewhere, or no plain file.

    A folder of Hugging Face's cache is links into the `blobs` beside it; those are its own.
    """
    path = Path(folder) / name
    try:
        base, target = Path(folder).resolve(), path.resolve()
        blobs = base.parents[1] / "blobs" if base.parent.name == "snapshots" else base
        if not target.is_file():
            raise InputError(f"{path}: no such file")
        if not (target.is_relative_to(base) or target.is_relative_to(blobs)):
            raise InputError(f"{path}: a link that leads out of its folder, which is not followed")
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    return path


def read_config(folder):
    """The LlamaConfig of a folder. Raises InputError: no such folder or file, or not a LLaMA."""
    content = read_json(inside(there(folder), "config.json"))
    path = Path(folder) / "config.json"
    kind = content.get("model_type", "llama")
    if not isinstance(kind, str) or kind not in DEFAULTS:
        raise InputError(f"{path}: model_type is {kind!r}; those understood are {', '.join(DEFAULTS)}")
    content = DEFAULTS[kind] | content
    if kind == "mistral" and content["sliding_window"] is not None:
        raise InputError(f"{path}: sliding_window is {content['sliding_window']!r}; it must be null, attention here sees all "
                         "that is before")
    content.pop("sliding_window", None)
    return LlamaConfig.from_dict(content, where=str(path))


def tokenizer_file(folder):
    """The path of a folder's tokenizer.json. Raises InputError where there is none."""
    try:
        return str(inside(folder, "tokenizer.json"))
    except InputError as error:
        raise InputError(f"{error}; give --tokenizer with one that fits these weights") from None


def there(folder):
    """The folder as a Path. Raises InputError where it is none, or a pickle."""
    folder = Path(folder)
    if folder.suffix in PICKLES and folder.is_file():
        raise pickled(folder)
    if not folder.is_dir():
        raise InputError(f"--from-hf {folder}: no such folder; give one with config.json and model.safetensors")
    return folder


def pickled(path):
    """The InputError for a pickle."""
    return InputError(f"{path}: a pickle, which can run any code when it is loaded, so it is never opened; make a "
                      "model.safetensors of it first: torch.load(..., weights_only=True), then safetensors.torch.save_file")


class Weights(Mapping):
    """name -> array, read from its file when it is asked for; `.shapes`: name -> shape, known without reading."""

    def __init__(self, places):
        self.places = places  # name -> (TensorFile, name in it)
        self.shapes = {name: file.shapes[its] for name, (file, its) in places.items()}

    def __getitem__(self, name):
        file, its = self.places[name]
        return file.read(its)

    def __iter__(self):
        return iter(self.places)

    def __len__(self):
        return len(self.places)

    def say(self, name):
        """File and tensor, for a complaint."""
        file, its = self.places[name]
        return f"{file.path}: {its!r}"


def read_weights(folder):
    """The Weights of a folder's model.safetensors, or of the shards in its model.safetensors.index.json.

    What stands before `model.embed_tokens.weight` ("wrapped_model." in the public SLTrain code) is taken off all names; the
    `rotary_emb.inv_freq` of old checkpoints are left out. Raises InputError: no such file, damaged, a pickle, an index
    that does not fit its shards or names a file elsewhere.
    """
    folder = there(folder)
    if (folder / "model.safetensors").exists():
        file = TensorFile(inside(folder, "model.safetensors"))
        places = {name: (file, name) for name in file.entries}
    elif (folder / "model.safetensors.index.json").exists():
        places = shards(folder)
    else:
        found = sorted(p for p in folder.iterdir() if p.suffix in PICKLES)
        raise pickled(found[0]) if found else InputError(
            f"{folder}: has neither model.safetensors nor model.safetensors.index.json")
    ends = [name for name in places if ("." + name).endswith(".model.embed_tokens.weight")]
    if len(ends) != 1:
        raise InputError(f"{folder}: expected one tensor model.embed_tokens.weight, found {len(ends)}: not a LLaMA for "
                         "causal language modelling")
    prefix = ends[0].removesuffix("model.embed_tokens.weight")
    return Weights({name.removeprefix(prefix): place for name, place in places.items()
                    if not name.endswith("rotary_emb.inv_freq")})


def shards(folder):
    """name -> (TensorFile, name) of a checkpoint in several files."""
    path = inside(folder, "model.safetensors.index.json")
    where = read_json(path).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise InputError(f"{path}: has no weight_map")
    for name, file in where.items():
        if not isinstance(file, str) or not re.fullmatch(r"[A-Za-z0-9_][\w.-]{0,200}\.safetensors", file, re.ASCII):
            raise InputError(f"{path}: {name!r} would be in {file!r}; only safetensors files in the same folder are read")
    files = {file: TensorFile(inside(folder, file)) for file in sorted(set(where.values()))}
    for name, file in where.items():
        if name not in files[file].entries:
            raise InputError(f"{path}: {name!r} should be in {file}, which lacks it")
    for file, opened in files.items():
        for name in opened.entries:
            if where.get(name) != file:
                raise InputError(f"{folder / file}: {name!r} is not listed for this file in {path.name}")
    return {name: (files[file], name) for name, file in where.items()}
