"""`run_rollouts`: many episodes at once, resumable, safe to kill or to run twice at once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

import gymnasium as gym
import msgspec

from agents.policies import Policy, PolicySpec
from agents.rollouts.attempts import MakeEnv, Plan
from agents.rollouts.budget import JobBudget, Meter
from agents.rollouts.episode import Budget
from agents.rollouts.job import JobFolder
from agents.rollouts.leases import Leases
from agents.rollouts.on_ray import RayExecutor
from agents.rollouts.progress import NoProgress, Progress
from agents.rollouts.ray_driver import Driver
from agents.rollouts.report import RolloutReport
from agents.rollouts.running import Job
from agents.rollouts.threads import Threads
from swe_env.cache import digest
from swe_env.errors import ConfigError
from swe_env.replay.buffer import ReplayBuffer
from swe_env.replay.trajectory import Agent
from swe_env.types import Action, Observation, Task

_ADDED = frozenset({"cost", "failures", "invalid"})
"""Limits that the configurations of older jobs do not name."""


def run_rollouts(
    policy: Policy | PolicySpec,
    tasks: str | Sequence[Task],
    *,
    attempts: int | Mapping[str, int] = 1,
    workers: int = 1,
    out: str | os.PathLike[str],
    buffer: ReplayBuffer | str | os.PathLike[str] | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    budget: Budget | None = None,
    job_budget: JobBudget | None = None,
    retries: int = 2,
    cpu_slots: int | None = None,
    progress: Progress | None = None,
    make_env: MakeEnv | None = None,
    stale_after: float = 60.0,
    executor: str | RayExecutor = "threads",
) -> RolloutReport:
    """Run `policy` on `tasks`, `attempts` times each.

    Every finished attempt lies in ``out/<instance_id>/<attempt>/``; calling again with the same
    arguments skips those, tries infrastructure failures again and does the rest. Several runs over
    one folder share the work. The first Ctrl-C lets running episodes end, the second stops them.

    Args:
        policy: who acts; called from many threads. A `PolicySpec` is made here, and closed at the
            end; with Ray it is made once in each worker, and an object is pickled.
        tasks: a task source or the tasks themselves.
        attempts: episodes per task, or of each task by its ``instance_id``; may be raised when a
            job is continued.
        workers: episodes in flight, on all machines together.
        out: the job's folder; with Ray on a file system that all nodes share.
        buffer: a replay buffer (or its path) that gets every trajectory once, too; this process
            alone writes to it.
        env_kwargs: keyword arguments of ``gym.make("SWE-v0", …)``.
        seed: every attempt's seed is derived from it (`attempt_seed`).
        budget: limits of one episode beside the environment's own.
        job_budget: limits of all episodes together; when one is reached no more begin, and a call
            with a larger one goes on.
        retries: how often an attempt is tried again after an infrastructure failure.
        cpu_slots: episodes whose environment works at the same time (default: CPU count); with
            Ray those of one worker, which takes as many of the cluster's CPUs (default: 1).
        progress: told what happens.
        make_env: makes a worker's environment instead of ``gym.make``.
        stale_after: seconds after which a silent run's attempts are taken over.
        executor: ``threads`` of this process, or ``ray`` for the machines of a Ray cluster
            (`RayExecutor` says which and how).

    Raises:
        ConfigError: the folder holds a job with another configuration; `attempts` names a task
            that is not there, or leaves one out; the executor cannot be had.
    """
    loaded = _load(tasks)
    counts = _counts(attempts, loaded)
    if min(counts.values()) < 1 or workers < 1:
        raise ConfigError("run_rollouts needs at least one attempt and one worker.")
    check_limits(retries, cpu_slots)
    budget = budget or Budget()
    folder = JobFolder(out)
    provenance = {"tasks": tasks if isinstance(tasks, str) else "given"}
    plan = Plan(seed=seed, budget=budget, retries=retries, provenance=provenance)
    maker = make_env or _maker(loaded, env_kwargs)
    with ExitStack() as stack:
        crew: Threads | Driver
        if (ray := _ray(executor)) is None:
            crew = Threads(policy, plan, maker, workers=workers, cpu_slots=cpu_slots)
        else:
            crew = ray.start(
                policy,
                plan,
                maker,
                folder=folder,
                workers=workers,
                cpu_slots=cpu_slots,
                stale_after=stale_after,
                record=buffer is not None,
            )
        stack.callback(crew.close)
        config = _config(crew.agent, tasks, loaded, attempts, seed, env_kwargs, budget)
        folder.configure(config, growing=frozenset({"attempts"}))
        leases = Leases(folder.path, stale_after=stale_after)
        stack.callback(leases.close)
        store = buffer
        if not (isinstance(store, ReplayBuffer) or store is None):
            store = stack.enter_context(ReplayBuffer(store))
        most = max(counts.values())
        job = Job(
            items=[(name, k) for k in range(most) for name in counts if k < counts[name]],
            folder=folder,
            leases=leases,
            buffer=store,
            meter=Meter(job_budget or JobBudget()),
            progress=progress or NoProgress(),
        )
        return job.run(crew)


def check_limits(retries: int, cpu_slots: int | None) -> None:
    """Raise a ConfigError for numbers that no job can have."""
    if retries < 0:
        raise ConfigError(f"retries is {retries}: it is 0 (an attempt is tried once) or more.")
    if cpu_slots is not None and cpu_slots < 1:
        raise ConfigError(f"cpu_slots is {cpu_slots}: it is at least 1, or left out.")


def _ray(executor: str | RayExecutor) -> RayExecutor | None:
    """How Ray is used; None for threads."""
    if isinstance(executor, RayExecutor):
        return executor
    if executor not in ("threads", "ray"):
        raise ConfigError(f"There is no executor {executor!r}: it is 'threads' or 'ray'.")
    return RayExecutor() if executor == "ray" else None


def _load(tasks: str | Sequence[Task]) -> list[Task]:
    if not isinstance(tasks, str):
        loaded = list(tasks)
    else:
        from swe_env import tasks as sources

        loaded = sources.load(tasks)
    if not loaded:
        raise ConfigError(f"There is no task to run in {tasks!r}.")
    return loaded


def _counts(attempts: int | Mapping[str, int], tasks: list[Task]) -> dict[str, int]:
    """instance_id → attempts, in the order of the tasks."""
    names = [task.instance_id for task in tasks]
    if isinstance(attempts, int):
        return dict.fromkeys(names, attempts)
    if wrong := sorted(set(names) ^ set(attempts)):
        raise ConfigError(
            f"attempts must give a number for each task and no other; {wrong[0]!r} is "
            f"{'missing' if wrong[0] in names else 'not among the tasks'}."
        )
    return {name: attempts[name] for name in names}


def _maker(tasks: list[Task], env_kwargs: Mapping[str, Any] | None) -> MakeEnv:
    """What makes an environment, here or where it was unpickled."""
    return partial(_make_env, tasks, dict(env_kwargs or {}))


def _make_env(tasks: list[Task], kwargs: dict[str, Any]) -> gym.Env[Observation, Action]:
    import swe_env  # noqa: F401 - registers SWE-v0

    return gym.make("SWE-v0", tasks=tasks, disable_env_checker=True, **kwargs)


def _config(
    agent: Agent,
    spec: str | Sequence[Task],
    tasks: list[Task],
    attempts: int | Mapping[str, int],
    seed: int,
    env_kwargs: Mapping[str, Any] | None,
    budget: Budget,
) -> dict[str, Any]:
    """What identifies a job, as plain data."""
    config: dict[str, Any] = {
        "attempts": attempts if isinstance(attempts, int) else dict(attempts),
        "seed": seed,
        "policy": asdict(agent),
        "tasks": {
            "source": spec if isinstance(spec, str) else "given",
            "count": len(tasks),
            "digest": digest(tasks),
        },
        "env": dict(env_kwargs or {}),
        "budget": limits(budget),
    }
    plain: dict[str, Any] = msgspec.to_builtins(config)
    return plain


def limits(budget: Budget) -> dict[str, Any]:
    """An episode's budget as a job's configuration has it."""
    usual = Budget()
    return {
        name: value
        for name, value in asdict(budget).items()
        # As in jobs that were begun before there were these.
        if name not in _ADDED or value != getattr(usual, name)
    }
