"""`Settings`: every flag of `minisl.train`, its meaning, default and aliases, in one place."""

import argparse
import math
import os
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path

import numpy as np

from minisl import methods
from minisl.backend import DEVICES, PRECISIONS
from minisl.command import Parser
from minisl.data import PROTOCOLS
from minisl.distributed import started
from minisl.errors import InputError
from minisl.hf import DECOMPOSE
from minisl.kernels import ALGORITHMS, BACKENDS
from minisl.nn import LlamaConfig
from minisl.nn.config import read_json
from minisl.optim import RULES, SCHEDULES

HERE = Path(__file__).resolve().parent
CONFIG_FOLDERS = (HERE.parent / "data" / "configs", HERE / "configs")  # in a checkout; in an installed wheel
TINY = {
    "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4, "num_attention_heads": 4,
    "initializer_range": 0.005, "tokenizer": "bpe", "vocab_size": 1024, "seq_len": 128, "batch_size": 16,
    "parts": 2, "rank": 32, "delta": 0.03, "alpha": 16.0, "lr": 3e-3, "steps": 600, "eval_every": 150, "save_every": 200,
}
# What may differ when a run is resumed: the rest decides what is being trained.
MAY_CHANGE = {"resume", "out", "data", "steps", "eval_every", "save_every", "keep", "on_nan", "max_spike", "algorithm", "backend",
              "device", "threads", "activation_checkpointing", "matmul_precision", "keep_blas", "data_workers",
              "shard_optimizer", "tensorboard", "total_batch_size", "max_train_tokens"}
SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
OVERRIDES = (*SHAPE, "initializer_range")  # settings that replace a config's key of that name
COUNTS = ("steps", "batch_size", "accumulate", "total_batch_size", "seq_len", "eval_every", "save_every", "keep", "rank",
          "threads", "parts", "validation_documents")
# Of the public SLTrain script, what has no like here: flags, or values of flags that have one, and what to write instead.
NOT_HERE = {
    "--name": "leave it out: a run is named by its folder, --out runs/NAME",
    "--tags": "leave it out: no tracker is told of a run; --out runs/NAME names it",
    "--single_gpu": "leave it out: one process uses one GPU, with --device cuda",
    "--use_hf_model": "leave it out: there is one LLaMA here, and it computes what transformers' does",
    "--lora_dropout": "leave it out: the public script takes it and drops nothing",
    "--beta1": "leave it out: --optimizer sgd has no momentum here, and adamw's beta1 is 0.9",
    "--dtype": dict.fromkeys(("bfloat16", "bf16"),
                             "NumPy has no such numbers; use --dtype float32, on a GPU with --matmul-precision bf16"),
    "--optimizer": {"adam": "with a weight decay it adds that to the gradient, which is not here; adamw decays the weights",
                    "adafactor": "is not here; use adamw, adam8bit or sgd",
                    "adam8bit_per_layer": "write --optimizer adam8bit --per-layer"},
    "--schedule": {"cosine_restarts": "is not here; --method relora warms up again after each merge"},
}


def flag(default, help, *aliases, choices=None, parse=None):
    """A field of `Settings`: its default (or what makes it), the help's text, other names, what is allowed, and what makes the
    value of a word."""
    kind = {"default_factory": default} if callable(default) else {"default": default}
    return field(**kind, metadata={"help": help, "aliases": aliases, "choices": choices, "parse": parse})


def token_count(word):
    """How many tokens a word says: "100000", "100M" or "1B". Raises ArgumentTypeError for another."""
    unit = {"M": 10**6, "B": 10**9}.get(word[-1:])
    try:
        return int(word[:-1]) * unit if unit else int(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word}: must be a whole number, M or B after it for millions or billions") from None


