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
        temporary = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
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


def load_checkpoint(path: Path, model: Any, optimizer: Any) -> tuple[int, dict[str, Any]]:
    """Put model, optimizer and random generators back; gives (step, what the caller stored).

    Raises:
        ConfigError: the checkpoint is of a model with other trainable parameters.
    """
    state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    parameters = trainable(model)
    if [p.shape for p in parameters] != [p.shape for p in state["parameters"]]:
        raise ConfigError(f"The checkpoint {path} is of an adapter of another shape.")
    with torch.no_grad():
        for parameter, saved in zip(parameters, state["parameters"], strict=True):
            parameter.copy_(saved)
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"]["cpu"])
    if torch.cuda.is_available() and state["rng"]["cuda"]:
        torch.cuda.set_rng_state_all(state["rng"]["cuda"])
    return state["step"], state["extra"]


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints, oldest first."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found)


def _rng() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}
