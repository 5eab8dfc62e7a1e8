"""Trajectories made by hand for the tests of selection and viewer."""

from __future__ import annotations

from typing import Any

from swe_env.replay.trajectory import Agent, Step, StepObservation, ToolCall, Trajectory
from swe_env.types import Failure


def diff(old: str, new: str, *, line: int = 10, path: str = "pkg/mod.py") -> str:
    """A one-block diff of `path`: the lines of `old` at `line` become those of `new`."""
    before, after = old.splitlines(), new.splitlines()
    body = [f"-{text}" for text in before] + [f"+{text}" for text in after]
    return "\n".join(
        [
            f"diff --git a/{path} b/{path}",
            f"--- a/{path}",
            f"+++ b/{path}",
            f"@@ -{line - 1},{len(before) + 2} +{line - 1},{len(after) + 2} @@",
            " first = 1",
            *body,
            " last = 1",
            "",
        ]
    )


def call(step_id: int, tool: str, exit_code: int = 0, **arguments: Any) -> Step:
    content = f"{tool} answered"
    if tool == "run_tests":
        content = "1 failed, 2 passed" if exit_code else "3 passed"
    return Step(
        step_id=step_id,
        source="agent",
        message=f"I call {tool}.",
        tool_calls=(ToolCall(function_name=tool, arguments=arguments),),
        observation=StepObservation(content=content, exit_code=exit_code),
    )


def attempt(
    number: int = 0,
    *,
    task: str = "pkg__1",
    steps: int = 3,
    resolved: bool = False,
    finished: bool = True,
    failed: bool = False,
    patch: str = "",
) -> Trajectory:
    issue = Step(step_id=1, source="user", message="It returns the wrong value.")
    turns = tuple(call(i + 2, "view", path=f"f{i}.py") for i in range(steps))
    return Trajectory(
        instance_id=task,
        agent=Agent(name="scripted"),
        steps=(issue, *turns),
        attempt=number,
        resolved=resolved,
        finished=finished,
        truncation="" if finished else "steps",
        failure=Failure(kind="sandbox", message="lost") if failed else None,
        patch=patch,
    )


def run_of(*calls: tuple[str, int, dict[str, Any]]) -> Trajectory:
    """A finished trajectory whose agent made these (tool, exit code, arguments) calls."""
    steps = tuple(
        call(i + 1, tool, code, **arguments) for i, (tool, code, arguments) in enumerate(calls)
    )
    agent = Agent(name="scripted")
    return Trajectory(instance_id="pkg__1", agent=agent, steps=steps, finished=True)
