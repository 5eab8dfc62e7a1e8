"""Where the figures of a run go: ``metrics.jsonl`` always, TensorBoard and W&B when asked for."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from swe_env.cache import digest
from swe_env.errors import ConfigError


class MetricsWriter:
    """Appends one JSON object a step; a resumed run drops what came after its checkpoint."""

    def __init__(
        self,
        folder: Path,
        *,
        tensorboard: bool,
        wandb_project: str | None = None,
        settings: dict[str, Any] | None = None,
        from_step: int = 0,
    ) -> None:
        """Continue the file in `folder` behind the record of step `from_step`.

        Args:
            folder: Of the run.
            tensorboard: Write events, too.
            wandb_project: Send the figures to this project, too.
            settings: The run's, shown beside its figures in W&B.
            from_step: The last step that counts.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        kept = [record for record in read_metrics(folder) if record["step"] <= from_step]
        part = folder / f"{self._path.name}.part"
        part.write_text("".join(json.dumps(record) + "\n" for record in kept))
        part.replace(self._path)
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            board: Any = SummaryWriter
            self._board = board(str(folder / "tensorboard"), purge_step=from_step + 1)
        self._wandb: Any = None
        if wandb_project is not None:
            import wandb

            # One name for one folder: a run that goes on is one run there, too.
            self._wandb = wandb.init(
                project=wandb_project, id=digest([str(folder.resolve())])[:16],
                name=folder.name, resume="allow", config=settings, dir=str(folder),
            )  # fmt: skip

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record the figures of one step (counted from 1)."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=int(error is not None))


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
            f"wandb_project: there is no login to Weights & Biases ({error}): run `wandb login`, "
            "or set WANDB_MODE=offline."
        ) from error


def read_metrics(folder: str | Path) -> list[dict[str, float]]:
    """The records of a run's ``metrics.jsonl``; an unfinished last line is left out."""
    path = Path(folder) / "metrics.jsonl"
    if not path.is_file():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
