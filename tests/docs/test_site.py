"""The pages: built without a warning, every name in the reference, every link alive, and shown by a browser as they should be."""

import functools
import http.server
import importlib.util
import inspect
import pkgutil
import re
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

import minisl

for package in ("sphinx", "myst_nb", "furo", "math_core"):
    pytest.importorskip(package, reason="needs the extra `docs`")

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
INNER = ("minisl.bench", "minisl.kernels.cpu", "minisl.kernels.cuda", "minisl.memory.shapes")  # functions may go without words


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check = load("docs_site", HERE / "site.py")
sys.path.append(str(ROOT / "docs" / "_ext"))
reference = load("reference", ROOT / "docs" / "_ext" / "reference.py")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site. Warnings are errors."""
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run([sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-j", "2", "-b", "html", "-d",
                           out / "doctrees", ROOT / "docs", out / "html"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return out / "html"


@pytest.fixture(scope="module")
def pages(site):
    return check.read(site)


def written(pages):
    """The pages that somebody reads: not those of source code."""
    return [name for name in pages if not name.startswith("_modules/")]


def test_all_links_and_anchors_resolve(site, pages):
    assert check.problems(site, pages) == []


def test_nothing_is_loaded_from_elsewhere(site):
    assert check.elsewhere_in_styles(site) == []


def in_package():
    """{module: {its public classes and functions}}, by importing; what cannot be imported here is left out."""
    found = {}
    for info in pkgutil.walk_packages(minisl.__path__, "minisl."):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = importlib.import_module(info.name)
        except (ImportError, minisl.errors.InputError):
            continue
        found[info.name] = {name for name, value in vars(module).items() if not name.startswith("_") and callable(value)
                            and getattr(getattr(value, "py_func", value), "__module__", "") == info.name
                            and getattr(value, "__name__", "") == name and not inspect.ismodule(value)}
    return found


def test_every_public_name_is_in_the_reference_with_its_source(pages):
    ids = {anchor for name, page in pages.items() if name.startswith("reference/") for anchor in page.ids}
    links = {link for name, page in pages.items() if name.startswith("reference/") for link in page.links}
    names, trees = in_package(), reference.modules()
    assert len(names) > 140
    for module, own in names.items():
        assert f"module-{module}" in ids
        for name in own & {node.name for node in reference.public(trees[module].body)}:  # the others are made by a call
            assert f"{module}.{name}" in ids
            assert f"../_modules/{module.replace('.', '/')}.html#{name}" in links


def test_every_public_name_is_explained():
    trees = reference.modules()
    links = reference.Links(trees)
    silent = [module for module, tree in trees.items() if not reference.ast.get_docstring(tree)]
    silent += [f"{module}.{node.name}" for module, tree in trees.items() if not module.startswith(INNER)
               for node in reference.public(tree.body)
               if not reference.ast.get_docstring(node) and not reference.said_elsewhere(node.name, module, links)]
    assert silent == []


@pytest.mark.parametrize(("old", "new"), [
    ('href="install.html"', 'href="instal.html"'), ("install.html#when-it-fails", "install.html#when-it-falls"),
    ("_static/site.css", "_static/sight.css"), ("<head>", '<head><script src="https://example.org/a.js"></script>')])
def test_dead_links_are_found(site, pages, old, new, killed):
    text = (site / "faq.html").read_text("utf-8").replace("faq.html", "faq-wrong.html")
    assert old in text
    wrong = site / "faq-wrong.html"
    try:
        wrong.write_text(text.replace(old, new), "utf-8")
        found = check.problems(site, {**pages, "faq-wrong.html": check.Page(wrong)}, ["faq-wrong.html"])
    finally:
        wrong.unlink()
    killed[f"docs: {old} -> {new}"] = bool(found)
    assert found


# In a browser


@pytest.fixture(scope="module")
def browser(site):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra `docs`")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with sync_api.sync_playwright() as playwright:
                chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
                tab = chromium.new_page()
                tab.set_default_timeout(600_000)
                yield check.Browser(tab, f"http://127.0.0.1:{server.server_port}")
                chromium.close()
        finally:
            server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass


def test_every_page_opens_on_phone_and_desktop_in_light_and_dark(browser, site, pages):
    wrong, ids, links = [], {}, set()
    for name in written(pages):
        for size in check.SIZES:
            for scheme in check.SCHEMES:
                found, seen = browser.visit(name, size, scheme)
                wrong += [line for line in found if name != "search.html" or "nothing to read" not in line]
        ids[f"{browser.address}/{name}"] = set(seen["ids"])
        links |= {(name, link) for link in seen["links"] if link.startswith(browser.address)}
    for name, link in links:
        target, _, anchor = link.partition("#")
        if target in ids:
            wrong += [f"{name}: {link}: no such anchor"] * bool(anchor and check.unquote(anchor) not in ids[target])
        elif not (site / target.removeprefix(browser.address + "/")).is_file():
            wrong.append(f"{name}: {link}: no such file")
    assert not wrong, "\n".join(wrong)


def test_a_page_of_source_opens(browser):
    assert browser.visit("_modules/minisl/methods/sltrain.html", "phone", "dark")[0] == []


def with_sliders(site, pages):
    return [name for name in pages if name.startswith("notebooks/") and 'id="sliders-' in (site / name).read_text("utf-8")]


def test_sliders_move_their_pictures(browser, site, pages):
    names = with_sliders(site, pages)
    if not names:
        pytest.skip("no notebook has sliders")
    assert [line for name in names for line in browser.slide(name)] == []


SLIDERS = """<div id="sliders-x"><label>r = <output>1</output><br><input type="range" min="0" max="1" value="0"></label>
<img src="data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/%3E"></div>"""


@pytest.mark.parametrize(("what", "added", "expected"), [
    ("image", '<img src="_static/none.png">', "missing image"),
    ("script", "<script>nothing_of_this_name()</script>", "script error"),
    ("request", '<img src="http://127.0.0.1:9/a.png">', "outside of the site"),
    ("style", '<link rel="stylesheet" href="_static/none.css">', "404"),
    ("wide", '<p style="width: 2000px">wide</p>', "wide on a phone"),
    ("dark", "<style>body, body[data-theme] { background: #fff !important; color: #000 !important }</style>", "dark: paper"),
    ("sliders", SLIDERS, "the picture stays")])
def test_what_is_wrong_is_found(browser, site, what, added, expected, killed):
    wrong = site / f"wrong-{what}.html"
    try:
        wrong.write_text((site / "glossary.html").read_text("utf-8").replace("</article>", f"{added}</article>"), "utf-8")
        found = browser.slide(wrong.name) if what == "sliders" else browser.visit(wrong.name, "phone", "dark")[0]
    finally:
        wrong.unlink()
    killed[f"docs: a page with a wrong {what}"] = any(expected in line for line in found)
    assert killed[f"docs: a page with a wrong {what}"], found


def test_formulas_are_shown(browser, site, pages):
    names = [name for name in written(pages) if "<math" in (site / name).read_text("utf-8")]
    for name in names[:3]:
        browser.visit(name, "desktop")
        assert browser.tab.evaluate("document.fonts.check('16px \"Math of these pages\"')"), name
        assert browser.tab.evaluate("Math.min(...[...document.querySelectorAll('math')].map(m => m.getBoundingClientRect().width)"
                                    ".filter(w => w > 0))") > 3


def test_links_become_those_of_the_site():
    sources = sys.modules["sources"]
    text = ("[a](../docs/faq.md#x) [b](03_sltrain.ipynb) ![c](../docs/c.png) [d](../minisl/nn/llama.py) [e](../minisl/hf)\n"
            "```python\n[f](../docs/faq.md)\n```\n[g](https://arxiv.org) [h.cu](../minisl/kernels/cuda/spmm_2.cu)")
    assert sources.relinked(text, "notebooks") == (
        "[a](../faq.md#x) [b](03_sltrain.ipynb) ![c](../docs/c.png) {py:mod}`d <minisl.nn.llama>` {py:mod}`e <minisl.hf>`\n"
        "```python\n[f](../docs/faq.md)\n```\n[g](https://arxiv.org) h.cu (`minisl/kernels/cuda/spmm_2.cu`)")
    assert re.fullmatch(r"\[a\]\(faq\.md\) `\.\./b\.h`", sources.relinked("[a](faq.md) [../b.h](../b.h)", "docs"))
