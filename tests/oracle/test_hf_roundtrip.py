"""Out to transformers and in from it: equal logits, text, ids and perplexity; a random LLaMA of theirs comes back the same."""

import json

import numpy as np
import pytest
from method_checks import SETTINGS
from oracle_helpers import assert_same
from test_hf import sl_model
from test_train import job

from minisl import checkpoint, export, hf, plot, train
from minisl.autograd import no_grad
from minisl.command import run_command
from minisl.data import load_corpus
from minisl.generate import generate
from minisl.methods import build_model
from minisl.metrics import read
from minisl.nn import LlamaConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

THEIRS = {
    "plain": {"num_attention_heads": 2},
    "grouped": {"num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5},
    "tied": {"num_attention_heads": 4, "tie_word_embeddings": True, "rope_theta": 500000.0},
}


@pytest.fixture(params=THEIRS)
def theirs(request):
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        hidden_size=32, intermediate_size=40, num_hidden_layers=3, vocab_size=300, initializer_range=0.3,
        **THEIRS[request.param]))


@pytest.mark.parametrize(("dtype", "shard"), [("float32", "1GB"), ("float32", "20KB"), ("bfloat16", "20KB"), ("float16", "1GB")])
def test_a_random_llama_of_transformers_comes_back_the_same(theirs, tmp_path, tokenizer, dtype, shard):
    theirs.to(getattr(torch, dtype)).save_pretrained(tmp_path / "in", max_shard_size=shard)
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 1 or shard == "1GB"
    config = hf.read_config(tmp_path / "in")
    model = build_model(config, "full", {})
    assert hf.start_from(model, tmp_path / "in") == {}
    ids = np.random.default_rng(1).integers(0, 300, (2, 9))
    if dtype == "float32":
        with no_grad():
            assert_same(model(ids).data, theirs(torch.tensor(ids)).logits.detach(), 1e-5, "logits")

    export.export(model, tokenizer, tmp_path / "out", dtype)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    left, right = theirs.state_dict(), again.state_dict()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert (right[name].dtype, right[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(right[name], tensor), name
    stored = {name: theirs.config.to_dict()[name] for name in vars(config) if name not in ("bos_token_id", "eos_token_id")
              and name in theirs.config.to_dict()}
    assert {name: again.config.to_dict()[name] for name in stored} == stored


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of SLTrain whose B is not 0, on words."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot, "loss_figure", lambda path, *_: path.write_bytes(b""))
        flags = {"steps": 40, "lr": 2e-2, "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1, "rank": 3}
        assert run_command(train.main, job(folder, **flags)) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def tokenizer(run):
    return checkpoint.load_tokenizer_of(run)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "hf"
    assert run_command(export.main, [str(run), "--to", "hf", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def loaded(exported):
    model, report = transformers.AutoModelForCausalLM.from_pretrained(exported, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def test_logits_of_an_exported_run(run, loaded):
    ids = np.random.default_rng(1).integers(0, 257, (3, 16))
    with no_grad(), torch.no_grad():
        mine = checkpoint.load_model(run)(ids).data
        assert_same(mine, loaded(torch.tensor(ids)).logits, 1e-5, "logits")
    assert mine.std() > 0.3


def test_greedy_text_of_an_exported_run(run, exported, loaded, tokenizer):
    model, words = checkpoint.load_model(run), transformers.AutoTokenizer.from_pretrained(exported)
    limit = model.config.max_position_embeddings
    for prompt in ("", "abc", "cab ha"):
        ids = [tokenizer.end, *tokenizer.encode(prompt)]
        mine = list(generate(model, ids, limit - len(ids), None, temperature=0, stop=tokenizer.end))
        other = loaded.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=limit - len(ids),
                                pad_token_id=tokenizer.end)[0, len(ids):].tolist()
        assert mine == [i for i in other if i != tokenizer.end]
        assert words.decode(mine, skip_special_tokens=True) == tokenizer.decode(mine)


def test_ids_of_an_exported_tokenizer(exported, tokenizer):
    words = transformers.AutoTokenizer.from_pretrained(exported)
    for text in ("abc def", "  héllo\n\n", "a <|endoftext|> b", "", "🙂"):
        assert words(text)["input_ids"] == tokenizer.encode(text)
        assert words(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
        assert words.decode(words(text)["input_ids"]) == tokenizer.decode(tokenizer.encode(text)) == text
    assert words.bos_token_id == words.eos_token_id == tokenizer.end
    assert words.model_max_length == 16


def test_perplexity_by_transformers(run, loaded, tokenizer):
    """The mean over tokens of the loss that transformers computes is what the run's last evaluation said."""
    documents = load_corpus([str(run.parent / "text.txt")]).validation
    tokens = torch.tensor(tokenizer.encode_documents(documents).astype("int64"))
    nats = 0.0
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, 16):
            window = tokens[None, start:start + 17]
            nats += loaded(window, labels=window).loss.item() * (window.shape[1] - 1)
    last = read(run / "metrics.jsonl")[-1]
    assert last["step"] == 40
    assert last["val_loss"] == pytest.approx(nats / (len(tokens) - 1), rel=1e-5)
    assert last["perplexity"] == pytest.approx(np.exp(nats / (len(tokens) - 1)), rel=1e-5)
    assert last["val_loss"] < 4  # it has learned something: log 257 is 5.55


def test_a_state_dict_of_the_public_layout(tmp_path):
    """As the public code's modules are named when PyTorch and safetensors write them: a wrapper's prefix, bfloat16, positions in
    64 bits, a `scaling` of one number."""
    from safetensors.torch import save_file

    model = sl_model(learned_scale=True)
    state = {f"wrapped_model.{name}": torch.tensor(array.astype("int64")) if name.endswith("index") else
             torch.tensor(array).to(torch.bfloat16) for name, array in model.state_dict().items()}
    tmp_path.joinpath("config.json").write_text(json.dumps(model.config.to_dict()))
    tmp_path.joinpath("splora_config.json").write_text(json.dumps({"r": 3, "lora_alpha": 6, "sp_ratio": 0.3}))
    save_file(state, tmp_path / "model.safetensors")
    assert hf.sl_settings(tmp_path) == {"rank": 3, "delta": 0.3, "alpha": 6.0, "learned_scale": True}
    again = build_model(model.config, "sltrain", SETTINGS | {"learned_scale": True}, np.random.default_rng(5))
    hf.start_from(again, tmp_path)
    for name, array in again.state_dict().items():
        np.testing.assert_array_equal(array, state[f"wrapped_model.{name}"].to(getattr(torch, str(array.dtype))).numpy())


def test_config_with_what_transformers_writes(theirs, tmp_path, capsys):
    theirs.save_pretrained(tmp_path)
    config = hf.read_config(tmp_path)
    assert capsys.readouterr().err.count("is not known here") == 0
    assert LlamaConfig.from_dict(config.to_dict()) == config
