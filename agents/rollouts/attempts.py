"""`Attempts`: one attempt of a job done by one process: claimed, played, retried, saved."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from agents.policies.base import Policy
from agents.rollouts.budget import Meter
from agents.rollouts.episode import Budget, Gate, Start, Stopped, run_episode
from agents.rollouts.job import JobFolder
from agents.rollouts.leases import Leases
from agents.rollouts.report import AttemptResult
from swe_env.errors import ReplayError
from swe_env.replay.trajectory import Trajectory
from swe_env.types import Action, Failure, Observation

log = logging.getLogger(__name__)

LASTING_FAILURES = frozenset({"task"})
"""Failure kinds that the same run need not try again; the next run tries every failure again."""

Item = tuple[str, int]
"""(instance_id, attempt)"""
Keep = Callable[[Trajectory], None]
"""Takes a finished attempt's record to the replay buffer, while nobody else can finish it."""
MakeEnv = Callable[[], gym.Env[Observation, Action]]


def attempt_seed(seed: int, instance_id: str, attempt: int) -> int:
    """The seed of one attempt: the same whichever worker, machine or order it runs in."""
    key = f"{seed}\0{instance_id}\0{attempt}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") >> 1


def _text(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What all attempts of a job have in common."""

    seed: int
    """Every attempt's seed is derived from it (`attempt_seed`)."""
    budget: Budget
    retries: int
    """How often an attempt is tried again after an infrastructure failure."""
    provenance: dict[str, Any]


@dataclass(slots=True, kw_only=True)
class Attempts:
    """How a process does a job's attempts, from any number of threads."""

    plan: Plan
    policy: Policy
    folder: JobFolder
    leases: Leases
    meter: Meter
    slots: Gate
    """Held while an environment works."""
    stop: threading.Event
    """Set: running episodes end at their next step, without a result."""
    start: Callable[[], Start] | None = None
    """Where its episodes go on, if not from the beginning (`run_episode`)."""

    def run(
        self, env: gym.Env[Observation, Action], item: Item, keep: Keep
    ) -> AttemptResult | None:
        """The attempt's result, or None while another run works on it.

        Raises:
            Stopped: `stop` was set.
        """
        return self._leased(item, keep, lambda lines: self._episodes(env, item, lines))

    def give_up(self, item: Item, failure: Failure, keep: Keep) -> AttemptResult | None:
        """Record that the machinery failed the attempt; its result, as from `run`."""

        def failed(lines: list[str]) -> Trajectory:
            lines.append(failure.message)
            return self._failed(item, failure)

        return self._leased(item, keep, failed)

    def _failed(self, item: Item, failure: Failure) -> Trajectory:
        """The record of an attempt of which nothing else is known."""
        return Trajectory(
            instance_id=item[0],
            agent=self.policy.agent,
            steps=(),
            attempt=item[1],
            seed=attempt_seed(self.plan.seed, *item),
            truncation="failure",
            failure=failure,
            provenance=dict(self.plan.provenance),
        )

    def _leased(
        self, item: Item, keep: Keep, play: Callable[[list[str]], Trajectory]
    ) -> AttemptResult | None:
        lease = self.folder.attempt(*item) / "lease"
        if not self.leases.claim(lease):
            return None
        try:
            trajectory = self.folder.finished(*item)
            found = None if trajectory is None else AttemptResult.of(trajectory)
            lines: list[str] = []
            if trajectory is None or trajectory.failure:
                found, trajectory = None, play(lines)
            with self.leases.committing(lease) as ours:
                if not ours:
                    log.warning("Another run took %s over; this run's result is dropped.", lease)
                    return None
                if found is not None:
                    self.meter.found(found)
                if found is None:
                    trajectory, found = self._saved(item, trajectory, lines)
                keep(trajectory)
            return found
        finally:
            self.leases.release(lease)

    def _saved(
        self, item: Item, trajectory: Trajectory, lines: list[str]
    ) -> tuple[Trajectory, AttemptResult]:
        """The record as it was written: one that cannot be is a failure, and the job goes on."""
        try:
            return trajectory, self.folder.save(trajectory, _text(lines))
        except ReplayError as error:
            log.error("%s", error)
            lines.append(str(error))
            trajectory = self._failed(item, Failure(kind="crash", message=str(error)))
            return trajectory, self.folder.save(trajectory, _text(lines))

    def _episodes(
        self, env: gym.Env[Observation, Action], item: Item, lines: list[str]
    ) -> Trajectory:
        """The attempt's trajectory, tried again after infrastructure failures."""
        plan = self.plan
        seed = attempt_seed(plan.seed, *item)
        for trial in range(plan.retries + 1):
            lines.append(f"{item[0]} attempt {item[1]} seed {seed} trial {trial}")
            trajectory = run_episode(
                env,
                self.policy,
                instance_id=item[0],
                attempt=item[1],
                seed=seed,
                budget=plan.budget,
                gate=self.slots,
                log=lines.append,
                stop=self.stop.is_set,
                provenance=plan.provenance,
                start=self.start,
                meter=self.meter,
            )
            failure = trajectory.failure
            if failure is not None and self.stop.is_set():
                raise Stopped  # what ended the run may be what failed
            if failure is None or failure.kind in LASTING_FAILURES or trial == plan.retries:
                return trajectory
            log.warning("%s: %s; trying again.", item[0], failure.message)
            if self.stop.wait(0.5 * 2**trial):
                raise Stopped
        raise AssertionError("unreachable")