@dataclass
class Settings:
    """What to train, on what, and for how long. Aliases are the flags of the public SLTrain script."""

    tiny: bool = flag(False, "the one-minute job: a model of 0.6M parameters on the text inside this Python")
    config: str | None = flag(None, "model: 9m, 20m, 35m, 60m, 130m, 350m, 1b, 7b, or a config.json", "--model_config")
    from_hf: str | None = flag(None, "start from the weights of a folder with a Hugging Face LLaMA, or with SLTrain's factors")
    decompose: str | None = flag(None, "--from-hf: dense W to (alpha/r) B A + S: the best of rank r by SVD, and its residual at "
                                       "random positions or where it is largest", choices=DECOMPOSE)
    method: str = flag("sltrain", "what the linear layers are made of", "--peft_model", choices=methods.available())
    rank: int = flag(128, "r of B A")
    delta: float = flag(0.03, "density of S, between 0 and 1", "--sp_ratio")
    alpha: float = flag(32.0, "B A is scaled by alpha / rank", "--lora_alpha")
    learned_scale: bool = flag(False, "learn the scale of B A, as tanh of a parameter", "--train_scaling")
    lr: float = flag(3e-3, "peak learning rate")
    schedule: str = flag("cosine", "after warm-up", "--scheduler", choices=SCHEDULES)
    min_lr_ratio: float = flag(0.1, "last learning rate over the peak", "--min_lr_ratio")
    decay_fraction: float = flag(0.2, "wsd: the last part of --steps, in which the rate falls")
    uba_phi: float = flag(1.0, "uba: 2 is cosine, with less the rate falls later")
    norms_of: str | None = flag(None, "refined: the run whose gradient norms decide the rates")
    steps: int = flag(11000, "number of updates", "--num_training_steps")
    max_train_tokens: int | None = flag(None, "--steps in tokens, such as 100M or 1B, cut to whole updates",
                                        "--max_train_tokens", parse=token_count)
    warmup: int | None = flag(None, "updates of linear warm-up (left out: a tenth of --steps)", "--warmup_steps")
    batch_size: int = flag(16, "sequences per forward pass", "--batch_size")
    accumulate: int = flag(1, "forward passes per update", "--gradient_accumulation")
    total_batch_size: int | None = flag(None, "--accumulate in sequences per update, of all processes", "--total_batch_size")
    seq_len: int = flag(256, "tokens per sequence", "--max_length")
    optimizer: str = flag("adamw", "what moves a parameter where the method has no rule of its own", choices=tuple(RULES),
                          parse=str.lower)
    per_layer: bool = flag(False, "move each parameter as soon as its gradient is there, and keep no gradients")
    weight_decay: float = flag(0.0, "decoupled weight decay", "--weight_decay")
    clip_norm: float = flag(0.0, "largest gradient norm; 0 does not clip", "--grad_clipping")
    data: list = flag(lambda: ["python-docs"], "python-docs, python-source, text files, folders, globs; .jsonl(.gz|.zst) or "
                      ".parquet files; c4, hf:NAME, hf:NAME:CONFIG; or a folder of minisl.data prepare")
    protocol: str = flag("packed", "packed: documents joined and cut; padded: one document a sequence, as in the paper",
                         choices=PROTOCOLS)
    text_field: str = flag("text", "the field or column of a stream that holds the text")
    validation_documents: int | None = flag(None, "documents of a stream that are held out (left out: 1,000)")
    data_workers: int = flag(0, "processes that tokenise a stream; no result depends on it", "--workers")
    tokenizer: str = flag("bpe", "bytes, bpe (trained on the data), or a tokenizer.json")
    vocab_size: int | None = flag(None, "ids of the model, and of a trained bpe (left out: the config's)")
    hidden_size: int | None = flag(None, "override the config")
    intermediate_size: int | None = flag(None, "override the config")
    num_hidden_layers: int | None = flag(None, "override the config")
    num_attention_heads: int | None = flag(None, "override the config")
    num_key_value_heads: int | None = flag(None, "override the config")
    initializer_range: float | None = flag(None, "override the config: std of embeddings and head at the start")
    seed: int = flag(42, "of weights, support, data order and sample")
    dtype: str = flag("float32", "of weights and arithmetic", choices=("float32", "float64"))
    device: str = flag("cpu", "where to run", choices=DEVICES)
    algorithm: str = flag("auto", "how SLTrain layers multiply", choices=ALGORITHMS)
    backend: str = flag("auto", "which kernels", choices=("auto", *BACKENDS))
    threads: int | None = flag(None, "cores to use (left out: all); no result depends on it")
    parts: int = flag(1, "compute a batch in this many parts, each on one core: for small models")
    shard_optimizer: bool = flag(False, "of several processes, each keeps the optimizer's state of its part of the parameters")
    matmul_precision: str = flag("float32", "how a GPU rounds what it multiplies in float32", choices=PRECISIONS)
    activation_checkpointing: bool = flag(False, "keep block inputs only, recompute the rest", "--activation_checkpointing")
    keep_blas: bool = flag(False, "do not start again where OpenBLAS has better kernels for this CPU")
    eval_every: int = flag(1000, "updates between evaluations", "--eval_every")
    save_every: int = flag(1000, "updates between checkpoints; the best of an evaluation is saved too", "--save_every")
    keep: int = flag(2, "how many checkpoints to keep, beside the best")
    on_nan: str = flag("stop", "where the loss is no number: stop, or go back to the last checkpoint and on with the batches "
                       "after the one that did it", choices=("stop", "rollback"))
    max_spike: float = flag(0.0, "take a loss this many nats above its recent mean for no number; 0 does not look")
    out: str | None = flag(None, "the run's folder (left out: runs/001-METHOD, counting up)", "--save_dir")
    resume: str | None = flag(None, "continue the run in this folder; auto: in --out, or the newest of this method, or begin one",
                              "--continue_from")
    tensorboard: bool = flag(False, "write event files for TensorBoard too (extra tensorboard)")
    method_options: dict = field(default_factory=dict)  # of the method's own flags, those that were given

    def __post_init__(self):
        if self.per_layer and self.tiny and self.parts == TINY["parts"]:
            self.parts = 1
        if self.optimizer == "adam" and not self.weight_decay:  # then there is no difference
            self.optimizer = "adamw"

    def resolve(self, given, processes=1):
        """Turn --total-batch-size and --max-train-tokens into --accumulate and --steps, which is what a run remembers.

        given: names of the flags that were; processes: how many have --batch-size each. Raises InputError where they do not fit.
        """
        self.check_values()
        sequences, total, tokens = self.batch_size * processes, self.total_batch_size, self.max_train_tokens
        if total is not None:
            accumulate = total // sequences
            if accumulate * sequences != total:
                raise InputError(f"--total-batch-size {total}: must be a multiple of {sequences}, the sequences of a forward pass"
                                 + (f" on {processes} processes" if processes > 1 else " (--batch-size)"))
            if "accumulate" in given and self.accumulate != accumulate:
                raise InputError(f"--total-batch-size {total}: with {sequences} sequences a forward pass it is --accumulate "
                                 f"{accumulate}, not {self.accumulate}")
            self.accumulate = accumulate
        if tokens is not None:
            size = sequences * self.accumulate * self.seq_len
            if tokens < size:
                raise InputError(f"--max-train-tokens {tokens}: must be at least {size}, the tokens of one update")
            if "steps" in given and self.steps != tokens // size:
                raise InputError(f"--max-train-tokens {tokens}: with {size} tokens an update it is --steps {tokens // size}, not "
                                 f"{self.steps}")
            self.steps = tokens // size
        self.total_batch_size = self.max_train_tokens = None

    def check_values(self):
        """Raise InputError for the first value that cannot be, whatever the others are."""
        for f in FLAGS:
            name, value = "--" + f.name.replace("_", "-"), getattr(self, f.name)
            right = isinstance(value, int | float if f.type is float else f.type)
            if not right or (isinstance(value, bool) and f.type is not bool):
                raise InputError(f"{name} {value!r}: must be {getattr(f.type, '__name__', f.type)}")
            if f.metadata["choices"] and value is not None and value not in f.metadata["choices"]:
                known = NOT_HERE.get(name, {}).get(value)
                raise InputError(f"{name} {value}: {known or 'unknown; allowed: ' + ', '.join(f.metadata['choices'])}")
            if value == "" or (f.type is list and not all(isinstance(v, str) and v for v in value)):
                raise InputError(f"{name}: must not be empty")
            if f.name in (*COUNTS, *SHAPE) and value is not None and not 1 <= value < 2**31:
                raise InputError(f"{name} {value}: must be at least 1 and below {2**31}")
            if f.type is float and f.name != "delta" and not 0 <= value < math.inf:
                raise InputError(f"{name} {value}: must be a finite number, 0 or above")

    def check(self):
        """Raise InputError for the first value that cannot be."""
        self.check_values()
        if not isinstance(self.method_options, dict):
            raise InputError(f"method_options {self.method_options!r}: must be a dict of the method's own flags")
        own = methods.flags(self.method)
        for name, value in self.method_options.items():
            if name not in own:
                raise InputError(f"--{name.replace('_', '-')}: not a flag of --method {self.method}; "
                                 f"allowed: {', '.join(own) or 'none'}")
            own[name].check(value)
        for name, off, why in PER_LAYER_REFUSES:
            if self.per_layer and getattr(self, name) != off:
                raise InputError(f"--per-layer with --{name.replace('_', '-')} {getattr(self, name)}: {why}; allowed: {off}")
        if not 0 < self.delta < 1:
            raise InputError(f"--delta {self.delta}: the density of S must lie strictly between 0 and 1")
        if self.batch_size * self.seq_len >= 2**31:
            raise InputError(f"--batch-size {self.batch_size} --seq-len {self.seq_len}: their product must be below {2**31}")
        if not 0 <= self.data_workers < 1000:
            raise InputError(f"--data-workers {self.data_workers}: must lie between 0 and 999")
        if self.min_lr_ratio > 1:
            raise InputError(f"--min-lr-ratio {self.min_lr_ratio}: must lie between 0 and 1")
        if self.seed < 0:
            raise InputError(f"--seed {self.seed}: must be 0 or above")
        if self.warmup is not None and not 0 <= self.warmup <= self.steps:
            raise InputError(f"--warmup {self.warmup}: must lie between 0 and --steps {self.steps}")
        if not 0 < self.decay_fraction <= 1:
            raise InputError(f"--decay-fraction {self.decay_fraction}: must be above 0 and at most 1")
        if self.schedule == "wsd" and self.warmup_steps() + self.decay_fraction * self.steps > self.steps:
            raise InputError(f"--decay-fraction {self.decay_fraction}: the decay would begin within the warm-up of "
                             f"{self.warmup_steps()} of {self.steps} steps")
        if self.uba_phi == 0:
            raise InputError(f"--uba-phi {self.uba_phi}: must be above 0")
        if (self.schedule == "refined") != (self.norms_of is not None):
            raise InputError("--schedule refined and --norms-of RUN need each other: that run's gradient norms decide the rates")

    def warmup_steps(self):
        """Updates of warm-up."""
        return self.steps // 10 if self.warmup is None else self.warmup

    def model_config(self):
        """The LlamaConfig asked for."""
        given = {name: getattr(self, name) for name in OVERRIDES if getattr(self, name) is not None}
        if self.from_hf:
            from minisl import hf

            config = hf.read_config(self.from_hf)
            config.max_position_embeddings = max(config.max_position_embeddings, self.seq_len)
            return config
        base = read_config(self.config) if self.config else {}
        config = LlamaConfig.from_dict(base | given, where=self.config or "model")
        if not base.keys() & {"max_position_embeddings", "max_sequence_length"}:
            config.max_position_embeddings = self.seq_len
        return config

    def to_dict(self):
        return asdict(self)

    @classmethod
    def from_dict(cls, given):
        """Checked settings, as a state.json has them. Raises InputError for a key or value that cannot be."""
        names = {f.name for f in fields(cls)}
        if unknown := sorted(given.keys() - names):
            raise InputError(f"settings: unknown key {unknown[0]!r}")
        settings = cls(**given)
        settings.check()
        return settings


