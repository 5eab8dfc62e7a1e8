"""From a configuration to an adapter: loop, reference cache, checkpoints, records."""

from learners.training.config import TrainConfig
from learners.training.loop import train
from learners.training.metrics import read_metrics
from learners.training.prepare import NoSignal
from learners.training.results import (
    Diverged,
    OutOfMemory,
    Paused,
    PauseTraining,
    Progress,
    StopTraining,
    TrainResult,
)

__all__ = [
    "Diverged",
    "NoSignal",
    "OutOfMemory",
    "PauseTraining",
    "Paused",
    "Progress",
    "StopTraining",
    "TrainConfig",
    "TrainResult",
    "read_metrics",
    "train",
]
