"""Command lines that nobody meant: exit code 0, 1, 2, 130 or 141; one `error:` line where it is 1 or 2, and with 2 nothing
written.

What is drawn may be a job that can be done, so the work is replaced at the innermost point, and the rest is as shipped:
training presses Ctrl-C after its second update, and its sample is three marks; a comparison's runs and weighing give made-up
numbers in this process; the ladder's compiler and emulator, the analyses' training and the doctor's measurements are left out;
corpora from inside Python are two short documents. Numbers of tokens to generate are small.
"""

import os
import re
import shutil
import signal
from contextlib import redirect_stdout
from io import StringIO

import pytest
from fuzz_checks import TEXT, examples, must_notice, near, run, runs_made_up, wrong
from hypothesis import given
from hypothesis import strategies as st
from test_train import job

from minisl import command, config, doctor, evaluate, generate, ladder, lock, methods, optim, plot, summary, train
from minisl.analysis import __main__ as analysis
from minisl.command import run_command
from minisl.compare import __main__ as compare
from minisl.data import corpora
from minisl.kernels.cuda import trial
from minisl.memory import __main__ as memory

COMMANDS = {"train": train, "evaluate": evaluate, "generate": generate, "memory": memory, "compare": compare, "ladder": ladder,
            "doctor": doctor, "analysis": analysis}
VALUES = ("", "0", "1", "2", "3", "7", "-1", "0.5", "1.5", "nan", "inf", "-inf", "1e999", "1e-320", "2147483647", "2147483648",
          "1" + "0" * 400,
          "0x10", "1_0", "١", "True", "none", "text.txt", "model.json", "nowhere", "run", "out", "RUN", "EMPTY", "--", "-",
          "*.txt", "[", "a b",
          "new\nline", "\udcff", "ü" * 300, "%s", "{}", "bytes", "bpe", "9m", "7b", "x.png", "RUN/x.png", "nowhere/x.png", ".",
          "/dev/null/x",
          "/proc/x/y", "text.txt/x", "sltrain", "galore", "galore:every=3", "sltrain:rank=", ":", "galore:projector=qr",
          "sltrain:data=text.txt",
          "spmm", "sddmm", "numba", "cosine", "refined", "float64", "cpu", "cuda", "full_rank", "counting", "adam8bit")
BASE = {
    "train": ["--config=model.json", "--data=text.txt", "--tokenizer=bytes", "--seq-len=16", "--batch-size=2", "--rank=2",
              "--delta=0.1",
              "--steps=2", "--threads=1"],
    "evaluate": ["RUN", "--batch-size=4"],
    "generate": ["RUN", "--tokens=3", "--prompt=a"],
    "memory": ["--config=model.json", "--seq-len=16", "--batch-size=2", "--rank=2", "--threads=1"],
    "compare": ["--methods", "full", "sltrain", "--lrs", "1e-3", "--config=model.json", "--data=text.txt", "--tokenizer=bytes",
                "--seq-len=16", "--batch-size=2", "--rank=2", "--steps=2", "--threads=1"],
    "ladder": ["spmm", "1"], "doctor": [], "analysis": ["--steps=1", "--only", "full_rank"]}
LONG = re.compile("--(tokens|max|live|bench)")  # how long it works is what such a flag says: small numbers only


ESCAPED = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # no bytes of a command line become these


def flags_of(module):
    """The flags that its --help lists."""
    said = StringIO()
    with redirect_stdout(said), pytest.raises(SystemExit):
        module.main(["--help"])
    return sorted(set(re.findall(r"--[a-zA-Z][\w-]*", said.getvalue())))


TRAIN_FLAGS = flags_of(train)
FLAGS = {name: flags_of(module) for name, module in COMMANDS.items() if name != "train"} | {"train": TRAIN_FLAGS}
for name in ("memory", "compare"):
    FLAGS[name] = sorted({*FLAGS[name], *TRAIN_FLAGS})
OWN = ["--every", "--projector", "--scale", "--density", "--momentum", "--no-centre", "--iterations", "--columns", "--hold",
       "--colour"]


SENSIBLE = {bool: st.none(), int: st.integers(1, 6).map(str),
            float: st.sampled_from(("0", "1e-30", "0.1", "0.5", "1", "30", "1e30", "1e300")),
            str: st.sampled_from(("text.txt", "model.json", "new", "EMPTY", "RUN", "bytes", "bpe", "RUN/tokenizer.json"))}


@st.composite
def sensible(draw):
    """A flag of training with a value of its type, mostly allowed; or a method with its own."""
    words = []
    if draw(st.booleans()):
        f = draw(st.sampled_from(config.FLAGS))
        kind = next(k for k in SENSIBLE if str(k.__name__) in str(f.type)) if f.type is not list else str
        value = draw(st.sampled_from(f.metadata["choices"]) if f.metadata["choices"] else SENSIBLE[kind])
        words.append("--" + f.name.replace("_", "-") + (f"={value}" if value else ""))
    else:
        method = draw(st.sampled_from(methods.available()))
        words.append(f"--method={method}")
        if own := list(methods.flags(method).values()):
            f = draw(st.sampled_from(own))
            value = draw(st.sampled_from(f.choices) if f.choices else SENSIBLE[type(f.default)])
            words.append("--" + f.name.replace("_", "-") + (f"={value}" if value else ""))
    return words


