"""nbgrader's settings for this course: `cd notebooks/assignments`, then `nbgrader ...`."""

import os
import sys

from nbgrader.converters import Autograde

from minisl.course.nbgrader import Apart

# nbgrader starts alembic by its name, which is found only in an activated environment
os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])

c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "minisl"
c.ClearSolutions.code_stub = {"python": "# your code here\nraise NotImplementedError()"}
c.ClearSolutions.text_stub = "Your answer here."
steps = Autograde.autograde_preprocessors.default()
c.Autograde.autograde_preprocessors = [Apart, *steps[1:]]  # not Execute, which runs answers and tests in one kernel

# zip_collect: folders or file names as Moodle and Canvas give them, or a zip from each student; a name ends at its first "_"
c.FileNameCollectorPlugin.named_regexp = (
    r".*/extracted/(?:[^/]*/)?(?P<student_id>[^/_]+)[/_](?:.*[/_])?"
    r"(?P<file_id>a\d_[a-z]+(?=[^/_]*\.ipynb$)|study(?=[^/_]*\.json$)|student(?=[^/_]*\.txt$))")
c.FileNameCollectorPlugin.valid_ext = [".ipynb", ".json", ".txt"]
