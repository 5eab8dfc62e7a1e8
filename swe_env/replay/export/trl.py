"""Rows for TRL's trainers: conversational preference, unpaired preference and SFT."""

from __future__ import annotations

from typing import Any

from swe_env.replay.export.conversation import first_state, messages, same_start, verdict
from swe_env.replay.trajectory import Trajectory


def trl_preference(chosen: Trajectory, rejected: Trajectory) -> dict[str, Any]:
    """A conversational preference row with an explicit prompt, for `DPOTrainer`.

    Raises:
        ConfigError: the two don't share their first state (system prompt, issue, tools), so their
            difference says nothing about the policy.
    """
    prompt = same_start(chosen, rejected)
    row = {
        "prompt": prompt,
        "chosen": messages(chosen)[len(prompt) :],
        "rejected": messages(rejected)[len(prompt) :],
    }
    return row | _tools(chosen)


def trl_kto(trajectory: Trajectory) -> dict[str, Any]:
    """A conversational unpaired row for `KTOTrainer`; its label is whether the task was resolved.

    Raises:
        ConfigError: the record has no verdict (never graded, or the machinery failed).
    """
    label = verdict(trajectory)
    prompt = first_state(trajectory)
    row = {
        "prompt": prompt,
        "completion": messages(trajectory)[len(prompt) :],
        "label": label,
    }
    return row | _tools(trajectory)


def trl_sft(trajectory: Trajectory) -> dict[str, Any]:
    """A conversational row for `SFTTrainer` (use its `assistant_only_loss`)."""
    return {"messages": messages(trajectory)} | _tools(trajectory)


def _tools(trajectory: Trajectory) -> dict[str, Any]:
    """The schemas, where calls stand apart from the text: a template that gets them shows them."""
    if any("tool_calls" in message for message in messages(trajectory)) and trajectory.tools:
        return {"tools": list(trajectory.tools)}
    return {}
