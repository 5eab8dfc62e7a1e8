"""`train`: from a configuration to an adapter, or a whole model, on disk."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from learners.data.dataset import Sample
from learners.training.attention import LentAttention
from learners.training.baseline import state_of
from learners.training.card import read_result, write_card
from learners.training.checkpoint import restore_checkpoint, save_checkpoint
from learners.training.config import TrainConfig
from learners.training.folder import OutFolder, check_folder
from learners.training.memory import out_of_memory
from learners.training.metrics import MetricsWriter, read_metrics
from learners.training.model import adapter_digest
from learners.training.parts import Parts, make_parts
from learners.training.results import (
    Diverged,
    OnEval,
    OnProgress,
    Paused,
    PauseTraining,
    Progress,
    StopTraining,
    TrainResult,
    heeded,
    silent,
)
from learners.training.schedule import batch_at, learning_rate
from learners.training.shard import whole
from learners.training.step import BatchResult, run_batch
from learners.training.stopping import StopRule
from learners.training.tracking import Tracking
from learners.training.workers import start_workers
from swe_env.errors import ConfigError, SweError
from swe_env.machine import commit

log = logging.getLogger(__name__)

_NAMED = 8
"""Tasks that an error names."""


def train(
    config: TrainConfig,
    *,
    on_eval: OnEval | None = None,
    on_progress: OnProgress | None = None,
) -> TrainResult:
    """Train on a replay buffer: a LoRA adapter, or every weight.

    Everything that can be wrong with settings, buffer, model or output folder is found before the
    first forward pass. The run depends on its settings and the buffer alone; with
    ``config.resume`` it goes on from its last checkpoint to the same result, which is given again
    if the run is finished. Started several times over by ``accelerate launch``, the processes
    share the work and come to the result of one, up to rounding.

    Args:
        config: The settings; `TrainConfig.load` reads them from a file.
        on_eval: Called every ``eval_every`` steps and at the end (the last step, or the one after
            which ``stop_entropy`` or ``stop_kl`` ends the run) with the model in evaluation mode;
            its figures are recorded as ``eval/*``. Raises `StopTraining` to end the run. Of
            several processes each calls it, and the main one's figures count.
        on_progress: Called with a `Progress` as things go on, by the main process only; may raise
            `StopTraining` too, which ends the run after the step that is shown, or, raised
            between two of these, after the next one that is; or `PauseTraining`, with a step, which
            leaves the run after a checkpoint.

    Raises:
        ConfigError: something is wrong with the settings or what they name; nothing was trained.
        NoSignal: the buffer holds nothing to learn from (a ConfigError too).
        Diverged: a loss or gradient is not finite; the checkpoint before it is intact.
        OutOfMemory: a pass does not fit the GPU; the checkpoint before it is intact.
        Paused: `on_progress` raised `PauseTraining`.
        SweError: a checkpoint could not be written.
    """
    if config.eval_every is not None and config.eval_buffer is None and on_eval is None:
        raise ConfigError(
            "eval_every says when to evaluate, but nothing says what: give eval_buffer, or call "
            "learners.train with on_eval."
        )
    workers = start_workers(config.device)
    if (done := workers.on_main(lambda: _finished(config))) is not None:
        return done
    show = heeded(on_progress) if on_progress is not None and workers.main else silent
    with contextlib.closing(OutFolder(config)) as folder, Tracking(config) as tracking:
        parts = make_parts(config, workers, show, folder, tracking)
        run = _Run(parts, on_eval, show, tracking)
        with run.recording():
            return run.go()


def _finished(config: TrainConfig) -> TrainResult | None:
    """The result of a run that there is nothing left to resume of."""
    done = read_result(Path(config.out).expanduser()) if config.resume else None
    if done is not None:
        check_folder(config, moved=False)
        log.warning("The run in %s is finished: nothing is trained.", done.out)
    return done


class _Run:
    """One run under way."""

    def __init__(
        self, parts: Parts, on_eval: OnEval | None, on_progress: OnProgress, tracking: Tracking
    ) -> None:
        self.parts, self.on_eval, self.on_progress = parts, on_eval, on_progress
        self.tracking = tracking
        self.config, self.workers, self.out = parts.config, parts.workers, parts.out
        self.dataset = parts.data.train
        self.start = adapter_digest(parts.config.init_adapter)
        self.rule = StopRule(parts.config)
        self.attention = LentAttention(parts.policy.model)
        self.writer: MetricsWriter | None = None
        self.step = 0
        self.metrics: dict[str, float] = {}
        self.stopped = ""
        if parts.saved is not None:
            self._resume(parts.saved)
            parts.saved = None  # of a whole model three times its weights

    def go(self) -> TrainResult:
        """All steps, then the result."""
        self.parts.policy.model.train()
        if self.step:
            self._resume_reporting()
        while self.step < self.parts.total and not self.stopped:
            self._step()
        self._finish()
        return TrainResult(self.out, self.step, self.metrics, self.dataset.report, self.stopped)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """The metrics files, open where this process is the one that writes."""
        if not self.workers.main:
            yield
            return
        with self._disk("The figures"):
            writer = MetricsWriter(
                self.out, tensorboard=self.config.tensorboard, from_step=self.step
            )
        with writer as self.writer:
            yield

    def _step(self) -> None:
        config, parts, started = self.config, self.parts, time.perf_counter()
        rows = batch_at(self.step, len(self.dataset), config.batch_size, config.seed)
        samples = [self.dataset.samples[row] for row in rows]
        rate = learning_rate(
            self.step, parts.total, peak=config.learning_rate, warmup=config.warmup
        )
        z0 = parts.z0.estimate(rows) if parts.z0 is not None else None
        try:
            result = run_batch(parts.objective, samples, parts.references[rows], z0)
        except torch.OutOfMemoryError as error:
            raise out_of_memory(error, config, self.step) from error
        self._check_finite("loss", result.metrics["loss"], samples)
        norm = self._update(rate, samples)
        self._update_z0(rows, result)
        self.step += 1
        seconds = time.perf_counter() - started
        self.metrics = result.metrics | {
            "grad_norm": norm,
            "learning_rate": rate,
            "epoch": self.step / math.ceil(len(self.dataset) / config.batch_size),
            "tokens_per_second": sum(sample.num_tokens for sample in samples) / seconds,
        }
        self.rule.see(self.metrics)
        self._after_step()

    def _update(self, rate: float, samples: Sequence[Sample]) -> float:
        """One optimizer step on the gradients of all processes; gives their norm."""
        parameters, optimizer = self.parts.policy.parameters, self.parts.optimizer
        if (zero := self.parts.policy.scorer.zero) is not None:
            norm = zero.step(rate)
            self._check_finite("gradient norm", norm, samples)
            return norm
        self.workers.add_gradients(parameters)
        norm = float(whole(torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)))
        self._check_finite("gradient norm", norm, samples)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm

    def _check_finite(self, what: str, value: float, samples: Sequence[Sample]) -> None:
        if not math.isfinite(value):
            tasks = list(dict.fromkeys(sample.task for sample in samples))
            more = f" and {len(tasks) - _NAMED} more" if len(tasks) > _NAMED else ""
            raise Diverged(
                f"The {what} of step {self.step + 1} is {value} (in samples of "
                f"{', '.join(tasks[:_NAMED])}{more}), so the run ends with the last checkpoint "
                "intact: train anew with a lower learning_rate, in dtype float32, or "
                "without those tasks."
            )

    def _after_step(self) -> None:
        config, reason = self.config, self._rule_says()
        # Saved before the evaluation, which may be long: a run killed in it repeats no step. And at
        # the end, so that a result that cannot be written costs none.
        last = self.step == self.parts.total
        every = config.save_every is not None and self.step % config.save_every == 0
        if last or every or self._evaluates(reason):
            self._save()
        self._report(reason)

    def _rule_says(self) -> str:
        """Why a stopping rule ends the run now, on all processes, or empty."""
        return self.workers.agree(self.rule.reason())

    def _evaluates(self, ending: str) -> bool:
        every = self.config.eval_every
        last = self.step == self.parts.total or bool(ending)
        due = last or (every is not None and self.step % every == 0)
        return due and (self.on_eval is not None or self.parts.held_out is not None)

    def _report(self, reason: str) -> None:
        """Evaluate where it is due, write the step's figures down and show them."""
        if not self.stopped:
            if self._evaluates(reason):
                try:
                    figures = self._evaluate()
                    self.metrics |= {f"eval/{name}": value for name, value in figures.items()}
                except StopTraining as stop:
                    reason = stop.reason
                reason = self.workers.agree(reason)
            # Before the figures are written: a resumed run that finds them asks no more.
            self._stop(reason)
        if self.writer is not None:
            with self._disk("The figures"):
                self.writer.write(self.step, self.metrics)
        self.tracking.log(self.step, self.metrics)
        self._show()

    def _show(self) -> None:
        if self.stopped:
            return
        reason, pause = "", False
        try:
            self.on_progress(Progress("training", self.step, self.parts.total, self.metrics))
        except StopTraining as stop:
            reason = stop.reason
        except PauseTraining:
            pause = True
        reason, pause = self.workers.agree((reason, pause))
        self._stop(reason)
        if pause and self.step < self.parts.total:
            self._save(anyway=True)
            raise Paused(f"The run in {self.out} was left after step {self.step}")

    def _stop(self, reason: str) -> None:
        """No more steps if there is a reason, the same on all; a resumed run takes none either."""
        if not reason:
            return
        self.stopped = reason
        log.info("Stopped after step %d: %s", self.step, self.stopped)
        self._save()

    def _save(self, *, anyway: bool = False) -> None:
        """A checkpoint, if the run has them or it is to be `anyway`."""
        if self.config.save_every is None and not anyway:
            return
        extra = {
            "z0": state_of(self.parts.z0), "metrics": self.metrics, "rule": self.rule.state_dict(),
            "data": self.dataset.digest, "stopped": self.stopped,
            "base": self.parts.policy.fingerprint,
            "init_adapter": self.start,
        }  # fmt: skip
        save_checkpoint(
            self.out / "checkpoints", self.step, self.parts.policy, self.parts.optimizer, extra,
            keep=self.config.keep_checkpoints,
        )  # fmt: skip

    def _evaluate(self) -> dict[str, float]:
        """Whatever the callback draws, the run's own random numbers stay what they were."""
        model, figures = self.parts.policy.model, dict[str, float]()
        model.eval()
        try:
            with torch.random.fork_rng():
                if self.parts.held_out is not None:
                    figures |= self.parts.held_out.figures(
                        lambda done, total: self.on_progress(
                            Progress("evaluation", done, total, {})
                        )
                    )
                if self.on_eval is not None:
                    with self.attention.lent():
                        figures |= self.on_eval(model, self.step)
        finally:
            model.train()
        return figures

    def _update_z0(self, rows: list[int], result: BatchResult) -> None:
        parts = self.parts
        if parts.z0 is not None:
            samples = [self.dataset.samples[row] for row in rows]
            logps, references = result.logps[:, 0], parts.references[rows, 0]
            parts.z0.update(rows, parts.objective.rewards(samples, logps, references))

    def _resume(self, saved: dict[str, Any]) -> None:
        restore_checkpoint(saved, self.parts.policy, self.parts.optimizer)
        self.step, extra = saved["step"], saved["extra"]
        self.metrics = extra["metrics"]
        self.stopped = extra["stopped"]
        self.rule.load_state_dict(extra["rule"])
        if self.parts.z0 is not None:
            self.parts.z0.load_state_dict(extra["z0"])
        log.info("Going on after step %d of %d.", self.step, self.parts.total)

    def _resume_reporting(self) -> None:
        """The last step's figures as they were written down, or a report that was cut short."""
        written = self.workers.on_main(
            lambda: [r for r in read_metrics(self.out) if r["step"] == self.step]
        )
        if not written:
            self._report(self._rule_says())
            return
        self.metrics = {name: value for name, value in written[-1].items() if name != "step"}
        self._show()

    def _finish(self) -> None:
        policy = self.parts.policy
        policy.model.eval()
        weights = policy.collect()
        self.workers.on_main(lambda: self._write(weights))

    def _write(self, weights: dict[str, torch.Tensor] | None) -> None:
        policy = self.parts.policy
        with self._disk("The result"):
            policy.write(self.out, weights)
            self._write_card()

    @contextlib.contextmanager
    def _disk(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise SweError(
                f"{what} of step {self.step} could not be written to {self.out} ({error}): free "
                "some space and go on with --resume."
            ) from error

    def _write_card(self) -> None:
        policy, config = self.parts.policy, self.config
        record: dict[str, Any] = {
            "base_fingerprint": policy.fingerprint,
            "init_adapter_digest": self.start,
            "data_digest": self.dataset.digest,
            "data_report": str(self.dataset.report),
            "report": self.dataset.report.as_record(),
            "samples": len(self.dataset),
            "processes": self.workers.count,
            "steps": self.step,
            "stopped": self.stopped,
            "metrics": self.metrics,
            "commit": commit(),
        }
        write_card(self.out, config, record)
