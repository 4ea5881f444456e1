"""Shared by all tests: a seeded generator, and the count of mutants at the end of the run."""

import numpy as np
import pytest

KILLED = {}  # name of a wrong implementation -> whether the shipped tests rejected it


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def killed():
    return KILLED


def pytest_terminal_summary(terminalreporter):
    if KILLED:
        terminalreporter.write_line(f"wrong implementations rejected: {sum(KILLED.values())}/{len(KILLED)}")
