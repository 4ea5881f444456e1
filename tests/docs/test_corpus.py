"""docs/adding-a-corpus.md: with its example in a copy of corpora.py, its tests pass, its other blocks and its commands run."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding-a-corpus.md").read_text("utf-8")
CORPUS, TEST, *REST = re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M)
COMMANDS = [line.split() for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.S | re.M) for line in block.splitlines()]

DRIVER = """
import pytest
from minisl import plot, train
from minisl.command import run_command
from minisl.data import __main__ as data
from minisl.data import corpora
assert pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir=.", "test_unicode_names.py"]) == 0
names = {{}}
for block in {blocks!r}:
    exec(compile(block, "docs/adding-a-corpus.md", "exec"), names)
documents = corpora.NAMED["unicode-names"]()
corpora.NAMED["unicode-names"] = lambda: documents[::4]
plot.loss_figure = lambda path, *_: path.write_bytes(b"a figure")
small = ["--steps=2", "--hidden-size=16", "--intermediate-size=24", "--num-hidden-layers=1", "--rank=4", "--threads=1",
         "--keep-blas", "--backend=numpy"]
for command, argv in {commands!r}:
    main, more = (train.main, small) if command == "minisl.train" else (data.main, [])
    assert run_command(main, argv + more) == 0
"""


def with_the_example(folder):
    """folder/minisl: minisl, but for a corpora.py that has the page's function at its end."""
    (folder / "minisl" / "data").mkdir(parents=True)
    for inner in (".", "data"):
        for path in (ROOT / "minisl" / inner).iterdir():
            if path.name not in ("data", "corpora.py", "__pycache__"):
                (folder / "minisl" / inner / path.name).symlink_to(path)
    (folder / "data").symlink_to(ROOT / "data")
    (folder / "minisl" / "data" / "corpora.py").write_text((ROOT / "minisl/data/corpora.py").read_text() + "\n\n" + CORPUS)
    (folder / "test_unicode_names.py").write_text(TEST)
    (folder / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())


def test_the_page_works_as_written(tmp_path):
    with_the_example(tmp_path)
    commands = [(c[2], c[3:]) for c in COMMANDS if c[2].startswith("minisl.")]
    assert [c for c, _ in commands] == ["minisl.train", "minisl.data", "minisl.train"]
    code = DRIVER.format(blocks=REST, commands=commands)
    paths = os.pathsep.join([str(tmp_path), str(ROOT / "tests")])
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, text=True, capture_output=True,
                          env=os.environ | {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "wrong implementations rejected: 4/4" in done.stdout
    assert re.search(r"\d+ bytes: \d+ tokens, BPE \d+\nunicode-names: [\d,]+ training tokens", done.stdout)
    assert (tmp_path / "names" / "index.json").exists()
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_the_page_names_what_exists():
    for name, file in re.findall(r"`(\w+)` (?:and `ENDINGS` )?in \[\w+\.py\]\(\.\./(minisl/data/\w+\.py)\)", PAGE):
        assert re.search(rf"^(?:def|class) {name}\b", (ROOT / file).read_text(), re.M), name
    for target in re.findall(r"\]\(([^)#:]+)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
