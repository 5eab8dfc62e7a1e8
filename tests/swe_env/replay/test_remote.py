"""A buffer on an fsspec file system; ``memory://`` has no append, as object stores have none."""

import fsspec
import pytest

from swe_env.errors import ConfigError, ReplayError
from swe_env.replay import ReplayBuffer, compact, merge, repair
from tests.swe_env.replay.conftest import make_trajectory


@pytest.fixture
def url():
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/elsewhere/file", b"")
    yield "memory://bucket/buffer"
    memory.rm("/", recursive=True)


def files(url):
    return sorted(p.rpartition("/")[2] for p in fsspec.filesystem("memory").ls(url, detail=False))


def test_what_was_appended_comes_back(url, trajectories):
    with ReplayBuffer(url) as buffer:
        first = buffer.append(trajectories[0])
        rest = buffer.extend(trajectories[1:])
    assert buffer.path == url
    assert len(files(url)) == 3  # a file for the append, one for all the others, the index
    again = ReplayBuffer(url)
    assert list(again) == trajectories
    assert [row.id for row in again.rows()] == [first, *rest]
    assert again.filter(resolved=True).sample(3, seed=0) == again.filter(resolved=True).sample(3, 0)
    fsspec.filesystem("memory").rm_file(f"{url}/index")
    assert list(ReplayBuffer(url)) == trajectories


def test_readers_see_other_writers_and_compaction_joins_their_files(url):
    reader, writer, other = ReplayBuffer(url), ReplayBuffer(url), ReplayBuffer(url)
    for k in range(4):
        writer.append(make_trajectory("a", k))
        other.append(make_trajectory("b", k))
    assert reader.refresh() == 8
    view = reader.filter(instance_id="a")
    assert len(files(url)) == 8
    done = compact(ReplayBuffer(url))
    assert done.kept == 8
    assert [name for name in files(url) if name != "index"] == done.made
    assert len(list(view)) == 4
    writer.append(make_trajectory("a", 9))
    reader.refresh()
    assert len(reader) == 9


def test_damage_is_named_set_aside_and_repaired(url, tmp_path):
    with ReplayBuffer(url) as buffer:
        buffer.extend(make_trajectory("a", k) for k in range(3))
    memory = fsspec.filesystem("memory")
    (shard,) = [name for name in files(url) if name.endswith(".zst")]
    data = bytearray(memory.cat_file(f"{url}/{shard}"))
    data[-4] ^= 1
    memory.pipe_file(f"{url}/{shard}", bytes(data))
    (damage,) = ReplayBuffer(url).verify()
    assert damage.shard == shard
    repair(ReplayBuffer(url))
    assert ReplayBuffer(url).verify() == []
    assert len(ReplayBuffer(url)) == 2
    assert any(name.startswith("damaged-") for name in files(url))
    local = ReplayBuffer(tmp_path)
    assert merge(local, [ReplayBuffer(url)]).copied == 2
    assert list(local) == list(ReplayBuffer(url))


def test_a_store_that_refuses_keeps_nothing_and_says_so(url, monkeypatch):
    """The store's own client raises in the middle of a put, as on a lost connection."""
    buffer = ReplayBuffer(url)
    buffer.append(make_trajectory("a", 0))

    def refuse(*args, **kwargs):
        raise RuntimeError("connection lost")

    with monkeypatch.context() as patched:
        patched.setattr(buffer.storage._fs, "pipe_file", refuse)
        with pytest.raises(ReplayError, match="could not be written: connection lost"):
            buffer.append(make_trajectory("a", 1))
    assert len(buffer) == 1
    buffer.append(make_trajectory("a", 2))
    assert [t.attempt for t in ReplayBuffer(url)] == [0, 2]


def test_urls_that_cannot_be_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="cannot lie on nowhere://"):
        ReplayBuffer("nowhere://bucket/buffer")
    with pytest.raises(ConfigError, match="There is no replay buffer at memory://nothing"):
        ReplayBuffer("memory://nothing", create=False)
    with pytest.raises(ConfigError, match="There is no replay buffer at"):
        ReplayBuffer(tmp_path / "missing", create=False)
    assert not (tmp_path / "missing").exists()
    assert ReplayBuffer(f"file://{tmp_path}/b").path == f"{tmp_path}/b"
