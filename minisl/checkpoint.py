"""A run's folder and its checkpoints: written so that nothing is ever half there, read back so that no damage goes unseen.

RUN/step-00000600/   a checkpoint stands alone, and is complete as soon as it has this name
    config.json          a LlamaConfig for transformers, plus the method
    tokenizer.json
    model.safetensors    weights under Hugging Face's names
    optimizer.safetensors
    state.json           step, position in the data, settings
    SHA256SUMS           of the five: `sha256sum -c SHA256SUMS` looks at them too
RUN/metrics.jsonl, loss.png, sample.txt    see `minisl.metrics` and `minisl.train`

A checkpoint is written under another name, brought to the disk (fsync) file by file, and then renamed: a kill, a crash or a full
disk at any moment leaves the ones before as they were.
"""

import json
import os
import re
import shutil
import sys
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from minisl.config import Settings
from minisl.data import located, make_tokenizer, open_data
from minisl.errors import InputError
from minisl.files import sha256, to_disk
from minisl.methods import build_model
from minisl.nn.config import LlamaConfig, read_json

TENSORS = ("model.safetensors", "optimizer.safetensors")
FILES = ("config.json", "tokenizer.json", *TENSORS, "state.json")
SUMS = "SHA256SUMS"
STATE = {"step": int, "batch": int, "tokens": int, "processes": int, "data": dict, "settings": dict, "corpus": dict,
         "versions": dict}  # parts of a state.json
LEFTOVER = re.compile(r"\.(step-\d{8,}|[\w-]+\.\w+)\.\d+(\.old|\.gone)?")  # what a killed process wrote, replaced, removed
ASIDE = "damaged-"  # before the name of a checkpoint that was passed over


# Writing


def save(run, config, tokenizer, model, moments, state):
    """Write a checkpoint and return its folder. Raises OSError where that is not possible; nothing is left of it then.

    config: LlamaConfig; moments: name -> array, the optimizer's state; state: for state.json, with "step" and "settings". A
    checkpoint of the same step is replaced.
    """
    settings = state["settings"]
    metadata = {"format": "pt"}  # transformers asks for it; of several, the library writes a different one first each time
    made_of = {"method": settings["method"], "options": settings, "dtype": settings["dtype"]}
    folder = Path(run) / f"step-{state['step']:08d}"
    temporary, old = (folder.with_name(f".{folder.name}.{os.getpid()}{end}") for end in ("", ".old"))
    temporary.mkdir(parents=True)
    try:
        write = temporary.joinpath
        described = {**config.to_dict(), "torch_dtype": settings["dtype"], "minisl": made_of}
        write("config.json").write_text(json.dumps(described, indent=1) + "\n", "utf-8")
        write("tokenizer.json").write_text(tokenizer.to_json(), "utf-8")
        try:
            save_file(model.state_dict(), write("model.safetensors"), metadata)
            save_file(moments, write("optimizer.safetensors"), metadata)
        except SafetensorError as error:  # what the library makes of a full disk
            raise OSError(f"{folder}: cannot be written ({error})") from None
        write("state.json").write_text(json.dumps(state, indent=1) + "\n", "utf-8")
        write(SUMS).write_text(sums(temporary), "utf-8")
        for name in (*FILES, SUMS, ""):
            to_disk(write(name))
        if folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
        to_disk(run)
    finally:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return folder


def sums(folder):
    """The text of SHA256SUMS."""
    return "".join(f"{sha256(folder / name)}  {name}\n" for name in FILES)


def prune(run, keep, best=None):
    """Remove all checkpoints of a run but the last `keep` and that of step `best`."""
    for folder in folders(run)[:-keep]:
        if step_of(folder) != best:
            remove(folder)


