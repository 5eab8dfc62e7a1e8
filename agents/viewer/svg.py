"""Small SVG charts: colours come from the page's style sheet, so they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from agents.viewer.text import number, visible

WIDTH, HEIGHT = 460, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 40
COLOURS = 7
"""Series styles in the style sheet: classes ``s0`` … ``s6``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One point of a line; `low` and `high` draw an interval band."""

    x: float
    y: float
    low: float = math.nan
    high: float = math.nan
    label: str = ""
    """Shown on hover; the coordinates when empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """How one direction is drawn."""

    label: str
    ticks: tuple[float, ...] = ()
    """Chosen when empty."""
    low: float = math.nan
    """Fixed end of the axis; from the data when NaN."""
    high: float = math.nan
    log: bool = False
    form: Callable[[float], str] = number


def line_chart(series: Sequence[Series], *, title: str, x: Axis, y: Axis, first: int = 0) -> Markup:
    """An SVG line chart with bands; points that are not finite break the line.

    The series take the style sheet's styles in turn, starting at `first`.
    Returns a sentence instead of an empty frame when there is nothing to draw.
    """
    drawn = [(i, s) for i, s in enumerate(series, first) if any(_finite(p) for p in s.points)]
    if not drawn:
        return Markup('<p class="empty">No data for “{}”.</p>').format(title)
    every = [p for _, s in drawn for p in s.points if _finite(p)]
    spread = [v for p in every for v in (p.y, p.low, p.high) if math.isfinite(v)]
    x_ticks, to_x = _scale(x, [p.x for p in every], LEFT, WIDTH - RIGHT, pad=False)
    y_ticks, to_y = _scale(y, spread, HEIGHT - BOTTOM, TOP, pad=True)
    parts = [_frame(title, x, y)]
    for tick in y_ticks:
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{to_y(tick):.1f}" '
            f'y2="{to_y(tick):.1f}"/><text class="tick" text-anchor="end" x="{LEFT - 7}" '
            f'y="{to_y(tick) + 4:.1f}">{escape(y.form(tick))}</text>'
        )
    for tick in x_ticks:
        parts.append(
            f'<text class="tick" text-anchor="middle" x="{to_x(tick):.1f}" '
            f'y="{HEIGHT - BOTTOM + 17}">{escape(x.form(tick))}</text>'
        )
    for i, line in drawn:
        parts.append(_band(line, i, to_x, to_y))
    for i, line in drawn:
        parts.append(_line(line, i, to_x, to_y, x, y))
    return Markup("".join(parts) + "</svg>")


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about that many."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    raw = span / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _finite(point: Point) -> bool:
    return math.isfinite(point.x) and math.isfinite(point.y)


def _scale(
    axis: Axis, values: Sequence[float], start: float, end: float, *, pad: bool
) -> tuple[list[float], Callable[[float], float]]:
    """(ticks, value → position); `pad` leaves air around the data where the end is not fixed."""
    low, high = min(values), max(values)
    air = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    low = axis.low if math.isfinite(axis.low) else low - (air if pad else 0.0)
    high = axis.high if math.isfinite(axis.high) else high + (air if pad else 0.0)
    form: Callable[[float], float] = (lambda v: math.log(max(v, 1e-12))) if axis.log else float
    span = form(high) - form(low)

    def place(value: float) -> float:
        share = (form(value) - form(low)) / span if span else 0.5
        return start + (end - start) * share

    chosen = list(axis.ticks) or ticks(low, high)
    return [t for t in chosen if low - 1e-9 <= t <= high + 1e-9], place


def _frame(title: str, x: Axis, y: Axis) -> str:
    middle = (LEFT + WIDTH - RIGHT) / 2
    centre = (TOP + HEIGHT - BOTTOM) / 2
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(visible(title))}"><title>{escape(visible(title))}</title>'
        f'<text class="axis" text-anchor="middle" x="{middle}" y="{HEIGHT - 4}">'
        f"{escape(x.label)}</text>"
        f'<text class="axis" text-anchor="middle" transform="translate(12 {centre}) rotate(-90)">'
        f"{escape(y.label)}</text>"
        f'<line class="base" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" '
        f'y2="{HEIGHT - BOTTOM}"/>'
    )


