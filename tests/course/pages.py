"""Writes what docs/course says of the assignments: tables of tasks, and common mistakes. `python tests/course/pages.py`.

Tables stand between `<!-- assignments -->` or `<!-- tasks -->` and `<!-- end -->`; mistakes.md is written whole: each mistake of
answers/ is made, and what the tests say of it is put beside it.
"""

import json
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
COURSE = ROOT / "notebooks" / "assignments"
PAGES = ROOT / "docs" / "course"
HEADING = re.compile(r"## Task (\d+)\. (.+) \((\d+) points?, (\d+) minutes\)")
HEAD = """# Common mistakes

What students write, and what the tests say of it. Written by `python tests/course/pages.py`, which makes each of these mistakes
and runs the tests on it. Of long messages the beginning is shown, and values are left out.

What a message can tell: **the shape**, and whether the answer is transposed or an axis was lost or kept; **the kind** of number;
**a factor**, if all values are too large by the same; **the sign**; **the order**, if the values are right and in wrong places;
**an axis**, if they are off by what is constant along it; **a mistake by its name**, if it is one that many make; else **where**
the first wrong value is and how many there are. A message that begins with the name of a Python error comes from the answer's own
code.
"""


def release(name):
    return json.loads((COURSE / "release" / name / f"{name}.ipynb").read_text("utf-8"))["cells"]


def names():
    return sorted(path.name for path in (COURSE / "release").iterdir())


def title(name):
    words = re.match(r"# Assignment \d: (.*)", "".join(release(name)[0]["source"]))[1]
    return f"{name[:2]} {words[0].upper()}{words[1:]}"


def tasks(name):
    """[{number, title, task, points, minutes}, ...] of an assignment, from its headings and the cells below them."""
    found = []
    for cell in release(name):
        if heading := HEADING.match("".join(cell["source"])):
            number, words, points, minutes = heading.groups()
            found.append({"number": number, "title": words, "task": "", "points": int(points), "minutes": int(minutes)})
        about = cell["metadata"].get("nbgrader", {})
        if found and about.get("solution"):
            found[-1]["task"] = about["grade_id"]
    return found


def total(rows, what):
    return sum(row[what] for row in rows)


def hours(minutes):
    return f"{minutes // 60} h {minutes % 60:02}" if minutes >= 60 else f"{minutes} min"


def assignments_table():
    lines = ["| | you write | points | time |", "|---|---|---|---|"]
    for name in names():
        rows = tasks(name)
        lines.append(f"| [{title(name)}](../../notebooks/assignments/release/{name}/{name}.ipynb) | "
                     f"{'; '.join(row['title'] for row in rows)} | {total(rows, 'points')} | {hours(total(rows, 'minutes'))} |")
    return "\n".join(lines)


def tasks_table():
    lines = ["| | task | points | minutes |", "|---|---|---|---|"]
    for name in names():
        rows = tasks(name)
        lines += [f"| {name[:2]} | {row['number']}. {row['title']} (`{row['task']}`) | {row['points']} | "
                  f"{row['minutes']} |" for row in rows]
        lines.append(f"| | **{title(name)}** | **{total(rows, 'points')}** | **{hours(total(rows, 'minutes'))}** |")
    return "\n".join(lines)


def with_table(text, mark, table):
    """A page's text with another table behind its mark."""
    return re.sub(rf"(<!-- {mark} -->\n).*?(<!-- end -->)", lambda match: f"{match[1]}\n{table}\n\n{match[2]}", text, flags=re.S)


def pages():
    """{page: its text as it should be}, of those with tables."""
    tables = {"index.md": ("assignments", assignments_table()), "instructor.md": ("tasks", tasks_table())}
    return {page: with_table((PAGES / page).read_text("utf-8"), *table) for page, table in tables.items()}


def plain(text):
    """Text in which Markdown has nothing to find."""
    return re.sub(r"([\\`*_\[\]<>|$])", r"\\\1", text)


def in_short(said):
    """The first line of what a test says, without values."""
    line = re.sub(r"^(Wrong|AssertionError): ", "", said.partition("\n")[0])
    line = re.sub(r" \([^()]*, should be [^()]*\)", "", line)
    return plain(textwrap.shorten(line, 170, placeholder=" ..."))


def mistakes(answers, said):
    """The page of mistakes. answers: {assignment: its MISTAKES and OTHERS}; said(assignment, task, old, new): the message."""
    parts = [HEAD]
    for name in names():
        parts.append(f"## {title(name)}\n")
        for task, rows in answers[name].MISTAKES.items():
            lines = [f"| {plain(what)} | {in_short(said(name, task, old, new))} |" for what, old, new, _ in rows]
            parts.append("\n".join([f"### {task}\n", "| written | said |", "|---|---|", *lines, ""]))
    return "\n".join(parts)


def main():
    sys.path.insert(0, str(Path(__file__).parent))
    import test_answers

    for page, text in {**pages(), "mistakes.md": mistakes(test_answers.ANSWERS, test_answers.said)}.items():
        (PAGES / page).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
