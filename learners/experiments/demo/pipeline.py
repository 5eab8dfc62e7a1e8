"""The demo's stages, in order; each is skipped when an earlier run completed it."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from agents.policies.base import Policy
from agents.rollouts import Budget, LiveProgress, RolloutReport, run_rollouts
from learners.experiments.demo.dev import DevWatch
from learners.experiments.demo.settings import ADAPTER, DemoSettings
from learners.experiments.stages import Stages
from swe_env import tasks as sources
from swe_env.errors import ConfigError, SweError, TaskError
from swe_env.replay import ReplayBuffer
from swe_env.types import Task

STAGES = 7
BUFFERS = {"heldout": "adapter", "train": "train", "dev": "dev-0"}
"""Where the attempts of the adapter to start from lie, by split of their tasks."""


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
        # While the tests of the first stage keep the processor busy.
        threading.Thread(target=self._fetch_model, daemon=True).start()
        stages.run("tasks", "Make tasks from real packages", self._make_tasks)
        stages.run("oracle", "Record the oracle on the tasks to be tried", self._oracle)
        start = Path(
            stages.run("start", "Take the SFT adapter to start from", self._start)["adapter"]
        )
        stages.run("base", "The bare model on held-out tasks", lambda: self._heldout("base", None))
        before = stages.run(
            "before",
            "Before: N attempts on held-out tasks, a few on training tasks",
            lambda: self._before(start),
        )
        trained = stages.run(
            "train",
            f"Preference training ({self.settings.loss})",
            lambda: self._train(start, before["dev"]),
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
        dev = _smallest(train, self.settings.dev_tasks)
        names = {task.instance_id for task in dev}
        rest = [task for task in train if task.instance_id not in names]
        splits = {
            "train": _smallest(rest, self.settings.train_tasks),
            "dev": dev,
            "heldout": _smallest(heldout, self.settings.heldout_tasks),
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
        settings = self.settings
        if adapter is None:
            attempts, tokens = settings.base_attempts, settings.base_tokens
        else:
            attempts, tokens = settings.heldout_attempts, settings.episode_tokens
        return _figures(self._sample(adapter, {"heldout": attempts}, arm, tokens))

    def _before(self, adapter: Path) -> dict[str, Any]:
        """All that the adapter to start from attempts: one run, so that the batch stays full."""
        settings = self.settings
        attempts = {
            "heldout": settings.heldout_attempts,
            "train": settings.train_attempts,
            "dev": settings.dev_attempts,
        }
        report = self._sample(adapter, attempts, "before")
        everything = list(ReplayBuffer(self._buffer("before")))
        found = {}
        for split in attempts:
            names = {task.instance_id for task in self._tasks(split)}
            buffer = self._buffer(BUFFERS[split])
            shutil.rmtree(buffer, ignore_errors=True)  # of a run that was stopped here
            with ReplayBuffer(buffer) as part:
                part.extend(t for t in everything if t.instance_id in names)
            kept = tuple(result for result in report.results if result.instance_id in names)
            found[split] = _figures(replace(report, results=kept))
        return found

    def _train(self, start: Path, dev: dict[str, Any]) -> dict[str, Any]:
        from learners.experiments.training import train_once
        from learners.training import NoSignal, TrainConfig

        settings = self.settings

        def measure(adapter: Path, step: int) -> float:
            report = self._sample(adapter, {"dev": settings.dev_attempts}, f"dev-{step}")
            return _rate(_figures(report))

        watch = DevWatch(self.out / "dev-adapters", measure, _rate(dev))
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

    def _fetch_model(self) -> None:
        from agents.policies import hub

        with contextlib.suppress(SweError):  # said by the stage that needs the model
            hub.fetch(self.settings.model)

    def _tasks(self, split: str) -> list[Task]:
        return sources.load(f"jsonl:{self.out / f'{split}.jsonl'}")

    def _buffer(self, name: str) -> Path:
        return self.out / "buffers" / name

    def _sample(
        self, adapter: Path | None, attempts: Mapping[str, int], name: str, tokens: int = 0
    ) -> RolloutReport:
        """Roll the local model out, so often at each task of each split."""
        from agents.policies.transformers import TransformersPolicy

        settings = self.settings
        tasks = {split: self._tasks(split) for split in attempts}
        counts = {t.instance_id: attempts[split] for split, some in tasks.items() for t in some}
        with TransformersPolicy(
            settings.model,
            adapter,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            max_new_tokens=settings.max_new_tokens,
            max_batch=settings.workers,
        ) as policy:
            chosen = [task for some in tasks.values() for task in some]
            return self._roll(policy, chosen, name, counts, tokens or settings.episode_tokens)

    def _roll(
        self,
        policy: Policy,
        tasks: Sequence[Task],
        name: str,
        attempts: int | Mapping[str, int],
        tokens: int = 0,
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
                "output_limit": self.settings.output_limit,
                "grade_cache": True,
            },
            budget=Budget(tokens=tokens),
            seed=self.settings.seed,
            progress=LiveProgress(name),
        )
        if report.interrupted:
            raise KeyboardInterrupt
        return report


def _figures(report: RolloutReport) -> dict[str, Any]:
    return {
        "resolved": report.resolved,
        "attempts": len(report.scored),
        "failures": dict(report.failures),
        "truncations": dict(report.truncations),
        "tokens": sum(result.tokens for result in report.results),
    }


def _rate(figures: dict[str, Any]) -> float:
    """pass@1."""
    return float(figures["resolved"] / max(1, figures["attempts"]))


def _smallest(tasks: Sequence[Task], count: int) -> list[Task]:
    """`count` of the tasks, package by package in turn, those of the smallest fixes first."""
    ordered = sorted(tasks, key=lambda task: (_changed(task.patch), task.instance_id))
    turn: Counter[str] = Counter()
    places = []
    for task in ordered:
        places.append((turn[task.repo], task.repo))
        turn[task.repo] += 1
    chosen = sorted(zip(places, ordered, strict=True), key=lambda pair: pair[0])[:count]
    return [task for _, task in chosen]


def _changed(patch: str) -> int:
    """Characters that a unified diff changes."""
    lines = [line for line in patch.splitlines() if line[:3] not in ("---", "+++")]
    old, new = ("\n".join(line[1:] for line in lines if line[:1] == sign) for sign in "-+")
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    spans = [span for kind, *span in matcher.get_opcodes() if kind != "equal"]
    return sum(max(i2 - i1, j2 - j1) for i1, i2, j1, j2 in spans)
