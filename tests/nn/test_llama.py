"""The model: names, cache, causality, configs."""

import dataclasses
import json

import numpy as np
import pytest

from minisl import no_grad
from minisl.config import read_config
from minisl.errors import InputError
from minisl.nn import KVCache, Linear, Llama, LlamaConfig, Module

CONFIG = LlamaConfig(16, 24, 2, 4, 2, vocab_size=11)
BASE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture
def model():
    return Llama(CONFIG, np.random.default_rng(0), dtype="float64")


def test_logits_shape_and_start(model):
    """(B, T) ids to (B, T, V) logits, near uniform at the start."""
    logits = model(np.zeros((3, 5), int)).data
    assert logits.shape == (3, 5, 11)
    assert 0 < np.abs(logits).max() < 0.5


def test_names_are_hugging_faces(model):
    block = ["input_layernorm", "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "post_attention_layernorm",
             "self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj"]
    names = ["lm_head", "model.embed_tokens", "model.norm"] + [f"model.layers.{i}.{b}" for i in (0, 1) for b in block]
    assert sorted(model.state_dict()) == sorted(f"{n}.weight" for n in names)


def test_a_later_token_does_not_change_earlier_logits(model, backend):
    ids = np.random.default_rng(1).integers(0, 11, (2, 8))
    before = model(ids).data
    ids[:, 5:] = (ids[:, 5:] + 1) % 11
    after = model(ids).data
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert not np.allclose(before[:, 5:], after[:, 5:])


def test_position_matters(model):
    """The same token twice: without positions every row would be alike."""
    logits = model(np.array([[3, 4, 3]])).data[0]
    assert not np.allclose(logits[0], logits[2])


@pytest.mark.parametrize("pieces", [[9], [1] * 9, [4, 1, 3, 1]])
def test_cache_equals_one_pass(model, pieces, backend):
    ids = np.random.default_rng(1).integers(0, 11, (2, 9))
    cache, got = KVCache(CONFIG.num_hidden_layers), []
    with no_grad():
        for n in pieces:
            start = cache.length
            got.append(model(ids[:, start : start + n], cache).data)
    np.testing.assert_allclose(np.concatenate(got, axis=1), model(ids).data, rtol=1e-12, atol=1e-14)


def test_tied_head_trains_the_embedding_from_both_ends(backend):
    config = dataclasses.replace(CONFIG, tie_word_embeddings=True)
    model = Llama(config, np.random.default_rng(0), dtype="float64")
    assert "lm_head.weight" not in model.state_dict()
    model(np.array([[1, 2]])).sum().backward()
    used = model.model.embed_tokens.weight.grad.any(axis=1)
    assert used.all()  # as a head every row is used, as a table only rows 1 and 2


def test_shapes_without_memory():
    model = Llama(LlamaConfig.from_dict(read_config("7b")))
    assert model.num_parameters() == 6_738_415_616
    assert sum(p.data.base.nbytes for p in model.parameters()) < 10_000


class TestStateDict:
    def test_round_trip(self, model):
        other = Llama(CONFIG, np.random.default_rng(9), dtype="float64")
        other.load_state_dict(model.state_dict())
        ids = np.array([[1, 2, 3]])
        np.testing.assert_array_equal(other(ids).data, model(ids).data)

    def test_is_not_shared_with_the_source(self, model):
        other = Llama(CONFIG, np.random.default_rng(9), dtype="float64")
        state = model.state_dict()
        other.load_state_dict(state)
        other.lm_head.weight.data += 1
        assert not np.array_equal(other.lm_head.weight.data, state["lm_head.weight"])

    @pytest.mark.parametrize("change", ["missing", "extra", "shape"])
    def test_refuses_what_does_not_fit_and_changes_nothing(self, model, change):
        state = {name: array + 1 for name, array in model.state_dict().items()}
        if change == "missing":
            del state["lm_head.weight"]
        if change == "extra":
            state["bias"] = np.zeros(1)
        if change == "shape":
            state["lm_head.weight"] = np.zeros((11, 15))
        before = model.lm_head.weight.data.copy()
        with pytest.raises(InputError, match="bias" if change == "extra" else "lm_head.weight"):
            model.load_state_dict(state)
        np.testing.assert_array_equal(model.lm_head.weight.data, before)

    def test_zero_grad_and_counting(self):
        class Two(Module):
            def __init__(self):
                self.layers = [Linear(2, 3, np.random.default_rng(0)), Linear(3, 2, np.random.default_rng(0))]

        two = Two()
        assert [n for n, _ in two.named_parameters()] == ["layers.0.weight", "layers.1.weight"]
        assert two.num_parameters() == 12
        two.layers[0].weight.grad = np.ones((3, 2))
        two.zero_grad()
        assert two.layers[0].weight.grad is None


class TestConfig:
    def test_hugging_face_and_public_sltrain_keys(self, capsys):
        config = LlamaConfig.from_dict(BASE | {"max_sequence_length": 77, "model_type": "llama", "hidden_act": "silu",
                                               "rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}})
        assert (config.max_position_embeddings, config.num_key_value_heads, config.rope_theta) == (77, 4, 5e5)
        assert capsys.readouterr().err == ""

    def test_survives_its_own_dictionary(self, tmp_path):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(CONFIG.to_dict()))
        assert LlamaConfig.from_json(path) == CONFIG

    def test_unknown_key_warns(self, capsys):
        LlamaConfig.from_dict(BASE | {"favourite_colour": "blue"})
        assert capsys.readouterr().err.count("favourite_colour") == 1

    @pytest.mark.parametrize(("change", "match"), [
        ({"hiden_size": 16}, r"'hiden_size'; did you mean 'hidden_size'"), ({"hidden_size": "16"}, "hidden_size is '16'"),
        ({"hidden_size": True}, "hidden_size is True"), ({"hidden_size": 0}, "hidden_size is 0"), ({"hidden_size": 15}, "heads"),
        ({"hidden_size": 12}, "even width"), ({"num_key_value_heads": 3}, "num_key_value_heads is 3"),
        ({"rms_norm_eps": -1.0}, "eps"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; it must be 'silu'"), ({"attention_bias": True}, "attention_bias"),
        ({"head_dim": 8}, "head_dim"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling"), ({"rope_parameters": {"rope_type": "yarn"}}, "yarn"),
        ({"rope_parameters": {"type": "linear"}}, "linear"),
        ({"rope_theta": float("inf")}, "rope_theta"), ({"vocab_size": 1e4}, "vocab_size")])
    def test_wrong_values_are_refused_by_name(self, change, match):
        given = BASE | change
        if "hiden_size" in change:
            del given["hidden_size"]
        with pytest.raises(InputError, match=match):
            LlamaConfig.from_dict(given)

    def test_missing_key(self):
        with pytest.raises(InputError, match="intermediate_size is missing"):
            LlamaConfig.from_dict({k: v for k, v in BASE.items() if k != "intermediate_size"})
