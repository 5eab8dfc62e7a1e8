"""Selectors by name: the hybrid rule, what it is compared with, and the upper bound."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from agents.selection.candidates import Candidate, Regression, candidates
from agents.selection.hybrid import Funnel, Selection, hybrid
from swe_env.plugins import Registry
from swe_env.replay.trajectory import Trajectory

Selector = Callable[[Sequence[Candidate], int], Selection]
"""(candidates of one task, seed) → selection; deterministic, whatever order they come in."""

selectors: Registry[Selector] = Registry("selectors")
"""By name; add one with ``@selectors.register("mine")``."""

selectors.register("hybrid")(hybrid)
selectors.register("hybrid-fewest")(partial(hybrid, steps="fewest"))


def choose(
    name: str,
    trajectories: Iterable[Trajectory],
    *,
    seed: int = 0,
    verifier_scores: Mapping[str, float] | None = None,
    regression: Regression | None = None,
    regression_passes: Mapping[str, int] | None = None,
    reproduction: Mapping[str, float] | None = None,
) -> Selection:
    """Choose one of a task's attempts with the selector called `name`.

    Raises:
        ConfigError: no such selector, or evidence that does not fit (see `candidates`).
    """
    selector = selectors.get(name)
    found = candidates(
        trajectories,
        verifier_scores=verifier_scores,
        regression=regression,
        regression_passes=regression_passes,
        reproduction=reproduction,
    )
    return selector(found, seed)


@selectors.register("first")
def first(attempts: Sequence[Candidate], seed: int = 0) -> Selection:  # noqa: ARG001
    """The lowest attempt number: one plain run, no selection."""
    return Funnel(list(attempts)).selection()


@selectors.register("random")
def random(attempts: Sequence[Candidate], seed: int = 0) -> Selection:
    """One attempt at random; the draw depends on the seed and the set of attempts only."""
    funnel = Funnel(list(attempts))
    ids = sorted(c.trajectory_id for c in attempts)
    key = hashlib.sha256(f"{seed}:{','.join(ids)}".encode()).digest()
    drawn = ids[int.from_bytes(key, "big") % len(ids)] if ids else ""
    funnel.keep("random", lambda c: c.trajectory_id == drawn)
    return funnel.selection()


@selectors.register("most-steps")
def most_steps(attempts: Sequence[Candidate], seed: int = 0) -> Selection:  # noqa: ARG001
    """The attempt with the most environment steps."""
    funnel = Funnel(list(attempts))
    funnel.best("most steps", lambda c: c.steps)
    return funnel.selection()


@selectors.register("fewest-steps")
def fewest_steps(attempts: Sequence[Candidate], seed: int = 0) -> Selection:  # noqa: ARG001
    """The attempt with the fewest environment steps."""
    funnel = Funnel(list(attempts))
    funnel.best("fewest steps", lambda c: -c.steps)
    return funnel.selection()


@selectors.register("verifier")
def verifier(attempts: Sequence[Candidate], seed: int = 0) -> Selection:  # noqa: ARG001
    """The attempt with the highest verifier probability."""
    funnel = Funnel(list(attempts))
    _best(funnel, "highest P(YES)", lambda c: c.verifier, "verifier scores")
    return funnel.selection()


@selectors.register("majority")
def majority(attempts: Sequence[Candidate], seed: int = 0) -> Selection:  # noqa: ARG001
    """An attempt with the most frequent patch (`patch_key`); an empty patch has no vote."""
    votes = Counter(c.patch_key for c in attempts if c.patch_key)
    funnel = Funnel(list(attempts))
    funnel.keep("has a patch", lambda c: bool(c.patch_key))
    funnel.best("most frequent patch", lambda c: votes[c.patch_key])
    return funnel.selection()


@selectors.register("r2e")
def r2e(attempts: Sequence[Candidate], seed: int = 0, *, top: int = 1) -> Selection:  # noqa: ARG001
    """R2E-Gym's rule: P(YES), then regression passes, then reproduction-test score.

    `top` is how many attempts P(YES) lets through (ties at the last place included); 1 makes the
    rule a plain lexicographic ranking.
    """
    funnel = Funnel(list(attempts))
    ranked = sorted((_value(c.verifier) for c in attempts), reverse=True)[:top]
    funnel.keep(
        f"top {top} by P(YES)",
        lambda c: _value(c.verifier) >= ranked[-1],
        unknown=_missing(attempts, lambda c: c.verifier, "verifier scores"),
    )
    _best(funnel, "regression passes", lambda c: c.regression_passes, "pass counts")
    _best(funnel, "reproduction score", lambda c: c.reproduction, "reproduction scores")
    return funnel.selection()


@selectors.register("oracle")
def oracle(attempts: Sequence[Candidate], seed: int = 0) -> Selection:  # noqa: ARG001
    """A resolved attempt when there is one: looks at the verdict, so an upper bound (pass@N)."""
    funnel = Funnel(list(attempts))
    funnel.keep("resolved", lambda c: c.trajectory.resolved)
    return funnel.selection()


def _best(
    funnel: Funnel, name: str, evidence: Callable[[Candidate], float | None], what: str
) -> None:
    unknown = _missing(funnel.left, evidence, what)
    funnel.best(name, lambda c: _value(evidence(c)), unknown=unknown)


def _value(evidence: float | None) -> float:
    """What is unknown ranks last."""
    return float("-inf") if evidence is None else evidence


def _missing(
    attempts: Sequence[Candidate], evidence: Callable[[Candidate], float | None], what: str
) -> str:
    return "" if any(evidence(c) is not None for c in attempts) else f"no {what}"
