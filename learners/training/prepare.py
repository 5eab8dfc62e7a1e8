"""Everything that can be wrong with a run, found before any long work begins."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learners.data.dataset import Dataset, Encoder, pair_samples, row_samples
from learners.data.encode import Encoded, encode, recorded
from learners.losses import Loss
from learners.ops.rotary import learned_positions
from learners.ops.sequence import unwrap
from learners.training.config import TrainConfig
from learners.training.ids import own_ids
from swe_env.disk import part_of, write_atomically
from swe_env.errors import ConfigError
from swe_env.replay.trajectory import Trajectory

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from agents.chat import ChatTemplate
    from agents.parsing import TextFormat

log = logging.getLogger(__name__)


class NoSignal(ConfigError):
    """The settings may be right, but the data hold nothing to learn from: collect more."""


_SETTINGS = "settings.json"
_PART = part_of(Path(_SETTINGS)).name
_MAY_CHANGE = {
    "resume", "out", "save_every", "keep_checkpoints", "eval_every", "eval_buffer", "tensorboard",
    "wandb_project", "gradient_checkpointing",
}  # fmt: skip
"""Settings that a resumed run may have other values of: they do not change its result."""


def check_folder(config: TrainConfig) -> Path:
    """The output folder: missing, empty, or holding the same run's earlier part.

    Raises:
        ConfigError: it holds something else, or a run with other settings or settings that cannot
            be read, or cannot be made.
    """
    out = Path(config.out).expanduser()
    record = out / _SETTINGS
    settings = json.loads(config.model_dump_json())
    place = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise ConfigError(
            f"The output folder {out} cannot be made: {place} is "
            f"{'not writable' if place.is_dir() else 'no folder'}."
        )
    if out.exists() and any(path.name != _PART for path in out.iterdir()):
        if not config.resume:
            raise ConfigError(
                f"The output folder {out} is not empty: give another, or go on with --resume."
            )
        if not record.is_file():
            raise ConfigError(f"{out} holds no earlier training run, so there is none to resume.")
        # A setting that this version has and that one had not was as it is by default.
        default = json.loads(TrainConfig(model="", buffer="", out="").model_dump_json())
        before = default | _read_settings(record)
        changed = [
            name for name in settings
            if name not in _MAY_CHANGE and settings[name] != before.get(name)
        ]  # fmt: skip
        if changed:
            name = changed[0]
            raise ConfigError(
                f"The run in {out} was started with {name} = {before.get(name)!r}, not "
                f"{settings[name]!r}: resume it with the same settings."
            )
    return out


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


def check_device(device: str) -> None:
    """There is such a device here.

    Raises:
        ConfigError: says what there is.
    """
    import torch

    if device == "auto":
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        there = "cuda" if torch.cuda.is_available() else "no CUDA device"
        raise ConfigError(
            f"Device {device!r} cannot be used (there is {there}): {str(error).splitlines()[0]}"
        ) from error


def open_folder(out: Path, config: TrainConfig, weights: int) -> None:
    """Make the output folder and write down the settings; called once nothing can be wrong.

    Args:
        out: Of the run.
        config: Its settings.
        weights: How many are trained.

    Raises:
        ConfigError: it cannot be made, or its disk has no room for checkpoints and result.
    """
    # Of a checkpoint: weights and both moments in float32, and beside them the adapter.
    copies = 0 if config.save_every is None else config.keep_checkpoints + 1
    needed = weights * (copies * (12 if config.mode == "full" else 16) + 4)
    place = next(path for path in (out, *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ConfigError(
            f"The disk of {out} has {free / 2**20:.3g} MiB left, checkpoints and result take up to "
            f"{needed / 2**20:.3g} MiB: free some space, or set keep_checkpoints=1 or "
            "save_every=null (no checkpoints)."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / _SETTINGS, (config.model_dump_json(indent=2) + "\n").encode())
    except OSError as error:
        raise ConfigError(f"The output folder {out} cannot be written ({error}).") from error


def read_buffer(path: str) -> list[Trajectory]:
    """All trajectories of a buffer.

    Raises:
        ConfigError: there is no such folder, or nothing at that URL.
        NoSignal: there is nothing in it.
    """
    from swe_env.replay import ReplayBuffer

    remote = "://" in path
    if not remote and not Path(path).expanduser().is_dir():
        raise ConfigError(f"There is no replay buffer {path}.")
    trajectories = list(
        ReplayBuffer(path if remote else Path(path).expanduser(), create=not remote)
    )
    if not trajectories:
        raise NoSignal(f"The replay buffer {path} is empty: record some rollouts first.")
    return trajectories


def build_dataset(
    trajectories: Iterable[Trajectory],
    tokenizer: PreTrainedTokenizerBase,
    config: TrainConfig,
    loss: Loss,
) -> Dataset:
    """The samples this loss learns from.

    Raises:
        ConfigError: the token ids of all trajectories that have some are another tokenizer's.
        NoSignal: nothing is left of them, or all have one label; says what was left out and why.
    """
    trajectories = list(trajectories)
    own = own_ids(trajectories, tokenizer, config)
    encode_one = encoder(tokenizer, config)
    if loss.kind == "pairs":
        dataset = pair_samples(
            own, encode_one,
            per_task=config.pairs_per_task, ties=config.ties_for(loss.parameters),
            seed=config.seed, text_format=config.text_format, step_level=not loss.counts_tokens,
        )  # fmt: skip
    else:
        dataset = row_samples(
            own, encode_one, kind=loss.kind, per_task=config.per_task, seed=config.seed
        )
    dataset.report.set_aside = sum(a is not b for a, b in zip(own, trajectories, strict=True))
    check_samples(dataset, loss)
    return dataset


def check_vocabulary(dataset: Dataset, vocab_size: int) -> None:
    """Every token id is one the model has.

    Raises:
        ConfigError: names the highest that is not.
    """
    sequences = [sequence for sample in dataset.samples for sequence in sample.sequences]
    ids = [sequence.input_ids for sequence in sequences]
    ids += [one.input_ids for sequence in sequences for one in sequence.later]
    highest = max(map(max, filter(None, ids)))
    if highest >= vocab_size:
        raise ConfigError(
            f"The buffer holds token id {highest}, the model's vocabulary ends at "
            f"{vocab_size - 1}: the trajectories were recorded with another model's tokenizer."
        )


def check_positions(sequences: Sequence[Encoded], model: nn.Module) -> None:
    """No context is longer than the model has positions for.

    Where positions are computed (rotary ones) a longer one can be trained on, and is told of.

    Raises:
        ConfigError: positions are learned, and end before the longest context does.
    """
    causal: Any = unwrap(model)
    limit: int | None = getattr(causal.config.get_text_config(), "max_position_embeddings", None)
    longest = [sequence.longest for sequence in sequences]
    if limit is None or not (over := [tokens for tokens in longest if tokens > limit]):
        return
    if learned_positions(causal.get_decoder(), limit):
        raise ConfigError(
            f"{len(over)} of {len(longest)} sequences have contexts of up to {max(over):,} tokens, "
            f"and {type(causal).__name__} has positions for {limit:,}: leave them out with "
            f'max_tokens={limit}, or shorten them with too_long="cut" beside it.'
        )
    log.warning(
        "%d of %d sequences have contexts longer (up to %d tokens) than the %d that the model was "
        "made for; max_tokens=%d leaves them out.",
        len(over), len(longest), max(over), limit, limit,
    )  # fmt: skip


def encoder(tokenizer: PreTrainedTokenizerBase, config: TrainConfig) -> Encoder:
    """`encode` as the settings have it, with one chat template for all, of what `own_ids` gave."""
    return _Encoder(tokenizer, config)


class _Encoder:
    """`encode` with one chat template and format made once, on first use."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: TrainConfig) -> None:
        self._tokenizer = tokenizer
        self._config = config
        self._chat: ChatTemplate | None = None
        self._format: TextFormat | None = None
        if config.text_format is not None:
            from agents.parsing import get_format

            self._format = get_format(config.text_format)

    def __call__(self, trajectory: Trajectory) -> Encoded:
        if self._chat is None and not recorded(trajectory):
            from agents.chat import ChatTemplate

            self._chat = ChatTemplate(self._tokenizer)
        return encode(
            trajectory,
            self._tokenizer,
            chat=self._chat,
            text_format=self._format,
            max_tokens=self._config.max_tokens,
            too_long=self._config.too_long,
        )


def check_samples(dataset: Dataset, loss: Loss) -> None:
    """There is something in the samples to learn from.

    Raises:
        NoSignal: there are none, or all have one label; says what was left out and why.
    """
    what = {"pairs": "pairs", "kto": "trajectories", "sft": "resolved trajectories"}[loss.kind]
    if not len(dataset):
        raise NoSignal(f"The buffer gives no {what} to train on: {dataset.report}.")
    if loss.kind == "pairs" and all(sample.tie for sample in dataset.samples):
        raise NoSignal(
            f"No task has both a resolved and an unresolved finished trajectory, so there is "
            f"nothing to prefer: {dataset.report}."
        )
    if loss.kind == "kto" and len({sample.desirable for sample in dataset.samples}) == 1:
        label = "resolved" if dataset.samples[0].desirable else "unresolved"
        raise NoSignal(f"Every trajectory is {label}, {loss.name} needs both: {dataset.report}.")
