import dataclasses
import random

import pytest

from learners.data import kto_rows, pairs, sft_rows
from learners.data.dataset import pair_samples
from learners.data.encode import Encoded
from swe_env.replay.trajectory import Step
from tests.learners.records import FAILURE, mixed_buffer, sampled


def ids(found):
    return [(p.chosen.trajectory_id, p.rejected.trajectory_id, p.tie) for p in found]


def test_trap_5_pairs_are_resolved_over_unresolved_of_one_task():
    found, report = pairs(mixed_buffer(), per_task=2)
    assert len(found) == report.kept == 8
    for pair in found:
        assert pair.chosen.resolved
        assert not pair.rejected.resolved
        assert pair.chosen.instance_id == pair.rejected.instance_id


def test_pairs_depend_on_content_and_seed_alone():
    buffer = mixed_buffer(each=6)
    shuffled = buffer.copy()
    random.Random(5).shuffle(shuffled)
    assert ids(pairs(buffer, seed=1, ties=1)[0]) == ids(pairs(shuffled, seed=1, ties=1)[0])
    assert ids(pairs(buffer, seed=1)[0]) != ids(pairs(buffer, seed=2)[0])


def test_pairs_spread_over_the_trajectories():
    found, _ = pairs(mixed_buffer(tasks=1, each=6), per_task=3)
    assert len({p.chosen.trajectory_id for p in found}) == 3
    assert len({p.rejected.trajectory_id for p in found}) == 3


def test_a_quota_is_never_exceeded():
    found, _ = pairs(mixed_buffer(tasks=2, each=8), per_task=100, ties=3)
    assert sum(not p.tie for p in found) == 2 * 16
    for task in ("t-0", "t-1"):
        ties = [p for p in found if p.tie and p.chosen.instance_id == task]
        assert len(ties) == 3
        assert all(p.chosen.resolved == p.rejected.resolved for p in ties)
        assert {p.chosen.resolved for p in ties} == {True, False}


def test_a_trajectory_makes_no_tie_with_its_like():
    same = [sampled(attempt=0), sampled(attempt=1)]
    assert same[0].trajectory_id != same[1].trajectory_id
    assert pairs(same, ties=5)[0] == []


@pytest.mark.parametrize(
    "change",
    [{"tools": ()}, {"steps": None}],
    ids=["other tools", "other system prompt"],
)
def test_trap_5_pairs_need_one_first_state(change):
    good, bad = sampled(), sampled(replies=("no",), resolved=False)
    if change == {"steps": None}:
        change = {"steps": (Step(step_id=1, source="system", message="Else."), *bad.steps[1:])}
    found, report = pairs([good, dataclasses.replace(bad, **change)])
    assert found == []
    assert report.dropped == {"other-first-state": 2}


def test_every_drop_is_counted_with_its_reason():
    buffer = [
        sampled("a"),
        sampled("a", replies=("x",), resolved=False),
        sampled("a", replies=("y",), resolved=False),
        sampled("b"),
        sampled("c", failure=FAILURE),
        sampled("d", finished=False, truncation="steps"),
    ]
    found, report = pairs(buffer)
    assert len(found) == 1
    assert report.seen == 6
    assert report.dropped == {"failure": 1, "unfinished": 1, "no-partner": 1, "over-quota": 1}
    assert str(report).startswith("1 samples from 6 trajectories; left out: 1 failure (an infra")


def test_kto_rows_keep_both_labels_and_sft_rows_the_resolved():
    buffer = [*mixed_buffer(tasks=2, each=4), sampled("z", finished=False)]
    rows, report = kto_rows(buffer)
    assert [row.desirable for row in rows] == [row.trajectory.resolved for row in rows]
    assert len(rows) == 8
    assert report.dropped == {"unfinished": 1}
    rows, report = sft_rows(buffer, per_task=1)
    assert len(rows) == 2
    assert all(row.trajectory.resolved for row in rows)
    assert report.dropped == {"unfinished": 1, "unresolved": 4, "over-quota": 2}


def test_trap_5_a_pair_whose_tokens_start_differently_is_dropped():
    """The same texts, rendered by two templates: not the same first state for the model."""
    starts = iter([(1, 2), (1, 3)])

    def encoder(trajectory):
        return Encoded((*next(starts), 9), (False, False, True), (-1, -1, 0))

    dataset = pair_samples([sampled(), sampled(replies=("n",), resolved=False)], encoder)
    assert len(dataset) == 0
    assert dataset.report.dropped == {"prompts-differ": 1}
