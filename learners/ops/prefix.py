"""`grow`: sequences as a forest of runs of tokens, in which a shared beginning stands once.

Trajectories of one task begin with the same prompt, branches of one episode with the same turns. A
decoder's hidden state of a token depends on the tokens before it alone, so what is equal up to
there need not be computed again.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass


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
    """Depth first: a run stands before all that go on from it, and those stand together."""
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
        equal = _common(rows[before], rows[row])
        common.append(equal if equal >= min_share * len(rows[row]) else 0)
    growing = _Growing(rows, order, common)
    growing.add(0, len(order), 0, -1)
    return Forest(tuple(growing.tokens), tuple(growing.runs), tuple(growing.leaves), tuple(common))


class _Growing:
    """A forest in the making."""

    def __init__(
        self, rows: Sequence[tuple[int, ...]], order: Sequence[int], common: Sequence[int]
    ) -> None:
        self._rows, self._order, self._common = rows, order, common
        self.tokens: list[int] = []
        self.runs: list[Run] = []
        self.leaves = [-1] * len(rows)

    def add(self, first: int, last: int, depth: int, parent: int) -> None:
        """Sequences ``order[first:last]``, which have `depth` tokens in common with `parent`."""
        row = self._order[first]
        whole = len(self._rows[row])
        equal = min(self._common[first + 1 : last], default=whole)
        if equal > depth:
            piece = self._rows[row][depth:equal]
            start = len(self.tokens)
            self.runs.append(Run(start, start + len(piece), depth, parent))
            self.tokens += piece
            parent = len(self.runs) - 1
        if last - first == 1:
            self.leaves[row] = parent
            return
        cuts = [at for at in range(first + 1, last) if self._common[at] == equal]
        for begin, end in zip([first, *cuts], [*cuts, last], strict=True):
            self.add(begin, end, equal, parent)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens with which both begin."""
    pairs = zip(one, other, strict=False)
    shorter = min(len(one), len(other))
    return next((at for at, (a, b) in enumerate(pairs) if a != b), shorter)