FLAGS = [f for f in fields(Settings) if f.metadata]
PER_LAYER_REFUSES = (
    ("accumulate", 1, "a gradient is gone before the next forward pass could add to it"),
    ("clip_norm", 0, "the norm of all gradients is known when the last one is, and then the others are gone"),
    ("parts", 1, "a gradient is complete only when the parts' gradients have been added"),
)


def read_config(name):
    """A model config as a dictionary, by size name or path."""
    known = {p.stem: p for folder in CONFIG_FOLDERS for p in sorted(folder.glob("*.json"))}
    if name not in known and not Path(name).is_file():
        raise InputError(f"--config {name}: no such file; the names known here are {', '.join(known) or 'none'}")
    return read_json(known.get(name, name))


def method_of(run):
    """The method of the run to resume; None where there is none."""
    for path in sorted(Path(run or "").glob("step-*/state.json"), reverse=True):
        with suppress(InputError, KeyError, TypeError):
            return read_json(path)["settings"]["method"]
    return None


def unrecognised(words, method):
    """A sentence about words that are no flags, or flags of other methods."""
    name = words[0].partition("=")[0].removeprefix("--").replace("-", "_")
    if f"--{name}" in NOT_HERE:
        return f"--{name}: {NOT_HERE[f'--{name}']}"
    others = [m for m in methods.available() if name in methods.flags(m)]
    own = ", ".join("--" + o.replace("_", "-") for o in methods.flags(method)) if method in methods.available() else ""
    if others:
        return f"{words[0]}: a flag of {', '.join(others)}; --method {method} has {own or 'no flags of its own'}"
    return f"unrecognized arguments: {' '.join(words)} (--help lists all flags)"


