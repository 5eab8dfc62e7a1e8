"""Trajectories in the terminal; an agent's escape sequences and markup have no effect."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from agents.viewer.build import attempt_of
from agents.viewer.steps import ShownStep, diff_lines, shown_steps, state, verdict_rows
from agents.viewer.text import clip, visible
from swe_env.replay.trajectory import Trajectory

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

TERMINAL_CHARS = 2_000
_STYLES = {"good": "green", "bad": "red", "cut": "yellow", "lost": "bright_black"}
_LINES = {"add": "green", "del": "red", "hunk": "cyan", "file": "bold"}


def print_trajectory(
    trajectory: Trajectory, console: Console | None = None, *, max_chars: int = TERMINAL_CHARS
) -> None:
    """Print one trajectory step by step: message, call, observation, tokens, then the verdict.

    Args:
        trajectory: What to print.
        console: Where to; standard output by default.
        max_chars: Longest text shown whole, in characters; 0 for no limit.
    """
    console = console or _console()
    limit = max_chars or 10**9
    label, style = state(trajectory)
    agent = trajectory.agent
    who = f"{agent.name} {agent.model_name}".strip()
    console.print(_text(f"{trajectory.instance_id}  attempt {trajectory.attempt}", "bold"))
    console.print(_text(label, _STYLES[style]), _text(f"  {who}", "dim"), sep="")
    if trajectory.failure is not None:
        console.print(_text(trajectory.failure.message, "red"))
    for step in shown_steps(trajectory):
        _print_step(step, console, limit)
    console.print(_rule("patch"))
    for line in diff_lines(clip(trajectory.patch, limit)):
        console.print(_text(line.text, _LINES.get(line.kind, "")))
    if not trajectory.patch.strip():
        console.print(_text("The agent changed nothing.", "dim"))
    console.print(_rule("verdict"))
    _print_verdict(trajectory, console)


def print_list(trajectories: Iterable[Trajectory], console: Console | None = None) -> None:
    """Print a table of trajectories, one a line, and how many there are of each ending."""
    from rich.table import Table

    console = console or _console()
    table = Table(box=None, pad_edge=False)
    for name in ("id", "task", "attempt", "agent"):
        table.add_column(name, overflow="fold" if name == "task" else "ellipsis")
    for name in ("steps", "tokens", "nats/token"):
        table.add_column(name, justify="right")
    table.add_column("outcome")
    total = resolved = lost = 0
    for trajectory in trajectories:
        row = attempt_of(trajectory)
        total, resolved, lost = total + 1, resolved + row.resolved, lost + bool(row.failure)
        table.add_row(
            row.trajectory_id[:12],
            _text(row.instance_id),
            str(row.attempt),
            _text(trajectory.agent.name),
            str(row.steps),
            f"{row.tokens:,}" if row.tokens else "–",
            "–" if math.isnan(row.surprisal) else f"{row.surprisal:.2f}",
            _text(row.outcome, _STYLES[state(trajectory)[1]]),
        )
    if total:
        console.print(table)
    counted = total - lost
    lost_note = f" ({lost} more lost to infrastructure)" if lost else ""
    console.print(_text(f"{resolved} of {counted} resolved{lost_note}", "bold"))


def _print_step(step: ShownStep, console: Console, limit: int) -> None:
    console.print(_rule(" · ".join(filter(None, (f"{step.number} {step.source}", step.metrics)))))
    if step.message:
        console.print(_text(clip(step.message, limit)))
    for call in step.calls:
        console.print(
            _text("→ ", "dim"), _text(call.name, "bold cyan"), _text(" " + call.inline), sep=""
        )
        for key, value in call.blocks:
            console.print(_text(f"  {key}:", "dim"))
            console.print(_text(clip(value, limit), "cyan"))
    if step.observation is None:
        return
    style = "red" if step.exit_code else "dim"
    console.print(_text(f"← exit {step.exit_code}", style))
    if step.diff:
        for line in step.diff:
            console.print(_text(line.text, _LINES.get(line.kind, "")))
    elif step.observation:
        console.print(_text(clip(step.observation, limit), "" if step.exit_code else "dim"))


def _print_verdict(trajectory: Trajectory, console: Console) -> None:
    if trajectory.report is None:
        console.print(_text("Not graded.", "dim"))
        return
    rows = verdict_rows(trajectory)
    passed = sum(row[3] for row in rows)
    console.print(_text(f"{passed} of {len(rows)} hidden tests pass."))
    for name, test, outcome, ok in rows:
        if not ok:
            console.print(_text(f"  {outcome:8} {name}  {test}", "red"))
    for line in (*trajectory.report.tampering, trajectory.report.error):
        if line:
            console.print(_text(line, "red"))


def _console() -> Console:
    from rich.console import Console

    return Console(soft_wrap=True, highlight=False)


def _text(content: str, style: str = "") -> Text:
    """Text without markup, with control characters made visible."""
    from rich.text import Text

    return Text(visible(content), style=style)


def _rule(title: str) -> Text:
    return _text(f"── {title} " + "─" * max(3, 70 - len(title)), "bright_black")
