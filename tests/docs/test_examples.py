"""Examples in docs/ and README.md: every Python block is run by some test, every command line is taken by its command."""

import contextlib
import gzip
import importlib
import io
import os
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pytest

from minisl import checkpoint, config, hf, methods, optim, plot
from minisl.command import Parser
from minisl.errors import InputError

ROOT = Path(__file__).parents[2]
MADE = ("notebooks", "reference", "_build")  # folders of docs/ that a build makes
PAGES = ["README.md", *sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md")
                              if p.relative_to(ROOT).parts[1] not in MADE)]
HERE = "tests/docs/test_examples.py"
RUN_BY = {  # page -> the test that runs its Python blocks
    "README.md": HERE,  # and tests/test_docs_api.py
    "docs/adding-a-corpus.md": "tests/docs/test_corpus.py",
    "docs/adding-a-kernel.md": "tests/docs/test_adding_a_kernel.py",
    "docs/adding-a-method.md": "tests/test_docs_method.py",
    "docs/api.md": "tests/test_docs_api.py",
    "docs/cuda.md": HERE,
    "docs/data-at-scale.md": HERE,
    "docs/distributed.md": HERE,
    "docs/generation.md": HERE,
    "docs/hf.md": HERE,
    "docs/paper.md": "tests/docs/test_paper.py",  # lines of minisl, looked up there
}
COMMANDS = ("train", "evaluate", "generate", "export", "compare", "memory", "analysis", "bench", "ladder", "doctor", "data",
            "kernels.cuda.nvrtc", "course")
OTHERS = ("cd", "git", "sha256sum", "jupyter", "sphinx-build", "python3", "pip", "source", ".", "export", "mkdir", "cp",
          "nbgrader")
NOT_OURS = {"--python", "--upgrade", "--force-reinstall", "--gpus", "--create", "--force", "--duedate"}  # of other programs


def read(page):
    return (ROOT / page).read_text("utf-8")


def blocks(text, language="python"):
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.S | re.M)


# Python blocks

def run_by_nobody(text, page):
    if not blocks(text) or page.startswith("docs/derivations/"):  # all of which tests/docs/test_derivations.py runs
        return []
    test = ROOT / RUN_BY.get(page, "no test")
    return [] if test.exists() and f"{Path(page).name}" in test.read_text() else [page]


def test_every_page_with_python_is_run_by_a_test():
    """A page that is named here has no test that runs its Python blocks: write one, and put it into RUN_BY."""
    assert [page for page in PAGES for page in run_by_nobody(read(page), page)] == []
    assert run_by_nobody("```python\n1 / 0\n```\n", "docs/a-new-page.md") == ["docs/a-new-page.md"]
    assert set(RUN_BY) <= set(PAGES)


SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "rank": 4, "seq_len": 64,
         "batch_size": 2, "parts": 1, "steps": 2, "keep_blas": True, "tokenizer": "bytes", "vocab_size": 257}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With what the pages take to be there: runs/001-sltrain, and the same as my-model; JSON lines in texts/."""
    from minisl.export import export
    from minisl.train import pretrain

    folder = tmp_path_factory.mktemp("examples")
    (folder / "texts").mkdir()
    lines = "".join(f'{{"text": "Line {i} of a text about the number {i * i}, which is a square."}}\n' for i in range(3000))
    (folder / "texts" / "some.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "text.txt").write_text("To be, or not to be, that is the question.\n" * 300)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(plot, "loss_figure", lambda path, *_: path.write_bytes(b"a figure"))
        run = pretrain(tiny=True, data="text.txt", out="runs/001-sltrain", **SMALL)
        export(checkpoint.load_model(run), checkpoint.load_tokenizer_of(run), "my-model")
    return folder


@pytest.fixture
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    shutil.rmtree("again", ignore_errors=True)


def run(page, which, names=None, change=()):
    """Run the block of a page in which `which` occurs."""
    [block] = [b for b in blocks(read(page)) if which in b]
    for old, new in change:
        assert old in block, old
        block = block.replace(old, new)
    names = {"__name__": "page"} | (names or {})
    exec(compile(block, page, "exec"), names)
    return names


def test_readme(inside):
    names = run("README.md", "gradcheck")
    assert names["logits"].shape == (1, 3, 257)
    assert names["x"].grad.shape == (3, 4)


def test_data_at_scale(inside, capsys):
    names = run("docs/data-at-scale.md", "open_data", change=[("8192", "300"), ("workers=2", "workers=0")])
    assert "a stream of 1 file" in capsys.readouterr().out
    assert names["inputs"].shape == names["labels"].shape == (32, 256)


def test_generation(inside, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["", "runs/001-sltrain", "8"])
    run("docs/generation.md", "thread_time", change=[("range(12)", "range(1)")])
    assert len(re.findall(r"^[16] (as trained|merged) (reading|writing) [\d.]+ ms per id$", capsys.readouterr().out, re.M)) == 8


def test_hf_from_a_script(inside, capsys):
    run("docs/hf.md", "start_from", change=[('"rank": 32', '"rank": 8')])
    assert {p.name for p in Path("again").iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}


@pytest.mark.filterwarnings("default")
def test_hf_in_transformers(inside):
    pytest.importorskip("torch", reason="pip install 'minisl[oracle]'")
    pytest.importorskip("transformers", reason="pip install 'minisl[oracle]'")
    names = run("docs/hf.md", "from transformers")
    assert names["words"]("To be").input_ids


def test_distributed(inside):
    from minisl import distributed

    model = checkpoint.load_model("runs/001-sltrain")
    ids = np.arange(64).reshape(1, 64)
    before = {name: p.data.copy() for name, p in model.named_parameters()}
    run("docs/distributed.md", "group.exchange", {
        "distributed": distributed, "model": model, "steps": 2, "my_rows": lambda *_: (ids, ids), "tokens_of_all": 64,
        "optimizer": optim.AdamW(model.named_parameters(), 0.1), "clip_grad_norm": optim.clip_grad_norm})
    assert all((p.data != before[name]).any() for name, p in model.named_parameters())


def test_cuda():
    from minisl.kernels.cuda import emulator

    if not shutil.which(os.environ.get("CXX", "g++")):
        pytest.skip("g++ is not installed")
    said = re.search(r"^# OutOfBounds: (.*)$", read("docs/cuda.md"), re.M)[1]
    with pytest.raises(emulator.OutOfBounds, match=re.escape(said)):
        run("docs/cuda.md", "twice")


# Command lines

class ParsedError(Exception):
    """The command line was taken; nothing has run."""


@contextlib.contextmanager
def stopped_after_parsing(patch):
    def stop(self, argv=None, namespace=None):
        raise ParsedError(parse(self, argv, namespace))

    for parser in (Parser, ArgumentParser):
        parse = parser.parse_args
        patch.setattr(parser, "parse_args", stop)
    with contextlib.suppress(ParsedError):
        yield


def take(module, argv):
    """Raises InputError unless `python -m minisl.MODULE ARGV` would be taken."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        try:
            if module == "train":
                patch.setattr(hf, "adopt", lambda *_: None)
                patch.setattr(hf, "tokenizer_file", lambda folder: "bytes")
                config.parse(argv)
            elif module == "memory":
                main = importlib.import_module("minisl.memory.__main__")
                for name in ("paper", "measured", "estimates"):
                    patch.setattr(main, f"show_{name}", lambda *_: None)
                main.main(argv)
            elif module == "compare":
                from minisl.compare.__main__ import NOT_OF_A_JOB, flags
                from minisl.compare.grid import Entry

                args, job = flags().parse_known_args(argv)
                assert not config.parse(job)[1] & NOT_OF_A_JOB
                for text in args.methods:
                    Entry(text, job)
            else:
                name = f"minisl.{module}"
                if hasattr(importlib.import_module(name), "__path__"):
                    name += ".__main__"
                with stopped_after_parsing(patch):
                    importlib.import_module(name).main(argv)
        except SystemExit as end:  # --help
            if end.code:
                raise


