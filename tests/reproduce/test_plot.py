"""Charts as SVG and pixels as PNG, read back by independent parsers."""

import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import InputError, ShapeError
from trimtab.reproduce.plot import Series, bar_chart, line_chart, picture

SVG = "{http://www.w3.org/2000/svg}"


def points_of(figure, color):
    """The vertices of the curve drawn in a series' colour."""
    root = ET.fromstring(figure.data)
    paths = [p for p in root.iter(f"{SVG}path") if f"--series-{color}," in p.get("stroke", "")]
    return [
        [tuple(map(float, pair)) for pair in re.findall(r"([-\d.]+) ([-\d.]+)", path.get("d"))]
        for path in paths
    ]


def test_a_logarithmic_chart_spaces_equal_ratios_equally():
    figure = line_chart(
        "t", "x", "y", [Series("a", [1, 10, 100], [1, 2, 4])], log_x=True, log_y=True
    )
    [points] = points_of(figure, 1)
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.2)
    assert y2 < y1 < y0  # up is more


def test_a_gap_in_a_series_breaks_its_line():
    figure = line_chart("t", "x", "y", [Series("a", [1, 2, 3, 4, 5], [1, 2, None, 3, 4])])
    assert [len(run) for run in points_of(figure, 1)] == [2, 2]


def test_bars_are_as_long_as_their_figures():
    figure = bar_chart("t", "u", ["a", "b"], {"ours": [10.0, 40.0]})
    widths = [float(bar.get("width")) for bar in ET.fromstring(figure.data).iter(f"{SVG}rect")]
    assert widths[1] / widths[0] == pytest.approx(4, rel=0.01)


def test_a_chart_follows_the_theme_and_names_itself():
    figure = bar_chart("Memory & more", "GiB", ["a"], {"ours": [1.0], "theirs": [2.0]})
    root = ET.fromstring(figure.data)
    assert root.get("role") == "img"
    assert root.get("aria-label") == "Memory & more"
    assert "var(--series-2," in figure.data
    assert "ours 1, theirs 2" in figure.alt
    assert figure.table == (("", "ours", "theirs"), ("a", 1.0, 2.0))


@settings(deadline=None)
@given(
    st.lists(st.floats(-1e12, 1e12) | st.none(), min_size=2, max_size=40).filter(
        lambda ys: any(y is not None for y in ys)
    ),
    st.text(
        st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="\ufffe\uffff"),
        max_size=12,
    ),
)
def test_any_series_gives_a_well_formed_chart_within_its_frame(ys, name):
    figure = line_chart(name, name, name, [Series(name, range(len(ys)), ys)])
    ET.fromstring(figure.data)
    for run in points_of(figure, 1):
        for x, y in run:
            assert 0 <= x <= 460
            assert 0 <= y <= 300


@settings(deadline=None)
@given(st.lists(st.floats(1e-9, 1e12), min_size=1, max_size=12))
def test_any_positive_series_fits_a_logarithmic_chart(ys):
    figure = line_chart("t", "x", "y", [Series("a", range(1, len(ys) + 1), ys)], log_y=True)
    for run in points_of(figure, 1):
        assert all(0 <= y <= 300 for _, y in run)


@pytest.mark.parametrize(
    ("draw", "sentence"),
    [
        (lambda: line_chart("t", "x", "y", []), "no finite point"),
        (lambda: line_chart("t", "x", "y", [Series("a", [1], [1, 2])]), "1 abscissae and 2"),
        (
            lambda: line_chart("t", "x", "y", [Series("a", [1], [1], low=[1, 2], high=[1])]),
            "spread of 'a'",
        ),
        (
            lambda: line_chart("t", "x", "y", [Series("a", [0], [1])], log_x=True),
            "logarithmic axis cannot show 0",
        ),
        (lambda: bar_chart("t", "u", ["a"], {"ours": [1, 2]}), "2 figures for 1 categories"),
        (lambda: bar_chart("t", "u", ["a"], {"ours": [None]}), "no finite bar"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, sentence):
    with pytest.raises(InputError, match=sentence):
        draw()


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_pixels_survive_the_png(shape):
    image = pytest.importorskip("PIL.Image", reason="Pillow reads the PNG back")
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    figure = picture("t", "noise", pixels, scale=3)
    read = np.asarray(image.open(io.BytesIO(figure.data)))
    np.testing.assert_array_equal(read, pixels.repeat(3, axis=0).repeat(3, axis=1))


@pytest.mark.parametrize("pixels", [np.zeros((2, 2)), np.zeros((2, 2, 4), np.uint8)])
def test_an_array_that_is_no_image_is_refused(pixels):
    with pytest.raises(ShapeError, match="expected uint8 pixels"):
        picture("t", "a", pixels)
