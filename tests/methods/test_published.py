"""Beside the published code: what it made of given inputs, and what minisl makes of them. tests/golden/README.md says which code.

How far apart two results are is measured in parts of what the published one has moved. Where a tolerance is not that of rounding,
a comment says why; each such difference is a line of the method's file, too.
"""

from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from method_checks import SETTINGS
from mutation import mutant_tests

from minisl import Tensor
from minisl.kernels.numpy_fused import dynamic_map
from minisl.methods import (
    Method,
    apollo,
    cola,
    fira,
    frugal,
    galore,
    low_rank,
    muon,
    polargrad,
    relora,
    scale,
    sltrain_svd,
    spam,
    structured_ffn,
    switchlora,
    trp,
)
from minisl.methods.sltrain import SLLinear
from minisl.nn.module import Module, Parameter
from minisl.optim import Adam, Optimizer, refined, schedules

GOLDEN = Path(__file__).parents[1] / "golden"
SHAPES = "wide", "tall"
ROUNDING = {np.dtype("float32"): 2e-6, np.dtype("float64"): 1e-13}


@cache
def golden(name):
    """The arrays of a file; its settings as floats."""
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] if file[key].ndim else float(file[key]) for key in file.files}


def close(found, right, start=0.0, tolerance=None):
    """Apart by no more than this part of how far `right` has come from `start`; None: by rounding."""
    assert found.shape == right.shape
    limit = ROUNDING[right.dtype] if tolerance is None else tolerance
    distance = abs(found - right).max() / abs(right - start).max()
    assert distance <= limit, f"{distance:.1e} apart"


def moved(rule, W0, gradients, lr, weight_decay=0.0):
    """The weights after each update."""
    rule.weight_decay = weight_decay
    W, found = W0.copy(), []
    for g in gradients:
        rule.update(W, g.copy(), lr)
        found.append(W.copy())
    return np.array(found)


# GaLore and what is made of it: the rule inside is an argument, and eps is Adam's

class EpsFirst(Adam):
    """Adam that adds eps to sqrt(v) before bias correction, as the published optimizers of this family."""

    def update(self, weights, gradient, lr):
        self.step += 1
        self.exp_avg += 0.1 * (gradient - self.exp_avg)
        self.exp_avg_sq += 0.001 * (gradient**2 - self.exp_avg_sq)
        weights -= lr * self.correction() * self.exp_avg / (np.sqrt(self.exp_avg_sq) + self.eps)


class Raw(EpsFirst):
    """Without bias correction."""

    def correction(self):
        return 1.0


def gaussian_draws(P, gap):
    """Stands in for the random numbers: a P (r, s) for updates 1, gap + 1, ..., whatever comes between."""
    return lambda t: SimpleNamespace(standard_normal=lambda shape: P[(t - 1) / gap].reshape(shape) * shape[0] ** 0.5)


def with_signs_of(projector, P):
    """A singular vector's sign is arbitrary, and up to LAPACK: take that of the stored P."""
    choose, stored = projector.choose, iter(P)

    def signed(gradient, t):
        mine, right = choose(gradient, t), next(stored)
        mine *= np.sign((mine * right).sum(axis=1, keepdims=True))
        close(mine, right, tolerance=1e-4)
        return mine

    projector.choose = signed


def projected(name, shape, base):
    """The rule of a file of this family, with its P."""
    z = golden(name)
    options = {"rank": int(z["rank"]), "every": int(z["gap"]), "scale": z.get("scale", z.get("alpha"))}
    P = [p.T if shape == "wide" else p for p in z.get(f"{shape}_P", ())]
    if name.startswith("apollo"):
        mini = name == "apollo_mini"
        if mini:
            assert options.pop("scale") == 128  # what --mini has by itself
            options |= {"scale": 1.0, "rank": 7}
        draws = gaussian_draws({float(k): p for k, p in enumerate(P)}, options["every"])
        return apollo.rule("w", z[f"{shape}_W0"], base, draws, granularity="channel", mini=mini, projector="gaussian", **options)
    options |= {"projector": "svd", "at_change": "keep"} | ({"residual": "code"} if name == "fira" else {})
    rule = {"fira": fira, "galore": galore}[name].rule("w", z[f"{shape}_W0"], base, None, **options)
    with_signs_of(rule.projector, P)
    return rule


