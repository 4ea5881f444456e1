"""Learning rates: the formulas by hand, their laws, and schedules as flags of minisl.train."""

import json
import math
import shutil

import numpy as np
import pytest
from mutation import mutant_tests
from test_train import assert_same_run, at_step, changed_state, job, press_ctrl_c, quick_figure, resume, run_job  # noqa: F401

from minisl import train
from minisl.command import run_command
from minisl.errors import InputError
from minisl.metrics import read
from minisl.optim import SCHEDULES, learning_rate, refined, schedules


def at(step, schedule, **changes):
    return learning_rate(step, **{"peak": 2.0, "steps": 110, "warmup": 10, "schedule": schedule, "min_ratio": 0.1} | changes)


def test_by_hand():
    """Warm-up reaches the peak at step `warmup`, the last step has min_ratio of it, and what is between."""
    for schedule in SCHEDULES[:-1]:
        assert at(1, schedule) == 0.2
        assert at(9, schedule) == 1.8
        assert at(10, schedule) == 2.0
        assert at(1, schedule, warmup=0) <= 2.0
        assert at(4, schedule, steps=4, warmup=4, decay_fraction=1e-9) == 2.0 or schedule == "wsd"
    by_hand = {"cosine": (0.2 + 1.8 * (1 + math.sqrt(0.5)) / 2, 1.1), "linear": (1.55, 1.1), "constant": (2, 2), "wsd": (2, 2)}
    for schedule, (quarter, half) in by_hand.items():
        assert abs(at(35, schedule) - quarter) < 1e-12
        assert abs(at(60, schedule) - half) < 1e-12
    for schedule in ("cosine", "linear", "wsd", "uba"):
        assert abs(at(110, schedule) - 0.2) < 1e-12
        assert abs(at(110, schedule, min_ratio=0.0)) < 1e-12


def test_a_step_outside_of_the_run():
    """Linear at 150 of 100 was negative: the weights would climb."""
    for schedule in SCHEDULES:
        run = {"factors": [0.5, 1.0, 0.25], "steps": 3 if schedule == "refined" else 110}
        for warmup in (0, 2):
            assert at(run["steps"] + 40, schedule, warmup=warmup, **run) == at(run["steps"], schedule, warmup=warmup, **run)
            assert at(-5, schedule, warmup=warmup, **run) == at(0, schedule, warmup=warmup, **run) >= 0
    assert [at(step, "refined", **run) for step in (-1, 0, 1, 2, 3, 4)] == [1, 1, 1, 2, 0.5, 0.5]


def test_wsd():
    """Level until the last fifth of all steps, then a straight line."""
    assert [at(step, "wsd") for step in range(10, 89)] == [2.0] * 79
    np.testing.assert_allclose([at(step, "wsd") for step in (88, 89, 99, 110)], [2, 2 - 1.8 / 22, 1.1, 0.2], rtol=1e-12)
    np.testing.assert_allclose([at(step, "wsd", decay_fraction=0.5) for step in (55, 66, 110)], [2, 1.64, 0.2], rtol=1e-12)
    for step in range(1, 80):
        assert at(step, "wsd") == at(step, "wsd", steps=1000)


def test_uba():
    """phi = 2 is cosine, to the bit; at half time the values that the formula is published with."""
    for step in range(1, 111):
        assert at(step, "uba", phi=2.0) == at(step, "cosine")
        assert at(step, "uba", phi=0.5) >= at(step, "uba", phi=1.0) >= at(step, "uba", phi=5.0)
    halves = [at(60, "uba", phi=phi, min_ratio=0.0) / 2 for phi in (0.1, 0.5, 1, 2, 5)]
    np.testing.assert_allclose(halves, [2 / 2.1, 0.8, 2 / 3, 0.5, 2 / 7], rtol=1e-12)
    assert at(60, "uba") == at(60, "uba", phi=1.0)
    steps = np.arange(10, 111)
    for phi in (0.1, 0.5, 3.0):
        c = np.cos(np.pi * (steps - 10) / 100)
        right = 0.2 + (2 - 0.2) * 2 * (1 + c) / (2 * phi + (2 - phi) * (1 + c))
        np.testing.assert_allclose([at(int(step), "uba", phi=phi) for step in steps], right, rtol=1e-12)


