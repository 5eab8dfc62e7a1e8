import dataclasses
from collections import Counter

import numpy as np
import pytest

from swe_env.errors import ConfigError, ReplayError
from swe_env.replay import ReplayBuffer
from swe_env.replay.sampling import group_codes, with_replacement, without_replacement
from tests.swe_env.replay.conftest import make_trajectory


@pytest.fixture
def uneven(tmp_path):
    """Task "big" has 30 records of which 3 are resolved, "small" 4 (2), "lone" 1 (0)."""
    buffer = ReplayBuffer(tmp_path)
    for name, count, resolved in (("big", 30, 3), ("small", 4, 2), ("lone", 1, 0)):
        for k in range(count):
            buffer.append(make_trajectory(name, k, resolved=k < resolved))
    return buffer


def test_tasks_come_equally_often_while_they_last(uneven):
    drawn = uneven.sample(9, seed=0, balance="instance_id")
    assert Counter(t.instance_id for t in drawn) == {"big": 4, "small": 4, "lone": 1}
    assert len({t.trajectory_id for t in drawn}) == 9
    firsts = Counter(
        uneven.sample(1, seed=s, balance="instance_id")[0].instance_id for s in range(300)
    )
    assert all(70 < firsts[name] < 130 for name in ("big", "small", "lone")), firsts


def test_successes_and_failures_come_equally_often(uneven):
    drawn = uneven.sample(10, seed=1, balance="resolved")
    assert sum(t.resolved for t in drawn) == 5
    both = uneven.sample(5, seed=1, balance=("instance_id", "resolved"))
    assert len({(t.instance_id, t.resolved) for t in both}) == 5
    many = uneven.sample(400, seed=1, balance="resolved", replacement=True)
    assert 160 < sum(t.resolved for t in many) < 240


@pytest.mark.parametrize("groups", [3, 70_000])
def test_each_group_gives_one_before_any_gives_two(groups):
    codes = np.random.default_rng(0).integers(groups, size=100_000)
    order = without_replacement(np.random.default_rng(1), len(codes), groups=codes)
    assert sorted(order) == list(range(len(codes)))
    met = Counter()
    rounds = []
    for code in codes[order].tolist():
        rounds.append(met[code])
        met[code] += 1
    assert rounds == sorted(rounds)


def test_weights_decide_how_likely_a_record_is(uneven):
    assert all(t.resolved for t in uneven.sample(5, seed=0, weight="reward"))
    with pytest.raises(ConfigError, match="Cannot sample 6 of 5"):
        uneven.sample(6, seed=0, weight="reward")
    priority = np.where(uneven.column("instance_id") == "lone", 34.0, 1.0)
    hits = sum(
        uneven.sample(1, seed=s, weight=priority)[0].instance_id == "lone" for s in range(400)
    )
    assert 160 < hits < 240  # half of the weight lies on one record
    drawn = uneven.sample(400, seed=0, weight=priority, replacement=True)
    assert 160 < sum(t.instance_id == "lone" for t in drawn) < 240


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ("agent", "must be numbers"),
        ("rewards", "no column 'rewards'"),
        ([1.0], "1 weights for 35 records"),
        (np.full(35, np.nan), "finite"),
        (np.full(35, -1.0), "at least 0"),
        (np.zeros(35), "Every weight is 0"),
    ],
)
def test_wrong_weights_are_refused_in_a_sentence(uneven, weight, message):
    with pytest.raises(ConfigError, match=message):
        uneven.sample(1, seed=0, weight=weight)


def test_weights_of_a_view_are_those_of_its_records(uneven):
    view = uneven.filter(instance_id="small")
    chosen = view.sample(1, seed=0, weight=[0, 0, 0, 1])
    assert chosen == [view[3]]
    assert view.sample(4, seed=2, balance="resolved") != view.sample(4, seed=3, balance="resolved")


class Busy(ReplayBuffer):
    """A buffer that another thread appends to whenever somebody has looked at it."""

    def __init__(self, path, other):
        super().__init__(path)
        self.other = other

    def snapshot(self):
        found = super().snapshot()
        self.other.append(make_trajectory("new", len(found[0])))
        self.refresh()
        return found