PROJECTED = [  # array, Adam inside, weight decay, tolerance
    ("W", partial(EpsFirst, eps=1e-6), 0.0, None),
    ("W_eps0", partial(Adam, eps=1e-12), 0.0, None),
    ("W_raw", partial(Raw, eps=1e-12), 0.0, None),
    ("W_decay", partial(EpsFirst, eps=1e-6), 0.1, 1.5e-3),  # lr wd = 1e-3: there the new weights decay
    ("W", Adam, 0.0, 0.06),  # ours by default: eps = 1e-8, after the correction
]


def check_projected(name):
    z = golden(name)
    for array, base, decay, tolerance in PROJECTED:
        for shape in SHAPES:
            if f"{shape}_{array}" not in z:
                continue
            if (name, array) == ("galore", "W_decay"):
                base = partial(Adam, eps=1e-12)
            right = z[f"{shape}_{array}"]
            found = moved(projected(name, shape, base), z[f"{shape}_W0"], z[f"{shape}_G"], z["lr"], decay)
            close(found[-len(right):], right, z[f"{shape}_W0"], tolerance)


@pytest.mark.parametrize("name", ["apollo_channel", "apollo_mini", "fira", "galore"])
def test_projected(name):
    check_projected(name)


def test_galore_sides():
    """The short side is the left one of wide matrices and the right one of tall ones; others are not here. Up to the second P:
    its signs were not stored."""
    z = golden("galore_sides")
    for shape, side in (("wide", "left"), ("tall", "right")):
        rule = galore.rule("w", z[f"{shape}_W0"], partial(EpsFirst, eps=1e-6), None, rank=4, every=5, scale=0.25,
                           projector="svd", at_change="keep")
        found = moved(rule, z[f"{shape}_W0"], z[f"{shape}_G"], z["lr"])
        close(found[z["kept"].astype(int) - 1][:2], z[f"{shape}_W_{side}"][:2], z[f"{shape}_W0"])


# FRUGAL

def test_frugal_svd():
    z = golden("frugal_svd")
    for shape in SHAPES:
        for array, decay in (("W", z["weight_decay"]), ("W_nodecay_last", 0.0)):
            options = {"split": "svd", "density": z["density"], "every": int(z["gap"]), "free_rate": 1.0}
            rule = frugal.rule("w", z[f"{shape}_W0"], Adam, None, **options)
            found = moved(rule, z[f"{shape}_W0"], z[f"{shape}_G"], z["lr"], decay)
            close(found if array == "W" else found[-1], z[f"{shape}_{array}"], z[f"{shape}_W0"])


def test_frugal_blocks():
    z = golden("frugal_blocks")
    for right, decay in ((z["W_descending"], z["weight_decay"]), (z["W_descending_nodecay_last"][None], 0.0)):
        names = [f"model.layers.{k}.self_attn.q_proj.weight" for k in range(8)]
        parameters = {name: Parameter(W.copy()) for name, W in zip(names, z["W0"])}
        method = Method("frugal", SETTINGS | {"method_options": {"density": z["density"], "every": int(z["gap"])}})
        model = Module()
        model.named_parameters = parameters.items
        optimizer = method.optimizer(model, z["lr"], weight_decay=decay)
        found = []
        for step, gradients in enumerate(z["G"], 1):
            method.before_step(None, optimizer, step, 20)
            assert [optimizer.rules[name].full is not None for name in names] == list(z["active_descending"][step - 1])
            for p, g in zip(parameters.values(), gradients):
                p.grad = g.copy()
            optimizer.step()
            found.append([p.data.copy() for p in parameters.values()])
        close(np.array(found)[-len(right):], right, z["W0"])


# SPAM

def spam_moves(z, gradients, decay=0.0, draws=None, **changes):
    options = {"every": int(z["T"]), "rewarm": int(z["N"]), "threshold": z["threshold"], "density": 1.0, "reset_count": False}
    return moved(spam.rule("w", z["W0"], Adam, draws, **options | changes), z["W0"], gradients, z["lr"], decay)


