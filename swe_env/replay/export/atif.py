"""ATIF, Harbor's Agent Trajectory Interchange Format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from swe_env.replay.trajectory import Metrics, Step, Trajectory

ATIF = "ATIF-v1.7"


def atif(trajectory: Trajectory) -> dict[str, Any]:
    """The trajectory as an ATIF document.

    What ATIF has no field for (reward, report, patch, …) goes to ``extra``.
    """
    agent = trajectory.agent
    # Prompts are stored as increments; a document that stands alone carries them whole.
    prompts: Mapping[int, Sequence[int]] = {
        step.step_id: prompt for step, prompt in trajectory.prompt_ids()
    }
    kept = ("instance_id", "attempt", "seed", "reward", "resolved", "finished", "truncation")
    rest = ("failure", "patch", "report", "provenance", "branch")
    data = trajectory.to_dict()
    return {
        "schema_version": ATIF,
        "session_id": trajectory.trajectory_id,
        "trajectory_id": trajectory.trajectory_id,
        "agent": {
            "name": agent.name,
            "version": agent.version or "unknown",
            "model_name": agent.model_name or None,
            "tool_definitions": data["tools"] or None,
            "extra": {"adapter": agent.adapter, "settings": agent.settings},
        },
        "steps": [_atif_step(step, prompts.get(step.step_id, ())) for step in trajectory.steps],
        "final_metrics": {
            "total_completion_tokens": sum(
                len(step.metrics.completion_token_ids)
                for step in trajectory.agent_steps
                if step.metrics
            ),
            "total_steps": len(trajectory.steps),
        },
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
                "tool_call_id": call.tool_call_id or f"call_{step.step_id}_{number}",
                "function_name": call.function_name,
                "arguments": call.arguments,
            }
            for number, call in enumerate(step.tool_calls)
        ]
    if step.observation is not None:
        result: dict[str, Any] = {
            "content": step.observation.content,
            "extra": {"exit_code": step.observation.exit_code},
        }
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
