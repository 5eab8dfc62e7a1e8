"""When an episode goes round in circles, or does nothing but fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agents.policies.base import Turn
from swe_env.types import INVALID_TOOL


def is_stuck(
    turns: Sequence[Turn], *, repeats: int, errors: int, failures: int, invalid: int
) -> bool:
    """Whether the last turns show no progress; 0 switches a check off.

    Turns that wait for a running command are passed over: they are no sign of anything.

    Args:
        turns: the episode so far.
        repeats: a call with its observation, or two in alternation, seen this often in a row.
        errors: turns in a row that all failed with the same words.
        failures: turns in a row that all failed, whatever the words.
        invalid: turns in a row without a call to make: malformed replies and empty calls.
    """
    turns = [turn for turn in turns if not _waits(turn)]
    if repeats and any(_cycles(turns, period, repeats) for period in (1, 2)):
        return True
    said = {turn.observation["text"] for turn in turns[-errors:]}
    if len(said) == 1 and _all_last(turns, errors, _failed):
        return True
    return _all_last(turns, failures, _failed) or _all_last(turns, invalid, _calls_nothing)


def _all_last(turns: Sequence[Turn], count: int, holds: Callable[[Turn], bool]) -> bool:
    return 0 < count <= len(turns) and all(holds(turn) for turn in turns[-count:])


def _waits(turn: Turn) -> bool:
    return turn.observation["exit_code"] == -1 and _is_blank(turn)


def _failed(turn: Turn) -> bool:
    return turn.observation["exit_code"] != 0


def _calls_nothing(turn: Turn) -> bool:
    """A call without any argument (``run_tests``) may be whole; one of blanks that fails is not."""
    empty = _failed(turn) and bool(turn.action["arguments"]) and _is_blank(turn)
    return empty or turn.action["tool"] == INVALID_TOOL


def _is_blank(turn: Turn) -> bool:
    """Whether the call names nothing to do: an empty command, with or without a timeout."""
    return not any(
        value.strip() if isinstance(value, str) else value is not None
        for name, value in turn.action["arguments"].items()
        if name != "timeout"
    )


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
