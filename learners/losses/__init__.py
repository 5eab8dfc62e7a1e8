"""Losses: pure functions of log-probability sums → `LossOutput(loss, metrics)`."""

from learners.losses.base import LossOutput
from learners.losses.dpo import dpo, entropo_dpo
from learners.losses.kto import entropo_kto, entropo_kto_released, kto
from learners.losses.registry import Loss, get_loss, losses
from learners.losses.sft import sft
from learners.losses.variants import (
    entropo_dpo_normalized,
    entropo_kto_normalized,
    h_dpo,
    spl,
)

__all__ = [
    "Loss",
    "LossOutput",
    "dpo",
    "entropo_dpo",
    "entropo_dpo_normalized",
    "entropo_kto",
    "entropo_kto_normalized",
    "entropo_kto_released",
    "get_loss",
    "h_dpo",
    "kto",
    "losses",
    "sft",
    "spl",
]
