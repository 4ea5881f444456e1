"""docs/derivations: the pages' blocks run, their sections are in order, and a wrong backward pass fails its own page's check."""

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "derivations"
PAGES = sorted(p.stem for p in FOLDER.glob("*.md"))
SECTIONS = ["Forward", "Algebra", "Backward", "Check", "Kernel"]


def text_of(page):
    return (FOLDER / f"{page}.md").read_text("utf-8")


def run(text, name):
    names = {"__name__": "page"}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.S | re.M):
        exec(compile(block, f"docs/derivations/{name}.md", "exec"), names)


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_run(page):
    run(text_of(page), page)


@pytest.mark.parametrize("page", [p for p in PAGES if p != "index"])
def test_the_sections_are_in_order(page):
    text = text_of(page)
    assert re.findall(r"^## (.*)", text, re.M) == SECTIONS
    assert f"({page}.md)" in text_of("index")
    assert f"\n{page}\n" in text_of("index")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", text_of(page)):
        assert (FOLDER / target).exists(), target


@pytest.mark.parametrize(("page", "old", "new"), [
    ("index", "(f(x + step) - f(x - step)) / (2 * h)", "(f(x + step) - f(x)) / h"),
    ("sl-product", "D = G.T @ X", "D = -G.T @ X"),
    ("sl-product", "s * D @ A.T,", "D @ A.T,"),
    ("sl-product", "D.reshape(-1)[I]", "s * D.reshape(-1)[I]"),
    ("sl-product", "s * GB @ A + G @ S", "s * GB @ A - G @ S"),
    ("sl-product", "S.reshape(-1)[I] = v", "S.reshape(-1)[I] = v[::-1]"),
    ("sl-product", "X[:, j]", "X[:, j[::-1]]"),
    ("rmsnorm", "u - normed *", "u + normed *"),
    ("rmsnorm", "u, normed = g * G, x * r", "u, normed = G, x * r"),
    ("rmsnorm", "dg = (G * normed)", "dg = (G * x)"),
    ("rmsnorm", "normed * np.mean(u * normed, axis=1, keepdims=True)",
     "x * np.mean(u * x, axis=1, keepdims=True) / np.mean(x * x, axis=1, keepdims=True)"),  # eps forgotten
    ("rope", "forward(G, cos, -sin)", "forward(G, cos, sin)"),
    ("rope", "forward(G, cos, -sin)", "forward(G, -cos, sin)"),
    ("rope", "x1, x2 = np.split(x, 2, axis=-1)", "x1, x2 = x[:, ::2], x[:, 1::2]"),  # the other layout
    ("attention", "E - (G * O)", "E + (G * O)"),
    ("attention", "(G * O).sum(axis=1, keepdims=True)", "(G * O).sum(axis=0, keepdims=True).mean()"),
    ("attention", "root * D.T @ Q", "root * D @ Q"),
    ("attention", "P.T @ G\n", "P @ G\n"),
    ("attention", "root * D @ K", "D @ K"),
    ("attention", "t * shrink +", "t +"),
    ("swiglu", "1 + a * (1 - s)", "1 - a * (1 - s)"),
    ("swiglu", "G * a * s\n", "G * s\n"),
    ("cross-entropy", "-= 1", "+= 1"),
    ("cross-entropy", "dz[~kept] = 0", "pass"),
    ("cross-entropy", "dW += dz.T", "dW = dz.T"),
    ("cross-entropy", "m = z.max(axis=1)", "m = 0 * z.max(axis=1)"),
    ("adamw", "(1 - b2) * g**2", "(1 - b2) * g"),
    ("adamw", "m / (1 - b1**t), v", "m, v"),
    ("adamw", "lr * decay * w", "decay * w"),
    ("adamw", "np.abs(blocks).max", "blocks.max"),
])
def test_a_wrong_page_fails(page, old, new):
    text = text_of(page)
    assert text.count(old) == 1, f"{page}.md holds {old!r} {text.count(old)} times"
    with pytest.raises((AssertionError, ValueError, RuntimeWarning)):
        run(text.replace(old, new), page)
