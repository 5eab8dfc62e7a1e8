"""Trajectories in other tools' forms: SWE-bench predictions, ATIF, TRL preference and KTO rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from swe_env.errors import ConfigError
from swe_env.replay.trajectory import Metrics, Step, Trajectory

Message = dict[str, Any]
"""``{"role", "content"}``, a chat message as TRL reads it."""
ATIF = "ATIF-v1.4"


def preds(trajectories: Iterable[Trajectory]) -> Iterator[dict[str, str]]:
    """SWE-bench predictions, one row a trajectory; write them as ``preds.jsonl``.

    Raises:
        ConfigError: a task comes twice (the harness keeps one prediction a task): select first.
    """
    seen: set[str] = set()
    for trajectory in trajectories:
        if trajectory.instance_id in seen:
            raise ConfigError(
                f"{trajectory.instance_id} has several trajectories, SWE-bench takes one "
                "prediction a task: choose one attempt of each task first."
            )
        seen.add(trajectory.instance_id)
        agent = trajectory.agent
        yield {
            "instance_id": trajectory.instance_id,
            "model_name_or_path": "+".join(p for p in (agent.model_name, agent.adapter) if p)
            or agent.name,
            "model_patch": trajectory.patch,
        }


def messages(trajectory: Trajectory) -> list[Message]:
    """The conversation: what the policy wrote as assistant, what it read as system and user."""
    found: list[Message] = []
    for step in trajectory.steps:
        role = "assistant" if step.source == "agent" else step.source
        found.append({"role": role, "content": step.message})
        if step.observation is not None:
            found.append({"role": "user", "content": step.observation.content})
    if trajectory.steps and trajectory.steps[-1].source == "agent" and len(found) > 1:
        # Nobody answers the last observation, and training data ends with the assistant.
        while found[-1]["role"] != "assistant":
            found.pop()
    return found


def first_state(trajectory: Trajectory) -> list[Message]:
    """What stands before the first action: system prompt and issue."""
    shown = [step for step in trajectory.steps if step.source != "agent"]
    return [{"role": step.source, "content": step.message} for step in shown]


def trl_preference(chosen: Trajectory, rejected: Trajectory) -> dict[str, list[Message]]:
    """A conversational preference row with an explicit prompt.

    Raises:
        ConfigError: the two don't share their first state (system prompt, issue, tools), so their
            difference says nothing about the policy.
    """
    prompt = first_state(chosen)
    if prompt != first_state(rejected) or chosen.tools != rejected.tools:
        raise ConfigError(
            f"{chosen.instance_id} and {rejected.instance_id} don't start from the same state "
            "(system prompt, issue, tools): they cannot be a preference pair."
        )
    return {
        "prompt": prompt,
        "chosen": messages(chosen)[len(prompt) :],
        "rejected": messages(rejected)[len(prompt) :],
    }


def trl_kto(trajectory: Trajectory) -> dict[str, Any]:
    """A conversational unpaired row; its label is whether the task was resolved.

    Raises:
        ConfigError: the record has no verdict (the machinery failed).
    """
    if trajectory.failure is not None or trajectory.report is None:
        raise ConfigError(
            f"Attempt {trajectory.attempt} at {trajectory.instance_id} has no verdict: "
            "leave it out."
        )
    prompt = first_state(trajectory)
    return {
        "prompt": prompt,
        "completion": messages(trajectory)[len(prompt) :],
        "label": trajectory.resolved,
    }


def atif(trajectory: Trajectory) -> dict[str, Any]:
    """The trajectory as an ATIF document (Harbor's Agent Trajectory Interchange Format).

    What ATIF has no field for (reward, report, patch, …) goes to ``extra``.
    """
    agent = trajectory.agent
    # Prompts are stored as increments; a document that stands alone carries them whole.
    prompts: Mapping[int, Sequence[int]] = {
        step.step_id: prompt for step, prompt in trajectory.prompt_ids()
    }
    kept = ("instance_id", "attempt", "seed", "reward", "resolved", "finished", "truncation")
    rest = ("failure", "patch", "report", "tools", "provenance")
    data = trajectory.to_dict()
    return {
        "schema_version": ATIF,
        "session_id": trajectory.trajectory_id,
        "agent": {
            "name": agent.name,
            "version": agent.version or "unknown",
            "model_name": agent.model_name or None,
            "extra": {"adapter": agent.adapter, "settings": agent.settings},
        },
        "steps": [_atif_step(step, prompts.get(step.step_id, ())) for step in trajectory.steps],
        "extra": {name: data[name] for name in (*kept, *rest)},
    }


def _atif_step(step: Step, prompt: Sequence[int]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "step_id": step.step_id,
        "source": step.source,
        "message": step.message,
    }
    if step.tool_calls:
        found["tool_calls"] = [
            {
                "tool_call_id": call.tool_call_id or f"call_{step.step_id}",
                "function_name": call.function_name,
                "arguments": call.arguments,
            }
            for call in step.tool_calls
        ]
    if step.observation is not None:
        result: dict[str, Any] = {"content": step.observation.content}
        if step.tool_calls:
            result["source_call_id"] = found["tool_calls"][0]["tool_call_id"]
        found["observation"] = {"results": [result]}
    if step.metrics is not None:
        found["metrics"] = _atif_metrics(step.metrics, prompt)
    return found


def _atif_metrics(metrics: Metrics, prompt: Sequence[int]) -> dict[str, Any]:
    return {
        "prompt_tokens": len(prompt),
        "completion_tokens": len(metrics.completion_token_ids),
        "prompt_token_ids": list(prompt),
        "completion_token_ids": list(metrics.completion_token_ids),
        "logprobs": list(metrics.logprobs),
    }
