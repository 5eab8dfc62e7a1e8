"""The demo's stages, in order; each is skipped when an earlier run completed it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agents.policies.base import Policy
from agents.rollouts import LiveProgress, RolloutReport, run_rollouts
from learners.experiments.demo.dev import DevWatch
from learners.experiments.demo.settings import ADAPTER, DemoSettings
from learners.experiments.stages import Stages
from swe_env import tasks as sources
from swe_env.errors import ConfigError, TaskError
from swe_env.types import Task

STAGES = 8


def run_demo(out: Path, settings: DemoSettings) -> dict[str, Any]:
    """Run or continue the demo; returns the figures that its closing table shows.

    Args:
        out: folder of everything it makes; the report is ``out/report.html``.
        settings: sizes, seeds and models; a folder begun with others is refused.

    Raises:
        SweError: a stage failed; what was completed is kept, and the same call continues.
    """
    return _Demo(out.absolute(), settings).run()


class _Demo:
    def __init__(self, out: Path, settings: DemoSettings) -> None:
        self.out = out
        self.settings = settings
        if settings.start == "adapter" and not (ADAPTER / "adapter_config.json").exists():
            raise ConfigError(
                f"The SFT adapter {ADAPTER} is missing: make it with `make demo-adapter`, or have "
                "one trained on the way with --set start=sft."
            )
        self.stages = Stages(out, asdict(settings), total=STAGES)

    def run(self) -> dict[str, Any]:
        stages = self.stages
        stages.run("tasks", "Make tasks from real packages", self._make_tasks)
        stages.run("oracle", "Record the oracle on the tasks to be tried", self._oracle)
        start = Path(
            stages.run("start", "Take the SFT adapter to start from", self._start)["adapter"]
        )
        stages.run("base", "The bare model on held-out tasks", lambda: self._heldout("base", None))
        stages.run(
            "adapter",
            "Before: N attempts on held-out tasks",
            lambda: self._heldout("adapter", start),
        )
        stages.run("rollouts", "Attempts at training tasks", lambda: self._training_rollouts(start))
        trained = stages.run(
            "train", f"Preference training ({self.settings.loss})", lambda: self._train(start)
        )
        stages.run(
            "trained",
            "After: N attempts on held-out tasks",
            lambda: self._heldout("trained", Path(trained["adapter"])),
        )
        from learners.experiments.demo.report import write_report

        return write_report(self.out, self.settings, stages.records)

    # --- stages -------------------------------------------------------------------------------

    def _make_tasks(self) -> dict[str, Any]:
        from swe_env.tasks.commands import Bar

        found = sources.load(self.settings.tasks, seed=self.settings.seed, progress=Bar())
        train = [task for task in found if task.metadata["split"] == "train"]
        heldout = [task for task in found if task.metadata["split"] == "heldout"]
        dev = _spread(train, self.settings.dev_tasks)
        names = {task.instance_id for task in dev}
        rest = [task for task in train if task.instance_id not in names]
        splits = {
            "train": _spread(rest, self.settings.train_tasks),
            "dev": dev,
            "heldout": _spread(heldout, self.settings.heldout_tasks),
        }
        splits["used"] = [task for tasks in splits.values() for task in tasks]
        for name, tasks in {"all": found, **splits}.items():
            sources.dump(tasks, self.out / f"{name}.jsonl")
        return {"all": len(found), **{name: len(tasks) for name, tasks in splits.items()}}

    def _oracle(self) -> dict[str, Any]:
        from agents.policies import make_policy

        policy = make_policy("oracle")
        runs = {"used": 1}
        if self.settings.start == "sft":
            runs["train"] = self.settings.sft_attempts
        result: dict[str, Any] = {}
        for split, attempts in runs.items():
            report = self._roll(policy, self._tasks(split), f"oracle-{split}", attempts)
            result[split] = {"resolved": report.resolved, "attempts": len(report.scored)}
            if report.resolved < len(report.results):
                lost = [r.instance_id for r in report.results if not r.resolved]
                raise TaskError(
                    f"The gold patch did not resolve {len(lost)} of {len(report.results)} tasks "
                    f"({', '.join(lost[:3])}): look at {self.out / 'rollouts' / f'oracle-{split}'} "
                    "before you believe any other figure."
                )
        return result

    def _start(self) -> dict[str, Any]:
        if self.settings.start == "adapter":
            return {"adapter": str(ADAPTER), "from": "repository"}
        from learners.experiments.training import train_once
        from learners.training import TrainConfig

        train_once(
            TrainConfig(
                loss="sft",
                model=self.settings.model,
                buffer=str(self._buffer("oracle-train")),
                out=str(self.out / "sft"),
                learning_rate=self.settings.sft_learning_rate,
                epochs=self.settings.sft_epochs,
                batch_size=self.settings.batch_size,
                micro_batch_tokens=self.settings.micro_batch_tokens,
                seed=self.settings.seed,
            )
        )
        return {"adapter": str(self.out / "sft"), "from": "oracle trajectories of this run"}

    def _heldout(self, arm: str, adapter: Path | None) -> dict[str, Any]:
        attempts = (
            self.settings.base_attempts if adapter is None else self.settings.heldout_attempts
        )
        return self._sample(adapter, "heldout", arm, attempts)

    def _training_rollouts(self, adapter: Path) -> dict[str, Any]:
        return self._sample(adapter, "train", "train", self.settings.train_attempts)

    def _train(self, start: Path) -> dict[str, Any]:
        from learners.experiments.training import train_once
        from learners.training import NoSignal, TrainConfig

        settings = self.settings

        def measure(adapter: Path, step: int) -> float:
            found = self._sample(adapter, "dev", f"dev-{step}", settings.dev_attempts)
            return float(found["resolved"] / max(1, found["attempts"]))

        watch = DevWatch(self.out / "dev-adapters", measure, measure(start, 0))
        folder = self.out / "train"
        config = TrainConfig(
            loss=settings.loss,
            model=settings.model,
            init_adapter=str(start),
            buffer=str(self._buffer("train")),
            out=str(folder),
            gamma=settings.gamma,
            zeta=settings.zeta,
            learning_rate=settings.learning_rate,
            epochs=settings.epochs,
            per_task=settings.per_task,
            micro_batch_tokens=settings.micro_batch_tokens,
            batch_size=settings.batch_size,
            eval_every=settings.eval_every,
            save_every=settings.eval_every,
            seed=settings.seed,
        )
        try:
            train_once(config, on_eval=watch)
        except NoSignal as error:
            # Attempts that all failed (or all succeeded) are a result too; the report says so.
            return {
                "adapter": str(start),
                "step": 0,
                "steps": 0,
                "samples": 0,
                "stopped": str(error),
                "dev_pass@1": {"0": watch.seen[0]},
                "data": "",
            }
        step, adapter = watch.best()
        record = json.loads((folder / "training.json").read_text())
        return {
            "adapter": str(adapter),
            "step": step,
            "steps": record["steps"],
            "samples": record["samples"],
            "stopped": record["stopped"],
            "dev_pass@1": {str(k): v for k, v in watch.seen.items()},
            "data": record["data_report"],
        }

    # --- parts --------------------------------------------------------------------------------

    def _tasks(self, split: str) -> list[Task]:
        return sources.load(f"jsonl:{self.out / f'{split}.jsonl'}")

    def _buffer(self, name: str) -> Path:
        return self.out / "buffers" / name

    def _sample(self, adapter: Path | None, split: str, name: str, attempts: int) -> dict[str, Any]:
        """Roll the local model out; figures of the run."""
        from agents.policies.transformers import TransformersPolicy

        settings = self.settings
        with TransformersPolicy(
            settings.model,
            adapter,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            max_new_tokens=settings.max_new_tokens,
            max_batch=settings.workers,
        ) as policy:
            report = self._roll(policy, self._tasks(split), name, attempts)
        return {
            "resolved": report.resolved,
            "attempts": len(report.scored),
            "failures": dict(report.failures),
            "truncations": dict(report.truncations),
            "tokens": sum(result.tokens for result in report.results),
        }

    def _roll(
        self, policy: Policy, tasks: Sequence[Task], name: str, attempts: int
    ) -> RolloutReport:
        report = run_rollouts(
            policy,
            tasks,
            attempts=attempts,
            workers=self.settings.workers,
            out=self.out / "rollouts" / name,
            buffer=self._buffer(name),
            env_kwargs={
                "sandbox": self.settings.sandbox,
                "max_episode_steps": self.settings.max_episode_steps,
                "grade_cache": True,
            },
            seed=self.settings.seed,
            progress=LiveProgress(name),
        )
        if report.interrupted:
            raise KeyboardInterrupt
        return report


def _spread(tasks: list[Task], count: int) -> list[Task]:
    """`count` of the tasks, evenly from all of the list, which is ordered by package."""
    if count >= len(tasks):
        return tasks
    return [tasks[k * len(tasks) // count] for k in range(count)]
