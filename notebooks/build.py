"""Run the notebooks and write them with their outputs: `python notebooks/build.py [NAME ...]`, such as 03_sltrain.

NAME.py (cells after `# %%`, text after `# %% [markdown]`) is the source, NAME.ipynb what becomes of it. A cell's tag says how far
its numbers may differ from one machine to the next: no tag, not at all; "trained", a few percent; "timing", freely.
"""

import re
import sys
import tempfile
import time
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

HERE = Path(__file__).parent
ANSWER = re.compile(r"<details>.*?</details>", re.S)
CODE = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


def names():
    return sorted(path.stem for path in HERE.glob("[0-9]*.py"))


def read(name):
    """The notebook of NAME.py, not yet run; a cell's number is its id, so that two runs of one source differ in nothing else."""
    notebook = jupytext.read(HERE / f"{name}.py")
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    notebook.metadata = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"},
                         "language_info": {"name": "python"}, "jupytext": {"formats": "ipynb,py:percent"}}
    return notebook


def with_answers(notebook):
    """The code of every exercise's answer as a cell of its own, so that it runs too."""
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type == "markdown":
            cells += [new_code_cell(code, id=f"{cell.id}-answer-{k}", metadata={"tags": ["answer"]})
                      for k, code in enumerate(CODE.findall("\n".join(ANSWER.findall(cell.source))))]
    notebook.cells = cells
    return notebook


def run(notebook):
    """Run all cells, in an empty folder; returns the seconds. Raises CellExecutionError where a cell does."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False,
                       resources={"metadata": {"path": folder}}).execute()
    return time.perf_counter() - started


def write(notebook, name):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            joined = []  # a stream as one piece, however it happened to be cut
            for output in cell.outputs:
                if output.output_type == "stream" and joined and joined[-1].get("name") == output.name:
                    joined[-1].text += output.text
                else:
                    joined.append(output)
            cell.outputs = joined
    jupytext.write(notebook, HERE / f"{name}.ipynb", fmt="ipynb")


if __name__ == "__main__":
    for name in sys.argv[1:] or names():
        notebook = read(name)
        seconds = run(notebook)
        write(notebook, name)
        print(f"{name}: {seconds:.0f} s", flush=True)
