"""SWE-agent's ``.traj`` files."""

from __future__ import annotations

from typing import Any

import msgspec

from swe_env.replay.imports.common import Conversation, Ending, agent, text_of, trajectory
from swe_env.replay.trajectory import Trajectory
from swe_env.types import Failure

_LIMITS = {"exit_cost": "cost", "exit_context": "tokens", "exit_total_execution_time": "time"}
_BROKEN = ("exit_environment_error", "exit_api", "exit_error")


class _Step(msgspec.Struct):
    action: str
    observation: str
    thought: str = ""
    response: str = ""


class _Info(msgspec.Struct):
    exit_status: str | None = None
    submission: str | None = None
    model_stats: dict[str, Any] = {}
    swe_agent_version: str | None = None


class SweAgent(msgspec.Struct):
    """The parts of a file that are read."""

    trajectory: list[_Step]
    history: list[dict[str, Any]] = []
    info: _Info = msgspec.field(default_factory=_Info)
    environment: str = ""
    replay_config: Any = None


def convert(data: SweAgent, *, instance_id: str, attempt: int, resolved: bool | None) -> Trajectory:
    """One file as a trajectory.

    Its commands are `bash` calls (SWE-agent's own tools are commands of its shell), the
    demonstration shown to the model is left out.
    """
    found = Conversation()
    for item in data.history:
        if item.get("role") == "assistant" and not item.get("is_demo"):
            break
        if item.get("role") in ("system", "user") and not item.get("is_demo"):
            found.said(item["role"], text_of(item.get("content")))
    for step in data.trajectory:
        command = step.action.strip("\n")
        if not command:
            found.acted(step.thought or step.response, [], step.observation)
        elif command.strip() == "submit":
            found.acted(step.thought, [("submit", {})], step.observation)
        else:
            found.acted(step.thought, [("bash", {"command": command})], step.observation)
    info = data.info
    return trajectory(
        instance_id=instance_id,
        attempt=attempt,
        agent=agent("swe-agent", info.swe_agent_version or "", _model(data.replay_config), {}),
        conversation=found,
        ending=_ending(info.exit_status or ""),
        patch=info.submission or "",
        resolved=resolved,
        source={
            "format": "swe-agent",
            "exit_status": info.exit_status,
            "model_stats": info.model_stats,
        },
    )


def _ending(status: str) -> Ending:
    if status == "submitted":
        return Ending(finished=True)
    if any(name in status for name in _BROKEN):
        return Ending(
            truncation="failure",
            failure=Failure(kind="imported", message=f"SWE-agent ended with {status}"),
        )
    limits = [truncation for name, truncation in _LIMITS.items() if name in status]
    return Ending(truncation=limits[0] if limits else status or "unknown")


def _model(config: Any) -> str:
    """The model's name in a replay config, which newer versions store as JSON text."""
    if isinstance(config, str):
        try:
            config = msgspec.json.decode(config)
        except msgspec.DecodeError:
            return ""
    for name in ("agent", "model", "name"):
        config = config.get(name) if isinstance(config, dict) else None
    return config if isinstance(config, str) else ""
