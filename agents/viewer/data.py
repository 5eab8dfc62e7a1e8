"""What a report says, as plain values: everything is computed before, nothing while drawing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agents.selection.passk import Estimate
from swe_env.replay.trajectory import Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One trajectory in a line."""

    trajectory_id: str
    instance_id: str
    attempt: int
    resolved: bool
    finished: bool
    truncation: str
    failure: str
    """Kind of infrastructure failure, or empty."""
    steps: int
    tokens: int
    """Tokens the policy sampled; 0 when it recorded none."""
    surprisal: float
    """Mean −log p of the sampled tokens in nats; NaN when unknown."""

    @property
    def outcome(self) -> str:
        """How it ended, in words: one of the rows of the outcome table."""
        if self.failure:
            return f"infrastructure: {self.failure}"
        if self.resolved:
            return "resolved"
        if self.finished:
            return "submitted, not resolved"
        return f"cut off: {self.truncation or 'unknown'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """What a selector's choices are worth on one arm."""

    selector: str
    estimate: Estimate
    chosen: Mapping[str, str]
    """instance_id → trajectory_id."""
    uninformed: int = 0
    """Tasks on which the selector had no evidence and took the first attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmDiversity:
    """Diversity over an arm's tasks; means over tasks with a resolved attempt (patches: all)."""

    distinct_patches: float
    distinct_correct: float
    effective_correct: float
    call_cosine: float
    """Over tasks with at least two attempts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One policy on the report's tasks (base, adapter, trained …)."""

    name: str
    description: str = ""
    attempts: tuple[Attempt, ...] = ()
    pass_at: tuple[Estimate, ...] = ()
    """One for each k, ascending."""
    selected: tuple[Selected, ...] = ()
    gain: tuple[float, float, float] | None = None
    """pass@1 minus the first arm's with its paired interval; None for the first arm."""
    diversity: ArmDiversity | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """Metrics of one training, a row for each logged step."""

    name: str
    rows: tuple[Mapping[str, float], ...] = ()
    """Each with ``step`` and any of ``loss``, ``rewards/margins``, ``entropy`` …"""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTime:
    """How long one stage took."""

    name: str
    seconds: float
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A trajectory shown step by step, and why it was picked."""

    trajectory: Trajectory
    arm: str = ""
    caption: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """A whole report."""

    title: str
    summary: str = ""
    """One paragraph: what was run and what came out."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Command, machine, commit, versions, seeds: shown at the top."""
    config: Mapping[str, object] = field(default_factory=dict)
    """The resolved configuration; nested mappings are shown with dotted names."""
    arms: tuple[Arm, ...] = ()
    training: tuple[TrainingRun, ...] = ()
    stages: tuple[StageTime, ...] = ()
    shown: tuple[Shown, ...] = ()
    notes: tuple[str, ...] = ()
