"""The result as one self-contained HTML page of charts."""

from __future__ import annotations

import math
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from agents.viewer.svg import Axis, Point, Series, legend_mark, line_chart
from learners.experiments.tool_mdp.cells import GAMMA, LABELS, PolicyName
from learners.experiments.tool_mdp.tables import NAMES, POLICIES, Row
from swe_env.disk import write_atomically

_SHELL = Markup(
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    "<title>Tool-MDP</title><style>{style}</style></head><body><main><h1>Tool-MDP</h1>"
    '<p class="lead">How far each loss gets from the closed-form optimum, by enumeration. '
    "γ = {gamma}; bands are 95% intervals over {seeds} seeds; the table on every pair is "
    "exact and has none."
    "</p>{sections}</main></body></html>"
)
_MEASURES = (
    ("effective", "effective correct solutions"),
    ("correct", "P(correct)"),
    ("tv", "total variation to π*"),
    ("kl", "KL(π ‖ π*), nats"),
    ("pass@4", "pass@4"),
    ("pass@16", "pass@16"),
)


def write_page(results: dict[str, Any], path: Path) -> None:
    """Write the page.

    Args:
        results: Of `summarize`.
        path: The file.
    """
    style = resources.files("agents.viewer").joinpath("templates/report.css").read_text("utf-8")
    sections = [
        _section(results, policy, loss)
        for policy in POLICIES
        for loss in ("entropo-dpo", "entropo-kto")
        if (policy, loss) != ("table-drawn", "entropo-kto")
    ]
    sections.append(_trade_off(results))
    page = _SHELL.format(
        style=Markup(style),
        gamma=GAMMA,
        seeds=results["settings"]["seeds"],
        sections=Markup("").join(sections),
    )
    write_atomically(path, str(page).encode())


def _section(results: dict[str, Any], policy: PolicyName, loss: str) -> Markup:
    rows = [r for r in results["cells"] if r["policy"] == policy and r["temperature"] == 1.0]
    kinds = [(loss, kind) for kind in LABELS]
    if loss == "entropo-kto":
        kinds = [(loss, "hard"), ("entropo-kto-released", "hard")]
    charts, names = [], []
    for measure, label in _MEASURES:
        series = []
        if measure == "effective":
            best = [r for r in rows if (r["loss"], r["labels"]) == kinds[-1] and _kept(r)]
            series.append(Series(name="closed form", points=_line(best, "best/effective")))
        else:
            series.append(Series(name="closed form", points=()))
        for of_loss, labels in kinds:
            mine = [r for r in rows if (r["loss"], r["labels"]) == (of_loss, labels)]
            name = f"{NAMES[of_loss]}, {labels}"
            series.append(Series(name=name, points=_line([r for r in mine if _kept(r)], measure)))
        for labels in dict.fromkeys(labels for _, labels in kinds):
            control = [r for r in rows if (r["loss"], r["labels"]) == (loss, labels)]
            control = [r for r in control if r["gamma"] == r["zeta"]]
            name = f"control, {labels}, β = ζ"
            series.append(Series(name=name, points=_line(control, measure)))
        names = [s.name for s in series]
        charts.append(
            Markup("<figure>{}</figure>").format(
                line_chart(series, title=label, x=Axis(label="ζ/γ"), y=Axis(label=label))
            )
        )
    title = f"The {POLICIES[policy]}, {NAMES[loss]}"
    return _framed(title, names, charts)


def _trade_off(results: dict[str, Any]) -> Markup:
    """Diversity against success: λ at temperature 1 beside temperature at λ = 0."""
    rows = [
        r for r in results["cells"] if r["policy"] == "transformer" and r["loss"] == "entropo-dpo"
    ]
    series = []
    for labels in ("hard", "smooth+ties"):
        mine = [r for r in rows if r["labels"] == labels]
        swept = [r for r in mine if _kept(r) and r["temperature"] == 1.0]
        warmed = [r for r in mine if r["gamma"] == r["zeta"] == GAMMA]
        for name, of in ((f"{labels}: ζ/γ from 0.9 to 3", swept), (f"{labels}: T 1 to 3", warmed)):
            points = [
                Point(x=r["figures"]["correct"][0], y=r["figures"]["distinct@16"][0]) for r in of
            ]
            series.append(Series(name=name, points=tuple(points)))
    chart = line_chart(
        series,
        title="Distinct correct solutions in 16 samples against P(correct)",
        x=Axis(label="P(correct)"),
        y=Axis(label="distinct correct solutions in 16 samples"),
    )
    figure = Markup("<figure>{}</figure>").format(chart)
    return _framed("λ beside temperature", [s.name for s in series], [figure])


def _framed(title: str, names: list[str], charts: list[Markup]) -> Markup:
    legend = Markup(" ").join(
        Markup("<span>{} {}</span>").format(legend_mark(i), name) for i, name in enumerate(names)
    )
    return Markup(
        '<section><h2>{}</h2><p class="legend">{}</p><div class="charts">{}</div></section>'
    ).format(title, legend, Markup("").join(charts))


def _kept(row: Row) -> bool:
    """Whether it is of the sweep at γ, not a control."""
    return bool(row["gamma"] == GAMMA)


def _line(rows: list[Row], measure: str) -> tuple[Point, ...]:
    points = []
    for row in sorted(rows, key=lambda r: float(r["zeta"])):
        mean, half = row["figures"][measure]
        half = math.nan if half is None else half
        points.append(Point(x=row["zeta"] / GAMMA, y=mean, low=mean - half, high=mean + half))
    return tuple(points)
