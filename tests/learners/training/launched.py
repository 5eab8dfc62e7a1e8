"""What each of several processes runs: trainings one after the other, some of them killed."""

import contextlib
import json
import os
import sys
from pathlib import Path
from unittest import mock

from learners import TrainConfig, train
from learners.ops import keeping
from learners.training.workers import stop_workers


class Killed(BaseException):
    """Stands for a kill between two steps, of all processes."""


@contextlib.contextmanager
def filled():
    """As on GPUs of which one has room for every layer and the other for none."""
    free = (1 << 50, 0)[int(os.environ["RANK"])]
    with (
        mock.patch.object(TrainConfig, "checkpoints_on", return_value=True),
        mock.patch.object(keeping, "_free", return_value=free),
    ):
        yield


def run(job):
    def kill(model, step):
        if step == job["kill_at"]:
            raise Killed
        return {}

    settings = {**job["settings"], "eval_every": job["kill_at"]}
    try:
        train(TrainConfig(**settings), on_eval=kill if job["kill_at"] else None)
    except Killed:
        if job.get("leave"):
            return
        if job.get("damage") and os.environ["RANK"] == "0":
            last = sorted(Path(job["settings"]["out"], "checkpoints").iterdir())[-1] / "state.pt"
            last.write_bytes(last.read_bytes()[:1000])
        train(TrainConfig(**{**job["settings"], "resume": True}))


if __name__ == "__main__":
    for job in json.loads(Path(sys.argv[1]).read_text()):
        with filled() if job.get("fill") else contextlib.nullcontext():
            run(job)
    stop_workers()
