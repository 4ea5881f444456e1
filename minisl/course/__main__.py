"""`python -m minisl.course`: check your own answers, or grade those that were handed in.

    python -m minisl.course check a1_engine.ipynb            # a student: each task, and what is wrong
    python -m minisl.course grade submitted/ada --student ada --to results.json
"""

import json
import sys
from pathlib import Path

from minisl.command import Parser, run_command
from minisl.course import grading, handout
from minisl.errors import InputError
from minisl.files import write_text


def main(argv):
    parser = Parser(prog="python -m minisl.course", description="Check your own answers, or grade those that were handed in.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{check,grade}")
    check = commands.add_parser("check", help="run a notebook's own tests on its answers; exit code 1 where some are wrong")
    check.add_argument("notebooks", nargs="+", metavar="NOTEBOOK", help="such as a1_engine.ipynb")
    give = commands.add_parser("grade", help="run the course's tests, hidden ones included, on what was handed in")
    give.add_argument("paths", nargs="+", metavar="PATH", help="a notebook, or a folder of them (or of folders of them)")
    give.add_argument("--course", default=str(grading.COURSE), help="the folder with source/")
    give.add_argument("--student", help="whose numbers are drawn (left out: student.txt beside the notebook)")
    give.add_argument("--to", metavar="JSON", help="write results as Gradescope reads them")
    args = parser.parse_args(argv)
    if args.command == "check":
        graded = checked(args.notebooks)
    else:
        graded, renamed = given(args.paths, args.course, args.student)
        if renamed:
            print(f"note: {renamed}", file=sys.stderr)
        if args.to:
            write_text(args.to, json.dumps(grading.gradescope(graded, renamed), indent=1) + "\n")
        from minisl.course import fence  # is for Linux and macOS, as grading is

        if lacks := fence.lacking():
            print(f"note: this system has no {' and no '.join(lacks)}, so answers can do more than compute; "
                  "docs/course/instructor.md says what", file=sys.stderr)
    outcomes = [outcome for part in graded.values() for outcome in part]
    if len(graded) > 1:
        print(f"all: {points(outcomes)}")
    return 0 if args.command == "grade" or all(o.earned == o.points for o in outcomes) else 1


def checked(notebooks):
    """Outcomes by notebook, each under its own visible tests; printed as they come."""
    read, graded = {path: handout.read(path) for path in notebooks}, {}
    for path, cells in read.items():
        if not handout.tasks(cells):
            raise InputError(f"{path}: has no tests; give a handout, such as a1_engine.ipynb")
    for path, cells in read.items():
        graded[path] = shown(Path(path).stem, grading.grade(cells, None, Path(path).parent))
    return graded


def given(paths, course, student):
    """(outcomes by assignment, of the notebooks in `paths`, printed as they come; words about those that are not graded, or "").

    An assignment's notebook is the one with its name. Others in a folder, not counting hidden ones, may be one that was renamed.
    """
    known, found, others = grading.assignments(course), {}, []
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"{path}: there is no such file or folder")
        for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() == ".ipynb"):
            if file != path and (file.stem not in known or file.suffix != ".ipynb"):
                others += [file] * (not any(part.startswith(".") for part in file.relative_to(path).parts))
            elif file.stem in found:
                raise InputError(f"{file}: a second {file.name} (the first is {found[file.stem]}); grade one student at a time")
            else:
                found[file.stem] = file
    wanted, renamed = ", ".join(f"{name}.ipynb" for name in known), ""
    if others:
        renamed = (f"not graded: {', '.join(map(str, others))}; only notebooks with these names are: {wanted}. If it is the one "
                   "to grade, give it its name back")
    if not found:
        raise InputError(f"{' '.join(paths)}: no notebook of the course; " + (renamed or f"looked for {wanted}"))
    return {name: shown(name, grading.grade_file(file, course, student)) for name, file in sorted(found.items())}, renamed


def shown(name, outcomes):
    """Print a line for each task, and what was said below it."""
    print(name)
    for outcome in outcomes:
        print(f"  {outcome.task:28}{outcome.earned:>4g} / {outcome.points:<4g}{outcome.seconds:6.1f} s")
        for line in outcome.message.splitlines():
            print(f"      {line}")
    print(f"  {points(outcomes)}")
    return outcomes


def points(outcomes):
    """The sum of outcomes, in words."""
    return f"{sum(outcome.earned for outcome in outcomes):g} of {sum(outcome.points for outcome in outcomes):g} points"


if __name__ == "__main__":
    sys.exit(run_command(main))
