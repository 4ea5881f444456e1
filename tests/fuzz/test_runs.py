"""A run whose JSON files were changed by another hand: refused in a line, or used; nothing is ever written outside its folder.

Where the content of a file becomes a path, and what was decided:

state.json    settings `data` and `norms_of` name what the user gave to read; they may lead anywhere, and only regular files
              are read; `data` must be the very text (by its hash) that the run was trained on before anything is done with it
state.json    settings `out`, `resume`, `config`, `tokenizer` are not followed: a resumed run is the folder that was asked for,
              its config.json and its tokenizer.json
state.json, config.json    `method` is looked up in the list of methods, and is no module's name or path otherwise
job.json, result.json, weights.json    of a comparison: compared and printed, never followed; folders of runs are named by the
              command line, every character but letters, digits and _.- replaced

A NUL in a name, which no command line can hand over but a file can, is refused as a file that is not there.
"""

import json
import os
import re
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
from fuzz_checks import VALUES, as_json, damaged, edited, examples, listing, must_notice, run, runs_made_up, wrong
from hypothesis import given
from hypothesis import strategies as st
from test_train import job

from minisl import evaluate, generate, plot, summary, train
from minisl.command import run_command
from minisl.compare import __main__ as compare

PATHS = ("../../x", "../text.txt", "/etc/passwd", "/dev/zero", "/dev/stdin", "a\0b", "\0", "..", "", "/", "~/x", "nowhere",
         "\ud800", "x" * 5000,
         "../" * 3000, "elsewhere/text.txt", "PIPE", "RUN/../elsewhere")
NAMES = ("state.json", "config.json", "tokenizer.json", "metrics.jsonl")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(a folder to work in, a folder with RUN, its text, `elsewhere` and a pipe)"""
    folder, pristine = tmp_path_factory.mktemp("runs") / "work", tmp_path_factory.mktemp("pristine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot, "loss_figure", lambda path, *_: path.write_bytes(b""))
        patch.setattr(summary, "generate", lambda model, ids, *_: iter(ids * 3))
        patch.setattr(train, "keep_freed_memory", lambda: None)
        patch.chdir(pristine)
        assert run_command(train.main, job(Path(), out=Path("RUN"), steps=2, save_every=2)) == 0
        Path("elsewhere").mkdir()
        yield folder, pristine


def seal(run):
    """Make the hashes right again: what is tested is not the guard, but what stands behind it."""
    for sums in run.rglob("SHA256SUMS"):
        names = re.findall(r"^\w{64}[ *]+(.*)$", sums.read_text(), re.MULTILINE)
        sums.write_text("".join(f"{sha256((sums.parent / name).read_bytes()).hexdigest()}  {name}\n" for name in names))


@st.composite
def changes(draw, run):
    """(path of one of a run's files, what becomes of it)"""
    files = {name: max(found, key=str) for name in NAMES if (found := list(run.rglob(name)))}
    if draw(st.integers(0, 2)) == 0:
        document = json.loads(files["state.json"].read_text())
        key = draw(st.sampled_from(("data", "norms_of", "config", "tokenizer", "out", "resume", "method")))
        value = draw(st.sampled_from(PATHS))
        document["settings"][key] = [value] if key == "data" else value
        return files["state.json"], as_json(document)
    path = files[draw(st.sampled_from((*NAMES, "state.json", "config.json")))]
    return path, draw(changed(path.read_bytes(), path.suffix == ".json"))


@st.composite
def changed(draw, content, as_document=True):
    how = draw(st.sampled_from(("edited", "edited", "damaged", "any"))) if as_document else "damaged"
    if how == "edited":
        return as_json(draw(edited(json.loads(content))))
    return draw(damaged(content)) if how == "damaged" else as_json(draw(VALUES))


def fresh(place):
    """A new copy to work in; what is in it, but for RUN."""
    folder, pristine = place
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(pristine, folder)
    os.chdir(folder)
    os.mkfifo("PIPE")
    return folder


def others(folder):
    return {path: what for path, what in listing(folder).items() if not Path(path).is_relative_to(folder / "RUN")}


@given(data=st.data(), words=st.sampled_from((["--steps=3"], ["--steps=3", "--out=RUN"], [], ["--steps=3", "--data=text.txt"])))
@examples(40, 600)
def test_a_changed_run_is_refused_in_a_line_or_used_and_nothing_else_is_touched(place, data, words):
    """Rejects: a traceback of a value nobody thought of; a path from a file that is written to; a pipe that is waited for."""
    folder = fresh(place)
    path, content = data.draw(changes(Path("RUN")))
    path.write_bytes(content)
    seal(Path("RUN"))
    before = others(folder)
    for command, argv in ((evaluate, ["RUN"]), (generate, ["RUN", "--tokens=2"]), (train, ["--resume=RUN", *words])):
        run(command.main, argv, folder)
        assert others(folder) == before


COMPARISON = ["--methods", "full", "--lrs", "1e-3", "--seeds", "1", "2", "--config=model.json", "--data=text.txt",
              "--tokenizer=bytes",
              "--seq-len=16", "--batch-size=2", "--steps=2", "--threads=1", "--out=RUN/comparison"]


@given(data=st.data())
@examples(20, 400)
def test_a_changed_comparison_is_refused_in_a_line_or_used(place, data):
    folder = fresh(place)
    with pytest.MonkeyPatch.context() as patch:
        runs_made_up(patch)
        assert run(compare.main, COMPARISON, folder) == 0
        results = list(Path("RUN/comparison").rglob("result.json"))
        path = data.draw(st.sampled_from((*results, Path("RUN/comparison/job.json"), Path("RUN/comparison/weights.json"))))
        path.write_bytes(data.draw(changed(path.read_bytes())))
        before = others(folder)
        run(compare.main, COMPARISON, folder)
        assert others(folder) == before


@pytest.mark.parametrize("key", ["out", "resume", "config", "tokenizer"])
@pytest.mark.parametrize("value", ["../../x", "elsewhere/x", "/dev/zero", "a\0b", "PIPE"])
def test_paths_of_a_state_that_are_not_followed(place, key, value):
    """The run goes on in its own folder, with its own files."""
    folder = fresh(place)
    path = max(Path("RUN").rglob("state.json"), key=str)
    document = json.loads(path.read_text())
    document["settings"][key] = value
    path.write_text(json.dumps(document))
    seal(Path("RUN"))
    before = others(folder)
    assert run(train.main, ["--resume=RUN", "--steps=3"], folder) == 0
    assert others(folder) == before


@pytest.mark.parametrize("value", ["../../x", "/dev/zero", "a\0b", "PIPE", "/etc/passwd", "elsewhere"])
def test_data_of_a_state_that_is_not_the_text(place, value):
    """Read where it is a file, and then found to be another text."""
    folder = fresh(place)
    path = max(Path("RUN").rglob("state.json"), key=str)
    document = json.loads(path.read_text())
    document["settings"]["data"] = [value]
    path.write_text(json.dumps(document))
    seal(Path("RUN"))
    for command, argv in ((evaluate, ["RUN"]), (train, ["--resume=RUN", "--steps=3"])):
        assert run(command.main, argv, folder) == 2


@wrong((train.opened, "return run, settings, found", "return Path(settings.out or run), settings, found"))
def test_rejects_a_path_that_is_followed(mutant, place, killed):
    must_notice(mutant, lambda: test_paths_of_a_state_that_are_not_followed(place, "out", "elsewhere/x"), killed)
