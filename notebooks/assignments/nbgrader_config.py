"""nbgrader's settings for this course: `cd notebooks/assignments`, then `nbgrader ...`."""

c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "minisl"
c.ClearSolutions.code_stub = {"python": "# your code here\nraise NotImplementedError()"}
c.ClearSolutions.text_stub = "Your answer here."