def take_script(path, argv):
    if "parse_args" not in (ROOT / path).read_text("utf-8"):  # it takes names, if anything
        return
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as said:
        patch.setattr(sys, "argv", [path, *argv])
        try:
            with stopped_after_parsing(patch):
                runpy.run_path(str(ROOT / path), run_name="__main__")
        except SystemExit as end:
            raise InputError(said.getvalue().splitlines()[-1]) from end


def extras(word):
    return re.search(r"\[(.*)\]", word)[1].split(",") if "[" in word else []


def check_line(words, page):
    """Raises InputError for a command that is unknown, or does not take these words."""
    if words[0] == "mpiexec":
        assert words[1] == "-n"
        words = words[3:]
    if re.fullmatch(r"(\.venv/bin/)?python", words[0]) and words[1] == "-m":
        module, argv = words[2], words[3:]
        if module.startswith("minisl."):
            if module.removeprefix("minisl.") not in COMMANDS:
                raise InputError(f"{module}: no such command")
            if not {"lion", "gather"} & set(argv):  # of adding-a-method.md and adding-a-kernel.md, whose own tests run these
                take(module.removeprefix("minisl."), argv)
        elif module == "pytest":
            for path in (w for w in argv if w.startswith("tests/")):
                if not (ROOT / path).exists() and f"`{path}`" not in read(page):  # the test of the page's own example
                    raise InputError(f"{path}: no such file")
        elif module == "pip":
            check_line(["pip", *argv], page)
        elif module == "sphinx":
            if not (ROOT / argv[-2] / "conf.py").exists():
                raise InputError(f"{argv[-2]}: has no conf.py")
        else:
            raise InputError(f"python -m {module}: unknown here")
    elif words[0] == "python" and words[1] == "-c":
        compile(words[2], page, "exec")
    elif words[0] == "python":
        take_script(words[1], words[2:])
    elif words[0] == "pip":
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for extra in (e for w in words for e in extras(w)):
            if extra not in known:
                raise InputError(f"pip install [{extra}]: no such extra")
    elif words[0] == "sed":
        if not (ROOT / words[2]).exists():
            raise InputError(f"{words[2]}: no such file")
    elif words[0].removeprefix(".venv/bin/") not in OTHERS and not os.access(ROOT / words[0], os.X_OK):
        raise InputError(f"{words[0]}: what is this? say in tests/docs/test_examples.py how to check it")


def lines_of(text):
    """The commands of a page's shell blocks, each as words."""
    for block in blocks(text, "(?:sh|bash|console)"):
        lines = block.replace("\\\n", "").splitlines()
        for line in [line[2:] for line in lines if line.startswith("$ ")] or lines:  # where there is a prompt, the rest is output
            for part in re.split(r" && |; ", line) if '"import' not in line else [line]:
                words = shlex.split(part, comments=True)
                words = words[: words.index(">")] if ">" in words else words
                if words:
                    yield words


def refused(text, page):
    """A line for each command of a page that would not be taken."""
    said = []
    for words in lines_of(text):
        try:
            check_line(words, page)
        except InputError as error:
            said.append(f"{page}: {shlex.join(words)}: {error}")
    for inline in re.findall(r"(?<!`)`(?:mpiexec -n \d+ )?python -m minisl\.([^`]+)`(?!`)", text):
        module, *argv = inline.split()
        try:
            if "..." not in argv:
                take(module, argv)
        except InputError as error:
            if "are required" not in str(error) and "nothing to train" not in str(error):
                said.append(f"{page}: python -m minisl.{inline}: {error}")
    return said


