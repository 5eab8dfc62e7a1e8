"""What the rollout engine adds to the tests' own time, and whether SIGKILL loses or doubles work.

A scripted policy plays every task `--attempts` times: eight looks at the checkout, the gold patch
on half of the episodes, `submit`; ten steps, graded by the real tests. The job runs undisturbed,
then into another folder with `--kills` SIGKILLs at random moments, started again each time. The
share that is not the tests' own process is 1 - (seconds of the tests' processes) / (clock *
`--cpu-slots`).

    swe tasks make …  # or benchmarks/synth.py, which leaves tasks.jsonl files
    python benchmarks/rollouts.py runs/synth/*/tasks.jsonl --out benchmarks/results/rollouts.json

With `--folder` what was done is kept there, `--part 500` stops after about 500 s, and the same
command goes on: several parts make one measurement, whose clock is the sum of theirs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from agents.policies.base import BasePolicy, Episode
from agents.rollouts import JobBudget, run_rollouts
from agents.rollouts.job import JobFolder
from swe_env import tasks as sources
from swe_env.machine import machine
from swe_env.replay import Agent, ReplayBuffer
from swe_env.types import Action, Task


class TenSteps(BasePolicy):
    """Eight looks, the gold patch on every other task, and `submit`."""

    agent = Agent(name="ten-steps")
    privileged = True

    def act(self, episode: Episode) -> Action:
        """The script's action of this turn."""
        assert episode.answer is not None  # it is privileged
        turn, path = len(episode.turns), str(episode.answer.metadata["path"])
        if turn == 9:
            return {"tool": "submit", "arguments": {}}
        if turn == 8:
            patch = episode.answer.patch if episode.seed % 2 else ""
            command = f"git apply --allow-empty <<'END_OF_PATCH'\n{patch}\nEND_OF_PATCH"
            return {"tool": "bash", "arguments": {"command": command}}
        looks: list[Action] = [
            {"tool": "view", "arguments": {"path": "."}},
            {"tool": "view", "arguments": {"path": path}},
            {"tool": "search", "arguments": {"query": "return None"}},
            {"tool": "bash", "arguments": {"command": "git status --short; ls"}},
            {"tool": "view", "arguments": {"path": path, "view_range": [1, 80]}},
            {"tool": "search", "arguments": {"query": "def ", "path": path}},
            {"tool": "bash", "arguments": {"command": f"wc -l {path}"}},
            {"tool": "view", "arguments": {"path": path, "view_range": [40, 120]}},
        ]
        return looks[turn]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="+", help="tasks.jsonl files")
    parser.add_argument("--limit", type=int, default=2000, help="tasks at most")
    parser.add_argument("--attempts", type=int, default=1, help="episodes of each task")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=4, help="episodes in flight")
    parser.add_argument("--cpu-slots", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--sandbox", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--folder", type=Path, help="where both jobs are kept; default: nowhere")
    parser.add_argument("--part", type=float, default=0.0, help="seconds to stop after; 0: none")
    parser.add_argument("--job", type=Path, help="folder of one job: only run it")
    options = parser.parse_args()
    if options.job is not None:
        job(options)
        return
    if options.part and options.folder is None:
        parser.error("--part needs --folder: what was done must lie somewhere.")
    with tempfile.TemporaryDirectory(prefix="rollouts-") as name:
        result = Measurement(options, options.folder or Path(name)).run()
    if result is None:
        print("Not done yet: the same command goes on.")
        sys.exit(3)
    result |= {"date": time.strftime("%Y-%m-%d"), "machine": machine("swe-env")}
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    killed = result["killed"]
    sys.exit(bool(killed["lost"] or killed["doubled"] or killed["different"]))


def job(options: argparse.Namespace) -> None:
    """Run or continue one job; the last line printed is how long it took and whether it is done."""
    report = run_rollouts(
        TenSteps(),
        load(options),
        attempts=options.attempts,
        out=options.job / "job",
        buffer=options.job / "buffer",
        workers=options.workers,
        cpu_slots=options.cpu_slots,
        env_kwargs={"sandbox": options.sandbox},
        seed=options.seed,
        job_budget=JobBudget(seconds=options.part),
    )
    print(json.dumps({"seconds": report.seconds, "done": not report.interrupted}))


def load(options: argparse.Namespace) -> list[Task]:
    """The tasks of all files, at most `--limit`."""
    found = [task for path in options.tasks for task in sources.load(f"jsonl:{path}")]
    return found[: options.limit]


