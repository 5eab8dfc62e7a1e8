"""`LossOutput`, and the checks every loss makes of its arguments."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from swe_env.errors import ConfigError


@dataclass(frozen=True, slots=True)
class LossOutput:
    """What a loss gives back."""

    loss: Tensor
    """Scalar: the mean over the batch's samples."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Detached figures of this batch, under TRL's names. Training takes tensors without dimensions,
    too, and writes their numbers down."""
    per_token: bool = False
    """`loss` is the mean over the batch's tokens instead: micro-batches are weighted by theirs."""


def check_logps(**logps: Tensor) -> None:
    """All log-probability sums are float32 or float64 vectors of one length.

    Raises:
        ConfigError: names the argument at fault.
    """
    first = next(iter(logps))
    shape = logps[first].shape
    for name, value in logps.items():
        if value.dtype not in (torch.float32, torch.float64):
            raise ConfigError(
                f"{name} is {value.dtype}: sums of log-probabilities must be float32 or float64, "
                "half precision loses whole nats on long trajectories."
            )
        if value.dim() != 1 or value.shape != shape:
            raise ConfigError(
                f"{name} has shape {tuple(value.shape)}: expected (batch,), the same as "
                f"{first}'s {tuple(shape)}."
            )


def check_flags(name: str, flags: Tensor, like: Tensor) -> None:
    """`flags` is a bool vector as long as the batch.

    Raises:
        ConfigError: it is not.
    """
    if flags.dtype != torch.bool or flags.shape != like.shape:
        raise ConfigError(
            f"{name} is {flags.dtype} of shape {tuple(flags.shape)}: "
            f"expected bool of shape {tuple(like.shape)}."
        )


def check_lengths(name: str, lengths: Tensor, like: Tensor) -> None:
    """`lengths` is an integer vector as long as the batch.

    Raises:
        ConfigError: it is not.
    """
    if lengths.shape != like.shape or lengths.is_floating_point():
        raise ConfigError(
            f"{name} is {lengths.dtype} of shape {tuple(lengths.shape)}: "
            f"expected integers of shape {tuple(like.shape)}."
        )


def check_positive(**values: float) -> None:
    """Every value is a finite number above zero.

    Raises:
        ConfigError: names the first that is not.
    """
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ConfigError(f"{name} is {value}: it must be a finite number above 0.")


def check_weights(**values: float) -> None:
    """Every value is a finite number, zero or above.

    Raises:
        ConfigError: names the first that is not.
    """
    for name, value in values.items():
        if not 0 <= value < float("inf"):
            raise ConfigError(f"{name} is {value}: it must be a finite number, 0 or above.")


def batch_mean(values: Tensor) -> Tensor:
    """Mean over the batch; of an empty batch a zero that can still be differentiated."""
    return values.sum() / max(values.numel(), 1)


def means(**named: tuple[Tensor, Tensor | None]) -> dict[str, float]:
    """Mean of each vector over its mask (None: everything), left out where the mask is empty.

    Names are written with ``__`` for TRL's slash: ``rewards__chosen`` → ``rewards/chosen``. One
    transfer from the device for all of them.
    """
    kept: dict[str, Tensor] = {}
    for name, (values, mask) in named.items():
        chosen = values.detach() if mask is None else values.detach()[mask]
        if chosen.numel():
            kept[name.replace("__", "/")] = chosen.double().mean()
    if not kept:
        return {}
    return dict(zip(kept, torch.stack(list(kept.values())).tolist(), strict=True))
