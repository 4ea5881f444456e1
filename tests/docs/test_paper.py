"""docs/paper.md: what it names exists, its lines of code are in the functions it names, and each equation is there once."""

import ast
import contextlib
import importlib
import inspect
import io
import itertools
import re
import textwrap
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGE = (DOCS / "paper.md").read_text("utf-8")

LINK = re.compile(r"\[(`?)([^\]]+?)\1\]\(([^)]+)\)")
SPAN = re.compile(r"`([^`\n]+)`")
ITEM = re.compile(r"^\*\*(?P<label>[^*]+)\*\*[^$`]*\$\$(?P<formula>.+?)\$\$\n\n```python\n(?P<code>.+?)```$", re.M | re.S)
SECTION_3 = {
    "Section 3: the weight": ["A weight is low-rank plus sparse.", "The scale is of BA alone.", "B starts at zero.",
                              "A starts uniform.", "The values of S start uniform too."],
    "Section 3: the support": ["How many entries.", "Which ones.", "Drawn once, never trained.", "Row and column of a position."],
    "Section 3: Proposition 1, full rank": ["The sum has full rank with high probability.",
                                            "What it rests on: a perfect matching of the support.", "The edge."],
    "Section 3: Algorithm 1, forward": ["W is built.", "The values are added where they belong.", "The output.",
                                        "W is not kept."],
    "Section 3: Algorithm 1, backward": ["Gradient of the input.", "Gradient of W.", "Gradient of B.", "Gradient of A.",
                                         "Gradient of the values."],
    "Section 3: parameters": ["A layer trains these and no others."]}


def problems(page):
    """What is wrong with the page, a line each."""
    entries = {title: text for title, text in sections(page) if re.search(r"^- (Code|Test|Read):", text, re.M)}
    found = [*wrong_references(page), *wrong_spans(page), *wrong_equations(page)]
    for title, text in entries.items():
        found += [f"{title}: no {what}" for what in ("Code", "Test", "Read") if not re.search(rf"^- {what}: \[", text, re.M)]
        lines = {line for ref in code_of(text) for line in source(ref)}
        found += [f"{title}: not in the code: {line}" for item in ITEM.finditer(text) for line in item["code"].splitlines()
                  if line.strip() not in lines]
    return found


def sections(page):
    """(title, text) of everything under a heading."""
    pieces = re.split(r"^#{2,3} (.+)$", page, flags=re.M)
    return list(zip(pieces[1::2], pieces[2::2]))


def code_of(text):
    bullet = re.search(r"^- Code: ((?:.+\n)(?:  .+\n)*)", text, re.M)
    return [ref for _, ref, _ in LINK.findall(bullet[1])] if bullet else []


def source(ref):
    """The lines of what stands behind path::name, without their indentation."""
    try:
        return [line.strip() for line in textwrap.dedent(inspect.getsource(resolved(ref))).splitlines()]
    except (LookupError, OSError, TypeError):
        return []


def resolved(ref):
    """The object behind minisl/a/b.py::Name. Raises LookupError."""
    path, _, name = ref.partition("::")
    try:
        thing = importlib.import_module(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        for part in name.split("."):
            thing = getattr(thing, part)
    except (ImportError, AttributeError) as error:
        raise LookupError(f"{ref}: {error}") from None
    return thing


@cache
def names_in(path):
    return {node.name for node in ast.parse((ROOT / path).read_text("utf-8")).body if hasattr(node, "name")}


def wrong_references(page):
    """Of links to code, tests, notebooks and pages."""
    for _, text, target in LINK.findall(page):
        file, _, anchor = target.partition("#")
        path, _, name = text.partition("::")
        if target.startswith("https://"):
            continue
        if not (DOCS / file).is_file():
            yield f"no such file: {target}"
        elif "::" in text or "/" in text:
            if target != f"../{path}":
                yield f"{text} leads to {target}"
            elif name and path.startswith("tests/") and name not in names_in(path):
                yield f"no such test: {text}"
            elif name and path.startswith("minisl/"):
                try:
                    resolved(text)
                except LookupError as error:
                    yield f"no such name: {error}"
        if anchor and (DOCS / file).is_file() and anchor not in anchors((DOCS / file).read_text("utf-8")):
            yield f"no such heading: {target}"


def anchors(page):
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", page, re.M)}


def wrong_spans(page):
    """Whatever is set as code outside of blocks is a reference, which is linked, or a command."""
    text = LINK.sub("", re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S))
    for span in SPAN.findall(text):
        words = span.split()
        if words[:2] != ["python", "-m"]:
            yield f"neither linked nor a command: {span}"
            continue
        known = help_of(words[2])
        if known is None:
            yield f"no such command: {words[2]}"
        else:
            checked = [word for before, word in itertools.pairwise(words) if word.startswith("--") or before == "--only"]
            yield from (f"{words[2]} has no {word}" for word in checked if not re.search(rf"(?<![\w-]){word}(?![\w-])", known))


