"""Methods in a model of one's own: which parameters their rules get, and what is refused when the optimizer is made."""

import numpy as np
import pytest
from method_checks import SETTINGS
from mutation import mutant_tests

from minisl import methods, optim
from minisl.autograd import Tensor
from minisl.errors import InputError
from minisl.methods import Method, available, drop_muon, frugal, sst, switchlora
from minisl.nn import Linear, Llama, LlamaConfig, Module, Parameter
from minisl.optim import Adam, AdamW, Optimizer
from minisl.swap import swap_linears

VECTORS = ((6,), (), (3, 4, 5), (1, 6), (6, 1), (0, 4), (1, 1))  # what is no matrix
RULES = [name for name in available() if hasattr(methods.get(name), "rule") and not hasattr(methods.get(name), "linear")]
CONFIG = LlamaConfig(16, 24, 1, 2, vocab_size=11)


class Proj(Module):
    """A matrix under a name that ends with _proj, with these parameters beside it."""

    def __init__(self, shapes=VECTORS):
        rng = np.random.default_rng(0)
        self.weight = Parameter(rng.standard_normal((8, 6)))
        for k, shape in enumerate(shapes):
            setattr(self, f"other{k}", Parameter(np.asarray(rng.standard_normal(shape))))


class Holder(Module):
    def __init__(self, **parts):
        vars(self).update(parts)


def own_model():
    """The names of a Llama's layers, since two methods are for those alone."""
    return Holder(model=Holder(layers=[Holder(q_proj=Proj())], embed_tokens=Holder(weight=Parameter(np.ones(5)))))


class Net(Module):
    def __init__(self, dtype="float32"):
        rng = np.random.default_rng(0)
        self.first, self.layers = Linear(8, 8, rng, dtype), [Linear(8, 8, rng, dtype), Linear(8, 8, rng, dtype)]
        self.out = Linear(8, 3, rng, dtype)

    def forward(self, x):
        for layer in (self.first, *self.layers):
            x = layer(x).tanh()
        return self.out(x)


def method(name, **options):
    return Method(name, SETTINGS | {"rank": 2} | options)


def step(model, optimizer):
    for k, p in enumerate(model.parameters()):
        p.grad = np.random.default_rng(k).standard_normal(p.shape).astype(p.dtype)
    optimizer.step()


def check_what_is_no_matrix_has_the_base_rule(names=RULES):
    """Biases, gains, a convolution, one row or column, nothing at all: as AdamW moves them, beside the method's matrix."""
    right = own_model()
    step(right, AdamW(right.named_parameters(), 0.1))
    right = dict(right.named_parameters())
    for name in names:
        model = own_model()
        optimizer = method(name).optimizer(model, 0.1)
        assert optimizer.by_rule == {"model.layers.0.q_proj.weight"}
        method(name).before_step(model, optimizer, 1, 10)
        step(model, optimizer)
        for where, p in model.named_parameters():
            if where in optimizer.by_rule:
                assert type(optimizer.rule(where)) is not Adam, name
            else:
                np.testing.assert_array_equal(p.data, right[where].data, err_msg=f"{name} {where}")


def check_own_layers_anywhere_have_their_rule():
    """SST's vectors keep length 1, SwitchLoRA can switch, in layers whose names say nothing; a bias beside them is AdamW's."""
    for name, rule in (("sst", sst.Mended), ("switchlora", switchlora.VectorAdam)):
        model, how = Net(), method(name, every=1)
        swap_linears(model, how, rng=np.random.default_rng(1), only="layers")
        model.q_proj = Proj()
        optimizer = how.optimizer(model, 0.1)
        own = {where for where, _ in model.named_parameters() if where.startswith("layers")}
        assert optimizer.by_rule == own
        for t in range(1, 4):
            how.before_step(model, optimizer, t, 10)
            (model(Tensor(np.ones((2, 8), np.float32))) ** 2).sum().backward()
            optimizer.step()
            model.zero_grad()
        assert {type(r) for where, r in optimizer.rules.items() if where in own} == {rule}
        assert {type(r) for where, r in optimizer.rules.items() if where not in own} == {Adam}
        with pytest.raises(InputError, match=f"method {name} moves layers of its own, and this model has none"):
            how.optimizer(Net(), 0.1)
    norms = [np.linalg.norm(layer.U.data, axis=0) for layer in swapped("sst").layers]
    np.testing.assert_allclose(norms, 1, rtol=1e-5)


