"""What a run tells while it goes and gives at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learners.data.report import DropReport
from swe_env.errors import SweError

OnEval = Callable[[Any, int], dict[str, float]]
"""``on_eval(model, step) -> figures`` to record; may raise `StopTraining`.

The model is a `PeftModel`, or in mode ``full`` transformers' own. The callback may set its
attention, as `agents`' samplers do: training has its own back afterwards. Make a sampler anew each
time, or with ``cache_tokens=0``: one that is kept keeps the keys and values of older weights."""
OnProgress = Callable[["Progress"], None]


class StopTraining(Exception):
    """Raised by a callback to end a run early; the result is saved as it is."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class PauseTraining(Exception):
    """Raised by ``on_progress`` to leave a run after a checkpoint, for ``resume`` to go on with."""


class Paused(SweError):
    """The run was left after a checkpoint, because a callback raised `PauseTraining`."""


class Diverged(SweError):
    """A loss or gradient is not a finite number: no step with it is kept."""


class OutOfMemory(SweError):
    """A pass did not fit the GPU's memory; the last checkpoint is intact."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands, for whoever shows it."""

    stage: str
    """"data" (once a buffer), "reference" (once more for each buffer, from what the cache
    has), "training" or "evaluation" (from 1 again each time)."""
    done: int
    """Samples in stage "data", steps in "training", else sequences."""
    total: int
    """Trajectories looked at in stage "data", else what `done` comes to."""
    metrics: dict[str, float]
    """Figures of the step just done; empty in other stages."""
    note: str = ""
    """In stage "data": what a buffer gives, and what was left out and why."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run gave."""

    out: Path
    """Folder with the adapter or model, ``README.md``, ``training.json`` and ``metrics.jsonl``."""
    steps: int
    """Optimizer steps done, those before a resumption included."""
    metrics: dict[str, float]
    """Figures of the last step."""
    report: DropReport
    """What was left out of the buffer, and why."""
    stopped: str = ""
    """Why the run ended early, or empty."""


def heeded(show: OnProgress) -> OnProgress:
    """`show`, whose wish of outside the steps to end is raised at the step that is shown next.

    Only there do all processes ask together whether the run ends.
    """
    early: list[StopTraining | PauseTraining] = []

    def on_progress(progress: Progress) -> None:
        if progress.stage == "training":
            if early:
                raise early[0]
            show(progress)
            return
        try:
            show(progress)
        except (StopTraining, PauseTraining) as stop:
            early.append(stop)

    return on_progress


def silent(_: Progress) -> None:
    """Show nothing."""
