"""`Passes`: which sequences share a forward pass, and what it computes only once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from learners.data.batching import Batch, collate, microbatches, padded_size, trimmed
from learners.data.dataset import Sample
from learners.data.encode import Encoded
from learners.ops import SequenceLogps, sequence_logps
from learners.ops.keeping import weigh
from learners.ops.kernels import KERNELS
from learners.ops.packed import packed_logps, prepare
from learners.ops.packing import Packed, pack
from learners.ops.prefix import Forest, grow
from learners.ops.rotary import moving_rotary
from learners.ops.sequence import unwrap
from swe_env.errors import ConfigError

log = logging.getLogger(__name__)

_AUTO = {"cpu": ("segments",), "cuda": ("flash", "flex")}
"""Kernels by device, the first that gives the model's own results is taken."""
_MIN_SHARE = {"cpu": 0.1}
"""Least share of a sequence's tokens for which sharing pays; see docs/packing.md."""
_ELSEWHERE = 0.02
_NEVER = 2.0


@dataclass(frozen=True, slots=True)
class Packing:
    """How sequences are put together."""

    kernel: str = "auto"
    """``auto``, one of `learners.ops.kernels.KERNELS`, or ``none``: every sequence alone on a CPU,
    padded together elsewhere."""
    min_share: float | None = None
    """A sequence shares the beginning of another where at least this share of its tokens need not
    be computed again. None: what pays on the device; above 1: never."""

    def __post_init__(self) -> None:
        if self.kernel not in ("auto", "none", *KERNELS):
            raise ConfigError(
                f"There is no packing {self.kernel!r}; there are: auto, none, {', '.join(KERNELS)}."
            )


def default_min_share(device: str) -> float:
    """The least share that pays on devices of this kind (`Packing.min_share`)."""
    return _MIN_SHARE.get(device, _ELSEWHERE)


class Passes:
    """The way sequences of one model go through it."""

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        packing: Packing | None = None,
        *,
        together: bool | None = None,
        place: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Find a kernel that gives the model's own results.

        Args:
            model: As for `prepare`, which may set its attention.
            device: Where the model computes.
            packing: What is asked for; by default what suits the device.
            together: Whether all sequences of a micro-batch go in one pass; by default not on a
                CPU, where one of a few hundred tokens keeps the cores busy and where the reference
                is computed by the very passes of the policy, to the last digit. Never where the
                model's figures depend on a pass's longest sequence (`moving_rotary`).
            place: Where the model is for now, if that is not `device`: see `prepare`.
            dtype: Of attention's inputs in a pass; by default the model's.

        Raises:
            ConfigError: the kernel that was asked for does not fit the model.
        """
        self.device = device
        packing = packing or Packing()
        later = (device, dtype or unwrap(model).dtype)
        elsewhere = place is not None and place.type != device.type
        self.kernel = _choose(model, device, packing, place or device, later if elsewhere else None)
        wanted = device.type != "cpu" if together is None else together
        self.together = wanted and not moving_rotary(model)
        share = packing.min_share
        if share is None:
            share = default_min_share(device.type)
        self.min_share = share if self.kernel else _NEVER

    def grow(self, contexts: Sequence[Encoded]) -> Forest:
        """The contexts with what they share once."""
        return grow([trimmed(context)[0] for context in contexts], min_share=self.min_share)

    def groups(self, contexts: Sequence[Sequence[Encoded]], width: int) -> list[Sequence[Encoded]]:
        """Contexts that go in one pass, in order: all, or a sample's if they share.

        Args:
            contexts: Of each sequence that is scored, those of a sample beside each other.
            width: Sequences a sample.
        """
        samples = [
            [context for row in contexts[start : start + width] for context in row]
            for start in range(0, len(contexts), width)
        ]
        if self.together:
            return [[context for sample in samples for context in sample]]
        found: list[Sequence[Encoded]] = []
        for sample in samples:
            if self.kernel and len(sample) > 1 and self.grow(sample).shared:
                found.append(sample)
            else:
                found += [[context] for context in sample]
        return found

    def batch(self, contexts: Sequence[Encoded]) -> Batch | Packed:
        """One pass's input."""
        if self.kernel and (self.together or len(contexts) > 1):
            rows = [trimmed(context) for context in contexts]
            return pack(rows, self.device, min_share=self.min_share)
        return collate(contexts, self.device)

    def microbatches(self, samples: Sequence[Sample], budget: int) -> list[list[int]]:
        """An optimizer batch in passes of at most `budget` computed tokens, if a sample allows.

        Where sequences do not go together, more samples at once would only keep more activations.
        """
        if not self.together:
            budget = 0
        padded = self.together and not self.kernel
        size = padded_size if padded else lambda sequences: self.grow(sequences).computed
        return microbatches(samples, budget, size=size)


def forward(model: nn.Module, batch: Batch | Packed, kernel: str) -> SequenceLogps:
    """One pass."""
    layout = batch.layout if isinstance(batch, Packed) else None
    weigh(model, batch.input_ids, layout)
    if isinstance(batch, Packed):
        return packed_logps(model, batch, kernel)
    return sequence_logps(
        model, batch.input_ids, batch.loss_mask, attention_mask=batch.attention_mask
    )


def _choose(
    model: nn.Module,
    device: torch.device,
    packing: Packing,
    place: torch.device,
    later: tuple[torch.device, torch.dtype] | None,
) -> str:
    if packing.kernel == "none":
        return ""
    if packing.kernel == "flex" and device.type == "cpu":
        raise ConfigError(
            "packing = 'flex' needs a GPU: flex attention has no backward pass on a CPU; leave "
            "packing out."
        )
    wanted = _AUTO.get(device.type, ()) if packing.kernel == "auto" else (packing.kernel,)
    reason = f"there is no kernel for {device.type}"
    for kernel in wanted:
        reason = prepare(model, kernel, place, later=later)
        if not reason:
            return kernel
        log.info("Not packed with %s: %s.", kernel, reason)
    if packing.kernel != "auto":
        raise ConfigError(f"This model cannot be packed with {packing.kernel}: {reason}.")
    log.warning("Sequences are padded or computed alone, not packed: %s.", reason)
    return ""
