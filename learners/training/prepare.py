"""Everything that can be wrong with a run, found before any long work begins."""

from __future__ import annotations

import logging
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
    *,
    held_out: bool = False,
) -> Dataset:
    """The samples this loss learns from, or is evaluated on where they are `held_out`.

    Raises:
        ConfigError: the token ids of all trajectories that have some are another tokenizer's.
        NoSignal: nothing is left of them, or all have one label; says what was left out and why.
    """
    trajectories = list(trajectories)
    own = own_ids(trajectories, tokenizer, config, refuse=not held_out)
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