@pytest.mark.parametrize("page", sorted({*PAGES} - {"docs/faq.md"}))  # whose commands, mistakes among them, test_pages.py runs
def test_command_lines_are_taken(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(importlib.import_module("minisl.generate"), "read_prompts", lambda path: ["a prompt"])
    assert refused(read(page), page) == []


@pytest.mark.parametrize(("page", "old", "new"), [
    ("README.md", "minisl.train --tiny\n", "minisl.train --tinny\n"),
    ("README.md", "--method full galore", "--method full galor"),
    ("README.md", "galore:every=20", "galore:evry=20"),
    ("README.md", "minisl.ladder spmm\n", "minisl.ladder spm\n"),
    ("README.md", "minisl.doctor\n", "minisl.doctr\n"),
    ("README.md", '-e ".[test]"', '-e ".[tests]"'),
    ("docs/analyses.md", "--only full_rank", "--only fullrank"),
    ("docs/comparison.md", "sltrain:optimizer=adam8bit,per-layer sltrain_svd", "sltrain:optimizer=adam8,per-layer sltrain_svd"),
    ("docs/course/index.md", "course check a1_engine", "course chek a1_engine"),
    ("docs/course/instructor.md", "--student ada", "--studnt ada"),
    ("docs/cuda.md", "--language numba", "--language numbers"),
    ("docs/cuda.md", "sed 26d minisl/kernels/cuda/spmm_2.cu", "sed 26d minisl/kernels/cuda/spmm_7.cu"),
    ("docs/cuda.md", "tests/on_gpu\n", "tests/on_gpus\n"),
    ("docs/data-at-scale.md", "--workers 2\n", "--workers two\n"),
    ("docs/distributed.md", "--tiny --shard-optimizer\n", "--tiny --shard-optimiser\n"),
    ("docs/generation.md", "--temperature 0 --merge", "--temprature 0 --merge"),
    ("docs/hf.md", "--decompose random --rank", "--decompose rank --rank"),
    ("docs/hf.md", "--to hf my-model\n", "--to\n"),
    ("docs/memory.md", "`python -m minisl.memory --paper`", "`python -m minisl.memory --papers`"),
    ("docs/runs.md", "--minutes 120 --out", "--minutes 120 --into"),
    ("docs/runs.md", "--resume auto\n", "--resum auto\n"),
])
def test_a_misspelt_command_is_found(page, old, new, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = read(page)
    assert old in text
    [line, *_] = refused(text.replace(old, new, 1), page)
    assert line.startswith(f"{page}: ")


# Flags in the text

@pytest.fixture(scope="module")
def known_flags():
    """Every --flag of every command and method."""
    found, add = set(), Parser.add_argument
    with pytest.MonkeyPatch.context() as patch:
        def noted(self, *names, **kind):
            found.update(n for n in names if n.startswith("--"))
            return add(self, *names, **kind)

        patch.setattr(Parser, "add_argument", noted)
        for module in COMMANDS:
            with contextlib.suppress(InputError):
                take(module, ["--help"])
    own = {name.replace("_", "-") for m in methods.available() for name in methods.flags(m)}
    scripts = {flag for path in ("tests/soak", "tests/kills") for flag in re.findall(r'"(--[\w-]+)"', (ROOT / path).read_text())}
    return found | {f"--{prefix}{name}" for name in own for prefix in ("", "no-")} | scripts | NOT_OURS | config.NOT_HERE.keys()


def unknown_flags(text, known):
    inline = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^ *```.*?^ *```", "", text, flags=re.S | re.M))
    return [flag for code in inline for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", code) if flag not in known]


@pytest.mark.parametrize("page", PAGES)
def test_flags_in_the_text_exist(page, known_flags):
    assert unknown_flags(read(page), known_flags) == []


def test_a_misspelt_flag_in_the_text_is_found(known_flags):
    assert "--per-layer" in known_flags
    assert unknown_flags(read("docs/memory.md").replace("`--per-layer`", "`--perlayer`"), known_flags)[0] == "--perlayer"
