"""`replay` and `regrade`: do again what a trajectory recorded, and say what came out otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym

from swe_env.cache import digest
from swe_env.errors import ConfigError
from swe_env.grading import grade
from swe_env.replay.trajectory import Step, Trajectory
from swe_env.sandbox.base import Limits
from swe_env.types import Action, Observation, Task, TestReport

_SETTINGS = (
    *("tools", "reward", "max_episode_steps", "command_timeout", "grade_timeout"),
    *("output_limit", "network", "limits"),
)
"""Settings of a recorded environment that decide what its observations say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that came out otherwise the second time."""

    step: int
    """The step's `step_id`; 0 for what belongs to the whole episode."""
    what: str
    """``observation``, ``exit_code``, ``patch``, ``resolved`` or ``failure``."""
    recorded: str
    now: str


def replay(
    trajectory: Trajectory, task: Task, *, sandbox: str | None = None
) -> tuple[Difference, ...]:
    """Take a trajectory's actions again, in an environment with the recorded settings.

    Args:
        trajectory: what was recorded.
        task: the task it was recorded on.
        sandbox: where to run; None for the kind that was used then.

    Returns:
        What differs, in order; empty when the record was reproduced to the byte.

    Raises:
        ConfigError: the record does not say with which settings it was made, or `task` is another.
        InfrastructureError: the environment could not be started.
    """
    import swe_env  # noqa: F401 - registers SWE-v0

    settings = recorded_settings(trajectory, task)
    settings["sandbox"] = sandbox or settings["sandbox"]
    env = gym.make("SWE-v0", tasks=[task], disable_env_checker=True, **settings)
    try:
        return tuple(_differences(trajectory, env))
    finally:
        env.close()


def regrade(trajectory: Trajectory, task: Task, *, sandbox: str | None = None) -> Trajectory:
    """The same record with its patch graded anew; a record without a verdict comes back as it is.

    Raises:
        ConfigError: see `replay`.
        InfrastructureError: the tests could not be run, or the recorded patch does not fit.
    """
    if trajectory.report is None:
        return trajectory
    settings = recorded_settings(trajectory, task)
    report = grade(
        task,
        trajectory.patch,
        sandbox=sandbox or settings["sandbox"],
        timeout=settings["grade_timeout"],
        limits=Limits(**settings["limits"]),
        from_diff=True,
    )
    return replace(
        trajectory,
        report=report,
        resolved=report.resolved,
        reward=_reward(settings["reward"], report),
    )


def _reward(name: str, report: TestReport) -> float:
    from swe_env.env import rewards

    return rewards.get(name)(report)


def recorded_settings(trajectory: Trajectory, task: Task) -> dict[str, Any]:
    """The arguments with which the environment of a record is made again.

    Raises:
        ConfigError: the record does not say them all, or it is of another task.
    """
    recorded: Mapping[str, Any] = trajectory.provenance.get("env", {})
    if missing := [name for name in _SETTINGS if name not in recorded]:
        raise ConfigError(
            f"The record {trajectory.trajectory_id[:12]} does not say its environment's "
            f"{', '.join(missing)}: only what `swe run` or RecordTrajectory wrote can be done anew."
        )
    known = trajectory.provenance.get("task")
    if task.instance_id != trajectory.instance_id or (known and known != digest(task)):
        raise ConfigError(
            f"The task {task.instance_id} is not the one that {trajectory.trajectory_id[:12]} was "
            "recorded on: give the task source of that run."
        )
    used = recorded.get("sandbox_used") or recorded.get("sandbox", "auto")
    return {name: recorded[name] for name in _SETTINGS} | {"sandbox": used}


def _differences(trajectory: Trajectory, env: gym.Env[Observation, Action]) -> list[Difference]:
    found: list[Difference] = []
    reset(env, trajectory)
    over, info = False, dict[str, Any]()
    for taken in take(env, trajectory.agent_steps):
        over, info = taken.over, taken.info
        found += taken.differences
    if not over:
        base: Any = env.unwrapped
        _, info = base.finish(trajectory.truncation)
    failure = info.get("failure")
    was = trajectory.failure
    pairs = {"failure": (was.kind if was else "", failure["kind"] if failure else "")}
    if failure is None and was is None:
        pairs["patch"] = (trajectory.patch, info["patch"])
        pairs["resolved"] = (str(trajectory.resolved), str(info["report"].resolved))
    return found + _unequal(0, pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A recorded step, taken again."""

    step: Step
    action: Action
    observation: Observation
    over: bool
    """The environment ended the episode."""
    info: dict[str, Any]
    differences: tuple[Difference, ...]
    """Between the recorded answer and this one."""


def reset(env: gym.Env[Observation, Action], trajectory: Trajectory) -> Observation:
    """Begin the episode of a record once more; its first observation."""
    seed = trajectory.seed if trajectory.seed >= 0 else None
    return env.reset(seed=seed, options={"instance_id": trajectory.instance_id})[0]


def take(env: gym.Env[Observation, Action], steps: Sequence[Step]) -> Iterator[Taken]:
    """Take recorded actions, up to the first step without a call or the episode's end."""
    for step in steps:
        if not step.tool_calls:
            return
        call = step.tool_calls[0]
        action = Action(tool=call.function_name, arguments=call.arguments)
        observation, _, terminated, truncated, info = env.step(action)
        pairs = {}
        if step.observation is not None:
            pairs = {
                "observation": (step.observation.content, observation["text"]),
                "exit_code": (str(step.observation.exit_code), str(observation["exit_code"])),
            }
        yield Taken(
            step=step,
            action=action,
            observation=observation,
            over=terminated or truncated,
            info=info,
            differences=tuple(_unequal(step.step_id, pairs)),
        )
        if terminated or truncated:
            return


def _unequal(step: int, pairs: Mapping[str, tuple[str, str]]) -> list[Difference]:
    return [
        Difference(step=step, what=what, recorded=recorded, now=now)
        for what, (recorded, now) in pairs.items()
        if recorded != now
    ]
