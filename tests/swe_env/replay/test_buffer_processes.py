"""The buffer under real processes: many writers at once, and writers killed at any moment."""

import os
import random
import signal
import time

import pytest

from swe_env.replay import ReplayBuffer
from tests.swe_env.replay.conftest import make_trajectory

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def expected(name, attempt):
    return make_trajectory(name, attempt, text=f"{name} {attempt} " * 400)


def start(folder, name, count):
    """Fork a writer; the ids that its `append` returned go to a file, one a line."""
    process = os.fork()
    if process:
        return process
    try:
        log = os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        buffer = ReplayBuffer(folder)
        for attempt in range(count):
            identity = buffer.append(expected(name, attempt))
            os.write(log, f"{identity}\n".encode())
    finally:
        os._exit(0)


def acknowledged_by(folder, name):
    log = folder / f"{name}.log"
    return log.read_text().split("\n")[:-1] if log.exists() else []  # the last one may be torn


def test_writers_at_once_never_interleave(tmp_path):
    writers = [start(tmp_path, f"writer-{k}", 60) for k in range(8)]
    for writer in writers:
        assert os.waitpid(writer, 0)[1] == 0
    ids = [identity for k in range(8) for identity in acknowledged_by(tmp_path, f"writer-{k}")]
    buffer = ReplayBuffer(tmp_path)
    assert sorted(row.id for row in buffer.rows()) == sorted(ids)
    assert len(ids) == 480
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
    """Forty writers are killed while they write; what their `append` returned is all there."""
    rng, names = random.Random(0), []
    for batch in range(20):
        writers = {f"w{batch}-{k}": start(tmp_path, f"w{batch}-{k}", 10**6) for k in range(2)}
        for writer in writers.values():
            time.sleep(rng.random() * 0.04)
            os.kill(writer, signal.SIGKILL)
            os.waitpid(writer, 0)
        names += writers
    buffer = ReplayBuffer(tmp_path)
    groups = buffer.group_by_task()
    assert sum(len(acknowledged_by(tmp_path, name)) for name in names) > 100
    for name in names:
        ids = acknowledged_by(tmp_path, name)
        rows = list(groups[name].rows()) if name in groups else []
        assert [row.id for row in rows[: len(ids)]] == ids
        assert len(rows) <= len(ids) + 1  # written and not yet acknowledged
        found = list(groups[name]) if name in groups else []
        assert found == [expected(name, attempt) for attempt in range(len(rows))]
    assert all("unfinished" in damage.reason for damage in buffer.verify())
    (tmp_path / "index").unlink(missing_ok=True)
    assert len(ReplayBuffer(tmp_path)) == len(buffer)
