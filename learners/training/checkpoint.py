"""Checkpoints: all that a run needs to go on to the same bytes, written whole or not at all."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from learners.training.policy import Policy
from learners.training.shard import load_optimizer, parted_like, whole, whole_optimizer
from swe_env.errors import ConfigError, SweError

_NAME = re.compile(r"step-(\d+)")
_UNFINISHED = ".saving-"
_STATE = "state.pt"


def save_checkpoint(
    folder: Path,
    step: int,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    extra: Mapping[str, Any],
    *,
    keep: int,
) -> Path:
    """Write ``folder/step-N`` by way of a temporary name, then drop all but the newest `keep`.

    A step that is there already has these weights: its state alone is replaced, in one go.

    States are written whole, however the model is spread, so that a run can go on with another
    number of processes. Unless the whole model is trained, each checkpoint is also an adapter
    that peft loads. Called by all processes; the main one writes.

    Raises:
        SweError: the disk is full or the folder cannot be written; older checkpoints are intact.
    """
    workers, zero = policy.scorer.workers, policy.scorer.zero
    if zero is not None:
        parameters, optimizer_state = zero.parameters(), zero.optimizer_state()
    else:
        parameters = [whole(parameter.detach()).cpu() for parameter in policy.parameters]
        optimizer_state = whole_optimizer(optimizer)
    state = {
        "step": step,
        "parameters": parameters,
        "optimizer": optimizer_state,
        "rng": workers.gather(_rng(policy.scorer.device)),
        "extra": dict(extra),
    }
    adapter = policy.collect() if policy.config.mode != "full" else None
    target = folder / f"step-{step:08d}"

    def write() -> Path:
        _write(target, policy, adapter, state)
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
        return target

    return workers.on_main(write)


def _write(
    target: Path, policy: Policy, adapter: dict[str, Tensor] | None, state: dict[str, Any]
) -> None:
    folder, temporary = target.parent, None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{_UNFINISHED}*"):  # by a run that was killed while it saved
            shutil.rmtree(left, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder))
        temporary.chmod(0o755)
        if policy.config.mode != "full":
            policy.write(temporary, adapter)
        torch.save(state, temporary / _STATE)
        if target.exists():
            (temporary / _STATE).replace(target / _STATE)
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.rename(target)
    except (OSError, RuntimeError) as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        raise SweError(
            f"The checkpoint of step {state['step']} could not be written to {folder} ({error}): "
            "free some space and go on with --resume."
        ) from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` stored: ``step``, ``extra`` and the states of the run's parts."""
    state: dict[str, Any] = torch.load(path / _STATE, map_location="cpu", weights_only=True)
    return state


def restore_checkpoint(
    state: Mapping[str, Any], policy: Policy, optimizer: torch.optim.Optimizer
) -> None:
    """Put model, optimizer and random generators back.

    Raises:
        ConfigError: the checkpoint is of a model with other trainable parameters.
    """
    parameters, zero, saved = policy.parameters, policy.scorer.zero, state["parameters"]
    shapes = [p.shape for p in saved]
    if not (zero.fits(saved) if zero is not None else [p.shape for p in parameters] == shapes):
        raise ConfigError("The checkpoint is of an adapter of another shape: start a new run.")
    if zero is not None:
        zero.load(saved, state["optimizer"])
    else:
        with torch.no_grad():
            for parameter, value in zip(parameters, saved, strict=True):
                parameter.copy_(parted_like(value, parameter))
        load_optimizer(optimizer, state["optimizer"])
    index = policy.scorer.workers.index
    if index < len(state["rng"]):  # a process that was not there before keeps its own
        generators = state["rng"][index]
        torch.set_rng_state(generators["cpu"])
        if "device" in generators and policy.scorer.device.type == "cuda":
            torch.cuda.set_rng_state(generators["device"], policy.scorer.device)


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints, oldest first."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found)


def _rng(device: torch.device) -> dict[str, Tensor]:
    found = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        found["device"] = torch.cuda.get_rng_state(device)
    return found
