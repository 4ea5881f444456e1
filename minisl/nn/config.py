"""`LlamaConfig`: the shape of a model, in the words of Hugging Face's config.json."""

import difflib
import json
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from minisl.errors import InputError

# Keys of a Hugging Face config.json that say nothing about a model's mathematics here.
IGNORED = {
    "_name_or_path", "architectures", "chunk_size_feed_forward", "dtype", "id2label", "is_encoder_decoder", "label2id",
    "minisl", "model_type", "output_attentions", "output_hidden_states", "pretraining_tp", "problem_type", "return_dict",
    "torch_dtype", "transformers_version", "use_cache",
}
MOST_LAYERS = 4096  # a damaged file must not build modules for hours; the deepest known have 1,000
# Keys that are understood for one value only, under the names it has.
REQUIRED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0, "rope_scaling": None}
ALLOWED = {"hidden_act": ("silu", "swish"), "attention_bias": (False, None), "mlp_bias": (False, None),
           "quantization_config": (None,), "partial_rotary_factor": (None, 1)}


@dataclass
class LlamaConfig:
    """Sizes of a LLaMA. Raises InputError, naming the key, for a value that cannot be.

    hidden_size D, intermediate_size F, num_hidden_layers L, num_attention_heads H, num_key_value_heads H_kv (divides H),
    vocab_size V, max_position_embeddings: the longest sequence it is meant for. Heads have width D / H, an even number.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int = 0  # 0: as many as attention heads
    vocab_size: int = 32000
    max_position_embeddings: int = 1024
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    def __post_init__(self):
        for f in fields(self):
            value = getattr(self, f.name)
            token_id = f.name.endswith("token_id")
            allowed = (int, type(None)) if token_id else (int, float) if f.type is float else (f.type,)
            if type(value) not in allowed:
                raise InputError(f"config: {f.name} is {value!r}; it must be {'an int or null' if token_id else f.type.__name__}")
            if f.type in (int, float) and f.name != "num_key_value_heads" and not 0 < value < 2**31:
                raise InputError(f"config: {f.name} is {value}; it must be a positive number below {2**31}")
            if f.type is float:
                setattr(self, f.name, float(value))
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if self.hidden_size % heads or self.hidden_size // heads % 2:
            raise InputError(f"config: num_attention_heads is {heads}; hidden_size {self.hidden_size} must split into that "
                             "many heads of even width")
        if kv_heads < 0 or heads % kv_heads:
            raise InputError(f"config: num_key_value_heads is {kv_heads}; it must divide num_attention_heads {heads}")
        if self.num_hidden_layers > MOST_LAYERS:
            raise InputError(f"config: num_hidden_layers is {self.num_hidden_layers}; at most {MOST_LAYERS} are allowed")
        for name in ("hidden_size", "intermediate_size", "vocab_size"):
            if self.hidden_size * getattr(self, name) >= 2**59:  # of float64, more bytes than an address can tell
                raise InputError(f"config: {name} is {getattr(self, name)}; with hidden_size {self.hidden_size} a matrix would "
                                 "have 2^59 numbers or more")

    @property
    def head_dim(self):
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_dict(cls, given, where="config"):
        """From HF keys. Unknown keys warn on stderr, near misses of a known key and wrong values raise InputError."""
        given = dict(given)
        if "max_sequence_length" in given:  # the public SLTrain and GaLore configs
            given.setdefault("max_position_embeddings", given.pop("max_sequence_length"))
        names = [name for name in ("rope_scaling", "rope_parameters") if given.get(name)]  # the first that says something counts
        rope = given[names[0]] if names else {}
        kinds = [rope.get(key, "default") for key in ("rope_type", "type")] if isinstance(rope, dict) else []
        if kinds != ["default"] * 2 or any(isinstance(value, dict) for value in rope.values()):
            raise InputError(f"{where}: {names[0]} is {rope!r}; only the rope_type 'default' is understood")
        given |= {k: v for k, v in rope.items() if k in ("rope_theta", "partial_rotary_factor")}
        if given.get("num_key_value_heads") is None:
            given.pop("num_key_value_heads", None)
        if isinstance(eos := given.get("eos_token_id"), list) and all(type(i) is int for i in eos):
            given["eos_token_id"] = eos[0] if eos else None  # a text ends here with the tokenizer's own mark
        for key, allowed in ALLOWED.items():
            if (value := given.get(key, allowed[0])) not in allowed:
                raise InputError(f"{where}: {key} is {value!r}; it must be {allowed[0]!r}")
        dropout = given.get("attention_dropout") or 0.0
        if type(dropout) not in (int, float):
            raise InputError(f"{where}: attention_dropout is {dropout!r}; it must be a number")
        if dropout:
            print(f"{where}: attention_dropout {dropout} is not known here: nothing is dropped", file=sys.stderr)
        for key in (*REQUIRED, *ALLOWED, "rope_parameters"):
            given.pop(key, None)
        known = {f.name: f for f in fields(cls)}
        head_dim = given.pop("head_dim", None)
        for key in [k for k in given if k not in known]:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.85)
            if key not in IGNORED and near and near[0] not in given:
                raise InputError(f"{where}: unknown key {key!r}; did you mean {near[0]!r}?")
            if key not in IGNORED:
                print(f"{where}: key {key!r} is not known here and is ignored", file=sys.stderr)
            del given[key]
        missing = [name for name in list(known)[:4] if name not in given]
        if missing:
            raise InputError(f"{where}: {missing[0]} is missing")
        config = cls(**given)
        if head_dim not in (None, config.head_dim):
            raise InputError(f"{where}: head_dim is {head_dim!r}; it must be hidden_size / num_attention_heads = "
                             f"{config.head_dim}")
        return config

    @classmethod
    def from_json(cls, path):
        """From a config.json. Raises InputError: no such file, not JSON, or what `from_dict` refuses."""
        return cls.from_dict(read_json(path), where=str(path))

    def to_dict(self):
        """The dictionary that transformers reads as a LlamaConfig."""
        return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **asdict(self), **REQUIRED,
                "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta}}


def read_json(path):
    """A JSON object from a file. Raises InputError naming the file."""
    try:
        value = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
