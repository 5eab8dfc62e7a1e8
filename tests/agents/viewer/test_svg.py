from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.viewer.svg import HEIGHT, WIDTH, Axis, Point, Series, Slice, line_chart, stacked_bar
from agents.viewer.svg import ticks as round_ticks

X, Y = Axis(label="x"), Axis(label="y")


def draw(*series: Series, x: Axis = X, y: Axis = Y) -> ElementTree.Element:
    return ElementTree.fromstring(line_chart(series, title="t", x=x, y=y))


def line(*ys: float) -> Series:
    return Series(name="a", points=tuple(Point(x=float(i), y=v) for i, v in enumerate(ys)))


def positions(chart: ElementTree.Element) -> list[list[tuple[float, float]]]:
    return [
        [tuple(map(float, pair.split(","))) for pair in found.get("points").split()]
        for found in chart.iter("polyline")
    ]


def test_higher_values_are_drawn_higher_and_later_ones_further_right():
    ((low, middle, high),) = positions(draw(line(1.0, 2.0, 4.0)))
    assert low[0] < middle[0] < high[0]
    assert low[1] > middle[1] > high[1]
    assert (low[1] - middle[1]) * 2 == pytest.approx(middle[1] - high[1], abs=0.2)


def test_a_value_that_is_not_finite_breaks_the_line():
    chart = draw(line(1.0, 2.0, math.nan, 3.0, 2.0, math.inf, 1.0))
    assert [len(run) for run in positions(chart)] == [2, 2]
    assert len(list(chart.iter("circle"))) == 5


def test_doubling_k_is_one_step_on_a_log_axis():
    series = Series(name="a", points=tuple(Point(x=k, y=0.1 * k) for k in (1, 2, 4, 8)))
    ((a, b, c, d),) = positions(draw(series, x=Axis(label="k", log=True)))
    assert b[0] - a[0] == pytest.approx(c[0] - b[0], abs=0.2)
    assert c[0] - b[0] == pytest.approx(d[0] - c[0], abs=0.2)


def test_bands_follow_the_interval():
    points = tuple(Point(x=x, y=0.5, low=0.4, high=0.8) for x in (0.0, 1.0))
    band = next(draw(Series(name="a", points=points)).iter("polygon"))
    corners = [tuple(map(float, p.split(","))) for p in band.get("points").split()]
    assert len(corners) == 4
    assert corners[0][1] < corners[3][1]


def test_nothing_to_draw_is_a_sentence():
    assert "No data" in line_chart([line(math.nan)], title="<t>", x=X, y=Y)
    assert "&lt;t&gt;" in line_chart([], title="<t>", x=X, y=Y)


@given(st.lists(st.floats(-1e9, 1e9) | st.just(math.nan), min_size=1, max_size=30))
def test_every_finite_series_stays_inside_the_frame(values):
    if not any(map(math.isfinite, values)):
        return
    for run in positions(draw(line(*values))):
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in run)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_even_and_inside(low, span):
    found = round_ticks(low, low + span)
    assert len(found) <= 12
    assert all(low - 1e-6 * span - 1e-9 <= t <= low + span * (1 + 1e-6) + 1e-9 for t in found)


def test_ticks_are_round():
    assert round_ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert round_ticks(3.0, 97.0) == [20.0, 40.0, 60.0, 80.0]


def test_parts_of_a_bar_add_up():
    slices = [Slice(label=k, amount=n, style=k) for k, n in (("good", 1), ("bad", 3), ("cut", 0))]
    bar = ElementTree.fromstring(stacked_bar(slices, title="t"))
    assert [float(r.get("width")) for r in bar.iter("rect")] == [100.0, 300.0]
    assert not list(ElementTree.fromstring(stacked_bar([], title="t")).iter("rect"))
