"""`pytest` here checks a5_study.ipynb, each task apart from the others."""

from minisl.course.student import tests_of

test_task = tests_of(__file__, "a5_study.ipynb")
