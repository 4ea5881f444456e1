"""A handout's notebook, read: what is given, and tasks with their solution and tests."""

import ast
import json
import symtable
from dataclasses import dataclass, replace
from pathlib import Path

from minisl.errors import InputError

LARGEST = 32 << 20  # bytes of a notebook


@dataclass
class Cell:
    """A code cell: its place, its text, what it is (given, answer, test), the task it belongs to ("" where none)."""

    place: int
    source: str
    kind: str
    task: str = ""
    points: float = 0
    seconds: float = 30


def read(path):
    """The code cells of a notebook, as a list of Cell. Raises InputError: no file, no notebook."""
    try:
        if Path(path).stat().st_size > LARGEST:
            raise InputError(f"{path}: has more than {LARGEST >> 20} MB; clear its outputs")
        notebook = json.loads(Path(path).read_text("utf-8"))
        return cells_of(notebook)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{path}: is no notebook (.ipynb, version 4)") from None


def cells_of(notebook):
    """The code cells of a parsed notebook. A cell without nbgrader's metadata is the student's own."""
    return [cell_of(place, cell) for place, cell in enumerate(notebook["cells"]) if cell["cell_type"] == "code"]


def cell_of(place, cell):
    """A code cell of a parsed notebook as a Cell."""
    about = cell["metadata"].get("nbgrader", {})
    name = about.get("grade_id", "")
    if about.get("grade") and not about.get("solution"):
        kind, name = "test", str(name).removeprefix("test_")
    elif about.get("locked"):
        kind, name = "given", ""
    else:
        kind, name = "answer", name if about.get("solution") else ""
    name = name if isinstance(name, str) else ""
    return Cell(place, "".join(cell["source"]), kind, name, about.get("points", 0), cell["metadata"].get("seconds", 30))


def tasks(cells):
    """The names of the tasks that are tested, in order."""
    return [cell.task for cell in cells if cell.kind == "test"]


def defines(source):
    """The names that a cell's text defines at its top level; none where it is no Python."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    names = set()
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        else:
            names |= {leaf.id for leaf in ast.walk(node) if isinstance(leaf, ast.Name) and isinstance(leaf.ctx, ast.Store)}
    return names


def uses(source):
    """The names of its module that a cell's text reads, at top level or in functions."""
    try:
        top = symtable.symtable(source, "cell", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    names, tables = set(), [top]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        names |= {name.get_name() for name in table.get_symbols() if name.is_referenced() and (table is top or name.is_global())}
    return names


def needed(cells, task):
    """The answers that a task's answer and tests need, itself included: by the names that are read, in the notebook's order."""
    answers = [cell for cell in cells if cell.kind == "answer"]
    where = {}
    for cell in answers:
        for name in defines(cell.source):
            where.setdefault(name, []).append(cell)
    given = set().union(*(defines(cell.source) for cell in cells if cell.kind == "given"))
    chosen, todo, looked_up = {}, [], set()
    for cell in cells:
        if cell.task == task and cell.kind == "answer":
            todo.append(cell)
        elif cell.task == task:  # what a test has for itself, or is given, is not the answers'
            todo += [other for name in uses(cell.source) - defines(cell.source) - given for other in where.get(name, ())]
    while todo:
        cell = todo.pop()
        if cell.place not in chosen:
            chosen[cell.place] = cell
            names = uses(cell.source) - defines(cell.source) - looked_up
            looked_up |= names
            todo += [other for name in names for other in where.get(name, ())]
    return sorted(chosen.values(), key=lambda cell: cell.place)


def with_answers(source, submitted):
    """The cells of `source` (given and tests are the instructor's) with the answers of `submitted`.

    A student's own cells stand before the answer that follows them.
    """
    theirs = [cell for cell in submitted if cell.kind == "answer"]
    known = {cell.task for cell in source if cell.kind == "answer"}
    merged = []
    for cell in source:
        if cell.kind != "answer":
            merged.append(cell)
            continue
        place = next((k for k, other in enumerate(theirs) if other.task == cell.task), None)
        if place is not None:
            merged += [own for own in theirs[:place] if own.task not in known]
            merged.append(theirs[place])
            theirs = theirs[place + 1:] + [other for other in theirs[:place] if other.task in known]
        else:  # its cell is gone
            merged.append(replace(cell, source=""))
    merged += [own for own in theirs if own.task not in known]
    for place, cell in enumerate(merged):
        cell.place = place
    return merged


def repair_first(tasks):
    """What is said of a task that uses others which do not pass."""
    several = len(tasks) > 1
    return (f"\n(this used your {' and '.join(tasks)}, which {'do' if several else 'does'} not pass yet: repair "
            f"{'them' if several else 'it'} first. The grader tries this task again with {'ones' if several else 'one'} that "
            f"{'work' if several else 'works'})")


def run_here(cells, task):
    """Run a task in this process: what is given, the answers it needs, its tests. Raises what they raise."""
    test = next(cell for cell in cells if cell.kind == "test" and cell.task == task)
    space = {"__name__": "__main__"}
    first = [cell for cell in cells if cell.kind == "given" and cell.place < test.place] + needed(cells, task)
    for cell in sorted(first, key=lambda cell: cell.place):
        run_cell(cell, space)
    run_cell(test, space)


def run_cell(cell, space):
    """Run a cell's text; a traceback shows its lines."""
    import linecache

    name = f"<{cell.kind} {cell.task or cell.place}>"
    linecache.cache[name] = (len(cell.source), None, cell.source.splitlines(keepends=True), name)
    exec(compile(cell.source, name, "exec"), space)
