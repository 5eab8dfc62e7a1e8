"""`branch`: fresh samples from a state in the middle of a recorded episode."""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict
from typing import Any

import msgspec

from agents.policies.base import Policy
from agents.rollouts.attempts import Plan, attempt_seed
from agents.rollouts.budget import JobBudget, Meter
from agents.rollouts.engine import check_limits, limits
from agents.rollouts.episode import Budget
from agents.rollouts.job import JobFolder
from agents.rollouts.leases import Leases
from agents.rollouts.progress import NoProgress, Progress
from agents.rollouts.report import RolloutReport
from agents.rollouts.running import Job
from agents.rollouts.threads import Threads
from agents.rollouts.trunk import Forks, Trunk
from swe_env.errors import ConfigError
from swe_env.replay.buffer import ReplayBuffer
from swe_env.replay.trajectory import Trajectory
from swe_env.types import Task


def branch(
    trajectory: Trajectory,
    at_step: int,
    n: int,
    *,
    policy: Policy,
    task: Task | None = None,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> tuple[Trajectory, ...]:
    """Continue a recorded episode `n` times from its state after step `at_step`.

    The first `at_step` actions are taken once more, in a real environment with the recorded
    settings, and must give the recorded answers. From there the environment is forked for each
    branch, and `policy` plays it to its end with a seed of its own; the patch is graded as ever.
    Shell variables are not part of a fork's state (`SWEEnv.fork`).

    Each record is whole, its first steps being the parent's, and names the parent and the step
    (`Trajectory.branch`); `Trajectory.seed` is what the policy's own draws derive from. The same
    arguments give the same records.

    Args:
        trajectory: the record to branch from; a branch may be branched again.
        at_step: agent steps that are kept; 0 for the state after the reset.
        n: how many branches.
        policy: who goes on; called from several threads.
        task: the task it was recorded on; None to load it from the task source in the record.
        out: a job's folder, as `run_rollouts` keeps one; None for none.
        **options: the other arguments of `run_branches`.

    Returns:
        The branches, in order; those that the machinery failed have `failure` set.

    Raises:
        ConfigError: the record ended in a failure, has no running episode after that step, does
            not say its settings, or `task` is another one.
        ReplayError: taken again, the steps gave other answers than those recorded.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = out or temporary
        report = run_branches(
            trajectory, at_step, n, policy=policy, task=task, out=folder, **options
        )
        job = JobFolder(folder)
        results = sorted(report.results, key=lambda result: result.attempt)
        return tuple(job.trajectory(result.instance_id, result.attempt) for result in results)


def run_branches(
    trajectory: Trajectory,
    at_step: int,
    n: int,
    *,
    policy: Policy,
    out: str | os.PathLike[str],
    task: Task | None = None,
    buffer: ReplayBuffer | str | os.PathLike[str] | None = None,
    workers: int = 8,
    seed: int = 0,
    budget: Budget | None = None,
    job_budget: JobBudget | None = None,
    retries: int = 2,
    cpu_slots: int | None = None,
    sandbox: str | None = None,
    progress: Progress | None = None,
    stale_after: float = 60.0,
) -> RolloutReport:
    """`branch` as a job that can be killed and continued, with `run_rollouts`'s folder and report.

    Args:
        trajectory: see `branch`.
        at_step: see `branch`.
        n: how many branches; may be raised when a job is continued.
        policy: see `branch`.
        out: the job's folder; branch k lies in ``out/<instance_id>/k``.
        task: see `branch`.
        buffer: a replay buffer (or its path) that gets every branch once, too.
        workers: branches in flight.
        seed: every branch's seed is derived from it, the parent's id and the step.
        budget: limits of one branch; only its own steps count.
        job_budget: limits of all branches together (see `run_rollouts`).
        retries: how often a branch is tried again after an infrastructure failure.
        cpu_slots: environments that work at the same time (default: CPU count).
        sandbox: where to run; None for the kind that was used then.
        progress: told what happens.
        stale_after: seconds after which a silent run's branches are taken over.

    Raises:
        ConfigError: see `branch`, or the folder holds a job with another configuration.
        ReplayError: see `branch`.
    """
    if n < 1 or workers < 1:
        raise ConfigError("branch needs at least one branch and one worker.")
    check_limits(retries, cpu_slots)
    budget = budget or Budget()
    task = task or recorded_task(trajectory)
    trunk = Trunk(trajectory, at_step, task, policy=policy, sandbox=sandbox)
    folder = JobFolder(out)
    folder.configure(_config(trunk, policy, n, seed, budget), growing=frozenset({"attempts"}))
    store = buffer if isinstance(buffer, ReplayBuffer) or buffer is None else ReplayBuffer(buffer)
    leases = Leases(folder.path, stale_after=stale_after)
    threads = Threads(
        policy,
        Plan(
            seed=attempt_seed(seed, trajectory.trajectory_id, at_step),
            budget=budget,
            retries=retries,
            provenance={"tasks": trajectory.provenance.get("tasks", "given")},
        ),
        lambda: Forks(trunk),
        workers=workers,
        cpu_slots=cpu_slots,
        start=trunk.start,
    )
    job = Job(
        items=[(task.instance_id, k) for k in range(n)],
        folder=folder,
        leases=leases,
        buffer=store,
        meter=Meter(job_budget or JobBudget()),
        progress=progress or NoProgress(),
    )
    try:
        return job.run(threads)
    finally:
        trunk.close()
        leases.close()
        if store is not None and store is not buffer:
            store.close()


def recorded_task(trajectory: Trajectory) -> Task:
    """The task of a record, from the task source that it names.

    Raises:
        ConfigError: it names none that can be loaded.
        TaskError: the source has no such task.
    """
    from swe_env import tasks

    source = trajectory.provenance.get("tasks") or _setting(trajectory, "tasks")
    if not isinstance(source, str) or source == "given":
        raise ConfigError(
            f"The record {trajectory.trajectory_id[:12]} does not say where its task "
            f"{trajectory.instance_id} came from: give the task source of its run."
        )
    return tasks.find(tasks.load(source), trajectory.instance_id)


def _setting(trajectory: Trajectory, name: str) -> Any:
    settings = trajectory.provenance.get("env")
    return settings.get(name) if isinstance(settings, dict) else None


def _config(trunk: Trunk, policy: Policy, n: int, seed: int, budget: Budget) -> dict[str, Any]:
    """What identifies a job, as plain data."""
    config = {
        "attempts": n,
        "seed": seed,
        "policy": asdict(policy.agent),
        "branch": {"parent": trunk.trajectory.trajectory_id, "at_step": trunk.at_step},
        "env": trunk.settings,
        "budget": limits(budget),
    }
    plain: dict[str, Any] = msgspec.to_builtins(config)
    return plain


def find_trajectory(path: str | os.PathLike[str], prefix: str) -> Trajectory:
    """The one trajectory of a buffer whose id starts with `prefix`.

    Raises:
        ConfigError: there is none, or several.
    """
    with ReplayBuffer(path, create=False) as buffer:
        found = {e.row.id: e for e in buffer.entries() if e.row.id.startswith(prefix)}
        if len(found) != 1 or not prefix:
            many = f"{len(found)} trajectories" if found else "no trajectory"
            raise ConfigError(
                f"{buffer.path} has {many} whose id starts with {prefix!r}: `swe view` lists them."
            )
        return buffer.read(*found.values())
