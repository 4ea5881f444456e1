"""A run's checkpoints as files: in which order they are written, which one is found, which are kept."""

import json
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from mutation import mutant_tests

from minisl import checkpoint, files, metrics, runs
from minisl.config import Settings, settings_from
from minisl.data import make_tokenizer
from minisl.errors import InputError
from minisl.methods import Method
from minisl.nn import LlamaConfig

OPTIONS = {"rank": 2, "delta": 0.2, "alpha": 4.0}
SETTINGS = Settings(config="-", vocab_size=257, **OPTIONS).to_dict()
CONFIG = LlamaConfig(8, 12, 1, 2, vocab_size=257)
BYTES = make_tokenizer("bytes", [], 257)


def written(run, step, **more):
    """A checkpoint whose weights all are its step."""
    model = Method("sltrain", SETTINGS).build(CONFIG, np.random.default_rng(0))
    for p in model.parameters():
        p.data[:] = step
    state = {"step": step, "batch": step, "tokens": step, "processes": 1, "data": {}, "settings": SETTINGS, "corpus": {},
             "versions": {}, **more}
    return checkpoint.save(run, CONFIG, BYTES, model, {"exp_avg.x": np.ones(3)}, state)


def weights_at(found):
    return {float(p.data.flat[0]) for p in found.model().parameters()}


def new(folder):
    run = Path(folder) / str(len(list(Path(folder).iterdir())))
    run.mkdir()
    return run