def check_spam():
    """Three resets, small gradients (against eps), and the warm-up's factors."""
    z = golden("spam")
    kept = z["kept"].astype(int) - 1
    close(spam_moves(z, z["G"]), z["W"], z["W0"])
    close(spam_moves(z, z["G"] * np.float32(z["small"]))[kept], z["W_small"], z["W0"])
    decayed = spam_moves(z, z["G"], decay=z["decay_decay"])[kept]
    close(decayed, z["W_decay"], z["W0"], 1.5e-3)  # lr wd = 1e-3: there the new weights decay
    for N, factors in ((3, "factor_after_reset"), (150, "factor_after_reset_150")):
        close(np.array([spam.warmth(k, N) for k in range(len(z[factors]))]), z[factors])


def check_spam_clip():
    """Spikes before and after clipping begins, with the published threshold, a low one, and none."""
    z = golden("spam_clip")
    close(spam_moves(z, z["G"]), z["W"], z["W0"])
    close(spam_moves(z, z["G"], threshold=z["threshold_low"])[z["kept_low"].astype(int) - 1], z["W_low"], z["W0"])
    close(spam_moves(z, z["G"], threshold=0.0)[-1], z["W_unclipped_last"], z["W0"])


def check_spam_density():
    """Each entry by itself, so where the mask of an update has it, it moves as without a mask. Later masks are not of a fixed
    number of entries there; here they are."""
    z = golden("spam_density")
    free, right = (np.diff(W, axis=0, prepend=z["W0"][None]) for W in (spam_moves(z, z["G"]), z["W"]))
    close(free * z["mask"], right, tolerance=1e-5)  # differences of weights in float32
    first = np.flatnonzero(z["mask"][0])
    drawn = SimpleNamespace(choice=lambda size, count, **_: first[:count])
    close(spam_moves(z, z["G"][:7], draws=lambda t: drawn, density=z["density"]), z["W"][:7], z["W0"])


@pytest.mark.parametrize("check", [check_spam, check_spam_clip, check_spam_density])
def test_spam(check):
    check()


# Muon, SCALE, PolarGrad

@pytest.mark.parametrize(("name", "update_scale", "tolerance"), [
    ("muon", "original", None),
    ("muon_moonlight", "moonlight", 5e-6),  # under the norm, 1e-7 is added to our average, there to a sum 20 times as large
])
def test_muon(name, update_scale, tolerance):
    z = golden(name)
    for shape in SHAPES:
        rule = muon.rule("w", z[f"{shape}_W0"], None, None, momentum=z["momentum"], update_scale=update_scale)
        found = moved(rule, z[f"{shape}_W0"], z[f"{shape}_G"], z["lr"], z["weight_decay"])
        close(found, z[f"{shape}_W"], z[f"{shape}_W0"], tolerance)
        if name == "muon":
            close(found[-1], z[f"{shape}_W_bf16_last"], z[f"{shape}_W0"], 0.03)  # the code as it is multiplies in bfloat16


def test_scale():
    z = golden("scale")
    for name in ("q", "up", "down", "embed", "head", "norm"):
        where = {"embed": scale.EMBEDDINGS, "head": scale.HEAD, "norm": "model.norm.weight"}.get(name)
        rule = (scale.rule_elsewhere if where else scale.rule)(where, z[f"{name}_W0"], Adam, None, momentum=z["momentum"])
        found = moved(rule, z[f"{name}_W0"], z[f"{name}_G"], z["lr"], z["weight_decay"])
        close(found, z[f"{name}_W"], z[f"{name}_W0"], 1e-4 if name == "norm" else None)  # the gains' eps, before the correction


@pytest.mark.parametrize("order", ["momentum_first", "polar_first"])
def test_polargrad(order):
    """With the exact polar factor; the two QDWH steps that are shipped give steps 6 to 35 times smaller."""
    z = golden("polargrad")
    for shape in SHAPES:
        options = {"momentum": z["momentum"], "order": order.replace("_", "-"), "matrix_lr": 1.0}
        rule = polargrad.rule("w", z[f"{shape}_W0"], None, None, **options)
        found = moved(rule, z[f"{shape}_W0"], z[f"{shape}_G"], z["lr"], z["weight_decay"])
        kept = slice(None) if order == "momentum_first" else z["kept_polar_first"].astype(int) - 1
        close(found[kept], z[f"{shape}_W_{order}"], z[f"{shape}_W0"])


# The refined schedule, 8-bit tables, TRP's truncation

def check_refined():
    z = golden("refined")
    for case in ("falls", "falls_noisy", "rises", "noise", "unsmoothed"):
        norms = z[f"{case}_norms"]
        close(refined(norms, len(norms)), z[f"{case}_factors"])


