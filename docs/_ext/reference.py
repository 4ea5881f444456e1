"""The reference: a page for each room of minisl, made from its source. Nothing is imported, so nothing need be installed.

Public is every module, and its classes and functions whose names do not begin with an underscore; all are listed, in the source's
order. A docstring is shown as it stands: what is indented or lined up keeps its columns, what is in backticks is code, and leads
there if it is the name of something here. What needs none of its own is said once elsewhere (`said_elsewhere`).
"""

import ast
import inspect
import re
import textwrap
from functools import cache
from pathlib import Path

from sources import DOCS, ROOT, write_changed

PAGES = {  # what a page is called, and what it is about; a package of minisl has a page of its own
    "autograd": "Tensors, the graph, and every op with its gradient.",
    "kernels": "The sparse-plus-low-rank product and its neighbours, array in and array out: as loops and as NumPy.",
    "kernels.cpu": "The same functions in Numba, on all cores. What they compute is said in [kernels](kernels.md).",
    "kernels.cuda": "The same functions on a GPU, their ladders, and the emulator. What they compute is said in "
                    "[kernels](kernels.md).",
    "nn": "Modules and the LLaMA.",
    "methods": "One file per paper.",
    "optim": "Rules, projectors, clipping, schedules.",
    "data": "From text to batches.",
    "hf": "Hugging Face's files.",
    "memory": "Where the bytes go.",
    "compare": "Methods on one job.",
    "analysis": "What is inside trained models.",
    "bench": "Measurements.",
    "commands": "What is run as `python -m minisl.NAME`, and is also called from scripts.",
    "runs": "A run's folder, what is written into it, and who watches.",
    "ground": "Arrays, devices, cores, processes, files: what everything else stands on.",
}
HEAD = """# Reference

Every public name of minisl, from its docstring, with its source a click away. A shape in brackets belongs to the array before it:
x (B, T, D). What a user can get wrong raises {py:obj}`InputError <minisl.errors.InputError>`, a ValueError whose text is one
line. How the parts go together in a script: [minisl from your own scripts](../api.md)."""
RUNS = {"runs", "checkpoint", "callbacks", "metrics", "summary", "plot", "sliders", "swap", "config", "lock"}
GROUND = {"backend", "parallel", "distributed", "exchange", "blas", "errors", "files", "command"}
DEFINITIONS = (ast.ClassDef, ast.FunctionDef)
HOOKS = {"linear", "rule", "before_step", "held", "held_named", "rule_elsewhere", "held_elsewhere"}
AS_KERNELS = ("minisl.kernels.cpu", "minisl.kernels.cuda", "minisl.memory.shapes", "minisl.bench")
CODE = re.compile(r"(`[^`]+`)")
NEW_LINE = re.compile(r"(?:[A-Za-z_][\w ,()./-]{0,40}: |Returns |Raises |Yields )")


def modules():
    """{name: syntax tree} of all modules, a package before what is in it."""
    return {module: ast.parse(path.read_text("utf-8")) for module, path in
            sorted((name_of(path), path) for path in (ROOT / "minisl").rglob("*.py"))}


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def page_of(module):
    parts = module.split(".")[1:]
    if ".".join(parts[:2]) in PAGES:
        return ".".join(parts[:2])
    first = parts[0] if parts else ""
    return first if first in PAGES else "runs" if first in RUNS else "ground" if first in GROUND or not parts else "commands"


def public(body):
    return [node for node in body if isinstance(node, DEFINITIONS) and not node.name.startswith("_")]


class Links:
    """Which names mean something in a module: its own, what it imports, what exists once in all of minisl."""

    def __init__(self, trees):
        self.all = set(trees) | {f"{module}.{node.name}" for module, tree in trees.items() for node in public(tree.body)}
        self.imported = {module: dict(imports(tree)) for module, tree in trees.items()}
        short = [name.rsplit(".", 1)[1] for name in self.all if "." in name]
        self.once = {last: name for name in self.all if (last := name.rpartition(".")[2]) and short.count(last) == 1}

    def full(self, name, module):
        """The full name of what `name` says in this module, or None."""
        candidates = [name, f"{module}.{name}", f"minisl.{name}", self.imported[module].get(name),
                      self.once.get(name) if re.search("[_A-Z]", name) else None]  # a plain word may just be a word
        for found in filter(None, candidates):
            for _ in range(4):  # where it is defined, which may be behind a package that offers it
                if found in self.all:
                    return found
                home, _, last = found.rpartition(".")
                found = self.imported.get(home, {}).get(last, "")
        return None


