"""The replay buffer at size, and the same records in Minari and in HF datasets; writes JSON.

Appends `--records` trajectories of about 50 KB (source text, token ids, log-probabilities) with one
writer, one `append` at a time, then times opening, random samples of 256, and a filter. Each peer
gets `--peer-records` of the same records in an environment of its own; their times are of that
smaller set, which favours them. What they do:

- Minari (HDF5): an episode's texts, actions with their tokens as JSON; appended one by one and in
  batches of 256; read with `iterate_episodes` by index, texts only (nothing is decoded).
- HF datasets (Arrow): nested rows through `ArrowWriter`, one by one (each in the file before the
  next, as with `append`) and in batches of 256 held in memory; read with ``dataset[indices]``, as
  columns and made into trajectories again.

Appending is from a `Trajectory` to the file for all of them.

    python benchmarks/buffer.py --records 100000 --out benchmarks/results/buffer.json

Needs about 2.5 GB of disk below `--folder`, which is deleted afterwards.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SAMPLE = 256
POOL = 256
TASKS = 2_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--peer-records", type=int, default=2_000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--folder", type=Path, default=None, help="where the data lies meanwhile")
    parser.add_argument("--venvs", type=Path, default=Path("~/.cache/swe-env-peers").expanduser())
    parser.add_argument("--peers", default="minari,datasets", help="comma list; empty for none")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--as-peer", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_peer:
        print(json.dumps(PEERS[options.as_peer](options.folder, options)))
        return
    from swe_env.machine import machine

    with tempfile.TemporaryDirectory(dir=options.folder, prefix="swe-buffer-") as folder:
        found: dict[str, Any] = {
            "machine": machine(),
            "free_gigabytes": round(shutil.disk_usage(folder).free / 1e9),
            "record_bytes": record_bytes(),
            "ours": ours(Path(folder) / "buffer", options),
        }
        for name in filter(None, options.peers.split(",")):
            found[name] = peer(name, Path(folder) / name, options)
        small = argparse.Namespace(**{**vars(options), "records": options.peer_records})
        found["ours_at_the_peers_size"] = ours(Path(folder) / "small", small)
    text = json.dumps(found, indent=2)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")


def ours(folder: Path, options: Any) -> dict[str, Any]:
    from swe_env.replay import ReplayBuffer

    buffer = ReplayBuffer(folder)
    spent, spent_cpu = 0.0, 0.0
    for trajectory in trajectories(options.records):
        begin, cpu = time.perf_counter(), time.process_time()
        buffer.append(trajectory)
        spent += time.perf_counter() - begin
        spent_cpu += time.process_time() - cpu
    closed = clock(buffer.close)
    size = sum(path.stat().st_size for path in folder.iterdir())
    found = {
        "records": options.records,
        "gigabytes_on_disk": round(size / 1e9, 3),
        "append_per_s": round(options.records / spent, 1),
        "append_per_s_of_processor_time": round(options.records / spent_cpu, 1),
        "close_s": round(closed, 3),
        **timed("open", lambda _: ReplayBuffer(folder), options.repeats),
    }
    buffer = ReplayBuffer(folder)
    found |= timed("first_sample_256", lambda k: buffer.sample(SAMPLE, seed=1_000 + k), 1)
    found |= timed("sample_256", lambda k: buffer.sample(SAMPLE, seed=k), options.repeats)
    found |= timed(
        "sample_256_cold",
        lambda k: buffer.sample(SAMPLE, seed=100 + k),
        options.repeats,
        before=lambda: drop_pages(folder),
    )
    found |= timed(
        "sample_256_balanced_by_task",
        lambda k: buffer.sample(SAMPLE, seed=k, balance="instance_id"),
        options.repeats,
    )
    found |= timed("filter_resolved", lambda _: buffer.filter(resolved=True), options.repeats)
    found["resolved"] = len(buffer.filter(resolved=True))
    (folder / "index").unlink()
    found |= timed("open_without_index", lambda _: ReplayBuffer(folder), 1)
    return found


# -- peers: run by their own interpreters --------------------------------------------------------


def minari_peer(folder: Path, options: Any) -> dict[str, Any]:
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    import minari
    import msgspec
    from gymnasium.spaces import Text
    from minari.data_collector import EpisodeBuffer

    def episode(number: int, trajectory: Any) -> Any:
        steps = trajectory.agent_steps
        texts = [trajectory.steps[1].message, *(s.observation.content for s in steps)]
        actions = [
            json.dumps(
                {
                    "message": step.message,
                    "tool": step.tool_calls[0].function_name,
                    "arguments": step.tool_calls[0].arguments,
                    "tokens": msgspec.to_builtins(step.metrics),
                }
            )
            for step in steps
        ]
        ends = [False] * (len(steps) - 1)
        return EpisodeBuffer(
            id=number,
            seed=0,
            options={"instance_id": trajectory.instance_id, "attempt": trajectory.attempt},
            observations=texts,
            actions=actions,
            rewards=[0.0] * (len(steps) - 1) + [trajectory.reward],
            terminations=[*ends, True],
            truncations=[*ends, False],
            infos={},
        )

    records = list(trajectories(options.peer_records))
    half = len(records) // 2
    space = Text(max_length=1_000_000, charset="".join(map(chr, range(32, 127))))
    dataset = minari.create_dataset_from_buffers(
        "bench/swe-v0", [episode(0, records[0])], observation_space=space, action_space=space
    )
    storage = dataset.storage

    def one_by_one() -> None:
        for k in range(1, half):
            storage.update_episodes([episode(k, records[k])])

    def in_batches() -> None:
        for start in range(half, len(records), SAMPLE):
            batch = enumerate(records[start : start + SAMPLE], start)
            storage.update_episodes([episode(k, t) for k, t in batch])

    single, single_cpu = both(one_by_one)
    batched, batched_cpu = both(in_batches)
    opened = clock(lambda: minari.load_dataset("bench/swe-v0"))
    dataset = minari.load_dataset("bench/swe-v0")

    def read(seed: int) -> None:
        indices = random.Random(seed).sample(range(len(records)), min(SAMPLE, len(records)))
        assert sum(len(e.actions) for e in dataset.iterate_episodes(indices)) > 0

    return {
        "version": minari.__version__,
        "records": len(records),
        "append_one_by_one_per_s": round((half - 1) / single, 1),
        "append_one_by_one_per_s_of_processor_time": round((half - 1) / single_cpu, 1),
        "append_in_batches_of_256_per_s": round((len(records) - half) / batched, 1),
        "append_in_batches_of_256_per_s_of_processor_time": round(
            (len(records) - half) / batched_cpu, 1
        ),
        "open_ms": ms(opened),
        **timed("read_256", read, options.repeats),
    }


def datasets_peer(folder: Path, options: Any) -> dict[str, Any]:
    os.environ["HF_HOME"] = str(folder / "home")
    import datasets
    import msgspec
    from datasets.arrow_writer import ArrowWriter

    from swe_env.replay import Trajectory

    def flat(trajectory: Any) -> dict[str, Any]:
        row: dict[str, Any] = msgspec.to_builtins(trajectory)
        row["agent"].pop("settings")  # Arrow has no empty and no free-form tables
        for name in ("failure", "report", "provenance", "tools"):
            row[name] = json.dumps(row[name])
        for step in row["steps"]:
            step["tool_calls"] = json.dumps(step["tool_calls"])
        return row

    records = list(trajectories(options.peer_records))
    path = str(folder / "rows.arrow")

    def append(batch: int) -> None:
        writer = ArrowWriter(path=path, writer_batch_size=batch)
        for record in records:
            writer.write(flat(record))
        writer.finalize()
        writer.close()

    single, single_cpu = both(lambda: append(1))
    batched, batched_cpu = both(lambda: append(SAMPLE))
    opened = clock(lambda: datasets.Dataset.from_file(path))
    dataset = datasets.Dataset.from_file(path)

    def read(seed: int) -> dict[str, Any]:
        indices = random.Random(seed).sample(range(len(records)), min(SAMPLE, len(records)))
        columns: dict[str, Any] = dataset[indices]
        assert len(columns["instance_id"]) == len(indices)
        return columns

    def read_as_trajectories(seed: int) -> None:
        columns = read(seed)
        for values in zip(*columns.values(), strict=True):
            row = dict(zip(columns, values, strict=True))
            row["steps"] = [
                {**step, "tool_calls": json.loads(step["tool_calls"])} for step in row["steps"]
            ]
            for name in ("failure", "report", "provenance", "tools"):
                row[name] = json.loads(row[name])
            Trajectory.from_dict(row)

    return {
        "version": datasets.__version__,
        "records": len(records),
        "gigabytes_on_disk": round(Path(path).stat().st_size / 1e9, 3),
        "append_one_by_one_per_s": round(len(records) / single, 1),
        "append_one_by_one_per_s_of_processor_time": round(len(records) / single_cpu, 1),
        "append_in_batches_of_256_per_s": round(len(records) / batched, 1),
        "append_in_batches_of_256_per_s_of_processor_time": round(len(records) / batched_cpu, 1),
        "open_ms": ms(opened),
        **timed("read_256", read, options.repeats),
        **timed("read_256_as_trajectories", read_as_trajectories, options.repeats),
    }


PEERS: dict[str, Callable[[Path, Any], dict[str, Any]]] = {
    "minari": minari_peer,
    "datasets": datasets_peer,
}


def peer(name: str, folder: Path, options: Any) -> dict[str, Any]:
    import peers

    folder.mkdir(parents=True)
    printed = peers.run(
        name,
        options.venvs,
        inspect.getfile(sys.modules[__name__]),
        "--as-peer",
        name,
        "--folder",
        str(folder),
        "--peer-records",
        str(options.peer_records),
        "--repeats",
        str(options.repeats),
    )
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    shutil.rmtree(folder)
    return found


# -- records -------------------------------------------------------------------------------------


def trajectories(count: int) -> Iterator[Any]:
    """`count` different records over `TASKS` tasks; they share a pool of bodies.

    Records are compressed one by one, so what two of them share saves nothing on the disk.
    """
    pool = [body(random.Random(k)) for k in range(min(POOL, count))]
    for k in range(count):
        base = pool[k % len(pool)]
        resolved = (k * 2_654_435_761) % 10 < 3
        report = dataclasses.replace(base.report, resolved=resolved, fraction=float(resolved))
        yield dataclasses.replace(
            base,
            instance_id=f"project__task-{k % TASKS}",
            attempt=k // TASKS,
            resolved=resolved,
            reward=float(resolved),
            report=report,
        )


def body(rng: random.Random) -> Any:
    """Seven turns over Python's own sources: about 50 KB as JSON."""
    from swe_env.replay import Agent, Metrics, Step, StepObservation, ToolCall, Trajectory
    from swe_env.types import TestReport

    def text(size: int) -> str:
        start = rng.randrange(len(SOURCE) - size)
        return SOURCE[start : start + size]

    def ids(count: int) -> tuple[int, ...]:
        return tuple(min(int(rng.paretovariate(0.4)), 49_151) for _ in range(count))

    steps = [
        Step(step_id=1, source="system", message=text(2_500)),
        Step(step_id=2, source="user", message=text(1_500)),
    ]
    context = 0
    for turn in range(7):
        prompt, sampled = ids(420 if turn else 1_100), ids(130)
        steps.append(
            Step(
                step_id=len(steps) + 1,
                source="agent",
                message=text(330),
                tool_calls=(ToolCall(function_name="view", arguments={"path": text(24)}),),
                observation=StepObservation(content=text(1_500)),
                metrics=Metrics(
                    prompt_prefix=context,
                    prompt_token_ids=prompt,
                    completion_token_ids=sampled,
                    # float32, as the sampler gives them
                    logprobs=tuple(float32(-rng.expovariate(3)) for _ in sampled),
                ),
            )
        )
        context += len(prompt) + len(sampled)
    return Trajectory(
        instance_id="",
        agent=Agent(name="transformers", model_name="benchmark"),
        steps=tuple(steps),
        finished=True,
        patch=text(900),
        report=TestReport(
            resolved=False,
            fraction=0.0,
            fail_to_pass={f"tests/test_a.py::test_{k}": "passed" for k in range(3)},
            pass_to_pass={f"tests/test_b.py::test_{k}": "passed" for k in range(20)},
        ),
        provenance={"started": "2026-01-01T00:00:00+00:00", "seconds": 12.5},
    )


