"""`pytest` here checks a5_study.ipynb, each task apart from the others."""

from minisl.course.student import checks_of

test_task = checks_of(__file__, "a5_study.ipynb")