@cache
def help_of(module):
    """What --help prints, with that of minisl.train where it refers to it; or None."""
    try:
        command = importlib.import_module(module)
        command = command if hasattr(command, "main") else importlib.import_module(f"{module}.__main__")
    except ImportError:
        return None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        command.main(["--help"])
    said = printed.getvalue()
    return said + help_of("minisl.train") if "minisl.train" in said and module != "minisl.train" else said


def wrong_equations(page):
    """Each label and each formula once, all of section 3 there, and no formula without its code."""
    items = {title: list(ITEM.finditer(text)) for title, text in sections(page)}
    for kind in ("label", "formula"):
        seen = [re.sub(r"\s|\\[,;!]|\\quad|\\qquad", "", item[kind]) for of in items.values() for item in of]
        yield from (f"{kind} more than once: {one}" for one in sorted(set(seen)) if seen.count(one) > 1)
    for title, labels in SECTION_3.items():
        if [item["label"] for item in items.get(title, [])] != labels:
            yield f"{title}: expected are {labels}"
    displayed = len(re.findall(r"^\$\$", page, re.M))
    if displayed != sum(map(len, items.values())):
        yield f"{displayed} displayed formulas, {sum(map(len, items.values()))} with label and code"


def test_nothing_on_the_page_is_dead():
    assert not problems(PAGE)


def test_there_is_enough_of_it():
    """The parser sees what a reader sees."""
    assert len(ITEM.findall(PAGE)) >= 27
    assert sum(text.count("- Code:") for _, text in sections(PAGE)) == PAGE.count("- Code:") >= 17
    assert len([ref for _, ref, _ in LINK.findall(PAGE) if ref.startswith("tests/")]) >= 40


ITEM_OF_DX = next(item.group() for item in ITEM.finditer(PAGE) if item["label"] == "Gradient of the input.")


@pytest.mark.parametrize(("old", "new", "said"), [
    ("../minisl/methods/sltrain.py", "../minisl/methods/sltrian.py", "no such file"),
    ("../notebooks/03_sltrain.ipynb", "../notebooks/03_sltrane.ipynb", "no such file"),
    ("sltrain.py::sample_support`", "sltrain.py::draw_support`", "no such name"),
    ("sltrain.py::SLLinear`", "sltrain.py::SLLinear.gone`", "no such name"),
    ("test_sltrain.py::test_support`", "test_sltrain.py::test_supports`", "no such test"),
    ("[`minisl/analysis/runs.py::ablation`](../minisl/analysis/runs.py)",
     "[`minisl/analysis/runs.py::ablation`](../minisl/analysis/parts.py)", "leads to"),
    ("`minisl/methods/sltrain.py::held`", "`minisl/methods/full.py::held`", "leads to"),
    ("memory.md#the-papers-table", "memory.md#the-table", "no such heading"),
    ("dW = dy.T @ x", "dW = x.T @ dy", "not in the code: dW = x.T @ dy"),
    ("dB *= scale", "dB *= s", "not in the code: dB *= s"),
    ("`python -m minisl.memory --paper`", "`python -m minisl.memory --papers`", "has no --papers"),
    ("--only full_rank", "--only fullrank", "has no fullrank"),
    ("`python -m minisl.bench", "`python -m minisl.benches", "no such command"),
    ("dX is short for", "`dX` is short for", "neither linked nor a command"),
    (ITEM_OF_DX, "", "expected are"),
    (ITEM_OF_DX, f"{ITEM_OF_DX}\n\n{ITEM_OF_DX}", "label more than once"),
    (ITEM_OF_DX, ITEM_OF_DX.replace("G\\,W", "G (s B A + S)").replace("```python", "```text"), "with label and code"),
    ("$$dA = s\\,B^T dW$$", "$$dB = s\\,dW\\,A^T$$", "formula more than once"),
    ("- Test: [`tests/analysis/test_analysis.py::test_ablation`](../tests/analysis/test_analysis.py)\n", "", "no Test"),
], ids=lambda value: value[:40].replace("\n", " ") if isinstance(value, str) else None)
def test_what_goes_wrong_is_found(old, new, said):
    assert old in PAGE
    found = set(problems(PAGE.replace(old, new))) - set(problems(PAGE))
    assert any(said in line for line in found), found
