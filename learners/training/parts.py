"""`Parts`: everything one run is made of, each part made once and checked before it is used."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from learners.data.dataset import Dataset, Sample
from learners.data.encode import Encoded
from learners.data.report import DropReport
from learners.losses import Loss, get_loss
from learners.losses.z0 import Z0
from learners.training.baseline import check_mismatched, make_z0, mismatches
from learners.training.card import versions
from learners.training.checkpoint import newest_checkpoint
from learners.training.config import TrainConfig
from learners.training.folder import OutFolder
from learners.training.heldout import HeldOut
from learners.training.ids import own_ids
from learners.training.model import adapter_digest, check_adapter
from learners.training.policy import Policy, check_mode, make_policy
from learners.training.prepare import (
    NoSignal,
    build_dataset,
    check_device,
    check_positions,
    check_vocabulary,
    encoder,
    read_buffer,
)
from learners.training.reference import reference_logps
from learners.training.results import OnProgress, Progress
from learners.training.schedule import total_steps
from learners.training.score import Scorer
from learners.training.solutions import Attempts, Solutions, attempts
from learners.training.step import Objective, try_loss
from learners.training.stopping import check_window
from learners.training.tracking import Tracking, check_wandb
from learners.training.workers import Workers
from swe_env.errors import ConfigError
from swe_env.machine import commit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Data:
    """What the buffers hold for this run."""

    train: Dataset
    held_out: Dataset | None
    attempts: Attempts | None
    """Of the held-out tasks that have several correct solutions; None without any."""
    mismatched: list[Encoded]
    """KTO's mismatched sequences, when its z0 wants them."""

    @property
    def datasets(self) -> list[Dataset]:
        """All of them."""
        several = self.attempts.dataset if self.attempts is not None else None
        return [one for one in (self.train, self.held_out, several) if one is not None]

    @property
    def sequences(self) -> list[Encoded]:
        """All that is scored."""
        found = [s for one in self.datasets for sample in one.samples for s in sample.sequences]
        return [*found, *self.mismatched]

    @property
    def digest(self) -> str:
        """Over everything that a process must see as the others do."""
        return "".join(dataset.digest for dataset in self.datasets)


@dataclass(slots=True)
class Parts:
    """What one run is made of."""

    config: TrainConfig
    workers: Workers
    out: Path
    data: Data
    saved: dict[str, Any] | None
    """The checkpoint to go on from, until the run has taken it."""
    policy: Policy
    objective: Objective
    optimizer: torch.optim.Optimizer
    references: Tensor
    """Of the training samples, float64, (samples, sequences a sample)."""
    z0: Z0 | None
    held_out: HeldOut | None
    total: int
    """Optimizer steps of the whole run."""


def make_parts(
    config: TrainConfig,
    workers: Workers,
    show: OnProgress,
    folder: OutFolder,
    tracking: Tracking,
) -> Parts:
    """Check, read, load and score; everything that can be wrong is found before the scoring.

    The main process holds `folder` then.

    Raises:
        ConfigError: as `learners.train` says.
    """
    from agents.policies.hub import load_tokenizer

    loss, settings = _check(config, workers)
    out = workers.on_main(folder.check)
    data = _read(config, load_tokenizer(config.model, config.chat_template), loss, show)
    workers.check_equal("samples", data.digest)
    total = total_steps(
        len(data.train), config.batch_size, epochs=config.epochs, max_steps=config.max_steps
    )
    check_window(config, total)
    saved = _saved(config, out, data.train.digest, workers)

    def fits(vocab_size: int) -> None:
        for dataset in data.datasets:
            check_vocabulary(dataset, vocab_size)

    probe = data.train.samples[0].sequences[0].input_ids[:16]
    policy = make_policy(config, workers, list(probe), fits)
    _check_same(
        saved, out, "base", policy.fingerprint,
        f"The base model {config.model} has other weights", "the model",
    )  # fmt: skip
    check_positions(data.sequences, policy.model)
    check_passes(policy.scorer, data)
    workers.on_main(lambda: folder.open(policy.size))
    workers.on_main(lambda: tracking.start(out))
    objective = Objective(loss, settings, policy.scorer, config.micro_batch_tokens)
    references, z0 = _reference(policy, objective, data, config, show)
    return Parts(
        config=config,
        workers=workers,
        out=out,
        data=data,
        saved=saved,
        policy=policy,
        objective=objective,
        optimizer=torch.optim.AdamW(policy.parameters, lr=0.0, weight_decay=config.weight_decay),
        references=references,
        z0=z0,
        held_out=_held_out(policy, objective, data, config, show),
        total=total,
    )