def test_a_buffer_that_grows_meanwhile_is_sampled_as_it_was(tmp_path):
    """What is new lies before what is there: the other writer's shard was first."""
    other = ReplayBuffer(tmp_path)
    other.append(make_trajectory("new", 0))
    with ReplayBuffer(tmp_path) as buffer:
        buffer.extend(make_trajectory("old", k, resolved=k < 8) for k in range(32))
    assert all(t.resolved for t in Busy(tmp_path, other).sample(8, seed=0, weight="reward"))
    priorities = [0.0] * (len(ReplayBuffer(tmp_path)) - 32) + [float(k < 8) for k in range(32)]
    assert all(t.resolved for t in Busy(tmp_path, other).sample(8, seed=0, weight=priorities))
    drawn = Busy(tmp_path, other).sample(16, seed=0, balance="resolved")
    assert sum(t.resolved for t in drawn) == 8


def test_orders_are_permutations_and_rounds_are_fair():
    rng = np.random.default_rng(0)
    groups = group_codes([np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 0, 0, 0, 0])])
    for _ in range(20):
        order = without_replacement(rng, 6, groups=groups)
        assert sorted(order) == list(range(6))
        assert sorted(groups[order[:3]]) == [0, 1, 2]
        assert sorted(groups[order[3:5]]) == [0, 1]
    drawn = with_replacement(rng, 6, 3_000, groups=groups)
    assert all(850 < (groups[drawn] == g).sum() < 1_150 for g in range(3))


def damage(folder, *positions):
    """Break the bodies of these records; the shard's name."""
    (shard,) = folder.glob("*.zst")
    offsets = [*ReplayBuffer(folder).column("offset").tolist(), shard.stat().st_size]
    data = bytearray(shard.read_bytes())
    for position in positions:
        data[offsets[position + 1] - 5] ^= 255
    shard.write_bytes(data)
    return shard.name


def test_a_damaged_record_is_replaced_by_the_next_in_the_draw(tmp_path, caplog):
    with ReplayBuffer(tmp_path) as buffer:
        buffer.extend(make_trajectory("a", k) for k in range(12))
    shard = damage(tmp_path, 11)
    buffer = ReplayBuffer(tmp_path)
    assert len(buffer.sample(11, seed=0)) == 11
    assert shard in caplog.text
    place = f"{shard} at byte {buffer.column('offset')[-1]}"
    with pytest.raises(ReplayError, match=f"sample 12 of 12 .* 1 cannot be read .{place}"):
        buffer.sample(12, seed=0)
    assert [t.attempt for t in buffer.shuffled(0)] == [t.attempt for t in buffer.sample(11, 0)]


def test_with_replacement_the_draw_goes_on_among_those_that_can_be_read(tmp_path):
    with ReplayBuffer(tmp_path) as buffer:
        buffer.extend(make_trajectory("a", k, resolved=k < 2) for k in range(4))
    damage(tmp_path, 1)
    buffer = ReplayBuffer(tmp_path)
    plain = Counter(t.attempt for t in buffer.sample(600, seed=0, replacement=True))
    assert plain.total() == 600
    assert all(150 < plain[attempt] < 250 for attempt in (0, 2, 3)), plain
    even = buffer.sample(600, seed=0, replacement=True, balance="resolved")
    assert Counter(t.attempt for t in even).keys() == {0, 2, 3}
    assert len(even) == 600
    weighted = buffer.sample(600, seed=0, replacement=True, weight="reward")
    assert Counter(t.attempt for t in weighted) == {0: 600}
    with pytest.raises(ReplayError, match="sample 5 of 1 records: 1 cannot be read"):
        buffer.filter(attempt=1).sample(5, seed=0, replacement=True)


def test_a_record_of_another_schema_is_named_by_a_large_sample_too(tmp_path, caplog):
    newer = dataclasses.replace(make_trajectory("new"), schema_version=2)
    with ReplayBuffer(tmp_path) as buffer:
        buffer.extend([*(make_trajectory("a", k) for k in range(80)), newer])
    assert len(buffer.sample(80, seed=0)) == 80
    offset = int(buffer.column("offset")[-1])
    with pytest.raises(ReplayError, match=f"1 cannot be read .*at byte {offset}"):
        buffer.sample(81, seed=0)
    assert f"at byte {offset}" in caplog.text
    assert "schema version 2" in caplog.text
