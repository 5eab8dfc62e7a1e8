"""When an episode goes round in circles: the same call, two calls in turn, the same errors."""

from __future__ import annotations

from collections.abc import Sequence

from agents.policies.base import Turn


def is_stuck(turns: Sequence[Turn], *, repeats: int, errors: int) -> bool:
    """Whether the last turns show no progress.

    Args:
        turns: the episode so far.
        repeats: a call with its observation, or two in alternation, seen this often in a row.
        errors: turns in a row that all failed with the same words. 0 switches a check off.
    """
    if repeats and any(_cycles(turns, period, repeats) for period in (1, 2)):
        return True
    last = turns[-errors:]
    if not errors or len(last) < errors:
        return False
    failed = all(turn.observation["exit_code"] != 0 for turn in last)
    return failed and len({turn.observation["text"] for turn in last}) == 1


def _cycles(turns: Sequence[Turn], period: int, repeats: int) -> bool:
    if len(turns) < period * repeats:
        return False
    last = turns[-period * repeats :]
    return all(_same(a, b) for a, b in zip(last, last[period:], strict=False))


def _same(one: Turn, other: Turn) -> bool:
    return (
        one.action["tool"] == other.action["tool"]
        and one.action["arguments"] == other.action["arguments"]
        and one.observation["text"] == other.observation["text"]
    )
