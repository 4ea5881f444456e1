"""Every key of a LLaMA's config.json: transformers and minisl load it with equal logits, or it is refused by its name."""

import json

import numpy as np
import pytest
from oracle_helpers import assert_same

from minisl import hf
from minisl.autograd import no_grad
from minisl.errors import InputError
from minisl.methods import build_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

IDS = np.random.default_rng(1).integers(0, 50, (2, 9))
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 50,
         "initializer_range": 0.5}
MISTRAL = {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": None}


@pytest.fixture
def folder(tmp_path):
    """A function that makes a folder with a random model, whose config.json then says this, and lacks the keys in `out`."""

    def make(changes, out=()):
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(**{"model_type": "llama"} | SIZES | changes)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
        content = json.loads((tmp_path / "config.json").read_text())
        if "rope_scaling" in changes or "rope_theta" in changes:
            del content["rope_parameters"]  # as transformers before 5 wrote it
        content = {key: value for key, value in (content | changes).items() if key not in out}
        (tmp_path / "config.json").write_text(json.dumps(content))
        return tmp_path

    return make


@pytest.mark.parametrize(("changes", "out"), [
    ({}, ()), ({"num_key_value_heads": 2}, ()), ({"num_key_value_heads": None}, ()), ({}, ("num_key_value_heads", "head_dim")),
    ({"hidden_act": "swish"}, ()), ({}, ("hidden_act",)),
    ({"attention_bias": False, "mlp_bias": False}, ()), ({}, ("attention_bias", "mlp_bias", "attention_dropout")),
    ({"head_dim": 4}, ()), ({"pretraining_tp": 2}, ()), ({"tie_word_embeddings": True}, ()), ({"use_cache": False}, ()),
    ({"rms_norm_eps": 0.1}, ()), ({}, ("rms_norm_eps",)),
    ({"max_position_embeddings": 4}, ()), ({}, ("max_position_embeddings",)),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}, ()), ({"rope_parameters": {"rope_theta": 50}}, ()),
    ({"rope_theta": 50.0}, ()), ({"rope_theta": 50.0, "rope_scaling": None}, ()), ({}, ("rope_parameters",)),
    ({"rope_theta": 50.0, "rope_scaling": {"type": "default"}}, ()),
    ({"rope_theta": 9.0, "rope_scaling": {"rope_type": "default", "rope_theta": 50.0}}, ()),
    ({"eos_token_id": [2, 5]}, ()), ({"eos_token_id": []}, ()), ({"eos_token_id": None, "bos_token_id": None}, ()),
    ({"pad_token_id": 0}, ()), ({}, ("eos_token_id", "bos_token_id", "pad_token_id")),
    ({"dtype": "float32"}, ()), ({"torch_dtype": "float32"}, ("dtype",)), ({"architectures": ["MistralForCausalLM"]}, ()),
    ({}, ("architectures", "transformers_version")), ({"sliding_window": 3}, ()), (MISTRAL, ()),
    ({"quantization_config": None}, ("quantization_config",))])
def test_what_transformers_loads_is_loaded_with_equal_logits(folder, changes, out):
    path = folder(changes, out)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
    model = build_model(hf.read_config(path), "full", {})
    hf.start_from(model, path)
    with no_grad(), torch.no_grad():
        assert_same(model(IDS).data, theirs(torch.tensor(IDS)).logits, 1e-5, "logits")


def test_no_key_that_transformers_writes_is_unknown(folder, capsys):
    path = folder({"num_key_value_heads": 2})
    capsys.readouterr()
    hf.read_config(path)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("key", "value"), [
    ("hidden_act", "gelu"), ("attention_bias", True), ("mlp_bias", True), ("head_dim", 8), ("attention_dropout", "much"),
    ("rope_parameters", {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}), ("rope_scaling", {"type": "dynamic"}),
    ("rope_parameters", {"full_attention": {"rope_type": "default"}}), ("partial_rotary_factor", 0.5),
    ("rope_parameters", {"rope_theta": 1e4, "partial_rotary_factor": 0.5}), ("eos_token_id", ["a"]), ("rms_norm_eps", "1e-6"),
    ("quantization_config", {"bits": 4}), ("model_type", "qwen2"), ("model_type", ["llama"]), ("num_attention_heads", 3),
    ("tie_word_embeddings", None), ("vocab_size", 50.0)])
def test_what_this_model_cannot_compute_is_refused_by_its_key(folder, key, value):
    path = folder({})
    content = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(content | {key: value}))
    name = "partial_rotary_factor" if "partial_rotary_factor" in str(value) else key
    with pytest.raises(InputError, match=f"{name} ") as refused:
        hf.read_config(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("out", [(), ("sliding_window",)])
def test_mistral_that_forgets(folder, out):
    with pytest.raises(InputError, match="sliding_window is 4096"):
        hf.read_config(folder(MISTRAL | {"sliding_window": 4096}, out))


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_sizes_that_are_not_said_are_those_of_transformers(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "sliding_window": None}))
    theirs, mine = transformers.AutoConfig.from_pretrained(tmp_path), hf.read_config(tmp_path)
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
             "rms_norm_eps", "initializer_range", "tie_word_embeddings")
    assert [getattr(mine, name) for name in names] == [getattr(theirs, name) for name in names]
