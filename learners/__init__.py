"""Who learns: EntroPO, DPO, KTO and SFT on the agent tokens of recorded trajectories.

    import learners
    result = learners.train(learners.TrainConfig(
        loss="entropo-kto", model="smollm2", buffer="runs/buffer", out="runs/adapter"))

Nothing heavy is imported before one of the names below is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from learners.data import encode, kto_rows, pairs, sft_rows
    from learners.training import (
        Progress,
        StopTraining,
        TrainConfig,
        TrainResult,
        read_metrics,
        train,
    )

__all__ = [
    "Progress",
    "StopTraining",
    "TrainConfig",
    "TrainResult",
    "encode",
    "kto_rows",
    "pairs",
    "read_metrics",
    "sft_rows",
    "train",
]

_FROM_DATA = ("encode", "kto_rows", "pairs", "sft_rows")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'learners' has no attribute {name!r}")
    home = "learners.data" if name in _FROM_DATA else "learners.training"
    return getattr(importlib.import_module(home), name)
