"""A figure with sliders that needs no running kernel: every position is drawn beforehand, and the page holds them all."""

import base64
import hashlib
import io
import itertools
import json


class Sliders:
    """Shows `draw(**position)`, a matplotlib Figure, for each position of the sliders. Last line of a notebook's cell.

    values: the positions of each slider, such as `r=[4, 8, 16], delta=[0.01, 0.03]`. start: where they stand at first (left
    out: in the middle). All combinations are drawn when it is made. Raises ValueError for a slider without positions.
    """

    def __init__(self, draw, start=None, dpi=90, **values):
        if not values or not all(values.values()):
            raise ValueError(f"every slider needs at least one position, these have { {k: len(v) for k, v in values.items()} }")
        self.values = {name: list(positions) for name, positions in values.items()}
        middle = {name: positions[len(positions) // 2] for name, positions in self.values.items()}
        self.start = [self.values[name].index(value) for name, value in (middle | (start or {})).items()]
        self.frames = [png(draw(**dict(zip(self.values, at))), dpi) for at in itertools.product(*self.values.values())]

    def frame(self, places):
        """The picture (base64 PNG) where slider k stands at its position places[k]."""
        at = 0
        for place, positions in zip(places, self.values.values()):
            at = at * len(positions) + place
        return self.frames[at]

    def __repr__(self):
        return f"Sliders({', '.join(self.values)})"

    def _repr_html_(self):
        name = "sliders-" + hashlib.sha256("".join(self.frames).encode()).hexdigest()[:12]
        rows = "".join(
            f'<label style="display:inline-block;margin-right:2em">{key} = <output>{positions[place]:g}</output><br>'
            f'<input type="range" min="0" max="{len(positions) - 1}" value="{place}" style="width:14em"></label>'
            for (key, positions), place in zip(self.values.items(), self.start))
        data = json.dumps({"frames": self.frames, "values": list(self.values.values())})
        return f"""<div id="{name}"><div>{rows}</div><img style="max-width:100%" alt="The figure at the sliders' position"
src="data:image/png;base64,{self.frame(self.start)}"></div>
<script>(() => {{
  const box = document.getElementById("{name}"), {{frames, values}} = {data};
  const inputs = [...box.querySelectorAll("input")], outputs = [...box.querySelectorAll("output")];
  const show = () => {{
    const at = inputs.reduce((sum, input, k) => sum * values[k].length + Number(input.value), 0);
    inputs.forEach((input, k) => outputs[k].textContent = values[k][input.value]);
    box.querySelector("img").src = "data:image/png;base64," + frames[at];
  }};
  inputs.forEach(input => input.addEventListener("input", show));
  box.addEventListener("keydown", event => event.stopPropagation());  // JupyterLab would take the arrow keys
}})();</script>"""


def png(figure, dpi):
    """A matplotlib Figure as a PNG of 64 colours in base64, and closed."""
    import matplotlib.pyplot as plt
    from PIL import Image  # matplotlib needs it too

    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, dpi=dpi, format="png")
    plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return base64.b64encode(small.getvalue()).decode()