def imports(tree):
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("minisl"):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def markdown(doc, module, links):
    """A docstring as Markdown that looks as it does."""
    out = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(doc or "")):
        lines = block.split("\n")
        if all(line.startswith("    ") for line in lines) or any(re.search(r"\S {3,}\S", line) for line in lines):
            if out and out[-1].startswith("```text\n"):
                out[-1] = out[-1].removesuffix("\n```") + f"\n\n{textwrap.dedent(block)}\n```"
            else:
                out.append(f"```text\n{textwrap.dedent(block)}\n```")
        else:
            said = []
            for line in lines:
                if line.startswith("    ") and said and not said[-1].lstrip().startswith("-"):  # a formula below its sentence
                    said.append("\\\n`" + line.strip().replace("`", "'") + "`")
                else:
                    said.append("\\\n" * bool(said and NEW_LINE.match(line)) + escaped(line, module, links))
            out.append("\n".join(said).replace("\n\\\n", "\\\n"))
    return "\n\n".join(out)


def escaped(line, module, links):
    bullet = re.match(r"\s*- ", line)
    head, rest = (bullet[0], line[bullet.end():]) if bullet else ("", line)
    pieces = CODE.split(rest)
    for i, piece in enumerate(pieces):
        if i % 2:
            full = links.full(piece.strip("`").removesuffix("()"), module)
            pieces[i] = "{py:obj}`" + f"{piece.strip('`')} <{full}>`" if full else piece
        else:
            pieces[i] = re.sub(r"([\\*_<>\[\]${}#~|+`])", r"\\\1", piece)
    return head + "".join(pieces)


def module_page(module, tree, links):
    """Everything about one module."""
    if module != f"minisl.{page_of(module)}":
        yield f"## `{module}`\n"
    yield f":::{{py:module}} {module}\n:::\n"
    yield markdown(ast.get_docstring(tree), module, links) + "\n"
    offered = {name: links.full(name, module) for name in names_offered(tree)}
    elsewhere = [f"{{py:obj}}`{name} <{full}>`" for name, full in offered.items() if full and full != f"{module}.{name}"]
    if elsewhere:
        yield f"Offers {', '.join(elsewhere)}.\n"
    for node in public(tree.body):
        yield from definition(node, module, links)


def names_offered(tree):
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    return []


def definition(node, module, links):
    if isinstance(node, ast.FunctionDef):
        yield f":::{{py:function}} {node.name}({arguments(node.args)})\n"
        yield (markdown(ast.get_docstring(node), module, links) or said_elsewhere(node.name, module, links)) + "\n\n:::\n"
        return
    yield f"::::{{py:class}} {node.name}{class_arguments(node)}\n"
    yield markdown(ast.get_docstring(node), module, links) + "\n"
    if flags := list(flags_of(node)):
        yield "| flag | default | |\n|---|---|---|\n" + "\n".join(flags) + "\n"
    bases = {getattr(base, "id", "") for base in node.bases}
    for member in public(node.body):
        names = {getattr(d, "id", getattr(d, "attr", "")) for d in member.decorator_list}
        if "setter" in names or ("Function" in bases and member.name in ("forward", "backward")):
            continue  # the class says what they compute
        if isinstance(member, ast.ClassDef) or names & {"property", "cached_property"}:
            yield f":::{{py:property}} {member.name}\n"
        else:
            static, of_class = "staticmethod" in names, "classmethod" in names
            yield f":::{{py:method}} {member.name}({arguments(member.args, skip=not static)})"
            yield ":staticmethod:" * static + ":classmethod:" * of_class + "\n"
        yield markdown(ast.get_docstring(member), module, links) + "\n\n:::\n"
    yield "::::\n"


