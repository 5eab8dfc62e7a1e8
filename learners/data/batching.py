"""From encoded sequences to tensors: micro-batches by token budget, padding only where it pays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learners.data.dataset import Sample
from learners.data.encode import Encoded


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences as the model takes them."""

    input_ids: Tensor
    """(sequences, tokens), int64."""
    loss_mask: Tensor
    """(sequences, tokens), bool."""
    attention_mask: Tensor | None
    """(sequences, tokens), bool, False at padding on the right; None when there is none."""


def collate(sequences: Sequence[Encoded], device: torch.device) -> Batch:
    """Pad on the right to the longest; nothing behind a sequence's last loss token is kept.

    What follows the last loss token predicts nothing that is learned, so leaving it out changes
    no log-probability.
    """
    lengths = [len(trimmed(sequence)[0]) for sequence in sequences]
    longest = max(lengths)
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros(len(sequences), longest, dtype=torch.bool)
    attention = torch.zeros_like(mask)
    for row, (sequence, length) in enumerate(zip(sequences, lengths, strict=True)):
        ids[row, :length] = torch.tensor(sequence.input_ids[:length])
        mask[row, :length] = torch.tensor(sequence.loss_mask[:length])
        attention[row, :length] = True
    padded = min(lengths) < longest
    return Batch(ids.to(device), mask.to(device), attention.to(device) if padded else None)


def trimmed(sequence: Encoded) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Token ids and loss mask up to the last loss token, of one context."""
    if sequence.later:
        raise ValueError("A trajectory of several contexts is no single sequence.")
    length = len(sequence) - sequence.loss_mask[::-1].index(True)
    return sequence.input_ids[:length], sequence.loss_mask[:length]


def padded_size(sequences: Sequence[Encoded]) -> int:
    """Tokens computed where all sequences are padded to the longest."""
    return len(sequences) * max(len(sequence) for sequence in sequences)


Size = Callable[[Sequence[Encoded]], int]


def microbatches(
    samples: Sequence[Sample], budget: int, *, size: Size = padded_size
) -> list[list[int]]:
    """Split an optimizer batch into micro-batches of at most `budget` tokens each.

    Padded samples of like length go together, others those of one task, which may share their
    beginning, in lexicographic order, in which neighbours share most. A sample longer than the
    budget is alone in its micro-batch: pairs are never split.

    Args:
        samples: The optimizer batch.
        budget: Most tokens computed in one pass; 0 for each sample alone.
        size: Tokens computed for contexts in one pass.

    Returns:
        Positions in `samples`, each once.
    """
    tasks: dict[int, int] = {}
    if size is not padded_size:
        for sample in samples:
            tasks[sample.group] = max(_longest(sample), tasks.get(sample.group, 0))
    found: list[list[int]] = []
    for position in sorted(range(len(samples)), key=lambda i: _place(samples[i], tasks, i)):
        if found and budget:
            together = [c for i in [*found[-1], position] for c in samples[i].contexts]
            if size(together) <= budget:
                found[-1].append(position)
                continue
        found.append([position])
    return found


def _place(sample: Sample, tasks: dict[int, int], position: int) -> tuple[Any, ...]:
    """Longest first; with `tasks`, the task of the longest sample first."""
    if tasks:
        return -tasks[sample.group], sample.group, sample.sequences[0].input_ids, position
    return -_longest(sample), position


def shares(samples: Sequence[Sample], count: int) -> list[list[int]]:
    """Deal an optimizer batch out to processes, longest first, each to whoever has least.

    Returns:
        Positions in `samples` for each of `count` processes, each once; some may have none.
    """
    found: list[list[int]] = [[] for _ in range(count)]
    load = [0] * count
    for position in sorted(range(len(samples)), key=lambda i: (-samples[i].num_tokens, i)):
        least = load.index(min(load))
        found[least].append(position)
        load[least] += samples[position].num_tokens
    return [sorted(share) for share in found]


def _longest(sample: Sample) -> int:
    return max(len(sequence) for sequence in sample.sequences)