def remove(folder):
    """Take a checkpoint away: its name first, so that it is never there in part."""
    doomed = folder.with_name(f".{folder.name}.{os.getpid()}.gone")
    with suppress(OSError):  # a folder that cannot be removed must not cost the run
        os.replace(folder, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def set_aside(run, found):
    """Call the checkpoints after `found`, which were passed over as they are damaged, by another name: the run goes on before
    them, and they must not count among its last ones."""
    for folder in folders(run):
        if step_of(folder) > step_of(found.folder):
            with suppress(OSError):
                os.replace(folder, folder.with_name(ASIDE + folder.name))


def tidy(run):
    """Remove what a killed process left half written, and put back what it was about to replace. To be called by the only
    process that writes there."""
    for path in Path(run).glob(".step-*.old"):
        if LEFTOVER.fullmatch(path.name) and not (folder := path.with_name(path.name[1:].partition(".")[0])).exists():
            os.replace(path, folder)
    for path in Path(run).glob(".*"):
        if LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


# Reading


def folders(run):
    """The folders of a run that are named as checkpoints, by step."""
    return sorted((p for p in Path(run).glob("step-*") if re.fullmatch(r"step-\d{8,}", p.name) and p.is_dir()), key=step_of)


def step_of(folder):
    """The step that a checkpoint's folder is named after."""
    return int(folder.name.partition("-")[2])


def find(path, say=None):
    """The Checkpoint at `path`: a checkpoint's folder, or a run's, whose newest one that is whole it is; RUN/best is the one with
    the lowest validation loss.

    say(line): told of every damaged one that is passed over (left out: a line on stderr). Raises InputError where there is none,
    or the one asked for is damaged.
    """
    path, say = Path(path), say or (lambda line: print(line, file=sys.stderr))
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if (path / SUMS).exists() or re.fullmatch(r"step-\d{8,}", path.name):
        return Checkpoint(path)
    if path.name == "best" and not path.exists() and folders(path.parent):
        best = find(path.parent, say).state.get("best")
        if not best:
            raise InputError(f"{path}: nothing was evaluated yet; give {path.parent}")
        return Checkpoint(path.parent / f"step-{best['step']:08d}")
    damaged = []
    for folder in reversed(folders(path)):
        try:
            found = Checkpoint(folder)
        except InputError as error:
            damaged.append(error)
            continue
        for error in damaged:
            say(f"{error}: passed over, {found.folder.name} is used")
        return found
    if damaged:
        raise InputError(f"{damaged[0]}" + (f", and so are {len(damaged) - 1} more" if damaged[1:] else "")
                         + "; no checkpoint is left that is whole")
    if (path / "state.json").is_file():
        raise InputError(f"{path}: was written by minisl 0.4 or earlier, whose runs this version does not read")
    if (path / "lock").is_file():
        raise InputError(f"{path}: this run ended before its first checkpoint; begin it again with --out {path}")
    raise InputError(f"{path}: not a run (no checkpoint in it); give a folder that minisl.train wrote to --out")


class Checkpoint:
    """A checkpoint, looked at from the first byte to the last. Raises InputError for one that is not what was written."""

    def __init__(self, folder):
        self.folder = Path(folder)
        try:
            written = (self.folder / SUMS).read_bytes()
            for line, name in zip(written.splitlines(keepends=True), FILES):
                if line != f"{sha256(self.folder / name)}  {name}\n".encode():
                    raise InputError(f"{self.folder / name}: damaged (its SHA-256 is not the one in {SUMS})")
        except OSError as error:
            raise InputError(f"{error.filename or self.folder}: cannot be read ({error.strerror or error})") from None
        if len(written.splitlines()) != len(FILES):
            raise InputError(f"{self.folder / SUMS}: damaged ({len(FILES)} lines are expected)")

    @cached_property
    def state(self):
        """state.json as a dictionary, of which the parts in STATE are there and the settings can be."""
        path = self.folder / "state.json"
        state = read_json(path)
        try:
            state["settings"] = Settings.from_dict(state["settings"]).to_dict()  # with defaults for what an older one lacks
            wrong = [k for k, kind in STATE.items() if not isinstance(state[k], kind)]
            if state["processes"] < 1 or not isinstance((state.get("best") or {"step": 0})["step"], int):
                wrong.append("processes or best")
            if not isinstance(state["corpus"].get("folder"), str | None):
                wrong.append("corpus")
        except (KeyError, TypeError, AttributeError, InputError) as error:
            wrong = [str(error)]
        if wrong:
            raise InputError(f"{path}: damaged or not written by minisl.train ({wrong[0]})")
        return state

    @cached_property
    def config(self):
        return LlamaConfig.from_json(self.folder / "config.json")

    def tokenizer(self):
        return make_tokenizer(str(self.folder / "tokenizer.json"), [], self.config.vocab_size)

    def model(self):
        """The trained Llama."""
        path = self.folder / "config.json"
        content = read_json(path)
        try:
            method, options, dtype = (content["minisl"][k] for k in ("method", "options", "dtype"))
            model = build_model(self.config, method, options, dtype=dtype)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: damaged or not written by minisl.train ({error})") from None
        self.load(model, "model.safetensors")
        return model

    def restore(self, model, optimizer, part=lambda state: state):
        """Put weights and optimizer state back. part(state): what of the latter this process keeps."""
        self.load(model, "model.safetensors")
        self.load(optimizer, "optimizer.safetensors", part)

    def load(self, into, name, part=lambda state: state):
        path = self.folder / name
        try:
            into.load_state_dict(part(read_tensors(path)))
        except InputError as error:
            raise InputError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def read_tensors(path):
    """name -> array of a safetensors file. Raises InputError naming it if it is missing or damaged."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: damaged or not a safetensors file ({error})") from None


def load_model(path):
    """The trained model of a run or a checkpoint, ready to use: `load_model("runs/001-sltrain")(ids)`.

    Raises InputError where something is missing, damaged, or does not belong together.
    """
    return find(path).model()


def load_tokenizer_of(path):
    """The tokenizer of a run or one of its checkpoints. Raises InputError: no run, damaged."""
    return find(path).tokenizer()


def load_state(path):
    """What state.json of a run or one of its checkpoints says: step, seed, settings, data.

    Raises InputError: no run, damaged.
    """
    return find(path).state


def open_data_of(found, run, sources, **options):
    """(the Data that a run was trained on, its sources): looked for here and, where that is not it, where the run began, and the
    hash decides. options: of `open_data`. Sources found here alone are returned with whole paths. Raises InputError.
    """
    here, began = folder_here(), found.state["corpus"].get("folder")

    def opened(sources):
        data = open_data(sources, **options)
        check_corpus(found.state, data.sha256, data.name, run)
        if data.sha256 is None:  # a stream, which tells by its position whether it is the same
            data.batches.restore(found.state["data"])
        return data

    try:
        return opened(sources), sources if here == began or not here else located(sources, here)
    except InputError:
        if began and (there := located(sources, began)) != sources:
            with suppress(InputError):
                return opened(there), sources
        raise


def folder_here():
    """The folder this process is in, which relative paths start from; None where it has been removed."""
    with suppress(OSError):
        return os.getcwd()


def check_corpus(state, sha256, name, run):
    """Raise InputError unless the text is the one the run was trained on."""
    if sha256 != state["corpus"].get("sha256"):
        raise InputError(f"{run}: {name} is not the text this run was trained on (its hash differs; the built-in corpora "
                         f"change with the Python version, which was {state['versions'].get('python')})")
