"""A student's CUDA text runs apart from the tests, ends, and reaches for nothing."""

import os

import numpy as np
import pytest

from minisl.course import Wrong, cuda
from minisl.errors import InputError
from minisl.kernels.cuda import emulator

try:
    emulator.compiler()
except InputError as error:
    pytest.skip(str(error), allow_module_level=True)

TWICE = """
extern "C" __global__ void twice(const float* x, float* y, int n) {
    const int k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k < n) y[k] = 2 * x[k];
}
"""


def run(text=TWICE, **how):
    x, y = np.arange(40, dtype=np.float32), np.zeros(40, np.float32)
    return x, y, cuda.run(text, "twice", (2,), (32,), (x, y, len(x)), y, **how)


def test_a_launch_is_counted_and_writes_in_place():
    x, y, counts = run()
    np.testing.assert_array_equal(y, 2 * x)
    assert counts == cuda.Counts(sectors=10, of={"x": 5, "y": 5}, accesses=80, busiest=2, atomics=0)


def test_a_kernel_that_changes_what_it_should_read():
    """It would spoil what is computed from x afterwards."""
    with pytest.raises(Wrong, match="twice changes x, which is only to be read"):
        run(TWICE.replace("const float* x", "float* x").replace("y[k] = 2 * x[k]", "x[k] = 0"))


@pytest.mark.parametrize(("old", "new"), [
    ("if (k", 'static const char* a = "/*"; asm("nop"); static const char* b = "*/"; if (k'), ("if (k", 'as\\ \nm("nop"); if (k'),
    ("if (k", 'as\\\nm("nop"); if (k'), ("extern", "#import <cstdlib>\nextern"), ("if (k", "int q = '\"'; if (k"),
    ("if (k", "#if __has_include(<cstdio>)\n#endif\nif (k"),
], ids=["hidden in strings", "a space after the backslash", "a joined line", "import", "a quote of a quote", "has_include"])
def test_what_would_hide_something_from_the_filter(old, new):
    with pytest.raises(Wrong, match=r"not allowed here|backslash with spaces"):
        run(TWICE.replace(old, new))


@pytest.mark.parametrize("constant", [
    "static const float a = sqrtf(2.f);", "static float a[8], *b = a + 3;", "static const int a = min(3, 4);",
    "__constant__ float4 a = make_float4(1, 2, 3, 4), b[2];", "struct A { int b = 1; float c = 2; }; static A a[4];"])
def test_a_constant_may_stand_outside_of_a_kernel(constant):
    run(f"{constant}\n{TWICE}")


def test_vectors_in_shared_memory():
    """Were rejected: out of bounds, at what C++ notes of a constructor that has run."""
    run(TWICE.replace("if (k < n)", "__shared__ float4 a[32]; a[threadIdx.x].x = 1; if (k < n)"))


def test_each_order_begins_with_what_was_given():
    x, y, _ = run(TWICE.replace("y[k] = 2", "y[k] += 2"))
    np.testing.assert_array_equal(y, 2 * x)


@pytest.mark.parametrize(("old", "new", "says"), [
    ("k < n", "k <= n", r"OutOfBounds.*reads x\[40\]"),
    ("y[k]", "y[0]", "(?s)Race.*between them is missing.*let one thread write \\(if \\(s == 0\\)\\)"),
    ("y[k]", "y[threadIdx.x]", "(?s)Race.*is blockIdx used in the index"),
    ("if (k < n)", "__shared__ float a[4]; a[k] = 0; if (k < n)", "(?s)UndefinedBehaviour.*size in the declaration"),
    ("if (k < n)", "if (k < 7) __syncthreads(); if (k < n)", "Every thread of a block must come to each"),
    ("if (k < n)", "for (;;)", "does a loop never end"),
    ("if (k < n)", "for (;;) __syncthreads();", "does a loop never end"),
    ("if (k < n)", "for (volatile int q = 0;; ++q)", "does a loop never end"),  # the limit or the overflow
    ("if (k < n)", "for (volatile int q = 0x7ffffff0;; ++q)", "an integer sum that overflows(?s:.*)does a loop never end"),
    *(("extern", f"static int w() {{ {loop} }}\nstatic int q = w();\nextern", r"cu:3: error: .*nothing runs before the kernel")
      for loop in ("for (volatile int q = 0;; ++q);", "for (volatile int q = 0x7ffffff0;; ++q);", "for (;;) __syncthreads();")),
    ("if (k < n)", "volatile float a[100000]; a[k] = 1; if (k < n)", "the frame size of 400000 bytes is larger"),
    ("x[k];", "x[k]", r"twice.cu:4:\d+: error: .*\n *if \(k < n\)"),
    ("y[k] = ", "atomicAdd(y[k], 1.f); y[k] = ", r"(?s)cu:4:\d+: .*atomicAdd\(float&.*an address: &d\[k\]\n *if"),
    ("2 * x[k];", "2 * x[k]\n__syncthreads();", "(?s)cu:4:.*before '__syncthreads'\n *if"),
    ("if (k < n)", "int q = 3\n__syncthreads(); if (k < n)", "(?s)cu:5:.* before '__syncthreads'\n *__syncthreads"),
    ("y[k] = 2", "y[k] = k < 0 ? system(\"true\") : 2", "uses system, which is not known here"),
    ("if (k < n) y[k] = 2", "auto f = remove; y[k] = f(0) ? 2 : 1", "uses remove, which is not known here"),
    ("extern", "#include <unistd.h>\nextern", "`#include`, which is not allowed"),
    ("if (k", "cu::record_count = 0; if (k", "`cu`, which is not allowed"),
    ("if (k", "asm(\"nop\"); if (k", "`asm`, which is not allowed"),
    ("y[k] = 2 * x[k]", "memcpy(y + k, x + k, 4)", "`memcpy`, which is not allowed"),
    ('extern "C"', "", 'extern "C" is missing'),
    ("twice(", "thrice(", "it has thrice"),
    ("int n", "size_t n", "type 'size_t'"),
    ("int n)", "int n, int m)", "twice takes 4 arguments"),
    ("2 * x[k]", "2 \u00b7 x[k]", "letters"),
])
def test_what_is_wrong_is_said(old, new, says):
    with pytest.raises(Wrong, match=says):
        run(TWICE.replace(old, new), seconds=1)


@pytest.mark.parametrize(("text", "says"), [(None, "does the function return it"), (7, "is an int"), ("hello", "no kernel")])
def test_no_text(text, says):
    with pytest.raises(Wrong, match=says):
        run(text)


def test_the_graders_word_stays_with_the_grader(monkeypatch):
    monkeypatch.setenv("MINISL_COURSE", "secret")
    asked = {}
    real = cuda.subprocess.Popen
    monkeypatch.setattr(cuda.subprocess, "Popen", lambda *args, env, **named: asked.update(env) or real(*args, env=env, **named))
    run()
    assert "MINISL_COURSE" not in asked
    assert asked["PATH"] == os.environ["PATH"]


def test_too_many_sectors_are_told_by_array():
    counts = run()[2]
    cuda.at_most(0.25, counts, 40, "per element")
    with pytest.raises(Wrong, match=r"too many sectors: 0.25 per element, should be at most 0.2 \(x 0.12, y 0.12\)"):
        cuda.at_most(0.2, counts, 40, "per element")


def test_without_a_compiler_a_line_says_so(monkeypatch, capsys):
    def missing():
        raise InputError("no g++ here")

    monkeypatch.setattr(emulator, "compiler", missing)
    cuda.ready()
    assert capsys.readouterr().out == "no g++ here\n"
