"""What a `docker` sandbox costs: medians in milliseconds and a container's memory; prints JSON.

    DOCKER_HOST=unix:///var/run/docker.sock python benchmarks/docker_sandbox.py --rounds 10

The checkout is made here: 2,000 files in 100 folders, one of them a module of 2,000 lines.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from swe_env.sandbox import SandboxSpec
from swe_env.sandbox.docker import DockerFactory, DockerSandbox
from swe_env.sandbox.docker.engine import connect

_times: defaultdict[str, list[float]] = defaultdict(list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder, "base")
        make(base)
        factory = DockerFactory()
        spec = SandboxSpec(base=base)
        timed("first start (imports the checkout)", lambda: factory(spec)).close()
        memory = [one_round(factory, spec) for _ in range(rounds)]
    api = connect().api
    found = {name: round(statistics.median(times), 2) for name, times in _times.items()}
    print(
        json.dumps(
            {
                "median_ms": found,
                "memory_mib": {
                    "with its shell": statistics.median(before for before, _ in memory),
                    "and its file server": statistics.median(after for _, after in memory),
                },
                "rounds": rounds,
                "engine": api.version()["Version"],
                "storage": api.info()["Driver"],
                "machine": f"{platform.platform()}, {os.cpu_count()} cores",
                "load": os.getloadavg(),
            },
            indent=1,
        )
    )


def timed(name: str, call: Callable[[], Any]) -> Any:
    began = time.perf_counter()
    result = call()
    _times[name].append(1000 * (time.perf_counter() - began))
    return result


def one_round(factory: DockerFactory, spec: SandboxSpec) -> tuple[float, float]:
    box = timed("start", lambda: factory(spec))
    timed("first command (starts the shell)", lambda: box.exec("true"))
    before = memory(box)
    for _ in range(20):
        timed("echo in the shell", lambda: box.exec("echo on"))
    timed("echo as its own process", lambda: box.exec(["echo", "on"]))
    timed("first file (starts the server)", lambda: box.files.read("pkg_0/long.py"))
    after = memory(box)
    for _ in range(20):
        timed("read 2,000 lines", lambda: box.files.read("pkg_0/long.py"))
    timed("walk 2,000 files", lambda: list(box.files.walk()))
    box.exec("for i in $(seq 0 99); do echo x >> pkg_$i/file_1.py; done")
    timed("diff of 100 changed files", box.diff)
    twin = timed("fork with 100 changed files", box.fork)
    twin.close()
    kept = timed("snapshot", box.snapshot)
    timed("restore", lambda: box.restore(kept))
    kept.discard()
    timed("close", box.close)
    return before, after


def memory(box: DockerSandbox) -> float:
    stats = connect().api.stats(box._container.id, stream=False, one_shot=True)["memory_stats"]
    cached = stats["stats"].get("total_inactive_file", stats["stats"].get("inactive_file", 0))
    return round((stats["usage"] - cached) / 2**20, 1)


def make(base: Path) -> None:
    for number in range(100):
        folder = base / f"pkg_{number}"
        folder.mkdir(parents=True)
        for index in range(20):
            (folder / f"file_{index}.py").write_text(f"value = {index}\n" * 50)
    (base / "pkg_0" / "long.py").write_text("".join(f"line_{i} = {i}\n" for i in range(2000)))
    settings = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "-A"], [*settings, "commit", "-qm", "base"]):
        subprocess.run(["git", "-C", str(base), *command], check=True)


if __name__ == "__main__":
    main()
