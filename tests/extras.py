"""`pytest --extras`: after a plain run, only what packages that were installed since then can change.

A plain run notes in .pytest_cache which tests passed, which packages each file of tests asked for in vain, and the versions of
what minisl needs. With --extras a test that passed is left out, unless its file asked for a package that is here now. All run
where nothing was noted, or where a version is another one.
"""

import importlib.util
import re
import sys
from collections import defaultdict
from importlib import metadata

NOTES = "minisl/plain-run"
absent, passed = defaultdict(set), []  # file -> names of packages; tests
asking = [""]  # the test or the file whose turn it is


class Noting:
    """The last of Python's finders: what comes here was not found."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if path is None:
            absent[file_of(asking[0])].add(name)


def file_of(nodeid):
    return nodeid.partition("::")[0]


def versions():
    try:
        needs = [re.match(r"[\w-]+", line)[0] for line in metadata.requires("minisl") if "extra ==" not in line]
        return {name: metadata.version(name) for name in needs}
    except metadata.PackageNotFoundError:  # not installed, but on PYTHONPATH
        return {}


def pytest_addoption(parser):
    parser.addoption("--extras", action="store_true", help="only what packages installed since the last plain run can change")


def pytest_configure(config):
    if not config.getoption("--extras"):
        sys.meta_path.append(Noting)


def pytest_unconfigure(config):
    if Noting in sys.meta_path:
        sys.meta_path.remove(Noting)


def pytest_collectstart(collector):
    asking[0] = collector.nodeid


def pytest_runtest_logstart(nodeid):
    asking[0] = nodeid


def pytest_runtest_logreport(report):
    if report.when == "call" and report.passed:
        passed.append(report.nodeid)


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--extras"):
        return
    notes, say = config.cache.get(NOTES, None), config.get_terminal_writer().line
    if notes is None or notes["versions"] != versions():
        return say("no plain run with these versions: all tests run")
    here = {name for names in notes["absent"].values() for name in names if importlib.util.find_spec(name)}
    changed = {file for file, names in notes["absent"].items() if not here.isdisjoint(names)}
    before = set(notes["passed"])
    same = [item.nodeid in before and file_of(item.nodeid) not in changed for item in items]
    config.hook.pytest_deselected(items=[item for item, left_out in zip(items, same) if left_out])
    items[:] = [item for item, left_out in zip(items, same) if not left_out]
    say(f"new since the plain run: {', '.join(sorted(here))}")


def pytest_sessionfinish(session):
    config = session.config
    if not config.getoption("--extras") and hasattr(config, "cache"):
        names = {file: sorted(names) for file, names in absent.items()}
        config.cache.set(NOTES, {"versions": versions(), "passed": passed, "absent": names})