def test_refined_of_constant_norms_is_linear_decay():
    for T, n, norm in ((100, 100, 3.0), (7, 7, 1e-9), (50, 200, 1e9), (300, 20, 0.1), (2, 1, 1)):
        right = (1 - np.arange(1, T + 1) / T) / (1 - 1 / T)  # the first is the largest
        np.testing.assert_allclose(refined([norm] * n, T), right, rtol=1e-12, atol=0)


def test_refined_by_the_formula():
    """Up to 19 norms nothing is smoothed."""
    norms = [4, 2.0, 1, 2, 1, 4]
    w = [norm**-2.0 for norm in norms]
    rates = np.array([w[t] * math.fsum(w[t + 1:]) for t in range(6)])
    np.testing.assert_allclose(refined(norms, 6), rates / rates.max(), rtol=1e-12)
    assert [at(step, "refined", factors=refined(norms, 6)) for step in (1, 3, 6)] == [2 * f for f in refined(norms, 6)[[0, 2, 5]]]
    assert type(at(1, "refined", factors=refined(norms, 6))) is float
    np.testing.assert_allclose(refined([4, 4, 1, 1], 7), refined([4, 4, 4, 2.5, 1, 1, 1], 7), rtol=1e-12)


def test_refined_smooths_over_a_tenth_with_the_first_norm_before_and_the_last_in_reverse_after():
    norms = np.random.default_rng(0).uniform(0.5, 2, 60)
    smooth = []
    for t in range(60):
        window = range(t - 3, t + 4)
        smooth.append(sorted(norms[0 if i < 0 else i if i < 60 else 118 - i] for i in window)[3])
    w = np.array(smooth) ** -2.0
    rates = np.array([w[t] * math.fsum(w[t + 1:]) for t in range(60)])
    np.testing.assert_allclose(refined(list(norms), 60), rates / rates.max(), rtol=1e-12)


def test_refined_warms_up_where_norms_fall_at_first():
    steep = refined(1 + 8 * np.exp(-60 * np.arange(200) / 200), 200)
    assert steep[0] < 0.014  # 0.141 where the norms before the first are those after it
    norms = np.concatenate([np.linspace(5, 1, 30), np.ones(170)])
    factors = refined(list(norms), 200)
    top = factors.argmax()
    assert 25 <= top <= 35
    assert (np.diff(factors[:top]) > 0).all()
    assert factors[0] < 0.1
    np.testing.assert_allclose(np.diff(factors[40:]), -(factors[40] / 159), rtol=1e-9)
    assert factors[-1] == 0
    assert abs(refined(list(norms), 1000).argmax() / 1000 - top / 200) < 0.01


def test_refined_is_not_led_by_a_few_norms():
    """A few in a row, or at an end; a mean would be moved."""
    norms = np.ones(200)
    spoiled = norms.copy()
    spoiled[[3, 50, 51, 52, 53, 54, 120, 199]] = 1e3, 1e-4, 1e-4, 1e-4, 1e4, 1e4, 1e5, 1e-9
    np.testing.assert_array_equal(refined(list(spoiled), 200), refined(list(norms), 200))
    assert not np.array_equal(refined([*norms[:100], *norms[100:120] * 2, *norms[120:]], 200), refined(list(norms), 200))


@pytest.mark.parametrize("norms", [[], None, {}, [1.0, 0.0], [1.0, -1.0], [1.0, math.nan], [math.inf], [1.0, None], ["1"], [True],
                                   [10**400]], ids=str)
def test_refined_of_what_are_no_norms(norms):
    with pytest.raises(InputError, match="gradient norm"):
        refined(norms, 10)


def test_unknown_schedule():
    with pytest.raises(ValueError, match="allowed: cosine, linear, constant, wsd, uba, refined"):
        learning_rate(5, peak=1, steps=10, schedule="cosin")


