"""The pictures that are checked in are those that the results give."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from benchmarks.figures import FIGURES, PICTURES, drawn, main
from benchmarks.svg import DARK, LIGHT, Axis, Canvas, Curves, curves, decimal


def test_the_pictures_are_those_of_the_results() -> None:
    pictures = drawn()
    assert sorted(pictures) == sorted(path.name for path in FIGURES.glob("*.svg"))
    for name, svg in pictures.items():
        assert (FIGURES / name).read_text("utf-8") == svg, f"{name} is old: run python -m benchmarks.figures"


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_well_formed_and_the_same_in_both_themes(name: str) -> None:
    trees = [ElementTree.fromstring(PICTURES[name](theme).svg()) for theme in (LIGHT, DARK)]
    texts = [[element.text for element in tree.iter() if element.text and element.text.strip()] for tree in trees]
    assert texts[0] == texts[1]
    assert trees[0].tag == "{http://www.w3.org/2000/svg}svg"
    width, height = (float(trees[0].attrib[side]) for side in ("width", "height"))
    for element in trees[0].iter():
        assert 0 <= float(element.attrib.get("x", 0)) <= width
        assert 0 <= float(element.attrib.get("y", 0)) <= height


def test_bars_have_the_length_of_their_values() -> None:
    linear = Axis(100, 300, 0, 1000, [], str)
    assert [linear.place(value) for value in (0, 250, 1000)] == [100, 150, 300]
    log = Axis(100, 400, 1, 1000, [], str, log=True)
    assert [round(log.place(value)) for value in (1, 10, 1000, 0.5)] == [100, 200, 400, 100]


def test_curves_are_drawn_over_a_logarithmic_axis_and_end_in_a_dot() -> None:
    canvas = Canvas(400, 300, "Curves", LIGHT)
    across = Axis(100, 300, 0.1, 10, [0.1, 1], "{:g}".format, log=True)
    plot = Curves("a graph", [("#112233", [(0.1, 0.5), (1, 0.75), (10, 0.9)])], across, (0.6, 1.0), [0.6, 0.8])
    curves(canvas, plot, 50, 200, "minutes")
    svg = canvas.svg()
    # .5 is below the plot: it lies on its edge. .75 is 3/8 of the way up, .9 is 3/4.
    assert '<polyline points="100.0,250.0 200.0,175.0 300.0,100.0" fill="none" stroke="#112233"' in svg
    assert '<circle cx="300.0" cy="100.0"' in svg
    assert 'x1="100.0" y1="150.0" x2="300.0" y2="150.0"' in svg


def test_shares_are_written_as_in_papers() -> None:
    assert (decimal(0.4315), decimal(0.4, 2), decimal(1.0, 1)) == (".431", ".40", "1.0")


def test_main_writes_every_picture(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.figures.FIGURES", tmp_path)
    main()
    assert len(list(tmp_path.glob("*.svg"))) == 2 * len(PICTURES)
