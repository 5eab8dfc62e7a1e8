"""`train`: from a configuration to an adapter on disk."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from learners.data.dataset import Dataset
from learners.data.report import DropReport
from learners.losses import get_loss
from learners.losses.z0 import Z0
from learners.ops import check_logits
from learners.training.baseline import check_mismatched, make_z0, mismatches, state_of
from learners.training.card import commit, versions, write_card
from learners.training.checkpoint import (
    checkpoints,
    read_checkpoint,
    restore_checkpoint,
    save_checkpoint,
)
from learners.training.config import TrainConfig
from learners.training.metrics import MetricsWriter, read_metrics
from learners.training.model import (
    adapter_digest,
    add_adapter,
    base_fingerprint,
    check_adapter,
    save_adapter,
    trainable,
)
from learners.training.prepare import (
    build_dataset,
    check_folder,
    check_vocabulary,
    open_folder,
    read_buffer,
)
from learners.training.reference import reference_logps
from learners.training.schedule import batch_at, learning_rate, total_steps
from learners.training.score import Scorer
from learners.training.step import BatchResult, Objective, run_batch
from swe_env.errors import ConfigError

if TYPE_CHECKING:
    from peft import PeftModel

log = logging.getLogger(__name__)

OnEval = Callable[["PeftModel", int], dict[str, float]]
"""``on_eval(model, step) -> figures`` to record; may raise `StopTraining`."""
OnProgress = Callable[["Progress"], None]


class StopTraining(Exception):
    """Raised by a callback to end a run early; the adapter is saved as it is."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands, for whoever shows it."""

    stage: str
    """"data", "reference" or "training"."""
    done: int
    total: int
    metrics: dict[str, float]
    """Figures of the step just done; empty in other stages."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run gave."""

    out: Path
    """Folder with the adapter, ``README.md``, ``training.json`` and ``metrics.jsonl``."""
    steps: int
    """Optimizer steps done, those before a resumption included."""
    metrics: dict[str, float]
    """Figures of the last step."""
    report: DropReport
    """What was left out of the buffer, and why."""
    stopped: str = ""
    """Why the run ended early, or empty."""


def train(
    config: TrainConfig,
    *,
    on_eval: OnEval | None = None,
    on_progress: OnProgress | None = None,
) -> TrainResult:
    """Train a LoRA adapter on a replay buffer.

    Everything that can be wrong with settings, buffer, model or output folder is found before the
    first forward pass. The run depends on its settings and the buffer alone; with
    ``config.resume`` it goes on from its last checkpoint to the same result.

    Args:
        config: The settings; `TrainConfig.load` reads them from a file.
        on_eval: Called every ``eval_every`` steps and at the end with the model in evaluation
            mode; its figures are recorded as ``eval/*``. Raises `StopTraining` to end the run.
        on_progress: Called with a `Progress` as things go on; may raise `StopTraining` too.

    Raises:
        ConfigError: something is wrong with the settings or what they name; nothing was trained.
        NoSignal: the buffer holds nothing to learn from (a ConfigError too).
        SweError: a checkpoint could not be written.
    """
    run = _Run(config, on_eval, on_progress)
    with run.recording():
        return run.go()


def _silent(_: Progress) -> None:
    """Show nothing."""


