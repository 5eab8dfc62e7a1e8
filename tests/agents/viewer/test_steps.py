from __future__ import annotations

from dataclasses import replace

from agents.viewer.steps import diff_lines, shown_steps, state, verdict_rows
from swe_env.replay.trajectory import Step, StepObservation, ToolCall
from swe_env.types import TestReport
from tests.agents.made import attempt, diff


def test_a_removed_line_that_looks_like_a_header_is_still_removed():
    patch = diff("-- a comment", "++ b", path="q.sql") + diff("x", "y")
    kinds = [(line.kind, line.text) for line in diff_lines(patch)]
    assert ("del", "--- a comment") in kinds
    assert ("add", "+++ b") in kinds
    assert ("file", "--- a/q.sql") in kinds
    assert ("file", "+++ b/pkg/mod.py") in kinds


def test_long_arguments_become_blocks():
    call = ToolCall(function_name="edit", arguments={"path": "m.py", "new": "a\nb", "n": [1, 2]})
    step = Step(step_id=1, source="agent", tool_calls=(call,))
    (shown,) = shown_steps(replace(attempt(0), steps=(step,)))
    assert shown.headline == "edit path=m.py  n=[1,2]"
    assert shown.calls[0].blocks == (("new", "a\nb"),)
    assert shown.observation is None


def test_only_a_diff_is_coloured_as_one():
    def seen(content: str):
        step = Step(step_id=1, source="agent", observation=StepObservation(content=content))
        return shown_steps(replace(attempt(0), steps=(step,)))[0]

    assert seen(diff("a", "b")).diff
    assert not seen("- a list\n- of things").diff
    assert seen("").observation == ""


def test_failed_tests_come_first():
    verdict = TestReport(
        resolved=False,
        fraction=0.0,
        fail_to_pass={"a": "passed", "b": "missing"},
        pass_to_pass={"c": "failed", "d": "xfailed"},
    )
    rows = verdict_rows(replace(attempt(0), report=verdict))
    assert [(row[1], row[3]) for row in rows] == [
        ("b", False),
        ("c", False),
        ("a", True),
        ("d", True),
    ]


def test_states():
    assert state(attempt(0, resolved=True)) == ("resolved", "good")
    assert state(attempt(0)) == ("submitted, not resolved", "bad")
    assert state(attempt(0, finished=False)) == ("cut off: steps", "cut")
    assert state(attempt(0, resolved=True, failed=True))[1] == "lost"
