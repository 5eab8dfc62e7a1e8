"""States of the random generators that a pass draws from: for a checkpoint, or to draw again."""

from __future__ import annotations

import torch
from torch import Tensor


def draws(device: torch.device) -> dict[str, Tensor]:
    """Where the generators of the CPU and of `device` are."""
    found = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        found["device"] = torch.cuda.get_rng_state(device)
    return found


def draw_again(states: dict[str, Tensor], device: torch.device) -> None:
    """Set them back to where they were."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "device" in states:
        torch.cuda.set_rng_state(states["device"], device)
