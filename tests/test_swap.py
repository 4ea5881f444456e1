"""Linears replaced in models of one's own: which, by what, with which gradients; and merged back into dense ones."""

from copy import deepcopy

import numpy as np
import pytest
from mutation import mutant_tests

from minisl import methods, no_grad, swap
from minisl.autograd import Tensor
from minisl.errors import InputError
from minisl.methods.cola import CoLALinear
from minisl.methods.sltrain import SLLinear
from minisl.nn import Embedding, Linear, Llama, LlamaConfig, Module
from minisl.nn.module import Module as ModuleOf
from minisl.swap import merge, swap_linears

CONFIG = LlamaConfig(16, 24, 2, 4, 2, vocab_size=11)
IDS = np.array([[1, 2, 3], [4, 5, 6]])
SL = {"rank": 4, "delta": 0.1, "alpha": 16}


class Two(Module):
    """A tree of a user's: a list, a module in a module, one layer in two places."""

    def __init__(self, rng):
        self.first, self.more = Linear(6, 8, rng), [Linear(8, 8, rng), Inner(rng)]
        self.again = self.more[0]

    def forward(self, x):
        return self.more[1](self.again(self.more[0](self.first(x)).tanh()))


class Inner(Module):
    def __init__(self, rng):
        self.out = Linear(8, 5, rng)

    def forward(self, x):
        return self.out(x)


def rng(seed=0):
    return np.random.default_rng(seed)


def llama():
    return Llama(CONFIG, rng(), dtype="float64")


def check_llama():
    """All fourteen matrices and nothing else; the result is the model that the method builds."""
    model = llama()
    names = swap_linears(model, "sltrain", rng=rng(1), **SL)
    assert len(names) == 14
    assert {n.rpartition(".")[2] for n in names} == {f"{n}_proj" for n in ("q", "k", "v", "o", "gate", "up", "down")}
    modules = dict(model.named_modules())
    assert all(type(modules[n]) is SLLinear for n in names)
    assert type(model.lm_head) is Linear
    built = swap.method("sltrain", **SL).build(CONFIG, rng(), "float64").state_dict()
    assert {n: (a.shape, a.dtype) for n, a in model.state_dict().items()} == {n: (a.shape, a.dtype) for n, a in built.items()}
    assert not np.array_equal(modules[names[0]].lora_A.data, modules[names[7]].lora_A.data)  # each layer draws its own


def check_own_tree():
    """Lists, depth, and a layer that is shared stays shared."""
    model = Two(rng())
    names = swap_linears(model, "sltrain", rng=rng(1), rank=2, delta=0.2, alpha=4)
    assert names == ["first", "more.0", "more.1.out", "again"]
    assert type(model.first) is type(model.more[0]) is type(model.more[1].out) is SLLinear
    assert model.again is model.more[0]
    assert model.first.scale == 2
    assert model.first.shape == (8, 6)
    model(Tensor(rng().standard_normal((3, 6)).astype(np.float32))).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def check_only():
    model = llama()
    before = model.model.layers[0].mlp
    assert swap_linears(model, "sltrain", rng=rng(), only=("q_proj", "v_proj"), **SL) == [
        f"model.layers.{i}.self_attn.{n}_proj" for i in (0, 1) for n in "qv"]
    assert model.model.layers[0].mlp is before
    assert type(model.model.layers[1].self_attn.k_proj) is Linear
    assert len(swap_linears(llama(), "sltrain", rng=rng(), only="mlp", **SL)) == 6
    assert len(swap_linears(llama(), "structured_ffn", rng=rng(), rank=4)) == 6  # the matrices that it is for
    assert swap_linears(Two(rng()), "structured_ffn", rng=rng(), rank=4, only=("first",)) == ["first"]


def check_start():
    """`start` gets each new layer with its old W."""
    model, seen = llama(), []
    old = {n: m.weight.data.copy() for n, m in model.named_modules() if type(m) is Linear}
    names = swap_linears(model, "sltrain", rng=rng(1), start=lambda layer, W: seen.append((layer, W)), **SL)
    modules = dict(model.named_modules())
    assert [layer for layer, _ in seen] == [modules[n] for n in names]
    assert all(np.array_equal(W, old[n]) for n, (_, W) in zip(names, seen))


def check_refused_changes_nothing():
    """A rank that fits the first layers and not the last, names that are not there, settings of other methods."""
    for what, given, words in [
        ("sltrain", {"rank": 6}, "rank is 6"), ("sltrain", {"rank": 2, "only": ("first", "nose")}, "only='nose'"),
        ("sltrain", {"ranks": 2}, "did you mean 'rank'"), ("sltrain", {"rank": 2, "only": ()}, "no Linear"),
        ("sltrain", {"delta": 1.5}, "--delta 1.5"), ("sltrain", {"rank": 0}, "--rank 0"), ("galore", {}, "nothing to swap"),
        ("full", {}, None), ("structured_ffn", {"rank": 2}, "gate_proj"), ("lora", {}, "allowed"),
        ("relora", {"every": 0}, "--every")]:
        model = Two(rng())
        before = dict(model.named_modules())
        if words is None:
            assert len(swap_linears(model, what, rng=rng(), **given)) == 4
            continue
        with pytest.raises(InputError, match=words):
            swap_linears(model, what, rng=rng(), **given)
        assert {n: id(m) for n, m in model.named_modules()} == {n: id(m) for n, m in before.items()}
    with pytest.raises(InputError, match="stays dense"):
        swap_linears(llama(), "sltrain", rng=rng(), only=("lm_head",), **SL)


