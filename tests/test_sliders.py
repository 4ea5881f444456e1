"""minisl.sliders: every combination is drawn, and the page shows the one where the sliders stand."""

import base64
import re

import pytest

from minisl.plot import pyplot
from minisl.sliders import Sliders


def drawn(**options):
    plt, seen = pyplot(), []

    def draw(r, delta):
        seen.append((r, delta))
        figure, axes = plt.subplots(figsize=(1, 1))
        axes.plot([0, r], [0, delta])
        return figure

    return Sliders(draw, dpi=20, r=[2, 4, 8], delta=[0.1, 0.3], **options), seen


def test_all_combinations_are_drawn_once():
    sliders, seen = drawn()
    assert seen == [(r, delta) for r in (2, 4, 8) for delta in (0.1, 0.3)]
    assert len(sliders.frames) == 6
    assert sliders.frame([2, 1]) == sliders.frames[5]
    assert all(base64.b64decode(frame).startswith(b"\x89PNG") for frame in sliders.frames)


@pytest.mark.parametrize(("start", "places"), [(None, [1, 1]), ({"r": 8}, [2, 1]), ({"r": 2, "delta": 0.1}, [0, 0])])
def test_it_starts_where_it_is_told(start, places):
    sliders, _ = drawn(start=start)
    html = sliders._repr_html_()
    assert f'src="data:image/png;base64,{sliders.frame(places)}"' in html
    assert [int(v) for v in re.findall(r'value="(\d+)"', html)] == places


def test_its_keys_are_not_taken_by_the_page_around_it():
    assert re.search(r'box\.addEventListener\("keydown", event => event\.stopPropagation\(\)\)', drawn()[0]._repr_html_())


def test_the_same_figure_is_the_same_page():
    assert drawn()[0]._repr_html_() == drawn()[0]._repr_html_()
    assert repr(drawn()[0]) == "Sliders(r, delta)"


@pytest.mark.parametrize("values", [{}, {"r": []}])
def test_a_slider_without_positions_is_refused(values):
    with pytest.raises(ValueError, match="at least one position"):
        Sliders(lambda **_: None, **values)
