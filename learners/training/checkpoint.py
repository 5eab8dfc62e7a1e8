"""Checkpoints: all that a run needs to go on to the same bytes, written whole or not at all."""

from __future__ import annotations

import errno
import logging
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from learners.training.draws import draw_again, draws
from learners.training.policy import Policy
from learners.training.shard import load_optimizer, on_cpu, parted_like, whole_optimizer
from learners.training.workers import Workers
from swe_env.disk import sync_folder
from swe_env.errors import ConfigError, SweError

log = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d+)")
_UNFINISHED = ".saving-"
_STATE = "state.pt"
_DAMAGED = ".damaged"


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

    A step that is there already has these weights: its state alone is replaced, in one go. A
    checkpoint is on the disk before it has its name, so a power cut leaves no half of one.

    States are written whole, however the model is spread, so that a run can go on with another
    number of processes. Unless the whole model is trained, each checkpoint is also an adapter
    that peft loads. Called by all processes; the main one writes.

    Raises:
        SweError: the disk is full or the folder cannot be written; older checkpoints are intact.
    """
    workers, zero = policy.scorer.workers, policy.scorer.zero
    if zero is not None:
        parameters = zero.parameters(keep=workers.main)
        optimizer_state = zero.optimizer_state(keep=workers.main)
    else:
        parameters = on_cpu(policy.parameters, keep=workers.main)
        optimizer_state = whole_optimizer(optimizer, keep=workers.main)
    state = {
        "step": step,
        "parameters": parameters,
        "optimizer": optimizer_state,
        "rng": workers.gather(draws(policy.scorer.device)),
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
        sync_folder(temporary)
        if target.exists():
            (temporary / _STATE).replace(target / _STATE)
            sync_folder(target)
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.rename(target)
            sync_folder(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        raise SweError(
            f"The checkpoint of step {state['step']} could not be written to {folder} ({error}): "
            "free some space and go on with --resume."
        ) from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` stored: ``step``, ``extra`` and the states of the run's parts.

    Raises:
        ConfigError: it cannot be read.
        SweError: it cannot be read for now.
    """
    try:
        return _load(path)
    except Exception as error:  # unpickling what is damaged raises whatever it meets
        _check_passing(path, error)
        raise ConfigError(
            f"The checkpoint {path} cannot be read ({_reason(error)}): remove it to go on without "
            "it."
        ) from error


def newest_checkpoint(folder: Path, workers: Workers) -> dict[str, Any] | None:
    """The state of the newest checkpoint that can be read, None where there are none.

    Called by all processes, which get the same one: the main one chooses, and sets aside what is
    newer and damaged, so that it counts as a checkpoint no more.

    Raises:
        ConfigError: none can be read, or a process cannot read what the main one could.
    """
    found: list[dict[str, Any]] = []
    path = workers.on_main(lambda: _choose(folder, found))
    if path is None:
        return None
    problem = ""
    if not found:
        try:
            found.append(read_checkpoint(path))
        except SweError as error:
            problem = str(error)
    for said in workers.gather(problem):
        if said:
            raise ConfigError(said)
    return found[0]


def _choose(folder: Path, found: list[dict[str, Any]]) -> Path | None:
    """The newest checkpoint that can be read; its state is added to `found`."""
    damaged: dict[Path, str] = {}
    for path in reversed(checkpoints(folder)):
        try:
            _check_sums(path)
            found.append(_load(path))
        except Exception as error:  # as above
            _check_passing(path, error)
            damaged[path] = _reason(error)
            continue
        for other, reason in damaged.items():
            aside = other.with_name(other.name + _DAMAGED)
            shutil.rmtree(aside, ignore_errors=True)
            other.rename(aside)
            log.warning(
                "The checkpoint %s cannot be read (%s): it is set aside as %s, and the run goes on "
                "from %s.", other, reason, aside.name, path.name,
            )  # fmt: skip
        return path
    if damaged:
        newest, reason = next(iter(damaged.items()))
        raise ConfigError(
            f"No checkpoint in {folder} can be read ({newest.name}: {reason}): remove that folder "
            "to begin the run anew with --resume, or train into another."
        )
    return None


def _load(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path / _STATE, map_location="cpu", weights_only=True)
    return state


def _check_sums(path: Path) -> None:
    """Read it once for its checksums, which torch does not look at."""
    with zipfile.ZipFile(path / _STATE) as archive:
        part = archive.testzip()
    if part is not None:
        raise ValueError(f"the checksum of {part} does not fit")


_PASSING = (errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT)


def _check_passing(path: Path, error: Exception) -> None:
    """It tells of the file, not of the machine.

    Raises:
        SweError: it does not.
    """
    no_memory = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
    if no_memory or (isinstance(error, OSError) and error.errno in _PASSING):
        raise SweError(
            f"The checkpoint {path} cannot be read now ({_reason(error)}): nothing was changed, so "
            "go on with --resume when it can."
        ) from error


def _reason(error: Exception) -> str:
    said = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {said[0]}"


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
        draw_again(state["rng"][index], policy.scorer.device)


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints, oldest first."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found)
