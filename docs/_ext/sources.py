"""What pages say about the repository: notebooks copied among the pages, handouts too, and links to files that become the site's.

In the repository a page links to `../minisl/methods/sltrain.py` and a notebook to `../docs/faq.md`, so that both work where files
are read. Here code leads to its place in the reference, a notebook and a page to each other, and any other file is named.
"""

import json
import os
import re
from pathlib import Path

from docutils import nodes

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<!!)\[((?:[^\]\n]|\n(?!\n))+)\]\(([^)\s#]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"(^ *(`{3,}|~{3,}).*?^ *\2.*?$)", re.M | re.S)
WALKTHROUGH = re.compile(r"(?<!\[)`(\d\d_\w+)`")  # how handouts name one: they are read without the repository beside them
HEAD = """# Notebooks

Shown here as they ran. To run them yourself: `pip install -e '.[notebooks]'` in a clone, then `jupyter lab notebooks`. Each takes
at most three minutes on two cores without a GPU, and ends with exercises whose answers are a click away."""
HANDOUTS = """# Handouts

What students get, to be read here. The notebooks themselves are in `notebooks/assignments/release`; how to begin:
[The course](../../course/index.md)."""
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}


def relinked(text, folder):
    """Markdown with its links to files, read as lying in `folder` (of the repository), as links of a page in that folder of docs.

    What is in fenced code stays.
    """
    parts = FENCE.split(text)  # text, a fence, its marks, text, ...
    for i in range(0, len(parts), 3):
        parts[i] = LINK.sub(lambda match: relink(match, folder), parts[i])
    return "".join(part for i, part in enumerate(parts) if i % 3 != 2)


def relink(match, folder):
    words, target, anchor = match[1], match[2], match[3] or ""
    if re.match(r"[a-z]+:", target):
        return match[0]
    path = os.path.normpath(os.path.join(folder, target))
    at = "docs/" + folder if folder.startswith("notebooks") else folder
    if path in PAGES:
        return f"[{words}]({os.path.relpath('docs/' + PAGES[path], at)})"
    if path.endswith(".ipynb") and (shown := re.fullmatch(r"(notebooks/)(?:(assignments/)release/\w+/)?(\w+\.ipynb)", path)):
        return f"[{words}]({os.path.relpath('docs/' + ''.join(filter(None, shown.groups())), at)}{anchor})"
    if path.startswith("docs/"):
        return f"[{words}]({os.path.relpath(path, at)}{anchor})"
    if (ROOT / path).exists() and (module := module_of(path)):
        return "{py:mod}`" + f"{words.replace('`', '')} <{module}>`"
    return words if "`" in words else f"`{words}`" if Path(path).name in words else f"{words} (`{path}`)"


def module_of(path):
    """The module that a file or folder of minisl is, or None."""
    file = ROOT / path
    if path.split("/")[0] != "minisl" or not (file.suffix == ".py" or (file / "__init__.py").exists()):
        return None
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def copy_notebooks(app):
    """The walkthroughs to docs/notebooks, what students get of the assignments to docs/notebooks/assignments."""
    walkthroughs = copy(sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")), "notebooks")
    write_index("notebooks", HEAD, {f"{name[:2]} {title}": name for name, title in walkthroughs.items()})
    handouts = copy(sorted((ROOT / "notebooks" / "assignments" / "release").glob("*/*.ipynb")), "notebooks/assignments")
    write_index("notebooks/assignments", HANDOUTS, {title: name for name, title in handouts.items()})


def copy(paths, folder):
    """Notebooks into a folder of docs, their links changed; what is no longer there goes. Returns {file name: title}."""
    there, titles = DOCS / folder, {}
    linked = rf"[\g<0>]({os.path.relpath('notebooks', folder)}/\1.ipynb)"
    there.mkdir(parents=True, exist_ok=True)
    for old in there.glob("*.ipynb"):
        if old.name not in {path.name for path in paths}:
            old.unlink()
    for path in paths:
        notebook = json.loads(path.read_text("utf-8"))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = relinked(WALKTHROUGH.sub(linked, "".join(cell["source"])), folder)
        titles[path.name] = re.match(r"# (.*)", notebook["cells"][0]["source"])[1].replace("`", "")
        write_changed(there / path.name, json.dumps(notebook, ensure_ascii=False))
    return titles


def write_index(folder, head, titles):
    """The page that lists notebooks."""
    listed = "\n".join(f"- [{title}]({name})" for title, name in titles.items())
    write_changed(DOCS / folder / "index.md", f"{head}\n\n{listed}\n\n```{{toctree}}\n:hidden:\n\n"
                  + "\n".join(f"{title} <{name}>" for title, name in titles.items()) + "\n```\n")


def write_changed(path, text):
    """Write a page, unless it says so already: then it is not built again."""
    if not path.exists() or path.read_text("utf-8") != text:
        path.write_text(text, "utf-8")


def read_page(app, name, source):
    if app.env.doc2path(name).suffix == ".md" and not name.startswith("reference/"):
        source[0] = relinked(source[0], os.path.dirname("docs/" + name))


def keep_short_code_whole(app, tree):
    """`--tiny` is not to be broken behind its dashes."""
    for node in tree.findall(nodes.literal):
        if len(node.astext()) <= 26:
            node["classes"].append("short")


def setup(app):
    app.connect("doctree-read", keep_short_code_whole)
    app.connect("builder-inited", copy_notebooks)
    app.connect("source-read", read_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
