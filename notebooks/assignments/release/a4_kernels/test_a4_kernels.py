"""`pytest` here checks a4_kernels.ipynb, each task apart from the others."""

from minisl.course.student import checks_of

test_task = checks_of(__file__, "a4_kernels.ipynb")
