"""What the rollout engine adds to the tests' own time, and whether SIGKILL loses or doubles work.

A scripted policy plays every task once: eight looks at the checkout, the gold patch on half of the
tasks, `submit`; ten steps, graded by the real tests. The job runs undisturbed, then into another
folder with `--kills` SIGKILLs at random moments, started again each time. The share that is not the
tests' own process is 1 - (seconds of the tests' processes) / (clock * `--cpu-slots`).

    swe tasks make …  # or benchmarks/synth.py, which leaves tasks.jsonl files
    python benchmarks/rollouts.py runs/synth/*/tasks.jsonl --out benchmarks/results/rollouts.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from synth import machine

from agents.policies.base import BasePolicy, Episode
from agents.rollouts import run_rollouts
from agents.rollouts.job import JobFolder
from swe_env import tasks as sources
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
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=4, help="episodes in flight")
    parser.add_argument("--cpu-slots", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--sandbox", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--job", type=Path, help="folder of one job: only run it")
    options = parser.parse_args()
    if options.job is not None:
        job(options)
        return
    with tempfile.TemporaryDirectory(prefix="rollouts-") as name:
        result = measure(options, Path(name))
    result |= machine()
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    killed = result["killed"]
    sys.exit(bool(killed["lost"] or killed["doubled"] or killed["different"]))


def job(options: argparse.Namespace) -> None:
    """Run or continue one job; the last line printed is how long this run took."""
    report = run_rollouts(
        TenSteps(),
        load(options),
        out=options.job / "job",
        buffer=options.job / "buffer",
        workers=options.workers,
        cpu_slots=options.cpu_slots,
        env_kwargs={"sandbox": options.sandbox},
        seed=options.seed,
    )
    print(report.seconds)


def load(options: argparse.Namespace) -> list[Task]:
    """The tasks of all files, at most `--limit`."""
    found = [task for path in options.tasks for task in sources.load(f"jsonl:{path}")]
    return found[: options.limit]


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The undisturbed job, then the killed one, compared."""
    done = start(options, folder / "whole")
    told, _ = done.communicate()
    if done.returncode:
        raise SystemExit("The undisturbed job failed.")
    seconds = float(told.splitlines()[-1])
    whole, records, tests = outcome(folder / "whole")
    kills = storm(options, folder / "killed", seconds)
    again, stored, _ = outcome(folder / "killed")
    return {
        "tasks": len(whole),
        "resolved": sum(value[1] for value in whole.values()),
        "failures": sum(bool(value[2]) for value in whole.values()),
        "steps": 10,
        "seconds": round(seconds, 1),
        "episodes_per_second": round(len(whole) / seconds, 2),
        "test_seconds": round(tests, 1),
        # None where the records do not say how long their tests took.
        "share_beside_the_tests": (
            round(1 - tests / (seconds * options.cpu_slots), 3) if tests else None
        ),
        "killed": {
            "kills": kills,
            "lost": len(whole.keys() - again.keys()) + len(set(records) - set(stored)),
            "doubled": sum(number - 1 for number in Counter(stored).values()),
            "different": sum(again.get(item) != value for item, value in whole.items()),
        },
        "options": {
            key: getattr(options, key)
            for key in ("limit", "kills", "workers", "cpu_slots", "sandbox", "seed")
        },
    }


def start(options: argparse.Namespace, folder: Path) -> subprocess.Popen[str]:
    """The job in a program of its own."""
    argv = [sys.executable, __file__, *options.tasks, "--job", str(folder)]
    for name in ("limit", "workers", "cpu_slots", "sandbox", "seed"):
        argv += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


def storm(options: argparse.Namespace, folder: Path, seconds: float) -> int:
    """Kill the job at random moments until it has died `--kills` times or is done."""
    rng, kills = random.Random(options.seed), 0
    while True:
        running = start(options, folder)
        if kills < options.kills:
            try:
                # Starting takes some seconds too; what remains is spread over the job.
                running.wait(3 + rng.uniform(0.2, 1.8) * seconds / (options.kills + 1))
            except subprocess.TimeoutExpired:
                os.kill(running.pid, signal.SIGKILL)
                running.communicate()
                kills += 1
                continue
        running.communicate()
        if running.returncode:
            raise SystemExit("The killed job failed when it was started again.")
        return kills


def outcome(folder: Path) -> tuple[dict[tuple[str, int], tuple[str, bool, str]], list[str], float]:
    """(instance id, attempt) → (record, resolved, failure); the buffer's ids; tests' seconds."""
    job, results = JobFolder(folder / "job"), {}
    for path in sorted(job.path.glob("*/*/report.json")):
        found = job.result(path.parent.parent.name, int(path.parent.name))
        if found is not None:
            item = (found.instance_id, found.attempt)
            results[item] = (found.trajectory_id, found.resolved, found.failure)
    with ReplayBuffer(folder / "buffer") as buffer:
        ids, tests = [], 0.0
        for trajectory in buffer:
            ids.append(trajectory.trajectory_id)
            tests += trajectory.report.seconds if trajectory.report else 0.0
    return results, ids, tests


if __name__ == "__main__":
    main()
