"""Random numbers that are another for each student, and the same each time for one."""

import os
import zlib
from pathlib import Path

import numpy as np


def student():
    """Who is this? $MINISL_STUDENT (a grader sets it), else the file student.txt beside the notebook, else ""."""
    if (name := os.environ.get("MINISL_STUDENT")) is not None:
        return name.strip()
    file = Path("student.txt")
    return file.read_text("utf-8").strip() if file.is_file() else ""


def draw(purpose):
    """A NumPy Generator for this student and this purpose, such as a task's name.

    $MINISL_COURSE, a word that only graders know, changes what is drawn: numbers written down from the visible tests do not pass.
    """
    words = student(), os.environ.get("MINISL_COURSE", ""), purpose
    return np.random.default_rng([zlib.crc32(word.encode()) for word in words])


def seeds(count, purpose="study"):
    """`count` different seeds below 10,000 that belong to this student, as a list of int: those of a study's runs."""
    rng = np.random.default_rng([zlib.crc32(word.encode()) for word in (student(), purpose)])
    return sorted(int(seed) for seed in rng.choice(10_000, count, replace=False))
