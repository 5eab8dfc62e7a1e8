"""The buffer under real processes: many writers at once, and writers killed at any moment."""

import json
import mmap
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from swe_env.replay import ReplayBuffer
from tests.swe_env.replay.conftest import make_trajectory

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def expected(name, attempt):
    return make_trajectory(name, attempt, text=f"{name} {attempt} " * 400)


def large(name, attempt):
    """As long as a real record, and nothing that compresses well."""
    text = random.Random(f"{name} {attempt}").randbytes(20_000).hex()
    return make_trajectory(name, attempt, text=text)


def start(folder, name, count, record=expected, writing=None):
    """Fork a writer; the ids that its `append` returned go to a file, one a line.

    The first byte of `writing` is 1 while it is within a large write.
    """
    process = os.fork()
    if process:
        return process
    try:
        if writing is not None:
            announce_writes(writing)
        log = os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        buffer = ReplayBuffer(folder)
        for attempt in range(count):
            identity = buffer.append(record(name, attempt))
            os.write(log, f"{identity}\n".encode())
    finally:
        os._exit(0)


def announce_writes(writing):
    write = os.write

    def announced(descriptor, data):
        writing[0] = len(data) > 1_000
        done = write(descriptor, data)
        writing[0] = 0
        return done

    os.write = announced


def await_write(writing, moment):
    """Wait until the writer is within a write, for ten seconds, and `moment` seconds longer."""
    give_up = time.monotonic() + 10
    while not writing[0] and time.monotonic() < give_up:
        pass
    begin = time.perf_counter()
    while time.perf_counter() < begin + moment:
        pass


def stop(writer):
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)


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
    """Half of forty writers die within a write; what their `append` returned is all there."""
    rng, names = random.Random(0), []
    for batch in range(20):
        one, other, writing = f"w{batch}-0", f"w{batch}-1", mmap.mmap(-1, 1)
        writers = [
            start(tmp_path, one, 10**6, large),
            start(tmp_path, other, 10**6, large, writing),
        ]
        time.sleep(rng.random() * 0.04)
        stop(writers[0])
        await_write(writing, rng.random() * 5e-5)
        stop(writers[1])
        names += [one, other]
    buffer = ReplayBuffer(tmp_path)
    groups = buffer.group_by_task()
    unacknowledged = 0
    assert sum(len(acknowledged_by(tmp_path, name)) for name in names) > 100
    for name in names:
        ids = acknowledged_by(tmp_path, name)
        rows = list(groups[name].rows()) if name in groups else []
        assert [row.id for row in rows[: len(ids)]] == ids
        assert len(rows) <= len(ids) + 1  # written and not yet acknowledged
        unacknowledged += len(rows) - len(ids)
        found = list(groups[name]) if name in groups else []
        assert found == [large(name, attempt) for attempt in range(len(rows))]
    torn = buffer.verify()
    assert all("unfinished" in damage.reason for damage in torn)
    assert unacknowledged + len(torn)  # some kills did come between
    (tmp_path / "index").unlink(missing_ok=True)
    assert len(ReplayBuffer(tmp_path)) == len(buffer)


FILL = """
import json, os, sys
from swe_env.errors import ReplayError
from swe_env.replay import ReplayBuffer
from tests.swe_env.replay.test_buffer_processes import expected

folder, spare = sys.argv[1], sys.argv[1] + "/spare"
open(spare, "wb").write(os.urandom(40_000))
buffer, kept, refused = ReplayBuffer(folder + "/buffer"), [], ""
for attempt in range(10_000):
    try:
        kept.append(buffer.append(expected("filler", attempt)))
    except ReplayError as error:
        refused = str(error)
        break
buffer.close()  # the index finds no room either
full = [row.id for row in ReplayBuffer(folder + "/buffer").rows()]
damages = [str(damage) for damage in ReplayBuffer(folder + "/buffer").verify()]
os.unlink(spare)
kept.append(buffer.append(expected("after", 0)))
found = list(ReplayBuffer(folder + "/buffer"))
assert found == [expected("filler", k) for k in range(len(kept) - 1)] + [expected("after", 0)]
print(json.dumps({"kept": kept, "full": full, "refused": refused, "damages": damages}))
"""


def test_a_full_disk_keeps_whole_records_and_goes_on_when_there_is_room(tmp_path):
    """On a tmpfs of 256 KB, in a mount namespace of its own."""
    inside = 'mount -t tmpfs -o size=256k tmpfs "$1" && exec "$2" -c "$3" "$1"'
    space = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "-r"]
    if subprocess.run([*space, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace can be made here: needs root or user namespaces")
    done = subprocess.run(
        [*space, "sh", "-c", inside, "sh", str(tmp_path), sys.executable, FILL],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "No space left on device; nothing of it was kept" in found["refused"]
    assert len(found["kept"]) > 20
    assert found["full"] == found["kept"][:-1]
    assert found["damages"] == []
    assert "could not be saved" in done.stderr