def swapped(name):
    model, how = Net(), method(name)
    swap_linears(model, how, rng=np.random.default_rng(1), only="layers")
    optimizer = how.optimizer(model, 0.1)
    (model(Tensor(np.ones((2, 8), np.float32))) ** 2).sum().backward()
    optimizer.step()
    return model


def check_a_rule_that_would_move_nothing_is_said():
    """Each method with a rule for matrices, in a model without names like a LLaMA's: not plain Adam without a word."""
    for name in RULES:
        with pytest.raises(InputError, match=f"method {name} is for the matrices in parts whose name ends with _proj, and this"):
            method(name).optimizer(Net(), 0.1)


def check_only_says_which():
    names = {"layers.0.weight", "layers.1.weight"}
    for only, chosen in (("layers", names), (["layers"], names), ("layers.1", {"layers.1.weight"}), (("layers", "out"), None),
                         ((n for n in ("layers.0.weight", "layers.1.weight")), names)):
        assert method("galore").optimizer(Net(), 0.1, only=only).by_rule == (chosen or names | {"out.weight"})
    for name, only, words in (("galore", "nose", "only='nose': no matrix of that name; there are: first.weight, layers.0.weight"),
                              ("galore", ("layers", "nose"), "only='nose'"), ("galore", "layer", "only='layer'"),
                              ("galore", 5, "must be names"),
                              ("galore", (), "name some in only="), ("sltrain", "layers", "no rule for dense matrices"),
                              ("sst", "layers", "no rule for dense"), ("frugal", "first", "is in none that has a number"),
                              ("drop_muon", "first", "first.weight is in none; muon moves")):
        with pytest.raises(InputError, match=words):
            method(name).optimizer(Net(), 0.1, only=only)
    optimizer = method("frugal").optimizer(model := Net(), 0.1, only="layers")
    method("frugal").before_step(model, optimizer, 1, 10)
    assert [optimizer.rule(f"layers.{k}.weight").full is not None for k in (0, 1)] == [False, True]


def check_mistakes_are_said_when_the_optimizer_is_made():
    model, galore = own_model(), method("galore")
    for wrong, words in (({"base": "lion"}, "base 'lion': unknown; allowed: adamw, adam8bit, sgd"), ({"base": ["adamw"]}, "base"),
                         ({"lr": float("nan")}, "lr nan: must be a finite number, 0 or above"), ({"lr": -1}, "lr -1"),
                         ({"lr": float("inf")}, "lr inf"), ({"lr": "1e-3"}, "lr '1e-3'"), ({"lr": None}, "lr None"),
                         ({"weight_decay": -0.1}, "weight_decay -0.1"), ({"seed": -1}, "seed -1"), ({"seed": 0.5}, "seed 0.5")):
        with pytest.raises(InputError, match=words):
            galore.optimizer(model, **{"lr": 0.1, **wrong})
    with pytest.raises(InputError, match=r"rank is 7; a 8 x 6 matrix allows 1 to 6 \(model.layers.0.q_proj.weight\)"):
        method("galore", rank=7).optimizer(model, 0.1)
    model.model.layers[0].q_proj.weight.requires_grad = False  # is not moved, so its shape does not matter
    method("galore", rank=7).optimizer(model, 0.1)
    with pytest.raises(InputError, match="must be a Module"):
        galore.optimizer([model], 0.1)


def check_mistakes_with_adamw():
    pairs = list(Net().named_parameters())
    for wrong, more, words in ((Net().parameters(), {}, "pairs"), (Net(), {}, "pairs"), ([], {}, "at least one"),
                               (pairs + list(Net().named_parameters()), {}, "a name for each"),
                               (pairs, {"betas": (0.9, 1)}, "betas"),
                               (pairs, {"betas": 0.9}, "betas 0.9"), (pairs, {"betas": (-0.1, 0.9)}, "betas"),
                               (pairs, {"eps": 0}, "eps 0"), (pairs, {"eps": float("nan")}, "eps nan")):
        with pytest.raises(InputError, match=words):
            AdamW(wrong, 0.1, **more)
    optimizer = AdamW(pairs, 0.1)
    with pytest.raises(InputError, match="lr nan"):
        optimizer.lr = float("nan")
    assert optimizer.lr == 0.1
    for norm in (0, -1, float("nan"), "1", None):
        with pytest.raises(InputError, match="max_norm"):
            optim.clip_grad_norm(Net().parameters(), norm)


