"""Formulas as MathML, made when the pages are built: nothing to load, nothing to run, and every current browser shows it."""

import re

from docutils.nodes import SkipNode
from math_core import LatexError, LatexToMathML
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

logger = logging.getLogger(__name__)
convert = LatexToMathML(macros={"argmin": r"\operatorname*{arg\,min}", "argmax": r"\operatorname*{arg\,max}",
                                "rank": r"\operatorname{rank}", "diag": r"\operatorname{diag}"})
COLOURS = re.compile(r"\x1b\[[\d;]*m")
WIDE = 24  # characters of MathML's text from which on a formula in a line may not fit a phone


def mathml(latex, display):
    """The formula as a <math> element. Raises LatexError."""
    latex = re.sub(r"\\(begin|end)\{(align|gather|equation)\}", r"\\\1{\2*}", latex)  # numbers are Sphinx's
    latex = re.sub(r"\$([^$]*)\$", r"}\1\\text{", latex)  # only \text{... $x$ ...} has a dollar
    if display and r"\\" in latex and r"\begin" not in latex:
        latex = rf"\begin{{aligned}}{latex}\end{{aligned}}"
    return convert.convert_with_local_state(latex.strip(), displaystyle=display)


def render(self, node, display):
    try:
        return mathml(node.astext(), display)
    except LatexError as error:
        lines = COLOURS.sub("", str(error)).strip().splitlines()
        logger.warning("formula %r: %s", node.astext(), lines[0].removeprefix("Error: "), location=node)
        return f"<code>{self.encode(node.astext())}</code>"


def inline(self, node):
    made = render(self, node, display=False)
    wide = " wide" * (len(re.sub(r"<[^>]*>", "", made)) > WIDE)
    self.body.append(f'<span class="math{wide}">{made}</span>')
    raise SkipNode


def block(self, node):
    self.body.append(self.starttag(node, "div", CLASS="math"))
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append(render(self, node, display=True) + "</div>\n")
    raise SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
