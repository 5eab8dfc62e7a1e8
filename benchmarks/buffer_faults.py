"""200 SIGKILLs at random moments into eight writers and the compactions beside them; writes JSON.

Every writer logs the id and SHA-256 of each record once its `append` has returned. Meanwhile the
index is deleted, cut or garbled, compactions run and half of them are killed too. Afterwards every
logged record must be in the buffer once, byte for byte; the only damage may be unfinished tails,
which `repair` takes out. Exit code 1 if anything is amiss.

    python benchmarks/buffer_faults.py --kills 200 --out benchmarks/results/buffer_faults.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from swe_env.replay import (
    Agent,
    ReplayBuffer,
    Step,
    StepObservation,
    Trajectory,
    compact,
    repair,
)
from swe_env.replay.frames import pack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="swe-faults-") as folder:
        found = storm(Path(folder), options.kills, options.writers, options.seed)
    text = json.dumps({"kills": options.kills, "writers": options.writers, **found}, indent=2)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")
    sys.exit(bool(found["lost"] or found["doubled"] or found["changed"] or found["unexplained"]))


def storm(folder: Path, kills: int, count: int, seed: int) -> dict[str, Any]:
    """Kill writers and compactions until enough died, then compare."""
    rng, begin = random.Random(seed), time.monotonic()
    logs, path = folder / "logs", folder / "buffer"
    logs.mkdir()
    writers = [fork(lambda k=k: write(path, logs, f"w{k}")) for k in range(count)]
    started, compactions, killed_compactions = count, 0, 0
    for kill in range(kills):
        time.sleep(rng.random() * 0.1)
        victim = rng.randrange(count)
        stop(writers[victim])
        name = f"w{started}"
        writers[victim] = fork(lambda name=name: write(path, logs, name))
        started += 1
        if kill % 10 == 5:
            spoil(path / "index", rng)
        if kill % 5 == 0:
            child = fork(lambda: compact(ReplayBuffer(path)))
            compactions += 1
            if rng.random() < 0.5:
                time.sleep(rng.random() * 0.2)
                stop(child)
                killed_compactions += 1
            else:
                os.waitpid(child, 0)
    for writer in writers:
        stop(writer)
    return {
        "compactions": compactions,
        "compactions_killed": killed_compactions,
        **compare(path, acknowledged(logs)),
        "seconds": round(time.monotonic() - begin, 1),
    }


def compare(path: Path, wanted: dict[str, str]) -> dict[str, Any]:
    """What is missing, twice or different; before and after `repair`."""
    shards = len(list(path.glob("*.zst")))
    damages = ReplayBuffer(path).verify()
    unexplained = [str(d) for d in damages if "unfinished" not in d.reason]
    compact(ReplayBuffer(path))
    repair(ReplayBuffer(path))
    (path / "index").unlink(missing_ok=True)
    buffer = ReplayBuffer(path)
    unexplained += [str(damage) for damage in buffer.verify()]
    ids = [row.id for row in buffer.rows()]
    there = {entry.row.id: digest(buffer.raw(entry)) for entry in buffer.entries()}
    return {
        "acknowledged": len(wanted),
        "found": len(ids),
        "unacknowledged_but_whole": len(there.keys() - wanted.keys()),
        "lost": sorted(wanted.keys() - there.keys()),
        "doubled": len(ids) - len(there),
        "changed": sorted(i for i in wanted.keys() & there.keys() if wanted[i] != there[i]),
        "torn_tails": len(damages) - len(unexplained),
        "unexplained": unexplained,
        "shards_before": shards,
        "shards_after": len(list(path.glob("*.zst"))),
    }


def write(path: Path, logs: Path, name: str) -> None:
    """Append until killed; a line of the log is written only after `append` has returned."""
    parent, rng = os.getppid(), random.Random(name)
    log = os.open(logs / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    buffer = ReplayBuffer(path)
    for attempt in range(10**9):
        if os.getppid() != parent:
            return  # the benchmark itself was killed
        time.sleep(rng.random() * 0.02)  # keeps the buffer small; most kills still hit work
        trajectory = record(name, attempt)
        sha = digest(pack(trajectory)[1])
        identity = buffer.append(trajectory)
        os.write(log, f"{identity} {sha}\n".encode())


def record(name: str, attempt: int) -> Trajectory:
    rng = random.Random(f"{name}:{attempt}")
    text = "".join(rng.choices("abcdefgh \n", k=rng.randrange(200, 20_000)))
    return Trajectory(
        instance_id=name,
        agent=Agent(name="storm"),
        attempt=attempt,
        steps=(Step(step_id=1, source="agent", observation=StepObservation(content=text)),),
    )


def acknowledged(logs: Path) -> dict[str, str]:
    found = {}
    for log in logs.iterdir():
        for line in log.read_text().split("\n")[:-1]:  # the last one may be torn
            identity, sha = line.split()
            found[identity] = sha
    return found


def spoil(index: Path, rng: random.Random) -> None:
    """Delete the index, cut it, or turn bits in it."""
    try:
        data = bytearray(index.read_bytes())
    except FileNotFoundError:
        return
    kind = rng.randrange(3)
    if kind == 0 or not data:
        index.unlink(missing_ok=True)
    elif kind == 1:
        index.write_bytes(data[: rng.randrange(len(data))])
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        index.write_bytes(data)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def fork(work: Callable[[], object]) -> int:
    process = os.fork()
    if process == 0:
        try:
            work()
        finally:
            os._exit(0)
    return process


def stop(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


if __name__ == "__main__":
    main()