def check_an_optimizer_of_another_model_is_said():
    """Made before a swap, of a part of the model, or where a parameter was put in another's place since."""
    how, model = method("sltrain"), Net()
    before = how.optimizer(model, 0.1)
    part = how.optimizer(Holder(part=model), 0.1)
    swap_linears(model, how, rng=np.random.default_rng(1), only="layers")
    later = how.optimizer(model, 0.1)
    how.before_step(model, how.optimizer(model, 0.1), 1, 10)
    model.out.weight = Parameter(model.out.weight.data)
    for optimizer in (before, part, later):
        with pytest.raises(InputError, match="is not the model's: make the optimizer of this model"):
            how.before_step(model, optimizer, 1, 10)
    with pytest.raises(InputError, match="step 0"):
        how.before_step(model, how.optimizer(model, 0.1), 0, 10)


def check_a_model_of_shapes_alone_is_not_trained():
    model = Llama(CONFIG)
    optimizer = method("full").optimizer(model, 0.1)
    with pytest.raises(InputError, match=r"model.embed_tokens.weight is a shape without memory"):
        step(model, optimizer)


def check_a_model_of_wrong_things_is_said():
    for wrong, words in ((lambda: Llama({"hidden_size": 16}), "must be a LlamaConfig"), (lambda: Llama(CONFIG, 0), "rng 0"),
                         (lambda: Linear(3, 4, 42), "rng 42"), (lambda: Llama(CONFIG, None, dtype="int32"), "dtype int32"),
                         (lambda: Llama(CONFIG, np.random.default_rng(0))([[1, 2]]), "got list"),
                         (lambda: Llama(CONFIG, np.random.default_rng(0))(np.ones(3, int)), r"got int64 \(3,\)"),
                         (lambda: Llama(CONFIG, np.random.default_rng(0))(np.ones((1, 3))), "got float64"),
                         (lambda: Llama(CONFIG, np.random.default_rng(0))(np.ones((1, 0), int)), "one token at least")):
        with pytest.raises(InputError, match=words):
            wrong()


def check_what_is_no_state_changes_nothing():
    model = Net()
    optimizer = AdamW(model.named_parameters(), 0.1)
    step(model, optimizer)
    for thing in (model, optimizer):
        state = thing.state_dict()
        before = {name: array.copy() for name, array in state.items()}
        last = list(state)[-1]
        for wrong in (None, list(state), {**state, last: state[last].tolist()}, {**state, 5: state[last]},
                      {**state, last: Parameter(np.ones(3))}):
            with pytest.raises(InputError, match=r"fit this model: .* not a"):
                thing.load_state_dict(wrong)
            assert {name: array.tobytes() for name, array in thing.state_dict().items()} == {
                name: array.tobytes() for name, array in before.items()}


CHECKS = (check_what_is_no_matrix_has_the_base_rule, check_own_layers_anywhere_have_their_rule,
          check_a_rule_that_would_move_nothing_is_said, check_only_says_which, check_mistakes_are_said_when_the_optimizer_is_made,
          check_mistakes_with_adamw, check_an_optimizer_of_another_model_is_said, check_a_model_of_shapes_alone_is_not_trained,
          check_a_model_of_wrong_things_is_said, check_what_is_no_state_changes_nothing)


@pytest.mark.parametrize("check", CHECKS)
def test_own_model(check):
    check()


test_mutants = mutant_tests([
    (methods.is_matrix, "len(shape) == 2", "len(shape) < 4"), (methods.is_matrix, "min(shape) > 1", "min(shape) > 0"),
    (Method.optimizer, "made.check()", "pass"), (Method.by_rule, "if not chosen:", "if False:"),
    (Method.of_its_layers, "if not layers:", "if False:"), (Method.optimizer, "generator(seed)\n", "pass\n"),
    (Optimizer.check, "if p.requires_grad:", "if True:"), (Optimizer.check_is_for, "is not p", "is None"),
    (Method.before_step, "optimizer.check_is_for(model)", "pass"),
    (methods.within, 'f".{name}." in f".{path}."', "name in path"), (frugal.before_step, "if name in optimizer.by_rule", ""),
    (frugal.rule, "layer(name)", "pass"), (drop_muon.rule, 'not name.startswith("model.layers.")', "False"),
    (optim.optimizer.not_negative, "not 0 <= value < math.inf", "value < 0"),
], *CHECKS)
