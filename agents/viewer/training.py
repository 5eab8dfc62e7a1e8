"""Training metrics as charts: which columns belong together."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from agents.viewer.data import TrainingRun
from agents.viewer.svg import COLOURS, Axis, Point, Series, legend_mark, line_chart

GROUPS = (
    ("Token entropy (nats)", re.compile(r"entropy|surprisal")),
    ("Loss", re.compile(r"loss|nll|perplexity")),
    ("Rewards and margins", re.compile(r"reward|margin")),
    ("Log-probabilities", re.compile(r"logps")),
    ("Share", re.compile(r"pass@|resolved|accurac|fraction")),
)
"""Chart title and the metrics it shows; the first group that fits a name takes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A drawn chart with its legend: (mark, name)."""

    title: str
    svg: Markup
    legend: tuple[tuple[Markup, str], ...]


def training_charts(run: TrainingRun) -> tuple[list[Chart], list[str]]:
    """(charts, names of recorded metrics that no chart shows)."""
    names = list(dict.fromkeys(name for row in run.rows for name in row if name != "step"))
    charts: list[Chart] = []
    left = list(names)
    for title, pattern in GROUPS:
        found = [n for n in left if pattern.search(n.lower()) and _numeric(run.rows, n)]
        left = [n for n in left if n not in found]
        for at in range(0, len(found), COLOURS):
            charts.append(_chart(title, run.rows, found[at : at + COLOURS]))
    return charts, left


def _chart(title: str, rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> Chart:
    series = [
        Series(
            name=name,
            points=tuple(
                Point(x=float(row.get("step", i)), y=float(row[name]))
                for i, row in enumerate(rows)
                if name in row
            ),
        )
        for name in names
    ]
    return Chart(
        title=title,
        svg=line_chart(series, title=title, x=Axis(label="step"), y=Axis(label=""), first=1),
        legend=tuple((legend_mark(i + 1), name) for i, name in enumerate(names)),
    )


def _numeric(rows: Sequence[Mapping[str, float]], name: str) -> bool:
    values = [row[name] for row in rows if name in row]
    return all(isinstance(v, int | float) for v in values) and any(math.isfinite(v) for v in values)
