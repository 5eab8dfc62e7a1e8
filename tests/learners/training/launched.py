"""What each of several processes runs: trainings one after the other, some of them killed."""

import json
import os
import sys
from pathlib import Path

from learners import TrainConfig, train


class Killed(BaseException):
    """Stands for a kill between two steps, of all processes."""


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
        run(job)
