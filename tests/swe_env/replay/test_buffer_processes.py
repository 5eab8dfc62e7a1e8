"""The buffer under real processes: many writers at once, and writers killed at any moment."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from swe_env.replay import ReplayBuffer
from tests.swe_env.replay.conftest import make_trajectory

WRITER = """
import sys
from swe_env.replay import ReplayBuffer
from tests.swe_env.replay.conftest import make_trajectory
folder, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
buffer = ReplayBuffer(folder)
sys.stdout.write("ready\\n"); sys.stdout.flush()
for attempt in range(count):
    identity = buffer.append(make_trajectory(name, attempt, text=f"{name} {attempt} " * 400))
    sys.stdout.write(identity + "\\n"); sys.stdout.flush()
"""


def start(folder, name, count):
    """A writer process; what it acknowledged goes to a file, one id a line."""
    with (folder / f"{name}.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), name, str(count)],
            stdout=log,
            env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        )


def acknowledged_by(folder, name):
    lines = (folder / f"{name}.log").read_text().split("\n")[:-1]  # the last one may be torn
    return lines[1:]


def expected(name, attempt):
    return make_trajectory(name, attempt, text=f"{name} {attempt} " * 400)


def test_writers_at_once_never_interleave(tmp_path):
    writers = [start(tmp_path, f"writer-{k}", 60) for k in range(4)]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    ids = [identity for k in range(4) for identity in acknowledged_by(tmp_path, f"writer-{k}")]
    buffer = ReplayBuffer(tmp_path)
    assert sorted(row.id for row in buffer.rows()) == sorted(ids)
    assert len(ids) == 240
    assert buffer.verify() == []
    for name, group in buffer.group_by_task().items():
        assert list(group) == [expected(name, attempt) for attempt in range(60)]


def test_a_forked_child_writes_its_own_shard(tmp_path):
    buffer = ReplayBuffer(tmp_path)
    buffer.append(make_trajectory("parent", 0))
    child = os.fork()
    if child == 0:
        buffer.append(make_trajectory("child", 0))
        os._exit(0)
    os.waitpid(child, 0)
    buffer.append(make_trajectory("parent", 1))
    buffer.refresh()
    assert sorted(t.instance_id for t in buffer) == ["child", "parent", "parent"]
    assert len(list(tmp_path.glob("*.jsonl.zst"))) == 2


def test_sigkill_at_any_moment_loses_nothing_that_was_acknowledged(tmp_path):
    """Thirty writers are killed while they write; what their `append` returned is all there."""
    rng, acknowledged = random.Random(0), {}
    for batch in range(10):
        writers = {f"w{batch}-{k}": start(tmp_path, f"w{batch}-{k}", 10**6) for k in range(3)}
        deadline = time.monotonic() + 60
        while not all((tmp_path / f"{name}.log").stat().st_size for name in writers):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for name, writer in writers.items():
            time.sleep(rng.random() * 0.03)
            writer.send_signal(signal.SIGKILL)
            writer.wait(30)
            acknowledged[name] = acknowledged_by(tmp_path, name)
    buffer = ReplayBuffer(tmp_path)
    groups = buffer.group_by_task()
    assert sum(map(len, acknowledged.values())) > 100
    for name, ids in acknowledged.items():
        records = list(groups[name]) if name in groups else []
        assert [t.trajectory_id for t in records[: len(ids)]] == ids
        assert len(records) <= len(ids) + 1  # written and not yet acknowledged
        assert records == [expected(name, attempt) for attempt in range(len(records))]
    assert all("unfinished" in damage.reason for damage in buffer.verify())
    (tmp_path / "index").unlink(missing_ok=True)
    assert len(ReplayBuffer(tmp_path)) == len(buffer)
