"""A method's own flags on the command line: known when it is chosen, checked, remembered, and told apart from other methods'."""

import pytest
from test_train import changed_state, job, resume, run_job

from minisl import summary, train
from minisl.command import run_command
from minisl.config import parse
from minisl.errors import InputError


def test_they_are_flags_when_the_method_is_chosen(capsys):
    settings, _ = parse(["--tiny", "--method", "galore", "--every", "7", "--projector=dct"])
    assert settings.method_options == {"every": 7, "projector": "dct"}
    with pytest.raises(SystemExit):
        parse(["--method", "galore", "--help"])
    assert "--at-change {keep,reset,rotate}" in capsys.readouterr().out
    assert parse(["--tiny", "--method", "swan", "--no-centre"])[0].method_options == {"centre": False}


@pytest.mark.parametrize(("flags", "words"), [
    (["--method=full", "--every=3"], ("--every=3: a flag of", "galore", "--method full has no flags of its own")),
    (["--method=spam", "--projector=svd"], ("a flag of", "--method spam has --every, --rewarm")),
    (["--method=galore", "--evry=3"], ("unrecognized arguments: --evry=3",)),
    (["--method=galore", "--every=0"], ("--every 0", "between 1 and")),
    (["--method=frugal", "--density=2"], ("--density 2", "between 0 and 1")),
    (["--method=muon", "--momentum=1.5"], ("--momentum 1.5", "between 0 and")),
    (["--method=galore", "--every=x"], ("--every", "invalid int")),
    (["--method=galore", "--projector=qr"], ("--projector", "svd")),
    (["--method=galore", "--rank=17"], ("rank is 17", "1 to 16")),
])
def test_bad_ones_are_one_line(tmp_path, capsys, flags, words):
    assert run_command(train.main, [*job(tmp_path), *flags]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    for word in words:
        assert word in err
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_knows_its_method(tmp_path, capsys):
    """The same flags may be given again, with the method or without; others are refused by name."""
    run = run_job(tmp_path, method="galore", every=3, steps=4)
    assert resume(run, "--every=3", "--steps=5") == 0
    assert resume(run, "--method=galore", "--every=3", "--steps=6") == 0
    assert resume(run, "--every=4", "--steps=7") == 2
    assert "has --every 3, it cannot go on with 4" in capsys.readouterr().err


def test_a_run_whose_sample_cannot_be_drawn_is_still_done(tmp_path, monkeypatch):
    """Finite losses, and logits that are not: the run is whole, and says why there is no text."""
    def refuse(*_):
        raise InputError("the model's logits are not numbers")

    monkeypatch.setattr(summary, "generate", refuse)
    run = run_job(tmp_path, steps=4)
    assert (run / "sample.txt").read_text() == "(none: the model's logits are not numbers)\n"


def test_damaged_method_options_are_named(tmp_path, capsys):
    run = run_job(tmp_path, steps=4)
    with changed_state(run) as state:
        state["settings"]["method_options"] = 3
    assert resume(run, "--steps=5") == 2
    assert "state.json: damaged" in capsys.readouterr().err
