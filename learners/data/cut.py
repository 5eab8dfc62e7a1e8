"""`cut_observations`: a sequence made to fit, by the middle of what the environment said.

What the policy sampled is kept to the last token, the submission too, and so is the first state.
The policy's log-probability of a turn is then taken in a shortened context, which is not the one it
was sampled in: an approximation, unlike the loss mask. Hence never by default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from learners.data.encode import Encoded

LEAST = 64
"""No observation is cut to fewer tokens: head and tail hold the chat template's frame too."""

Note = Callable[[int], Sequence[int]]
"""Token ids that say so many tokens were left out, at most `LEAST` / 2 of them."""


def cut_observations(encoded: Encoded, max_tokens: int, note: Note) -> Encoded | None:
    """Shorten the longest observations to one common length, so that `max_tokens` are left.

    Of each, as many tokens are kept at the head as at the tail, with a note between.

    Args:
        encoded: A trajectory of one context, whole.
        max_tokens: What it may have.
        note: What stands in place of what was left out.

    Returns:
        The sequence, with `Encoded.cut_tokens`; None where observations of `LEAST` tokens each
        would still be too many.
    """
    if len(encoded) <= max_tokens:
        return encoded
    runs = _runs(encoded.turn_ids)
    observations = [stop - start for start, stop, turn in runs if turn < 0 and start > 0]
    room = max_tokens - len(encoded) + sum(observations)
    longest = _longest(observations, room)
    if longest < LEAST:
        return None
    ids: list[int] = []
    turns: list[int] = []
    for start, stop, turn in runs:
        piece: Sequence[int] = encoded.input_ids[start:stop]
        if turn < 0 and start > 0 and len(piece) > longest:
            piece = _shortened(piece, longest, note)
        ids += piece
        turns += [turn] * len(piece)
    mask = tuple(turn >= 0 for turn in turns)
    cut = len(encoded) - len(ids)
    return replace(
        encoded, input_ids=tuple(ids), loss_mask=mask, turn_ids=tuple(turns), cut_tokens=cut
    )


def _longest(lengths: Sequence[int], room: int) -> int:
    """The most tokens an observation may have, so that all together have at most `room`."""
    left = sorted(lengths)
    while left:
        even = room // len(left)
        if left[0] > even:
            return even
        room -= left.pop(0)
    return 0


def _shortened(piece: Sequence[int], length: int, note: Note) -> list[int]:
    dropped = len(piece) - length
    for _ in range(3):  # the note's own length depends on the number it tells
        told = note(dropped)
        dropped = len(piece) - (length - len(told))
    kept = length - len(told)
    tail = kept // 2
    return [*piece[: kept - tail], *told, *piece[len(piece) - tail :]]


def _runs(turns: Sequence[int]) -> list[tuple[int, int, int]]:
    """(start, stop, turn) of each run of tokens of one turn, or of none (-1)."""
    found: list[tuple[int, int, int]] = []
    for at, turn in enumerate(turns):
        if found and found[-1][2] == turn:
            found[-1] = (found[-1][0], at + 1, turn)
        else:
            found.append((at, at + 1, turn))
    return found
