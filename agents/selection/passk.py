"""pass@k and best@k with intervals: how often k attempts, or the one chosen of k, succeed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.selection.candidates import Candidate
from agents.selection.rivals import Selector
from swe_env.errors import ConfigError
from swe_env.replay.trajectory import Trajectory

_SAME = 1e-12
"""Values that differ by less are the same: the rest is rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """One task's attempts: `n` that count, `resolved` of them, and those that don't count."""

    n: int
    resolved: int
    excluded: int = 0
    """Attempts lost to infrastructure failures; in neither `n` nor `resolved`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over tasks with its bootstrap interval."""

    value: float
    """In [0, 1]; NaN when no task could be used."""
    low: float
    """NaN, like `high`, where resampling shows no spread (see `bootstrap`)."""
    high: float
    tasks: int
    """Tasks the mean is over."""
    left_out: int = 0
    """Tasks without enough attempts that count."""
    excluded: int = 0
    """Attempts lost to infrastructure failures, all tasks together."""
    k: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BestAtK:
    """Expected success of the attempt a selector takes out of k."""

    value: float
    error: float
    """Standard error of the Monte-Carlo mean; 0 when every subset was tried."""
    exact: bool
    subsets: int


def pass_at_k(n: int, resolved: int, k: int) -> float:
    """Unbiased estimate of P(at least one of k attempts resolves), from n attempts.

    1 − C(n−c, k)/C(n, k) as the product of Chen et al. 2021 (arXiv 2107.03374, section 2.1), which
    does not overflow.

    Raises:
        ConfigError: k is not in 1 … n, or resolved not in 0 … n.
    """
    if not 1 <= k <= n or not 0 <= resolved <= n:
        raise ConfigError(
            f"pass@k needs 1 ≤ k ≤ n and 0 ≤ resolved ≤ n, got k={k}, n={n}, resolved={resolved}: "
            "lower k or make more attempts."
        )
    if n - resolved < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - resolved + 1, n + 1))


def count(trajectories: Iterable[Trajectory]) -> dict[str, Counts]:
    """Counts by instance id, tasks in order of appearance.

    A task all of whose attempts failed by infrastructure is there with n = 0. Branches count
    nowhere: those of one parent share steps, and pass@k is of independent attempts.
    """
    found: dict[str, list[int]] = {}
    for trajectory in trajectories:
        if trajectory.branch is not None:
            continue
        row = found.setdefault(trajectory.instance_id, [0, 0, 0])
        if trajectory.failure is not None:
            row[2] += 1
        else:
            row[0] += 1
            row[1] += trajectory.resolved
    return {key: Counts(n=n, resolved=c, excluded=x) for key, (n, c, x) in found.items()}


def mean_pass_at_k(
    counts: Mapping[str, Counts],
    k: int,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Mean pass@k over tasks, each task weighing the same whatever its number of attempts.

    Tasks with fewer than k attempts that count are left out and counted in `Estimate.left_out`.
    """
    values = [pass_at_k(c.n, c.resolved, k) for c in counts.values() if c.n >= k]
    low, high = bootstrap(values, level=level, resamples=resamples, seed=seed)
    return Estimate(
        value=math.fsum(values) / len(values) if values else math.nan,
        low=low,
        high=high,
        tasks=len(values),
        left_out=len(counts) - len(values),
        excluded=sum(c.excluded for c in counts.values()),
        k=k,
    )


def bootstrap(
    values: Sequence[float], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of per-task values in [0, 1].

    When every value is 0, or every value is 1, resampling shows no spread at all; the
    Clopper–Pearson bound for that many Bernoulli tasks is given instead, so that "0 of 20" reads
    [0, 0.17] and not [0, 0]. (NaN, NaN) without values, and when all are the same in between.
    """
    if not values:
        return math.nan, math.nan
    edge = ((1 - level) / 2) ** (1 / len(values))
    if all(value == 0 for value in values):
        return 0.0, 1 - edge
    if all(value == 1 for value in values):
        return edge, 1.0
    if np.ptp(values) < _SAME:
        return math.nan, math.nan
    return _percentile_interval(np.asarray(values), level, resamples, seed)


def bootstrap_difference(
    before: Mapping[str, float],
    after: Mapping[str, float],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """(mean difference, low, high) of after − before, paired over the tasks that both have.

    The bounds are NaN when the difference is the same on every task: resampling then shows no
    spread, which is no evidence that there is none.

    Raises:
        ConfigError: no task is in both.
    """
    shared = sorted(before.keys() & after.keys())
    if not shared:
        raise ConfigError("The two arms share no task: run both on the same tasks to compare them.")
    gains = np.asarray([after[key] - before[key] for key in shared])
    if np.ptp(gains) < _SAME:
        return float(gains[0]), math.nan, math.nan
    low, high = _percentile_interval(gains, level, resamples, seed)
    return float(gains.mean()), low, high


def best_at_k(
    attempts: Sequence[Candidate],
    selector: Selector,
    k: int,
    *,
    value: Callable[[Trajectory], float] = lambda t: float(t.resolved),
    exact_up_to: int = 5000,
    samples: int = 2000,
    seed: int = 0,
) -> BestAtK:
    """Expected value of the attempt that `selector` takes from k of one task's attempts.

    The mean over all C(n, k) subsets where there are at most `exact_up_to` of them, else over
    `samples` subsets drawn with a seed, with the standard error of that mean.

    Raises:
        ConfigError: k is not in 1 … n.
    """
    n = len(attempts)
    if not 1 <= k <= n:
        raise ConfigError(f"best@k needs 1 ≤ k ≤ n, got k={k}, n={n}: lower k or add attempts.")
    subsets = math.comb(n, k)
    exact = subsets <= exact_up_to
    if exact:
        drawn: Iterable[Sequence[int]] = itertools.combinations(range(n), k)
    else:
        rng = np.random.default_rng(seed)
        drawn = (rng.choice(n, size=k, replace=False).tolist() for _ in range(samples))
    scores = []
    for subset in drawn:
        chosen = selector([attempts[i] for i in subset], seed).chosen
        scores.append(0.0 if chosen is None else value(chosen))
    spread = 0.0 if exact else float(np.std(scores, ddof=1)) / math.sqrt(len(scores))
    mean = math.fsum(scores) / len(scores)
    return BestAtK(value=mean, error=spread, exact=exact, subsets=len(scores))


def _percentile_interval(
    values: NDArray[np.float64], level: float, resamples: int, seed: int
) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
