import dataclasses
import gc
import io
import json
import logging
import os
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import zstandard

from swe_env.errors import ConfigError, ReplayError
from swe_env.replay import ReplayBuffer
from tests.swe_env.replay.conftest import make_trajectory


@pytest.fixture
def folder(tmp_path, trajectories):
    with ReplayBuffer(tmp_path / "buffer") as buffer:
        ids = buffer.extend(trajectories)
    assert ids == [t.trajectory_id for t in trajectories]
    return tmp_path / "buffer"


def shard_of(folder):
    (shard,) = folder.glob("*.jsonl.zst")
    return shard


def test_what_was_appended_comes_back_in_order(folder, trajectories):
    buffer = ReplayBuffer(folder)
    assert list(buffer) == trajectories
    assert buffer[5] == trajectories[5]
    assert buffer[-1] == trajectories[-1]
    assert list(buffer[2:4]) == trajectories[2:4]
    with pytest.raises(IndexError):
        buffer[len(trajectories)]


def test_a_shard_is_plain_zstd_jsonl(folder, trajectories):
    reader = zstandard.ZstdDecompressor().stream_reader(
        io.BytesIO(shard_of(folder).read_bytes()), read_across_frames=True
    )
    records = [json.loads(line) for line in reader.read().splitlines()]
    assert records == [json.loads(json.dumps(t.to_dict())) for t in trajectories]


def test_filter_reads_columns_only(folder, trajectories):
    buffer = ReplayBuffer(folder)
    shard_of(folder).unlink()  # the bodies are gone, the columns are not
    assert len(buffer.filter(resolved=True)) == 8
    assert len(buffer.filter(instance_id={"task-0", "task-1"}, attempt=lambda a: a < 2)) == 4
    assert len(buffer.filter(lambda row: row.n_tokens == 3, resolved=False)) == 16
    assert len(buffer.filter(failure=None)) == 24
    assert len(buffer.filter(instance_id="nowhere")) == 0
    assert len(buffer.filter(id=trajectories[3].trajectory_id)) == 1
    assert buffer.stats().resolved == 8
    with pytest.raises(ConfigError, match="Did you mean 'resolved'"):
        buffer.filter(resolve=True)


def test_views_compose_and_stay_as_they_were(folder, trajectories):
    buffer = ReplayBuffer(folder)
    view = buffer.filter(resolved=True)
    buffer.append(make_trajectory("task-9", resolved=True))
    assert list(view) == [t for t in trajectories if t.resolved]
    assert len(buffer.filter(resolved=True)) == len(view) + 1
    groups = view.group_by_task()
    assert list(groups) == ["task-0", "task-3", "task-2", "task-1"]
    assert all(t.instance_id == name and t.resolved for name, g in groups.items() for t in g)


def test_columns_hold_what_the_record_says(folder, trajectories):
    rows = list(ReplayBuffer(folder).rows())
    assert [row.id for row in rows] == [t.trajectory_id for t in trajectories]
    assert [row.attempt for row in rows] == [t.attempt for t in trajectories]
    assert [row.resolved for row in rows] == [t.resolved for t in trajectories]
    assert {(row.agent, row.model, row.n_agent_steps, row.n_tokens) for row in rows} == {
        ("maker", "none", 1, 3)
    }
    assert list(ReplayBuffer(folder).column("instance_id")) == [t.instance_id for t in trajectories]


def test_sample_does_not_depend_on_who_wrote_first(tmp_path, trajectories):
    one, other = ReplayBuffer(tmp_path / "one"), ReplayBuffer(tmp_path / "other")
    one.extend(trajectories)
    other.extend(reversed(trajectories))
    assert one.sample(6, seed=3) == other.sample(6, seed=3)
    assert one.sample(6, seed=3) != one.sample(6, seed=4)
    assert len({t.trajectory_id for t in one.sample(24, seed=0)}) == 24
    assert one.filter(resolved=True).sample(8, 1) == other.filter(resolved=True).sample(8, 1)
    with pytest.raises(ConfigError, match="Cannot sample 25 of 24"):
        one.sample(25, seed=0)
    assert len(one.sample(50, seed=0, replacement=True)) == 50


def test_readers_see_other_writers_after_refresh(tmp_path):
    reader, writer = ReplayBuffer(tmp_path), ReplayBuffer(tmp_path)
    other = ReplayBuffer(tmp_path)
    writer.append(make_trajectory("a"))
    other.append(make_trajectory("b"))
    assert len(reader) == 0
    assert reader.refresh() == 2
    assert reader.refresh() == 0
    assert writer.refresh() == 1
    assert {t.instance_id for t in writer} == {"a", "b"}


