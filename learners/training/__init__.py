"""From a configuration to an adapter: loop, reference cache, checkpoints, records."""

from learners.training.config import TrainConfig
from learners.training.loop import Progress, StopTraining, TrainResult, train
from learners.training.metrics import read_metrics
from learners.training.prepare import NoSignal

__all__ = [
    "NoSignal",
    "Progress",
    "StopTraining",
    "TrainConfig",
    "TrainResult",
    "read_metrics",
    "train",
]