test_mutants = mutant_tests([
    (learning_rate, "min(max(step, 0), steps)", "max(step, 0)"),
    (learning_rate, "min(max(step, 0), steps)", "min(step, steps)"),
    (learning_rate, "if step < warmup:", "if False:"),
    (learning_rate, "peak * step / warmup", "peak * (step - 1) / warmup"),
    (learning_rate, "(step - warmup) / max(1, steps - warmup)", "step / steps"),
    (learning_rate, "(step - warmup) / max(1, steps - warmup)", "(step - 1 - warmup) / max(1, steps - warmup)"),
    (learning_rate, "(min_ratio + (1 - min_ratio) * height)", "height"),
    (learning_rate, "math.pi * p", "math.pi * p / 2"),
    (learning_rate, "height = 1 - p", "height = 1 - p**2"),
    (learning_rate, "(steps - step) / (decay", "(steps - 1 - step) / (decay"),
    (learning_rate, "decay_fraction * steps", "decay_fraction * (steps - warmup)"),
    (learning_rate, "min(1, (steps - step) / (decay_fraction * steps))", "(steps - step) / (decay_fraction * steps)"),
    (learning_rate, "2 * phi + (2 - phi)", "2 * phi + (1 - phi)"),
    (learning_rate, "2 * (1 + c) / (2 * phi + (2 - phi) * (1 + c))", "((1 + c) / 2) ** phi"),
    (learning_rate, "len(factors)) - 1]", "len(factors) - 1)]"),
    (schedules.refined, "** 2", ""),
    (schedules.refined, "smooth.min() / smooth", "smooth / smooth.max()"),
    (schedules.refined, "np.append(w[:0:-1].cumsum()[::-1], 0)", "w[::-1].cumsum()[::-1]"),
    (schedules.refined, "np.append(w[:0:-1].cumsum()[::-1], 0)", "np.append(w[1:].cumsum(), 0)"),
    (schedules.refined, "len(norms) // 20", "0"),
    (schedules.refined, "len(norms) // 20", "len(norms) // 20 + 1"),
    (schedules.refined, '"edge"', '"reflect"'),
    (schedules.refined, '"edge"', '"symmetric"'),
    (schedules.refined, '"reflect"', '"edge"'),
    (schedules.refined, '"reflect"', '"symmetric"'),
    (schedules.refined, "np.interp(np.linspace(0, 1, steps), np.linspace(0, 1, len(norms)), smooth)", "np.resize(smooth, steps)"),
    (schedules.refined, "rates / (rates.max() or 1)", "rates / (rates[0] or 1)"),
    (schedules.refined, "isinstance(norm, bool) or", ""),
], test_by_hand, test_a_step_outside_of_the_run,
    test_wsd, test_uba, test_refined_of_constant_norms_is_linear_decay, test_refined_by_the_formula,
    test_refined_smooths_over_a_tenth_with_the_first_norm_before_and_the_last_in_reverse_after,
    test_refined_warms_up_where_norms_fall_at_first, test_refined_is_not_led_by_a_few_norms,
    lambda: test_refined_of_what_are_no_norms([True]))


# minisl.train

def rates(run):
    return [record["lr"] for record in read(run / "metrics.jsonl")]


@pytest.mark.parametrize(("flags", "options"), [
    ({"schedule": "wsd", "decay_fraction": 0.5, "min_lr_ratio": 0.3}, {"decay_fraction": 0.5, "min_ratio": 0.3}),
    ({"schedule": "uba", "uba_phi": 3, "warmup": 4}, {"phi": 3.0, "warmup": 4}),
], ids=["wsd", "uba"])
def test_flags(tmp_path, flags, options):
    right = {"peak": 0.01, "steps": 12, "warmup": 1, "schedule": flags["schedule"]} | options
    assert rates(run_job(tmp_path, lr=0.01, **flags)) == [learning_rate(step, **right) for step in range(1, 13)]