def test_refined():
    check_refined()


def test_adam8bit_tables():
    for name in ("signed", "unsigned"):
        np.testing.assert_array_max_ulp(dynamic_map(name == "signed"), golden("adam8bit_tables")[name], maxulp=2)


def test_trp():
    """Truncation, and with it the sub-gradient of the nuclear norm by 0.01: all kept singular values are larger than that."""
    z = golden("trp")
    for shape in ("wide", "tall", "square"):
        for energy in z["energies"]:
            W, right = z[f"{shape}_W"], {k: z[f"{shape}_{energy * 100:.0f}_{k}"] for k in ("truncated", "subgradient", "rank")}
            found = trp.truncated(W, energy, 0.0)
            close(found, right["truncated"])
            assert np.linalg.matrix_rank(found) == right["rank"]
            close(trp.truncated(W, energy, 0.01), right["truncated"] - 0.01 * right["subgradient"])


# Layers: the output and all gradients

def check_layer(layer, z, prefix, names, rename=lambda array: array):
    """names: attribute -> its name in the file."""
    for attribute, name in names.items():
        getattr(layer, attribute).data = rename(z[prefix + name]).copy()
    x = Tensor(z[prefix + "x"], requires_grad=True)
    y = layer(x)
    close(y.data, z[prefix + "y"])
    y.backward(z[prefix + "dy"])
    close(x.grad, z[prefix + "dx"])
    for attribute, name in names.items():
        close(getattr(layer, attribute).grad, rename(z[f"{prefix}d{name}"]))


SIDES = (20, 12), (12, 20), (12, 12)
FACTORS = {"lora_A": "A", "lora_B": "B"}


@pytest.mark.parametrize("algorithm", ["materialised", "factored"])
def test_sltrain(algorithm):
    z = golden("sltrain")
    for (out, width), learned in [*((sides, "") for sides in SIDES), ((20, 12), "learned_")]:
        layer = SLLinear(width, out, np.random.default_rng(0), "float64", rank=4, delta=z["delta"], alpha=z["alpha"],
                         learned_scale=bool(learned), algorithm=algorithm)
        prefix = f"{out}x{width}_{learned}"
        layer.sparse_index = z[prefix + "index"].astype(np.int32)
        check_layer(layer, z, prefix, FACTORS | {"sparse_value": "v"} | ({"scaling": "scaling"} if learned else {}))


def test_low_rank():
    z = golden("low_rank")
    for out, width in SIDES:
        layer = low_rank.linear(width, out, np.random.default_rng(0), "float64", rank=4, alpha=z["alpha"])
        check_layer(layer, z, f"{out}x{width}_", FACTORS)


def test_cola():
    z = golden("cola")
    for out, width in SIDES:
        layer = cola.linear(width, out, np.random.default_rng(0), "float64", rank=4)
        check_layer(layer, z, f"{out}x{width}_", {"A": "a", "B": "b"}, np.transpose)  # a is (in, r) there, b (r, out)


@pytest.mark.parametrize(("out", "width"), [(24, 16), (16, 24)])
@pytest.mark.parametrize("kind", ["low_rank", "block_dense", "block_shuffle"])
def test_structured_ffn(kind, out, width):
    """The student alone, and beside its guide at four updates. Outputs of block_shuffle are in another order there."""
    z, prefix = golden(f"structured_ffn_{out}x{width}"), f"{out}x{width}_{kind}_"
    blocks = int(z["blocks"])
    order = np.arange(out).reshape(-1, blocks).T.ravel() if kind == "block_shuffle" else np.arange(out)
    z = z | {prefix + name: z[prefix + name][..., order] for name in ("y", "dy", "y_guided")}
    z[prefix + "guide"] = z[prefix + "guide"][order]
    rank = 6 if (kind, out) == ("block_dense", 24) else 4
    layer = structured_ffn.linear(width, out, np.random.default_rng(0), "float64", 0.5, rank=rank, kind=kind, blocks=blocks)
    check_layer(layer.student, z, prefix, {"V": "V", "U": "U"})
    layer.guide.data = z[prefix + "guide"]
    model = SimpleNamespace(named_modules=lambda: [("w", layer)])
    for step, share in enumerate(z["ratio"], 1):
        structured_ffn.before_step(model, Optimizer(layer.named_parameters(), 0.0, None), step, 2 * int(z["T"]), None, guided=0.5)
        assert abs(layer.a - share) < 1e-15
        for right in z[prefix + "y_guided"][z["y_guided_at"] == step]:
            close(layer(Tensor(z[prefix + "x"])).data, right)


