import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distkg.reporting.svg import Axis, Series, column_chart, line_chart, nice_ticks, scatter, swatch, thin

X, Y = Axis("epoch"), Axis("loss")


def coordinates(svg: str) -> list[tuple[float, float]]:
    points = re.search(r'<polyline class="line s0" points="([^"]*)"', svg)
    assert points is not None
    return [(float(a), float(b)) for a, b in (pair.split(",") for pair in points[1].split())]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0, 0.45, [0, 0.1, 0.2, 0.3, 0.4]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (98, 103, [98, 99, 100, 101, 102, 103]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert nice_ticks(low, high) == expected


def test_line_runs_from_corner_to_corner() -> None:
    # The plot's corners: x from 64 to 440 - 14, y from 250 - 44 (bottom) to 14 (top).
    svg = line_chart([Series("loss", [(0, 0), (1, 5), (2, 10)])], X, Y)
    assert coordinates(svg) == [(64.0, 206.0), (245.0, 110.0), (426.0, 14.0)]


def test_axis_from_zero_puts_the_lowest_value_above_the_bottom() -> None:
    svg = line_chart([Series("mrr", [(0, 5), (1, 10)])], X, Axis("mrr", zero=True))
    assert coordinates(svg) == [(64.0, 110.0), (426.0, 14.0)]


def test_points_that_cannot_be_drawn_are_left_out() -> None:
    svg = line_chart([Series("loss", [(0, 1), (1, float("nan")), (2, float("inf")), (3, 2)])], X, Y)
    assert len(coordinates(svg)) == 2
    assert "nan" not in svg
    assert line_chart([Series("loss", [(0, float("nan"))])], X, Y) == ""
    assert line_chart([], X, Y) == ""


def test_a_single_point_is_drawn() -> None:
    assert "<circle" in line_chart([Series("loss", [(1, 3.0)])], X, Y)


def test_log_axes_place_decades_evenly_and_skip_zero() -> None:
    log_x, log_y = Axis("degree", log=True), Axis("entities", log=True)
    svg = scatter([(0, 5), (1, 100), (10, 10), (100, 1)], log_x, log_y)
    spots = [(float(a), float(b)) for a, b in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)]
    assert spots == [(64.0, 14.0), (245.0, 110.0), (426.0, 206.0)]


def test_stacked_columns_add_up() -> None:
    svg = column_chart(["a", "b"], [("0", [1.0, 3.0]), ("1", [2.0, 0.0])], "step", Axis("s", zero=True))
    boxes = [(float(y), float(h)) for y, h in re.findall(r'<rect [^>]*y="([\d.]+)" [^>]*height="([\d.]+)"', svg)]
    # 4 units fill the 192 pixels, so that one unit is 48.
    assert boxes == [(158.0, 48.0), (14.0, 144.0), (110.0, 96.0), (110.0, 0.0)]


def test_many_columns_are_joined_by_their_maximum() -> None:
    columns = [(str(i), [1.0 if i != 130 else 7.0]) for i in range(640)]
    svg = column_chart(["rows"], columns, "partition", Axis("rows", zero=True), merge="max")
    assert svg.count("<rect") == 64
    assert "130 to 139: rows 7<" in svg


def test_labels_are_escaped() -> None:
    svg = line_chart([Series("<b>", [(0, 1), (1, 2)]), Series("c", [(0, 1)])], Axis('"x"'), Axis("<script>"))
    assert "<b>" not in svg
    assert "<script>" not in svg


def strokes(svg: str) -> list[str]:
    return re.findall(r'<polyline class="line ([^"]*)"', svg)


def test_lines_differ_in_colour_and_in_dash() -> None:
    svg = line_chart([Series(f"run {i}", [(0, i), (1, i)]) for i in range(8)], X, Y)
    assert strokes(svg) == ["s0", "s1 d1", "s2 d2", "s3 d3", "s4 d4", "s5 d5", "s0 d1", "s1 d2"]


def test_thirty_six_lines_are_told_apart() -> None:
    assert len({swatch(index) for index in range(36)}) == 36


def test_a_line_keeps_its_style_where_another_has_no_points() -> None:
    svg = line_chart([Series("a", [(0, 1), (1, 2)]), Series("b", []), Series("c", [(0, 3), (1, 1)])], X, Y)
    assert strokes(svg) == ["s0", "s2 d2"]
    legend = svg[: svg.index("</ul>")]
    assert re.findall(r'<line class="line ([^"]*)"', legend) == ["s0", "s2 d2"]
    assert re.findall(r"<span>(\w)</span>", legend) == ["a", "c"]


def test_one_of_several_is_named_even_if_the_others_have_no_points() -> None:
    assert "<span>b</span>" in line_chart([Series("a", []), Series("b", [(0, 1)])], X, Y)


def test_series_of_unequal_lengths_share_one_scale() -> None:
    svg = line_chart([Series("short", [(0, 0), (1, 10)]), Series("long", [(0, 0), (4, 5)])], X, Y)
    assert re.findall(r'<polyline class="[^"]*" points="([^"]*)"', svg) == [
        "64.0,206.0 154.5,14.0",
        "64.0,206.0 426.0,110.0",
    ]


def test_marks_inside_several_lines_wait_for_the_pointer() -> None:
    points = [(0, 1), (1, 2), (2, 3)]
    assert line_chart([Series("a", points)], X, Y).count("quiet") == 0
    # Two of three marks of each line; the last one stays.
    assert line_chart([Series("a", points), Series("b", points)], X, Y).count("quiet") == 4


@given(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=900), st.integers(3, 60))
def test_thinning_keeps_ends_bounds_and_order(values: list[float], limit: int) -> None:
    points = list(enumerate(values))
    kept = thin(points, limit)
    assert len(kept) == min(limit, len(points))
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert all(a < b for (a, _), (b, _) in pairwise(kept))
    slack = 1e-9 * max(1.0, max(map(abs, values)))
    assert min(values) - slack <= min(y for _, y in kept)
    assert max(y for _, y in kept) <= max(values) + slack
