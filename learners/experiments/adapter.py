"""The SFT adapter the demo starts from: oracle trajectories on packages the demo never uses."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from agents.policies import make_policy
from agents.rollouts import LiveProgress, run_rollouts
from learners.experiments.stages import Stages
from learners.experiments.training import train_once
from learners.training import TrainConfig
from swe_env.errors import TaskError
from swe_env.tasks import dump, load
from swe_env.tasks.commands import Bar
from swe_env.tasks.synth.settings import Settings
from swe_env.tasks.synth.source import kept
from swe_env.types import Source, Task

PACKAGES = (
    ("funcy", "2.1", "8979feb3de7120afd1d00e5a8eae810c1942e4bfbc91697151e9ee1e49f79284"),
    ("humanize", "4.17.0", "1d6a36c453dbfbb3f0b34601d2e0b4ce5d48d780305cd45714843f0068fde6ac"),
    ("sqlparse", "0.6.1", "ca722573f848ff2d30e40ea30f53a104b7dea7635ea9285891263eb2c58fb6e7"),
    ("tabulate", "0.10.0", "e2cfde8f79420f6deeffdeda9aaec3b6bc5abce947655d17ac662b126e48a60d"),
    ("validators", "0.36.0", "92ad9ed00bbed320b784cec0ea90b213cf08904cf605b3d0852cfa4108e32a2c"),
)
"""Source distributions (name, version, sha256); none of them is a package of `quickstart`."""
TASKS = Settings(
    limit=60,
    detail="line",
    min_lines=4,
    max_lines=25,
    single_line=True,
    per_function=3,
    tests=5,
    alike=True,
)
"""As `quickstart` makes its tasks, so that the adapter learns what the demo asks."""
ATTEMPTS = 2
"""Oracle routes recorded for each task."""
TRAINING: dict[str, Any] = {
    "loss": "sft",
    "model": "smollm2",
    "lora_r": 12,
    "lora_alpha": 24,
    "learning_rate": 1e-3,
    "epochs": 1.0,
    "batch_size": 8,
    "warmup": 0.05,
    "micro_batch_tokens": 1024,
    "save_every": 10,
    "seed": 0,
}
_log = logging.getLogger(__name__)


def make_adapter(out: Path) -> Path:
    """Make tasks, record the oracle on them, train, and write the adapter in bfloat16.

    Args:
        out: folder of everything it makes; the same call continues a run that was stopped.

    Returns:
        The adapter's folder, ``out/adapter``: the one kept in the repository was made so.
    """
    out = out.absolute()
    stages = Stages(out, {"training": TRAINING, "packages": [list(p) for p in PACKAGES]}, total=4)
    stages.run("tasks", "Make tasks from real packages", lambda: _make_tasks(out))
    stages.run("oracle", "Record the oracle", lambda: _record(out))
    stages.run("train", "Supervised fine-tuning", lambda: _train(out))
    stages.run("adapter", "Write the adapter", lambda: _shrink(out))
    return out / "adapter"


def _make_tasks(out: Path) -> dict[str, Any]:
    tasks: list[Task] = []
    problems: list[str] = []
    for name, version, sha256 in PACKAGES:
        source = Source(kind="sdist", location=name, version=version, sha256=sha256)
        try:
            tasks += kept(source, TASKS, progress=Bar())
        except TaskError as error:
            _log.warning("Going on without %s: %s", name, error)
            problems.append(f"{name}: {error}")
    if not tasks:
        raise TaskError(f"None of the packages can be had: {problems[0]}")
    dump(tasks, out / "tasks.jsonl")
    return {"tasks": len(tasks), "problems": problems}


def _record(out: Path) -> dict[str, Any]:
    report = run_rollouts(
        make_policy("oracle"),
        load(f"jsonl:{out / 'tasks.jsonl'}"),
        attempts=ATTEMPTS,
        workers=4,
        out=out / "rollouts",
        buffer=out / "buffer",
        env_kwargs={"max_episode_steps": 12, "grade_cache": True},
        progress=LiveProgress("oracle"),
    )
    if report.interrupted:
        raise KeyboardInterrupt
    return {"attempts": len(report.scored), "resolved": report.resolved}


def _train(out: Path) -> dict[str, Any]:
    train_once(TrainConfig(buffer=str(out / "buffer"), out=str(out / "sft"), **TRAINING))
    return {}


def _shrink(out: Path) -> dict[str, Any]:
    """Half the bytes, so that the repository can hold it; rounding costs LoRA weights nothing."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    adapter = out / "adapter"
    adapter.mkdir(exist_ok=True)
    for name in ("adapter_config.json", "README.md", "training.json"):
        shutil.copy(out / "sft" / name, adapter / name)
    weights = load_file(out / "sft" / "adapter_model.safetensors")
    halved = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
    save_file(halved, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    return {"bytes": (adapter / "adapter_model.safetensors").stat().st_size}