def float32(value: float) -> float:
    import struct

    return float(struct.unpack("f", struct.pack("f", value))[0])


SOURCE = "".join(inspect.getsource(m) for m in (argparse, inspect, random, subprocess, tempfile))


def record_bytes() -> int:
    import msgspec

    sizes = [len(msgspec.json.encode(t)) for t in trajectories(32)]
    return round(statistics.mean(sizes))


# -- measuring -----------------------------------------------------------------------------------


def clock(work: Callable[[], object]) -> float:
    return both(work)[0]


def both(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock and of processor time."""
    begin, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begin, time.process_time() - processor


def timed(
    name: str,
    work: Callable[[int], object],
    repeats: int,
    *,
    before: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Median milliseconds by the clock, and of processor time (others on the machine disturb it
    less; several threads add up)."""
    times = []
    for k in range(repeats):
        if before is not None:
            before()
        begin, processor = time.perf_counter(), time.process_time()
        work(k)
        times.append((time.perf_counter() - begin, time.process_time() - processor))
    walls, processors = zip(*times, strict=True)
    return {
        f"{name}_ms": ms(statistics.median(walls)),
        f"{name}_processor_ms": ms(statistics.median(processors)),
    }


def ms(seconds: float) -> float:
    return round(seconds * 1e3, 2)


def drop_pages(folder: Path) -> None:
    """Ask the kernel to forget the shards' pages, so that reads go to the disk."""
    for path in folder.glob("*.zst"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
