"""`pack`: many sequences in one row of a model's input, without any padding.

The row is a forest (`learners.ops.prefix`): positions count from the root, and a token sees those
of its own path. Sequences that share nothing are trees of one run, which is plain packing. A token
that several sequences sampled in a shared run is predicted once and counted for each of them, so
sums and gradients are those of the sequences one by one, whatever is shared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from learners.ops.prefix import Forest, grow
from swe_env.errors import ConfigError

T = TypeVar("T")


class Span(NamedTuple):
    """Queries of neighbouring runs, each going on from the one before, and their path's keys."""

    start: int
    stop: int
    keys: tuple[tuple[int, int], ...]
    """Ranges of tokens, in order; the span's own come last."""


class Varlen(NamedTuple):
    """The same for kernels that take sequences of different lengths (flash attention)."""

    keys: Tensor | None
    """Tokens whose keys each span sees, one span after another, int64; None for all as they lie."""
    queries_until: Tensor
    """Where each span's queries end, from 0 on, (spans + 1,), int32."""
    keys_until: Tensor
    longest_queries: int
    longest_keys: int


class Call(NamedTuple):
    """What a layer asks of attention, whatever the row."""

    heads: int
    key_heads: int
    width: int
    value_width: int
    scale: float | None
    window: int | None
    softcap: float | None


class Layout:
    """Who sees whom in a packed row: a token, those of its path up to itself."""

    def __init__(self, forest: Forest, device: torch.device) -> None:
        """Of one forest, with its tensors on `device`."""
        self.spans = _spans(forest)
        ends = [run.stop for run in forest.runs]
        for number in range(len(ends) - 1, -1, -1):
            parent = forest.runs[number].parent
            if parent >= 0:
                ends[parent] = max(ends[parent], ends[number])
        lengths = torch.tensor([run.stop - run.start for run in forest.runs])
        self.ends = torch.tensor(ends).repeat_interleave(lengths).to(device)
        """Where the tree behind each token ends: `q` sees `k` where ``k <= q < ends[k]``."""
        pieces = [torch.arange(run.position, run.depth) for run in forest.runs]
        self.positions = torch.cat(pieces).to(device)
        """Of each token in its sequences."""
        self.calls: list[Call] = []
        """Of each layer that has asked so far."""
        self.kernel = ""
        """What computes attention; see `learners.ops.kernels`."""
        self._kept: dict[tuple[str, int | None], Any] = {}

    def mask(self, window: int | None) -> Tensor:
        """(tokens, tokens), bool: True where the row's token sees the column's."""
        at = torch.arange(len(self.ends), device=self.ends.device)
        seen = (at[None] <= at[:, None]) & (at[:, None] < self.ends[None])
        if window is not None:
            seen &= self.positions[:, None] - self.positions[None] < window
        return seen

    def keep(self, name: str, window: int | None, make: Callable[[], T]) -> T:
        """What `make` gives, made once for all layers with that window."""
        key = name, window
        if key not in self._kept:
            self._kept[key] = make()
        found: T = self._kept[key]
        return found

    def varlen(self) -> Varlen:
        """For flash attention, whose causal mask ends at the last query and the last key."""
        device = self.ends.device
        queries = [0, *(span.stop for span in self.spans)]
        keys, until = [], [0]
        for span in self.spans:
            keys += [torch.arange(*part) for part in span.keys]
            until.append(until[-1] + sum(stop - start for start, stop in span.keys))
        plain = all(len(span.keys) == 1 for span in self.spans)
        return Varlen(
            None if plain else torch.cat(keys).to(device),
            torch.tensor(queries, dtype=torch.int32, device=device),
            torch.tensor(until, dtype=torch.int32, device=device),
            max(b - a for a, b in pairwise(queries)),
            max(b - a for a, b in pairwise(until)),
        )


@dataclass(frozen=True, slots=True)
class Packed:
    """Sequences as one row of a model's input."""

    input_ids: Tensor
    """(1, tokens), int64."""
    layout: Layout
    sources: Tensor
    """Of each prediction, the token whose hidden state makes it, (predictions,)."""
    targets: Tensor
    """The token that is predicted, (predictions,)."""
    entries: Tensor
    """The prediction of each loss token of each sequence, (loss tokens,)."""
    rows: Tensor
    """The sequence of each of those, (loss tokens,)."""
    counts: Tensor
    """Loss tokens of each sequence, (sequences,), int64."""
    shared: int
    """Tokens of the sequences that are not computed again."""


def pack(
    sequences: Sequence[tuple[Sequence[int], Sequence[bool]]],
    device: torch.device,
    *,
    min_share: float = 2.0,
) -> Packed:
    """Lay sequences out in one row.

    Args:
        sequences: Token ids of each, and True where its policy sampled the token.
        device: Where the model is.
        min_share: See `grow`; by default nothing is shared.

    Raises:
        ConfigError: a loss token stands first in its sequence.
    """
    forest = grow([ids for ids, _ in sequences], min_share=min_share)
    before = torch.arange(-1, forest.computed - 1)
    for run in forest.runs:
        before[run.start] = forest.runs[run.parent].stop - 1 if run.parent >= 0 else -1
    chosen = []
    for (_, mask), leaf in zip(sequences, forest.leaves, strict=True):
        if mask[0]:
            raise ConfigError("A loss token stands first in its sequence: nothing predicts it.")
        runs = [forest.runs[number] for number in forest.path(leaf)]
        where = torch.cat([torch.arange(run.start, run.stop) for run in runs])
        chosen.append(where[torch.tensor(mask, dtype=torch.bool)])
    predicted, entries = torch.unique(torch.cat(chosen), return_inverse=True)
    ids = torch.tensor(forest.tokens)
    counts = torch.tensor([len(tokens) for tokens in chosen])
    return Packed(
        ids[None].to(device),
        Layout(forest, device),
        before[predicted].to(device),
        ids[predicted].to(device),
        entries.to(device),
        torch.arange(len(chosen)).repeat_interleave(counts).to(device),
        counts.to(device),
        forest.shared,
    )


def _spans(forest: Forest) -> list[Span]:
    """As few as there are sequences: what a run goes on with first stands right behind it."""
    runs = forest.runs
    heads = [at for at, run in enumerate(runs) if run.parent < 0 or run.parent != at - 1]
    found = []
    for head, following in pairwise([*heads, len(runs)]):
        own = (runs[head].start, runs[following - 1].stop)
        ranges = [] if runs[head].parent < 0 else _ranges(forest, runs[head].parent)
        found.append(Span(*own, (*ranges, own)))
    return found


def _ranges(forest: Forest, number: int) -> list[tuple[int, int]]:
    """Tokens of the path to a run, neighbouring ranges as one."""
    ranges: list[tuple[int, int]] = []
    for run in (forest.runs[step] for step in forest.path(number)):
        if ranges and ranges[-1][1] == run.start:
            ranges[-1] = (ranges[-1][0], run.stop)
        else:
            ranges.append((run.start, run.stop))
    return ranges
