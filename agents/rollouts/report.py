"""What came of a run: one result an attempt, and their sums."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from swe_env.replay.trajectory import Trajectory
from swe_env.types import INVALID_TOOL


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptResult:
    """The outcome of one attempt, kept in its ``report.json``."""

    instance_id: str
    attempt: int
    trajectory_id: str
    resolved: bool = False
    reward: float = 0.0
    finished: bool = False
    truncation: str = ""
    failure: str = ""
    """Kind of the infrastructure failure, or empty."""
    steps: int = 0
    """Steps the environment took in this episode; of a branch, its own."""
    tokens: int = 0
    """Tokens the policy sampled, 0 when it does not know them."""
    seconds: float = 0.0
    cost: float = 0.0
    """Dollars that the policy's server took, as far as it is known."""
    invalid: int = 0
    """Malformed replies: steps that called nothing and were answered by what is wrong."""

    @classmethod
    def of(cls, trajectory: Trajectory) -> AttemptResult:
        """The result of a trajectory."""
        own = trajectory.own_steps
        calls = [call for step in own for call in step.tool_calls[:1]]
        usage = trajectory.provenance.get("usage", {})
        return cls(
            instance_id=trajectory.instance_id,
            attempt=trajectory.attempt,
            trajectory_id=trajectory.trajectory_id,
            resolved=trajectory.resolved,
            reward=trajectory.reward,
            finished=trajectory.finished,
            truncation=trajectory.truncation,
            failure=trajectory.failure.kind if trajectory.failure else "",
            steps=len(calls),
            tokens=sum(len(step.metrics.completion_token_ids) for step in own if step.metrics)
            or usage.get("completion_tokens", 0),
            seconds=float(trajectory.provenance.get("seconds", 0.0)),
            cost=float(usage.get("cost", 0.0)),
            invalid=sum(call.function_name == INVALID_TOOL for call in calls),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutReport:
    """All results of a job, in task and attempt order."""

    out: str
    """The job's folder."""
    results: tuple[AttemptResult, ...]
    skipped: int = 0
    """How many of them were found finished."""
    interrupted: bool = False
    """The run was stopped before every attempt was done; start it again to go on."""
    seconds: float = 0.0
    spent: str = ""
    """The limit of the job's budget that kept attempts from beginning (``tokens``), or empty."""

    @property
    def scored(self) -> tuple[AttemptResult, ...]:
        """The results that say something about the agent: no infrastructure failures."""
        return tuple(result for result in self.results if not result.failure)

    @property
    def resolved(self) -> int:
        """Attempts that resolved their task."""
        return sum(result.resolved for result in self.scored)

    @property
    def failures(self) -> dict[str, int]:
        """Infrastructure failures by kind."""
        return _count([result.failure for result in self.results])

    @property
    def truncations(self) -> dict[str, int]:
        """Scored attempts that a limit cut off, by limit."""
        return _count([result.truncation for result in self.scored])

    @property
    def invalid(self) -> int:
        """Malformed replies in the scored attempts."""
        return sum(result.invalid for result in self.scored)

    def counts(self) -> dict[str, tuple[int, int]]:
        """instance_id → (scored attempts, resolved ones): what pass@k is estimated from."""
        found: dict[str, tuple[int, int]] = {}
        for result in self.scored:
            n, c = found.get(result.instance_id, (0, 0))
            found[result.instance_id] = (n + 1, c + result.resolved)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, sums included."""
        data: dict[str, Any] = msgspec.to_builtins(self)
        sums = {
            "scored": len(self.scored),
            "resolved": self.resolved,
            "failures": self.failures,
            "truncations": self.truncations,
            "invalid": self.invalid,
        }
        return sums | data


def _count(names: Sequence[str]) -> dict[str, int]:
    return dict(sorted(Counter(name for name in names if name).items()))