class _Run:
    """The parts of one run, each made once."""

    def __init__(
        self, config: TrainConfig, on_eval: OnEval | None, on_progress: OnProgress | None
    ) -> None:
        from agents.policies.hub import load, load_tokenizer

        self.config = config
        self.on_eval = on_eval
        self.on_progress = on_progress or _silent
        self.loss = get_loss(config.loss)
        zeta = config.zeta_for(self.loss.parameters)
        if self._wants_mismatched():
            check_mismatched(config, self.loss.name, zeta)
        if config.init_adapter is not None:
            check_adapter(config.init_adapter)
        self.out = check_folder(config)
        trajectories = read_buffer(config.buffer)
        tokenizer = load_tokenizer(config.model)
        self.dataset: Dataset = build_dataset(trajectories, tokenizer, config, self.loss)
        saved = self._saved()
        self.mismatched = mismatches(self.dataset.samples) if self._wants_mismatched() else []
        log.info("%s", self.dataset.report)
        self.on_progress(Progress("data", len(self.dataset), self.dataset.report.seen, {}))

        base, _ = load(config.model, dtype=config.dtype, device=config.device)
        base.requires_grad_(False)
        check_vocabulary(self.dataset, base.config.get_text_config().vocab_size)
        self.fingerprint = base_fingerprint(base)
        self.device = base.device
        self.model = add_adapter(base, config, self.fingerprint)
        self.scorer = Scorer(self.model, self.device)
        first = self.dataset.samples[0].sequences[0].input_ids[:16]
        check_logits(self.model, torch.tensor(first, device=self.device))
        open_folder(self.out, config)
        settings = config.model_dump(
            include={"gamma", "label_smoothing", "desirable_weight", "undesirable_weight"}
        )
        settings |= {"zeta": zeta, "beta": config.gamma}
        self.objective = Objective(self.loss, settings, self.scorer, config.micro_batch_tokens)
        self.optimizer = torch.optim.AdamW(
            trainable(self.model), lr=0.0, weight_decay=config.weight_decay
        )
        self.total = total_steps(
            len(self.dataset), config.batch_size, epochs=config.epochs, max_steps=config.max_steps
        )
        self.references, self.z0 = self._reference(config.gamma / zeta)
        self.step = 0
        self.metrics: dict[str, float] = {}
        self.stopped = ""
        if saved is not None:
            self._resume(saved)

    def go(self) -> TrainResult:
        """All steps, then the adapter."""
        self.model.train()
        if self.step:
            self._resume_reporting()
        while self.step < self.total and not self.stopped:
            self._step()
        self._finish()
        return TrainResult(self.out, self.step, self.metrics, self.dataset.report, self.stopped)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """The metrics files, open."""
        with MetricsWriter(
            self.out, tensorboard=self.config.tensorboard, from_step=self.step
        ) as self.writer:
            yield

    def _step(self) -> None:
        config, started = self.config, time.perf_counter()
        rows = batch_at(self.step, len(self.dataset), config.batch_size, config.seed)
        samples = [self.dataset.samples[row] for row in rows]
        rate = learning_rate(self.step, self.total, peak=config.learning_rate, warmup=config.warmup)
        z0 = self.z0.estimate(rows) if self.z0 is not None else None
        result = run_batch(self.objective, samples, self.references[rows], z0)
        norm = torch.nn.utils.clip_grad_norm_(trainable(self.model), config.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._update_z0(rows, result)
        self.step += 1
        seconds = time.perf_counter() - started
        self.metrics = result.metrics | {
            "grad_norm": float(norm),
            "learning_rate": rate,
            "epoch": self.step * config.batch_size / len(self.dataset),
            "tokens_per_second": sum(sample.num_tokens for sample in samples) / seconds,
        }
        self._after_step()

    def _after_step(self) -> None:
        config = self.config
        # Saved before the evaluation, which may be long: a run killed in it repeats no step.
        if self._evaluates() or (config.save_every and self.step % config.save_every == 0):
            self._save()
        self._report()

    def _evaluates(self) -> bool:
        every = self.config.eval_every
        due = self.step == self.total or (every is not None and self.step % every == 0)
        return self.on_eval is not None and due

    def _report(self) -> None:
        """Evaluate where it is due, write the step's figures down and show them."""
        if self.on_eval is not None and self._evaluates() and not self.stopped:
            try:
                figures = self._evaluate(self.on_eval)
                self.metrics |= {f"eval/{name}": value for name, value in figures.items()}
            except StopTraining as stop:
                self._stop(stop)
        self.writer.write(self.step, self.metrics)
        self._show()

    def _show(self) -> None:
        if self.stopped:
            return
        try:
            self.on_progress(Progress("training", self.step, self.total, self.metrics))
        except StopTraining as stop:
            self._stop(stop)

    def _stop(self, stop: StopTraining) -> None:
        """No more steps; in the checkpoint too, so that a resumed run takes none either."""
        self.stopped = stop.reason
        log.info("Stopped after step %d: %s", self.step, self.stopped)
        self._save()

    def _save(self) -> None:
        """A checkpoint, unless the run has none."""
        if self.config.save_every is None:
            return
        extra = {
            "z0": state_of(self.z0), "metrics": self.metrics,
            "data": self.dataset.digest, "stopped": self.stopped,
        }  # fmt: skip
        save_checkpoint(
            self.out / "checkpoints", self.step, self.model, self.optimizer, extra,
            keep=self.config.keep_checkpoints,
        )  # fmt: skip

    def _evaluate(self, on_eval: OnEval) -> dict[str, float]:
        """Whatever the callback draws, the run's own random numbers stay what they were."""
        self.model.eval()
        try:
            with torch.random.fork_rng():
                return on_eval(self.model, self.step)
        finally:
            self.model.train()

    def _reference(self, ratio: float) -> tuple[Tensor, Z0 | None]:
        samples = self.dataset.samples
        sequences = [s for sample in samples for s in sample.sequences]
        count, width = len(sequences), len(samples[0].sequences)
        if not self.loss.needs_reference:
            return torch.zeros(count, width, dtype=torch.float64), None
        key = [
            self.fingerprint, adapter_digest(self.config.init_adapter), self.dataset.digest,
            str(self.model.dtype), self.device.type, str(sorted(versions().items())),
        ]  # fmt: skip
        logps = reference_logps(
            self.scorer, [*sequences, *self.mismatched], key=key,
            progress=lambda done, total: self.on_progress(Progress("reference", done, total, {})),
        ).logps  # fmt: skip
        references = logps[:count].view(-1, width)
        if "z0" not in self.loss.parameters:
            return references, None
        mismatch = (self.mismatched, logps[count:]) if self.mismatched else None
        z0 = make_z0(
            self.config.z0, samples, references[:, 0],
            ratio=ratio, scorer=self.scorer, mismatch=mismatch,
        )  # fmt: skip
        return references, z0

    def _wants_mismatched(self) -> bool:
        return self.config.z0 == "mismatched" and "z0" in self.loss.parameters

    def _update_z0(self, rows: list[int], result: BatchResult) -> None:
        if self.z0 is not None:
            settings = self.objective.settings
            ratio = settings["gamma"] / settings["zeta"]
            self.z0.update(rows, result.logps[:, 0] - ratio * self.references[rows, 0])

    def _saved(self) -> dict[str, Any] | None:
        """The last checkpoint, once it is known to be of the same data.

        Raises:
            ConfigError: the buffer gives other samples than when the run began.
        """
        found = checkpoints(self.out / "checkpoints")
        if not found:
            return None
        state = read_checkpoint(found[-1])
        before = state["extra"].get("data", self.dataset.digest)
        if before != self.dataset.digest:
            raise ConfigError(
                f"The buffer {self.config.buffer} gives other samples (digest "
                f"{self.dataset.digest}) than when the run in {self.out} began ({before}): resume "
                "it with the buffer as it was, or train into another folder."
            )
        return state

    def _resume(self, saved: dict[str, Any]) -> None:
        restore_checkpoint(saved, self.model, self.optimizer)
        self.step, extra = saved["step"], saved["extra"]
        self.metrics = extra["metrics"]
        self.stopped = extra.get("stopped", "")
        if self.z0 is not None:
            self.z0.load_state_dict(extra["z0"])
        log.info("Going on after step %d of %d.", self.step, self.total)

    def _resume_reporting(self) -> None:
        """The last step's figures as they were written down, or a report that was cut short."""
        written = [r for r in read_metrics(self.out) if r["step"] == self.step]
        if not written:
            self._report()
            return
        self.metrics = {name: value for name, value in written[-1].items() if name != "step"}
        self._show()

    def _finish(self) -> None:
        self.model.eval()
        save_adapter(self.model, self.out)
        record: dict[str, Any] = {
            "base_fingerprint": self.fingerprint,
            "init_adapter_digest": adapter_digest(self.config.init_adapter),
            "data_digest": self.dataset.digest,
            "data_report": str(self.dataset.report),
            "samples": len(self.dataset),
            "steps": self.step,
            "stopped": self.stopped,
            "metrics": self.metrics,
            "commit": commit(),
        }
        write_card(self.out, self.config, record)
        if not self.stopped and self.step == self.total:
            shutil.rmtree(self.out / "checkpoints", ignore_errors=True)
