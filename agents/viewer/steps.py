"""A trajectory as its page shows it: steps in words, coloured diffs, the verdict's tests."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from agents.viewer.text import clip, sampled, surprisal
from swe_env.replay.trajectory import Step, Trajectory
from swe_env.types import Outcome

OPEN_UP_TO = 6
"""Trajectories with at most this many steps are shown unfolded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a diff with its class: ``add``, ``del``, ``hunk``, ``file`` or empty."""

    text: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A tool call: short arguments in a line, long or many-lined ones as blocks."""

    name: str
    inline: str
    blocks: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownStep:
    """One step ready to be drawn."""

    number: int
    source: str
    headline: str
    message: str
    calls: tuple[Call, ...]
    observation: str | None
    diff: tuple[Line, ...]
    """The observation as a diff when it is one, else empty."""
    exit_code: int
    metrics: str


def shown_steps(trajectory: Trajectory) -> list[ShownStep]:
    """Every step of a trajectory."""
    return [_step(step) for step in trajectory.steps]


def diff_lines(text: str) -> tuple[Line, ...]:
    """A unified diff line by line with what each line is."""
    return tuple(_classified(text))


def verdict_rows(trajectory: Trajectory) -> list[tuple[str, str, str, bool]]:
    """(list, test id, outcome, passed) of the hidden tests, those that did not pass first."""
    if trajectory.report is None:
        return []
    rows = [
        (name, test, outcome, outcome in (Outcome.PASSED, Outcome.XFAIL))
        for name, tests in (
            ("FAIL_TO_PASS", trajectory.report.fail_to_pass),
            ("PASS_TO_PASS", trajectory.report.pass_to_pass),
        )
        for test, outcome in tests.items()
    ]
    return sorted(rows, key=lambda row: (row[3], row[0] != "FAIL_TO_PASS"))


def state(trajectory: Trajectory) -> tuple[str, str]:
    """(what became of it, class of the style sheet)."""
    if trajectory.failure is not None:
        return f"infrastructure failure: {trajectory.failure.kind}", "lost"
    if trajectory.resolved:
        return "resolved", "good"
    if trajectory.finished:
        return "submitted, not resolved", "bad"
    return f"cut off: {trajectory.truncation or 'unknown'}", "cut"


def _step(step: Step) -> ShownStep:
    calls = tuple(
        _call(call.function_name, {str(k): v for k, v in call.arguments.items()})
        for call in step.tool_calls
    )
    content = None if step.observation is None else step.observation.content
    tokens, nats = sampled(step), surprisal(step)
    metrics = [f"{tokens:,} tokens"] if tokens else []
    metrics += [] if math.isnan(nats) else [f"{nats:.2f} nats/token"]
    return ShownStep(
        number=step.step_id,
        source=step.source,
        headline=_headline(step, calls),
        message=clip(step.message),
        calls=calls,
        observation=None if content is None else clip(content),
        diff=diff_lines(clip(content)) if content and _is_diff(content) else (),
        exit_code=0 if step.observation is None else step.observation.exit_code,
        metrics=" · ".join(metrics),
    )


def _headline(step: Step, calls: tuple[Call, ...]) -> str:
    if calls:
        return " ".join(part for part in (calls[0].name, clip(calls[0].inline, 120)) if part)
    first = next((line for line in step.message.splitlines() if line.strip()), "")
    return clip(first.strip(), 120)


def _call(name: str, arguments: dict[str, object]) -> Call:
    inline, blocks = [], []
    for key, value in arguments.items():
        plain = isinstance(value, str)
        text = str(value) if plain else msgspec.json.encode(value).decode()
        if "\n" in text or len(text) > 80:
            blocks.append((key, clip(text)))
        else:
            inline.append(f"{key}={text}")
    return Call(name=name, inline="  ".join(inline), blocks=tuple(blocks))


def _is_diff(text: str) -> bool:
    lines = text.splitlines()
    return any(line.startswith("@@ -") for line in lines) and any(
        line.startswith(("--- ", "diff --git ")) for line in lines
    )


def _classified(text: str) -> Iterator[Line]:
    in_hunk = False
    for line in text.splitlines():
        if line.startswith("@@"):
            in_hunk = True
            yield Line(text=line, kind="hunk")
        elif line.startswith(("diff --git ", "index ")) or (
            not in_hunk and line.startswith(("--- ", "+++ ", "new file", "deleted file"))
        ):
            in_hunk = in_hunk and not line.startswith("diff --git ")
            yield Line(text=line, kind="file")
        elif in_hunk and line[:1] in ("+", "-"):
            yield Line(text=line, kind="add" if line[0] == "+" else "del")
        else:
            yield Line(text=line, kind="")