def loss_settings(config: TrainConfig) -> tuple[Loss, dict[str, float]]:
    """The loss and its settings, once they are known to go together.

    Raises:
        ConfigError: there is no such loss, or it refuses a setting.
    """
    loss = get_loss(config.loss)
    zeta = config.zeta_for(loss.parameters)
    settings = config.model_dump(
        include={"gamma", "label_smoothing", "desirable_weight", "undesirable_weight"}
    )
    settings |= {"zeta": zeta, "beta": config.gamma}
    try_loss(loss, settings)
    if _wants_mismatched(config, loss):
        check_mismatched(config, loss.name, zeta)
    if config.stop_kl is not None and not loss.needs_reference:
        raise ConfigError(
            f"stop_kl is a distance from the reference, which {loss.name} has none of: leave it "
            "out."
        )
    return loss, settings


def _check(config: TrainConfig, workers: Workers) -> tuple[Loss, dict[str, float]]:
    found = loss_settings(config)
    check_device(config.device)
    workers.on_main(lambda: check_wandb(config.wandb_project))
    check_mode(config, workers)
    if config.init_adapter is not None:
        check_adapter(config.init_adapter)
    return found


def _read(
    config: TrainConfig, tokenizer: PreTrainedTokenizerBase, loss: Loss, show: OnProgress
) -> Data:
    train = build_dataset(read_buffer(config.buffer), tokenizer, config, loss)
    _tell(train.report, f"{train.report}.", show)
    held_out, found = None, None
    if config.eval_buffer is not None:
        trajectories = read_buffer(config.eval_buffer)
        try:
            held_out = build_dataset(trajectories, tokenizer, config, loss, held_out=True)
        except NoSignal as error:
            raise NoSignal(f"Nothing can be evaluated on {config.eval_buffer}: {error}") from error
        own = own_ids(trajectories, tokenizer, config, refuse=False, tell=False)
        found = attempts(own, encoder(tokenizer, config))
        several = f"of several solutions: {found.dataset.report}"
        _tell(held_out.report, f"Held out: {held_out.report}; {several}.", show)
    wanted = _wants_mismatched(config, loss)
    return Data(
        train,
        held_out,
        found if found is not None and len(found.dataset) else None,
        mismatches(train.samples, config.max_tokens) if wanted else [],
    )


def _tell(report: DropReport, note: str, show: OnProgress) -> None:
    log.info("%s", note)
    show(Progress("data", report.kept, report.seen, {}, note))


def _saved(config: TrainConfig, out: Path, data: str, workers: Workers) -> dict[str, Any] | None:
    """The last checkpoint, once it is known to be of the same data and starting adapter.

    Raises:
        ConfigError: one of them is another than when the run began, or no checkpoint can be read.
    """
    saved = newest_checkpoint(out / "checkpoints", workers)
    _check_same(
        saved, out, "data", data, f"The buffer {config.buffer} gives other samples", "the buffer"
    )
    _check_same(
        saved, out, "init_adapter", adapter_digest(config.init_adapter),
        f"The starting adapter {config.init_adapter} is another", "the adapter",
    )  # fmt: skip
    return saved


