"""Checkpoints: all that a run needs to go on to the same bytes, written whole or not at all."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from learners.training.model import save_adapter, trainable
from swe_env.errors import ConfigError, SweError

_NAME = re.compile(r"step-(\d+)")
_UNFINISHED = ".saving-"


def save_checkpoint(
    folder: Path, step: int, model: Any, optimizer: Any, extra: Mapping[str, Any], *, keep: int
) -> Path:
    """Write ``folder/step-N`` by way of a temporary name, then drop all but the newest `keep`.

    Each checkpoint is also an adapter that peft loads.

    Raises:
        SweError: the disk is full or the folder cannot be written; older checkpoints are intact.
    """
    target = folder / f"step-{step:08d}"
    temporary: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{_UNFINISHED}*"):  # by a run that was killed while it saved
            shutil.rmtree(left, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder))
        temporary.chmod(0o755)
        save_adapter(model, temporary)
        state = {
            "step": step,
            "parameters": [parameter.detach().cpu() for parameter in trainable(model)],
            "optimizer": optimizer.state_dict(),
            "rng": _rng(),
            "extra": dict(extra),
        }
        torch.save(state, temporary / "state.pt")
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
    except (OSError, RuntimeError) as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        raise SweError(
            f"The checkpoint of step {step} could not be written to {folder} ({error}): free some "
            "space and go on with --resume."
        ) from error
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` stored: ``step``, ``extra`` and the states of the run's parts."""
    state: dict[str, Any] = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    return state


def restore_checkpoint(state: Mapping[str, Any], model: Any, optimizer: Any) -> None:
    """Put model, optimizer and random generators back.

    Raises:
        ConfigError: the checkpoint is of a model with other trainable parameters.
    """
    parameters = trainable(model)
    if [p.shape for p in parameters] != [p.shape for p in state["parameters"]]:
        raise ConfigError("The checkpoint is of an adapter of another shape: start a new run.")
    with torch.no_grad():
        for parameter, saved in zip(parameters, state["parameters"], strict=True):
            parameter.copy_(saved)
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"]["cpu"])
    if torch.cuda.is_available() and state["rng"]["cuda"]:
        torch.cuda.set_rng_state_all(state["rng"]["cuda"])


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints, oldest first."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found)


def _rng() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}
