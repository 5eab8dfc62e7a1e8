"""`Scorer`: log-probability sums of encoded sequences, the one path for policy and reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from learners.data.batching import collate
from learners.data.encode import Encoded
from learners.ops import SequenceLogps, sequence_logps
from learners.training.workers import Workers


class PolicySums(nn.Module):
    """One forward pass as a module, so that FSDP2 can hang its gathering of weights on it."""

    def __init__(self, model: nn.Module, autocast: torch.dtype | None = None) -> None:
        """`autocast`: type to compute in where it is not that of the weights."""
        super().__init__()
        self.model = model
        self._autocast = autocast

    def forward(
        self, input_ids: Tensor, loss_mask: Tensor, attention_mask: Tensor | None
    ) -> SequenceLogps:
        """As `sequence_logps`."""
        with torch.autocast(
            input_ids.device.type, self._autocast, enabled=self._autocast is not None
        ):
            return sequence_logps(self.model, input_ids, loss_mask, attention_mask=attention_mask)


class Scorer:
    """Scores sequences with a model.

    On a CPU each sequence has a forward pass of its own: one of a few hundred tokens keeps the
    cores busy, padding would be work for nothing, and without a mask attention runs in its quick
    causal mode. On other devices the sequences of a micro-batch share a padded one; so they do
    where the model is sharded, because all processes must make equally many passes.
    """

    def __init__(
        self,
        sums: PolicySums,
        device: torch.device,
        workers: Workers,
    ) -> None:
        self.sums = sums
        self.device = device
        self.workers = workers
        self._padded = device.type != "cpu" or workers.sharded

    @property
    def model(self) -> Any:
        """The model that is scored with."""
        return self.sums.model

    def __call__(self, sequences: Sequence[Encoded]) -> SequenceLogps:
        """Sums for each sequence; differentiable unless gradients are off."""
        groups = [sequences] if self._padded else [[sequence] for sequence in sequences]
        parts = []
        for group in groups:
            batch = collate(group, self.device)
            parts.append(self.sums(batch.input_ids, batch.loss_mask, batch.attention_mask))
        return SequenceLogps(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def all(
        self, sequences: Sequence[Encoded], progress: Callable[[int, int], None] | None = None
    ) -> SequenceLogps:
        """Sums of many sequences without gradients, on the CPU, shared out over the processes.

        Every process gets all of them. Each is scored alone, so that its figures depend neither
        on the others nor on the number of processes.

        Args:
            sequences: What to score, the same on every process.
            progress: Called with (done, total).
        """
        count, total = self.workers.count, len(sequences)
        sums = SequenceLogps(
            torch.zeros(total, dtype=torch.float64),
            torch.zeros(total, dtype=torch.float64),
            torch.zeros(total, dtype=torch.long),
        )
        # Neighbours in this order are of like length, so that no process waits for another.
        order = sorted(range(total), key=lambda row: len(sequences[row]), reverse=True)
        with torch.no_grad():
            for start in range(0, total, count):
                mine = start + self.workers.index
                if mine < total or self.workers.sharded:  # a sharded pass needs every process
                    found = self([sequences[order[min(mine, total - 1)]]])
                if mine < total:
                    for column, value in zip(sums, found, strict=True):
                        column[order[mine]] = value[0]
                if progress is not None:
                    progress(min(start + count, total), total)
        self.workers.add(*sums)
        return sums
