"""R2E-Gym's trajectories: JSONL, one a line."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from swe_env.replay.imports.common import Conversation, Ending, agent, trajectory
from swe_env.replay.trajectory import Trajectory

_NAME = re.compile(r"<function\s*=\s*([^>]+)>")
_PARAMETER = re.compile(r"<parameter\s*=\s*([^>]+)>(.*?)</parameter>", re.DOTALL)
_EXIT_CODE = re.compile(r"^Exit code: (-?\d+)", re.MULTILINE)
_LIMITS = {
    "max_step_limit": "steps",
    "agent_max_step_limit": "steps",
    "abs_step_limit": "steps",
    "token_limit": "tokens",
    "traj_time_limit": "time",
}


class _Step(msgspec.Struct):
    thought: str
    action: str
    observation: str


class R2E(msgspec.Struct):
    """The parts of a line that are read."""

    trajectory_steps: list[_Step]
    problem_statement: str
    docker_image: str
    exit_reason: str
    output_patch: str
    reward: float | None = None
    ds: dict[str, Any] | None = None
    agent_args: dict[str, Any] = {}
    exp_name: str | None = None


def convert(data: R2E, *, instance_id: str, attempt: int, resolved: bool | None) -> Trajectory:
    """One line as a trajectory; its own reward is the verdict unless another is given."""
    found = Conversation()
    system = data.agent_args.get("system_prompt")
    if isinstance(system, str) and system:
        found.said("system", system)
    template = data.agent_args.get("instance_prompt")
    shown = data.problem_statement
    if isinstance(template, str) and "{problem_statement}" in template:
        shown = template.replace("{problem_statement}", shown)
    found.said("user", shown)
    for step in data.trajectory_steps:
        name = _NAME.search(step.action)
        given = {key.strip(): value.strip() for key, value in _PARAMETER.findall(step.action)}
        calls: list[tuple[str, dict[str, Any]]] = [(name.group(1).strip(), given)] if name else []
        code = _EXIT_CODE.search(step.observation)
        found.acted(step.thought, calls, step.observation, int(code.group(1)) if code else 0)
    if resolved is None and data.reward is not None:
        resolved = data.reward == 1
    model = data.agent_args.get("llm_name")
    finished = data.exit_reason == "agent"
    limit = "" if finished else _LIMITS.get(data.exit_reason, data.exit_reason or "unknown")
    return trajectory(
        instance_id=instance_id,
        attempt=attempt,
        agent=agent("r2e-gym", "", model if isinstance(model, str) else "", {"format": "r2e"}),
        conversation=found,
        ending=Ending(finished=finished, truncation=limit),
        patch=data.output_patch,
        resolved=resolved,
        source={
            "format": "r2e",
            "exit_status": data.exit_reason,
            "docker_image": data.docker_image,
            "exp_name": data.exp_name,
        },
    )


def instance_of(data: R2E) -> str:
    """The task's id: the data set's where it has one, else the image's name."""
    given = (data.ds or {}).get("instance_id")
    return given if isinstance(given, str) and given else data.docker_image.rpartition("/")[2]
