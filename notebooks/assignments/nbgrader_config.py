"""nbgrader's settings for this course: `cd notebooks/assignments`, then `nbgrader ...`."""

from nbgrader.converters import Autograde

from minisl.course.nbgrader import Apart

c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "minisl"
c.ClearSolutions.code_stub = {"python": "# your code here\nraise NotImplementedError()"}
c.ClearSolutions.text_stub = "Your answer here."
steps = Autograde.autograde_preprocessors.default()
c.Autograde.autograde_preprocessors = [Apart, *steps[1:]]  # not Execute, which runs answers and tests in one kernel
