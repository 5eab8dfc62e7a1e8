"""`learners.train` with its progress bar on stderr."""

from __future__ import annotations

from learners.training import TrainConfig, TrainResult, train
from learners.training.commands import progress_bar
from learners.training.loop import OnEval


def train_shown(config: TrainConfig, on_eval: OnEval | None = None) -> TrainResult:
    """Train and show how it goes."""
    with progress_bar() as show:
        return train(config, on_eval=on_eval, on_progress=show)
