"""One episode: a policy acts in an environment until the verdict."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from agents.policies.base import Episode, EpisodeOver, Policy, Turn, well_formed
from agents.rollouts.budget import Meter, refuse_negative
from agents.rollouts.stuck import is_stuck
from swe_env.errors import ConfigError, InfrastructureError, PolicyError, ReplayError, TaskError
from swe_env.replay.trajectory import Trajectory
from swe_env.types import Action, Failure, Observation
from swe_env.wrappers.record import CRASH, RecordTrajectory

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What one episode may use beside the environment's own step limit; 0 means no limit."""

    tokens: int = 0
    """Tokens the policy samples, its own or its server's count; over it, truncation ``tokens``."""
    seconds: float = 0.0
    """Time since the reset was over; past it, truncation ``time`` (after the call that runs)."""
    cost: float = 0.0
    """Dollars, where the policy says what its turns cost; over it, truncation ``cost``."""
    repeats: int = 4
    """The same call and answer (or two in alternation) this often in a row: ``stuck``."""
    errors: int = 8
    """Turns in a row that failed with the same words: ``stuck``."""
    failures: int = 30
    """Turns in a row that failed, whatever the words (tests and commands, too): ``stuck``."""
    invalid: int = 8
    """Malformed replies and empty calls in a row, each answered by what is wrong: ``stuck``."""

    def __post_init__(self) -> None:
        refuse_negative("An episode's budget", self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where an episode goes on that began as another one: its `reset` leads there."""

    parent: Trajectory
    turns: tuple[Turn, ...]
    """The parent's first turns, as they were taken again."""
    tokens: bool
    """Their token ids are the policy's own kind, so that it and the record can go on from them."""


class Stopped(Exception):
    """The run was told to stop at once; the episode leaves no result."""


Gate = AbstractContextManager[Any]
"""Held while the environment works (a semaphore of CPU slots), not while the policy thinks."""


def run_episode(
    env: gym.Env[Observation, Action],
    policy: Policy,
    *,
    instance_id: str,
    attempt: int = 0,
    seed: int = 0,
    budget: Budget | None = None,
    gate: Gate | None = None,
    log: Callable[[str], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    provenance: Mapping[str, Any] | None = None,
    start: Callable[[], Start] | None = None,
    meter: Meter | None = None,
) -> Trajectory:
    """Run one episode and give its record back; `env` is left open.

    A failure of the machinery (environment, model) is a trajectory with `failure`, of kind
    ``crash`` when it was an exception that should not have been raised, by the environment or by
    whatever begins an episode; a policy that breaks is truncated as ``policy``, graded, and its
    error kept in ``provenance["policy_error"]``.

    Args:
        env: an environment with SWEEnv's surface; its recorder is put around it here.
        policy: who acts.
        instance_id: the task.
        attempt: recorded; which attempt at this task it is.
        seed: of the environment and of every draw of the policy.
        budget: limits beside the environment's own.
        gate: held while the environment works.
        log: takes one line for each step.
        stop: asked between steps; True ends the episode without a result.
        provenance: entries for the record.
        start: asked after the reset where in the episode that is; None for its beginning.
        meter: told after each step what it took.

    Raises:
        Stopped: `stop` said so.
        ConfigError: a setting is wrong, for this episode and every other.
        ReplayError: what a branch's first steps gave was not what was recorded.
    """
    return _Run(
        env, policy, instance_id, attempt, seed, budget or Budget(), gate or nullcontext(),
        log or logger.debug, stop, dict(provenance or {}), start, meter,
    ).run()  # fmt: skip


class _Run:
    """The state of one running episode."""

    def __init__(
        self,
        env: gym.Env[Observation, Action],
        policy: Policy,
        instance_id: str,
        attempt: int,
        seed: int,
        budget: Budget,
        gate: Gate,
        log: Callable[[str], None],
        stop: Callable[[], bool],
        provenance: dict[str, Any],
        start: Callable[[], Start] | None,
        meter: Meter | None,
    ) -> None:
        self.env, self.policy, self.budget, self.gate = env, policy, budget, gate
        self.instance_id, self.attempt, self.seed = instance_id, attempt, seed
        self.log, self.stop = log, stop
        self.provenance = provenance
        self.start = start
        self.meter = meter
        self.cost = 0.0
        self.records: list[Trajectory] = []
        self.turns: list[Turn] = []
        self.tokens = 0

    def run(self) -> Trajectory:
        try:
            with self.gate:
                recorder, first = self._reset()
        except (InfrastructureError, TaskError) as error:
            kind = error.kind if isinstance(error, InfrastructureError) else "task"
            self.log(f"reset failed: {error}")
            return self._without_episode(Failure(kind=kind, message=str(error)))
        except (ConfigError, ReplayError):
            raise  # wrong for the whole job
        except Exception as error:
            logger.exception("The episode of %s could not begin.", self.instance_id)
            message = f"{type(error).__name__}: {error}"
            self.log(f"reset failed: {message}")
            return self._without_episode(Failure(kind=CRASH, message=message))
        self.started = time.monotonic()
        try:
            self._play(recorder, first)
        except InfrastructureError as error:
            self.log(f"{type(error).__name__}: {error}")
            if not self.records:
                recorder.abort(Failure(kind=error.kind, message=str(error)))
        except Exception as error:
            if not self.records:  # not the environment's: the recorder has written nothing
                raise
            logger.exception("The environment broke on %s.", self.instance_id)
            self.log(f"{type(error).__name__}: {error}")
        return self.records[-1]

    def _reset(self) -> tuple[RecordTrajectory, Observation]:
        base: Any = self.env.unwrapped
        prompt = getattr(self.policy, "system_prompt", None)
        recorder = RecordTrajectory(
            self.env,
            self.records,
            agent=self.policy.agent,
            system_prompt=prompt(base.toolset.schemas) if prompt else "",
            attempt=self.attempt,
            provenance=self.provenance,
        )
        # Held by reference, so that what is learnt on the way still reaches the record.
        recorder.provenance = self.provenance
        first, _ = recorder.reset(seed=self.seed, options={"instance_id": self.instance_id})
        if self.start is not None:
            start = self.start()
            recorder.continue_from(start.parent, len(start.turns), tokens=start.tokens)
            self.turns = list(start.turns)
        return recorder, first

    def _play(self, recorder: RecordTrajectory, first: Observation) -> None:
        base: Any = self.env.unwrapped
        while True:
            if self.stop():
                raise Stopped
            episode = Episode(
                task=base.task.public(),
                first=first,
                tools=base.toolset.schemas,
                turns=tuple(self.turns),
                seed=self.seed,
                answer=base.task if self.policy.privileged else None,
            )
            try:
                truncation = self._step(recorder, self._act(episode))
                if truncation is None:
                    return
                if truncation:
                    raise EpisodeOver(truncation)
            except EpisodeOver as over:
                self.log(f"truncated: {over.truncation}")
                if over.action is not None:
                    self._count(over.action, steps=0)
                with self.gate:
                    recorder.finish(over.truncation, over.action)
                return

    def _act(self, episode: Episode) -> Action:
        """The policy's action.

        Raises:
            EpisodeOver: it takes none; when it broke, as ``policy``.
        """
        try:
            return well_formed(self.policy.act(episode))
        except (EpisodeOver, InfrastructureError):
            raise
        except Exception as error:
            if not isinstance(error, PolicyError):
                logger.exception("The policy %s broke.", self.policy.agent.name)
            self.provenance["policy_error"] = f"{type(error).__name__}: {error}"
            self.log(self.provenance["policy_error"])
            raise EpisodeOver("policy") from error

    def _step(self, recorder: RecordTrajectory, action: Action) -> str | None:
        """None when the environment ended the episode, else the limit that struck, or empty."""
        with self.gate:
            observation, _, terminated, truncated, _ = recorder.step(action)
        self.turns.append(Turn(action=action, observation=observation))
        self._count(action)
        elapsed = time.monotonic() - self.started
        self.log(
            f"{elapsed:8.2f}s {action.get('tool')} {action.get('arguments')} "
            f"-> exit {observation['exit_code']}, {len(observation['text'])} characters"
        )
        if terminated or truncated:
            return None
        budget = self.budget
        if budget.tokens and self.tokens >= budget.tokens:
            return "tokens"
        if budget.cost and self.cost >= budget.cost:
            return "cost"
        if budget.seconds and elapsed >= budget.seconds:
            return "time"
        stuck = is_stuck(
            self.turns,
            repeats=budget.repeats,
            errors=budget.errors,
            failures=budget.failures,
            invalid=budget.invalid,
        )
        return "stuck" if stuck else ""

    def _count(self, action: Action, *, steps: int = 1) -> None:
        """Add what a turn took, and note the sums of what the policy's server counted."""
        usage = action.get("usage", {})
        sampled = len(action.get("completion", {}).get("token_ids", ()))
        tokens, cost = sampled or usage.get("completion_tokens", 0), usage.get("cost", 0.0)
        self.tokens += tokens
        self.cost += cost
        if usage:
            sums: dict[str, Any] = self.provenance.setdefault("usage", {})
            for name, amount in usage.items():
                sums[name] = sums.get(name, 0) + amount
        if self.meter is not None:
            self.meter.add(steps=steps, tokens=tokens, cost=cost)

    def _without_episode(self, failure: Failure) -> Trajectory:
        return Trajectory(
            instance_id=self.instance_id,
            agent=self.policy.agent,
            steps=(),
            attempt=self.attempt,
            seed=self.seed,
            truncation="failure",
            failure=failure,
            provenance=self.provenance,
        )
