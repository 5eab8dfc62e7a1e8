"""`Tracking`: a run's page at Weights & Biases, for whoever asks for one."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from learners.training.card import public_settings
from learners.training.config import TrainConfig
from learners.training.metrics import read_metrics
from learners.training.results import Paused
from swe_env.disk import write_atomically
from swe_env.errors import ConfigError

_ID = "wandb-id.txt"
"""In the output folder: which run there is this one's."""


class Tracking:
    """The figures of one output folder are one run there, however often it is gone on with."""

    def __init__(self, config: TrainConfig) -> None:
        """Nothing is sent before `start`, and nothing at all without ``config.wandb_project``."""
        self._config = config
        self._run: Any = None
        self._first = 0

    def start(self, out: Path) -> None:
        """Begin a run, or go on with the one of the output folder.

        Raises:
            ConfigError: W&B does not let it begin.
        """
        project = self._config.wandb_project
        if project is None:
            return
        import wandb

        record = out / _ID
        known = record.read_text().strip() if record.is_file() else None
        try:
            self._run = wandb.init(
                project=project, name=out.name, dir=str(out), id=known,
                resume="allow" if known else None, config=public_settings(self._config),
            )  # fmt: skip
            write_atomically(record, f"{self._run.id}\n".encode())
            if known:
                # Online W&B tells which step it waits for; offline the folder knows what it had.
                written = max((int(row["step"]) for row in read_metrics(out)), default=0)
                self._first = written + 1 if self._run.offline else self._run.step
        except (wandb.errors.Error, OSError) as error:
            other = f", remove {record} to begin another there" if known else ""
            raise ConfigError(
                f"wandb_project: the run {known or out.name} in {project!r} cannot be begun "
                f"({_line(error)}): set that right and go on with --resume{other}, or set "
                "WANDB_MODE=offline."
            ) from error

    def log(self, step: int, values: dict[str, float]) -> None:
        """Send the figures of one step (counted from 1), unless an earlier process did."""
        if self._run is not None and step >= self._first:
            self._run.log(values, step=step)

    def __enter__(self) -> Tracking:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._run is not None:
            left = error is None or isinstance(error, Paused)
            self._run.finish(exit_code=int(not left))


def check_wandb(project: str | None) -> None:
    """If it was asked for, the package is there and logged in, unless it is to stay offline.

    Raises:
        ConfigError: it is not.
    """
    if project is None:
        return
    if importlib.util.find_spec("wandb") is None:
        raise ConfigError("wandb_project needs the package wandb: pip install wandb.")
    if os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled"):
        return
    import wandb

    try:
        wandb.login()
    except wandb.errors.Error as error:
        raise ConfigError(
            f"wandb_project: there is no login to Weights & Biases ({_line(error)}): run `wandb "
            "login`, or set WANDB_MODE=offline."
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
