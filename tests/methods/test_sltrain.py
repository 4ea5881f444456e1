"""The SLTrain layer: support, start, gradients, learned scale."""

import numpy as np
import pytest
from kernel_checks import BACKENDS
from method_checks import SETTINGS, check_layer_gradient, check_start, check_support, layer

from minisl import Tensor
from minisl.autograd import ops
from minisl.errors import InputError
from minisl.methods import build_model
from minisl.methods.sltrain import sample_support
from minisl.nn import LlamaConfig


def test_support():
    check_support()


def test_start(backend):
    check_start()


@pytest.mark.parametrize("algorithm", ["materialised", "factored"])
@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("learned_scale", [False, True])
def test_gradient(algorithm, backend, learned_scale):
    check_layer_gradient(algorithm=algorithm, learned_scale=learned_scale)


def test_int64_where_int32_does_not_reach():
    assert sample_support(50_000, 50_000, 1e-8, np.random.default_rng(0)).dtype == np.int64
    assert sample_support(40_000, 50_000, 1e-8, np.random.default_rng(0)).dtype == np.int32


def test_random_support_is_uniform():
    """Each position is drawn about equally often: no row, column or corner is preferred."""
    rng, counts = np.random.default_rng(0), np.zeros(60)
    for _ in range(2000):
        counts[sample_support(6, 10, 0.2, rng)] += 1
    assert abs(counts / 2000 - 0.2).max() < 0.05  # five standard deviations


def test_nothing_flows_when_s_starts_at_zero_too(backend):
    """Why S must not: with B = 0 and S = 0 the layer outputs 0 and A, B of a deeper net never move together."""
    one = layer()
    one.sparse_value.data[:] = 0
    x = Tensor(np.random.default_rng(0).standard_normal((3, 6)), requires_grad=True)
    y = one(x)
    (y * y).sum().backward()
    assert not y.data.any()
    assert not x.grad.any()
    assert not any(p.grad.any() for p in one.parameters())


def test_learned_scale_starts_at_tanh_1():
    one = layer(learned_scale=True)
    one.lora_B.data = np.random.default_rng(3).standard_normal(one.lora_B.shape)
    BA = one.lora_B.data @ one.lora_A.data
    fixed = layer()
    np.testing.assert_allclose(one.to_dense(), np.tanh(1) * BA + fixed.to_dense(), rtol=1e-12)
    assert dict(one.named_parameters()).keys() == {"lora_A", "lora_B", "sparse_value", "scaling"}


def test_state_has_the_public_names():
    assert layer().state_dict().keys() == {"lora_A", "lora_B", "sparse_value", "sparse_index"}


def test_loading_another_support_moves_the_entries():
    one, two = layer(seed=1), layer(seed=2)
    assert not np.array_equal(one.sparse_index, two.sparse_index)
    one.load_state_dict(two.state_dict())
    np.testing.assert_array_equal(one.to_dense(), two.to_dense())
    x = Tensor(np.random.default_rng(0).standard_normal((3, 6)))
    np.testing.assert_array_equal(one(x).data, two(x).data)


@pytest.mark.parametrize(("wrong", "match"), [({"rank": 7}, "1 to 5"), ({"rank": 0}, "1 to 5"), ({"delta": 0.0}, "strictly"),
                                              ({"delta": 1.0}, "strictly"), ({"delta": float("nan")}, "strictly")])
def test_values_that_cannot_be(wrong, match):
    with pytest.raises(InputError, match=match):
        layer(**wrong)


def test_same_seed_same_start_and_other_layers_undisturbed():
    """The embedding of a full-rank model and of an SLTrain model with the same seed are the same."""
    config = LlamaConfig(8, 12, 1, 2, vocab_size=16)
    models = [build_model(config, m, SETTINGS | {"rank": 2}, np.random.default_rng(5)) for m in ("full", "sltrain", "sltrain")]
    full, one, two = (m.state_dict() for m in models)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        np.testing.assert_array_equal(full[name], one[name])
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


def test_trains_with_activation_checkpointing(backend):
    """Same gradients with and without, through every parameter of a model."""
    config = LlamaConfig(8, 12, 2, 2, vocab_size=16)
    ids = np.random.default_rng(0).integers(0, 16, (2, 6))
    results = []
    for on in (False, True):
        model = build_model(config, "sltrain", SETTINGS | {"rank": 2}, np.random.default_rng(5), "float64")
        model.model.activation_checkpointing = on
        ops.cross_entropy(model(ids[:, :-1]), ids[:, 1:]).backward()
        results.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in results[0].items():
        np.testing.assert_array_equal(gradient, results[1][name], err_msg=name)
