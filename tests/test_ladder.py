"""`python -m minisl.ladder`: what a student sees, and that it can say no."""

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from gpu import needs_compiler

from minisl import ladder as command
from minisl.command import run_command
from minisl.kernels.cuda import emulator, ladder, nvrtc, trial

ROOT = Path(__file__).parents[1]
RUNGS = [(op, number) for op, count in ladder.rungs().items() for number in range(count)]


def run(capsys, *argv):
    code = run_command(command.main, [str(a) for a in argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_all_ladders_are_listed(capsys):
    code, out, _ = run(capsys)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(ladder.rungs())


@pytest.mark.parametrize(("op", "number"), RUNGS)
def test_every_rung_says_what_it_is_and_counts(op, number):
    title, rest = ladder.header(op, number)
    assert title.startswith(f"{op}, rung {number}: ")
    assert title.endswith(".")
    assert "\nBytes" in rest
    assert "perations" in rest


@needs_compiler
@pytest.mark.parametrize("op", ["scatter_add", "adam8bit"])
def test_a_whole_ladder(op, capsys):
    code, out, _ = run(capsys, op)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[3:]] == [str(n) for n in range(ladder.rungs()[op])]
    assert "WRONG" not in out


@needs_compiler
def test_a_rung_shows_its_difference(capsys):
    code, out, _ = run(capsys, "scatter_add", 1)
    assert code == 0
    assert "-        W[index[k]] += values[k];" in out
    assert "+    if (k < nnz) atomicAdd(&W[index[k]], values[k]);" in out
    code, out, _ = run(capsys, "scatter_add", 0)
    assert code == 0
    assert 'extern "C" __global__ void scatter_add' in out


@needs_compiler
def test_a_race_is_shown_and_its_cure_too(capsys, tmp_path):
    """The story of README and docs/cuda.md: the same line, the same words."""
    right = ladder.source("spmm", 2).splitlines(keepends=True)
    assert right[25].strip() == "__syncthreads();"
    mine = tmp_path / "mine.cu"
    mine.write_text("".join(right[:25] + right[26:]))
    code, out, _ = run(capsys, "spmm", 2, "--file", mine)
    assert code == 1
    race = ("Race: spmm, line 25, block (7, 0, 0), thread (1, 0, 0): reads value[0], which thread (0, 0, 0) wrote in line 20; "
            "no barrier or atomic is between them\n    sum += value[p] * xt[column[p]];")
    assert race in out
    for page in ("README.md", "docs/cuda.md"):
        assert race in (ROOT / page).read_text()
        assert "sed 26d minisl/kernels/cuda/spmm_2.cu" in (ROOT / page).read_text()
    mine.write_text("".join(right))
    code, out, _ = run(capsys, "spmm", 2, "--file", mine)
    assert code == 0
    assert "WRONG" not in out


@needs_compiler
@pytest.mark.parametrize(("change", "said"), [
    (("values[k]", "2 * values[k]"), "WRONG: result 0 of shape (75, 70) has "), (("+=", "+!="), "CompileError: mine.cu:"),
    (("const float* values", "const double* values"), "TypeError"), (("k < nnz", "k <= nnz"), "OutOfBounds"),
    (("const float* values", "const float* weights"), "has a parameter weights; those there can be are W, index, values, nnz"),
    (("values[k]", "values[k] * NAN"), "has nan at"),
    (("void scatter_add", "void scatter"), "has no kernel scatter_add; it has scatter"),
    (("const int* index", "const long* index"), "type 'long'; known: float")])
def test_other_mistakes(change, said, capsys, tmp_path):
    mine = tmp_path / "mine.cu"
    mine.write_text(ladder.source("scatter_add", 0).replace(*change))
    code, out, _ = run(capsys, "scatter_add", 0, "--file", mine)
    assert code == 1
    assert said in out
    assert "WRONG" in out


@needs_compiler
@pytest.mark.parametrize(("op", "number", "change"), [
    ("spmm", 0, ("+= sum;", "= sum;")), ("spmm", 6, ("first < width;", "first <= width;")),
    ("sl_forward", 3, ("Bs[ty + l * SIZE][q] * As[q][tx];\n            __syncthreads();", "Bs[ty + l * SIZE][q] * As[q][tx];"))])
def test_mistakes_that_only_some_sizes_show(op, number, change, capsys, tmp_path):
    mine = tmp_path / "mine.cu"
    mine.write_text(ladder.source(op, number).replace(*change))
    assert mine.read_text() != ladder.source(op, number)
    assert run(capsys, op, number, "--file", mine)[0] == 1


@needs_compiler
@pytest.mark.skipif(nvrtc.library() is None, reason="NVRTC is not installed")
@pytest.mark.parametrize(("change", "said"), [
    (('extern "C" ', ""), 'needs extern "C"'), (('extern "C"', 'float twice(float x) { return x + x; }\nextern "C"'), "JIT mode"),
    (('extern "C"', '#include <stdio.h>\nextern "C"'), "stdio.h")])
def test_what_only_the_real_compiler_knows(change, said, capsys, tmp_path):
    mine = tmp_path / "mine.cu"
    right = ladder.source("scatter_add", 0)
    mine.write_text(right.replace(*change))
    code, out, _ = run(capsys, "scatter_add", 0, "--file", mine)
    assert code == 1
    assert said in out
    mine.write_text(right)
    assert run(capsys, "scatter_add", 0, "--file", mine)[0] == 0
    mine.write_text(right.replace("{\n", "{\n    int unused;\n", 1))  # a remark, no mistake
    code, out, _ = run(capsys, "scatter_add", 0, "--file", mine)
    assert (code, "WRONG" in out, "warning" in out) == (0, False, True)


@needs_compiler
def test_picture(capsys, tmp_path):
    code, out, _ = run(capsys, "rope", 1, "--draw", tmp_path / "rope.png")
    assert code == 0
    assert out.endswith("rope.png: what the first block of rope touches\n")
    assert (tmp_path / "rope.png").stat().st_size > 10_000


@pytest.mark.parametrize("op", ["scatter_add", "spmm"])
def test_the_other_language(op, capsys):
    for package in ("greenlet", "numba.cuda"):
        pytest.importorskip(package)
    code, out, _ = run(capsys, op, 0, "--language", "numba")
    assert code == 0
    assert f"{op}, rung 0: " in out
    assert "def rung_0(" in out
    assert out.splitlines()[-1].startswith("0  ")
    assert "WRONG" not in out
    with patch.object(trial, "TOLERANCE", -1):
        assert run(capsys, op, 0, "--language", "numba")[0] == 1


def test_ladders_of_the_other_language(capsys):
    code, out, _ = run(capsys, "--language", "numba")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(ladder.rungs("numba"))


@pytest.mark.parametrize(("argv", "said"), [
    (["rope", "0", "--language", "numba"], "rope is not written in Numba CUDA; these are: scatter_add"),
    (["spmm", "6", "--language", "numba"], "spmm has no rung 6 in Numba CUDA; its last is 4"),
    (["spmm", "1", "--language", "numba", "--draw", "a.png"], "--draw: is for CUDA C++"),
    (["spm"], "invalid choice: 'spm'"), (["spmm", "9"], "spmm has no rung 9; allowed: 0..6"),
    (["spmm", "x"], "invalid int value"), (["spmm", "-1"], "-1"), (["spmm", "--file", "a.cu"], "--file: say which rung"),
    (["--draw", "a.png"], "--draw: say which rung"), (["spmm", "1", "--file", "no such.cu"], "no such.cu: cannot be read"),
    (["spmm", "1", "--file", ""], "cannot be read"), (["spmm", "1", "--draw", "a.pdf"], "must be a .png in a folder that exists"),
    (["spmm", "1", "--draw", "no such folder/a.png"], "must be a .png in a folder that exists")])
def test_bad_input(argv, said, capsys):
    code, _, err = run(capsys, *argv)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1


def test_no_compiler_is_one_line(capsys, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    emulator.compiler.cache_clear()
    try:
        code, _, err = run(capsys, "spmm")
    finally:
        emulator.compiler.cache_clear()
    assert code == 2
    assert "needs no-such-compiler (named by CXX), not found here; fix: apt install g++" in err


def test_problem_has_what_kernels_stumble_over():
    for size in trial.SIZES:
        S = trial.support(np.random.default_rng(0), size)
        rows = np.bincount(S.rows, minlength=size.out)
        assert rows[3] == 0
        assert rows.max() > 128  # a chunk of spmm_2
        assert not S.unique
        assert not S.sorted
    odd, even = trial.SIZES
    assert all(n % 64 for n in odd[:3])
    assert not any(n % 64 for n in even[:3])
    assert min(odd.rank, even.rank) > 16  # more than one tile along the rank