def said_elsewhere(name, module, links):
    """Of a function without a docstring: a command's start, what every method's file may hold, a backend's kernel."""
    if name == "main":
        return f"The command: `python -m {module.removesuffix('.__main__')} --help`."
    if module.startswith("minisl.methods.") and name in HOOKS:
        return "{py:mod}`What it is for <minisl.methods>`."
    for home in ("minisl.kernels", "minisl.kernels.numpy_fused", "minisl.kernels.numpy_backend"):
        if module.startswith(AS_KERNELS) and f"{home}.{name}" in links.all:
            return f"As {{py:obj}}`{home}.{name}`."
    return ""


def arguments(args, skip=False):
    text = ast.unparse(args)
    return re.sub(r"^\w+(, )?(/, )?", "", text) if skip else text


def class_arguments(node):
    """How an instance is made: `__init__`'s arguments, or a data class's fields."""
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            return f"({arguments(member.args, skip=True)})"
    decorators = {getattr(getattr(d, "func", d), "id", "") for d in node.decorator_list}
    bases = {getattr(base, "id", "") for base in node.bases}
    if "dataclass" not in decorators and "NamedTuple" not in bases:
        return ""
    fields = [member for member in node.body if isinstance(member, ast.AnnAssign)]
    if any(isinstance(field.value, ast.Call) and getattr(field.value.func, "id", "") == "flag" for field in fields):
        return "(**settings)"
    return "(" + ", ".join(f.target.id + (f"={ast.unparse(f.value)}" if f.value and not isinstance(f.value, ast.Call) else
                                          "=..." if f.value else "") for f in fields) + ")"


def flags_of(node):
    """The rows of a table, for a class whose fields are flags."""
    for member in node.body:
        value = getattr(member, "value", None)
        if isinstance(member, ast.AnnAssign) and isinstance(value, ast.Call) and getattr(value.func, "id", "") == "flag":
            default, text = value.args[0], " ".join(ast.literal_eval(value.args[1]).split())
            shown = "" if getattr(default, "value", 1) is None else f"`{ast.unparse(default).removeprefix('lambda: ')}`"
            aliases = "".join(f", `{ast.literal_eval(alias)}`" for alias in value.args[2:])
            text = re.sub(r"([\\*_<>\[\]${}#~|`])", r"\\\1", text)
            yield f"| `--{member.target.id.replace('_', '-')}`{aliases} | {shown} | {text} |"


def write_pages(app):
    trees, folder = modules(), DOCS / "reference"
    links, pages = Links(trees), {name: [] for name in PAGES}
    for module, tree in trees.items():
        pages[page_of(module)] += module_page(module, tree, links)
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.md"):
        if old.stem not in {*pages, "index"}:
            old.unlink()
    for name, parts in pages.items():
        title = name if name in ("commands", "runs", "ground") else f"minisl.{name}"
        about = PAGES[name] + "\n\n" if name == title or "[" in PAGES[name] else ""  # a package says itself what it is
        write_changed(folder / f"{name}.md", f"# {title}\n\n{about}" + "\n".join(parts))
    listed = "\n".join(f"- [{name}]({name}.md): {about}" for name, about in PAGES.items())
    tree = "\n".join(PAGES)
    write_changed(folder / "index.md", f"{HEAD}\n\n{listed}\n\n```{{toctree}}\n:hidden:\n\n{tree}\n```\n")


def find_source(app, module):
    return source_of(module)


@cache
def source_of(module):
    """For the pages of source: the text, and where each definition is."""
    path = ROOT / Path(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text, tags = path.read_text("utf-8"), {}
    for node in public(ast.parse(text).body):
        tags[node.name] = ("class" if isinstance(node, ast.ClassDef) else "def", first_line(node), node.end_lineno)
        for member in public(node.body) if isinstance(node, ast.ClassDef) else ():
            tags.setdefault(f"{node.name}.{member.name}", ("def", first_line(member), member.end_lineno))
    return text, tags


def first_line(node):
    return min([node.lineno, *(d.lineno for d in node.decorator_list)])


menus = {}  # what is made for one page of source serves all in its folder: making it takes longer than the page


def menu_once(app, name, template, context, tree):
    if name.startswith("_modules/"):
        make, folder = context["toctree"], name.rpartition("/")[0]
        context["toctree"] = lambda **how: menus.setdefault(folder, None) or menus.update({folder: make(**how)}) or menus[folder]


def setup(app):
    app.connect("html-page-context", menu_once, priority=100)
    app.connect("builder-inited", write_pages)
    app.connect("viewcode-find-source", find_source)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
