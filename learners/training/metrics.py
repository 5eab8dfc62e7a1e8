"""Where the figures of a run are written: ``metrics.jsonl`` always, TensorBoard when asked for."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any


class MetricsWriter:
    """Appends one JSON object a step; a resumed run drops what came after its checkpoint."""

    def __init__(self, folder: Path, *, tensorboard: bool, from_step: int = 0) -> None:
        """Continue the file in `folder` behind the record of step `from_step`.

        Args:
            folder: Of the run.
            tensorboard: Write events, too.
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

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record the figures of one step (counted from 1)."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

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