def check_order(folder):
    """Each file is on the disk before the checkpoint has its name, the name before what it replaces is gone."""
    events, fsync, replace, rmtree, opened = [], os.fsync, os.replace, shutil.rmtree, os.open
    names, run = {}, new(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", lambda path, *a, **o: (fd := opened(path, *a, **o), names.update({fd: Path(path).name}))[0])
        patch.setattr(os, "fsync", lambda fd: (events.append(("disk", names[fd])), fsync(fd))[1])
        patch.setattr(os, "replace", lambda a, b: (events.append(("name", Path(b).name)), replace(a, b))[1])
        patch.setattr(shutil, "rmtree", lambda path, **o: (events.append(("gone", Path(path).name)), rmtree(path, **o))[1])
        written(run, 3)
        first = [e for e in events if e[0] != "gone"]
        hidden = f".step-00000003.{os.getpid()}"
        assert set(first[:7]) == {("disk", name) for name in (*checkpoint.FILES, checkpoint.SUMS, hidden)}
        assert first[7:] == [("name", "step-00000003"), ("disk", run.name)]
        events.clear()
        written(run, 3)
        last = events.index(("name", "step-00000003"))
        assert events[last - 1:last + 2] == [("name", hidden + ".old"), ("name", "step-00000003"), ("disk", run.name)]
        assert {e for e in events[:last] if e[0] == "gone"} == set()
    assert [p.name for p in run.iterdir()] == ["step-00000003"]


def check_found(folder):
    """The newest that is whole; each damaged one is said. A link, a file and other names are no checkpoints."""
    run, said = new(folder), []
    for step in (2, 10, 9):
        written(run, step)
    for name in ("step-9", "step-00000011x", "other"):
        (run / name).mkdir()
    (run / "step-00000077").write_text("a file")
    assert [p.name for p in checkpoint.folders(run)] == ["step-00000002", "step-00000009", "step-00000010"]
    found = checkpoint.find(run, said.append)
    assert (found.state["step"], weights_at(found), said) == (10, {10}, [])
    (run / "step-00000010" / "state.json").write_text((run / "step-00000009" / "state.json").read_text())
    found = checkpoint.find(run, said.append)
    assert (found.state["step"], weights_at(found)) == (9, {9})
    assert said == [f"{run}/step-00000010/state.json: damaged (its SHA-256 is not the one in SHA256SUMS): passed over, "
                    "step-00000009 is used"]
    sums = run / "step-00000009" / checkpoint.SUMS
    for text in (sums.read_text() + "\n", sums.read_text() * 2, "".join(sums.read_text().splitlines(True)[:-1]), ""):
        whole = sums.read_text()
        sums.write_text(text)
        assert checkpoint.find(run, said.append).state["step"] == 2
        sums.write_text(whole)
    assert checkpoint.find(run / "step-00000009").state["step"] == 9
    with pytest.raises(InputError, match=r"step-00000010/state.json: damaged"):
        checkpoint.find(run / "step-00000010")
    with pytest.raises(InputError, match="not a run"):
        checkpoint.find(folder)


def check_sums(folder):
    """As the tool that everybody has."""
    done = subprocess.run(["sha256sum", "--check", "--strict", checkpoint.SUMS], cwd=written(new(folder), 1), capture_output=True,
                          text=True)
    assert (done.returncode, done.stdout.count(": OK")) == (0, 5)


def check_best(folder):
    run = new(folder)
    written(run, 1)
    with pytest.raises(InputError, match="nothing was evaluated yet"):
        checkpoint.find(run / "best")
    written(run, 2, best={"step": 2, "val_loss": 1.0})
    written(run, 3, best={"step": 2, "val_loss": 1.0})
    assert weights_at(checkpoint.find(run / "best")) == {2}


def check_pruned(folder):
    """The last ones and the best stay; what cannot be removed does no harm."""
    run = new(folder)
    for step in range(1, 6):
        written(run, step)
    checkpoint.prune(run, 2, 1)
    assert [checkpoint.step_of(p) for p in checkpoint.folders(run)] == [1, 4, 5]
    checkpoint.prune(run, 1)
    assert [p.name for p in run.iterdir()] == ["step-00000005"]
    written(run, 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", denied)
        checkpoint.prune(run, 1)
    assert len(checkpoint.folders(run)) == 2


def denied(*args):
    raise PermissionError(13, "no")


def check_tidied(folder):
    """What killed processes left is removed, and nothing else; what they were about to replace is put back."""
    run = new(folder)
    written(run, 1).rename(run / ".step-00000001.77.old")
    written(run, 5).rename(run / ".step-00000005.77.old")
    written(run, 5)
    for name in (".step-00000002.77", ".step-00000003.77.gone"):
        (run / name).mkdir()
        (run / name / "model.safetensors").write_text("half")
    for name in (".metrics.jsonl.77", ".loss.png.12", ".keep", ".mine.txt", "notes"):
        (run / name).write_text("")
    checkpoint.tidy(run)
    assert sorted(p.name for p in run.iterdir()) == [".keep", ".mine.txt", "notes", "step-00000001", "step-00000005"]
    assert weights_at(checkpoint.Checkpoint(run / "step-00000001")) == {1}


def check_kept_where_replacing_fails(folder):
    """The second of the two renames: the checkpoint of that step that was there is there."""
    run, replace = new(folder), os.replace
    written(run, 1)

    def failing(a, b):
        if Path(b).name == "step-00000001" and not a.name.endswith(".old"):
            raise OSError(5, "no")
        replace(a, b)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", failing)
        with pytest.raises(OSError, match="no"):
            written(run, 1)
    assert [p.name for p in run.iterdir()] == ["step-00000001"]
    checkpoint.Checkpoint(run / "step-00000001")


def check_set_aside(folder):
    """Damaged ones after the one that is gone on from have another name: they are kept, and do not count."""
    run = new(folder)
    for step in (1, 2, 3):
        written(run, step)
    for step in (2, 3):
        (run / f"step-0000000{step}" / "state.json").write_text("{}")
    checkpoint.set_aside(run, checkpoint.find(run, lambda line: None))
    assert sorted(p.name for p in run.iterdir()) == ["damaged-step-00000002", "damaged-step-00000003", "step-00000001"]


def check_replacing(folder):
    """Each on the disk before it takes its place, none where the block fails."""
    run = new(folder)
    with suppress(ZeroDivisionError), files.replacing(run / "a", run / "b") as [a, b]:
        a.write_text("1")
        b.write_text(str(1 / 0))
    assert not list(run.iterdir())
    events, fsync, replace = [], os.fsync, os.replace
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: (events.append("disk"), fsync(fd))[1])
        patch.setattr(os, "replace", lambda a, b: (events.append("name"), replace(a, b))[1])
        files.write_json(run / "a", {"x": 1})
    assert events == ["disk", "name", "disk"]
    assert [p.name for p in run.iterdir()] == ["a"]
    assert json.loads((run / "a").read_text()) == {"x": 1}


def check_metrics(folder):
    """Later lines are dropped, a last one cut short too; other damage is named."""
    path = new(folder) / "metrics.jsonl"
    lines = [json.dumps({"step": n, "loss": 1.0, "tokens": n}) for n in range(1, 5)]
    path.write_text("\n".join(lines) + '\n{"step": 5, "lo')
    assert [r["step"] for r in metrics.read(path)] == [1, 2, 3, 4]
    log = metrics.Metrics(path, 2)
    assert log.last["step"] == 2
    log.append({"step": 3, "loss": 2.0, "tokens": 9})
    assert [r["loss"] for r in metrics.read(path)] == [1, 1, 2]
    log.pending = json.dumps({"step": 1, "loss": 9.0, "tokens": 9}).encode() + b"\n"  # that a full disk has not taken
    log.rewind(1)
    log.append({"step": 2, "loss": 3.0, "tokens": 9})
    assert [r["loss"] for r in metrics.read(path)] == [1, 9, 3]
    path.write_text("\n".join([lines[0], "{", lines[1]]))
    with pytest.raises(InputError, match=r"line 2 is not a record of a step; remove that line"):
        metrics.read(path)


def check_chosen(folder):
    """Where a run goes, and what it goes on from."""
    home = new(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for name in ("001-sltrain", "004-full", "007-sltrain"):
            written(Path("runs") / name, 1)

        def chosen(**flags):
            return str(runs.choose(settings_from({"tiny": True, **flags})))

        assert chosen() == "runs/008-sltrain"
        assert chosen(resume="auto") == "runs/007-sltrain"
        assert chosen(resume="auto", method="full") == "runs/004-full"
        assert chosen(resume="auto", method="galore") == "runs/008-galore"
        assert chosen(resume="runs/001-sltrain") == "runs/001-sltrain"
        assert chosen(resume="auto", out="runs/001-sltrain") == "runs/001-sltrain"
        for flags, said in (({"out": "runs/001-sltrain"}, "already holds a run"), ({"resume": "runs"}, "not a run"),
                            ({"resume": "runs/001-sltrain", "out": "x"}, "stays in its folder"),
                            ({"out": "runs"}, "holds 001-sltrain, which is no part of a run"),
                            ({"resume": "runs/001-sltrain/step-00000001"}, "is one checkpoint; give its run, runs/001-sltrain")):
            with pytest.raises(InputError, match=said):
                chosen(**flags)
        Path("left").mkdir()
        for name in ("metrics.jsonl", "lock", ".step-00000000.5"):
            (Path("left") / name).write_text("")
        assert chosen(out="left") == "left"  # killed before its first checkpoint


def check_same_bytes(folder):
    """Twice the same is twice the same files."""
    assert len({(written(new(folder), 3) / checkpoint.SUMS).read_text() for _ in range(8)}) == 1


CHECKS = (check_order, check_same_bytes, check_found, check_sums, check_best, check_pruned, check_tidied, check_replacing,
          check_metrics, check_chosen, check_kept_where_replacing_fails, check_set_aside)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_folder(tmp_path, check):
    check(tmp_path)


def all_checks():
    """The checks without a fixture, for mutants: each in a folder of its own."""
    def within(check):
        with tempfile.TemporaryDirectory() as folder:
            check(Path(folder))

    return [lambda check=check: within(check) for check in CHECKS]


SAVE, FIND, INIT, REPLACING = checkpoint.save, checkpoint.find, checkpoint.Checkpoint.__init__, files.replacing.__wrapped__
test_mutants = mutant_tests([
    (SAVE, '{"format": "pt"}', '{"format": "pt", "step": str(state["step"])}'),
    (SAVE, 'for name in (*FILES, SUMS, ""):', 'for name in (*FILES, SUMS):'),
    (SAVE, 'for name in (*FILES, SUMS, ""):', 'for name in ("state.json",):'),
    (SAVE, "        to_disk(run)\n", ""),
    (SAVE, "        if folder.exists():\n            os.replace(folder, old)\n",
     "        if folder.exists():\n            shutil.rmtree(folder)\n"),
    (SAVE, "        shutil.rmtree(old, ignore_errors=True)\n", "        pass\n"),
    (FIND, "reversed(folders(path))", "folders(path)"),
    (FIND, "        for error in damaged:\n            say(", "        for error in []:\n            say("),
    (FIND, "return Checkpoint(path.parent / f\"step-{best['step']:08d}\")", "return Checkpoint(folders(path.parent)[-1])"),
    (FIND, "if not best:", "if best == 0:"),
    (INIT, "if line != ", "if not line and "),
    (INIT, "if len(written.splitlines()) != len(FILES):", "if len(written.splitlines()) > len(FILES):"),
    (INIT, "if len(written.splitlines()) != len(FILES):", "if len(written.splitlines()) < len(FILES):"),
    (checkpoint.sums, "{sha256(folder / name)}  {name}", "{sha256(folder / name)} {name}"),
    (checkpoint.folders, ", key=step_of", ", reverse=True"),
    (checkpoint.folders, " and p.is_dir()", ""),
    (checkpoint.folders, r'if re.fullmatch(r"step-\d{8,}", p.name) and', "if"),
    (checkpoint.prune, "[:-keep]", "[:-keep - 1]"),
    (checkpoint.prune, "[:-keep]", "[keep:]"),
    (checkpoint.prune, "        if step_of(folder) != best:\n            remove", "        if True:\n            remove"),
    (checkpoint.remove, "with suppress(OSError):", "with suppress(ZeroDivisionError):"),
    (checkpoint.tidy, "if LEFTOVER.fullmatch(path.name):", "if True:"),
    (checkpoint.tidy, "            os.replace(path, folder)\n", "            pass\n"),
    (checkpoint.tidy, " and not (folder := path.with_name(path.name[1:].partition(\".\")[0])).exists()",
     " and (folder := path.with_name(path.name[1:].partition(\".\")[0]))"),
    (SAVE, "            os.replace(old, folder)\n", "            pass\n"),
    (checkpoint.set_aside, "> step_of(found.folder)", ">= step_of(found.folder)"),
    (checkpoint.set_aside, "> step_of(found.folder)", "< step_of(found.folder)"),
    (checkpoint.tidy, "shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)",
     "path.is_dir() or path.unlink(missing_ok=True)"),
    (REPLACING, "        for temporary in temporaries:\n            to_disk(temporary)\n", ""),
    (REPLACING, "        for folder in {Path(p).parent for p in paths}:\n            to_disk(folder)\n", ""),
    (REPLACING, "temporary.unlink(missing_ok=True)", "pass"),
    (metrics.Metrics.rewind, 'if record["step"] <= step:', 'if record["step"] < step:'),
    (metrics.Metrics.rewind, 'if record["step"] <= step:', "if True:"),
    (metrics.Metrics.rewind, "self.write()", "pass"),
    (metrics.records, "elif file.tell() < size:", "elif False:"),
    (metrics.records, "elif file.tell() < size:", "else:"),
    (runs.choose, "return mine[-1]", "return runs[-1]"),
    (runs.choose, "return mine[-1]", "return mine[0]"),
    (runs.choose, "max((int(run.name[:3]) for run in runs), default=0) + 1", "len(runs) + 1"),
    (runs.choose, "        if checkpoint.folders(run):\n", "        if False:\n"),
    (runs.choose, "name not in MINE and ", ""),
    (runs.choose, " if not checkpoint.LEFTOVER.fullmatch(p.name)", ""),
], *all_checks())
