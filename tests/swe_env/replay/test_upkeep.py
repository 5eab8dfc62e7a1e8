"""Repair, compaction, merging and splitting, also under writers, readers and SIGKILL."""

import dataclasses
import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest

from swe_env.errors import ConfigError, ReplayError
from swe_env.replay import ReplayBuffer, compact, merge, repair, upkeep
from swe_env.replay.frames import preface, replaced
from tests.swe_env.replay.conftest import make_trajectory


def write(folder, name, count):
    with ReplayBuffer(folder) as buffer:
        return buffer.extend(make_trajectory(name, k, resolved=k % 2 == 0) for k in range(count))


def raws(buffer):
    return {entry.row.id: buffer.raw(entry) for entry in buffer.entries()}


def test_compaction_joins_shards_and_keeps_every_byte(tmp_path):
    ids = [i for k in range(6) for i in write(tmp_path, f"t{k}", 5)]
    before = raws(ReplayBuffer(tmp_path))
    view = ReplayBuffer(tmp_path).filter(resolved=True)
    wanted = list(view)
    done = compact(ReplayBuffer(tmp_path))
    assert (done.kept, len(done.replaced), len(done.made)) == (30, 6, 1)
    assert [p.name for p in tmp_path.glob("*.zst")] == done.made
    after = ReplayBuffer(tmp_path)
    assert [row.id for row in after.rows()] == ids
    assert raws(after) == before
    assert list(view) == wanted  # a view made before still reads, from the new shard
    assert compact(ReplayBuffer(tmp_path)).made == []


