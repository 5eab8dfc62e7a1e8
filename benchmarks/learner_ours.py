"""One run of our learner for `learner.py`, through `learners.train` as a user calls it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from learner_meter import Meter

from learners import TrainConfig, train
from learners.training.results import Progress


def main(job: dict[str, Any]) -> None:
    """Train on the job's buffer and print the figures."""
    torch.set_num_threads(job["threads"])
    meter, losses, scored = Meter(), list[float](), []

    def watch(progress: Progress) -> None:
        if progress.stage == "reference" and progress.done == progress.total:
            scored.append(progress.total)
            meter.start()
        elif progress.stage == "training":
            meter.step()
            losses.append(progress.metrics["loss"])

    config = TrainConfig(
        loss=job["loss"], model=job["model"], buffer=job["buffer"], out=job["out"],
        init_adapter=job["adapter"], gamma=job["beta"], label_smoothing=0.0, ties=0,
        learning_rate=job["learning_rate"], warmup=0.0, batch_size=job["batch"],
        max_steps=job["steps"], dtype=job["dtype"], device="cpu",
        gradient_checkpointing=job["checkpointing"], save_every=None, tensorboard=False,
        **job.get("settings", {}),
    )  # fmt: skip
    train(config, on_progress=watch)
    lines = Path(job["out"], "metrics.jsonl").read_text().splitlines()
    shared = sum(json.loads(line)["shared_tokens"] for line in lines)
    print(json.dumps({**meter.figures(), "losses": losses, "shared_tokens": shared}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
