"""To how many experts of a layer a token is sent, whatever a model's family calls that."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CHOSEN = ("num_experts_per_tok", "top_k_experts")
"""Names of it in a text model's configuration."""


def chosen_experts(config: PretrainedConfig) -> int | None:
    """Experts a token is sent to, read from a text model's configuration; None if it names none."""
    return next((size for name in CHOSEN if (size := getattr(config, name, None))), None)