# Layers whose frozen part changes: SwitchLoRA, ReLoRA, refactorisation

class Block(Module):
    def __init__(self, layer):
        self.q_proj = layer


@pytest.mark.parametrize("name", ["tall", "wide", "two"])
def test_switchlora(name):
    """Thirty switches: which vectors meet, the frozen weight, and who is held. (Its calendar asks for 0.3^(t/t*) at update t,
    counted from 1, ours for t - 1.)"""
    z = golden(f"switchlora_{name}")
    out, width, r = int(z["out"]), int(z["in"]), int(z["rank"])
    layer = switchlora.SwitchLoRALinear(width, out, np.random.default_rng(0), "float64", rank=r, alpha=z["alpha"])
    spare = min(out, width) - r
    layer.weight, layer.lora_A.data, layer.lora_B.data = (z[f"{name}_before"].copy() for name in ("weight", "A", "B"))
    layer.spare_A, layer.spare_B = z["candidates_A_before"][:spare].copy(), z["candidates_B_before"][:spare].T.copy()
    optimizer = Method("switchlora", SETTINGS | {"rank": r}).optimizer(Block(layer), 0.0)
    asked = SimpleNamespace(random=lambda: z["each"])
    model = SimpleNamespace(named_modules=lambda: [("q_proj", layer)])
    for t, done in enumerate(z["done"], 1):
        before = int(layer.switches[0])
        switchlora.before_step(model, optimizer, t, 1000, asked, rank=r, switch_alpha=1.0, every=10**6, hold=int(z["hold"]))
        assert layer.switches[0] - before == done
        for factor in ("A", "B"):
            age = optimizer.rule(f"q_proj.lora_{factor}").age
            np.testing.assert_array_equal(age.ravel() < 0, z[f"held_{factor}"][t - 1])
            getattr(layer, f"lora_{factor}").grad = np.zeros(getattr(layer, f"lora_{factor}").shape)
        optimizer.step()
        if t == z["updates_ten"] or t == len(z["done"]):
            when = "ten" if t == z["updates_ten"] else "after"
            np.testing.assert_array_equal(layer.lora_A.data, z[f"A_{when}"])
            np.testing.assert_array_equal(layer.lora_B.data, z[f"B_{when}"])
            close(layer.weight, z[f"weight_{when}"])


def job(name, z, layer, extra=(), **options):
    """(method, module, optimizer) for one layer."""
    method = Method(name, SETTINGS | {"rank": int(z["rank"]), "alpha": z["alpha"], "delta": z.get("delta", 0.1),
                                      "method_options": {"every": int(z["every"]), **options}})
    block = Block(layer)
    for key, array in extra:
        setattr(block, key, Parameter(array.copy()))
    return method, block, method.optimizer(block, 0.0)


def check_relora():
    """Thirteen updates, the last at rate 0, a merge with A drawn anew, nine more. Adam's count goes on."""
    z, out, width = golden("relora"), 20, 12
    layer = relora.ReLoRALinear(width, out, np.random.default_rng(0), rank=4, alpha=z["alpha"])
    layer.weight.data, layer.lora_A.data, layer.lora_B.data = (z[name].copy() for name in ("weight0", "A0", "B0"))
    method, block, optimizer = job("relora", z, layer, warm_start=0.0, rewarm=int(z["rewarm"]))
    after_warmup = z["lr"] * z["multiplier"][12 + int(z["rewarm"])]  # what the second warm-up goes up to
    for step, (x, dy, rate) in enumerate(zip(z["x"], z["dy"], z["rates"]), 1):
        optimizer.lr = after_warmup if 12 < step <= 15 else rate
        method.before_step(block, optimizer, step, int(z["steps"]))
        np.testing.assert_allclose(optimizer.lr, rate, rtol=1e-12)
        if step == 1 + z["merged_after_update"]:
            close(layer.weight.data, z["weight_merged"], z["weight0"])
            np.testing.assert_array_equal(layer.lora_B.data, z["B_reinit"])
            assert optimizer.rules["q_proj.lora_A"].step == z["count_after_reset"]
            layer.lora_A.data[...] = z["A_reinit"]  # drawn there
        y = layer(Tensor(x))
        close(y.data, z["y"][step - 1])
        y.backward(dy)
        optimizer.step()
        block.zero_grad()
        close(layer.lora_A.data, z["A"][step - 1], tolerance=1e-5)
        close(layer.lora_B.data, z["B"][step - 1], tolerance=1e-5) if step > 1 else None


