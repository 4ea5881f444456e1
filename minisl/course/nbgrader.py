"""nbgrader's autograding, with this course's grader in the place of a kernel (see notebooks/assignments/nbgrader_config.py)."""

from pathlib import Path

from nbformat.v4 import new_output
from nbgrader.coursedir import CourseDirectory
from nbgrader.preprocessors import NbGraderPreprocessor

from minisl.course import grading, handout


class Apart(NbGraderPreprocessor):
    """Runs each task in processes of its own, and writes what the tests said into their cells, where nbgrader finds the score."""

    def preprocess(self, nb, resources):
        """The notebook, with locked cells and hidden tests restored by nbgrader, with the tests' outputs."""
        cells, about, course = handout.cells_of(nb), resources["nbgrader"], CourseDirectory(config=self.config)
        folder = Path(course.format_path(course.source_directory, ".", about["assignment"]))
        source = handout.read(folder / f"{about['notebook']}.ipynb")  # whose answers stand in for those that failed
        outcomes = {outcome.task: outcome for outcome in
                    grading.grade(source, cells, resources["metadata"]["path"] or ".", about["student"])}
        for cell in cells:
            if cell.kind == "test" and cell.task in outcomes and (message := outcomes[cell.task].message):
                nb.cells[cell.place].outputs = [new_output("error", ename="Wrong", evalue=message, traceback=message.split("\n"))]
        return nb, resources
