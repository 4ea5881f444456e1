"""Draws docs/architecture.svg and docs/sltrain.svg: `python docs/pictures.py`. Their colours are those of the page."""

import random
from pathlib import Path

HERE = Path(__file__).parent
FLOORS = [  # from the ground up: what it is for, and the files and folders of minisl on it
    ("arrays, devices, cores, processes, files", "backend parallel distributed exchange blas files lock errors command plot"),
    ("arrays in, arrays out", "kernels data"),
    ("gradients", "autograd"),
    ("models and updates", "nn optim"),
    ("one file a paper", "methods"),
    ("commands, and what they share", "train evaluate generate export compare memory analysis bench ladder doctor config "
     "runs checkpoint callbacks metrics summary sliders swap hf course"),
]
STEP = [("text", "data"), ("tokens", "data"), ("batch", "data"), ("logits", "nn"),
        ("loss", "autograd"), ("gradients", "autograd"), ("update", "optim"), ("checkpoint", "checkpoint")]
STYLE = """<style>
.picture text { font: 13px system-ui, sans-serif; fill: currentColor }
.picture .small { font-size: 11.5px; opacity: .8 }
.picture .name { font-family: ui-monospace, monospace; font-size: 12px }
.picture .star { font-weight: bold }
.picture .floor { fill: currentColor; fill-opacity: .05; stroke: currentColor; stroke-opacity: .25 }
.picture .room { fill: #3b82c4; fill-opacity: .16; stroke: #3b82c4 }
.picture .dense { fill: #3b82c4; fill-opacity: .3; stroke: #3b82c4 }
.picture .sparse { fill: none; stroke: #d9731a }
.picture .entry { fill: #d9731a }
.picture .way { stroke: #d9731a; stroke-width: 1.5; fill: none }
.picture .head { fill: #d9731a }
</style>"""


def svg(width, height, words, parts):
    return (f'<svg class="picture" viewBox="0 0 {width} {height}" role="img" aria-label="{words}" '
            f'xmlns="http://www.w3.org/2000/svg">\n{STYLE}\n' + "\n".join(parts) + "\n</svg>\n")


def text(x, y, words, kind="", anchor="start"):
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"' + f' class="{kind}"' * bool(kind) + f">{words}</text>"


def box(x, y, width, height, kind):
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" class="{kind}"/>'


def in_rows(names, width):
    """[[(name, x, width), ...], ...]: boxes beside each other, as many as a row holds."""
    rows, x = [[]], 0
    for name in names:
        wide = 7.3 * len(name) + 12
        if x + wide > width:
            rows.append([])
            x = 0
        rows[-1].append((name, x, wide))
        x += wide + 5
    return rows


def architecture():
    parts, y, width = [], 4, 380
    for number, (words, names) in reversed(list(enumerate(FLOORS))):
        rows = in_rows(names.split(), width - 20)
        height = 27 + 25 * len(rows)
        parts += [box(2, y, width, height, "floor"), text(10, y + 17, f"{number}"), text(26, y + 17, words, "small")]
        for k, row in enumerate(rows):
            for name, x, wide in row:
                parts += [box(10 + x, y + 24 + 25 * k, wide, 20, "room"), text(16 + x, y + 38 + 25 * k, name, "name")]
        y += height + 6
    parts += [text(2, y + 18, "A step of training, and the room that does it"), *way(y + 28)]
    return svg(width + 4, y + 158, "The rooms of minisl on six floors, and the way of the data through them", parts)


def way(y):
    """The way of the data, four stops a line."""
    for k, (what, room) in enumerate(STEP):
        x, top = 2 + 96 * (k % 4), y + 62 * (k // 4)
        yield box(x, top, 82, 42, "floor")
        yield text(x + 41, top + 18, what, "", "middle")
        yield text(x + 41, top + 34, room, "name", "middle")
        if k % 4 < 3:
            yield f'<path class="way" d="M{x + 83} {top + 21}h8"/><path class="head" d="M{x + 90} {top + 17}l6 4l-6 4z"/>'
        elif k < len(STEP) - 1:
            yield f'<path class="way" d="M{x + 41} {top + 43}v10H43v3"/><path class="head" d="M39 {top + 55}l4 6l4 -6z"/>'


def sltrain(n=12, cell=8, r=2, seed=5):
    side, thin, y = n * cell, r * cell, 22
    parts, x = [], 4

    def matrix(width, height, kind, name, shape):
        nonlocal x
        parts.extend([box(x, y + (side - height) / 2, width, height, kind), text(x + width / 2, y - 8, name, "star", "middle"),
                      text(x + width / 2, y + side + 16, shape, "small", "middle")])
        x += width

    def sign(words, room=30):
        nonlocal x
        parts.append(text(x + room / 2, y + side / 2 + 5, words, "", "middle"))
        x += room

    matrix(side, side, "dense", "W", "out × in")
    sign("=", 22)
    sign("α/r ·", 34)
    matrix(thin, side, "dense", "B", "out × r")
    x += 20
    matrix(side, thin, "dense", "A", "r × in")
    sign("+")
    left = x
    matrix(side, side, "sparse", "S", "few entries")
    places = sorted(random.Random(seed).sample(range(n * n), 14))
    parts += [box(left + place % n * cell + 1, y + place // n * cell + 1, cell - 2, cell - 2, "entry") for place in places]
    return svg(x + 4, y + side + 22, "W is a low-rank product B A, scaled by alpha over r, plus a sparse matrix S", parts)


if __name__ == "__main__":
    (HERE / "architecture.svg").write_text(architecture())
    (HERE / "sltrain.svg").write_text(sltrain())