def state(model):
    """Which module is where, and every number."""
    return [(path, id(m)) for path, m in model.named_modules()], {n: a.tobytes() for n, a in model.state_dict().items()}


def check_settings_beside_a_method_are_not_dropped():
    with pytest.raises(InputError, match="rank=: the settings of a Method are in it already"):
        swap_linears(Two(rng()), swap.method("sltrain", rank=2), rng=rng(), rank=3)


def check_a_bare_layer_is_not_swapped_into_nothing():
    """What nothing holds cannot be replaced: a Linear, a method's layer, a list of layers."""
    layer = swap.method("sltrain", **SL).module.linear(6, 8, rng(), "float32", **swap.method("sltrain", **SL).options)
    for bare in (Linear(6, 8, rng()), [Linear(6, 8, rng())], None):
        with pytest.raises(InputError, match=r"Module that holds|not a Module"):
            swap_linears(bare, "sltrain", rng=rng(), **SL)
    for bare in (Linear(6, 8, rng()), layer):
        with pytest.raises(InputError, match=r"Module that holds"):
            merge(bare)


def check_a_shared_weight_stays_shared():
    """Two Linears of one weight become one layer; of one that something else keeps, none."""
    model = Two(rng())
    model.twin = Linear(8, 8, rng())
    model.twin.weight = model.again.weight
    swap_linears(model, "sltrain", rng=rng(1), rank=2, delta=0.2)
    assert model.twin is model.again is model.more[0]
    assert type(model.twin) is SLLinear
    for tie in (lambda m: setattr(m.table, "weight", m.first.weight), lambda m: setattr(m, "table", m.first.weight),
                lambda m: setattr(m.lm_head, "weight", m.first.weight), lambda m: setattr(m.first, "bias", m.lm_head.weight)):
        model = Two(rng())
        model.table, model.lm_head = Embedding(8, 6, rng()), Linear(6, 8, rng())
        tie(model)
        before = state(model)
        with pytest.raises(InputError, match=r"shares its weight with|has a bias beside its weight"):
            swap_linears(model, "sltrain", rng=rng(), rank=2)
        assert state(model) == before
        assert len(swap_linears(model, "sltrain", rng=rng(), rank=2, only="more")) == 3 - 1


class Halves(Module):
    """A layer of a method whose W is that of the two layers in it, neither of which has one."""

    __module__ = "minisl.methods.halves"

    def __init__(self):
        self.parts = [CoLALinear(4, 3, rng(), rank=2) for _ in range(2)]

    def to_dense(self):
        return np.concatenate([part.B.data @ part.A.data for part in self.parts])


def check_merge_keeps_what_is_shared():
    model = Two(rng())
    model.halves = Halves()
    swap_linears(model, "structured_ffn", rng=rng(1), rank=2, only=("first", "more"))  # a layer with a layer in it
    merge(model)
    assert type(model.again) is type(model.halves) is Linear
    assert model.again is model.more[0]


def check_merge_is_all_or_nothing():
    """One layer that has no W, after some that have one: of another class, or by a flag."""
    for name, more, words in (("cola", {}, "a CoLALinear"), ("lost", {"activation": "silu"}, "--activation silu")):
        model = Two(rng())
        swap_linears(model, "sltrain", rng=rng(1), rank=2, delta=0.2, only=("first", "more.0"))
        swap_linears(model, name, rng=rng(1), rank=2, **more)
        before = state(model)
        with pytest.raises(InputError, match=f"more.1.out: {words}"):
            merge(model)
        assert state(model) == before


def check_only_as_it_can_be_written():
    """A generator, a path, a part of one; what are no names is said."""
    for only in ((n for n in ("first", "more")), ["first", "more.0", "more.1"], {"first", "more"}):
        assert swap_linears(Two(rng()), "sltrain", rng=rng(), rank=2, only=only) == ["first", "more.0", "more.1.out"]
    for only in (5, [5], "fir", ""):
        with pytest.raises(InputError, match=r"must be names|no Linear of that name"):
            swap_linears(Two(rng()), "sltrain", rng=rng(), rank=2, only=only)


def check_back_and_forth():
    """Swapped twice is refused; merged, it can be swapped again, by another method too."""
    model = llama()
    swap_linears(model, "sltrain", rng=rng(1), **SL)
    with pytest.raises(InputError, match="no Linear to swap"):
        swap_linears(model, "sltrain", rng=rng(1), **SL)
    for name in ("low_rank", "relora", "sltrain"):
        assert len(swap_linears(merge(model), name, rng=rng(1), rank=4)) == 14
    assert sorted(merge(merge(model)).state_dict()) == sorted(llama().state_dict())


