"""`pytest` here checks a2_model.ipynb, each task apart from the others."""

from minisl.course.student import tests_of

test_task = tests_of(__file__, "a2_model.ipynb")
