"""What a machine or a user's environment lacks: nothing that training does not need may stop it."""

import subprocess
import sys
from pathlib import Path

import pytest
from test_train import job, run_command

import minisl
from minisl import checkpoint, train

ROOT = Path(minisl.__file__).parents[1]


def as_function(flags):
    """The command with these flags, as a call of `pretrain`."""
    settings, given = train.parse(flags)
    train.pretrain(**{name: getattr(settings, name) for name in given - {"method_options"}})
    return 0


@pytest.mark.parametrize("start", [lambda flags: run_command(train.main, flags), as_function])
def test_closed_stderr_and_stdout_cost_nothing(tmp_path, monkeypatch, start):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert start(job(tmp_path, steps=1)) == 0
    sys.stdout.close()
    sys.stderr.close()
    assert checkpoint.load_state(tmp_path / "run")["step"] == 1


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell closes the streams")
def test_no_file_gets_the_number_of_a_closed_stream(tmp_path):
    code = ("from minisl.command import run_command\n"
            "run_command(lambda argv: open('number', 'w').write(str(open('number', 'w').fileno())) and 0, [])")
    subprocess.run(["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)},
                   check=True)
    assert int((tmp_path / "number").read_text()) > 2
