"""The course: what its handouts use (`check`, `draw`, ...), and how they are graded (`python -m minisl.course`).

Handouts: notebooks/assignments. For instructors: docs/course/instructor.md.
"""

from minisl.course.check import Wrong, check, raises, unchanged
from minisl.course.draws import draw, seeds

__all__ = ["Wrong", "check", "draw", "raises", "seeds", "unchanged"]
