"""How the pages are built: `python -m sphinx -W --keep-going -n -b html docs docs/_build/html`. All is local."""

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_ext"))

project = "minisl"
author = "The minisl authors"
copyright = author
release = version = re.search(r'__version__ = "(.*)"', (HERE.parent / "minisl" / "__init__.py").read_text("utf-8"))[1]

extensions = ["myst_nb", "sphinx.ext.viewcode", "sources", "reference", "mathml"]
exclude_patterns = ["_build", "_ext", "_static", "comparison/*.md"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
nb_execution_mode = "off"  # notebooks/build.py runs them
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
smartquotes = False  # code has straight ones
add_module_names = False
toc_object_entries_show_parents = "hide"
python_display_short_literal_types = True
viewcode_follow_imported_members = False

html_theme = "furo"
html_title = "minisl"
html_math_renderer = "mathml"
html_favicon = "_static/icon.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"
