"""Llama against transformers' LlamaForCausalLM: logits, gradients, configs, weights and run folders."""

import numpy as np
import pytest
from oracle_helpers import assert_same

from minisl import checkpoint
from minisl.autograd import ops
from minisl.data import make_tokenizer
from minisl.nn import Llama, LlamaConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
CONFIGS = {
    "plain": ((16, 40, 2, 2, 2, 50), {}),
    "grouped": ((32, 48, 2, 4, 2, 61), {"rms_norm_eps": 1e-5}),
    "one key/value head": ((24, 64, 3, 6, 1, 40), {"rope_theta": 100.0}),
    "tied": ((16, 32, 2, 4, 4, 33), {"tie_word_embeddings": True}),
    "odd sizes": ((30, 37, 1, 3, 3, 29), {"rope_theta": 500000.0, "rms_norm_eps": 1e-2}),
}


class DoubleForFloat(torch.overrides.TorchFunctionMode):
    """Casts to float32 become casts to float64: transformers has them in RMSNorm and RoPE, whatever the model's dtype."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        function = torch.Tensor.double if function is torch.Tensor.float else function
        args, kwargs = [self.double(a) for a in args], {k: self.double(a) for k, a in (kwargs or {}).items()}
        return function(*args, **kwargs)

    def double(self, argument):
        return torch.float64 if argument is torch.float32 else argument


@pytest.fixture(params=CONFIGS)
def config(request):
    sizes, others = CONFIGS[request.param]
    return LlamaConfig(**dict(zip(SIZES, sizes)), **others)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """The dtype; for float64 transformers computes in nothing less."""
    if request.param == "float32":
        yield "float32"
    else:
        with DoubleForFloat():
            yield "float64"


TOLERANCE = {"float32": 1e-5, "float64": 1e-10}


def ours(config, dtype="float64"):
    """A Llama with no weight left at a special value: gains away from 1, matrices large enough to matter."""
    rng = np.random.default_rng(0)
    model = Llama(config, rng, dtype=dtype)
    for p in model.parameters():
        p.data = (p.data * 5 + 0.1 * rng.standard_normal(p.shape)).astype(dtype)
    return model


def theirs(config, dtype="float64"):
    """A LlamaForCausalLM made from what LlamaConfig.to_dict says, with weights of its own."""
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**config.to_dict())).to(getattr(torch, dtype)).eval()


def some_ids(config):
    return np.random.default_rng(1).integers(0, config.vocab_size, (2, 17))


def give_weights(mine, other):
    """minisl's state_dict into a LlamaForCausalLM. A tied head has no name of its own here, but it has there."""
    state = {name: torch.tensor(array) for name, array in mine.state_dict().items()}
    if mine.config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    other.load_state_dict(state, strict=True)


def test_logits_equal_with_our_weights_in_transformers(config, dtype, backend):
    mine, other, ids = ours(config, dtype), theirs(config, dtype), some_ids(config)
    give_weights(mine, other)
    assert_same(mine(ids).data, other(torch.tensor(ids)).logits, TOLERANCE[dtype], "logits")


def test_logits_equal_with_transformers_weights_and_config_here(config, dtype, capsys):
    other, ids = theirs(config, dtype), some_ids(config)
    mine = Llama(LlamaConfig.from_dict(other.config.to_dict()), dtype=dtype)
    assert capsys.readouterr().err == "", "a config that transformers wrote needs no warning"
    state = {name: tensor.numpy() for name, tensor in other.state_dict().items()}
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    mine.load_state_dict(state)
    assert_same(mine(ids).data, other(torch.tensor(ids)).logits, TOLERANCE[dtype], "logits")


def test_config_survives_transformers(config):
    assert LlamaConfig.from_dict(transformers.LlamaConfig(**config.to_dict()).to_dict()) == config


def test_gradient_of_every_parameter_equals_transformers(config, backend):
    with DoubleForFloat():
        mine, other, ids = ours(config), theirs(config), some_ids(config)
        give_weights(mine, other)
        loss = ops.cross_entropy(mine(ids[:, :-1]), ids[:, 1:])
        loss.backward()
        their_loss = other(torch.tensor(ids), labels=torch.tensor(ids)).loss
        their_loss.backward()
    assert loss.item() == pytest.approx(their_loss.item(), rel=1e-10)
    gradients = dict(other.named_parameters())
    assert gradients.keys() == dict(mine.named_parameters()).keys()
    for name, p in mine.named_parameters():
        assert_same(p.grad, gradients[name].grad, 1e-8, name)


def test_checkpoint_of_method_full_loads_in_transformers(config, dtype, tmp_path):
    mine, ids = ours(config, dtype), some_ids(config)
    state = {"step": 0, "settings": {"method": "full", "dtype": dtype}}
    folder = checkpoint.save(tmp_path, config, make_tokenizer("bytes", [], 257), mine, {}, state)
    other, report = transformers.LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert other.dtype == getattr(torch, dtype)
    assert_same(mine(ids).data, other(torch.tensor(ids)).logits, TOLERANCE[dtype], "logits")