def parse(argv, prog="python -m minisl.train", description="Pretrain a LLaMA with W = (alpha/r) B A + S."):
    """(Settings, names of the flags that were given). Later wins: defaults, --tiny, flags."""
    first = Parser(add_help=False)
    first.add_argument("--method", "--peft_model")
    first.add_argument("--resume", "--continue_from")
    method = first.parse_known_args(argv)[0]
    method = method.method or method_of(method.resume) or Settings.method
    own = methods.flags(method) if method in methods.available() else {}

    parser = Parser(prog=prog, description=description, epilog="--method NAME --help lists that method's own flags too")
    for f in FLAGS:
        default = f.default if f.default is not MISSING else " ".join(f.default_factory())
        names = ["--" + f.name.replace("_", "-"), *f.metadata["aliases"]]
        help = f.metadata["help"] + ("" if default is None or default is False else f" (default: {default})")
        plain = {int | None: int, float | None: float, str | None: str, list: str}.get(f.type, f.type)
        choices = f.metadata["choices"]
        kind = {"action": "store_true"} if f.type is bool else {
            "type": f.metadata["parse"] or plain, "choices": None if names[0] in NOT_HERE else choices,  # `check` knows more
            "metavar": f"{{{','.join(choices)}}}" if choices else f.name.upper(), **({"nargs": "+"} if f.type is list else {})}
        parser.add_argument(*dict.fromkeys(names), dest=f.name, default=argparse.SUPPRESS, help=help.replace("%", "%%"), **kind)
    group = parser.add_argument_group(f"flags of {method}")
    for name, f in own.items():
        kind = {"action": argparse.BooleanOptionalAction} if type(f.default) is bool else {
            "type": type(f.default), "choices": f.choices, "metavar": None if f.choices else name.upper()}
        group.add_argument("--" + name.replace("_", "-"), dest=name, default=argparse.SUPPRESS,
                           help=f"{f.help} (default: {f.default})".replace("%", "%%"), **kind)
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        raise InputError(unrecognised(unknown, method))
    given = vars(known)
    settings = settings_from(given | {"method": given.get("method", method)})
    return settings, set(given) - set(own) | {"method_options"}


