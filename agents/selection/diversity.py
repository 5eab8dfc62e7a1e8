"""How different a task's attempts are; count the correct ones, wrong ones differ for free."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import msgspec

from agents.selection.patches import patch_key
from swe_env.replay.trajectory import Trajectory

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Diversity:
    """Measures over the attempts of one task, infrastructure failures left out."""

    attempts: int
    resolved: int
    distinct_patches: int
    distinct_correct: int
    effective_correct: float
    call_cosine: float
    """NaN with fewer than two attempts."""


def diversity(trajectories: Iterable[Trajectory]) -> Diversity:
    """All the measures of this module for one task's attempts."""
    kept = [t for t in trajectories if t.failure is None]
    return Diversity(
        attempts=len(kept),
        resolved=sum(t.resolved for t in kept),
        distinct_patches=distinct_patches(kept),
        distinct_correct=distinct_correct(kept),
        effective_correct=effective_correct(kept),
        call_cosine=mean_call_cosine(kept),
    )


def distinct_patches(trajectories: Iterable[Trajectory]) -> int:
    """Number of different patches by `patch_key`; patches that change nothing don't count."""
    return len({key for t in trajectories if (key := patch_key(t.patch))})


def distinct_correct(trajectories: Iterable[Trajectory]) -> int:
    """Number of different patches among the resolved attempts."""
    return distinct_patches(t for t in trajectories if t.resolved)


def effective_correct(trajectories: Iterable[Trajectory]) -> float:
    """exp(H) of the patches among the resolved attempts: 0 without any, m for m equally frequent.

    Patches that change nothing don't count, as in `distinct_correct`.
    H is the plug-in entropy in nats of the observed frequencies. It underestimates with few
    attempts, so compare only arms with the same number of attempts.
    """
    seen = Counter(key for t in trajectories if t.resolved and (key := patch_key(t.patch)))
    total = seen.total()
    if not total:
        return 0.0
    return math.exp(-sum(c / total * math.log(c / total) for c in seen.values()))


def mean_call_cosine(trajectories: Iterable[Trajectory]) -> float:
    """Mean pairwise cosine between bags of words of tool calls (names, arguments) and patch.

    Lexical, in [0, 1]; 1 means the same words equally often. It is no embedding similarity and
    cannot be compared with figures from one. NaN with fewer than two trajectories.
    """
    bags = [_bag(t) for t in trajectories]
    norms = [math.sqrt(sum(c * c for c in bag.values())) for bag in bags]
    pairs = list(combinations(range(len(bags)), 2))
    if not pairs:
        return math.nan
    return math.fsum(_cosine(bags[i], bags[j], norms[i] * norms[j]) for i, j in pairs) / len(pairs)


def _bag(trajectory: Trajectory) -> Counter[str]:
    calls = [call for step in trajectory.agent_steps for call in step.tool_calls]
    bag: Counter[str] = Counter(f"tool:{call.function_name}" for call in calls)
    for call in calls:
        bag.update(_WORD.findall(msgspec.json.encode(call.arguments).decode()))
    bag.update(_WORD.findall(trajectory.patch))
    return bag


def _cosine(left: Counter[str], right: Counter[str], norms: float) -> float:
    """Two trajectories that did nothing at all are the same: 1."""
    if norms == 0.0:
        return float(not left and not right)
    small, large = sorted((left, right), key=len)
    return min(1.0, sum(n * large[word] for word, n in small.items()) / norms)