def check_refactorisation():
    """Twelve updates of a layer and of a dense D beside it, a split, twelve more: all are reset, and the rate recovers."""
    z, out, width = golden("sltrain_svd"), 20, 12
    layer = SLLinear(width, out, np.random.default_rng(0), rank=4, delta=z["delta"], alpha=z["alpha"])
    layer.lora_A.data, layer.lora_B.data, layer.sparse_value.data = (z[f"{name}0"].copy() for name in "ABv")
    layer.sparse_index = z["index"].astype(np.int32)
    method, block, optimizer = job("sltrain_svd", z, layer, [("D", z["D0"])])
    recovered = {step: z["lr"] * z["multiplier"][22 if step < 24 else 34] for step in (*range(13, 22), 24)}
    for step, (x, dy, gD, rate, count) in enumerate(zip(z["x"], z["dy"], z["GD"], z["rates"], z["count"]), 1):
        optimizer.lr = recovered.get(step, rate)
        method.before_step(block, optimizer, step, int(z["steps"]))
        np.testing.assert_allclose(optimizer.lr, rate, rtol=1e-9)
        if step == 1 + z["split_after_update"]:
            signs = np.sign((layer.lora_A.data * z["A_split"]).sum(axis=1))  # of singular vectors
            layer.lora_A.data *= signs[:, None]
            layer.lora_B.data *= signs
            close(layer.lora_A.data, z["A_split"], tolerance=1e-5)
            close(layer.lora_B.data, z["B_split"], tolerance=1e-5)
        layer(Tensor(x)).backward(dy)
        block.D.grad = gD.copy()
        optimizer.step()
        block.zero_grad()
        for array, p in (("A", layer.lora_A), ("B", layer.lora_B), ("v", layer.sparse_value), ("D", block.D)):
            close(p.data, z[array][step - 1], tolerance=1e-5)
        assert all(rule.step == count for rule in optimizer.rules.values())


def test_relora():
    check_relora()


def test_refactorisation():
    check_refactorisation()


def test_refactorised_factors():
    z = golden("sltrain_svd_factors")
    for shape in ("wide", "tall", "square"):
        B, A = sltrain_svd.balanced(z[f"{shape}_B"], z[f"{shape}_A"])
        signs = np.sign((A * z[f"{shape}_A_split"]).sum(axis=1))
        close(A * signs[:, None], z[f"{shape}_A_split"])
        close(B * signs, z[f"{shape}_B_split"])


test_mutants = mutant_tests([  # what minisl did before
    (apollo.Apollo.direction, "self.inner.correction()", "1.0"),
    (apollo.rule, "128 * scale", "scale * min(like.shape) / 4"),
    (apollo.GaLore.basis, "return self.projector.rows(self.chosen)", "return self.projector.rows(self.step)"),  # P at each update
    (fira.Fira.direction, "self.inner.correction()", "1.0"),
    (schedules.refined, '"edge"', '"symmetric"'),
    (spam.Spam.direction, "divmod(self.step, self.every)", "divmod(self.step - 1, self.every)"),
    (spam.Spam.direction, "warmth(since, ", "warmth(since + 1, "),
    (spam.Spam.direction, "EPS / math.sqrt(1 - self.adam.betas[1] ** (self.adam.step + 1))", "EPS"),
    (relora.before_step, "keep_step=merging", "keep_step=False"),
    (relora.before_step, "done > every and done % every == 1", "done % every == 0"),
    (sltrain_svd.before_step, "*optimizer.parameters", '*(n for n in optimizer.parameters if "lora" in n)'),
    (sltrain_svd.before_step, "0.001 + 0.999 *", "1 + 0 *"),
], *(partial(check_projected, name) for name in ("apollo_channel", "apollo_mini", "fira")),
    check_spam, check_refined, check_relora, check_refactorisation)