def check_passes(scorer: Scorer, data: Data) -> None:
    """Processes that share a model can make equally many passes.

    Raises:
        ConfigError: a trajectory's contexts would need passes that other processes do not make.
    """
    if scorer.passes.together or not scorer.workers.sharded:
        return
    sequences = [s for one in data.datasets for sample in one.samples for s in sample.sequences]
    count = sum(len(sequence.contexts) > 1 for sequence in sequences)
    if count:
        raise ConfigError(
            f"{count} sequences have prompts that rewrite earlier turns, each of which this "
            "model's rotary frequencies give a pass of its own; processes that share the model "
            "must make equally many: launch without --use_fsdp or --use_deepspeed, or on a buffer "
            "without them."
        )


def _check_same(
    saved: dict[str, Any] | None, out: Path, name: str, now: str, problem: str, again: str
) -> None:
    """What the run began with, of which `now` is the digest, is as it was, as far as is known."""
    before = now if saved is None else saved["extra"].get(name, now)
    if before != now:
        raise ConfigError(
            f"{problem} (digest {now}) than when the run in {out} began ({before}): resume it with "
            f"{again} as it was, or train into another folder."
        )


def _reference(
    policy: Policy, objective: Objective, data: Data, config: TrainConfig, show: OnProgress
) -> tuple[Tensor, Z0 | None]:
    """Reference sums of the training samples, and KTO's z0."""
    samples, loss = data.train.samples, objective.loss
    count, width = _shape(samples)
    if not loss.needs_reference:
        return torch.zeros(count, width, dtype=torch.float64), None
    logps = _score(policy, data.train, config, show, extra=data.mismatched)
    references = logps[: count * width].view(-1, width)
    if "z0" not in loss.parameters:
        return references, None
    mismatch = (data.mismatched, logps[count * width :]) if data.mismatched else None
    rewards = objective.rewards(samples, references[:, 0], references[:, 0])
    z0 = make_z0(
        config.z0, samples, rewards, scorer=policy.scorer, mismatch=mismatch,
        ref_weight=objective.settings["gamma"] / objective.settings["zeta"],
        batch_size=config.batch_size,
    )  # fmt: skip
    return references, z0


def _held_out(
    policy: Policy, objective: Objective, data: Data, config: TrainConfig, show: OnProgress
) -> HeldOut | None:
    if data.held_out is None:
        return None
    samples = data.held_out.samples
    references = torch.zeros(_shape(samples), dtype=torch.float64)
    if objective.loss.needs_reference:
        scored = _score(policy, data.held_out, config, show)
        references = scored.view_as(references)
    solutions = None
    if data.attempts is not None:
        scored = _score(policy, data.attempts.dataset, config, show)
        solutions = Solutions(data.attempts, scored, policy.scorer)
    return HeldOut(objective, samples, references, config.z0, solutions)


def _score(
    policy: Policy,
    dataset: Dataset,
    config: TrainConfig,
    show: OnProgress,
    extra: Sequence[Encoded] = (),
) -> Tensor:
    sequences = [s for sample in dataset.samples for s in sample.sequences]
    key = [
        policy.digest, adapter_digest(config.init_adapter),
        f"{config.mode} {policy.compute} {policy.model.dtype}", _processor(policy.scorer.device),
        str(sorted(versions().items())), commit(),
    ]  # fmt: skip
    return reference_logps(
        policy.scorer, [*sequences, *extra], key=key,
        width=len(dataset.samples[0].sequences),
        progress=lambda done, total: show(Progress("reference", done, total, {})),
    ).logps  # fmt: skip


def _processor(device: torch.device) -> str:
    """What decides in which order a device adds up."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"


def _shape(samples: Sequence[Sample]) -> tuple[int, int]:
    return len(samples), len(samples[0].sequences)


def _wants_mismatched(config: TrainConfig, loss: Loss) -> bool:
    return config.z0 == "mismatched" and "z0" in loss.parameters
