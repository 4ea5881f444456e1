"""`pytest` here checks a4_kernels.ipynb, each task apart from the others."""

from minisl.course.student import tests_of

test_task = tests_of(__file__, "a4_kernels.ipynb")
