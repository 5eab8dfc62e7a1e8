"""The parts of a report, from `ReportData` to rows and charts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from agents.selection.passk import Estimate
from agents.viewer.data import Arm, Attempt, ReportData, Selected
from agents.viewer.svg import Axis, Point, Series, Slice, legend_mark, line_chart, stacked_bar
from agents.viewer.text import duration, interval, percent, points
from agents.viewer.training import Chart


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One headline figure."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRow:
    """One arm in the result table."""

    arm: Arm
    attempts: int
    resolved: int
    tasks: int
    solved: int
    """Tasks resolved at least once."""
    per_task: str
    """Attempts that count on a task: "8", or "3–8" where tasks differ."""
    excluded: int
    first: Estimate | None
    last: Estimate | None
    """pass@k at the table's k; None when the arm has fewer attempts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One task on one arm."""

    n: int
    resolved: int
    excluded: int
    chosen: bool | None
    """Whether the first selector's choice resolves the task; None when it chose nothing."""

    @property
    def level(self) -> int:
        """Shade, 0 … 5."""
        return math.ceil(5 * self.resolved / self.n) if self.n else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeRow:
    """How one arm's attempts ended."""

    arm: str
    bar: Markup
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeTable:
    """Columns (label, class) and a row for each arm."""

    columns: tuple[tuple[str, str], ...]
    rows: tuple[OutcomeRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRow:
    """One stage with its share of the total time."""

    name: str
    time: str
    note: str
    bar: Markup


def cards(report: ReportData) -> list[Card]:
    """The figures to see first; only those there is data for."""
    found: list[Card] = []
    rows = arm_rows(report)
    if any(row.arm.attempts for row in rows):
        tasks = {a.instance_id for row in rows for a in row.arm.attempts}
        attempts = sum(row.attempts for row in rows)
        excluded = sum(row.excluded for row in rows)
        note = f"{attempts:,} attempts, {len(rows)} arm{'s' * (len(rows) != 1)}"
        if excluded:
            note += f"; {excluded} more lost to infrastructure"
        found.append(Card(label="Tasks", value=f"{len(tasks):,}", note=note))
        first, last = rows[0], rows[-1]
        found.append(
            Card(
                label="Resolved at least once",
                value=f"{last.solved} of {last.tasks}",
                note=last.arm.name + _before(f"{first.solved} of {first.tasks}", first, last),
            )
        )
        if last.first is not None:
            before = percent(first.first.value) if first.first else ""
            note = last.arm.name + _before(before, first, last)
            if last.arm.gain is not None:
                gain, low, high = last.arm.gain
                note += f"; {points(gain)} points"
                note += "" if math.isnan(low) else f" [{points(low)}, {points(high)}]"
            found.append(Card(label="pass@1", value=percent(last.first.value), note=note))
        for chosen in last.arm.selected[:1]:
            found.append(_selected_card(chosen, last))
    if report.stages:
        total = math.fsum(s.seconds for s in report.stages)
        stages = f"{len(report.stages)} stage{'s' * (len(report.stages) != 1)}"
        found.append(Card(label="Time", value=duration(total), note=stages))
    return found


def arm_rows(report: ReportData) -> list[ArmRow]:
    """One row for each arm, in the report's order."""
    k = last_k(report)
    rows = []
    for arm in report.arms:
        counted = [a for a in arm.attempts if not a.failure]
        estimates = {e.k: e for e in arm.pass_at if e.tasks}
        rows.append(
            ArmRow(
                arm=arm,
                attempts=len(counted),
                resolved=sum(a.resolved for a in counted),
                tasks=len({a.instance_id for a in counted}),
                solved=len(_solved(arm)),
                per_task="–".join(map(str, sorted({*_extremes(arm)}))),
                excluded=len(arm.attempts) - len(counted),
                first=estimates.get(1),
                last=estimates.get(k),
            )
        )
    return rows


def diversity_note(report: ReportData) -> str:
    """What keeps the arms' diversities from being compared, in a sentence; empty for nothing."""
    arms = [arm for arm in report.arms if arm.attempts]
    apart = {
        "attempts a task": len({_extremes(arm) for arm in arms}) > 1,
        "the tasks they resolved": len({_solved(arm) for arm in arms}) > 1,
    }
    if not any(apart.values()):
        return ""
    named = " and in ".join(name for name, differ in apart.items() if differ)
    return (
        f"The arms differ in {named}, and more attempts or easier tasks alone raise these figures: "
        "they do not say which arm is more diverse."
    )


def _extremes(arm: Arm) -> tuple[int, ...]:
    """Fewest and most attempts that count on a task."""
    counts = Counter(a.instance_id for a in arm.attempts if not a.failure).values()
    return (min(counts), max(counts)) if counts else (0,)


def _solved(arm: Arm) -> frozenset[str]:
    return frozenset(a.instance_id for a in arm.attempts if a.resolved and not a.failure)


def last_k(report: ReportData) -> int:
    """The largest k that every arm with data has; 1 when none."""
    sets = [{e.k for e in arm.pass_at if e.tasks} for arm in report.arms]
    shared = set.intersection(*(s for s in sets if s)) if any(sets) else set()
    return max(shared, default=1)


def pass_curve(report: ReportData) -> Chart:
    """pass@k over k, a line and an interval band for each arm."""
    series = [
        Series(
            name=arm.name,
            points=tuple(
                Point(
                    x=e.k,
                    y=e.value,
                    low=e.low,
                    high=e.high,
                    label=f"pass@{e.k} {percent(e.value)} {interval(e.low, e.high)}".rstrip()
                    + f" over {e.tasks} tasks",
                )
                for e in arm.pass_at
            ),
        )
        for arm in report.arms
    ]
    ks = tuple(sorted({float(e.k) for arm in report.arms for e in arm.pass_at}))
    spread = [v for a in report.arms for e in a.pass_at for v in (e.value, e.high)]
    top = max((v for v in spread if math.isfinite(v)), default=1.0)
    high = min(1.0, max(0.1, math.ceil(top * 10 + 0.2) / 10))
    title = "pass@k"
    svg = line_chart(
        series,
        title=f"{title} with 95% intervals over tasks",
        x=Axis(label="k attempts", log=True, ticks=ks),
        y=Axis(label="tasks resolved", low=0.0, high=high, form=lambda v: percent(v, 0)),
    )
    named = enumerate(report.arms) if ks else ()
    legend = tuple((legend_mark(i), arm.name) for i, arm in named)
    return Chart(title=title, svg=svg, legend=legend)


def task_grid(report: ReportData) -> list[tuple[str, list[Cell]]]:
    """(instance id, a cell for each arm), the most often resolved tasks first."""
    tasks = dict.fromkeys(a.instance_id for arm in report.arms for a in arm.attempts)
    cells: dict[str, list[Cell]] = {task: [] for task in tasks}
    for arm in report.arms:
        groups: dict[str, list[Attempt]] = {task: [] for task in tasks}
        for attempt in arm.attempts:
            groups[attempt.instance_id].append(attempt)
        for task, attempts in groups.items():
            cells[task].append(_cell(task, arm, attempts))

    def ease(task: str) -> tuple[float, str]:
        n = sum(c.n for c in cells[task])
        return -sum(c.resolved for c in cells[task]) / n if n else 1.0, task

    return [(task, cells[task]) for task in sorted(tasks, key=ease)]


def outcome_table(report: ReportData) -> OutcomeTable:
    """How attempts ended, arm by arm; only the endings that happened."""
    counts = [Counter(a.outcome for a in arm.attempts) for arm in report.arms]
    happened = sorted({k for c in counts for k in c}, key=lambda k: (_rank(k), k))
    styles = {label: _outcome_style(label, happened) for label in happened}
    rows = []
    for arm, count in zip(report.arms, counts, strict=True):
        slices = [
            Slice(label=f"{label}: {count[label]}", amount=count[label], style=styles[label])
            for label in happened
        ]
        title = f"{arm.name}: " + ", ".join(s.label for s in slices if s.amount)
        bar = stacked_bar(slices, title=title)
        rows.append(OutcomeRow(arm=arm.name, bar=bar, counts=tuple(count[k] for k in happened)))
    return OutcomeTable(columns=tuple(styles.items()), rows=tuple(rows))


def stage_rows(report: ReportData) -> list[StageRow]:
    """Stages with a bar relative to the longest."""
    longest = max((s.seconds for s in report.stages), default=0.0)
    return [
        StageRow(
            name=stage.name,
            time=duration(stage.seconds),
            note=stage.note,
            bar=stacked_bar(
                [
                    Slice(label=duration(stage.seconds), amount=stage.seconds, style="time"),
                    Slice(label="", amount=longest - stage.seconds, style="rest"),
                ],
                title=f"{stage.name}: {duration(stage.seconds)}",
            ),
        )
        for stage in report.stages
    ]


def flat(config: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value)."""
    found: list[tuple[str, str]] = []
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found += flat(value, f"{name}.")
        else:
            found.append((name, str(value)))
    return found


def _before(value: str, first: ArmRow, last: ArmRow) -> str:
    return f"; {first.arm.name} {value}" if value and first is not last else ""


def _selected_card(chosen: Selected, row: ArmRow) -> Card:
    e = chosen.estimate
    hits = round(e.value * e.tasks) if e.tasks else 0
    return Card(
        label=f"Chosen by {chosen.selector}",
        value=f"{hits} of {e.tasks}",
        note=f"{row.arm.name}; one attempt submitted per task",
    )


def _cell(task: str, arm: Arm, attempts: list[Attempt]) -> Cell:
    counted = [a for a in attempts if not a.failure]
    return Cell(
        n=len(counted),
        resolved=sum(a.resolved for a in counted),
        excluded=len(attempts) - len(counted),
        chosen=_choice(task, arm, counted),
    )


def _choice(task: str, arm: Arm, attempts: list[Attempt]) -> bool | None:
    picked = arm.selected[0].chosen.get(task) if arm.selected else None
    return next((a.resolved for a in attempts if a.trajectory_id == picked), None)


def _rank(label: str) -> int:
    order = ("resolved", "submitted", "cut off", "infrastructure")
    return next(i for i, start in enumerate(order) if label.startswith(start))


def _outcome_style(label: str, happened: list[str]) -> str:
    if _rank(label) < 2:
        return ("good", "bad")[_rank(label)]
    kin = [k for k in happened if _rank(k) == _rank(label)]
    return f"{('cut', 'lost')[_rank(label) - 2]} v{kin.index(label) % 4}"
