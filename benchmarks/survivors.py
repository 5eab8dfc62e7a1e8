"""Nothing is left of 1,000 episodes of which 200 are killed with SIGKILL; prints JSON.

Worker programs run episodes: start a sandbox, commands, daemons, a fork, a snapshot, a diff, close.
At random moments the driver kills a worker, or the helper process that forks its keepers, or one
of the keepers. Afterwards a next run starts and closes one sandbox of each kind, and the driver
counts what is left of all the others: processes, mounts, cgroups, temporary files, descriptors.

    python benchmarks/survivors.py --out benchmarks/results/survivors.json
    python benchmarks/survivors.py --sandbox docker --out benchmarks/results/survivors_docker.json

The second needs an engine, DOCKER_HOST's. There the victims are a worker or a container, and the
engine's containers, images, volumes and mounts count too; the base's image, which later runs use
again, is made before the first count.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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
kinds = ("docker",) if sys.argv[4] == "docker" else ("local", "local", "local", "process")
with get(kinds[0])(SandboxSpec(base=folder / "base")):
    pass  # from now on a keeper waits for the next one, which takes a descriptor
for number in range(episodes):
    kind = rng.choice(kinds)
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

VICTIMS = {
    "local": ("worker", "worker", "launcher", "keeper"),
    "docker": ("worker", "worker", "worker", "container"),
}
EPISODE_SECONDS = {"local": 0.35, "docker": 1.5}
"""About how long an episode lasts: kills fall anywhere in it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sandbox", choices=("local", "docker"), default="local")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="survivors-") as name:
        folder = Path(name)
        make_base(folder / "base")
        (folder / "tmp").mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
        next_run(folder, options.sandbox)
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
        victim = rng.choice(VICTIMS[options.sandbox])
        jobs.append((1000 + number, 1, victim, rng.uniform(0, EPISODE_SECONDS[options.sandbox])))
    rng.shuffle(jobs)
    before = count(folder, options.sandbox)
    began = time.monotonic()
    with ThreadPoolExecutor(options.at_once) as pool:
        done = list(pool.map(lambda job: work(folder, options.sandbox, *job), jobs))
    seconds = time.monotonic() - began
    time.sleep(1.0)
    at_once = count(folder, options.sandbox)
    next_run(folder, options.sandbox)
    after = count(folder, options.sandbox)
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
        # What other programs had left before, and the next run removed, is not counted.
        "left": {name: max(0, after[name] - before[name]) for name in before},
    }


def work(
    folder: Path, sandbox: str, seed: int, episodes: int, victim: str, delay: float
) -> tuple[str, int]:
    """One worker; whom it lost, and how many descriptors it leaked."""
    command = [sys.executable, "-c", WORKER, str(folder), str(seed), str(episodes), sandbox]
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
    """SIGKILL for the worker, its launcher, one keeper of the launcher's, or its container."""
    if victim == "container":
        kill_container(worker)
        return
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


def kill_container(worker: int) -> None:
    """SIGKILL for the first process of one of the worker's containers."""
    from swe_env.sandbox.docker import owner
    from swe_env.sandbox.docker.engine import connect

    api = connect().api
    for row in api.containers(filters={"label": owner.OWNER}):
        if f":{worker}:" in row["Labels"][owner.OWNER]:
            pid = api.inspect_container(row["Id"])["State"]["Pid"]
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return


def next_run(folder: Path, sandbox: str) -> None:
    """What a user does next, in a program of its own: start and close a sandbox of each kind."""
    kinds = ("docker",) if sandbox == "docker" else ("process", "local")
    code = "import sys; from pathlib import Path; from swe_env.sandbox import SandboxSpec, get\n"
    code += "for kind in sys.argv[2:]: get(kind)(SandboxSpec(base=Path(sys.argv[1]))).close()"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(folder / "base"), *kinds], check=True
    )


def of_engine() -> dict[str, int]:
    """The engine's containers, images that belong to a program, volumes and mounts."""
    from swe_env.sandbox.docker import owner
    from swe_env.sandbox.docker.engine import connect

    api = connect().api
    images = api.images(all=True, filters={"label": owner.OWNER})
    return {
        "containers": len(api.containers(all=True)),
        "images": sum(bool((image["Labels"] or {}).get(owner.OWNER)) for image in images),
        "volumes": len(api.volumes()["Volumes"] or []),
        "container_mounts": _mounts(Path("/proc/self")).count(b"/overlay2/"),
    }


def count(folder: Path, sandbox: str) -> dict[str, int]:
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
    engine = of_engine() if sandbox == "docker" else {}
    return {
        **engine,
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
