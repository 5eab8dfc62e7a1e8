"""`learners.train` as a step of a longer experiment: shown, continued, and not done twice."""

from __future__ import annotations

from pathlib import Path

from learners.training import TrainConfig, TrainResult, train
from learners.training.commands import progress_bar
from learners.training.results import OnEval


def train_once(config: TrainConfig, on_eval: OnEval | None = None) -> TrainResult:
    """Train with a bar on stderr; a run that was killed goes on, a finished one is not repeated."""
    config = config.model_copy(update={"resume": Path(config.out).exists()})
    with progress_bar() as show:
        return train(config, on_eval=on_eval, on_progress=show)