@pytest.fixture
def few_descriptors():
    """``few_descriptors(n)``: the process may open that many files more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def limit(more):
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + more, hard))

    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_compaction_joins_more_shards_than_may_be_open(tmp_path, few_descriptors):
    write(tmp_path, "a", 1)
    (first,) = tmp_path.glob("*.zst")
    for k in range(299):
        shutil.copy(first, tmp_path / f"{first.name[:20]}-{k:08x}.jsonl.zst")
    few_descriptors(220)
    done = compact(ReplayBuffer(tmp_path))
    assert (done.kept, len(done.replaced), done.in_use) == (300, 300, [])
    assert len(done.made) == len(list(tmp_path.glob("*.zst"))) == 3
    assert len(ReplayBuffer(tmp_path)) == 300


def test_a_shard_that_cannot_be_opened_is_not_taken_for_one_in_use(tmp_path, few_descriptors):
    write(tmp_path, "a", 1)
    (shard,) = tmp_path.glob("*.zst")
    storage = ReplayBuffer(tmp_path).storage
    few_descriptors(0)
    with pytest.raises(OSError, match="Too many open files"):
        storage.claim(shard.name)


def test_more_shards_than_a_preface_can_name_are_refused():
    shards = [f"{k:020d}-{k:08x}.jsonl.zst" for k in range(26_000)]
    with pytest.raises(ReplayError, match=r"cannot take the place of 26000.*Join fewer"):
        preface(shards)
    data = preface(shards[:20_000])
    assert replaced(lambda offset, length: data[offset : offset + length]) == tuple(shards[:20_000])


def test_compaction_drops_doubles_only_when_asked(tmp_path):
    one, other = write(tmp_path, "a", 3), write(tmp_path, "a", 4)
    assert one == other[:3]
    assert compact(ReplayBuffer(tmp_path)).duplicates == 0
    assert len(ReplayBuffer(tmp_path)) == 7
    assert len(ReplayBuffer(tmp_path).unique()) == 4
    assert len(ReplayBuffer(tmp_path).unique("resolved")) == 2
    done = compact(ReplayBuffer(tmp_path), deduplicate=True)
    assert done.duplicates == 3
    assert [row.id for row in ReplayBuffer(tmp_path).rows()] == other


def test_a_double_of_a_large_shard_that_is_left_alone_is_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(upkeep, "_LARGE", 1_000)
    large = write(tmp_path, "a", 40)
    (kept,) = tmp_path.glob("*.zst")
    small = write(tmp_path, "a", 2) + write(tmp_path, "b", 2)
    done = compact(ReplayBuffer(tmp_path), deduplicate=True)
    assert (len(done.replaced), done.duplicates) == (2, 2)
    assert kept.exists()
    assert [row.id for row in ReplayBuffer(tmp_path).rows()] == large + small[2:]


def test_a_double_is_not_dropped_for_a_damaged_record(tmp_path):
    ids = write(tmp_path, "a", 1)
    (first,) = tmp_path.glob("*.zst")
    write(tmp_path, "a", 1)
    first.write_bytes(first.read_bytes()[:-3] + b"bad")
    compact(ReplayBuffer(tmp_path), deduplicate=True)
    repair(ReplayBuffer(tmp_path))
    assert [t.trajectory_id for t in ReplayBuffer(tmp_path)] == ids


def test_damage_met_while_shards_are_joined_is_set_aside(tmp_path):
    write(tmp_path, "a", 1)
    (first,) = tmp_path.glob("*.zst")
    kept = write(tmp_path, "b", 1)
    first.write_bytes(first.read_bytes()[:-3] + b"bad")  # a body: its header says nothing of it
    done = compact(ReplayBuffer(tmp_path))
    assert [(d.shard, d.offset) for d in done.damages] == [(first.name, 0)]
    assert (tmp_path / f"damaged-{first.name.partition('.')[0]}-0.bin").exists()
    assert [t.trajectory_id for t in ReplayBuffer(tmp_path)] == kept


def test_a_shard_in_use_is_left_alone(tmp_path):
    write(tmp_path, "a", 2)
    write(tmp_path, "b", 2)
    writer = ReplayBuffer(tmp_path)
    writer.append(make_trajectory("c", 0))
    done = compact(ReplayBuffer(tmp_path))
    assert len(done.in_use) == 1
    assert done.kept == 4
    writer.append(make_trajectory("c", 1))  # as if nothing had happened
    assert len(ReplayBuffer(tmp_path)) == 6
    assert ReplayBuffer(tmp_path).verify() == []
    reader = ReplayBuffer(tmp_path)
    writer.close()
    compact(ReplayBuffer(tmp_path))
    assert reader.refresh() >= 0
    assert len(reader) == 6
    assert len(list(reader)) == 6


def test_a_shard_whose_place_was_taken_counts_no_more(tmp_path):
    """Killed between naming the new shard and deleting the old: no record is there twice."""
    ids = write(tmp_path, "a", 3) + write(tmp_path, "b", 2)
    kept = {p.name: p.read_bytes() for p in tmp_path.glob("*.zst")}
    reader = ReplayBuffer(tmp_path)
    compact(ReplayBuffer(tmp_path))
    for name, data in kept.items():
        (tmp_path / name).write_bytes(data)
    reader.refresh()
    assert [row.id for row in reader.rows()] == ids
    for index in ("index", "nothing"):
        (tmp_path / index).unlink(missing_ok=True)
        assert [row.id for row in ReplayBuffer(tmp_path).rows()] == ids
    write(tmp_path, "c", 1)
    compact(ReplayBuffer(tmp_path))  # ends the deletion first: the names would be forgotten
    assert sorted(t.instance_id for t in ReplayBuffer(tmp_path)) == [*"aaa", *"bb", "c"]
    assert len(list(tmp_path.glob("*.zst"))) == 1


def test_compaction_deletes_unfinished_files_of_ours_and_no_others(tmp_path, monkeypatch):
    write(tmp_path, "a", 1)
    with monkeypatch.context() as patched:  # SIGKILL before the file has its name
        patched.setattr(os, "replace", lambda *names: None)
        for name in ("index", "damaged-1-a-0.bin"):
            ReplayBuffer(tmp_path).storage.replace(name, b"half")
    Path(ReplayBuffer(tmp_path).storage.scratch()).write_bytes(b"half")
    ours = set(tmp_path.glob(".*"))
    assert len(ours) == 3
    theirs = {tmp_path / name for name in (".gitattributes", ".new.txt", ".cache.0123abcd")}
    for path in theirs:
        path.write_text("* filter=lfs")
    compact(ReplayBuffer(tmp_path))
    assert set(tmp_path.glob(".*")) == ours | theirs  # whoever writes them may be alive
    for path in ours | theirs:
        os.utime(path, (0, 0))
    compact(ReplayBuffer(tmp_path))
    assert set(tmp_path.glob(".*")) == theirs


def test_repair_sets_damage_aside_and_keeps_the_rest(tmp_path):
    write(tmp_path, "a", 6)
    (shard,) = tmp_path.glob("*.zst")
    buffer = ReplayBuffer(tmp_path)
    entries, before = list(buffer.entries()), raws(buffer)
    data = bytearray(shard.read_bytes())
    data[entries[1].offset + entries[1].length - 3] ^= 1  # a body
    data[entries[3].offset + 9] ^= 1  # a header
    shard.write_bytes(data + data[:100])  # a torn tail
    found = ReplayBuffer(tmp_path).verify()
    assert [d.offset for d in found] == [entries[1].offset, entries[3].offset, len(data)]
    done = repair(ReplayBuffer(tmp_path))
    assert [(d.shard, d.offset) for d in done.damages] == [(d.shard, d.offset) for d in found]
    healthy = ReplayBuffer(tmp_path)
    assert healthy.verify() == []
    assert healthy.damages == ()
    hurt = {entries[1].row.id, entries[3].row.id}
    assert raws(healthy) == {k: v for k, v in before.items() if k not in hurt}
    aside = tmp_path / f"damaged-{shard.name.partition('.')[0]}-{entries[1].offset}.bin"
    assert aside.read_bytes() == data[entries[1].offset : entries[2].offset]
    assert repair(ReplayBuffer(tmp_path)).replaced == []


def test_shards_that_are_compacted_while_others_look_are_passed_over(tmp_path, monkeypatch):
    for name in ("a", "b"):
        write(tmp_path, name, 3)
    buffer = ReplayBuffer(tmp_path)
    listed = buffer.shards

    def compacted_then():
        found = listed()
        compact(ReplayBuffer(tmp_path))
        return found

    monkeypatch.setattr(buffer, "shards", compacted_then)
    assert buffer.verify() == []
    write(tmp_path, "a", 3)
    assert repair(buffer).damages == []
    write(tmp_path, "b", 3)
    compact(buffer, deduplicate=True)
    monkeypatch.undo()
    compact(buffer, deduplicate=True)
    assert sorted(t.instance_id for t in ReplayBuffer(tmp_path)) == [*"aaabbb"]


def test_repair_leaves_a_record_being_written_to_its_writer(tmp_path):
    writer = ReplayBuffer(tmp_path)
    writer.append(make_trajectory("a"))
    (shard,) = tmp_path.glob("*.zst")
    whole = shard.read_bytes()
    with shard.open("ab") as file:
        file.write(whole[:50])
    done = repair(ReplayBuffer(tmp_path))
    assert done.in_use == [shard.name]
    assert shard.read_bytes() == whole + whole[:50]


def test_merge_copies_what_is_new_byte_for_byte(tmp_path, caplog):
    one, two = tmp_path / "one", tmp_path / "two"
    write(one, "a", 3)
    write(two, "a", 4)
    write(two, "b", 2)
    shard = max(two.glob("*.zst"))
    shard.write_bytes(shard.read_bytes()[:-2] + b"xx")
    into = ReplayBuffer(tmp_path / "all")
    done = merge(into, [ReplayBuffer(one), ReplayBuffer(two)])
    assert (done.copied, done.duplicates, len(done.damages)) == (5, 3, 1)
    assert shard.name in done.damages[0]
    assert "at byte" in done.damages[0]
    assert raws(ReplayBuffer(one)).items() <= raws(ReplayBuffer(into.path)).items()
    assert merge(into, [ReplayBuffer(one).filter(resolved=True)]).copied == 0
    assert merge(into, [ReplayBuffer(one)], deduplicate=False).copied == 3


def test_records_of_two_schemas_lie_side_by_side_through_everything(tmp_path, caplog):
    """A newer swe-env wrote some: they are named, skipped, kept byte for byte, and no damage."""
    newer = dataclasses.replace(make_trajectory("new"), schema_version=2)
    with ReplayBuffer(tmp_path / "a") as buffer:
        buffer.extend([make_trajectory("old"), newer])
    write(tmp_path / "a", "old", 2)
    before = raws(ReplayBuffer(tmp_path / "a"))
    buffer = ReplayBuffer(tmp_path / "a")
    assert buffer.stats().schemas == {1: 3, 2: 1}
    assert buffer.verify() == []
    assert [t.instance_id for t in buffer] == ["old"] * 3
    assert "schema version 2" in caplog.text
    assert repair(buffer).damages == []
    compact(ReplayBuffer(tmp_path / "a"))
    into = ReplayBuffer(tmp_path / "b")
    merge(into, [ReplayBuffer(tmp_path / "a")])
    assert raws(into) == raws(ReplayBuffer(tmp_path / "a")) == before


def test_a_split_keeps_tasks_whole_and_in_their_place(tmp_path):
    with ReplayBuffer(tmp_path) as buffer:
        buffer.extend(make_trajectory(f"task-{k % 40}", k) for k in range(120))
    buffer = ReplayBuffer(tmp_path)
    parts = buffer.split({"train": 3, "test": 1}, seed=5)
    tasks = {name: set(view.column("instance_id")) for name, view in parts.items()}
    assert sum(len(view) for view in parts.values()) == 120
    assert not tasks["train"] & tasks["test"]
    assert 20 < len(tasks["train"]) < 38
    buffer.extend(make_trajectory(f"task-{k}", 999) for k in range(80))
    later = buffer.split({"train": 3, "test": 1}, seed=5)
    for name, view in later.items():
        assert tasks[name] <= set(view.column("instance_id"))
    assert set(buffer.split({"train": 3, "test": 1}, seed=6)["test"].column("instance_id")) != set(
        later["test"].column("instance_id")
    )
    grouped = buffer.split({"x": 1, "y": 1}, by=lambda name: name[-1])
    ends = [{name[-1] for name in view.column("instance_id")} for view in grouped.values()]
    assert not ends[0] & ends[1]
    with pytest.raises(ConfigError, match="fell into b"):
        buffer.filter(instance_id="task-0").split({"a": 1, "b": 1e-9})
    with pytest.raises(ConfigError, match="above 0"):
        buffer.split({"a": 0.0})


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_compaction_killed_at_any_moment_loses_and_doubles_nothing(tmp_path):
    rng = random.Random(1)
    ids = []
    for k in range(12):
        ids += write(tmp_path, f"t{k}", 4)
    for _ in range(15):
        child = os.fork()
        if child == 0:
            try:
                compact(ReplayBuffer(tmp_path), shard_bytes=rng.choice([3_000, 1 << 30]))
            finally:
                os._exit(0)
        time.sleep(rng.random() * 0.03)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        ids += write(tmp_path, f"k{len(ids)}", 2)
        if rng.random() < 0.5:
            (tmp_path / "index").unlink(missing_ok=True)
        buffer = ReplayBuffer(tmp_path)
        assert sorted(row.id for row in buffer.rows()) == sorted(ids)
        assert buffer.verify() == []
    assert compact(ReplayBuffer(tmp_path)).made
    assert sorted(row.id for row in ReplayBuffer(tmp_path).rows()) == sorted(ids)
    assert len(list(tmp_path.glob("*.zst"))) == 1


def test_a_damaged_preface_is_named(tmp_path):
    write(tmp_path, "a", 2)
    write(tmp_path, "b", 2)
    compact(ReplayBuffer(tmp_path))
    (shard,) = tmp_path.glob("*.zst")
    data = bytearray(shard.read_bytes())
    data[15] ^= 1
    shard.write_bytes(data)
    (tmp_path / "index").unlink()
    buffer = ReplayBuffer(tmp_path)
    assert len(list(buffer)) == 4
    (damage,) = buffer.verify()
    assert (damage.shard, damage.offset) == (shard.name, 0)
    assert damage.length == min(buffer.column("offset"))
