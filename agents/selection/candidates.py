"""What a selector may look at: a finished attempt and the evidence about it, under one id."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from agents.selection.patches import patch_key
from swe_env.errors import ConfigError
from swe_env.replay.trajectory import Step, Trajectory
from swe_env.types import INVALID_TOOL

Regression = Mapping[str, bool | None] | Callable[[Trajectory], bool | None]
"""trajectory_id → whether it breaks *no* regression test (None: unknown), or a function."""

READ_ONLY = frozenset(
    {"view", "outline", "search", "run_tests", "submit", "finish", INVALID_TOOL, ""}
)
"""Calls that leave the workspace as it is; any other may have changed it. "" is no call."""
EDITS = frozenset({"edit", "edit_lines", "apply_diff", "undo", "file_editor"})
"""Tools that change the workspace unless they answer with an error."""
_FAILURES = re.compile(r"\b\d+ (?:failed|error)\b")
"""In the counts with which `run_tests` begins its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One attempt with its id and the evidence about it; nothing here comes from the verdict."""

    trajectory: Trajectory = field(repr=False)
    trajectory_id: str
    steps: int
    """Environment steps: turns the agent took."""
    patch_key: str
    """`patches.patch_key` of the patch: equal for patches that do the same."""
    verifier: float | None = None
    """Verifier's probability that the patch is right, in [0, 1]."""
    regression: bool | None = None
    """Whether it breaks no regression test; None when unknown."""
    regression_passes: int | None = None
    """Regression tests that pass with the patch."""
    reproduction: float | None = None
    """Score on generated reproduction tests; higher is better."""

    @property
    def order(self) -> tuple[int, str]:
        """How ties are broken everywhere: lowest attempt number, then trajectory id."""
        return self.trajectory.attempt, self.trajectory_id


def candidates(
    trajectories: Iterable[Trajectory],
    *,
    verifier_scores: Mapping[str, float] | None = None,
    regression: Regression | None = None,
    regression_passes: Mapping[str, int] | None = None,
    reproduction: Mapping[str, float] | None = None,
) -> list[Candidate]:
    """Attempts of one task with their evidence, in tie-breaking order.

    Attempts that failed by infrastructure are left out: they say nothing about the agent.

    Args:
        trajectories: Attempts of one task.
        verifier_scores: trajectory_id → probability in [0, 1]; must cover every attempt kept.
        regression: trajectory_id → True, False or None, or a function of the trajectory such as
            `regression_from_run_tests`; an id that is missing counts as unknown.
        regression_passes: trajectory_id → number of regression tests that pass.
        reproduction: trajectory_id → reproduction-test score.

    Raises:
        ConfigError: attempts of different tasks, or a verifier score missing or not in [0, 1].
    """
    kept = [t for t in trajectories if t.failure is None]
    tasks = sorted({t.instance_id for t in kept})
    if len(tasks) > 1:
        raise ConfigError(
            f"A selector chooses among attempts of one task, got {len(tasks)} tasks "
            f"({', '.join(tasks[:3])}…): group the trajectories by instance_id first."
        )
    found = []
    for trajectory in kept:
        key = trajectory.trajectory_id
        found.append(
            Candidate(
                trajectory=trajectory,
                trajectory_id=key,
                steps=len(trajectory.agent_steps),
                patch_key=patch_key(trajectory.patch),
                verifier=None if verifier_scores is None else _score(verifier_scores, key),
                regression=_regression(regression, trajectory, key),
                regression_passes=(regression_passes or {}).get(key),
                reproduction=(reproduction or {}).get(key),
            )
        )
    return sorted(found, key=lambda c: c.order)


def regression_from_run_tests(trajectory: Trajectory) -> bool | None:
    """Whether the agent's own last runs of the visible tests show no broken test.

    Looks at `run_tests` after the last call that may have changed the workspace (a shell command
    may; a malformed or refused call did not). A run in which a test failed says False until a run
    of all tests passes; a passing run of chosen targets alone proves nothing, nor does a run that
    was cut off before any test failed. None, unknown, also when tests failed before any edit, so
    that a failure at the end is no evidence of breaking anything. The hidden verdict is not
    consulted.
    """
    verdict: bool | None = None
    edited = failed_before = False
    for step in trajectory.agent_steps:
        if _name(step) == "run_tests":
            if _FAILURES.search(_content(step).partition("\n")[0]):
                verdict = False
                failed_before |= not edited
            elif _exit_code(step) == 0 and not any(step.tool_calls[0].arguments.values()):
                verdict = True
        elif _may_change(step):
            edited, verdict = edited or _name(step) in EDITS, None
    return None if failed_before and verdict is False else verdict


def _name(step: Step) -> str:
    return step.tool_calls[0].function_name if step.tool_calls else ""


def _may_change(step: Step) -> bool:
    name = _name(step)
    if name in READ_ONLY or _refused(step):
        return False
    if name == "file_editor" and step.tool_calls[0].arguments.get("command") == "view":
        return False
    return name not in EDITS or _exit_code(step) == 0


def _refused(step: Step) -> bool:
    """Whether the tool did nothing: as `Toolset.call` answers what the model did wrong."""
    text = _content(step)
    ran = text.endswith("[exit code 1]")  # a shell command whose output begins so
    return _exit_code(step) == 1 and text.startswith("Error: ") and not ran


def _exit_code(step: Step) -> int:
    return step.observation.exit_code if step.observation is not None else -1


def _content(step: Step) -> str:
    return step.observation.content if step.observation is not None else ""


def _score(scores: Mapping[str, float], key: str) -> float:
    if key not in scores:
        raise ConfigError(
            f"Trajectory {key} has no verifier score: score every attempt, "
            "or select without verifier_scores."
        )
    score = float(scores[key])
    if not (math.isfinite(score) and 0.0 <= score <= 1.0):
        raise ConfigError(f"The verifier score of trajectory {key} is {score}, not in [0, 1].")
    return score


def _regression(regression: Regression | None, trajectory: Trajectory, key: str) -> bool | None:
    if regression is None:
        return None
    return regression(trajectory) if callable(regression) else regression.get(key)
