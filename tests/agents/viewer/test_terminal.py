from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from agents.viewer import print_list, print_trajectory
from swe_env.replay.trajectory import Metrics, Step, StepObservation
from swe_env.types import TestReport
from tests.agents.made import attempt, diff


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=120, soft_wrap=True, highlight=False)


def test_steps_calls_patch_and_verdict(console):
    verdict = TestReport(
        resolved=False,
        fraction=0.5,
        fail_to_pass={"t.py::test_a": "failed"},
        pass_to_pass={"t.py::test_b": "passed"},
    )
    one = replace(attempt(1, steps=2, patch=diff("return a", "return b")), report=verdict)
    metrics = Metrics(completion_token_ids=(1, 2, 3), logprobs=(-0.5, -0.25, -0.75))
    steps = tuple(replace(s, metrics=metrics) if s.source == "agent" else s for s in one.steps)
    print_trajectory(replace(one, steps=steps), console)
    shown = console.file.getvalue()
    for words in (
        "pkg__1  attempt 1",
        "submitted, not resolved",
        "It returns the wrong value.",
        "→ view path=f0.py",
        "view answered",
        "3 tokens · 0.50 nats/token",
        "+return b",
        "1 of 2 hidden tests pass.",
        "failed   FAIL_TO_PASS  t.py::test_a",
    ):
        assert words in shown, words


def test_escape_sequences_and_markup_have_no_effect(console):
    evil = "\x1b]0;owned\x07\x9b2J [bold red]x[/] \u202e"
    step = Step(step_id=1, source="agent", message=evil, observation=StepObservation(content=evil))
    print_trajectory(replace(attempt(0, task=evil), steps=(step,)), console)
    print_list([attempt(0, task=evil), attempt(1, task=evil)], console)
    shown = console.file.getvalue()
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(shown)
    assert "[bold red]x[/]" in shown


def test_long_output_is_shortened_unless_asked_for(console):
    step = Step(step_id=1, source="agent", observation=StepObservation(content="x" * 9_000))
    one = replace(attempt(0), steps=(step,))
    print_trajectory(one, console)
    assert "7000 characters left out" in console.file.getvalue()
    print_trajectory(one, console, max_chars=0)
    assert "x" * 9_000 in console.file.getvalue()


def test_a_list_tells_endings_apart(console):
    print_list(
        [attempt(0, resolved=True), attempt(1, finished=False), attempt(2, failed=True)], console
    )
    shown = console.file.getvalue()
    assert attempt(0, resolved=True).trajectory_id[:12] in shown
    assert "cut off: steps" in shown
    assert "infrastructure: sandbox" in shown
    assert "1 of 2 resolved (1 more lost to infrastructure)" in shown


def test_an_empty_list(console):
    print_list([], console)
    assert console.file.getvalue() == "0 of 0 resolved\n"
