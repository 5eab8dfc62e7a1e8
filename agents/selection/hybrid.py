"""The hybrid selector of EntroPO (arXiv 2509.12434, Appendix D.4): which attempt to submit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from agents.selection.candidates import Candidate, Regression, candidates
from swe_env.replay.trajectory import Trajectory

Steps = Literal["most", "fewest"]
_EMPTY = "would leave nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of a selection and who was left after it."""

    name: str
    survivors: tuple[str, ...]
    """Trajectory ids left after the stage, in tie-breaking order."""
    skipped: str = ""
    """Why the stage had no effect ("would leave nothing", "no verifier scores"), or empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The chosen attempt and how it came to be chosen."""

    chosen: Trajectory | None = field(repr=False)
    """None only when every attempt failed by infrastructure, or there was none."""
    chosen_id: str
    stages: tuple[Stage, ...]

    @property
    def uninformed(self) -> bool:
        """Whether every stage lacked its evidence, so that the first attempt was taken."""
        return bool(self.stages) and all(s.skipped not in ("", _EMPTY) for s in self.stages)


@dataclass(slots=True)
class Funnel:
    """Candidates being narrowed down, each step recorded."""

    left: list[Candidate]
    stages: list[Stage] = field(default_factory=list)

    def keep(self, name: str, test: Callable[[Candidate], bool], *, unknown: str = "") -> None:
        """Keep those that pass `test`; a stage that would leave nothing is skipped.

        Args:
            name: The stage's name in the record.
            test: Whether a candidate stays.
            unknown: Why there is no evidence for this stage; skips it when not empty.
        """
        passed = [] if unknown else [c for c in self.left if test(c)]
        skipped = unknown or ("" if passed or not self.left else _EMPTY)
        self.left = passed or self.left
        self.stages.append(Stage(name=name, survivors=self._ids(), skipped=skipped))

    def best(self, name: str, value: Callable[[Candidate], float], *, unknown: str = "") -> None:
        """Keep those with the highest value, ties included."""
        top = max((value(c) for c in self.left), default=0.0) if not unknown else 0.0
        self.keep(name, lambda c: value(c) == top, unknown=unknown)

    def selection(self) -> Selection:
        """The first of those left, by `Candidate.order`."""
        if not self.left:
            return Selection(chosen=None, chosen_id="", stages=tuple(self.stages))
        first = min(self.left, key=lambda c: c.order)
        return Selection(
            chosen=first.trajectory, chosen_id=first.trajectory_id, stages=tuple(self.stages)
        )

    def _ids(self) -> tuple[str, ...]:
        return tuple(c.trajectory_id for c in sorted(self.left, key=lambda c: c.order))


def select(
    trajectories: Iterable[Trajectory],
    *,
    verifier_scores: Mapping[str, float] | None = None,
    regression: Regression | None = None,
    threshold: float = 0.01,
    steps: Steps = "most",
) -> Selection:
    """Choose one of a task's attempts by EntroPO's hybrid rule.

    Finished → breaks no regression test → verifier probability at least `threshold` → most (or
    fewest) environment steps. A stage that would leave nothing is skipped. An attempt about which
    a stage knows nothing passes it: missing evidence is no evidence against. Ties go to the lowest
    attempt number, then to the smallest trajectory id, whatever order the attempts come in.

    Args:
        trajectories: Attempts of one task; infrastructure failures are left out first.
        verifier_scores: trajectory_id → P(YES) in [0, 1]; None skips the stage.
        regression: trajectory_id → True/False/None, or a function such as
            `regression_from_run_tests`; None skips the stage.
        threshold: η; attempts whose score is below it are dropped.
        steps: "most" for a specification to be trusted, "fewest" for a vague one.

    Raises:
        ConfigError: attempts of different tasks, or verifier scores missing or out of range.
    """
    found = candidates(trajectories, verifier_scores=verifier_scores, regression=regression)
    return hybrid(found, threshold=threshold, steps=steps)


def hybrid(
    attempts: Sequence[Candidate],
    seed: int = 0,  # noqa: ARG001 - every selector takes one
    *,
    threshold: float = 0.01,
    steps: Steps = "most",
) -> Selection:
    """`select` on candidates that already carry their evidence."""
    funnel = Funnel(list(attempts))
    funnel.keep("finished", lambda c: c.trajectory.finished)
    funnel.keep(
        "breaks no regression test",
        lambda c: c.regression is not False,
        unknown=_unknown(attempts, lambda c: c.regression, "no regression results"),
    )
    funnel.keep(
        f"verifier ≥ {threshold:g}",
        lambda c: c.verifier is None or c.verifier >= threshold,
        unknown=_unknown(attempts, lambda c: c.verifier, "no verifier scores"),
    )
    sign = 1 if steps == "most" else -1
    funnel.best(f"{steps} steps", lambda c: sign * c.steps)
    return funnel.selection()


def _unknown(
    attempts: Sequence[Candidate], evidence: Callable[[Candidate], object], reason: str
) -> str:
    return reason if all(evidence(c) is None for c in attempts) else ""