@pytest.mark.parametrize("loss", ["lost", "damaged", "empty", "stale"])
def test_the_index_is_only_a_cache(folder, trajectories, loss, caplog):
    index = folder / "index"
    assert index.exists()
    old = index.read_bytes()
    if loss == "lost":
        index.unlink()
    elif loss == "damaged":
        index.write_bytes(old[:40] + bytes([old[40] ^ 1]) + old[41:])
    elif loss == "empty":
        index.write_bytes(b"")
    else:
        extra = make_trajectory("later")
        with ReplayBuffer(folder) as buffer:
            buffer.append(extra)
        index.write_bytes(old)
        trajectories = [*trajectories, extra]
    assert list(ReplayBuffer(folder)) == trajectories
    assert ("rebuilt" in caplog.text) == (loss in ("damaged", "empty"))


def test_buffers_that_are_dropped_leave_no_descriptors(tmp_path, trajectories):
    def opened():
        gc.collect()
        return sum(str(tmp_path) in os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir())

    for number in range(3):
        buffer = ReplayBuffer(tmp_path / str(number))
        buffer.extend(trajectories)
        assert len(list(buffer)) == len(trajectories)
        assert opened() == 2  # the shard, to append and to read
        del buffer
        assert opened() == 0


def test_a_flipped_bit_anywhere_costs_one_record_and_is_named(tmp_path, trajectories):
    with ReplayBuffer(tmp_path) as buffer:
        buffer.extend(trajectories[:6])
    shard, rng = shard_of(tmp_path), np.random.default_rng(0)
    good = shard.read_bytes()
    starts = ReplayBuffer(tmp_path).column("offset").tolist()
    for position in [
        *rng.integers(len(good), size=80).tolist(),
        *starts,
        4,
        5,
        6,
        7,
        len(good) - 1,
    ]:
        bad = bytearray(good)
        bad[position] ^= 1 << int(rng.integers(8))
        shard.write_bytes(bad)
        (tmp_path / "index").unlink(missing_ok=True)
        hit = max(k for k, start in enumerate(starts) if start <= position)
        buffer = ReplayBuffer(tmp_path)
        assert list(buffer) == [t for k, t in enumerate(trajectories[:6]) if k != hit], position
        damages = buffer.verify()
        assert [(d.shard, d.offset) for d in damages] == [(shard.name, starts[hit])], position


def test_damage_at_a_shards_end_is_told_once(folder, caplog):
    with shard_of(folder).open("ab") as shard:
        shard.write(b"x" * 500)
    buffer = ReplayBuffer(folder)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            buffer.refresh()
    told = [record for record in caplog.records if "Skipped" in record.message]
    assert len(told) == 1, caplog.text


def test_a_damaged_record_is_skipped_loudly_and_raises_when_asked_for(folder, caplog):
    shard = shard_of(folder)
    data = bytearray(shard.read_bytes())
    data[-5] ^= 255
    shard.write_bytes(data)
    buffer = ReplayBuffer(folder)
    with caplog.at_level(logging.WARNING):
        assert len(list(buffer)) == 23
    offset = int(buffer.column("offset")[-1])
    assert f"{shard.name} at byte {offset}" in caplog.text
    with pytest.raises(ReplayError, match=f"{shard.name} at byte {offset}"):
        buffer[-1]
    assert len(buffer.sample(23, seed=0)) == 23


def test_a_torn_tail_costs_only_the_last_record_at_every_length(tmp_path, trajectories):
    with ReplayBuffer(tmp_path) as buffer:
        buffer.extend(trajectories[:3])
    shard = shard_of(tmp_path)
    whole = shard.read_bytes()
    last = int(ReplayBuffer(tmp_path).column("offset")[-1])
    for end in range(last, len(whole)):
        shard.write_bytes(whole[:end])
        (tmp_path / "index").unlink(missing_ok=True)
        buffer = ReplayBuffer(tmp_path)
        assert len(buffer) == 2
        damages = buffer.verify()
        assert len(damages) == (1 if end > last else 0), end
        assert all("unfinished" in d.reason and d.offset == last for d in damages), end
    shard.write_bytes(whole)  # the writer was alive: the record is completed and found
    assert buffer.refresh() == 1
    assert list(buffer) == trajectories[:3]


