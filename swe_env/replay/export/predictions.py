"""SWE-bench predictions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from swe_env.errors import ConfigError
from swe_env.replay.trajectory import Trajectory


def preds(trajectories: Iterable[Trajectory]) -> Iterator[dict[str, str]]:
    """SWE-bench predictions, one row a trajectory; write them as ``preds.jsonl``.

    One that failed (`Trajectory.failure`) gives none: the harness would count it as unresolved.

    Raises:
        ConfigError: a task comes twice (the harness keeps one prediction a task): select first.
    """
    seen: set[str] = set()
    for trajectory in trajectories:
        if trajectory.failure is not None:
            continue
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
