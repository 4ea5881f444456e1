"""The study.json that belongs to a5's solutions, of the student without a name: `python tests/course/answers/a5_study/make.py`.

It is beside no notebook, since what stands in source/a5_study would be released to students.
"""

import sys
from pathlib import Path

from minisl.course import handout

HERE = Path(__file__).parent
sys.path.append(str(HERE.parents[3] / "notebooks" / "assignments"))
import build  # noqa: E402

if __name__ == "__main__":
    space = {"__name__": "__main__"}
    for cell in handout.cells_of(build.read("a5_study")):
        if cell.kind != "test":
            handout.run_cell(cell, space)
    space["save_study"](sys.argv[1] if len(sys.argv) > 1 else "support", space["run"], space["summary"],
                        sys.argv[2] if len(sys.argv) > 2 else HERE / "study.json")