@pytest.mark.parametrize("reward", [float("nan"), "1"])
def test_what_would_not_read_back_is_refused(tmp_path, reward):
    buffer = ReplayBuffer(tmp_path)
    with pytest.raises(ReplayError, match="cannot be stored"):
        buffer.append(dataclasses.replace(make_trajectory(), reward=reward))
    assert len(buffer) == 0


def test_an_integer_reward_has_the_id_it_reads_back_with(tmp_path):
    buffer = ReplayBuffer(tmp_path)
    identity = buffer.append(dataclasses.replace(make_trajectory(), reward=1))
    assert buffer[0].trajectory_id == identity


@pytest.mark.parametrize("lose", [shutil.rmtree, lambda path: path.rename(f"{path}-moved")])
def test_an_append_into_a_folder_that_is_gone_is_refused(tmp_path, lose):
    buffer = ReplayBuffer(tmp_path / "buffer")
    buffer.append(make_trajectory("lost", 0))
    lose(tmp_path / "buffer")
    with pytest.raises(ReplayError, match="was lost: it was deleted or moved; the next append"):
        buffer.append(make_trajectory("refused", 0))
    buffer.append(make_trajectory("kept", 0))
    assert [t.instance_id for t in ReplayBuffer(tmp_path / "buffer")] == ["kept"]
    moved = ReplayBuffer(tmp_path / "buffer-moved")
    assert [t.instance_id for t in moved] in ([], ["lost"])


def test_a_folder_that_cannot_be_made_is_told_in_a_sentence(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ReplayError, match="could not be created: File exists"):
        ReplayBuffer(tmp_path / "link").append(make_trajectory())


def test_a_shard_that_shrank_behind_the_index_is_read_again(folder, trajectories):
    shard = shard_of(folder)
    offsets = ReplayBuffer(folder).column("offset")
    shard.write_bytes(shard.read_bytes()[: int(offsets[10])])
    assert list(ReplayBuffer(folder)) == trajectories[:10]


def test_a_record_of_another_schema_is_named_not_misread(tmp_path, trajectories):
    foreign = dataclasses.replace(trajectories[2], schema_version=99)
    with ReplayBuffer(tmp_path) as buffer:
        buffer.extend([*trajectories[:2], foreign])
        assert len(buffer.filter(schema_version=99)) == 1
        assert list(buffer) == trajectories[:2]
        with pytest.raises(ReplayError, match="schema version 99"):
            buffer[2]


def test_a_full_disk_keeps_nothing_of_the_record(tmp_path, trajectories):
    buffer = ReplayBuffer(tmp_path)
    buffer.append(trajectories[0])
    size = shard_of(tmp_path).stat().st_size
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, old[1]))
        with pytest.raises(ReplayError, match="nothing of it was kept"):
            buffer.append(trajectories[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert shard_of(tmp_path).stat().st_size == size
    buffer.append(trajectories[2])
    assert list(ReplayBuffer(tmp_path)) == [trajectories[0], trajectories[2]]


def test_durable_waits_for_the_disk_and_plain_does_not(tmp_path, trajectories, monkeypatch):
    real, synced = os.fsync, []

    def fsync(descriptor):
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    ReplayBuffer(tmp_path / "plain").extend(trajectories)
    assert synced == []
    buffer = ReplayBuffer(tmp_path / "durable", durable=True)
    buffer.append(trajectories[0])
    (shard,) = map(str, (tmp_path / "durable").glob("*.zst"))
    assert synced == [shard, str(tmp_path / "durable")]  # the bytes, and the file's name
    buffer.append(trajectories[1])
    buffer.extend(trajectories[2:])  # once for all of them
    assert synced[2:] == [shard, shard]


def test_what_an_iterable_gave_before_it_raised_is_kept(tmp_path, trajectories):
    def broken():
        yield from trajectories[:3]
        raise RuntimeError("the source broke")

    for kind in ("plain", "durable"):
        buffer = ReplayBuffer(tmp_path / kind, durable=kind == "durable")
        with pytest.raises(RuntimeError, match="the source broke"):
            buffer.extend(broken())
        assert list(ReplayBuffer(tmp_path / kind)) == trajectories[:3]


def test_an_interrupt_in_the_middle_of_a_write_leaves_no_half_record(
    tmp_path, trajectories, monkeypatch
):
    buffer = ReplayBuffer(tmp_path)
    buffer.append(trajectories[0])
    real = os.write

    def interrupted(descriptor, data):
        real(descriptor, data[:100])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            buffer.append(trajectories[1])
    buffer.append(trajectories[2])
    assert list(buffer) == [trajectories[0], trajectories[2]]
    assert ReplayBuffer(tmp_path).verify() == []
