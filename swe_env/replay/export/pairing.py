"""Which trajectories of a buffer make preference pairs, found by columns before bodies are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice

from swe_env.replay.export.conversation import first_state
from swe_env.replay.trajectory import Trajectory
from swe_env.replay.view import Records


def usable(records: Records) -> Records:
    """Those that say something about the agent: it submitted, and there is a verdict."""
    return records.filter(finished=True, graded=True, failure="")


def pairs(
    records: Records, *, per_task: int = 1, seed: int = 0
) -> Iterator[tuple[Trajectory, Trajectory]]:
    """(resolved, unresolved) trajectories of one task from the same first state.

    Each task gives at most `per_task` pairs, over which its trajectories are spread as evenly as
    their number allows; ordered by task.
    """
    for _, task in sorted(usable(records).group_by_task().items()):
        good = _drawn(task.filter(resolved=True), seed, per_task)
        bad = _drawn(task.filter(resolved=False), seed, per_task)
        left = [(g, b) for g in range(len(good)) for b in range(len(bad))]
        left = [(g, b) for g, b in left if _alike(good[g], bad[b])]
        used: Counter[tuple[bool, int]] = Counter()
        for _ in range(min(per_task, len(left))):
            g, b = min(left, key=lambda pair: used[True, pair[0]] + used[False, pair[1]])
            left.remove((g, b))
            used.update([(True, g), (False, b)])
            yield good[g], bad[b]


def _drawn(records: Records, seed: int, most: int) -> list[Trajectory]:
    """At most `most` × 4 of them in random order: first states may differ, so some are spare."""
    return list(islice(records.shuffled(seed), 4 * most))


def _alike(one: Trajectory, other: Trajectory) -> bool:
    same = first_state(one) == first_state(other) and one.tools == other.tools
    return same and one.steps != other.steps