@st.composite
def command_lines(draw):
    """(command, words): those of a job that can be done, with flags added, left out, changed, torn, or said twice."""
    name = draw(st.sampled_from((*["train"] * 4, *["compare", "memory", "evaluate", "generate"] * 2,
                                 "ladder", "doctor", "analysis")))
    words = list(BASE[name])
    for _ in range(draw(st.integers(0, 3))):
        how = draw(st.sampled_from(("add", "add", "sensible", "sensible", "sensible", "drop", "swap", "near", "word")))
        if how == "sensible" and name in ("train", "memory", "compare"):
            words += draw(sensible())
        elif how in ("add", "sensible"):
            flag = draw(st.sampled_from([*FLAGS[name], *(OWN if name in ("train", "memory", "compare") else ())]))
            if flag == "--help" and draw(st.integers(0, 5)):
                continue
            value = draw(st.one_of(st.sampled_from(VALUES), st.sampled_from(VALUES), st.integers(-2, 40).map(str),
                                   st.floats(0, 1).map(str), TEXT))
            if LONG.match(flag) and re.fullmatch(r"\s*[\d_]{3,}\s*", value):
                value = "7"
            words += draw(st.sampled_from(([f"{flag}={value}"], [flag, value], [flag], [flag, value, value])))
        elif how == "drop" and words:
            del words[draw(st.integers(0, len(words) - 1))]
        elif how == "swap" and len(words) > 1:
            i, k = draw(st.integers(0, len(words) - 1)), draw(st.integers(0, len(words) - 1))
            words[i], words[k] = words[k], words[i]
        elif how == "near" and words:
            i = draw(st.integers(0, len(words) - 1))
            words[i] = draw(near(words[i]))
        else:
            words.insert(draw(st.integers(0, len(words))), draw(st.one_of(st.sampled_from(VALUES), TEXT)))
    return name, [word for word in words if "\0" not in word and not ESCAPED.search(word)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a text, a config, a finished run RUN and an empty folder EMPTY; the work is replaced as said above."""
    folder = tmp_path_factory.mktemp("commands")
    pristine = tmp_path_factory.mktemp("pristine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot, "loss_figure", lambda path, *_: path.write_bytes(b""))
        assert run_command(train.main, job(pristine, out=pristine / "RUN", steps=2, data=str(pristine / "text.txt"))) == 0
        (pristine / "EMPTY").mkdir()

        step = optim.Optimizer.step

        def interrupted(self):
            step(self)
            self.done = getattr(self, "done", 0) + 1
            if self.done == 2:
                signal.raise_signal(signal.SIGINT)

        patch.setattr(optim.Optimizer, "step", interrupted)
        patch.setattr(plot, "loss_figure", lambda path, *_: path.write_bytes(b""))
        patch.setattr(summary, "generate", lambda model, ids, *_: iter(ids * 3))
        patch.setattr(plot, "memory_figure", lambda path, *_: open(path, "wb").close())
        for corpus in ("python-docs", "python-source"):
            patch.setitem(corpora.NAMED, corpus, lambda: ["one line of text\nand another line\n" * 20] * 2)

        runs_made_up(patch)
        patch.setattr(trial, "error", lambda *_: (0.0, ""))
        patch.setattr(trial, "counts", lambda *_: ({"accesses": 1}, [None]))
        patch.setattr(ladder, "draw", lambda op, number, path: open(path, "wb").close())
        patch.setattr(ladder, "real_compiler", lambda *_: 0)
        patch.setattr(doctor, "LINES", {"Python": doctor.python_line})
        for figure in analysis.FIGURES:
            patch.setattr(analysis.Study, figure, lambda self, path: (path.write_bytes(b"") and "") or "a line")
        patch.setattr(analysis, "fewer_colours", lambda path: None)
        patch.setattr(analysis, "keep_freed_memory", lambda: None)
        patch.setattr(train, "keep_freed_memory", lambda: None)
        patch.chdir(folder)
        yield folder, pristine


@given(drawn=command_lines())
@examples(100, 1000)
def test_a_command_line_is_done_or_refused_in_a_line(place, drawn):
    """Rejects: a traceback, a second complaint or none, another exit code, a file or folder left by what was refused, a hang."""
    folder, pristine = place
    name, words = drawn
    shutil.rmtree(folder)
    shutil.copytree(pristine, folder)
    os.chdir(folder)
    run(COMMANDS[name].main, words, folder)


@wrong((command.complain, "return code", "return code + 1"),
       (command.complain, "print(", "print(end='error: twice\\n', file=sys.stderr), print("),
       (command.Parser.error, "raise InputError", "raise ValueError"),
       (lock.alone_in.__wrapped__, "shutil.rmtree(folder, ignore_errors=True)", "pass"))
def test_rejects_commands(mutant, place, killed):
    must_notice(mutant, lambda: test_a_command_line_is_done_or_refused_in_a_line(place=place), killed)
