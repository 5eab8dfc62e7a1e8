"""200 SIGKILLs into eight writers at work, and into the compactions beside them; writes JSON.

A third of the kills come at any moment, a third within an `append`, a third within its write to the
shard: a writer announces where it is in shared memory, and the kill follows a few random
microseconds later. The next to be killed appends without pause, the others now and then. Every
writer logs the id and SHA-256 of each record (20 to 80 KB) once its `append` has returned.
Meanwhile the index is deleted, cut or garbled, compactions run and half of them are killed too.

Afterwards every logged record must be in the buffer once, byte for byte. There may also be what a
kill came between: a whole record that was not logged yet, or a torn tail, which `compact` and
`repair` set aside. Exit code 1 if anything is amiss.

    python benchmarks/buffer_faults.py --kills 200 --out benchmarks/results/buffer_faults.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
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
from swe_env.replay.storage import Appender, LocalStorage


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
    stages = mmap.mmap(-1, count + 1)
    writers = [fork(lambda k=k: write(path, logs, f"w{k}", stages, k)) for k in range(count)]
    started, compactions, killed_compactions, killed = count, 0, 0, Counter[str]()
    for kill in range(kills):
        victim = rng.randrange(count)
        stages[-1] = victim
        killed[await_stage(kill % 3, stages, victim, rng)] += 1
        stop(writers[victim])
        stages[-1] = NOBODY
        name = f"w{started}"
        writers[victim] = fork(lambda v=victim, name=name: write(path, logs, name, stages, v))
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
        "killed": dict(killed),
        "compactions": compactions,
        "compactions_killed": killed_compactions,
        **compare(path, acknowledged(logs)),
        "seconds": round(time.monotonic() - begin, 1),
    }


def compare(path: Path, wanted: dict[str, str]) -> dict[str, Any]:
    """What is missing, twice or different; before and after `repair`."""
    shards = len(list(path.glob("*.zst")))
    unexplained = [str(d) for d in ReplayBuffer(path).verify() if "unfinished" not in d.reason]
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
        "torn_tails": len(list(path.glob("damaged-*.bin"))),
        "lost": sorted(wanted.keys() - there.keys()),
        "doubled": len(ids) - len(there),
        "changed": sorted(i for i in wanted.keys() & there.keys() if wanted[i] != there[i]),
        "unexplained": unexplained,
        "shards_before": shards,
        "shards_after": len(list(path.glob("*.zst"))),
    }


STAGES = ("outside append", "in append", "in its write")
"""What a writer announces by number in its place; the last place holds who is killed next."""
NOBODY = 255


def await_stage(stage: int, stages: mmap.mmap, victim: int, rng: random.Random) -> str:
    """Wait for a random moment, in that stage of the victim's work unless it is 0; where it is."""
    if stage == 0:
        time.sleep(rng.random() * 0.05)
    else:
        give_up = time.monotonic() + 10
        while stages[victim] != stage and time.monotonic() < give_up:
            pass
        moment = time.perf_counter() + rng.random() * (1e-3, 5e-5)[stage - 1]
        while time.perf_counter() < moment:
            pass
    return STAGES[stages[victim]]


class Announced:
    """The end of a shard that says when it is written to."""

    def __init__(self, inner: Appender, stages: mmap.mmap, place: int) -> None:
        self._inner, self._stages, self._place = inner, stages, place

    def append(self, data: bytes) -> int:
        self._stages[self._place] = 2
        offset = self._inner.append(data)
        self._stages[self._place] = 1
        return offset

    def sync(self) -> None:
        self._inner.sync()

    def close(self) -> None:
        self._inner.close()


class AnnouncedStorage(LocalStorage):
    """A folder whose new files are `Announced`."""

    def __init__(self, path: Path, stages: mmap.mmap, place: int) -> None:
        super().__init__(str(path))
        self._stages, self._place = stages, place

    def create(self, name: str) -> Appender:
        return Announced(super().create(name), self._stages, self._place)


def write(path: Path, logs: Path, name: str, stages: mmap.mmap, place: int) -> None:
    """Append until killed; a line of the log is written only after `append` has returned."""
    parent, rng = os.getppid(), random.Random(name)
    stages[place] = 0
    log = os.open(logs / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    buffer = ReplayBuffer(path)
    buffer.storage = AnnouncedStorage(path, stages, place)
    for attempt in range(10**9):
        if os.getppid() != parent:
            return  # the benchmark itself was killed
        if stages[-1] != place:
            time.sleep(rng.random() * 0.2)  # keeps the buffer small
        trajectory = record(name, attempt)
        sha = digest(pack(trajectory)[1])
        stages[place] = 1
        identity = buffer.append(trajectory)
        stages[place] = 0
        os.write(log, f"{identity} {sha}\n".encode())


def record(name: str, attempt: int) -> Trajectory:
    rng = random.Random(f"{name}:{attempt}")
    text = rng.randbytes(rng.randrange(10_000, 40_000)).hex()
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
