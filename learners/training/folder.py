"""`OutFolder`: where a run writes, checked before any work and held by one run at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from learners.training.checkpoint import checkpoints
from learners.training.config import TrainConfig
from swe_env.disk import part_of, write_atomically
from swe_env.errors import ConfigError

log = logging.getLogger(__name__)

_SETTINGS = "settings.json"
_LOCK = ".lock"
_OURS = {part_of(Path(_SETTINGS)).name, _LOCK}
"""What a run that has not begun may leave."""
_MAY_CHANGE = {
    "resume", "out", "save_every", "keep_checkpoints", "eval_every", "eval_buffer", "tensorboard",
    "wandb_project", "gradient_checkpointing", "micro_batch_tokens",
}  # fmt: skip
"""Settings that a resumed run may have other values of: they do not change its result, but for
rounding and, of `micro_batch_tokens` on a GPU, what dropout draws."""
_MAY_MOVE = {"buffer", "init_adapter"}
"""Places, of whose whole content each checkpoint holds a digest."""
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def check_folder(config: TrainConfig, *, moved: bool) -> Path:
    """The output folder: missing, empty, or holding the same run's earlier part.

    Args:
        config: The run's settings.
        moved: Whether buffer and starting adapter may lie elsewhere than they did, because they
            will be compared with a checkpoint.

    Raises:
        ConfigError: it holds something else, or a run with other settings or settings that cannot
            be read, or cannot be made.
    """
    out = Path(config.out).expanduser()
    place = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise ConfigError(
            f"The output folder {out} cannot be made: {place} is "
            f"{'not writable' if place.is_dir() else 'no folder'}."
        )
    if out.exists() and any(path.name not in _OURS for path in out.iterdir()):
        if not config.resume:
            raise ConfigError(
                f"The output folder {out} is not empty: give another, or go on with --resume."
            )
        if not (out / _SETTINGS).is_file():
            raise ConfigError(f"{out} holds no earlier training run, so there is none to resume.")
        moved = moved and bool(checkpoints(out / "checkpoints"))
        _check_settings(out, config, _MAY_CHANGE | (_MAY_MOVE if moved else set()))
    return out


def _check_settings(out: Path, config: TrainConfig, free: set[str]) -> None:
    settings = json.loads(config.model_dump_json())
    # A setting that this version has and that one had not was as it is by default.
    default = json.loads(TrainConfig(model="", buffer="", out="").model_dump_json())
    before = default | _read_settings(out / _SETTINGS)
    changed = [name for name in settings if name not in free and settings[name] != before.get(name)]
    if changed:
        name = changed[0]
        raise ConfigError(
            f"The run in {out} was started with {name} = {before.get(name)!r}, not "
            f"{settings[name]!r}: resume it with the same settings."
        )


def _read_settings(record: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(record.read_text())
        if not isinstance(found, dict):
            raise ValueError("it holds no settings")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{record} cannot be read ({error}), so what the run was started with is not known: "
            "write its settings there again, as JSON, or train into another folder."
        ) from error
    return found


class OutFolder:
    """A run's output folder.

    No other run writes to it from `check` on, where it goes on with a run, and else from `open` on,
    until `close` or the end of the process.
    """

    def __init__(self, config: TrainConfig) -> None:
        """Nothing is looked at yet."""
        self.path = Path(config.out).expanduser()
        self._config = config
        self._lock: int | None = None
        self._found = False

    def check(self) -> Path:
        """As `check_folder`, and hold what is there.

        Raises:
            ConfigError: or another run writes to it.
        """
        check_folder(self._config, moved=True)
        self._found = (self.path / _SETTINGS).is_file()
        if self._found:
            self._hold()
        return self.path

    def open(self, weights: int) -> None:
        """Make it and write down the settings; called once nothing can be wrong.

        Args:
            weights: How many are trained.

        Raises:
            ConfigError: it cannot be made, its disk has no room for checkpoints and result, or
                another run has begun there.
        """
        self._check_room(weights)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._hold()
            if not self._found and (self.path / _SETTINGS).exists():
                raise ConfigError(
                    f"Another run has begun in {self.path} since this one looked: train into "
                    "another folder, or go on with it by --resume."
                )
            settings = self._config.model_dump_json(indent=2) + "\n"
            write_atomically(self.path / _SETTINGS, settings.encode())
        except OSError as error:
            raise ConfigError(
                f"The output folder {self.path} cannot be written ({error})."
            ) from error

    def close(self) -> None:
        """Let others write to it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _hold(self) -> None:
        if self._lock is not None:
            return
        lock = None
        try:
            lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if lock is not None:
                os.close(lock)
            if isinstance(error, BlockingIOError):
                raise ConfigError(
                    f"Another run writes to {self.path}: wait until it has ended, or train into "
                    "another folder."
                ) from error
            if error.errno not in _NO_LOCKS:
                raise ConfigError(
                    f"The output folder {self.path} cannot be written ({error})."
                ) from error
            log.warning(
                "The file system of %s has no locks: nothing keeps another run from writing to it.",
                self.path,
            )
            return
        self._lock = lock

    def _check_room(self, weights: int) -> None:
        config, folder = self._config, self.path / "checkpoints"
        # Of a checkpoint: weights and both moments in float32, and beside them the adapter.
        each = weights * (12 if config.mode == "full" else 16)
        more = config.keep_checkpoints + 1 - len(checkpoints(folder))
        copies = 0 if config.save_every is None else max(more, 1)
        needed = copies * each + weights * 4
        place = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        free = shutil.disk_usage(place).free
        if free < needed:
            raise ConfigError(
                f"The disk of {self.path} has {free / 2**20:.3g} MiB left, checkpoints and result "
                f"take up to {needed / 2**20:.3g} MiB: free some space, or set keep_checkpoints=1 "
                "or save_every=null (no checkpoints)."
            )