def test_refined_run_resumes_when_the_other_run_has_gone(tmp_path, monkeypatch):
    first = run_job(tmp_path, out=tmp_path / "first")
    norms = [record["grad_norm"] for record in read(first / "metrics.jsonl")]
    flags = {"schedule": "refined", "norms_of": first, "lr": 0.01, "steps": 20}
    straight = run_job(tmp_path, **flags, out=tmp_path / "straight")
    assert rates(straight) == [0.01 * factor for factor in refined(norms, 20)]
    with monkeypatch.context() as patch:
        at_step(patch, 7, press_ctrl_c)
        stopped = run_job(tmp_path, 130, **flags, out=tmp_path / "stopped")
    shutil.rmtree(first)
    assert resume(stopped) == 0
    assert_same_run(straight, stopped)
    assert resume(stopped, "--steps=30") == 0
    assert rates(stopped)[20:] == [0.01 * factor for factor in refined(norms, 30)[20:]]


def refuse(folder, capsys, *flags):
    """The one line that is said; exit code 2, no folder."""
    capsys.readouterr()
    assert run_command(train.main, [*job(folder), *map(str, flags)]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("no Numba kernels")]
    assert line.startswith("error: ")
    assert not (folder / "run").exists()
    return line


@pytest.mark.parametrize(("flags", "said"), [
    (["--schedule=cosin"], "constant, wsd, uba, refined"),
    (["--decay-fraction=0"], "must be above 0 and at most 1"),
    (["--decay-fraction=1.5"], "must be above 0 and at most 1"),
    (["--decay-fraction=nan"], "must be a finite number, 0 or above"),
    (["--schedule=wsd", "--decay-fraction=0.5", "--warmup=7"], "the decay would begin within the warm-up of 7 of 12 steps"),
    (["--uba-phi=0"], "must be above 0"),
    (["--uba-phi=-1"], "must be a finite number, 0 or above"),
    (["--schedule=refined"], "need each other"),
    (["--norms-of=somewhere"], "need each other"),
    (["--schedule=refined", "--norms-of="], "--norms-of: must not be empty"),
    (["--schedule=refined", "--norms-of=nowhere"], "nowhere/metrics.jsonl: cannot be read"),
])
def test_what_cannot_be(tmp_path, capsys, flags, said):
    assert said in refuse(tmp_path, capsys, *flags)


GOOD = {"step": 1, "loss": 1.0, "tokens": 64, "grad_norm": 2.0}


@pytest.mark.parametrize(("lines", "said"), [
    ([], "no gradient norms"),
    (["{"], "no gradient norms"),  # a first line cut short by a crash
    ([json.dumps({k: v for k, v in GOOD.items() if k != "grad_norm"})], "gradient norm 1 is None"),
    ([json.dumps(GOOD), json.dumps(GOOD | {"grad_norm": 0})], "gradient norm 2 is 0"),
    ([json.dumps(GOOD | {"grad_norm": math.nan})], "gradient norm 1 is nan"),
    ([json.dumps(GOOD), "nonsense", json.dumps(GOOD)], "line 2 is not a record of a step"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_run_without_usable_norms(tmp_path, capsys, lines, said):
    other = tmp_path / "other"
    other.mkdir()
    (other / "metrics.jsonl").write_text("\n".join(lines))
    line = refuse(tmp_path, capsys, "--schedule=refined", f"--norms-of={other}")
    assert said in line
    assert str(other / "metrics.jsonl") in line


@pytest.mark.parametrize("content", [None, [], {}, {"grad_norm": [0]}])
def test_kept_norms_missing_or_damaged(tmp_path, capsys, monkeypatch, content):
    first = run_job(tmp_path, out=tmp_path / "first")
    with monkeypatch.context() as patch:
        at_step(patch, 7, press_ctrl_c)
        run = run_job(tmp_path, 130, schedule="refined", norms_of=first)
    with changed_state(run) as state:
        state["schedule"] = content
    capsys.readouterr()
    assert resume(run) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "state.json" in line
