"""`grow`: sequences as a forest of runs of tokens, in which a shared beginning stands once.

Trajectories of one task begin with the same prompt, branches of one episode with the same turns. A
decoder's hidden state of a token depends on the tokens before it alone, so what is equal up to
there need not be computed again.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from swe_env.prefix import common_prefix


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring tokens that belong to the same sequences."""

    start: int
    """First token, counted in the order of the forest."""
    stop: int
    position: int
    """Tokens before it in each of its sequences."""
    parent: int
    """The run that goes before it, or -1."""

    @property
    def depth(self) -> int:
        """Tokens of a sequence up to and with this run."""
        return self.position + self.stop - self.start


@dataclass(frozen=True, slots=True)
class Forest:
    """Sequences with shared beginnings."""

    tokens: tuple[int, ...]
    """Token ids, runs one after another."""
    runs: tuple[Run, ...]
    """Depth first: a run stands before all that go on from it, and those stand together. First
    comes what most sequences go on with, and of as many the longest."""
    leaves: tuple[int, ...]
    """The run each sequence ends with."""
    saved: tuple[int, ...]
    """Tokens that a sequence has from the one before it, in lexicographic order."""

    @property
    def computed(self) -> int:
        """Tokens of the forest."""
        return len(self.tokens)

    @property
    def shared(self) -> int:
        """Tokens of the sequences that are not computed again."""
        return sum(self.saved)

    def path(self, run: int) -> list[int]:
        """Runs from the root to `run`."""
        found = []
        while run >= 0:
            found.append(run)
            run = self.runs[run].parent
        return found[::-1]


def grow(sequences: Sequence[Sequence[int]], *, min_share: float = 0.0) -> Forest:
    """Lay sequences out with equal beginnings once.

    Args:
        sequences: Token ids of each, at least one. One may be the beginning of another, or equal
            to it.
        min_share: In lexicographic order, a sequence shares with the one before it only where at
            least this share of its tokens need not be computed. 0 shares a single token; above 1
            nothing is shared.
    """
    rows = [tuple(sequence) for sequence in sequences]
    order = sorted(range(len(rows)), key=lambda row: rows[row])
    common = [0]
    for before, row in itertools.pairwise(order):
        equal = common_prefix(rows[before], rows[row])
        common.append(equal if equal >= min_share * len(rows[row]) else 0)
    return _planted(rows, order, common)


def _planted(
    rows: Sequence[tuple[int, ...]], order: Sequence[int], common: Sequence[int]
) -> Forest:
    def longest(first: int, last: int) -> int:
        return max(len(rows[row]) for row in order[first:last])

    tokens: list[int] = []
    runs: list[Run] = []
    leaves = [-1] * len(rows)
    # Sequences ``order[first:last]``, which have `depth` tokens in common with the run `parent`.
    # A list and no recursion: trajectories may branch off from each other a thousand deep.
    waiting = [(0, len(order), 0, -1)]
    while waiting:
        first, last, depth, parent = waiting.pop()
        row = order[first]
        equal = min(common[first + 1 : last], default=len(rows[row]))
        if equal > depth:
            piece = rows[row][depth:equal]
            runs.append(Run(len(tokens), len(tokens) + len(piece), depth, parent))
            tokens += piece
            parent = len(runs) - 1
        if last - first == 1:
            leaves[row] = parent
            continue
        cuts = [at for at in range(first + 1, last) if common[at] == equal]
        children = list(zip([first, *cuts], [*cuts, last], strict=True))
        # The largest first, directly behind its parent, with which it makes one piece.
        children.sort(key=lambda ends: (ends[1] - ends[0], longest(*ends)))
        waiting += [(begin, end, equal, parent) for begin, end in children]
    return Forest(tuple(tokens), tuple(runs), tuple(leaves), tuple(common))
