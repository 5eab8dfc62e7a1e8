"""`Scorer`: log-probability sums of encoded sequences, the one path for policy and reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from learners.data.batching import collate
from learners.data.encode import Encoded
from learners.ops import SequenceLogps, sequence_logps


class Scorer:
    """Scores sequences with a model.

    On a CPU each sequence has a forward pass of its own: one of a few hundred tokens keeps the
    cores busy, padding would be work for nothing, and without a mask attention runs in its quick
    causal mode. On other devices the sequences of a micro-batch share a padded one.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model = model
        self.device = device
        self._padded = device.type != "cpu"

    def __call__(self, sequences: Sequence[Encoded]) -> SequenceLogps:
        """Sums for each sequence; differentiable unless gradients are off."""
        groups = [sequences] if self._padded else [[sequence] for sequence in sequences]
        parts = []
        for group in groups:
            batch = collate(group, self.device)
            parts.append(
                sequence_logps(
                    self.model,
                    batch.input_ids,
                    batch.loss_mask,
                    attention_mask=batch.attention_mask,
                )
            )
        return SequenceLogps(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