class Measurement:
    """Both jobs, as far as they were done before; `state.json` in the folder says how far."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "state.json"
        self.state: dict[str, Any] = {
            "whole": {"seconds": 0.0, "done": False, "parts": 0},
            "killed": {"kills": 0, "done": False, "parts": 0},
        }
        if self.file.exists():
            self.state = json.loads(self.file.read_text())
        self.began = time.monotonic()

    def run(self) -> dict[str, Any] | None:
        """The result, or None when this part's time is over."""
        whole, killed = self.state["whole"], self.state["killed"]
        if not whole["done"]:
            told = self.play(self.folder / "whole")
            whole.update(done=told["done"], seconds=whole["seconds"] + told["seconds"])
            self.note(whole)
        if whole["done"] and not killed["done"] and self.left() > 0:
            self.storm(whole["seconds"])
            self.note(killed)
        return self.compare() if whole["done"] and killed["done"] else None

    def left(self) -> float:
        """Seconds of this part that are left."""
        part: float = self.options.part
        return part - (time.monotonic() - self.began) if part else math.inf

    def note(self, kept: dict[str, Any]) -> None:
        """Write down that a part of one of the jobs is over."""
        kept["parts"] += 1
        self.file.write_text(json.dumps(self.state))

    def start(self, folder: Path) -> subprocess.Popen[str]:
        """A job in a program of its own, for as long as this part goes on."""
        argv = [sys.executable, __file__, *self.options.tasks, "--job", str(folder)]
        for name in ("limit", "attempts", "workers", "cpu_slots", "sandbox", "seed"):
            argv += [f"--{name.replace('_', '-')}", str(getattr(self.options, name))]
        if self.options.part:
            argv += ["--part", str(max(self.left(), 1.0))]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)

    def play(self, folder: Path) -> dict[str, Any]:
        """Run a job, undisturbed."""
        running = self.start(folder)
        told, _ = running.communicate()
        if running.returncode:
            raise SystemExit(f"The job in {folder} failed.")
        found: dict[str, Any] = json.loads(told.splitlines()[-1])
        return found

    def storm(self, seconds: float) -> None:
        """Kill the job at random moments until it has died `--kills` times or is done."""
        killed, wanted = self.state["killed"], self.options.kills
        while self.left() > 0:
            if killed["kills"] == wanted:
                killed["done"] = self.play(self.folder / "killed")["done"]
                return
            rng = random.Random(f"{self.options.seed} {killed['kills']}")
            running = self.start(self.folder / "killed")
            try:
                # Starting takes some seconds too; what remains is spread over the job.
                running.wait(3 + rng.uniform(0.2, 1.8) * seconds / (wanted + 1))
            except subprocess.TimeoutExpired:
                os.kill(running.pid, signal.SIGKILL)
                running.communicate()
                killed["kills"] += 1
                continue
            told, _ = running.communicate()
            if running.returncode:
                raise SystemExit("The killed job failed when it was started again.")
            killed["done"] = json.loads(told.splitlines()[-1])["done"]
            if killed["done"]:
                return

    def compare(self) -> dict[str, Any]:
        """What both jobs left, side by side."""
        options, seconds = self.options, self.state["whole"]["seconds"]
        whole, stored, tests = outcome(self.folder / "whole")
        again, stored_again, _ = outcome(self.folder / "killed")
        spent = sum(sum(values) for values in tests.values())
        return {
            "tasks": len({instance_id for instance_id, _ in whole}),
            "episodes": len(whole),
            "resolved": sum(value[1] for value in whole.values()),
            "failures": sum(bool(value[2]) for value in whole.values()),
            "steps": 10,
            "seconds": round(seconds, 1),
            "parts": self.state["whole"]["parts"],
            "episodes_per_second": round(len(whole) / seconds, 2),
            "test_seconds": round(spent, 1),
            "share_beside_the_tests": round(1 - spent / (seconds * options.cpu_slots), 3),
            "repositories": {
                name: {"episodes": len(v), "median_test_seconds": round(statistics.median(v), 3)}
                for name, v in sorted(tests.items())
            },
            "killed": {
                "kills": self.state["killed"]["kills"],
                "lost": len(whole.keys() - again.keys()) + len(set(stored) - set(stored_again)),
                "doubled": sum(number - 1 for number in Counter(stored_again).values()),
                "different": sum(again.get(item) != value for item, value in whole.items()),
            },
            "options": {
                key: getattr(options, key)
                for key in (
                    *("limit", "attempts", "kills", "workers"),
                    *("cpu_slots", "sandbox", "seed", "part"),
                )
            },
        }


Outcomes = dict[tuple[str, int], tuple[str, bool, str]]
"""(instance id, attempt) → (record, resolved, failure)"""


def outcome(folder: Path) -> tuple[Outcomes, list[str], dict[str, list[float]]]:
    """What the job's folder says, the ids in its buffer, and repository → seconds of its tests."""
    job, results = JobFolder(folder / "job"), Outcomes()
    for path in sorted(job.path.glob("*/*/report.json")):
        found = job.result(path.parent.parent.name, int(path.parent.name))
        if found is not None:
            item = (found.instance_id, found.attempt)
            results[item] = (found.trajectory_id, found.resolved, found.failure)
    ids: list[str] = []
    tests: dict[str, list[float]] = {}
    with ReplayBuffer(folder / "buffer") as buffer:
        for trajectory in buffer:
            ids.append(trajectory.trajectory_id)
            seconds = trajectory.report.seconds if trajectory.report else 0.0
            tests.setdefault(trajectory.instance_id.rpartition("-")[0], []).append(seconds)
    return results, ids, tests


if __name__ == "__main__":
    main()
