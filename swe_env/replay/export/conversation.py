"""A trajectory as chat messages: what the policy wrote as assistant, what it read as the others."""

from __future__ import annotations

from typing import Any

from swe_env.errors import ConfigError
from swe_env.replay.trajectory import Step, Trajectory
from swe_env.types import INVALID_TOOL

Message = dict[str, Any]
"""``{"role", "content"}``, with ``tool_calls`` where the call is not part of the text."""

APART = "apart"
"""Value of ``agent.settings["calls"]`` in records that name a text format for their calls and
whose messages don't hold them."""


def messages(trajectory: Trajectory) -> list[Message]:
    """The conversation, up to the last thing the assistant said.

    A policy that writes its calls in a text format (``agent.settings["format"]`` names it) has them
    in the message already, and its observations are user messages. All other calls stand apart from
    the message: they become ``tool_calls`` and the observation a ``tool`` message. A reply in which
    no call could be read is text that a user answers.
    """
    found: list[Message] = []
    for step in trajectory.steps:
        apart = step.source == "agent" and _calls_apart(trajectory, step)
        found.append(_said(step, apart))
        if step.observation is not None:
            role = "tool" if apart else "user"
            found.append({"role": role, "content": step.observation.content})
    if trajectory.agent_steps:
        # Nobody answers the last observation, and training data ends with the assistant.
        while found[-1]["role"] != "assistant":
            found.pop()
    return found


def first_state(trajectory: Trajectory) -> list[Message]:
    """What stands before the first action: system prompt and issue."""
    found: list[Message] = []
    for step in trajectory.steps:
        if step.source == "agent":
            break
        found.append({"role": step.source, "content": step.message})
    return found


def verdict(trajectory: Trajectory) -> bool:
    """Whether the task was resolved.

    Raises:
        ConfigError: the record has no verdict (never graded, or the machinery failed).
    """
    if trajectory.failure is not None or trajectory.report is None:
        raise ConfigError(
            f"Attempt {trajectory.attempt} at {trajectory.instance_id} has no verdict: "
            "leave it out."
        )
    return trajectory.resolved


def same_start(chosen: Trajectory, rejected: Trajectory) -> list[Message]:
    """The first state that both share.

    Raises:
        ConfigError: they don't share it (system prompt, issue, tools), so their difference says
            nothing about the policy.
    """
    prompt = first_state(chosen)
    if prompt != first_state(rejected) or chosen.tools != rejected.tools:
        raise ConfigError(
            f"{chosen.instance_id} and {rejected.instance_id} don't start from the same state "
            "(system prompt, issue, tools): they cannot be a preference pair."
        )
    return prompt


def _calls_apart(trajectory: Trajectory, step: Step) -> bool:
    if not step.tool_calls or step.tool_calls[0].function_name == INVALID_TOOL:
        return False
    settings = trajectory.agent.settings
    in_text = settings.get("calls") != APART and settings.get("format", "tools") != "tools"
    return not (in_text and step.message)


def _said(step: Step, apart: bool) -> Message:
    said: Message = {
        "role": "assistant" if step.source == "agent" else step.source,
        "content": step.message,
    }
    if apart:
        said["tool_calls"] = [
            {
                "type": "function",
                "function": {"name": call.function_name, "arguments": call.arguments},
            }
            for call in step.tool_calls
        ]
    return said
