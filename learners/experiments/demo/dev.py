"""Stops preference training when it does harm, and keeps the best adapter seen."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from learners.training import StopTraining

if TYPE_CHECKING:
    from peft import PeftModel


class DevWatch:
    """Rolls the adapter out on development tasks while it is trained.

    The tasks come from the training packages but are never trained on, so that the held-out
    packages stay untouched until the end.
    """

    def __init__(
        self,
        folder: Path,
        measure: Callable[[Path, int], float],
        start: float,
        tolerance: float = 0.05,
    ) -> None:
        """`measure(adapter, step)` gives pass@1; `start` is that of the adapter begun with.

        A fall of at most `tolerance` is taken for the noise of a few dozen attempts.
        """
        self._folder = folder
        self._tolerance = tolerance
        self._measure = measure
        self.seen: dict[int, float] = {0: start}
        # A continued run: what was measured before is read from its records.
        for known in sorted(folder.glob("step-*")):
            step = int(known.name.partition("-")[2])
            self.seen[step] = measure(known, step)

    def __call__(self, model: PeftModel, step: int) -> dict[str, float]:
        """Called by `learners.train`; figures to record.

        Raises:
            StopTraining: pass@1 fell below the best so far.
        """
        adapter = self._save(model, step)
        best = max(self.seen.values())
        self.seen[step] = self._measure(adapter, step)
        if self.seen[step] < best - self._tolerance:
            raise StopTraining(
                f"pass@1 on the development tasks fell from {best:.3f} to {self.seen[step]:.3f}"
            )
        return {"dev_pass@1": self.seen[step]}

    def best(self) -> tuple[int, Path]:
        """Step and folder of the best adapter that was trained; the later one of equals.

        The adapter begun with is not among them: it has an arm of its own in the report.
        """
        step = max((s for s in self.seen if s), key=lambda s: (self.seen[s], s))
        return step, self._folder / f"step-{step}"

    def _save(self, model: PeftModel, step: int) -> Path:
        """Keep the adapter as it is; a folder of that name is always complete, and stays."""
        target = self._folder / f"step-{step}"
        if not target.exists():
            part = self._folder / f".part-{step}"
            shutil.rmtree(part, ignore_errors=True)
            model.save_pretrained(
                str(part), selected_adapters=[model.active_adapter], save_embedding_layers=False
            )
            # peft puts an adapter that is not called "default" into a folder of its name.
            written = next(part.rglob("adapter_config.json")).parent
            written.rename(target)
            shutil.rmtree(part, ignore_errors=True)
        return target
