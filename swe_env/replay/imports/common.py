"""What the three importers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from swe_env.replay.export.conversation import APART
from swe_env.replay.trajectory import Agent, Step, StepObservation, ToolCall, Trajectory
from swe_env.types import Failure, TestReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an episode ended."""

    finished: bool = False
    truncation: str = ""
    failure: Failure | None = None


class Conversation:
    """Steps put together message by message."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def said(self, source: str, text: str) -> None:
        """A system or user message."""
        kind: Any = source
        self.steps.append(Step(step_id=len(self.steps) + 1, source=kind, message=text))

    def acted(
        self,
        thought: str,
        calls: list[tuple[str, dict[str, Any]]],
        observation: str | None,
        exit_code: int = 0,
    ) -> None:
        """A reply, the calls in it, and what they gave."""
        number = len(self.steps) + 1
        seen = None
        if observation is not None:
            seen = StepObservation(content=observation, exit_code=exit_code)
        made = tuple(
            ToolCall(function_name=name, arguments=arguments, tool_call_id=f"call_{number}_{k}")
            for k, (name, arguments) in enumerate(calls)
        )
        self.steps.append(
            Step(step_id=number, source="agent", message=thought, tool_calls=made, observation=seen)
        )


def trajectory(
    *,
    instance_id: str,
    attempt: int,
    agent: Agent,
    conversation: Conversation,
    ending: Ending,
    patch: str,
    resolved: bool | None,
    source: dict[str, Any],
) -> Trajectory:
    """The record; `resolved` is None where nobody graded it."""
    report = None
    if resolved is not None and ending.failure is None:
        report = TestReport(
            resolved=resolved, fraction=float(resolved), fail_to_pass={}, pass_to_pass={}
        )
    return Trajectory(
        instance_id=instance_id,
        agent=agent,
        steps=tuple(conversation.steps),
        attempt=attempt,
        seed=-1,
        reward=float(bool(report and report.resolved)),
        resolved=bool(report and report.resolved),
        finished=ending.finished,
        truncation=ending.truncation,
        failure=ending.failure,
        patch=patch.strip("\r\n") + "\n" if patch.strip() else "",
        report=report,
        provenance={"imported": source},
    )


def agent(name: str, version: str, model: str, settings: dict[str, Any]) -> Agent:
    """Who acted; calls stand apart from the text in every imported record."""
    return Agent(
        name=name, version=version, model_name=model, settings={**settings, "calls": APART}
    )


def text_of(content: Any) -> str:
    """A chat message's text: a string, or the text parts of a list."""
    if isinstance(content, list):
        parts = [part.get("text", "") for part in content if isinstance(part, dict)]
        return "\n".join(part for part in parts if part)
    return "" if content is None else str(content)
