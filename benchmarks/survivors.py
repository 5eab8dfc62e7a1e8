"""Nothing is left of 1,000 episodes of which 200 are killed with SIGKILL; prints JSON.

Worker programs run episodes: start a sandbox, commands, daemons, a fork, a snapshot, a diff, close.
At random moments the driver kills a worker, or the helper process that forks its keepers, or one
of the keepers. Afterwards a next run starts and closes one sandbox of each kind, and the driver
counts what is left of all the others: processes, mounts, cgroups, temporary files, descriptors.

    python benchmarks/survivors.py --out benchmarks/results/survivors.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from swe_env.sandbox import SandboxSpec, get
from swe_env.sandbox.conformance.bench import make_base
from swe_env.sandbox.keeper.processes import descendants, works_in

WORKER = """
import os, random, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from swe_env.errors import SandboxError
from swe_env.sandbox import SandboxSpec, get
folder, seed, episodes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)
with get("local")(SandboxSpec(base=folder / "base")):
    pass  # from now on a keeper waits for the next one, which takes a descriptor
for number in range(episodes):
    kind = rng.choice(("local", "local", "local", "process"))
    print("begin", len(os.listdir("/proc/self/fd")), flush=True)
    boxes, kept = [], None
    try:
        box = get(kind)(SandboxSpec(base=folder / "base", binds={"/opt/mark": folder}))
        boxes.append(box)
        box.exec(f"sleep 9{seed} & (setsid sleep 9{seed} &); echo x >> README; mkdir d; cd d")
        box.exec(["sh", "-c", f"nohup setsid sleep 9{seed} > /dev/null &"])
        if rng.random() < 0.5:
            boxes.append(box.fork())
            boxes[-1].exec(f"sleep 9{seed} & head -c 1000000 /dev/zero > big")
        if rng.random() < 0.3:
            kept = box.snapshot()
            box.restore(kept)
        box.exec("read x", timeout=0.05, keep_running=True)
        box.diff()
    except SandboxError:
        pass  # its keeper was killed
    finally:
        if kept is not None:
            kept.discard()
        for box in boxes:
            box.close()
print("done", len(os.listdir("/proc/self/fd")), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)
    with tempfile.TemporaryDirectory(prefix="survivors-") as name:
        folder = Path(name)
        make_base(folder / "base")
        (folder / "tmp").mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
        next_run(folder)
        result = measure(options, folder)
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    sys.exit(bool(any(result["left"].values())))


def measure(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Run the episodes and count."""
    rng = random.Random(options.seed)
    each = 20
    whole = (options.episodes - options.kills) // each
    jobs: list[tuple[int, int, str, float]] = [(n, each, "", 0.0) for n in range(whole)]
    for number in range(options.kills):
        victim = rng.choice(("worker", "worker", "launcher", "keeper"))
        jobs.append((1000 + number, 1, victim, rng.uniform(0, 0.35)))
    rng.shuffle(jobs)
    before = count(folder)
    began = time.monotonic()
    with ThreadPoolExecutor(options.at_once) as pool:
        done = list(pool.map(lambda job: work(folder, *job), jobs))
    seconds = time.monotonic() - began
    time.sleep(1.0)
    at_once = count(folder)
    next_run(folder)
    after = count(folder)
    return {
        "machine": {"cpus": os.cpu_count(), "kernel": platform.release()},
        "command": "python benchmarks/survivors.py " + " ".join(sys.argv[1:]),
        "episodes": sum(job[1] for job in jobs),
        "killed": Counter(victim for victim, _ in done if victim),
        "leaked_descriptors_in_workers": sum(leak for _, leak in done),
        "seconds": round(seconds, 1),
        "before": before,
        "when_the_last_has_ended": at_once,
        "after_the_next_run_started": after,
        "left": {name: after[name] - before[name] for name in before},
    }


def work(folder: Path, seed: int, episodes: int, victim: str, delay: float) -> tuple[str, int]:
    """One worker; whom it lost, and how many descriptors it leaked."""
    command = [sys.executable, "-c", WORKER, str(folder), str(seed), str(episodes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        first = worker.stdout.readline()
        if not first.startswith("begin"):
            raise SystemExit("A worker did not start.")
        if victim:
            time.sleep(delay)
            kill(worker.pid, victim)
        rest = worker.stdout.read().splitlines()
    opened = [int(line.split()[1]) for line in rest if line.startswith(("begin", "done"))]
    # The first episode's count is before the helper process and its socket were started.
    return victim, max(0, opened[-1] - opened[0]) if len(opened) > 1 else 0


def kill(worker: int, victim: str) -> None:
    """SIGKILL for the worker, its launcher, or one keeper of the launcher's."""
    launchers = children(worker)
    keepers = [pid for launcher in launchers for pid in children(launcher)]
    targets = {"worker": [worker], "launcher": launchers, "keeper": keepers[:1]}[victim]
    for pid in targets or [worker]:
        os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    """The process's own children."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def next_run(folder: Path) -> None:
    """What a user does next: start and close a sandbox of each kind."""
    for kind in ("process", "local"):
        get(kind)(SandboxSpec(base=folder / "base")).close()


def count(folder: Path) -> dict[str, int]:
    """What there is of this benchmark's sandboxes on the machine, this program's own left out."""
    own = {os.getpid(), *descendants(os.getpid())}
    processes = 0
    for path in Path("/proc").glob("[0-9]*"):
        if int(path.name) in own:
            continue
        try:
            mark = str(folder).encode()
            told = (path / "cmdline").read_bytes() + _mounts(path)
            processes += mark in told or works_in(folder, int(path.name))
        except OSError:
            continue
    groups = [path for path in Path("/sys/fs/cgroup").glob("**/swe-env-*") if path.is_dir()]
    return {
        "processes": processes,
        "mounts": _mounts(Path("/proc/self")).count(str(folder).encode()),
        "stale_cgroups": sum(not Path("/proc", path.name[8:]).exists() for path in groups),
        "temporary_files": sum(1 for _ in (folder / "tmp").iterdir()),
        "descriptors": sum(1 for _ in Path("/proc/self/fd").iterdir()),
    }


def _mounts(process: Path) -> bytes:
    return (process / "mountinfo").read_bytes()


if __name__ == "__main__":
    main()