def moved(model):
    """Every array away from its start, so that no part of a W is 0."""
    for i, p in enumerate(model.parameters()):
        p.data = p.data + 0.3 * rng(i).standard_normal(p.shape).astype(p.dtype)
    return model


def check_merge():
    """The same logits from dense layers alone, in the same dtype. Rejects a merge without alpha/r, without S, or of one layer."""
    for name, settings in {"sltrain": SL, "sltrain learned": {**SL, "learned_scale": True}, "low_rank": {"rank": 4},
                           "structured_ffn": {"rank": 4}, "relora": {"rank": 4}}.items():
        model = llama()
        swap_linears(model, name.split()[0], rng=rng(1), **settings)
        moved(model)
        with no_grad():
            expected = model(IDS).data
            assert merge(model) is model
            np.testing.assert_allclose(model(IDS).data, expected, rtol=1e-9, atol=1e-12)
        assert sorted(model.state_dict()) == sorted(llama().state_dict())
        assert {a.dtype for a in model.state_dict().values()} == {np.dtype("float64")}


def check_no_w():
    model = llama()
    swap_linears(model, "cola", rng=rng(), rank=4)
    with pytest.raises(InputError, match="q_proj: a CoLALinear is no linear function"):
        merge(model)
    assert type(model.model.layers[0].self_attn.q_proj) is CoLALinear


CHECKS = (check_llama, check_own_tree, check_only, check_start, check_refused_changes_nothing, check_merge, check_no_w,
          check_settings_beside_a_method_are_not_dropped, check_a_bare_layer_is_not_swapped_into_nothing,
          check_a_shared_weight_stays_shared, check_merge_keeps_what_is_shared, check_merge_is_all_or_nothing,
          check_only_as_it_can_be_written, check_back_and_forth)


@pytest.mark.parametrize("check", CHECKS)
def test_swap(check):
    check()


test_mutants = mutant_tests([
    (swap.wanted, "not within(path, [HEAD]) and ", ""),
    (swap.wanted, "return within(path, only)", "return within(path.rpartition('.')[2], only)"),
    (swap.wanted, 'getattr(how.module, "ONLY", [path])', "[path]"),
    (swap.swap_linears, "made.get(id(m.weight), m) if", "(id(m.weight) in made and new_layer(how, m, rng, start) or m) if"),
    (swap.swap_linears, "check_names(model, how, only, list(old))", "pass"),
    (swap.swap_linears, "check_shared(model, old)", "pass"),
    (swap.swap_linears, "isinstance(how, Method) and settings", "False"),
    (swap.swap_linears, "made.get(id(m.weight), m) if", "next(iter(made.values())) if"),
    (swap.check_tree, "isinstance(model, Linear)", "False"),
    (swap.merge, "if path.startswith(whole):", "if False:"),
    (swap.new_layer, "in_features, out_features, init", "out_features, in_features, init"),
    (swap.new_layer, "init.spawn(rng)", "__import__('numpy').random.default_rng(0)"),
    (swap.new_layer, "old.weight.dtype.name", "'float32'"),
    (swap.new_layer, "start(layer, old.weight.data)", "start(layer, 0 * old.weight.data)"),
    (swap.dense, "W = layer.to_dense()", "W = layer.to_dense() * 0.5"),
    (swap.merge, "made[id(layer)] or layer", "made[id(layer)]"),
    (SLLinear.to_dense, "s * self.lora_B", "self.lora_B"),
    (SLLinear.to_dense, "self.sparse_value.data", "s * self.sparse_value.data"),
    (SLLinear.to_dense, "np.tanh(self.scaling.data)", "self.scaling.data"),
    (ModuleOf.replace_modules, "if new is module:", "if False:"),
    (ModuleOf.replace_modules, "range(len(value)) if listed", "range(1) if listed"),
    (swap.method, "if k in known", "if False"),
    (swap.method, "if k in own", "if False"),
], *CHECKS)


def test_a_swapped_model_learns_with_the_methods_optimizer():
    """A loop of one's own, as in docs/api.md; only the swapped layers are trained on top of what was there."""
    how = swap.method("sltrain", **SL)
    model = llama()
    swap_linears(model, how, rng=rng(1))
    optimizer, losses = how.optimizer(model, lr=0.02), []
    for step in range(30):
        loss = model.loss(IDS[:, :-1], IDS[:, 1:], 1 / 4)
        loss.backward()
        how.before_step(model, optimizer, step + 1, 30)
        optimizer.step()
        model.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", [m for m in methods.available() if hasattr(methods.get(m), "linear")])
def test_every_method_of_layers(name):
    settings = {"rank": 4} if "rank" in getattr(methods.get(name), "OPTIONS", ()) else {}
    model = llama()
    swap_linears(model, name, rng=rng(), **settings)
    other = deepcopy(model)
    np.testing.assert_array_equal(other(IDS).data, model(IDS).data)
