"""`Scorer`: log-probability sums of encoded sequences, the one path for policy and reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from learners.data.batching import Batch
from learners.data.encode import Encoded
from learners.ops import SequenceLogps
from learners.ops.context import Context, context_logps
from learners.ops.packing import Packed
from learners.ops.rotary import forget_lengths, moving_rotary
from learners.training.passes import Passes, forward
from learners.training.workers import Workers
from learners.training.zero import Zero


class PolicySums(nn.Module):
    """One forward pass as a module, so that FSDP2 can hang its gathering of weights on it."""

    def __init__(
        self,
        model: nn.Module,
        autocast: torch.dtype | None = None,
        context: Context | None = None,
    ) -> None:
        """`autocast`: type to compute in where it is not that of the weights.

        `context`: the processes that make the pass together, if any.
        """
        super().__init__()
        self.model = model
        self._autocast = autocast
        self._context = context
        self._moves = bool(moving_rotary(model))

    def forward(self, batch: Batch | Packed, kernel: str) -> SequenceLogps:
        """As `learners.training.passes.forward`."""
        if self._moves:
            forget_lengths(self.model)
        with torch.autocast(
            batch.input_ids.device.type, self._autocast, enabled=self._autocast is not None
        ):
            if self._context is not None and isinstance(batch, Packed):
                return context_logps(self.model, batch, self._context)
            return forward(self.model, batch, kernel)


class Scorer:
    """Scores sequences with a model.

    On a CPU each context of a sequence has a forward pass of its own, or those of a sample have one
    together if they share enough of their beginning; on other devices, and where the model is
    sharded (because all processes must make equally many passes), all of a micro-batch are packed
    into one row, without padding, unless the model allows only one context a pass. See `Passes`.
    """

    def __init__(
        self, sums: PolicySums, passes: Passes, workers: Workers, zero: Zero | None = None
    ) -> None:
        """`zero`: what spreads the model, if DeepSpeed does."""
        self.sums: Any = sums if zero is None else zero.engine
        self.zero = zero
        self.passes = passes
        self.device = passes.device
        self.workers = workers
        self.shared_tokens = 0
        """Tokens that were not computed a second time, of all calls of this process so far."""

    @property
    def model(self) -> Any:
        """The model that is scored with."""
        return self.sums.model

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss` to the parameters'."""
        if self.zero is not None:
            self.zero.backward(loss)
        else:
            torch.autograd.backward(loss)

    def __call__(self, sequences: Sequence[Encoded], width: int = 1) -> SequenceLogps:
        """Sums for each sequence; differentiable unless gradients are off.

        Args:
            sequences: What to score, those of a sample beside each other.
            width: Sequences a sample.
        """
        parts, contexts = [], [sequence.contexts for sequence in sequences]
        for group in self.passes.groups(contexts, width):
            batch = self.passes.batch(group)
            if isinstance(batch, Packed):
                self.shared_tokens += batch.shared
            parts.append(self.sums(batch, self.passes.kernel))
        found = SequenceLogps(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
        return _added(found, [len(own) for own in contexts])

    def all(
        self,
        sequences: Sequence[Encoded],
        width: int = 1,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> SequenceLogps:
        """Sums of many sequences without gradients, on the CPU, shared out over the processes.

        Every process gets all of them. Each sample is scored alone, so that its figures depend
        neither on the others nor on the number of processes.

        Args:
            sequences: What to score, the same on every process.
            width: Sequences a sample.
            progress: Called with (done, total).
        """
        count, total = self.workers.groups, len(sequences)
        sums = SequenceLogps(
            torch.zeros(total, dtype=torch.float64),
            torch.zeros(total, dtype=torch.float64),
            torch.zeros(total, dtype=torch.long),
        )
        samples = [range(at, min(at + width, total)) for at in range(0, total, width)]
        # Neighbours in this order are of like length, so that no process waits for another.
        samples.sort(key=lambda rows: -sum(len(sequences[row]) for row in rows))
        done = 0
        with torch.no_grad():
            for start in range(0, len(samples), count):
                mine = start + self.workers.group
                if mine < len(samples) or self.workers.sharded:  # a pass needs every process
                    rows = samples[min(mine, len(samples) - 1)]
                    found = self([sequences[row] for row in rows], width)
                if mine < len(samples) and self.workers.counts:
                    for column, value in zip(sums, found, strict=True):
                        column[rows.start : rows.stop] = value
                done += sum(len(rows) for rows in samples[start : start + count])
                if progress is not None:
                    progress(done, total)
        self.workers.add(*sums)
        return sums


def _added(found: SequenceLogps, counts: Sequence[int]) -> SequenceLogps:
    """Sums of each trajectory from those of its contexts, of which it has so many."""
    if all(count == 1 for count in counts):
        return found
    device = found.logps.device
    rows = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(device)
    return SequenceLogps(
        *(column.new_zeros(len(counts)).index_add(0, rows, column) for column in found)
    )
