"""`pytest --extras`: what a plain run has proven is not run again, all that a new package can change is."""

import os
import subprocess
import sys
from pathlib import Path

FILES = {
    "test_same.py": "def test(): pass\ndef test_failing(): assert 0",
    "test_skipped.py": "import pytest\npytest.importorskip('surprise')\ndef test(): pass",
    "test_asking.py": "def test():\n    try: import surprise\n    except ImportError: pass\ndef test_other(): pass",
    "test_other.py": "def test():\n    try: import nowhere\n    except ImportError: pass"}


def run(folder, *flags):
    """The tests that run, and their outcomes."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(folder)])}
    command = [sys.executable, "-m", "pytest", "-v", "-p", "extras", "--rootdir", folder]
    done = subprocess.run([*command, *flags], cwd=folder, env=env, capture_output=True, text=True)
    return {line.split()[0]: line.split()[1] for line in done.stdout.splitlines() if "::" in line and "%" in line}


def test_only_what_a_new_package_can_change_is_run_again(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    assert len(run(tmp_path)) == 5
    (tmp_path / "surprise.py").write_text("")
    assert run(tmp_path, "--extras") == {
        "test_same.py::test_failing": "FAILED", "test_skipped.py::test": "PASSED", "test_asking.py::test": "PASSED",
        "test_asking.py::test_other": "PASSED"}


def test_without_a_plain_run_all_is_run(tmp_path):
    (tmp_path / "test_same.py").write_text(FILES["test_same.py"])
    assert len(run(tmp_path, "--extras")) == 2