def plain(value):
    """A value from Python as JSON has it: a path as a string, NumPy's numbers as Python's."""
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def settings_from(given):
    """Settings from the flags that were given, as a dictionary. Later wins: defaults, --tiny, flags.

    Raises InputError: an unknown flag, a value that cannot be, nothing to train.
    """
    given = {name: plain(value) for name, value in given.items()}
    if isinstance(given.get("data"), str):  # from Python
        given["data"] = [given["data"]]
    method = given.get("method", Settings.method)
    own = methods.flags(method) if method in methods.available() else {}
    if unknown := sorted(given.keys() - own.keys() - {f.name for f in FLAGS}):
        raise InputError(unrecognised(["--" + unknown[0].replace("_", "-")], method))
    options = {name: given.pop(name) for name in own if name in given}
    tiny = TINY if given.get("tiny") else {}
    if tiny and given.keys() & {"config", "from_hf"}:  # the shape comes from the config then
        tiny = {k: v for k, v in tiny.items() if k not in OVERRIDES}
    settings = Settings(**{**tiny, **given, "method_options": options})
    if not (settings.tiny or settings.config or settings.from_hf or settings.resume):
        raise InputError("nothing to train: give --tiny, --config NAME or --resume RUN (--help lists all flags)")
    if not settings.resume:  # else it goes by the run's own batches
        settings.resolve(given, started())
    settings.check()
    if settings.from_hf:
        from minisl import hf

        clash = [name for name in ("config", *OVERRIDES) if name in given]
        if clash:
            raise InputError(f"--{clash[0].replace('_', '-')}: the model is that of --from-hf {settings.from_hf}")
        hf.adopt(settings, given.keys())
        if "tokenizer" not in given:
            settings.tokenizer = hf.tokenizer_file(settings.from_hf)
        if settings.decompose and settings.method not in hf.FACTORED:
            raise InputError(f"--decompose: --method {settings.method} takes a dense W as it is or not at all; it is for "
                             f"{', '.join(hf.FACTORED)}")
    elif settings.decompose:
        raise InputError("--decompose: only with --from-hf, whose dense weights it makes factors of")
    return settings