def _band(
    line: Series, i: int, to_x: Callable[[float], float], to_y: Callable[[float], float]
) -> str:
    points = [p for p in line.points if math.isfinite(p.low) and math.isfinite(p.high)]
    if len(points) == 1:
        p = points[0]
        x = f"{to_x(p.x):.1f}"
        return (
            f'<line class="whisker s{i % COLOURS}" x1="{x}" x2="{x}" '
            f'y1="{to_y(p.low):.1f}" y2="{to_y(p.high):.1f}"/>'
        )
    if not points:
        return ""
    edge = [(p.x, p.high) for p in points] + [(p.x, p.low) for p in reversed(points)]
    path = " ".join(f"{to_x(x):.1f},{to_y(v):.1f}" for x, v in edge)
    return f'<polygon class="band s{i % COLOURS}" points="{path}"/>'


def _line(
    line: Series,
    i: int,
    to_x: Callable[[float], float],
    to_y: Callable[[float], float],
    x: Axis,
    y: Axis,
) -> str:
    style = f"s{i % COLOURS}"
    runs: list[list[Point]] = [[]]
    for point in line.points:
        if _finite(point):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    paths = [
        f'<polyline class="line {style}" points="'
        + " ".join(f"{to_x(p.x):.1f},{to_y(p.y):.1f}" for p in run)
        + '"/>'
        for run in runs
        if len(run) > 1
    ]
    sparse = sum(len(run) for run in runs) <= 24
    marks = [
        f'<g class="dot {style}{"" if sparse or len(run) == 1 else " faint"}">'
        f"<title>{escape(visible(f'{line.name}: {p.label or _coordinates(p, x, y)}'))}</title>"
        f"{_mark(i, to_x(p.x), to_y(p.y))}</g>"
        for run in runs
        for p in run
    ]
    return "".join(paths + marks)


def _coordinates(point: Point, x: Axis, y: Axis) -> str:
    return f"{x.label} {x.form(point.x)}, {y.form(point.y)}"


def _mark(i: int, x: float, y: float) -> str:
    """A shape of its own for each series, so that colour is not needed to tell them apart."""
    shape = i % 3
    if shape == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6"/>'
    if shape == 1:
        return f'<rect x="{x - 3.4:.1f}" y="{y - 3.4:.1f}" width="6.8" height="6.8"/>'
    return f'<path d="M{x:.1f} {y - 4.4:.1f}l4.4 7.6h-8.8z"/>'


def legend_mark(i: int) -> Markup:
    """The series' mark for a legend."""
    inner = _mark(i, 8, 8)
    return Markup(
        f'<svg class="key" viewBox="0 0 16 16" aria-hidden="true"><g class="dot s{i % COLOURS}">'
        f"{inner}</g></svg>"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """One part of a stacked bar."""

    label: str
    amount: float
    style: str
    """Class of the style sheet."""


def stacked_bar(slices: Sequence[Slice], *, title: str) -> Markup:
    """One horizontal bar of parts that add up to the whole."""
    total = math.fsum(s.amount for s in slices)
    parts = [
        f'<svg class="bar" viewBox="0 0 400 14" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(visible(title))}"><title>{escape(visible(title))}</title>'
    ]
    at = 0.0
    for piece in slices:
        width = 400 * piece.amount / total if total > 0 else 0.0
        if width > 0:
            parts.append(
                f'<rect class="{escape(piece.style)}" x="{at:.2f}" width="{width:.2f}" '
                f'height="14"><title>{escape(visible(piece.label))}</title></rect>'
            )
        at += width
    return Markup("".join(parts) + "</svg>")
